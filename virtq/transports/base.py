"""Where the roles and the transports meet: what each may call on the other.

A transport knows neither device types nor drivers; a device or driver knows no transport.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from virtq._core import DeviceQueue, Memory, Position, TranslationMiss


class DeviceSide(Protocol):
    """What a transport asks of a device; `virtq.Device` implements it.

    All calls come from one thread, with an asyncio loop running in it.
    """

    @property
    def device_id(self) -> int: ...
    @property
    def queue_sizes(self) -> Sequence[int]:
        """The largest size of each virtqueue; its length is the number of virtqueues."""
        ...

    @property
    def offered_features(self) -> int: ...
    def accept_features(self, features: int) -> None:
        """The driver's choice, a subset of what was offered. Raises FeatureError if the device
        cannot work with it."""
        ...

    @property
    def one_used_entry_per_buffer(self) -> bool:
        """For drivers that cannot follow one used entry for a batch (2.7.9, 2.8.8)."""
        ...

    @property
    def config_size(self) -> int: ...
    def read_config(self, offset: int, length: int) -> bytes: ...
    def write_config(self, offset: int, data: bytes) -> None:
        """Raises ConfigError for a field that is not writable or a value out of range."""
        ...

    def start_queue(self, queue: DeviceQueue, enabled: bool) -> None:
        """Serve this virtqueue from now on. Not enabled (vhost-user): without side effects."""
        ...

    def enable_queue(self, index: int, enabled: bool) -> None: ...
    def stop_queue(self, index: int) -> Position:
        """Stop serving, finish or forget what is held, and tell where to resume."""
        ...

    def reset(self) -> None:
        """Back to the state before feature negotiation; every queue is stopped."""
        ...

    def on_config_change(self, notify: Callable[[], None] | None) -> None:
        """The transport's way to send a configuration change notification (None: no driver)."""
        ...


@runtime_checkable
class TranslatedDevice(Protocol):
    """What a device has besides `DeviceSide` to work behind an IOMMU (ACCESS_PLATFORM, 6.1); a
    transport does not offer that feature for a device without it.

    When `take` or a request raises TranslationMiss, the device reports it, leaves the queue as it
    is and goes on with others. The transport asks the other side, and says when to try again.
    """

    def on_translation_miss(self, resolve: Callable[[int, TranslationMiss], None] | None) -> None:
        """The transport's way to learn of guest memory without a mapping: the virtqueue's index and
        what is missing (None: no driver)."""
        ...

    def retry_queue(self, index: int) -> None:
        """A mapping has arrived: look again at a virtqueue that waited for one."""
        ...


@runtime_checkable
class TellsQueueErrors(Protocol):
    """What a driver's transport has besides `DriverTransport` if the device can tell that it has
    given up a virtqueue."""

    def queue_error(self, index: int) -> bool:
        """Whether the device has told so of this virtqueue since the last call."""
        ...


class QueueEnd(Protocol):
    """What a transport asks of the driver's half of a virtqueue: `virtq._core.DriverQueue`, or
    another that has these."""

    @property
    def index(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def features(self) -> int: ...
    @property
    def outstanding(self) -> int:
        """Buffers added and not reaped."""
        ...

    @property
    def position(self) -> Position: ...
    @property
    def device_position(self) -> Position:
        """Where a device half goes on that comes after the one before, by what the rings tell."""
        ...

    @property
    def torn(self) -> bool:
        """Whether a device that is gone left used descriptors in the way of the next one."""
        ...

    @property
    def kick_fd(self) -> int | None: ...
    @property
    def call_fd(self) -> int | None: ...
    def set_kick(self, fd: int | None) -> None: ...
    def set_call(self, fd: int | None) -> None: ...


@runtime_checkable
class WritableEarly(Protocol):
    """What a device has besides `DeviceSide` if its configuration space may be written before a
    driver has negotiated anything, such as for an emergency write (5.3.4)."""

    @property
    def config_writable_early(self) -> bool: ...


@runtime_checkable
class DrainingDevice(Protocol):
    """What a device has besides `DeviceSide` if it may hold buffers for longer than a call."""

    def drain_queue(self, index: int) -> Awaitable[object] | None:
        """Take nothing more from a virtqueue, which is about to be stopped; what is returned is
        done when all that was taken is finished. None: it is already."""
        ...


@runtime_checkable
class StatefulDevice(Protocol):
    """What a device has besides `DeviceSide` if it knows more than its rings, its configuration
    space and its storage tell, and another back-end is to go on with it (live migration)."""

    @property
    def has_state(self) -> bool:
        """Whether there is anything to save; a transport offers no transfer otherwise."""
        ...

    def save_state(self) -> bytes:
        """Everything; all virtqueues are stopped."""
        ...

    def load_state(self, state: bytes) -> None:
        """Go on with what another back-end's `save_state` returned. Raises ConfigError or
        ValueError if it makes no sense; nothing has changed then."""
        ...


@runtime_checkable
class Alarming(Protocol):
    """What a transport has besides `DriverTransport` if the end of the other side need not be asked
    for again and again."""

    @property
    def alarm_fd(self) -> int | None:
        """A descriptor that shows a hang-up (POLLRDHUP) when it is time for `check`; it may be
        another one after that."""
        ...


@runtime_checkable
class Renewable(Protocol):
    """What a transport has besides `DriverTransport` if its device can serve another driver that is
    not to see anything of the one before."""

    def renew(self) -> None:
        """Reset the device, and clear the memory that it can reach. Raises TransportError."""
        ...


@runtime_checkable
class ReadsByWidth(Protocol):
    """What a transport has besides `DriverTransport` if the device sees how wide an access to its
    configuration is, and a driver has to read each field as wide as it is (4.1.3.1, 4.2.2.2)."""

    def read_config_by(self, accesses: Sequence[tuple[int, int]]) -> list[bytes]:
        """What is read from the configuration space by each of the accesses, (offset, width) in
        bytes, all at one generation. Raises ConfigError beyond the end."""
        ...


@runtime_checkable
class ByRegisters(Protocol):
    """What a transport has besides `DriverTransport` if the device is reached by registers, and
    they can be accessed one by one."""

    @property
    def registers(self) -> Any:
        """Those of the bus (`virtq.transports.qtest.virtio_pci`, `virtio_mmio`)."""
        ...

    def undisturbed(self) -> AbstractContextManager[None]:
        """While this is held, no register is read or written, and no interrupt acknowledged, but
        by the caller; notifications wait."""
        ...

    def change_config(self) -> bool:
        """Have the device change its configuration as its owner would; whether there is a way."""
        ...


class DriverTransport(Protocol):
    """What a driver asks of a transport: one device, seen from the driver's side."""

    @property
    def memory(self) -> Memory:
        """The memory that the device can reach; driver code allocates rings and buffers in it."""
        ...

    @property
    def device_id(self) -> int | None:
        """The device type where the transport tells it (vhost-user does not)."""
        ...

    @property
    def queue_count(self) -> int: ...
    def queue_size_max(self, index: int) -> int: ...
    def read_features(self) -> int: ...
    def write_features(self, features: int) -> None: ...
    def read_status(self) -> int: ...
    def write_status(self, status: int) -> None:
        """0 resets the device and returns when the reset is complete."""
        ...

    @property
    def config_size(self) -> int:
        """0 where the transport has no configuration space for this device."""
        ...

    def read_config(self, offset: int, length: int) -> bytes: ...
    def write_config(self, offset: int, data: bytes) -> None: ...
    def enable_queue(self, queue: QueueEnd, desc: int, driver: int, device: int) -> None:
        """Tell the device where the virtqueue is (guest addresses), connect its notifications
        (`queue.set_kick`, `queue.set_call`) and enable it."""
        ...

    def reset_queue(self, index: int) -> Position:
        """Stop one virtqueue (2.6.1) and tell where the device stood."""
        ...

    def check(self) -> None:
        """Raises PeerGone if the other end is no longer there (and does not come back, where the
        transport waits for that)."""
        ...

    def on_config_change(self, callback: Callable[[], None] | None) -> None: ...
    def close(self) -> None: ...
