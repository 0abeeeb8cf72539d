"""The GPIO device on the wire (VIRTIO 1.4, section 5.18): features, configuration, messages."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Annotated, NamedTuple

from virtq.wire.bits import unbounded_complement
from virtq.wire.layout import Bytes, u16, u32

DEVICE_ID = 41
REQUEST_BYTES = 8
RESPONSE_BYTES = 2
IRQ_REQUEST_BYTES = 2
IRQ_RESPONSE_BYTES = 1
LINES_MAX = 0xFFFF
NAME_BYTES_MAX = 1 << 20
"""The largest block of names that either twin handles."""

_REQUEST = struct.Struct("<HHI")


@unbounded_complement
class GpioFeature(IntFlag):
    """Feature bits of the GPIO device (5.18.3)."""

    IRQ = 1 << 0


@dataclass
class GpioConfig:
    """The configuration space (5.18.4)."""

    ngpio: u16 = 0
    padding: Annotated[bytes, Bytes(2)] = bytes(2)
    gpio_names_size: u32 = 0


class Message(IntEnum):
    """Types of messages (5.18.6)."""

    GET_LINE_NAMES = 1
    GET_DIRECTION = 2
    SET_DIRECTION = 3
    GET_VALUE = 4
    SET_VALUE = 5
    SET_IRQ_TYPE = 6


class Direction(IntEnum):
    """What a line is used as; NONE: it is not in use (5.18.6)."""

    NONE = 0
    OUT = 1
    IN = 2


class IrqType(IntEnum):
    """What makes a line interrupt (5.18.6)."""

    NONE = 0
    EDGE_RISING = 1
    EDGE_FALLING = 2
    EDGE_BOTH = 3
    LEVEL_HIGH = 4
    LEVEL_LOW = 8

    def edge(self, before: int, after: int) -> bool:
        """Whether a change from one level to another is what it waits for."""
        if before == after:
            return False
        return bool(self & (IrqType.EDGE_RISING if after else IrqType.EDGE_FALLING))

    def level(self, value: int) -> bool:
        """Whether this level is what it waits for."""
        return self is (IrqType.LEVEL_HIGH if value else IrqType.LEVEL_LOW)


class Status(IntEnum):
    """The first byte of a response (5.18.6)."""

    OK = 0
    ERR = 1


class IrqStatus(IntEnum):
    """What a buffer of the event queue comes back with (5.18.7)."""

    INVALID = 0
    VALID = 1


class Request(NamedTuple):
    """A message to the device (5.18.6)."""

    type: int
    gpio: int = 0
    value: int = 0

    @classmethod
    def parse(cls, data: bytes) -> Request:
        """From exactly 8 bytes."""
        return cls(*_REQUEST.unpack(data))

    def pack(self) -> bytes:
        return _REQUEST.pack(*self)


def message_name(kind: int) -> str:
    """A message type for people."""
    return Message(kind).name if kind in set(Message) else f"message {kind}"


def pack_names(names: Sequence[str]) -> bytes:
    """The block of names, one for each line; nothing at all if no line has one (5.18.6.1). Raises
    ValueError for names that are not distinct ASCII, or have a zero in them."""
    given = [name for name in names if name]
    for name in given:
        if not name.isascii() or "\0" in name:
            raise ValueError(f"the line name {name!r} is not ASCII without zeroes")
    if len(set(given)) < len(given):
        twice = next(name for name in given if given.count(name) > 1)
        raise ValueError(f"two lines are called {twice!r}")
    block = b"".join(name.encode() + b"\0" for name in names) if given else b""
    if len(block) > NAME_BYTES_MAX:
        raise ValueError(f"the names take {len(block)} bytes; the most is {NAME_BYTES_MAX}")
    return block


def parse_names(block: bytes, count: int) -> tuple[str, ...]:
    """The names of `count` lines; lines that the block has no name for have none."""
    names = [part.decode("ascii", "replace") for part in block.split(b"\0")[:count]]
    return tuple(names + [""] * (count - len(names)))
