"""Queues that the device fills: buffers that the driver supplies, and what waits for them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

import pytest

from virtq import Device, DeviceQueue, Driver, QueueFull, QueueSpec, Request, RingKind, Supply
from virtq.errors import DeviceReset
from virtq.queue import DriverQueue
from virtq.transports.loopback import LoopbackTransport

T = TypeVar("T")


class Events(Device):
    device_id = 63
    queues: Sequence[QueueSpec] = (QueueSpec("eventq", 16, fills=True), QueueSpec("commands", 16))

    def handle(self, request: Request) -> int:
        return request.write(request.read())


class Scene:
    """A device that is driven, and calls made in its thread."""

    def __init__(self, kind: RingKind) -> None:
        self.device = Events()
        self.transport = LoopbackTransport(self.device)
        self.driver = Driver(self.transport, want=kind.features, offer=kind.change)

    @property
    def supply(self) -> Supply:
        return self.device.supplies["eventq"]

    @property
    def events(self) -> DriverQueue:
        return self.driver.queues[0]

    def give(self, *sizes: int) -> None:
        for size in sizes:
            self.events.add(reply=size, cookie=size)
        self.events.kick()

    def call(self, function: Callable[..., T], *args: Any) -> T:
        async def call() -> T:
            return function(*args)

        return self.run(call())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.begin(work).result(10)

    def begin(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self.transport._loop)

    def until_waiting(self, count: int) -> None:
        deadline = time.monotonic() + 10
        while self.call(lambda: self.supply.waiting) != count:
            assert time.monotonic() < deadline

    def replies(self, count: int) -> list[bytes]:
        used: list[bytes] = []
        while len(used) < count:
            assert self.events.wait(10)
            used += [one.reply for one in self.events.reap()]
        return used


@pytest.fixture(params=RingKind, ids=str)
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    made = Scene(request.param)
    with made.driver:
        yield made


def test_what_is_put_arrives_in_order(scene: Scene) -> None:
    assert scene.call(lambda: scene.supply.free) == 0
    scene.give(8, 8, 8)
    assert scene.call(lambda: scene.supply.free) == 3
    scene.call(scene.supply.put_nowait, b"one", b"two")
    scene.call(scene.supply.put_nowait, b"three")
    assert scene.replies(3) == [b"one", b"two", b"three"]
    # Nobody waits for buffers, so the driver never had to notify.
    assert scene.driver.stats()["queue0"]["kicks_sent"] <= 1


def test_all_or_none(scene: Scene) -> None:
    scene.give(8, 4)
    with pytest.raises(QueueFull, match="queue eventq: no buffers for 3 items"):
        scene.call(scene.supply.put_nowait, b"1", b"2", b"3")
    with pytest.raises(ValueError, match="queue eventq: 5 bytes for a buffer of 4"):
        scene.call(scene.supply.put_nowait, b"1", b"12345")
    with pytest.raises(ValueError, match="17 items never fit into 16 buffers"):
        scene.call(scene.supply.put_nowait, *[b"x"] * 17)
    scene.call(scene.supply.put_nowait, b"ab", b"cd")
    assert scene.replies(2) == [b"ab", b"cd"]


def test_who_waits_is_served_in_turn(scene: Scene) -> None:
    first = scene.begin(scene.supply.put(b"1", b"2"))
    scene.until_waiting(1)
    second = scene.begin(scene.supply.put(b"3"))
    scene.until_waiting(2)
    with pytest.raises(QueueFull, match="2 others wait"):
        scene.call(scene.supply.put_nowait, b"0")
    assert scene.call(scene.supply.write, b"0") == 0
    scene.give(4)
    scene.call(lambda: None)
    assert not first.done()
    assert not second.done()
    scene.give(4, 4)
    assert scene.replies(3) == [b"1", b"2", b"3"]
    first.result(10)
    second.result(10)
    late = scene.supply.put_threadsafe(b"4")
    scene.give(4)
    late.result(10)
    assert scene.replies(1) == [b"4"]


def test_a_wait_can_be_cancelled(scene: Scene) -> None:
    first = scene.begin(scene.supply.put(b"1"))
    scene.until_waiting(1)
    second = scene.begin(scene.supply.put(b"2"))
    scene.until_waiting(2)
    first.cancel()
    scene.until_waiting(1)
    scene.give(4)
    second.result(10)
    assert scene.replies(1) == [b"2"]


def test_an_item_that_is_too_large_does_not_hold_up_the_others(scene: Scene) -> None:
    first = scene.begin(scene.supply.put(b"12345"))
    scene.until_waiting(1)
    second = scene.begin(scene.supply.put(b"1"))
    scene.until_waiting(2)
    scene.give(4)
    with pytest.raises(ValueError, match="5 bytes for a buffer of 4"):
        first.result(10)
    second.result(10)
    assert scene.replies(1) == [b"1"]


def test_a_stream_is_spread_over_buffers(scene: Scene) -> None:
    assert scene.call(scene.supply.write, b"nobody") == 0
    scene.give(3, 1, 5, 2)
    assert scene.call(scene.supply.write, b"hello") == 5
    assert scene.call(scene.supply.write, b"abcdefgh") == 2
    assert scene.replies(4) == [b"hel", b"l", b"o", b"ab"]


def test_a_stream_waits_for_buffers(scene: Scene) -> None:
    scene.give(3)
    written = scene.begin(scene.supply.write_all(b"hello world"))
    scene.until_waiting(1)
    scene.give(4, 4)
    written.result(10)
    assert scene.replies(3) == [b"hel", b"lo w", b"orld"]


def test_buffers_that_were_not_needed_are_given_back(scene: Scene) -> None:
    scene.give(4, 5, 6, 7)
    scene.call(scene.supply.put_nowait, b"1")
    assert scene.call(lambda: scene.supply.free) == 3
    assert scene.replies(1) == [b"1"]
    waiting = scene.begin(scene.supply.put(*[b"x"] * 4))
    scene.until_waiting(1)
    # The queue is reset and set up anew; who waits goes on waiting.
    assert scene.driver.reset_queue(0) == [5, 6, 7]
    assert not waiting.done()
    scene.give(*[4] * 4)
    waiting.result(10)
    assert scene.replies(4) == [b"x"] * 4


def test_a_stopped_queue_resumes_where_it_stood(scene: Scene) -> None:
    scene.give(4, 5, 6)
    scene.call(scene.supply.put_nowait, b"1")
    assert scene.call(lambda: scene.supply.free) == 2
    position = scene.call(scene.device.stop_queue, 0)
    with pytest.raises(QueueFull):
        scene.call(scene.supply.put_nowait, b"2")
    old, memory = scene.transport._queues[0], scene.events.memory
    areas = memory.desc, memory.driver, memory.device
    again = DeviceQueue(
        scene.transport.memory, old.features, old.size, *areas, index=0, position=position
    )
    scene.call(scene.device.start_queue, again, True)
    scene.call(scene.supply.put_nowait, b"2", b"3")
    used = scene.events.reap()
    assert [(one.cookie, one.reply) for one in used] == [(4, b"1"), (5, b"2"), (6, b"3")]


def test_a_reset_ends_the_wait(scene: Scene) -> None:
    waiting = scene.begin(scene.supply.put(b"x"))
    scene.until_waiting(1)
    supply = scene.supply
    scene.driver.reset()
    with pytest.raises(DeviceReset, match="queue eventq"):
        waiting.result(10)
    assert scene.supply is supply
    scene.give(4)
    scene.call(supply.put_nowait, b"y")
    assert scene.replies(1) == [b"y"]


def test_a_buffer_without_room_breaks_that_queue(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        scene.events.add(b"readable only")
        scene.events.kick()
        with pytest.raises(QueueFull):
            scene.call(scene.supply.put_nowait, b"x")
    assert "queue eventq is broken: a buffer without a device-writable part" in caplog.text
    assert scene.driver.queues[1].call(b"x", reply=1, timeout_s=5) == b"x"


def test_without_a_driver() -> None:
    device = Events()
    supply = device.supplies["eventq"]
    assert (supply.free, supply.write(b"x")) == (0, 0)
    with pytest.raises(QueueFull):
        supply.put_nowait(b"x")
    with pytest.raises(QueueFull, match="not served"):
        supply.put_threadsafe(b"x")
    with pytest.raises(KeyError, match="no queue 'commands' is the device's to fill; there are: e"):
        _ = device.supplies["commands"]


def test_put_from_many_threads(scene: Scene) -> None:
    def put(word: bytes) -> None:
        for number in range(20):
            scene.supply.put_threadsafe(b"%s%d" % (word, number)).result(10)

    scene.give(*[8] * 8)
    threads = [threading.Thread(target=put, args=(word,)) for word in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    got: list[bytes] = []
    while len(got) < 60:
        fresh = scene.replies(1)
        got += fresh
        scene.give(*[8] * len(fresh))
    for thread in threads:
        thread.join()
    for word in (b"a", b"b", b"c"):
        assert [g for g in got if g.startswith(word)] == [b"%s%d" % (word, n) for n in range(20)]
