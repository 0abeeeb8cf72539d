"""The hash of incoming packets (5.1.6.4.3): which fields, and Toeplitz over them."""

from __future__ import annotations

from virtq.check.net.frames import (
    GENEVE_PORT,
    GRE_PROTOCOL,
    IPIP_PROTOCOL,
    IPV4,
    TCP_PROTOCOL,
    UDP_PROTOCOL,
    VXLAN_PORT,
    Parts,
    network_parts,
    parts,
)

IPV4_TYPE, TCPV4_TYPE, UDPV4_TYPE, IPV6_TYPE, TCPV6_TYPE, UDPV6_TYPE = (1 << i for i in range(6))
TUNNEL_GRE, TUNNEL_VXLAN, TUNNEL_GENEVE, TUNNEL_IPIP = 1, 1 << 4, 1 << 6, 1 << 7
_TUNNEL_PORTS = {VXLAN_PORT: TUNNEL_VXLAN, GENEVE_PORT: TUNNEL_GENEVE}


def toeplitz(key: bytes, data: bytes) -> int:
    """32 bits. The key has at least four bytes more than the data."""
    window = int.from_bytes(key)
    bits = 8 * len(key)
    result = 0
    for i in range(8 * len(data)):
        if data[i // 8] >> 7 - i % 8 & 1:
            result ^= window >> bits - 32 - i & 0xFFFF_FFFF
    return result


def packet_hash(frame: bytes, types: int, key: bytes, tunnels: int = 0) -> tuple[int, int]:
    """The value of `hash_report`, and the hash; both 0 for a packet that none is calculated for."""
    found = _innermost(frame, tunnels)
    if not found.network:
        return 0, 0
    first = 0 if found.version == 4 else 3
    choice = {TCP_PROTOCOL: 1, UDP_PROTOCOL: 2}.get(found.protocol if found.transport else 0)
    at = found.network
    addresses = frame[at + 12 : at + 20] if found.version == 4 else frame[at + 8 : at + 40]
    if choice and types & 1 << first + choice:
        ports = frame[found.transport : found.transport + 4]
        return first + choice + 1, toeplitz(key, addresses + ports)
    if types & 1 << first:
        return first + 1, toeplitz(key, addresses)
    return 0, 0


def _innermost(frame: bytes, tunnels: int) -> Parts:
    """The headers that count: the inner ones of a tunnel that is enabled."""
    outer = parts(frame)
    if outer.protocol == UDP_PROTOCOL and outer.transport:
        port = int.from_bytes(frame[outer.transport + 2 : outer.transport + 4])
        if _TUNNEL_PORTS.get(port, 0) & tunnels:
            return parts(frame, outer.payload + 8)
    end = outer.network + 20
    if outer.version == 4 and outer.protocol == IPIP_PROTOCOL and tunnels & TUNNEL_IPIP:
        return network_parts(frame, end, IPV4)
    if outer.version == 4 and outer.protocol == GRE_PROTOCOL and tunnels & TUNNEL_GRE:
        return network_parts(frame, end + 4, frame[end + 2 : end + 4])
    return outer
