"""The input device and its twin: descriptions, events, feedback, a device of the host."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import struct
import threading
from pathlib import Path

import pytest

from tests.unit.twins_support import PATIENCE_S, PLACES, send_raw, twins
from tests.unit.vhost_user.support import eventually
from virtq.devices import evdev as host_evdev
from virtq.devices.evdev import EvdevDevice, request_number
from virtq.devices.input import InputDevice
from virtq.drivers.input import InputDriver
from virtq.errors import ConfigError, RequestError
from virtq.features import RingKind
from virtq.memory import Buffer
from virtq.queue import DriverQueue
from virtq.transports.loopback import LoopbackTransport
from virtq.wire import evdev
from virtq.wire.input import AbsInfo, DevIds, Event, EventType, InputDescription, Select

GAMEPAD = InputDescription(
    "a gamepad",
    "no. 1",
    DevIds(3, 0x1234, 0xFFFF, 1),
    ("INPUT_PROP_ACCELEROMETER", 1),
    {EventType.KEY: ("BTN_SOUTH", 0x2FF), EventType.ABS: ("ABS_X", "ABS_HAT0X")},
    {"ABS_X": AbsInfo(-32768, 32767, 16, 128, 5), "ABS_HAT0X": AbsInfo(-1, 1)},
)

DESCRIPTIONS = (
    InputDescription.keyboard(serial="0815"),
    InputDescription.mouse("Maus"),
    InputDescription.tablet(width=1920, height=1080),
    GAMEPAD,
)


class Listening(InputDevice):
    """Remembers what the driver sends."""

    def __init__(self, description: InputDescription) -> None:
        super().__init__(description)
        self.heard: list[Event] = []

    def status(self, event: Event) -> None:
        self.heard.append(event)


# Descriptions


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("description", DESCRIPTIONS, ids=lambda d: d.name)
def test_descriptions_survive_the_wire(
    description: InputDescription, place: str, tmp_path: Path
) -> None:
    with twins(InputDevice(description), InputDriver, place=place, folder=tmp_path) as driver:
        assert driver.description == description


def test_what_a_description_answers() -> None:
    assert GAMEPAD.answer(Select.ID_NAME, 0) == b"a gamepad"
    assert GAMEPAD.answer(Select.ID_DEVIDS, 0) == b"\3\0\x34\x12\xff\xff\1\0"
    assert GAMEPAD.answer(Select.PROP_BITS, 0) == bytes([1 << 6 | 1 << 1])
    assert GAMEPAD.answer(Select.EV_BITS, EventType.ABS) == b"\1\0\1"
    assert GAMEPAD.answer(Select.EV_BITS, EventType.KEY)[0x130 // 8] == 1
    assert GAMEPAD.answer(Select.ABS_INFO, 0) == struct.pack("<5i", -32768, 32767, 16, 128, 5)
    for select, subsel in ((0, 0), (1, 1), (2, 9), (3, 1), (0x10, 1), (0x11, 2), (0x12, 1), (9, 0)):
        assert GAMEPAD.answer(select, subsel) == b""
    assert GAMEPAD.has(EventType.SYN, 0)
    assert not GAMEPAD.has(EventType.KEY, 1)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": "x" * 129}, "the name .* more than 128 bytes"),
        ({"serial": "ü" * 65}, "the serial .* more than 128 bytes"),
        ({"events": {1: ("KEY_QUIT",)}}, "no event code is called 'KEY_QUIT'"),
        ({"events": {1: ("REL_X",)}}, "REL_X is an event of type REL, not KEY"),
        ({"events": {1: (1024,)}}, "event code 1024 is not 0 to 1023"),
        ({"events": {0: (0,)}}, "event type 0 cannot be described"),
        ({"events": {256: (0,)}}, "event type 256 cannot be described"),
        ({"events": {3: ("ABS_X",)}}, "ABS_X: an absolute axis needs its range"),
        ({"axes": {"ABS_Y": AbsInfo(0, 1)}}, "ABS_Y: an absolute axis needs its range"),
        ({"events": {3: (256,)}, "axes": {256: AbsInfo(0, 1)}}, "axis 256 is not 0 to 255"),
        ({"events": {3: (0,)}, "axes": {0: AbsInfo(1, 0)}}, "ABS_X goes from 1 down"),
        ({"events": {3: (0,)}, "axes": {0: AbsInfo(0, 1 << 31)}}, "do not fit"),
        ({"ids": DevIds(1 << 16)}, "do not fit"),
        ({"properties": ("SHINY",)}, "no input property is called 'SHINY'"),
        ({"properties": (1024,)}, "input property 1024"),
    ],
)
def test_what_cannot_be_described(changes: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        InputDescription(**{"name": "x", **changes})  # type: ignore[arg-type]


def test_names_of_codes() -> None:
    assert evdev.parse_code(" key_leftshift ") == (EventType.KEY, 42)
    assert evdev.parse_code("key:700") == (EventType.KEY, 700)
    assert evdev.code_name(1, 700) == "KEY:700"
    assert evdev.code_name(0x3F, 1) == "type 63:1"
    assert str(Event(2, 8, -1)) == "REL_WHEEL -1"
    with pytest.raises(ValueError, match="did you mean KEY_ENTER"):
        evdev.parse_code("KEY_ENTRE")


HEADER = Path("/usr/include/linux/input-event-codes.h")


@pytest.mark.skipif(not HEADER.exists(), reason="the C library's headers are not there")
def test_names_are_those_of_the_kernels_header() -> None:
    known = {
        match[1]: int(match[2], 0)
        for match in re.finditer(r"#define\s+(\w+)\s+(0x[0-9a-f]+|\d+)\b", HEADER.read_text())
    }
    ours = [table for kind, table in evdev.CODES.items() if kind != EventType.SYN]
    for table in (*ours, evdev.PROPERTIES):
        assert {name: known.get(name) for name in table} == dict(table)
    for kind in EventType:
        assert known[f"EV_{kind.name}"] == kind


# Events


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_events_and_leds(kind: RingKind, place: str, tmp_path: Path) -> None:
    device = Listening(InputDescription.keyboard())
    with twins(device, InputDriver, kind, place, tmp_path) as keyboard:
        assert keyboard.kind is kind
        device.tap("KEY_A")
        device.press(42)
        assert keyboard.sequence(PATIENCE_S) == [Event(1, 30, 1)]
        assert keyboard.sequence(PATIENCE_S) == [Event(1, 30, 0)]
        got: list[Event] = []
        while len(got) < 2:
            got += keyboard.events(timeout_s=PATIENCE_S)
        assert got == [Event(1, 42, 1), Event(0, 0, 0)]
        assert keyboard.events(timeout_s=0) == keyboard.sequence(0) == []

        for led, on in (("LED_CAPSL", True), ("LED_NUML", True), ("LED_CAPSL", False)):
            keyboard.set_led(led, on)
        keyboard.send(Event(EventType.REP, 0, 250))
        assert device.leds == {0}
        leds = [Event(17, 1, 1), Event(17, 0, 1), Event(17, 1, 0)]
        assert device.heard == [*leds, Event(20, 0, 250)]
        with pytest.raises(RequestError, match="has no LED 9"):
            keyboard.set_led(9, True)
    assert device.leds == set()
    assert device.stats()["statusq"]["buffers"] == 4
    assert device.dropped == 0


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_pointers(kind: RingKind) -> None:
    mouse, tablet = (InputDevice(d) for d in (DESCRIPTIONS[1], DESCRIPTIONS[2]))
    with twins(mouse, InputDriver, kind) as driver:
        mouse.move(3, -4, wheel=1)
        assert driver.sequence(PATIENCE_S) == [Event(2, 0, 3), Event(2, 1, -4), Event(2, 8, 1)]
        mouse.move()  # nowhere: nothing to tell
        mouse.release("BTN_LEFT")
        assert driver.sequence(PATIENCE_S) == [Event(1, 0x110, 0)]
    with twins(tablet, InputDriver, kind) as driver:
        tablet.move_to(1919, 0)
        assert driver.sequence(PATIENCE_S) == [Event(3, 0, 1919), Event(3, 1, 0)]


@pytest.mark.parametrize("kind", RingKind, ids=str)
@pytest.mark.parametrize("queue_size", [4, 64])
def test_sequences_larger_than_the_queue_and_more_of_them(kind: RingKind, queue_size: int) -> None:
    device = InputDevice(GAMEPAD, queue_size=queue_size, backlog_events=4096)
    with twins(device, InputDriver, kind) as driver:
        for number in range(100):
            for value in range(10):
                device.event("ABS_X", 10 * number + value)
            device.sync()
        for number in range(100):
            wanted = [Event(3, 0, 10 * number + value) for value in range(10)]
            assert driver.sequence(PATIENCE_S) == wanted
    assert device.stats()["eventq"]["buffers"] == 1100
    assert device.dropped == 0


def test_a_sequence_is_dropped_as_a_whole() -> None:
    device = InputDevice(GAMEPAD, queue_size=4, backlog_events=12)
    device.press("BTN_SOUTH")  # there is no driver
    assert device.dropped == 1
    with twins(device, InputDriver) as driver:
        # A sequence of 4 fits into the driver's buffers, and 3 more into the backlog. Which ones
        # they are depends on when the device's thread sent the first.
        for number in range(50):
            for _ in range(3):
                device.event("ABS_X", number)
            device.sync()
        kept = 50 - (device.dropped - 1)
        assert 3 <= kept <= 4
        numbers = []
        for _ in range(kept):
            sequence = driver.sequence(PATIENCE_S)
            numbers.append(sequence[0].value)
            assert sequence == 3 * [Event(3, 0, numbers[-1])]
        assert numbers == sorted(set(numbers))
        for _ in range(100):  # too much for any backlog
            device.event("ABS_X", 7)
        device.sync()
        device.event("ABS_X", 8)
        device.drop_open()
        device.press("BTN_SOUTH")
        assert driver.sequence(PATIENCE_S) == [Event(1, 0x130, 1)]


@pytest.mark.parametrize(
    ("code", "value", "text"),
    [
        ("KEY_A", 1, "KEY_A is not among the events that 'a gamepad' sends"),
        ("LED_CAPSL", 1, "LED_CAPSL is not among"),
        (0x131, 1, "BTN_EAST is not among"),
        ("ABS_X", 1 << 31, "do not fit"),
        ("KEY_WHAT", 1, "no event code"),
    ],
)
def test_events_that_the_device_does_not_send(code: str | int, value: int, text: str) -> None:
    device = InputDevice(GAMEPAD)
    with pytest.raises(ValueError, match=text):
        device.event(code, value)


def test_events_may_come_from_several_threads() -> None:
    device = InputDevice(InputDescription.keyboard(), backlog_events=1 << 16)
    with twins(device, InputDriver) as driver:

        def type_much() -> None:
            for _ in range(100):
                device.tap("KEY_A")

        threads = [threading.Thread(target=type_much) for _ in range(4)]
        for thread in threads:
            thread.start()
        # Every press and release is a sequence of its own, whoever else is typing.
        seen = [driver.sequence(PATIENCE_S) for _ in range(800)]
        for thread in threads:
            thread.join()
    assert all(len(sequence) == 1 for sequence in seen)
    assert sum(event.value for (event,) in seen) == 400
    assert device.dropped == 0


def test_after_a_reset_there_is_nothing_left_from_before() -> None:
    device = InputDevice(InputDescription.keyboard(), queue_size=4)
    with twins(device, InputDriver) as driver:
        for _ in range(20):
            device.tap("KEY_A")
        driver.set_led("LED_NUML", True)
        driver.reset()
        assert device.leds == set()
        device.tap("KEY_B")
        assert driver.sequence(PATIENCE_S) == [Event(1, 48, 1)]


# Drivers that do as they like


def test_feedback_that_is_no_event_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    device = Listening(InputDescription.keyboard())
    with caplog.at_level(logging.WARNING), twins(device, InputDriver) as driver:
        for data in (b"x", b"seven..", b""):
            assert send_raw(driver, "statusq", data, 1)[0] == 0
        driver.queues["statusq"].call(Event(17, 1, 1).pack() + b"more", timeout_s=PATIENCE_S)
    assert device.heard == [Event(17, 1, 1)]
    assert caplog.text.count("an event has 8 bytes") == 1  # logged once
    assert device.stats()["statusq"]["handler_errors"] == 0


def test_a_hook_that_raises_costs_its_event_only(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(InputDevice):
        def status(self, event: Event) -> None:
            raise RuntimeError("burnt")

    device = Broken(InputDescription.keyboard())
    with caplog.at_level(logging.ERROR), twins(device, InputDriver) as driver:
        driver.set_led("LED_NUML", True)
        driver.set_led("LED_NUML", False)
    assert caplog.text.count("RuntimeError: burnt") == 1


def test_buffers_that_hold_no_event_cost_events_and_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Stingy(InputDriver):
        def populate(self, queue: DriverQueue) -> None:
            if queue.name == "eventq":
                self._buffers = [self.arena.alloc(4)]
                queue.add_buffers([], self._buffers, self._buffers[0])

    device = Listening(InputDescription.keyboard())
    with caplog.at_level(logging.WARNING), twins(device, Stingy) as driver:
        device.tap("KEY_A")
        assert eventually(lambda: device.dropped == 2)
        driver.set_led("LED_NUML", True)
        assert device.leds == {0}
    assert caplog.text.count("a sequence of events is dropped") == 1


def test_the_configuration_space_takes_questions_and_nothing_else() -> None:
    device = InputDevice(GAMEPAD)
    device.write_config(1, b"\3")
    device.write_config(0, b"\x11")
    assert device.read_config(0, 11) == b"\x11\3\3\0\0\0\0\0\1\0\1"
    device.write_config(0, bytes([Select.ID_NAME]))  # subsel is still 3
    assert device.read_config(2, 1) == b"\0"
    # As QEMU does: the whole space, for one byte that the guest wrote.
    image = bytearray(device.read_config(0, 136))
    image[0:2], image[2:] = b"\1\0", b"\xff" * 134
    device.write_config(0, bytes(image))
    assert device.read_config(0, 17) == b"\1\0\x09\0\0\0\0\0a gamepad"
    for offset, data in ((2, b"\1"), (8, b"x"), (135, b"x")):
        with pytest.raises(ConfigError, match=f"byte {offset} is not writable"):
            device.write_config(offset, data)
    with pytest.raises(ConfigError, match="of a configuration space of 136"):
        device.write_config(0, bytes(137))


def test_an_answer_longer_than_there_is_room_for_is_not_believed() -> None:
    class Boasting(InputDevice):
        def read_config(self, offset: int, length: int) -> bytes:
            data = bytearray(super().read_config(offset, length))
            data[2] = 129
            return bytes(data)

    transport = LoopbackTransport(Boasting(GAMEPAD))
    with pytest.raises(ConfigError, match="an answer of 129 bytes"):
        InputDriver(transport)
    transport.close()


@pytest.mark.parametrize(
    ("select", "answer", "text"),
    [
        (Select.ABS_INFO, struct.pack("<5i", 1, 0, 0, 0, 0), "ABS_X goes from 1 down"),
        (Select.ID_NAME, b"\xff" * 128, ""),
        (Select.EV_BITS, b"\xff" * 128, ""),  # more axes than can be asked for
        (Select.ABS_INFO, b"\xff" * 4, ""),  # a minimum, and that is all
        (Select.ID_DEVIDS, b"", ""),
    ],
)
def test_devices_that_answer_as_they_like(select: Select, answer: bytes, text: str) -> None:
    class Lying(InputDescription):
        def answer(self, asked: int, subsel: int) -> bytes:
            fits = asked == select and (asked != Select.EV_BITS or subsel == EventType.ABS)
            return answer if fits else super().answer(asked, subsel)

    lying = Lying("a", events=GAMEPAD.events, axes=GAMEPAD.axes)
    transport = LoopbackTransport(InputDevice(lying))
    if text:
        with pytest.raises(ConfigError, match=f"does not make sense: {text}"):
            InputDriver(transport)
        transport.close()
        return
    with InputDriver(transport) as driver:
        axes = driver.description.events[EventType.ABS]
        assert len(axes) == (256 if select == Select.EV_BITS else 2)
        assert driver.description.axes.keys() == set(axes)


def test_events_that_came_short_are_counted_not_read() -> None:
    class Short(InputDevice):
        async def started(self) -> None:
            await self.supplies["eventq"].put(b"short", Event(1, 30, 1).pack())

    with twins(Short(GAMEPAD), InputDriver) as driver:
        assert driver.events(timeout_s=PATIENCE_S) == [Event(1, 30, 1)]
        assert driver.malformed == 1


# A device of the host. There is none on a test machine: a pipe has the events, and the answers are
# put together by hand. A guest's kernel gives real ones in tests/interop.


class FakeHost:
    """Answers what evdev asks of `description`; the pipe at `path` takes and gives events."""

    def __init__(self, description: InputDescription, path: Path) -> None:
        self.grabbed = False
        self.path = path
        d = description
        self._answers = {
            request_number(0x02, 8): struct.pack("=4H", *d.ids),
            request_number(0x06, 128): d.name.encode() + b"\0",
            request_number(0x09, 128): d.answer(Select.PROP_BITS, 0),
            request_number(0x20, 128): sum(1 << kind for kind in d.events).to_bytes(4, "little"),
        }
        for kind in d.events:
            self._answers[request_number(0x20 + kind, 128)] = d.answer(Select.EV_BITS, kind)
        for axis, info in d.axes.items():
            self._answers[request_number(0x40 + axis, 24)] = struct.pack("=6i", 0, *info)
        os.mkfifo(path)

    def ioctl(self, fd: int, request: int, argument: bytearray | int) -> int:
        if isinstance(argument, int):
            assert request == 0x40044590  # EVIOCGRAB
            self.grabbed = bool(argument)
            return 0
        if request not in self._answers:
            raise FileNotFoundError(2, "no such answer")
        answer = self._answers[request]
        argument[: len(answer)] = answer
        return len(answer)


@pytest.mark.parametrize("kind", [RingKind.SPLIT, RingKind.PACKED_IN_ORDER], ids=str)
def test_a_device_of_the_host(
    kind: RingKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = InputDescription("host's", "", GAMEPAD.ids, (6,), GAMEPAD.events, GAMEPAD.axes)
    host = FakeHost(wanted, tmp_path / "event0")
    monkeypatch.setattr(fcntl, "ioctl", host.ioctl)
    device = EvdevDevice(host.path, grab=True)
    assert device.description == wanted
    assert host.grabbed

    def happens(*events: tuple[int, int, int]) -> None:
        with host.path.open("wb") as pipe:
            pipe.write(b"".join(struct.pack("@llHHi", 5, 6, *event) for event in events))

    syn = (0, 0, 0)
    happens((1, 0x130, 1), syn)  # before there is a driver
    with twins(device, InputDriver, kind) as driver:
        happens((3, 0, 5), (3, 16, -1), syn)
        assert driver.sequence(PATIENCE_S) == [Event(3, 0, 5), Event(3, 16, -1)]
        # The kernel lost something: the rest of the sequence means nothing.
        happens((3, 0, 6), (0, host_evdev.SYN_DROPPED, 0), (3, 16, 1), syn, (3, 0, 7), syn)
        assert driver.sequence(PATIENCE_S) == [Event(3, 0, 7)]
        # A pipe gives back what is written to it, as evdev does with LEDs.
        driver.send(Event(17, 1, 1))
        happens(syn)
        assert driver.sequence(PATIENCE_S) == [Event(17, 1, 1)]
    device.close()
    device.close()


def test_what_is_no_device_of_the_host(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(OSError, match="no evdev device") as caught:
        EvdevDevice(path)
    assert caught.value.filename == str(path)
    with pytest.raises(FileNotFoundError):
        EvdevDevice(tmp_path / "nothing")


def test_the_numbers_of_ioctls_are_the_kernels() -> None:
    assert request_number(0x02, 8) == 0x80084502  # EVIOCGID
    assert request_number(0x40, 24) == 0x80184540  # EVIOCGABS(0)


def test_the_buffers_of_the_driver_are_its_own(tmp_path: Path) -> None:
    with twins(InputDevice(GAMEPAD), InputDriver) as driver:
        held = driver.arena.held_bytes
        driver.reset()
        assert driver.arena.held_bytes == held
        assert all(isinstance(buffer, Buffer) for buffer in driver._buffers)
