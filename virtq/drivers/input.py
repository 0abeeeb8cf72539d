"""Driving an input device (VIRTIO 1.4, section 5.8).

with virtq.connect("vhost-user:/run/keyboard.sock", driver=InputDriver) as keyboard:
    print(keyboard.description.name)
    keyboard.set_led("LED_CAPSL", True)
    for event in keyboard.events(timeout_s=1.0):
        print(event)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from virtq.device import QueueSpec
from virtq.driver import Driver
from virtq.errors import ConfigError, RequestError
from virtq.memory import Buffer
from virtq.queue import DriverQueue
from virtq.transports.base import DriverTransport
from virtq.wire.evdev import EventType, code_of
from virtq.wire.input import (
    ANSWER_BYTES_MAX,
    ANSWER_OFFSET,
    DEVICE_ID,
    EVENT_BYTES,
    Event,
    InputDescription,
)

FEEDBACK_TIMEOUT_S = 10.0


class InputDriver(Driver):
    """Drives an input device: reads what it is, takes its events, lights its LEDs."""

    device_id = DEVICE_ID
    queue_size = 64

    def __init__(self, transport: DriverTransport, **settings: Any) -> None:
        """See `Driver`, which also tells what is raised; ConfigError besides, if the device tells
        nothing of what it is, or what makes no sense."""
        self._buffers: list[Buffer] = []
        self._events: deque[Event] = deque()
        self.malformed = 0
        """Buffers that came back with less than an event in them."""
        super().__init__(transport, **settings)

    # Initialization

    def plan(self) -> Mapping[int, QueueSpec]:
        """The device is asked what it is before its event queue is filled (5.8.5)."""
        try:
            self.description = InputDescription.ask(self._ask)
        except ValueError as error:
            raise ConfigError(f"the device does not make sense: {error}") from None
        size = self.queue_size
        return {0: QueueSpec("eventq", size), 1: QueueSpec("statusq", size)}

    def _ask(self, select: int, subsel: int) -> bytes:
        """One answer of the configuration space (5.8.4)."""
        self.transport.write_config(0, bytes([select, subsel]))
        answer = self.transport.read_config(0, ANSWER_OFFSET + ANSWER_BYTES_MAX)
        size = answer[2]
        if size > ANSWER_BYTES_MAX:
            raise ConfigError(f"an answer of {size} bytes, where {ANSWER_BYTES_MAX} have room")
        return answer[ANSWER_OFFSET : ANSWER_OFFSET + size]

    def populate(self, queue: DriverQueue) -> None:
        if queue.name != "eventq":
            return
        self._release()
        for _ in range(queue.size):
            self._buffers.append(self.arena.alloc(EVENT_BYTES))
            queue.add_buffers([], [self._buffers[-1]], self._buffers[-1])

    def went_live(self) -> None:
        self.queues["eventq"].kick()

    def was_reset(self) -> None:
        self._release()
        self._events.clear()

    def _release(self) -> None:
        while self._buffers:
            self.arena.free(self._buffers.pop())

    # Events. All raise PeerGone and RingFault.

    def events(self, max: int = 64, timeout_s: float | None = None) -> list[Event]:
        """Up to `max` events; waits for the first as long as `timeout_s` (None: for ever)."""
        self._await(lambda: bool(self._events), timeout_s)
        return [self._events.popleft() for _ in range(min(max, len(self._events)))]

    def sequence(self, timeout_s: float | None = None) -> list[Event]:
        """The next sequence: the events of one update of the device, without the SYN_REPORT that
        ends it. Nothing if none is complete in time."""
        if not self._await(lambda: any(event.is_report for event in self._events), timeout_s):
            return []
        sequence: list[Event] = []
        while not (event := self._events.popleft()).is_report:
            sequence.append(event)
        return sequence

    def _await(self, holds: Any, timeout_s: float | None) -> bool:
        queue = self.queues["eventq"]
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._collect(queue)
            if holds():
                return True
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not queue.wait(left):
                return False

    def _collect(self, queue: DriverQueue) -> None:
        """Take the events that came, and give the device their buffers again (5.8.6.1)."""
        came = queue.reap()
        for used in came:
            buffer: Buffer = used.cookie
            if used.written >= EVENT_BYTES:
                self._events.append(Event.parse(buffer.read()))
            else:
                self.malformed += 1
            queue.add_buffers([], [buffer], buffer)
        if came:
            queue.kick()

    # Feedback

    def send(self, event: Event, timeout_s: float = FEEDBACK_TIMEOUT_S) -> None:
        """Send the device feedback, and wait until it took it. Raises TimeoutError."""
        self.queues["statusq"].call(event.pack(), timeout_s=timeout_s)

    def set_led(self, led: str | int, on: bool) -> None:
        """Light an LED, or put it out. Raises RequestError if the device does not have it."""
        code = code_of(EventType.LED, led)
        if not self.description.has(EventType.LED, code):
            raise RequestError(f"{self.description.name!r} has no LED {led}")
        self.send(Event(EventType.LED, code, int(on)))
