"""Handlers that are coroutines: which task each is in, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence

import pytest

from virtq import Device, Driver, QueueSpec, Request
from virtq.features import RingKind
from virtq.queue import Used
from virtq.transports.loopback import LoopbackTransport

PATIENCE_S = 5


class Worker(Device):
    """Does what its requests say, and notes in which task."""

    device_id = 63
    queues: Sequence[QueueSpec] = (QueueSpec("requests", 64),)

    def __init__(self) -> None:
        self.begun: list[bytes] = []
        self.tasks: dict[bytes, asyncio.Task[object] | None] = {}
        self.moved: list[bytes] = []
        """Those that went on in another task than they began in."""
        self.cancelled: list[bytes] = []
        self.is_waiting = threading.Event()

    async def handle(self, request: Request) -> int:
        word = request.read()
        self.begun.append(word)
        self.tasks[word] = asyncio.current_task()
        try:
            await self.work(word)
        except asyncio.CancelledError:
            self.cancelled.append(word)
            raise
        finally:
            if asyncio.current_task() is not self.tasks[word]:
                self.moved.append(word)
        return request.write(word.upper())

    async def work(self, word: bytes) -> None:
        match word[:1]:
            case b"y":  # yields once
                await asyncio.sleep(0)
            case b"t":  # runs into its own time limit
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.001):
                        await asyncio.Event().wait()
            case b"f":
                raise RuntimeError(word)
            case b"c":
                raise asyncio.CancelledError
            case b"s":
                self.is_waiting.set()
                await asyncio.Event().wait()

    def fail(self, request: Request, error: Exception) -> int:
        return request.write(b"!")


def drive(device: Device, kind: RingKind = RingKind.PACKED_IN_ORDER) -> Driver:
    driver = Driver(LoopbackTransport(device), want=kind.features, offer=kind.change)
    # The first one shows that the handler is a coroutine.
    assert driver.queues[0].call(b"hello", reply=5, timeout_s=PATIENCE_S) == b"HELLO"
    return driver


def send(driver: Driver, words: Sequence[bytes]) -> dict[bytes, bytes]:
    """All at once; the replies by the words."""
    queue = driver.queues[0]
    for word in words:
        queue.add(word, reply=8, cookie=word)
    queue.kick()
    used: list[Used] = []
    while len(used) < len(words):
        assert queue.wait(PATIENCE_S)
        used += queue.reap()
    return {one.cookie: one.reply for one in used}


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_what_does_not_wait_shares_a_task(kind: RingKind) -> None:
    device = Worker()
    words = [b"n%d" % number for number in range(32)]
    with drive(device, kind) as driver:
        assert send(driver, words) == {word: word.upper() for word in words}
    assert device.begun[1:] == words
    tasks = {device.tasks[word] for word in words}
    assert len(tasks) == 1
    assert None not in tasks


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_what_waits_has_its_task_for_itself(kind: RingKind) -> None:
    device = Worker()
    words = [b"n1", b"n2", b"y1", b"n3", b"y2", b"t1", b"n4", b"t2"]
    with drive(device, kind) as driver:
        for _ in range(2):
            assert send(driver, words) == {word: word.upper() for word in words}
    assert device.begun[1:] == words + words
    assert device.moved == []
    # The first that waits had it together with those that were done before; then each has its own.
    assert device.tasks[b"n1"] is device.tasks[b"n2"] is device.tasks[b"y1"]
    assert len({device.tasks[word] for word in words[2:]}) == len(words[2:])


def test_a_time_limit_is_of_the_request_that_set_it() -> None:
    device = Worker()
    with drive(device) as driver:
        assert send(driver, [b"t1", b"n1"]) == {b"t1": b"T1", b"n1": b"N1"}
    assert device.cancelled == []


@pytest.mark.parametrize("word", [b"f", b"c"])
def test_a_failure_before_the_first_wait_costs_its_request_only(
    word: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), drive(Worker()) as driver:
        for _ in range(2):
            replies = send(driver, [b"n1", word, b"n2", b"y1"])
            assert replies == {b"n1": b"N1", word: b"!", b"n2": b"N2", b"y1": b"Y1"}
    assert caplog.text.count("the handler failed") == 1


def test_reset_cancels_what_waits() -> None:
    device = Worker()
    with drive(device) as driver:
        queue = driver.queues[0]
        for word in (b"n1", b"s1", b"n2", b"s2"):
            queue.add(word, reply=8)
        queue.kick()
        assert device.is_waiting.wait(PATIENCE_S)
        assert queue.wait(PATIENCE_S)
        driver.reset()
        assert driver.queues[0].call(b"again", reply=5, timeout_s=PATIENCE_S) == b"AGAIN"
    assert sorted(device.cancelled) == [b"s1", b"s2"]
