"""The driver half for people: pieces of memory, cookies, waiting."""

from __future__ import annotations

import os
import threading

import pytest

from virtq import Arena, DeviceQueue, DriverQueue, Memory, PeerGone, QueueFull, RingFault
from virtq.features import F, RingKind
from virtq.memory import ArenaFull
from virtq.queue import Queues, RingMemory

SIZE = 8


class Pair:
    """Both halves of one virtqueue on shared memory, with eventfds between them."""

    def __init__(self, kind: RingKind, features: int = 0, indirect_length: int = 0) -> None:
        self.arena = Arena(Memory.allocate(1 << 20, 1 << 32))
        self.gone = False
        features |= kind.features | F.VERSION_1
        self.driver = DriverQueue(
            "requests",
            self.arena,
            features,
            SIZE,
            index=3,
            indirect_length=indirect_length,
            check=self._check,
        )
        ring = self.driver.memory
        areas = ring.desc, ring.driver, ring.device
        self.device = DeviceQueue(self.arena.memory, features, SIZE, *areas, index=3)
        kick, call = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
        for half in (self.driver.core, self.device):
            half.set_kick(kick)
            half.set_call(call)
        os.close(kick)
        os.close(call)

    def _check(self) -> None:
        if self.gone:
            raise PeerGone("gone")

    def serve(self) -> int:
        """Answer all that is available with its text in capitals; returns how many it was."""
        batch = self.device.take()
        for request in batch:
            request.write(request.read().upper()[: request.writable])
            request.complete()
        self.device.notify()
        return len(batch)


@pytest.fixture(params=RingKind, ids=str)
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(request.param)


def test_data_and_reply(pair: Pair) -> None:
    pair.driver.add(b"hello", reply=8, cookie="first")
    pair.driver.add(b"no reply", cookie="second")
    pair.driver.add(reply=4, cookie="third")
    assert pair.driver.kick()
    assert pair.serve() == 3
    used = {u.cookie: (u.written, u.reply) for u in pair.driver.reap()}
    assert used == {"first": (5, b"HELLO"), "second": (0, b""), "third": (0, b"")}


def test_memory_returns_to_the_arena(pair: Pair) -> None:
    before = pair.arena.held_bytes
    for _ in range(3 * SIZE):
        pair.driver.add(b"x" * 100, reply=100)
        pair.driver.kick()
        pair.serve()
        assert len(pair.driver.reap()) == 1
    assert pair.arena.held_bytes == before


def test_a_full_ring_adds_nothing(pair: Pair) -> None:
    for i in range(SIZE):
        pair.driver.add(b"x", cookie=i)
    held = pair.arena.held_bytes
    with pytest.raises(QueueFull):
        pair.driver.add(b"y")
    assert pair.arena.held_bytes == held
    assert (pair.driver.free, pair.driver.outstanding) == (0, SIZE)


def test_a_batch_adds_what_fits(pair: Pair) -> None:
    assert pair.driver.add_batch([b"%d" % i for i in range(SIZE + 3)]) == SIZE
    pair.driver.kick()
    pair.serve()
    assert [u.cookie for u in pair.driver.reap(3)] == [0, 1, 2]
    assert [u.cookie for u in pair.driver.reap()] == list(range(3, SIZE))


def test_own_buffers_are_not_copied(pair: Pair) -> None:
    buffer = pair.arena.alloc(64)
    buffer.write(b"shout")
    pair.driver.add_buffers([buffer.part(0, 2), buffer.part(2, 3)], [buffer.part(32, 5)], "mine")
    pair.driver.kick()
    pair.serve()
    assert pair.driver.reap() == [("mine", 5, b"")]
    assert buffer.read(5, 32) == b"SHOUT"
    pair.arena.free(buffer)


def test_nothing_is_not_a_buffer(pair: Pair) -> None:
    with pytest.raises(ValueError, match="queue requests"):
        pair.driver.add()
    with pytest.raises(ValueError, match=r"."):
        pair.driver.add_buffers([])


def test_call_keeps_what_others_wait_for(pair: Pair) -> None:
    pair.driver.add(b"a", reply=1, cookie="other")
    pair.driver.add(b"b", reply=1, cookie=None)
    pair.device.enable_kicks()
    server = threading.Timer(0.05, pair.serve)
    server.start()
    assert pair.driver.call(b"mine", reply=4, timeout_s=5) == b"MINE"
    server.join()
    assert pair.driver.wait(0)
    assert [(u.cookie, u.reply) for u in pair.driver.reap()] == [("other", b"A"), (None, b"B")]


def test_time_outs(pair: Pair) -> None:
    assert not pair.driver.wait(0)
    assert not pair.driver.wait(0.01)
    with pytest.raises(TimeoutError, match=r"queue requests: no answer within 0\.01 s"):
        pair.driver.call(b"x", reply=1, timeout_s=0.01)
    assert pair.driver.outstanding == 1


def test_a_peer_that_dies_is_noticed_while_waiting(pair: Pair) -> None:
    pair.gone = True
    with pytest.raises(PeerGone):
        pair.driver.wait()
    with pytest.raises(PeerGone):
        pair.driver.call(b"x", reply=1)


def test_taking_back(pair: Pair) -> None:
    held = pair.arena.held_bytes
    for i in range(3):
        pair.driver.add(b"x", reply=1, cookie=i)
    pair.driver.kick()
    assert pair.driver.take_back() == [0, 1, 2]
    assert (pair.driver.free, pair.driver.outstanding) == (SIZE, 0)
    assert pair.arena.held_bytes == held
    pair.driver.release()
    assert pair.arena.held_bytes == 0


def test_a_broken_ring_is_a_fault_for_the_driver() -> None:
    pair = Pair(RingKind.SPLIT)
    pair.driver.add(b"x", reply=1)
    pair.driver.kick()
    pair.arena.memory.write(pair.driver.memory.device + 2, (77).to_bytes(2, "little"))
    with pytest.raises(RingFault):
        pair.driver.reap()
    with pytest.raises(RingFault):
        pair.driver.call(b"y", reply=1, timeout_s=1)


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_indirect_tables_save_slots(kind: RingKind) -> None:
    pair = Pair(kind, F.INDIRECT_DESC, indirect_length=4)
    buffer = pair.arena.alloc(64)
    pieces = [buffer.part(i, 1) for i in range(4)]
    for _ in range(SIZE):
        pair.driver.add_buffers(pieces)
    assert pair.driver.free == 0
    pair.driver.kick()
    assert pair.serve() == SIZE
    assert len(pair.driver.reap()) == SIZE


def test_ring_memory_is_given_back_when_it_does_not_fit() -> None:
    arena = Arena(Memory.allocate(4096, 0))
    with pytest.raises(ArenaFull):
        RingMemory(arena, F.INDIRECT_DESC, 64, indirect_length=64)
    assert arena.held_bytes == 0
    with pytest.raises(ValueError, match=r"."):
        DriverQueue("odd", arena, 0, 7)
    assert arena.held_bytes == 0


def test_queues_by_name_and_index() -> None:
    arena = Arena(Memory.allocate(1 << 20, 0))
    a, b = (DriverQueue(n, arena, F.VERSION_1, 4, index=i) for i, n in enumerate("ab"))
    queues = Queues([a, b])
    assert queues["a"] is queues[0] is a
    assert list(queues) == ["a", "b"]
    assert len(queues) == 2
    with pytest.raises(KeyError, match="there are a, b"):
        queues["c"]
    assert Queues([a], any_name=True)["whatever"] is a
    with pytest.raises(KeyError):
        Queues([a], any_name=True)[1]
    with pytest.raises(KeyError):
        Queues([a, b], any_name=True)["whatever"]


def test_a_queue_tells_what_it_is(pair: Pair) -> None:
    queue = pair.driver
    assert (queue.index, queue.size, queue.name) == (3, SIZE, "requests")
    assert queue.kind.title in repr(queue)
    assert queue.stats["buffers"] == 0
