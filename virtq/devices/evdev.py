"""An input device of the host, passed on to a driver: Linux's evdev (VIRTIO 1.4, section 5.8).

virtq.serve(EvdevDevice("/dev/input/event3", grab=True), "vhost-user:/run/input.sock")
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import struct
from collections.abc import Callable

from virtq.devices.input import InputDevice
from virtq.features import Change
from virtq.wire.evdev import CODES, EventType
from virtq.wire.input import (
    ANSWER_BYTES_MAX,
    CODE_MAX,
    SUBSEL_MAX,
    AbsInfo,
    DevIds,
    Event,
    InputDescription,
    numbers_in,
)

log = logging.getLogger("virtq.device")

# An ioctl request that reads: direction, length of the answer, the group 'E', the number.
_READS, _WRITES, _GROUP = 2, 1, ord("E")
_GET_ID, _GET_NAME, _GET_UNIQUE, _GET_PROPERTIES = 0x02, 0x06, 0x08, 0x09
_GET_BITS, _GET_ABS, _GRAB = 0x20, 0x40, 0x90

# The types of events whose codes Linux tells. Which codes autorepeat has goes without saying.
_DESCRIBED = (
    *(EventType.KEY, EventType.REL, EventType.ABS, EventType.MSC, EventType.SW),
    *(EventType.LED, EventType.SND),
)
_REPEAT_CODES = tuple(CODES[EventType.REP].values())

_ABS = struct.Struct("=6i")  # the current value comes first
_IDS = struct.Struct("=4H")
_EVENT = struct.Struct("@llHHi")  # the time of day comes first
_EVENTS_AT_ONCE = 64
SYN_DROPPED = 3

Ask = Callable[[int, int], bytes]
"""Asks an evdev device: takes the number of the question and the most bytes of the answer."""


def request_number(number: int, size: int, direction: int = _READS) -> int:
    """The ioctl request of evdev's question `number` with an answer of up to `size` bytes."""
    return direction << 30 | size << 16 | _GROUP << 8 | number


def describe(ask: Ask) -> InputDescription:
    """What an evdev device is, from its answers. Event types and codes beyond what virtio can
    describe are left out."""
    size = ANSWER_BYTES_MAX
    events = {}
    for kind in numbers_in(ask(_GET_BITS, size)):
        if kind == EventType.REP:
            codes: tuple[int, ...] = _REPEAT_CODES
        elif kind in _DESCRIBED:
            most = SUBSEL_MAX if kind == EventType.ABS else CODE_MAX
            codes = tuple(c for c in numbers_in(ask(_GET_BITS + kind, size)) if c <= most)
        else:
            continue
        if codes:
            events[kind] = codes
    axes = {}
    for code in events.get(EventType.ABS, ()):
        _value, *info = _ABS.unpack(ask(_GET_ABS + code, _ABS.size))
        axes[code] = AbsInfo(*info)
    return InputDescription(
        name=_text(ask(_GET_NAME, size)),
        serial=_text(ask(_GET_UNIQUE, size)),
        ids=DevIds(*_IDS.unpack(ask(_GET_ID, _IDS.size))),
        properties=numbers_in(ask(_GET_PROPERTIES, size)),
        events=events,
        axes=axes,
    )


def _text(answer: bytes) -> str:
    return answer.partition(b"\0")[0].decode(errors="ignore")


class EvdevDevice(InputDevice):
    """What happens on an evdev device of the host, happens on this one. LEDs and sounds go the
    other way."""

    def __init__(
        self, path: str | os.PathLike[str], *, grab: bool = False, offer: Change | str = ""
    ) -> None:
        """`grab`: nobody else on the host gets its events meanwhile. Raises OSError for what cannot
        be opened or is no evdev device."""
        self.path = os.fspath(path)
        self._fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._skipping = False
        try:
            super().__init__(describe(self._ask), offer=offer)
            if grab:
                fcntl.ioctl(self._fd, request_number(_GRAB, 4, _WRITES), 1)
        except OSError as error:
            os.close(self._fd)
            raise OSError(error.errno, f"no evdev device: {error.strerror}", self.path) from None
        except BaseException:
            os.close(self._fd)
            raise

    def _ask(self, number: int, size: int) -> bytes:
        answer = bytearray(size)
        try:
            fcntl.ioctl(self._fd, request_number(number, size), answer)
        except FileNotFoundError:  # a device without a serial number
            return b""
        return bytes(answer)

    async def started(self) -> None:
        """Pass events on while there is a driver; what came before it is forgotten."""
        loop = asyncio.get_running_loop()
        self._skipping = False
        while self._read():
            pass
        loop.add_reader(self._fd, self._pass_on)
        try:
            await super().started()
        finally:
            loop.remove_reader(self._fd)

    def _pass_on(self) -> None:
        try:
            events = self._read()
        except OSError as error:
            log.error("%s: %s; there are no more events from it", self.path, error.strerror)
            asyncio.get_running_loop().remove_reader(self._fd)
            return
        for event in events:
            if event.type == EventType.SYN and event.code == SYN_DROPPED:
                self._skipping = True  # of this sequence the kernel has lost a part
            elif not self._skipping:
                self.send(event)
            elif event.is_report:
                self._skipping = False
                self.drop_open()

    def _read(self) -> list[Event]:
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._fd, _EVENTS_AT_ONCE * _EVENT.size)
            return [Event(*numbers[2:]) for numbers in _EVENT.iter_unpack(data)]
        return []

    def status(self, event: Event) -> None:
        """The host's device shows it."""
        os.write(self._fd, _EVENT.pack(0, 0, *event))

    def close(self) -> None:
        """Let the device go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
