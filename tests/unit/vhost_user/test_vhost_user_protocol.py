"""A connection without I/O: framing, descriptors, requests answered, replies matched."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import pytest

from tests.unit.vhost_user.samples import BACK, FRONT
from tests.unit.vhost_user.support import eventfd, no_leaks
from virtq.features import F
from virtq.transports.vhost_user.messages import (
    BACK_MESSAGES,
    FRONT_MESSAGES,
    PROTOCOL_FEATURES,
    Back,
    Front,
    P,
)
from virtq.transports.vhost_user.negotiation import Negotiation
from virtq.transports.vhost_user.protocol import (
    MAX_HELD_FDS,
    BackendProtocol,
    FrontendProtocol,
    Inbox,
    Outgoing,
    Refusal,
    Reply,
    Request,
    Requester,
    Responder,
)
from virtq.transports.vhost_user.wire import (
    NEED_REPLY,
    REPLY,
    U64,
    Config,
    ProtocolError,
    VringState,
    pack_message,
)

EVERYTHING = P((1 << 23) - 1)
OFFERED = F.VERSION_1 | F.ACCESS_PLATFORM | PROTOCOL_FEATURES


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    with no_leaks():
        yield


def settled() -> Negotiation:
    """Everything offered and negotiated, 256 rings."""
    negotiation = Negotiation(2**64 - 1, EVERYTHING, [32768] * 256)
    negotiation.protocol = EVERYTHING
    negotiation.features = OFFERED
    return negotiation


def responder() -> Responder:
    return Responder("peer", FRONT_MESSAGES, settled(), main=True)


def requester(negotiation: Negotiation | None = None) -> Requester:
    return Requester("peer", FRONT_MESSAGES, negotiation or settled(), main=True)


def question(code: Front, body: bytes = b"", flags: int = 0) -> bytes:
    return pack_message(code, flags, body)


def fds(count: int) -> list[int]:
    return [eventfd() for _ in range(count)]


# ---------------------------------------------------------------- both roles against each other


def carry(outgoing: Outgoing, to: Requester | Responder, chunk: int) -> None:
    """The bytes in pieces of `chunk`, duplicates of the descriptors with the first."""
    data, sent = outgoing.data, [os.dup(fd) for fd in outgoing.fds]
    while data:
        size = min(chunk, len(data), to.wanted)
        to.receive(data[:size], sent)
        data, sent = data[size:], []


def settle_for(negotiation: Negotiation, code: Front) -> None:
    """What must have come before the sample of this request may."""
    for ring in negotiation.rings:
        ring.num = 64
        ring.address = FRONT[Front.SET_VRING_ADDR].payload  # type: ignore[assignment]
    if code is Front.SET_VRING_BASE:
        negotiation.features = None


@pytest.mark.parametrize("chunk", [1, 5, 12, 4096])
@pytest.mark.parametrize("code", Front, ids=lambda code: code.name)
def test_every_front_message_and_its_reply(code: Front, chunk: int) -> None:
    sample = FRONT[code]
    asking, answering = requester(), responder()
    for machine in (asking, answering):
        settle_for(machine.negotiation, code)
    with_it = fds(sample.fds)
    request = asking.request(code, sample.payload, with_it, ack=True)
    assert request.data == question(code, sample.body, NEED_REPLY)
    carry(request, answering, chunk)
    event = answering.next_request()
    assert isinstance(event, Request)
    assert (event.message.code, event.payload) == (code, sample.payload)
    assert len(event.fds) == sample.fds
    event.fds.close()
    reply_fds = fds(sample.reply_fds)
    carry(answering.accept(event, sample.reply, reply_fds), asking, chunk)
    reply = asking.next_reply()
    assert isinstance(reply, Reply)
    if sample.reply_body is None:
        assert (reply.payload, reply.is_ack) == (U64(0), True)
    else:
        assert (reply.payload, reply.is_ack) == (sample.reply, False)
    assert len(reply.fds) == sample.reply_fds
    reply.fds.close()
    assert asking.waiting == 0
    for fd in with_it + reply_fds:
        os.close(fd)


@pytest.mark.parametrize("code", Back, ids=lambda code: code.name)
def test_every_back_message_and_its_reply(code: Back) -> None:
    sample = BACK[code]
    asking = Requester("peer", BACK_MESSAGES, settled(), main=False)
    answering = Responder("peer", BACK_MESSAGES, settled(), main=False)
    with_it, reply_fds = fds(sample.fds), fds(sample.reply_fds)
    carry(asking.request(code, sample.payload, with_it, ack=True), answering, 7)
    event = answering.next_request()
    assert isinstance(event, Request)
    assert event.payload == sample.payload
    event.fds.close()
    carry(answering.accept(event, sample.reply, reply_fds), asking, 7)
    reply = asking.next_reply()
    assert isinstance(reply, Reply)
    reply.fds.close()
    for fd in with_it + reply_fds:
        os.close(fd)


def test_a_whole_negotiation() -> None:
    back = BackendProtocol(OFFERED, P.REPLY_ACK | P.MQ, [256])
    front = FrontendProtocol()
    front.negotiation.offered, front.negotiation.offered_protocol = OFFERED, P.REPLY_ACK
    answers = {Front.GET_FEATURES: U64(OFFERED)}

    def ask(code: Front, payload: U64 | None = None) -> Reply | None:
        carry(front.main.request(code, payload, ack=True), back.main, 100)
        event = back.main.next_request()
        assert isinstance(event, Request)
        carry(back.main.accept(event, answers.get(code)), front.main, 100)
        return front.main.next_reply()

    assert ask(Front.SET_OWNER) is None
    reply = ask(Front.GET_FEATURES)
    assert reply is not None
    assert reply.payload == U64(OFFERED)
    assert ask(Front.SET_PROTOCOL_FEATURES, U64(P.REPLY_ACK)) is None
    acknowledged = ask(Front.SET_FEATURES, U64(OFFERED))
    assert acknowledged is not None
    assert acknowledged.is_ack
    for negotiation in (back.negotiation, front.negotiation):
        assert negotiation.features == OFFERED
        assert negotiation.protocol == P.REPLY_ACK
        assert negotiation.owned
    back.close()
    front.close()


# ---------------------------------------------------------------- framing and descriptors


def test_wanted_never_reaches_into_the_next_message() -> None:
    machine = responder()
    assert machine.wanted == 12
    machine.receive(question(Front.SET_VRING_NUM, bytes(8))[:5])
    assert machine.next_request() is None
    assert machine.wanted == 7
    machine.receive(question(Front.SET_VRING_NUM, bytes(8))[5:12])
    assert machine.next_request() is None
    assert machine.wanted == 8


def test_two_messages_in_one_read() -> None:
    machine = responder()
    machine.receive(question(Front.SET_OWNER) + question(Front.RESET_OWNER))
    for code in (Front.SET_OWNER, Front.RESET_OWNER):
        event = machine.next_request()
        assert isinstance(event, Request)
        assert event.message.code is code
        machine.accept(event)
    assert machine.next_request() is None


def test_descriptors_go_to_the_first_message_that_begins_with_them() -> None:
    machine = responder()
    first = question(Front.SET_LOG_FD)
    machine.receive(first[:4], [one := eventfd()])
    machine.receive(first[4:] + first, [two := eventfd()])
    for fd in (one, two):
        event = machine.next_request()
        assert isinstance(event, Request)
        assert event.fds.peek() == fd
        event.fds.close()
        machine.accept(event)


@pytest.mark.parametrize("at", [1, 11, 12, 15, 19])
def test_row_25_descriptors_in_the_middle_of_a_message(at: int) -> None:
    machine = responder()
    data = question(Front.SET_VRING_CALL, bytes(8))
    machine.receive(data[:at])
    assert machine.next_request() is None
    machine.receive(data[at:], fds(1))
    with pytest.raises(ProtocolError, match="middle of a message"):
        machine.next_request()


def test_more_descriptors_than_can_be_held() -> None:
    inbox = Inbox("peer")
    inbox.feed(b"x", fds(MAX_HELD_FDS))
    with pytest.raises(ProtocolError):
        inbox.feed(b"y", fds(1))


def test_an_event_owns_its_descriptors() -> None:
    machine = responder()
    machine.receive(question(Front.SET_LOG_FD), [fd := eventfd()])
    event = machine.next_request()
    assert isinstance(event, Request)
    machine.close()
    os.fstat(fd)
    assert event.fds.take() == fd
    event.fds.close()
    os.fstat(fd)
    os.close(fd)


def test_closing_closes_what_nobody_has_got() -> None:
    machine = responder()
    machine.receive(question(Front.SET_LOG_FD)[:6], fds(1))
    machine.close()
    with pytest.raises(ProtocolError):
        machine.receive(b"more", fds(2))


def test_the_end_of_the_stream() -> None:
    responder().end_of_stream()
    machine = responder()
    machine.receive(b"\x01", fds(1))
    with pytest.raises(ProtocolError, match="incomplete"):
        machine.end_of_stream()


# ---------------------------------------------------------------- answering


def test_a_request_must_be_answered_before_the_next() -> None:
    machine = responder()
    machine.receive(question(Front.SET_OWNER) * 2)
    event = machine.next_request()
    assert isinstance(event, Request)
    with pytest.raises(RuntimeError):
        machine.next_request()
    machine.accept(event)
    with pytest.raises(RuntimeError):
        machine.accept(event)


def one_request(
    code: Front, body: bytes = b"", flags: int = 0, *, protocol: P = EVERYTHING
) -> tuple[Responder, Request]:
    machine = responder()
    machine.negotiation.protocol = protocol
    machine.receive(question(code, body, flags))
    event = machine.next_request()
    assert isinstance(event, Request)
    return machine, event


def test_an_acknowledgement_only_where_it_is_asked_for() -> None:
    machine, event = one_request(Front.SET_OWNER)
    assert machine.accept(event).data == b""
    machine, event = one_request(Front.SET_OWNER, flags=NEED_REPLY)
    assert machine.accept(event).data == pack_message(Front.SET_OWNER, REPLY, bytes(8))


def test_row_25_need_reply_without_reply_ack_is_ignored() -> None:
    machine, event = one_request(Front.SET_OWNER, flags=NEED_REPLY, protocol=P(0))
    assert machine.accept(event).data == b""
    machine, event = one_request(Front.SET_OWNER, flags=NEED_REPLY, protocol=P(0))
    with pytest.raises(ProtocolError):
        machine.refuse(event, ValueError("no"))


def test_need_reply_changes_nothing_for_an_explicit_reply() -> None:
    machine, event = one_request(Front.GET_QUEUE_NUM, flags=NEED_REPLY)
    answer = machine.accept(event, U64(2))
    assert answer.data == pack_message(Front.GET_QUEUE_NUM, REPLY, (2).to_bytes(8, "little"))


def test_reply_ack_may_come_with_the_request_that_turns_it_on() -> None:
    body = P.REPLY_ACK.to_bytes(8, "little")
    machine, event = one_request(Front.SET_PROTOCOL_FEATURES, body, flags=NEED_REPLY, protocol=P(0))
    assert machine.accept(event).data != b""


NO = (1).to_bytes(8, "little")
REFUSALS: Sequence[tuple[Front, int, bytes]] = [
    (Front.GET_CONFIG, 0, b""),
    (Front.IOTLB_MSG, 0, NO),
    (Front.CHECK_DEVICE_STATE, 0, NO),
    (Front.POSTCOPY_END, 0, NO),
    (Front.SET_OWNER, NEED_REPLY, NO),
    (Front.SET_VRING_NUM, NEED_REPLY, NO),
]


@pytest.mark.parametrize(("code", "flags", "reply"), REFUSALS, ids=str)
def test_every_form_of_saying_no(code: Front, flags: int, reply: bytes) -> None:
    machine, event = one_request(code, FRONT[code].body, flags)
    answer = machine.refuse(event, ValueError("no"))
    assert answer.data == pack_message(code, REPLY, reply)
    machine.receive(question(Front.SET_OWNER))
    assert machine.next_request() is not None


@pytest.mark.parametrize("code", [Front.SET_OWNER, Front.GET_FEATURES, Front.GET_VRING_BASE])
def test_no_form_of_saying_no_ends_the_connection(code: Front) -> None:
    machine, event = one_request(code, FRONT[code].body)
    with pytest.raises(ProtocolError, match="no such thing") as caught:
        machine.refuse(event, ValueError("no such thing"))
    assert caught.value.message == code.name
    with pytest.raises(ProtocolError):
        machine.receive(b"x")


def test_a_refused_request_leaves_no_trace() -> None:
    body = VringState(0, 8)
    for how in (Responder.refuse, Responder.ignore):
        machine, event = one_request(
            Front.SET_VRING_NUM, bytes.fromhex("0000000008000000"), NEED_REPLY
        )
        assert event.payload == body
        answer = (
            machine.refuse(event, ValueError("no"))
            if how is Responder.refuse
            else machine.ignore(event)
        )
        assert answer.data.endswith(NO)
        assert machine.negotiation.rings[0].num == 0


def test_a_request_that_must_not_come_now_is_refused_where_that_is_possible() -> None:
    machine = responder()
    machine.negotiation.rings = []
    machine.receive(question(Front.SET_VRING_NUM, bytes(8), NEED_REPLY))
    event = machine.next_request()
    assert isinstance(event, Refusal)
    assert event.error.field == "index"
    assert event.answer.data == pack_message(Front.SET_VRING_NUM, REPLY, NO)
    machine.receive(question(Front.SET_VRING_NUM, bytes(8)))
    with pytest.raises(ProtocolError):
        machine.next_request()


# ---------------------------------------------------------------- asking


def test_replies_come_in_the_order_of_their_requests() -> None:
    machine = requester()
    for code in (Front.GET_FEATURES, Front.GET_STATUS):
        machine.request(code)
    machine.receive(pack_message(Front.GET_STATUS, REPLY, bytes(8)))
    with pytest.raises(ProtocolError, match="GET_FEATURES waits"):
        machine.next_reply()


@pytest.mark.parametrize("code", Front, ids=lambda code: code.name)
def test_row_25_a_reply_without_a_request(code: Front) -> None:
    machine = requester()
    machine.receive(pack_message(code, REPLY, FRONT[code].reply_body or bytes(8)), fds(1))
    with pytest.raises(ProtocolError, match="no request waits"):
        machine.next_reply()


def test_a_message_that_is_no_reply() -> None:
    machine = requester()
    machine.request(Front.GET_FEATURES)
    machine.receive(pack_message(Front.GET_FEATURES, 0, bytes(8)))
    with pytest.raises(ProtocolError, match="reply bit"):
        machine.next_reply()


@pytest.mark.parametrize("size", [0, 7, 9, 2**32 - 1])
def test_a_reply_of_another_size(size: int) -> None:
    machine = requester()
    machine.request(Front.GET_FEATURES)
    header = pack_message(Front.GET_FEATURES, REPLY, b"")[:8] + size.to_bytes(4, "little")
    machine.receive(header)
    with pytest.raises(ProtocolError) as caught:
        machine.next_reply()
    assert (caught.value.field, caught.value.value) == ("size", size)


@pytest.mark.parametrize("code", [Front.GET_FEATURES, Front.SET_OWNER])
def test_descriptors_that_a_reply_must_not_bring(code: Front) -> None:
    machine = requester()
    machine.request(code, ack=True)
    machine.receive(pack_message(code, REPLY, bytes(8)), fds(1))
    with pytest.raises(ProtocolError) as caught:
        machine.next_reply()
    assert caught.value.field == "descriptors"


def test_the_empty_reply_that_says_no_to_a_config_query() -> None:
    machine = requester()
    machine.request(Front.GET_CONFIG, Config(0, 4, 0, bytes(4)))
    machine.receive(pack_message(Front.GET_CONFIG, REPLY, b""))
    reply = machine.next_reply()
    assert reply is not None
    assert reply.payload is None


def test_an_illegal_request_is_not_sent() -> None:
    machine = requester(Negotiation(OFFERED, 0, [256]))
    for code, payload in (
        (Front.GET_STATUS, None),
        (Front.SET_VRING_NUM, VringState(1, 8)),
        (Front.SET_FEATURES, U64(F.IN_ORDER)),
    ):
        with pytest.raises(ProtocolError):
            machine.request(code, payload)
    with pytest.raises(ProtocolError):
        machine.request(Front.SET_LOG_FD)
    assert machine.waiting == 0


def test_a_new_other_channel_starts_afresh() -> None:
    back = BackendProtocol(OFFERED, EVERYTHING, [256])
    back.negotiation.protocol = EVERYTHING
    back.other.request(Back.CONFIG_CHANGE, ack=True)
    back.other.receive(b"\x02\x00")
    back.reopen_other()
    assert back.other.waiting == 0
    assert not back.other.inbox.in_message
