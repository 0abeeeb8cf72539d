"""A device around a device that remembers what its drivers did."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from virtq._core import DeviceQueue, Position, TranslationMiss
from virtq.cli.output import feature_set
from virtq.device import Device
from virtq.features import names
from virtq.wrap import Wrapper


class Recorder:
    """Passes everything on to `device`, and keeps what is gone once a driver has left."""

    def __init__(self, device: Device | Wrapper) -> None:
        self.device = device
        self.front_ends = 0
        """Connections served so far."""
        self.negotiated: int | None = None
        """The features that the last driver chose."""
        self.queue_sizes_used: dict[str, int] = {}
        """Sizes of the virtqueues as drivers set them up, by name."""

    # What it remembers

    def accept_features(self, features: int) -> None:
        self.device.accept_features(features)
        self.negotiated = features

    def start_queue(self, queue: DeviceQueue, enabled: bool) -> None:
        self.queue_sizes_used[self.device.queue_name(queue.index)] = queue.size
        self.device.start_queue(queue, enabled)

    def on_config_change(self, notify: Callable[[], None] | None) -> None:
        if notify is not None:
            self.front_ends += 1
        self.device.on_config_change(notify)

    def report(self) -> dict[str, Any]:
        """Everything known about the device's drivers, for JSON."""
        device, queues = self.device, self.device.stats()
        total: dict[str, int] = {}
        for counters in queues.values():
            for key, value in counters.items():
                total[key] = total.get(key, 0) + value
        negotiated = None
        if self.negotiated is not None:
            negotiated = feature_set(self.negotiated, names(self.negotiated, device.device_id))
        offered = device.offered_features
        return {
            "front_ends": self.front_ends,
            "offered": feature_set(offered, names(offered, device.device_id)),
            "negotiated": negotiated,
            "queue_sizes": self.queue_sizes_used,
            "queues": queues,
            "total": total,
        }

    # What it passes on

    @property
    def device_id(self) -> int:
        return self.device.device_id

    @property
    def queue_sizes(self) -> Sequence[int]:
        return self.device.queue_sizes

    @property
    def offered_features(self) -> int:
        return self.device.offered_features

    @property
    def one_used_entry_per_buffer(self) -> bool:
        return self.device.one_used_entry_per_buffer

    @property
    def config_size(self) -> int:
        return self.device.config_size

    def read_config(self, offset: int, length: int) -> bytes:
        return self.device.read_config(offset, length)

    def write_config(self, offset: int, data: bytes) -> None:
        self.device.write_config(offset, data)

    def enable_queue(self, index: int, enabled: bool) -> None:
        self.device.enable_queue(index, enabled)

    def stop_queue(self, index: int) -> Position:
        return self.device.stop_queue(index)

    def reset(self) -> None:
        self.device.reset()

    def on_translation_miss(self, resolve: Callable[[int, TranslationMiss], None] | None) -> None:
        self.device.on_translation_miss(resolve)

    def retry_queue(self, index: int) -> None:
        self.device.retry_queue(index)

    def drain_queue(self, index: int) -> Awaitable[object] | None:
        return self.device.drain_queue(index)

    @property
    def has_state(self) -> bool:
        return self.device.has_state

    def save_state(self) -> bytes:
        return self.device.save_state()

    def load_state(self, state: bytes) -> None:
        self.device.load_state(state)
