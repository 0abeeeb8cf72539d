"""The data queues of a network driver: slabs of memory cut into packet buffers, batches in and
out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from virtq.errors import RingFault
from virtq.memory import Buffer
from virtq.queue import DriverQueue
from virtq.wire.net import HEADER_BYTES, NO_OFFLOAD, NUM_BUFFERS_OFFSET, NetHeader


class Packet(NamedTuple):
    """A frame with the header that goes before it (5.1.6)."""

    header: NetHeader
    frame: bytes


class _Slab:
    """Equal buffers of one virtqueue, numbered from 0; the numbers are the cookies of the ring."""

    def __init__(self, queue: DriverQueue, count: int, buffer_bytes: int) -> None:
        self.queue = queue
        self.count = count
        self.buffer_bytes = buffer_bytes
        self.memory: Buffer = queue.arena.alloc(count * buffer_bytes, 64)
        self.view = self.memory.view
        steps = np.arange(count, dtype=np.uint64) * np.uint64(buffer_bytes)
        self._addresses: npt.NDArray[np.uint64] = steps + np.uint64(self.memory.addr)
        self._cookies = np.zeros(count, dtype=np.uint64)
        self._written = np.zeros(count, dtype=np.uint32)

    def add(
        self, numbers: Sequence[int], lengths: npt.NDArray[np.uint32], *, writable: bool
    ) -> None:
        """Put buffers on the ring, in this order; consecutive numbers go in one call."""
        start = 0
        for end in range(1, len(numbers) + 1):
            if end < len(numbers) and numbers[end] == numbers[end - 1] + 1:
                continue
            first, last = numbers[start], numbers[end - 1]
            addresses = self._addresses[first : last + 1].data
            part = lengths[start:end].data
            self.queue.core.add_batch(addresses, part, writable, first, all_or_nothing=True)
            start = end

    def reap(self) -> list[tuple[int, int]]:
        """(number, bytes written) of the buffers that came back."""
        n = self.queue.core.reap_into(self._cookies.data, self._written.data)
        return list(zip(self._cookies[:n].tolist(), self._written[:n].tolist(), strict=True))

    def bytes_at(self, number: int, start: int, end: int) -> bytes:
        base = number * self.buffer_bytes
        return bytes(self.view[base + start : base + end])

    def release(self) -> None:
        self.queue.arena.free(self.memory)


class ReceiveQueue:
    """A receive virtqueue that is kept full of buffers."""

    def __init__(self, queue: DriverQueue, buffer_bytes: int, *, mergeable: bool) -> None:
        self.queue = queue
        self.mergeable = mergeable
        self.malformed = 0
        self._slab = _Slab(queue, queue.size, buffer_bytes)
        self._lengths = np.full(queue.size, buffer_bytes, dtype=np.uint32)
        self._parts: list[tuple[int, int]] = []
        self._packets: deque[Packet] = deque()
        self._slab.add(range(queue.size), self._lengths, writable=True)

    def receive(self, max: int, timeout_s: float | None) -> list[Packet]:
        """Up to `max` packets; waits for the first as long as `timeout_s` (None: for ever)."""
        self._collect()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._packets:
            left = None if deadline is None else deadline - time.monotonic()
            if (left is not None and left <= 0) or not self.queue.wait(left):
                break
            self._collect()
        return [self._packets.popleft() for _ in range(min(max, len(self._packets)))]

    def _collect(self) -> None:
        """Turn the buffers that came back into packets, and give them to the device again."""
        self._parts += self._slab.reap()
        used = 0
        while used < len(self._parts):
            count = self._buffers_of(self._parts[used])
            if used + count > len(self._parts):
                break
            self._packet(self._parts[used : used + count])
            used += count
        if used:
            numbers = [number for number, _ in self._parts[:used]]
            self._slab.add(numbers, self._lengths[:used], writable=True)
            self.queue.kick()
            del self._parts[:used]

    def _buffers_of(self, first: tuple[int, int]) -> int:
        """How many buffers the packet has that starts in this one."""
        number, written = first
        if not self.mergeable or written < HEADER_BYTES:
            return 1
        raw = self._slab.bytes_at(number, NUM_BUFFERS_OFFSET, HEADER_BYTES)
        count = int.from_bytes(raw, "little")
        if not 1 <= count <= self.queue.size:
            text = f"queue {self.queue.name}: a packet in {count} buffers"
            raise RingFault(text, "net.rx.dev.num-buffers-count")
        return count

    def _packet(self, parts: Sequence[tuple[int, int]]) -> None:
        number, written = parts[0]
        if written < HEADER_BYTES:
            self.malformed += 1
            return
        header = NetHeader.parse(self._slab.bytes_at(number, 0, HEADER_BYTES))
        pieces = [self._slab.bytes_at(number, HEADER_BYTES, written)]
        pieces += [self._slab.bytes_at(n, 0, w) for n, w in parts[1:]]
        self._packets.append(Packet(header, b"".join(pieces)))

    def release(self) -> None:
        """Only after a reset."""
        self._slab.release()


class TransmitQueue:
    """A transmit virtqueue with a buffer for each of its slots."""

    def __init__(self, queue: DriverQueue, buffer_bytes: int) -> None:
        self.queue = queue
        self._slab = _Slab(queue, queue.size, buffer_bytes)
        self._free = deque(range(queue.size))

    @property
    def frame_bytes_max(self) -> int:
        return self._slab.buffer_bytes - HEADER_BYTES

    @property
    def pending(self) -> int:
        """Packets that the device has not taken yet, as far as was looked."""
        return self._slab.count - len(self._free)

    def send(self, packets: Sequence[bytes | Packet], timeout_s: float | None) -> int:
        """Hand packets to the device, waiting for room; returns how many it was until the time
        was over. Raises ValueError for one that is larger than a buffer."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        sent = 0
        while sent < len(packets):
            room = self._room(len(packets) - sent)
            if room:
                self._add(packets[sent : sent + room])
                sent += room
                continue
            left = None if deadline is None else deadline - time.monotonic()
            if (left is not None and left <= 0) or not self.queue.wait(left):
                break
        return sent

    def _room(self, wanted: int) -> int:
        if len(self._free) < wanted:
            self._free.extend(number for number, _ in self._slab.reap())
        return min(len(self._free), wanted)

    def _add(self, packets: Sequence[bytes | Packet]) -> None:
        whole = [_whole(packet) for packet in packets]
        if largest := next((w for w in whole if len(w) > self._slab.buffer_bytes), None):
            frame = len(largest) - HEADER_BYTES
            raise ValueError(f"a frame of {frame} bytes; the most is {self.frame_bytes_max}")
        numbers = [self._free.popleft() for _ in whole]
        view, step = self._slab.view, self._slab.buffer_bytes
        for number, packet in zip(numbers, whole, strict=True):
            view[number * step : number * step + len(packet)] = packet
        lengths = np.fromiter(map(len, whole), np.uint32, len(whole))
        self._slab.add(numbers, lengths, writable=False)
        self.queue.kick()

    def drain(self, timeout_s: float | None) -> bool:
        """Wait until the device has taken everything; False on time-out."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._free.extend(number for number, _ in self._slab.reap())
            if not self.pending:
                return True
            left = None if deadline is None else deadline - time.monotonic()
            if (left is not None and left <= 0) or not self.queue.wait(left):
                return False

    def release(self) -> None:
        """Only after a reset."""
        self._slab.release()


def _whole(packet: bytes | Packet) -> bytes:
    if isinstance(packet, Packet):
        return packet.header._replace(num_buffers=0).pack() + packet.frame
    return NO_OFFLOAD + packet
