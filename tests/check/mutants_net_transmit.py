"""Network devices that get one thing wrong when packets are transmitted."""

from __future__ import annotations

import struct

from tests.check.mutants import REFERENCES, catches
from tests.check.reference_net import NetReference
from virtq.check.net.frames import Packet, finish, ones_sum, parts
from virtq.check.net.header import NEEDS_CSUM, TUNNEL, Header
from virtq.wire.net import NetFeature as N

REFERENCES["net_transmit"] = (NetReference,)


@catches("net_transmit.an_unknown_flag")
class DropsUnknownFlags(NetReference):
    def accepts_packet(self, header: Header) -> bool:
        return not header.flags & 0x80 and super().accepts_packet(header)


@catches("net_transmit.an_unknown_flag")
class UnknownFlagsHideTheOthers(NetReference):
    def carried_out(self, packet: Packet) -> list[bytes]:
        return [packet.frame] if packet.header.flags & 0x80 else super().carried_out(packet)


@catches("net_transmit.checksum_fields_without_the_flag")
class ChecksumUnasked(NetReference):
    def carried_out(self, packet: Packet) -> list[bytes]:
        header = packet.header
        if 0 < header.csum_start < len(packet.frame) - 10 and not header.flags & NEEDS_CSUM:
            return [finish(packet.frame, header.csum_start, header.csum_offset)]
        return super().carried_out(packet)


@catches("net_transmit.a_wrong_header_length")
class TrustsTheHeaderLength(NetReference):
    """It cuts a packet where hdr_len says."""

    def carried_out(self, packet: Packet) -> list[bytes]:
        header = packet.header
        if not header.gso_type or self.has(N.GUEST_HDRLEN):
            return super().carried_out(packet)
        frame, at = packet.frame, header.hdr_len
        size = header.gso_size
        return [frame[:at] + frame[i : i + size] for i in range(at, len(frame), size)]


@catches("net_transmit.a_wrong_header_length")
class ChecksTheHeaderLength(NetReference):
    def carried_out(self, packet: Packet) -> list[bytes]:
        return super().carried_out(packet) if packet.header.hdr_len <= len(packet.frame) else []


@catches("net_transmit.an_outer_network_offset_that_is_none")
class UsesAnOffsetOfZero(NetReference):
    """It finds the outer header at offset 0, which means that there is none."""

    def carried_out(self, packet: Packet) -> list[bytes]:
        if self.has(N.OUT_NET_HEADER) and not packet.header.outer_nh_offset:
            return [struct.pack("!H", ones_sum(packet.frame[:20])) + packet.frame[2:]]
        return super().carried_out(packet)


@catches("net_transmit.an_outer_network_offset_that_is_none")
class UsesAnOffsetNotNegotiated(NetReference):
    def carried_out(self, packet: Packet) -> list[bytes]:
        header = packet.header
        if header.outer_nh_offset not in (0, parts(packet.frame).network):
            return []
        return super().carried_out(packet)


@catches("net_transmit.a_security_association_without_the_flag")
class UsesASecurityAssociation(NetReference):
    """It looks for the association whether or not it is asked to; it has none."""

    def accepts_packet(self, header: Header) -> bool:
        return not header.resource_id and super().accepts_packet(header)


@catches("net_transmit.both_tunnel_bits")
class TakesBothTunnelBits(NetReference):
    def accepts_tunnel(self, header: Header) -> bool:
        return header.gso_type & TUNNEL == TUNNEL or super().accepts_tunnel(header)


@catches("net_transmit.half_a_tunnel")
class TakesATunnelWithoutChecksum(NetReference):
    def accepts_tunnel(self, header: Header) -> bool:
        return super().accepts_tunnel(header._replace(flags=header.flags | NEEDS_CSUM))


@catches("net_transmit.half_a_tunnel")
class TakesATunnelWithValidData(NetReference):
    def accepts_tunnel(self, header: Header) -> bool:
        return super().accepts_tunnel(header._replace(flags=header.flags & NEEDS_CSUM))


@catches("net_transmit.half_a_tunnel")
class TakesATunnelBitAlone(NetReference):
    def accepts_tunnel(self, header: Header) -> bool:
        return super().accepts_tunnel(header._replace(gso_type=header.gso_type | 1))


@catches("net_transmit.a_tunnel_checksum_without_a_tunnel")
class TakesATunnelChecksumAlone(NetReference):
    def accepts_tunnel_checksum(self, header: Header) -> bool:
        return True


@catches("net_transmit.tunnel_offsets_without_a_tunnel")
class UsesTunnelOffsets(NetReference):
    """It finishes an outer checksum wherever an outer header is told of."""

    def carried_out(self, packet: Packet) -> list[bytes]:
        header = packet.header
        if header.outer_th_offset and not header.gso_type & TUNNEL:
            packet = Packet(finish(packet.frame, header.outer_th_offset, 6), header)
        return super().carried_out(packet)


@catches("net_transmit.a_frame_of_the_mtu")
class DropsTheLargest(NetReference):
    def carried_out(self, packet: Packet) -> list[bytes]:
        return [frame for frame in super().carried_out(packet) if len(frame) <= 1514]


@catches("net_transmit.a_frame_of_the_mtu")
class CutsTheLargest(NetReference):
    def carried_out(self, packet: Packet) -> list[bytes]:
        if len(packet.frame) <= 1514:
            return super().carried_out(packet)
        return [packet.frame[:1000], packet.frame[:14] + packet.frame[1000:]]
