"""What the back-end does with rings: where they start, stop and resume, and which cannot be."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tests.unit.vhost_user.right_front import (
    ALL,
    DATA,
    DEVICE,
    GUEST,
    PLAIN,
    SIZE,
    USER,
    RightFront,
)
from tests.unit.vhost_user.support import (
    FakeDevice,
    Served,
    eventfd,
)
from virtq.features import F
from virtq.transports.vhost_user.messages import Front
from virtq.transports.vhost_user.wire import (
    NO_FD,
    U64,
    VringState,
)

# ---------------------------------------------------------------- rings


@pytest.mark.parametrize("extra", [0, F.IN_ORDER, F.RING_PACKED, F.RING_PACKED | F.IN_ORDER])
def test_a_ring_in_every_layout(served: Served, extra: int) -> None:
    with RightFront(served, PLAIN | extra) as front:
        queue = front.queue()
        front.start()
        for round_ in range(40):
            assert front.shout(queue, b"abc%d" % round_, round_) == b"ABC%d" % round_


def test_without_protocol_features_a_ring_starts_enabled(
    served: Served, device: FakeDevice
) -> None:
    with RightFront(served, F.VERSION_1) as front:
        queue = front.queue()
        front.share()
        front.set_up()
        front.events_on()
        front.sync()
        assert ("start", 0, True) in device.calls
        assert front.shout(queue, b"x") == b"X"


def test_a_ring_starts_disabled_until_it_is_enabled(served: Served, device: FakeDevice) -> None:
    with RightFront(served) as front:
        queue = front.queue()
        front.share()
        front.set_up()
        front.events_on()
        queue.add([], [(GUEST + DATA, 1)], 5)
        queue.kick()
        front.sync()
        assert ("start", 0, False) in device.calls
        assert not queue.wait(0.05)
        front.enable()
        assert queue.wait(5.0)


def test_a_ring_can_be_enabled_before_anything_is_known_of_it(
    served: Served, device: FakeDevice
) -> None:
    """QEMU's network front-end does so, even before SET_FEATURES."""
    with served.connect() as raw:
        raw.send(Front.SET_PROTOCOL_FEATURES, U64(ALL))
        raw.send(Front.SET_VRING_ENABLE, VringState(0, 1))
        raw.ask(Front.GET_FEATURES)
        assert device.calls == []
    with RightFront(served) as front:
        front.enable()
        front.share()
        front.set_up()
        front.events_on()
        front.sync()
        assert ("start", 0, True) in device.calls


def test_polling_without_a_kick_descriptor(served: Served, device: FakeDevice) -> None:
    with RightFront(served) as front:
        front.share()
        front.set_up()
        front.raw.send(Front.SET_VRING_KICK, U64(NO_FD))
        front.sync()
        assert served.ask(lambda: device.queues[0].kick_fd) is None


@pytest.mark.parametrize("extra", [0, F.RING_PACKED, F.RING_PACKED | F.IN_ORDER])
def test_a_ring_goes_on_where_it_stopped(served: Served, extra: int) -> None:
    with RightFront(served, PLAIN | extra) as front:
        queue = front.queue()
        front.start()
        for round_ in range(21):
            front.shout(queue, b"one", round_)
        base = front.raw.ask(Front.GET_VRING_BASE, VringState(0, 0xDEAD)).num
        # 21 buffers of two descriptors: packed stands at slot 10 of 16, in the lap with wrap 1.
        assert base == (0x800A800A if extra & F.RING_PACKED else 21)
        front.set_up(base=base)
        front.raw.send(Front.SET_VRING_KICK, U64(0), [front.events["kick"]])
        front.sync()
        assert front.shout(queue, b"two") == b"TWO"


def test_a_packed_base_with_the_low_half_alone(served: Served, device: FakeDevice) -> None:
    """DPDK's driver sends 0x8000 for a fresh packed ring."""
    with RightFront(served, PLAIN | F.RING_PACKED) as front:
        queue = front.queue()
        front.share()
        front.set_up(base=0x8000)
        front.events_on()
        front.enable()
        assert front.shout(queue, b"x") == b"X"


def test_in_order_resumes_at_the_used_index(served: Served, device: FakeDevice) -> None:
    """A back-end that was lost had taken three buffers and used one: the two others come again."""
    with RightFront(served, PLAIN | F.IN_ORDER) as front:
        queue = front.queue()
        for cookie in range(3):
            queue.add([], [(GUEST + DATA + cookie, 1)], cookie)
        queue.publish()
        front.memory.write(GUEST + DEVICE + 2, (1).to_bytes(2, "little"))
        front.share()
        front.set_up(base=3)
        front.raw.send(Front.SET_VRING_KICK, U64(0 | NO_FD))
        front.sync()
        position = served.ask(lambda: device.queues[0].position)
        assert (position.available, position.used) == (1, 1)
        assert served.ask(lambda: len(device.queues[0].take())) == 2


def test_any_order_resumes_at_the_base(served: Served, device: FakeDevice) -> None:
    with RightFront(served) as front:
        front.share()
        front.memory.write(GUEST + DEVICE + 2, (1).to_bytes(2, "little"))
        front.set_up(base=3)
        front.raw.send(Front.SET_VRING_KICK, U64(0 | NO_FD))
        front.sync()
        position = served.ask(lambda: device.queues[0].position)
        assert (position.available, position.used) == (3, 1)


def test_a_ring_that_never_started_has_its_base(served: Served) -> None:
    with RightFront(served) as front:
        front.raw.send(Front.SET_VRING_BASE, VringState(1, 77))
        assert front.raw.ask(Front.GET_VRING_BASE, VringState(1, 0)) == VringState(1, 77)


def test_a_new_kick_descriptor_on_a_running_ring(served: Served, device: FakeDevice) -> None:
    with RightFront(served) as front:
        queue = front.queue()
        front.start()
        assert front.shout(queue, b"old") == b"OLD"
        old, front.events["kick"] = front.events["kick"], eventfd()
        front.raw.send(Front.SET_VRING_KICK, U64(0), [front.events["kick"]])
        front.sync()
        os.close(old)
        queue.set_kick(front.events["kick"])
        assert front.shout(queue, b"new") == b"NEW"


def test_a_new_call_descriptor_on_a_running_ring(served: Served) -> None:
    with RightFront(served) as front:
        queue = front.queue()
        front.start()
        os.close(front.events["call"])
        front.events["call"] = eventfd()
        front.raw.send(Front.SET_VRING_CALL, U64(0), [front.events["call"]])
        front.sync()
        queue.set_call(front.events["call"])
        assert front.shout(queue, b"new") == b"NEW"


def test_reset_owner_disables_rings(served: Served, device: FakeDevice) -> None:
    with RightFront(served) as front:
        front.start()
        front.raw.send(Front.RESET_OWNER)
        front.sync()
        assert device.calls[-1] == ("enable", 0, False)


# ---------------------------------------------------------------- rings that cannot be


@pytest.mark.parametrize("field", ["descriptor", "used", "available"])
@pytest.mark.parametrize("where", ["outside", "half outside", "at the top", "misaligned"])
def test_row_7_ring_addresses_that_do_not_map(served: Served, field: str, where: str) -> None:
    """The ring's error descriptor says so, and the other ring works."""
    places = {
        "outside": USER - 0x1000,
        "half outside": USER + SIZE - 16,
        "at the top": 2**64 - 16,
        "misaligned": USER + 0x8001,
    }
    with RightFront(served) as front:
        queue = front.queue()
        front.start()
        front.raw.send(Front.SET_VRING_NUM, VringState(1, 64))
        wrong = front.address(1)._replace(**{field: places[where]})
        front.raw.send(Front.SET_VRING_ADDR, wrong)
        err, kick = eventfd(), eventfd()
        front.raw.send(Front.SET_VRING_ERR, U64(1), [err])
        front.raw.send(Front.SET_VRING_KICK, U64(1), [kick])
        front.sync()
        assert os.read(err, 8)
        refused = front.raw.ask(Front.SET_VRING_KICK, U64(1), [kick], need_reply=True)
        assert refused.value == 1
        assert front.shout(queue, b"unharmed") == b"UNHARMED"
        os.close(err)
        os.close(kick)


@pytest.mark.parametrize("num", [3, 48])
def test_a_split_ring_of_a_size_that_is_no_power_of_two(served: Served, num: int) -> None:
    with RightFront(served) as front:
        front.share()
        front.set_up(num=num)
        kick = U64(0)
        answer = front.raw.ask(Front.SET_VRING_KICK, kick, [front.events["kick"]], need_reply=True)
        assert answer.value == 1


def test_a_base_beyond_the_ring(served: Served) -> None:
    with RightFront(served, PLAIN | F.RING_PACKED) as front:
        front.share()
        front.set_up(base=0x80108010)
        kick = U64(0)
        answer = front.raw.ask(Front.SET_VRING_KICK, kick, [front.events["kick"]], need_reply=True)
        assert answer.value == 1


def test_no_memory_at_all(served: Served) -> None:
    with RightFront(served) as front:
        front.set_up()
        kick = U64(0)
        answer = front.raw.ask(Front.SET_VRING_KICK, kick, [front.events["kick"]], need_reply=True)
        assert answer.value == 1
        front.share()
        answer = front.raw.ask(Front.SET_VRING_KICK, kick, [front.events["kick"]], need_reply=True)
        assert answer.value == 0


@pytest.mark.parametrize("kind", ["file", "directory", "socket"])
def test_notifications_need_an_eventfd(served: Served, tmp_path: Path, kind: str) -> None:
    with RightFront(served) as front, socket.socket() as some_socket:
        front.share()
        front.set_up()
        fds = {
            "file": front.fd,
            "directory": os.open(tmp_path, os.O_RDONLY),
            "socket": some_socket.fileno(),
        }
        answer = front.raw.ask(Front.SET_VRING_KICK, U64(0), [fds[kind]], need_reply=True)
        os.close(fds["directory"])
        assert answer.value == 1
