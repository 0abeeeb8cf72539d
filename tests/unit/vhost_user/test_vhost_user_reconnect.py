"""A front-end whose back-ends come and go, as far as that needs no second process: the device's
memory of what it holds dies with each (the tests against real processes are in `interop`)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.unit.vhost_user.driven import MEMORY, Driven
from tests.unit.vhost_user.support import FakeDevice, Served, eventually, no_leaks
from virtq.connecting import open_transport, parse_patience
from virtq.driver import Driver
from virtq.errors import FeatureError, PeerGone, UriError
from virtq.features import F
from virtq.transports.vhost_user import Frontend, NotResumable
from virtq.transports.vhost_user.reconnect import RECONNECT_S

KINDS = [F(0), F.IN_ORDER, F.RING_PACKED, F.RING_PACKED | F.IN_ORDER]


class Stage:
    """A socket path, and the back-end that is there at the moment."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.device = FakeDevice()
        self._here = ExitStack()

    def enter(self, device: FakeDevice | None = None) -> None:
        self.device = device or FakeDevice()
        self._here.enter_context(Served(self.device, self.path))

    def leave(self) -> None:
        self._here.close()

    def front(self, features: int, **options: object) -> Frontend:
        settings = {"memory_size": MEMORY, "reconnect_s": 5.0} | options
        front = Frontend(self.path, **settings)  # type: ignore[arg-type]
        front.write_features(F.VERSION_1 | features)
        return front


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with no_leaks():
        stage = Stage(str(tmp_path / "s"))
        stage.enter()
        yield stage
        stage.leave()


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("track", [False, True])
def test_each_back_end_goes_on_where_the_last_one_was(stage: Stage, kind: F, track: bool) -> None:
    features = F.VERSION_1 | kind
    front = stage.front(kind, track=track)
    queues = [Driven(front, features, index) for index in (0, 1)]
    for life in range(1, 4):
        # More than a lap, so that positions and wrap counters are not the first ones.
        for _ in range(11):
            assert [queue.shout(b"abc") for queue in queues] == [b"ABC", b"ABC"]
        stage.leave()
        stage.enter()
        front.check()
        assert front.reconnects == life
        assert stage.device.calls[0] == ("features", features)
    assert queues[1].shout(b"the end") == b"THE END"
    front.close()


def test_a_driver_that_waits_is_served_by_the_next_one(stage: Stage) -> None:
    uri = f"vhost-user:{stage.path}?reconnect=5&memory=1M&queues=1"
    with Driver(open_transport(uri), want=F.IN_ORDER | F.RING_PACKED) as driver:
        queue = driver.queues[0]
        assert queue.call(b"one", reply=3) == b"ONE"
        stage.leave()
        threading.Timer(0.05, stage.enter).start()
        assert queue.call(b"two", reply=3, timeout_s=5) == b"TWO"
        status = driver.transport.read_status()
        assert status & 4, "DRIVER_OK"


def test_several_threads_find_one_successor(stage: Stage) -> None:
    with Driver(open_transport(f"vhost-user:{stage.path}?reconnect=5&queues=2")) as driver:
        front = driver.transport
        assert isinstance(front, Frontend)
        stage.leave()
        stage.enter()
        threads = [threading.Thread(target=front.check) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert front.reconnects == 1
        assert [driver.queues[i].call(b"x", reply=1) for i in (0, 1)] == [b"X", b"X"]


def test_without_reconnect_a_driver_is_told_at_once(stage: Stage) -> None:
    with Driver(open_transport(f"vhost-user:{stage.path}?memory=1M&queues=1")) as driver:
        stage.leave()
        with pytest.raises(PeerGone):
            driver.queues[0].call(b"anybody?", reply=3)


def test_nobody_comes(stage: Stage) -> None:
    front = stage.front(F.IN_ORDER, reconnect_s=0.05)
    Driven(front, F.VERSION_1 | F.IN_ORDER)
    stage.leave()
    with pytest.raises(PeerGone, match=r"no other has come: .*cannot connect"):
        front.check()
    # Somebody came late: who asks again finds it.
    stage.enter()
    front.check()
    assert front.reconnects == 1
    front.close()


def test_a_back_end_that_offers_less_is_none(stage: Stage) -> None:
    front = stage.front(F.IN_ORDER)
    Driven(front, F.VERSION_1 | F.IN_ORDER)
    stage.leave()
    lesser = FakeDevice()
    lesser.offered_features = int(F.VERSION_1)
    stage.enter(lesser)
    with pytest.raises(FeatureError, match="does not offer 0x800000000"):
        front.check()
    with pytest.raises(PeerGone, match="no back-end to go on with"):
        front.check()
    front.close()


def test_what_is_outstanding_needs_order_or_tracking(stage: Stage) -> None:
    front = stage.front(F(0), track=False)
    driven = Driven(front, int(F.VERSION_1))
    assert driven.shout(b"fine") == b"FINE"
    stage.leave()
    stage.enter()
    front.check()  # nothing is outstanding: it goes on
    assert driven.shout(b"fine") == b"FINE"
    stage.leave()
    driven.queue.add([(driven.base + 0x10000, 4)], [], 1)
    driven.queue.kick()
    stage.enter()
    with pytest.raises(NotResumable, match=r"queue 0 .* 1 buffers are outstanding"):
        front.check()
    front.close()


def test_a_closed_front_end_does_not_come_back(stage: Stage) -> None:
    front = stage.front(F.IN_ORDER)
    front.close()
    assert front.alarm_fd is None
    with pytest.raises(PeerGone):
        front.check()
    assert eventually(lambda: ("reset",) in stage.device.calls)
    assert front.reconnects == 0


def test_how_long_to_wait() -> None:
    assert parse_patience("on") == RECONNECT_S
    assert parse_patience("") == RECONNECT_S
    assert parse_patience("off") is None
    assert parse_patience("2.5") == 2.5
    assert parse_patience("1") == 1.0
    with pytest.raises(UriError, match="neither on nor off"):
        parse_patience("-1")
