"""Packets that the driver transmits, seen from the far end of the wire (5.1.6.2)."""

from __future__ import annotations

from collections.abc import Sequence

from virtq.check.case import Broken, NotObservable, case, expect
from virtq.check.context import Context
from virtq.check.net.frames import (
    TCP4,
    TCP6,
    UDP4,
    Flow,
    Packet,
    is_complete,
    offloaded,
    parts,
    tunnelled,
    whole,
)
from virtq.check.net.header import DATA_VALID, NEEDS_CSUM, TUNNEL, TUNNEL_CSUM, Header
from virtq.check.net.nic import SOMEBODY, Nic, with_needs
from virtq.check.session import Session
from virtq.wire.net import DEVICE_ID
from virtq.wire.net import NetFeature as N

_SEGMENT_BYTES = 500
_PAYLOAD_BYTES = 2100
_UNKNOWN_FLAG = 0x80
_FLOWS: dict[N, Flow] = {N.HOST_TSO4: TCP4, N.HOST_TSO6: TCP6, N.HOST_USO: UDP4}
_TUNNEL = N.HOST_UDP_TUNNEL_GSO


def _offered(session: Session, features: int) -> int:
    """Those of the features that are offered, with what they need."""
    chosen = int(session.offered & features)
    return with_needs(chosen)


def _unchanged(nic: Nic, packet: Packet) -> None:
    came = [other.frame for other in nic.transmit(packet)]
    expect(came == [packet.frame], "the frame as it was transmitted", [f.hex() for f in came])


def _expect_payload(came: Sequence[Packet], payload: bytes, of: str = "") -> None:
    """The segments of one packet, each with a right checksum, make up the payload. `of`: which."""
    got = b""
    for packet in came:
        for frame in whole(packet):
            found = parts(frame)
            expect(found.transport, "TCP or UDP over IP at the far end", frame.hex())
            expect(is_complete(frame, found), "a right checksum at the far end", frame.hex())
            got += frame[found.payload :]
    what = f"{len(payload)} bytes of payload{of} at the far end"
    expect(got == payload, what, len(got))


@case("net.tx.dev.ignore-unknown-flags", device_id=DEVICE_ID)
def an_unknown_flag(ctx: Context) -> None:
    """A bit of the header's flags that nothing is known of is ignored: the packet is sent as
    without it, and with the checksum that is asked for beside it."""
    session = ctx.session()
    nic = Nic(ctx, _offered(session, N.CSUM), session=session)
    _unchanged(nic, Packet(nic.frame(), Header(flags=_UNKNOWN_FLAG)))
    if nic.features & N.CSUM:
        packet = offloaded(UDP4, nic.payload(100), SOMEBODY)
        header = packet.header._replace(flags=packet.header.flags | _UNKNOWN_FLAG)
        _expect_payload(nic.transmit(Packet(packet.frame, header)), nic.payload(100))


@case("net.tx.dev.csum-fields-gated", device_id=DEVICE_ID)
def checksum_fields_without_the_flag(ctx: Context) -> None:
    """Without NEEDS_CSUM, csum_start and csum_offset are not used, whatever they hold."""
    session = ctx.session()
    nic = Nic(ctx, _offered(session, N.CSUM), session=session)
    for start, offset in ((20, 2), (34, 6), (0xFFFF, 0xFFFF)):
        _unchanged(nic, Packet(nic.frame(), Header(csum_start=start, csum_offset=offset)))


@case("net.tx.dev.hdrlen-not-trusted", device_id=DEVICE_ID)
def a_wrong_header_length(ctx: Context) -> None:
    """Without GUEST_HDRLEN, hdr_len may be wrong: a packet that is to be segmented arrives whole,
    and so does one that is not."""
    session = ctx.session()
    features = _offered(session, N.HOST_TSO4 | N.HOST_TSO6 | N.HOST_USO)
    if not features:
        raise NotObservable("no segmentation is offered")
    nic = Nic(ctx, features, session=session)
    for feature, flow in _FLOWS.items():
        if features & feature:
            payload = nic.payload(_PAYLOAD_BYTES)
            packet = offloaded(flow, payload, SOMEBODY, segment_bytes=_SEGMENT_BYTES)
            for length in (0, 1, 20, 200, 0xFFFF):
                header = packet.header._replace(hdr_len=length)
                came = nic.transmit(Packet(packet.frame, header))
                _expect_payload(came, payload, f" of a packet with hdr_len {length}")
    _unchanged(nic, Packet(nic.frame(), Header(hdr_len=0xFFFF)))


@case("net.tx.dev.outer-nh-not-used", device_id=DEVICE_ID)
def an_outer_network_offset_that_is_none(ctx: Context) -> None:
    """outer_nh_offset of 0 is not used, and without OUT_NET_HEADER no value of it is (it is in the
    header then if IPSEC is negotiated)."""
    session = ctx.session()
    segmentation = _offered(session, N.HOST_TSO4 | N.HOST_USO)
    variants = [(N.OUT_NET_HEADER, 0), (N.IPSEC, 77)]
    if not segmentation or not session.offered & (N.OUT_NET_HEADER | N.IPSEC):
        raise NotObservable("no header with outer_nh_offset, or no segmentation, is offered")
    flow = TCP4 if segmentation & N.HOST_TSO4 else UDP4
    for feature, offset in variants:
        if session.offered & feature:
            nic = Nic(ctx, segmentation | feature)
            payload = nic.payload(_PAYLOAD_BYTES)
            packet = offloaded(flow, payload, SOMEBODY, segment_bytes=_SEGMENT_BYTES)
            header = packet.header._replace(outer_nh_offset=offset)
            _expect_payload(nic.transmit(Packet(packet.frame, header)), payload)


@case("net.tx.dev.ipsec-gated", device_id=DEVICE_ID, needs=N.IPSEC)
def a_security_association_without_the_flag(ctx: Context) -> None:
    """Without the flag SECURITY, resource_id and resource_type are not used."""
    nic = Nic(ctx, N.IPSEC)
    _unchanged(nic, Packet(nic.frame(), Header(resource_id=0x1234, resource_type=0x203)))


def _tunnel(nic: Nic) -> Packet:
    inner = offloaded(TCP4, nic.payload(_PAYLOAD_BYTES), SOMEBODY, segment_bytes=_SEGMENT_BYTES)
    return tunnelled(inner, SOMEBODY)


def _refused(nic: Nic, packet: Packet, what: str) -> None:
    if not nic.refused(packet):
        raise Broken(f"{what} is not accepted", "it arrived at the far end")


@case("net.tx.dev.both-tunnel-bits-reject", device_id=DEVICE_ID, needs=_TUNNEL)
def both_tunnel_bits(ctx: Context) -> None:
    """A packet with both tunnel bits in gso_type is not accepted."""
    nic = Nic(ctx, with_needs(_TUNNEL))
    packet = _tunnel(nic)
    header = packet.header._replace(gso_type=packet.header.gso_type | TUNNEL)
    _refused(nic, Packet(packet.frame, header), "a packet with both tunnel bits")


@case("net.tx.dev.tunnel-inconsistent-reject", device_id=DEVICE_ID, needs=_TUNNEL)
def half_a_tunnel(ctx: Context) -> None:
    """A packet with a tunnel bit is not accepted without NEEDS_CSUM, with DATA_VALID, or without
    another segmentation type beside the bit."""
    for what in ("without NEEDS_CSUM", "with DATA_VALID", "alone"):
        nic = Nic(ctx, with_needs(_TUNNEL))
        packet = _tunnel(nic)
        header = {
            "without NEEDS_CSUM": packet.header._replace(flags=0),
            "with DATA_VALID": packet.header._replace(flags=NEEDS_CSUM | DATA_VALID),
            "alone": packet.header._replace(gso_type=packet.header.gso_type & TUNNEL, gso_size=0),
        }[what]
        _refused(nic, Packet(packet.frame, header), f"a packet with a tunnel bit {what}")


@case(
    "net.tx.dev.tunnel-csum-without-tunnel-reject",
    device_id=DEVICE_ID,
    needs=N.HOST_UDP_TUNNEL_GSO_CSUM,
)
def a_tunnel_checksum_without_a_tunnel(ctx: Context) -> None:
    """A packet with UDP_TUNNEL_CSUM and without a tunnel bit is not accepted."""
    nic = Nic(ctx, with_needs(N.HOST_UDP_TUNNEL_GSO_CSUM))
    packet = offloaded(UDP4, nic.payload(100), SOMEBODY)
    header = packet.header._replace(flags=packet.header.flags | TUNNEL_CSUM)
    what = "a packet with UDP_TUNNEL_CSUM and no tunnel"
    _refused(nic, Packet(packet.frame, header), what)


@case("net.tx.dev.tunnel-offsets-gated", device_id=DEVICE_ID, needs=_TUNNEL)
def tunnel_offsets_without_a_tunnel(ctx: Context) -> None:
    """Without a tunnel bit, outer_th_offset and inner_nh_offset are not used."""
    nic = Nic(ctx, with_needs(_TUNNEL))
    offsets = {"outer_th_offset": 20, "inner_nh_offset": 0xFFFF}
    _unchanged(nic, Packet(nic.frame(), Header(**offsets)))
    payload = nic.payload(_PAYLOAD_BYTES)
    packet = offloaded(TCP4, payload, SOMEBODY, segment_bytes=_SEGMENT_BYTES)
    header = packet.header._replace(**offsets)
    _expect_payload(nic.transmit(Packet(packet.frame, header)), payload)


@case("net.cfg.dev.tx-mtu", device_id=DEVICE_ID, needs=N.MTU)
def a_frame_of_the_mtu(ctx: Context) -> None:
    """With MTU, a packet of that size is sent, and in one piece."""
    nic = Nic(ctx, N.MTU)
    mtu = int.from_bytes(nic.config(10, 2), "little")
    _unchanged(nic, Packet(nic.frame(SOMEBODY, mtu + 14)))
