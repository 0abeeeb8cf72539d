"""In-order use across resets, at every place of the ring, and for long (2.7.9, 2.8.8, 2.4, 2.6)."""

from __future__ import annotations

import itertools
import random

from virtq.check.case import NotObservable, case, expect
from virtq.check.context import Context, Live
from virtq.check.session import Sent, Session
from virtq.features import F, RingKind

_ORDER = "resv.dev.in-order-use"
_ROUNDS = 40


def in_sequence(done: list[Sent], first: int | None = None) -> None:
    """Raises Broken unless buffers were used in the order in which they were made available,
    beginning with number `first`."""
    numbers = [sent.number for sent in done]
    begin = numbers[0] if first is None and numbers else first
    expected = [(begin or 0) + index for index in range(len(numbers))]
    expect(numbers == expected, f"buffers {expected} in this order", numbers)


def _again(live: Live, size: int) -> Live:
    return Live(live.session, live.session.ring(live.work.queue, size), live.work)


def _untouched(session: Session, live: Live, sent: list[Sent]) -> None:
    """Raises Broken if the ring or a buffer is written any more."""
    memory, areas = session.arena.memory, live.ring.areas
    pieces = [piece for buffer in sent for piece in buffer.writable]

    def look() -> tuple[bytes, list[bytes]]:
        return memory.read(areas.desc, areas.end - areas.desc), [piece.read() for piece in pieces]

    before = look()
    live.ring.calls()
    for _ in session.moment():
        expect(look() == before, "rings and buffers untouched after the reset", "a write to one")
    expect(live.ring.calls() == 0, "no notification after the reset", "a used buffer notification")


@case(_ORDER, "reset.dev.quiesce", "reset.dev.status-zero", in_order=True)
def a_reset_with_buffers_outstanding(ctx: Context) -> None:
    """A reset while buffers are in use (row 13): nothing is written after it, neither ring nor
    buffer, and everything begins anew, in order."""
    session = ctx.session()
    for turn in range(4):
        live = ctx.live(size=32, session=session)
        slots = live.slots
        live.ring.serve(*live.jobs(turn))
        sent = [live.ring.add(job) for job in live.jobs((32 - turn * slots) // slots - 1)]
        live.ring.kick(always=True)
        session.transport.write_status(0)
        for _ in session.patience("the status to read 0 after a reset"):
            if session.transport.read_status() == 0:
                break
        _untouched(session, live, sent)
        session.reset()
    live = ctx.live(size=32, session=session)
    in_sequence(live.ring.serve(*live.jobs(6)), 0)
    expect(live.ring.entries[0].slot == 0, "the first used entry in slot 0", live.ring.entries[0])


@case(
    _ORDER,
    "vqreset.dev.no-execution",
    "vqreset.dev.no-notify",
    "vqreset.dev.default-state",
    in_order=True,
    needs=F.RING_RESET,
)
def a_queue_reset_with_buffers_outstanding(ctx: Context) -> None:
    """A reset of the queue while buffers are in use (rows 13, 21): nothing is written after it, and
    the queue begins at slot 0 with no memory of them, whatever their number of descriptors was."""
    live = ctx.live(add=F.RING_RESET, size=32)
    for turn in range(5):
        slots = live.slots
        in_sequence(live.ring.serve(*live.jobs(turn)))
        sent = [live.ring.add(job) for job in live.jobs(30 // slots - turn)]
        live.ring.kick(always=True)
        live.session.transport.reset_queue(live.work.queue)
        _untouched(live.session, live, sent)
        live = _again(live, 32)
    in_sequence(live.ring.serve(*live.jobs(6)), 0)
    expect(live.ring.entries[0].slot == 0, "the first used entry in slot 0", live.ring.entries[0])


@case(
    _ORDER,
    "split.inorder.dev.next-batch-slot",
    "packed.inorder.dev.skip-by-batch",
    "packed.inorder.dev.overwrites-first",
    in_order=True,
)
def chains_across_the_end(ctx: Context) -> None:
    """Batches of chains of every length, beginning at every slot of a small ring, so that each
    crosses its end somewhere."""
    live = ctx.live(size=11 if ctx.kind and ctx.kind.packed else 16)
    number = 0
    for first, second in itertools.product(range(1, 6), range(1, 4)):
        count = 0
        for length in (first, second, 2)[: 3 - first % 2]:
            job = live.work.job(number)
            live.ring.add(job, _pieces(len(job.readable), job.writable, length))
            number, count = number + 1, count + 1
        live.ring.kick()
        in_sequence(live.ring.wait(count), number - count)
        expect(live.ring.half.free == live.ring.size, "all slots free", live.ring.half.free)


def _pieces(readable: int, writable: int, count: int) -> tuple[int, ...]:
    """Both parts in about so many pieces together."""
    each = max(1, count - bool(writable)) if readable else 0
    read = [1] * (each - 1) + [readable - each + 1] if readable else []
    wrote = [1] * (count - 1) + [writable - count + 1] if writable and not readable else []
    return (*read, 0, *(wrote or ([writable] if writable else [])))


@case(
    _ORDER,
    "split.inorder.dev.idx-advance-by-batch",
    "packed.inorder.dev.skip-by-batch",
    in_order=True,
    needs=F.INDIRECT_DESC,
)
def a_ring_full_of_tables(ctx: Context) -> None:
    """As many buffers as the ring has slots, each in a table, so that none is left (row 22): every
    one is used, lap after lap."""
    live = ctx.live(add=F.INDIRECT_DESC, size=8, indirect_length=4)
    if live.slots < 2:
        raise NotObservable("this device type's requests have one descriptor")
    for lap in range(10):
        in_sequence(live.ring.serve(*live.jobs(8, 8 * lap)), 8 * lap)
        expect(live.ring.half.free == 8, "all slots free again", live.ring.half.free)


@case(
    _ORDER,
    "split.inorder.dev.batch-single-entry",
    "packed.inorder.dev.batch-single-desc",
    in_order=True,
    needs=F.INDIRECT_DESC,
)
def tables_and_lists_in_a_batch(ctx: Context) -> None:
    """Buffers in tables and buffers in lists of descriptors in turn, in one batch."""
    live = ctx.live(add=F.INDIRECT_DESC, size=32, indirect_length=2)
    if live.slots < 2:
        raise NotObservable("this device type's requests have one descriptor")
    number = 0
    for _ in range(12):
        for index in range(6):
            job = live.work.job(number)
            pieces: tuple[int, ...] = (len(job.readable), 0, job.writable)
            if index % 2:
                rest = (job.writable - 1,) if job.writable > 1 else ()
                pieces = (3, len(job.readable) - 3, 0, 1, *rest)
            live.ring.add(job, pieces)
            number += 1
        live.ring.kick()
        in_sequence(live.ring.wait(6), number - 6)


@case(_ORDER, "vqreset.dev.default-state", in_order=True)
def a_long_random_run_with_resets(ctx: Context) -> None:
    """A random run in which the queue and the device are reset in between, with buffers outstanding
    or not, and the ring is now of this kind and now of the other layout, with other sizes."""
    session = ctx.session()
    chance = random.Random(ctx.seed)
    others = [
        kind
        for kind in (RingKind.SPLIT_IN_ORDER, RingKind.PACKED_IN_ORDER)
        if not kind.features & ~session.offered
    ]
    extra = int(F.RING_RESET & session.offered)
    live = ctx.live(add=extra, size=16, session=session)
    first, number = 0, 0
    for _ in range(_ROUNDS):
        what = chance.randrange(6)
        if what == 0:
            session.reset()
            ctx.kind = chance.choice(others)
            live = ctx.live(add=extra, size=chance.choice((8, 16, 64)), session=session)
            first = number = 0
        elif what == 1 and extra:
            session.transport.reset_queue(live.work.queue)
            live = _again(live, chance.choice((8, 16, 64)))
            first = number = 0
        room = live.ring.half.free // live.slots
        count = chance.randint(0, room)
        for _ in range(count):
            live.ring.add(live.work.job(number))
            number += 1
        live.ring.kick()
        if number > first:
            done = live.ring.wait(chance.randint(1, number - first))
            in_sequence(done, first)
            first += len(done)
