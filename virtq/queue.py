"""Both halves of a virtqueue, for people (VIRTIO 1.4, sections 2.6 to 2.8).

The rings themselves are the core's: `DeviceQueue`, with the `Batch`es and `Request`s that it hands
out, is re-exported as it is. `DriverQueue` is a thin face over the core's driver half. It adds
what a Python caller would otherwise write every time: pieces of memory for the data and the reply,
any object as a cookie, and waiting that notices when the other end is gone. Code that wants arrays
instead uses `DriverQueue.core`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from virtq import _core
from virtq._core import Batch, DeviceQueue, Position, Request
from virtq.calls import CHECK_INTERVAL_S, AsyncCalls, ThreadCalls
from virtq.errors import DeviceReset, QueueFull, RingFault
from virtq.features import F, RingKind
from virtq.memory import Arena, Buffer

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = [
    "Batch",
    "DeviceQueue",
    "DriverQueue",
    "Position",
    "Queues",
    "Request",
    "RingMemory",
    "Used",
]

DESCRIPTOR_BYTES = 16


class RingMemory:
    """The three areas of one virtqueue, and its indirect tables, in an arena.

    Split (2.7): descriptor table 16 bytes a slot, available ring 6 + 2 a slot, used ring 6 + 8 a
    slot. Packed (2.8): descriptor ring 16 bytes a slot, two event suppression structures of 4
    bytes."""

    def __init__(self, arena: Arena, features: int, size: int, indirect_length: int = 0) -> None:
        """`indirect_length`: descriptors in each indirect table; 0 for none. Raises ArenaFull."""
        self._arena = arena
        self._buffers: list[Buffer] = []
        self.indirect_length = indirect_length if features & F.INDIRECT_DESC else 0
        packed = features & F.RING_PACKED
        try:
            self.desc = self._take(size * DESCRIPTOR_BYTES, 16)
            self.driver = self._take(4 if packed else 6 + 2 * size, 4)
            self.device = self._take(4 if packed else 6 + 8 * size, 4)
            table_bytes = self.indirect_length * DESCRIPTOR_BYTES
            self.indirect_table = self._take(size * table_bytes, 16) if table_bytes else 0
        except Exception:
            self.release()
            raise

    def _take(self, size: int, align: int) -> int:
        self._buffers.append(self._arena.alloc(size, align))
        return self._buffers[-1].addr

    def release(self) -> None:
        """Give the memory back; only once the device no longer uses the queue (3.3)."""
        while self._buffers:
            self._arena.free(self._buffers.pop())


class Used(NamedTuple):
    """A buffer that came back: what it was added with, how many bytes the device wrote, and those
    bytes where the queue had allocated the reply itself."""

    cookie: Any
    written: int
    reply: bytes


@dataclass(slots=True)
class _Added:
    """What the queue remembers of a buffer until it is used."""

    cookie: Any
    memory: Buffer | None
    reply_offset: int


class DriverQueue:
    """The driver half of a virtqueue. For one thread at a time."""

    def __init__(
        self,
        name: str,
        arena: Arena,
        features: int,
        size: int,
        *,
        index: int = 0,
        indirect_length: int = 0,
        check: Callable[[], None] = lambda: None,
        alarm: Callable[[], int | None] = lambda: None,
    ) -> None:
        """Sets up the rings in `arena`. `features`: the negotiated ones. `check` is called now
        and then while waiting, to raise if the other end is gone, and at once when the descriptor
        that `alarm` tells shows a hang-up. Raises ArenaFull, and ValueError for a size that the
        layout does not have."""
        self.name = name
        self.arena = arena
        self.memory = RingMemory(arena, features, size, indirect_length)
        try:
            self.core = _core.DriverQueue(
                arena.memory,
                features,
                size,
                self.memory.desc,
                self.memory.driver,
                self.memory.device,
                index=index,
                indirect_table=self.memory.indirect_table,
                indirect_length=self.memory.indirect_length,
            )
        except Exception:
            self.memory.release()
            raise
        # Used buffer notifications are asked for only while waiting.
        self.core.disable_calls()
        self._check = check
        self._alarm = alarm
        self._added: dict[int, _Added] = {}
        self._next_token = 0
        self._reaped: deque[Used] = deque()
        self._thread_calls = ThreadCalls(self)
        self._async_calls: AsyncCalls | None = None

    # What it is

    @property
    def index(self) -> int:
        return self.core.index

    @property
    def size(self) -> int:
        return self.core.size

    @property
    def kind(self) -> RingKind:
        return RingKind.of(self.core.features)

    @property
    def free(self) -> int:
        """Free descriptor slots."""
        return self.core.free

    @property
    def outstanding(self) -> int:
        """Buffers added and not yet reaped from the ring."""
        return self.core.outstanding

    @property
    def stats(self) -> dict[str, int]:
        """Counters of the core; see `virtq._core.DriverQueue.stats`."""
        return self.core.stats

    # Adding

    def add(self, data: ReadableBuffer = b"", reply: int = 0, cookie: Any = None) -> None:
        """Add one buffer: `data` (copied) for the device to read, room for `reply` bytes for it
        to write.

        The device sees it after `kick`. Raises QueueFull, ArenaFull, and ValueError if there is
        neither data nor room."""
        source = memoryview(data).cast("B")
        reply_offset = -(-len(source) // 16) * 16
        if not len(source) + reply:
            raise ValueError(f"queue {self.name}: a buffer of no bytes cannot be added (2.6)")
        memory = self.arena.alloc(reply_offset + reply)
        try:
            readable, writable = [], []
            if len(source):
                memory.write(source)
                readable = [(memory.addr, len(source))]
            if reply:
                writable = [(memory.addr + reply_offset, reply)]
            self._add(readable, writable, _Added(cookie, memory, reply_offset))
        except Exception:
            self.arena.free(memory)
            raise

    def add_buffers(
        self, readable: Iterable[Buffer], writable: Iterable[Buffer] = (), cookie: Any = None
    ) -> None:
        """Add one buffer made of pieces that stay the caller's; nothing is copied. Raises
        QueueFull, and ValueError if there is no piece at all."""
        pieces = [b.piece for b in readable], [b.piece for b in writable]
        self._add(*pieces, _Added(cookie, None, 0))

    def add_batch(self, batch: Sequence[ReadableBuffer], reply: int = 0) -> int:
        """Add as many as fit of several buffers, each with the same room for a reply; their
        positions in `batch` are the cookies. Returns how many were added."""
        for position, data in enumerate(batch):
            try:
                self.add(data, reply, position)
            except QueueFull:
                return position
        return len(batch)

    def _add(
        self, readable: list[tuple[int, int]], writable: list[tuple[int, int]], added: _Added
    ) -> None:
        token = self._next_token
        self.core.add(readable, writable, token)
        self._next_token += 1
        self._added[token] = added

    def kick(self) -> bool:
        """Make what was added available and notify the device if it wants it; True if notified."""
        return self.core.kick()

    # Reaping

    def reap(self, max: int = 65535) -> list[Used]:
        """Up to `max` used buffers, in the order of use. Raises RingFault."""
        taken = [self._reaped.popleft() for _ in range(min(max, len(self._reaped)))]
        return taken + [self._used(*used) for used in self.core.reap(max - len(taken))]

    def _used(self, token: int, written: int) -> Used:
        added = self._added.pop(token)
        reply = b""
        if added.memory is not None:
            reply = added.memory.read(written, added.reply_offset)
            self.arena.free(added.memory)
        return Used(added.cookie, written, reply)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Sleep until used buffers wait to be reaped; False on time-out (None: no limit).

        Raises PeerGone if the other end goes away meanwhile, RingFault if the queue is broken.
        """
        return bool(self._reaped) or self.wait_for_ring(timeout_s)

    def wait_for_ring(self, timeout_s: float | None) -> bool:
        """`wait`, without regard to what was reaped before."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left = CHECK_INTERVAL_S
            if deadline is not None:
                left = min(left, max(0.0, deadline - time.monotonic()))
            if self.core.wait(left, self._alarm()):
                return True
            self.check()
            if deadline is not None and time.monotonic() >= deadline:
                return False

    def call(
        self, data: ReadableBuffer = b"", reply: int = 0, timeout_s: float | None = None
    ) -> bytes:
        """Add one buffer, notify, wait until it is used; returns what the device wrote.

        Several threads may call at the same time, if nothing else uses the queue meanwhile. Other
        buffers that are used wait for `reap`. Raises TimeoutError (the buffer is then still the
        device's), and whatever `add` and `wait` raise."""
        return self._thread_calls.call(data, reply, timeout_s)

    async def acall(self, data: ReadableBuffer = b"", reply: int = 0) -> bytes:
        """`call` for asyncio: any number of tasks of one loop may call at the same time, and while
        the ring is full they wait for room. Other buffers that are used wait for `reap`.

        Cancelled, the buffer is still the device's, and its answer is dropped. Raises PeerGone if
        the other end goes away meanwhile, RingFault if the queue is broken, and QueueFull or
        ArenaFull for a buffer that does not even fit when no call is under way."""
        if self._async_calls is None or not self._async_calls.belongs_here():
            self._async_calls = AsyncCalls(self)
        return await self._async_calls.call(data, reply)

    # What calls are made of (virtq.calls)

    def reap_ring(self) -> list[Used]:
        """What the ring has, without what was kept before."""
        return [self._used(*pair) for pair in self.core.reap()]

    def keep(self, used: Used) -> None:
        """Leave a used buffer for `reap`."""
        self._reaped.append(used)

    def check(self) -> None:
        """Raises PeerGone if the other end is gone, RingFault if the queue is broken."""
        if self.core.broken is not None:
            raise RingFault(f"queue {self.name} is broken: {self.core.broken}", "")
        self._check()

    # Ending

    def take_back(self) -> list[Any]:
        """After a reset of the queue or the device: the cookies of all buffers that were not
        reaped, oldest first (of those added through `core`, their numbers). The ring is empty
        then, as after set-up."""
        tokens = self.core.take_back()
        added = [self._added.pop(token, _Added(token, None, 0)) for token in tokens]
        for memory in (a.memory for a in added if a.memory is not None):
            self.arena.free(memory)
        return [a.cookie for a in added]

    def release(self) -> None:
        """Give all memory back to the arena; only after a reset, and never to be used again."""
        if self._async_calls is not None:
            self._async_calls.close(DeviceReset(f"queue {self.name}: the device was reset"))
        self.take_back()
        self.memory.release()

    def __repr__(self) -> str:
        where = f"{self.outstanding} of {self.size} outstanding"
        return f"<DriverQueue {self.name!r}: {self.kind.title}, {where}>"


class Queues(Mapping[str | int, DriverQueue]):
    """A driver's virtqueues by name, and by index. Iterates over the names."""

    def __init__(self, queues: Sequence[DriverQueue], *, any_name: bool = False) -> None:
        """`any_name`: nobody told what the queues are called, so a single one answers to every
        name."""
        self._any_name = any_name
        self._by_name = {queue.name: queue for queue in queues}
        self._by_index = {queue.index: queue for queue in queues}
        self._anything = queues[0] if any_name and len(queues) == 1 else None

    def __getitem__(self, key: str | int) -> DriverQueue:
        found = self._by_index.get(key) if isinstance(key, int) else self._by_name.get(key)
        if found is None and isinstance(key, str):
            found = self._anything
        if found is None:
            raise KeyError(f"no virtqueue {key!r}: there are {', '.join(self._by_name)}")
        return found

    def with_queue(self, queue: DriverQueue) -> Queues:
        """The same queues, but for one that replaces its namesake."""
        return Queues([*(self._by_name | {queue.name: queue}).values()], any_name=self._any_name)

    def __iter__(self) -> Iterator[str | int]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)
