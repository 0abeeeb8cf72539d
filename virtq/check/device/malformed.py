"""Rings that no driver should make: the device may break, but only that queue, and it can be reset.

Any outcome but a hang, a crash or memory written that was not lent is a pass: the specification
leaves what happens to the device. What must hold is that it serves again after a reset.
"""

from __future__ import annotations

from collections.abc import Callable

from virtq.check.case import Broken, Hung, case
from virtq.check.context import Context, Live
from virtq.check.session import Session
from virtq.features import F
from virtq.model.memory import INDIRECT, NEXT, WRITE

_NOWHERE = 0x7FFF_FFFF_0000


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
        live.ring.change_head(lambda d: d._replace(addr=_NOWHERE))
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
