"""The I2C adapter on the wire (VIRTIO 1.4, section 5.16): features, requests, addresses."""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import NamedTuple

from virtq.wire.bits import unbounded_complement

DEVICE_ID = 34
HEADER_BYTES = 8
STATUS_BYTES = 1
MESSAGE_BYTES_MAX = 0xFFFF
"""The longest message that either twin handles, as with Linux's i2c_msg."""
ADDRESS_7_BIT_MAX = 0x7F
ADDRESS_MAX = 0x3FF

_HEADER = struct.Struct("<HHI")
_TEN_BIT_MASK, _TEN_BIT_MARK = 0x00F9, 0x00F0


@unbounded_complement
class I2cFeature(IntFlag):
    """Feature bits of the I2C adapter (5.16.3)."""

    ZERO_LENGTH_REQUEST = 1 << 0


@unbounded_complement
class Flags(IntFlag):
    """Flags of a request (5.16.6.1)."""

    FAIL_NEXT = 1 << 0
    """The next request belongs to the same transaction, and fails if this one does."""
    M_RD = 1 << 1
    """The driver reads; without it, it writes."""


class Status(IntEnum):
    """The last byte of a request, written by the device (5.16.6.1)."""

    OK = 0
    ERR = 1


UNWRITTEN_STATUS = 0xFF
"""What our driver leaves in the status byte, to notice a device that forgets it."""


class Header(NamedTuple):
    """The device-readable first 8 bytes of a request. `addr` is as it is on the wire."""

    addr: int
    flags: int
    padding: int = 0

    @classmethod
    def parse(cls, data: bytes) -> Header:
        """From exactly 8 bytes."""
        addr, padding, flags = _HEADER.unpack(data)
        return cls(addr, flags, padding)

    def pack(self) -> bytes:
        return _HEADER.pack(self.addr, self.padding, self.flags)


def encode_address(address: int) -> int:
    """The `addr` field of a request: up to 0x7f in the form of 7 bits, from 0x80 to 0x3ff in that
    of 10. Raises ValueError for what is no address."""
    if not 0 <= address <= ADDRESS_MAX:
        raise ValueError(f"an I2C address is 0 to {ADDRESS_MAX:#x}, not {address:#x}")
    if address <= ADDRESS_7_BIT_MAX:
        return address << 1
    return (address & 0xFF) << 8 | _TEN_BIT_MARK | address >> 8 << 1


def decode_address(addr: int) -> int | None:
    """The address in an `addr` field; None if it has neither form, or the form of 10 bits with an
    address that 7 bits hold: such a target cannot be told from the one with 7 bits here."""
    if addr & _TEN_BIT_MASK == _TEN_BIT_MARK:
        address = (addr & 0x06) << 7 | addr >> 8
        return address if address > ADDRESS_7_BIT_MAX else None
    return None if addr & 0xFF01 else addr >> 1
