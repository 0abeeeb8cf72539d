"""Capture files of Ethernet packets in the classic pcap format (draft-ietf-opsawg-pcap).

Reads both byte orders and both resolutions, micro- and nanoseconds; writes little-endian
nanoseconds.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

LINKTYPE_ETHERNET = 1
SNAP_BYTES = 262144

_MAGIC = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}
_NANOSECONDS_LITTLE = b"\x4d\x3c\xb2\xa1"


class Captured(NamedTuple):
    """A packet and when it was captured, in nanoseconds since 1970."""

    time_ns: int
    data: bytes


def read(file: BinaryIO) -> Iterator[Captured]:
    """The packets of an open capture file; one that was cut short ends with its last whole packet.

    Raises ValueError if it is no pcap file of Ethernet packets.
    """
    header = file.read(24)
    if len(header) < 24 or header[:4] not in _MAGIC:
        raise ValueError("not a pcap file")
    order, unit_ns = _MAGIC[header[:4]]
    link_type = struct.unpack(order + "I", header[20:])[0] & 0xFFFF
    if link_type != LINKTYPE_ETHERNET:
        raise ValueError(f"a pcap file of link type {link_type}, not of Ethernet packets")
    record = struct.Struct(order + "IIII")
    while len(head := file.read(record.size)) == record.size:
        seconds, fraction, captured, _original = record.unpack(head)
        if captured > SNAP_BYTES:
            raise ValueError(f"a pcap record of {captured} bytes")
        data = file.read(captured)
        if len(data) < captured:
            return
        yield Captured(seconds * 1_000_000_000 + fraction * unit_ns, data)


class Writer:
    """Writes a capture file to an open binary file, which stays the caller's."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        fixed = struct.pack("<HHIIII", 2, 4, 0, 0, SNAP_BYTES, LINKTYPE_ETHERNET)
        file.write(_NANOSECONDS_LITTLE + fixed)

    def write(self, data: bytes, time_ns: int | None = None) -> None:
        """Append a packet, captured now unless told when."""
        when = time.time_ns() if time_ns is None else time_ns
        seconds, fraction = divmod(when, 1_000_000_000)
        self._file.write(struct.pack("<IIII", seconds, fraction, len(data), len(data)))
        self._file.write(data)
