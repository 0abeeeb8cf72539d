"""The GPIO device and its twin: lines, names, interrupts in every kind of ring."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from tests.unit.twins_support import PATIENCE_S, PLACES, UNTOUCHED, send_raw, twins
from tests.unit.vhost_user.support import eventually
from virtq import Request as Request_
from virtq import Used
from virtq.devices.gpio import GpioDevice
from virtq.drivers.gpio import Direction, GpioDriver, IrqType
from virtq.errors import FeatureError, RequestError
from virtq.features import RingKind
from virtq.wire.gpio import GpioFeature, IrqStatus, Message, Request, pack_names, parse_names

NAMES = ("button", "led", "", "reset")


class Board(GpioDevice):
    """Remembers what the driver does to its lines."""

    def __init__(self, lines: int | None = None, **options: object) -> None:
        self.driven: list[tuple[int, int | None]] = []
        super().__init__(lines, NAMES, **options)  # type: ignore[arg-type]

    def line_driven(self, line: int, value: int | None) -> None:
        self.driven.append((line, value))


def quiet(gpio: GpioDriver) -> bool:
    """Whether nothing has interrupted: answers that are asked for now come after what is under
    way."""
    for _ in range(2):
        gpio.get_value(0)
    return not gpio.interrupts(0)


# Lines


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_lines(kind: RingKind, place: str, tmp_path: Path) -> None:
    board = Board(6)
    with twins(board, GpioDriver, kind, place, tmp_path) as gpio:
        assert gpio.kind is kind
        assert gpio.lines == 6
        assert gpio.names == (*NAMES, "", "")
        assert gpio.get_direction("led") is Direction.NONE
        gpio.set_output("led", 1)
        assert board.driven == [(1, 1)]
        gpio.set_value("led", 1)  # no change
        gpio.set_value("led", 0)
        assert gpio.get_direction(1) is Direction.OUT
        assert (gpio.get_value("led"), board.value("led")) == (0, 0)
        board.set_line("led", 1)  # an output is what the driver makes it
        assert gpio.get_value("led") == 0
        gpio.set_input("led")
        assert gpio.get_value("led") == 1
        gpio.set_value("led", 1)  # for when it is an output again
        gpio.set_direction("led", Direction.OUT)
        gpio.release("led")
        gpio.set_direction("led", Direction.OUT)  # its value is forgotten with the rest
        assert board.driven == [(1, 1), (1, 0), (1, None), (1, 1), (1, None), (1, 0)]
        board.set_line(5, 1)
        gpio.set_input(5)
        assert [gpio.get_value(line) for line in range(6)] == [0, 0, 0, 0, 0, 1]
    assert board.driven[-1] == (1, None)  # the driver is gone
    assert board.stats()["requestq"]["handler_errors"] == 0


def test_lines_without_names() -> None:
    with twins(GpioDevice(3), GpioDriver) as gpio:
        assert gpio.names == ("", "", "")
        assert gpio.config.gpio_names_size == 0


@pytest.mark.parametrize("line", ["lamp", "", 4, -1])
def test_lines_that_there_are_not(line: str | int) -> None:
    board = Board()
    with twins(board, GpioDriver) as gpio:
        with pytest.raises(ValueError, match="there is no GPIO line"):
            gpio.get_value(line)
        with pytest.raises(ValueError, match=r"there is no GPIO line .* called button, led, reset"):
            board.set_line(line, 1)
        for call in (board.set_line, gpio.set_value):
            with pytest.raises(ValueError, match="level 0 or 1, not 2"):
                call("led", 2)


@pytest.mark.parametrize(
    ("lines", "names", "text"),
    [
        (0, (), "1 to 65535 lines"),
        (65536, (), "1 to 65535 lines"),
        (1, ("a", "b"), "1 lines with 2 names"),
        (2, ("a", "a"), "two lines are called 'a'"),
        (1, ("ä",), "is not ASCII"),
        (1, ("a\0b",), "is not ASCII without zeroes"),
    ],
)
def test_what_is_no_device(lines: int, names: tuple[str, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        GpioDevice(lines, names)


def test_names_survive_the_wire() -> None:
    assert pack_names(("", "")) == b""
    block = pack_names(("", "a", "", "bc"))
    assert block == b"\0a\0\0bc\0"
    assert parse_names(block, 4) == ("", "a", "", "bc")
    assert parse_names(block[:4], 6) == ("", "a", "", "", "", "")
    assert parse_names(block, 2) == ("", "a")


# Interrupts


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_edges(kind: RingKind, place: str, tmp_path: Path) -> None:
    board = Board()
    with twins(board, GpioDriver, kind, place, tmp_path) as gpio:
        for line, edges in (
            *((0, IrqType.EDGE_RISING), (2, IrqType.EDGE_BOTH)),
            (3, IrqType.EDGE_FALLING),
        ):
            gpio.set_input(line)
            gpio.enable_interrupt(line, edges)
        assert gpio.interrupts(0) == []
        # The last to be unmasked goes first, again and again; whoever waits is not forgotten.
        for _ in range(5):
            for line, level in ((3, 1), (3, 0), (2, 1), (0, 1)):
                board.set_line(line, level)
                if (line, level) != (3, 1):  # it rises, and waits for falling
                    assert gpio.interrupts(PATIENCE_S) == [line]
                    gpio.unmask(line)
            for line in (2, 0):
                board.set_line(line, 0)
                assert gpio.interrupts(PATIENCE_S if line == 2 else 0) == [2] * (line == 2)
                gpio.unmask(2)
    assert board.stats()["eventq"]["handler_errors"] == 0


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_edges_are_latched_while_masked_and_levels_are_not(kind: RingKind) -> None:
    board = Board()
    with twins(board, GpioDriver, kind) as gpio:
        gpio.set_input("button")
        gpio.enable_interrupt("button", IrqType.EDGE_RISING)
        for level in (1, 0):
            board.set_line("button", level)
        assert gpio.interrupts(PATIENCE_S) == [0]
        for level in (1, 0, 1, 0):
            board.set_line("button", level)
        assert quiet(gpio)
        gpio.unmask("button")
        assert gpio.interrupts(PATIENCE_S) == [0]  # one for all that came meanwhile
        gpio.unmask("button")
        assert quiet(gpio)

        gpio.enable_interrupt("button", IrqType.LEVEL_HIGH)  # another kind
        board.set_line("button", 1)
        for _ in range(3):  # as long as it is high
            assert gpio.interrupts(PATIENCE_S) == [0]
            gpio.unmask("button")
        assert gpio.interrupts(PATIENCE_S) == [0]
        board.set_line("button", 0)
        gpio.unmask("button")
        assert quiet(gpio)
        gpio.enable_interrupt("button", IrqType.LEVEL_LOW)
        assert gpio.interrupts(PATIENCE_S) == [0]


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_a_disabled_interrupt_gives_its_buffer_back_and_forgets(kind: RingKind) -> None:
    board = Board()
    with twins(board, GpioDriver, kind) as gpio:
        for line in (0, 2, 3):
            gpio.set_input(line)
            gpio.enable_interrupt(line, IrqType.EDGE_BOTH)
        gpio.disable_interrupt(3)
        gpio.disable_interrupt(2)
        assert gpio.queues["eventq"].outstanding == 1
        board.set_line(2, 1)
        board.set_line(0, 1)
        assert gpio.interrupts(PATIENCE_S) == [0]
        board.set_line(0, 0)  # latched, then forgotten
        gpio.disable_interrupt(0)
        gpio.enable_interrupt(0, IrqType.EDGE_BOTH)
        assert quiet(gpio)
        with pytest.raises(RequestError, match="no interrupt enabled"):
            gpio.unmask(2)
        gpio.release(0)
        assert gpio.queues["eventq"].outstanding == 0


def test_an_output_does_not_interrupt() -> None:
    with twins(Board(), GpioDriver) as gpio:
        gpio.set_output("led", 0)
        with pytest.raises(RequestError, match=r"SET_IRQ_TYPE of GPIO line 1: .* answered 0100"):
            gpio.enable_interrupt("led", IrqType.EDGE_BOTH)
        gpio.set_input("led")
        gpio.enable_interrupt("led", IrqType.EDGE_BOTH)
        gpio.set_output("led", 1)  # and its buffer comes back, on a queue of its own
        assert eventually(lambda: quiet(gpio) and gpio.queues["eventq"].outstanding == 0)


def test_without_the_feature_there_are_no_interrupts() -> None:
    with twins(Board(offer="-IRQ"), GpioDriver) as gpio:
        assert not gpio.has(GpioFeature.IRQ)
        assert list(gpio.queues) == ["requestq"]
        gpio.set_input(0)
        with pytest.raises(FeatureError, match="IRQ was not negotiated"):
            gpio.enable_interrupt(0, IrqType.EDGE_BOTH)
        request = Request(Message.SET_IRQ_TYPE, 0, IrqType.EDGE_BOTH).pack()
        assert send_raw(gpio, "requestq", request, 2) == (2, b"\1\0")


@pytest.mark.parametrize("kind", [RingKind.SPLIT, RingKind.PACKED_IN_ORDER], ids=str)
def test_levels_may_come_from_any_thread(kind: RingKind) -> None:
    board, edges = Board(), 200
    with twins(board, GpioDriver, kind) as gpio:
        for line in (0, 3):
            gpio.set_input(line)
            gpio.enable_interrupt(line, IrqType.EDGE_BOTH)

        def toggle() -> None:
            for edge in range(edges):
                board.set_line(0, (edge + 1) % 2)
            board.set_line(3, 1)

        thread = threading.Thread(target=toggle)
        thread.start()
        seen: set[int] = set()
        while 3 not in seen:
            fired = gpio.interrupts(PATIENCE_S)
            assert fired
            for line in fired:
                gpio.unmask(line)
            seen.update(fired)
        thread.join()
        assert seen == {0, 3}
        assert (gpio.get_value(0), gpio.get_value(3)) == (0, 1)


def test_a_reset_leaves_nothing_but_the_levels() -> None:
    board = Board()
    with twins(board, GpioDriver) as gpio:
        board.set_line("button", 1)
        gpio.set_input("button")
        gpio.enable_interrupt("button", IrqType.EDGE_FALLING)
        gpio.set_output("led", 1)
        gpio.reset()
        assert board.driven == [(1, 1), (1, None)]
        assert gpio.get_direction("button") is Direction.NONE
        assert gpio.get_value("button") == 1
        board.set_line("button", 0)
        gpio.set_input("button")
        gpio.enable_interrupt("button", IrqType.EDGE_FALLING)
        assert quiet(gpio)


@pytest.mark.parametrize(
    ("answer", "text"),
    [(b"\0\7", "7 is no answer"), (b"\0", "answered 00"), (b"", "answered nothing")],
)
def test_devices_that_answer_as_they_like(answer: bytes, text: str) -> None:
    class Lying(GpioDevice):
        def request(self, buffer: Request_) -> int:
            return buffer.write(answer)

    with twins(Lying(2), GpioDriver) as gpio:
        for call in (gpio.get_direction, gpio.get_value):
            with pytest.raises(RequestError, match=text):
                call(0)


# Drivers that do as they like


@pytest.mark.parametrize(
    ("readable", "writable", "answer"),
    [
        (Request(Message.GET_VALUE, 0).pack(), 0, b""),
        (Request(Message.GET_VALUE, 0).pack(), 1, b"\1"),  # no room for the value
        (Request(Message.GET_VALUE, 0).pack()[:7], 2, b"\1\0"),
        (b"", 2, b"\1\0"),
        (Request(Message.GET_VALUE, 4).pack(), 2, b"\1\0"),
        (Request(Message.GET_VALUE, 0xFFFF).pack(), 2, b"\1\0"),
        (Request(Message.SET_VALUE, 0, 2).pack(), 2, b"\1\0"),
        (Request(Message.SET_DIRECTION, 0, 3).pack(), 2, b"\1\0"),
        (Request(Message.SET_IRQ_TYPE, 0, 5).pack(), 2, b"\1\0"),
        (Request(Message.SET_IRQ_TYPE, 0, 0xFFFFFFFF).pack(), 2, b"\1\0"),
        (Request(Message.GET_LINE_NAMES).pack(), 18, b"\1\0"),  # a byte too little
        (Request(Message.GET_LINE_NAMES).pack(), 19, b"\0button\0led\0\0reset\0"),
        (Request(Message.GET_LINE_NAMES).pack(), 30, b"\0button\0led\0\0reset\0"),
        (Request(0).pack(), 2, b"\1\0"),
        (Request(7).pack(), 2, b"\1\0"),
    ],
)
def test_senseless_messages_fail_alone(readable: bytes, writable: int, answer: bytes) -> None:
    board = Board()
    with twins(board, GpioDriver) as gpio:
        written, room = send_raw(gpio, "requestq", readable, writable)
        assert room[:written] == answer
        assert set(room[written:]) <= {UNTOUCHED}
        assert gpio.get_value("button") == 0
    assert board.stats()["requestq"]["handler_errors"] == 0


def test_a_type_of_interrupt_is_not_changed_while_enabled() -> None:
    with twins(Board(), GpioDriver) as gpio:
        gpio.set_input(0)
        for kind, answer in ((1, b"\0\0"), (1, b"\0\0"), (3, b"\1\0"), (0, b"\0\0"), (3, b"\0\0")):
            request = Request(Message.SET_IRQ_TYPE, 0, kind).pack()
            assert send_raw(gpio, "requestq", request, 2)[1] == answer


@pytest.mark.parametrize("kind", RingKind, ids=str)
@pytest.mark.parametrize("line", [b"\1\0", b"\4\0", b"\xff\xff", b"\0", b"", b"\0\0"])
def test_senseless_buffers_of_the_event_queue_come_back(kind: RingKind, line: bytes) -> None:
    """Lines 0 and 2 are unmasked; the buffer is for a line that is not enabled, not there, not
    told, or unmasked already."""
    board = Board()
    with twins(board, GpioDriver, kind) as gpio:
        for known in (0, 2):
            gpio.set_input(known)
            gpio.enable_interrupt(known, IrqType.EDGE_RISING)
        queue = gpio.queues["eventq"]
        queue.add(line, 1, "strange")
        queue.kick()
        came: list[Used] = []
        while "strange" not in [used.cookie for used in came]:
            assert queue.wait(PATIENCE_S)
            came += queue.reap()
        assert {used.reply for used in came} == {bytes([IrqStatus.INVALID])}
        # Under IN_ORDER those before it had to be let go, and are unmasked by the driver anew.
        assert [used.cookie for used in came[:-1]] == [0, 2] * kind.in_order
        for used in came[:-1]:
            gpio._unmasked.discard(used.cookie)
            gpio.unmask(used.cookie)
        board.set_line(2, 1)
        assert gpio.interrupts(PATIENCE_S) == [2]


def test_a_buffer_without_room_is_used_with_nothing_written() -> None:
    with twins(Board(), GpioDriver) as gpio:
        assert send_raw(gpio, "eventq", b"\0\0", 0) == (0, b"")
        assert gpio.get_value(0) == 0


def test_a_hook_that_raises_costs_its_message_only(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(GpioDevice):
        def line_driven(self, line: int, value: int | None) -> None:
            if value == 1:
                raise RuntimeError("burnt")

    with caplog.at_level(logging.ERROR), twins(Broken(2), GpioDriver) as gpio:
        with pytest.raises(RequestError, match=r"SET_DIRECTION of GPIO line 0: .* answered 0100"):
            gpio.set_output(0, 1)
        gpio.set_output(1, 0)
        assert gpio.get_direction(1) is Direction.OUT
    assert "burnt" in caplog.text
