"""A device that is reached by registers, as a driver's transport."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from virtq._core import Memory, Position
from virtq.errors import ConfigError
from virtq.features import F
from virtq.status import Status
from virtq.transports.base import QueueEnd
from virtq.transports.qtest.access import Accesses
from virtq.transports.qtest.notifier import Notifier
from virtq.transports.qtest.registers import Registers

FEATURE_WORDS = 4
"""128 feature bits; a device that has fewer reads as zero beyond them."""


class RegisterTransport:
    """Implements `virtq.transports.base.DriverTransport` on registers; what is left to do is
    `check`."""

    def __init__(
        self,
        client: Accesses,
        memory: Memory,
        registers: Registers,
        *,
        queue_size_max: int | None = None,
    ) -> None:
        """`memory`: what the device can reach and drivers may use. `queue_size_max`: no queue is
        said to be larger, whatever the registers say."""
        self._memory = memory
        self._registers = registers
        sizes = map(registers.queue_size_max, range(registers.queue_count))
        self._queue_sizes = [min(size, queue_size_max or size) for size in sizes]
        self._notifier = Notifier(client, registers)

    @property
    def registers(self) -> Registers:
        """The device's registers, to be accessed one by one."""
        return self._registers

    def undisturbed(self) -> contextlib.AbstractContextManager[None]:
        """While this is held, no register is read or written, and no interrupt acknowledged, but
        by the caller; notifications wait."""
        return self._notifier.held()

    def change_config(self) -> bool:
        """Have the device change its configuration as its owner would; whether there is a way."""
        return False

    # What the device is

    @property
    def memory(self) -> Memory:
        return self._memory

    @property
    def device_id(self) -> int | None:
        return self._registers.device_id

    @property
    def queue_count(self) -> int:
        return self._registers.queue_count

    def queue_size_max(self, index: int) -> int:
        return self._queue_sizes[index]

    # Negotiation

    def read_features(self) -> int:
        words = (self._registers.read_feature_word(index) for index in range(FEATURE_WORDS))
        return sum(word << 32 * index for index, word in enumerate(words))

    def write_features(self, features: int) -> None:
        for index in range(FEATURE_WORDS):
            word = features >> 32 * index & 0xFFFF_FFFF
            if word or index < 2:
                self._registers.write_feature_word(index, word)
        self._notifier.notification_data = bool(features & F.NOTIFICATION_DATA)

    def read_status(self) -> int:
        return self._registers.read_status()

    def write_status(self, status: int) -> None:
        if status == 0:
            self._notifier.remove()
        self._registers.write_status(status)
        if status & Status.FEATURES_OK and not status & Status.DRIVER_OK:
            # QEMU's network device has its further queues from here on (MQ, RSS).
            self._registers.count_queues()
            known = len(self._queue_sizes)
            more = range(known, self._registers.queue_count)
            self._queue_sizes += [self._registers.queue_size_max(index) for index in more]

    # Configuration space

    @property
    def config_size(self) -> int:
        """What the bus has room for; the device's own configuration may be shorter."""
        return self._registers.config_size

    def read_config(self, offset: int, length: int) -> bytes:
        """Raises ConfigError beyond the end."""
        return self._registers.read_config(offset, length)

    def read_config_by(self, accesses: Sequence[tuple[int, int]]) -> list[bytes]:
        """What is read from the configuration space by each of the accesses, (offset, width) in
        bytes, all at one generation. Raises ConfigError beyond the end."""
        return self._registers.read_config_by(accesses)

    def write_config(self, offset: int, data: bytes) -> None:
        """Raises ConfigError beyond the end. A device has no way to refuse a value here."""
        self._registers.write_config(offset, data)

    def on_config_change(self, callback: Callable[[], None] | None) -> None:
        """`callback` is called in a thread of the transport's."""
        self._notifier.config_changed = callback

    # Virtqueues

    def enable_queue(self, queue: QueueEnd, desc: int, driver: int, device: int) -> None:
        self._registers.enable_queue(queue.index, queue.size, desc, driver, device)
        self._notifier.add(queue)

    def reset_queue(self, index: int) -> Position:
        """Registers do not tell where the device stood: as a new queue begins."""
        if not 0 <= index < self.queue_count:
            raise ConfigError(f"queue {index} of a device that has {self.queue_count}")
        self._notifier.remove(index)
        self._registers.reset_queue(index)
        return Position(0, 1, 0, 1, 0)

    # The end

    def check(self) -> None:
        """Raises PeerGone if the device is not there any more; here, it always is."""

    def close(self) -> None:
        """Harmless when done twice."""
        self._notifier.close()
