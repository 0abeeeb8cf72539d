"""The socket device (5.10)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from virtq.check.case import NotObservable, case, expect
from virtq.check.context import Context
from virtq.check.session import Job, Ring
from virtq.wire import vsock
from virtq.wire.vsock import Header, Op, SocketType, VsockFeature

_ID = vsock.DEVICE_ID
LISTENED_PORT = 1024
"""Where cases look for somebody at the host's side, who had best return what it gets."""
_NOBODY = 0x7FFF_0000
_UNKNOWN_TYPE = 77
_RECEIVE_BYTES = 1024
_RECEIVE_BUFFERS = 8
_SMALL_CREDIT = 64
_RESERVED_CIDS = (0, 1, 2, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF)


class _Packet(NamedTuple):
    header: Header
    data: bytes


class _Guest:
    """A driver with its queues set up; `supply`: receive buffers from the beginning."""

    def __init__(self, ctx: Context, features: int = 0, supply: bool = True) -> None:
        self.session = ctx.session()
        wanted = ctx.features(self.session, features)
        if not self.session.negotiate(wanted):
            raise NotObservable("the device does not take these features")
        self.cid = int.from_bytes(self.session.transport.read_config(0, 8), "little")
        self.receive_ring: Ring = self.session.ring(vsock.RECEIVE)
        self.transmit: Ring = self.session.ring(vsock.TRANSMIT)
        self.session.ring(vsock.EVENT)
        self.session.go_live()
        self.port = 5000
        if supply:
            self.supply()

    def supply(self) -> None:
        for _ in range(min(_RECEIVE_BUFFERS, self.receive_ring.size)):
            self.receive_ring.add(Job(b"", _RECEIVE_BYTES))
        self.receive_ring.kick()

    def header(self, op: int, to: int, **fields: int) -> Header:
        made = Header(self.cid, vsock.HOST_CID, self.port, to, op=op, buf_alloc=1 << 16)
        return made._replace(**fields)

    def send(self, header: Header, data: bytes = b"") -> None:
        self.transmit.serve(Job(header._replace(len=len(data)).pack() + data, 0))

    def packets(self) -> list[_Packet]:
        """What has come."""
        found = []
        for sent in self.receive_ring.collect():
            sent.check()
            got = sent.reply[: sent.written]
            expect(len(got) >= vsock.HEADER_BYTES, "a packet with its header", f"{len(got)} bytes")
            header = Header.parse(got[: vsock.HEADER_BYTES])
            found.append(_Packet(header, got[vsock.HEADER_BYTES :]))
            self.receive_ring.add(Job(b"", _RECEIVE_BYTES))
        self.receive_ring.kick()
        return found

    def wait(self, what: str, *ops: int) -> _Packet:
        """The next packet for our port of one of these kinds. Raises Hung."""
        for _ in self.session.patience(what):
            for packet in self.packets():
                if packet.header.dst_port == self.port and packet.header.op in ops:
                    return packet
        raise AssertionError

    def moment(self) -> Iterator[_Packet]:
        for _ in self.session.moment():
            yield from self.packets()

    def connect(self, **fields: int) -> Header:
        """A connection; the packet that accepted it. Raises NotObservable if nobody listens."""
        self.send(self.header(Op.REQUEST, LISTENED_PORT, **fields))
        answer = self.wait("an answer to a request", Op.RESPONSE, Op.RST).header
        if answer.op == Op.RST:
            raise NotObservable(f"nobody listens on port {LISTENED_PORT} of the host")
        return answer


@case("vsock.rxtx.dev.cid-not-reserved", device_id=_ID, rings=False)
def the_context_id(ctx: Context) -> None:
    """guest_cid is no reserved one, and has no bits above the lower 32."""
    cid = int.from_bytes(ctx.session().transport.read_config(0, 8), "little")
    expect(cid not in _RESERVED_CIDS and cid < 1 << 32, "a guest's CID", cid)


@case("vsock.feat.dev.offer-no-implied-stream", device_id=_ID, rings=False)
def no_implied_stream(ctx: Context) -> None:
    """NO_IMPLIED_STREAM is offered (SHOULD)."""
    offered = ctx.session().offered
    expect(offered & VsockFeature.NO_IMPLIED_STREAM, "NO_IMPLIED_STREAM", f"{offered:#x}")


@case("vsock.rxtx.dev.rst-unknown-type", device_id=_ID)
def an_unknown_type(ctx: Context) -> None:
    """A packet of an unknown socket type is answered with RST."""
    guest = _Guest(ctx)
    guest.send(guest.header(Op.REQUEST, _NOBODY, type=_UNKNOWN_TYPE))
    answer = guest.wait("an answer to a packet of unknown type", *Op).header
    expect(answer.op == Op.RST, "RST", str(answer))


@case("vsock.flow.dev.process-tx", device_id=_ID)
def no_receive_buffers(ctx: Context) -> None:
    """Packets are taken although there is no receive buffer for their answers, which come when
    there is."""
    guest = _Guest(ctx, supply=False)
    for turn in range(4):
        guest.port = 6000 + turn
        guest.send(guest.header(Op.REQUEST, _NOBODY + turn))
    guest.supply()
    answered: set[int] = set()
    for _ in guest.session.patience("four answers"):
        answered |= {packet.header.dst_port for packet in guest.packets()}
        if answered >= {6000, 6001, 6002, 6003}:
            return


@case("vsock.feat.dev.default-stream", device_id=_ID)
def streams_without_features(ctx: Context) -> None:
    """With no feature of its own negotiated, the device has stream sockets (SHOULD)."""
    answer = _Guest(ctx).connect()
    expect(answer.type == SocketType.STREAM, "a stream", f"type {answer.type}")


@case("vsock.feat.dev.seqpacket-implies", device_id=_ID, needs=VsockFeature.SEQPACKET)
def streams_beside_seqpacket(ctx: Context) -> None:
    """With SEQPACKET alone, a stream is accepted or refused (MAY), and answered in any case."""
    guest = _Guest(ctx, int(VsockFeature.SEQPACKET))
    guest.send(guest.header(Op.REQUEST, LISTENED_PORT))
    answer = guest.wait("an answer to a request", *Op).header
    right = answer.op in (Op.RESPONSE, Op.RST)
    expect(right, "RESPONSE or RST", str(answer))


@case("vsock.credit.dev.valid-fields", device_id=_ID)
def credit_is_told(ctx: Context) -> None:
    """Every packet of a stream tells a buffer, and no more bytes forwarded than were sent; asked,
    the device tells it anew."""
    guest = _Guest(ctx)
    answer = guest.connect()
    _check_credit(answer, 0)
    sent = min(100, answer.buf_alloc)
    guest.send(guest.header(Op.RW, LISTENED_PORT), bytes(sent))
    guest.send(guest.header(Op.CREDIT_REQUEST, LISTENED_PORT))
    for _ in guest.session.patience("an update of the credit"):
        packets = guest.packets()
        for packet in packets:
            if packet.header.op != Op.RST:
                _check_credit(packet.header, sent)
        if any(packet.header.op == Op.CREDIT_UPDATE for packet in packets):
            break


def _check_credit(header: Header, sent: int) -> None:
    expect(header.buf_alloc, "a buffer for the stream", f"buf_alloc 0 in {header}")
    right = header.fwd_cnt <= sent
    expect(right, f"at most {sent} bytes forwarded", f"{header.fwd_cnt} in {header}")


@case("vsock.credit.dev.only-when-room", device_id=_ID)
def no_more_than_there_is_room_for(ctx: Context) -> None:
    """Data is sent only as far as the driver has room, and the rest when it has more."""
    guest = _Guest(ctx)
    answer = guest.connect(buf_alloc=_SMALL_CREDIT)
    data = bytes(range(200))[: answer.buf_alloc]
    guest.send(guest.header(Op.RW, LISTENED_PORT, buf_alloc=_SMALL_CREDIT), data)
    came = b"".join(packet.data for packet in guest.moment() if packet.header.op == Op.RW)
    expect(len(came) <= _SMALL_CREDIT, f"at most {_SMALL_CREDIT} bytes", len(came))
    if not came:
        raise NotObservable(f"who listens on port {LISTENED_PORT} returns nothing")
    for _ in guest.session.patience("all that was sent to come back"):
        fields = {"buf_alloc": _SMALL_CREDIT, "fwd_cnt": len(came)}
        before = len(came)
        guest.send(guest.header(Op.CREDIT_UPDATE, LISTENED_PORT, **fields))
        came += b"".join(p.data for p in guest.moment() if p.header.op == Op.RW)
        right = len(came) <= before + _SMALL_CREDIT
        expect(right, f"at most {_SMALL_CREDIT} bytes more", len(came) - before)
        if len(came) >= len(data):
            break
    expect(came == data, "what was sent", "something else")
