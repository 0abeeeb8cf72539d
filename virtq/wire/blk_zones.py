"""Zoned block devices on the wire (VIRTIO 1.4, section 5.2.6): requests, statuses, reports."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

REPORT_HEADER_BYTES = 64
DESCRIPTOR_BYTES = 64
APPEND_SECTOR_BYTES = 8


class Model(IntEnum):
    """The `model` of a device that offers ZONED."""

    NONE = 0
    HOST_MANAGED = 1
    HOST_AWARE = 2


class ZoneRequest(IntEnum):
    """Request types that exist with ZONED only."""

    APPEND = 15
    REPORT = 16
    OPEN = 18
    CLOSE = 20
    FINISH = 22
    RESET = 24
    RESET_ALL = 26


class ZoneStatus(IntEnum):
    """Statuses beside those of every block device."""

    INVALID_CMD = 3
    UNALIGNED_WP = 4
    OPEN_RESOURCE = 5
    ACTIVE_RESOURCE = 6


class ZoneType(IntEnum):
    CONVENTIONAL = 1
    SEQUENTIAL_REQUIRED = 2
    SEQUENTIAL_PREFERRED = 3


class ZoneState(IntEnum):
    NOT_WP = 0
    EMPTY = 1
    IMPLICITLY_OPEN = 2
    EXPLICITLY_OPEN = 3
    CLOSED = 4
    READ_ONLY = 13
    FULL = 14
    OFFLINE = 15


OPEN = (ZoneState.IMPLICITLY_OPEN, ZoneState.EXPLICITLY_OPEN)
"""States that take an open resource."""
ACTIVE = (*OPEN, ZoneState.CLOSED)
"""States that take an active resource."""


class Zone(NamedTuple):
    """A descriptor of a zone report. `capacity`, `start`, `write_pointer`: sectors of 512 bytes."""

    capacity: int
    start: int
    write_pointer: int
    type: int
    state: int

    def pack(self) -> bytes:
        return _ZONE.pack(*self)


_ZONE = struct.Struct("<QQQBB38x")


def pack_report(zones: list[Zone]) -> bytes:
    head = len(zones).to_bytes(8, "little").ljust(REPORT_HEADER_BYTES, b"\0")
    return head + b"".join(zone.pack() for zone in zones)


def parse_report(data: bytes) -> list[Zone]:
    """The zones that a report says it holds. Raises ValueError if it holds fewer."""
    count = int.from_bytes(data[:8], "little")
    end = REPORT_HEADER_BYTES + count * DESCRIPTOR_BYTES
    if len(data) < REPORT_HEADER_BYTES or end > len(data):
        raise ValueError(f"{count} zones in a report of {len(data)} bytes")
    return [Zone(*values) for values in _ZONE.iter_unpack(data[REPORT_HEADER_BYTES:end])]
