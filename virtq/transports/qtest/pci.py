"""The PCI bus of a PC, as far as a driver needs it: who is there, BARs, capabilities.

Configuration space is reached by the two ports of configuration mechanism 1. No firmware has run,
so BARs are ours to place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from virtq.errors import TransportError
from virtq.transports.qtest.access import Accesses

_ADDRESS_PORT, _DATA_PORT = 0xCF8, 0xCFC
_SLOTS = 32
_NOBODY = 0xFFFF

_VENDOR, _DEVICE, _COMMAND, _STATUS = 0x00, 0x02, 0x04, 0x06
_HEADER_TYPE, _BARS, _SUBSYSTEM, _CAPABILITIES = 0x0E, 0x10, 0x2E, 0x34
_COMMAND_IO, _COMMAND_MEMORY, _COMMAND_MASTER = 1, 2, 4
_STATUS_INTERRUPT, _STATUS_CAPABILITIES = 0x08, 0x10
_BAR_IO, _BAR_64 = 1, 4
_BAR_COUNT = 6
CONFIG_BYTES = 256

_WINDOW = 0xE000_0000
_WINDOW_END = 0xFEB0_0000
_IO_WINDOW = 0xC000


@dataclass(frozen=True)
class Capability:
    """One entry of the capability list: its id, and its offset in configuration space."""

    id: int
    offset: int


class Function:
    """One PCI function on bus 0."""

    def __init__(self, client: Accesses, slot: int) -> None:
        self._client = client
        self._slot = slot
        self.bars: dict[int, int] = {}
        """Where each memory BAR was placed, by number."""

    def read(self, offset: int, size: int) -> int:
        """Configuration space, naturally aligned accesses of 1, 2 or 4 bytes."""
        self._select(offset, size)
        return self._client.port_read(_DATA_PORT + offset % 4, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self._select(offset, size)
        self._client.port_write(_DATA_PORT + offset % 4, size, value)

    def _select(self, offset: int, size: int) -> None:
        if size not in (1, 2, 4) or offset % size or not 0 <= offset <= CONFIG_BYTES - size:
            raise ValueError(f"no access of {size} bytes at {offset:#x} of configuration space")
        address = 1 << 31 | self._slot << 11 | (offset & ~3)
        self._client.port_write(_ADDRESS_PORT, 4, address)

    @property
    def vendor(self) -> int:
        return self.read(_VENDOR, 2)

    @property
    def device(self) -> int:
        return self.read(_DEVICE, 2)

    @property
    def subsystem(self) -> int:
        return self.read(_SUBSYSTEM, 2)

    @property
    def interrupt_status(self) -> bool:
        """The bit of the status register that says that INTx waits to be served."""
        return bool(self.read(_STATUS, 2) & _STATUS_INTERRUPT)

    def capabilities(self) -> Iterator[Capability]:
        """The capability list. Raises TransportError for one that does not end."""
        if not self.read(_STATUS, 2) & _STATUS_CAPABILITIES:
            return
        at = self.read(_CAPABILITIES, 1) & ~3
        seen: set[int] = set()
        while at:
            if at in seen or at < 0x40:
                raise TransportError(f"PCI slot {self._slot}: the capability list leads to {at:#x}")
            seen.add(at)
            yield Capability(self.read(at, 1), at)
            at = self.read(at + 1, 1) & ~3

    def place_bars(self, window: Window) -> None:
        """Give every BAR an address, and let the function decode them and master the bus."""
        self.write(_COMMAND, 2, 0)
        number = 0
        while number < _BAR_COUNT:
            number += self._place_bar(number, window)
        self.write(_COMMAND, 2, _COMMAND_IO | _COMMAND_MEMORY | _COMMAND_MASTER)

    def _place_bar(self, number: int, window: Window) -> int:
        """Place one BAR; returns how many registers it takes."""
        register = _BARS + 4 * number
        kind = self.read(register, 4)
        is_64 = not kind & _BAR_IO and kind & 6 == _BAR_64
        self.write(register, 4, 0xFFFF_FFFF)
        mask = self.read(register, 4) & (~3 if kind & _BAR_IO else ~15)
        if mask == 0 and not is_64:
            return 1
        if kind & _BAR_IO:
            size = -(mask | 0xFFFF_0000) & 0xFFFF_FFFF
            self.write(register, 4, window.take_io(size))
            return 1
        if is_64:
            self.write(register + 4, 4, 0xFFFF_FFFF)
            mask |= self.read(register + 4, 4) << 32
        else:
            mask |= 0xFFFF_FFFF << 32
        address = window.take(-mask & (1 << 64) - 1)
        self.write(register, 4, address)
        if is_64:
            self.write(register + 4, 4, address >> 32)
        self.bars[number] = address
        return 2 if is_64 else 1


class Window:
    """The addresses for BARs that are not taken yet."""

    def __init__(self) -> None:
        self._next, self._next_io = _WINDOW, _IO_WINDOW

    def take(self, size: int) -> int:
        """Raises TransportError if there is no room."""
        start = -(-self._next // size) * size
        if start + size > _WINDOW_END:
            raise TransportError(f"no room for a PCI BAR of {size:#x} bytes")
        self._next = start + size
        return start

    def take_io(self, size: int) -> int:
        start = -(-self._next_io // size) * size
        if start + size > 0x10000:
            raise TransportError(f"no room for an I/O BAR of {size:#x} bytes")
        self._next_io = start + size
        return start


def functions(client: Accesses) -> Iterator[Function]:
    """Who is on bus 0 (function 0 of each slot)."""
    for slot in range(_SLOTS):
        function = Function(client, slot)
        if function.vendor != _NOBODY:
            yield function
