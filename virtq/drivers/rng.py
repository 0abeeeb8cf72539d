"""Driving an entropy device (VIRTIO 1.4, section 5.4).

with virtq.connect("vhost-user:/run/rng.sock", driver=RngDriver) as rng:
    key = rng.read(32)
    with rng.open() as file:
        file.read(16)
"""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from virtq.device import QueueSpec
from virtq.driver import Driver
from virtq.errors import RingFault
from virtq.memory import Buffer
from virtq.queue import DriverQueue
from virtq.transports.base import DriverTransport
from virtq.wire.rng import DEVICE_ID, QUEUE

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BUFFER_BYTES = 4096
"""What is asked for with one buffer at most."""
BUFFERS = 16
"""Buffers that the device has at the same time at most."""


class RngDriver(Driver):
    """Drives an entropy device: random bytes, on demand."""

    device_id = DEVICE_ID

    def __init__(self, transport: DriverTransport, **settings: Any) -> None:
        """See `Driver`."""
        self._slab: Buffer | None = None
        self._left = b""
        super().__init__(transport, **settings)

    def plan(self) -> Mapping[int, QueueSpec]:
        return {0: QueueSpec(QUEUE, self.queue_size)}

    def populate(self, queue: DriverQueue) -> None:
        self._forget()
        self._slab = self.arena.alloc(min(BUFFERS, queue.size) * BUFFER_BYTES)
        self._free = list(range(min(BUFFERS, queue.size)))

    def was_reset(self) -> None:
        self._forget()

    def _forget(self) -> None:
        if self._slab is not None:
            self.arena.free(self._slab)
        self._slab, self._left = None, b""

    def read(self, count: int, timeout_s: float | None = None) -> bytes:
        """Exactly `count` random bytes, in the order in which the device gave them.

        Raises TimeoutError (what came until then is kept for the next call), PeerGone, RingFault,
        and ValueError for a negative count."""
        if count < 0:
            raise ValueError(f"{count} random bytes")
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        chunks, have = [self._left], len(self._left)
        queue = self.queues[QUEUE]
        try:
            while have < count:
                self._ask(queue, count - have - self._asked_bytes(queue))
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not queue.wait(left):
                    raise TimeoutError(f"{have} of {count} random bytes within {timeout_s} s")
                for chunk in self._collect(queue):
                    chunks.append(chunk)
                    have += len(chunk)
        finally:
            # Also on the way out of an error: what came is not lost.
            whole = b"".join(chunks)
            self._left = whole
        self._left = whole[count:]
        return whole[:count]

    async def read_async(self, count: int) -> bytes:
        """`read` in a thread, for asyncio; nothing else may use the driver meanwhile."""
        return await asyncio.to_thread(self.read, count)

    def read_into(self, target: WriteableBuffer) -> int:
        """Fill `target` with random bytes; returns how many it holds."""
        view = memoryview(target).cast("B")
        view[:] = self.read(len(view))
        return len(view)

    def open(self) -> RngFile:
        """The device as a raw binary file that never ends."""
        return RngFile(self)

    # How buffers are used

    def _asked_bytes(self, queue: DriverQueue) -> int:
        return queue.outstanding * BUFFER_BYTES

    def _ask(self, queue: DriverQueue, count: int) -> None:
        """Give the device buffers for `count` bytes, as far as there are any."""
        assert self._slab is not None
        while count > 0 and self._free:
            number = self._free.pop(0)
            size = min(count, BUFFER_BYTES)
            piece = self._slab.part(number * BUFFER_BYTES, size)
            queue.add_buffers((), [piece], number)
            count -= size
        queue.kick()

    def _collect(self, queue: DriverQueue) -> list[bytes]:
        """What came. The used length tells how much of a buffer is random (5.4.6.1)."""
        assert self._slab is not None
        chunks = []
        for number, written, _ in queue.reap():
            self._free.append(number)
            if not 0 < written <= BUFFER_BYTES:
                text = f"queue {QUEUE}: a buffer came back with {written} random bytes"
                raise RingFault(text, "entropy.op.dev.at-least-one")
            chunks.append(self._slab.read(written, number * BUFFER_BYTES))
        return chunks


class RngFile(io.RawIOBase):
    """An entropy device as an endless file; closing it leaves the driver alone."""

    def __init__(self, driver: RngDriver) -> None:
        self._driver = driver

    def readable(self) -> bool:
        return True

    def readinto(self, target: WriteableBuffer, /) -> int:
        return self._driver.read_into(target)
