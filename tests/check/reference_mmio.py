"""Memory-mapped registers before the reference's block device: right as they stand, and made of
small parts, so that a mutant can get one of them wrong."""

from __future__ import annotations

import os
from collections.abc import Callable

from tests.check.reference_registers import WORD, DeviceRegisters, Disk
from virtq.features import F
from virtq.transports.qtest import virtio_mmio
from virtq.transports.qtest.access import Accesses
from virtq.transports.qtest.by_registers import RegisterTransport
from virtq.transports.qtest.virtio_mmio import BASE, BLOCK_BYTES, REGISTERS

BLOCK = 2
"""Which of the machine's register blocks has the device; the others are placeholders."""
_NAMES = {offset: name for name, offset in REGISTERS.items()}


class MmioWindow(DeviceRegisters):
    """The registers of one device, and its interrupt line."""

    def __init__(self, device: Disk) -> None:
        super().__init__(device)
        self.reset()

    def reset(self) -> None:
        self.status = 0
        super().reset()

    # Accesses

    def load(self, offset: int, size: int) -> int:
        if offset >= 0x100:
            return self.config_load(offset - 0x100, size)
        return self.get(_NAMES[offset]) if size == 4 and offset in _NAMES else 0

    def store(self, offset: int, size: int, value: int) -> None:
        if size == 4 and offset in _NAMES:
            self.put(_NAMES[offset], value)

    def config_load(self, offset: int, size: int) -> int:
        if self.stale:
            self.generation, self.stale = (self.generation + 1) & WORD, False
        config = self.device.config.ljust(0x100, b"\0")
        return int.from_bytes(config[offset : offset + size], "little")

    def get(self, name: str) -> int:
        match name:
            case "MagicValue":
                return int.from_bytes(b"virt", "little")
            case "Version":
                return 2
            case "DeviceID":
                return 2
            case "DeviceFeatures":
                return self.feature_word(self.device_select)
            case "QueueSizeMax":
                there = self.select < len(self.queues)
                return self.device.queue_size_max(self.select) if there else 0
            case "QueueReady":
                return self.queue.enable
            case "InterruptStatus":
                return self.status
            case "Status":
                return self.device.read_status()
            case "SHMLenLow" | "SHMLenHigh" | "SHMBaseLow" | "SHMBaseHigh":
                return WORD
            case "QueueReset":
                return self.queue.reset
            case "ConfigGeneration":
                return self.generation
        return 0

    def put(self, name: str, value: int) -> None:
        match name:
            case "DeviceFeaturesSel":
                self.device_select = value
            case "DriverFeaturesSel":
                self.driver_select = value
            case "DriverFeatures":
                self.put_features(value)
            case "QueueSel":
                self.select = value
            case "QueueSize":
                self.queue.size = value
            case "QueueReady":
                self.put_ready(value)
            case "QueueNotify":
                self.notified(value & 0xFFFF)
            case "InterruptACK":
                self.acknowledge(value)
            case "Status":
                self.put_status(value)
            case "QueueReset":
                if value == 1 and self.device.features & F.RING_RESET and self.queue.enable:
                    self.reset_queue()
            case _ if name.startswith("Queue"):
                high = name.endswith("High")
                area = name.removeprefix("Queue").removesuffix("High" if high else "Low")
                self.put_half(area.lower(), high, value)

    def put_ready(self, value: int) -> None:
        queue = self.queue
        if value == 1 and not queue.enable:
            queue.enable = 1
            self.enable()
        elif value == 0 and queue.enable:
            queue.enable = 0
            self.stop()

    # Interrupts

    def acknowledge(self, value: int) -> None:
        self.status &= ~value

    def used(self, index: int) -> None:
        self.status |= 1

    def config_changed(self) -> None:
        self.stale = True
        if self.device.status & 4:
            self.status |= 2


class MmioBoard:
    """A machine with a row of register blocks; implements `Accesses`."""

    def __init__(self, window: MmioWindow) -> None:
        self.window = window
        self._lock = window.device.lock
        self._line = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        for name in ("used", "changed"):
            self._raise_after(name)

    def _raise_after(self, name: str) -> None:
        then = getattr(self.window.device, name)

        def both(*args: int) -> None:
            then(*args)
            if self.window.status:
                os.eventfd_write(self._line, 1)

        setattr(self.window.device, name, both)

    @property
    def interrupt_fds(self) -> tuple[int, ...]:
        return (self._line,)

    def take_interrupts(self) -> list[tuple[int, bool]]:
        try:
            os.eventfd_read(self._line)
        except BlockingIOError:
            return []
        return [(0, True)]

    def port_read(self, port: int, size: int) -> int:
        return (1 << 8 * size) - 1

    def port_write(self, port: int, size: int, value: int) -> None:
        """There is nothing behind ports."""

    def load(self, address: int, size: int) -> int:
        with self._lock:
            block, offset = divmod(address - BASE, BLOCK_BYTES)
            if block == BLOCK:
                return self.window.load(offset, size)
            placeholder = {REGISTERS["MagicValue"]: 0x74726976, REGISTERS["Version"]: 2}
            return placeholder.get(offset, 0)

    def store(self, address: int, size: int, value: int) -> None:
        with self._lock:
            block, offset = divmod(address - BASE, BLOCK_BYTES)
            if block == BLOCK:
                self.window.store(offset, size, value & (1 << 8 * size) - 1)

    def close(self) -> None:
        os.close(self._line)


class MmioReference(RegisterTransport):
    """The block device behind memory-mapped registers, by the transport's own driver of them."""

    disk: type[Disk] = Disk
    window: type[MmioWindow] = MmioWindow

    def __init__(self, recorded: Callable[[MmioBoard], Accesses] | None = None) -> None:
        """`recorded`: puts something between the driver and the board."""
        self.behind = self.disk()
        self.board = MmioBoard(self.window(self.behind))
        accesses: Accesses = recorded(self.board) if recorded else self.board
        try:
            registers = virtio_mmio.find(accesses)
        except BaseException:
            self.behind.close()
            self.board.close()
            raise
        super().__init__(accesses, self.behind.memory, registers)
        self._open = True

    def change_config(self) -> bool:
        self.behind.grow()
        return True

    def check(self) -> None:
        self.behind.check()

    def close(self) -> None:
        super().close()
        if self._open:
            self._open = False
            self.behind.close()
            self.board.close()
