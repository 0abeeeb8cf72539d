"""A PCI function before the reference's block device: right as it stands, and made of small parts,
so that a mutant can get one of them wrong.

The transport that drives QEMU drives it, too: what answers its accesses to ports and addresses is
not QEMU here but `PciBoard`, in this process.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import ClassVar

from tests.check.reference_registers import WORD, DeviceRegisters, Disk
from virtq._core import Memory
from virtq.features import F
from virtq.memory import PAGE_BYTES, Arena
from virtq.status import Status
from virtq.transports.qtest import virtio_pci
from virtq.transports.qtest.access import Accesses
from virtq.transports.qtest.by_registers import RegisterTransport
from virtq.transports.qtest.msix import NO_VECTOR
from virtq.transports.qtest.virtio_pci import FIELDS

WORDS_ADDRESS = 0x8000
"""Where the words are that MSI-X messages go to."""
SLOT = 3
COMMON, ISR, DEVICE, NOTIFY = 0x0000, 0x1000, 0x2000, 0x3000
"""Offsets in BAR 4."""
_MSIX_AT, _ENABLE = 0xE0, 1 << 15
_STATUS_INTERRUPT, _STATUS_CAPABILITIES = 0x08, 0x10


class PciFunction(DeviceRegisters):
    """Configuration space, BARs, structures and interrupts of one function."""

    bar_bytes: ClassVar = {1: 0x1000, 4: 0x4000}
    vectors = 3
    table_entries = 3
    """Entries that the MSI-X table really has."""
    multiplier = 4
    notify_length = 0x1000

    def __init__(self, device: Disk, words: Memory) -> None:
        super().__init__(device)
        self.words = words
        self.bars: dict[int, int] = {}
        self.space = bytearray(256)
        self.lay_out()
        self.table = [[0, 0, 0, 1] for _ in range(self.table_entries)]
        self.reset()

    # Configuration space

    def structures(self) -> Iterator[tuple[int, int, int, int, bytes]]:
        """(cfg_type, bar, offset, length, extra data) of each capability, in order."""
        yield 1, 4, COMMON, 64, b""
        yield 3, 4, ISR, 1, b""
        yield 4, 4, DEVICE, 0x1000, b""
        yield 2, 4, NOTIFY, self.notify_length, struct.pack("<I", self.multiplier)

    def capability(self, kind: int, bar: int, offset: int, length: int, extra: bytes) -> bytes:
        """One without its link."""
        head = struct.pack("<BBBBBBHII", 9, 0, 16 + len(extra), kind, bar, 0, 0, offset, length)
        return head + extra

    def lay_out(self) -> None:
        space = self.space
        struct.pack_into("<HHHHBBHB", space, 0, 0x1AF4, 0x1042, 0, _STATUS_CAPABILITIES, 1, 0, 1, 0)
        struct.pack_into("<HH", space, 0x2C, 0x1AF4, 0x1100)
        struct.pack_into("<I", space, 0x10 + 4 * 4, 0xC)  # 64 bits, prefetchable
        at, link = 0x40, 0x34
        for structure in self.structures():
            data = self.capability(*structure)
            space[at : at + len(data)] = data
            space[link], link = at, at + 1
            at += -(-len(data) // 4) * 4
        struct.pack_into("<BBHII", space, _MSIX_AT, 0x11, 0, self.vectors - 1, 0x801, 1)
        space[link] = _MSIX_AT

    @property
    def msix_on(self) -> bool:
        return bool(self.space[_MSIX_AT + 3] & 0x80)

    def config_read(self, offset: int, size: int) -> int:
        if offset <= 6 < offset + size:
            on = self.interrupt_status() and not self.msix_on
            self.space[6] = _STATUS_CAPABILITIES | (_STATUS_INTERRUPT if on else 0)
        return int.from_bytes(self.space[offset : offset + size], "little")

    def config_write(self, offset: int, size: int, value: int) -> None:
        if 0x10 <= offset < 0x28:
            self._place_bar((offset - 0x10) // 4, value)
        elif offset == 4:
            struct.pack_into("<H", self.space, 4, value & 0xFFFF)
        elif offset == _MSIX_AT + 2:
            struct.pack_into("<H", self.space, offset, value & 0xC000 | (self.vectors - 1))

    def _place_bar(self, number: int, value: int) -> None:
        high = number - 1 if number - 1 == 4 else None
        low = number if high is None else high
        if low not in self.bar_bytes:
            return
        address = self.bars.get(low, 0)
        if high is not None:
            address = address & WORD | value << 32
        else:
            address = address & ~WORD | value & -self.bar_bytes[low] & WORD
        self.bars[low] = address
        shown = address >> 32 if high is not None else address & WORD | (0xC if low == 4 else 0)
        struct.pack_into("<I", self.space, 0x10 + 4 * number, shown)

    def interrupt_status(self) -> bool:
        """The interrupt bit of the status register."""
        return bool(self.isr)

    # BARs

    def load(self, bar: int, offset: int, size: int) -> int:
        if bar == 1:
            entry, word = divmod(offset - 0x800, 16)
            return self.table[entry][word // 4] if 0 <= entry < len(self.table) else 0
        if offset >= NOTIFY:
            return 0
        if offset >= DEVICE:
            return self.config_load(offset - DEVICE, size)
        if offset >= ISR:
            return self.read_isr()
        return self.common_load(offset, size)

    def store(self, bar: int, offset: int, size: int, value: int) -> None:
        if bar == 1:
            entry, word = divmod(offset - 0x800, 16)
            if 0 <= entry < len(self.table):
                self.table[entry][word // 4] = value
        elif offset >= NOTIFY:
            self.notified(value & 0xFFFF)
        elif offset < ISR:
            self.common_store(offset, size, value)

    def config_load(self, offset: int, size: int) -> int:
        if self.stale:
            self.generation, self.stale = (self.generation + 1) & 0xFF, False
        config = self.device.config.ljust(0x1000, b"\0")
        return int.from_bytes(config[offset : offset + size], "little")

    def common_load(self, offset: int, size: int) -> int:
        for name, (at, width) in FIELDS.items():
            if width == 8 and size == 4 and offset in (at, at + 4):
                return self.get(name) >> 8 * (offset - at) & WORD
            if (at, width) == (offset, size):
                return self.get(name)
        return 0

    def common_store(self, offset: int, size: int, value: int) -> None:
        for name, (at, width) in FIELDS.items():
            if width == 8 and size == 4 and offset in (at, at + 4):
                self.put_half(name, offset != at, value)
            elif (at, width) == (offset, size):
                self.put(name, value)

    # Fields

    def reset(self) -> None:
        self.isr = 0
        self.config_vector = NO_VECTOR
        super().reset()

    def get(self, name: str) -> int:
        match name:
            case "device_feature_select":
                return self.device_select
            case "device_feature":
                return self.feature_word(self.device_select)
            case "driver_feature_select":
                return self.driver_select
            case "driver_feature":
                return self.words_written.get(self.driver_select, 0)
            case "config_msix_vector":
                return self.config_vector
            case "num_queues":
                return len(self.queues)
            case "device_status":
                return self.device.read_status()
            case "config_generation":
                return self.generation
            case "queue_select":
                return self.select
            case "queue_msix_vector":
                return self.queue.vector
            case "queue_notify_off":
                return self.notify_off(self.select)
            case "queue_notif_config_data":
                return self.select
            case "admin_queue_index" | "admin_queue_num":
                return 0
        value: int = getattr(self.queue, name.removeprefix("queue_"))
        return value

    def notify_off(self, index: int) -> int:
        return index

    def put(self, name: str, value: int) -> None:
        match name:
            case "device_feature_select":
                self.device_select = value
            case "driver_feature_select":
                self.driver_select = value
            case "driver_feature":
                self.put_features(value)
            case "config_msix_vector":
                self.config_vector = self.mapped(value)
            case "device_status":
                self.put_status(value)
            case "queue_select":
                self.select = value
            case "queue_size":
                self.queue.size = value
            case "queue_msix_vector":
                self.queue.vector = self.mapped(value)
            case "queue_enable":
                if value == 1 and self.select < len(self.queues):
                    self.enable()
            case "queue_reset":
                if value == 1 and self.device.features & F.RING_RESET and self.queue.enable:
                    self.reset_queue()

    def mapped(self, vector: int) -> int:
        """What an event's field shows after this vector was written to it."""
        return vector if vector < self.vectors else NO_VECTOR

    def enable(self) -> None:
        self.queue.enable = 1
        super().enable()

    # Notifications

    def used(self, index: int) -> None:
        if self.msix_on:
            self.message(self.queues[index].vector)
        else:
            self.isr |= 1

    def config_changed(self) -> None:
        self.stale = True
        if self.device.status & Status.DRIVER_OK:
            if self.msix_on:
                self.message(self.config_vector)
            else:
                self.isr |= 2

    def message(self, vector: int) -> None:
        if vector != NO_VECTOR:
            low, high, data, _ = self.table[vector]
            self.words.write(low | high << 32, struct.pack("<I", data))

    def read_isr(self) -> int:
        shown, self.isr = self.isr, 0
        return shown


class PciBoard:
    """A machine with one PCI function; implements `Accesses`."""

    interrupt_fds: tuple[int, ...] = ()

    def __init__(self, function: PciFunction) -> None:
        self.function = function
        self._lock = function.device.lock
        self._address = 0

    def port_read(self, port: int, size: int) -> int:
        with self._lock:
            if self._address >> 11 & 0x1F != SLOT:
                return (1 << 8 * size) - 1
            return self.function.config_read((self._address & 0xFC) + port - 0xCFC, size)

    def port_write(self, port: int, size: int, value: int) -> None:
        with self._lock:
            if port == 0xCF8:
                self._address = value
            elif self._address >> 11 & 0x1F == SLOT:
                offset = (self._address & 0xFC) + port - 0xCFC
                self.function.config_write(offset, size, value)

    def _find(self, address: int) -> tuple[int, int]:
        for bar, start in self.function.bars.items():
            if start <= address < start + self.function.bar_bytes[bar]:
                return bar, address - start
        raise AssertionError(f"an access to {address:#x}, where nothing is")

    def load(self, address: int, size: int) -> int:
        with self._lock:
            bar, offset = self._find(address)
            return self.function.load(bar, offset, size)

    def store(self, address: int, size: int, value: int) -> None:
        with self._lock:
            bar, offset = self._find(address)
            self.function.store(bar, offset, size, value & (1 << 8 * size) - 1)

    def take_interrupts(self) -> list[tuple[int, bool]]:
        return []


class PciReference(RegisterTransport):
    """The block device behind PCI, by the transport's own driver of PCI."""

    disk: type[Disk] = Disk
    function: type[PciFunction] = PciFunction

    def __init__(self, recorded: Callable[[PciBoard], Accesses] | None = None) -> None:
        """`recorded`: puts something between the driver and the board."""
        self.behind = self.disk()
        words = Memory.allocate(PAGE_BYTES, WORDS_ADDRESS)
        self.board = PciBoard(self.function(self.behind, words))
        accesses: Accesses = recorded(self.board) if recorded else self.board
        try:
            registers = virtio_pci.find(accesses, Arena(words))
        except BaseException:
            self.behind.close()
            raise
        super().__init__(accesses, self.behind.memory, registers)

    def change_config(self) -> bool:
        self.behind.grow()
        return True

    def check(self) -> None:
        self.behind.check()

    def close(self) -> None:
        super().close()
        self.behind.close()
