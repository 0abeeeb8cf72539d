"""Writing to zones, appending to them, reading them and erasing them (5.2.6)."""

from __future__ import annotations

from virtq.check.case import NotObservable, case, expect
from virtq.check.context import Context
from virtq.check.disk import capacity, config, segments, status_of
from virtq.check.zones import Zones, zones
from virtq.features import F
from virtq.wire import blk
from virtq.wire.blk import SECTOR_BYTES, BlkFeature, Segment, Status, Type
from virtq.wire.blk_zones import (
    ZoneRequest,
    ZoneState,
    ZoneStatus,
    ZoneType,
)

_BLK = blk.DEVICE_ID
_ZONED = BlkFeature.ZONED
_INVALID, _OK = ZoneStatus.INVALID_CMD, Status.OK
_STATEFUL = (ZoneRequest.OPEN, ZoneRequest.CLOSE, ZoneRequest.FINISH, ZoneRequest.RESET)
_SWR = ZoneType.SEQUENTIAL_REQUIRED
_APPEND_SECTORS_MAX = 2048


@case("blk.zone.dev.unaligned-wp", device_id=_BLK, needs=_ZONED)
def a_write_beside_the_write_pointer(ctx: Context) -> None:
    """A write before or behind the write pointer of a zone that has to be written sequentially ends
    with UNALIGNED_WP, and nothing is written."""
    disk = zones(ctx)
    with disk.empty(1, _SWR) as (zone,):
        start, step = zone.start, disk.granule
        refused = ZoneStatus.UNALIGNED_WP
        status = disk.write(start + step, disk.data())
        disk.must(status, refused, what="a write behind the write pointer")
        disk.must(disk.write(start, disk.data()), _OK, what="a write at the write pointer")
        disk.must(disk.write(start, disk.data()), refused, what="a write before the write pointer")
        now = disk.at(start)
        expect(now.write_pointer == start + step, f"the write pointer at {start + step}", now)


@case("blk.zone.dev.beyond-capacity", device_id=_BLK, needs=_ZONED)
def beyond_the_zone_s_capacity(ctx: Context) -> None:
    """A write, and an append, of more than what is left of a zone ends with INVALID_CMD."""
    disk = zones(ctx)
    with disk.empty(1, _SWR) as (zone,):
        at = disk.fill(zone, leave=disk.granule)
        status = disk.write(at, disk.data(2))
        disk.must(status, _INVALID, what="a write of more than is left")
        if disk.config.zoned.max_append_sectors >= 2 * disk.granule:
            status, _ = disk.append(zone.start, disk.data(2))
            disk.must(status, _INVALID, what="an append of more than is left")
        disk.must(disk.write(at, disk.data()), _OK, what="a write of what is left")
        disk.must(disk.state(zone.start), ZoneState.FULL, what="the state of a zone to the brim")


@case("blk.zone.dev.cross-zone", device_id=_BLK, needs=_ZONED)
def across_two_zones(ctx: Context) -> None:
    """A read, a write or an append whose range is in more than one zone ends with INVALID_CMD, if
    it begins in one that has to be written sequentially. A write there is beside the write pointer
    as well."""
    disk = zones(ctx)
    with disk.empty(1, _SWR) as (zone,):
        border = zone.start + disk.size
        if border + disk.granule > capacity(disk.live.session):
            raise NotObservable("there is no zone behind it")
        status, _ = disk.read(border - 1, 2)
        disk.must(status, _INVALID, what="a read across the border of two zones")
        status = disk.write(border - disk.granule, disk.data(2))
        refused = (_INVALID, ZoneStatus.UNALIGNED_WP)
        disk.must(status, *refused, what="a write across the border of two zones")
        sectors = disk.size + disk.granule
        if sectors <= _APPEND_SECTORS_MAX and disk.config.zoned.max_append_sectors:
            status, _ = disk.append(zone.start, bytes(sectors * SECTOR_BYTES))
            disk.must(status, _INVALID, what="an append of more than a zone")


@case("blk.zone.dev.read-only-zone", device_id=_BLK, needs=_ZONED)
def writes_to_a_read_only_zone(ctx: Context) -> None:
    """A write and an append to a read-only zone end with INVALID_CMD."""
    disk = zones(ctx)
    zone = disk.of_state(ZoneState.READ_ONLY)
    status = disk.write(zone.start, disk.data())
    disk.must(status, _INVALID, what="a write to a read-only zone")
    if disk.config.zoned.max_append_sectors:
        status, _ = disk.append(zone.start, disk.data())
        disk.must(status, _INVALID, what="an append to a read-only zone")


@case("blk.zone.dev.offline-zone", device_id=_BLK, needs=_ZONED)
def an_offline_zone(ctx: Context) -> None:
    """Every request to an offline zone ends with INVALID_CMD: read, write, append, and those that
    change its state."""
    disk = zones(ctx)
    zone = disk.of_state(ZoneState.OFFLINE)
    disk.must(disk.read(zone.start, 1)[0], _INVALID, what="a read of an offline zone")
    status = disk.write(zone.start, disk.data())
    disk.must(status, _INVALID, what="a write to an offline zone")
    for kind in _STATEFUL:
        status = disk.operate(kind, zone.start)
        disk.must(status, _INVALID, what=f"{kind.name} of an offline zone")
    if disk.config.zoned.max_append_sectors:
        status, _ = disk.append(zone.start, disk.data())
        disk.must(status, _INVALID, what="an append to an offline zone")


# Appending


def _appending(ctx: Context) -> Zones:
    disk = zones(ctx)
    if not disk.config.zoned.max_append_sectors:
        raise NotObservable("the device has no appends")
    return disk


@case("blk.zone.dev.append-sector-set", device_id=_BLK, needs=_ZONED)
def where_an_append_went(ctx: Context) -> None:
    """An append tells the first sector that it wrote: the write pointer as it was; the data is
    there."""
    disk = _appending(ctx)
    with disk.empty(1, _SWR) as (zone,):
        at = zone.start
        for seed in range(3):
            data = disk.data(seed=seed)
            status, sector = disk.append(zone.start, data)
            disk.must(status, _OK, what="an append")
            expect(sector == at, f"append_sector {at}", sector)
            status, now = disk.read(at, disk.granule)
            expect(now == data, f"what was appended at {at}", f"status {status}, other bytes")
            at += disk.granule


@case("blk.zone.dev.append-non-swr", device_id=_BLK, needs=_ZONED)
def an_append_to_another_zone(ctx: Context) -> None:
    """An append to a zone that need not be written sequentially ends with INVALID_CMD."""
    disk = _appending(ctx)
    others = {zone.type: zone for zone in disk.all() if zone.type != _SWR}
    if not others:
        raise NotObservable("all zones have to be written sequentially")
    for kind, zone in others.items():
        status, _ = disk.append(zone.start, disk.data())
        disk.must(status, _INVALID, what=f"an append to a zone of type {kind}")


@case("blk.zone.dev.append-not-zone-start", device_id=_BLK, needs=_ZONED)
def an_append_into_the_middle(ctx: Context) -> None:
    """An append that names another sector than the zone's first ends with INVALID_CMD, also where
    the write pointer stands."""
    disk = _appending(ctx)
    with disk.empty(1, _SWR) as (zone,):
        disk.must(disk.append(zone.start, disk.data())[0], _OK, what="an append")
        for sector in (zone.start + disk.granule, zone.start + 2 * disk.granule):
            status, _ = disk.append(sector, disk.data())
            disk.must(status, _INVALID, what=f"an append that names {sector}")


@case("blk.init.dev.max-append", "blk.zone.dev.append-too-big", device_id=_BLK, needs=_ZONED)
def the_largest_append(ctx: Context) -> None:
    """An append of max_append_sectors (of what a zone holds, if that is less) is taken; a larger
    one ends with INVALID_CMD."""
    disk = _appending(ctx)
    most = disk.config.zoned.max_append_sectors
    if most > _APPEND_SECTORS_MAX:
        raise NotObservable(f"an append of {most} sectors is too large to be tried")
    with disk.empty(1, _SWR) as (zone,):
        status, _ = disk.append(zone.start, bytes((most + disk.granule) * SECTOR_BYTES))
        disk.must(status, _INVALID, what=f"an append of more than {most} sectors")
        fits = min(most, zone.capacity) // disk.granule
        status, _ = disk.append(zone.start, disk.data(fits))
        disk.must(status, _OK, what=f"an append of {fits * disk.granule} sectors")


@case(
    "blk.zone.dev.append-unsupported", "blk.init.dev.max-append-zero", device_id=_BLK, needs=_ZONED
)
def appends_are_not_had(ctx: Context) -> None:
    """With max_append_sectors 0 there are no appends: UNSUPP."""
    disk = zones(ctx)
    if disk.config.zoned.max_append_sectors:
        raise NotObservable("the device has appends")
    with disk.empty(1) as (zone,):
        status, _ = disk.append(zone.start, disk.data())
        disk.must(status, Status.UNSUPP, what="an append with max_append_sectors 0")
        disk.must(disk.state(zone.start), ZoneState.EMPTY, what="the zone's state")


# Reading


@case(
    "blk.zone.dev.unwritten-read", "blk.zone.dev.unwritten-definition", device_id=_BLK, needs=_ZONED
)
def behind_the_write_pointer(ctx: Context) -> None:
    """Sectors that were written before a reset are unwritten after it: they read as a pattern of
    the device's, or the read fails; what was there does not come back."""
    disk = zones(ctx)
    with disk.empty(1) as (zone,):
        old = disk.data(3, seed=11)
        disk.must(disk.write(zone.start, old), _OK, what="a write to an empty zone")
        disk.must(disk.operate(ZoneRequest.RESET, zone.start), _OK, what="a reset")
        disk.must(disk.write(zone.start, disk.data()), _OK, what="a write to an empty zone")
        _unwritten(disk, zone.start + disk.granule, old)


@case("blk.zone.dev.unwritten-definition", device_id=_BLK, needs=_ZONED)
def what_a_finish_leaves_out(ctx: Context) -> None:
    """Sectors behind the write pointer at a finish are unwritten in the full zone."""
    disk = zones(ctx)
    with disk.empty(1) as (zone,):
        old = disk.data(3, seed=13)
        disk.must(disk.write(zone.start, old), _OK, what="a write to an empty zone")
        disk.must(disk.operate(ZoneRequest.RESET, zone.start), _OK, what="a reset")
        disk.make_full(zone)
        _unwritten(disk, zone.start + disk.granule, old)


def _unwritten(disk: Zones, sector: int, old: bytes) -> None:
    """Two granules there, of which `old` has the bytes that were there once, from one granule
    before."""
    length = disk.granule * SECTOR_BYTES
    status, now = disk.read(sector, 2 * disk.granule)
    if status != _OK:
        return  # that is allowed as well
    expect(now != old[length:], "a pattern of the device's", "the data from before the reset")
    again = disk.read(sector, 2 * disk.granule)
    expect(again == (status, now), "the same pattern again", "another one")


# Secure erase


@case("blk.zone.dev.erase-alignment", device_id=_BLK, rings=False, needs=_ZONED)
def erases_are_of_whole_zones(ctx: Context) -> None:
    """With ZONED and SECURE_ERASE, secure_erase_sector_alignment is a multiple of zone_sectors."""
    session = ctx.session()
    both = _ZONED | BlkFeature.SECURE_ERASE
    if both & ~session.offered:
        raise NotObservable("the device does not offer both")
    if not session.negotiate(int(F.VERSION_1 | both)):
        raise NotObservable("the device does not take both")
    now = config(session)
    unit, size = now.secure_erase_sector_alignment, now.zoned.zone_sectors
    if not size:
        raise NotObservable("a drive-managed device does not show its zones")
    expect(unit and unit % size == 0, f"a multiple of {size} sectors", unit)


@case("blk.zone.dev.erase-as-reset", device_id=_BLK, needs=_ZONED)
def an_erase_resets(ctx: Context) -> None:
    """A secure erase of a zone is a reset of it."""
    disk = zones(ctx, BlkFeature.SECURE_ERASE)
    with disk.empty(1) as (zone,):
        disk.must(disk.write(zone.start, disk.data()), _OK, what="a write to an empty zone")
        job = segments(Type.SECURE_ERASE, Segment(zone.start, disk.size, 0))
        disk.must(status_of(disk.live, job), _OK, what="a secure erase of a zone")
        now = disk.at(zone.start)
        expect(now.state == ZoneState.EMPTY, "an empty zone", now)
        expect(now.write_pointer == zone.start, "the write pointer at its start", now)
