"""Buffers that no driver should make: the device may break, but only that queue, and can be reset.

Any outcome but a hang, a crash or memory written that was not lent is a pass: the specification
leaves what happens to the device. What must hold is that it serves again after a reset.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from virtq.check.case import Broken, Hung, NotObservable, case
from virtq.check.context import Context, Live
from virtq.check.session import Session
from virtq.features import F
from virtq.model.memory import DESCRIPTOR_BYTES, INDIRECT, NEXT, WRITE, load
from virtq.model.split import Descriptor as SplitDescriptor

NOWHERE = 0x7FFF_FFFF_0000
"""An address that is not memory."""
_REGION_BYTES = 1 << 20


def survives(
    ctx: Context, spoil: Callable[[Live], None], add: int = 0, *, without: int = 0
) -> None:
    """Do harm to a queue, wait a moment, reset, and see that the device serves again."""
    live = ctx.live(add=add, without=without, indirect_length=8 if add & F.INDIRECT_DESC else 0)
    live.ring.serve(*live.jobs(2))
    spoil(live)
    live.ring.signal()
    for _ in live.session.moment():
        live.session.transport.check()
    serves_again(ctx, live.session)


def serves_again(ctx: Context, session: Session) -> None:
    """Reset the device after what was done to it, and see that it serves. Raises as it does."""
    try:
        session.reset()
        again = ctx.live(session=session)
        again.ring.serve(*again.jobs(4))
    except Hung as hung:
        raise Hung(f"{hung}, after the malformed ring and a reset") from None
    except Broken as broken:
        raise Broken(
            f"after the malformed ring and a reset, {broken.expected}", broken.came
        ) from None


def change_last(live: Live, **fields: int) -> None:
    """Change the last descriptor of the buffer that was added last."""
    slots = live.ring.half.added[-1].slots
    if len(slots) == 1:
        live.ring.change_head(lambda d: d._replace(**fields))
    elif live.ring.packed:
        packed = live.ring.packed_ring
        packed.set_desc(slots[-1], packed.desc(slots[-1])._replace(**fields))
    else:
        split = live.ring.split_ring
        split.set_desc(slots[-1], split.desc(slots[-1])._replace(**fields))


@case("reset.dev.status-zero")
def a_buffer_nowhere(ctx: Context) -> None:
    """A descriptor whose address is not memory (rows 7, 10)."""

    def spoil(live: Live) -> None:
        live.ring.add(live.work.job(0))
        live.ring.change_head(lambda d: d._replace(addr=NOWHERE))
        live.ring.half.publish()

    survives(ctx, spoil)


@case("reset.dev.status-zero")
def an_address_that_overflows(ctx: Context) -> None:
    """Address and length together pass 2^64 (row 10)."""

    def spoil(live: Live) -> None:
        live.ring.add(live.work.job(0))
        live.ring.change_head(lambda d: d._replace(addr=2**64 - 8, len=4096))
        live.ring.half.publish()

    survives(ctx, spoil)


@case("reset.dev.status-zero")
def a_length_of_zero(ctx: Context) -> None:
    """A descriptor of no bytes (row 9)."""

    def spoil(live: Live) -> None:
        live.ring.add(live.work.job(0))
        live.ring.change_head(lambda d: d._replace(len=0))
        live.ring.half.publish()

    survives(ctx, spoil)


@case("reset.dev.status-zero", packed=False)
def a_loop(ctx: Context) -> None:
    """A chain that links to itself (row 15)."""

    def spoil(live: Live) -> None:
        live.ring.add(live.work.job(0))
        ring, head = live.ring.split_ring, live.ring.half.added[-1].id
        ring.set_desc(head, ring.desc(head)._replace(flags=NEXT, next=head))
        live.ring.half.publish()

    survives(ctx, spoil)


@case("reset.dev.status-zero", packed=False)
def a_head_beyond_the_table(ctx: Context) -> None:
    """A head, and a next, that are not in the table (row 15)."""

    def spoil(live: Live) -> None:
        live.ring.add(live.work.job(0))
        ring = live.ring.split_ring
        ring.set_avail(ring.avail_idx % live.ring.size, 0xFFFF)
        live.ring.half.publish()

    survives(ctx, spoil)


@case("reset.dev.status-zero", packed=False)
def an_index_that_jumps(ctx: Context) -> None:
    """An available index more than a queue ahead (row 14)."""

    def spoil(live: Live) -> None:
        live.ring.split_ring.avail_idx += live.ring.size + 7

    survives(ctx, spoil)


@case("reset.dev.status-zero")
def readable_after_writable(ctx: Context) -> None:
    """A chain with its parts the wrong way round: a device-writable descriptor before a
    device-readable one (row 15)."""

    def spoil(live: Live) -> None:
        job = live.work.job(0)
        if job.readable and job.writable:
            pieces = (len(job.readable), 0, job.writable)
        elif job.readable:
            pieces = (1, len(job.readable) - 1, 0)
        else:
            pieces = (0, 1, job.writable - 1)
        live.ring.add(job, pieces)
        last = live.ring.half.added[-1].slots[-1]
        ring = live.ring.packed_ring if live.ring.packed else live.ring.split_ring
        change_last(live, flags=ring.desc(last).flags & ~WRITE)
        live.ring.change_head(lambda d: d._replace(flags=d.flags | WRITE))
        live.ring.half.publish()

    survives(ctx, spoil)


@case("reset.dev.status-zero", needs=F.INDIRECT_DESC)
def a_table_of_odd_length(ctx: Context) -> None:
    """An indirect table of a length that is no multiple of 16 (row 2)."""

    def spoil(live: Live) -> None:
        live.ring.add(live.work.job(0))
        live.ring.change_head(lambda d: d._replace(flags=d.flags & ~NEXT | INDIRECT, len=24))
        live.ring.half.publish()

    survives(ctx, spoil, int(F.INDIRECT_DESC))


@case("reset.dev.status-zero", needs=F.INDIRECT_DESC)
def a_table_of_no_length(ctx: Context) -> None:
    """An indirect table of no bytes (row 2)."""

    def spoil(live: Live) -> None:
        live.ring.add(live.work.job(0))
        live.ring.change_head(lambda d: d._replace(flags=d.flags & ~NEXT | INDIRECT, len=0))
        live.ring.half.publish()

    survives(ctx, spoil, int(F.INDIRECT_DESC))


@case("reset.dev.status-zero", needs=F.INDIRECT_DESC)
def a_table_with_next(ctx: Context) -> None:
    """INDIRECT and NEXT in one descriptor (row 15)."""

    def spoil(live: Live) -> None:
        live.ring.add(live.work.job(0))
        live.ring.change_head(lambda d: d._replace(flags=d.flags | INDIRECT | NEXT))
        live.ring.half.publish()

    survives(ctx, spoil, int(F.INDIRECT_DESC))


@case("reset.dev.status-zero", packed=True)
def a_list_longer_than_the_ring(ctx: Context) -> None:
    """NEXT in every slot of the ring (rows 15, 16)."""

    def spoil(live: Live) -> None:
        live.ring.add(live.work.job(0))
        ring = live.ring.packed_ring
        for slot in range(live.ring.size):
            old = ring.desc(slot)
            ring.set_desc(slot, old._replace(flags=old.flags | NEXT, addr=live.ring.areas.desc))
        live.ring.change_head(lambda d: d._replace(flags=d.flags | NEXT))
        live.ring.half.publish()

    survives(ctx, spoil)


@case("reset.dev.status-zero")
def a_buffer_over_the_ring(ctx: Context) -> None:
    """A device-writable buffer that lies over the virtqueue itself, every part of it (row 12)."""

    def spoil(live: Live) -> None:
        start, end = live.ring.areas.desc, live.ring.areas.end
        live.ring.add(live.work.job(0))
        change_last(live, addr=start, len=end - start)
        live.ring.half.publish()

    survives(ctx, spoil)


@case("reset.dev.status-zero")
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


@case("reset.dev.status-zero")
def a_buffer_across_regions(ctx: Context) -> None:
    """A buffer that lies across the border of two regions of memory (row 4): a driver may make
    one; the device serves it, or breaks."""
    _across(ctx, lambda live, border: change_last(live, addr=border - 8, len=64))


@case("reset.dev.status-zero", needs=F.INDIRECT_DESC)
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


@case("reset.dev.status-zero", packed=False)
def a_next_beyond_the_table(ctx: Context) -> None:
    """A descriptor that goes on in one that is not in the table (row 15)."""

    def spoil(live: Live) -> None:
        live.ring.add(live.work.job(0))
        live.ring.change_head(lambda d: d._replace(flags=NEXT, next=live.ring.size + 5))
        live.ring.half.publish()

    survives(ctx, spoil)


@case("reset.dev.status-zero", packed=False)
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


@case("reset.dev.status-zero", needs=F.INDIRECT_DESC)
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


@case("reset.dev.status-zero")
def a_table_that_was_not_negotiated(ctx: Context) -> None:
    """INDIRECT in a descriptor without the feature (row 15)."""

    def spoil(live: Live) -> None:
        live.ring.add(live.work.job(0))
        live.ring.change_head(lambda d: d._replace(flags=d.flags & ~NEXT | INDIRECT, len=32))
        live.ring.half.publish()

    survives(ctx, spoil, without=int(F.INDIRECT_DESC))


@case("reset.dev.status-zero", packed=True)
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


@case("reset.dev.status-zero")
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
            live.ring.change_head(lambda d: d._replace(addr=NOWHERE))
            live.ring.half.publish()
            live.ring.signal()
            for step in range(40):
                if load(memory, at, 8) not in (good, NOWHERE):
                    break  # a used descriptor by now
                addr = NOWHERE if step % 2 else good
                memory.write(at, addr.to_bytes(8, "little"))

    survives(ctx, spoil)
