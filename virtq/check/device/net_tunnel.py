"""Segmentation of packets in UDP tunnels that a driver takes over on packets it receives
(5.1.6.4)."""

from __future__ import annotations

from collections.abc import Iterator

from virtq.check.case import NotObservable, case, expect
from virtq.check.context import Context
from virtq.check.net.frames import (
    TCP4,
    TCP6,
    UDP4,
    UDP6,
    Parts,
    is_complete,
    offloaded,
    parts,
    pseudo_sum,
    stored,
    tunnelled,
)
from virtq.check.net.header import (
    DATA_VALID,
    TUNNEL,
    TUNNEL_CSUM,
    TUNNEL_IPV4,
    TUNNEL_IPV6,
)
from virtq.check.net.nic import Nic, Received, with_needs
from virtq.features import closed
from virtq.wire.net import DEVICE_ID, GUEST_SEGMENTATION
from virtq.wire.net import NetFeature as N

_TUNNEL, _CSUM = N.GUEST_UDP_TUNNEL_GSO, N.GUEST_UDP_TUNNEL_GSO_CSUM
_PAYLOAD_BYTES, _SEGMENT_BYTES = 2100, 500
_GENEVE_HEADER_BYTES = 8


def _without_tunnels(ctx: Context) -> Nic:
    session = ctx.session()
    features = session.offered & (N.GUEST_CSUM | GUEST_SEGMENTATION | N.MRG_RXBUF)
    return Nic(ctx, closed(int(features), DEVICE_ID), session=session)


def _with_tunnels(ctx: Context, feature: int = _TUNNEL) -> Nic:
    return Nic(ctx, with_needs(int(feature)) | int(N.MRG_RXBUF))


def _deliver(nic: Nic, *, checksum: bool) -> list[Received]:
    inner = [
        offloaded(flow, nic.payload(_PAYLOAD_BYTES), nic.mac, segment_bytes=_SEGMENT_BYTES)
        for flow in (TCP4, TCP6, UDP4)
    ]
    outer = (UDP4, UDP6)
    packets = [tunnelled(one, nic.mac, checksum=checksum, outer=o) for one in inner for o in outer]
    came = nic.deliver(*packets)
    expect(came, "the tunnelled packets, whole or in pieces", "nothing")
    return came


def _large(nic: Nic, *, checksum: bool = False) -> Iterator[tuple[Received, Parts, Parts]]:
    """Tunnelled packets that the driver has to segment, with their outer and inner headers."""
    large = [one for one in _deliver(nic, checksum=checksum) if one.header.gso_type]
    if not large:
        raise NotObservable("no tunnelled packet was left to the driver to segment")
    for received in large:
        outer = parts(received.frame)
        yield received, outer, parts(received.frame, outer.payload + _GENEVE_HEADER_BYTES)


@case("net.rx.dev.no-tunnel-bits", device_id=DEVICE_ID)
def no_tunnel_bits(ctx: Context) -> None:
    """Without GUEST_UDP_TUNNEL_GSO, no tunnel bit is in gso_type."""
    for received in _deliver(_without_tunnels(ctx), checksum=False):
        kind = received.header.gso_type
        expect(not kind & TUNNEL, "no tunnel bit", f"gso_type {kind:#x}")


@case("net.rx.dev.no-tunnel-gso", device_id=DEVICE_ID)
def no_large_tunnelled_packets(ctx: Context) -> None:
    """Without GUEST_UDP_TUNNEL_GSO, tunnelled packets are not left to the driver to segment, under
    whatever gso_type."""
    for received in _deliver(_without_tunnels(ctx), checksum=False):
        kind = received.header.gso_type
        expect(kind == 0, "gso_type NONE for a tunnelled packet", f"gso_type {kind:#x}")


@case("net.rx.dev.no-tunnel-csum", device_id=DEVICE_ID)
def no_tunnel_checksum(ctx: Context) -> None:
    """Without GUEST_UDP_TUNNEL_GSO_CSUM, the flag UDP_TUNNEL_CSUM stays clear."""
    session = ctx.session()
    features = with_needs(_TUNNEL) if session.offered & _TUNNEL else 0
    nic = Nic(ctx, features | int(N.MRG_RXBUF & session.offered), session=session)
    for received in _deliver(nic, checksum=True):
        flags = received.header.flags
        expect(not flags & TUNNEL_CSUM, "UDP_TUNNEL_CSUM clear", f"flags {flags:#x}")


@case("net.rx.dev.tunnel-bit", device_id=DEVICE_ID, needs=_TUNNEL)
def the_bit_of_the_inner_protocol(ctx: Context) -> None:
    """The tunnel bit of a tunnelled packet suits its inner network header."""
    for received, _, inner in _large(_with_tunnels(ctx)):
        bit = TUNNEL_IPV4 if inner.version == 4 else TUNNEL_IPV6
        kind = received.header.gso_type & TUNNEL
        expect(kind == bit, f"the bit {bit:#x} for IPv{inner.version} inside", f"{kind:#x}")


@case("net.rx.dev.tunnel-offsets", device_id=DEVICE_ID, needs=_TUNNEL)
def where_the_headers_are(ctx: Context) -> None:
    """outer_th_offset is that of the outer UDP header, inner_nh_offset that of the inner network
    header."""
    for received, outer, inner in _large(_with_tunnels(ctx)):
        header = received.header
        offsets = header.outer_th_offset, header.inner_nh_offset
        right = outer.transport, inner.network
        expect(offsets == right, f"the offsets {right}", offsets)


@case(
    "net.rx.dev.tunnel-no-outer-csum",
    "net.rx.dev.no-outer-csum-gso",
    device_id=DEVICE_ID,
    needs=_TUNNEL,
)
def no_outer_checksum_to_finish(ctx: Context) -> None:
    """Without GUEST_UDP_TUNNEL_GSO_CSUM, the outer checksum of a tunnelled packet that is to be
    segmented is not left to the driver, neither with its flag nor without."""
    nic = _with_tunnels(ctx)
    for checksum in (True, False):
        for received in _deliver(nic, checksum=checksum):
            if not received.header.gso_type:
                continue
            flags = received.header.flags
            expect(not flags & TUNNEL_CSUM, "UDP_TUNNEL_CSUM clear", f"flags {flags:#x}")
            _expect_none_or_right(received)


def _expect_none_or_right(received: Received) -> None:
    outer = parts(received.frame)
    value = stored(received.frame, outer)
    right = value == 0 or is_complete(received.frame, outer)
    expect(right, "an outer checksum that is 0 or right", f"{value:#06x}")


@case("net.rx.dev.no-data-valid-with-tunnel", device_id=DEVICE_ID, needs=_TUNNEL)
def no_valid_data(ctx: Context) -> None:
    """DATA_VALID is never there with a tunnel bit."""
    for received, _, _ in _large(_with_tunnels(ctx)):
        header = received.header
        wrong = header.gso_type & TUNNEL and header.flags & DATA_VALID
        expect(not wrong, "DATA_VALID clear", f"flags {header.flags:#x}")


@case("net.rx.dev.tunnel-csum-pseudo", device_id=DEVICE_ID, needs=_CSUM)
def an_unfinished_outer_checksum(ctx: Context) -> None:
    """With UDP_TUNNEL_CSUM, the outer checksum is the sum over the outer pseudo header."""
    seen = 0
    for received, outer, _ in _large(_with_tunnels(ctx, _CSUM), checksum=True):
        if received.header.flags & TUNNEL_CSUM:
            value, sum_ = stored(received.frame, outer), pseudo_sum(received.frame, outer)
            expect(value == sum_, f"the outer pseudo header's sum {sum_:#06x}", f"{value:#06x}")
            seen += 1
    if not seen:
        raise NotObservable("no packet had UDP_TUNNEL_CSUM")


@case("net.rx.dev.tunnel-csum-zero-or-full", device_id=DEVICE_ID, needs=_CSUM)
def an_outer_checksum_without_the_flag(ctx: Context) -> None:
    """Without the flag UDP_TUNNEL_CSUM, the outer checksum is 0 or right."""
    nic = _with_tunnels(ctx, _CSUM)
    for checksum in (False, True):
        for received in _deliver(nic, checksum=checksum):
            if not received.header.flags & TUNNEL_CSUM:
                _expect_none_or_right(received)
