"""The in-flight region over a connection: asked for, handed back, refused when it cannot be, and
what the next back-end makes of it."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.vhost_user.driven import MEMORY, Driven
from tests.unit.vhost_user.right_front import ALL, DATA, GUEST, PLAIN, RightFront
from tests.unit.vhost_user.support import FakeDevice, Served, eventually, memfd, no_leaks
from virtq._core import Inflight as Region
from virtq._core import MemoryError_
from virtq.features import F
from virtq.transports.vhost_user import Frontend
from virtq.transports.vhost_user import channel as channels
from virtq.transports.vhost_user.messages import FRONT_MESSAGES, Front, P
from virtq.transports.vhost_user.wire import HEADER_BYTES, Inflight, VringState, unpack_header

TRACKING = ALL
KINDS = [F(0), F.IN_ORDER, F.RING_PACKED, F.RING_PACKED | F.IN_ORDER]
SIZE = 16


class Holding(FakeDevice):
    """Takes what there is and keeps it until it is told to answer."""

    def __init__(self) -> None:
        super().__init__()
        self.holds = True
        self.taken: list[bytes] = []

    def _serve(self, queue) -> None:  # type: ignore[no-untyped-def]
        if not self.holds:
            super()._serve(queue)
        elif self.enabled[queue.index] and not queue.broken:
            self.taken += [request.read() for request in queue.take(SIZE)]


@pytest.fixture
def holding(tmp_path: Path) -> Iterator[tuple[Holding, Served]]:
    device = Holding()
    with no_leaks(), Served(device, str(tmp_path / "s")) as served:
        yield device, served


def get_region(front: RightFront, queues: int = 2, size: int = SIZE) -> tuple[Inflight, int]:
    """What GET_INFLIGHT_FD answers, and the descriptor."""
    front.raw.send(Front.GET_INFLIGHT_FD, Inflight(0, 0, queues, size))
    data, fds = channels.receive(front.raw.sock, 4096)
    assert unpack_header(data).request == Front.GET_INFLIGHT_FD
    layout = FRONT_MESSAGES[Front.GET_INFLIGHT_FD].reply
    assert layout is not None
    payload = layout.parse("GET_INFLIGHT_FD", data[HEADER_BYTES:])
    assert isinstance(payload, Inflight)
    (fd,) = fds
    return payload, fd


def set_region(front: RightFront, description: Inflight, fd: int) -> int:
    """The acknowledgement: 0 if it was taken."""
    answer = front.raw.ask(Front.SET_INFLIGHT_FD, description, [fd], need_reply=True)
    return int(answer.value)


@pytest.mark.parametrize("packed", [False, True])
def test_a_region_is_made_to_measure_and_taken_back(served: Served, packed: bool) -> None:
    features = PLAIN | (F.RING_PACKED if packed else 0)
    with RightFront(served, features, TRACKING) as front:
        description, fd = get_region(front)
        size = Region.bytes(2, SIZE, packed)
        assert description == Inflight(size, 0, 2, SIZE)
        assert os.fstat(fd).st_size == size
        assert os.pread(fd, size, 0) == bytes(size)
        assert set_region(front, description, fd) == 0
        # Another one in its place, and the same again.
        other, other_fd = get_region(front)
        assert set_region(front, other, other_fd) == 0
        assert set_region(front, description, fd) == 0
        os.close(fd)
        os.close(other_fd)


@pytest.mark.parametrize(
    ("queues", "size"), [(0, SIZE), (3, SIZE), (65535, SIZE), (2, 0), (2, 32769), (2, 65535)]
)
def test_a_region_for_queues_that_cannot_be_is_refused(
    served: Served, queues: int, size: int
) -> None:
    with RightFront(served, PLAIN, TRACKING) as front:
        fd = memfd(1 << 20)
        assert set_region(front, Inflight(1 << 20, 0, queues, size), fd) == 1
        os.close(fd)
        front.raw.send(Front.GET_INFLIGHT_FD, Inflight(0, 0, queues, size))
        assert front.raw.ended()  # there is no other way to say no


@pytest.mark.parametrize(
    ("mmap_size", "mmap_offset"),
    [
        (0, 0),
        (Region.bytes(2, SIZE, False) - 1, 0),
        (8192, 1),
        (1 << 40, 0),
        (4096, 1 << 63),
        ((1 << 64) - 1, 4096),
    ],
)
def test_a_region_that_is_not_there_is_refused(
    served: Served, mmap_size: int, mmap_offset: int
) -> None:
    with RightFront(served, PLAIN, TRACKING) as front:
        fd = memfd(8192)
        assert set_region(front, Inflight(mmap_size, mmap_offset, 2, SIZE), fd) == 1
        os.close(fd)
        front.start()
        assert front.shout(front.queue(), b"as ever") == b"AS EVER"


def test_not_while_a_ring_is_started_and_not_without_the_feature(served: Served) -> None:
    with RightFront(served, PLAIN, TRACKING) as front:
        description, fd = get_region(front)
        front.start()
        assert set_region(front, description, fd) == 1
        os.close(fd)
    with RightFront(served, PLAIN, ALL & ~P.INFLIGHT_SHMFD) as front:
        front.raw.send(Front.GET_INFLIGHT_FD, Inflight(0, 0, 2, SIZE))
        assert front.raw.ended()


def test_a_region_for_smaller_queues_loses_the_ring_alone(served: Served) -> None:
    with RightFront(served, PLAIN, TRACKING) as front:
        description, fd = get_region(front, 2, SIZE // 2)
        assert set_region(front, description, fd) == 0
        os.close(fd)
        front.share()
        front.set_up()
        front.events_on()
        front.sync()
        assert eventually(lambda: channels.drain(front.events["err"]))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("stale_base", [False, True])
def test_the_next_back_end_takes_what_was_held(
    holding: tuple[Holding, Served], kind: F, stale_base: bool
) -> None:
    """The connection is cut while four of six buffers are held; what a front-end such as QEMU says
    of a packed ring after that is where it began at first."""
    device, served = holding
    with RightFront(served, PLAIN | kind, TRACKING) as first:
        description, fd = get_region(first)
        assert set_region(first, description, fd) == 0
        first.start()
        queue = first.queue()
        device.holds = False
        for text in (b"a", b"b"):
            assert first.shout(queue, text) == text.upper()
        device.holds = True
        for number, text in enumerate((b"c", b"d", b"e", b"f")):
            at = GUEST + DATA + 0x100 * number
            first.memory.write(at, text)
            queue.add([(at, 1)], [(at + 16, 1)], number)
        queue.kick()
        assert eventually(lambda: device.taken == [b"c", b"d", b"e", b"f"])
        first.raw.close()
        assert eventually(lambda: ("reset",) in device.calls)
        device.taken.clear()
        device.holds = False

        second = RightFront(served, PLAIN | kind, TRACKING)
        second.fd, fds = first.fd, [second.fd]
        second.memory, memories = first.memory, [second.memory]
        second.events, events = first.events, second.events
        assert set_region(second, description, fd) == 0
        second.share()
        base = None if stale_base and kind & F.RING_PACKED else 2
        if kind & F.RING_PACKED and base is not None:
            base = 0x8002_8002
        second.set_up(base=base)
        second.events_on()
        second.enable()
        second.sync()
        assert eventually(lambda: queue.has_used)
        used: list[tuple[int, int]] = []

        def all_used() -> bool:
            used.extend(queue.reap())
            return len(used) == 4

        assert eventually(all_used)
        assert used == [(number, 1) for number in range(4)]
        for number, text in enumerate((b"C", b"D", b"E", b"F")):
            assert first.memory.read(GUEST + DATA + 0x100 * number + 16, 1) == text
        assert second.shout(queue, b"more") == b"MORE"
        second.raw.close()
        os.close(fd)
        for memory in memories:
            memory.clear()
        for other in (*fds, *events.values()):
            os.close(other)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_ring_that_is_stopped_in_good_order_leaves_nothing_behind(
    holding: tuple[Holding, Served], kind: F
) -> None:
    device, served = holding
    packed = bool(kind & F.RING_PACKED)
    with RightFront(served, PLAIN | kind, TRACKING) as front:
        description, fd = get_region(front)
        assert set_region(front, description, fd) == 0
        front.start()
        queue = front.queue()
        front.memory.write(GUEST + DATA, b"x")
        queue.add([(GUEST + DATA, 1)], [(GUEST + DATA + 16, 1)], 5)
        queue.kick()
        assert eventually(lambda: device.taken == [b"x"])
        version = 8  # of the first ring's part
        assert struct.unpack("=H", os.pread(fd, 2, version)) == (1,)
        base = front.raw.ask(Front.GET_VRING_BASE, VringState(0, 0))
        assert base.num == (0x8000_8000 if packed else 0)
        assert struct.unpack("=H", os.pread(fd, 2, version)) == (0,)
        device.holds = False
        front.events_on()
        front.sync()
        assert eventually(lambda: queue.has_used)
        assert queue.reap() == [(5, 1)]
        os.close(fd)


def test_nonsense_in_the_region_breaks_the_ring_alone(served: Served) -> None:
    with RightFront(served, PLAIN, TRACKING) as front:
        description, fd = get_region(front)
        os.pwrite(fd, struct.pack("=HHHH", 1, SIZE, 0xFFFF, 7), 8)  # last_batch_head, used_idx
        assert set_region(front, description, fd) == 0
        front.start()
        assert eventually(lambda: channels.drain(front.events["err"]))
        # Its part says so; the other ring's does not.
        front.set_up(1)
        front.events_on(1)
        front.enable(1)
        front.sync()
        assert front.shout(front.queue(index=1), b"still here") == b"STILL HERE"
        os.close(fd)


def test_the_core_refuses_what_it_cannot_map() -> None:
    fd = memfd(4096)
    with pytest.raises(MemoryError_, match="0x1000 bytes, too few"):
        Region(fd, 8192, 0, 1, SIZE)
    with pytest.raises(ValueError, match="not a file descriptor"):
        Region(-1, 4096, 0, 1, SIZE)
    os.close(fd)


@pytest.mark.parametrize("track", [None, False, True])
def test_our_front_end_asks_for_a_region_only_where_it_needs_one(
    served: Served, device: FakeDevice, track: bool | None
) -> None:
    for features, needed in ((F.VERSION_1, True), (F.VERSION_1 | F.IN_ORDER, False)):
        front = Frontend(
            served.path, memory_size=MEMORY, queue_size_max=SIZE, reconnect_s=5, track=track
        )
        front.write_features(features)
        driven = Driven(front, features)
        assert front.tracks == (needed if track is None else track)
        assert driven.shout(b"tracked or not") == b"TRACKED OR NOT"
        front.reset_queue(0)
        again = Driven(front, features)
        assert again.shout(b"and again") == b"AND AGAIN"
        front.write_status(0)
        assert not front.tracks
        front.close()
