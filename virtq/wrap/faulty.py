"""A device around a device, in which things go wrong: by chance, or by a script.

    disk = Faulty(BlkDevice(Disk.file("disk.img")), "read:1%:EIO", "write:/100:delay=20ms", seed=7)

`virtq.wrap.fault` says in which words. A device whose data path runs in the core is served by its
Python path within this.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
from collections.abc import Callable, Iterable
from typing import cast

from virtq._core import Batch, DeviceQueue, Position, Request
from virtq.device import Device
from virtq.errors import RingFault, StaleBuffer, TranslationMiss
from virtq.wrap.around import BatchAround, QueueAround, RequestAround, Wrapper
from virtq.wrap.fault import REORDER_S, Dice, Fault, Plan, parse_all

log = logging.getLogger("virtq.device")

NO_SUCH_ID = 0x4000
BEYOND_ANY_LENGTH = 0x8000_0000
NEIGHBOUR = 1


class Faulty(Wrapper):
    """A device with faults."""

    def __init__(
        self, device: Device | Wrapper, *faults: str | Fault, seed: int | None = None
    ) -> None:
        """`faults`: each a text such as `read:1%:EIO`, the name of a script as `@faults.txt`, or a
        `Fault`. `seed`: what chance depends on; by default another one each time.

        Raises FaultError for a fault that cannot be understood, or that the device cannot have."""
        super().__init__(device)
        known = [one for fault in faults for one in _parsed(fault)]
        queues = [spec.name for spec in device.queues]
        filled = [spec.name for spec in device.queues if spec.fills]
        for fault in known:
            fault.check(device.request_kinds, queues, filled)
        self.seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
        self.dice = Dice(known, self.seed)
        self._counts: dict[str, int] = {}

    @property
    def happened(self) -> dict[str, int]:
        """How often each fault happened, by its text."""
        return dict(self.dice.happened)

    def around_queue(self, queue: DeviceQueue) -> DeviceQueue:
        fills = queue.index < len(self.queues) and self.queues[queue.index].fills
        return FaultyQueue.of(queue, self, fills)

    def count(self, queue: str) -> None:
        self._counts[queue] = self._counts.get(queue, 0) + 1

    def stats(self) -> dict[str, dict[str, int]]:
        """Those of the device, and `faults`: requests to which something happened."""
        return {
            name: counters | {"faults": self._counts.get(name, 0)}
            for name, counters in self.device.stats().items()
        }


def _parsed(fault: str | Fault) -> Iterable[Fault]:
    return [fault] if isinstance(fault, Fault) else parse_all([fault])


class FaultyQueue(QueueAround):
    """A queue on which requests fail, and completions go astray."""

    def __init__(self, queue: DeviceQueue, device: Faulty, fills: bool) -> None:
        super().__init__(queue)
        self._device = device
        self._name = device.queue_name(queue.index)
        self._fills = fills
        self._loop = asyncio.get_running_loop()
        self._delayed: dict[FaultyRequest, asyncio.TimerHandle] = {}
        """What the device has finished and the driver does not know of, oldest first."""
        self._reordered: list[FaultyRequest] = []
        self._calls_to_lose = 0
        self._call_late_s = 0.0
        self._late_call: asyncio.TimerHandle | None = None

    # Taking

    def take(self, max: int = 65535) -> Batch:
        while True:
            batch = self.queue.take(max)
            requests = [one for request in batch if (one := self._befall(request)) is not None]
            if requests or not len(batch):
                return BatchAround.of(batch, requests)
            self.notify()

    def _befall(self, request: Request) -> FaultyRequest | None:
        """What the device gets of a request, if anything."""
        device = self._device
        plan = device.dice.throw(device.request_kind(request), self._name)
        made = FaultyRequest(request, self, plan)
        if plan is None:
            return made
        device.count(self._name)
        if self._fills:  # not a request, but room for what the device has to say
            return made
        if plan.hang:
            return None
        if plan.error:
            self._fail(made, plan.error)
            return None
        return made

    def _fail(self, request: FaultyRequest, code: int) -> None:
        error = OSError(code, os.strerror(code))
        try:
            written = self._device.fail(cast(Request, request), error)
        except Exception:
            reason = f"{errno.errorcode[code]} was injected, and the requests have no status for it"
            self.queue.notify()
            self.queue.give_up(reason)
            raise RingFault(reason, "") from None
        request.complete(written)

    # Completing

    def completed(self, request: FaultyRequest) -> None:
        """The device has finished a request."""
        plan = request.plan
        if plan is not None and plan.delay_s:
            self._finish_later(request, plan.delay_s)
        elif plan is not None and plan.reorder:
            self._reordered.append(request)
            self._finish_later(request, REORDER_S)
        else:
            self._finish(request)
            overtaken, self._reordered = self._reordered, []
            for one in overtaken:
                if (timer := self._delayed.pop(one, None)) is not None:
                    timer.cancel()
                    self._finish(one)

    def _finish_later(self, request: FaultyRequest, delay_s: float) -> None:
        self._delayed[request] = self._loop.call_later(delay_s, self._due, request)

    def _due(self, request: FaultyRequest) -> None:
        del self._delayed[request]
        if request in self._reordered:
            self._reordered.remove(request)
        self._finish(request)
        self._carefully(self.notify)

    def _finish(self, request: FaultyRequest) -> None:
        """Tell the driver of a request, in the way that its fault says."""
        plan, inner = request.plan, request.request
        if plan is None:
            inner.complete(request.outcome)
            return
        if plan.drop_call or plan.late_call_s or plan.corruption:
            self._carefully(self.notify)  # for those before it
        if plan.corruption == "id":
            self.queue.spoil_next_used(id=NO_SUCH_ID)
        elif plan.corruption == "order":
            self.queue.spoil_next_used(id=NEIGHBOUR)
        elif plan.corruption == "length":
            self.queue.spoil_next_used(written=BEYOND_ANY_LENGTH)
        try:
            inner.complete(request.outcome)
        except StaleBuffer:
            return
        self._calls_to_lose += plan.drop_call
        self._call_late_s = max(self._call_late_s, plan.late_call_s)
        if plan.drop_call or plan.late_call_s or plan.corruption:
            self._carefully(self.notify)  # before those behind it

    # Notifying

    def notify(self) -> bool:
        if self._late_call is not None:
            self.queue.flush()
            return False
        if not self._calls_to_lose and not self._call_late_s:
            return self.queue.notify()
        if not self.queue.flush():
            return False
        if self._calls_to_lose:
            self._calls_to_lose -= 1
            self.queue.lose_call()
            return False
        self._late_call = self._loop.call_later(self._call_late_s, self._call)
        self._call_late_s = 0.0
        return False

    def _call(self) -> None:
        self._late_call = None
        self._carefully(self.notify)

    def _carefully(self, call: Callable[[], object]) -> None:
        """What goes wrong in here the runner finds when it looks at the queue next."""
        try:
            call()
        except (RingFault, StaleBuffer, TranslationMiss) as error:
            log.debug("queue %s: %s", self._name, error)

    def stop(self) -> Position:
        """What the device has finished is told now: it must not be done again."""
        if self._late_call is not None:
            self._late_call.cancel()
            self._late_call = None
        delayed, self._delayed = self._delayed, {}
        for request, timer in delayed.items():
            timer.cancel()
            self._finish(request)
        self._reordered.clear()
        return self.queue.stop()


class FaultyRequest(RequestAround):
    """A request to which something may happen."""

    __slots__ = ("outcome", "plan", "queue")

    def __init__(self, request: Request, queue: FaultyQueue, plan: Plan | None) -> None:
        super().__init__(request)
        self.queue = queue
        self.plan = plan
        self.outcome: int | None = None

    @property
    def outstanding(self) -> bool:
        return self.outcome is None and self.request.outstanding

    def complete(self, written: int | None = None) -> None:
        """As `Request.complete`: what makes no sense is said at once, not when it is due."""
        written = self.request.written if written is None else written
        if self.outcome is not None:
            raise StaleBuffer("the buffer was completed already")
        if not 0 <= written <= self.request.writable:
            raise ValueError(
                f"{written} bytes exceed the {self.request.writable} device-writable bytes"
            )
        self.outcome = written
        self.queue.completed(self)
