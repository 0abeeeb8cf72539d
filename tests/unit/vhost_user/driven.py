"""A virtqueue of a front-end, and how to use it."""

from __future__ import annotations

from virtq._core import DriverQueue
from virtq.transports.vhost_user import Frontend

MEMORY = 1 << 20
DESC, DRIVER, DEVICE, DATA = 0x0, 0x4000, 0x8000, 0x10000


class Driven:
    """One virtqueue of a front-end, and how to use it."""

    def __init__(self, front: Frontend, features: int, index: int = 0) -> None:
        self.front = front
        self.base = front.memory.regions[0].guest_addr + index * 0x40000
        areas = self.base + DESC, self.base + DRIVER, self.base + DEVICE
        self.queue = DriverQueue(front.memory, features, 16, *areas, index=index)
        front.enable_queue(self.queue, *areas)

    def shout(self, text: bytes) -> bytes:
        question, reply = self.base + DATA, self.base + DATA + 0x1000
        self.front.memory.write(question, text)
        self.queue.add([(question, len(text))], [(reply, len(text))], 7)
        self.queue.kick()
        assert self.queue.wait(5.0)
        assert self.queue.reap() == [(7, len(text))]
        return self.front.memory.read(reply, len(text))
