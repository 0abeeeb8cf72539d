"""Drivers of disks, network devices, entropy devices and consoles that do not keep their type's
rules."""

from __future__ import annotations

from collections.abc import Sequence

from tests.check.drivers.mutants import REFERENCES, catches
from tests.check.drivers.reference import Asked, Reference, whole
from tests.check.drivers.reference_types import (
    ConsoleReference,
    EntropyReference,
    NetReference,
    PortsReference,
)
from virtq.check.driver.roles import Disk
from virtq.wire import net
from virtq.wire.blk import BlkFeature, Header, Segment, Type
from virtq.wire.console import Control, Event


class Hurries(Reference):
    """Reads the capacity again when it is told of a change."""

    def set_up(self) -> None:
        self.stale = False
        self.transport.on_config_change(self.changed)
        super().set_up()

    def changed(self) -> None:
        self.stale = True

    def turn(self) -> None:
        if self.stale:
            self.stale = False
            self.transport.read_config(0, 8)
        super().turn()


REFERENCES["driver.blk.the_capacity_is_read_again"] = (Hurries,)
REFERENCES["driver.net"] = (NetReference,)
for _name in ("entropy_buffers_are_for_writing",):
    REFERENCES[f"driver.others.{_name}"] = (EntropyReference,)
for _name in (
    "console_receive_buffers_are_for_writing",
    "console_transmit_buffers_are_for_reading",
):
    REFERENCES[f"driver.others.{_name}"] = (ConsoleReference,)
for _name in ("a_console_says_that_it_is_ready", "a_console_port_is_opened"):
    REFERENCES[f"driver.others.{_name}"] = (PortsReference,)


# Disks


class OneRequest(Reference):
    """Always the same request."""

    header = Header(Type.IN, 0)
    data: Sequence[bytes] = ()
    reply: Sequence[int] = (1,)

    def ask(self, queue: int, number: int) -> Asked:
        return Asked([self.header.pack(), *self.data], self.reply)


@catches("blk.requests_have_header_and_status")
class LeavesTheStatusOut(OneRequest):
    data = (b"\0" * 512,)
    reply = ()
    header = Header(Type.OUT, 0)


@catches("blk.requests_have_header_and_status")
class SendsHalfAHeader(Reference):
    def ask(self, queue: int, number: int) -> Asked:
        return Asked([b"\0" * 8], [513])


@catches("blk.nothing_beyond_the_capacity")
class GoesBeyond(OneRequest):
    header = Header(Type.IN, Disk.capacity_sectors - 1)
    reply = (1024, 1)


@catches("blk.data_are_whole_sectors")
class ReadsBytes(OneRequest):
    reply = (100, 1)


@catches("blk.flushes_have_sector_0")
class FlushesASector(OneRequest):
    header = Header(Type.FLUSH, 7)


@catches("blk.flushes_have_no_data")
class FlushesData(OneRequest):
    header = Header(Type.FLUSH, 0)
    data = (b"\0" * 512,)


@catches("blk.names_have_20_bytes")
class AsksForALongName(OneRequest):
    header = Header(Type.GET_ID, 0)
    reply = (32, 1)


@catches("blk.segments_are_whole")
class DiscardsHalf(OneRequest):
    header = Header(Type.DISCARD, 0)
    data = (Segment(0, 1).pack()[:8],)


@catches("blk.no_more_discards_than_allowed")
class DiscardsMuch(OneRequest):
    header = Header(Type.DISCARD, 0)
    data = (b"".join(Segment(i, 1).pack() for i in range(Disk.segments_to_discard + 1)),)


@catches("blk.no_more_zeroes_than_allowed")
class ZeroesMuch(OneRequest):
    header = Header(Type.WRITE_ZEROES, 0)
    data = (b"".join(Segment(i, 1).pack() for i in range(Disk.segments_to_zero + 1)),)


@catches("blk.discards_do_not_unmap")
class UnmapsWhatItDiscards(OneRequest):
    header = Header(Type.DISCARD, 0)
    data = (Segment(0, 1, 1).pack(),)


@catches("blk.read_only_is_accepted")
class WantsToWrite(Reference):
    accepted = Reference.accepted & ~int(BlkFeature.RO)


@catches("blk.lists_within_seg_max", "blk.tables_within_seg_max")
class MindsNoLimit(Reference):
    table_entries = 8
    ring_size = 16

    def ask(self, queue: int, number: int) -> Asked:
        return Asked([Header(Type.IN, 0).pack()], [512, 512, 512, 1], whole)


@catches("blk.the_capacity_is_read_again")
class MindsNoChange(Reference):
    """Never reads its configuration again."""


# Network devices


class Header_(NetReference):
    """Transmits the same header with each packet."""

    made = net.NetHeader()

    def header(self, number: int) -> net.NetHeader:
        return self.made


@catches("net.num_buffers_is_zero")
class CountsBuffers(Header_):
    made = net.NetHeader(num_buffers=1)


@catches("net.flags_are_zero_without_csum")
class LeavesTheChecksum(Header_):
    made = net.NetHeader(flags=1, csum_start=34, csum_offset=6)


@catches("net.no_segmentation_without_the_feature")
class WantsSegments(Header_):
    made = net.NetHeader(gso_type=net.Gso.TCPV4, gso_size=1000)


@catches("net.no_segmentation_without_the_feature")
class WantsTcp6Segments(Header_):
    made = net.NetHeader(gso_type=net.Gso.TCPV6, gso_size=1000)


@catches("net.no_segmentation_without_the_feature")
class WantsFragments(Header_):
    made = net.NetHeader(gso_type=net.Gso.UDP, gso_size=1000)


@catches("net.no_segmentation_without_the_feature")
class WantsUdpSegments(Header_):
    made = net.NetHeader(gso_type=net.Gso.UDP_L4, gso_size=1000)


@catches("net.no_tunnel_without_the_feature")
class WantsATunnel(Header_):
    made = net.NetHeader(gso_type=0x20)


@catches("net.no_tunnel_checksum_without_the_feature")
class WantsATunnelChecksum(Header_):
    made = net.NetHeader(flags=8)


@catches("net.no_receive_flags_are_transmitted")
class SaysDataAreValid(Header_):
    made = net.NetHeader(flags=2)


@catches("net.packets_are_checksummed_without_csum")
class SumsWrongly(NetReference):
    def frame(self, number: int) -> bytes:
        frame = super().frame(number)
        return frame[:-1] + bytes([frame[-1] ^ 1])


@catches("net.partial_checksums_can_be_finished")
class PointsBeside(NetReference):
    def header(self, number: int) -> net.NetHeader:
        header = super().header(number)
        return header._replace(csum_start=header.csum_start - 4)


@catches("net.partial_checksums_can_be_finished")
class StoresAZero(NetReference):
    def frame(self, number: int) -> bytes:
        frame = super().frame(number)
        return frame[:40] + b"\0\1" + frame[42:]


@catches("net.segmentation_has_its_fields")
class ForgetsTheChecksumFlag(NetReference):
    def header(self, number: int) -> net.NetHeader:
        header = super().header(number)
        return header._replace(flags=0) if header.gso_type else header


@catches("net.segmentation_has_its_fields")
class ForgetsTheSize(NetReference):
    def header(self, number: int) -> net.NetHeader:
        return super().header(number)._replace(gso_size=0)


@catches("net.queues_have_their_numbers")
class SwapsQueues(NetReference):
    def ask(self, queue: int, number: int) -> Asked:
        return super().ask(1 - queue, number)

    def slot_bytes(self, index: int) -> int:
        return 2048


@catches("net.queues_have_their_numbers")
class SendsTheHeaderAlone(NetReference):
    def ask(self, queue: int, number: int) -> Asked:
        if queue == 0 or number % 2:
            return super().ask(queue, number)
        return Asked([net.NO_OFFLOAD], [])


@catches("net.headers_have_12_bytes")
class SendsAShortHeader(NetReference):
    def ask(self, queue: int, number: int) -> Asked:
        asked = super().ask(queue, number)
        return Asked([b"".join(asked.readable)[2:]], []) if queue else asked


@catches("net.the_configuration_is_not_written")
class WritesItsAddress(NetReference):
    def read_config(self) -> None:
        super().read_config()
        self.transport.write_config(0, self.mac)


class Small(NetReference):
    """Receive buffers of so many bytes."""

    room = 8

    def receive_bytes(self) -> int:
        return self.room

    def slot_bytes(self, index: int) -> int:
        return 2048


@catches("net.mergeable_buffers_hold_a_header")
class HasEightBytes(Small):
    """Less than a header."""


@catches("net.receive_buffers_hold_a_packet", "net.receive_buffers_hold_a_segment")
class Has1500Bytes(Small):
    room = 1500


@catches("net.the_mtu_is_kept")
class Has1300Bytes(Small):
    room = 1300


@catches("net.the_mtu_is_kept")
class SendsMore(NetReference):
    def frame(self, number: int) -> bytes:
        return super().frame(number).ljust(1600, b"\0")


@catches("net.unknown_flags_are_ignored")
class FearsFlags(NetReference):
    def received(self, reply: bytes, written: int) -> None:
        assert reply[0] < 8, "what is that flag?"


# The others


@catches("others.entropy_buffers_are_for_writing")
class SendsASeed(EntropyReference):
    def ask(self, queue: int, number: int) -> Asked:
        return Asked([b"a seed"], [64])


@catches("others.console_receive_buffers_are_for_writing")
class AsksWhenItReceives(ConsoleReference):
    def ask(self, queue: int, number: int) -> Asked:
        return Asked([b"?"], [64]) if queue == 0 else super().ask(queue, number)


@catches("others.console_transmit_buffers_are_for_reading")
class WantsAnAnswer(ConsoleReference):
    def ask(self, queue: int, number: int) -> Asked:
        return Asked([b"?"], [1]) if queue == 1 else super().ask(queue, number)


@catches("others.a_console_says_that_it_is_ready")
class IsNeverReady(PortsReference):
    def ready(self) -> None:
        """Says nothing."""


@catches("others.a_console_port_is_opened")
class DoesNotOpen(PortsReference):
    def open(self, port: int) -> None:
        """Says nothing."""


@catches("others.a_console_port_is_opened")
class OpensWithZero(PortsReference):
    def open(self, port: int) -> None:
        self.says.append(Control(port, Event.PORT_OPEN, 0))
