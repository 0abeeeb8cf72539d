"""More rings that no driver should make: rings that are nowhere or too large, buffers that lie
where they should not, and words that change or are reserved.

As in `malformed`: what happens to the queue is the device's own affair; it answers, touches nothing
that was not lent, and serves again after a reset.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from virtq.check.case import NotObservable, case
from virtq.check.context import Context, Live
from virtq.check.device.malformed import change_last, serves_again, survives
from virtq.check.device.status import is_given_up
from virtq.check.disk import config
from virtq.check.session import Ring, Session
from virtq.errors import PeerGone, VirtqError
from virtq.features import F
from virtq.model.memory import AVAIL, DESCRIPTOR_BYTES, INDIRECT, NEXT, WRITE, load
from virtq.model.notify import DESC, PackedEvent
from virtq.model.packed import Descriptor as PackedDescriptor
from virtq.model.split import Descriptor as SplitDescriptor
from virtq.wire import blk

_RESET = "reset.dev.status-zero"
_NOWHERE = 0x7FFF_FFFF_0000
_REGION_BYTES = 1 << 20

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
    _set_up(ctx, lambda session, ring: (_NOWHERE, ring.areas.driver, ring.areas.device))


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


# Buffers


@case(_RESET)
def a_buffer_over_the_ring(ctx: Context) -> None:
    """A device-writable buffer that lies over the virtqueue itself, every part of it (row 12)."""

    def spoil(live: Live) -> None:
        start, end = live.ring.areas.desc, live.ring.areas.end
        live.ring.add(live.work.job(0))
        change_last(live, addr=start, len=end - start)
        live.ring.half.publish()

    survives(ctx, spoil)


@case(_RESET)
def a_buffer_twice(ctx: Context) -> None:
    """The same buffer made available again while it is outstanding, many times over (row 8)."""

    def spoil(live: Live) -> None:
        if live.ring.packed:
            for seed in range(4):
                live.ring.add(live.work.job(seed))
                change_last(live, id=0x1234)
            live.ring.half.publish()
            return
        live.ring.add(live.work.job(0))
        ring, head = live.ring.split_ring, live.ring.half.added[-1].id
        for step in range(live.ring.size):
            ring.set_avail((ring.avail_idx + step) % live.ring.size, head)
        ring.avail_idx += live.ring.size

    survives(ctx, spoil)


@case(_RESET)
def a_buffer_across_regions(ctx: Context) -> None:
    """A buffer that lies across the border of two regions of memory (row 4): a driver may make
    one; the device serves it, or breaks."""
    _across(ctx, lambda live, border: change_last(live, addr=border - 8, len=64))


@case(_RESET, needs=F.INDIRECT_DESC)
def a_table_across_regions(ctx: Context) -> None:
    """An indirect table that lies across the border of two regions of memory (row 4)."""

    def move(live: Live, border: int) -> None:
        if live.ring.head().flags & INDIRECT == 0:
            raise NotObservable("this device type's requests have one descriptor")
        memory, head = live.session.arena.memory, live.ring.head()
        at = border - DESCRIPTOR_BYTES
        for offset in range(0, head.len, DESCRIPTOR_BYTES):
            memory.write(at + offset, memory.read(head.addr + offset, DESCRIPTOR_BYTES))
        live.ring.change_head(lambda d: d._replace(addr=at))

    _across(ctx, move, int(F.INDIRECT_DESC))


def _across(ctx: Context, move: Callable[[Live, int], None], add: int = 0) -> None:
    session = ctx.session()
    memory = session.transport.memory
    border = max(region.guest_addr + region.size for region in memory.regions)
    fd = os.memfd_create("virtq-check", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, _REGION_BYTES)
        memory.add_region(fd, border, _REGION_BYTES)
    finally:
        os.close(fd)
    live = ctx.live(add=add, indirect_length=4 if add else 0, session=session)
    live.ring.serve(*live.jobs(2))
    live.ring.add(live.work.job(0))
    move(live, border)
    live.ring.kick(always=True)
    for _ in session.moment():
        session.transport.check()
    serves_again(ctx, session)


@case(_RESET, packed=False)
def a_next_beyond_the_table(ctx: Context) -> None:
    """A descriptor that goes on in one that is not in the table (row 15)."""

    def spoil(live: Live) -> None:
        live.ring.add(live.work.job(0))
        live.ring.change_head(lambda d: d._replace(flags=NEXT, next=live.ring.size + 5))
        live.ring.half.publish()

    survives(ctx, spoil)


@case(_RESET, packed=False)
def a_chain_without_an_end(ctx: Context) -> None:
    """A chain that goes through the whole table and comes back to its head (row 15)."""

    def spoil(live: Live) -> None:
        live.ring.add(live.work.job(0))
        ring, head = live.ring.split_ring, live.ring.half.added[-1].id
        first = ring.desc(head)
        for step in range(live.ring.size):
            slot = (head + step) % live.ring.size
            behind = (slot + 1) % live.ring.size
            ring.set_desc(slot, SplitDescriptor(first.addr, 1, NEXT, behind))
        live.ring.half.publish()

    survives(ctx, spoil)


@case(_RESET, needs=F.INDIRECT_DESC)
def a_table_within_a_table(ctx: Context) -> None:
    """A table whose first descriptor refers to a table: itself (row 15)."""

    def spoil(live: Live) -> None:
        live.ring.add(live.work.job(0))
        memory, table = live.session.arena.memory, live.session.arena.alloc(DESCRIPTOR_BYTES)
        inner = SplitDescriptor(table.addr, DESCRIPTOR_BYTES, INDIRECT, 0)
        flags_at = 14 if live.ring.packed else 12
        inner.store(memory, table.addr)
        memory.write(table.addr + flags_at, INDIRECT.to_bytes(2, "little"))
        live.ring.change_head(
            lambda d: d._replace(
                addr=table.addr, len=DESCRIPTOR_BYTES, flags=d.flags & ~(NEXT | WRITE) | INDIRECT
            )
        )
        live.ring.half.publish()

    survives(ctx, spoil, int(F.INDIRECT_DESC))


@case(_RESET)
def a_table_that_was_not_negotiated(ctx: Context) -> None:
    """INDIRECT in a descriptor without the feature (row 15)."""

    def spoil(live: Live) -> None:
        live.ring.add(live.work.job(0))
        live.ring.change_head(lambda d: d._replace(flags=d.flags & ~NEXT | INDIRECT, len=32))
        live.ring.half.publish()

    survives(ctx, spoil, without=int(F.INDIRECT_DESC))


@case(_RESET, packed=True)
def a_list_that_is_not_all_available(ctx: Context) -> None:
    """A list whose head is available and whose second descriptor is not (row 17)."""

    def spoil(live: Live) -> None:
        live.ring.add(live.work.job(0))
        ring, slots = live.ring.packed_ring, live.ring.half.added[-1].slots
        for slot in slots[1:]:
            ring.set_desc(slot, ring.desc(slot)._replace(flags=0))
        live.ring.change_head(lambda d: d._replace(flags=d.flags | NEXT))
        live.ring.half.publish()

    survives(ctx, spoil)


@case(_RESET)
def a_descriptor_that_changes(ctx: Context) -> None:
    """The head's address changes again and again while the device is at it, between memory and
    nowhere (row 18)."""

    def spoil(live: Live) -> None:
        memory = live.session.arena.memory
        for turn in range(20):
            if live.ring.half.free < 4:
                break
            live.ring.add(live.work.job(turn))
            added, good = live.ring.half.added[-1], live.ring.head().addr
            at = live.ring.areas.desc + DESCRIPTOR_BYTES * added.slots[0]
            live.ring.change_head(lambda d: d._replace(addr=_NOWHERE))
            live.ring.half.publish()
            live.ring.signal()
            for step in range(40):
                if load(memory, at, 8) not in (good, _NOWHERE):
                    break  # a used descriptor by now
                addr = _NOWHERE if step % 2 else good
                memory.write(at, addr.to_bytes(8, "little"))

    survives(ctx, spoil)


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
    live.ring.change_head(lambda d: d._replace(addr=_NOWHERE))
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
