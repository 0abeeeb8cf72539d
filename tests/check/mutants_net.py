"""Network devices that get one thing wrong: configuration, transmission, the control virtqueue, and
which frames reach the driver. The files `mutants_net_*.py` have the rest."""

from __future__ import annotations

import copy
import struct

from tests.check.mutants import REFERENCES, catches
from tests.check.reference import Served
from tests.check.reference_net import NetReference
from tests.check.reference_net_control import Settings, check
from virtq._core import Position
from virtq.check.net.frames import VLAN, Packet, finish, ones_sum, parts
from virtq.check.net.header import NEEDS_CSUM, TUNNEL, Header
from virtq.wire.net import BROADCAST, PREREQUISITES, Ack, Ctrl, CtrlRx
from virtq.wire.net import NetFeature as N

WITHOUT_CONTROL = NetReference.offered & ~int(N.CTRL_VQ)
for _ in range(4):
    for _feature, _needs in PREREQUISITES.items():
        if not all(need & WITHOUT_CONTROL for need in _needs):
            WITHOUT_CONTROL &= ~int(_feature)


class WithoutControlQueue(NetReference):
    offered = WITHOUT_CONTROL
    queue_count = 2


REFERENCES["net_config"] = (NetReference, WithoutControlQueue)
REFERENCES["net_transmit"] = (NetReference,)
REFERENCES["net_control"] = (NetReference,)
REFERENCES["net_filter"] = (NetReference,)


# Configuration, and which queue is which


class Patched(NetReference):
    """Its configuration differs at one place."""

    at = 0
    value = b""

    @property
    def config(self) -> bytes:
        config = super().config
        return config[: self.at] + self.value + config[self.at + len(self.value) :]


@catches("net_config.the_number_of_pairs")
class NoPairs(Patched):
    at, value = 8, b"\0\0"


@catches("net_config.the_number_of_pairs")
class TooManyPairs(Patched):
    at, value = 8, b"\1\x80"


@catches("net_config.room_for_a_key")
class ShortKey(NetReference):
    def key_bytes_max(self) -> int:
        return 39


@catches("net_config.room_for_a_table")
class ShortTable(NetReference):
    def table_length_max(self) -> int:
        return 127


@catches("net_config.hash_report_with_a_control_queue")
class HashReportAlone(NetReference):
    offered = WITHOUT_CONTROL | int(N.HASH_REPORT)


@catches("net_config.more_modes_with_a_control_queue")
class MoreModesAlone(NetReference):
    offered = WITHOUT_CONTROL | int(N.CTRL_RX_EXTRA)


@catches("net_config.no_control_queue")
class ControlQueueAnyway(WithoutControlQueue):
    queue_count = 3


@catches("net_config.which_queue_is_which")
class ControlQueueIsThird(NetReference):
    @property
    def control_index(self) -> int | None:
        return 2 if self.has(N.CTRL_VQ) else None


@catches("net_config.which_queue_is_which")
class SwapsDirections(NetReference):
    def serve(self, served: Served) -> None:
        index = next(i for i, other in self.queues.items() if other is served)
        if index == self.control_index:
            super().serve(served)
        elif index % 2 == 0:
            # What it would transmit is not in the receive queue.
            self.outbox.clear()


# Transmission


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


# Acknowledgements


@catches("net_control.acknowledgements")
class KnowsEverything(NetReference):
    def command(self, data: bytes, room: int) -> tuple[int, bytes]:
        return Ack.OK, super().command(data, room)[1]


@catches("net_control.acknowledgements")
class ErrorsAreTwo(NetReference):
    def command(self, data: bytes, room: int) -> tuple[int, bytes]:
        ack, result = super().command(data, room)
        return 2 * ack, result


@catches("net_control.acknowledgements")
class SuccessIsOne(NetReference):
    def command(self, data: bytes, room: int) -> tuple[int, bytes]:
        ack, result = super().command(data, room)
        return 1 - ack, result


@catches("net_control.acknowledgements")
class TakesHalfAnAddress(NetReference):
    def mac_address(self, command: int, data: bytes) -> None:
        self.set_mac(data[:6].ljust(6, b"\0"))


@catches("net_control.an_announcement")
class GoesOnAnnouncing(NetReference):
    def announce(self, command: int, data: bytes) -> None:
        """It is only taken note of."""


# Queue pairs


@catches("net_control.one_queue_at_first")
class SpreadsAtOnce(NetReference):
    def steer_by_flow(self, frame: bytes) -> int | None:
        live = [pair for pair in range(self.pairs) if 2 * pair in self.queues]
        return live[sum(frame[26:38]) % len(live)] if live else None


@catches("net_control.one_queue_at_first")
class KeepsPairsOverAReset(NetReference):
    def fresh(self) -> Settings:
        return Settings(pairs=self.settings.pairs)

    def reset(self) -> None:
        flows = dict(self.flows)
        super().reset()
        self.flows.update(flows)


@catches("net_control.no_queue_beyond")
class NeverGivesUpPairs(NetReference):
    def mq_pairs(self, command: int, data: bytes) -> None:
        before = self.settings.pairs
        super().mq_pairs(command, data)
        self.settings.pairs = max(before, self.settings.pairs)


@catches("net_control.by_flow")
class RoundRobin(NetReference):
    turn = 0

    def steer_by_flow(self, frame: bytes) -> int | None:
        self.turn += 1
        return self.turn % self.settings.pairs


@catches("net_control.where_it_was_transmitted")
class SteersElsewhere(NetReference):
    def steer_by_flow(self, frame: bytes) -> int | None:
        pair = super().steer_by_flow(frame)
        return None if pair is None else self.settings.pairs - 1 - pair


class Stays(NetReference):
    """A queue that was reset is where packets go nevertheless."""

    taken_away: frozenset[int] = frozenset()

    def steer_by_flow(self, frame: bytes) -> int | None:
        before = self.queues
        try:
            self.queues = {**before, **dict.fromkeys(self.taken_away, before[1])}
            return super().steer_by_flow(frame)
        finally:
            self.queues = before

    def reset_queue(self, index: int) -> Position:
        self.taken_away = self.taken_away | {index}
        return super().reset_queue(index)


@catches("net_control.another_queue_while_one_is_reset", "net_control.dropped_while_all_are_reset")
class HoldsWhatComesForAResetQueue(Stays):
    """It waits there for buffers."""


@catches("net_control.another_queue_while_one_is_reset")
class DropsWhatComesForAResetQueue(NetReference):
    def steer_by_flow(self, frame: bytes) -> int | None:
        pair = self.flows.get(self.flow(frame), 0)
        pair = min(pair, self.settings.pairs - 1)
        return pair if 2 * pair in self.queues else None


# Which frames are wanted


@catches("net_filter.basic_modes")
class WithoutAllMulticast(NetReference):
    def rx_mode(self, command: int, data: bytes) -> None:
        check(command != CtrlRx.ALLMULTI)
        super().rx_mode(command, data)


@catches("net_filter.further_modes")
class WithoutNoBroadcast(NetReference):
    def rx_mode(self, command: int, data: bytes) -> None:
        check(command != CtrlRx.NOBCAST)
        super().rx_mode(command, data)


class Modes(NetReference):
    """Its receive modes are as `changed` has them."""

    def changed(self, modes: set[int], to: bytes) -> set[int]:
        return modes

    def wants_address(self, to: bytes) -> bool:
        before = self.settings.modes
        try:
            self.settings.modes = self.changed(set(before), to)
            return super().wants_address(to)
        finally:
            self.settings.modes = before


@catches("net_filter.promiscuous")
class PromiscuousForUnicastOnly(Modes):
    def changed(self, modes: set[int], to: bytes) -> set[int]:
        return modes - {CtrlRx.PROMISC} if to[0] & 1 and to != BROADCAST else modes


@catches("net_filter.promiscuous_whatever_else")
class SuppressesBeforePromiscuous(Modes):
    def changed(self, modes: set[int], to: bytes) -> set[int]:
        return modes - {CtrlRx.PROMISC} if modes & {CtrlRx.NOUNI} else modes


@catches("net_filter.all_multicast")
class IgnoresAllMulticast(Modes):
    def changed(self, modes: set[int], to: bytes) -> set[int]:
        return modes - {CtrlRx.ALLMULTI}


@catches("net_filter.all_unicast")
class IgnoresAllUnicast(Modes):
    def changed(self, modes: set[int], to: bytes) -> set[int]:
        return modes - {CtrlRx.ALLUNI}


@catches("net_filter.no_multicast")
class IgnoresNoMulticast(Modes):
    def changed(self, modes: set[int], to: bytes) -> set[int]:
        return modes - {CtrlRx.NOMULTI}


@catches("net_filter.no_multicast_though_all")
class AllMulticastPrevails(Modes):
    def changed(self, modes: set[int], to: bytes) -> set[int]:
        return modes - {CtrlRx.NOMULTI} if CtrlRx.ALLMULTI in modes else modes


@catches("net_filter.broadcast_is_not_multicast")
class NoMulticastIsNoBroadcast(Modes):
    def changed(self, modes: set[int], to: bytes) -> set[int]:
        return modes | {int(CtrlRx.NOBCAST)} if CtrlRx.NOMULTI in modes else modes


@catches("net_filter.no_unicast")
class OwnAddressAlways(Modes):
    def changed(self, modes: set[int], to: bytes) -> set[int]:
        return modes - {CtrlRx.NOUNI} if to == self.settings.mac else modes


@catches("net_filter.no_unicast_though_all")
class AllUnicastPrevails(Modes):
    def changed(self, modes: set[int], to: bytes) -> set[int]:
        return modes - {CtrlRx.NOUNI} if CtrlRx.ALLUNI in modes else modes


@catches("net_filter.no_broadcast")
class IgnoresNoBroadcast(Modes):
    def changed(self, modes: set[int], to: bytes) -> set[int]:
        return modes - {CtrlRx.NOBCAST}


@catches("net_filter.no_broadcast_though_all_multicast")
class BroadcastIsMulticast(Modes):
    def changed(self, modes: set[int], to: bytes) -> set[int]:
        return modes - {CtrlRx.NOBCAST} if CtrlRx.ALLMULTI in modes else modes


@catches("net_filter.frames_for_others")
class TakesEveryAddress(NetReference):
    def wants_address(self, to: bytes) -> bool:
        return True


class Late(NetReference):
    """What a command sets holds from the next command on."""

    kind = 0
    later: Settings | None = None

    def command(self, data: bytes, room: int) -> tuple[int, bytes]:
        if self.later is not None:
            self.settings, self.later = self.later, None
        before = copy.deepcopy(self.settings)
        answer = super().command(data, room)
        if data[0] == self.kind:
            self.later, self.settings = self.settings, before
        return answer

    def reset(self) -> None:
        self.later = None
        super().reset()


@catches("net_filter.the_table_at_once", "net_filter.the_address_at_once")
class LateAddresses(Late):
    kind = Ctrl.MAC


@catches("net_control.an_announcement")
class LateAnnouncement(Late):
    kind = Ctrl.ANNOUNCE


@catches("net_filter.no_table_after_a_reset")
class KeepsTheTable(NetReference):
    def fresh(self) -> Settings:
        old = self.settings
        return Settings(unicast=old.unicast, multicast=old.multicast)


@catches("net_filter.every_vlan")
class WantsVlansListed(NetReference):
    def wants_vlan(self, frame: bytes) -> bool:
        tag = int.from_bytes(frame[14:16]) & 0xFFF
        return frame[12:14] != VLAN or tag in self.settings.vlans


@catches("net_filter.vlans_that_are_listed")
class KnowsOneVlan(NetReference):
    def vlan(self, command: int, data: bytes) -> None:
        self.settings.vlans.clear()
        super().vlan(command, data)


@catches("net_filter.vlans_that_are_not")
class TakesEveryVlan(NetReference):
    def wants_vlan(self, frame: bytes) -> bool:
        return True


@catches("net_filter.vlans_that_are_not")
class NeverForgetsAVlan(NetReference):
    def vlan(self, command: int, data: bytes) -> None:
        super().vlan(0, data)
