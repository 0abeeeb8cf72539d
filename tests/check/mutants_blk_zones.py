"""Zoned block devices that get one thing wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from tests.check.mutants import REFERENCES, catches
from tests.check.reference import Reference
from tests.check.reference_blk import (
    DriveManaged,
    ErasingZones,
    HostAware,
    HostManaged,
    RefusingWhenFull,
    State,
    WithoutAppends,
    WithoutLimits,
)
from virtq.features import F
from virtq.wire.blk import BlkConfig, BlkFeature, Header, Segment, Zoned
from virtq.wire.blk import Status as BlkStatus
from virtq.wire.blk_zones import Model, ZoneRequest, ZoneState, ZoneStatus, ZoneType

REFERENCES["blk_zones"] = (
    HostManaged,
    HostAware,
    WithoutAppends,
    WithoutLimits,
    RefusingWhenFull,
    ErasingZones,
    DriveManaged,
)

REFERENCES["blk_zone_writes"] = REFERENCES["blk_zones"]

# What the device says of itself


@catches("blk_zones.zoned_is_not_legacy")
class LegacyZones(HostAware):
    offered = HostAware.offered & ~int(F.VERSION_1)


@catches("blk_zones.a_host_managed_device_needs_zoned")
class ManagesAlone(HostManaged):
    def accepts(self, features: int) -> bool:
        return Reference.accepts(self, features)


@catches("blk_zones.without_zoned_there_are_no_zones")
class ShowsZonesToAll(HostAware):
    def blk_config(self) -> BlkConfig:
        return dataclasses.replace(super().blk_config(), zoned=self.characteristics())


@catches("blk_zones.without_zoned_there_are_no_zones")
class AwareNeedsZoned(HostAware):
    def accepts(self, features: int) -> bool:
        return super().accepts(features) and bool(features & BlkFeature.ZONED)


class Says(HostManaged):
    """Its characteristics are not what they are."""

    said: ClassVar[dict[str, Any]]

    def characteristics(self) -> Zoned:
        return dataclasses.replace(super().characteristics(), **self.said)


@catches("blk_zones.padding")
class NoisyZonePadding(Says):
    said: ClassVar[dict[str, Any]] = {"unused2": b"\0\1\0"}


@catches("blk_zones.the_model")
class SaysItIsAware(Says):
    said: ClassVar[dict[str, Any]] = {"model": int(Model.HOST_AWARE)}


@catches("blk_zones.the_model")
class ModelOfItsOwn(Says):
    said: ClassVar[dict[str, Any]] = {"model": 3}


@catches("blk_zones.zoned_devices_have_zones")
class PlainDiskWithZoned(HostManaged):
    def layout(self) -> list[State]:
        zones = super().layout()
        for zone in zones:
            zone.type, zone.state = ZoneType.CONVENTIONAL, ZoneState.NOT_WP
        return zones


@catches("blk_zones.the_size_of_a_zone")
class SaysHalfAZone(Says):
    said: ClassVar[dict[str, Any]] = {"zone_sectors": 16}


@catches("blk_zones.the_size_of_a_zone")
class HoldsMoreThanAZone(HostManaged):
    zone_capacity = 40


@catches("blk_zones.the_size_of_a_zone")
class LosesTheLastZone(HostManaged):
    def zone_report(self, first: State, room: int) -> bytes:
        last, self.zones = self.zones[-1], self.zones[:-1]
        try:
            return super().zone_report(first, room)
        finally:
            self.zones.append(last)


@catches("blk_zones.no_small_zone_in_the_middle")
class SmallZoneInTheMiddle(HostManaged):
    def layout(self) -> list[State]:
        zones = super().layout()
        zones[3].size -= 8
        zones[4].start -= 8
        zones[4].size += 8
        return zones


@catches("blk_zones.appends_fit_into_the_segments")
class AppendsWithoutBound(Says):
    said: ClassVar[dict[str, Any]] = {"max_append_sectors": 30 * 4096 + 1}


@catches("blk_zones.the_write_granularity")
class CoarserThanItSays(Says):
    said: ClassVar[dict[str, Any]] = {"write_granularity": 512}


@catches("blk_zones.the_write_granularity")
class FinerThanItSays(HostManaged):
    granule = 1

    def characteristics(self) -> Zoned:
        return dataclasses.replace(super().characteristics(), write_granularity=1024)


@catches("blk_zones.as_many_open_zones_as_it_says")
class FewerOpenThanItSays(Says):
    open_max = 2
    said: ClassVar[dict[str, Any]] = {"max_open_zones": 3}


@catches("blk_zones.as_many_open_zones_as_it_says")
class MoreOpenThanItSays(Says):
    said: ClassVar[dict[str, Any]] = {"max_open_zones": 2}


@catches("blk_zones.as_many_open_zones_as_it_says")
class UnsaidOpenLimit(Says):
    active_max = 0
    said: ClassVar[dict[str, Any]] = {"max_open_zones": 0}


@catches("blk_zones.as_many_active_zones_as_it_says")
class FewerActiveThanItSays(Says):
    active_max = 3
    said: ClassVar[dict[str, Any]] = {"max_active_zones": 4}


@catches("blk_zones.as_many_active_zones_as_it_says")
class UnsaidActiveLimit(Says):
    said: ClassVar[dict[str, Any]] = {"max_active_zones": 0}


@catches("blk_zones.as_many_active_zones_as_it_says")
class CountsOpenOnesOnly(HostManaged):
    """A closed zone is not active to it."""

    def lacking(self, zone: State) -> int:
        closed = [z for z in self.zones if z.state == ZoneState.CLOSED]
        for other in closed:
            other.state = ZoneState.EMPTY
        status = super().lacking(zone)
        for other in closed:
            other.state = ZoneState.CLOSED
        return status


# States


@catches("blk_zones.a_conventional_zone")
class OpensConventionalZones(HostManaged):
    def open_zone(self, zone: State) -> int:
        return BlkStatus.OK if zone.type == ZoneType.CONVENTIONAL else super().open_zone(zone)


@catches("blk_zones.a_conventional_zone", "blk_zones.a_zone_that_is_read_only")
class ResetsEverything(HostManaged):
    def reset_zone(self, zone: State) -> int:
        odd = zone.state in (ZoneState.NOT_WP, ZoneState.READ_ONLY)
        return BlkStatus.OK if odd else super().reset_zone(zone)


@catches("blk_zones.a_full_zone")
class OpensFullZones(HostManaged):
    def open_zone(self, zone: State) -> int:
        if zone.state == ZoneState.FULL:
            zone.state = ZoneState.CLOSED
        return super().open_zone(zone)


@catches("blk_zones.a_full_zone", "blk_zones.a_conventional_zone")
class ClosesAnything(HostManaged):
    def close_zone(self, zone: State) -> int:
        return super().close_zone(zone) and BlkStatus.OK


@catches("blk_zones.a_full_zone")
class MindsAFullZone(HostManaged):
    def finish(self, zone: State) -> int:
        full = zone.state == ZoneState.FULL
        return ZoneStatus.INVALID_CMD if full else super().finish(zone)


@catches("blk_zones.a_zone_that_is_read_only")
class FinishesReadOnlyZones(HostManaged):
    def finish(self, zone: State) -> int:
        if zone.state == ZoneState.READ_ONLY:
            zone.state = ZoneState.FULL
            return ZoneStatus.INVALID_CMD
        return super().finish(zone)


@catches("blk_zones.a_zone_that_is_read_only")
class OpensReadOnlyZones(HostManaged):
    def open_zone(self, zone: State) -> int:
        return BlkStatus.OK if zone.state == ZoneState.READ_ONLY else super().open_zone(zone)


@catches("blk_zones.a_zone_that_is_read_only", "blk_zone_writes.an_offline_zone")
class ClosesReadOnlyZones(HostManaged):
    def close_zone(self, zone: State) -> int:
        odd = zone.state in (ZoneState.READ_ONLY, ZoneState.OFFLINE)
        return BlkStatus.OK if odd else super().close_zone(zone)


@catches("blk_zones.an_open_too_many", "blk_zones.as_many_open_zones_as_it_says")
class CallsItInvalid(HostManaged):
    def open_zone(self, zone: State) -> int:
        status = super().open_zone(zone)
        lacking = (ZoneStatus.OPEN_RESOURCE, ZoneStatus.ACTIVE_RESOURCE)
        return ZoneStatus.INVALID_CMD if status in lacking else status


@catches("blk_zones.an_open_too_many")
class ClosesWhatItCannotOpen(HostManaged):
    def open_zone(self, zone: State) -> int:
        status = super().open_zone(zone)
        if status == ZoneStatus.OPEN_RESOURCE:
            zone.state = ZoneState.CLOSED
        return status


@catches("blk_zones.a_write_that_opens_too_many")
class WritesWithoutLimits(HostManaged):
    def written(self, zone: State, sector: int, data: bytes) -> int:
        limits = self.open_max, self.active_max
        self.open_max = self.active_max = 0
        try:
            return super().written(zone, sector, data)
        finally:
            self.open_max, self.active_max = limits


@catches("blk_zones.a_write_that_opens_too_many")
class AppendsWithoutLimits(HostManaged):
    def append(self, zone: State, sector: int, data: bytes) -> tuple[int, int]:
        limits = self.open_max, self.active_max
        self.open_max = self.active_max = 0
        try:
            return super().append(zone, sector, data)
        finally:
            self.open_max, self.active_max = limits


@catches("blk_zones.implicitly_open_zones_give_way", "blk_zones.an_open_too_many")
class ClosesWhatWasOpened(HostManaged):
    def give_way(self, opened: list[State]) -> bool:
        opened[0].state = ZoneState.CLOSED
        return True


@catches("blk_zones.implicitly_open_zones_give_way")
class ForgetsWhatItCloses(HostManaged):
    def give_way(self, opened: list[State]) -> bool:
        before = {zone.start: zone.state for zone in self.zones}
        found = super().give_way(opened)
        for zone in self.zones:
            if zone.state == ZoneState.CLOSED != before[zone.start]:
                zone.pointer = zone.start
        return found


# Writing


@catches("blk_zone_writes.a_write_beside_the_write_pointer")
class WritesAnywhere(HostManaged):
    def is_beside(self, zone: State, sector: int) -> bool:
        return False


@catches("blk_zone_writes.a_write_beside_the_write_pointer")
class CallsItInvalidToo(HostManaged):
    def written(self, zone: State, sector: int, data: bytes) -> int:
        status = super().written(zone, sector, data)
        return ZoneStatus.INVALID_CMD if status == ZoneStatus.UNALIGNED_WP else status


@catches("blk_zone_writes.beyond_the_zone_s_capacity")
class CapacityIsTheSize(HostManaged):
    def overflows(self, zone: State, end: int) -> bool:
        return False


@catches("blk_zone_writes.across_two_zones")
class ReadsAcross(HostManaged):
    def zone_read(self, zone: State, sector: int, room: int) -> tuple[int, bytes]:
        end = sector + room // 512
        return BlkStatus.OK, bytes(self.content[512 * sector : 512 * end])


@catches("blk_zone_writes.across_two_zones")
class WritesAcross(HostManaged):
    def written(self, zone: State, sector: int, data: bytes) -> int:
        if sector + len(data) // 512 > zone.end:
            return BlkStatus.OK
        return super().written(zone, sector, data)


@catches("blk_zone_writes.across_two_zones")
class AppendsAcross(HostManaged):
    def append(self, zone: State, sector: int, data: bytes) -> tuple[int, int]:
        if zone.pointer + len(data) // 512 > zone.end:
            return ZoneStatus.UNALIGNED_WP, 0
        return super().append(zone, sector, data)


@catches("blk_zone_writes.writes_to_a_read_only_zone")
class WritesReadOnlyZones(HostManaged):
    def unwritable(self, zone: State) -> bool:
        return zone.state in (ZoneState.OFFLINE, ZoneState.FULL)


@catches("blk_zone_writes.writes_to_a_read_only_zone")
class FailsOnReadOnlyZones(HostManaged):
    def written(self, zone: State, sector: int, data: bytes) -> int:
        status = super().written(zone, sector, data)
        return BlkStatus.IOERR if zone.state == ZoneState.READ_ONLY else status


@catches("blk_zone_writes.an_offline_zone")
class ReadsOfflineZones(HostManaged):
    def zone_read(self, zone: State, sector: int, room: int) -> tuple[int, bytes]:
        if zone.state == ZoneState.OFFLINE:
            return BlkStatus.OK, bytes(room)
        return super().zone_read(zone, sector, room)


@catches("blk_zone_writes.an_offline_zone")
class WritesOfflineZones(HostManaged):
    def unwritable(self, zone: State) -> bool:
        return zone.state in (ZoneState.READ_ONLY, ZoneState.FULL)


# Appending


@catches("blk_zone_writes.where_an_append_went")
class TellsTheEnd(HostManaged):
    def append(self, zone: State, sector: int, data: bytes) -> tuple[int, int]:
        status, at = super().append(zone, sector, data)
        return status, at + len(data) // 512


@catches("blk_zone_writes.where_an_append_went")
class TellsTheOffset(HostManaged):
    def append(self, zone: State, sector: int, data: bytes) -> tuple[int, int]:
        status, at = super().append(zone, sector, data)
        return status, at - zone.start


@catches("blk_zone_writes.an_append_to_another_zone")
class AppendsToPreferredZones(HostAware):
    def refuses_append(self, zone: State, sector: int) -> bool:
        return zone.type == ZoneType.CONVENTIONAL or sector != zone.start


@catches("blk_zone_writes.an_append_to_another_zone")
class AppendsToConventionalZones(HostManaged):
    def append(self, zone: State, sector: int, data: bytes) -> tuple[int, int]:
        if zone.type == ZoneType.CONVENTIONAL:
            return self.put(sector, data), sector
        return super().append(zone, sector, data)


@catches("blk_zone_writes.an_append_into_the_middle")
class AppendsAnywhere(HostManaged):
    def refuses_append(self, zone: State, sector: int) -> bool:
        return zone.type != ZoneType.SEQUENTIAL_REQUIRED


@catches("blk_zone_writes.an_append_into_the_middle")
class AppendsAtTheWritePointer(HostManaged):
    def refuses_append(self, zone: State, sector: int) -> bool:
        return super().refuses_append(zone, sector) and sector != zone.pointer


@catches("blk_zone_writes.the_largest_append")
class AppendsMoreThanItSays(HostManaged):
    def too_big(self, data: bytes) -> bool:
        return False


@catches("blk_zone_writes.the_largest_append")
class AppendsLessThanItSays(HostManaged):
    def too_big(self, data: bytes) -> bool:
        return len(data) // 512 >= self.append_max


@catches("blk_zone_writes.the_largest_append")
class UnsupportedWhenTooBig(HostManaged):
    def append(self, zone: State, sector: int, data: bytes) -> tuple[int, int]:
        return (BlkStatus.UNSUPP, 0) if self.too_big(data) else super().append(zone, sector, data)


@catches("blk_zone_writes.appends_are_not_had")
class HasAppendsAfterAll(WithoutAppends):
    def characteristics(self) -> Zoned:
        return dataclasses.replace(super().characteristics(), max_append_sectors=0)

    append_max = 8


@catches("blk_zone_writes.appends_are_not_had")
class CallsAppendsInvalid(WithoutAppends):
    def append(self, zone: State, sector: int, data: bytes) -> tuple[int, int]:
        return ZoneStatus.INVALID_CMD, 0


# Reading


@catches("blk_zone_writes.behind_the_write_pointer", "blk_zone_writes.what_a_finish_leaves_out")
class KeepsOldData(HostManaged):
    def forget(self, start: int, end: int) -> None:
        """It is only the write pointer that moves."""


@catches("blk_zone_writes.what_a_finish_leaves_out")
class FinishBringsItBack(HostManaged):
    def forget(self, start: int, end: int) -> None:
        self.old = start, bytes(self.content[512 * start : 512 * end])
        super().forget(start, end)

    def finish(self, zone: State) -> int:
        start, old = self.old
        if start == zone.start:
            at, rest = 512 * zone.pointer, old[512 * (zone.pointer - start) :]
            self.content[at : at + len(rest)] = rest
        return super().finish(zone)


@catches("blk_zone_writes.behind_the_write_pointer")
class AnotherPatternEachTime(HostManaged):
    seed = 0

    def zone_read(self, zone: State, sector: int, room: int) -> tuple[int, bytes]:
        status, data = super().zone_read(zone, sector, room)
        self.seed += 1
        return status, bytes([self.seed]) * len(data) if sector >= zone.pointer else data


# Secure erase


@catches("blk_zone_writes.erases_are_of_whole_zones")
class ErasesHalfZones(ErasingZones):
    def blk_config(self) -> BlkConfig:
        half = self.zone_sectors // 2
        return dataclasses.replace(super().blk_config(), secure_erase_sector_alignment=half)


@catches("blk_zone_writes.an_erase_resets")
class ErasesWithoutAReset(ErasingZones):
    def erase(self, segments: Sequence[Segment]) -> int:
        for sector, sectors, _ in segments:
            self.forget(sector, sector + sectors)
        return BlkStatus.OK


@catches("blk.zone_requests_without_zoned")
class ReportsToAll(HostAware):
    def request(self, header: Header, data: bytes, room: int) -> tuple[int, bytes]:
        if header.type == ZoneRequest.REPORT:
            return BlkStatus.OK, self.zone_report(self.zones[0], room)
        return super().request(header, data, room)
