"""Connections of the socket device without I/O: two ends against each other, and one end against
packets that no sane peer sends."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtq.wire import layout
from virtq.wire.vsock import (
    BOTH_WAYS,
    HEADER_BYTES,
    Boundary,
    Header,
    Op,
    Shutdown,
    SocketType,
    VsockConfig,
    check_cid,
)
from virtq.wire.vsock_flow import PENDING_BYTES, Flow, Mux, State

HOST, GUEST = 2, 42
PORT = 1000
BUFFER = 1000


class Recorder:
    """Uses a connection, and notes what it is told."""

    def __init__(self) -> None:
        self.flow: Flow
        self.opens = 0
        self.data = b""
        self.messages: list[tuple[bytes, Boundary]] = []
        self.flags = Shutdown(0)
        self.ends: list[bool] = []
        self.rooms = 0

    def opened(self) -> None:
        self.opens += 1

    def received(self, data: bytes, boundary: Boundary) -> None:
        self.data += data
        self.messages.append((data, boundary))

    def room(self) -> None:
        self.rooms += 1

    def shut(self, flags: Shutdown) -> None:
        self.flags = flags

    def closed(self, clean: bool) -> None:
        self.ends.append(clean)


class End:
    """One end, with everything that connects to it accepted unless told otherwise."""

    def __init__(self, cid: int, peer: int, *, types: tuple[int, ...] = (1, 2), limit: int = 9):
        self.users: list[Recorder] = []
        self.accepts = True
        self.mux = Mux(
            local_cid=cid,
            accept=self._accept,
            wake=lambda: None,
            is_peer=lambda header: header.src_cid == peer,
            types=types,
            buffer_bytes=BUFFER,
            connections_max=limit,
        )

    def _accept(self, flow: Flow) -> Recorder | None:
        if not self.accepts:
            return None
        self.users.append(Recorder())
        self.users[-1].flow = flow
        flow.accept()
        return self.users[-1]

    def connect(self, peer: int, port: int = PORT, local: int = 5000, type: int = 1) -> Recorder:
        user = Recorder()
        user.flow = self.mux.connect(local, (peer, port), type)
        user.flow.attach(user)
        self.users.append(user)
        return user

    def packets(self, room: int = 4096) -> list[bytes]:
        """Everything that can be sent now."""
        packets = []
        while (packet := self.mux.next_packet(room)) is not None:
            assert HEADER_BYTES <= len(packet) <= room
            packets.append(packet)
        return packets

    def headers(self) -> list[Header]:
        return [Header.parse(packet[:HEADER_BYTES]) for packet in self.packets()]


def exchange(one: End, other: End, room: int = 4096) -> int:
    """Carry packets both ways until there are no more; returns how many it was."""
    count = 0
    while True:
        there, back = one.packets(room), other.packets(room)
        for packet in there:
            other.mux.receive(packet)
        for packet in back:
            one.mux.receive(packet)
        count += len(there) + len(back)
        if not there and not back:
            return count


@pytest.fixture
def guest() -> End:
    return End(GUEST, HOST)


@pytest.fixture
def host() -> End:
    return End(HOST, GUEST)


def packet(op: int, data: bytes = b"", **fields: int) -> bytes:
    """From the guest's port 5000 to the host's port 1000."""
    known = {
        "src_cid": GUEST,
        "dst_cid": HOST,
        "src_port": 5000,
        "dst_port": PORT,
        "len": len(data),
        "buf_alloc": 500,
    }
    return Header(**{**known, "op": op, **fields}).pack() + data


# Connections


def test_layouts_of_section_5_10() -> None:
    assert layout.size_of(VsockConfig) == 8
    raw = Header(1, 2, 3, 4, 5, 6, 7, 8, 9, 10).pack()
    assert len(raw) == HEADER_BYTES == 44
    assert raw[:8] == b"\1" + bytes(7)
    assert raw[16:28] == b"\3\0\0\0\4\0\0\0\5\0\0\0"
    assert raw[28:36] == b"\6\0\7\0\x08\0\0\0"
    assert Header.parse(raw) == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    assert str(Header.parse(raw)) == "CREDIT_REQUEST from 1:3 to 2:4, 5 bytes"
    for cid in (0, 1, 2, 0xFFFFFFFF, 1 << 32, 0xFFFFFFFFFFFFFFFF, -1):
        with pytest.raises(ValueError, match="cannot be a guest's CID"):
            check_cid(cid)


def test_open_talk_and_close(guest: End, host: End) -> None:
    user = guest.connect(HOST)
    assert user.flow.room == 0
    exchange(guest, host)
    [peer] = host.users
    assert (user.opens, peer.opens) == (1, 0)
    user.flow.send(b"hello")
    peer.flow.send(b"welcome")
    exchange(guest, host)
    assert (peer.data, user.data) == (b"hello", b"welcome")
    user.flow.shutdown(Shutdown.SEND)
    user.flow.send(b"more")
    exchange(guest, host)
    assert peer.flags == Shutdown.SEND
    assert peer.data == b"hello"
    peer.flow.send(b"bye")
    peer.flow.shutdown(BOTH_WAYS)
    exchange(guest, host)
    assert user.data == b"welcomebye"
    assert user.flags == BOTH_WAYS
    assert (user.ends, peer.ends) == ([True], [True])
    assert not guest.mux.flows
    assert not host.mux.flows


def test_every_packet_of_a_connection_tells_of_buffer_space(guest: End, host: End) -> None:
    user = guest.connect(HOST)
    exchange(guest, host)
    host.users[0].flow.send(b"x" * 10)
    exchange(guest, host)
    user.flow.consumed(10)
    user.flow.send(b"y")
    [header] = guest.headers()
    assert (header.buf_alloc, header.fwd_cnt, header.len) == (BUFFER, 10, 1)


def test_refused(guest: End, host: End) -> None:
    host.accepts = False
    user = guest.connect(HOST)
    exchange(guest, host)
    assert (user.opens, user.ends) == (0, [False])
    assert host.mux.stats["refused"] == 1


def test_a_limit_of_connections(guest: End, host: End) -> None:
    users = [guest.connect(HOST, local=5000 + i) for i in range(9)]
    with pytest.raises(OSError, match="9 connections"):
        guest.connect(HOST, local=6000)
    with pytest.raises(ValueError, match="not negotiated"):
        guest.connect(HOST, type=7)
    host.mux.connections_max = 4
    exchange(guest, host)
    assert sum(user.opens for user in users) == 4
    with pytest.raises(OSError, match="connected to 2:1000 already"):
        guest.connect(HOST, local=users[0].flow.key.local_port)


def test_a_reset_ends_at_once_and_drops_what_waits(guest: End, host: End) -> None:
    user = guest.connect(HOST)
    exchange(guest, host)
    user.flow.send(b"x" * 5000)
    user.flow.reset()
    assert [header.op for header in guest.headers()] == [Op.RST]
    assert user.ends == [False]
    user.flow.send(b"y")
    user.flow.shutdown(BOTH_WAYS)
    user.flow.reset()
    assert guest.packets() == []


# Buffer space


def test_data_waits_for_buffer_space(guest: End, host: End) -> None:
    user = guest.connect(HOST)
    exchange(guest, host)
    [peer] = host.users
    user.flow.send(b"a" * 2500)
    exchange(guest, host, room=344)
    assert len(peer.data) == BUFFER
    assert user.flow.credit == 0
    assert user.flow.room == PENDING_BYTES - 1500
    assert exchange(guest, host) == 0
    peer.flow.consumed(249)
    assert exchange(guest, host) == 0
    peer.flow.consumed(1)
    assert exchange(guest, host) > 0
    assert len(peer.data) == 1250
    rooms = user.rooms
    peer.flow.consumed(1000)
    exchange(guest, host)
    peer.flow.consumed(1000)
    exchange(guest, host)
    assert peer.data == b"a" * 2500
    assert user.rooms == rooms + 1


def test_a_stall_is_asked_about_once(guest: End, host: End) -> None:
    user = guest.connect(HOST)
    exchange(guest, host)
    user.flow.send(b"a" * 1500)
    ops = [header.op for header in guest.headers()]
    assert ops == [Op.RW, Op.CREDIT_REQUEST]
    host.mux.receive(packet(Op.CREDIT_REQUEST))
    [answer] = host.headers()
    assert (answer.op, answer.buf_alloc, answer.fwd_cnt) == (Op.CREDIT_UPDATE, BUFFER, 0)


def test_counters_wrap(guest: End, host: End) -> None:
    user = guest.connect(HOST)
    exchange(guest, host)
    [peer] = host.users
    near = (1 << 32) - 300
    user.flow._sent = user.flow._peer_fwd_cnt = near
    peer.flow._received = peer.flow._consumed = peer.flow._told_consumed = near
    for _ in range(3):
        user.flow.send(b"b" * 400)
        exchange(guest, host)
        peer.flow.consumed(400)
        exchange(guest, host)
    assert peer.data == b"b" * 1200
    assert user.flow._sent == 900


def test_closing_waits_for_what_was_sent_before(guest: End, host: End) -> None:
    user = guest.connect(HOST)
    exchange(guest, host)
    [peer] = host.users
    user.flow.send(b"c" * 1700)
    user.flow.shutdown(BOTH_WAYS)
    exchange(guest, host)
    assert user.flow.state is State.CLOSING
    assert user.flow.has_unsent
    assert not peer.flags
    peer.flow.consumed(1000)
    exchange(guest, host)
    assert peer.data == b"c" * 1700
    assert peer.flags == BOTH_WAYS
    assert user.ends == peer.ends == [True]


@pytest.mark.parametrize("claimed", [1, 500, 1 << 31])
def test_a_counter_that_makes_no_sense_gives_no_room(host: End, claimed: int) -> None:
    host.mux.receive(packet(Op.REQUEST))
    host.mux.receive(packet(Op.CREDIT_UPDATE, fwd_cnt=claimed))
    assert host.users[0].flow.credit == 0


# Seqpacket


def test_messages_keep_their_ends(guest: End, host: End) -> None:
    user = guest.connect(HOST, type=SocketType.SEQPACKET)
    exchange(guest, host)
    [peer] = host.users
    assert user.flow.message_bytes_max == BUFFER
    user.flow.send(b"d" * 500, Boundary.MESSAGE)
    user.flow.send(b"", Boundary.MESSAGE)
    user.flow.send(b"e", Boundary.MESSAGE | Boundary.RECORD)
    exchange(guest, host, room=HEADER_BYTES + 300)
    assert peer.messages == [
        (b"d" * 300, Boundary(0)),
        (b"d" * 200, Boundary.MESSAGE),
        (b"", Boundary.MESSAGE),
        (b"e", Boundary.MESSAGE | Boundary.RECORD),
    ]


# What no sane peer sends


def ops(end: End) -> list[int]:
    return [header.op for header in end.headers()]


@pytest.mark.parametrize("length", [0, 1, 43])
def test_less_than_a_header_is_nothing(host: End, length: int) -> None:
    host.mux.receive(bytes(length))
    assert host.packets() == []
    assert host.mux.stats["malformed"] == 1


@pytest.mark.parametrize("op", [0, 8, 0xFFFF, Op.RW, Op.SHUTDOWN, Op.RESPONSE, Op.CREDIT_UPDATE])
def test_packets_of_no_connection_are_answered_with_rst(host: End, op: int) -> None:
    host.mux.receive(packet(op))
    [header] = host.headers()
    assert (header.op, header.src_cid, header.dst_cid) == (Op.RST, HOST, GUEST)
    assert (header.src_port, header.dst_port) == (PORT, 5000)


def test_a_reset_of_no_connection_is_not_answered(host: End) -> None:
    host.mux.receive(packet(Op.RST))
    host.mux.receive(packet(Op.RST, type=77))
    assert host.packets() == []


@pytest.mark.parametrize("type", [0, 3, 0xFFFF])
def test_an_unknown_type_is_answered_with_rst(host: End, type: int) -> None:
    host.mux.receive(packet(Op.REQUEST, type=type))
    [header] = host.headers()
    assert (header.op, header.type) == (Op.RST, type)
    assert not host.users


def test_another_cid_is_refused_and_a_false_one_ignored(host: End) -> None:
    host.mux.receive(packet(Op.REQUEST, dst_cid=77))
    [header] = host.headers()
    assert (header.op, header.src_cid) == (Op.RST, 77)
    host.mux.receive(packet(Op.REQUEST, src_cid=43))
    host.mux.receive(packet(Op.REQUEST, src_cid=GUEST | 1 << 40))
    assert host.packets() == []


@pytest.mark.parametrize(
    "bad",
    [
        packet(Op.REQUEST),
        packet(Op.RESPONSE),
        packet(Op.INVALID),
        packet(9),
        packet(Op.RW, b"f" * (BUFFER + 1)),
        packet(Op.RW, b"short", len=6),
        packet(Op.RW, b"", len=0xFFFFFFFF),
    ],
    ids=["request again", "response", "op 0", "op 9", "overrun", "cut", "huge"],
)
def test_nonsense_resets_its_connection_alone(host: End, bad: bytes) -> None:
    host.mux.receive(packet(Op.REQUEST))
    host.mux.receive(packet(Op.REQUEST, src_port=5001))
    assert ops(host) == [Op.RESPONSE, Op.RESPONSE]
    host.mux.receive(bad)
    assert ops(host) == [Op.RST]
    assert host.users[0].ends == [False]
    assert host.users[0].data == b""
    host.mux.receive(packet(Op.RW, b"still there", src_port=5001))
    assert host.users[1].data == b"still there"


def test_overrun_adds_up(host: End) -> None:
    host.mux.receive(packet(Op.REQUEST))
    host.mux.receive(packet(Op.RW, b"g" * 600))
    assert ops(host) == [Op.RESPONSE]
    host.users[0].flow.consumed(100)
    host.mux.receive(packet(Op.RW, b"g" * 501))
    assert ops(host) == [Op.RST]


def test_data_after_the_promise_to_send_none(host: End) -> None:
    host.mux.receive(packet(Op.REQUEST))
    host.mux.receive(packet(Op.SHUTDOWN, flags=Shutdown.SEND))
    host.mux.receive(packet(Op.SHUTDOWN, flags=0))
    assert host.users[0].flags == Shutdown.SEND
    host.mux.receive(packet(Op.RW, b"x"))
    assert ops(host) == [Op.RST]


def test_data_that_nobody_wants_any_more_is_dropped(host: End) -> None:
    host.mux.receive(packet(Op.REQUEST))
    host.users[0].flow.shutdown(Shutdown.RECEIVE)
    for _ in range(10):
        host.mux.receive(packet(Op.RW, b"h" * 300))
    assert host.users[0].data == b""
    assert Op.RST not in ops(host)


def test_a_peer_that_receives_no_more_gets_nothing(host: End) -> None:
    host.mux.receive(packet(Op.REQUEST))
    assert ops(host) == [Op.RESPONSE]
    flow = host.users[0].flow
    flow.send(b"i" * 100)
    host.mux.receive(packet(Op.SHUTDOWN, flags=Shutdown.RECEIVE))
    flow.send(b"j")
    assert flow.room == 0
    assert ops(host) == []


def test_replies_are_counted_so_that_they_can_be_bounded(host: End) -> None:
    for number in range(50):
        host.mux.receive(packet(Op.RW, src_port=number))
    assert host.mux.backlog == 50
    assert len(ops(host)) == 50
    assert host.mux.backlog == 0
    host.mux.receive(packet(Op.REQUEST))
    host.mux.receive(packet(Op.RW, b"k", src_port=1))
    assert host.mux.backlog == 2
    host.mux.reset()
    assert host.mux.backlog == 0
    assert not host.mux.has_packet
    assert host.users[0].ends == [False]


def test_a_buffer_without_room_for_data_takes_what_has_none(guest: End, host: End) -> None:
    user = guest.connect(HOST)
    exchange(guest, host)
    user.flow.send(b"l")
    assert guest.mux.next_packet(HEADER_BYTES) is None
    host.users[0].flow.reset()
    assert host.mux.next_packet(HEADER_BYTES) is not None
    assert guest.mux.next_packet(HEADER_BYTES + 1) is not None


HEADERS = st.builds(
    Header,
    src_cid=st.sampled_from([GUEST, GUEST, GUEST, HOST, 0, 1 << 63]),
    dst_cid=st.sampled_from([HOST, HOST, HOST, GUEST, 7]),
    src_port=st.integers(0, 2),
    dst_port=st.integers(0, 1),
    len=st.sampled_from([0, 1, 40, 200, 0xFFFFFFFF]),
    type=st.sampled_from([1, 1, 1, 2, 0, 9]),
    op=st.integers(0, 8),
    flags=st.integers(0, 7),
    buf_alloc=st.sampled_from([0, 1, 500, 0xFFFFFFFF]),
    fwd_cnt=st.sampled_from([0, 1, 500, 0xFFFFFFFF]),
)


@settings(deadline=None, max_examples=100)
@given(
    packets=st.lists(st.tuples(HEADERS, st.integers(0, 220), st.booleans()), max_size=80),
    room=st.integers(HEADER_BYTES, 400),
)
def test_no_packets_break_an_end(packets: list[tuple[Header, int, bool]], room: int) -> None:
    host = End(HOST, GUEST)
    for number, (header, length, answer) in enumerate(packets):
        host.mux.receive(header.pack() + bytes(length))
        assert len(host.mux.flows) <= 9
        assert 0 <= host.mux.backlog <= number + 1
        for user in host.users:
            assert unread(user) <= BUFFER
            user.flow.send(b"x" * min(user.flow.room, 300))
            if answer:
                user.flow.consumed(unread(user))
        if answer:
            host.packets(room)
    for user in host.users:
        user.flow.reset()
    host.packets(room)
    assert host.mux.backlog == 0
    assert not host.mux.flows
    assert all(len(user.ends) == 1 for user in host.users)


# Both ends under anything


@settings(deadline=None, max_examples=60)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["send", "consume", "shutdown", "exchange", "reset"]),
            st.integers(0, 2),
            st.integers(0, 1),
            st.integers(1, 1500),
        ),
        max_size=60,
    ),
    room=st.integers(HEADER_BYTES + 40, 2000),
)
def test_what_arrives_is_what_was_sent(steps: list[tuple[str, int, int, int]], room: int) -> None:
    guest, host = End(GUEST, HOST), End(HOST, GUEST)
    users = [guest.connect(HOST, local=5000 + number) for number in range(3)]
    exchange(guest, host)
    pairs = list(zip(users, host.users, strict=True))
    sent = {id(user): b"" for pair in pairs for user in pair}
    cut = set()
    for step, number, side, count in steps:
        user = pairs[number][side]
        if step == "send" and user.flow.room:
            data = bytes([count % 251]) * min(count, user.flow.room)
            user.flow.send(data)
            sent[id(user)] += data
        elif step == "consume":
            user.flow.consumed(min(count, unread(user)))
        elif step == "shutdown":
            user.flow.shutdown(Shutdown(1 + count % 3))
            if count % 3 != 1:  # it receives no more
                cut.add(number)
        elif step == "reset" and count % 7 == 0:
            user.flow.reset()
            cut.add(number)
        else:
            exchange(guest, host, room)
    while exchange(guest, host, room) or any(unread(user) for user in users + host.users):
        for user in users + host.users:
            user.flow.consumed(unread(user))
    for number, pair in enumerate(pairs):
        for sender, receiver in (pair, pair[::-1]):
            assert sent[id(sender)].startswith(receiver.data)
            assert number in cut or sent[id(sender)] == receiver.data
            assert len(receiver.ends) <= 1
    assert guest.mux.backlog == host.mux.backlog == 0
    assert host.mux.stats["malformed"] == guest.mux.stats["malformed"] == 0


def unread(user: Recorder) -> int:
    return (user.flow._received - user.flow._consumed) % (1 << 32)
