"""The entropy device (5.4)."""

from __future__ import annotations

from virtq.check.case import case, expect
from virtq.check.context import Context
from virtq.check.session import UNTOUCHED, Job, Sent
from virtq.wire import rng

_SIZES_BYTES = (1, 2, 3, 64, 1000, 4096)
_TELLING_BYTES = 32
"""So many bytes that are the same by chance would be a wonder."""


@case("entropy.op.dev.at-least-one", device_id=rng.DEVICE_ID)
def a_byte_or_more(ctx: Context) -> None:
    """Every buffer gets one byte or more, and no more than it has, whatever its size."""
    live = ctx.live()
    for size in _SIZES_BYTES:
        [sent] = live.ring.serve(Job(b"", size))
        written = sent.written or 0
        expect(1 <= written <= size, f"1 to {size} random bytes", written)


@case("entropy.op.dev.partial", device_id=rng.DEVICE_ID)
def the_length_is_true(ctx: Context) -> None:
    """A buffer may be filled in part; what the used length counts was written, and is not the same
    every time."""
    live = ctx.live()
    seen: set[bytes] = set()
    for _ in range(4):
        got = _told(live.ring.serve(Job(b"", 256))[0])
        rest = len(got) - len(got.rstrip(bytes([UNTOUCHED])))
        expect(
            rest < _TELLING_BYTES, f"{len(got)} random bytes", f"the last {rest} were not written"
        )
        if len(got) >= _TELLING_BYTES:
            expect(got not in seen, "bytes that were not there before", got[:8].hex())
            seen.add(got)


def _told(sent: Sent) -> bytes:
    return sent.reply[: sent.written]
