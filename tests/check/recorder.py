"""Records what a driver does to a device's registers, as a log that `virtq check` judges."""

from __future__ import annotations

from tests.check.reference_pci import PciBoard
from virtq.check.register_log.log import Access, Do, Log
from virtq.transports.qtest.access import Accesses
from virtq.transports.qtest.virtio_mmio import BASE, BLOCK_BYTES

_PLACES = {0: "common", 1: "isr", 2: "device", 3: "notify"}


class PciRecorder:
    """Implements `Accesses` by a board with one PCI function."""

    def __init__(self, board: PciBoard) -> None:
        self._board = board
        self._selected = 0
        self.log = Log("pci", 2, dict(enumerate(bytes(board.function.space))))

    def _note(self, do: Do, at: str, offset: int, width: int, value: int) -> None:
        accesses = self.log.accesses
        accesses.append(Access(len(accesses) + 2, do, at, offset, width, value))

    @property
    def interrupt_fds(self) -> tuple[int, ...]:
        return self._board.interrupt_fds

    def take_interrupts(self) -> list[tuple[int, bool]]:
        return self._board.take_interrupts()

    def _place(self, address: int) -> tuple[str, int]:
        for bar, start in self._board.function.bars.items():
            if start <= address < start + self._board.function.bar_bytes[bar]:
                offset = address - start
                return ("msix", offset) if bar == 1 else (_PLACES[offset >> 12], offset & 0xFFF)
        raise AssertionError(hex(address))

    def port_read(self, port: int, size: int) -> int:
        value = self._board.port_read(port, size)
        if self._selected >> 11 & 0x1F == 3:
            self._note("read", "config", (self._selected & 0xFC) + port - 0xCFC, size, value)
        return value

    def port_write(self, port: int, size: int, value: int) -> None:
        if port == 0xCF8:
            self._selected = value
        elif self._selected >> 11 & 0x1F == 3:
            self._note("write", "config", (self._selected & 0xFC) + port - 0xCFC, size, value)
        self._board.port_write(port, size, value)

    def load(self, address: int, size: int) -> int:
        value = self._board.load(address, size)
        self._note("read", *self._place(address), size, value)
        return value

    def store(self, address: int, size: int, value: int) -> None:
        self._note("write", *self._place(address), size, value & (1 << 8 * size) - 1)
        self._board.store(address, size, value)


class MmioRecorder:
    """Implements `Accesses` by a machine with register blocks; records those of one block."""

    def __init__(self, board: Accesses, block: int) -> None:
        self._board = board
        self._base = BASE + block * BLOCK_BYTES
        self.log = Log("mmio", 2)

    def _note(self, do: Do, address: int, width: int, value: int) -> None:
        offset = address - self._base
        if 0 <= offset < BLOCK_BYTES:
            accesses = self.log.accesses
            accesses.append(Access(len(accesses) + 2, do, "mmio", offset, width, value))

    @property
    def interrupt_fds(self) -> tuple[int, ...]:
        return self._board.interrupt_fds

    def take_interrupts(self) -> list[tuple[int, bool]]:
        found = self._board.take_interrupts()
        for _ in found:
            self.log.accesses.append(Access(len(self.log.accesses) + 2, "interrupt"))
        return found

    def port_read(self, port: int, size: int) -> int:
        return self._board.port_read(port, size)

    def port_write(self, port: int, size: int, value: int) -> None:
        self._board.port_write(port, size, value)

    def load(self, address: int, size: int) -> int:
        value = self._board.load(address, size)
        self._note("read", address, size, value)
        return value

    def store(self, address: int, size: int, value: int) -> None:
        self._note("write", address, size, value & (1 << 8 * size) - 1)
        self._board.store(address, size, value)
