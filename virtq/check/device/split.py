"""The split virtqueue (2.7)."""

from __future__ import annotations

from virtq.check.case import case, expect
from virtq.check.context import Context, Live
from virtq.features import F
from virtq.model.notify import NO_NOTIFICATION


def _rounds(live: Live, buffers: int) -> None:
    """Serve so many buffers, some at a time."""
    done = 0
    while done < buffers:
        count = min(live.ring.half.free // 2, 8, buffers - done)
        live.ring.serve(*live.jobs(count, first=done))
        done += count


@case("split.used.idx-start-zero", "split.parts.single-writer", packed=False)
def the_used_index_counts_from_zero(ctx: Context) -> None:
    """The used index begins at 0, and its value modulo the queue size is the next slot."""
    live = ctx.live()
    expect(live.ring.split_ring.used_idx == 0, "used index 0", live.ring.split_ring.used_idx)
    live.ring.serve(*live.jobs(1))
    expect(live.ring.split_ring.used_idx == 1, "used index 1", live.ring.split_ring.used_idx)
    expect(live.ring.entries[0].slot == 0, "the first entry in slot 0", live.ring.entries[0])


@case("split.used.id-is-head", "vq.used-length-reported", packed=False)
def the_id_is_the_head(ctx: Context) -> None:
    """The id of a used entry is the head of a chain that was made available."""
    live = ctx.live()
    _rounds(live, 16)
    for entry in live.ring.entries:
        expect(entry.id < live.ring.size, f"a head below {live.ring.size}", entry)


@case("split.used.idx-start-zero", "split.size.power-of-two", packed=False)
def around_the_ring(ctx: Context) -> None:
    """Three times around a small ring: indices go on, slots begin again."""
    live = ctx.live(size=8)
    _rounds(live, 24)
    expect(live.ring.split_ring.used_idx == 24, "used index 24", live.ring.split_ring.used_idx)


@case("split.used.idx-start-zero", packed=False, in_order=False)
def past_65536(ctx: Context) -> None:
    """Indices are free-running 16-bit numbers: nothing changes when they begin again at 0."""
    live = ctx.live(size=128)
    total, jobs = 65536 + 64, live.jobs(live.ring.size // 2)
    done = 0
    while done < total:
        count = min(len(jobs), total - done)
        live.ring.serve(*jobs[:count])
        done += count
    expect(live.ring.split_ring.used_idx == 64, "used index 64", live.ring.split_ring.used_idx)


@case("split.desc.dev.table-read-only", "split.parts.single-writer", packed=False)
def the_table_is_not_written(ctx: Context) -> None:
    """The device never writes the descriptor table, nor the available ring."""
    live = ctx.live()
    memory, areas = live.session.arena.memory, live.ring.areas
    for job in live.jobs(8):
        live.ring.add(job)
    live.ring.half.publish()
    before = memory.read(areas.desc, areas.device - areas.desc)
    live.ring.kick(always=True)
    live.ring.wait(8)
    after = memory.read(areas.desc, areas.device - areas.desc)
    changed = [i for i in range(len(before)) if before[i] != after[i]]
    expect(
        not changed,
        "descriptor table and available ring as the driver wrote them",
        f"byte {changed[:1]} changed",
    )


@case("split.desc.dev.no-write-to-readable", packed=False)
def readable_bytes_stay(ctx: Context) -> None:
    """Device-readable bytes are as they were, after every kind of request that is known."""
    live = ctx.live()
    _rounds(live, 8)  # `Sent.check` compares them


@case("split.used.dev.data-before-idx", "split.used.dev.len-may-underreport", packed=False)
def data_is_there_when_the_index_says_so(ctx: Context) -> None:
    """Whatever the used length covers is in memory when the index is seen; one buffer at a time, so
    that nothing is seen late."""
    live = ctx.live()
    for seed in range(32):
        live.ring.serve(live.work.job(seed))


@case("split.availnotify.dev.flags-0-or-1", packed=False)
def used_flags_without_event_idx(ctx: Context) -> None:
    """Without EVENT_IDX the used ring's flags are 0 or 1."""
    live = ctx.live(without=F.EVENT_IDX)
    seen = set()
    for seed in range(16):
        live.ring.add(live.work.job(seed))
        live.ring.kick(always=True)
        seen.add(live.ring.split_ring.used_flags)
        live.ring.wait(1)
        seen.add(live.ring.split_ring.used_flags)
    expect(seen <= {0, NO_NOTIFICATION}, "flags 0 or 1", seen)


@case("split.availnotify.dev.flags-0-with-event-idx", packed=False, needs=F.EVENT_IDX)
def used_flags_with_event_idx(ctx: Context) -> None:
    """With EVENT_IDX the used ring's flags stay 0."""
    live = ctx.live(add=F.EVENT_IDX)
    seen = set()
    for seed in range(16):
        live.ring.add(live.work.job(seed))
        live.ring.kick(always=True)
        seen.add(live.ring.split_ring.used_flags)
        live.ring.wait(1)
        seen.add(live.ring.split_ring.used_flags)
    expect(seen == {0}, "flags 0", seen)


@case("split.availnotify.dev.spurious", packed=False)
def spurious_notifications(ctx: Context) -> None:
    """Notifications without a buffer do no harm."""
    live = ctx.live()
    for seed in range(8):
        for _ in range(4):
            live.ring.kick(always=True)
        expect(live.ring.quiet(), "nothing used for nothing", "a used entry")
        live.ring.serve(live.work.job(seed))


@case("split.size.max-32768", "split.size.power-of-two", packed=False)
def the_largest_queue(ctx: Context) -> None:
    """A queue of the largest size that the device has works, full."""
    live = ctx.live()
    largest = live.session.transport.queue_size_max(live.work.queue)
    expect(largest <= 32768, "at most 32768 entries", largest)
    expect(largest & (largest - 1) == 0, "a power of two", largest)
    live.ring.serve(*live.jobs(live.ring.size // live.slots))


@case("split.size.power-of-two", packed=False)
def a_queue_of_two(ctx: Context) -> None:
    """The smallest ring that a request of two descriptors fits into, filled again and again."""
    live = ctx.live(size=2)
    for seed in range(9):
        live.ring.serve(live.work.job(seed))


@case("split.used.dev.len-before-idx", packed=False)
def an_entry_is_whole_when_the_index_says_so(ctx: Context) -> None:
    """Id and length of a used entry are there when the index is seen: as it is read first, it
    stays."""
    live = ctx.live()
    ring = live.ring.split_ring
    for seed in range(16):
        slot = ring.used_idx % ring.size
        ring.set_used(slot, 0xFFFF_FFFF, 0xFFFF_FFFF)  # nothing that a device would write
        before = ring.used_idx
        live.ring.add(live.work.job(seed))
        live.ring.kick(always=True)
        for _ in live.session.patience("a used entry"):
            if ring.used_idx != before:
                break
        first = ring.used(slot)
        for _ in live.session.moment():
            now = ring.used(slot)
            expect(now == first, f"the used entry {now} from the first", first)
            if seed > 2:
                break  # a look at the race itself, without the wait
        live.ring.wait(1)


@case("split.used.id-is-head", "vq.used-length-reported", packed=False, in_order=False)
def one_entry_for_each(ctx: Context) -> None:
    """Without IN_ORDER every buffer gets a used entry of its own."""
    live = ctx.live(size=32)
    for first in range(0, 64, 8):
        live.ring.serve(*live.jobs(8, first))
    expect(len(live.ring.entries) == 64, "64 used entries for 64 buffers", len(live.ring.entries))
