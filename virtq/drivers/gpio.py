"""Driving a GPIO device (VIRTIO 1.4, section 5.18).

    with virtq.connect("vhost-user:/run/gpio.sock", driver=GpioDriver) as gpio:
        gpio.set_output("led", 1)
        gpio.set_input("button")
        gpio.enable_interrupt("button", IrqType.EDGE_BOTH)
        for line in gpio.interrupts(timeout_s=1.0):
            print(line, gpio.get_value(line))
            gpio.unmask(line)

Lines go by name or by number.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Mapping
from typing import Any

from virtq.device import QueueSpec
from virtq.driver import Driver
from virtq.errors import FeatureError, RequestError
from virtq.transports.base import DriverTransport
from virtq.wire.gpio import (
    DEVICE_ID,
    IRQ_RESPONSE_BYTES,
    NAME_BYTES_MAX,
    RESPONSE_BYTES,
    Direction,
    GpioConfig,
    GpioFeature,
    IrqStatus,
    IrqType,
    Message,
    Request,
    Status,
    message_name,
    parse_names,
)

__all__ = ["Direction", "GpioDriver", "IrqType"]

REQUEST_TIMEOUT_S = 10.0


class GpioDriver(Driver):
    """Drives a GPIO device."""

    device_id = DEVICE_ID
    features = GpioFeature.IRQ
    config_layout = GpioConfig
    needs_config = True
    config: GpioConfig
    queue_size = 256

    def __init__(self, transport: DriverTransport, **settings: Any) -> None:
        """See `Driver`, which also tells what is raised; RequestError besides, if the device does
        not tell the names that it has."""
        self._types: dict[int, IrqType] = {}
        self._unmasked: set[int] = set()
        self._fired: deque[int] = deque()
        self.names: tuple[str, ...] = ()
        """What the lines are called; those without a name are empty."""
        super().__init__(transport, **settings)

    def plan(self) -> Mapping[int, QueueSpec]:
        plan = {0: QueueSpec("requestq", self.queue_size)}
        if self.has(GpioFeature.IRQ):
            plan[1] = QueueSpec("eventq", self.queue_size)
        return plan

    def went_live(self) -> None:
        size = self.config.gpio_names_size
        if size > NAME_BYTES_MAX:
            raise RequestError(f"names of {size} bytes; the most is {NAME_BYTES_MAX}")
        block = self._request(Message.GET_LINE_NAMES, room=1 + size) if size else b""
        self.names = parse_names(block, self.lines)

    def was_reset(self) -> None:
        self._types.clear()
        self._unmasked.clear()
        self._fired.clear()

    # Lines. All raise RequestError if the device answers with an error, ValueError for a line that
    # there is not, PeerGone and RingFault.

    @property
    def lines(self) -> int:
        """How many lines there are."""
        return self.config.ngpio

    def line(self, name: str | int) -> int:
        """The number of a line."""
        if isinstance(name, str) and name and name in self.names:
            return self.names.index(name)
        if isinstance(name, int) and 0 <= name < self.lines:
            return name
        raise ValueError(f"there is no GPIO line {name!r} among {self.lines}")

    def get_direction(self, line: str | int) -> Direction:
        """What a line is used as."""
        return Direction(self._ask(Message.GET_DIRECTION, line, among=tuple(Direction)))

    def set_direction(self, line: str | int, direction: Direction) -> None:
        """Use a line as input, output, or (NONE) not at all, which gives up all that was set."""
        self._ask(Message.SET_DIRECTION, line, direction)
        if direction is not Direction.IN:
            self._types.pop(self.line(line), None)

    def get_value(self, line: str | int) -> int:
        """What is sensed on a line: 0 or 1."""
        return self._ask(Message.GET_VALUE, line, among=(0, 1))

    def set_value(self, line: str | int, value: int) -> None:
        """Set the level of an output, or what it is to be once the line is one."""
        if value not in (0, 1):
            raise ValueError(f"a GPIO line is at level 0 or 1, not {value!r}")
        self._ask(Message.SET_VALUE, line, value)

    def set_input(self, line: str | int) -> None:
        """Use a line as input."""
        self.set_direction(line, Direction.IN)

    def set_output(self, line: str | int, value: int) -> None:
        """Use a line as output, at this level from the first moment on (5.18.6.3)."""
        self.set_value(line, value)
        self.set_direction(line, Direction.OUT)

    def release(self, line: str | int) -> None:
        """Give a line up, its interrupt first."""
        if self.line(line) in self._types:
            self.disable_interrupt(line)
        self.set_direction(line, Direction.NONE)

    # Interrupts. All raise FeatureError unless IRQ was negotiated.

    def enable_interrupt(self, line: str | int, kind: IrqType) -> None:
        """Have an input interrupt, and unmask it; another kind than before is disabled first
        (5.18.6.8)."""
        self._need_irq()
        number = self.line(line)
        if kind is IrqType.NONE:
            self.disable_interrupt(number)
            return
        if self._types.get(number, kind) is not kind:
            self.disable_interrupt(number)
        self._ask(Message.SET_IRQ_TYPE, number, kind)
        self._types[number] = kind
        self.unmask(number)

    def disable_interrupt(self, line: str | int) -> None:
        """Have a line interrupt no more. The device gives its buffer back."""
        self._need_irq()
        number = self.line(line)
        self._types.pop(number, None)
        self._ask(Message.SET_IRQ_TYPE, number, IrqType.NONE)
        if number in self._unmasked:
            self._await(lambda: number not in self._unmasked, REQUEST_TIMEOUT_S)

    def unmask(self, line: str | int) -> None:
        """Let a line interrupt again after it has. Raises RequestError if its interrupt is not
        enabled."""
        self._need_irq()
        number = self.line(line)
        if number not in self._types:
            raise RequestError(f"GPIO line {line!r} has no interrupt enabled (5.18.7.2)")
        if number not in self._unmasked:
            self._queue_buffer(number)

    def interrupts(self, timeout_s: float | None = None) -> list[int]:
        """The lines that have interrupted, oldest first; waits for one as long as `timeout_s`
        (None: for ever). Each is masked until `unmask`."""
        self._need_irq()
        self._await(lambda: bool(self._fired), timeout_s)
        fired, self._fired = list(self._fired), deque()
        return fired

    def _need_irq(self) -> None:
        if not self.has(GpioFeature.IRQ):
            raise FeatureError("the device has no interrupts: IRQ was not negotiated")

    def _queue_buffer(self, number: int) -> None:
        queue = self.queues["eventq"]
        queue.add(number.to_bytes(2, "little"), IRQ_RESPONSE_BYTES, number)
        self._unmasked.add(number)
        queue.kick()

    def _await(self, holds: Any, timeout_s: float | None) -> None:
        queue = self.queues["eventq"]
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._collect()
            if holds():
                return
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not queue.wait(left):
                return

    def _collect(self) -> None:
        """A buffer that comes back without an interrupt, though that is enabled, is left with the
        device again."""
        for used in self.queues["eventq"].reap():
            number: int = used.cookie
            self._unmasked.discard(number)
            if used.reply == bytes([IrqStatus.VALID]):
                self._fired.append(number)
            elif number in self._types:
                self._queue_buffer(number)

    # Messages

    def _ask(
        self,
        kind: Message,
        line: str | int,
        value: int = 0,
        *,
        among: Collection[int] = range(256),
    ) -> int:
        """One message about a line; its answer has to be one of `among`."""
        number = self.line(line)
        answer = self._request(kind, number, value)[0]
        if answer not in set(among):
            raise RequestError(f"{message_name(kind)} of GPIO line {number}: {answer} is no answer")
        return answer

    def _request(
        self, kind: Message, gpio: int = 0, value: int = 0, *, room: int = RESPONSE_BYTES
    ) -> bytes:
        """One message (5.18.6); returns what comes behind the status."""
        request = Request(kind, gpio, value).pack()
        answer = self.queues["requestq"].call(request, room, REQUEST_TIMEOUT_S)
        if answer[:1] != bytes([Status.OK]) or len(answer) < room:
            what = f"the device answered {answer.hex() or 'nothing'}"
            raise RequestError(f"{message_name(kind)} of GPIO line {gpio}: {what}")
        return answer[1:]
