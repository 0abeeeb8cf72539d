"""The demo's work: fill, read back and compare, through a driver of one kind of ring."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from virtq.connecting import connect
from virtq.demo.server import disk_name, image_path, port_names, socket_path
from virtq.drivers.blk import BlkDriver
from virtq.drivers.net import NetDriver
from virtq.errors import VirtqError
from virtq.features import RingKind
from virtq.queue import DriverQueue
from virtq.wire.net import BROADCAST

BLOCK_BYTES = 4096
BLOCKS = 1024
"""Blocks written and read in one round."""
DEPTH = 64
"""Requests in flight."""
FRAME_BYTES = 256
FRAMES = 64
"""Frames sent before they are received at the other end."""
FRAME_TIMEOUT_S = 5.0
ETHERTYPE = 0x88B5  # IEEE 802, for experiments


class Mismatch(VirtqError):
    """What came back is not what was sent; the text says where."""


@dataclass
class Work:
    """What was done on one device; the comparing takes time of its own."""

    bytes: int = 0
    """Bytes that were compared."""
    buffers: int = 0
    seconds: float = 0.0
    """How long those buffers took."""
    kicks: int = 0
    """Notifications that the drivers sent."""
    used_entries: int = 0
    """As the drivers counted them."""
    best_rate: float = 0.0
    """Buffers a second in the fastest of the turns that were added."""

    def add(self, turn: Work) -> None:
        """Take another turn in."""
        self.bytes += turn.bytes
        self.buffers += turn.buffers
        self.seconds += turn.seconds
        self.kicks += turn.kicks
        self.used_entries += turn.used_entries
        if turn.seconds:
            self.best_rate = max(self.best_rate, turn.buffers / turn.seconds)

    def count(self, queues: Sequence[DriverQueue]) -> None:
        """Take the counters of a driver's queues in, before it is closed."""
        self.kicks += sum(queue.stats["kicks_sent"] for queue in queues)
        self.used_entries += sum(queue.stats["used_entries"] for queue in queues)


def check(what: str, got: bytes, expected: bytes) -> None:
    """Raises Mismatch that names the first byte that differs."""
    if got == expected:
        return
    shorter = min(len(got), len(expected))
    at = next((i for i in range(shorter) if got[i] != expected[i]), shorter)
    raise Mismatch(
        f"{what}: byte {at} is {got[at : at + 1].hex() or 'missing'}, "
        f"not {expected[at : at + 1].hex() or 'there'}"
    )


def uri(folder: Path, name: str) -> str:
    return f"vhost-user:{socket_path(folder, name)}"


# The disk


def drive_disk(folder: Path, kind: RingKind, budget_s: float, work: Work) -> None:
    """Rounds of writing random blocks and reading them back, until the time is over; in the end
    the file behind the disk is compared as well. Adds to `work`. Raises VirtqError, Mismatch."""
    random = np.random.default_rng()
    size = BLOCKS * BLOCK_BYTES
    deadline = time.monotonic() + budget_s
    with connect(
        uri(folder, disk_name(kind)), driver=BlkDriver, want=kind.features, offer=kind.change
    ) as disk:
        base = 0
        while True:
            base = size - base  # two places in turn
            data = random.bytes(size)
            view = memoryview(data)
            places = [base + at for at in range(0, size, BLOCK_BYTES)]
            blocks = [view[at : at + BLOCK_BYTES] for at in range(0, size, BLOCK_BYTES)]
            started = time.perf_counter()
            disk.write_many(list(zip(places, blocks, strict=True)), depth=DEPTH)
            back = disk.read_many([(place, BLOCK_BYTES) for place in places], depth=DEPTH)
            work.seconds += time.perf_counter() - started
            work.buffers += 2 * BLOCKS
            work.bytes += size
            check(f"disk, {kind.title}", b"".join(back), data)
            if time.monotonic() >= deadline:
                break
        disk.flush()
        whole = disk.read(0, disk.capacity)
        work.bytes += len(whole)
        work.count([disk.queues[index] for index in range(len(disk.queues))])
    check(f"disk, {kind.title}, last round", whole[base : base + size], data)
    check(f"disk, {kind.title}, file", image_path(folder, kind).read_bytes(), whole)


# The network


def make_frames(random: np.random.Generator, first: int) -> list[bytes]:
    """Frames of random bytes, each with its number."""
    head = BROADCAST + bytes.fromhex("02 00 00 00 00 01") + ETHERTYPE.to_bytes(2)
    payload = random.bytes(FRAMES * FRAME_BYTES)
    room = FRAME_BYTES - len(head) - 8
    return [
        head + (first + i).to_bytes(8) + payload[i * FRAME_BYTES : i * FRAME_BYTES + room]
        for i in range(FRAMES)
    ]


def drive_net(folder: Path, kind: RingKind, budget_s: float, work: Work) -> None:
    """Rounds of sending frames through the hub, from either side in turn, until the time is over.
    Adds to `work`. Raises VirtqError, Mismatch."""
    random = np.random.default_rng()
    left_name, right_name = port_names(kind)
    wishes = {"driver": NetDriver, "want": kind.features, "offer": kind.change}
    deadline = time.monotonic() + budget_s
    with (
        connect(uri(folder, left_name), **wishes) as left,  # type: ignore[call-overload]
        connect(uri(folder, right_name), **wishes) as right,  # type: ignore[call-overload]
    ):
        sender, receiver, sent = left, right, 0
        while True:
            frames = make_frames(random, sent)
            started = time.perf_counter()
            sender.send(frames, timeout_s=FRAME_TIMEOUT_S)
            arrived = receive_all(receiver)
            work.seconds += time.perf_counter() - started
            sent += len(frames)
            work.buffers += 2 * len(frames)  # one sent, one received
            work.bytes += FRAME_BYTES * len(frames)
            check_frames(kind, arrived, frames)
            sender, receiver = receiver, sender
            if time.monotonic() >= deadline:
                break
        for driver in (left, right):
            driver.drain(timeout_s=FRAME_TIMEOUT_S)
            work.count([driver.queues[index] for index in (0, 1)])


def receive_all(receiver: NetDriver) -> list[bytes]:
    """What arrives, until it is as many as were sent, or nothing more comes."""
    arrived: list[bytes] = []
    while len(arrived) < FRAMES:
        more = receiver.receive(FRAMES - len(arrived), timeout_s=FRAME_TIMEOUT_S)
        if not more:
            break
        arrived += more
    return arrived


def check_frames(kind: RingKind, arrived: Sequence[bytes], frames: Sequence[bytes]) -> None:
    """Every frame there, in order, and right. Raises Mismatch."""
    if len(arrived) != len(frames):
        raise Mismatch(f"net, {kind.title}: {len(arrived)} of {len(frames)} frames arrived")
    for position, (got, expected) in enumerate(zip(arrived, frames, strict=True)):
        check(f"net, {kind.title}, frame {position}", got, expected)
