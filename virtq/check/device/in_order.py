"""In-order use (2.7.9, 2.8.8, 6)."""

from __future__ import annotations

import itertools
import random

from virtq.check.case import NotObservable, case, expect
from virtq.check.context import Context, Live
from virtq.check.session import Sent
from virtq.features import F
from virtq.model.notify import DESC, PackedEvent

_BATCH = (
    "split.inorder.dev.batch-single-entry",
    "split.inorder.dev.idx-advance-by-batch",
    "split.inorder.dev.entry-at-first-slot",
    "split.inorder.dev.next-batch-slot",
    "packed.inorder.dev.batch-single-desc",
    "packed.inorder.dev.skip-by-batch",
    "packed.inorder.dev.overwrites-first",
    "packed.inorder.group-skip-both",
)


def _in_sequence(done: list[Sent]) -> None:
    numbers = [sent.number for sent in done]
    expect(numbers == sorted(numbers), "use in the order of availability", numbers)


def _serve(live: Live, count: int, first: int = 0) -> list[Sent]:
    done = live.ring.serve(*live.jobs(count, first))
    _in_sequence(done)
    return done


@case("resv.dev.in-order-use", "resv.in-order.meaning", "vq.in-order-offer-meaning", in_order=True)
def one_by_one(ctx: Context) -> None:
    """Buffers that are made available one by one are used one by one, in that order."""
    live = ctx.live()
    for seed in range(32):
        _serve(live, 1, seed)


@case("resv.dev.in-order-use", *_BATCH, in_order=True)
def batches(ctx: Context) -> None:
    """Buffers that are made available together are used in that order, whichever way the device
    groups them: every used entry names the last buffer of a run that begins where the run before
    ended, and stands in the slot of its first."""
    live = ctx.live()
    first = 0
    for count in (1, 2, 3, 5, 8, 13, 21, 34):
        count = min(count, live.ring.size // 2)
        _serve(live, count, first)
        first += count
    covered = sum(entry.covers for entry in live.ring.entries)
    expect(covered == first, f"{first} buffers covered by used entries", covered)


@case("resv.dev.in-order-use", *_BATCH, in_order=True)
def a_full_ring(ctx: Context) -> None:
    """A ring that is full to the last slot, several times in a row: no completion is lost."""
    live = ctx.live(size=8)
    slots = live.slots
    count = 8 // slots
    for lap in range(12):
        _serve(live, count, lap * count)
        expect(live.ring.half.free == 8, "all slots free again", live.ring.half.free)


@case("resv.dev.in-order-use", *_BATCH, in_order=True)
def around_the_end(ctx: Context) -> None:
    """Batches that cross the end of the ring, at every offset."""
    live = ctx.live(size=16)
    slots = live.slots
    first = 0
    count = 3 if slots > 1 else 5
    for _ in range(16):
        _serve(live, count, first)
        first += count
    expect(live.ring.half.free == 16, "all slots free again", live.ring.half.free)


@case(
    "split.inorder.dev.skip-only-full",
    "packed.inorder.dev.skip-only-full",
    "vq.used-length-reported",
    in_order=True,
)
def skipped_buffers_are_full(ctx: Context) -> None:
    """A buffer without a used entry of its own counts as completely written; so it has to be."""
    live = ctx.live()
    for first in range(0, 48, 8):
        for job in live.jobs(8, first):
            live.ring.add(job)
        live.ring.kick()
        entries = len(live.ring.entries)
        done = live.ring.wait(8)
        named: set[int] = set()
        at = 0
        for entry in live.ring.entries[entries:]:
            at += entry.covers
            named.add(at - 1)
        for index, sent in enumerate(done):
            if index not in named and sent.reply:
                expect(
                    sent.untouched_end < 4,  # four bytes of chance in random data
                    f"every byte of skipped buffer {sent.number} written",
                    f"its last {sent.untouched_end} bytes were not",
                )


@case("resv.dev.in-order-use", *_BATCH, in_order=True)
def mixed_sizes(ctx: Context) -> None:
    """Buffers of one descriptor and of many, in one batch."""
    live = ctx.live()
    chance = random.Random(ctx.seed)
    number = 0
    for _ in range(12):
        count = 0
        while count < 6:
            job = live.work.job(number)
            readable, writable = (
                _random_cut(chance, len(job.readable)),
                _random_cut(chance, job.writable),
            )
            if len(readable) + len(writable) > live.ring.half.free:
                break
            live.ring.add(job, (*readable, 0, *writable))
            number += 1
            count += 1
        live.ring.kick()
        _in_sequence(live.ring.wait(count))


def _random_cut(chance: random.Random, length: int) -> list[int]:
    """A length in up to four parts."""
    if not length:
        return []
    borders = sorted({0, length, *(chance.randrange(length + 1) for _ in range(3))})
    return [b - a for a, b in itertools.pairwise(borders)]


@case("resv.dev.in-order-use", *_BATCH, in_order=True, needs=F.INDIRECT_DESC)
def indirect_within_a_batch(ctx: Context) -> None:
    """Indirect buffers take one slot each, and count as one."""
    live = ctx.live(add=F.INDIRECT_DESC, indirect_length=8)
    for first in range(0, 40, 8):
        _serve(live, 8, first)


@case("resv.dev.in-order-use", *_BATCH, in_order=True, needs=F.EVENT_IDX)
def event_index_within_a_batch(ctx: Context) -> None:
    """With EVENT_IDX a notification comes for a buffer anywhere within a batch."""
    live = ctx.live(add=F.EVENT_IDX)
    for first in range(0, 40, 8):
        live.ring.calls()
        if live.ring.half.enable_calls():
            raise NotObservable("a buffer was used before it was made available")
        for job in live.jobs(8, first):
            live.ring.add(job)
        live.ring.kick()
        live.ring.wait_call()
        _in_sequence(live.ring.wait(8))


@case("resv.dev.in-order-use", "vqreset.dev.default-state", in_order=True)
def after_a_reset(ctx: Context) -> None:
    """After a reset in the middle of a lap everything begins at slot 0 again."""
    live = ctx.live(size=16)
    _serve(live, 5)
    live.session.reset()
    again = ctx.live(size=16, session=live.session)
    _serve(again, 5)
    expect(again.ring.entries[0].slot == 0, "the first used entry in slot 0", again.ring.entries[0])


@case("resv.dev.in-order-use", *_BATCH, in_order=True)
def a_long_random_run(ctx: Context) -> None:
    """Thousands of buffers in batches of random sizes, some made available while others are in
    use."""
    live = ctx.live()
    chance = random.Random(ctx.seed)
    slots = live.slots
    number, outstanding, last = 0, 0, -1
    while number < 2000:
        room = live.ring.half.free // slots
        count = chance.randint(1, max(1, min(room, 24))) if room else 0
        for _ in range(count):
            live.ring.add(live.work.job(number))
            number += 1
        live.ring.kick()
        outstanding += count
        done = live.ring.wait(chance.randint(1, outstanding))
        _in_sequence(done)
        expect(done[0].number == last + 1, f"buffer {last + 1} next", done[0].number)
        last = done[-1].number
        outstanding -= len(done)
    if outstanding:
        _in_sequence(live.ring.wait(outstanding))


@case(
    "resv.dev.in-order-use",
    "split.usednotify.dev.event-hit",
    "split.usednotify.dev.event-miss",
    "packed.event.desc-offset",
    in_order=True,
    needs=F.EVENT_IDX,
)
def an_event_at_every_place_of_a_batch(ctx: Context) -> None:
    """A notification for each buffer of a batch, first to last, whether it has a used entry of its
    own or not; none for the one that comes after the batch."""
    live = ctx.live(add=F.EVENT_IDX, size=64)
    slots = live.slots
    live.ring.serve(live.work.job(0))  # the first one may notify in any case
    count, number = 5, 1
    for place in [*range(count), count]:
        for _ in live.session.moment():
            pass
        _event_for(live, place, slots)
        live.ring.calls()
        for job in live.jobs(count, number):
            live.ring.add(job)
        live.ring.kick()
        if place < count:
            live.ring.wait_call()
            _in_sequence(live.ring.wait(count))
        else:
            _in_sequence(live.ring.wait(count))
            for _ in live.session.moment():
                pass
            calls = live.ring.calls()
            expect(calls == 0, "no notification for what comes after the batch", calls)
        number += count


def _event_for(live: Live, place: int, slots: int) -> None:
    """Ask for a notification when the buffer at that place of the next batch is used."""
    if not live.ring.packed:
        ring = live.ring.split_ring
        ring.used_event = (ring.used_idx + place) & 0xFFFF
        return
    at = live.ring.half.position
    laps, slot = divmod(at.used + place * slots, live.ring.size)
    live.ring.packed_ring.driver_event = PackedEvent(slot, (at.used_wrap + laps) % 2, DESC)
