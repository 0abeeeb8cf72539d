"""What a virtio device has registers for, whichever bus it is on (VIRTIO 1.4, 4.1.4, 4.2.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from virtq.errors import TransportError
from virtq.transports.qtest.access import Accesses

T = TypeVar("T")

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
    def read_config_by(self, accesses: Sequence[tuple[int, int]]) -> list[bytes]:
        """By accesses of an offset and a width each, in bytes, all at one generation."""
        ...

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


def at_one_generation(generation: Callable[[], int], load: Callable[[], T]) -> T:
    """Read from a device's configuration again while it changes meanwhile (2.5.1)."""
    for _ in range(CONFIG_READ_ATTEMPTS):
        before = generation()
        data = load()
        if generation() == before:
            return data
    raise TransportError("the configuration changes all the time (2.5.1)")


def load_bytes(client: Accesses, address: int, length: int) -> bytes:
    """Read from a device's configuration: an aligned number as such, as its field wants it
    (4.1.3.1), one of 64 bits by its halves, anything else byte by byte. A wider access could reach
    past the end, where there is nothing."""
    data = bytearray()
    for width in _widths(address, length):
        data += client.load(address + len(data), width).to_bytes(width, "little")
    return bytes(data)


def store_bytes(client: Accesses, address: int, data: bytes) -> None:
    """Write to a device's configuration, in accesses as of `load_bytes`."""
    at = 0
    for width in _widths(address, len(data)):
        client.store(address + at, width, int.from_bytes(data[at : at + width], "little"))
        at += width


def _widths(address: int, length: int) -> list[int]:
    if length == 8 and address % 4 == 0:
        return [4, 4]
    return [length] if length in (2, 4) and address % length == 0 else [1] * length
