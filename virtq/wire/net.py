"""The network device on the wire (VIRTIO 1.4, section 5.1): features, configuration, packet
header, control commands."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import NamedTuple

from virtq.wire.bits import unbounded_complement
from virtq.wire.layout import bytes6, u8, u16, u32

DEVICE_ID = 1
HEADER_BYTES = 12
ETHERNET_HEADER_BYTES = 14
VLAN_TAG_BYTES = 4
MAC_BYTES = 6
MTU_MIN = 68
MTU_MAX = 65535
PAIRS_MAX = 0x8000
BIG_PACKET_BYTES = 65589  # the largest packet that segmentation offload lets through (5.1.6.3)
BROADCAST = b"\xff" * MAC_BYTES


@unbounded_complement
class NetFeature(IntFlag):
    """Feature bits of the network device (5.1.3)."""

    CSUM = 1 << 0
    GUEST_CSUM = 1 << 1
    CTRL_GUEST_OFFLOADS = 1 << 2
    MTU = 1 << 3
    MAC = 1 << 5
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    GUEST_ECN = 1 << 9
    GUEST_UFO = 1 << 10
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    HOST_ECN = 1 << 13
    HOST_UFO = 1 << 14
    MRG_RXBUF = 1 << 15
    STATUS = 1 << 16
    CTRL_VQ = 1 << 17
    CTRL_RX = 1 << 18
    CTRL_VLAN = 1 << 19
    CTRL_RX_EXTRA = 1 << 20
    GUEST_ANNOUNCE = 1 << 21
    MQ = 1 << 22
    CTRL_MAC_ADDR = 1 << 23
    DEVICE_STATS = 1 << 50
    HASH_TUNNEL = 1 << 51
    VQ_NOTF_COAL = 1 << 52
    NOTF_COAL = 1 << 53
    GUEST_USO4 = 1 << 54
    GUEST_USO6 = 1 << 55
    HOST_USO = 1 << 56
    HASH_REPORT = 1 << 57
    GUEST_HDRLEN = 1 << 59
    RSS = 1 << 60
    RSC_EXT = 1 << 61
    STANDBY = 1 << 62
    SPEED_DUPLEX = 1 << 63
    RSS_CONTEXT = 1 << 64
    GUEST_UDP_TUNNEL_GSO = 1 << 65
    GUEST_UDP_TUNNEL_GSO_CSUM = 1 << 66
    HOST_UDP_TUNNEL_GSO = 1 << 67
    HOST_UDP_TUNNEL_GSO_CSUM = 1 << 68
    OUT_NET_HEADER = 1 << 69
    IPSEC = 1 << 70


N = NetFeature

# What each feature needs (5.1.3.1): every entry of the tuple, and of an entry any one bit.
PREREQUISITES: dict[NetFeature, tuple[NetFeature, ...]] = {
    N.GUEST_TSO4: (N.GUEST_CSUM,),
    N.GUEST_TSO6: (N.GUEST_CSUM,),
    N.GUEST_ECN: (N.GUEST_TSO4 | N.GUEST_TSO6,),
    N.GUEST_UFO: (N.GUEST_CSUM,),
    N.GUEST_USO4: (N.GUEST_CSUM,),
    N.GUEST_USO6: (N.GUEST_CSUM,),
    N.GUEST_UDP_TUNNEL_GSO: (N.GUEST_TSO4, N.GUEST_TSO6, N.GUEST_USO4, N.GUEST_USO6),
    N.GUEST_UDP_TUNNEL_GSO_CSUM: (N.GUEST_UDP_TUNNEL_GSO,),
    N.HOST_TSO4: (N.CSUM,),
    N.HOST_TSO6: (N.CSUM,),
    N.HOST_ECN: (N.HOST_TSO4 | N.HOST_TSO6,),
    N.HOST_UFO: (N.CSUM,),
    N.HOST_USO: (N.CSUM,),
    N.HOST_UDP_TUNNEL_GSO: (N.HOST_TSO4, N.HOST_TSO6, N.HOST_USO),
    N.HOST_UDP_TUNNEL_GSO_CSUM: (N.HOST_UDP_TUNNEL_GSO,),
    N.CTRL_RX: (N.CTRL_VQ,),
    N.CTRL_VLAN: (N.CTRL_VQ,),
    N.CTRL_RX_EXTRA: (N.CTRL_VQ,),
    N.GUEST_ANNOUNCE: (N.CTRL_VQ,),
    N.MQ: (N.CTRL_VQ,),
    N.CTRL_MAC_ADDR: (N.CTRL_VQ,),
    N.CTRL_GUEST_OFFLOADS: (N.CTRL_VQ,),
    N.NOTF_COAL: (N.CTRL_VQ,),
    N.VQ_NOTF_COAL: (N.CTRL_VQ,),
    N.DEVICE_STATS: (N.CTRL_VQ,),
    N.HASH_REPORT: (N.CTRL_VQ,),
    N.RSC_EXT: (N.HOST_TSO4 | N.HOST_TSO6,),
    N.RSS: (N.CTRL_VQ,),
    N.HASH_TUNNEL: (N.CTRL_VQ, N.RSS | N.HASH_REPORT),
    N.RSS_CONTEXT: (N.CTRL_VQ, N.RSS),
}

# Offloads that GUEST_OFFLOADS_SET can turn on and off while the device runs.
GUEST_OFFLOADS = (
    N.GUEST_CSUM
    | N.GUEST_TSO4
    | N.GUEST_TSO6
    | N.GUEST_ECN
    | N.GUEST_UFO
    | N.GUEST_USO4
    | N.GUEST_USO6
)
GUEST_SEGMENTATION = N.GUEST_TSO4 | N.GUEST_TSO6 | N.GUEST_UFO | N.GUEST_USO4 | N.GUEST_USO6
HOST_SEGMENTATION = N.HOST_TSO4 | N.HOST_TSO6 | N.HOST_UFO | N.HOST_USO


@unbounded_complement
class LinkStatus(IntFlag):
    """Bits of the configuration field `status` (5.1.4)."""

    LINK_UP = 1
    ANNOUNCE = 2


@unbounded_complement
class HeaderFlag(IntFlag):
    """Bits of the packet header's `flags` (5.1.6)."""

    NEEDS_CSUM = 1
    DATA_VALID = 2
    RSC_INFO = 4


class Gso(IntEnum):
    """The packet header's `gso_type` without the ECN bit (5.1.6)."""

    NONE = 0
    TCPV4 = 1
    UDP = 3
    TCPV6 = 4
    UDP_L4 = 5


GSO_ECN = 0x80


class NetHeader(NamedTuple):
    """The 12 bytes before each packet (5.1.6), for the features that virtq negotiates."""

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    num_buffers: int = 0

    @classmethod
    def parse(cls, data: bytes | memoryview) -> NetHeader:
        """From the first 12 bytes of `data`. Raises struct.error if there are fewer."""
        return cls(*_HEADER.unpack_from(data))

    def pack(self) -> bytes:
        return _HEADER.pack(*self)


_HEADER = struct.Struct("<BBHHHHH")
NO_OFFLOAD = bytes(HEADER_BYTES)
NUM_BUFFERS_OFFSET = 10


@dataclass
class NetConfig:
    """The configuration space (5.1.4); speed in Mbit/s."""

    mac: bytes6 = bytes(MAC_BYTES)
    status: u16 = 0
    max_virtqueue_pairs: u16 = 1
    mtu: u16 = 0
    speed: u32 = 0xFFFFFFFF
    duplex: u8 = 0xFF
    rss_max_key_size: u8 = 0
    rss_max_indirection_table_length: u16 = 0
    supported_hash_types: u32 = 0
    supported_tunnel_types: u32 = 0


# Which feature makes a configuration field exist (5.1.4).
FIELD_FEATURE: dict[str, NetFeature] = {
    "mac": N.MAC,
    "status": N.STATUS,
    "max_virtqueue_pairs": N.MQ | N.RSS,
    "mtu": N.MTU,
    "speed": N.SPEED_DUPLEX,
    "duplex": N.SPEED_DUPLEX,
    "rss_max_key_size": N.RSS | N.HASH_REPORT,
    "rss_max_indirection_table_length": N.RSS,
    "supported_hash_types": N.RSS | N.HASH_REPORT,
    "supported_tunnel_types": N.HASH_TUNNEL,
}


class Ack(IntEnum):
    """The byte that the device answers a control command with (5.1.6.5)."""

    OK = 0
    ERR = 1


class Ctrl(IntEnum):
    """Classes of control commands (5.1.6.5)."""

    RX = 0
    MAC = 1
    VLAN = 2
    ANNOUNCE = 3
    MQ = 4
    GUEST_OFFLOADS = 5


class CtrlRx(IntEnum):
    """Commands of class RX: one byte, 0 (off) or 1 (on)."""

    PROMISC = 0
    ALLMULTI = 1
    ALLUNI = 2
    NOMULTI = 3
    NOUNI = 4
    NOBCAST = 5


class CtrlMac(IntEnum):
    """Commands of class MAC."""

    TABLE_SET = 0
    ADDR_SET = 1


class CtrlVlan(IntEnum):
    """Commands of class VLAN: a 16-bit VLAN id."""

    ADD = 0
    DEL = 1


CTRL_ANNOUNCE_ACK = 0
CTRL_MQ_PAIRS_SET = 0
CTRL_GUEST_OFFLOADS_SET = 0


def receive_queue(pair: int) -> int:
    """The virtqueue index of receiveq(pair + 1) (5.1.2)."""
    return 2 * pair


def transmit_queue(pair: int) -> int:
    """The virtqueue index of transmitq(pair + 1) (5.1.2)."""
    return 2 * pair + 1


def mac_text(mac: bytes) -> str:
    """`52:54:00:12:34:56`."""
    return mac.hex(":")


def parse_mac(text: str) -> bytes:
    """Six bytes from `52:54:00:12:34:56`. Raises ValueError."""
    parts = text.split(":")
    if len(parts) != MAC_BYTES or not all(len(p) in (1, 2) for p in parts):
        raise ValueError(f"{text!r} is not a MAC address of the form 52:54:00:12:34:56")
    return bytes(int(part, 16) for part in parts)


def mac_table(unicast: list[bytes], multicast: list[bytes]) -> bytes:
    """The data of MAC TABLE_SET: a counted list of unicast, then of multicast addresses."""
    return b"".join(struct.pack("<I", len(t)) + b"".join(t) for t in (unicast, multicast))


def parse_mac_table(data: bytes) -> tuple[list[bytes], list[bytes]]:
    """The two lists of MAC TABLE_SET. Raises ValueError if counts and length disagree."""
    tables: list[list[bytes]] = []
    for _ in range(2):
        if len(data) < 4:
            raise ValueError("a MAC table without its count")
        count = int.from_bytes(data[:4], "little")
        if len(data) - 4 < count * MAC_BYTES:
            raise ValueError(f"a MAC table of {count} entries in {len(data) - 4} bytes")
        body, data = data[4 : 4 + count * MAC_BYTES], data[4 + count * MAC_BYTES :]
        tables.append([body[i : i + MAC_BYTES] for i in range(0, len(body), MAC_BYTES)])
    if data:
        raise ValueError(f"{len(data)} bytes after the MAC tables")
    return tables[0], tables[1]
