"""Virtqueues that no driver should make: nowhere or of a size that cannot be, with reserved words,
or broken beside one that is not.

As in `malformed`: what happens to the queue is the device's own affair; it answers, touches nothing
that was not lent, and serves again after a reset.
"""

from __future__ import annotations

from collections.abc import Callable

from virtq.check.case import NotObservable, case
from virtq.check.context import Context, Live
from virtq.check.device.malformed import NOWHERE, serves_again, survives
from virtq.check.device.status import is_given_up
from virtq.check.disk import config
from virtq.check.session import Ring, Session
from virtq.errors import PeerGone, VirtqError
from virtq.features import F
from virtq.model.memory import AVAIL, DESCRIPTOR_BYTES, NEXT
from virtq.model.notify import DESC, PackedEvent
from virtq.model.packed import Descriptor as PackedDescriptor
from virtq.wire import blk

_RESET = "reset.dev.status-zero"

# Where the rings are


def _set_up(ctx: Context, spoil: Callable[[Session, Ring], tuple[int, int, int]]) -> None:
    """Enable a queue whose areas are as `spoil` says: the device may refuse, or do nothing."""
    session = ctx.session()
    if not session.negotiate(ctx.features(session)):
        raise NotObservable("the device does not take the features")
    work = ctx.work
    work.prepare(session)
    ring = Ring(session, work.queue, 16, session.features, 0)
    session.rings[work.queue] = ring
    ring.add(work.job(0))
    ring.half.publish()
    try:
        session.transport.enable_queue(ring, *spoil(session, ring))
        session.go_live()
        ring.signal()
        for _ in session.moment():
            session.transport.check()
    except PeerGone:
        raise
    except ValueError as error:
        raise NotObservable(f"the transport does not pass it on: {error}") from None
    except VirtqError:
        pass  # refused
    serves_again(ctx, session)


@case(_RESET)
def a_ring_nowhere(ctx: Context) -> None:
    """A descriptor area that is not memory (row 7)."""
    _set_up(ctx, lambda session, ring: (NOWHERE, ring.areas.driver, ring.areas.device))


@case(_RESET)
def a_ring_half_in_memory(ctx: Context) -> None:
    """A virtqueue of which a part lies beyond the end of memory: the used ring, or most of the
    descriptor ring with a list that goes on there (row 7)."""

    def areas(session: Session, ring: Ring) -> tuple[int, int, int]:
        memory = session.arena.memory
        end = max(region.guest_addr + region.size for region in memory.regions)
        if not ring.packed:
            return ring.areas.desc, ring.areas.driver, end - 4
        start = end - 4 * DESCRIPTOR_BYTES
        for at in range(start, end, DESCRIPTOR_BYTES):
            PackedDescriptor(ring.areas.desc, DESCRIPTOR_BYTES, 0, AVAIL | NEXT).store(memory, at)
        return start, ring.areas.driver, ring.areas.device

    _set_up(ctx, areas)


def _of_size(ctx: Context, size: int) -> None:
    session = ctx.session()
    if not session.negotiate(ctx.features(session)):
        raise NotObservable("the device does not take the features")
    work = ctx.work
    work.prepare(session)
    try:
        session.ring(work.queue, size)
        session.go_live()
        session.rings[work.queue].signal()
        for _ in session.moment():
            session.transport.check()
    except PeerGone:
        raise
    except (ValueError, VirtqError):
        pass  # refused, by the device or before it
    serves_again(ctx, session)


@case(_RESET)
def a_queue_that_is_too_large(ctx: Context) -> None:
    """A queue of twice the largest size that the device has (row 3)."""
    session = ctx.session()
    largest = session.transport.queue_size_max(ctx.own_queue)
    if largest > 16384:
        raise NotObservable("the device has the largest queues that there are")
    _of_size(ctx, 2 * largest)


@case(_RESET, packed=False)
def a_split_queue_of_twelve(ctx: Context) -> None:
    """A split queue of a size that is no power of two (row 17)."""
    _of_size(ctx, 12)


# Words that are reserved


@case(_RESET, packed=True)
def event_flags_3(ctx: Context) -> None:
    """Event flags 3, which are reserved, in the driver's structure (row 23)."""

    def spoil(live: Live) -> None:
        live.ring.packed_ring.driver_event = PackedEvent(0, 0, 3)
        for job in live.jobs(3):
            live.ring.add(job)
        live.ring.half.publish()

    survives(ctx, spoil)


@case(_RESET, packed=True, needs=F.EVENT_IDX)
def an_event_beyond_the_ring(ctx: Context) -> None:
    """A descriptor event for a slot that the ring does not have (row 23)."""

    def spoil(live: Live) -> None:
        live.ring.packed_ring.driver_event = PackedEvent(0x7FFF, 1, DESC)
        for job in live.jobs(3):
            live.ring.add(job)
        live.ring.half.publish()

    survives(ctx, spoil, int(F.EVENT_IDX))


@case(_RESET, packed=False)
def reserved_available_flags(ctx: Context) -> None:
    """Every reserved bit set in the flags of the available ring (row 23)."""

    def spoil(live: Live) -> None:
        live.ring.split_ring.avail_flags = 0xFFFE
        for job in live.jobs(3):
            live.ring.add(job)
        live.ring.half.publish()

    survives(ctx, spoil)


@case(_RESET)
def descriptor_flags_of_all_sorts(ctx: Context) -> None:
    """Every bit of a descriptor's flags that means nothing, set (row 23): the buffer may be served
    or not."""

    def spoil(live: Live) -> None:
        for seed in range(3):
            live.ring.add(live.work.job(seed))
            live.ring.change_head(lambda d: d._replace(flags=d.flags | 0x7F78))
        live.ring.half.publish()

    survives(ctx, spoil)


# One of several


@case("status.dev.set-needs-reset", device_id=blk.DEVICE_ID, needs=blk.BlkFeature.MQ)
def another_queue_goes_on(ctx: Context) -> None:
    """SHOULD: when one queue is broken (row 1), another one serves on, or the device says that it
    does not."""
    live = ctx.live(add=blk.BlkFeature.MQ)
    session = live.session
    if config(session).num_queues < 2:
        raise NotObservable("the device has one queue")
    other = session.ring(1, 16)
    other.serve(*live.jobs(2))
    live.ring.add(live.work.job(0))
    live.ring.change_head(lambda d: d._replace(addr=NOWHERE))
    live.ring.kick(always=True)
    for _ in session.moment():
        session.transport.check()
    other.add(live.work.job(1))
    other.kick(always=True)
    for _ in session.patience("the other queue to serve, or DEVICE_NEEDS_RESET"):
        if other.half.used_entry() is not None:
            other.wait(1)
            break
        if is_given_up(session, other):
            break
