"""How a driver initializes a device (3.1.1), as far as it tells its steps.

A front-end with the protocol feature STATUS passes the device status on. QEMU's does not pass on
what the guest's driver writes, but what it makes of it itself; such a front-end shows by beginning
with FEATURES_OK. Its steps are not judged: they are nobody's driver's.
"""

from __future__ import annotations

import contextlib

from virtq.check.case import Hung, NotObservable, case, expect
from virtq.check.driver.context import DriverContext
from virtq.check.driver.peer import Peer
from virtq.check.driver.record import Event, Record
from virtq.features import F
from virtq.status import Status
from virtq.transports.vhost_user.messages import P
from virtq.transports.vhost_user.wire import U64

STEPS = (Status.ACKNOWLEDGE, Status.DRIVER, Status.FEATURES_OK, Status.DRIVER_OK)
_MOMENTS = 15
Steps = list[tuple[int, int]]


class _NotTold(NotObservable):
    """There is no status to look at."""


class _MadeUp(NotObservable):
    """The status is the front-end's own."""


def status_of(event: Event) -> int | None:
    """What a message makes of the device status; None if it is about something else."""
    if event.what == "RESET_DEVICE":
        return 0
    if event.what == "SET_STATUS" and isinstance(event.value, U64):
        return event.value.value
    return None


def steps_of(record: Record) -> Steps:
    """(place among the events, status written) for each step of the first initialization. Raises
    NotObservable for a driver that does not tell."""
    if not record.protocol & P.STATUS:
        raise _NotTold("the front-end does not tell the device status (STATUS)")
    told = [(i, status_of(event)) for i, event in enumerate(record.events)]
    steps = [(i, status) for i, status in told if status is not None]
    written = [status for _, status in steps if status]
    if not written:
        raise _NotTold("the front-end tells no status")
    if written[0] == Status.FEATURES_OK:
        raise _MadeUp("the front-end makes up the status instead of passing it on")
    live = next((n for n, (_, s) in enumerate(steps) if s & Status.DRIVER_OK), len(steps))
    return steps[: live + 1]


def check_passed_on(record: Record) -> None:
    """Raises NotObservable for a front-end between us and the driver, which decides itself what it
    passes on of an offer."""
    with contextlib.suppress(_NotTold):
        steps_of(record)


def is_made_up(record: Record) -> bool:
    """Whether there is such a front-end, as far as it shows."""
    try:
        steps_of(record)
    except _MadeUp:
        return True
    except _NotTold:
        return False
    return False


def place_of(steps: Steps, bit: int) -> int | None:
    """Where a status bit was set first."""
    return next((place for place, status in steps if status & bit), None)


def _seen(driver: DriverContext) -> tuple[Record, Steps]:
    record = driver.plain().record
    return record, steps_of(record)


@case("init.drv.step1-reset", party="driver", packed=False, in_order=False)
def begins_with_a_reset(driver: DriverContext) -> None:
    """The first thing that is done to the device status is a reset."""
    _, steps = _seen(driver)
    expect(steps[0][1] == 0, "a reset before anything else", Status(steps[0][1]))


@case("reset.drv.complete-on-zero", party="driver", packed=False, in_order=False)
def the_reset_is_waited_for(driver: DriverContext) -> None:
    """SHOULD: a reset is complete when the status reads 0; the driver reads it before it goes
    on."""
    record, steps = _seen(driver)
    known = place_of(steps, Status.ACKNOWLEDGE)
    events = record.events[:known]
    resets = [i for i, event in enumerate(events) if status_of(event) == 0]
    after = [event.what for event in events[resets[-1] if resets else 0 :]]
    expect("status read" in after, "the status to be read after a reset", after)


@case(
    "init.drv.sequence",
    "init.drv.step2-acknowledge",
    "init.drv.step3-driver",
    "init.drv.step8-driver-ok",
    "status.drv.record-progress",
    party="driver",
    packed=False,
    in_order=False,
)
def steps_are_taken_in_order(driver: DriverContext) -> None:
    """ACKNOWLEDGE is set before DRIVER, DRIVER before FEATURES_OK, and DRIVER_OK comes last; none
    of them is left out."""
    _, steps = _seen(driver)
    before = -1
    for bit in STEPS:
        place = place_of(steps, bit)
        told = [str(Status(status)) for _, status in steps]
        expect(place is not None, f"{bit!r} to be set", told)
        assert place is not None
        expect(place >= before, f"{bit!r} after the steps before it", told)
        before = place


@case("status.drv.no-bit-clear", party="driver", packed=False, in_order=False)
def bits_are_not_cleared(driver: DriverContext) -> None:
    """A status bit that is set stays so until the device is reset."""
    _, steps = _seen(driver)
    before = 0
    for _, status in steps:
        cleared = before & ~status if status else 0
        expect(not cleared, f"{Status(before)!r} to stay set", Status(status))
        before = status


@case(
    "init.drv.step4-features",
    "init.drv.step5-features-ok",
    party="driver",
    packed=False,
    in_order=False,
)
def features_are_written_before_features_ok(driver: DriverContext) -> None:
    """The driver reads what is offered and writes its choice between DRIVER and FEATURES_OK."""
    record, steps = _seen(driver)
    known, done = place_of(steps, Status.DRIVER), place_of(steps, Status.FEATURES_OK)
    expect(done is not None, "FEATURES_OK to be set", steps)
    assert done is not None
    names = [event.what for event in record.events[:done]]
    written = "SET_FEATURES" in names[known or 0 :]
    expect(written, "the features to be written between DRIVER and FEATURES_OK", names)
    expect("GET_FEATURES" in names, "the offer to be read before", names)


@case("init.drv.step6-recheck", party="driver", packed=False, in_order=False)
def the_status_is_read_after_features_ok(driver: DriverContext) -> None:
    """The driver reads the status between FEATURES_OK and DRIVER_OK: whether the device kept it."""
    record, steps = _seen(driver)
    done, live = place_of(steps, Status.FEATURES_OK), place_of(steps, Status.DRIVER_OK)
    expect(done is not None and live is not None, "FEATURES_OK and DRIVER_OK", steps)
    between = [event.what for event in record.events[done:live]]
    expect("status read" in between, "the status to be read after FEATURES_OK", between)


@case("init.drv.step7-device-setup", party="driver", packed=False, in_order=False)
def queues_are_set_up_before_driver_ok(driver: DriverContext) -> None:
    """Virtqueues are set up after FEATURES_OK, and before DRIVER_OK."""
    record, steps = _seen(driver)
    done, live = place_of(steps, Status.FEATURES_OK), place_of(steps, Status.DRIVER_OK)
    places = [i for i, event in enumerate(record.events) if event.what == "SET_VRING_ADDR"]
    expect(places, "virtqueues to be set up", "none")
    first = places[0]
    expect(done is not None and done < first, "FEATURES_OK before a virtqueue's addresses", steps)
    expect(live is not None and first < live, "virtqueues before DRIVER_OK", steps)


@case("init.drv.no-config-write-while-negotiating", party="driver", packed=False, in_order=False)
def configuration_is_not_written_too_early(driver: DriverContext) -> None:
    """The driver does not write to the configuration space before FEATURES_OK."""
    record, steps = _seen(driver)
    done = place_of(steps, Status.FEATURES_OK)
    early = [event.value for event in record.events[:done] if event.what == "SET_CONFIG"]
    expect(not early, "no write to the configuration space before FEATURES_OK", early)


@case("init.drv.no-late-features", party="driver", packed=False, in_order=False)
def no_feature_is_accepted_late(driver: DriverContext) -> None:
    """After FEATURES_OK the driver accepts no other features."""
    record, steps = _seen(driver)
    done = place_of(steps, Status.FEATURES_OK)
    expect(done is not None, "FEATURES_OK to be set", steps)
    before: int | None = None
    for i, event in enumerate(record.events):
        if status_of(event) == 0:
            before = None
        if event.what != "SET_FEATURES" or not isinstance(event.value, U64):
            continue
        late = done is not None and i > done and before is not None
        expect(
            not late or event.value.value == before,
            "no other features after FEATURES_OK",
            hex(event.value.value),
        )
        before = event.value.value


@case("init.drv.no-avail-notify-before-driver-ok", party="driver", packed=False, in_order=False)
def no_notification_before_driver_ok(driver: DriverContext) -> None:
    """The driver sends no available buffer notification before DRIVER_OK."""
    record, steps = _seen(driver)
    live = place_of(steps, Status.DRIVER_OK)
    early = [event for event in record.events[:live] if event.what == "kick"]
    expect(not early, "no notification before DRIVER_OK", early)


# A device that does not take the driver's choice


def _told(peer: Peer) -> list[int]:
    """Every status that was written."""
    return [status for status in map(status_of, peer.record.events) if status is not None]


def _has_ended(peer: Peer) -> bool:
    """Whether the driver has said how its initialization ends."""
    return any(status & (Status.FAILED | Status.DRIVER_OK) for status in _told(peer))


def _refused(driver: DriverContext) -> Peer:
    """A driver whose choice was not taken, after it has seen that."""
    peer = driver.fresh(driver.offer.with_(keeps_features_ok=False))
    for _ in peer.turns_or_gone(driver.patience_s):
        if _has_ended(peer):
            break
    steps_of(peer.record)
    expect(
        any(status_of(event) or 0 for event in peer.record.events),
        "the driver to begin its initialization",
        "nothing",
    )
    return peer


@case("init.drv.stop-on-trouble", party="driver", rings=False, alone=True)
def stops_if_features_ok_does_not_stay(driver: DriverContext) -> None:
    """If FEATURES_OK does not stay set, the device cannot be used: DRIVER_OK is not set, and no
    virtqueue is served."""
    peer = _refused(driver)
    expect(not peer.status & Status.DRIVER_OK, "no DRIVER_OK", Status(peer.status))


@case("init.drv.failed-on-trouble", party="driver", rings=False, alone=True)
def sets_failed_if_features_ok_does_not_stay(driver: DriverContext) -> None:
    """SHOULD: a driver that gives up sets FAILED."""
    peer = _refused(driver)
    told = _told(peer)
    expect(any(status & Status.FAILED for status in told), "FAILED to be set", told)


@case("status.drv.reset-after-failed", party="driver", rings=False, alone=True)
def resets_after_failed(driver: DriverContext) -> None:
    """A driver that set FAILED resets the device before it tries again."""
    peer = _refused(driver)
    for _ in peer.turns_or_gone(driver.patience_s / 2):
        told = _told(peer)
        failed = next((i for i, status in enumerate(told) if status & Status.FAILED), len(told))
        if failed + 1 < len(told):
            expect(told[failed + 1] == 0, "a reset after FAILED", told[failed:])
            return
    raise NotObservable("it does not try again")


@case("feat.drv.fail-when-no-compat", party="driver", rings=False, alone=True)
def fails_openly_without_version_1(driver: DriverContext) -> None:
    """A device that offers no feature at all, VERSION_1 neither: a driver that cannot work with it
    sets FAILED and stops."""
    peer = driver.fresh(driver.offer.with_(features=0))
    for _ in peer.turns_or_gone(driver.patience_s):
        if _has_ended(peer):
            break
    told = [status for _, status in steps_of(peer.record)]
    ended = any(status & (Status.FAILED | Status.DRIVER_OK) for status in told)
    expect(ended, "FAILED to be set, or the device to be used", [str(Status(s)) for s in told])


@case("status.drv.no-reliance-when-needs-reset", party="driver", rings=False, alone=True)
def does_not_count_on_a_device_that_needs_a_reset(driver: DriverContext) -> None:
    """SHOULD NOT: the device uses nothing any more, shows DEVICE_NEEDS_RESET and tells of it. The
    driver may reset it, give up or go on asking, but it does not wait for what is outstanding: told
    to end, it ends all the same."""
    driver.plain()  # whether it ends otherwise has to be known
    live = driver.going(driver.fresh())
    peer = live.peer
    steps_of(peer.record)
    live.settle()
    told = len(_told(peer))
    peer.offer = peer.offer.with_(status=int(Status.DEVICE_NEEDS_RESET))
    if not peer.tell_config_change():
        raise NotObservable("the front-end takes no configuration change notifications")
    for _ in peer.turns_or_gone(_MOMENTS * driver.moment_s):
        if len(_told(peer)) > told:
            return
    driver.ends_when_asked(serve=False)


@case("resv.drv.version-1-accept", party="driver")
def version_1_is_accepted(driver: DriverContext) -> None:
    """VERSION_1 is accepted where it is offered."""
    features = _chosen(driver.plain().record)
    expect(features & F.VERSION_1, "VERSION_1 to be accepted", hex(features))


def _chosen(record: Record) -> int:
    """The features that the driver took. Raises Hung if it has taken none in the time it had."""
    if record.features is None:
        raise Hung("the driver connected, and has not set its features since")
    return record.features


@case("resv.drv.ring-packed-accept", party="driver", packed=True)
def packed_rings_are_accepted(driver: DriverContext) -> None:
    """SHOULD: RING_PACKED is accepted where it is offered."""
    record = driver.plain().record
    features = _chosen(record)
    if not features & F.RING_PACKED:
        check_passed_on(record)
    expect(features & F.RING_PACKED, "RING_PACKED to be accepted", hex(features))
