"""Resetting one virtqueue (2.6.1)."""

from __future__ import annotations

from virtq.check.case import case, expect
from virtq.check.context import Context, Live
from virtq.features import F


def _again(live: Live, size: int) -> Live:
    ring = live.session.ring(live.work.queue, size)
    return Live(live.session, ring, live.work)


@case("vqreset.dev.default-state", "vqreset.dev.honour-new-config", needs=F.RING_RESET)
def begins_anew(ctx: Context) -> None:
    """A queue that was reset and enabled again begins at slot 0, also with another size."""
    live = ctx.live(add=F.RING_RESET, size=16)
    for size in (16, 8, 32):
        live.ring.serve(*live.jobs(3))
        live.session.transport.reset_queue(live.work.queue)
        live = _again(live, size)
        live.ring.serve(live.work.job(0))
        expect(live.ring.entries[0].slot == 0, "the first used entry in slot 0", live.ring.entries)


@case("vqreset.dev.no-execution", "vqreset.dev.no-notify", needs=F.RING_RESET)
def nothing_while_reset(ctx: Context) -> None:
    """A queue that was reset uses nothing and notifies nothing, whatever is in its ring."""
    live = ctx.live(add=F.RING_RESET)
    live.ring.serve(*live.jobs(2))
    live.session.transport.reset_queue(live.work.queue)
    live.ring.calls()
    for job in live.jobs(3):
        live.ring.add(job)
    live.ring.half.publish()
    live.ring.signal()
    expect(live.ring.quiet(), "nothing used after the reset of the queue", "a used entry")
    expect(live.ring.calls() == 0, "no notification", "a used buffer notification")
    live = _again(live, live.ring.size)
    live.ring.serve(*live.jobs(3))


@case("vqreset.dev.default-state", needs=F.RING_RESET)
def many_times(ctx: Context) -> None:
    """Reset again and again, with buffers used between, a different number each time."""
    live = ctx.live(add=F.RING_RESET, size=16)
    for count in range(12):
        if count:
            live.ring.serve(*live.jobs(count % 5 + 1))
        live.session.transport.reset_queue(live.work.queue)
        live = _again(live, 16)
    live.ring.serve(*live.jobs(4))
