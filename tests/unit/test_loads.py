"""The loads that benches are made of: what they count and verify, never how fast."""

from __future__ import annotations

import os
import threading

import pytest

import virtq
from virtq import _core
from virtq._core import DeviceQueue, DriverQueue, Memory, NetLoad, NetPort, NetPump, RingLoop

KINDS = [
    virtq.F(0),
    virtq.F.IN_ORDER,
    virtq.F.RING_PACKED,
    virtq.F.RING_PACKED | virtq.F.IN_ORDER,
]
SIZE = 256
BATCH = 32


def run(loop: RingLoop, enough: int = 1000) -> dict[str, float]:
    total: dict[str, float] = {}
    for _ in range(500):
        for name, value in loop.run(0.004).items():
            total[name] = total.get(name, 0) + value
        if total["buffers"] >= enough and total["verified"] > 0:
            return total
    raise AssertionError(f"no {enough} buffers went through: {total}")


@pytest.mark.parametrize("direction", ["send", "receive", "both"])
@pytest.mark.parametrize("features", KINDS, ids=str)
def test_ring_loop_counts_what_it_does(features: virtq.F, direction: str) -> None:
    did = run(RingLoop(features, SIZE, direction=direction, batch=BATCH))
    assert did["bytes"] == 64 * did["buffers"]
    assert did["kicks_sent"] == did["calls_sent"] == 0
    assert 0 < did["verified"] <= did["buffers"]
    if direction == "send":
        per_batch = did["used_entries"] / did["batches"]
        assert per_batch == 1 if features & virtq.F.IN_ORDER else per_batch > 1


def test_ring_loop_names_what_is_wrong() -> None:
    wrong: list[tuple[dict[str, object], str]] = [
        ({"size": 0}, "size"),
        ({"size": 24, "batch": 8}, "size"),
        ({"size": 1 << 20}, "size"),
        ({"batch": 0}, "batch"),
        ({"batch": 257}, "batch"),
        ({"chain": -1}, "chain"),
        ({"chain": 16, "batch": 17}, "batch"),
        ({"length": 0}, "length"),
        ({"length": 1 << 40}, "length"),
        ({"regions": 5000}, "regions"),
        ({"direction": "up"}, "direction"),
        ({"pin": (0, 1 << 30)}, "pin"),
    ]
    for arguments, name in wrong:
        with pytest.raises(ValueError, match=name):
            RingLoop(0, **{"size": SIZE, **arguments})  # type: ignore[arg-type]
    loop = RingLoop(0, SIZE)
    for seconds in (0.0, -1.0, 61.0, float("nan")):
        with pytest.raises(ValueError, match="seconds"):
            loop.run(seconds)


def test_ring_loop_runs_once_at_a_time() -> None:
    loop = RingLoop(0, SIZE)
    started = threading.Event()

    def long() -> None:
        started.set()
        loop.run(0.5)

    def meanwhile() -> None:
        while other.is_alive():
            loop.run(0.0001)

    other = threading.Thread(target=long)
    other.start()
    started.wait()
    try:
        with pytest.raises(OSError, match="runs already"):
            meanwhile()
    finally:
        other.join()


def test_a_line_goes_round_between_two_processors() -> None:
    usable = sorted(os.sched_getaffinity(0))
    assert _core.line_round_trip(usable[0], usable[0]) is None
    with pytest.raises(ValueError, match="processor 1048576"):
        _core.line_round_trip(usable[0], 1 << 20)
    trip = _core.line_round_trip(usable[0], usable[-1])
    assert trip is None or trip > 0  # none while the machine is busy elsewhere


class Net:
    """A pair of queues with a port at the other end, and a load to work on it."""

    def __init__(
        self, features: virtq.F, port: NetPort, *, receive: bool, length: int = 64, **load: int
    ) -> None:
        buffer_bytes = load.get("buffer_bytes", 1536)
        slab = NetLoad.memory_bytes(SIZE, max(12 + length, buffer_bytes))
        self.memory = Memory.allocate(0x10000 + slab)
        areas = (0x1000, 0x4000, 0x8000)
        self.driver = DriverQueue(self.memory, features, SIZE, *areas, index=int(not receive))
        device = DeviceQueue(self.memory, features, SIZE, *areas, index=int(not receive))
        mergeable = bool(load.get("mergeable", 0))
        self.pump = NetPump(port, device, receive=receive, mergeable=mergeable, wait="poll")
        ends = (None, self.driver) if receive else (self.driver, None)
        self.load = NetLoad(
            *ends,
            transmit_memory=0x10000,
            receive_memory=0x10000,
            length=length,
            batch=BATCH,
            **load,  # type: ignore[arg-type]
        )

    def run(self, name: str, enough: int) -> dict[str, float]:
        total: dict[str, float] = {}
        for _ in range(500):
            for key, value in self.load.run(0.004).items():
                total[key] = total.get(key, 0) + value
            if total[name] >= enough:
                return total
        raise AssertionError(f"no {enough} frames {name}: {total}")


@pytest.mark.parametrize("features", KINDS, ids=str)
def test_net_load_sends_frames_that_can_be_told_apart(features: virtq.F) -> None:
    port = NetPort.sink(SIZE)
    net = Net(features, port, receive=False)
    did = net.run("transmitted", 1000)
    net.pump.stop()
    assert did["bytes"] == 64 * did["transmitted"]
    kept = [(int.from_bytes(frame[14:22]), frame[22:]) for frame in port.kept]
    first = kept[0][0]
    assert [number for number, _ in kept] == list(range(first, first + SIZE))
    assert all(body == bytes((number + at) % 256 for at in range(42)) for number, body in kept)
    assert port.stats["tx_packets"] >= did["transmitted"]


@pytest.mark.parametrize("features", KINDS, ids=str)
def test_net_load_receives_and_checks(features: virtq.F) -> None:
    net = Net(features, NetPort.source(100), receive=True)
    did = net.run("received", 1000)
    net.pump.stop()
    assert did["bytes"] == 100 * did["received"]
    assert did["verified"] > 0
    assert did["malformed"] == 0


@pytest.mark.parametrize("features", KINDS, ids=str)
def test_net_load_puts_packets_together(features: virtq.F) -> None:
    net = Net(features, NetPort.source(700), receive=True, buffer_bytes=256, mergeable=True)
    did = net.run("received", 300)
    net.pump.stop()
    assert did["bytes"] == 700 * did["received"]
    assert did["verified"] > 0


def test_net_load_finds_a_wrong_frame() -> None:
    memory = Memory.allocate(0x200000)
    areas = (0x1000, 0x4000, 0x8000)
    driver = DriverQueue(memory, 0, SIZE, *areas)
    device = DeviceQueue(memory, 0, SIZE, *areas)
    load = NetLoad(None, driver, receive_memory=0x10000, batch=1)
    load.run(0.001)
    frame = bytearray(12 + 64)
    frame[12:26] = bytes.fromhex("ffffffffffff02000000000188b5")
    frame[33] = 7
    for request in device.take(32):
        request.write(frame)
        request.complete()
    device.flush()
    with pytest.raises(_core.VirtqError, match="number 31 is not what was sent"):
        load.run(0.01)


def test_net_load_names_what_is_wrong() -> None:
    memory = Memory.allocate(0x200000)
    queue = DriverQueue(memory, 0, SIZE, 0x1000, 0x4000, 0x8000)
    for arguments, name in [
        ({"length": 13}, "length"),
        ({"length": 1 << 17}, "length"),
        ({"batch": 0}, "batch"),
        ({"batch": 300}, "batch"),
        ({"header_bytes": 11}, "header_bytes"),
        ({"buffer_bytes": 20}, "buffer_bytes"),
        ({"pin": os.cpu_count() or 1}, "pin"),
    ]:
        with pytest.raises(ValueError, match=name):
            NetLoad(queue, None, **{"transmit_memory": 0x10000, **arguments})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="queue"):
        NetLoad(None, None)
    with pytest.raises(ValueError, match="queue"):
        NetLoad(queue, queue)
    with pytest.raises(_core.RingFault, match="not mapped"):
        NetLoad(queue, None, transmit_memory=0x1FF000)
    queue.add([(0x10000, 64)], [])
    with pytest.raises(ValueError, match="outstanding"):
        NetLoad(queue, None, transmit_memory=0x10000)
