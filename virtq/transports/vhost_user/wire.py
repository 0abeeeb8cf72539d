"""vhost-user bytes, and what they mean: two things kept apart.

A message is a header of three 32-bit words (request, flags, size) and a payload, all in the
byte order of the machine. This file knows the shapes: the header, the payloads as plain named
tuples, and for each shape a `Layout` that turns bytes into values (checked) and back. Which
request carries which shape is data in `messages`; who may send what, and when, is `protocol`.

Nothing here reads a byte before its size has been checked, and every complaint is one
`ProtocolError` that names the message, the field and the value.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

from virtq.errors import TransportError

VERSION = 1
REPLY = 1 << 2
NEED_REPLY = 1 << 3
_VERSION_MASK = 0x3
_KNOWN_FLAGS = _VERSION_MASK | REPLY | NEED_REPLY

MAX_REGIONS = 8
"""Regions in one SET_MEM_TABLE."""
MAX_CONFIG_BYTES = 256
"""Configuration space that GET_CONFIG and SET_CONFIG can reach."""
MAX_SHMEM_REGIONS = 256
_MAX_OPAQUE_BYTES = 4096

NO_FD = 1 << 8
"""In SET_VRING_KICK, CALL and ERR: no descriptor comes with the message."""
VRING_INDEX_MASK = 0xFF
VRING_LOG = 1 << 0
"""In the flags of SET_VRING_ADDR: writes to the used ring are logged."""
CONFIG_LIVE_MIGRATION = 1
"""In the flags of SET_CONFIG."""


class ProtocolError(TransportError):
    """A vhost-user message that breaks the protocol: which message, which field, what value."""

    def __init__(self, message: str, field: str, value: object, why: str) -> None:
        super().__init__(f"{message}: {field} = {value}: {why}")
        self.message = message
        self.field = field
        self.value = value


class Header(NamedTuple):
    request: int
    flags: int
    size: int

    @property
    def is_reply(self) -> bool:
        return bool(self.flags & REPLY)

    @property
    def need_reply(self) -> bool:
        return bool(self.flags & NEED_REPLY)

    def check_flags(self, name: str) -> None:
        if self.flags & _VERSION_MASK != VERSION:
            raise ProtocolError(name, "version", self.flags & _VERSION_MASK, f"not {VERSION}")
        if self.flags & ~_KNOWN_FLAGS:
            raise ProtocolError(name, "flags", hex(self.flags), "reserved bits are set")


_HEADER = struct.Struct("=III")
HEADER_BYTES = _HEADER.size


def unpack_header(data: bytes | bytearray | memoryview) -> Header:
    """The header at the start of `data`, unchecked."""
    return Header._make(_HEADER.unpack_from(data))


def pack_message(request: int, flags: int, payload: bytes) -> bytes:
    return _HEADER.pack(request, VERSION | flags, len(payload)) + payload


# ---------------------------------------------------------------- payloads


class U64(NamedTuple):
    value: int


class VringState(NamedTuple):
    ring: int
    num: int


class VringAddress(NamedTuple):
    """Where a ring lies: front-end user addresses, or IOVAs under ACCESS_PLATFORM.
    `log` is a guest address."""

    ring: int
    flags: int
    descriptor: int
    used: int
    available: int
    log: int


class Region(NamedTuple):
    guest_addr: int
    size: int
    user_addr: int
    offset: int


class RegionTable(NamedTuple):
    regions: tuple[Region, ...]


class LogBase(NamedTuple):
    size: int
    offset: int


class IotlbType(IntEnum):
    MISS = 1
    UPDATE = 2
    INVALIDATE = 3
    ACCESS_FAIL = 4


IOTLB_READ = 1
IOTLB_WRITE = 2


class Iotlb(NamedTuple):
    iova: int
    size: int
    user_addr: int
    permissions: int
    type: int


class Config(NamedTuple):
    offset: int
    size: int
    flags: int
    data: bytes


class VringArea(NamedTuple):
    index_and_flags: int
    size: int
    offset: int


class Inflight(NamedTuple):
    mmap_size: int
    mmap_offset: int
    num_queues: int
    queue_size: int


class SharedObject(NamedTuple):
    uuid: bytes


class DeviceState(NamedTuple):
    direction: int
    phase: int


class ShmemMap(NamedTuple):
    shm_id: int
    fd_offset: int
    shm_offset: int
    length: int
    flags: int


class ShmemConfig(NamedTuple):
    sizes: tuple[int, ...]


class Opaque(NamedTuple):
    data: bytes


Payload = (
    U64
    | VringState
    | VringAddress
    | Region
    | RegionTable
    | LogBase
    | Iotlb
    | Config
    | VringArea
    | Inflight
    | SharedObject
    | DeviceState
    | ShmemMap
    | ShmemConfig
    | Opaque
)


# ---------------------------------------------------------------- layouts


@dataclass(frozen=True, slots=True)
class Layout:
    """One payload shape: the sizes it may have, and the way from bytes to a value and back.

    `decode` is handed data of an allowed size only; it raises `_Bad` on a value that cannot be.
    """

    smallest: int
    largest: int
    decode: Callable[[bytes], Payload | None]
    encode: Callable[[Any], bytes]

    def check_size(self, name: str, size: int) -> None:
        if not self.smallest <= size <= self.largest:
            span = str(self.smallest)
            if self.largest != self.smallest:
                span += f" to {self.largest}"
            raise ProtocolError(name, "size", size, f"the payload has {span} bytes")

    def parse(self, name: str, data: bytes) -> Payload | None:
        """The value that `data` carries. Raises ProtocolError on a wrong size or value."""
        self.check_size(name, len(data))
        try:
            return self.decode(data)
        except _Bad as bad:
            raise ProtocolError(name, bad.field, bad.value, bad.why) from None

    def build(self, name: str, payload: Payload | None) -> bytes:
        """The bytes of `payload`. Raises ProtocolError if it does not fit its fields."""
        try:
            data = self.encode(payload)
        except (struct.error, TypeError, AttributeError) as error:
            raise ProtocolError(name, "payload", payload, str(error)) from None
        self.check_size(name, len(data))
        return data


class _Bad(Exception):
    def __init__(self, field: str, value: object, why: str) -> None:
        super().__init__(field)
        self.field = field
        self.value = value
        self.why = why


def _fixed(make: Callable[[Any], Payload], layout: str, spare: int = 0) -> Layout:
    """A C structure; its last `spare` bytes are padding that a sender may leave out."""
    fields = struct.Struct("=" + layout)

    def decode(data: bytes) -> Payload:
        return make(fields.unpack(data.ljust(fields.size, b"\0")))

    def encode(payload: Any) -> bytes:
        return fields.pack(*payload)

    return Layout(fields.size - spare, fields.size, decode, encode)


_REGION = struct.Struct("=QQQQ")
_REGION_COUNT = struct.Struct("=I4x")
_CONFIG = struct.Struct("=III")
_SHMEM_SIZES = struct.Struct(f"={MAX_SHMEM_REGIONS}Q")


def _decode_regions(data: bytes) -> Payload:
    (count,) = _REGION_COUNT.unpack_from(data)
    if count > MAX_REGIONS:
        raise _Bad("regions", count, f"at most {MAX_REGIONS}")
    if len(data) != _REGION_COUNT.size + count * _REGION.size:
        raise _Bad("size", len(data), f"not that of {count} regions")
    rows = _REGION.iter_unpack(data[_REGION_COUNT.size :])
    return RegionTable(tuple(Region._make(row) for row in rows))


def _encode_regions(table: RegionTable) -> bytes:
    rows = (_REGION.pack(*region) for region in table.regions)
    return _REGION_COUNT.pack(len(table.regions)) + b"".join(rows)


def _decode_config(data: bytes) -> Config:
    offset, size, flags = _CONFIG.unpack_from(data)
    rest = data[_CONFIG.size :]
    if len(rest) != size:
        raise _Bad("size", size, f"{len(rest)} bytes follow")
    return Config(offset, size, flags, rest)


def _decode_config_query(data: bytes) -> Config:
    """A query may leave out the bytes that it asks for."""
    offset, size, flags = _CONFIG.unpack_from(data)
    if len(data) == _CONFIG.size and size <= MAX_CONFIG_BYTES:
        return Config(offset, size, flags, b"")
    return _decode_config(data)


def _encode_config(config: Config) -> bytes:
    return _CONFIG.pack(config.offset, config.size, config.flags) + config.data


def _decode_shmem(data: bytes) -> Payload:
    (count,) = _REGION_COUNT.unpack_from(data)
    if count > MAX_SHMEM_REGIONS:
        raise _Bad("regions", count, f"at most {MAX_SHMEM_REGIONS}")
    return ShmemConfig(_SHMEM_SIZES.unpack_from(data, _REGION_COUNT.size))


def _encode_shmem(config: ShmemConfig) -> bytes:
    count = sum(1 for size in config.sizes if size)
    return _REGION_COUNT.pack(count) + _SHMEM_SIZES.pack(*config.sizes)


def _encode_nothing(payload: object) -> bytes:
    if payload is not None:
        raise TypeError("the message has no payload")
    return b""


def or_empty(layout: Layout) -> Layout:
    """The same, or nothing at all (which reads as None)."""

    def decode(data: bytes) -> Payload | None:
        if not data:
            return None
        if len(data) < layout.smallest:
            raise _Bad("size", len(data), f"neither 0 nor {layout.smallest} bytes")
        return layout.decode(data)

    def encode(payload: Any) -> bytes:
        return b"" if payload is None else layout.encode(payload)

    return Layout(0, layout.largest, decode, encode)


EMPTY = Layout(0, 0, lambda data: None, _encode_nothing)
NUMBER = _fixed(U64._make, "Q")
VRING_STATE = _fixed(VringState._make, "II")
VRING_ADDRESS = _fixed(VringAddress._make, "IIQQQQ")
REGION = _fixed(Region._make, "8xQQQQ")
REGIONS = Layout(
    _REGION_COUNT.size,
    _REGION_COUNT.size + MAX_REGIONS * _REGION.size,
    _decode_regions,
    _encode_regions,
)
LOG_BASE = _fixed(LogBase._make, "QQ")
IOTLB = _fixed(Iotlb._make, "QQQBB6x", spare=6)
CONFIG = Layout(_CONFIG.size, _CONFIG.size + MAX_CONFIG_BYTES, _decode_config, _encode_config)
CONFIG_QUERY = Layout(CONFIG.smallest, CONFIG.largest, _decode_config_query, _encode_config)
VRING_AREA = _fixed(VringArea._make, "QQQ")
INFLIGHT = _fixed(Inflight._make, "QQHH4x", spare=4)
SHARED_OBJECT = _fixed(SharedObject._make, "16s")
DEVICE_STATE = _fixed(DeviceState._make, "II")
SHMEM_MAP = _fixed(ShmemMap._make, "B7xQQQQ")
SHMEM_CONFIG = Layout(
    _REGION_COUNT.size + _SHMEM_SIZES.size,
    _REGION_COUNT.size + _SHMEM_SIZES.size,
    _decode_shmem,
    _encode_shmem,
)
OPAQUE = Layout(
    0, _MAX_OPAQUE_BYTES, lambda data: Opaque(bytes(data)), lambda payload: bytes(payload.data)
)
