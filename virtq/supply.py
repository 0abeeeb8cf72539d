"""Queues that the device fills when it has something: receive and event queues.

The driver supplies empty buffers on such a queue (`QueueSpec(..., fills=True)`), and the device
uses them one after the other, in the order in which they were supplied:

    self.supplies["eventq"].put_nowait(event)      # now, or QueueFull
    await self.supplies["eventq"].put(event)       # as soon as there is a buffer

A supply lives as long as its device. While the driver has the queue stopped or not set up yet there
are no buffers. `put` then waits on, over a stop and a new start; a reset of the device ends the
wait with DeviceReset, for what waited was meant for a driver that is gone. Buffers that were not
needed are given back when the queue stops.

All calls come from the device's thread, but for `put_threadsafe`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from collections import deque
from collections.abc import Callable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

from virtq._core import Batch, DeviceQueue, Position, Request
from virtq.errors import DeviceReset, QueueFull, RingFault, TranslationMiss, VirtqError
from virtq.runner import Watch, log_broken

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

log = logging.getLogger("virtq.device")

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

FETCH_BUFFERS = 64
"""Buffers taken at once."""


class Supply:
    """The buffers that a driver supplies on one queue, and what the device puts into them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._runner: SupplyRunner | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[_Waiting] = deque()

    # What an author calls

    @property
    def free(self) -> int:
        """Buffers that the driver has supplied and that nothing was put into yet."""
        return self._runner.count() if self._runner is not None else 0

    def rooms(self, count: int) -> list[int]:
        """The room in bytes of each of the next `count` buffers that can be used; fewer if there
        are fewer."""
        return self._runner.rooms(count) if self._runner is not None else []

    def give_up(self, reason: str) -> None:
        """Break the queue: what the driver supplies cannot be used, for this reason. The driver is
        told by the transport."""
        if self._runner is not None:
            self._runner.give_up(reason)

    @property
    def waiting(self) -> int:
        """Calls of `put`, `write_all` and `wait_free` that wait for buffers."""
        return len(self._waiting)

    def put_nowait(self, *items: ReadableBuffer) -> None:
        """Put each item into a buffer of its own and notify the driver once: all of them or none.

        Raises QueueFull if the driver has not supplied as many buffers, or others wait for them
        already, and ValueError for an item that is larger than its buffer; nothing is used then."""
        if self._waiting:
            raise QueueFull(f"queue {self.name}: {len(self._waiting)} others wait for buffers")
        if self._runner is None or not self._runner.place(items):
            raise QueueFull(f"queue {self.name}: no buffers for {len(items)} items")

    async def put(self, *items: ReadableBuffer) -> None:
        """The same, once there are buffers; first come, first served. Cancelled while it waits it
        has put nothing. Raises ValueError as `put_nowait` does, DeviceReset."""
        await self._until(lambda: self._runner is not None and self._runner.place(items))

    def put_threadsafe(self, *items: ReadableBuffer) -> concurrent.futures.Future[None]:
        """`put` from any thread. Raises QueueFull if the device is not served."""
        if self._loop is None or self._loop.is_closed():
            raise QueueFull(f"queue {self.name}: the device is not served")
        return asyncio.run_coroutine_threadsafe(self.put(*items), self._loop)

    def write(self, data: ReadableBuffer) -> int:
        """For streams: spread bytes over as many buffers as it takes, and notify the driver once.
        Returns how many bytes there was room for: 0 without buffers, or while others wait."""
        if self._waiting or self._runner is None:
            return 0
        return self._runner.spread(memoryview(data).cast("B"))

    async def write_all(self, data: ReadableBuffer) -> None:
        """`write`, waiting for buffers until all is written. Cancelled, a part may be written.
        Raises DeviceReset."""
        rest = memoryview(data).cast("B")

        def write_more() -> bool:
            nonlocal rest
            if self._runner is not None:
                rest = rest[self._runner.spread(rest) :]
            return not rest

        await self._until(write_more)

    async def wait_free(self, count: int = 1) -> None:
        """Wait until the driver has supplied `count` buffers. Raises DeviceReset."""
        await self._until(lambda: self.free >= count)

    # Waiting

    async def _until(self, step: Callable[[], bool]) -> None:
        """Wait until `step` succeeds; it is tried in turn whenever buffers came."""
        if not self._waiting and step():
            return
        waiting = _Waiting(step)
        self._waiting.append(waiting)
        self._ask()
        try:
            await waiting.done
        finally:
            if waiting in self._waiting:  # cancelled
                self._waiting.remove(waiting)
                self._ask()

    def _ask(self) -> None:
        """Serve whoever waits, and have the driver tell of new buffers as long as one does."""
        while self._waiting:
            first = self._waiting[0]
            try:
                ready = first.done.done() or first.step()
            except Exception as error:
                self._waiting.popleft()
                first.done.set_exception(error)
                continue
            if ready:
                self._waiting.popleft()
                if not first.done.done():
                    first.done.set_result(None)
            elif self._runner is None or not self._runner.listen():
                return
        if self._runner is not None:
            self._runner.unlisten()

    # What the runner and the device call

    def attach(self, runner: SupplyRunner) -> None:
        """The queue is live."""
        self._runner, self._loop = runner, asyncio.get_running_loop()
        self._ask()

    def detach(self, runner: SupplyRunner) -> None:
        """The queue is not live any more."""
        if self._runner is runner:
            self._runner = None

    def came(self) -> None:
        """Buffers may have come."""
        self._ask()

    def reset(self) -> None:
        """The driver reset the device."""
        while self._waiting:
            done = self._waiting.popleft().done
            if not done.done():
                done.set_exception(
                    DeviceReset(f"queue {self.name}: the driver reset the device meanwhile")
                )

    def __repr__(self) -> str:
        state = f"{len(self._waiting)} waiting" if self._runner is not None else "not live"
        return f"<Supply {self.name!r}: {state}>"


class _Waiting:
    """One call that waits for buffers."""

    __slots__ = ("done", "step")

    def __init__(self, step: Callable[[], bool]) -> None:
        self.step = step
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class SupplyRunner:
    """Holds the buffers of one live queue for its `Supply`: a `virtq.runner.Runner`.

    Buffers are taken when they are needed, and the driver is asked to notify of new ones only while
    somebody waits. A driver that supplies a buffer without room breaks its queue."""

    def __init__(
        self,
        queue: DeviceQueue,
        supply: Supply,
        *,
        name: str,
        missed: Callable[[int, TranslationMiss], None] | None = None,
    ) -> None:
        self._queue = queue
        self._supply = supply
        self._name = name
        self._missed = missed
        self._watch: Watch | None = None
        self._on = False
        self._broken = False
        self._missing = False
        """A mapping that the transport has been asked for."""
        self._free: deque[Request] = deque()
        self._batches: deque[Batch] = deque()

    # Runner

    def start(self) -> None:
        self._guard(self._queue.disable_kicks)

    def enable(self, on: bool) -> None:
        self._on = on
        if on:
            self._supply.attach(self)
        else:
            self.unlisten()
            self._supply.detach(self)

    def retry(self) -> None:
        self._missing = False
        self._guard(self._queue.notify)
        self._supply.came()

    def stop(self) -> Position:
        self.enable(False)
        self._guard(self._give_back)
        try:
            return self._queue.stop()
        except VirtqError:
            return self._queue.position

    @property
    def stats(self) -> Mapping[str, int]:
        return self._queue.stats

    # What the supply asks for

    def count(self) -> int:
        """Buffers that can be used."""
        self._fetch(self._queue.size)
        return len(self._free)

    def rooms(self, count: int) -> list[int]:
        """The room in each of the next `count` of them, or fewer."""
        self._fetch(min(count, self._queue.size))
        return [request.writable for request in islice(self._free, count)]

    def place(self, items: tuple[ReadableBuffer, ...]) -> bool:
        """One item into each of the next buffers; False if there are too few. Raises ValueError."""
        if len(items) > self._queue.size:
            raise ValueError(
                f"queue {self._name}: {len(items)} items never fit into {self._queue.size} buffers"
            )
        if not self._fetch(len(items)):
            return False
        for item, request in zip(items, self._free, strict=False):
            size = memoryview(item).nbytes
            if size > request.writable:
                raise ValueError(
                    f"queue {self._name}: {size} bytes for a buffer of {request.writable}"
                )
        for item in items:
            self._use(item)
        self._guard(self._queue.notify)
        return True

    def spread(self, data: memoryview) -> int:
        """Bytes over as many buffers as it takes; returns how many found room."""
        at = 0
        while at < len(data) and self._fetch(1):
            part = data[at : at + self._free[0].writable]
            self._use(part)
            at += len(part)
        self._guard(self._queue.notify)
        return at

    def _use(self, item: ReadableBuffer) -> None:
        request = self._free.popleft()
        request.write(item)
        request.complete()

    def listen(self) -> bool:
        """Have the driver notify of new buffers; True if there are some already."""
        if not self._on or self._broken or self._missing:
            return False
        if self._watch is None:
            self._watch = Watch(self._queue, self._kicked)
        return self._queue.enable_kicks()

    def _kicked(self) -> None:
        if self._watch is not None:  # not from within its making, where `listen` looks itself
            self._supply.came()

    def unlisten(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None
            self._guard(self._queue.disable_kicks)

    # Buffers

    def _fetch(self, count: int) -> bool:
        """Have at least `count` buffers at hand, if the driver has supplied them."""
        while len(self._free) < count:
            batch = self._guard(self._queue.take, max(FETCH_BUFFERS, count - len(self._free)))
            if not batch:
                return False
            self._forget_used()
            if not all(batch.writable()):
                self.give_up("a buffer without a device-writable part, on a queue to be filled")
                return False
            self._batches.append(batch)
            self._free.extend(batch)
        return True

    def _forget_used(self) -> None:
        """Drop the batches of which no buffer is left."""
        while self._batches and sum(map(len, self._batches)) - len(self._batches[0]) >= len(
            self._free
        ):
            self._batches.popleft()

    def _give_back(self) -> None:
        left, self._free = len(self._free), deque()
        while left and self._batches:
            batch = self._batches.pop()
            size = len(batch)
            self._queue.put_back(batch, max(0, size - left))
            left -= min(left, size)
        self._batches.clear()

    def _guard(self, call: Callable[[*Ts], T], *args: *Ts) -> T | None:
        """Call the queue. A translation that is missing, or a ring that the driver broke, is what
        `take` without buffers is; the transport and the log are told."""
        if self._broken:
            return None
        try:
            return call(*args)
        except TranslationMiss as miss:
            self._missing = True
            if self._missed is not None:
                self._missed(self._queue.index, miss)
            else:
                log.warning("queue %s waits: %s", self._name, miss.args[0])
        except RingFault as fault:
            self._broken = True
            log_broken(self._name, fault)
            self.unlisten()
        return None

    def give_up(self, reason: str) -> None:
        self._queue.give_up(reason)
        self._guard(self._queue.notify)


class Supplies(dict[str, Supply]):
    """A device's supplies by queue name. One is made when it is first asked for."""

    def __init__(self, names: Callable[[], list[str]]) -> None:
        """`names`: what the device's queues to be filled are called."""
        super().__init__()
        self._names = names

    def __missing__(self, name: str) -> Supply:
        names = self._names()
        if name not in names:
            there = ", ".join(names) or "none"
            raise KeyError(f"no queue {name!r} is the device's to fill; there are: {there}")
        supply = self[name] = Supply(name)
        return supply
