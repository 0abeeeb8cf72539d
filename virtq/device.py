"""The device role: what an author subclasses (VIRTIO 1.4, chapter 2).

A device says what it is (its id, its virtqueues, its features, its configuration space) and what it
does with a buffer (`handle`). A transport serves it through `virtq.transports.base.DeviceSide`,
which `Device` implements. Completion in order, notification and memory are the core's work.

    class Shout(virtq.Device):
        device_id = 63
        queues = (virtq.QueueSpec("requests", size=256),)

        def handle(self, request):
            return request.write(request.read().upper())
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

from virtq._core import Batch, DeviceQueue, Position, Request, TranslationMiss
from virtq.errors import ConfigError, FeatureError
from virtq.features import RING_FEATURES, Change, F, closed, describe
from virtq.runner import BatchRunner, RequestRunner, Runner, Written
from virtq.wire import layout

log = logging.getLogger("virtq.device")


class QueueSpec(NamedTuple):
    """A virtqueue that a device has: its name, and its largest size in descriptor slots."""

    name: str
    size: int = 256


class Device:
    """The base of every device.

    A subclass sets `device_id`, `queues` and, where it has them, `features` (device-specific bits
    that it offers) and `config` (a dataclass made of `virtq.wire.layout` fields, of which every
    device gets its own copy), and overrides one of `handle` and `handle_batch`. All calls come
    from one thread, in which an asyncio loop runs."""

    device_id: int = 0
    queues: Sequence[QueueSpec] = ()
    features: int = 0
    optional_features: int = F.ACCESS_PLATFORM | F.ORDER_PLATFORM
    config: Any = None

    offer: Change | str = Change()
    """How the offered features differ from those that the device offers by itself, as a change or
    as text such as `+IN_ORDER,-EVENT_IDX`."""

    one_used_entry_per_buffer: bool = False
    """Under IN_ORDER, whether each buffer gets its used entry, for drivers that cannot do without;
    by default one entry covers as many as it may (2.7.9, 2.8.8)."""

    _driver_features: int
    _runners: dict[int, Runner]
    _totals: dict[int, dict[str, int]]
    _notify_config: Callable[[], None] | None
    _resolve_miss: Callable[[int, TranslationMiss], None] | None
    _loop: asyncio.AbstractEventLoop | None

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        # Made here, so that an author's __init__ need not call this class's.
        self = super().__new__(cls)
        self.config = copy.deepcopy(cls.config)
        self._driver_features = 0
        self._runners = {}
        self._totals = {}
        self._notify_config = None
        self._resolve_miss = None
        self._loop = None
        return self

    # What an author overrides

    def handle(self, request: Request) -> int | Awaitable[int | None] | None:
        """Serve one buffer; returns how many bytes were written to it (None: `request.written`).

        May be `async`; later requests are then served meanwhile, and still complete in order where
        IN_ORDER was negotiated. If it raises, the request completes with 0 bytes written.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither handle nor handle_batch")

    def handle_batch(self, batch: Batch) -> Written | Awaitable[Written]:
        """Serve several buffers of one queue at once; returns the bytes written to all, or to each,
        or None if every request was completed here. Override this instead of `handle` to see
        whole batches. If it raises, what is not completed yet is, with 0 bytes written."""
        raise NotImplementedError

    def negotiated(self, features: int) -> None:
        """The driver's choice is known. Raise FeatureError if the device cannot work with it."""

    def config_written(self, field: str, value: Any) -> None:
        """The driver writes a configuration field; it changes after this returns. Raise
        ConfigError if the value is out of range."""

    def was_reset(self) -> None:
        """The driver reset the device; every queue is stopped."""

    def close(self) -> None:
        """Give up what the device holds outside of it, such as files; it is not served any more."""

    def runner(self, queue: DeviceQueue) -> Runner:
        """What is to serve a queue: by default `handle_batch` or `handle`, called from the loop."""
        name = self.queue_name(queue.index)
        if type(self).handle_batch is not Device.handle_batch:
            return BatchRunner(queue, self.handle_batch, name=name, missed=self._resolve_miss)
        return RequestRunner(queue, self.handle, name=name, missed=self._resolve_miss)

    # What an author calls

    @property
    def driver_features(self) -> int:
        """The features in use: the driver's choice, 0 before it is made."""
        return self._driver_features

    def queue_name(self, index: int) -> str:
        """The name of a virtqueue for messages."""
        return self.queues[index].name if index < len(self.queues) else f"queue{index}"

    def config_changed(self) -> None:
        """Tell the driver that the configuration space changed (3.2.1). From any thread."""
        notify, loop = self._notify_config, self._loop
        if notify is None or loop is None:
            return
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is loop:
            notify()
        elif not loop.is_closed():
            loop.call_soon_threadsafe(notify)

    def stats(self) -> dict[str, dict[str, int]]:
        """Counters by queue name, over the life of the device: those of the core (buffers,
        batches, bytes_read, bytes_written, kicks_received, calls_sent, calls_saved, used_entries)
        and those of the queue's runner."""
        live = {index: self._sum(index, r.stats) for index, r in self._runners.items()}
        return {self.queue_name(i): s for i, s in sorted((self._totals | live).items())}

    def _sum(self, index: int, stats: Mapping[str, int]) -> dict[str, int]:
        before = self._totals.get(index, {})
        return {key: value + before.get(key, 0) for key, value in stats.items()}

    # What a transport calls (virtq.transports.base.DeviceSide)

    @property
    def queue_sizes(self) -> Sequence[int]:
        return [spec.size for spec in self.queues]

    @property
    def offered_features(self) -> int:
        """Raises FeatureError if `offer` adds a feature that the device does not have, or takes
        VERSION_1 away (6.2). Features whose prerequisites are taken away go with them (2.2.2)."""
        own = int(self.features | RING_FEATURES | F.VERSION_1)
        change = Change.of(self.offer, self.device_id)
        if strange := change.add & ~(own | self.optional_features):
            raise FeatureError(f"this device does not have {describe(strange, self.device_id)}")
        if change.remove & F.VERSION_1:
            raise FeatureError("a device always offers VERSION_1 (6.2)")
        return closed(change.apply(own), self.device_id)

    def accept_features(self, features: int) -> None:
        if surplus := features & ~self.offered_features:
            raise FeatureError(f"not offered, yet accepted: {describe(surplus, self.device_id)}")
        if not features & F.VERSION_1:
            raise FeatureError("the driver did not accept VERSION_1; legacy drivers are not served")
        # A bit without its prerequisite is the driver's fault (2.2.1), but no reason to refuse:
        # front-ends that serve the control queue themselves accept MQ for the back-end, and
        # CTRL_VQ not.
        self.negotiated(features)
        self._driver_features = int(features)

    @property
    def config_size(self) -> int:
        return 0 if self.config is None else layout.size_of(type(self.config))

    def read_config(self, offset: int, length: int) -> bytes:
        """Raises ConfigError beyond the end of the configuration space."""
        self._check_config_range(offset, length)
        return layout.pack(self.config)[offset : offset + length] if length else b""

    def write_config(self, offset: int, data: bytes) -> None:
        """Raises ConfigError for a field that is not writable or a value out of range; nothing
        changes then."""
        self._check_config_range(offset, len(data))
        if not data:
            return
        touched = layout.fields_in(type(self.config), offset, len(data))
        for leaf in touched:
            if not leaf.writable:
                raise ConfigError(f"configuration field {leaf.name} is not writable")
        image = bytearray(layout.pack(self.config))
        image[offset : offset + len(data)] = data
        wanted = layout.unpack(type(self.config), bytes(image))
        values = {leaf.name: layout.get(wanted, leaf.name) for leaf in touched}
        for name, value in values.items():
            self.config_written(name, value)
        for name, value in values.items():
            layout.put(self.config, name, value)

    def _check_config_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.config_size:
            end = offset + length
            raise ConfigError(
                f"bytes {offset} to {end} of a configuration space of {self.config_size}"
            )

    def on_config_change(self, notify: Callable[[], None] | None) -> None:
        self._notify_config = notify
        self._loop = asyncio.get_running_loop() if notify is not None else None

    def on_translation_miss(self, resolve: Callable[[int, TranslationMiss], None] | None) -> None:
        """The transport's way to learn of guest memory without a mapping (queue index, what is
        missing); `retry_queue` continues once it is mapped."""
        self._resolve_miss = resolve

    def retry_queue(self, index: int) -> None:
        """Look again at a virtqueue that waited for a mapping."""
        if runner := self._runners.get(index):
            runner.retry()

    def start_queue(self, queue: DeviceQueue, enabled: bool) -> None:
        if queue.index in self._runners:
            self.stop_queue(queue.index)
        runner = self._runners[queue.index] = self.runner(queue)
        runner.start()
        runner.enable(enabled)

    def enable_queue(self, index: int, enabled: bool) -> None:
        if runner := self._runners.get(index):
            runner.enable(enabled)

    def stop_queue(self, index: int) -> Position:
        """Raises KeyError for a virtqueue that was not started."""
        runner = self._runners.pop(index)
        position = runner.stop()
        self._totals[index] = self._sum(index, runner.stats)
        return position

    def reset(self) -> None:
        for index in list(self._runners):
            self.stop_queue(index)
        self._driver_features = 0
        self.was_reset()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: device type {self.device_id}, {len(self.queues)} queues>"
