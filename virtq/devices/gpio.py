"""The GPIO device (VIRTIO 1.4, section 5.18): lines with names, levels and interrupts.

    class Board(GpioDevice):
        def line_driven(self, line, value):
            print(self.names[line], "is", "no longer driven" if value is None else value)

    board = Board(names=["button", "led"])
    board.set_line("button", 1)

**Interrupts and IN_ORDER.** The driver unmasks an interrupt by leaving a buffer on the event queue,
one for each line, and gets it back when the line interrupts. Under IN_ORDER buffers come back in
the order in which they were left, so a line that stays quiet would hold back all that were unmasked
after it. To deliver one of those, the device gives the older buffers back as INVALID, which masks
their lines: a driver whose interrupt is enabled unmasks them again, as Linux and ours do. Nothing
is lost meanwhile, for edges are latched while a line is masked, and levels are looked at when it is
unmasked (5.18.6.9).
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from virtq._core import Request as Buffer
from virtq.device import Device, QueueSpec
from virtq.errors import StaleBuffer, VirtqError
from virtq.features import Change, F
from virtq.handlers import handles
from virtq.wire.gpio import (
    DEVICE_ID,
    IRQ_REQUEST_BYTES,
    LINES_MAX,
    REQUEST_BYTES,
    Direction,
    GpioConfig,
    GpioFeature,
    IrqStatus,
    IrqType,
    Message,
    Request,
    Status,
    pack_names,
)

log = logging.getLogger("virtq.device")

IN_LOOP_TIMEOUT_S = 1.0
"""How long a call from another thread waits for the device's loop to get to it."""


@dataclass
class Line:
    """One line: `level` is what it is from outside, `output` what the driver would have it be."""

    direction: Direction = Direction.NONE
    level: int = 0
    output: int = 0
    irq_type: IrqType = IrqType.NONE
    latched: bool = False

    @property
    def value(self) -> int:
        """What is sensed on it."""
        return self.output if self.direction is Direction.OUT else self.level


class _Unmasked(NamedTuple):
    """The buffer that a driver has left for a line, and the bytes that were written to it, once
    they are."""

    buffer: Buffer
    used: asyncio.Future[int]

    def give_back(self, status: IrqStatus) -> None:
        """Harmless when its queue was stopped."""
        if self.used.done():
            return
        try:
            self.used.set_result(self.buffer.write(bytes([status])))
        except StaleBuffer:
            self.used.cancel()
        except VirtqError as error:
            self.used.set_exception(error)


class GpioDevice(Device):
    """A GPIO controller."""

    device_id = DEVICE_ID
    config: GpioConfig
    features = GpioFeature.IRQ
    feature_bits = GpioFeature

    def __init__(
        self,
        lines: int | None = None,
        names: Sequence[str] = (),
        *,
        queue_size: int = 256,
        offer: Change | str = "",
    ) -> None:
        """`lines`: how many there are, by default one for each name. `names`: what they are called;
        those that come after the last name, and those with an empty one, have none.

        Raises ValueError for no lines, too many, or names that the wire does not allow."""
        count = len(names) if lines is None else lines
        if not 1 <= count <= LINES_MAX or len(names) > count:
            raise ValueError(
                f"a GPIO device has 1 to {LINES_MAX} lines, and no more names than that: "
                f"not {count} lines with {len(names)} names"
            )
        self.names = tuple(names) + ("",) * (count - len(names))
        self._names_block = pack_names(self.names)
        self.lines = [Line() for _ in range(count)]
        self.config = GpioConfig(ngpio=count, gpio_names_size=len(self._names_block))
        self.offer = offer
        self.queues = (QueueSpec("requestq", queue_size), QueueSpec("eventq", queue_size))
        # The buffers of unmasked lines, in the order in which the driver made them available.
        self._unmasked: dict[int, _Unmasked] = {}

    # What an author overrides

    def line_driven(self, line: int, value: int | None) -> None:
        """The driver drives a line to a level, or (None) does not drive it any more."""

    # What an author calls

    def line(self, name: str | int) -> int:
        """The number of a line. Raises ValueError for one that there is not."""
        if isinstance(name, str) and name in self.names and name:
            return self.names.index(name)
        if isinstance(name, int) and 0 <= name < len(self.lines):
            return name
        raise ValueError(f"there is no GPIO line {name!r}: there are {self._line_names()}")

    def _line_names(self) -> str:
        called = ", ".join(name for name in self.names if name)
        return f"0 to {len(self.lines) - 1}" + (f", called {called}" if called else "")

    def set_line(self, line: str | int, level: int) -> None:
        """The level on a line changes, from outside, before this returns; it interrupts if the
        driver asked for that. From any thread. Raises ValueError for a line that there is not, and
        a level that is neither 0 nor 1."""
        number = self.line(line)
        if level not in (0, 1):
            raise ValueError(f"a GPIO line is at level 0 or 1, not {level!r}")
        self._in_loop(lambda: self._sense(number, level))

    def value(self, line: str | int) -> int:
        """What is sensed on a line: what the driver sets it to if it is an output, else its level
        from outside."""
        return self.lines[self.line(line)].value

    def _in_loop(self, call: Callable[[], None]) -> None:
        loop = self._loop
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if loop is None or loop is here or loop.is_closed():
            call()
        else:
            done = threading.Event()

            def carry_out() -> None:
                try:
                    call()
                finally:
                    done.set()

            loop.call_soon_threadsafe(carry_out)
            # The driver must not find the level of before once this has returned; but a loop that
            # has just stopped does not carry anything out any more.
            done.wait(IN_LOOP_TIMEOUT_S)

    # Requests

    @handles("requestq")
    def request(self, buffer: Buffer) -> int:
        """Serve one message of any framing (2.6.4); returns the bytes written (5.18.6)."""
        if buffer.writable == 0:
            return 0
        answer = None
        if buffer.readable >= REQUEST_BYTES:
            answer = self._answer(Request.parse(buffer.read(REQUEST_BYTES)))
        if answer is None or 1 + len(answer) > buffer.writable:
            return buffer.write(bytes([Status.ERR, 0])[: buffer.writable])
        return buffer.write(bytes([Status.OK]) + answer)

    def _answer(self, request: Request) -> bytes | None:
        """What comes behind the status; None if the message fails."""
        if request.type == Message.GET_LINE_NAMES:
            return self._names_block or None
        if request.type not in _SERVE or request.gpio >= len(self.lines):
            return None
        return _SERVE[request.type](self, request.gpio, request.value)

    def _get_direction(self, number: int, value: int) -> bytes:
        return bytes([self.lines[number].direction])

    def _set_direction(self, number: int, value: int) -> bytes | None:
        if value not in set(Direction):
            return None
        line, wanted = self.lines[number], Direction(value)
        before, line.direction = line.direction, wanted
        if wanted is not Direction.IN:
            self._disable_interrupt(number)  # it cannot interrupt
        if wanted is Direction.NONE:
            line.output = 0
        if wanted is Direction.OUT and before is not Direction.OUT:
            self.line_driven(number, line.output)
        elif before is Direction.OUT and wanted is not Direction.OUT:
            self.line_driven(number, None)
        return b"\0"

    def _get_value(self, number: int, value: int) -> bytes:
        return bytes([self.lines[number].value])

    def _set_value(self, number: int, value: int) -> bytes | None:
        if value not in (0, 1):
            return None
        line = self.lines[number]
        changed, line.output = line.output != value, value
        if line.direction is Direction.OUT and changed:
            self.line_driven(number, value)
        return b"\0"

    def _set_irq_type(self, number: int, value: int) -> bytes | None:
        line = self.lines[number]
        if not self.driver_features & GpioFeature.IRQ or value not in set(IrqType):
            return None
        wanted = IrqType(value)
        if wanted is IrqType.NONE:
            self._disable_interrupt(number)
        elif line.direction is Direction.OUT or line.irq_type not in (IrqType.NONE, wanted):
            return None  # outputs do not interrupt; a type is not changed while enabled (5.18.6.8)
        else:
            line.irq_type = wanted
        return b"\0"

    def fail(self, request: Buffer, error: Exception) -> int:
        """A hook raised: the message ends with ERR, a buffer of the event queue as INVALID."""
        at_end = bytes([Status.ERR, 0]) if request.queue_index == 0 else bytes([IrqStatus.INVALID])
        return request.write(at_end[: request.writable])

    # Interrupts

    @handles("eventq")
    def unmask(self, buffer: Buffer) -> int | Awaitable[int]:
        """A line is unmasked until it interrupts, and keeps the buffer as long (5.18.7). A buffer
        for a line that is not enabled, not there, or unmasked already, comes back as INVALID."""
        if buffer.writable == 0:
            return 0
        number = len(self.lines)
        if buffer.readable >= IRQ_REQUEST_BYTES:
            number = int.from_bytes(buffer.read(IRQ_REQUEST_BYTES), "little")
        known = number < len(self.lines)
        if not known or self.lines[number].irq_type is IrqType.NONE or self._is_unmasked(number):
            self._let_pass()
            return buffer.write(bytes([IrqStatus.INVALID]))
        used = asyncio.get_running_loop().create_future()
        # At the end: a number that was there before keeps its old place otherwise.
        self._unmasked.pop(number, None)
        self._unmasked[number] = _Unmasked(buffer, used)
        self._deliver(number)
        return used

    def _is_unmasked(self, number: int) -> bool:
        """Buffers of a queue that was stopped are cancelled."""
        waiting = self._unmasked.get(number)
        return waiting is not None and not waiting.used.done()

    def _sense(self, number: int, level: int) -> None:
        line = self.lines[number]
        before, line.level = line.level, level
        if line.direction is Direction.OUT:
            return
        if line.irq_type.edge(before, level):
            line.latched = True
        self._deliver(number)

    def _deliver(self, number: int) -> None:
        """Interrupt if there is reason to, and the line is unmasked."""
        line = self.lines[number]
        if not self._is_unmasked(number) or not (line.latched or line.irq_type.level(line.level)):
            return
        line.latched = False
        self._use(number, IrqStatus.VALID)

    def _disable_interrupt(self, number: int) -> None:
        self.lines[number].irq_type = IrqType.NONE
        self.lines[number].latched = False
        self._use(number, IrqStatus.INVALID)

    def _use(self, number: int, status: IrqStatus) -> None:
        """Give the buffer of a line back, if there is one."""
        if number in self._unmasked:
            self._let_pass(number)
            self._unmasked.pop(number).give_back(status)

    def _let_pass(self, number: int | None = None) -> None:
        """Under IN_ORDER, give back the buffers that are older than a line's (None: all)."""
        while self._unmasked and self.driver_features & F.IN_ORDER:
            oldest = next(iter(self._unmasked))
            if oldest == number:
                return
            self._unmasked.pop(oldest).give_back(IrqStatus.INVALID)

    # Life

    def was_reset(self) -> None:
        """Nothing is left of what the driver had set; levels from outside stay."""
        self._unmasked.clear()
        for number, line in enumerate(self.lines):
            driven = line.direction is Direction.OUT
            self.lines[number] = Line(level=line.level)
            if driven:
                self.line_driven(number, None)


_SERVE: dict[int, Callable[[GpioDevice, int, int], bytes | None]] = {
    Message.GET_DIRECTION: GpioDevice._get_direction,
    Message.SET_DIRECTION: GpioDevice._set_direction,
    Message.GET_VALUE: GpioDevice._get_value,
    Message.SET_VALUE: GpioDevice._set_value,
    Message.SET_IRQ_TYPE: GpioDevice._set_irq_type,
}
