"""Checksums and segmentation that a driver takes over on packets it receives (5.1.6.4)."""

from __future__ import annotations

from collections.abc import Sequence

from virtq.check.case import NotObservable, case, expect
from virtq.check.context import Context
from virtq.check.net.frames import (
    TCP4,
    TCP6,
    UDP4,
    UDP6,
    Flow,
    Packet,
    finish,
    has_congestion_mark,
    ip,
    is_complete,
    offloaded,
    parts,
    pseudo_sum,
    stored,
)
from virtq.check.net.header import (
    DATA_VALID,
    ECN,
    NEEDS_CSUM,
    RSC_INFO,
    TCPV4,
    TCPV6,
    UDP,
    UDP_L4,
)
from virtq.check.net.nic import Nic, Received
from virtq.features import closed
from virtq.wire.net import DEVICE_ID, GUEST_SEGMENTATION
from virtq.wire.net import NetFeature as N

_SEGMENT_BYTES = 504
_PAYLOAD_BYTES = 2100
_FLOWS = (TCP4, UDP4, TCP6, UDP6)
_SMALL_BYTES = 100
_ALL = N.GUEST_CSUM | GUEST_SEGMENTATION | N.GUEST_ECN


def _nic(ctx: Context, without: int = 0, add: int = 0) -> Nic:
    """With every offload of the driver that is offered but these, and MRG_RXBUF."""
    session = ctx.session()
    chosen = session.offered & (_ALL | N.MRG_RXBUF) & ~without
    return Nic(ctx, closed(int(chosen), DEVICE_ID) | add, session=session)


def _large(nic: Nic, flow: Flow, *, fragments: bool = False, congestion: bool = False) -> Packet:
    return offloaded(
        flow,
        nic.payload(_PAYLOAD_BYTES),
        nic.mac,
        segment_bytes=_SEGMENT_BYTES,
        fragments=fragments,
        congestion=congestion,
    )


def _every_large(nic: Nic) -> list[Packet]:
    return [*(_large(nic, flow) for flow in _FLOWS), _large(nic, UDP4, fragments=True)]


def _to_be_segmented(received: Sequence[Received]) -> list[Received]:
    """Those that the driver has to segment; without any, there is nothing to see."""
    large = [one for one in received if one.header.gso_type]
    if not large:
        raise NotObservable("no packet was left to the driver to segment")
    return large


def _payload_bytes(received: Sequence[Received]) -> int:
    """TCP or UDP payload of all, not of fragments."""
    total = 0
    for one in received:
        found = parts(one.frame)
        total += len(one.frame) - found.payload if found.payload else 0
    return total


def _never(
    ctx: Context, feature: int, segmentation: int, flows: Sequence[Flow], **how: bool
) -> None:
    """Without the feature, large packets come in pieces and never with that segmentation."""
    nic = _nic(ctx, without=feature)
    for flow in flows:
        came = nic.deliver(_large(nic, flow, **how))
        expect(came, "the packet, in pieces", "nothing")
        for received in came:
            kind = received.header.segmentation
            expect(kind != segmentation, f"no gso_type {segmentation}", received.header)
        if not how:
            got = _payload_bytes(came)
            expect(got == _PAYLOAD_BYTES, f"{_PAYLOAD_BYTES} bytes of payload", got)


@case("net.rx.dev.no-tso4", device_id=DEVICE_ID)
def tcp_over_ipv4(ctx: Context) -> None:
    """Without GUEST_TSO4, gso_type is never TCPV4."""
    _never(ctx, N.GUEST_TSO4, TCPV4, [TCP4])


@case("net.rx.dev.no-tso6", device_id=DEVICE_ID)
def tcp_over_ipv6(ctx: Context) -> None:
    """Without GUEST_TSO6, gso_type is never TCPV6."""
    _never(ctx, N.GUEST_TSO6, TCPV6, [TCP6])


@case("net.rx.dev.no-ufo", device_id=DEVICE_ID)
def udp_fragments(ctx: Context) -> None:
    """Without GUEST_UFO, gso_type is never UDP."""
    _never(ctx, N.GUEST_UFO, UDP, [UDP4], fragments=True)


@case("net.rx.dev.no-uso", device_id=DEVICE_ID)
def udp_segments(ctx: Context) -> None:
    """With neither GUEST_USO4 nor GUEST_USO6, gso_type is never UDP_L4."""
    _never(ctx, N.GUEST_USO4 | N.GUEST_USO6, UDP_L4, [UDP4, UDP6])


@case("net.rx.dev.gso-none", device_id=DEVICE_ID)
def no_segmentation_at_all(ctx: Context) -> None:
    """Without any segmentation of the driver, gso_type is NONE."""
    session = ctx.session()
    for features in {int(N.GUEST_CSUM & session.offered), 0}:
        nic = Nic(ctx, features, buffers=0)
        nic.post(nic.header_bytes + 2 * _PAYLOAD_BYTES, 64)
        for received in nic.deliver(*_every_large(nic)):
            kind = received.header.gso_type
            expect(kind == 0, "gso_type NONE (0)", f"{kind:#x}")


@case("net.rx.dev.gso-needs-csum", device_id=DEVICE_ID, needs=N.GUEST_CSUM)
def segmentation_with_a_checksum(ctx: Context) -> None:
    """A gso_type other than NONE comes with NEEDS_CSUM."""
    nic = _nic(ctx)
    for received in _to_be_segmented(nic.deliver(*_every_large(nic))):
        flags = received.header.flags
        expect(flags & NEEDS_CSUM, f"NEEDS_CSUM with {received.header.gso_type}", f"{flags:#x}")


@case("net.rx.dev.gso-size", device_id=DEVICE_ID, needs=N.GUEST_CSUM)
def segmentation_with_its_size(ctx: Context) -> None:
    """A gso_type other than NONE comes with the size of segments in gso_size."""
    nic = _nic(ctx)
    for received in _to_be_segmented(nic.deliver(*_every_large(nic))):
        size = received.header.gso_size
        expect(size == _SEGMENT_BYTES, f"gso_size {_SEGMENT_BYTES}", size)


@case("net.rx.dev.hdrlen", device_id=DEVICE_ID, needs=N.GUEST_CSUM)
def header_length(ctx: Context) -> None:
    """With segmentation of the driver negotiated, hdr_len should be no less than all headers of a
    packet that is to be segmented."""
    nic = _nic(ctx)
    for received in _to_be_segmented(nic.deliver(*_every_large(nic))):
        least = parts(received.frame).payload
        expect(received.header.hdr_len >= least, f"hdr_len {least}", received.header.hdr_len)


@case("net.rx.dev.no-ecn", device_id=DEVICE_ID, needs=N.GUEST_CSUM)
def congestion_not_negotiated(ctx: Context) -> None:
    """Without GUEST_ECN, TCP packets with congestion marks should not be left to the driver to
    segment."""
    nic = _nic(ctx, without=N.GUEST_ECN)
    packets = [_large(nic, flow, congestion=True) for flow in (TCP4, TCP6)]
    came = nic.deliver(*packets)
    expect(came, "the packets, in pieces", "nothing")
    for received in came:
        marked = has_congestion_mark(received.frame, parts(received.frame))
        wrong = received.header.gso_type and marked
        expect(not wrong, "gso_type NONE for a packet with CWR", f"{received.header.gso_type:#x}")


@case("net.rx.dev.ecn-bit", device_id=DEVICE_ID, needs=N.GUEST_ECN)
def congestion_negotiated(ctx: Context) -> None:
    """With GUEST_ECN, TCP packets with congestion marks that are to be segmented have the ECN bit
    in gso_type."""
    nic = _nic(ctx)
    packets = [_large(nic, flow, congestion=True) for flow in (TCP4, TCP6)]
    for received in _to_be_segmented(nic.deliver(*packets)):
        if has_congestion_mark(received.frame, parts(received.frame)):
            kind = received.header.gso_type
            expect(kind & ECN, "the ECN bit in gso_type", f"{kind:#x}")


@case("net.rx.dev.rsc-info", device_id=DEVICE_ID, needs=N.RSC_EXT | N.GUEST_CSUM)
def coalesced_segments(ctx: Context) -> None:
    """With RSC_EXT, a TCP packet that is to be segmented comes with RSC_INFO, the number of its
    segments and that of duplicated acknowledgements, here 0."""
    session = ctx.session()
    host = N.CSUM | (N.HOST_TSO4 if session.offered & N.HOST_TSO4 else N.HOST_TSO6)
    nic = _nic(ctx, add=int(N.RSC_EXT | host))
    most = -(-_PAYLOAD_BYTES // _SEGMENT_BYTES)
    packets = [_large(nic, flow) for flow in (TCP4, TCP6)]
    for received in _to_be_segmented(nic.deliver(*packets)):
        header = received.header
        expect(header.flags & RSC_INFO, "the flag RSC_INFO", f"flags {header.flags:#x}")
        found = parts(received.frame)
        count = -(-(len(received.frame) - found.payload) // _SEGMENT_BYTES)
        expect(header.csum_start == count <= most, f"{count} segments", header.csum_start)
        expect(header.csum_offset == 0, "0 duplicated acknowledgements", header.csum_offset)


@case("net.rx.dev.no-rsc-info", device_id=DEVICE_ID, needs=N.GUEST_CSUM)
def no_coalesced_segments(ctx: Context) -> None:
    """Without RSC_EXT, RSC_INFO stays clear."""
    nic = _nic(ctx)
    small = [ip(flow, nic.payload(_SMALL_BYTES), nic.mac) for flow in _FLOWS]
    for received in nic.deliver(*_every_large(nic), *small):
        flags = received.header.flags
        expect(not flags & RSC_INFO, "RSC_INFO clear", f"flags {flags:#x}")


def _unfinished(ctx: Context) -> list[Received]:
    """Packets whose checksum is left to the driver."""
    nic = _nic(ctx)
    small = [offloaded(flow, nic.payload(_SMALL_BYTES), nic.mac) for flow in _FLOWS]
    came = nic.deliver(*small, *(_large(nic, flow) for flow in _FLOWS))
    unfinished = [received for received in came if received.header.flags & NEEDS_CSUM]
    if not unfinished:
        raise NotObservable("no packet had NEEDS_CSUM")
    return unfinished


@case("net.rx.dev.needs-csum-pseudo", device_id=DEVICE_ID, needs=N.GUEST_CSUM)
def an_unfinished_checksum(ctx: Context) -> None:
    """With NEEDS_CSUM, the checksum in the packet is the sum over the pseudo header."""
    for received in _unfinished(ctx):
        found = parts(received.frame)
        value, sum_ = stored(received.frame, found), pseudo_sum(received.frame, found)
        expect(value == sum_, f"the pseudo header's sum {sum_:#06x}", f"{value:#06x}")


@case("net.rx.dev.needs-csum-offsets", device_id=DEVICE_ID, needs=N.GUEST_CSUM)
def finishing_a_checksum(ctx: Context) -> None:
    """With NEEDS_CSUM, csum_start and csum_offset lead to a right checksum."""
    for received in _unfinished(ctx):
        header, frame = received.header, received.frame
        if header.flags & RSC_INFO:
            continue
        fits = header.csum_start + header.csum_offset + 2 <= len(frame)
        expect(fits, "a checksum within the packet", header)
        done = finish(frame, header.csum_start, header.csum_offset)
        expect(is_complete(done, parts(done)), "a right checksum", f"{header}, {done.hex()}")


def _spoiled(nic: Nic) -> list[bytes]:
    """Finished packets with a bit of the payload turned over."""
    frames = [bytearray(ip(flow, nic.payload(_SMALL_BYTES), nic.mac)) for flow in _FLOWS]
    for frame in frames:
        frame[-1] ^= 0x10
    return [bytes(frame) for frame in frames]


@case("net.rx.dev.needs-csum-validate", device_id=DEVICE_ID, needs=N.GUEST_CSUM)
def a_wrong_checksum_is_not_left_to_finish(ctx: Context) -> None:
    """A packet whose finished checksum is wrong does not come with NEEDS_CSUM, which would make it
    right."""
    nic = _nic(ctx)
    for received in nic.deliver(*_spoiled(nic)):
        flags = received.header.flags
        expect(not flags & NEEDS_CSUM, "NEEDS_CSUM clear", f"flags {flags:#x}")


@case("net.rx.dev.data-valid-checked", device_id=DEVICE_ID, needs=N.GUEST_CSUM)
def a_wrong_checksum_is_not_valid(ctx: Context) -> None:
    """A packet whose checksum is wrong does not come with DATA_VALID."""
    nic = _nic(ctx)
    for received in nic.deliver(*_spoiled(nic)):
        flags = received.header.flags
        expect(not flags & DATA_VALID, "DATA_VALID clear", f"flags {flags:#x}")
