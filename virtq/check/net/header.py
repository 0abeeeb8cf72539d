"""The header before each packet (5.1.6), with every field that it can have."""

from __future__ import annotations

import struct
from typing import NamedTuple

from virtq.wire.net import HEADER_BYTES
from virtq.wire.net import NetFeature as N

NEEDS_CSUM, DATA_VALID, RSC_INFO, TUNNEL_CSUM, SECURITY, SECURITY_ERR = 1, 2, 4, 8, 16, 32
TUNNEL_IPV4, TUNNEL_IPV6, ECN = 0x20, 0x40, 0x80
TUNNEL = TUNNEL_IPV4 | TUNNEL_IPV6
TCPV4, UDP, TCPV6, UDP_L4 = 1, 3, 4, 5
_LAYOUT = struct.Struct("<BBHHHHHIHHHHHIH")


class Header(NamedTuple):
    """All 32 bytes; how many of them there are depends on the features (`header_bytes`)."""

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    num_buffers: int = 0
    hash_value: int = 0
    hash_report: int = 0
    padding: int = 0
    outer_th_offset: int = 0
    inner_nh_offset: int = 0
    outer_nh_offset: int = 0
    resource_id: int = 0
    resource_type: int = 0

    @classmethod
    def parse(cls, data: bytes) -> Header:
        """Fields that `data` is too short for are 0."""
        return cls(*_LAYOUT.unpack(data[: _LAYOUT.size].ljust(_LAYOUT.size, b"\0")))

    def pack(self, features: int) -> bytes:
        """As long as it is with these features."""
        return _LAYOUT.pack(*self)[: header_bytes(features)]

    @property
    def segmentation(self) -> int:
        """`gso_type` without ECN and tunnel bits."""
        return self.gso_type & ~(ECN | TUNNEL)


def header_bytes(features: int) -> int:
    """The size of struct virtio_net_hdr with these features negotiated (5.1.6.3.1)."""
    if features & (N.OUT_NET_HEADER | N.IPSEC):
        return 32
    if features & (N.HOST_UDP_TUNNEL_GSO | N.GUEST_UDP_TUNNEL_GSO):
        return 24
    return 20 if features & N.HASH_REPORT else HEADER_BYTES
