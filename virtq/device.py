"""The device role: what an author subclasses (VIRTIO 1.4, chapter 2).

A device says what it is (its id, its virtqueues, its features, its configuration space) and what it
does with a buffer (`handle`). A transport serves it through `virtq.transports.base.DeviceSide`,
which `Device` implements. Completion in order, notification and memory are the core's work.

    class Shout(virtq.Device):
        device_id = 63
        queues = (virtq.QueueSpec("requests", size=256),)

        def handle(self, request):
            return request.write(request.read().upper())

A device with several queues has a method for each (`virtq.handles`); those that the device fills by
itself, such as receive and event queues, have none but a `Supply`.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABCMeta
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from enum import IntFlag
from typing import Any, NamedTuple, Self

from virtq import handlers
from virtq._core import Batch, DeviceQueue, Position, Request, TranslationMiss
from virtq.configspace import ConfigSpace
from virtq.errors import FeatureError
from virtq.features import PLATFORM_FEATURES, RING_FEATURES, Change, F, closed, describe, register
from virtq.runner import BatchRunner, LoopRunner, RequestRunner, Runner, Written
from virtq.supply import Supplies, Supply, SupplyRunner

log = logging.getLogger("virtq.device")


QUEUE_SIZE_MAX = 32768
"""Descriptor slots that a virtqueue has at most, split (2.7) or packed (2.8)."""


class QueueSpec(NamedTuple):
    """A virtqueue that a device has: its name, its largest size in descriptor slots, and whether it
    is the device that fills the buffers when it has something (receive and event queues)."""

    name: str
    size: int = 256
    fills: bool = False


class _Checked(ABCMeta):
    """Looks at every new device once it is made: each of its queues needs somebody to serve it."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        device = super().__call__(*args, **kwargs)
        device.check_handlers()
        return device


class Device(ConfigSpace, metaclass=_Checked):
    """The base of every device.

    A subclass sets `device_id`, `queues` and, where it has them, `features` (device-specific bits
    that it offers), `optional_features` (bits that it offers when asked), `feature_bits` (their
    names) and `config` (a dataclass made of `virtq.wire.layout` fields, of which every device gets
    its own copy). It overrides one of `handle` and `handle_batch`, or has methods marked with
    `virtq.handles` or `virtq.handles_batch` for each queue that it does not fill itself. All calls
    come from one thread, in which an asyncio loop runs.

    Making a device raises TypeError if one of its queues has nobody to serve it, ValueError if one
    is of a size that no queue has (2.7, 2.8), and making the class raises TypeError if a method
    handles a queue that the class does not have."""

    device_id: int = 0
    queues: Sequence[QueueSpec] = ()
    features: int = 0
    optional_features: int = PLATFORM_FEATURES | F.SUSPEND

    feature_bits: type[IntFlag] | None = None
    """The names of the device type's own feature bits, for `offer`, messages and the command line;
    known for this `device_id` from the moment the class is made."""

    offer: Change | str = Change()
    """How the offered features differ from those that the device offers by itself, as a change or
    as text such as `+IN_ORDER,-EVENT_IDX`."""

    one_used_entry_per_buffer: bool = False
    """Under IN_ORDER, whether each buffer gets its used entry, for drivers that cannot do without;
    by default one entry covers as many as it may (2.7.9, 2.8.8)."""

    request_kinds: Sequence[str] = ()
    """The names that `request_kind` tells requests apart by."""

    _handled: tuple[handlers.Handles, ...] = ()
    _driver_features: int
    _runners: dict[int, Runner]
    _live: set[int]
    _started: bool
    _tasks: set[asyncio.Task[Any]]
    _supplies: Supplies
    _totals: dict[int, dict[str, int]]
    _resolve_miss: Callable[[int, TranslationMiss], None] | None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._handled = handlers.collect(cls)
        queues = cls.queues
        if cls._handled and isinstance(queues, Sequence) and queues:
            handlers.check_names(cls, cls._handled, [spec.name for spec in queues])
        if cls.feature_bits is not None:
            register(cls.device_id, cls.feature_bits)

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        self = super().__new__(cls, *args, **kwargs)
        self._driver_features = 0
        self._runners = {}
        self._live = set()
        self._started = False
        self._tasks = set()
        self._supplies = Supplies(lambda: [spec.name for spec in self.queues if spec.fills])
        self._totals = {}
        self._resolve_miss = None
        return self

    # What an author overrides

    def handle(self, request: Request) -> int | Awaitable[int | None] | None:
        """Serve one buffer; returns how many bytes were written to it (None: `request.written`).

        May be `async`; later requests are then served meanwhile, and still complete in order where
        IN_ORDER was negotiated. `request.queue_index` tells the queue. If it raises, see `fail`.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither handle nor handle_batch")

    def handle_batch(self, batch: Batch) -> Written | Awaitable[Written]:
        """Serve several buffers of one queue at once; returns the bytes written to all, or to each,
        or None if every request was completed here. Override this instead of `handle` to see
        whole batches. If it raises, each request not completed yet goes to `fail`."""
        raise NotImplementedError

    def fail(self, request: Request, error: Exception) -> int | None:
        """End a request whose handler raised `error`; returns the bytes written to it (None:
        `request.written`). A device type whose requests have a status writes the one for an error.
        This one has none: it raises, which breaks the request's queue (the driver is told by the
        transport), while the device and its other queues go on."""
        raise error

    def negotiated(self, features: int) -> None:
        """The driver's choice is known. Raise FeatureError if the device cannot work with it."""

    def started(self) -> Awaitable[None] | None:
        """The first queue is live since features were negotiated. May be `async`: it is then
        carried on with, beside everything else, until the driver resets the device."""
        return None

    def queue_started(self, name: str) -> None:
        """A queue is live: set up by the driver, and enabled. This happens again after each
        `queue_stopped`, which need not mean that the driver began anew."""

    def queue_stopped(self, name: str) -> None:
        """A queue that was live is not any more."""

    def was_reset(self) -> None:
        """The driver reset the device, or left; every queue is stopped."""

    def save_state(self) -> bytes:
        """What another process needs to go on with this device (live migration) and cannot learn
        from rings, configuration space and storage; all queues are stopped. By default there is no
        such thing. Override this together with `load_state`."""
        raise NotImplementedError(f"{type(self).__name__} has no state to save")

    def load_state(self, state: bytes) -> None:
        """Go on with what `save_state` returned elsewhere. Raise ConfigError or ValueError if it
        makes no sense, having changed nothing."""
        raise NotImplementedError(f"{type(self).__name__} has no state to load")

    def close(self) -> None:
        """Give up what the device holds outside of it, such as files; it is not served any more."""

    def request_kind(self, request: Request) -> str:
        """What a request is for, as one of `request_kinds`, or nothing; from a look at it
        (`request.peek`). For fault injection and traces."""
        return ""

    def wrapped(self) -> None:
        """A wrapper (`virtq.wrap`) is going to stand between the device and its queues: what
        `runner` gets from now on is not the core's, so no data path of the core can serve it."""

    def runner(self, queue: DeviceQueue) -> Runner:
        """What is to serve a queue: by default its `Supply`, or the method that handles it, called
        from the loop."""
        name = self.queue_name(queue.index)
        if queue.index < len(self.queues) and self.queues[queue.index].fills:
            supply = self._supplies[self.queues[queue.index].name]
            return SupplyRunner(queue, supply, name=name, missed=self._resolve_miss)
        method, batches = self._method_for(name)
        kind = BatchRunner if batches else RequestRunner
        return kind(queue, method, name=name, missed=self._resolve_miss, fail=self.fail)

    # What an author calls

    @property
    def driver_features(self) -> int:
        """The features in use: the driver's choice, 0 before it is made."""
        return self._driver_features

    @property
    def supplies(self) -> Mapping[str, Supply]:
        """Of each queue that is the device's to fill, the buffers that the driver supplies."""
        return self._supplies

    def queue_name(self, index: int) -> str:
        """The name of a virtqueue for messages."""
        return self.queues[index].name if index < len(self.queues) else f"queue{index}"

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Carry on with `work` beside everything else, until the driver resets the device: it is
        cancelled then. What it raises is logged. From the device's thread."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._work_ended)
        return task

    def _work_ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s: %s failed", type(self).__name__, task.get_name(), exc_info=error)

    def stats(self) -> dict[str, dict[str, int]]:
        """Counters by queue name, over the life of the device: those of the core (buffers,
        batches, bytes_read, bytes_written, kicks_received, calls_sent, calls_saved, used_entries)
        and those of the queue's runner."""
        live = {index: self._sum(index, r.stats) for index, r in self._runners.items()}
        return {self.queue_name(i): s for i, s in sorted((self._totals | live).items())}

    def _sum(self, index: int, stats: Mapping[str, int]) -> dict[str, int]:
        before = self._totals.get(index, {})
        return {key: value + before.get(key, 0) for key, value in stats.items()}

    # Who serves which queue

    def check_handlers(self) -> None:
        """Raises ValueError if a queue has a size that none can have, TypeError if it has nobody to
        serve it. Devices are checked when they are made; one that brings runners of its own answers
        for itself."""
        for spec in self.queues:
            if not 1 <= spec.size <= QUEUE_SIZE_MAX:
                text = f"a queue has 1 to {QUEUE_SIZE_MAX} slots"
                raise ValueError(f"{text}, not {spec.size} as {spec.name} would")
        if type(self).runner is not Device.runner:
            return
        for spec in self.queues:
            if not spec.fills:
                self._method_for(spec.name)

    def _method_for(self, queue: str) -> tuple[Callable[[Any], Any], bool]:
        """The method that handles a queue, and whether it takes batches."""
        if (found := handlers.find(self._handled, queue)) is not None:
            return getattr(self, found.method), found.batches
        if getattr(self.handle_batch, "__func__", None) is not Device.handle_batch:
            return self.handle_batch, True
        if getattr(self.handle, "__func__", None) is not Device.handle:
            return self.handle, False
        raise TypeError(
            f"{type(self).__name__} has nobody to serve queue {queue}: neither handle nor "
            f"handle_batch, and no method with @virtq.handles({queue!r})"
        )

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
    def has_state(self) -> bool:
        """Whether `save_state` is overridden."""
        return type(self).save_state is not Device.save_state

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
        self._mark_live(queue.index, enabled)

    def enable_queue(self, index: int, enabled: bool) -> None:
        if runner := self._runners.get(index):
            runner.enable(enabled)
            self._mark_live(index, enabled)

    def drain_queue(self, index: int) -> Awaitable[object] | None:
        """See `virtq.transports.base.DrainingDevice`."""
        runner = self._runners.get(index)
        return runner.drain() if isinstance(runner, LoopRunner) else None

    def stop_queue(self, index: int) -> Position:
        """Raises KeyError for a virtqueue that was not started."""
        runner = self._runners.pop(index)
        position = runner.stop()
        self._totals[index] = self._sum(index, runner.stats)
        self._mark_live(index, False)
        return position

    def _mark_live(self, index: int, live: bool) -> None:
        """Tell the author, whose mistakes must not become the driver's."""
        if live == (index in self._live):
            return
        name = self.queue_name(index)
        if not live:
            self._live.discard(index)
            self._tell(self.queue_stopped, name)
            return
        self._live.add(index)
        if not self._started:
            self._started = True
            work = self._tell(self.started)
            if asyncio.iscoroutine(work):
                self.spawn(work)
        self._tell(self.queue_started, name)

    def _tell(self, hook: Callable[..., Any], *args: object) -> Any:
        try:
            return hook(*args)
        except Exception:
            log.exception("%s: %s failed", type(self).__name__, hook.__name__)
            return None

    def reset(self) -> None:
        for index in list(self._runners):
            self.stop_queue(index)
        for task in self._tasks:
            task.cancel()
        for supply in self._supplies.values():
            supply.reset()
        self._driver_features = 0
        self._started = False
        self.was_reset()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: device type {self.device_id}, {len(self.queues)} queues>"
