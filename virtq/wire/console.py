"""The console device on the wire (VIRTIO 1.4, section 5.3): features, configuration, control
messages, and which virtqueue belongs to which port."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import NamedTuple

from virtq.wire.bits import unbounded_complement
from virtq.wire.layout import WRITABLE, u16, u32

DEVICE_ID = 3
CONTROL_BYTES = 8
PORTS_MAX = 128
"""The most ports of a device here: each has two of the 256 or so virtqueues that transports
carry."""


@unbounded_complement
class ConsoleFeature(IntFlag):
    """Feature bits of the console device (5.3.3)."""

    SIZE = 1 << 0
    MULTIPORT = 1 << 1
    EMERG_WRITE = 1 << 2


@dataclass
class ConsoleConfig:
    """The configuration space (5.3.4). The size is that of port 0, in characters."""

    cols: u16 = 0
    rows: u16 = 0
    max_nr_ports: u32 = 1
    emerg_wr: u32 = field(default=0, metadata=WRITABLE)


# Which feature makes a configuration field exist (5.3.4).
FIELD_FEATURE: dict[str, ConsoleFeature] = {
    "cols": ConsoleFeature.SIZE,
    "rows": ConsoleFeature.SIZE,
    "max_nr_ports": ConsoleFeature.MULTIPORT,
    "emerg_wr": ConsoleFeature.EMERG_WRITE,
}


# Virtqueues (5.3.2)

CONTROL_RECEIVE = 2
CONTROL_TRANSMIT = 3


def receive_queue(port: int) -> int:
    """The index of the virtqueue that brings a port its input."""
    return 0 if port == 0 else 2 * port + 2


def transmit_queue(port: int) -> int:
    """The index of the virtqueue that takes a port's output."""
    return receive_queue(port) + 1


def queue_names(ports: int) -> list[str]:
    """The names of all virtqueues of a device with `ports` ports, by index: two where there is one
    port and no MULTIPORT, which is what 0 stands for."""
    names = ["port0_receiveq", "port0_transmitq"]
    if ports:
        names += ["control_receiveq", "control_transmitq"]
    for port in range(1, ports):
        names += [f"port{port}_receiveq", f"port{port}_transmitq"]
    return names


# Control messages (5.3.6.2)


class Event(IntEnum):
    """What a control message is about."""

    DEVICE_READY = 0
    DEVICE_ADD = 1
    DEVICE_REMOVE = 2
    PORT_READY = 3
    CONSOLE_PORT = 4
    RESIZE = 5
    PORT_OPEN = 6
    PORT_NAME = 7


class Control(NamedTuple):
    """A control message: the port's number, what happens to it, and what comes behind the eight
    bytes of the structure (the name of PORT_NAME, the size of RESIZE)."""

    id: int
    event: int
    value: int = 0
    rest: bytes = b""

    @classmethod
    def parse(cls, data: bytes) -> Control:
        """Raises ValueError for less than 8 bytes."""
        if len(data) < CONTROL_BYTES:
            raise ValueError(f"a control message of {len(data)} bytes; it has {CONTROL_BYTES}")
        id, event, value = _CONTROL.unpack_from(data)
        return cls(id, event, value, data[CONTROL_BYTES:])

    def pack(self) -> bytes:
        return _CONTROL.pack(self.id, self.event, self.value) + self.rest

    def __str__(self) -> str:
        name = Event(self.event).name if self.event in set(Event) else f"event {self.event}"
        return f"{name} of port {self.id}, value {self.value}"


_CONTROL = struct.Struct("<IHH")


class Size(NamedTuple):
    """The size of a console in characters."""

    cols: int
    rows: int

    @classmethod
    def parse(cls, data: bytes) -> Size:
        """What comes behind RESIZE. Raises ValueError for less than 4 bytes."""
        if len(data) < _SIZE.size:
            raise ValueError(f"a console size of {len(data)} bytes; it has {_SIZE.size}")
        return cls(*_SIZE.unpack_from(data))

    def pack(self) -> bytes:
        return _SIZE.pack(self.cols, self.rows)


_SIZE = struct.Struct("<HH")
