"""Virtqueues that are reset under load (RING_RESET, 2.6.1): at any moment, again and again, between
our own two ends. Every buffer comes back exactly once for each time that it was added."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest

import virtq
from tests.unit.vhost_user.support import Served, no_leaks
from virtq.devices.blk import BlkDevice
from virtq.devices.disk import Disk
from virtq.driver import Driver
from virtq.features import F, RingKind
from virtq.transports.vhost_user import Frontend
from virtq.wire.blk import SECTOR_BYTES, Header, Type

RESETS = 100
SECTORS = 512
TIMEOUT_S = 10.0


class Slow(virtq.Device):
    """Answers in capitals, a little later, and later buffers before earlier ones."""

    device_id = 63
    queues = (virtq.QueueSpec("requests", size=64),)

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    async def handle(self, request: virtq.Request) -> int:
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)
        return request.write(request.read().upper())


def drive(served: Served, kind: RingKind) -> Driver:
    return Driver(Frontend(served.path), want=F.RING_RESET | kind.features, offer=kind.change)


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_a_queue_with_slow_requests(kind: RingKind, tmp_path: Path) -> None:
    with no_leaks(), Served(Slow(1), str(tmp_path / "s")) as served:
        reset_under_slow_requests(served, kind)


def reset_under_slow_requests(served: Served, kind: RingKind) -> None:
    chance = random.Random(kind.features)
    added, back = Counter[int](), Counter[int]()
    with drive(served, kind) as driver:
        used, resets, number = 0, 0, 0
        again: list[int] = []
        while resets < RESETS or again or driver.queues[0].outstanding:
            queue = driver.queues[0]
            while resets < RESETS and queue.free > 4 and chance.random() < 0.9:
                again.append(number)
                number += 1
            while again and queue.free >= 2:
                cookie = again.pop()
                queue.add(b"buffer %d" % cookie, 16, cookie)
                added[cookie] += 1
            queue.kick()
            if resets < RESETS and chance.random() < 0.3:
                resets += 1
                for cookie in driver.reset_queue(0):
                    back[cookie] += 1
                    again.append(cookie)
                continue
            assert not queue.outstanding or queue.wait(TIMEOUT_S)
            for answer in queue.reap():
                assert answer.reply == b"BUFFER %d" % answer.cookie
                back[answer.cookie] += 1
                used += 1
        assert set(added) == set(range(number))
        assert back == added
        assert used == number > RESETS
        assert driver.queues[0].call(b"alive", 5, TIMEOUT_S) == b"ALIVE"


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_a_disk_on_its_native_data_path(kind: RingKind, tmp_path: Path) -> None:
    disk = Disk.memory(SECTORS * SECTOR_BYTES)
    device = BlkDevice(disk, queue_size=64)
    with no_leaks(), Served(device, str(tmp_path / "s")) as served:
        content = reset_under_writes(served, kind)
    assert disk.read(0, SECTORS * SECTOR_BYTES) == content
    assert device.stats()["requestq1"]["errors"] == 0
    device.close()


def reset_under_writes(served: Served, kind: RingKind) -> bytes:
    """What is on the disk then."""
    chance = random.Random(kind.features)
    wanted = [bytes(SECTOR_BYTES)] * SECTORS
    with drive(served, kind) as driver:
        resets = written = 0
        again: list[tuple[int, bytes]] = []
        while resets < RESETS or again or driver.queues[0].outstanding:
            queue = driver.queues[0]
            if resets < RESETS:
                # Sectors that are on their way already are left alone: their order is nobody's.
                busy = {sector for sector, _ in again}
                if not queue.outstanding:
                    for sector in chance.sample(range(SECTORS), 12):
                        if sector not in busy:
                            again.append((sector, chance.randbytes(SECTOR_BYTES)))
            while again and queue.free >= 2:
                sector, content = again.pop()
                header = Header(Type.OUT, sector)
                queue.add(header.pack() + content, 1, (sector, content))
            queue.kick()
            if resets < RESETS and chance.random() < 0.5:
                resets += 1
                again += driver.reset_queue(0)
                continue
            assert not queue.outstanding or queue.wait(TIMEOUT_S)
            for (sector, content), _, status in queue.reap():
                assert status == b"\0"
                wanted[sector] = content
                written += 1
        assert written > RESETS
        assert driver.queues[0].core.broken is None
    return b"".join(wanted)
