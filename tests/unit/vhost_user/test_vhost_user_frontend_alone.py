"""The front-end against back-ends that offer little, misbehave, or ask for something."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from tests.unit.vhost_user.driven import MEMORY, Driven
from tests.unit.vhost_user.support import no_leaks
from virtq.errors import PeerGone, TransportError
from virtq.features import F
from virtq.transports.vhost_user import Frontend, ProtocolError, channel
from virtq.transports.vhost_user.messages import (
    FRONT_MESSAGES,
    PROTOCOL_FEATURES,
    Front,
    P,
)
from virtq.transports.vhost_user.negotiation import Negotiation
from virtq.transports.vhost_user.protocol import Outgoing, Request, Responder
from virtq.transports.vhost_user.wire import (
    IOTLB,
    REPLY,
    U64,
    Config,
    Iotlb,
    IotlbType,
    VringState,
    pack_message,
)

# ---------------------------------------------------------------- against others

Answer = Callable[[Request], Outgoing | None]


class Scripted:
    """A back-end that offers what it is told, and answers some requests in its own way."""

    def __init__(self, protocol: P = P.REPLY_ACK) -> None:
        self.features = F.VERSION_1 | PROTOCOL_FEATURES
        self.protocol = protocol
        self.seen: list[Front] = []
        self.payloads: list[Any] = []
        self.special: dict[Front, bytes | None] = {}
        """Bytes to answer with; None: close the connection."""
        ours, theirs = socket.socketpair()
        self.sock, self._theirs = ours, theirs
        negotiation = Negotiation(self.features, protocol, [256] * 4)
        self._machine = Responder("front-end", FRONT_MESSAGES, negotiation, main=True)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with self._theirs, suppress(ConnectionError):
            while True:
                while (event := self._machine.next_request()) is None:
                    data, fds = channel.receive(self._theirs, self._machine.wanted)
                    if not data:
                        return
                    self._machine.receive(data, fds)
                assert isinstance(event, Request), event
                event.fds.close()
                code = Front(event.message.code)
                self.seen.append(code)
                self.payloads.append(event.payload)
                out = self._machine.accept(event, self._reply(code, event.payload)).data
                if code in self.special:
                    special = self.special[code]
                    if special is None:
                        return
                    out = special
                self._theirs.sendall(out)

    def _reply(self, code: Front, payload: Any) -> Any:
        if code is Front.GET_CONFIG:
            return Config(payload.offset, payload.size, 0, bytes(payload.size))
        if code is Front.GET_VRING_BASE:
            return VringState(payload.ring, 0)
        return {
            Front.GET_FEATURES: U64(self.features),
            Front.GET_PROTOCOL_FEATURES: U64(self.protocol),
            Front.GET_QUEUE_NUM: U64(3),
            Front.GET_STATUS: U64(0),
        }.get(code)

    def join(self) -> None:
        self._thread.join(5.0)
        assert not self._thread.is_alive()


def test_a_back_end_without_any_protocol_feature() -> None:
    with no_leaks():
        script = Scripted(P(0))
        front = Frontend(script.sock, memory_size=MEMORY)
        assert front.queue_count == 1
        assert front.config_size == 0
        front.write_status(0)
        front.write_status(3)
        front.write_features(F.VERSION_1)
        front.write_status(11)
        assert front.read_status() == 11
        Driven(front, F.VERSION_1)
        front.write_status(15)
        front.reset_queue(0)
        front.close()
        script.join()
        del front
    setup = script.seen[script.seen.index(Front.SET_MEM_TABLE) :]
    assert setup[:9] == [
        Front.SET_MEM_TABLE,
        Front.SET_VRING_NUM,
        Front.SET_VRING_BASE,
        Front.SET_VRING_ADDR,
        Front.SET_VRING_CALL,
        Front.SET_VRING_ERR,
        Front.SET_VRING_KICK,
        Front.GET_FEATURES,
        Front.SET_VRING_ENABLE,
    ]


def test_a_reset_without_status() -> None:
    script = Scripted(P.REPLY_ACK | P.RESET_DEVICE)
    front = Frontend(script.sock, memory_size=MEMORY)
    front.write_features(F.VERSION_1)
    Driven(front, F.VERSION_1)
    front.write_status(0)
    assert script.seen[-2:] == [Front.GET_VRING_BASE, Front.RESET_DEVICE]
    front.close()
    script.join()


def test_the_number_of_queues() -> None:
    for queues, count in ((None, 3), (8, 8)):
        script = Scripted(P.MQ)
        front = Frontend(script.sock, memory_size=MEMORY, queues=queues)
        assert front.queue_count == count
        front.close()
        script.join()
    script = Scripted(P(0))
    front = Frontend(script.sock, memory_size=MEMORY, queues=2, queue_size_max=1 << 20)
    assert front.queue_count == 2
    assert front.queue_size_max(1) == 32768
    front.close()
    script.join()


def test_configuration_is_always_asked_for_from_the_beginning() -> None:
    """libvhost-user ignores the offset."""
    script = Scripted(P.CONFIG)
    front = Frontend(script.sock, memory_size=MEMORY)
    front.read_config(20, 4)
    assert script.payloads[-1] == Config(0, 24, 0, bytes(24))
    assert front.config_size == 256
    front.close()
    script.join()


WRONG_REPLIES = {
    "another request": pack_message(Front.GET_STATUS, REPLY, bytes(8)),
    "no reply bit": pack_message(Front.GET_FEATURES, 0, bytes(8)),
    "version 2": pack_message(Front.GET_FEATURES, REPLY | 3, bytes(8)),
    "too short": pack_message(Front.GET_FEATURES, REPLY, bytes(4)),
    "unknown": pack_message(200, REPLY, bytes(8)),
}


@pytest.mark.parametrize("data", WRONG_REPLIES.values(), ids=WRONG_REPLIES)
def test_row_25_a_wrong_reply_ends_the_connection(data: bytes) -> None:
    script = Scripted()
    front = Frontend(script.sock, memory_size=MEMORY)
    script.special[Front.GET_FEATURES] = data
    with pytest.raises(ProtocolError) as caught:
        front.read_features()
    with pytest.raises(ProtocolError) as again:
        front.write_features(F.VERSION_1)
    assert again.value is caught.value
    front.close()
    script.join()


def test_a_config_reply_of_another_size() -> None:
    script = Scripted(P.CONFIG)
    front = Frontend(script.sock, memory_size=MEMORY)
    body = bytes(4) + (2).to_bytes(4, "little") + bytes(4) + b"xy"
    script.special[Front.GET_CONFIG] = pack_message(Front.GET_CONFIG, REPLY, body)
    with pytest.raises(ProtocolError, match="size = 2"):
        front.read_config(0, 4)
    front.close()
    script.join()


def test_no_answer_in_time() -> None:
    with no_leaks():
        script = Scripted()
        front = Frontend(script.sock, memory_size=MEMORY, timeout_s=1.0)
        script.special[Front.GET_FEATURES] = b""
        with pytest.raises(TransportError, match=r"no answer to GET_FEATURES within 1\.0 s"):
            front.read_features()
        with pytest.raises(TransportError, match="no answer"):
            front.check()
        front.close()
        script.join()
        del front


def test_half_an_answer_is_no_answer() -> None:
    script = Scripted()
    front = Frontend(script.sock, memory_size=MEMORY, timeout_s=1.0)
    script.special[Front.GET_FEATURES] = pack_message(Front.GET_FEATURES, REPLY, bytes(8))[:15]
    with pytest.raises(TransportError, match="no answer"):
        front.read_features()
    front.close()
    script.join()


@pytest.mark.parametrize("code", [Front.GET_FEATURES, Front.SET_FEATURES, Front.SET_VRING_NUM])
def test_a_back_end_that_dies_at_any_request(code: Front) -> None:
    script = Scripted()
    front = Frontend(script.sock, memory_size=MEMORY)
    if code is Front.SET_VRING_NUM:
        front.write_features(F.VERSION_1)
    script.special[code] = None
    calls: dict[Front, Callable[[], object]] = {
        Front.GET_FEATURES: front.read_features,
        Front.SET_FEATURES: lambda: front.write_features(F.VERSION_1),
        Front.SET_VRING_NUM: lambda: Driven(front, F.VERSION_1),
    }
    with pytest.raises(PeerGone):
        calls[code]()
    front.close()
    script.join()


def test_a_back_end_that_dies_while_it_is_opened() -> None:
    with no_leaks():
        script = Scripted()
        script.special[Front.SET_OWNER] = None
        with pytest.raises(PeerGone):
            Frontend(script.sock, memory_size=MEMORY)
        script.join()


def test_a_nack_names_the_request() -> None:
    script = Scripted()
    front = Frontend(script.sock, memory_size=MEMORY)
    front.write_features(F.VERSION_1)
    nack = pack_message(Front.SET_VRING_ADDR, REPLY, (1).to_bytes(8, "little"))
    script.special[Front.SET_VRING_ADDR] = nack
    with pytest.raises(TransportError, match="refused SET_VRING_ADDR"):
        Driven(front, F.VERSION_1)
    front.check()
    front.close()
    script.join()


# ---------------------------------------------------------------- the other channel


class Other:
    """The back-end's end of the other channel, as the front-end hands it over."""

    def __init__(self, protocol: P) -> None:
        ours, self.theirs = socket.socketpair()
        self.theirs.settimeout(5.0)
        self.protocol, self.features = protocol | P.BACKEND_REQ, F.VERSION_1 | PROTOCOL_FEATURES
        self.other: socket.socket | None = None
        self._thread = threading.Thread(target=self._open, daemon=True)
        self._thread.start()
        self.front = Frontend(ours, memory_size=MEMORY, timeout_s=2.0)
        self._thread.join(5.0)

    def _open(self) -> None:
        negotiation = Negotiation(self.features, self.protocol, [256])
        machine = Responder("front-end", FRONT_MESSAGES, negotiation, main=True)
        replies = {
            Front.GET_FEATURES: U64(self.features),
            Front.GET_PROTOCOL_FEATURES: U64(self.protocol),
        }
        code = None
        while code is not Front.SET_OWNER:
            while (event := machine.next_request()) is None:
                machine.receive(*channel.receive(self.theirs, machine.wanted))
            assert isinstance(event, Request)
            code = Front(event.message.code)
            if code is Front.SET_BACKEND_REQ_FD:
                self.other = socket.socket(fileno=event.fds.take())
                self.other.settimeout(5.0)
            self.theirs.sendall(machine.accept(event, replies.get(code)).data)

    def ask(self, code: int, body: bytes = b"", fds: tuple[int, ...] = ()) -> bytes:
        """A request with need_reply, and the answer; no bytes if the channel is closed."""
        assert self.other is not None
        channel.send(self.other, pack_message(code, 8, body), fds)
        try:
            return self.other.recv(100)
        except ConnectionError:
            return b""

    def close(self) -> None:
        self.front.close()
        self.theirs.close()
        assert self.other is not None
        self.other.close()


@pytest.fixture
def other() -> Iterator[Other]:
    with no_leaks():
        other = Other(P.REPLY_ACK | P.CONFIG)
        yield other
        other.close()
        other.front = None  # type: ignore[assignment]


ACK, NACK = (value.to_bytes(8, "little") for value in (0, 1))


def test_a_config_change_is_acknowledged(other: Other) -> None:
    assert other.ask(2) == pack_message(2, REPLY, ACK)


def test_requests_that_were_not_negotiated_are_refused(other: Other) -> None:
    assert other.ask(4, bytes(8)) == pack_message(4, REPLY, NACK)
    fd = os.eventfd(0)
    assert other.ask(3, bytes(24), (fd,)) == pack_message(3, REPLY, NACK)
    os.close(fd)


@pytest.mark.parametrize("kind", [1, 2, 4, 7])
def test_iotlb_messages_that_say_nothing(other: Other, kind: int) -> None:
    """A miss outside of memory and nonsense are refused, a failed access is taken note of."""
    body = bytes(24) + bytes([1, kind]) + bytes(6)
    answer = ACK if kind == 4 else NACK
    assert other.ask(1, body) == pack_message(1, REPLY, answer)


def test_a_miss_that_crosses_a_reset_is_refused_and_no_error(
    other: Other, caplog: pytest.LogCaptureFixture
) -> None:
    """A reset forgets ACCESS_PLATFORM; what the back-end asked before that is answered with no."""
    body = Iotlb(other.front.memory.regions[0][0], 16, 0, 1, IotlbType.MISS)
    assert other.ask(1, IOTLB.encode(body)) == pack_message(1, REPLY, NACK)
    assert not caplog.records
    other.front.check()


def test_an_answer_on_its_way_when_the_channel_is_closed_is_no_warning(
    other: Other, caplog: pytest.LogCaptureFixture
) -> None:
    reached = threading.Event()

    def changed() -> None:
        reached.set()
        # `close` shuts the channel down under it, so that what it answers cannot be sent.
        channel_is_down.wait(5.0)

    channel_is_down = threading.Event()
    other.front.on_config_change(changed)
    assert other.other is not None
    other.other.sendall(pack_message(2, 8, b""))
    assert reached.wait(5.0)
    closing = threading.Thread(target=other.front.close)
    closing.start()
    assert other.other.recv(1) == b""
    channel_is_down.set()
    closing.join()
    assert not caplog.records


@pytest.mark.parametrize("code", [0, 11, 2**31])
def test_row_25_an_unknown_request_closes_that_channel_alone(other: Other, code: int) -> None:
    assert other.ask(code) == b""
    other.front.check()


def test_row_25_surplus_descriptors_close_that_channel_alone(other: Other) -> None:
    fd = os.eventfd(0)
    assert other.ask(2, b"", (fd,)) == b""
    os.close(fd)
    other.front.check()
