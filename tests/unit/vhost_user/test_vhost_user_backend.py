"""The back-end over real sockets: negotiation, configuration, its own channel, and front-ends that
come and go."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from tests.unit.vhost_user.right_front import (
    ALL,
    PLAIN,
    RightFront,
)
from tests.unit.vhost_user.support import (
    FakeDevice,
    RawFront,
    Served,
    Untranslated,
    eventually,
    no_leaks,
)
from virtq.features import F
from virtq.transports.vhost_user.messages import LOG_ALL, PROTOCOL_FEATURES, Back, Front, P
from virtq.transports.vhost_user.offer import OFFERED
from virtq.transports.vhost_user.wire import (
    U64,
    Config,
    VringState,
)

# ---------------------------------------------------------------- negotiation


def test_offers(served: Served, device: FakeDevice) -> None:
    with served.connect() as raw:
        features = raw.ask(Front.GET_FEATURES).value
        assert features == device.offered_features | PROTOCOL_FEATURES | LOG_ALL
        offered = raw.ask(Front.GET_PROTOCOL_FEATURES).value
        assert offered & ~P.PAGEFAULT == OFFERED | P.CONFIG
        raw.send(Front.SET_PROTOCOL_FEATURES, U64(ALL))
        assert raw.ask(Front.GET_QUEUE_NUM).value == 2
        assert raw.ask(Front.GET_MAX_MEM_SLOTS).value == 509


def test_device_without_config_space_offers_no_config(tmp_path: Path) -> None:
    device = FakeDevice()
    device.config_size = 0
    with Served(device, str(tmp_path / "s")) as served, served.connect() as raw:
        offered = raw.ask(Front.GET_PROTOCOL_FEATURES).value
        assert offered & ~P.PAGEFAULT == OFFERED


def test_device_that_cannot_wait_for_translations_offers_no_access_platform(
    tmp_path: Path,
) -> None:
    with Served(Untranslated(), str(tmp_path / "s")) as served, served.connect() as raw:
        assert not raw.ask(Front.GET_FEATURES).value & F.ACCESS_PLATFORM


def test_features_reach_the_device_without_those_of_the_transport(
    served: Served, device: FakeDevice
) -> None:
    with RightFront(served, PLAIN | F.IN_ORDER) as front:
        front.sync()
        assert device.calls == [("features", F.VERSION_1 | F.IN_ORDER)]


def test_the_same_features_again_are_no_news_to_the_device(
    served: Served, device: FakeDevice
) -> None:
    with RightFront(served) as front:
        front.start()
        front.raw.send(Front.SET_FEATURES, U64(PLAIN | LOG_ALL))
        front.sync()
        assert [call for call in device.calls if call[0] == "features"] == [
            ("features", F.VERSION_1)
        ]


def test_refused_features(served: Served, device: FakeDevice) -> None:
    device.refused_features = F.VERSION_1
    with served.connect() as raw:
        raw.send(Front.SET_PROTOCOL_FEATURES, U64(ALL))
        assert raw.ask(Front.SET_FEATURES, U64(F.VERSION_1), need_reply=True).value == 1
        assert raw.ask(Front.SET_STATUS, U64(0xB), need_reply=True).value == 1
        assert raw.ask(Front.GET_STATUS).value == 0
    with RightFront(served) as front:
        assert front.raw.ended()


def test_status_is_kept_and_zero_resets(served: Served, device: FakeDevice) -> None:
    with RightFront(served) as front:
        front.start()
        front.raw.send(Front.SET_STATUS, U64(0xF))
        assert front.raw.ask(Front.GET_STATUS).value == 0xF
        front.raw.send(Front.SET_STATUS, U64(0))
        assert front.raw.ask(Front.GET_STATUS).value == 0
        assert device.calls[-2:] == [("stop", 0), ("reset",)]
        assert front.raw.ask(Front.GET_VRING_BASE, VringState(0, 0)).num == 0


def test_memory_and_ring_descriptors_survive_a_reset(served: Served, device: FakeDevice) -> None:
    with RightFront(served) as front:
        front.start()
        front.raw.send(Front.RESET_DEVICE)
        front.raw.send(Front.SET_FEATURES, U64(PLAIN))
        front.set_up()
        front.raw.send(Front.SET_VRING_KICK, U64(0), [front.events["kick"]])
        front.enable()
        front.sync()
        assert front.shout(front.queue(), b"again") == b"AGAIN"


# ---------------------------------------------------------------- configuration space


def test_config_is_read_and_written(served: Served, device: FakeDevice) -> None:
    with RightFront(served) as front:
        answer = front.raw.ask(Front.GET_CONFIG, Config(4, 8, 0, bytes(8)))
        assert answer == Config(4, 8, 0, bytes(range(4, 12)))
        front.raw.send(Front.SET_CONFIG, Config(8, 2, 0, b"hi"))
        front.sync()
        assert device.config[8:10] == b"hi"
        answer = front.raw.ask(Front.SET_CONFIG, Config(0, 1, 0, b"!"), need_reply=True)
        assert answer.value == 1


@pytest.mark.parametrize(
    "span", [(0, 17), (16, 1), (0, 0), (250, 6), (255, 2), (2**32 - 1, 1)], ids=str
)
def test_config_out_of_range_is_an_empty_reply(served: Served, span: tuple[int, int]) -> None:
    offset, size = span
    with RightFront(served) as front:
        query = Config(offset, size, 0, bytes(size))
        assert front.raw.ask(Front.GET_CONFIG, query) is None
        front.sync()


def test_a_config_change_is_told_while_a_ring_runs(served: Served, device: FakeDevice) -> None:
    with RightFront(served) as front:
        front.open_other()
        front.start()
        assert device.notify_config is not None
        served.ask(device.notify_config)
        assert front.told() == (Back.CONFIG_CHANGE, None)


def test_a_config_change_before_the_first_ring_is_told_with_it(
    served: Served, device: FakeDevice
) -> None:
    with RightFront(served) as front:
        other = front.open_other()
        assert device.notify_config is not None
        served.ask(device.notify_config)
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.recv(1)
        other.settimeout(5.0)
        front.start()
        assert front.told() == (Back.CONFIG_CHANGE, None)


# ---------------------------------------------------------------- the other channel


def test_the_other_channel_must_be_a_socket(served: Served) -> None:
    with RightFront(served) as front:
        kick = front.events["kick"]
        answer = front.raw.ask(Front.SET_BACKEND_REQ_FD, fds=[kick], need_reply=True)
        assert answer.value == 1


def test_a_datagram_socket_is_no_channel(served: Served) -> None:
    with RightFront(served) as front, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        fds = [datagrams.fileno()]
        answer = front.raw.ask(Front.SET_BACKEND_REQ_FD, fds=fds, need_reply=True)
        assert answer.value == 1


def test_row_25_reply_without_request_on_the_other_channel_closes_that_alone(
    served: Served,
) -> None:
    with RightFront(served) as front:
        queue = front.queue()
        other = front.open_other()
        front.start()
        other.sendall(bytes.fromhex("02000000 05000000 08000000 0000000000000000"))
        assert RawFront(other).ended()
        assert front.shout(queue, b"goes on") == b"GOES ON"


def test_an_other_channel_that_nobody_reads_is_given_up(served: Served, device: FakeDevice) -> None:
    with RightFront(served) as front:
        queue = front.queue()
        front.open_other()
        front.start()

        def flood() -> None:
            for _ in range(100_000):
                assert device.notify_config is not None
                device.notify_config()

        served.ask(flood)
        assert front.shout(queue, b"goes on") == b"GOES ON"


def test_the_other_channel_can_be_replaced(served: Served, device: FakeDevice) -> None:
    with RightFront(served) as front:
        first = front.open_other()
        front.open_other()
        assert first.recv(1) == b""
        first.close()
        front.start()
        assert device.notify_config is not None
        served.ask(device.notify_config)
        assert front.told() == (Back.CONFIG_CHANGE, None)


# ---------------------------------------------------------------- front-ends come and go


def test_one_front_end_after_another(served: Served, device: FakeDevice) -> None:
    for _ in range(3):
        with RightFront(served) as front:
            queue = front.queue()
            front.start()
            assert front.shout(queue, b"hello") == b"HELLO"
        assert eventually(lambda: device.calls[-1] == ("reset",) and not device.queues)
        assert device.notify_config is None
        assert device.miss is None


def test_a_second_front_end_waits_for_the_first(served: Served) -> None:
    with RightFront(served) as first:
        first.sync()
        with served.connect() as second:
            second.send(Front.GET_FEATURES)
            assert second.silent()
            first.raw.close()
            assert second.receive(Front.GET_FEATURES) is not None


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_front_end_that_leaves_in_the_middle(served: Served, cut: int) -> None:
    """After any number of bytes of a session the next front-end is served."""
    with RightFront(served) as front:
        front.start()
        front.raw.send_bytes(bytes.fromhex("05000000 01000000 28000000" + "01" * 40)[:cut])
    with RightFront(served) as front:
        queue = front.queue()
        front.start()
        assert front.shout(queue, b"next") == b"NEXT"


def test_half_a_message_holds_up_nobody_else(served: Served, tmp_path: Path) -> None:
    with Served(FakeDevice(), str(tmp_path / "t")) as second, served.connect() as stuck:
        stuck.send_bytes(b"\x01\x00")
        with RightFront(second) as front:
            queue = front.queue()
            front.start()
            assert front.shout(queue, b"other") == b"OTHER"
        stuck.send_bytes(bytes.fromhex("0000 01000000 00000000"))
        assert stuck.receive(Front.GET_FEATURES) is not None


def test_a_front_end_that_does_not_read_its_replies(served: Served) -> None:
    with served.connect() as raw:
        raw.sock.settimeout(0.3)
        question = bytes.fromhex("01000000 01000000 00000000")
        assert not sends(raw, question * 1_000_000)
    with RightFront(served) as front:
        front.sync()


def sends(raw: RawFront, data: bytes) -> bool:
    """Whether it can be sent within the socket's time limit."""
    try:
        raw.sock.sendall(data)
    except TimeoutError:
        return False
    return True


def test_a_device_that_fails_ends_the_session_alone(served: Served, device: FakeDevice) -> None:
    def fail(*args: object) -> bytes:
        raise ZeroDivisionError("a mistake of the device's author")

    device.read_config = fail  # type: ignore[assignment,method-assign]
    with RightFront(served) as front:
        assert front.raw.ask(Front.GET_CONFIG, Config(0, 4, 0, bytes(4))) is None
        device.write_config = fail  # type: ignore[assignment,method-assign]
        front.raw.send(Front.SET_CONFIG, Config(8, 1, 0, b"x"))
        assert front.raw.ended()
    with RightFront(served) as front:
        front.sync()


def test_a_device_that_cannot_stop_a_queue(
    served: Served, device: FakeDevice, caplog: pytest.LogCaptureFixture
) -> None:
    stop = device.stop_queue

    def fail(index: int) -> Any:
        stop(index)
        raise KeyError(index)

    device.stop_queue = fail  # type: ignore[method-assign]
    with RightFront(served) as front:
        queue = front.queue()
        front.start()
        front.shout(queue, b"one")
        assert front.raw.ask(Front.GET_VRING_BASE, VringState(0, 0)).num == 1
        caplog.clear()  # it holds the traceback, and that the queue


def test_closing_while_a_front_end_is_connected(tmp_path: Path) -> None:
    device = FakeDevice()
    with no_leaks():
        with Served(device, str(tmp_path / "s")) as served:
            front = RightFront(served)
            front.start()
        assert front.raw.ended()
        assert device.calls[-1] == ("reset",)
        front.close()


def test_unsupported_but_known_requests_are_refused(served: Served) -> None:
    with served.connect() as raw:
        raw.send(Front.SET_PROTOCOL_FEATURES, U64(P.REPLY_ACK))
        ours, theirs = socket.socketpair()
        with ours, theirs:
            answer = raw.ask(Front.GPU_SET_SOCKET, fds=[theirs.fileno()], need_reply=True)
            assert answer.value == 1
