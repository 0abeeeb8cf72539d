"""The input device (VIRTIO 1.4, section 5.8): keyboards, mice, tablets.

    keyboard = InputDevice(InputDescription.keyboard())
    keyboard.tap("KEY_A")

    tablet = InputDevice(InputDescription.tablet())
    tablet.event("ABS_X", 100)
    tablet.event("ABS_Y", 200)
    tablet.sync()

Events that belong together become one sequence at `sync`, which the driver gets whole or, if it has
let too many wait, not at all (5.8.6.2). Events can be sent from any thread; without a driver they
are lost, as with any keyboard.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

from virtq._core import Request
from virtq.device import Device, QueueSpec
from virtq.errors import ConfigError, DeviceReset
from virtq.features import Change
from virtq.handlers import handles
from virtq.wire.evdev import EventType, code_name, code_of, parse_code
from virtq.wire.input import (
    DEVICE_ID,
    EVENT_BYTES,
    REPORT,
    Event,
    InputConfig,
    InputDescription,
)

log = logging.getLogger("virtq.device")

BACKLOG_EVENTS = 1024
"""How many events may wait for a driver that is slow to supply buffers."""

_SENT = (EventType.KEY, EventType.REL, EventType.ABS, EventType.MSC, EventType.SW, EventType.SYN)


class InputDevice(Device):
    """An input device, described by an `InputDescription`."""

    device_id = DEVICE_ID
    config = InputConfig()

    def __init__(
        self,
        description: InputDescription,
        *,
        queue_size: int = 64,
        backlog_events: int = BACKLOG_EVENTS,
        offer: Change | str = "",
    ) -> None:
        """`backlog_events`: how many events may wait for buffers of the driver before sequences are
        dropped."""
        self.description = description
        self.offer = offer
        self.queues = (
            QueueSpec("eventq", queue_size, fills=True),
            QueueSpec("statusq", queue_size),
        )
        self.leds: set[int] = set()
        """The LEDs that the driver has lit, by code."""
        self.dropped = 0
        """Sequences that no driver got."""
        self._backlog_events = backlog_events
        self._lock = threading.Lock()
        # Guarded by the lock: the sequence that is not ended yet, and those that wait.
        self._open: list[Event] = []
        self._outbox: deque[list[Event]] = deque()
        self._outbox_events = 0
        self._sender: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._complained: set[str] = set()

    # What an author overrides

    def status(self, event: Event) -> None:
        """The driver sends feedback: an LED, a sound, a rate of repetition. LEDs are kept in
        `leds` before this is called."""

    # What an author calls, from any thread

    def event(self, code: str | int, value: int, *, type: int = EventType.KEY) -> None:
        """Add an event to the sequence that `sync` ends. `code` is a name, or a number of event
        type `type`. Raises ValueError for an event that the description does not have, and for
        a value beyond 32 bits."""
        self.send(self.checked(code, value, type=type))

    def checked(self, code: str | int, value: int, *, type: int = EventType.KEY) -> Event:
        """The event that `event` would add. Raises ValueError as it does."""
        kind, number = parse_code(code) if isinstance(code, str) else (type, code)
        made = Event(kind, number, value)
        made.pack()
        if kind not in _SENT or not self.description.has(kind, number):
            name = code_name(kind, number)
            raise ValueError(f"{name} is not among the events that {self.description.name!r} sends")
        return made

    def send(self, event: Event) -> None:
        """The same without a look at the description. A SYN_REPORT ends the sequence."""
        with self._lock:
            if event.is_report:
                self._end_sequence()
            else:
                self._add(event)

    def sync(self) -> None:
        """End the sequence: what was added since the last time is one update of the device."""
        self.update()

    def update(self, *events: Event) -> None:
        """Add events, and end the sequence, in one go: no other thread gets in between."""
        with self._lock:
            for event in events:
                self._add(event)
            self._end_sequence()

    def _add(self, event: Event) -> None:
        if len(self._open) <= self._backlog_events:  # one too many, and all of it is dropped
            self._open.append(event)

    def drop_open(self) -> None:
        """Forget the sequence that is not ended yet."""
        with self._lock:
            self._open = []

    def press(self, key: str | int) -> None:
        """A key or button goes down."""
        self._key(key, 1)

    def release(self, key: str | int) -> None:
        """A key or button goes up."""
        self._key(key, 0)

    def tap(self, key: str | int) -> None:
        """Down and up."""
        self.press(key)
        self.release(key)

    def move(self, dx: int = 0, dy: int = 0, *, wheel: int = 0) -> None:
        """Relative motion, and notches of the wheel."""
        axes = (("REL_X", dx), ("REL_Y", dy), ("REL_WHEEL", wheel))
        self.update(*(self.checked(axis, value) for axis, value in axes if value))

    def move_to(self, x: int, y: int) -> None:
        """To an absolute place."""
        self.update(self.checked("ABS_X", x), self.checked("ABS_Y", y))

    def _key(self, key: str | int, value: int) -> None:
        self.update(self.checked(code_of(EventType.KEY, key), value))

    def _end_sequence(self) -> None:
        sequence, self._open = self._open, []
        if not sequence:
            return
        sequence.append(REPORT)
        room = self._backlog_events - self._outbox_events
        if self._sender is None or len(sequence) > room:
            self.dropped += 1
            return
        self._outbox.append(sequence)
        self._outbox_events += len(sequence)
        loop, more = self._sender
        if not loop.is_closed():
            loop.call_soon_threadsafe(more.set)

    # Sending

    async def started(self) -> None:
        """Send sequences as the driver supplies buffers, until it resets the device."""
        more = asyncio.Event()
        with self._lock:
            self._sender = asyncio.get_running_loop(), more
        try:
            while True:
                more.clear()
                for sequence in self._waiting():
                    await self._put(sequence)
                await more.wait()
        except DeviceReset:
            pass
        finally:
            with self._lock:
                self._sender = None
                self._outbox.clear()
                self._outbox_events = 0

    def _waiting(self) -> Iterator[list[Event]]:
        while True:
            with self._lock:
                if not self._outbox:
                    return
                sequence = self._outbox[0]
            yield sequence
            with self._lock:
                if self._outbox and self._outbox[0] is sequence:
                    self._outbox.popleft()
                    self._outbox_events -= len(sequence)

    async def _put(self, sequence: list[Event]) -> None:
        """A sequence, with as few notifications as the driver's buffers allow."""
        supply = self.supplies["eventq"]
        items = [event.pack() for event in sequence]
        try:
            while items:
                count = max(1, min(len(items), supply.free))
                await supply.put(*items[:count])
                del items[:count]
        except ValueError as error:
            self._complain("eventq", f"{error}; a sequence of events is dropped (5.8.6.1)")
            with self._lock:
                self.dropped += 1

    def _complain(self, queue: str, what: str) -> None:
        if queue not in self._complained:
            self._complained.add(queue)
            log.warning("queue %s: %s (logged once)", queue, what)

    # What the driver says

    @handles("statusq")
    def feedback(self, request: Request) -> int:
        """One event from the driver (5.8.6); a buffer that is too short for one is ignored."""
        try:
            event = Event.parse(request.read(EVENT_BYTES))
        except ValueError as error:
            self._complain("statusq", f"{error} (5.8.6.1)")
            return 0
        if event.type == EventType.LED:
            (self.leds.add if event.value else self.leds.discard)(event.code)
        self.status(event)
        return 0

    def fail(self, request: Request, error: Exception) -> int:
        """There is no status to fail with: a hook that raises costs nothing but its event."""
        return 0

    def write_config(self, offset: int, data: bytes) -> None:
        """The question: `select` and `subsel`, or a longer piece of the configuration space that
        begins with them, for front-ends pass on all of it when a guest writes a byte. What comes
        behind them is not the driver's to change (5.8.5.1), and stays as it is."""
        self._check_config_range(offset, len(data))
        if offset > 1:
            raise ConfigError(f"configuration byte {offset} is not writable: select and subsel are")
        super().write_config(offset, data[: 2 - offset])
        config: Any = self.config
        answer = self.description.answer(config.select, config.subsel)
        config.size = len(answer)
        config.answer = answer.ljust(len(config.answer), b"\0")

    def was_reset(self) -> None:
        """A new driver asks anew, and lights its own LEDs."""
        self.config = InputConfig()
        self.leds.clear()
        self._complained.clear()
