"""What the references of both buses have in common: the disk, as registers see it from behind, and
the registers that both have, by other names."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.check.reference import Reference, Served
from virtq._core import Position
from virtq.model.memory import Violation
from virtq.status import Status
from virtq.transports.qtest.msix import NO_VECTOR

WORD = 0xFFFF_FFFF


class Disk(Reference):
    """The block device, as a register transport sees it from behind."""

    queue_count = 2
    used: Callable[[int], None] = staticmethod(lambda index: None)
    """Sends a used buffer notification of a queue."""
    changed: Callable[[], None] = staticmethod(lambda: None)
    """Sends a configuration change notification."""
    sectors = 64

    @property
    def config(self) -> bytes:
        return struct.pack("<Q", self.sectors) + super().config[8:]

    def grow(self) -> None:
        with self.lock:
            self.sectors += 8
            self.changed()

    def serve(self, served: Served) -> None:
        try:
            super().serve(served)
        except Violation:
            self.ask_for_a_reset()
            raise

    def ask_for_a_reset(self) -> None:
        self.status |= Status.DEVICE_NEEDS_RESET
        self.changed()

    def notify(self, served: Served) -> None:
        if served.half.call_wanted():
            self.used(next(i for i, other in self.queues.items() if other is served))


@dataclass
class QueueEnd:
    """What `Reference.enable_queue` asks of a queue, for one that only has registers."""

    index: int
    size: int
    features: int = 0
    outstanding: int = 0
    torn: bool = False
    kick_fd: int | None = None
    call_fd: int | None = None
    position: Position = field(default_factory=lambda: Position(0, 1, 0, 1, 0))

    @property
    def device_position(self) -> Position:
        return self.position

    def set_kick(self, fd: int | None) -> None:
        self.kick_fd = fd

    def set_call(self, fd: int | None) -> None:
        self.call_fd = fd


@dataclass
class QueueRegisters:
    """The fields of the common configuration that queue_select chooses between."""

    size: int
    vector: int = NO_VECTOR
    enable: int = 0
    reset: int = 0
    desc: int = 0
    driver: int = 0
    device: int = 0


class DeviceRegisters:
    """A bus adds how its registers are found, and how it interrupts."""

    def __init__(self, device: Disk) -> None:
        self.device = device
        device.used, device.changed = self.used, self.config_changed
        self.generation, self.stale = 0, False
        """`stale`: the configuration has changed since it was read last."""

    def reset(self) -> None:
        self.select = self.device_select = self.driver_select = 0
        self.words_written: dict[int, int] = {}
        self.queues = [self.new_queue(i) for i in range(self.device.queue_count)]

    def new_queue(self, index: int) -> QueueRegisters:
        return QueueRegisters(self.device.queue_size_max(index))

    @property
    def queue(self) -> QueueRegisters:
        """The one that is selected."""
        if self.select < len(self.queues):
            return self.queues[self.select]
        return QueueRegisters(0)

    def feature_word(self, select: int) -> int:
        return self.device.offered >> 32 * select & WORD if select < 4 else 0

    def put_features(self, value: int) -> None:
        self.words_written[self.driver_select] = value
        self.device.write_features(
            sum(word << 32 * index for index, word in self.words_written.items() if index < 4)
        )

    def put_status(self, value: int) -> None:
        self.device.write_status(value)
        if value == 0:
            self.reset()

    def put_half(self, name: str, high: bool, value: int) -> None:
        """Half of an address of the queue that is selected."""
        area = name.removeprefix("queue_")
        before: int = getattr(self.queue, area)
        after = before & WORD | value << 32 if high else before & ~WORD | value
        setattr(self.queue, area, after)

    def enable(self) -> None:
        queue = self.queue
        end = QueueEnd(self.select, queue.size)
        self.device.enable_queue(end, queue.desc, queue.driver, queue.device)

    def stop(self) -> None:
        self.device.reset_queue(self.select)

    def reset_queue(self) -> None:
        self.stop()
        self.queues[self.select] = self.new_queue(self.select)

    def notified(self, index: int) -> None:
        with self.device.lock:
            if served := self.device.queues.get(index):
                os.eventfd_write(served.kick, 1)

    def used(self, index: int) -> None:
        raise NotImplementedError

    def config_changed(self) -> None:
        raise NotImplementedError
