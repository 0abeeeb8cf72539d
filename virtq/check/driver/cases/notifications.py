"""Notifications: when a driver has to send them, when it should not, and that it lives with those
that it did not ask for (2.7.7, 2.7.10, 2.8.10)."""

from __future__ import annotations

from collections.abc import Callable

from virtq.check.case import Broken, NotObservable, case, expect
from virtq.check.driver.context import DriverContext, Live
from virtq.check.driver.record import Chain
from virtq.features import F
from virtq.model.packed import Cursor

NO_EVENT_IDX = int(F.INDIRECT_DESC)
ENABLE, DISABLE, DESC = 0, 1, 2
ROUNDS = 12


def _armed(live: Live, ask: Callable[[], None]) -> list[Chain]:
    """Say what is wanted while the driver waits; what it waits for. Nothing is on its way then
    that was decided before."""
    for _ in range(ROUNDS):
        held = live.settle()
        ask()
        live.ring.drain_kick()
        if not live.ring.look():
            return held
    raise NotObservable("the driver never pauses, not even with all it has outstanding")


def _new_buffers(live: Live, ask: Callable[[], None]) -> tuple[int, int]:
    """Have the driver make buffers available after `ask`: how many came, and how many
    notifications."""
    held = _armed(live, ask)
    before, kicks = live.ring.count, live.ring.kicks
    live.use(held)
    live.settle()
    live.turns(live.moment_s)
    return live.ring.count - before, live.ring.kicks - kicks


def _must_notify(live: Live, ask: Callable[[], None], ahead: int, what: str) -> None:
    """A notification has to come by the time that more than `ahead` buffers have."""
    held = _armed(live, ask)
    before, kicks = live.ring.count, live.ring.kicks
    while live.ring.kicks == kicks:
        live.use(held)
        held = live.take(1)
        if live.ring.count - before > ahead:
            for _ in live.peer.turns(live.patience_s):
                live.check()
                if live.ring.kicks > kicks:
                    return
            came = live.ring.count - before
            raise Broken(f"a notification, {what}", f"none for {came} new buffers")
        held = list(live.ring.held)


def _should_be_quiet(live: Live, ask: Callable[[], None], what: str) -> None:
    """One notification that was decided before may come late; not again and again."""
    found: list[str] = []
    for _ in range(3):
        came, kicks = _new_buffers(live, ask)
        if kicks:
            found.append(f"{kicks} for {came} new buffers")
    expect(len(found) < 2, f"no notification, {what}", ", ".join(found))


# Split, without EVENT_IDX


@case("split.availnotify.drv.flags-0-notify", party="driver", packed=False, offers=NO_EVENT_IDX)
def notifies_with_flags_0(driver: DriverContext) -> None:
    """With the used ring's flags at 0 the driver notifies when it has made a buffer available."""
    live = driver.live()
    for _ in range(ROUNDS):
        _must_notify(live, lambda: live.ring.ask(0, 0), 0, "with used flags 0")


@case("split.availnotify.drv.flags-1-quiet", party="driver", packed=False, offers=NO_EVENT_IDX)
def quiet_with_flags_1(driver: DriverContext) -> None:
    """SHOULD NOT: with the used ring's flags at 1 the driver does not notify."""
    live = driver.live()
    _should_be_quiet(live, lambda: live.ring.ask(1, 0), "with used flags 1")


@case("split.availnotify.drv.ignore-avail-event", party="driver", packed=False, offers=NO_EVENT_IDX)
def avail_event_means_nothing_without_event_idx(driver: DriverContext) -> None:
    """Without EVENT_IDX the driver ignores avail_event: it notifies whatever is in it."""
    live = driver.live()
    for step in (0x8000, -1, 0x4000, 500):
        at = live.ring.half.position.available

        def ask(event: int = at + step) -> None:
            live.ring.ask(0, event)

        _must_notify(live, ask, 0, "with used flags 0, whatever avail_event says")


# Split, with EVENT_IDX


def _cursor(live: Live) -> int:
    return live.ring.half.position.available


@case(
    "split.availnotify.drv.event-hit",
    "resv.event-idx.meaning",
    party="driver",
    packed=False,
)
def notifies_when_avail_event_is_reached(driver: DriverContext) -> None:
    """With EVENT_IDX the driver notifies for the buffer whose index is avail_event: the next one,
    or one that comes later, also in the middle of a batch."""
    live = driver.live(needs=F.EVENT_IDX)
    for i in range(ROUNDS):
        ahead = i % 4
        _must_notify(
            live,
            lambda ahead=ahead: live.ring.ask(0, _cursor(live) + ahead),  # type: ignore[misc]
            ahead,
            f"avail_event {ahead} ahead",
        )


@case("split.availnotify.drv.event-miss", party="driver", packed=False)
def quiet_until_avail_event_is_reached(driver: DriverContext) -> None:
    """SHOULD NOT: with EVENT_IDX the driver does not notify for buffers of other indices: neither
    behind avail_event nor before it."""
    live = driver.live(needs=F.EVENT_IDX)
    size = live.ring.size
    for far in (2 * size, 0x8000, -1, -size):
        _should_be_quiet(
            live,
            lambda far=far: live.ring.ask(0, _cursor(live) + far),  # type: ignore[misc]
            f"with avail_event {far} away",
        )


@case("split.availnotify.drv.ignore-flags-bit", party="driver", packed=False)
def used_flags_mean_nothing_with_event_idx(driver: DriverContext) -> None:
    """With EVENT_IDX the driver ignores the used ring's flags: it notifies though they are 1."""
    live = driver.live(needs=F.EVENT_IDX)
    try:
        for _ in range(ROUNDS):
            _must_notify(
                live, lambda: live.ring.ask(1, _cursor(live)), 0, "avail_event being the next index"
            )
    finally:
        live.ring.ask(0, _cursor(live))


# Packed


@case("packed.event.flags-enable", party="driver", packed=True)
def notifies_with_events_enabled(driver: DriverContext) -> None:
    """With event flags 0 the driver notifies when it has made a buffer available."""
    live = driver.live()
    for _ in range(ROUNDS):
        _must_notify(live, lambda: live.ring.ask(0, ENABLE), 0, "with event flags 0")


@case("packed.event.flags-disable", party="driver", packed=True)
def quiet_with_events_disabled(driver: DriverContext) -> None:
    """With event flags 1 the driver does not notify."""
    live = driver.live()
    _should_be_quiet(live, lambda: live.ring.ask(0, DISABLE), "with event flags 1")


def _descriptor(live: Live, slots: int, wrong_wrap: bool = False) -> int:
    """The first event word for the descriptor so many slots after the next available one."""
    position = live.ring.half.position
    at = Cursor(position.available, position.available_wrap).advanced(slots, live.ring.size)
    return at.slot | (at.wrap ^ wrong_wrap) << 15


@case("packed.event.desc-offset", "resv.event-idx.meaning", party="driver", packed=True)
def notifies_for_the_descriptor(driver: DriverContext) -> None:
    """With event flags 2 the driver notifies when it makes the named descriptor available: the next
    one, or one that comes later, also in the middle of a batch."""
    live = driver.live(needs=F.EVENT_IDX)
    for i in range(ROUNDS):
        ahead = i % 4
        # Each buffer has a slot at least: so many buffers reach the descriptor.
        _must_notify(
            live,
            lambda ahead=ahead: live.ring.ask(_descriptor(live, ahead), DESC),  # type: ignore[misc]
            ahead,
            f"the event descriptor {ahead} ahead",
        )


@case("packed.event.desc-wrap", party="driver", packed=True)
def quiet_with_the_other_wrap_counter(driver: DriverContext) -> None:
    """With event flags 2 the driver does not notify for the named descriptor a lap too early: the
    wrap counter has to match as well."""
    live = driver.live(needs=F.EVENT_IDX)
    _should_be_quiet(
        live,
        lambda: live.ring.ask(_descriptor(live, 0, wrong_wrap=True), DESC),
        "the event descriptor being one of the next lap",
    )


# Both


def _spurious(driver: DriverContext) -> None:
    live = driver.live()
    for _ in range(ROUNDS):
        live.settle()
        live.ring.signal()
        live.turns(driver.moment_s / 4)
        live.use(live.take(1))
        live.ring.signal()
        live.ring.signal()
        live.ring.enable_kicks()
    live.serve(live.ring.size)


@case("split.usednotify.drv.spurious", party="driver", packed=False)
def notified_for_nothing(driver: DriverContext) -> None:
    """The driver is notified though nothing was used, and more often than it asked for; it goes on
    as if nothing had happened."""
    _spurious(driver)


@case(party="driver", packed=True)
def notified_for_nothing_packed(driver: DriverContext) -> None:
    """As above, with a packed ring."""
    _spurious(driver)


@case("split.avail.idx-before-suppress-check", party="driver", packed=False)
def no_notification_is_lost(driver: DriverContext) -> None:
    """The device asks for notifications at any moment, looks once more at the ring, and then
    relies on them: a driver that looked at its wish before the new buffer was visible leaves it
    waiting for ever."""
    _relies_on_notifications(driver)


@case(party="driver", packed=True)
def no_notification_is_lost_packed(driver: DriverContext) -> None:
    """As above, with a packed ring."""
    _relies_on_notifications(driver)


def _relies_on_notifications(driver: DriverContext) -> None:
    live = driver.live()
    for i in range(8 * ROUNDS):
        live.take(1)
        # Nothing is wanted while the driver begins to add, then everything.
        live.ring.ask(*_never(live))
        live.use(list(live.ring.held))
        if i % 4:
            live.turns(i % 4 * 0.0005)
        while live.ring.enable_kicks():
            live.ring.look()
        live.ring.drain_kick()
        before, kicks = live.ring.count, live.ring.kicks
        live.ring.look()
        if live.ring.count > before or live.ring.held:
            continue
        live.take(1)
        live.peer.until(
            lambda kicks=kicks: live.ring.kicks > kicks,  # type: ignore[misc]
            live.patience_s,
            "a notification of a buffer that came after notifications were asked for",
        )


def _never(live: Live) -> tuple[int, int]:
    if live.ring.packed:
        return 0, DISABLE
    return (0, _cursor(live) - 1) if live.ring.event_idx else (1, 0)
