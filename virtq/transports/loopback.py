"""A driver and a device in one process, without a socket.

`LoopbackTransport` is the driver's transport and holds the device. The device lives in a thread of
its own with an asyncio loop; rings and buffers lie in one shared `Memory`, and notifications are
eventfds, just as they would be between two processes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from typing import TypeVar

from virtq._core import DeviceQueue, Memory, Position
from virtq.errors import ConfigError, FeatureError, PeerGone
from virtq.features import F
from virtq.status import DeviceStatus, Phase, Status, Step
from virtq.transports.base import DeviceSide, DrainingDevice, QueueEnd, WritableEarly

log = logging.getLogger("virtq.loopback")

T = TypeVar("T")

MEMORY_BYTES = 64 << 20
GUEST_BASE = 1 << 32  # beyond 32 bits, so that an address that was cut short shows at once
ANSWER_TIMEOUT_S = 60.0


class LoopbackTransport:
    """Implements `virtq.transports.base.DriverTransport` on a device in this process."""

    def __init__(
        self,
        device: DeviceSide,
        *,
        memory_bytes: int = MEMORY_BYTES,
        when_closed: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts the device's thread. `memory_bytes`: what the driver can use for rings and
        buffers. `when_closed` is called once the device is let go."""
        self.device = device
        self._when_closed = when_closed
        self._memory = Memory.allocate(memory_bytes, GUEST_BASE)
        self._status = DeviceStatus()
        self._features = 0
        self._queues: dict[int, DeviceQueue] = {}
        self._places: dict[int, tuple[int, tuple[int, int, int], int, int]] = {}
        self._change_untold = False
        self._frozen = b""
        self._callback: Callable[[], None] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="virtq-loopback", daemon=True)
        self._thread.start()
        self._ask(lambda: device.on_config_change(self._config_changed))

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def _ask(self, call: Callable[[], T]) -> T:
        """Have the device's thread make a call; what it raises is raised here."""
        if threading.current_thread() is self._thread:
            return call()
        self.check()

        async def make() -> T:
            return call()

        answer = asyncio.run_coroutine_threadsafe(make(), self._loop)
        return answer.result(ANSWER_TIMEOUT_S)

    def _config_changed(self) -> None:
        if self._status.phase is Phase.SUSPENDED:
            self._change_untold = True  # it is told when the device runs again (3.4.2)
        elif self._callback is not None and self._status.value & Status.DRIVER_OK:
            self._callback()

    # What the device is

    @property
    def memory(self) -> Memory:
        return self._memory

    @property
    def device_id(self) -> int | None:
        return self.device.device_id

    @property
    def queue_count(self) -> int:
        return len(self.device.queue_sizes)

    def queue_size_max(self, index: int) -> int:
        return self.device.queue_sizes[index]

    # Negotiation

    def read_features(self) -> int:
        return self._ask(lambda: self.device.offered_features)

    def write_features(self, features: int) -> None:
        """Raises FeatureError once FEATURES_OK is set (3.1.1)."""
        if self._status.value & Status.FEATURES_OK:
            raise FeatureError("features cannot be written any more: FEATURES_OK is set (3.1.1)")
        self._features = features

    def read_status(self) -> int:
        return self._status.value

    def write_status(self, status: int) -> None:
        """Raises StatusError for a write that section 2.1 or 3.1 does not allow."""
        for step in self._status.steps(status):
            if step is Step.SUSPEND:
                self._suspend()
            elif not self._ask(lambda step=step: self._carry_out(step)):  # type: ignore[misc]
                return
            self._status.done(step, may_suspend=bool(self._features & F.SUSPEND))
            if step is Step.RESUME and self._change_untold:
                self._change_untold = False
                self._ask(self._config_changed)

    def _carry_out(self, step: Step) -> bool:
        """In the device's thread. False if the device does not take the step."""
        if step is Step.RESET:
            self.device.reset()
            self._forget_queues()
            self._features = 0
            self._change_untold = False
        elif step is Step.ACCEPT_FEATURES:
            try:
                self.device.accept_features(self._features)
            except FeatureError as error:
                log.warning("the device leaves FEATURES_OK off: %s", error)
                return False
        elif step in (Step.GO_LIVE, Step.RESUME):
            for queue in self._queues.values():
                self.device.start_queue(queue, True)
        return True

    def _suspend(self) -> None:
        """Take no more from the virtqueues, let what was taken be used, and take the virtqueues
        back, to go on with them where they stand (3.4.2)."""
        self.check()
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(ANSWER_TIMEOUT_S)

    async def _stop(self) -> None:
        device = self.device
        if isinstance(device, DrainingDevice):
            drains = [device.drain_queue(index) for index in self._queues]
            for drained in drains:
                if drained is not None:
                    await drained
        for index in list(self._queues):
            position = device.stop_queue(index)
            self._queues[index] = self._make_queue(index, position)
        # Nothing in it changes until the device runs again, whatever its author does.
        self._frozen = device.read_config(0, device.config_size) if device.config_size else b""

    # Configuration space

    @property
    def config_size(self) -> int:
        return self.device.config_size

    def read_config(self, offset: int, length: int) -> bytes:
        """Raises ConfigError beyond the end."""
        if self._status.phase is Phase.SUSPENDED and offset + length <= len(self._frozen):
            return self._frozen[offset : offset + length]
        return self._ask(lambda: self.device.read_config(offset, length))

    def write_config(self, offset: int, data: bytes) -> None:
        """Raises ConfigError as the device does, and while features are negotiated (3.1.1), unless
        the device has something that can be written at any time."""
        early = isinstance(self.device, WritableEarly) and self.device.config_writable_early
        if not early and not self._status.value & Status.FEATURES_OK:
            raise ConfigError("the configuration cannot be written before FEATURES_OK (3.1.1)")
        if self._status.phase is Phase.SUSPENDED:
            return  # ignored (3.4.2)
        self._ask(lambda: self.device.write_config(offset, data))

    def on_config_change(self, callback: Callable[[], None] | None) -> None:
        """`callback` is called in the device's thread."""
        self._callback = callback

    # Virtqueues

    def enable_queue(self, queue: QueueEnd, desc: int, driver: int, device: int) -> None:
        kick, call = (os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2))
        try:
            queue.set_kick(kick)
            queue.set_call(call)
            self._ask(lambda: self._add_queue(queue, (desc, driver, device), kick, call))
        finally:
            os.close(kick)
            os.close(call)

    def _add_queue(
        self, queue: QueueEnd, areas: tuple[int, int, int], kick: int, call: int
    ) -> None:
        self._forget_queue(queue.index)
        self._places[queue.index] = queue.size, areas, os.dup(kick), os.dup(call)
        other = self._queues[queue.index] = self._make_queue(queue.index)
        if self._status.phase is Phase.LIVE:
            self.device.start_queue(other, True)

    def _make_queue(self, index: int, position: Position | None = None) -> DeviceQueue:
        size, areas, kick, call = self._places[index]
        queue = DeviceQueue(
            self._memory,
            self._features,
            size,
            *areas,
            index=index,
            position=position,
            one_used_entry_per_buffer=self.device.one_used_entry_per_buffer,
        )
        queue.set_kick(kick)
        queue.set_call(call)
        return queue

    def _forget_queue(self, index: int) -> None:
        self._queues.pop(index, None)
        if (place := self._places.pop(index, None)) is not None:
            os.close(place[2])
            os.close(place[3])

    def _forget_queues(self) -> None:
        for index in list(self._places):
            self._forget_queue(index)

    def reset_queue(self, index: int) -> Position:
        self._forget_queue(index)
        return self._ask(lambda: self.device.stop_queue(index))

    def queue_error(self, index: int) -> bool:
        """Whether the device has given up this virtqueue."""
        queue = self._queues.get(index)
        return queue is not None and queue.broken is not None

    # The end

    def check(self) -> None:
        if not self._thread.is_alive():
            raise PeerGone("the device's thread has ended")

    def close(self) -> None:
        """Resets the device and ends its thread. Harmless when done twice."""
        if not self._thread.is_alive():
            return
        try:
            self._ask(self._part)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._when_closed()

    def _part(self) -> None:
        self.device.reset()
        self.device.on_config_change(None)
        self._forget_queues()
