"""How a driver initializes a device, whatever bus it is on: the steps of 3.1.1, status, resets."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from virtq.check.register_log.rules import expect, first, rule
from virtq.check.register_log.trail import ADDRESSES, Step, Trail
from virtq.status import Status

_STEPS = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK


def attempts(trail: Trail) -> Iterator[list[Step]]:
    """The lives in which a driver began to initialize the device."""
    for life in trail.lives():
        if any(step.puts("device_status") and step.value for step in life):
            yield life


def sets(step: Step, bits: int) -> bool:
    """Whether it writes a status with all of these bits."""
    return step.puts("device_status") and step.value & bits == bits


def when(life: list[Step], bits: int) -> int | None:
    """The index of the first status with these bits."""
    return first(life, lambda step: sets(step, bits))


def reached(trail: Trail, bits: int) -> Iterator[tuple[list[Step], int]]:
    """The attempts that came to a status with these bits, and the index of the first."""
    for life in attempts(trail):
        if (at := when(life, bits)) is not None:
            yield life, at


# Initialization


@rule("init.drv.step1-reset")
def begins_with_a_reset(trail: Trail) -> int:
    """A driver resets the device before it initializes it."""
    seen = 0
    for life in attempts(trail):
        begin = life[first(life, lambda step: sets(step, 0) and step.value != 0) or 0]
        expect(
            life[0].puts("device_status") and life[0].value == 0,
            "0 written to the status before anything else is",
            begin,
        )
        seen += 1
    return seen


@rule("reset.drv.complete-on-zero")
def waits_for_zero(trail: Trail) -> int:
    """A reset is done when the status reads 0, and not before (SHOULD)."""
    return status_is_awaited(trail)


def status_is_awaited(trail: Trail) -> int:
    seen = 0
    for life in attempts(trail):
        if not (life[0].puts("device_status") and life[0].value == 0):
            continue
        begin = first(life, lambda step: step.puts("device_status") and bool(step.value))
        assert begin is not None
        done = any(step.gets("device_status") and step.value == 0 for step in life[:begin])
        expect(done, "the status read as 0 before it is written again", life[begin])
        seen += 1
    return seen


@rule("init.drv.step2-acknowledge")
def acknowledges_first(trail: Trail) -> int:
    """ACKNOWLEDGE is set after the reset, and before DRIVER; one write that sets both will do."""
    seen = 0
    for life, driver in reached(trail, Status.DRIVER):
        expect(
            any(sets(step, Status.ACKNOWLEDGE) for step in life[: driver + 1]),
            "ACKNOWLEDGE set before DRIVER is, or with it",
            life[driver],
        )
        seen += 1
    return seen


@rule("init.drv.step3-driver")
def knows_how_to_drive_it(trail: Trail) -> int:
    """DRIVER is set before features are accepted."""
    seen = 0
    for life in attempts(trail):
        written = first(life, lambda step: step.puts("driver_feature"))
        if written is None:
            continue
        expect(
            life[written].status & Status.DRIVER,
            "DRIVER set before features are accepted",
            life[written],
        )
        seen += 1
    return seen


@rule("init.drv.step4-features")
def reads_and_writes_features(trail: Trail) -> int:
    """Between DRIVER and FEATURES_OK, the features are read, and the subset is written."""
    seen = 0
    for life, ok in reached(trail, Status.FEATURES_OK):
        between = [step for step in life[:ok] if step.status & Status.DRIVER]
        expect(
            any(step.gets("device_feature") for step in between),
            "the device's features read after DRIVER and before FEATURES_OK",
            life[ok],
        )
        expect(
            any(step.puts("driver_feature") for step in between),
            "the driver's features written after DRIVER and before FEATURES_OK",
            life[ok],
        )
        seen += 1
    return seen


@rule("init.drv.step5-features-ok")
def says_that_features_are_ok(trail: Trail) -> int:
    """FEATURES_OK is set after the features are written, and before DRIVER_OK is."""
    seen = 0
    for life, live in reached(trail, Status.DRIVER_OK):
        expect(
            life[live].status & Status.FEATURES_OK,
            "FEATURES_OK set in a write of its own before DRIVER_OK",
            life[live],
        )
        seen += 1
    return seen


def _confirmations(trail: Trail) -> Iterator[tuple[list[Step], int, Step | None]]:
    """For each life with FEATURES_OK: where it was set, and the status read that followed before a
    virtqueue was set up or DRIVER_OK was set."""
    for life, ok in reached(trail, Status.FEATURES_OK):
        found = None
        for step in life[ok + 1 :]:
            if step.gets("device_status"):
                found = step
                break
            if step.puts("device_status", "queue_enable", *ADDRESSES):
                break
        yield life, ok, found


@rule("init.drv.step6-recheck")
def looks_again(trail: Trail) -> int:
    """After FEATURES_OK the status is read again, and without that bit the device is not used."""
    seen = 0
    for life, ok, read in _confirmations(trail):
        if read is None and len(life) == ok + 1:
            continue  # the log ends here
        expect(read, "the status read after FEATURES_OK was set", life[min(ok + 1, len(life) - 1)])
        seen += 1
    return seen


@rule("init.drv.stop-on-trouble")
def stops_without_features_ok(trail: Trail) -> int:
    """A device that does not take the features is not initialized any further."""
    seen = 0
    for life, ok, read in _confirmations(trail):
        if read is None or read.value & Status.FEATURES_OK:
            continue
        for step in life[ok + 1 :]:
            expect(
                not sets(step, Status.DRIVER_OK) and not (step.puts("queue_enable") and step.value),
                f"nothing more once the status reads {read.value:#x}, without FEATURES_OK",
                step,
            )
        seen += 1
    return seen


@rule("init.drv.failed-on-trouble")
def says_that_it_failed(trail: Trail) -> int:
    """A driver that gives a device up sets FAILED (SHOULD)."""
    seen = 0
    for life, ok, read in _confirmations(trail):
        if read is None or read.value & Status.FEATURES_OK:
            continue
        expect(
            any(sets(step, Status.FAILED) for step in life[ok + 1 :]),
            f"FAILED set once the status reads {read.value:#x}, without FEATURES_OK",
            f"nothing after {read}",
        )
        seen += 1
    return seen


@rule("init.drv.step7-device-setup")
def sets_queues_up_in_time(trail: Trail) -> int:
    """Virtqueues are set up after FEATURES_OK and before DRIVER_OK."""
    seen = 0
    for life in attempts(trail):
        before: set[int] = set()
        for step in life:
            if not (step.puts("queue_enable") and step.value):
                continue
            expect(
                step.status & Status.FEATURES_OK,
                f"virtqueue {step.queue} enabled after FEATURES_OK",
                step,
            )
            expect(
                not step.status & Status.DRIVER_OK or step.queue in before,
                f"virtqueue {step.queue} enabled for the first time before DRIVER_OK",
                step,
            )
            before.add(step.queue)
            seen += 1
    return seen


@rule("init.drv.step8-driver-ok")
def ends_with_driver_ok(trail: Trail) -> int:
    """A driver that sends notifications has set DRIVER_OK, at the end of it all."""
    seen = 0
    for life in attempts(trail):
        live = when(life, Status.DRIVER_OK)
        notified = first(life, lambda step: step.puts("notify"))
        if live is None and notified is None:
            continue
        expect(
            live is not None,
            "DRIVER_OK set by a driver that notifies the device",
            life[notified or 0],
        )
        seen += 1
    return seen


@rule("init.drv.sequence")
def keeps_the_order(trail: Trail) -> int:
    """The steps of the initialization come in their order: reset, ACKNOWLEDGE, DRIVER, features,
    FEATURES_OK, a look at it, DRIVER_OK."""
    seen = 0
    for life, live in reached(trail, Status.DRIVER_OK):
        ok = when(life, Status.FEATURES_OK)
        points = [
            ("a reset", first(life, lambda step: step.puts("device_status") and not step.value)),
            ("ACKNOWLEDGE", when(life, Status.ACKNOWLEDGE)),
            ("DRIVER", when(life, Status.DRIVER)),
            ("features written", first(life, lambda step: step.puts("driver_feature"))),
            ("FEATURES_OK", ok),
            ("a look at the status", _read_after(life, ok)),
            ("DRIVER_OK", live),
        ]
        for (earlier, at), (later, then) in pairwise(points):
            together = (earlier, later) == ("ACKNOWLEDGE", "DRIVER")
            expect(
                at is not None and then is not None and at < then + together,
                f"{earlier} before {later}",
                life[live if then is None else then],
            )
        seen += 1
    return seen


def _read_after(life: list[Step], at: int | None) -> int | None:
    if at is None:
        return None
    found = first(life[at + 1 :], lambda step: step.gets("device_status"))
    return None if found is None else at + 1 + found


@rule("init.drv.no-config-write-while-negotiating")
def writes_no_configuration_early(trail: Trail) -> int:
    """The device's configuration is not written before FEATURES_OK."""
    seen = 0
    for life, _ in reached(trail, Status.FEATURES_OK):
        for step in life:
            early = step.puts("config") and not step.status & Status.FEATURES_OK
            expect(not early, "no write to the configuration before FEATURES_OK", step)
        seen += 1
    return seen


@rule("init.drv.no-late-features")
def accepts_nothing_later(trail: Trail) -> int:
    """No features are written after FEATURES_OK."""
    seen = 0
    for life, _ in reached(trail, Status.FEATURES_OK):
        for step in life:
            late = step.puts("driver_feature") and step.status & Status.FEATURES_OK
            expect(not late, "no features written after FEATURES_OK", step)
        seen += 1
    return seen


@rule("init.drv.no-avail-notify-before-driver-ok")
def notifies_a_live_device(trail: Trail) -> int:
    """No available buffer notification is sent before DRIVER_OK."""
    seen = 0
    for step in trail.steps:
        if step.puts("notify"):
            expect(step.status & Status.DRIVER_OK, "no notification before DRIVER_OK", step)
            seen += 1
    return seen


# Status


@rule("status.drv.no-bit-clear")
def clears_no_bit(trail: Trail) -> int:
    """A status bit that is set stays set until the device is reset."""
    seen = 0
    for life in attempts(trail):
        now = 0  # a device may turn FEATURES_OK off again
        for step in life:
            if step.puts("device_status") and step.value:
                lost = now & ~step.value & ~Status.SUSPEND
                expect(not lost, f"the bits {now:#x}, which are set, kept", step)
                seen += 1
            if step.field == "device_status":
                now = step.value
    return seen


@rule("status.drv.record-progress")
def records_each_step(trail: Trail) -> int:
    """By DRIVER_OK, ACKNOWLEDGE, DRIVER and FEATURES_OK are set, too."""
    seen = 0
    for life, live in reached(trail, Status.DRIVER_OK):
        expect(sets(life[live], _STEPS), f"{_STEPS | Status.DRIVER_OK:#x}", life[live])
        seen += 1
    return seen


@rule("status.drv.reset-after-failed")
def resets_what_failed(trail: Trail) -> int:
    """After FAILED, the device is reset before it is initialized again."""
    seen = 0
    for life, failed in reached(trail, Status.FAILED):
        for step in life[failed + 1 :]:
            more = step.puts("device_status") and step.value & ~step.status
            expect(not more, "a reset after FAILED, before other bits are set", step)
        seen += 1
    return seen
