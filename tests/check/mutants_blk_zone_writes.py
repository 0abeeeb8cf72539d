"""Zoned block devices that get one thing wrong when zones are written, read or erased."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tests.check.mutants import REFERENCES, catches
from tests.check.reference_blk import (
    ZONED,
    ErasingZones,
    HostAware,
    HostManaged,
    State,
    WithoutAppends,
)
from virtq.wire.blk import BlkConfig, Segment, Zoned
from virtq.wire.blk import Status as BlkStatus
from virtq.wire.blk_zones import ZoneState, ZoneStatus, ZoneType

REFERENCES["blk_zone_writes"] = ZONED

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
