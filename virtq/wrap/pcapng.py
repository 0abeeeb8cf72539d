"""The file format of captured packets: pcapng (draft-ietf-opsawg-pcapng), as much as a writer of
one interface needs. All blocks are little-endian and padded to 4 bytes."""

from __future__ import annotations

import contextlib
import struct
import time
from typing import TYPE_CHECKING, BinaryIO, Literal

if TYPE_CHECKING:
    from _typeshed import StrPath

LINKTYPE_ETHERNET = 1
LINKTYPE_VSOCK = 271

SECTION_HEADER = 0x0A0D0D0A
BYTE_ORDER_MAGIC = 0x1A2B3C4D
INTERFACE_DESCRIPTION = 1
ENHANCED_PACKET = 6
OPTION_END = 0
OPTION_USER_APPLICATION = 4  # of the section header
OPTION_NAME = 2  # of an interface
OPTION_TIME_RESOLUTION = 9  # of an interface
OPTION_FLAGS = 2  # of a packet
NANOSECONDS = 9
DIRECTION = {"in": 1, "out": 2}


class PcapngWriter:
    """Writes packets into a new file."""

    def __init__(self, path: StrPath, link_type: int, interface: str) -> None:
        """Raises OSError."""
        self._file: BinaryIO | None = open(path, "wb")  # noqa: SIM115
        magic = struct.pack("<IHHq", BYTE_ORDER_MAGIC, 1, 0, -1)
        self._block(SECTION_HEADER, magic + _options((OPTION_USER_APPLICATION, b"virtq")))
        options = _options(
            (OPTION_NAME, interface.encode()), (OPTION_TIME_RESOLUTION, bytes([NANOSECONDS]))
        )
        self._block(INTERFACE_DESCRIPTION, struct.pack("<HHI", link_type, 0, 0) + options)

    def write(self, packet: bytes, direction: Literal["in", "out"]) -> None:
        """A packet that was seen now, on its way to the driver (in) or from it (out). Raises
        OSError."""
        now = time.time_ns()
        head = struct.pack("<IIIII", 0, now >> 32, now & 0xFFFFFFFF, len(packet), len(packet))
        flags = struct.pack("<I", DIRECTION[direction])
        self._block(ENHANCED_PACKET, head + _padded(packet) + _options((OPTION_FLAGS, flags)))

    def _block(self, kind: int, body: bytes) -> None:
        length = len(body) + 12
        if self._file is not None:
            self._file.write(struct.pack("<II", kind, length) + body + struct.pack("<I", length))

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """What was not flushed may be lost. Harmless when done twice."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _options(*options: tuple[int, bytes]) -> bytes:
    packed = [struct.pack("<HH", code, len(value)) + _padded(value) for code, value in options]
    return b"".join(packed) + struct.pack("<HH", OPTION_END, 0)
