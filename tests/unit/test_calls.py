"""Several calls at a time: from threads, and from the tasks of an asyncio loop."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

import virtq
from virtq import Device, Driver, QueueSpec, Request, RingKind
from virtq.errors import DeviceReset, PeerGone, QueueFull, RingFault
from virtq.transports.loopback import LoopbackTransport


class Slow(Device):
    """Answers with the same bytes, those that begin with a digit so many milliseconds later."""

    device_id = 63
    queues: Sequence[QueueSpec] = (QueueSpec("q", 16),)

    async def handle(self, request: Request) -> int:
        word = request.read()
        if word == b"never":
            await asyncio.Event().wait()
        if word == b"fail":
            raise ValueError("told to")
        if word[:1].isdigit():
            await asyncio.sleep(int(word[:1]) / 1000)
        return request.write(word)


def drive(kind: RingKind = RingKind.PACKED_IN_ORDER) -> Driver:
    return Driver(LoopbackTransport(Slow()), want=kind.features, offer=kind.change)


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_threads_get_their_own_answers(kind: RingKind) -> None:
    wrong: list[bytes] = []

    with drive(kind) as driver:
        queue = driver.queues[0]

        def work(number: int) -> None:
            for turn in range(25):
                word = b"%d:%d.%d" % (number, number, turn)
                answer = queue.call(word, reply=16, timeout_s=20)
                if answer != word:
                    wrong.append(answer)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert queue.outstanding == 0
        assert queue.reap() == []


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_tasks_get_their_own_answers_and_wait_for_room(kind: RingKind) -> None:
    async def work(driver: Driver) -> None:
        words = [b"%d:%d" % (number % 5, number) for number in range(200)]
        answers = await asyncio.gather(*(driver.queues[0].acall(w, reply=16) for w in words))
        assert answers == words

    with drive(kind) as driver:
        asyncio.run(work(driver))
        asyncio.run(work(driver))  # another loop
        assert driver.queues[0].call(b"x", reply=1, timeout_s=5) == b"x"


def test_a_call_that_was_cancelled_leaves_nothing_behind() -> None:
    async def work(driver: Driver) -> None:
        queue = driver.queues[0]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.acall(b"9", reply=1), 0.001)
        assert await queue.acall(b"x", reply=1) == b"x"

    with drive(RingKind.SPLIT_IN_ORDER) as driver:
        asyncio.run(work(driver))
        assert driver.queues[0].reap() == []
        assert driver.arena.held_bytes == drive_held()


def drive_held() -> int:
    with drive(RingKind.SPLIT_IN_ORDER) as driver:
        return driver.arena.held_bytes


def test_buffers_of_others_wait_for_reap() -> None:
    async def work(driver: Driver) -> None:
        assert await driver.queues[0].acall(b"x", reply=1) == b"x"

    with drive() as driver:
        driver.queues[0].add(b"mine", reply=4, cookie="mine")
        driver.queues[0].kick()
        asyncio.run(work(driver))
        assert [(u.cookie, u.reply) for u in driver.queues[0].reap()] == [("mine", b"mine")]


def test_a_buffer_that_can_never_fit_is_an_error_at_once() -> None:
    async def work(driver: Driver) -> None:
        queue = driver.queues[0]
        for _ in range(16):
            queue.add(b"never")
        with pytest.raises(QueueFull):
            await queue.acall(b"x")

    with Driver(LoopbackTransport(Slow()), offer="-INDIRECT_DESC") as driver:
        asyncio.run(work(driver))


def test_a_queue_that_breaks_fails_the_calls() -> None:
    async def work(driver: Driver) -> None:
        queue = driver.queues[0]
        results = await asyncio.gather(
            queue.acall(b"never", reply=5), queue.acall(b"fail", reply=5), return_exceptions=True
        )
        assert [type(result) for result in results] == [RingFault, RingFault]

    with drive() as driver:
        asyncio.run(work(driver))
        with pytest.raises(RingFault, match="given it up"):
            driver.queues[0].call(b"x", reply=1, timeout_s=5)


def test_a_reset_fails_the_calls() -> None:
    async def work(driver: Driver) -> None:
        call = asyncio.ensure_future(driver.queues[0].acall(b"never", reply=5))
        await asyncio.sleep(0)
        await asyncio.to_thread(driver.reset)
        with pytest.raises(DeviceReset):
            await call
        assert await driver.queues[0].acall(b"x", reply=1) == b"x"

    with drive() as driver:
        asyncio.run(work(driver))


def serve(path: str) -> None:
    virtq.serve(Slow(), f"vhost-user:{path}")


def test_calls_fail_when_the_other_end_dies(tmp_path: Path) -> None:
    path = str(tmp_path / "slow.sock")
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(path,))
    server.start()

    async def work() -> None:
        while not os.path.exists(path):
            await asyncio.sleep(0.01)
        async with virtq.connect_async(f"vhost-user:{path}") as driver:
            queue = driver.queues["q"]
            assert await queue.acall(b"x", reply=1) == b"x"
            calls = [asyncio.ensure_future(queue.acall(b"never", reply=5)) for _ in range(3)]
            await queue.acall(b"x", reply=1) if not driver.kind.in_order else None
            await asyncio.sleep(0)
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(result) for result in results] == [PeerGone] * 3

    try:
        asyncio.run(asyncio.wait_for(work(), 30))
    finally:
        server.kill()
        server.join()


def test_blocked_threads_fail_when_the_other_end_dies(tmp_path: Path) -> None:
    path = str(tmp_path / "slow.sock")
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(path,))
    server.start()
    errors: list[type[BaseException]] = []

    async def there() -> None:
        while not os.path.exists(path):
            await asyncio.sleep(0.01)

    try:
        asyncio.run(asyncio.wait_for(there(), 30))
        with virtq.connect(f"vhost-user:{path}") as driver:

            def work() -> None:
                try:
                    driver.queues["q"].call(b"never", reply=5, timeout_s=30)
                except Exception as error:
                    errors.append(type(error))

            threads = [threading.Thread(target=work) for _ in range(3)]
            for thread in threads:
                thread.start()
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            for thread in threads:
                thread.join(20)
            assert errors == [PeerGone] * 3
    finally:
        server.kill()
        server.join()
