"""Little-endian structures described by annotated dataclasses.

Configuration spaces (VIRTIO 1.4, section 2.5) are structures without holes, little-endian
throughout. Here each is a dataclass whose annotations say how a field lies in memory:

    @dataclass
    class Config:
        capacity: u64 = 0
        mac: bytes6 = bytes(6)
        writeback: u8 = field(default=0, metadata=WRITABLE)
        topology: Topology = field(default_factory=Topology)   # nested structures work

`pack` and `unpack` go between such objects and bytes; `fields_in` tells which fields an access
touches, which is what a device needs to judge a driver's write.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Int:
    """Marks an unsigned integer of 1, 2, 4 or 8 bytes."""

    size_bytes: int

    @property
    def code(self) -> str:
        return {1: "B", 2: "H", 4: "I", 8: "Q"}[self.size_bytes]


@dataclasses.dataclass(frozen=True)
class Bytes:
    """Marks an array of bytes of fixed length: `Annotated[bytes, Bytes(20)]`."""

    size_bytes: int

    @property
    def code(self) -> str:
        return f"{self.size_bytes}s"


u8 = Annotated[int, Int(1)]
u16 = Annotated[int, Int(2)]
u32 = Annotated[int, Int(4)]
u64 = Annotated[int, Int(8)]
bytes3 = Annotated[bytes, Bytes(3)]
bytes6 = Annotated[bytes, Bytes(6)]


WRITABLE = MappingProxyType({"writable": True})
"""The metadata of a dataclass field that the driver may write."""


class Field(NamedTuple):
    """One leaf of a structure: `name` is dotted where structures nest."""

    name: str
    offset: int
    size: int
    code: str
    writable: bool


_FIELDS: dict[type, tuple[Field, ...]] = {}
_PACKERS: dict[type, struct.Struct] = {}


def fields_of(structure: type) -> tuple[Field, ...]:
    """The leaves of a dataclass in memory order. Raises TypeError for an annotation that does not
    say how the field lies in memory."""
    if structure not in _FIELDS:
        _FIELDS[structure] = tuple(_walk(structure, "", 0))
    return _FIELDS[structure]


def _walk(structure: type, prefix: str, offset: int) -> Iterator[Field]:
    hints = get_type_hints(structure, include_extras=True)
    for spec in dataclasses.fields(structure):
        hint, name = hints[spec.name], prefix + spec.name
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            for leaf in _walk(hint, name + ".", offset):
                yield leaf
                offset = leaf.offset + leaf.size
            continue
        marks = [m for m in get_args(hint)[1:] if isinstance(m, Int | Bytes)]
        if get_origin(hint) is not Annotated or not marks:
            raise TypeError(f"{structure.__name__}.{spec.name}: not a layout such as u16 or bytes6")
        mark = marks[0]
        may_write = bool(spec.metadata.get("writable"))
        yield Field(name, offset, mark.size_bytes, mark.code, may_write)
        offset += mark.size_bytes


def _packer(structure: type) -> struct.Struct:
    if structure not in _PACKERS:
        codes = "".join(leaf.code for leaf in fields_of(structure))
        _PACKERS[structure] = struct.Struct("<" + codes)
    return _PACKERS[structure]


def size_of(structure: type) -> int:
    """Bytes that the structure takes in memory."""
    return _packer(structure).size


def accesses(leaf: Field) -> Iterator[tuple[int, int]]:
    """(offset, width), in bytes, of the accesses by which a field is read: a number as wide as it
    is, but one of 64 bits by its halves, and an array by its bytes (4.1.3.1)."""
    width = {"H": 2, "I": 4, "Q": 4}.get(leaf.code, 1)
    if leaf.offset % width:
        width = 1
    for at in range(leaf.offset, leaf.offset + leaf.size, width):
        yield at, width


def get(obj: object, dotted: str) -> Any:
    """The value of a leaf by its dotted name."""
    for part in dotted.split("."):
        obj = getattr(obj, part)
    return obj


def put(obj: object, dotted: str, value: int | bytes) -> None:
    """Set a leaf by its dotted name."""
    *path, last = dotted.split(".")
    for part in path:
        obj = getattr(obj, part)
    setattr(obj, last, value)


def pack(obj: object) -> bytes:
    """The bytes of a structure. Raises struct.error for a value that does not fit its field."""
    kind = type(obj)
    return _packer(kind).pack(*(get(obj, leaf.name) for leaf in fields_of(kind)))


def unpack(structure: type[T], data: bytes) -> T:
    """A structure from its bytes; surplus is ignored and what is missing reads as zero, for a
    configuration space may be longer or shorter than the structure (section 2.5.1)."""
    packer = _packer(structure)
    values = packer.unpack(data[: packer.size].ljust(packer.size, b"\0"))
    return _build(structure, iter(values))


def _build(structure: type[T], values: Iterator[int | bytes]) -> T:
    hints = get_type_hints(structure)
    parts: dict[str, Any] = {}
    for spec in dataclasses.fields(structure):  # type: ignore[arg-type]
        hint = hints[spec.name]
        nested = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        parts[spec.name] = _build(hint, values) if nested else next(values)
    return structure(**parts)


def fields_in(structure: type, offset: int, length: int) -> list[Field]:
    """The leaves that an access of `length` bytes at `offset` touches, in memory order."""
    end = offset + length
    return [f for f in fields_of(structure) if f.offset < end and offset < f.offset + f.size]
