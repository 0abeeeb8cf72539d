"""Whatever bytes and descriptors arrive on a vhost-user connection: no crash, no hang, nothing
leaked, and the next front-end is served.

Three kinds of input, from noise to nearly right: raw bytes; messages whose header and payload are
each drawn on their own; and sessions made of requests that exist, with values near the borders,
which reach the states that noise never does.
"""

from __future__ import annotations

import os
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.vhost_user.samples import BACK, FRONT
from tests.unit.vhost_user.support import FakeDevice, RawFront, Served, memfd, no_leaks, open_fds
from virtq.errors import ConfigError
from virtq.features import F
from virtq.transports.vhost_user import postcopy
from virtq.transports.vhost_user.messages import (
    BACK_MESSAGES,
    FRONT_MESSAGES,
    LOG_ALL,
    PROTOCOL_FEATURES,
    Front,
    P,
)
from virtq.transports.vhost_user.negotiation import Negotiation
from virtq.transports.vhost_user.protocol import Refusal, Request, Requester, Responder
from virtq.transports.vhost_user.wire import (
    NEED_REPLY,
    NO_FD,
    REPLY,
    U64,
    Config,
    DeviceState,
    Iotlb,
    LogBase,
    Payload,
    ProtocolError,
    Region,
    RegionTable,
    VringAddress,
    VringState,
    pack_message,
)

SETTINGS = settings(
    deadline=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
EVERYTHING = P((1 << 23) - 1)
MEMORY = 1 << 16
USER = 0x7F0000000000
AVAILABLE, USED = 0x4000, 0x8000


class Piece(NamedTuple):
    """Bytes to send, and which descriptors with them."""

    data: bytes
    fds: tuple[str, ...] = ()


MEMORIES = tuple(f"memory {seed}" for seed in range(8))
KINDS = ("event", *MEMORIES, "socket", "pipe", "writer", "null")
descriptors = st.lists(st.sampled_from(KINDS), max_size=4).map(tuple)


def open_kind(kind: str) -> list[int]:
    """Descriptors of a kind, all to be closed; the first is the one to send."""
    if kind == "event":
        return [os.eventfd(0, os.EFD_CLOEXEC)]
    if kind in MEMORIES:
        fd = memfd(MEMORY)
        os.pwrite(fd, guest_noise(MEMORIES.index(kind)), 0)
        return [fd]
    if kind == "socket":
        return [end.detach() for end in socket.socketpair()]
    if kind == "pipe":
        return list(os.pipe())
    if kind == "writer":
        return list(os.pipe())[::-1]
    return [os.open("/dev/null", os.O_RDWR)]


def guest_noise(seed: int) -> bytes:
    """Guest memory with a split ring of 16 slots in it that a device begins to serve: some of its
    descriptors are sound, and the rest of everything is noise."""
    chance = random.Random(seed)
    memory = bytearray(chance.randbytes(MEMORY))
    for slot in range(16):
        where, length = chance.randrange(MEMORY), chance.choice([0, 1, 16, 4096, 2**32 - 1])
        flags = chance.choice([0, 1, 2, 2, 3, 4, 7])
        struct.pack_into("<QIHH", memory, slot * 16, where, length, flags, chance.randrange(18))
    heads = [chance.randrange(16) for _ in range(16)]
    struct.pack_into("<HH16H", memory, AVAILABLE, 0, chance.randrange(18), *heads)
    struct.pack_into("<HH", memory, USED, 0, 0)
    return bytes(memory)


# ---------------------------------------------------------------- noise

noise = st.builds(Piece, st.binary(min_size=1, max_size=60), descriptors)

words = st.one_of(st.integers(0, 50), st.sampled_from([2**31, 2**32 - 1, 5000]))
flag_words = st.sampled_from([1, 1, 1, 1 | NEED_REPLY, 1 | REPLY, 0, 2, 3, 0x11, 0xFFFFFFFF])
bodies = st.one_of(
    st.sampled_from([sample.body for sample in (*FRONT.values(), *BACK.values())]),
    st.sampled_from([sample.reply_body or b"" for sample in FRONT.values()]),
    st.binary(max_size=300),
)


@st.composite
def loose_messages(draw: st.DrawFn) -> Piece:
    """Header and payload drawn on their own; the size is mostly right."""
    body = draw(bodies)
    size = draw(st.one_of(st.just(len(body)), st.just(len(body)), words))
    head = b"".join(word.to_bytes(4, "little") for word in (draw(words), draw(flag_words), size))
    return Piece(head + body, draw(descriptors))


# ---------------------------------------------------------------- nearly right

PROTOCOL = int(
    P.MQ
    | P.LOG_SHMFD
    | P.REPLY_ACK
    | P.BACKEND_REQ
    | P.PAGEFAULT
    | P.CONFIG
    | P.BACKEND_SEND_FD
    | P.RESET_DEVICE
    | P.INBAND_NOTIFICATIONS
    | P.CONFIGURE_MEM_SLOTS
    | P.STATUS
    | P.DEVICE_STATE
)
if not postcopy.is_possible():
    PROTOCOL &= ~P.PAGEFAULT
"""All that the back-end here offers, and so what nearly right sessions negotiate."""

rings = st.sampled_from([0] * 6 + [1, 1, 2, 255])
quads = st.one_of(
    st.sampled_from([0, 1, 0x1000, MEMORY - 16, MEMORY, 2**63, 2**64 - 1]),
    st.integers(0, MEMORY).map(lambda offset: offset & ~0xF),
)
users = st.one_of(quads.map(lambda value: (USER + value) % 2**64), quads)
numbers = st.sampled_from([0, 1, 2, 16, 16, 16, 64, 256, 0x8000, 0x80008000, 2**32 - 1])
states = st.builds(VringState, rings, numbers)
vring_fds = st.builds(lambda ring, no_fd: U64(ring | no_fd), rings, st.sampled_from([0, 0, NO_FD]))
regions = st.one_of(
    st.just(Region(0, MEMORY, USER, 0)), st.builds(Region, quads, quads, users, quads)
)
iotlbs = st.builds(Iotlb, quads, quads, users, st.integers(0, 3), st.integers(0, 4))
configs = st.builds(
    lambda offset, data, flags: Config(offset, len(data), flags, data),
    st.integers(0, 20),
    st.binary(max_size=20),
    st.integers(0, 2),
)
feature_words = st.sampled_from(
    [
        F.VERSION_1 | PROTOCOL_FEATURES,
        F.VERSION_1 | F.IN_ORDER | PROTOCOL_FEATURES | LOG_ALL,
        F.VERSION_1 | F.RING_PACKED | F.IN_ORDER | PROTOCOL_FEATURES,
        F.VERSION_1 | F.RING_PACKED,
        F.VERSION_1 | F.ACCESS_PLATFORM | PROTOCOL_FEATURES,
        2**64 - 1,
        0,
    ]
).map(lambda value: U64(int(value)))

PAYLOADS: dict[Front, st.SearchStrategy[Payload | None]] = {
    Front.SET_FEATURES: feature_words,
    Front.SET_PROTOCOL_FEATURES: st.sampled_from([U64(PROTOCOL), U64(0x1A62B), U64(8), U64(0)]),
    Front.SET_MEM_TABLE: st.lists(regions, max_size=3).map(lambda r: RegionTable(tuple(r))),
    Front.SET_LOG_BASE: st.builds(LogBase, quads, quads),
    Front.SET_VRING_NUM: states,
    Front.SET_VRING_ADDR: st.builds(
        VringAddress, rings, st.integers(0, 1), users, users, users, quads
    ),
    Front.SET_VRING_BASE: states,
    Front.GET_VRING_BASE: states,
    Front.SET_VRING_KICK: vring_fds,
    Front.SET_VRING_CALL: vring_fds,
    Front.SET_VRING_ERR: vring_fds,
    Front.SET_VRING_ENABLE: st.builds(VringState, rings, st.integers(0, 2)),
    Front.IOTLB_MSG: iotlbs,
    Front.GET_CONFIG: configs,
    Front.SET_CONFIG: configs,
    Front.ADD_MEM_REG: regions,
    Front.REM_MEM_REG: regions,
    Front.SET_STATUS: st.integers(0, 300).map(U64),
    Front.VRING_KICK: st.builds(VringState, rings, st.sampled_from([0, 0, 0, 1])),
    Front.SET_DEVICE_STATE_FD: st.builds(
        DeviceState, st.sampled_from([0, 0, 1, 1, 2]), st.sampled_from([0, 0, 0, 1])
    ),
    Front.CHECK_DEVICE_STATE: st.none(),
    Front.POSTCOPY_ADVISE: st.none(),
    Front.POSTCOPY_LISTEN: st.none(),
    Front.POSTCOPY_END: st.none(),
}
_SHARES_MEMORY = (
    Front.SET_MEM_TABLE,
    Front.ADD_MEM_REG,
    Front.SET_LOG_BASE,
    Front.SET_INFLIGHT_FD,
)


@st.composite
def plausible_messages(draw: st.DrawFn) -> Piece:
    """A request that exists, with the descriptors that belong to it, mostly."""
    code = draw(st.sampled_from([*PAYLOADS] * 8 + [*Front]))
    message = FRONT_MESSAGES[code]
    payload = draw(PAYLOADS[code]) if code in PAYLOADS else FRONT[code].payload
    count = message.fds.bounds(payload)[1]
    kind = "socket" if code is Front.SET_BACKEND_REQ_FD else "event"
    if code is Front.SET_DEVICE_STATE_FD:
        kind = draw(st.sampled_from(["writer", "pipe", "socket"]))
    if code in _SHARES_MEMORY:
        kind = draw(st.sampled_from(MEMORIES))
    fds = (kind,) * count
    if draw(st.integers(0, 39)) == 39:
        fds = draw(descriptors)
    body = message.payload.build(code.name, payload)
    return Piece(pack_message(code, draw(st.sampled_from([0] + [NEED_REPLY] * 9)), body), fds)


CONFIRMED = [
    Piece(pack_message(code, 0, bytes(8))) for code in (Front.SET_MEM_TABLE, Front.ADD_MEM_REG)
]
"""What confirms in postcopy that the answer with the regions' addresses has arrived."""


def postcopy_session(memory: str) -> list[Piece]:
    """A right session begins like this when memory has yet to arrive."""
    table = RegionTable((Region(0, MEMORY, USER, 0),))
    body = FRONT_MESSAGES[Front.SET_MEM_TABLE].payload.build("", table)
    return [
        Piece(pack_message(Front.SET_PROTOCOL_FEATURES, 0, PROTOCOL.to_bytes(8, "little"))),
        Piece(pack_message(Front.POSTCOPY_ADVISE, 0, b"")),
        Piece(pack_message(Front.POSTCOPY_LISTEN, 0, b"")),
        Piece(pack_message(Front.SET_MEM_TABLE, 0, body), (memory,)),
    ]


def right_session(features: int, memory: str) -> list[Piece]:
    """A session that starts a ring."""
    origin = 0 if features & F.ACCESS_PLATFORM else USER
    address = VringAddress(0, 0, origin, origin + USED, origin + AVAILABLE, 0)
    requests: list[tuple[Front, Payload, tuple[str, ...]]] = [
        (Front.SET_PROTOCOL_FEATURES, U64(PROTOCOL), ()),
        (Front.SET_FEATURES, U64(features), ()),
        (Front.SET_MEM_TABLE, RegionTable((Region(0, MEMORY, USER, 0),)), (memory,)),
        (Front.SET_VRING_NUM, VringState(0, 16), ()),
        (Front.SET_VRING_ADDR, address, ()),
        (Front.SET_VRING_CALL, U64(0), ("event",)),
        (Front.SET_VRING_KICK, U64(0), ("event",)),
        (Front.SET_VRING_ENABLE, VringState(0, 1), ()),
    ]
    if features & F.ACCESS_PLATFORM:
        requests.insert(-2, (Front.IOTLB_MSG, Iotlb(0, MEMORY, USER, 3, 2), ()))
    return [
        Piece(pack_message(code, 0, FRONT_MESSAGES[code].payload.build("", payload)), fds)
        for code, payload, fds in requests
    ]


@st.composite
def sessions(draw: st.DrawFn) -> list[Piece]:
    """Some of a right session or all of it, and nearly right requests behind it."""
    features = draw(st.sampled_from([0, F.IN_ORDER, F.ACCESS_PLATFORM]))
    memory = draw(st.sampled_from(MEMORIES))
    pieces = right_session(F.VERSION_1 | PROTOCOL_FEATURES | features, memory)
    if draw(st.booleans()):
        pieces = pieces[: draw(st.integers(0, len(pieces)))]
    elif draw(st.integers(0, 3)) == 3:
        pieces = [*postcopy_session(memory), draw(st.sampled_from(CONFIRMED)), *pieces[3:]]
    follow = st.one_of(plausible_messages(), plausible_messages(), st.sampled_from(CONFIRMED))
    pieces += draw(st.lists(follow, max_size=25))
    return pieces + draw(st.lists(st.one_of(noise, loose_messages()), max_size=2))


inputs = st.one_of(st.lists(st.one_of(noise, loose_messages()), min_size=1, max_size=8), sessions())


# ---------------------------------------------------------------- the protocol objects


def settled() -> Negotiation:
    negotiation = Negotiation(2**64 - 1, EVERYTHING, [256, 64])
    negotiation.protocol = EVERYTHING
    negotiation.features = F.VERSION_1 | F.ACCESS_PLATFORM | PROTOCOL_FEATURES
    return negotiation


def sent(piece: Piece) -> list[int]:
    """Descriptors as they arrive: given away."""
    first_of_each = []
    for kind in piece.fds:
        first, *others = open_kind(kind)
        first_of_each.append(first)
        for fd in others:
            os.close(fd)
    return first_of_each


@SETTINGS
@given(inputs, st.booleans(), st.sampled_from(["accept", "refuse", "ignore"]))
def test_into_a_responder(pieces: list[Piece], main: bool, how: str) -> None:
    table = FRONT_MESSAGES if main else BACK_MESSAGES
    with no_leaks():
        machine = Responder("peer", table, settled(), main=main)
        with suppress(ProtocolError):
            for piece in pieces:
                machine.receive(piece.data, sent(piece))
                while (event := machine.next_request()) is not None:
                    if isinstance(event, Refusal):
                        continue
                    with event.fds:
                        answer(machine, event, how)
        machine.close()
        assert machine.next_request() is None


def answer(machine: Responder, event: Request, how: str) -> None:
    if how == "accept" and event.message.reply is None:
        machine.accept(event)
    elif how == "ignore":
        machine.ignore(event)
    else:
        machine.refuse(event, ValueError("no"))


@SETTINGS
@given(inputs, st.lists(st.sampled_from(sorted(FRONT)), max_size=5))
def test_into_a_requester(pieces: list[Piece], asked: list[Front]) -> None:
    with no_leaks():
        machine = Requester("peer", FRONT_MESSAGES, settled(), main=True)
        for code in asked:
            with suppress(ProtocolError):
                machine.request(code, FRONT[code].payload, range(FRONT[code].fds), ack=True)
        with suppress(ProtocolError):
            for piece in pieces:
                machine.receive(piece.data, sent(piece))
                while (reply := machine.next_reply()) is not None:
                    reply.fds.close()
        machine.close()


# ---------------------------------------------------------------- a back-end


class Stateful(FakeDevice):
    """One that has something to save: more than a pipe holds."""

    has_state = True

    def save_state(self) -> bytes:
        return bytes(1 << 18)

    def load_state(self, state: bytes) -> None:
        if len(state) % 2:
            raise ConfigError("an odd state")


@pytest.fixture(scope="module")
def device() -> FakeDevice:
    return Stateful()


@pytest.fixture(scope="module")
def served(device: FakeDevice, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    path = tmp_path_factory.mktemp("bytes") / "s"
    with no_leaks(), Served(device, str(path), "+INBAND_NOTIFICATIONS") as served:
        yield served


def fds_while_the_next_is_served(served: Served) -> int:
    with served.connect() as raw:
        assert raw.ask(Front.GET_FEATURES) is not None
        return open_fds()


def send_all(raw: RawFront, pieces: list[Piece]) -> None:
    for piece in pieces:
        opened = [open_kind(kind) for kind in piece.fds]
        try:
            raw.send_bytes(piece.data, [fds[0] for fds in opened])
        finally:
            for fds in opened:
                for fd in fds:
                    os.close(fd)


@settings(SETTINGS, max_examples=500)
@given(inputs)
def test_into_a_back_end(served: Served, device: FakeDevice, pieces: list[Piece]) -> None:
    before = fds_while_the_next_is_served(served)
    with served.connect() as raw, suppress(ConnectionError):
        send_all(raw, pieces)
    assert fds_while_the_next_is_served(served) <= before
    assert device.queues == {}
    device.calls.clear()


@settings(SETTINGS, max_examples=100)
@given(sessions(), st.integers(0, 2000))
def test_a_session_that_is_cut_anywhere(
    served: Served, device: FakeDevice, pieces: list[Piece], cut: int
) -> None:
    kept: list[Piece] = []
    for piece in pieces:
        kept.append(Piece(piece.data[: max(cut, 0)], piece.fds))
        cut -= len(piece.data)
        if cut <= 0:
            break
    before = fds_while_the_next_is_served(served)
    with served.connect() as raw, suppress(ConnectionError):
        send_all(raw, [piece for piece in kept if piece.data])
    assert fds_while_the_next_is_served(served) <= before
    assert device.queues == {}
    device.calls.clear()
