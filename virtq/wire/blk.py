"""The block device on the wire (VIRTIO 1.4, section 5.2): features, configuration, requests."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import NamedTuple

from virtq.wire.bits import unbounded_complement
from virtq.wire.layout import WRITABLE, bytes3, u8, u16, u32, u64

DEVICE_ID = 2
SECTOR_BYTES = 512
HEADER_BYTES = 16
ID_BYTES = 20
SEGMENT_BYTES = 16


@unbounded_complement
class BlkFeature(IntFlag):
    """Feature bits of the block device (5.2.3)."""

    SIZE_MAX = 1 << 1
    SEG_MAX = 1 << 2
    GEOMETRY = 1 << 4
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    FLUSH = 1 << 9
    TOPOLOGY = 1 << 10
    CONFIG_WCE = 1 << 11
    MQ = 1 << 12
    DISCARD = 1 << 13
    WRITE_ZEROES = 1 << 14
    LIFETIME = 1 << 15
    SECURE_ERASE = 1 << 16
    ZONED = 1 << 17


# What each feature needs (5.2.5.2): every entry of the tuple, and of an entry any one bit.
PREREQUISITES: dict[BlkFeature, tuple[BlkFeature, ...]] = {
    BlkFeature.CONFIG_WCE: (BlkFeature.FLUSH,),
}


class Type(IntEnum):
    """Request types (5.2.6)."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    GET_LIFETIME = 10
    DISCARD = 11
    WRITE_ZEROES = 13
    SECURE_ERASE = 14


class Status(IntEnum):
    """The last device-writable byte of every request (5.2.6)."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


UNWRITTEN_STATUS = 0xFF
"""What our driver leaves in the status byte, to notice a device that forgets it."""


class Header(NamedTuple):
    """The device-readable first 16 bytes of a request."""

    type: int
    sector: int

    @classmethod
    def parse(cls, data: bytes) -> Header:
        """From exactly 16 bytes."""
        kind, _reserved, sector = _HEADER.unpack(data)
        return cls(kind, sector)

    def pack(self) -> bytes:
        return _HEADER.pack(self.type, 0, self.sector)


_HEADER = struct.Struct("<IIQ")


class Segment(NamedTuple):
    """One range of a discard or write zeroes request, in sectors."""

    sector: int
    num_sectors: int
    flags: int = 0

    @classmethod
    def parse_all(cls, data: bytes) -> list[Segment]:
        """From a whole number of 16-byte segments."""
        return [cls(*values) for values in _SEGMENT.iter_unpack(data)]

    def pack(self) -> bytes:
        return _SEGMENT.pack(*self)


_SEGMENT = struct.Struct("<QII")
SEGMENT_UNMAP = 1


def type_name(kind: int) -> str:
    """A request type for people: its name, or the number where there is none."""
    return Type(kind).name if kind in set(Type) else f"type {kind}"


def status_name(status: int) -> str:
    """A status byte for people."""
    if status == UNWRITTEN_STATUS:
        return "no status written"
    return Status(status).name if status in set(Status) else f"status {status}"


@dataclass
class Geometry:
    """Disk-style geometry (feature GEOMETRY)."""

    cylinders: u16 = 0
    heads: u8 = 0
    sectors: u8 = 0


@dataclass
class Topology:
    """Alignment for speed (feature TOPOLOGY), in logical blocks."""

    physical_block_exp: u8 = 0
    alignment_offset: u8 = 0
    min_io_size: u16 = 0
    opt_io_size: u32 = 0


@dataclass
class Zoned:
    """Zone characteristics (feature ZONED)."""

    zone_sectors: u32 = 0
    max_open_zones: u32 = 0
    max_active_zones: u32 = 0
    max_append_sectors: u32 = 0
    write_granularity: u32 = 0
    model: u8 = 0
    unused2: bytes3 = bytes(3)


@dataclass
class BlkConfig:
    """The configuration space (5.2.4); capacity and all `*_sectors` count 512-byte sectors."""

    capacity: u64 = 0
    size_max: u32 = 0
    seg_max: u32 = 0
    geometry: Geometry = field(default_factory=Geometry)
    blk_size: u32 = SECTOR_BYTES
    topology: Topology = field(default_factory=Topology)
    writeback: u8 = field(default=0, metadata=WRITABLE)
    unused0: u8 = 0
    num_queues: u16 = 1
    max_discard_sectors: u32 = 0
    max_discard_seg: u32 = 0
    discard_sector_alignment: u32 = 0
    max_write_zeroes_sectors: u32 = 0
    max_write_zeroes_seg: u32 = 0
    write_zeroes_may_unmap: u8 = 0
    unused1: bytes3 = bytes(3)
    max_secure_erase_sectors: u32 = 0
    max_secure_erase_seg: u32 = 0
    secure_erase_sector_alignment: u32 = 0
    zoned: Zoned = field(default_factory=Zoned)


# Which feature makes a configuration field exist (5.2.4); capacity always does.
FIELD_FEATURE: dict[str, BlkFeature] = {
    "size_max": BlkFeature.SIZE_MAX,
    "seg_max": BlkFeature.SEG_MAX,
    "geometry": BlkFeature.GEOMETRY,
    "blk_size": BlkFeature.BLK_SIZE,
    "topology": BlkFeature.TOPOLOGY,
    "writeback": BlkFeature.CONFIG_WCE,
    "num_queues": BlkFeature.MQ,
    "max_discard_sectors": BlkFeature.DISCARD,
    "max_discard_seg": BlkFeature.DISCARD,
    "discard_sector_alignment": BlkFeature.DISCARD,
    "max_write_zeroes_sectors": BlkFeature.WRITE_ZEROES,
    "max_write_zeroes_seg": BlkFeature.WRITE_ZEROES,
    "write_zeroes_may_unmap": BlkFeature.WRITE_ZEROES,
    "max_secure_erase_sectors": BlkFeature.SECURE_ERASE,
    "max_secure_erase_seg": BlkFeature.SECURE_ERASE,
    "secure_erase_sector_alignment": BlkFeature.SECURE_ERASE,
    "zoned": BlkFeature.ZONED,
}
