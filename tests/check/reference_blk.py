"""Block devices that are right, in what the plain reference does not have: a cache that is lost on
a reset, secure erase, lifetime, a capacity that changes, and zones."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from tests.check.reference import Reference
from virtq.model.memory import DeviceHalf, Taken
from virtq.wire.blk import BlkConfig, BlkFeature, Header, Segment, Type, Zoned
from virtq.wire.blk import Status as BlkStatus
from virtq.wire.blk_zones import (
    ACTIVE,
    OPEN,
    REPORT_HEADER_BYTES,
    Model,
    Zone,
    ZoneRequest,
    ZoneState,
    ZoneStatus,
    ZoneType,
    pack_report,
)

_PATTERN = 0x5C
"""What unwritten sectors read as."""


class ReadOnly(Reference):
    offered = Reference.offered | int(BlkFeature.RO)


class Volatile(Reference):
    """What is not stable is lost on a reset."""

    def __init__(self) -> None:
        super().__init__()
        self.stable = bytes(self.content)

    def request(self, header: Header, data: bytes, room: int) -> tuple[int, bytes]:
        answer = super().request(header, data, room)
        if header.type == Type.FLUSH or self.is_written_through():
            self.commit()
        return answer

    def commit(self) -> None:
        self.stable = bytes(self.content)

    def is_written_through(self) -> bool:
        if self.features & BlkFeature.CONFIG_WCE:
            return not self.writeback()
        return not self.features & BlkFeature.FLUSH

    def reset(self) -> None:
        super().reset()
        self.content[:] = self.stable


class Erasing(Reference):
    """SECURE_ERASE and LIFETIME."""

    offered = Reference.offered | int(BlkFeature.SECURE_ERASE | BlkFeature.LIFETIME)
    lifetime = (1, 2, 0)

    def blk_config(self) -> BlkConfig:
        settings = super().blk_config()
        settings.max_secure_erase_sectors = 16
        settings.max_secure_erase_seg = 2
        settings.secure_erase_sector_alignment = 4
        return settings

    def request(self, header: Header, data: bytes, room: int) -> tuple[int, bytes]:
        match header.type:
            case Type.GET_LIFETIME:
                return BlkStatus.OK, struct.pack("<HHH", *self.lifetime)
            case Type.SECURE_ERASE:
                return self.erase(Segment.parse_all(data)), b""
        return super().request(header, data, room)

    def erase(self, segments: Sequence[Segment]) -> int:
        for segment in segments:
            if segment.flags:
                return BlkStatus.UNSUPP
            at, length = segment.sector * 512, segment.num_sectors * 512
            self.content[at : at + length] = b"\xff" * length
        return BlkStatus.OK


class Restless(Reference):
    """Its capacity shrinks and its write_zeroes_may_unmap changes with the third request."""

    served = 0

    def use(self, half: DeviceHalf, taken: Sequence[Taken]) -> None:
        self.served += len(taken)
        if self.served >= 3 and self.sectors == Reference.sectors:
            self.sectors = Reference.sectors // 2
            self.tell_of_change()
        super().use(half, taken)

    def blk_config(self) -> BlkConfig:
        settings = super().blk_config()
        settings.write_zeroes_may_unmap = int(self.sectors != Reference.sectors)
        return settings


# Zones


@dataclass
class State:
    """A zone as the device knows it."""

    start: int
    size: int
    capacity: int
    type: ZoneType
    state: ZoneState
    pointer: int

    @property
    def end(self) -> int:
        return self.start + self.size


class HostManaged(Reference):
    """Ten zones: a conventional one, a read-only one, an offline one, and a smaller one at the end;
    the others have to be written sequentially."""

    offered = Reference.offered & ~int(BlkFeature.DISCARD) | int(BlkFeature.ZONED)
    model = Model.HOST_MANAGED
    kind = ZoneType.SEQUENTIAL_REQUIRED
    zone_sectors, zone_capacity, last_sectors = 32, 24, 16
    sectors = 9 * 32 + 16
    open_max, active_max, append_max = 3, 4, 8
    granule = 2

    def __init__(self) -> None:
        super().__init__()
        self.zones = self.layout()

    def layout(self) -> list[State]:
        size = self.zone_sectors
        zones = [
            State(at, size, self.zone_capacity, self.kind, ZoneState.EMPTY, at)
            for at in range(0, 9 * size, size)
        ]
        last = 9 * size
        zones.append(State(last, self.last_sectors, 16, self.kind, ZoneState.EMPTY, last))
        zones[0].type, zones[0].state = ZoneType.CONVENTIONAL, ZoneState.NOT_WP
        zones[0].capacity = size
        zones[7].state, zones[8].state = ZoneState.READ_ONLY, ZoneState.OFFLINE
        return zones

    def accepts(self, features: int) -> bool:
        refused = self.model == Model.HOST_MANAGED and not features & BlkFeature.ZONED
        return super().accepts(features) and not refused

    def blk_config(self) -> BlkConfig:
        settings = super().blk_config()
        if not self.features or self.features & BlkFeature.ZONED:
            settings.zoned = self.characteristics()
        return settings

    def characteristics(self) -> Zoned:
        return Zoned(
            zone_sectors=self.zone_sectors,
            max_open_zones=self.open_max,
            max_active_zones=self.active_max,
            max_append_sectors=self.append_max,
            write_granularity=512 * self.granule,
            model=self.model,
        )

    # Requests

    def request(self, header: Header, data: bytes, room: int) -> tuple[int, bytes]:
        if self.features & BlkFeature.ZONED and header.sector < self.sectors:
            zone = next(z for z in self.zones if z.start <= header.sector < z.end)
            match header.type:
                case Type.OUT:
                    return self.zone_write(zone, header.sector, data), b""
                case Type.IN:
                    return self.zone_read(zone, header.sector, room)
                case ZoneRequest.REPORT:
                    return BlkStatus.OK, self.zone_report(zone, room)
                case ZoneRequest.APPEND:
                    status, sector = self.append(zone, header.sector, data)
                    return status, sector.to_bytes(8, "little")
                case ZoneRequest.OPEN:
                    return self.open_zone(zone), b""
                case ZoneRequest.CLOSE:
                    return self.close_zone(zone), b""
                case ZoneRequest.FINISH:
                    return self.finish(zone), b""
                case ZoneRequest.RESET:
                    return self.reset_zone(zone), b""
                case ZoneRequest.RESET_ALL:
                    for each in self.zones:
                        self.reset_zone(each)
                    return BlkStatus.OK, b""
        return super().request(header, data, room)

    def zone_report(self, first: State, room: int) -> bytes:
        count = max(0, (room - REPORT_HEADER_BYTES) // 64)
        return pack_report(
            [
                Zone(zone.capacity, zone.start, zone.pointer, zone.type, zone.state)
                for zone in self.zones
                if zone.start >= first.start
            ][:count]
        )

    def lacking(self, zone: State) -> int:
        """The status if a zone cannot become open for lack of resources; 0 if it can."""
        if zone.state not in ACTIVE and self.active_max:
            active = sum(other.state in ACTIVE for other in self.zones)
            if active >= self.active_max:
                return ZoneStatus.ACTIVE_RESOURCE
        if zone.state not in OPEN and self.open_max:
            opened = [other for other in self.zones if other.state in OPEN]
            if len(opened) >= self.open_max and not self.give_way(opened):
                return ZoneStatus.OPEN_RESOURCE
        return 0

    def give_way(self, opened: list[State]) -> bool:
        """Close one that is implicitly open."""
        for other in opened:
            if other.state == ZoneState.IMPLICITLY_OPEN:
                other.state = ZoneState.CLOSED
                return True
        return False

    def open_zone(self, zone: State) -> int:
        if zone.state not in (*ACTIVE, ZoneState.EMPTY):
            return ZoneStatus.INVALID_CMD
        if status := self.lacking(zone):
            return status
        zone.state = ZoneState.EXPLICITLY_OPEN
        return BlkStatus.OK

    def close_zone(self, zone: State) -> int:
        if zone.state not in ACTIVE:
            return ZoneStatus.INVALID_CMD
        zone.state = ZoneState.EMPTY if zone.pointer == zone.start else ZoneState.CLOSED
        return BlkStatus.OK

    def finish(self, zone: State) -> int:
        if zone.state not in (*ACTIVE, ZoneState.FULL):
            return ZoneStatus.INVALID_CMD
        zone.state = ZoneState.FULL
        return BlkStatus.OK

    def reset_zone(self, zone: State) -> int:
        if zone.state not in (*ACTIVE, ZoneState.FULL, ZoneState.EMPTY):
            return ZoneStatus.INVALID_CMD
        zone.state, zone.pointer = ZoneState.EMPTY, zone.start
        self.forget(zone.start, zone.end)
        return BlkStatus.OK

    def forget(self, start: int, end: int) -> None:
        self.content[512 * start : 512 * end] = bytes([_PATTERN]) * (512 * (end - start))

    def zone_read(self, zone: State, sector: int, room: int) -> tuple[int, bytes]:
        end = sector + room // 512
        if zone.state == ZoneState.OFFLINE:
            return ZoneStatus.INVALID_CMD, b""
        if self.crosses(zone, end):
            return ZoneStatus.INVALID_CMD, b""
        return BlkStatus.OK, bytes(self.content[512 * sector : 512 * end])

    def crosses(self, zone: State, end: int) -> bool:
        return zone.type == ZoneType.SEQUENTIAL_REQUIRED and end > zone.end

    def zone_write(self, zone: State, sector: int, data: bytes) -> int:
        if zone.type == ZoneType.CONVENTIONAL:
            return self.put(sector, data)
        return self.written(zone, sector, data)

    def written(self, zone: State, sector: int, data: bytes) -> int:
        """A write to a sequential zone."""
        end = sector + len(data) // 512
        if self.unwritable(zone) or self.crosses(zone, end):
            return ZoneStatus.INVALID_CMD
        if zone.type == ZoneType.SEQUENTIAL_PREFERRED:
            zone.pointer = max(zone.pointer, end)
            return self.put(sector, data)
        if self.is_beside(zone, sector) or end % self.granule:
            return ZoneStatus.UNALIGNED_WP
        if self.overflows(zone, end):
            return ZoneStatus.INVALID_CMD
        if zone.state not in OPEN:
            if status := self.lacking(zone):
                return status
            zone.state = ZoneState.IMPLICITLY_OPEN
        zone.pointer = end
        if end == zone.start + zone.capacity:
            zone.state = ZoneState.FULL
        return self.put(sector, data)

    def unwritable(self, zone: State) -> bool:
        return zone.state in (ZoneState.READ_ONLY, ZoneState.OFFLINE, ZoneState.FULL)

    def is_beside(self, zone: State, sector: int) -> bool:
        return sector != zone.pointer

    def overflows(self, zone: State, end: int) -> bool:
        return end > zone.start + zone.capacity

    def put(self, sector: int, data: bytes) -> int:
        self.content[512 * sector : 512 * sector + len(data)] = data
        return BlkStatus.OK

    def append(self, zone: State, sector: int, data: bytes) -> tuple[int, int]:
        if not self.append_max:
            return BlkStatus.UNSUPP, 0
        if self.refuses_append(zone, sector) or self.too_big(data):
            return ZoneStatus.INVALID_CMD, 0
        at = zone.pointer
        if at + len(data) // 512 > zone.end:
            return ZoneStatus.INVALID_CMD, 0
        return self.written(zone, at, data), at

    def refuses_append(self, zone: State, sector: int) -> bool:
        return zone.type != ZoneType.SEQUENTIAL_REQUIRED or sector != zone.start

    def too_big(self, data: bytes) -> bool:
        return len(data) // 512 > self.append_max


class HostAware(HostManaged):
    offered = HostManaged.offered | int(BlkFeature.DISCARD)
    model = Model.HOST_AWARE
    kind = ZoneType.SEQUENTIAL_PREFERRED

    def written(self, zone: State, sector: int, data: bytes) -> int:
        if not self.unwritable(zone) and zone.state not in OPEN:
            if status := self.lacking(zone):
                return status
            zone.state = ZoneState.IMPLICITLY_OPEN
        return super().written(zone, sector, data)


class WithoutAppends(HostManaged):
    append_max = 0


class WithoutLimits(HostManaged):
    open_max = active_max = 0


class RefusingWhenFull(HostManaged):
    """Closes no zone by itself."""

    def give_way(self, opened: list[State]) -> bool:
        return False


class ErasingZones(HostManaged):
    offered = HostManaged.offered | int(BlkFeature.SECURE_ERASE)

    def blk_config(self) -> BlkConfig:
        settings = super().blk_config()
        settings.max_secure_erase_sectors = self.zone_sectors
        settings.max_secure_erase_seg = 1
        settings.secure_erase_sector_alignment = self.zone_sectors
        return settings

    def request(self, header: Header, data: bytes, room: int) -> tuple[int, bytes]:
        if header.type == Type.SECURE_ERASE:
            return self.erase(Segment.parse_all(data)), b""
        return super().request(header, data, room)

    def erase(self, segments: Sequence[Segment]) -> int:
        for segment in segments:
            if segment.flags:
                return BlkStatus.UNSUPP
            zone = next(zone for zone in self.zones if zone.start == segment.sector)
            if status := self.reset_zone(zone):
                return status
        return BlkStatus.OK


class DriveManaged(Reference):
    """Offers ZONED, and shows no zones."""

    offered = Reference.offered | int(BlkFeature.ZONED)


ZONED = (
    HostManaged,
    HostAware,
    WithoutAppends,
    WithoutLimits,
    RefusingWhenFull,
    ErasingZones,
    DriveManaged,
)
"""Every sort of zoned device."""
