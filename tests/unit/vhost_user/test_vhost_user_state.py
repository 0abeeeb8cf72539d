"""A device's own state through a pipe (DEVICE_STATE): between our own ends, and with front-ends
that hand over what they should not."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import virtq
from tests.unit.vhost_user.right_front import ALL, PLAIN, RightFront
from tests.unit.vhost_user.support import PATIENCE_S, Served, eventually, memfd, no_leaks, open_fds
from virtq.driver import Driver
from virtq.errors import ConfigError, TransportError
from virtq.transports.vhost_user import Frontend, state
from virtq.transports.vhost_user.messages import Front, P
from virtq.transports.vhost_user.wire import NO_FD, U64, DeviceState, ProtocolError

SAVE, LOAD = DeviceState(0, 0), DeviceState(1, 0)
ACCEPTED, REFUSED = U64(NO_FD), U64(NO_FD | 1)
LARGE = 3 << 20
"""Bytes; several times what a pipe holds."""


class Counter(virtq.Device):
    """Counts its requests, and knows how many there were when it is another process."""

    device_id = 63
    queues = (virtq.QueueSpec("requests", size=256),)

    def __init__(self) -> None:
        self.memory = b""

    def handle(self, request: virtq.Request) -> int:
        self.memory += request.read()
        return request.write(len(self.memory).to_bytes(8, "little"))

    def save_state(self) -> bytes:
        if self.memory == b"do not save":
            raise ConfigError("as it says")
        return self.memory

    def load_state(self, state: bytes) -> None:
        if state == b"nonsense":
            raise ConfigError("that is nonsense")
        if state == b"broken":
            raise RuntimeError("a mistake of the author's")
        self.memory = state


@pytest.fixture
def counter() -> Counter:
    return Counter()


@pytest.fixture
def served(counter: Counter, tmp_path: Path) -> Iterator[Served]:
    with no_leaks(), Served(counter, str(tmp_path / "s")) as served:
        yield served


def stateful(served: Served) -> RightFront:
    return RightFront(served, PLAIN, ALL & ~P.CONFIG | P.DEVICE_STATE)


# ---------------------------------------------------------------- both ends are ours


@pytest.mark.parametrize("size", [0, 1, (64 << 10) + 1, LARGE])
def test_from_one_back_end_to_the_next(counter: Counter, tmp_path: Path, size: int) -> None:
    counter.memory = os.urandom(size)
    other = Counter()
    with no_leaks():
        with Served(counter, str(tmp_path / "s")) as served:
            front = Frontend(served.path)
            assert front.protocol_features & P.DEVICE_STATE
            saved = front.save_state()
            assert front.save_state() == saved
            front.close()
        with Served(other, str(tmp_path / "t")) as served:
            front = Frontend(served.path)
            front.load_state(saved)
            with Driver(front) as driver:
                answer = driver.queues[0].call(b"+1", 8, PATIENCE_S)
                assert int.from_bytes(answer, "little") == size + 2
            del driver, front
    assert other.memory == counter.memory + b"+1"


def test_nobody_has_state_who_does_not_say_so(tmp_path: Path) -> None:
    class Shout(virtq.Device):
        device_id = 63
        queues = (virtq.QueueSpec("requests"),)

        def handle(self, request: virtq.Request) -> int:
            return request.write(request.read().upper())

    with Served(Shout(), str(tmp_path / "s")) as served:
        front = Frontend(served.path)
        assert not front.offered_protocol_features & P.DEVICE_STATE
        with pytest.raises(ProtocolError, match="DEVICE_STATE"):
            front.save_state()
        front.close()


@pytest.mark.parametrize("what", [b"nonsense", b"broken"])
def test_a_state_that_the_device_does_not_take(
    served: Served, counter: Counter, what: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    counter.memory = b"before"
    front = Frontend(served.path)
    with pytest.raises(TransportError, match="failed to transfer"):
        front.load_state(what)
    assert "device state: the device" in caplog.text
    front.load_state(b"sense")
    assert counter.memory == b"sense"
    front.close()


def test_a_device_that_cannot_save(served: Served, counter: Counter) -> None:
    counter.memory = b"do not save"
    front = Frontend(served.path)
    with pytest.raises(TransportError, match="refused to SAVE"):
        front.save_state()
    front.close()


def test_too_much_of_it(served: Served, counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "MAX_STATE_BYTES", LARGE - 1)
    counter.memory = bytes(LARGE)
    front = Frontend(served.path)
    with pytest.raises(TransportError, match="more than"):
        front.save_state()
    with pytest.raises(TransportError, match="failed to transfer"):
        front.load_state(bytes(LARGE))
    front.close()


# ---------------------------------------------------------------- one message at a time


@pytest.mark.parametrize(
    "payload", [DeviceState(2, 0), DeviceState(2**32 - 1, 0), DeviceState(0, 1), DeviceState(1, 7)]
)
def test_directions_and_phases_that_are_none(served: Served, payload: DeviceState) -> None:
    reading, writing = os.pipe()
    with stateful(served) as front:
        for fd in (reading, writing):
            assert front.raw.ask(Front.SET_DEVICE_STATE_FD, payload, [fd]) == REFUSED
        front.sync()
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("payload", [SAVE, LOAD])
def test_descriptors_that_are_no_use(served: Served, payload: DeviceState) -> None:
    reading, writing = os.pipe()
    wrong = reading if payload == SAVE else writing
    file, null = memfd(4096), os.open("/dev/null", os.O_RDWR)
    with stateful(served) as front:
        for fd in (wrong, file, null):
            assert front.raw.ask(Front.SET_DEVICE_STATE_FD, payload, [fd]) == REFUSED
        assert front.raw.ask(Front.CHECK_DEVICE_STATE) == U64(1)
    for fd in (reading, writing, file, null):
        os.close(fd)


def test_a_socket_is_as_good_as_a_pipe(served: Served, counter: Counter) -> None:
    counter.memory = b"something"
    ours, theirs = socket.socketpair()
    with ours, stateful(served) as front:
        assert front.raw.ask(Front.SET_DEVICE_STATE_FD, SAVE, [theirs.fileno()]) == ACCEPTED
        theirs.close()
        ours.settimeout(PATIENCE_S)
        assert ours.recv(100) == b"something"
        assert ours.recv(100) == b""
        assert front.raw.ask(Front.CHECK_DEVICE_STATE) == U64(0)


def test_not_while_a_ring_is_started(served: Served) -> None:
    reading, writing = os.pipe()
    with stateful(served) as front:
        front.start()
        assert front.raw.ask(Front.SET_DEVICE_STATE_FD, LOAD, [reading]) == REFUSED
        assert front.shout(front.queue(), b"12345678") == (8).to_bytes(8, "little")
    os.close(reading)
    os.close(writing)


def test_asked_before_its_end(served: Served, counter: Counter) -> None:
    counter.memory = bytes(LARGE)
    with stateful(served) as front:
        assert front.raw.ask(Front.CHECK_DEVICE_STATE) == U64(1)
        for payload in (SAVE, LOAD):
            before = open_fds()
            ends = os.pipe()
            ours, theirs = ends if payload == SAVE else ends[::-1]
            assert front.raw.ask(Front.SET_DEVICE_STATE_FD, payload, [theirs]) == ACCEPTED
            os.close(theirs)
            assert front.raw.ask(Front.CHECK_DEVICE_STATE) == U64(1)
            os.close(ours)
            assert open_fds() == before
        assert counter.memory == bytes(LARGE)


def test_a_second_transfer_ends_the_first(served: Served, counter: Counter) -> None:
    counter.memory = bytes(LARGE)
    with stateful(served) as front:
        first, theirs = os.pipe()
        front.raw.ask(Front.SET_DEVICE_STATE_FD, SAVE, [theirs])
        os.close(theirs)
        theirs, second = os.pipe()
        assert front.raw.ask(Front.SET_DEVICE_STATE_FD, LOAD, [theirs]) == ACCEPTED
        os.close(theirs)
        os.write(second, b"the second")
        os.close(second)
        assert front.raw.ask(Front.CHECK_DEVICE_STATE) == U64(0)
        assert counter.memory == b"the second"
        os.close(first)


@pytest.mark.parametrize("payload", [SAVE, LOAD])
def test_a_front_end_that_leaves_in_the_middle(
    served: Served, counter: Counter, payload: DeviceState
) -> None:
    counter.memory = bytes(LARGE)
    ends = os.pipe()
    ours, theirs = ends if payload == SAVE else ends[::-1]
    with stateful(served) as front:
        assert front.raw.ask(Front.SET_DEVICE_STATE_FD, payload, [theirs]) == ACCEPTED
        os.close(theirs)
    os.close(ours)
    with stateful(served) as front:
        assert front.raw.ask(Front.CHECK_DEVICE_STATE) == U64(1)
    assert counter.memory == bytes(LARGE)


def test_a_reader_that_goes_away(
    served: Served, counter: Counter, caplog: pytest.LogCaptureFixture
) -> None:
    counter.memory = bytes(LARGE)
    ours, theirs = os.pipe()
    with stateful(served) as front:
        assert front.raw.ask(Front.SET_DEVICE_STATE_FD, SAVE, [theirs]) == ACCEPTED
        os.close(theirs)
        os.close(ours)
        assert eventually(lambda: "cannot be written" in caplog.text)
        assert front.raw.ask(Front.CHECK_DEVICE_STATE) == U64(1)
