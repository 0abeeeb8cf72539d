"""A driver and a device in one process."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtq import Device, Driver, QueueSpec, Request
from virtq.errors import ConfigError, FeatureError, PeerGone, StatusError
from virtq.features import Change, F, RingKind
from virtq.transports.base import DeviceSide, DriverTransport
from virtq.transports.loopback import GUEST_BASE, LoopbackTransport


class Reverse(Device):
    device_id = 63
    queues = (QueueSpec("q", 32), QueueSpec("other", 4))

    def handle(self, request: Request) -> int:
        return request.write(request.read()[::-1][: request.writable])


def test_it_is_a_transport_and_takes_a_device() -> None:
    device: DeviceSide = Reverse()
    transport: DriverTransport = LoopbackTransport(device, memory_bytes=1 << 20)
    assert transport.device_id == 63
    assert transport.queue_count == 2
    assert [transport.queue_size_max(i) for i in range(2)] == [32, 4]
    assert transport.memory.regions[0].guest_addr == GUEST_BASE
    assert transport.config_size == 0
    transport.close()


@settings(deadline=None, max_examples=25)
@given(
    kind=st.sampled_from(RingKind),
    event_idx=st.booleans(),
    indirect=st.booleans(),
    rounds=st.lists(st.lists(st.binary(min_size=1, max_size=40), max_size=40), max_size=10),
)
def test_whatever_is_sent_comes_back(
    kind: RingKind, event_idx: bool, indirect: bool, rounds: list[list[bytes]]
) -> None:
    remove = (0 if event_idx else F.EVENT_IDX) | (0 if indirect else F.INDIRECT_DESC)
    offer = Change(kind.change.add, kind.change.remove | remove)
    with Driver(LoopbackTransport(Reverse()), want=kind.features, offer=offer) as driver:
        queue = driver.queues[0]
        for words in rounds:
            done: list[tuple[int, bytes]] = []
            start = 0
            while len(done) < len(words):
                for index in range(start, len(words)):
                    if queue.free < 2:
                        break
                    queue.add(words[index], reply=40, cookie=index)
                    start = index + 1
                queue.kick()
                assert queue.wait(10)
                done += [(u.cookie, u.reply) for u in queue.reap()]
            assert done == [(i, word[::-1]) for i, word in enumerate(words)]


def test_nothing_is_consumed_before_driver_ok() -> None:
    served = threading.Event()

    class Tells(Reverse):
        def handle(self, request: Request) -> int:
            served.set()
            return 0

    class Early(Driver):
        def populate(self, queue) -> None:  # type: ignore[no-untyped-def]
            if queue.index == 0:
                queue.add(b"early")
                queue.core.publish()
                assert not served.wait(0.1)

    with Early(LoopbackTransport(Tells())) as driver:
        assert served.wait(5)  # published buffers need no notification
        assert driver.queues[0].wait(5)


def test_a_driver_that_breaks_the_sequence_is_told() -> None:
    transport = LoopbackTransport(Reverse())
    with pytest.raises(StatusError):
        transport.write_status(4)
    with pytest.raises(ConfigError, match="before FEATURES_OK"):
        transport.write_config(0, b"x")
    transport.write_status(3)
    transport.write_features(F.VERSION_1)
    transport.write_status(0xB)
    with pytest.raises(FeatureError, match="FEATURES_OK is set"):
        transport.write_features(0)
    transport.close()


def test_after_closing_the_peer_is_gone() -> None:
    transport = LoopbackTransport(Reverse())
    transport.check()
    transport.close()
    transport.close()
    with pytest.raises(PeerGone):
        transport.check()
    with pytest.raises(PeerGone):
        transport.read_features()


def test_what_the_device_raises_arrives_at_the_driver() -> None:
    class Angry(Reverse):
        def reset(self) -> None:
            if threading.current_thread().name == "virtq-loopback" and self.angry:
                raise RuntimeError("no")
            super().reset()

        angry = True

    device = Angry()
    transport = LoopbackTransport(device)
    with pytest.raises(RuntimeError, match="no"):
        transport.write_status(0)
    device.angry = False
    transport.close()


def test_a_reset_queue_comes_back_with_another_size() -> None:
    with Driver(LoopbackTransport(Reverse()), want=F.RING_RESET) as driver:
        for _ in range(3):
            driver.reset_queue(0)
            assert driver.queues[0].call(b"abc", reply=3, timeout_s=5) == b"cba"
        with pytest.raises(KeyError):
            driver.transport.reset_queue(9)


def test_memory_is_let_go_when_closed() -> None:
    closed: list[bool] = []
    transport = LoopbackTransport(Reverse(), when_closed=lambda: closed.append(True))
    transport.close()
    assert closed == [True]
