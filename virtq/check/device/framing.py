"""How buffers are cut into descriptors: a device must not care (2.7.4)."""

from __future__ import annotations

from virtq.check.case import case
from virtq.check.context import Context


@case("framing.dev.no-layout-assumption", "framing.dev.chain-limit")
def any_cut(ctx: Context) -> None:
    """A request is the same request however it is cut: in the middle of a header, byte by byte at
    its end."""
    live = ctx.live(size=64)
    for seed in range(8):
        job = live.work.job(seed)
        readable, writable = len(job.readable), job.writable
        for cut in (1, 3, 7):
            pieces = [*_cut(readable, cut), 0, *_cut(writable, cut)]
            live.ring.add(job, tuple(pieces))
            live.ring.kick()
            live.ring.wait(1)


def _cut(length: int, first: int) -> list[int]:
    if length <= first:
        return [length] if length else []
    rest = length - first
    return [first, rest - 1, 1] if rest > 1 else [first, rest]


@case("framing.dev.no-layout-assumption")
def a_long_chain(ctx: Context) -> None:
    """A request of many descriptors, as many as a queue that size must take."""
    live = ctx.live(size=64)
    job = live.work.job(0)
    parts = [*_crumbs(len(job.readable)), 0, *_crumbs(job.writable)]
    live.ring.add(job, tuple(parts))
    live.ring.kick()
    live.ring.wait(1)


def _crumbs(length: int) -> list[int]:
    """A length in up to 16 parts, all but the last of one byte."""
    count = min(length, 16)
    return [1] * (count - 1) + [length - count + 1] if count else []
