"""The driver role: initialization, feature negotiation, virtqueues (VIRTIO 1.4, section 3.1).

A `Driver` made on a transport is live: it has reset the device, negotiated, set its virtqueues up
in memory that the device can reach, and set DRIVER_OK. As it stands it drives any device type,
buffer by buffer; `virtq.drivers` has the ones that know a type.

    with Driver(transport, want=F.IN_ORDER) as driver:
        driver.queues[0].call(b"hello", reply=5)
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from virtq.device import QueueSpec
from virtq.errors import ConfigError, FeatureError, PeerGone, RingFault, StatusError, VirtqError
from virtq.features import (
    PLATFORM_FEATURES,
    RING_FEATURES,
    Change,
    F,
    RingKind,
    closed,
    describe,
    names,
    parse,
)
from virtq.memory import Arena
from virtq.queue import DriverQueue, Queues
from virtq.status import DriverStatus, Step
from virtq.transports.base import Alarming, DriverTransport, ReadsByWidth, TellsQueueErrors
from virtq.wire import layout

RESET_TIMEOUT_S = 5.0


class Driver:
    """Drives one device. Not for several threads at once, but for `call` and `acall` of its queues.

    A subclass for a device type sets `device_id`, `features` (device-specific bits that it
    accepts), `optional_features` (bits that it accepts when asked), `config_layout` with
    `config_fields` (which feature brings which field), `needs_config` if it cannot do without, and
    overrides the hooks below."""

    device_id: int | None = None
    features: int = 0
    optional_features: int = 0
    config_layout: type | None = None
    config_fields: Mapping[str, int] = {}
    needs_config: bool = False
    queue_size: int = 256
    indirect_length: int = 4

    def __init__(
        self,
        transport: DriverTransport,
        *,
        want: int | str = 0,
        offer: Change | str | None = None,
        queue_size: int | None = None,
    ) -> None:
        """Initializes the device (3.1.1).

        `want`: features without which to give up, as bits or as names with commas between.
        `offer`: how what this driver is ready to accept differs from what it accepts by itself,
        as a change or as text such as `-RING_PACKED`. `queue_size`: slots to set up in each
        virtqueue, if the device has them.

        Raises FeatureError if the device lacks a wanted feature or VERSION_1, StatusError if it
        does not take the subset, PeerGone, TransportError; the device then shows FAILED, and the
        transport is still the caller's."""
        self.transport = transport
        self.arena = Arena(transport.memory)
        self._device_id = self.device_id if self.device_id is not None else transport.device_id
        self._want = parse(want, self._device_id) if isinstance(want, str) else want
        self._offer = Change.of(offer, self._device_id)
        if queue_size is not None:
            self.queue_size = queue_size
        self.offered_features = 0
        self.driver_features = 0
        self.queues = Queues([])
        self._status = DriverStatus()
        self._config_stale = threading.Event()
        self._config: Any = None
        self._initialize()

    # Hooks for device types

    def choose(self, acceptable: int) -> int:
        """The subset to accept, given what the device offers and this driver is ready for."""
        return acceptable

    def plan(self) -> Mapping[int, QueueSpec]:
        """The virtqueues to set up, by index; features are known, configuration can be read."""
        count = self.transport.queue_count
        return {index: QueueSpec(f"queue{index}", self.queue_size) for index in range(count)}

    def populate(self, queue: DriverQueue) -> None:
        """Add first buffers to a virtqueue that was set up; nothing is notified yet."""

    def went_live(self) -> None:
        """DRIVER_OK is set: notifications may be sent (3.1.1)."""

    def was_reset(self) -> None:
        """The device is reset, and the virtqueues are gone: forget what was theirs."""

    # What it is

    @property
    def kind(self) -> RingKind:
        """The kind of ring that was negotiated."""
        return RingKind.of(self.driver_features)

    @property
    def feature_names(self) -> list[str]:
        """The negotiated features by name."""
        return names(self.driver_features, self._device_id)

    def has(self, features: int) -> bool:
        """Whether all these features were negotiated."""
        return self.driver_features & features == features

    def stats(self) -> dict[str, dict[str, int]]:
        """The core's counters by queue name."""
        return {q.name: q.stats for q in map(self.queues.__getitem__, self.queues)}

    # The configuration space

    @property
    def config(self) -> Any:
        """The configuration space as `config_layout`, read anew after each change notification.
        Fields whose feature the device does not offer are zero (2.5.1). None where there is
        none."""
        if self.config_layout is not None and self._config_stale.is_set():
            self._config_stale.clear()
            data = self._read_config(self._config_length(self.config_layout))
            self._config = None if data is None else layout.unpack(self.config_layout, data)
        return self._config

    def _read_config(self, length: int) -> bytes | None:
        try:
            return self._read_fields(length)
        except ConfigError:  # it may be shorter than it should be, or not there at all
            length = min(length, self.transport.config_size)
            return self._read_fields(length) if length else None

    def _read_fields(self, length: int) -> bytes:
        if self.config_layout is None or not isinstance(self.transport, ReadsByWidth):
            return self.transport.read_config(0, length)
        accesses = [
            access
            for leaf in layout.fields_of(self.config_layout)
            if leaf.offset + leaf.size <= length and self._exists(leaf)
            for access in layout.accesses(leaf)
        ]
        data = bytearray(length)
        for (at, width), part in zip(
            accesses, self.transport.read_config_by(accesses), strict=True
        ):
            data[at : at + width] = part
        return bytes(data)

    def _exists(self, leaf: layout.Field) -> bool:
        """Whether the device offers the feature that brings this field of the configuration."""
        feature = self.config_fields.get(leaf.name.partition(".")[0], -1)
        return feature == -1 or bool(feature & self.offered_features)

    def _config_length(self, structure: type) -> int:
        """Up to the last field that exists: a device need not have room for others."""
        length = 0
        for leaf in layout.fields_of(structure):
            if self._exists(leaf):
                length = leaf.offset + leaf.size
        return length

    def write_config(self, field: str, value: int | bytes) -> None:
        """Write one configuration field. Raises ConfigError if there is no such field or the
        driver may not write it."""
        for leaf in layout.fields_of(self.config_layout) if self.config_layout else ():
            if leaf.name == field and leaf.writable:
                raw = value if isinstance(value, bytes) else value.to_bytes(leaf.size, "little")
                self.transport.write_config(leaf.offset, raw)
                self._config_stale.set()
                return
        raise ConfigError(f"there is no configuration field {field} that a driver may write")

    # Life

    def _initialize(self) -> None:
        try:
            self._step(Step.RESET)
            self._config_stale.set()
            self._step(Step.ACKNOWLEDGE)
            self._step(Step.KNOW_DRIVER)
            self._negotiate()
            self._step(Step.ACCEPT_FEATURES)
            self._config_stale.set()
            self.transport.on_config_change(self._config_stale.set)
            self._set_up_queues()
            self._step(Step.GO_LIVE)
            self.went_live()
        except Exception:
            with contextlib.suppress(VirtqError, OSError):
                self.transport.write_status(self._status.step(Step.FAIL))
            raise

    def _step(self, step: Step) -> None:
        self.transport.write_status(self._status.step(step))
        deadline = time.monotonic() + RESET_TIMEOUT_S
        while True:
            try:
                self._status.confirm(self.transport.read_status())
                return
            except StatusError:
                if step is not Step.RESET or time.monotonic() > deadline:
                    raise
                time.sleep(0.001)

    def _negotiate(self) -> None:
        self.offered_features = offered = self.transport.read_features()
        if not offered & F.VERSION_1:
            raise FeatureError("the device does not offer VERSION_1; legacy devices are not driven")
        own = int(self.features | RING_FEATURES | PLATFORM_FEATURES | F.VERSION_1)
        strange = self._offer.add & ~(own | self.optional_features)
        if strange and self.device_id is not None:
            raise FeatureError(f"this driver does not have {describe(strange, self._device_id)}")
        ready = self._offer.apply(own) | self._want | F.VERSION_1
        accepted = closed(self.choose(offered & ready), self._device_id)
        if lacking := self._want & ~accepted:
            what = describe(lacking, self._device_id)
            raise FeatureError(f"wanted, but the device does not offer: {what}")
        self.transport.write_features(accepted)
        self.driver_features = accepted

    def _set_up_queues(self) -> None:
        if self.needs_config and self.config is None:
            raise ConfigError(
                f"the device has no configuration space, and {type(self).__name__} needs it"
                " (a vhost-user back-end has to take the protocol feature CONFIG)"
            )
        queues = []
        for index, spec in sorted(self.plan().items()):
            queues.append(self._set_up(index, spec))
        self.queues = Queues(queues, any_name=type(self).plan is Driver.plan)
        for queue in queues:
            self.populate(queue)

    def _set_up(self, index: int, spec: QueueSpec) -> DriverQueue:
        queue = DriverQueue(
            spec.name,
            self.arena,
            self.driver_features,
            self.ring_size(index, spec.size),
            index=index,
            indirect_length=self.indirect_length,
            check=self._checker(index, spec.name),
            alarm=self._alarm,
        )
        ring = queue.memory
        self.transport.enable_queue(queue.core, ring.desc, ring.driver, ring.device)
        return queue

    def _checker(self, index: int, name: str) -> Callable[[], None]:
        """What raises if the other end is gone, or has given up this virtqueue."""
        given_up = False

        def check() -> None:
            nonlocal given_up
            self.transport.check()
            if isinstance(self.transport, TellsQueueErrors):
                given_up = given_up or self.transport.queue_error(index)
            if given_up:
                raise RingFault(f"queue {name}: the device has given it up; its log says why", "")

        return check

    def _alarm(self) -> int | None:
        return self.transport.alarm_fd if isinstance(self.transport, Alarming) else None

    def ring_size(self, index: int, wanted: int) -> int:
        """How many slots a virtqueue gets: no more than the device has for it, and with the split
        layout a power of two (2.7)."""
        size = min(wanted, self.transport.queue_size_max(index))
        return size if self.kind.packed else 1 << (size.bit_length() - 1)

    def reset_queue(self, key: str | int) -> list[Any]:
        """Reset one virtqueue and set it up again (2.6.1); returns the cookies of the buffers
        that the device had not used. Raises FeatureError without RING_RESET."""
        if not self.has(F.RING_RESET):
            raise FeatureError("a virtqueue cannot be reset: RING_RESET was not negotiated")
        old = self.queues[key]
        self.transport.reset_queue(old.index)
        cookies = old.take_back()
        old.release()
        new = self._set_up(old.index, QueueSpec(old.name, old.size))
        self.queues = self.queues.with_queue(new)
        self.populate(new)
        new.kick()
        return cookies

    def reset(self) -> None:
        """Reset the device and initialize it again, with the same wishes. Buffers that were
        outstanding are forgotten. Raises what `Driver()` raises."""
        self._tear_down()
        self._initialize()

    def close(self) -> None:
        """Reset the device and close the transport. Harmless if the other end is gone already."""
        with contextlib.suppress(PeerGone, OSError):
            self._tear_down()
        self.transport.close()

    def _tear_down(self) -> None:
        self._step(Step.RESET)
        for name in self.queues:
            self.queues[name].release()
        self.queues = Queues([])
        self.was_reset()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__}: {self.kind.title}, queues {', '.join(map(str, self.queues))}>"
        )
