"""Ethernet frames: made, taken apart, completed, cut into segments."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from virtq.check.net.header import (
    ECN,
    NEEDS_CSUM,
    TCPV4,
    TCPV6,
    TUNNEL,
    TUNNEL_CSUM,
    TUNNEL_IPV4,
    TUNNEL_IPV6,
    UDP,
    UDP_L4,
    Header,
)
from virtq.wire.net import ETHERNET_HEADER_BYTES, VLAN_TAG_BYTES

TCP_PROTOCOL, UDP_PROTOCOL, IPIP_PROTOCOL, GRE_PROTOCOL = 6, 17, 4, 47
IPV4, IPV6, VLAN = b"\x08\x00", b"\x86\xdd", b"\x81\x00"
EXPERIMENT = b"\x88\xb5"
NOBODY = b"\x02virtq"
GENEVE_PORT, VXLAN_PORT = 6081, 4789
_TUNNEL_HEADER_BYTES = 8
_CHECKSUM_AT = {TCP_PROTOCOL: 16, UDP_PROTOCOL: 6}
_FIN, _PSH, _ACK, _ECE, _CWR = 1, 8, 16, 64, 128


PLAIN = Header()


@dataclass(frozen=True)
class Packet:
    """A frame, and what its header says of work that is still to be done on it."""

    frame: bytes
    header: Header = PLAIN


class Flow(NamedTuple):
    """Addresses and ports of a conversation, one direction of it. An address of four bytes makes it
    IPv4, one of 16 IPv6."""

    source: bytes = b"\x0a\x00\x00\x01"
    target: bytes = b"\x0a\x00\x00\x02"
    source_port: int = 40000
    target_port: int = 50000
    protocol: int = UDP_PROTOCOL

    @property
    def reverse(self) -> Flow:
        return Flow(self.target, self.source, self.target_port, self.source_port, self.protocol)


TCP4 = Flow(protocol=TCP_PROTOCOL)
UDP4 = Flow()
TCP6 = Flow(b"\xfd" + bytes(14) + b"\1", b"\xfd" + bytes(14) + b"\2", protocol=TCP_PROTOCOL)
UDP6 = TCP6._replace(protocol=UDP_PROTOCOL)


# Checksums (RFC 1071)


def ones_sum(data: bytes, start: int = 0) -> int:
    """The 16-bit ones' complement sum."""
    words = struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2))
    total: int = start + sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def complemented(total: int, protocol: int = TCP_PROTOCOL) -> int:
    """A checksum as it is stored: for UDP, 0 is written as 0xffff."""
    value = ~total & 0xFFFF
    return 0xFFFF if not value and protocol == UDP_PROTOCOL else value


class Parts(NamedTuple):
    """Where the headers of a frame are, as offsets; `transport` and `payload` are 0 for a frame
    that is not TCP or UDP over IP, `network` for one that is not IP."""

    network: int = 0
    version: int = 0
    protocol: int = 0
    transport: int = 0
    payload: int = 0

    @property
    def checksum(self) -> int:
        return self.transport + _CHECKSUM_AT[self.protocol]


def parts(frame: bytes, start: int = 0) -> Parts:
    """Take a frame apart that begins at `start`."""
    at = start + 12
    kind = frame[at : at + 2]
    if kind == VLAN:
        at += VLAN_TAG_BYTES
        kind = frame[at : at + 2]
    return network_parts(frame, at + 2, kind)


def network_parts(frame: bytes, at: int, kind: bytes) -> Parts:
    """The same from the network header on, which `kind` tells."""
    if kind == IPV4 and len(frame) >= at + 20:
        version, protocol, transport = 4, frame[at + 9], at + (frame[at] & 15) * 4
        if int.from_bytes(frame[at + 6 : at + 8]) & 0x1FFF:
            return Parts(at, version, protocol)  # a fragment, not the first
    elif kind == IPV6 and len(frame) >= at + 40:
        version, protocol, transport = 6, frame[at + 6], at + 40
    else:
        return Parts()
    if protocol == TCP_PROTOCOL and len(frame) >= transport + 20:
        return Parts(at, version, protocol, transport, transport + (frame[transport + 12] >> 4) * 4)
    if protocol == UDP_PROTOCOL and len(frame) >= transport + 8:
        return Parts(at, version, protocol, transport, transport + 8)
    return Parts(at, version, protocol)


def pseudo_sum(frame: bytes, found: Parts) -> int:
    """The sum over the pseudo header of the transport protocol."""
    length = len(frame) - found.transport
    at = found.network
    addresses = frame[at + 12 : at + 20] if found.version == 4 else frame[at + 8 : at + 40]
    return ones_sum(addresses, found.protocol + (length & 0xFFFF) + (length >> 16))


def is_complete(frame: bytes, found: Parts) -> bool:
    """Whether the transport checksum is right."""
    return ones_sum(frame[found.transport :], pseudo_sum(frame, found)) == 0xFFFF


def stored(frame: bytes, found: Parts) -> int:
    """The transport checksum as it stands."""
    return int.from_bytes(frame[found.checksum : found.checksum + 2])


def finish(frame: bytes, start: int, offset: int) -> bytes:
    """A checksum from `start` to the end, put at `offset` after it (5.1.6.2)."""
    raw = bytearray(frame)
    value = complemented(ones_sum(frame[start:]), UDP_PROTOCOL)
    struct.pack_into("!H", raw, start + offset, value)
    return bytes(raw)


def completed(frame: bytes, found: Parts, *, transport: bool = True) -> bytes:
    """With the lengths of the network header and of UDP and the checksum of IPv4 right, and with
    `transport` its checksum."""
    raw = bytearray(frame)
    at = found.network
    if found.version == 4:
        struct.pack_into("!H", raw, at + 2, len(raw) - at)
        raw[at + 10 : at + 12] = b"\0\0"
        header = bytes(raw[at : at + (raw[at] & 15) * 4])
        struct.pack_into("!H", raw, at + 10, complemented(ones_sum(header)))
    else:
        struct.pack_into("!H", raw, at + 4, len(raw) - at - 40)
    if found.protocol == UDP_PROTOCOL and found.transport:
        struct.pack_into("!H", raw, found.transport + 4, len(raw) - found.transport)
    if transport and found.transport:
        raw[found.checksum : found.checksum + 2] = b"\0\0"
        total = ones_sum(bytes(raw[found.transport :]), pseudo_sum(bytes(raw), found))
        struct.pack_into("!H", raw, found.checksum, complemented(total, found.protocol))
    return bytes(raw)


def partial(frame: bytes, found: Parts) -> bytes:
    """With the sum over the pseudo header where the checksum belongs."""
    raw = bytearray(frame)
    struct.pack_into("!H", raw, found.checksum, pseudo_sum(frame, found))
    return bytes(raw)


# Making frames


def ethernet(payload: bytes, to: bytes, vlan: int | None = None) -> bytes:
    """A frame of 60 bytes at least; with `vlan`, with a tag (IEEE 802.1Q)."""
    tag = b"" if vlan is None else VLAN + vlan.to_bytes(2)
    return (to + NOBODY + tag + EXPERIMENT + payload).ljust(60, b"\0")


def _network(flow: Flow, length: int, congestion: bool = False) -> bytes:
    """The header of IPv4 or IPv6 before `length` bytes; `congestion`: with ECT(0)."""
    mark = 2 if congestion else 0
    if len(flow.source) == 4:
        head = struct.pack("!BBHHHBBH", 0x45, mark, 20 + length, 7, 0, 64, flow.protocol, 0)
        return head + flow.source + flow.target
    head = struct.pack("!IHBB", 6 << 28 | mark << 20, length, flow.protocol, 64)
    return head + flow.source + flow.target


def ip(flow: Flow, payload: bytes, to: bytes, *, congestion: bool = False) -> bytes:
    """A TCP or UDP packet with all checksums right. `congestion`: TCP with CWR, as ECN has it."""
    if flow.protocol == TCP_PROTOCOL:
        flags = _ACK | _PSH | (_CWR if congestion else 0)
        head = struct.pack(
            "!HHIIBBHHH",
            *(flow.source_port, flow.target_port, 1, 1, 5 << 4, flags, 1024, 0, 0),
        )
    elif flow.protocol == UDP_PROTOCOL:
        head = struct.pack("!HHHH", flow.source_port, flow.target_port, 8 + len(payload), 0)
    else:
        head = b""
    kind = IPV4 if len(flow.source) == 4 else IPV6
    body = head + payload
    frame = to + NOBODY + kind + _network(flow, len(body), congestion) + body
    return completed(frame, parts(frame))


def offloaded(
    flow: Flow,
    payload: bytes,
    to: bytes,
    *,
    segment_bytes: int = 0,
    fragments: bool = False,
    congestion: bool = False,
) -> Packet:
    """A packet whose checksum is not finished. `segment_bytes`: larger ones are to be cut (MSS);
    with `fragments`, UDP into IP fragments instead of datagrams."""
    frame = ip(flow, payload, to, congestion=congestion)
    found = parts(frame)
    gso = 0
    if segment_bytes:
        v6, tcp = found.version == 6, flow.protocol == TCP_PROTOCOL
        gso = (TCPV6 if v6 else TCPV4) if tcp else UDP if fragments else UDP_L4
        gso |= ECN if congestion else 0
    header = Header(
        flags=NEEDS_CSUM,
        gso_type=gso,
        hdr_len=found.payload if gso else 0,
        gso_size=segment_bytes,
        csum_start=found.transport,
        csum_offset=found.checksum - found.transport,
    )
    return Packet(partial(frame, found), header)


def tunnelled(inner: Packet, to: bytes, *, checksum: bool = False, outer: Flow = UDP4) -> Packet:
    """A packet with something to be done on it, in a Geneve tunnel. `checksum`: the outer UDP
    checksum is not finished either; otherwise there is none (0)."""
    flow = outer._replace(target_port=GENEVE_PORT)
    head = struct.pack("!BBHI", 0, 0, 0x6558, 0)
    frame = ip(flow, head + inner.frame, to)
    found = parts(frame)
    raw = bytearray(frame)
    total = pseudo_sum(frame, found) if checksum else 0
    struct.pack_into("!H", raw, found.checksum, total)
    start = found.payload + _TUNNEL_HEADER_BYTES
    within = parts(frame, start)
    header = inner.header
    bit = TUNNEL_IPV4 if within.version == 4 else TUNNEL_IPV6
    header = header._replace(
        flags=header.flags | (TUNNEL_CSUM if checksum else 0),
        gso_type=header.gso_type | bit,
        hdr_len=within.payload,
        csum_start=within.transport,
        outer_th_offset=found.transport,
        inner_nh_offset=within.network,
    )
    return Packet(bytes(raw), header)


def encapsulated(inner: bytes, to: bytes, outer: Flow) -> bytes:
    """A finished frame in a tunnel: UDP to a Geneve or VXLAN port, else IPIP or GRE (RFC 2784) by
    the protocol of the outer flow."""
    if outer.protocol == IPIP_PROTOCOL:
        return ip(outer, inner[ETHERNET_HEADER_BYTES:], to)
    if outer.protocol == GRE_PROTOCOL:
        return ip(outer, b"\0\0" + inner[12:14] + inner[ETHERNET_HEADER_BYTES:], to)
    if outer.target_port == VXLAN_PORT:
        return ip(outer, struct.pack("!II", 0x08000000, 0x100) + inner, to)
    return ip(outer, struct.pack("!BBHI", 0, 0, 0x6558, 0) + inner, to)


# Doing what a header asks for


def whole(packet: Packet) -> list[bytes]:
    """The frames that a packet stands for, each complete: its checksums finished, cut where it has
    to be."""
    header, frame = packet.header, packet.frame
    if not header.flags & NEEDS_CSUM:
        return [frame]
    tunnel = bool(header.gso_type & TUNNEL)
    outer = parts(frame) if tunnel else None
    pieces: list[bytes] = []
    start = outer.payload + _TUNNEL_HEADER_BYTES if outer else 0
    inner = parts(frame, start)
    match header.segmentation:
        case 0:
            pieces = [finish(frame, header.csum_start, header.csum_offset)]
        case h if h in (TCPV4, TCPV6, UDP_L4):
            pieces = [completed(piece, inner) for piece in _cut(frame, inner, header.gso_size)]
        case h if h == UDP:
            pieces = _fragments(completed(frame, inner), inner, header.gso_size)
    if outer is None:
        return pieces
    # An outer checksum of 0 is none, and stays it.
    return [completed(piece, outer, transport=stored(frame, outer) != 0) for piece in pieces]


def _cut(frame: bytes, found: Parts, segment_bytes: int) -> list[bytes]:
    head, body = frame[: found.payload], frame[found.payload :]
    pieces: list[bytes] = []
    for at in range(0, len(body), segment_bytes):
        raw = bytearray(head + body[at : at + segment_bytes])
        if found.version == 4:
            identification = found.network + 4
            number = int.from_bytes(raw[identification : identification + 2]) + len(pieces)
            struct.pack_into("!H", raw, identification, number & 0xFFFF)
        if found.protocol == TCP_PROTOCOL:
            sequence = int.from_bytes(raw[found.transport + 4 : found.transport + 8]) + at
            struct.pack_into("!I", raw, found.transport + 4, sequence & 0xFFFF_FFFF)
            if at:
                raw[found.transport + 13] &= ~_CWR & 0xFF
            if at + segment_bytes < len(body):
                raw[found.transport + 13] &= ~(_FIN | _PSH) & 0xFF
        pieces.append(bytes(raw))
    return pieces


def _fragments(frame: bytes, found: Parts, fragment_bytes: int) -> list[bytes]:
    """IPv4 only."""
    head, body = frame[: found.transport], frame[found.transport :]
    step = fragment_bytes & ~7
    pieces: list[bytes] = []
    for at in range(0, len(body), step):
        raw = bytearray(head + body[at : at + step])
        more = 0x2000 if at + step < len(body) else 0
        struct.pack_into("!H", raw, found.network + 6, more | at // 8)
        pieces.append(completed(bytes(raw), found._replace(protocol=0, transport=0)))
    return pieces


def has_congestion_mark(frame: bytes, found: Parts) -> bool:
    """Whether a TCP packet has CWR or ECE set."""
    return bool(found.protocol == TCP_PROTOCOL and frame[found.transport + 13] & (_CWR | _ECE))
