"""What a virtio device has registers for, whichever bus it is on (VIRTIO 1.4, 4.1.4, 4.2.2)."""

from __future__ import annotations

from typing import Protocol

from virtq.transports.qtest.client import Client

CONFIG_READ_ATTEMPTS = 16
"""How often a configuration that changes while it is read is read again."""
POLL_MIN_S, POLL_MAX_S = 0.00002, 0.002
"""Between two looks at a device that has no way to wake us: soon after something happened, and when
nothing does."""


class Registers(Protocol):
    """The registers of one device, for the transport. Addresses are guest-physical."""

    @property
    def poll_s(self) -> tuple[float, float] | None:
        """Seconds between two questions for `interrupts`, least and most; None: when QEMU reports
        an interrupt line."""
        ...

    @property
    def device_id(self) -> int: ...
    @property
    def queue_count(self) -> int: ...
    def count_queues(self) -> None:
        """Count them again: there may be more once the features are known."""
        ...

    @property
    def config_size(self) -> int:
        """The bytes that the bus has for the device's configuration; the device may use fewer."""
        ...

    def read_status(self) -> int: ...
    def write_status(self, status: int) -> None: ...
    def read_feature_word(self, index: int) -> int:
        """32 feature bits, from bit 32 * index on."""
        ...

    def write_feature_word(self, index: int, word: int) -> None: ...
    def read_config(self, offset: int, length: int) -> bytes: ...
    def write_config(self, offset: int, data: bytes) -> None: ...
    def queue_size_max(self, index: int) -> int:
        """0 for a queue that is not available; only while the queue is not enabled."""
        ...

    def enable_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> None: ...
    def reset_queue(self, index: int) -> None:
        """Reset a queue and wait until that is done (2.6.1)."""
        ...

    def notify(self, index: int, data: int | None) -> None:
        """Send an available buffer notification. `data`: with NOTIFICATION_DATA, the 32 bits that
        tell where the driver stands (4.1.5.2)."""
        ...

    def interrupts(self) -> tuple[set[int], bool]:
        """What interrupted since the last question: the queues (those that share an interrupt all
        together), and whether the configuration changed."""
        ...


def load_bytes(client: Client, address: int, length: int) -> bytes:
    """Read from a device's configuration: an aligned word as such, as its field wants it (4.1.3.1),
    anything else byte by byte. A wider access could reach past the end, where there is nothing."""
    if length in (2, 4) and address % length == 0:
        return client.load(address, length).to_bytes(length, "little")
    return bytes(client.load(address + at, 1) for at in range(length))


def store_bytes(client: Client, address: int, data: bytes) -> None:
    """Write to a device's configuration, in accesses as of `load_bytes`."""
    if len(data) in (2, 4) and address % len(data) == 0:
        client.store(address, len(data), int.from_bytes(data, "little"))
        return
    for at, byte in enumerate(data):
        client.store(address + at, 1, byte)
