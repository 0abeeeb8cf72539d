"""A device in which things go wrong, as its driver sees it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence

import pytest

from virtq import Device, Driver, QueueSpec, Request, RingKind
from virtq.devices.blk import BlkDevice
from virtq.devices.disk import Disk
from virtq.drivers.blk import BlkDriver
from virtq.errors import RequestError, RingFault
from virtq.queue import DriverQueue
from virtq.transports.loopback import LoopbackTransport
from virtq.wrap import FaultError, Faulty, Wrapper

BYTES = 512


class Echo(Device):
    device_id = 63
    queues: Sequence[QueueSpec] = (QueueSpec("q", 32), QueueSpec("events", 8, fills=True))

    def handle(self, request: Request) -> int:
        return request.write(request.read())


@pytest.fixture(params=RingKind, ids=str)
def kind(request: pytest.FixtureRequest) -> RingKind:
    found: RingKind = request.param
    return found


def drive(device: Wrapper, kind: RingKind) -> Driver:
    return Driver(LoopbackTransport(device), want=kind.features, offer=kind.change)


def disk(device: Wrapper, kind: RingKind) -> BlkDriver:
    return BlkDriver(LoopbackTransport(device), want=kind.features, offer=kind.change)


def answers(queue: DriverQueue, *words: bytes) -> list[bytes]:
    """The replies to all of these, in the order of use."""
    queue.add_batch(words, reply=4)
    queue.kick()
    used: list[bytes] = []
    while len(used) < len(words):
        assert queue.wait(5), used
        used += [one.reply for one in queue.reap()]
    return used


def test_a_read_fails_and_the_next_one_does_not(kind: RingKind) -> None:
    storage = Disk.memory(1 << 20)
    faulty = Faulty(BlkDevice(storage), "read:2:EIO", "write:1:ENOSPC")
    with faulty, disk(faulty, kind) as driver:
        with pytest.raises(RequestError, match="IOERR"):
            driver.write(0, b"a" * BYTES)
        driver.write(0, b"b" * BYTES)
        assert driver.read(0, BYTES) == b"b" * BYTES
        with pytest.raises(RequestError, match="IOERR"):
            driver.read(0, BYTES)
        assert driver.read(0, BYTES) == b"b" * BYTES
        assert storage.read(0, BYTES) == b"b" * BYTES
    assert faulty.happened == {"read:2:EIO": 1, "write:1:ENOSPC": 1}
    assert faulty.stats()["requestq1"]["faults"] == 2


def test_many_requests_and_many_faults(kind: RingKind) -> None:
    faults = ["read:10%:EIO", "read:20%:delay=1ms", "*:10%:reorder", "write:5%:late-call=1ms"]
    faulty = Faulty(BlkDevice(Disk.memory(1 << 20)), *faults, seed=1)
    with faulty, disk(faulty, kind) as driver:
        failed = 0
        for start in range(0, 200, 20):
            for sector in range(start, start + 20):
                driver.write(sector * BYTES, bytes([sector]) * BYTES)
            for sector in range(start, start + 20):
                try:
                    assert driver.read(sector * BYTES, BYTES) == bytes([sector]) * BYTES
                except RequestError:
                    failed += 1
        assert failed == faulty.happened["read:10%:EIO"] > 5
        assert set(faulty.happened) == set(faults)


def test_an_error_without_a_status_breaks_the_queue(
    kind: RingKind, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.ERROR),
        Faulty(Echo(), "q:2:EPERM") as device,
        drive(device, kind) as driver,
    ):
        assert driver.queues[0].call(b"x", reply=1, timeout_s=5) == b"x"
        with pytest.raises(RingFault, match="given it up"):
            driver.queues[0].call(b"x", reply=1, timeout_s=5)
    assert "queue q is broken: EPERM was injected, and the requests have no status" in caplog.text


def test_delays_and_reordering(kind: RingKind) -> None:
    for fault in ("q:1:delay=20ms", "q:1:reorder"):
        with Faulty(Echo(), fault) as device, drive(device, kind) as driver:
            expected = [b"1", b"2", b"3"]
            if not kind.in_order:
                expected = [b"2", b"3", b"1"] if "delay" in fault else [b"2", b"1", b"3"]
            assert answers(driver.queues[0], b"1", b"2", b"3") == expected


def test_reordering_the_only_request_does_not_hold_it_for_ever(kind: RingKind) -> None:
    with Faulty(Echo(), "q:always:reorder") as device, drive(device, kind) as driver:
        assert driver.queues[0].call(b"x", reply=1, timeout_s=5) == b"x"


def test_what_hangs_is_never_used(kind: RingKind) -> None:
    with Faulty(Echo(), "q:2:hang") as device, drive(device, kind) as driver:
        queue = driver.queues[0]
        queue.add_batch([b"1", b"2", b"3"], reply=4)
        queue.kick()
        used: list[bytes] = []
        deadline = time.monotonic() + 5
        while len(used) < (1 if kind.in_order else 2) and time.monotonic() < deadline:
            assert queue.wait(5)
            used += [one.reply for one in queue.reap()]
        assert used == ([b"1"] if kind.in_order else [b"1", b"3"])
        driver.transport.read_features()  # the device has done all it could
        assert not queue.core.has_used
        assert [used.reply for used in queue.reap()] == []


@pytest.mark.parametrize("corruption", ["id", "length", "order"])
def test_a_corrupt_used_entry_is_noticed_by_the_driver(corruption: str, kind: RingKind) -> None:
    with (
        Faulty(Echo(), f"q:2:corrupt-used={corruption}") as device,
        drive(device, kind) as driver,
    ):
        queue = driver.queues[0]
        assert queue.call(b"1", reply=4, timeout_s=5) == b"1"
        with pytest.raises(RingFault):
            queue.call(b"2", reply=4, timeout_s=5)
        driver.reset()
        assert driver.queues[0].call(b"3", reply=4, timeout_s=5) == b"3"


def calls_received(driver: Driver) -> int:
    return driver.stats()["queue0"]["calls_received"]


def test_a_notification_is_lost(kind: RingKind) -> None:
    with Faulty(Echo(), "q:1:drop-call") as device, drive(device, kind) as driver:
        queue = driver.queues[0]
        queue.core.enable_calls()
        queue.add(b"1", reply=4)
        queue.kick()
        deadline = time.monotonic() + 5
        while not queue.core.has_used:
            assert time.monotonic() < deadline
        driver.transport.read_features()
        assert device.stats()["q"]["calls_sent"] == 0
        assert [one.reply for one in queue.reap()] == [b"1"]
        # The next one is sent.
        assert queue.call(b"2", reply=4, timeout_s=5) == b"2"


def test_a_notification_is_late(kind: RingKind) -> None:
    with Faulty(Echo(), "q:1:late-call=30ms") as device, drive(device, kind) as driver:
        queue = driver.queues[0]
        began = time.monotonic()
        queue.core.enable_calls()
        queue.add(b"1", reply=4)
        queue.kick()
        while not queue.core.has_used:
            assert time.monotonic() < began + 5
        assert device.stats()["q"]["calls_sent"] == 0
        while device.stats()["q"]["calls_sent"] == 0:
            assert time.monotonic() < began + 5
        assert time.monotonic() - began >= 0.03


def test_what_was_finished_and_is_delayed_is_told_when_the_queue_stops(kind: RingKind) -> None:
    with Faulty(Echo(), "q:1:delay=1000s") as device, drive(device, kind) as driver:
        queue = driver.queues[0]
        queue.add(b"1", reply=4)
        queue.kick()
        deadline = time.monotonic() + 5
        while device.happened == {}:
            assert time.monotonic() < deadline
        transport = driver.transport
        assert isinstance(transport, LoopbackTransport)

        async def stop() -> None:
            device.stop_queue(0)

        asyncio.run_coroutine_threadsafe(stop(), transport._loop).result(5)
        assert [one.reply for one in queue.reap()] == [b"1"]


def test_faults_on_a_queue_that_the_device_fills(kind: RingKind) -> None:
    with pytest.raises(FaultError, match="'events:1:EIO': events is for the device to fill"):
        Faulty(Echo(), "events:1:EIO")
    device = Faulty(Echo(), "events:1:delay=10ms", "*:3:EIO")
    with device, drive(device, kind) as driver:
        events, transport = driver.queues[1], driver.transport
        assert isinstance(transport, LoopbackTransport)
        events.add_batch([b""] * 3, reply=8)
        events.kick()

        async def put() -> None:
            device.supplies["events"].put_nowait(b"one", b"two")

        asyncio.run_coroutine_threadsafe(put(), transport._loop).result(5)
        used: list[bytes] = []
        while len(used) < 2:
            assert events.wait(5)
            used += [one.reply for one in events.reap()]
        assert used == ([b"one", b"two"] if kind.in_order else [b"two", b"one"])


def test_a_handler_may_wait_within_a_wrapper(kind: RingKind) -> None:
    class Slow(Echo):
        async def handle(self, request: Request) -> int:  # type: ignore[override]
            await asyncio.sleep(0)
            return request.write(request.read())

    device = Faulty(Faulty(Slow(), "q:/2:delay=1ms"), "q:/3:reorder")
    with device, drive(device, kind) as driver:
        words = [b"%d" % number for number in range(24)]
        assert sorted(answers(driver.queues[0], *words)) == sorted(words)


@pytest.fixture(autouse=True)
def no_warnings(recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    yield
    assert [str(w.message) for w in recwarn] == []


def test_batches_as_arrays_within_a_wrapper(kind: RingKind) -> None:
    import numpy as np

    from virtq.wrap.around import BatchAround

    class Add(Device):
        device_id = 63
        queues: Sequence[QueueSpec] = (QueueSpec("q", 32),)

        def handle_batch(self, batch: BatchAround) -> int:  # type: ignore[override]
            rows = batch.read_array()
            assert rows.shape == (len(batch), 4)
            assert len(set(batch.addresses())) == len(batch)
            assert list(batch.readable()) == list(batch.writable()) == [4] * len(batch)
            with pytest.raises(ValueError, match="do not fit"):
                batch.write_array(np.zeros((len(batch), 5), np.uint8))
            with pytest.raises(ValueError, match="not of bytes"):
                batch.write_array(np.zeros((len(batch), 4)))  # type: ignore[arg-type]
            return batch.write_array(rows + 1)

    with Faulty(Add(), "q:/3:delay=1ms") as device, drive(device, kind) as driver:
        words = [bytes([n] * 4) for n in range(10)]
        expected = sorted(bytes([n + 1] * 4) for n in range(10))
        assert sorted(answers(driver.queues[0], *words)) == expected
