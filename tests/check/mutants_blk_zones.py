"""Zoned block devices that get one thing wrong in what they say of themselves, or in the states of
their zones."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from tests.check.mutants import REFERENCES, catches
from tests.check.reference import Reference
from tests.check.reference_blk import ZONED, HostAware, HostManaged, State
from virtq.features import F
from virtq.wire.blk import BlkConfig, BlkFeature, Header, Zoned
from virtq.wire.blk import Status as BlkStatus
from virtq.wire.blk_zones import Model, ZoneRequest, ZoneState, ZoneStatus, ZoneType

REFERENCES["blk_zones"] = ZONED

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


# Without ZONED


@catches("blk.zone_requests_without_zoned")
class ReportsToAll(HostAware):
    def request(self, header: Header, data: bytes, room: int) -> tuple[int, bytes]:
        if header.type == ZoneRequest.REPORT:
            return BlkStatus.OK, self.zone_report(self.zones[0], room)
        return super().request(header, data, room)
