"""The input device on the wire (VIRTIO 1.4, section 5.8): events, and how a device is described.

Its configuration space answers questions: the driver writes `select` and `subsel`, then reads how
many bytes the answer has (`size`, 0 for none) and the answer itself. `InputDescription` is what all
the answers come to; the device gives them with `answer`, the driver puts them together again with
`InputDescription.ask`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Annotated, Any, NamedTuple

from virtq.wire.evdev import (
    CODES,
    PROPERTIES,
    SYN_REPORT,
    EventType,
    code_name,
    code_of,
    property_of,
)
from virtq.wire.layout import WRITABLE, Bytes, u8

DEVICE_ID = 18
EVENT_BYTES = 8
ANSWER_BYTES_MAX = 128
SUBSEL_OFFSET = 1
ANSWER_OFFSET = 8
CODE_MAX = ANSWER_BYTES_MAX * 8 - 1
SUBSEL_MAX = 0xFF

_EVENT = struct.Struct("<HHi")
_ABS_INFO = struct.Struct("<5i")
_DEV_IDS = struct.Struct("<4H")


class Select(IntEnum):
    """What the driver asks for (5.8.4)."""

    UNSET = 0x00
    ID_NAME = 0x01
    ID_SERIAL = 0x02
    ID_DEVIDS = 0x03
    PROP_BITS = 0x10
    EV_BITS = 0x11
    ABS_INFO = 0x12


@dataclass
class InputConfig:
    """The configuration space (5.8.4); of `answer` the first `size` bytes count."""

    select: u8 = field(default=0, metadata=WRITABLE)
    subsel: u8 = field(default=0, metadata=WRITABLE)
    size: u8 = 0
    reserved: Annotated[bytes, Bytes(5)] = bytes(5)
    answer: Annotated[bytes, Bytes(ANSWER_BYTES_MAX)] = bytes(ANSWER_BYTES_MAX)


class Event(NamedTuple):
    """One event (5.8.6). `value` is signed, as evdev has it."""

    type: int
    code: int
    value: int

    @classmethod
    def parse(cls, data: bytes) -> Event:
        """From the first 8 bytes. Raises ValueError if there are fewer."""
        if len(data) < EVENT_BYTES:
            raise ValueError(f"an event has {EVENT_BYTES} bytes, not {len(data)}")
        return cls(*_EVENT.unpack_from(data))

    def pack(self) -> bytes:
        """Raises ValueError for numbers that do not fit."""
        try:
            return _EVENT.pack(*self)
        except struct.error:
            raise ValueError(f"{tuple(self)} is not an event: the numbers do not fit") from None

    @property
    def is_report(self) -> bool:
        """Whether it ends a sequence: the events since the last one belong together."""
        return self.type == EventType.SYN and self.code == SYN_REPORT

    def __str__(self) -> str:
        return f"{code_name(self.type, self.code)} {self.value}"


REPORT = Event(EventType.SYN, SYN_REPORT, 0)


class AbsInfo(NamedTuple):
    """An absolute axis: its range, the noise and the dead zone to ignore, units per millimetre."""

    min: int
    max: int
    fuzz: int = 0
    flat: int = 0
    res: int = 0

    @classmethod
    def parse(cls, data: bytes) -> AbsInfo:
        """From an answer; what is missing of it is zero."""
        return cls(*_ABS_INFO.unpack(data[: _ABS_INFO.size].ljust(_ABS_INFO.size, b"\0")))

    def pack(self) -> bytes:
        return _ABS_INFO.pack(*self)


class DevIds(NamedTuple):
    """What a device says it is. Bus type 6 is evdev's BUS_VIRTUAL."""

    bustype: int = 6
    vendor: int = 0
    product: int = 0
    version: int = 0

    @classmethod
    def parse(cls, data: bytes) -> DevIds:
        """From an answer; what is missing of it is zero."""
        return cls(*_DEV_IDS.unpack(data[: _DEV_IDS.size].ljust(_DEV_IDS.size, b"\0")))

    def pack(self) -> bytes:
        return _DEV_IDS.pack(*self)


ANONYMOUS = DevIds()


def bitmap(numbers: Iterable[int]) -> bytes:
    """The answer in which these bits are set, no longer than it must be."""
    bits = 0
    for number in numbers:
        bits |= 1 << number
    return bits.to_bytes(-(-bits.bit_length() // 8), "little")


def numbers_in(answer: bytes) -> tuple[int, ...]:
    """The bits that are set in a bitmap."""
    bits = int.from_bytes(answer, "little")
    return tuple(number for number in range(bits.bit_length()) if bits >> number & 1)


@dataclass(frozen=True)
class InputDescription:
    """An input device: who it is, and which events it sends and takes.

    `events` has the codes of each event type, `axes` the range of each code of type ABS,
    `properties` evdev's INPUT_PROP_*. Codes and properties are given by number or name (`KEY_A`);
    once it is made, they are numbers.

    Raises ValueError for what the configuration space cannot express."""

    name: str
    serial: str = ""
    ids: DevIds = ANONYMOUS
    properties: tuple[int | str, ...] = ()
    events: Mapping[Any, Sequence[int | str]] = field(default_factory=dict)
    axes: Mapping[Any, AbsInfo] = field(default_factory=dict)

    def __post_init__(self) -> None:
        put = object.__setattr__  # numbers instead of names, once and for all
        events = {
            int(kind): tuple(sorted({code_of(kind, code) for code in codes}))
            for kind, codes in sorted(self.events.items())
        }
        axes = {code_of(EventType.ABS, code): AbsInfo(*info) for code, info in self.axes.items()}
        put(self, "properties", tuple(sorted({property_of(p) for p in self.properties})))
        put(self, "events", events)
        put(self, "axes", dict(sorted(axes.items())))
        self._check(events, axes)

    def _check(self, events: Mapping[int, tuple[int, ...]], axes: Mapping[int, AbsInfo]) -> None:
        for what, text in (("name", self.name), ("serial", self.serial)):
            if len(text.encode()) > ANSWER_BYTES_MAX:
                raise ValueError(f"the {what} {text!r} has more than {ANSWER_BYTES_MAX} bytes")
        for kind, codes in events.items():
            if not 0 < kind <= SUBSEL_MAX:
                raise ValueError(f"event type {kind} cannot be described")
            if strange := [code for code in codes if not 0 <= code <= CODE_MAX]:
                raise ValueError(f"event code {strange[0]} is not 0 to {CODE_MAX}")
        for number in map(int, self.properties):
            if not 0 <= number <= CODE_MAX:
                raise ValueError(f"input property {number} is not 0 to {CODE_MAX}")
        if odd := set(axes) ^ set(events.get(EventType.ABS, ())):
            axis = code_name(EventType.ABS, min(odd))
            raise ValueError(f"{axis}: an absolute axis needs its range, and a range its axis")
        for code, info in axes.items():
            if not 0 <= code <= SUBSEL_MAX:
                raise ValueError(f"absolute axis {code} is not 0 to {SUBSEL_MAX}")
            if info.min > info.max:
                raise ValueError(f"{code_name(EventType.ABS, code)} goes from {info.min} down")
        packed: list[DevIds | AbsInfo] = [self.ids, *axes.values()]
        for numbers in packed:
            try:
                numbers.pack()
            except struct.error:
                raise ValueError(f"{numbers}: the numbers do not fit") from None

    def has(self, kind: int, code: int) -> bool:
        """Whether the device sends or takes such events. SYN always."""
        return kind == EventType.SYN or code in self.events.get(kind, ())

    # Both ways over the wire

    def answer(self, select: int, subsel: int) -> bytes:
        """What the configuration space answers; nothing where there is no answer (5.8.5.2)."""
        if select == Select.EV_BITS:
            return bitmap(int(code) for code in self.events.get(subsel, ()))
        if select == Select.ABS_INFO:
            info = self.axes.get(subsel)
            return b"" if info is None else info.pack()
        if subsel:
            return b""
        if select == Select.ID_NAME:
            return self.name.encode()
        if select == Select.ID_SERIAL:
            return self.serial.encode()
        if select == Select.ID_DEVIDS:
            return self.ids.pack()
        if select == Select.PROP_BITS:
            return bitmap(int(number) for number in self.properties)
        return b""

    @classmethod
    def ask(cls, question: Callable[[int, int], bytes]) -> InputDescription:
        """From a device's answers: `question` takes `select` and `subsel`. Raises ValueError for
        answers that do not fit together."""
        events = {}
        for kind in EventType:
            if kind != EventType.SYN and (answer := question(Select.EV_BITS, kind)):
                most = SUBSEL_MAX if kind == EventType.ABS else CODE_MAX
                events[int(kind)] = tuple(code for code in numbers_in(answer) if code <= most)
        axes = {
            code: AbsInfo.parse(question(Select.ABS_INFO, code))
            for code in events.get(EventType.ABS, ())
        }
        return cls(
            name=question(Select.ID_NAME, 0).decode(errors="ignore"),
            serial=question(Select.ID_SERIAL, 0).decode(errors="ignore"),
            ids=DevIds.parse(question(Select.ID_DEVIDS, 0)),
            properties=numbers_in(question(Select.PROP_BITS, 0)),
            events=events,
            axes=axes,
        )

    # The common ones

    @classmethod
    def keyboard(cls, name: str = "virtq keyboard", serial: str = "") -> InputDescription:
        """All keys that have a name here, three LEDs, and autorepeat by the driver."""
        keys = tuple(key for key in CODES[EventType.KEY] if key.startswith("KEY_"))
        leds = ("LED_NUML", "LED_CAPSL", "LED_SCROLLL")
        events = {
            EventType.KEY: keys,
            EventType.LED: leds,
            EventType.REP: ("REP_DELAY", "REP_PERIOD"),
        }
        return cls(name, serial, DevIds(product=1, version=1), events=events)

    @classmethod
    def mouse(cls, name: str = "virtq mouse", serial: str = "") -> InputDescription:
        """Five buttons, two axes, a wheel in both directions."""
        buttons = ("BTN_LEFT", "BTN_RIGHT", "BTN_MIDDLE", "BTN_SIDE", "BTN_EXTRA")
        axes = ("REL_X", "REL_Y", "REL_WHEEL", "REL_HWHEEL")
        events = {EventType.KEY: buttons, EventType.REL: axes}
        return cls(name, serial, DevIds(product=2, version=1), ("INPUT_PROP_POINTER",), events)

    @classmethod
    def tablet(
        cls,
        name: str = "virtq tablet",
        serial: str = "",
        *,
        width: int = 32768,
        height: int = 32768,
    ) -> InputDescription:
        """A pointer at an absolute place, with three buttons and a wheel. Positions are 0 to
        `width` - 1 and `height` - 1."""
        events = {
            EventType.KEY: ("BTN_LEFT", "BTN_RIGHT", "BTN_MIDDLE", "BTN_TOUCH"),
            EventType.REL: ("REL_WHEEL",),
            EventType.ABS: ("ABS_X", "ABS_Y"),
        }
        axes = {"ABS_X": AbsInfo(0, width - 1), "ABS_Y": AbsInfo(0, height - 1)}
        ids, properties = DevIds(product=3, version=1), ("INPUT_PROP_POINTER",)
        return cls(name, serial, ids, properties, events, axes)


__all__ = [
    "DEVICE_ID",
    "PROPERTIES",
    "REPORT",
    "AbsInfo",
    "DevIds",
    "Event",
    "EventType",
    "InputConfig",
    "InputDescription",
    "Select",
    "bitmap",
    "numbers_in",
]
