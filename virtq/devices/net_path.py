"""The data queues of a network device in Python: clear first, fast second.

Each queue pair is two runners. `TransmitRunner` hands the driver's packets to the link;
`ReceiveRunner` fills the driver's buffers from it. Both ask the device, through `Policy`, what the
negotiated features allow in a header and which packets the driver wants.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from virtq._core import Batch, DeviceQueue, Position, Request
from virtq.devices.net_ports import Link
from virtq.errors import RingFault, TranslationMiss
from virtq.runner import LoopRunner
from virtq.wire.net import (
    BIG_PACKET_BYTES,
    ETHERNET_HEADER_BYTES,
    HEADER_BYTES,
    NO_OFFLOAD,
    NUM_BUFFERS_OFFSET,
)

TURN_PACKETS = 256
"""Packets received before the loop gets a turn for everything else."""
PACKET_BYTES_MAX = HEADER_BYTES + BIG_PACKET_BYTES


class Policy(Protocol):
    """What the data path asks of the device."""

    @property
    def link(self) -> Link: ...
    @property
    def active_pairs(self) -> int:
        """Queue pairs that the driver uses."""
        ...

    @property
    def mergeable(self) -> bool:
        """Whether a packet may be spread over several receive buffers."""
        ...

    @property
    def header_passes(self) -> bool:
        """Whether the driver's packets may carry offload requests."""
        ...

    def admit(self, packet: bytes) -> bytes | None:
        """A packet from the link as the driver may see it; None if it may not."""
        ...


class TransmitRunner(LoopRunner):
    """Sends what the driver transmits on one queue pair. While disabled it discards (vhost-user
    asks for a queue without side effects, not for one that stands still)."""

    def __init__(self, queue: DeviceQueue, policy: Policy, pair: int, *, name: str) -> None:
        super().__init__(queue, name=name)
        self._policy = policy
        self._pair = pair
        self._on = False
        self._packets = self._dropped = 0

    def enable(self, on: bool) -> None:
        self._on = on
        super().enable(True)

    @property
    def stats(self) -> dict[str, int]:
        return {**super().stats, "packets": self._packets, "dropped": self._dropped}

    def _serve(self, batch: Batch) -> None:
        packets = [packet for request in batch if (packet := self._packet(request))]
        self._dropped += len(batch) - len(packets)
        if packets and self._on:
            self._packets += len(packets)
            self._policy.link.send(self._pair, packets)
        batch.complete(0)

    def _packet(self, request: Request) -> bytes | None:
        if not HEADER_BYTES + ETHERNET_HEADER_BYTES <= request.readable <= PACKET_BYTES_MAX:
            return None
        data = request.read()
        if not self._policy.header_passes:
            return NO_OFFLOAD + data[HEADER_BYTES:]
        return data[:NUM_BUFFERS_OFFSET] + b"\0\0" + data[HEADER_BYTES:]


class ReceiveRunner(LoopRunner):
    """Fills the driver's buffers on one queue pair with packets from the link.

    Buffers are taken when packets are there, and a packet for which there are none waits,
    together with the buffers that were too few for it, until the driver kicks."""

    def __init__(self, queue: DeviceQueue, policy: Policy, pair: int, *, name: str) -> None:
        super().__init__(queue, name=name)
        self._policy = policy
        self._pair = pair
        self._fd: int | None = None
        self._buffers: deque[Request] = deque()
        self._held: bytes | None = None
        self._packets = self._dropped = 0

    @property
    def stats(self) -> dict[str, int]:
        return {**super().stats, "packets": self._packets, "dropped": self._dropped}

    def enable(self, on: bool) -> None:
        super().enable(on)
        if not on:
            self._listen(False)

    def refresh(self) -> None:
        """Something that decides about packets changed: look again."""
        self.retry()

    def stop(self) -> Position:
        self._listen(False)
        self._buffers.clear()
        return super().stop()

    def _listen(self, on: bool) -> None:
        """Have the loop look at the link, or not: while packets cannot be placed, it would spin."""
        if on and self._fd is None:
            self._fd = self._policy.link.fileno(self._pair)
            if self._fd is not None:
                self._loop.add_reader(self._fd, self._turn)
        elif not on and self._fd is not None:
            self._loop.remove_reader(self._fd)
            self._fd = None

    def _turn(self) -> None:
        if self._turn_soon is not None:
            self._turn_soon.cancel()
            self._turn_soon = None
        if self._watch is None or self._pair >= self._policy.active_pairs:
            self._listen(False)
            return
        try:
            self._receive()
        except TranslationMiss as miss:
            self._listen(False)
            self._wait_for_mapping(miss)
        except RingFault as fault:
            self._listen(False)
            self._give_up(fault)

    def _receive(self) -> None:
        try:
            for _ in range(TURN_PACKETS):
                if self._held is None:
                    packet = self._policy.link.receive(self._pair)
                    if packet is None:
                        self._queue.disable_kicks()
                        self._listen(True)
                        return
                    self._held = self._policy.admit(packet)
                    if self._held is None:
                        self._dropped += 1
                        continue
                if not self._place(self._held):
                    if not self._queue.enable_kicks():
                        self._listen(False)
                        return
                    continue
                self._held = None
            self._schedule_turn()
        finally:
            self._queue.notify()

    def _place(self, packet: bytes) -> bool:
        """Write a packet into the driver's buffers, or drop it as too large for one; False if
        there are not enough buffers now."""
        count, room = 0, 0
        while room < len(packet) and (count == 0 or self._policy.mergeable):
            if count == len(self._buffers):
                more = self._queue.take(64)
                if not len(more):
                    return False
                self._buffers.extend(more)
            room += self._buffers[count].writable
            count += 1
        if room < len(packet):
            self._dropped += 1
            return True
        num_buffers = count.to_bytes(2, "little")
        rest = memoryview(packet[:NUM_BUFFERS_OFFSET] + num_buffers + packet[HEADER_BYTES:])
        for _ in range(count):
            buffer = self._buffers.popleft()
            part, rest = rest[: buffer.writable], rest[buffer.writable :]
            buffer.write(part)
            buffer.complete(len(part))
        self._packets += 1
        return True


def refresh(runner: object) -> None:
    """Have a runner look again, if it is one that waits for packets."""
    if isinstance(runner, ReceiveRunner):
        asyncio.get_running_loop().call_soon(runner.refresh)
