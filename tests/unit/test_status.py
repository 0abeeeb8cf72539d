"""The status machine, from both sides."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtq.errors import StatusError
from virtq.status import (
    BITS,
    STEP_BITS,
    TRANSITIONS,
    DeviceStatus,
    DriverStatus,
    Phase,
    Status,
    Step,
    describe,
)

INITIALIZATION = [Step.ACKNOWLEDGE, Step.KNOW_DRIVER, Step.ACCEPT_FEATURES, Step.GO_LIVE]


def live() -> tuple[DriverStatus, DeviceStatus]:
    driver, device = DriverStatus(), DeviceStatus()
    for step in INITIALIZATION:
        for meant in device.steps(driver.step(step)):
            device.done(meant, may_suspend=True)
    return driver, device


def test_initialization_step_by_step() -> None:
    driver, device = DriverStatus(), DeviceStatus()
    for step, written in zip(INITIALIZATION, (0x01, 0x03, 0x0B, 0x0F), strict=True):
        assert driver.step(step) == written
        assert device.steps(written) == [step]
        device.done(step)
        assert device.value == written
        driver.confirm(device.value)
    assert driver.phase is device.phase is Phase.LIVE


def test_one_write_can_mean_several_steps() -> None:
    device = DeviceStatus()
    assert device.steps(0x0F) == INITIALIZATION


def test_a_refused_subset_leaves_features_ok_off() -> None:
    driver, device = DriverStatus(), DeviceStatus()
    for step in INITIALIZATION[:2]:
        device.steps(driver.step(step))
        device.done(step)
    assert device.steps(driver.step(Step.ACCEPT_FEATURES)) == [Step.ACCEPT_FEATURES]
    with pytest.raises(StatusError, match="FEATURES_OK"):
        driver.confirm(device.value)
    written = driver.step(Step.FAIL)
    assert not written & Status.FEATURES_OK
    assert device.steps(written) == [Step.FAIL]
    device.done(Step.FAIL)
    assert device.value == Status.ACKNOWLEDGE | Status.DRIVER | Status.FAILED


def test_no_step_out_of_sequence() -> None:
    for written in (0x02, 0x08, 0x04, 0x05):
        with pytest.raises(StatusError, match=r"3\.1\.1"):
            DeviceStatus().steps(written)
    with pytest.raises(StatusError, match=r"3\.1\.1"):
        DriverStatus().step(Step.GO_LIVE)


def test_bits_are_cleared_by_a_reset_only() -> None:
    _, device = live()
    with pytest.raises(StatusError, match="cleared DRIVER_OK"):
        device.steps(0x0B)
    assert device.steps(0) == [Step.RESET]
    device.done(Step.RESET)
    assert device.value == 0


def test_after_failed_only_a_reset() -> None:
    driver, _ = live()
    assert driver.step(Step.FAIL) == 0x8F
    with pytest.raises(StatusError):
        driver.step(Step.ACKNOWLEDGE)
    assert driver.step(Step.RESET) == 0


def test_suspend_and_resume() -> None:
    driver, device = live()
    assert device.steps(driver.step(Step.SUSPEND)) == [Step.SUSPEND]
    with pytest.raises(StatusError):
        driver.confirm(device.value)  # still running
    device.done(Step.SUSPEND)
    driver.confirm(device.value)
    assert device.value == Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.SUSPEND
    assert device.steps(driver.step(Step.RESUME)) == [Step.RESUME]
    device.done(Step.RESUME)
    driver.confirm(device.value)
    assert device.value == 0x0F


def test_suspend_is_ignored_too_early_or_without_the_feature() -> None:
    assert DeviceStatus().steps(Status.SUSPEND) == []
    device = DeviceStatus()
    for step in INITIALIZATION:
        device.done(step)
    assert device.steps(device.value | Status.SUSPEND) == []


def test_needs_reset() -> None:
    driver, device = live()
    assert device.need_reset()
    with pytest.raises(StatusError, match="needs a reset"):
        driver.confirm(device.value)
    assert device.steps(0x8F) == [Step.FAIL]  # a driver need not write the device's own bit
    assert not DeviceStatus().need_reset()


@pytest.mark.parametrize("phase", Phase)
def test_the_table_is_whole(phase: Phase) -> None:
    assert TRANSITIONS[phase][Step.RESET] is Phase.RESET
    for step, following in TRANSITIONS[phase].items():
        if step in STEP_BITS and following in BITS:
            assert BITS[following] & STEP_BITS[step]


@given(st.lists(st.integers(0, 255), max_size=20))
def test_any_writes_leave_a_byte_of_the_table(written: list[int]) -> None:
    device = DeviceStatus()
    for byte in written:
        try:
            steps = device.steps(byte)
        except StatusError:
            continue
        for step in steps:
            device.done(step, may_suspend=True)
        if device.phase is not Phase.FAILED:
            assert device.value == BITS[device.phase]


def test_a_byte_for_people() -> None:
    assert describe(0x0F) == "ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK"
    assert describe(0) == "0 (reset)"
    assert describe(0x20) == "0x20"
