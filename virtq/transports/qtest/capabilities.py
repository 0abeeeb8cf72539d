"""The virtio structures of a PCI function, by its capability list (VIRTIO 1.4, 4.1.4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from virtq.transports.qtest.pci import CONFIG_BYTES, Function

VENDOR_SPECIFIC, MSIX = 0x09, 0x11
"""Ids of PCI capabilities."""
BARS = 6
"""Other values of `bar` are reserved."""
_CAP_LEN, _CFG_TYPE, _BAR, _ID, _OFFSET, _LENGTH, _EXTRA = 2, 3, 4, 5, 8, 12, 16


class Cfg(IntEnum):
    """`cfg_type`; other values are reserved."""

    COMMON = 1
    NOTIFY = 2
    ISR = 3
    DEVICE = 4
    PCI = 5
    SHARED_MEMORY = 8
    VENDOR = 9


@dataclass(frozen=True)
class VirtioCapability:
    """One vendor-specific capability. `at`: its offset in configuration space; `offset` and
    `length` in bytes within the BAR; `extra`: the word behind, for a notification capability its
    `notify_off_multiplier`."""

    at: int
    cap_len: int
    cfg_type: int
    bar: int
    id: int
    offset: int
    length: int
    extra: int

    @property
    def is_reserved(self) -> bool:
        """Whether a driver has to ignore it (4.1.4.1)."""
        return self.cfg_type not in set(Cfg) or self.bar >= BARS


@dataclass(frozen=True)
class Structure:
    """Where a virtio structure is: a guest-physical address, its length in bytes."""

    address: int
    length: int
    multiplier: int = 0


def scan(function: Function) -> Iterator[VirtioCapability]:
    """All vendor-specific capabilities that have room for a virtio structure's fields, in the order
    of the list, reserved ones too."""
    for capability in function.capabilities():
        at = capability.offset
        if capability.id != VENDOR_SPECIFIC or at + _EXTRA > CONFIG_BYTES:
            continue
        has_extra = at + _EXTRA + 4 <= CONFIG_BYTES
        yield VirtioCapability(
            at=at,
            cap_len=function.read(at + _CAP_LEN, 1),
            cfg_type=function.read(at + _CFG_TYPE, 1),
            bar=function.read(at + _BAR, 1),
            id=function.read(at + _ID, 1),
            offset=function.read(at + _OFFSET, 4),
            length=function.read(at + _LENGTH, 4),
            extra=function.read(at + _EXTRA, 4) if has_extra else 0,
        )


def structures(function: Function) -> dict[int, Structure]:
    """By type, the first of each that is in a memory BAR that exists."""
    found: dict[int, Structure] = {}
    for capability in scan(function):
        if capability.cfg_type not in found and capability.bar in function.bars:
            found[capability.cfg_type] = place(function, capability)
    return found


def place(function: Function, capability: VirtioCapability) -> Structure:
    """Where the structure is. Raises KeyError if it is not in a memory BAR that exists."""
    return Structure(
        function.bars[capability.bar] + capability.offset,
        capability.length,
        capability.extra if capability.cfg_type == Cfg.NOTIFY else 0,
    )
