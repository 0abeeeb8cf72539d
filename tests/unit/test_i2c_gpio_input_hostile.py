"""The input, I2C and GPIO devices under drivers that send anything: every buffer that waits for
nothing comes back, no handler fails, and the device goes on."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.twins_support import PATIENCE_S, send_raw, twins
from virtq import Device, Driver
from virtq.devices.gpio import GpioDevice
from virtq.devices.i2c import Eeprom, I2cAdapter, Registers
from virtq.devices.input import InputDevice
from virtq.drivers.gpio import GpioDriver
from virtq.drivers.i2c import I2cDriver
from virtq.drivers.input import InputDriver
from virtq.features import RingKind
from virtq.wire.gpio import Direction, IrqType, Message, Request
from virtq.wire.i2c import Header, encode_address
from virtq.wire.input import InputDescription

# Half of what is sent is nearly right: mere noise gets no further than the first check.
_i2c = st.builds(
    lambda address, flags, data: Header(encode_address(address), flags).pack() + data,
    st.sampled_from([0x48, 0x50, 0x49, 0x150]),
    st.integers(0, 3) | st.integers(0, (1 << 32) - 1),
    st.binary(max_size=20),
)
_gpio = st.builds(
    lambda kind, line, value: Request(kind, line, value).pack(),
    st.sampled_from(Message) | st.integers(0, 0xFFFF),
    st.integers(0, 4),
    st.sampled_from([*Direction, *IrqType, 0xFFFFFFFF]),
)
_room = st.sampled_from([0, 1, 2, 3, 20, 300])
_buffers = {
    "i2c": st.tuples(_i2c | st.binary(max_size=40), _room),
    "gpio": st.tuples(_gpio | st.binary(max_size=40), _room),
    "input": st.tuples(st.binary(max_size=40), _room),
}


class Case(NamedTuple):
    device: Device
    driver: type[Driver]
    queue: str


def case(name: str) -> Case:
    if name == "i2c":
        targets = {0x48: Registers(), 0x50: Eeprom(bytes(300)), 0x150: Registers(b"x")}
        return Case(I2cAdapter(targets), I2cDriver, "requestq")
    if name == "gpio":
        return Case(GpioDevice(4, ["a", "b"]), GpioDriver, "requestq")
    return Case(InputDevice(InputDescription.keyboard()), InputDriver, "statusq")


@pytest.mark.parametrize("kind", RingKind, ids=str)
@pytest.mark.parametrize("name", _buffers)
def test_anything_comes_back(name: str, kind: RingKind) -> None:
    device, driver_class, queue = case(name)
    sent = 0
    with twins(device, driver_class, kind) as driver:

        @given(buffer=_buffers[name].filter(lambda buffer: buffer[0] or buffer[1]))
        @settings(max_examples=80, deadline=None, derandomize=True, database=None)
        def send(buffer: tuple[bytes, int]) -> None:
            nonlocal sent
            written, _room = send_raw(driver, queue, *buffer)
            assert written <= buffer[1]
            sent += 1

        send()
        check(driver)
    assert sent >= 40
    counters = device.stats()[queue]
    assert counters["handler_errors"] == 0
    assert counters["buffers"] >= sent


def check(driver: Driver) -> None:
    """Whether the device does what it is for."""
    if isinstance(driver, I2cDriver):
        driver.is_there(0x49)  # ends the transaction that the last request may have been part of
        driver.write(0x48, b"\x10fine")
        assert driver.write_read(0x48, b"\x10", 4) == b"fine"
    elif isinstance(driver, GpioDriver):
        driver.set_output("b", 1)
        assert driver.get_value("b") == 1
    elif isinstance(driver, InputDriver):
        driver.set_led("LED_NUML", True)


@pytest.mark.parametrize("kind", RingKind, ids=str)
@given(
    buffers=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=30),
    levels=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1)), max_size=30),
)
@settings(max_examples=20, deadline=None, derandomize=True, database=None)
def test_whatever_is_left_on_the_event_queue_comes_back_when_all_is_disabled(
    kind: RingKind, buffers: list[tuple[int, int]], levels: list[tuple[int, int]]
) -> None:
    board = GpioDevice(4)
    with twins(board, GpioDriver, kind) as gpio:
        for line in range(3):
            gpio.set_input(line)
            request = Request(Message.SET_IRQ_TYPE, line, IrqType.EDGE_BOTH).pack()
            assert send_raw(gpio, "requestq", request, 2)[1] == b"\0\0"
        queue = gpio.queues["eventq"]
        for line, room in buffers:
            queue.add(line.to_bytes(2, "little"), room)
            queue.kick()
        for line, level in levels:
            board.set_line(line, level)
        for line in range(4):
            request = Request(Message.SET_IRQ_TYPE, line, IrqType.NONE).pack()
            assert send_raw(gpio, "requestq", request, 2)[1] == b"\0\0"
        while queue.outstanding:
            assert queue.wait(PATIENCE_S)
            for used in queue.reap():
                assert used.reply in (b"", b"\0", b"\1")
    assert board.stats()["eventq"]["handler_errors"] == 0
