"""Network devices that get one thing wrong when packets are received: buffers, the header, offloads
that are left to the driver."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tests.check.mutants import REFERENCES, catches
from tests.check.reference import Served
from tests.check.reference_net import NetReference
from virtq.check.net.frames import Packet, Parts, completed, partial, parts
from virtq.check.net.header import (
    DATA_VALID,
    ECN,
    NEEDS_CSUM,
    RSC_INFO,
    SECURITY,
    SECURITY_ERR,
    TUNNEL,
    TUNNEL_CSUM,
    TUNNEL_IPV4,
    Header,
)
from virtq.model.memory import Taken
from virtq.wire.net import GUEST_SEGMENTATION
from virtq.wire.net import NetFeature as N

for _area in ("net_receive", "net_offloads", "net_tunnel"):
    REFERENCES[_area] = (NetReference,)


# Buffers


@catches("net_receive.one_buffer")
class CountsNoBuffer(NetReference):
    def num_buffers(self, count: int) -> int:
        return count if self.has(N.MRG_RXBUF) else 0


@catches("net_receive.no_second_buffer")
class SpillsOver(NetReference):
    def merges(self) -> bool:
        return True


@catches("net_receive.spread_over_buffers", "net_receive.a_burst_of_all_sizes")
class CountsOneBuffer(NetReference):
    def num_buffers(self, count: int) -> int:
        return 1


@catches("net_receive.spread_over_buffers")
class CountsOneTooMany(NetReference):
    def num_buffers(self, count: int) -> int:
        return count + 1 if count > 1 else 1


@catches("net_receive.full_but_the_last", "net_receive.a_burst_of_all_sizes")
class LeavesRoom(NetReference):
    def room(self, buffer: Taken) -> int:
        return buffer.writable - 4 if self.has(N.MRG_RXBUF) else buffer.writable


@catches("net_receive.a_header_in_the_first_only")
class HeaderInEach(NetReference):
    """Eight bytes of one: there is as much room in the last buffer."""

    def fill(self, served: Served, buffers: Sequence[Taken], data: bytes) -> None:
        for i, buffer in enumerate(buffers):
            head = bytes(8) if i else b""
            rest = buffer.writable - len(head)
            part, data = head + data[:rest], data[rest:]
            self.write(buffer, part)
            self.complete(served.half, buffer, len(part))
        served.half.flush()


@catches("net_receive.all_used_together", "net_receive.a_burst_of_all_sizes")
class OneByOne(NetReference):
    def fill(self, served: Served, buffers: Sequence[Taken], data: bytes) -> None:
        for buffer in buffers:
            part, data = data[: buffer.writable], data[buffer.writable :]
            self.write(buffer, part)
            self.complete(served.half, buffer, len(part))
            served.half.flush()
            time.sleep(0.005)


# The header


class Stamped(NetReference):
    """Every header is changed by `stamp`."""

    def stamp(self, header: Header, frame: bytes) -> Header:
        return header

    def shaped(self, packet: Packet) -> list[Packet]:
        return [
            Packet(one.frame, self.stamp(one.header, one.frame)) for one in super().shaped(packet)
        ]


@catches("net_receive.no_flags")
class ValidUnasked(Stamped):
    def stamp(self, header: Header, frame: bytes) -> Header:
        return header._replace(flags=header.flags | DATA_VALID if parts(frame).transport else 0)


@catches("net_receive.checksums_are_finished")
class LeavesChecksums(NetReference):
    def shaped(self, packet: Packet) -> list[Packet]:
        if self.offloads() & N.GUEST_CSUM or packet.header.gso_type:
            return super().shaped(packet)
        return [Packet(packet.frame)]


@catches("net_receive.a_frame_above_the_mtu")
class AboveTheMtu(NetReference):
    def fits(self, packet: Packet) -> bool:
        return True


@catches("net_receive.where_the_network_header_is")
class NetworkHeaderOff(NetReference):
    def with_network_offset(self, header: Header, frame: bytes) -> Header:
        header = super().with_network_offset(header, frame)
        offset = header.outer_nh_offset
        return header._replace(outer_nh_offset=offset and offset + 4)


@catches("net_receive.no_network_header")
class NetworkHeaderAlways(NetReference):
    def with_network_offset(self, header: Header, frame: bytes) -> Header:
        return header._replace(outer_nh_offset=14 if self.has(N.OUT_NET_HEADER) else 0)


@catches("net_receive.no_security_flag")
class SaysItIsSecure(Stamped):
    def stamp(self, header: Header, frame: bytes) -> Header:
        flag = SECURITY if self.has(N.IPSEC) else 0
        return header._replace(flags=header.flags | flag)


@catches("net_receive.no_security_error")
class SaysItIsInsecure(Stamped):
    def stamp(self, header: Header, frame: bytes) -> Header:
        flag = SECURITY_ERR if self.has(N.IPSEC) else 0
        return header._replace(flags=header.flags | flag)


# Offloads


class Assumes(NetReference):
    """It leaves work to the driver that was not negotiated, next to what was."""

    assumed = N(0)

    def offloads(self) -> int:
        offloads = super().offloads()
        return offloads | int(self.assumed) if offloads & N.GUEST_CSUM else offloads


@catches("net_offloads.tcp_over_ipv4")
class AssumesTso4(Assumes):
    assumed = N.GUEST_TSO4


@catches("net_offloads.tcp_over_ipv6")
class AssumesTso6(Assumes):
    assumed = N.GUEST_TSO6


@catches("net_offloads.udp_fragments")
class AssumesUfo(Assumes):
    assumed = N.GUEST_UFO


@catches("net_offloads.udp_segments")
class AssumesUso(Assumes):
    assumed = N.GUEST_USO4


@catches("net_offloads.congestion_not_negotiated")
class AssumesEcn(Assumes):
    assumed = N.GUEST_ECN


@catches("net_offloads.no_segmentation_at_all")
class SegmentationUnasked(NetReference):
    def offloads(self) -> int:
        offloads = super().offloads()
        none = not offloads & GUEST_SEGMENTATION
        return offloads | int(N.GUEST_CSUM | GUEST_SEGMENTATION) if none else offloads


class Offloaded(NetReference):
    """The headers of packets that are to be segmented are changed by `stamp`."""

    def stamp(self, header: Header, frame: bytes) -> Header:
        return header

    def offload_header(self, packet: Packet) -> Header:
        header = super().offload_header(packet)
        return self.stamp(header, packet.frame) if header.gso_type else header


@catches("net_offloads.segmentation_with_a_checksum")
class SegmentationWithoutChecksum(Offloaded):
    def stamp(self, header: Header, frame: bytes) -> Header:
        return header._replace(flags=header.flags & ~NEEDS_CSUM)


@catches("net_offloads.segmentation_with_its_size")
class SegmentsOfAnySize(Offloaded):
    def stamp(self, header: Header, frame: bytes) -> Header:
        return header._replace(gso_size=0)


@catches("net_offloads.header_length")
class ShortHeaders(Offloaded):
    def stamp(self, header: Header, frame: bytes) -> Header:
        return header._replace(hdr_len=14)


@catches("net_offloads.congestion_negotiated")
class HidesCongestion(Offloaded):
    def stamp(self, header: Header, frame: bytes) -> Header:
        return header._replace(gso_type=header.gso_type & ~ECN)


@catches("net_offloads.coalesced_segments")
class CoalescesInSilence(Offloaded):
    def stamp(self, header: Header, frame: bytes) -> Header:
        return header._replace(flags=header.flags & ~RSC_INFO)


@catches("net_offloads.coalesced_segments")
class CountsOneSegment(Offloaded):
    def stamp(self, header: Header, frame: bytes) -> Header:
        return header._replace(csum_start=1) if header.flags & RSC_INFO else header


@catches("net_offloads.coalesced_segments")
class CountsAcknowledgements(Offloaded):
    def stamp(self, header: Header, frame: bytes) -> Header:
        return header._replace(csum_offset=16) if header.flags & RSC_INFO else header


@catches("net_offloads.no_coalesced_segments")
class SaysItCoalesced(Stamped):
    def stamp(self, header: Header, frame: bytes) -> Header:
        return header._replace(flags=header.flags | RSC_INFO)


@catches("net_offloads.an_unfinished_checksum")
class NoSumOfThePseudoHeader(NetReference):
    def shaped(self, packet: Packet) -> list[Packet]:
        shaped = super().shaped(packet)
        for i, one in enumerate(shaped):
            if one.header.flags & NEEDS_CSUM and not one.header.gso_type & TUNNEL:
                found = parts(one.frame)
                cleared = bytearray(one.frame)
                cleared[found.checksum : found.checksum + 2] = b"\0\0"
                shaped[i] = Packet(bytes(cleared), one.header)
        return shaped


@catches("net_offloads.finishing_a_checksum")
class ChecksumElsewhere(NetReference):
    def offload_header(self, packet: Packet) -> Header:
        header = super().offload_header(packet)
        return header._replace(csum_offset=header.csum_offset ^ 2)


@catches("net_offloads.a_wrong_checksum_is_not_left_to_finish")
class NeverLooksAtAChecksum(NetReference):
    """What has one to be looked at is left to the driver to finish."""

    def shaped(self, packet: Packet) -> list[Packet]:
        found = parts(packet.frame)
        if packet.header.flags or not found.transport or not self.offloads() & N.GUEST_CSUM:
            return super().shaped(packet)
        start, offset = found.transport, found.checksum - found.transport
        header = Header(flags=NEEDS_CSUM, csum_start=start, csum_offset=offset)
        return [Packet(partial(packet.frame, found), header)]


@catches("net_offloads.a_wrong_checksum_is_not_valid")
class EverythingIsValid(NetReference):
    def validated(self, frame: bytes, found: Parts) -> bool:
        return True


# Tunnels


@catches("net_tunnel.no_tunnel_bits", "net_tunnel.no_large_tunnelled_packets")
class AssumesTunnels(Assumes):
    assumed = N.GUEST_UDP_TUNNEL_GSO


@catches("net_tunnel.no_large_tunnelled_packets")
class HidesTunnels(NetReference):
    """It leaves segmentation of the inner packet to a driver that knows of no tunnel."""

    def passes(self, header: Header) -> bool:
        return super().passes(header._replace(gso_type=header.gso_type & ~TUNNEL))

    def offload_header(self, packet: Packet) -> Header:
        header = super().offload_header(packet)
        if self.has(N.GUEST_UDP_TUNNEL_GSO):
            return header
        return header._replace(gso_type=header.gso_type & ~TUNNEL)


@catches("net_tunnel.no_tunnel_checksum", "net_tunnel.no_outer_checksum_to_finish")
class AssumesTunnelChecksums(Assumes):
    assumed = N.GUEST_UDP_TUNNEL_GSO_CSUM


@catches("net_tunnel.the_bit_of_the_inner_protocol")
class EveryTunnelIsIpv4(Offloaded):
    def stamp(self, header: Header, frame: bytes) -> Header:
        tunnel = TUNNEL_IPV4 if header.gso_type & TUNNEL else 0
        return header._replace(gso_type=header.gso_type & ~TUNNEL | tunnel)


@catches("net_tunnel.where_the_headers_are")
class NoOuterHeader(Offloaded):
    def stamp(self, header: Header, frame: bytes) -> Header:
        return header._replace(outer_th_offset=0)


@catches("net_tunnel.where_the_headers_are")
class InnerHeaderOff(Offloaded):
    def stamp(self, header: Header, frame: bytes) -> Header:
        return header._replace(inner_nh_offset=header.inner_nh_offset - 14)


class HidesOuterChecksums(NetReference):
    """An outer checksum that is not finished is left as it is, and not told of."""

    def wanted(self) -> bool:
        return True

    def passes(self, header: Header) -> bool:
        if not self.wanted():
            return super().passes(header)
        return super().passes(header._replace(flags=header.flags & ~TUNNEL_CSUM))

    def offload_header(self, packet: Packet) -> Header:
        header = super().offload_header(packet)
        return header._replace(flags=header.flags & ~TUNNEL_CSUM) if self.wanted() else header


@catches("net_tunnel.no_outer_checksum_to_finish")
class HidesOuterChecksumsUnasked(HidesOuterChecksums):
    def wanted(self) -> bool:
        return not self.has(N.GUEST_UDP_TUNNEL_GSO_CSUM)


@catches("net_tunnel.an_outer_checksum_without_the_flag")
class HidesOuterChecksumsNegotiated(HidesOuterChecksums):
    def wanted(self) -> bool:
        return self.has(N.GUEST_UDP_TUNNEL_GSO_CSUM)


@catches("net_tunnel.no_valid_data")
class ValidInATunnel(Offloaded):
    def stamp(self, header: Header, frame: bytes) -> Header:
        return header._replace(flags=header.flags | (DATA_VALID if header.gso_type & TUNNEL else 0))


@catches("net_tunnel.an_unfinished_outer_checksum")
class FinishesTheOuterChecksum(NetReference):
    """It tells that the outer checksum is to be finished, and has finished it."""

    def shaped(self, packet: Packet) -> list[Packet]:
        shaped = super().shaped(packet)
        for i, one in enumerate(shaped):
            if one.header.flags & TUNNEL_CSUM:
                outer = parts(one.frame)
                shaped[i] = Packet(completed(one.frame, outer), one.header)
        return shaped
