"""The front-end against our own back-end."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from tests.unit.vhost_user.driven import DATA, DESC, DEVICE, DRIVER, MEMORY, Driven
from tests.unit.vhost_user.support import FakeDevice, Served, eventually, no_leaks
from virtq._core import DriverQueue, Position
from virtq.errors import ConfigError, FeatureError, PeerGone, RingFault, TransportError
from virtq.features import F
from virtq.transports.vhost_user import Frontend, offer
from virtq.transports.vhost_user.messages import (
    P,
)


def connect(served: Served, features: int = F.VERSION_1, **options: Any) -> Frontend:
    front = Frontend(served.path, memory_size=MEMORY, **options)
    front.write_status(0)
    front.write_status(3)
    front.write_features(features)
    front.write_status(11)
    return front


# ---------------------------------------------------------------- against our back-end


def test_what_a_back_end_tells(served: Served, device: FakeDevice) -> None:
    front = Frontend(served.path, memory_size=MEMORY)
    assert front.read_features() == device.offered_features
    assert front.queue_count == 2
    assert front.queue_size_max(0) == 256
    assert front.device_id is None
    assert front.config_size == 16
    assert front.read_config(4, 8) == bytes(range(4, 12))
    assert front.read_config(0, 0) == b""
    assert front.protocol_features == (
        P.MQ | P.REPLY_ACK | P.BACKEND_REQ | P.CONFIG
        | P.INFLIGHT_SHMFD | P.GET_VRING_BASE_INFLIGHT
        | P.RESET_DEVICE | P.CONFIGURE_MEM_SLOTS | P.STATUS
    )  # fmt: skip
    assert front.offered_protocol_features == offer.offered_protocol_features(device)
    front.check()
    front.close()
    front.close()


@pytest.mark.parametrize("extra", [0, F.IN_ORDER, F.RING_PACKED, F.RING_PACKED | F.IN_ORDER])
def test_requests_in_every_layout(served: Served, extra: int) -> None:
    features = F.VERSION_1 | extra
    front = connect(served, features)
    queues = [Driven(front, features, index) for index in range(2)]
    front.write_status(15)
    assert front.read_status() == 15
    for round_ in range(50):
        for queue in queues:
            assert queue.shout(b"abc%d" % round_) == b"ABC%d" % round_
    assert not front.queue_error(0)
    front.close()


def test_behind_an_iommu_translations_are_told_when_they_miss(
    served: Served, device: FakeDevice
) -> None:
    features = F.VERSION_1 | F.ACCESS_PLATFORM
    front = connect(served, features)
    queue = Driven(front, features)
    front.write_status(15)
    for _ in range(20):
        assert queue.shout(b"far away") == b"FAR AWAY"
    front.close()


def test_buffers_added_before_the_queue_is_enabled_are_served(served: Served) -> None:
    front = connect(served)
    base = front.memory.regions[0].guest_addr
    areas = base + DESC, base + DRIVER, base + DEVICE
    queue = DriverQueue(front.memory, F.VERSION_1, 16, *areas)
    for cookie in range(3):
        queue.add([], [(base + DATA, 1)], cookie)
    queue.publish()
    front.enable_queue(queue, *areas)
    front.write_status(15)
    queue.kick()
    assert eventually(lambda: queue.has_used)
    front.close()


@pytest.mark.parametrize("extra", [0, F.RING_PACKED, F.RING_PACKED | F.IN_ORDER])
def test_stopping_a_queue_tells_where_it_stood(served: Served, extra: int) -> None:
    features = F.VERSION_1 | extra
    front = connect(served, features)
    queue = Driven(front, features)
    front.write_status(15)
    for _ in range(3):
        queue.shout(b"x")
    wrap = 1 if extra else 0
    steps = 6 if extra else 3
    assert front.reset_queue(0) == Position(steps, wrap, steps, wrap, 0)
    with pytest.raises(ValueError, match="not enabled"):
        front.reset_queue(0)
    again = Driven(front, features)
    assert again.shout(b"y") == b"Y"
    with pytest.raises(ValueError, match="enabled already"):
        front.enable_queue(again.queue, again.base, again.base, again.base)
    front.close()


def test_a_reset_stops_every_queue(served: Served, device: FakeDevice) -> None:
    front = connect(served)
    Driven(front, F.VERSION_1, 0)
    Driven(front, F.VERSION_1, 1)
    front.write_status(0)
    assert front.read_status() == 0
    assert device.queues == {}
    assert device.calls[-1] == ("reset",)
    front.write_features(F.VERSION_1)
    assert Driven(front, F.VERSION_1).shout(b"anew") == b"ANEW"
    front.close()


def test_features_that_are_not_offered(served: Served) -> None:
    front = Frontend(served.path, memory_size=MEMORY)
    with pytest.raises(FeatureError, match="not offered"):
        front.write_features(1 << 60)
    front.close()


def test_features_that_are_refused(served: Served, device: FakeDevice) -> None:
    device.refused_features = F.IN_ORDER
    front = connect(served)
    front.write_status(0)
    with pytest.raises(FeatureError, match="refused SET_FEATURES"):
        front.write_features(F.VERSION_1 | F.IN_ORDER)
    front.write_features(F.VERSION_1)
    front.close()


def test_config_is_written(served: Served, device: FakeDevice) -> None:
    front = connect(served)
    front.write_config(9, b"new")
    assert device.config[9:12] == b"new"
    for offset, data in ((0, b"x"), (15, b"xy"), (300, b"x")):
        with pytest.raises(ConfigError):
            front.write_config(offset, data)
    for offset, length in ((0, 17), (16, 1), (-1, 4), (0, 300)):
        with pytest.raises(ConfigError):
            front.read_config(offset, length)
    front.check()
    front.close()


def test_no_configuration_space(served: Served, device: FakeDevice) -> None:
    device.config_size = 0
    front = connect(served)
    assert front.config_size == 0
    with pytest.raises(ConfigError):
        front.read_config(0, 1)
    with pytest.raises(ConfigError):
        front.write_config(0, b"x")
    front.close()


def test_a_config_change_is_called_back(served: Served, device: FakeDevice) -> None:
    front = connect(served)
    Driven(front, F.VERSION_1)
    changed = threading.Event()
    front.on_config_change(changed.set)
    assert device.notify_config is not None
    served.ask(device.notify_config)
    assert changed.wait(5.0)
    front.close()


def test_a_callback_that_fails_is_not_the_end(
    served: Served, device: FakeDevice, caplog: pytest.LogCaptureFixture
) -> None:
    front = connect(served)
    queue = Driven(front, F.VERSION_1)
    front.write_status(15)

    def fail() -> None:
        raise ZeroDivisionError

    front.on_config_change(fail)
    assert device.notify_config is not None
    served.ask(device.notify_config)
    assert queue.shout(b"still") == b"STILL"
    front.close()
    caplog.clear()  # it holds the traceback, and that the front-end


def test_a_queue_larger_than_the_device_allows(served: Served) -> None:
    front = connect(served)
    base = front.memory.regions[0].guest_addr
    queue = DriverQueue(front.memory, F.VERSION_1, 128, base, base + DRIVER, base + DEVICE, index=1)
    with pytest.raises(TransportError, match="refused SET_VRING_NUM"):
        front.enable_queue(queue, base, base + DRIVER, base + DEVICE)
    front.check()
    front.close()


def test_an_error_of_a_queue_is_seen(served: Served, device: FakeDevice) -> None:
    front = connect(served)
    queue = Driven(front, F.VERSION_1)
    front.memory.write(queue.base + DRIVER + 2, (1000).to_bytes(2, "little"))
    queue.queue.kick()
    queue.queue.add([], [(queue.base + DATA, 1)])
    front.memory.write(queue.base + DRIVER + 4, b"\xff\xff")
    served.ask(lambda: _take(device))
    assert eventually(lambda: front.queue_error(0))
    assert not front.queue_error(0)
    assert not front.queue_error(1)
    front.close()


def _take(device: FakeDevice) -> None:
    with pytest.raises(RingFault):
        device.queues[0].take()


def test_an_address_outside_of_shared_memory(served: Served) -> None:
    front = connect(served)
    base = front.memory.regions[0].guest_addr
    queue = DriverQueue(front.memory, F.VERSION_1, 16, base, base + DRIVER, base + DEVICE)
    with pytest.raises(ValueError, match="not in shared memory"):
        front.enable_queue(queue, 0, base + DRIVER, base + DEVICE)
    front.close()


def test_the_back_end_closes(tmp_path: Path) -> None:
    with Served(FakeDevice(), str(tmp_path / "s")) as served:
        front = connect(served)
    assert eventually(lambda: gone(front))
    with pytest.raises(PeerGone, match=served.path):
        front.read_features()
    with pytest.raises(PeerGone):
        front.check()
    front.close()


def gone(front: Frontend) -> bool:
    try:
        front.check()
    except PeerGone:
        return True
    return False


def test_nobody_there(tmp_path: Path) -> None:
    with no_leaks(), pytest.raises(TransportError, match="cannot connect"):
        Frontend(str(tmp_path / "nobody"))
