"""Buffers that a driver supplies for the device to fill, on receive and event queues."""

from __future__ import annotations

from virtq.memory import Buffer
from virtq.queue import DriverQueue, Used


class Slab:
    """Equal buffers of one virtqueue, in one piece of memory; their numbers are the cookies."""

    def __init__(self, queue: DriverQueue, count: int, buffer_bytes: int) -> None:
        """Adds `count` buffers, or as many as the queue has slots; nothing is notified. Raises
        ArenaFull."""
        self.queue = queue
        self.count = min(count, queue.size)
        self.buffer_bytes = buffer_bytes
        self._memory: Buffer = queue.arena.alloc(self.count * buffer_bytes)
        for number in range(self.count):
            self.supply(number)

    def read(self, used: Used) -> bytes:
        """What the device wrote into a buffer."""
        return self._memory.read(used.written, used.cookie * self.buffer_bytes)

    def supply(self, number: int) -> None:
        """Add a buffer to the queue, again; nothing is notified."""
        piece = self._memory.part(number * self.buffer_bytes, self.buffer_bytes)
        self.queue.add_buffers((), [piece], number)

    def take(self, used: Used) -> bytes:
        """What the device wrote into a buffer, which is then added again."""
        data = self.read(used)
        self.supply(used.cookie)
        return data

    def release(self) -> None:
        """Give the memory back; only after a reset."""
        self.queue.arena.free(self._memory)
