"""What a trace tells."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from virtq import Device, Driver, QueueSpec, Request, RingKind
from virtq.devices.blk import BlkDevice
from virtq.devices.disk import Disk
from virtq.drivers.blk import BlkDriver
from virtq.transports.loopback import LoopbackTransport
from virtq.wrap import Faulty, Traced


def use_disk(device: Any, kind: RingKind) -> None:
    with BlkDriver(LoopbackTransport(device), want=kind.features, offer=kind.change) as driver:
        driver.write(0, bytes(1024))
        assert driver.read(0, 512) == bytes(512)
        driver.flush()
        driver.write_config("writeback", 0)


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_events_of_a_disk(kind: RingKind) -> None:
    events: list[dict[str, Any]] = []
    use_disk(Traced(BlkDevice(Disk.memory(1 << 20)), events.append), kind)
    names = [event["event"] for event in events]
    assert names.count("take") == names.count("complete") == 3
    assert names.count("kick") >= 1
    assert names.count("config_written") == 1
    assert names.index("negotiated") < names.index("queue_started") < names.index("take")
    assert names[-1] == "reset"
    taken = [event for event in events if event["event"] == "take"]
    assert [(t["kind"], t["readable"], t["writable"]) for t in taken] == [
        ("write", 16 + 1024, 1),
        ("read", 16, 513),
        ("flush", 16, 1),
    ]
    done = {event["request"]: event for event in events if event["event"] == "complete"}
    assert [done[t["request"]]["written"] for t in taken] == [1, 513, 1]
    for one in taken:
        finished = done[one["request"]]
        spent_us = finished["time_us"] - one["time_us"]
        assert 0 < finished["latency_us"] <= spent_us + 1
    times = [event["time_us"] for event in events]
    assert times == sorted(times)
    negotiated = next(event for event in events if event["event"] == "negotiated")
    assert ("IN_ORDER" in negotiated["features"]) == kind.in_order


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    with Traced(BlkDevice(Disk.memory(1 << 20)), path) as device:
        use_disk(device, RingKind.PACKED)
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert {"take", "complete", "call", "reset"} <= {event["event"] for event in events}


def test_a_trace_for_perfetto(tmp_path: Path) -> None:
    """The JSON array of the trace event format: spans that begin and end with the same name,
    category and id, on tracks that have names."""
    path = tmp_path / "trace.json"
    faults = ["read:always:delay=2ms"]
    with Traced(Faulty(BlkDevice(Disk.memory(1 << 20)), *faults), path) as device:
        use_disk(device, RingKind.SPLIT_IN_ORDER)
    records = json.loads(path.read_text())
    assert all({"ph", "name", "ts", "pid"} <= set(record) for record in records)
    tracks = {
        record["tid"]: record["args"]["name"]
        for record in records
        if record["name"] == "thread_name"
    }
    assert tracks == {1: "requestq1"}
    spans = [[r for r in records if r["ph"] == phase] for phase in "be"]
    assert [len(each) for each in spans] == [3, 3]
    ends = {(end["cat"], end["id"], end["name"]): end for end in spans[1]}
    lengths_us = {}
    for begin in spans[0]:
        end = ends[begin["cat"], begin["id"], begin["name"]]
        lengths_us[begin["name"]] = end["ts"] - begin["ts"]
    assert set(lengths_us) == {"read", "write", "flush"}
    assert lengths_us["read"] >= 2000
    assert all("s" in record for record in records if record["ph"] == "i")


def test_a_trace_that_was_cut_off_can_be_mended(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    device = Traced(BlkDevice(Disk.memory(1 << 20)), path)
    use_disk(device, RingKind.PACKED)  # its end flushes the file
    assert len(json.loads(path.read_text() + "]")) > 10
    device.close()
    device.close()


class Events(Device):
    device_id = 63
    queues: Sequence[QueueSpec] = (QueueSpec("q", 8, fills=True),)


def test_buffers_that_go_back_are_no_open_spans(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with Traced(Events(), path) as device, Driver(LoopbackTransport(device)) as driver:
        driver.queues[0].add_batch([b""] * 4, reply=8)
        driver.queues[0].kick()

        async def put() -> None:
            device.supplies["q"].put_nowait(b"x")

        transport = driver.transport
        assert isinstance(transport, LoopbackTransport)
        asyncio.run_coroutine_threadsafe(put(), transport._loop).result(5)
    records = json.loads(path.read_text())
    phases = [record["ph"] for record in records]
    assert phases.count("b") == phases.count("e") == 4
    assert sum("put_back" in r.get("args", {}) for r in records if r["ph"] == "e") == 3


def test_an_authors_own_events() -> None:
    events: list[dict[str, Any]] = []

    class Echo(Device):
        queues: Sequence[QueueSpec] = (QueueSpec("q", 8),)

        def handle(self, request: Request) -> int:
            traced.emit("thinking", about=request.peek(5).decode())
            return request.write(request.read())

    traced = Traced(Echo(), events.append)
    with Driver(LoopbackTransport(traced)) as driver:
        driver.queues[0].call(b"hello", reply=5, timeout_s=5)
    assert [e["about"] for e in events if e["event"] == "thinking"] == ["hello"]


def test_a_disk_that_is_full_ends_the_trace_and_not_the_device(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Traced(BlkDevice(Disk.memory(1 << 20)), "/dev/full") as device:
        use_disk(device, RingKind.PACKED)
    assert caplog.text.count("the trace ends") == 1
