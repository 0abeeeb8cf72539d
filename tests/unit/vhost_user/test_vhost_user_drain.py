"""A ring that is stopped while its device holds buffers: they are finished first, unless both ends
have agreed that they are recorded instead (GET_VRING_BASE_INFLIGHT)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import virtq
from tests.unit.vhost_user.right_front import ALL, DATA, GUEST, PLAIN, RightFront
from tests.unit.vhost_user.support import PATIENCE_S, Served, eventually, no_leaks
from virtq.features import F, RingKind
from virtq.transports.vhost_user import channel, session
from virtq.transports.vhost_user.messages import FRONT_MESSAGES, Front, P
from virtq.transports.vhost_user.wire import HEADER_BYTES, U64, Inflight, VringState

BUFFERS = 5
AT_ONCE = 8
"""The size of a buffer that is finished at once."""
PROTOCOL = ALL & ~P.CONFIG
BOTH = P.INFLIGHT_SHMFD | P.GET_VRING_BASE_INFLIGHT


class Patient(virtq.Device):
    """Finishes everything when it is told to."""

    device_id = 63
    queues = (virtq.QueueSpec("one"), virtq.QueueSpec("two"))

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.held = 0

    async def handle(self, request: virtq.Request) -> int:
        if request.writable == AT_ONCE:
            return request.write(b"done")
        self.held += 1
        try:
            await self.go.wait()
        finally:
            self.held -= 1
        return request.write(b"done")


@pytest.fixture
def device() -> Patient:
    return Patient()


@pytest.fixture
def served(device: Patient, tmp_path: Path) -> Iterator[Served]:
    with no_leaks(), Served(device, str(tmp_path / "s")) as served:
        yield served


def start(front: RightFront, device: Patient, *, told: int = BUFFERS) -> virtq._core.DriverQueue:
    """Buffers are on their way."""
    front.share()
    queue = front.queue()
    front.set_up()
    front.events_on()
    front.enable()
    for number in range(told):
        queue.add([], [(GUEST + DATA + number * 16, 16)], number)
    queue.kick()
    assert eventually(lambda: device.held == told)
    return queue


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_what_is_held_is_finished_first(kind: RingKind, served: Served, device: Patient) -> None:
    with RightFront(served, PLAIN | kind.features, PROTOCOL) as front:
        queue = start(front, device)
        front.raw.send(Front.GET_VRING_BASE, VringState(0, 0))
        # Behind it: nothing is read before the ring is stopped.
        front.raw.send(Front.GET_FEATURES)
        assert front.raw.silent()
        served.ask(device.go.set)
        base = front.raw.receive(Front.GET_VRING_BASE)
        assert queue.wait(PATIENCE_S)
        assert [cookie for cookie, _ in queue.reap()] == list(range(BUFFERS))
        expected = (0x8000 | BUFFERS) * 0x10001 if kind.packed else BUFFERS
        assert base == VringState(0, expected)
        assert front.raw.receive(Front.GET_FEATURES) is not None


def test_what_is_never_finished_does_not_hold_it_up_for_ever(
    served: Served,
    device: Patient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(session, "_DRAIN_S", 0.05)
    with RightFront(served, PLAIN | F.IN_ORDER, PROTOCOL) as front:
        queue = start(front, device)
        base = front.raw.ask(Front.GET_VRING_BASE, VringState(0, 0))
        assert base == VringState(0, 0)
        assert "unfinished" in caplog.text
        assert queue.reap() == []
        assert eventually(lambda: device.held == 0)


def test_a_front_end_that_leaves_meanwhile(served: Served, device: Patient) -> None:
    with RightFront(served, PLAIN, PROTOCOL) as front:
        start(front, device)
        front.raw.send(Front.GET_VRING_BASE, VringState(0, 0))
        assert front.raw.silent()
    served.ask(device.go.set)
    with RightFront(served, PLAIN, PROTOCOL) as front:
        queue = start(front, device, told=0)
        queue.add([], [(GUEST + DATA, 16)], 1)
        queue.kick()
        assert queue.wait(PATIENCE_S)


def test_the_back_end_is_closed_meanwhile(device: Patient, tmp_path: Path) -> None:
    with Served(device, str(tmp_path / "s")) as served:
        front = RightFront(served, PLAIN, PROTOCOL)
        start(front, device)
        front.raw.send(Front.GET_VRING_BASE, VringState(0, 0))
        assert front.raw.silent()
    assert front.raw.ended()
    front.close()


def test_recorded_is_not_finished(served: Served, device: Patient) -> None:
    """The region tells the next owner of the ring."""
    with RightFront(served, PLAIN, PROTOCOL | BOTH) as front:
        front.share()
        description = Inflight(0, 0, 2, 16)
        front.raw.send(Front.GET_INFLIGHT_FD, description)
        answer, fd = region_of(front)
        front.raw.send(Front.SET_INFLIGHT_FD, answer, [fd])
        queue = start(front, device)
        queue.add([], [(GUEST + DATA, AT_ONCE)], 99)
        queue.kick()
        assert queue.wait(PATIENCE_S)
        assert queue.reap() == [(99, 4)]
        # Where the ring stands is behind all of them, one of which has overtaken the others.
        base = front.raw.ask(Front.GET_VRING_BASE, VringState(0, 0))
        assert base == VringState(0, BUFFERS + 1)
        assert eventually(lambda: device.held == 0)
        front.events_on()
        assert eventually(lambda: device.held == BUFFERS)
        served.ask(device.go.set)
        used: list[int] = []

        def all_are_used() -> bool:
            used.extend(cookie for cookie, _ in queue.reap())
            return len(used) == BUFFERS

        assert eventually(all_are_used)
        assert used == list(range(BUFFERS))
    os.close(fd)


def region_of(front: RightFront) -> tuple[Inflight, int]:
    layout = FRONT_MESSAGES[Front.GET_INFLIGHT_FD].reply
    assert layout is not None
    data, fds = channel.receive(front.raw.sock, HEADER_BYTES + layout.largest)
    answer = layout.parse("", data[HEADER_BYTES:])
    assert isinstance(answer, Inflight)
    (fd,) = fds
    return answer, fd


def test_recorded_without_a_region_is_finished(served: Served, device: Patient) -> None:
    with RightFront(served, PLAIN, PROTOCOL | BOTH) as front:
        queue = start(front, device)
        front.raw.send(Front.GET_VRING_BASE, VringState(0, 0))
        assert front.raw.silent()
        served.ask(device.go.set)
        assert front.raw.receive(Front.GET_VRING_BASE) == VringState(0, BUFFERS)
        assert len(queue.reap()) == BUFFERS


def test_recording_needs_somewhere_to_record(served: Served) -> None:
    with served.connect() as raw:
        raw.send(Front.SET_PROTOCOL_FEATURES, U64(P.REPLY_ACK | P.GET_VRING_BASE_INFLIGHT))
        assert raw.ended()


def test_neither_is_offered_without_the_other(tmp_path: Path) -> None:
    with (
        Served(Patient(), str(tmp_path / "s"), "-INFLIGHT_SHMFD") as served,
        served.connect() as raw,
    ):
        assert not raw.ask(Front.GET_PROTOCOL_FEATURES).value & BOTH
