"""A block device under load: what comes back is counted and checked, whatever the device does."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from virtq._core import (
    BlkDisk,
    BlkLoad,
    BlkPump,
    DeviceQueue,
    DriverQueue,
    Memory,
    MemoryError_,
    RingFault,
)

INDIRECT, EVENT_IDX, PACKED, IN_ORDER = 1 << 28, 1 << 29, 1 << 34, 1 << 35
KINDS = {
    "split": 0,
    "split-in-order": IN_ORDER,
    "packed": PACKED,
    "packed-in-order": PACKED | IN_ORDER,
}
SECTOR = 512
BLOCK = 4096
DISK_BYTES = 1 << 20
BLOCKS = DISK_BYTES // BLOCK
QUEUE_SIZE = 128
RING_BYTES, TABLES, ARENA = 0x10000, 0x80000, 0x100000
MEMORY_BYTES = 16 << 20


class Rig:
    """Some queues of a disk in this process, each with its pump."""

    def __init__(
        self,
        disk: BlkDisk,
        features: int = 0,
        *,
        queues: int = 1,
        wait: str = "event",
        enabled: bool = True,
    ) -> None:
        self.disk = disk
        self.memory = Memory.allocate(MEMORY_BYTES)
        self.events: list[int] = []
        self.drivers: list[DriverQueue] = []
        self.devices: list[DeviceQueue] = []
        self.pumps: list[BlkPump] = []
        for index in range(queues):
            ring = index * RING_BYTES
            areas = ring + 0x1000, ring + 0x4000, ring + 0x8000
            driver = DriverQueue(
                self.memory,
                features,
                QUEUE_SIZE,
                *areas,
                indirect_table=TABLES + index * RING_BYTES,
                indirect_length=3 if features & INDIRECT else 0,
            )
            device = DeviceQueue(self.memory, features, QUEUE_SIZE, *areas)
            kick, call = os.eventfd(0), os.eventfd(0)
            self.events += [kick, call]
            for half in (driver, device):
                half.set_kick(kick)
                half.set_call(call)
            self.drivers.append(driver)
            self.devices.append(device)
            self.pumps.append(BlkPump(disk, device, wait=wait, enabled=enabled))

    def load(self, **options: Any) -> BlkLoad:
        options = {"capacity_sectors": DISK_BYTES // SECTOR, **options}
        return BlkLoad(self.memory, ARENA, self.drivers, **options)

    def close(self) -> None:
        for pump in self.pumps:
            pump.stop()
        for event in self.events:
            os.close(event)


@contextmanager
def rig(*args: Any, **options: Any) -> Iterator[Rig]:
    one = Rig(*args, **options)
    try:
        yield one
    finally:
        one.close()


def memory_disk() -> BlkDisk:
    return BlkDisk.memory(DISK_BYTES)


def mix(value: int) -> int:
    """splitmix64, from its description."""
    mask = (1 << 64) - 1
    value = (value + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


def pattern(sector: int, seed: int) -> bytes:
    """What a sector holds after `fill`."""
    first = mix(sector ^ mix(seed))
    step, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1
    return b"".join(((first + step * at) & mask).to_bytes(8, "little") for at in range(64))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("indirect", [0, INDIRECT], ids=["direct", "indirect"])
@pytest.mark.parametrize("wait", ["poll", "event"])
def test_what_was_filled_is_found(kind: int, indirect: int, wait: str) -> None:
    with rig(memory_disk(), kind | indirect | EVENT_IDX, wait=wait) as one:
        load = one.load(wait=wait, depth=16, write_percent=30, verify="pattern", seed=7)
        filled = load.fill()
        assert filled["requests"] == filled["writes"] == BLOCKS
        assert filled["bytes"] == DISK_BYTES
        assert (filled["errors"], filled["verified"], filled["first_failure"]) == (0, 0, None)
        for sector in (0, 1, 8, DISK_BYTES // SECTOR - 1):
            assert one.disk.read(sector * SECTOR, SECTOR) == pattern(sector, 7)

        did = load.run(0.05)
        assert did["requests"] == did["reads"] + did["writes"] > 0
        assert did["bytes"] == did["requests"] * BLOCK
        assert did["verified"] == did["reads"] // 16
        assert (did["errors"], did["mismatches"], did["first_failure"]) == (0, 0, None)
        assert 0 < did["min_ns"] <= did["p50_ns"] <= did["p99_ns"] <= did["p999_ns"]
        assert load.outstanding == 0
        counts = one.pumps[0].stats
        assert counts["reads"] + counts["writes"] == filled["requests"] + did["requests"]
        device = one.devices[0].stats
        assert device["used_entries"] == filled["used_entries"] + did["used_entries"]
        assert device["calls_sent"] >= filled["calls"] + did["calls"]
        if wait == "poll":
            # With EVENT_IDX a device cannot refuse them: it names an index that comes again.
            assert did["kicks"] <= 1 + did["requests"] // 0x4000
            assert did["calls"] == 0
        # The queue is as it was: it takes buffers, and gives them back.
        assert one.drivers[0].free == QUEUE_SIZE


def test_blocks_are_read_in_order_and_all_over() -> None:
    with rig(memory_disk()) as one:
        small = one.load(random=False, depth=4, block_bytes=SECTOR, capacity_sectors=8)
        small.fill()
        assert small.run(0.02)["errors"] == 0
        content = one.disk.read(0, DISK_BYTES)
        assert content[: 8 * SECTOR] == b"".join(pattern(sector, 0) for sector in range(8))
        assert content[8 * SECTOR :] == bytes(DISK_BYTES - 8 * SECTOR)
        large = one.load(write_percent=100, depth=8, block_bytes=64 << 10, seed=1)
        did = large.run(0.2)
        assert did["writes"] == did["requests"]
        written = [one.disk.read(at, 16) != bytes(16) for at in range(0, DISK_BYTES, 64 << 10)]
        assert did["requests"] < 200 or all(written)


@pytest.mark.parametrize(("depth", "batch", "publications"), [(32, 8, 4), (20, 7, 3), (5, 8, 1)])
def test_requests_are_made_available_a_few_at_a_time(
    depth: int, batch: int, publications: int
) -> None:
    with rig(memory_disk(), IN_ORDER) as one:
        load = one.load(depth=depth, batch=batch, capacity_sectors=depth * BLOCK // SECTOR)
        assert load.fill()["batches"] == publications


@pytest.mark.parametrize("queues", [2, 3])
def test_several_queues(queues: int) -> None:
    with rig(memory_disk(), PACKED | IN_ORDER, queues=queues) as one:
        load = one.load(depth=8, verify="pattern", verify_every=1)
        assert load.fill()["requests"] == BLOCKS
        did = load.run(0.05)
        assert did["verified"] == did["reads"] == did["requests"]
        assert did["mismatches"] == 0
        served = [pump.stats["reads"] for pump in one.pumps]
        assert sum(served) == did["reads"]
        assert all(served)


def test_what_is_read_wrong_is_told() -> None:
    with rig(BlkDisk.null(DISK_BYTES)) as one:
        did = one.load(verify="zeroes", verify_every=3).run(0.02)
        assert did["verified"] == did["reads"] // 3 > 0
        assert (did["mismatches"], did["first_failure"]) == (0, None)
        did = one.load(verify="pattern", verify_every=2, random=False).run(0.02)
        assert did["mismatches"] == did["verified"] > 0
        assert did["first_failure"] == "sector 8 was read with other bytes"
        assert did["errors"] == 0


def test_requests_that_fail_are_told() -> None:
    with rig(memory_disk()) as one:
        twice = one.load(capacity_sectors=2 * DISK_BYTES // SECTOR, depth=4)
        did = twice.fill()
        assert (did["requests"], did["errors"], did["bytes"]) == (2 * BLOCKS, BLOCKS, DISK_BYTES)
        first = DISK_BYTES // SECTOR
        assert did["first_failure"] == f"writing at sector {first} ended with status 1"
        did = one.load(capacity_sectors=8).fill()
        assert (did["requests"], did["errors"], did["first_failure"]) == (1, 0, None)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"block_bytes": 0}, "block_bytes is 0, not a multiple of 512"),
        ({"block_bytes": 4000}, "block_bytes is 4000, not a multiple of 512"),
        ({"block_bytes": 1 << 25}, "block_bytes is 33554432"),
        ({"capacity_sectors": 7}, "capacity_sectors is 7, too few for one block of 4096 bytes"),
        ({"depth": 0}, r"depth is 0, not in 1\.\.=32768"),
        ({"depth": 40000}, "depth is 40000"),
        ({"depth": 43}, r"depth is 43, which takes 129 slots: queues\[0\] has 128"),
        ({"batch": 0}, "batch is 0"),
        ({"write_percent": 101}, "write_percent is 101"),
        ({"verify_every": 0}, "verify_every is 0"),
        ({"verify": "all"}, 'verify is "all", not "pattern", "zeroes" or None'),
        ({"wait": "adaptive"}, 'wait is "adaptive", not "poll" or "event"'),
    ],
)
def test_options_that_make_no_sense(wrong: dict[str, Any], message: str) -> None:
    with rig(memory_disk()) as one, pytest.raises(ValueError, match=message):
        one.load(**wrong)


def test_queues_that_cannot_be_loaded() -> None:
    sectors: dict[str, Any] = {"capacity_sectors": DISK_BYTES // SECTOR}
    with rig(memory_disk(), enabled=False) as one:
        with pytest.raises(ValueError, match="queues is empty"):
            BlkLoad(one.memory, ARENA, [], **sectors)
        with pytest.raises(ValueError, match=r"queues\[1\] is queues\[0\] once more"):
            BlkLoad(one.memory, ARENA, one.drivers * 2, **sectors)
        with pytest.raises(MemoryError_, match="0x1000000"):
            BlkLoad(one.memory, MEMORY_BYTES - 4096, one.drivers, **sectors)
        one.drivers[0].set_call(None)
        with pytest.raises(ValueError, match=r"queues\[0\] has no call eventfd"):
            one.load(wait="event")
        one.drivers[0].add([(ARENA, 16)], [(ARENA + 16, 1)])
        with pytest.raises(ValueError, match=r"queues\[0\] has 1 buffers outstanding"):
            one.load()


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 3601.0])
def test_times_that_make_no_sense(seconds: float) -> None:
    with rig(memory_disk()) as one, pytest.raises(ValueError, match="seconds is"):
        one.load().run(seconds)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("wait", ["poll", "event"])
def test_a_signal_ends_the_wait_for_a_silent_device(wait: str) -> None:
    def interrupt(_number: int, _frame: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with rig(memory_disk(), enabled=False) as one:
            load = one.load(wait=wait, depth=4)
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(Interrupted):
                load.fill()
            assert load.outstanding == 4
            # The next run answers for them, too.
            one.pumps[0].enable(True)
            assert load.fill()["requests"] == BLOCKS + 4
            assert load.outstanding == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_one_run_at_a_time_while_others_look_on() -> None:
    with rig(memory_disk()) as one:
        load = one.load()
        done: list[dict[str, Any]] = []
        running = threading.Thread(target=lambda: done.append(load.run(0.5)))
        running.start()
        while not load.outstanding:
            pass
        with pytest.raises(ValueError, match="running"):
            load.run(0.1)
        assert one.drivers[0].stats["batches"] > 0
        running.join()
        assert done[0]["requests"] > 0


def test_a_broken_ring_ends_the_run() -> None:
    with rig(memory_disk(), enabled=False) as one:
        load = one.load(depth=2)
        one.memory.write(0x8002, (7).to_bytes(2, "little"))
        with pytest.raises(RingFault, match="used index 7 is more than"):
            load.run(1.0)


def test_memory_that_a_load_needs() -> None:
    assert BlkLoad.memory_bytes() == 32 * 64 + 2048 + 32 * BLOCK
    assert BlkLoad.memory_bytes(block_bytes=512, depth=1, queues=3) == 4096 + 3 * 512
    with pytest.raises(ValueError, match="block_bytes is 100"):
        BlkLoad.memory_bytes(block_bytes=100)
