"""When the device notifies, and when it does not (2.7.7, 2.7.10, 2.8.10)."""

from __future__ import annotations

from virtq.check.case import Hung, NotObservable, case, expect
from virtq.check.context import Context, Live
from virtq.check.session import Job
from virtq.features import F
from virtq.model.notify import DESC, DISABLE, ENABLE, PackedEvent


def _quiet_after(live: Live, count: int, first: int = 0) -> int:
    """Serve, and count the notifications that come with it and for a moment after."""
    live.ring.calls()
    for job in live.jobs(count, first):
        live.ring.add(job)
    live.ring.kick(always=True)
    live.ring.wait(count)
    for _ in live.session.moment():
        pass
    return live.ring.calls()


def _come_to_rest(live: Live) -> None:
    """Serve with notifications suppressed already: what the device decided before it saw that has
    been sent when it is through with a buffer that it took later. A device that is going live may
    have looked at its queues by itself, and a busy machine may have it send that late."""
    live.ring.serve(*live.jobs(2))
    for _ in live.session.moment():
        pass


def _must_notify(live: Live, *jobs: Job) -> None:
    """Make these available, and wait for a notification of their use; one from before does not
    count."""
    live.ring.calls()
    for job in jobs:
        live.ring.add(job)
    live.ring.kick()
    live.ring.wait_call()
    live.ring.wait(len(jobs))


def _wait_for_use_and_call(live: Live) -> None:
    """Wait for a notification with the buffer used by then. One that comes earlier may be for
    nothing, which drivers have to bear (2.7.7.1); it does not stand for the one that is due."""
    early = False
    try:
        for _ in live.session.patience("a used buffer notification"):
            if live.ring.calls():
                if live.ring.half.has_used:
                    return
                early = True
    except Hung:
        expect(not early, "a notification once the buffer is used", "one before it, none after it")
        raise


@case("split.usednotify.dev.flags-0-notify", "split.used.idx-before-notify", packed=False)
def flags_0(ctx: Context) -> None:
    """Without EVENT_IDX and with flags 0, a notification comes for every use, and the buffer is in
    the used ring by then."""
    live = ctx.live(without=F.EVENT_IDX)
    live.ring.split_ring.avail_flags = 0
    for seed in range(8):
        live.ring.calls()
        live.ring.add(live.work.job(seed))
        live.ring.kick()
        _wait_for_use_and_call(live)
        live.ring.wait(1)


@case("split.usednotify.dev.flags-1-quiet", packed=False)
def flags_1(ctx: Context) -> None:
    """Without EVENT_IDX and with flags 1, none comes."""
    live = ctx.live(without=F.EVENT_IDX)
    live.ring.serve(*live.jobs(2))
    live.ring.split_ring.avail_flags = 1
    _come_to_rest(live)
    calls = sum(_quiet_after(live, 2, first) for first in range(0, 8, 2))
    expect(calls == 0, "no notification", calls)


@case("split.usednotify.dev.ignore-used-event", packed=False)
def used_event_without_event_idx(ctx: Context) -> None:
    """Without EVENT_IDX the used_event field means nothing."""
    live = ctx.live(without=F.EVENT_IDX)
    live.ring.split_ring.avail_flags = 0
    for seed in range(4):
        live.ring.split_ring.used_event = (seed + 1000) & 0xFFFF
        _must_notify(live, live.work.job(seed))


@case("split.usednotify.dev.event-hit", "resv.event-idx.meaning", packed=False, needs=F.EVENT_IDX)
def the_event_index_is_hit(ctx: Context) -> None:
    """With EVENT_IDX a notification comes when the used index moves past used_event."""
    live = ctx.live(add=F.EVENT_IDX)
    for seed in range(16):
        live.ring.split_ring.used_event = seed
        _must_notify(live, live.work.job(seed))


@case("split.usednotify.dev.event-miss", packed=False, needs=F.EVENT_IDX)
def the_event_index_is_missed(ctx: Context) -> None:
    """With EVENT_IDX none comes for other entries. The first after DRIVER_OK does not count."""
    live = ctx.live(add=F.EVENT_IDX)
    live.ring.serve(*live.jobs(2))
    live.ring.split_ring.used_event = 1000
    _come_to_rest(live)
    calls = sum(_quiet_after(live, 2, first) for first in range(2, 12, 2))
    expect(calls == 0, "no notification for entries before used_event", calls)


@case("split.usednotify.dev.ignore-flags-bit", packed=False, needs=F.EVENT_IDX)
def flags_with_event_idx(ctx: Context) -> None:
    """With EVENT_IDX the flags mean nothing."""
    live = ctx.live(add=F.EVENT_IDX)
    live.ring.split_ring.avail_flags = 1
    for seed in range(8):
        live.ring.split_ring.used_event = seed
        _must_notify(live, live.work.job(seed))


@case("split.usednotify.dev.event-hit", packed=False, needs=F.EVENT_IDX)
def an_event_index_within_a_batch(ctx: Context) -> None:
    """A used_event anywhere among buffers that are used together is hit."""
    live = ctx.live(add=F.EVENT_IDX)
    for first in range(0, 64, 8):
        live.ring.split_ring.used_event = first + first // 8
        _must_notify(live, *live.jobs(8, first))


@case("packed.event.flags-enable", packed=True)
def event_flags_enable(ctx: Context) -> None:
    """Event flags 0 ask for notifications."""
    live = ctx.live()
    live.ring.packed_ring.driver_event = PackedEvent(0, 0, ENABLE)
    for seed in range(8):
        _must_notify(live, live.work.job(seed))


@case("packed.event.flags-disable", packed=True)
def event_flags_disable(ctx: Context) -> None:
    """Event flags 1 ask for none."""
    live = ctx.live()
    live.ring.serve(*live.jobs(2))
    live.ring.packed_ring.driver_event = PackedEvent(0, 0, DISABLE)
    _come_to_rest(live)
    calls = sum(_quiet_after(live, 2, first) for first in range(0, 8, 2))
    expect(calls == 0, "no notification", calls)


@case(
    "packed.event.flags-desc-needs-event-idx",
    "packed.event.desc-offset",
    "resv.event-idx.meaning",
    packed=True,
    needs=F.EVENT_IDX,
)
def a_descriptor_event_is_hit(ctx: Context) -> None:
    """Event flags 2 ask for a notification when the named slot is used, in every lap."""
    live = ctx.live(add=F.EVENT_IDX, size=8)
    for seed in range(24):
        at = live.ring.half.position
        live.ring.packed_ring.driver_event = PackedEvent(at.used, at.used_wrap, DESC)
        _must_notify(live, live.work.job(seed))


@case("packed.event.desc-offset", "packed.event.desc-wrap", packed=True, needs=F.EVENT_IDX)
def a_descriptor_event_is_missed(ctx: Context) -> None:
    """Event flags 2 ask for none when other slots are used, nor for the same slot in another lap.
    The first after DRIVER_OK does not count."""
    live = ctx.live(add=F.EVENT_IDX, size=64)
    live.ring.packed_ring.driver_event = PackedEvent(0, 0, DISABLE)
    _come_to_rest(live)
    wrap = live.ring.half.position.used_wrap
    for offset, lap in ((63, wrap), (live.ring.half.position.used, 1 - wrap)):
        live.ring.packed_ring.driver_event = PackedEvent(offset, lap, DESC)
        calls = _quiet_after(live, 3, 1)
        expect(calls == 0, f"no notification before slot {offset} of lap {lap}", calls)


@case("packed.event.desc-offset", packed=True, needs=F.EVENT_IDX)
def a_descriptor_event_within_a_batch(ctx: Context) -> None:
    """A slot anywhere among buffers that are used together is hit."""
    live = ctx.live(add=F.EVENT_IDX)
    slots = live.slots
    for first in range(0, 48, 6):
        at = live.ring.half.position
        offset = at.used + slots * (first // 6 % 6)
        if offset >= live.ring.size:
            raise NotObservable("the queue is too short")
        live.ring.packed_ring.driver_event = PackedEvent(offset, at.used_wrap, DESC)
        _must_notify(live, *live.jobs(6, first))
