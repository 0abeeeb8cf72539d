"""Row 25 of the catalogue of hostile peers, message by message: short header, size beyond the
maximum, unknown request, request out of order, missing and surplus descriptors, reply without
request, need_reply without REPLY_ACK, version other than 1.

Each case goes to the protocol object, and to a back-end over a real socket: the session ends or the
request is refused, no descriptor stays behind, and the next front-end is served.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.unit.vhost_user.samples import BACK, FRONT, Sample
from tests.unit.vhost_user.support import (
    FakeDevice,
    Served,
    eventfd,
    eventually,
    no_leaks,
    open_fds,
)
from virtq.transports.vhost_user.messages import (
    BACK_MESSAGES,
    FRONT_MESSAGES,
    Back,
    FdRule,
    Front,
    Message,
    P,
)
from virtq.transports.vhost_user.negotiation import Negotiation
from virtq.transports.vhost_user.protocol import Refusal, Responder
from virtq.transports.vhost_user.wire import NEED_REPLY, REPLY, U64, ProtocolError, pack_message

EVERYTHING = P((1 << 23) - 1)


class Case(NamedTuple):
    """Bytes and descriptors that must not be accepted, and the field that the error names."""

    name: str
    data: bytes
    fds: int
    field: str
    truncated: bool = False
    """The connection ends behind it."""


def header(request: int, flags: int, size: int) -> bytes:
    return b"".join(word.to_bytes(4, "little") for word in (request, flags, size))


def cases_of(message: Message, sample: Sample) -> Iterator[Case]:
    code, body, fds = int(message.code), sample.body, sample.fds
    whole = pack_message(code, 0, body)
    yield Case("short_header", whole[:7], fds, "message", truncated=True)
    yield Case("cut_payload", whole[:-1], fds, "message", truncated=True)
    for version in (0, 2, 3):
        yield Case(f"version_{version}", header(code, version, len(body)), fds, "version")
    yield Case("reserved_flags", header(code, 0x101, len(body)), fds, "flags")
    yield Case("reply_without_request", header(code, 1 | REPLY, len(body)), fds, "flags")
    too_large = message.payload.largest + 1
    yield Case("size_beyond_maximum", header(code, 1, too_large), fds, "size")
    yield Case("size_of_4_gib", header(code, 1, 2**32 - 1), fds, "size")
    if message.payload.smallest:
        smaller = message.payload.smallest - 1
        yield Case("size_too_small", pack_message(code, 0, body[:smaller]), fds, "size")
    yield Case("surplus_fds", whole, fds + 2, "descriptors")
    if message.fds in (FdRule.ONE, FdRule.PER_REGION) or (
        message.fds is FdRule.UNLESS_NO_FD and fds
    ):
        yield Case("missing_fds", whole, fds - 1, "descriptors")


FRONT_CASES = [
    pytest.param(code, case, id=f"row_25-{case.name}-{code.name}")
    for code in Front
    for case in cases_of(FRONT_MESSAGES[code], FRONT[code])
]
BACK_CASES = [
    pytest.param(code, case, id=f"row_25-{case.name}-{code.name}")
    for code in Back
    for case in cases_of(BACK_MESSAGES[code], BACK[code])
]


def feed(machine: Responder, case: Case) -> ProtocolError:
    machine.receive(case.data, [eventfd() for _ in range(case.fds)])
    with pytest.raises(ProtocolError) as caught:
        drive(machine)
    return caught.value


def drive(machine: Responder) -> None:
    """Up to the end of the connection."""
    assert machine.next_request() is None
    machine.end_of_stream()


@pytest.mark.parametrize(("code", "case"), FRONT_CASES)
def test_front_message(code: Front, case: Case) -> None:
    negotiation = Negotiation(2**64 - 1, EVERYTHING, [256] * 4)
    negotiation.protocol = EVERYTHING
    with no_leaks():
        error = feed(Responder("peer", FRONT_MESSAGES, negotiation, main=True), case)
    assert error.field == case.field
    assert error.message == ("peer" if case.truncated else code.name)


@pytest.mark.parametrize(("code", "case"), BACK_CASES)
def test_back_message(code: Back, case: Case) -> None:
    negotiation = Negotiation()
    negotiation.protocol = EVERYTHING
    with no_leaks():
        error = feed(Responder("peer", BACK_MESSAGES, negotiation, main=False), case)
    assert error.field == case.field


@pytest.mark.parametrize("request_id", [0, 45, 1000, 2**31, 2**32 - 1])
def test_row_25_unknown_request(request_id: int) -> None:
    with no_leaks():
        case = Case("unknown", header(request_id, 1, 0), 1, "request")
        machine = Responder("peer", FRONT_MESSAGES, Negotiation(), main=True)
        assert feed(machine, case).value == request_id


# ---------------------------------------------------------------- over a socket


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    path: Path = tmp_path_factory.mktemp("row_25")
    with Served(FakeDevice(), str(path / "s")) as served:
        yield served


def next_is_served(served: Served) -> None:
    with served.connect() as raw:
        assert raw.ask(Front.GET_FEATURES) is not None


@pytest.mark.parametrize(("code", "case"), FRONT_CASES)
def test_front_message_to_a_back_end(served: Served, code: Front, case: Case) -> None:
    before = open_fds()
    with served.connect() as raw:
        raw.send(Front.SET_PROTOCOL_FEATURES, U64(0))
        fds = [eventfd() for _ in range(case.fds)]
        raw.send_bytes(case.data, fds)
        for fd in fds:
            os.close(fd)
        if not case.truncated:
            assert raw.ended()
    next_is_served(served)
    assert eventually(lambda: open_fds() == before)


@pytest.mark.parametrize("request_id", [0, 45, 2**32 - 1])
def test_row_25_unknown_request_to_a_back_end(served: Served, request_id: int) -> None:
    with served.connect() as raw:
        raw.send_bytes(header(request_id, 1, 0))
        assert raw.ended()
    next_is_served(served)


OUT_OF_ORDER = [
    Front.SET_VRING_KICK,  # neither size nor addresses nor features
    Front.GET_STATUS,  # STATUS is not negotiated
    Front.IOTLB_MSG,  # nor is ACCESS_PLATFORM
    Front.ADD_MEM_REG,
    Front.SET_INFLIGHT_FD,  # INFLIGHT_SHMFD is not even offered
    Front.SET_LOG_BASE,
    Front.VRING_KICK,
    Front.SET_CONFIG,
    Front.SET_VRING_ENDIAN,
    Front.SEND_RARP,
]


@pytest.mark.parametrize("code", OUT_OF_ORDER, ids=lambda code: f"row_25-{code.name}")
@pytest.mark.parametrize("need_reply", [False, True])
def test_out_of_order(served: Served, code: Front, need_reply: bool) -> None:
    """Without an acknowledgement the session ends; with one it is told and goes on."""
    sample = FRONT[code]
    with served.connect() as raw:
        raw.send(Front.SET_PROTOCOL_FEATURES, U64(P.REPLY_ACK if need_reply else 0))
        fds = [eventfd() for _ in range(sample.fds)]
        body = U64(0) if code is Front.SET_VRING_KICK else sample.payload
        raw.send(code, body, fds, need_reply=need_reply)
        for fd in fds:
            os.close(fd)
        explicit = FRONT_MESSAGES[code].reply is not None
        if code is Front.IOTLB_MSG or (need_reply and not explicit):
            assert raw.receive(code) == U64(1)
            assert raw.ask(Front.GET_FEATURES) is not None
        else:
            assert raw.ended()
    next_is_served(served)


def test_row_25_need_reply_without_reply_ack(served: Served) -> None:
    with served.connect() as raw:
        raw.send(Front.SET_OWNER, need_reply=True)
        assert raw.silent()
        assert raw.ask(Front.GET_FEATURES) is not None


def test_row_25_enable_before_address_is_kept_for_later_and_kick_is_not() -> None:
    """The specification has enabling tracked while the ring is stopped; it cannot start, though."""
    negotiation = Negotiation(1 << 30, EVERYTHING, [256])
    negotiation.protocol = P.REPLY_ACK
    machine = Responder("peer", FRONT_MESSAGES, negotiation, main=True)
    enable = FRONT_MESSAGES[Front.SET_VRING_ENABLE].payload.build("", (0, 1))  # type: ignore[arg-type]
    machine.receive(pack_message(Front.SET_VRING_ENABLE, 0, enable))
    event = machine.next_request()
    assert event is not None
    assert not isinstance(event, Refusal)
    machine.accept(event)
    assert negotiation.rings[0].enabled
    kick = U64(0).value.to_bytes(8, "little")
    machine.receive(pack_message(Front.SET_VRING_KICK, NEED_REPLY, kick), [eventfd()])
    refusal = machine.next_request()
    assert isinstance(refusal, Refusal)
    assert refusal.error.message == "SET_VRING_KICK"
