"""Network devices that get one thing wrong with hashes, scaling, coalescing or statistics."""

from __future__ import annotations

import os
import struct

from tests.check.mutants import REFERENCES, catches
from tests.check.reference import Served
from tests.check.reference_net import NetReference
from tests.check.reference_net_control import (
    CVQ,
    NO_COALESCING,
    RX_CSUM,
    TUNNEL_TYPES,
    Refused,
    Settings,
    check,
)
from virtq._core import Position
from virtq.wire.net import NetFeature as N


class WithoutScaling(NetReference):
    offered = NetReference.offered & ~int(N.RSS | N.RSS_CONTEXT)


class ResultsLast(NetReference):
    """It writes every structure after the ack, as results are."""

    def reply(self, command: bytes, ack: int, result: bytes) -> bytes:
        return bytes([ack]) + result


REFERENCES["net_rss"] = (NetReference, WithoutScaling, ResultsLast)
REFERENCES["net_coalescing"] = (NetReference, ResultsLast)
REFERENCES["net_stats"] = (NetReference,)


# Hashes


@catches("net_rss.hash_without_scaling")
class NoCommandForAHash(WithoutScaling):
    def hash_config(self, command: int, data: bytes) -> None:
        raise Refused


@catches("net_rss.hash_with_automatic_steering")
class HashOnlyWithScaling(NetReference):
    def hash_config(self, command: int, data: bytes) -> None:
        check(self.has(N.RSS))
        super().hash_config(command, data)


@catches("net_rss.hash_with_scaling")
class NoCommandForScaling(NetReference):
    def rss_config(self, command: int, data: bytes) -> None:
        raise Refused


@catches("net_rss.hash_with_automatic_steering")
class SortsPorts(NetReference):
    """Both directions of a flow have one hash."""

    def hashed(self, frame: bytes) -> tuple[int, int]:
        ports = frame[34:36], frame[36:38]
        return super().hashed(frame[:34] + max(ports) + min(ports) + frame[38:])


@catches("net_rss.hash_with_automatic_steering")
class KeepsTheFirstKey(NetReference):
    def hash_config(self, command: int, data: bytes) -> None:
        key = self.settings.hash_key
        super().hash_config(command, data)
        self.settings.hash_key = key


@catches("net_rss.hash_with_automatic_steering")
class HashesEveryType(NetReference):
    def hash_settings(self) -> tuple[int, bytes]:
        types, key = super().hash_settings()
        return types and 0x3F, key


class Tunnels(NetReference):
    """The types of tunnels whose inner headers it hashes differ."""

    def tunnels(self, chosen: int) -> int:
        return chosen

    def hashed(self, frame: bytes) -> tuple[int, int]:
        before = self.settings.tunnels
        try:
            self.settings.tunnels = self.tunnels(before)
            return super().hashed(frame)
        finally:
            self.settings.tunnels = before


@catches("net_rss.a_tunnel_that_is_not_enabled")
class EveryInnerHeader(Tunnels):
    def tunnels(self, chosen: int) -> int:
        return TUNNEL_TYPES


@catches("net_rss.a_tunnel_that_is_not_enabled")
class AllTunnelsOrNone(Tunnels):
    def tunnels(self, chosen: int) -> int:
        return TUNNEL_TYPES if chosen else 0


@catches("net_rss.a_tunnel_that_is_enabled_no_longer")
class NeverLeavesTunnels(NetReference):
    def hash_tunnel(self, command: int, data: bytes) -> None:
        before = self.settings.tunnels
        super().hash_tunnel(command, data)
        self.settings.tunnels |= before


@catches("net_rss.a_tunnel_that_is_enabled_no_longer")
class KeepsTunnelsOverAReset(NetReference):
    def fresh(self) -> Settings:
        return Settings(tunnels=self.settings.tunnels)


@catches("net_rss.a_tunnel_that_is_not_supported")
class TakesEveryTunnel(NetReference):
    def check_tunnels(self, types: int) -> None:
        """None is refused."""


# Scaling


@catches("net_rss.the_queue_of_a_hash")
class NoTable(NetReference):
    def steer(self, frame: bytes) -> int | None:
        rss = self.settings.rss
        if rss is None:
            return super().steer(frame)
        report, value = self.hashed(frame)
        return value % 2 if report else rss.unclassified


@catches("net_rss.the_queue_of_a_hash")
class UnclassifiedToTheFirst(NetReference):
    def steer(self, frame: bytes) -> int | None:
        pair = super().steer(frame)
        return pair if self.hashed(frame)[0] or self.settings.rss is None else 0


@catches("net_rss.dropped_while_its_queue_is_reset")
class ScalesToAnother(NetReference):
    def steer(self, frame: bytes) -> int | None:
        pair = super().steer(frame)
        return 0 if pair is None else pair


@catches("net_rss.dropped_while_its_queue_is_reset")
class HoldsWhatItScales(NetReference):
    def steer(self, frame: bytes) -> int | None:
        pair = super().steer(frame)
        return 1 if pair is None else pair


@catches("net_rss.at_least_one_context")
class NoContexts(NetReference):
    def contexts_max(self) -> int:
        return 0


@catches("net_rss.no_context_after_a_reset")
class KeepsContexts(NetReference):
    def fresh(self) -> Settings:
        return Settings(contexts=self.settings.contexts)


# Coalescing


@catches("net_coalescing.the_reserved_field")
class MindsReserved(NetReference):
    def check_reserved(self, reserved: int) -> None:
        check(reserved == 0)


@catches("net_coalescing.parameters_that_are_cut_short")
class TakesShortParameters(NetReference):
    def check_coalescing(self, data: bytes) -> None:
        """What is missing is 0."""


@catches("net_coalescing.parameters_of_a_queue_that_are_cut_short")
class TakesShortParametersOfAQueue(NetReference):
    def check_queue_coalescing(self, command: int, data: bytes) -> None:
        """What is missing is 0."""


@catches("net_coalescing.queues_that_are_not_enabled")
class CoalescesAnyQueue(NetReference):
    def check_coalesced(self, index: int) -> None:
        """There need not be any such queue."""


@catches("net_coalescing.queues_that_are_not_enabled")
class CoalescesBeforeAQueueIsEnabled(NetReference):
    def is_enabled(self, index: int) -> bool:
        return index < 2 * self.pairs


class Reenables(NetReference):
    """The parameters of a queue in one direction are something else once it is enabled again."""

    direction = 0
    reset_before = False

    def again(self, index: int) -> tuple[int, int]:
        """By default what they were."""
        return self.settings.coalescing.get(index, NO_COALESCING)

    def of_direction(self, index: int) -> tuple[int, int]:
        if index % 2 == self.direction and self.reset_before:
            return self.again(index)
        return super().of_direction(index)

    def reset_queue(self, index: int) -> Position:
        self.reset_before = True
        return super().reset_queue(index)


@catches("net_coalescing.a_transmit_queue_that_is_enabled_again")
class TransmitKeepsItsOwn(Reenables):
    direction = 1


@catches("net_coalescing.a_transmit_queue_that_is_enabled_again")
class TransmitForgetsAll(Reenables):
    direction = 1

    def again(self, index: int) -> tuple[int, int]:
        return NO_COALESCING


@catches("net_coalescing.a_receive_queue_that_is_enabled_again")
class ReceiveKeepsItsOwn(Reenables):
    """And nothing else."""


@catches("net_coalescing.a_receive_queue_that_is_enabled_again")
class ReceiveForgetsAll(Reenables):
    def again(self, index: int) -> tuple[int, int]:
        return NO_COALESCING


@catches("net_coalescing.nothing_after_a_reset")
class KeepsCoalescing(NetReference):
    def fresh(self) -> Settings:
        old = self.settings
        return Settings(coalescing=old.coalescing, of_direction=old.of_direction)


@catches("net_coalescing.suppressed_is_suppressed")
class NotifiesWhenItsConditionIsMet(NetReference):
    """Whatever the driver suppresses."""

    def call(self, served: Served) -> None:
        index = next(i for i, other in self.queues.items() if other is served)
        if self.settings.coalescing.get(index, NO_COALESCING) != NO_COALESCING:
            os.eventfd_write(served.call, 1)
        else:
            super().call(served)


# Statistics


@catches("net_stats.which_statistics")
class TellsNoTypes(NetReference):
    def stats_query(self, command: int, data: bytes) -> bytes:
        return b""


@catches("net_stats.which_statistics")
class LacksTheBasicTypes(NetReference):
    def supported_stats(self) -> int:
        return 1 << CVQ


@catches("net_stats.which_statistics")
class TellsOfWhatItHasNot(NetReference):
    def stats_get(self, command: int, data: bytes) -> bytes:
        raise Refused


class Lenient(NetReference):
    """It takes one sort of request that is wrong."""

    def forgiven(self, index: int, types: int) -> bool:
        return False

    def stats_of(self, index: int, types: int) -> bytes:
        return b"" if self.forgiven(index, types) else super().stats_of(index, types)


@catches("net_stats.statistics_that_are_none")
class TakesAnyQueue(Lenient):
    def forgiven(self, index: int, types: int) -> bool:
        return index > 2 * self.pairs


@catches("net_stats.statistics_that_are_none")
class TakesAnyType(Lenient):
    def forgiven(self, index: int, types: int) -> bool:
        return types >> 60 > 0


@catches("net_stats.statistics_that_are_none")
class TakesTheOtherDirection(Lenient):
    def forgiven(self, index: int, types: int) -> bool:
        return index == 0 and types >> 16 & 1 > 0


@catches("net_stats.statistics_that_are_none")
class TakesTypesNotNegotiated(NetReference):
    def has_stats(self, kind: int) -> bool:
        return kind == RX_CSUM or super().has_stats(kind)


@catches("net_stats.one_of_many_is_wrong")
class SkipsWhatIsWrong(NetReference):
    """As long as something is right."""

    def one_is_wrong(self) -> None:
        """The others are answered."""


class Headed(NetReference):
    """The header of an entry is changed."""

    def head(self, kind: int, index: int, size: int) -> tuple[int, int, int]:
        return kind, index, size

    def stats_header(self, kind: int, index: int, size: int) -> bytes:
        kind, index, size = self.head(kind, index, size)
        return struct.pack("<BBHHH", kind, 0, index, 0, size)


@catches("net_stats.the_size_of_each")
class SizeWithoutHeader(Headed):
    def head(self, kind: int, index: int, size: int) -> tuple[int, int, int]:
        return kind, index, size - 8


@catches("net_stats.the_type_of_each")
class NoType(Headed):
    def head(self, kind: int, index: int, size: int) -> tuple[int, int, int]:
        return 0, index, size


@catches("net_stats.the_type_of_each")
class NoIndex(Headed):
    def head(self, kind: int, index: int, size: int) -> tuple[int, int, int]:
        return kind, 0, size


@catches("net_stats.no_more_than_there_is")
class FillsTheRoom(NetReference):
    def cut(self, result: bytes, room: int) -> bytes:
        return result.ljust(room, b"\0")
