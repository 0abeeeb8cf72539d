"""Notifications as messages (INBAND_NOTIFICATIONS): between our own ends, and what a back-end does
with a front-end that sends them as it likes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import virtq
from tests.unit.vhost_user.right_front import (
    ALL,
    DATA,
    DESC,
    DEVICE,
    DRIVER,
    GUEST,
    PLAIN,
    RightFront,
)
from tests.unit.vhost_user.support import PATIENCE_S, FakeDevice, Served, eventually, no_leaks
from virtq._core import DriverQueue
from virtq.driver import Driver
from virtq.errors import FeatureError
from virtq.features import RingKind
from virtq.transports.vhost_user import Frontend
from virtq.transports.vhost_user.messages import Back, Front, P
from virtq.transports.vhost_user.offer import ProtocolChange
from virtq.transports.vhost_user.protocol import FrontendProtocol, Outgoing, Request
from virtq.transports.vhost_user.wire import NO_FD, U64, VringState, unpack_header

TOLD = "+INBAND_NOTIFICATIONS"
IN_BAND = ALL | P.INBAND_NOTIFICATIONS


class Shout(virtq.Device):
    device_id = 63
    queues = (virtq.QueueSpec("one"), virtq.QueueSpec("two"))

    def handle(self, request: virtq.Request) -> int:
        return request.write(request.read().upper())


# ---------------------------------------------------------------- who offers it


def test_a_protocol_change_in_words() -> None:
    change = ProtocolChange.parse(" +inband_notifications, -MQ,")
    assert change == (P.INBAND_NOTIFICATIONS, P.MQ)
    assert change.apply(P.MQ | P.REPLY_ACK | P.BACKEND_REQ) == (
        P.REPLY_ACK | P.BACKEND_REQ | P.INBAND_NOTIFICATIONS
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("MQ", "neither"),
        ("+NONSENSE", "NONSENSE"),
        ("+MQ,-MQ", "both"),
        ("+XEN_MMAP", "cannot be had"),
        (f"{TOLD},-REPLY_ACK", "needs REPLY_ACK"),
    ],
)
def test_a_protocol_change_that_makes_no_sense(text: str, complaint: str) -> None:
    with pytest.raises(FeatureError, match=complaint):
        ProtocolChange.parse(text).apply(ALL)
    with pytest.raises(FeatureError, match=complaint):
        Served(FakeDevice(), "nowhere", text)


@pytest.mark.parametrize("back", ["", TOLD])
@pytest.mark.parametrize("front", ["", TOLD])
def test_it_takes_two(back: str, front: str, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with no_leaks(), Served(Shout(), path, back), Driver(Frontend(path, protocol=front)) as driver:
        transport = driver.transport
        assert isinstance(transport, Frontend)
        offered = transport.offered_protocol_features
        assert bool(offered & P.INBAND_NOTIFICATIONS) == bool(back)
        taken = transport.protocol_features
        assert bool(taken & P.INBAND_NOTIFICATIONS) == bool(back and front)
        assert driver.queues[0].call(b"hello", 5, PATIENCE_S) == b"HELLO"
        del driver, transport


# ---------------------------------------------------------------- both ends are ours


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_both_ends(kind: RingKind, tmp_path: Path) -> None:
    with no_leaks(), Served(Shout(), str(tmp_path / "s"), TOLD) as served:
        talk(served, kind)


def talk(served: Served, kind: RingKind) -> None:
    front = Frontend(served.path, protocol=TOLD)
    with Driver(front, want=kind.features, offer=kind.change) as driver:
        for number in range(50):
            queue = driver.queues[number % 2]
            assert queue.call(b"number %d" % number, 16, PATIENCE_S) == b"NUMBER %d" % number
        assert sum(driver.queues[index].stats["kicks_sent"] for index in (0, 1)) > 0
        assert sum(driver.queues[index].stats["calls_received"] for index in (0, 1)) > 0
        driver.reset_queue(0)
        assert driver.queues[0].call(b"again", 5, PATIENCE_S) == b"AGAIN"
        driver.reset()
        assert driver.queues[1].call(b"and again", 9, PATIENCE_S) == b"AND AGAIN"


def test_a_uri_says_it(tmp_path: Path) -> None:
    with Served(Shout(), str(tmp_path / "s"), TOLD) as served:
        uri = f"vhost-user:{served.path}?protocol={TOLD}"
        with virtq.connect(uri) as driver:
            assert isinstance(driver.transport, Frontend)
            assert driver.transport.protocol_features & P.INBAND_NOTIFICATIONS
            assert driver.queues[0].call(b"hello", 5, PATIENCE_S) == b"HELLO"


@pytest.mark.parametrize(
    ("code", "payload", "accepted"),
    [
        (Back.VRING_CALL, VringState(0, 0), True),
        (Back.VRING_ERR, VringState(1, 0), True),
        (Back.VRING_CALL, VringState(2, 0), False),
        (Back.VRING_CALL, VringState(0, 1), False),
        (Back.VRING_ERR, VringState(2**32 - 1, 0), False),
    ],
)
def test_what_a_front_end_is_told(
    tmp_path: Path, code: Back, payload: VringState, accepted: bool
) -> None:
    path = str(tmp_path / "s")
    with Served(Shout(), path, TOLD), Driver(Frontend(path, protocol=TOLD)) as driver:
        assert isinstance(driver.transport, Frontend)
        assert driver.transport._told(code, payload) is accepted
        assert driver.queues[0].call(b"alive", 5, PATIENCE_S) == b"ALIVE"


# ---------------------------------------------------------------- one message at a time


class InBandFront(RightFront):
    """A right front-end that tells no descriptors."""

    def kick(self, index: int = 0, num: int = 0) -> int:
        """What the acknowledgement says."""
        state = VringState(index, num)
        answer = self.raw.ask(Front.VRING_KICK, state, need_reply=True)
        value: int = answer.value
        return value

    def told_in_band(self) -> tuple[Request, FrontendProtocol]:
        assert self.other is not None
        protocol = FrontendProtocol()
        protocol.negotiation.protocol = P(IN_BAND)
        data = b""
        while len(data) < 20:
            data += self.other.recv(20 - len(data))
        assert unpack_header(data).need_reply
        protocol.other.receive(data)
        event = protocol.other.next_request()
        assert isinstance(event, Request)
        return event, protocol

    def acknowledge(self, event: Request, protocol: FrontendProtocol) -> None:
        assert self.other is not None
        answer: Outgoing = protocol.other.accept(event)
        self.other.sendall(answer.data)
        self.sync()

    def nothing_told(self) -> bool:
        self.sync()
        assert self.other is not None
        self.other.setblocking(False)
        try:
            return not self.other.recv(1)
        except BlockingIOError:
            return True
        finally:
            self.other.settimeout(PATIENCE_S)


@pytest.fixture
def in_band(device: FakeDevice, tmp_path: Path) -> Iterator[InBandFront]:
    """Its ring 0 is set up and enabled, and not started."""
    with (
        no_leaks(),
        Served(device, str(tmp_path / "s"), TOLD) as served,
        InBandFront(served, PLAIN, IN_BAND) as front,
    ):
        front.open_other()
        front.share()
        front.set_up()
        front.enable()
        front.sync()
        yield front


def plain_queue(front: InBandFront) -> DriverQueue:
    return DriverQueue(
        front.memory, front.features & ~(1 << 30), 16, GUEST + DESC, GUEST + DRIVER, GUEST + DEVICE
    )


def test_a_kick_starts_the_ring_and_calls_wait_for_each_other(
    in_band: InBandFront, device: FakeDevice
) -> None:
    queue = plain_queue(in_band)
    assert not device.queues
    assert in_band.kick() == 0
    assert list(device.queues) == [0]
    told = []
    for number in range(3):
        queue.add([], [(GUEST + DATA, 4)], number)
        queue.kick()
        assert in_band.kick() == 0
        if number == 0:
            event, protocol = in_band.told_in_band()
            assert (event.message.code, event.payload) == (Back.VRING_CALL, VringState(0, 0))
            told.append((event, protocol))
    used: list[int] = []

    def all_are_used() -> bool:
        used.extend(cookie for cookie, _ in queue.reap())
        return len(used) == 3

    assert eventually(all_are_used)
    assert used == [0, 1, 2]
    assert in_band.nothing_told()
    in_band.acknowledge(*told[0])
    event, protocol = in_band.told_in_band()
    assert event.message.code is Back.VRING_CALL
    in_band.acknowledge(event, protocol)
    assert in_band.nothing_told()
    assert in_band.raw.ask(Front.GET_VRING_BASE, VringState(0, 0)).num == 3
    assert not device.queues
    assert in_band.kick() == 0
    assert list(device.queues) == [0]


@pytest.mark.parametrize(("index", "num"), [(0, 1), (2, 0), (2**32 - 1, 0), (1, 0)])
def test_a_kick_that_cannot_be(in_band: InBandFront, index: int, num: int) -> None:
    """Of a reserved number, of a ring that is not there, of one that is not set up."""
    assert in_band.kick(index, num) == 1
    assert in_band.kick() == 0


def test_an_error_is_told(in_band: InBandFront) -> None:
    in_band.memory.write(GUEST + DRIVER + 2, (999).to_bytes(2, "little"))
    assert in_band.kick() == 0
    event, protocol = in_band.told_in_band()
    assert (event.message.code, event.payload) == (Back.VRING_ERR, VringState(0, 0))
    in_band.acknowledge(event, protocol)
    for _ in range(10):
        in_band.kick()
    assert in_band.nothing_told()


def test_told_descriptors_are_preferred(in_band: InBandFront) -> None:
    queue = plain_queue(in_band)
    in_band.events_on()
    queue.add([], [(GUEST + DATA, 4)], 1)
    queue.kick()
    assert in_band.kick() == 0
    queue.set_call(in_band.events["call"])
    assert queue.wait(PATIENCE_S)
    assert in_band.nothing_told()


def test_told_to_poll_means_no_call_at_all(in_band: InBandFront, device: FakeDevice) -> None:
    queue = plain_queue(in_band)
    in_band.raw.send(Front.SET_VRING_CALL, U64(0 | NO_FD))
    in_band.kick()
    queue.add([], [(GUEST + DATA, 4)], 1)
    queue.kick()
    in_band.kick()
    assert eventually(lambda: queue.reap() == [(1, 0)])
    assert in_band.nothing_told()


def test_a_call_without_acknowledgement_is_told_to_a_new_channel(in_band: InBandFront) -> None:
    queue = plain_queue(in_band)
    queue.add([], [(GUEST + DATA, 4)], 1)
    queue.kick()
    in_band.kick()
    in_band.told_in_band()
    old = in_band.other
    in_band.open_other()
    event, _ = in_band.told_in_band()
    assert event.payload == VringState(0, 0)
    assert old is not None
    old.close()


def test_a_kick_without_the_feature(served: Served) -> None:
    with RightFront(served) as front:
        front.start()
        answer = front.raw.ask(Front.VRING_KICK, VringState(0, 0), need_reply=True)
        assert answer == U64(1)
