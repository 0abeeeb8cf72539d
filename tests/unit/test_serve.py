"""The native side of Python handlers: requests one by one, batches as arrays, and the load."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from virtq import Batch, Device, Driver, Memory, QueueSpec, Request, RingKind, _core
from virtq.errors import GuestMemoryError, StaleBuffer, VirtqError
from virtq.memory import Arena
from virtq.queue import DeviceQueue, DriverQueue
from virtq.transports.loopback import LoopbackTransport


class Pair:
    """Both halves of a queue in this thread."""

    def __init__(self, kind: RingKind = RingKind.PACKED_IN_ORDER, size: int = 64) -> None:
        self.memory = Memory.allocate(1 << 20, 1 << 32)
        self.driver = DriverQueue("q", Arena(self.memory), int(kind.features), size)
        ring = self.driver.memory
        self.device = DeviceQueue(
            self.memory, int(kind.features), size, ring.desc, ring.driver, ring.device
        )

    def add(self, *datas: bytes, reply: int = 8) -> None:
        for data in datas:
            self.driver.add(data, reply, data)
        self.driver.kick()

    def serve(
        self,
        handler: Callable[[Request], Any],
        finish: Callable[[Request, Any], object] | None = None,
        failed: Callable[[Request, BaseException], object] | None = None,
    ) -> int:
        def never(*arguments: object) -> None:
            raise AssertionError(f"not for this: {arguments}")

        return self.device.serve(handler, finish or never, failed or never, 64)

    def replies(self) -> list[tuple[bytes, bytes]]:
        self.device.notify()
        return [(used.cookie, used.reply) for used in self.driver.reap()]


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_each_request_comes_once(kind: RingKind) -> None:
    pair = Pair(kind)
    pair.add(b"one", b"two", b"three")
    assert pair.serve(lambda request: request.write(request.read().upper())) == 3
    assert pair.replies() == [(b"one", b"ONE"), (b"two", b"TWO"), (b"three", b"THREE")]
    assert pair.serve(lambda request: 0) == 0


def test_results_that_complete() -> None:
    pair = Pair()
    pair.add(b"none", b"less", b"zero")

    def handler(request: Request) -> int | None:
        request.write(b"reply")
        return {b"none": None, b"less": 2, b"zero": 0}[request.read()]

    pair.serve(handler)
    assert pair.replies() == [(b"none", b"reply"), (b"less", b"re"), (b"zero", b"")]


@pytest.mark.parametrize("result", [True, np.int64(3), "text", 3.0, -1, 9, 1 << 40, object()])
def test_other_results_are_for_the_runner(result: object) -> None:
    pair = Pair()
    pair.add(b"a", b"b")
    told: list[tuple[bytes, object]] = []

    def finish(request: Request, value: object) -> None:
        told.append((request.read(), value))
        request.complete(0)

    pair.serve(lambda request: result, finish)
    assert told == [(b"a", result), (b"b", result)]
    assert [reply for _, reply in pair.replies()] == [b"", b""]


def test_what_a_handler_raises_is_for_the_runner() -> None:
    pair = Pair()
    pair.add(b"good", b"bad", b"better")
    told: list[str] = []

    def handler(request: Request) -> int:
        if request.read() == b"bad":
            raise RuntimeError("no")
        return request.write(b"yes")

    def failed(request: Request, error: Exception) -> None:
        told.append(str(error))
        request.complete(request.write(b"failed"))

    assert pair.serve(handler, failed=failed) == 3
    assert told == ["no"]
    assert [reply for _, reply in pair.replies()] == [b"yes", b"failed", b"yes"]


def test_an_interruption_is_no_failure() -> None:
    pair = Pair()
    pair.add(b"a", b"b")

    def handler(request: Request) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pair.serve(handler)


def test_what_finish_raises_ends_the_round() -> None:
    pair = Pair()
    pair.add(b"a", b"b")
    seen: list[bytes] = []

    def handler(request: Request) -> str:
        seen.append(request.read())
        return "later"

    def finish(request: Request, result: object) -> None:
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        pair.serve(handler, finish)
    assert seen == [b"a"]


def test_requests_that_are_kept_stay_what_they_are() -> None:
    pair = Pair()
    pair.add(*(b"%d" % number for number in range(10)))
    kept: list[Request] = []

    def handler(request: Request) -> object:
        number = int(request.read())
        if number % 3 == 0:
            kept.append(request)
            return "later"
        return request.write(b"now")

    pair.serve(handler, finish=lambda request, result: None)
    assert len({id(request) for request in kept}) == 4
    # Their cursors are their own, too.
    assert [request.written for request in kept] == [0] * 4
    for position, request in enumerate(kept):
        request.complete(request.write(b"%d" % (3 * position)))
    assert pair.replies() == [(b"%d" % n, b"%d" % n if n % 3 == 0 else b"now") for n in range(10)]
    with pytest.raises(StaleBuffer):
        kept[0].complete(0)


def test_a_kept_request_outlives_its_batch() -> None:
    """Its place in memory is used again for other batches only once it is gone."""
    pair = Pair()
    kept: list[Request] = []
    for round_number in range(20):
        pair.add(b"%02d" % round_number, b"other")

        def handler(request: Request) -> int:
            if len(kept) <= request.queue_index:
                kept.append(request)
            return request.write(b"x")

        pair.serve(handler)
        assert len(pair.replies()) == 2
        gc.collect()
    assert kept[0].readable == 2
    assert not kept[0].outstanding
    with pytest.raises(StaleBuffer):
        kept[0].complete(1)


def test_nothing_lingers_without_buffers() -> None:
    pair = Pair()
    assert not pair.device.linger(50)
    pair.add(b"a")
    assert pair.device.linger(50)
    pair.device.stop()
    assert not pair.device.linger(50)


# Arrays


def taken(pair: Pair, *datas: bytes, reply: int = 8) -> Batch:
    pair.add(*datas, reply=reply)
    batch = pair.device.take()
    assert len(batch) == len(datas)
    return batch


@pytest.mark.parametrize("kind", RingKind, ids=str)
@pytest.mark.parametrize("length", [1, 7, 64, 100, 500])
def test_a_batch_is_an_array(kind: RingKind, length: int) -> None:
    pair = Pair(kind)
    datas = [bytes(range(n, n + 50)) * 10 for n in range(20)]
    batch = taken(pair, *(data[:length] for data in datas), reply=length)
    array = batch.read_array()
    assert array.shape == (20, length)
    assert [bytes(row) for row in array] == [data[:length] for data in datas]
    written = batch.write_array(array[::-1].copy())
    assert written == length
    batch.complete(written)
    assert [reply for _, reply in pair.replies()] == [data[:length] for data in datas[::-1]]


def test_an_array_is_a_copy() -> None:
    pair = Pair()
    batch = taken(pair, b"before")
    array = batch.read_array()
    address = batch.addresses()[0]
    assert address == batch[0].segments()[0][0]
    pair.memory.write(address, b"after!")
    assert bytes(array[0]) == b"before"
    array[0, 0] = 7  # its owner may do what they like
    assert pair.memory.read(address, 6) == b"after!"


def test_addresses_and_lengths() -> None:
    pair = Pair()
    batch = taken(pair, b"a", b"bcd", reply=4)
    assert list(batch.readable()) == [1, 3]
    assert list(batch.writable()) == [4, 4]
    assert list(batch.addresses()) == [request.segments()[0][0] for request in batch]
    assert np.asarray(batch.addresses()).dtype == np.uint64


def test_buffers_of_several_lengths_are_no_array() -> None:
    batch = taken(Pair(), b"four", b"seven77")
    with pytest.raises(ValueError, match=r"the first has 4 .* buffer 1 has 7"):
        batch.read_array()


def test_an_empty_batch_is_an_empty_array() -> None:
    batch = Pair().device.take()
    assert batch.read_array().shape == (0, 0)
    assert batch.write_array(np.zeros((0, 5), np.uint8)) == 5


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        (np.zeros((1, 4), np.uint8), ValueError),  # two buffers
        (np.zeros((2, 9), np.uint8), ValueError),  # eight bytes of room
        (np.zeros(2, np.uint8), ValueError),
        (np.zeros((2, 8), np.uint8)[:, ::2], ValueError),
        (np.zeros((2, 4), np.uint16), BufferError),
        (b"no array", ValueError),
        (7, TypeError),
    ],
)
def test_rows_that_do_not_fit_write_nothing(rows: Any, error: type[Exception]) -> None:
    pair = Pair()
    batch = taken(pair, b"a", b"b")
    with pytest.raises(error):
        batch.write_array(rows)
    batch.complete(8)
    assert [reply for _, reply in pair.replies()] == [bytes(8), bytes(8)]


def test_completing_stops_at_the_first_that_cannot_be() -> None:
    pair = Pair()
    batch = taken(pair, b"a", b"b", b"c", reply=2)
    with pytest.raises(ValueError, match="3"):
        batch.complete([1, 3, 1])
    assert [request.outstanding for request in batch] == [False, True, True]
    with pytest.raises(ValueError, match="exceed"):
        batch.complete(1 << 32)


# The load


class Echo(Device):
    queues = (QueueSpec("q", 64),)

    def handle(self, request: Request) -> int:
        return request.write(request.read(request.writable))


class Deaf(Echo):
    """Answers, but with something else."""

    def handle(self, request: Request) -> int:
        return request.write(b"\xff" * request.writable)


def load(driver: Driver, **shape: Any) -> _core.Load:
    sizes = {key: shape[key] for key in ("readable", "writable", "depth") if key in shape}
    memory = driver.arena.alloc(_core.Load.bytes(**sizes), 64)
    return _core.Load(driver.queues[0].core, driver.transport.memory, memory.addr, **shape)


@pytest.mark.parametrize("kind", RingKind, ids=str)
@pytest.mark.parametrize("wait", ["poll", "adaptive", "event"])
@pytest.mark.parametrize(
    "shape",
    [
        {"readable": 64, "writable": 64, "depth": 16, "batch": 8, "echo": True},
        {"readable": 13, "writable": 40, "depth": 1, "batch": 1, "echo": True},
        {"readable": 100, "writable": 0, "depth": 64, "batch": 64},
    ],
    ids=["batches", "one", "no reply"],
)
def test_the_load_counts_what_comes_back(kind: RingKind, wait: str, shape: dict[str, Any]) -> None:
    with Driver(LoopbackTransport(Echo()), want=kind.features, offer=kind.change) as driver:
        under_load = load(driver, wait=wait, **shape)
        first, second = under_load.run(0.02), under_load.run(0.02)
        assert driver.queues[0].outstanding == 0
        stats = driver.queues[0].stats
    for key in ("buffers", "batches", "used_entries", "kicks_sent"):
        assert first[key] + second[key] == stats[key]
    assert first["buffers"] % shape["batch"] == 0
    assert first["buffers"] == first["batches"] * shape["batch"] > 0
    reply = min(shape["readable"], shape["writable"])
    assert first["bytes_written"] == first["buffers"] * reply
    if shape.get("echo"):
        assert abs(first["verified"] - first["buffers"] / 61) <= 1


def test_the_load_finds_a_wrong_reply() -> None:
    with Driver(LoopbackTransport(Deaf())) as driver:
        under_load = load(driver, readable=8, writable=8, depth=4, echo=True)
        with pytest.raises(VirtqError, match="the reply to buffer 0 is not what was sent"):
            under_load.run(0.05)


def test_the_load_does_not_wait_for_ever() -> None:
    pair = Pair()
    memory = pair.driver.arena.alloc(_core.Load.bytes(depth=8), 64)
    under_load = _core.Load(pair.driver.core, pair.memory, memory.addr, depth=8)
    with pytest.raises(TimeoutError, match="8 buffers did not come back"):
        under_load.run(0.01)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ({"readable": 0, "writable": 0}, "no bytes"),
        ({"readable": 2 << 20}, "more than 1048576 bytes"),
        ({"depth": 0}, "in flight"),
        ({"depth": 4, "batch": 5}, "batches of 5 with 4 in flight"),
        ({"wait": "doze"}, "doze"),
    ],
)
def test_loads_that_cannot_be(shape: dict[str, Any], text: str) -> None:
    pair = Pair()
    with pytest.raises(ValueError, match=text):
        _core.Load(pair.driver.core, pair.memory, 1 << 32, **shape)


def test_a_load_needs_memory_and_an_end() -> None:
    pair = Pair()
    with pytest.raises(GuestMemoryError):
        _core.Load(pair.driver.core, pair.memory, 0x1000)
    memory = pair.driver.arena.alloc(_core.Load.bytes(depth=1), 64)
    under_load = _core.Load(pair.driver.core, pair.memory, memory.addr, depth=1)
    for seconds in (-1.0, 61.0, float("nan")):
        with pytest.raises(ValueError, match="not within 60 s"):
            under_load.run(seconds)
