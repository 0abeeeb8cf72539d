"""Zoned block devices (5.2.5, 5.2.6): what they say of themselves, and their zones' states."""

from __future__ import annotations

from virtq.check.case import NotObservable, case, expect
from virtq.check.context import Context
from virtq.check.disk import capacity, config, live_disk
from virtq.check.zones import Zones, zones
from virtq.features import F
from virtq.wire import blk
from virtq.wire.blk import SECTOR_BYTES, BlkFeature, Status
from virtq.wire.blk_zones import (
    OPEN,
    Model,
    ZoneRequest,
    ZoneState,
    ZoneStatus,
    ZoneType,
)

_BLK = blk.DEVICE_ID
_ZONED = BlkFeature.ZONED
_INVALID, _OK = ZoneStatus.INVALID_CMD, Status.OK
_LACKING = (ZoneStatus.OPEN_RESOURCE, ZoneStatus.ACTIVE_RESOURCE)
_STATEFUL = (ZoneRequest.OPEN, ZoneRequest.CLOSE, ZoneRequest.FINISH, ZoneRequest.RESET)
_SWR = ZoneType.SEQUENTIAL_REQUIRED
_OPEN_AT_ONCE = 64
"""Zones that are opened where there is no limit."""
_OPEN_MOST = 512
"""Zones that are opened to reach a limit; one beyond is not looked for."""

# What the device says of itself


@case("blk.init.dev.legacy-no-zoned", device_id=_BLK, rings=False, needs=_ZONED)
def zoned_is_not_legacy(ctx: Context) -> None:
    """A device that offers ZONED offers VERSION_1."""
    offered = ctx.session().offered
    expect(offered & F.VERSION_1, "VERSION_1 offered with ZONED", f"{offered:#x}")


@case("blk.init.dev.hm-declined-refuse", device_id=_BLK, rings=False, needs=_ZONED)
def a_host_managed_device_needs_zoned(ctx: Context) -> None:
    """A host-managed device leaves FEATURES_OK off when ZONED is declined."""
    session = ctx.session()
    session.negotiate(int(F.VERSION_1 | _ZONED))
    if config(session).zoned.model != Model.HOST_MANAGED:
        raise NotObservable("the device is not host-managed")
    session.reset()
    expect(not session.negotiate(int(F.VERSION_1)), "FEATURES_OK off without ZONED", "it is on")


@case("blk.init.dev.zoned-declined-clear", device_id=_BLK, rings=False, needs=_ZONED)
def without_zoned_there_are_no_zones(ctx: Context) -> None:
    """SHOULD: a device that is not host-managed goes on without ZONED, and every field about zones
    reads as zero."""
    session = ctx.session()
    session.negotiate(int(F.VERSION_1 | _ZONED))
    if config(session).zoned.model == Model.HOST_MANAGED:
        raise NotObservable("the device is host-managed")
    session.reset()
    expect(session.negotiate(int(F.VERSION_1)), "FEATURES_OK without ZONED", "it is off")
    expect(config(session).zoned == blk.Zoned(), "zoned all 0", config(session).zoned)


@case("blk.init.dev.padding2-zero", device_id=_BLK, rings=False, needs=_ZONED)
def padding(ctx: Context) -> None:
    """The padding behind the zone model is zero."""
    session = ctx.session()
    session.negotiate(int(F.VERSION_1 | _ZONED))
    unused = config(session).zoned.unused2
    expect(not any(unused), "unused2 of zeroes", unused.hex())


@case("blk.init.dev.zone-model", device_id=_BLK, needs=_ZONED)
def the_model(ctx: Context) -> None:
    """The model is none, host-managed or host-aware, and the zones are of its kind: sequential
    write required ones, or sequential write preferred ones."""
    live = live_disk(ctx, _ZONED)
    model = config(live.session).zoned.model
    expect(model in set(Model), "model 0, 1 or 2", model)
    if model == Model.NONE:
        raise NotObservable("a drive-managed device does not show its zones")
    other = _SWR if model == Model.HOST_AWARE else ZoneType.SEQUENTIAL_PREFERRED
    odd = [zone for zone in Zones(live).all() if zone.type == other]
    expect(not odd, f"no zone of type {other.name} on a {Model(model).name} device", odd[:1])


@case("blk.init.dev.non-zoned-no-offer", device_id=_BLK, needs=_ZONED)
def zoned_devices_have_zones(ctx: Context) -> None:
    """SHOULD: a device that is not zoned does not offer ZONED: one that offers it, and is not
    drive-managed, has a zone that is written sequentially."""
    found = zones(ctx).all()
    types = {zone.type for zone in found}
    wanted = {ZoneType.SEQUENTIAL_REQUIRED, ZoneType.SEQUENTIAL_PREFERRED}
    expect(types & wanted, "a sequential zone", f"{len(found)} zones, types {sorted(types)}")


@case("blk.init.dev.zone-sectors", device_id=_BLK, needs=_ZONED)
def the_size_of_a_zone(ctx: Context) -> None:
    """Zones begin at multiples of zone_sectors, one at each, up to the capacity; none can hold more
    than that."""
    disk = zones(ctx)
    size, end = disk.size, capacity(disk.live.session)
    expect(size > 0, "a zone size", "zone_sectors 0")
    found = disk.all()
    for index, zone in enumerate(found):
        expect(zone.start == index * size, f"zone {index} at sector {index * size}", zone)
        expect(zone.capacity <= size, f"a capacity of {size} sectors at most", zone)
    if found[-1].start + size < end:
        raise NotObservable("the device has more zones than are looked at")
    expect(len(found) == -(-end // size), f"{-(-end // size)} zones", len(found))


@case("blk.init.dev.last-zone-smaller", device_id=_BLK, needs=_ZONED)
def no_small_zone_in_the_middle(ctx: Context) -> None:
    """Only the last zone can be smaller than the others: a report for any sector of a zone, its
    last one as well, begins with that zone."""
    disk = zones(ctx)
    end = capacity(disk.live.session)
    for start in range(0, min(end, 64 * disk.size), disk.size):
        last = min(start + disk.size, end) - 1
        for sector in {start, last}:
            found = disk.report(sector, 1)
            expect(
                found and found[0].start == start,
                f"the zone at {start} for sector {sector}",
                found[:1] or "an empty report",
            )


@case("blk.init.dev.max-append-bound", device_id=_BLK, rings=False, needs=_ZONED)
def appends_fit_into_the_segments(ctx: Context) -> None:
    """max_append_sectors does not exceed seg_max times size_max, where there are both."""
    session = ctx.session()
    limits = BlkFeature.SIZE_MAX | BlkFeature.SEG_MAX
    if limits & ~session.offered:
        raise NotObservable("the device does not limit the size of a request")
    session.negotiate(int(F.VERSION_1 | _ZONED | limits))
    now = config(session)
    bound, most = now.seg_max * now.size_max, now.zoned.max_append_sectors
    expect(most <= bound, f"{bound} at most", f"max_append_sectors {most}")


@case("blk.init.dev.write-granularity", device_id=_BLK, needs=_ZONED)
def the_write_granularity(ctx: Context) -> None:
    """Writes of write_granularity at the write pointer are taken, one after the other; one of a
    sector less than that is not, where the zone has to be written sequentially."""
    disk = zones(ctx)
    granularity = disk.config.zoned.write_granularity
    expect(
        granularity and granularity % SECTOR_BYTES == 0,
        "a write_granularity of whole sectors",
        granularity,
    )
    with disk.empty() as (zone,):
        at = zone.start
        for seed in range(3):
            status = disk.write(at, disk.data(seed=seed))
            disk.must(status, _OK, what=f"a write of {granularity} bytes at {at}")
            at += disk.granule
        if zone.type == _SWR and disk.granule > 1:
            status = disk.write(at, bytes(SECTOR_BYTES))
            expect(status != _OK, f"a write of {SECTOR_BYTES} bytes refused", "status OK")


@case("blk.init.dev.max-open-zones", device_id=_BLK, needs=_ZONED)
def as_many_open_zones_as_it_says(ctx: Context) -> None:
    """max_open_zones zones can be opened, and not one more; 0 is no limit (64 are tried)."""
    disk = zones(ctx)
    room, active = disk.room()
    wanted = _OPEN_AT_ONCE if room is None else room
    if active is not None and active < wanted:
        raise NotObservable("the limit of active zones is reached before")
    found = [z for z in disk.all() if z.state == ZoneState.EMPTY]
    if room is None:
        wanted = min(wanted, len(found))
    if wanted < 0 or (room is not None and wanted > _OPEN_MOST):
        raise NotObservable(f"{wanted} zones would have to be opened")
    with disk.empty(wanted if room is None else wanted + 1) as empty:
        for zone in empty[:wanted]:
            status = disk.operate(ZoneRequest.OPEN, zone.start)
            disk.must(status, _OK, what="an open within max_open_zones")
        if room is not None:
            status = disk.operate(ZoneRequest.OPEN, empty[-1].start)
            both = active is not None and active <= wanted
            lacking = ZoneStatus.ACTIVE_RESOURCE if both else ZoneStatus.OPEN_RESOURCE
            disk.must(status, lacking, what="one open more than max_open_zones")


@case("blk.init.dev.max-active-zones", device_id=_BLK, needs=_ZONED)
def as_many_active_zones_as_it_says(ctx: Context) -> None:
    """max_active_zones zones can be active, closed ones among them, and not one more; 0 is no limit
    (64 are tried)."""
    disk = zones(ctx)
    room, active = disk.room()
    if room is not None and room < 1:
        raise NotObservable("no zone can be opened")
    found = [z for z in disk.all() if z.state == ZoneState.EMPTY]
    wanted = min(_OPEN_AT_ONCE, len(found)) if active is None else active
    if wanted < 0 or (active is not None and wanted > _OPEN_MOST):
        raise NotObservable(f"{wanted} zones would have to be active")
    with disk.empty(wanted if active is None else wanted + 1) as empty:
        for zone in empty[:wanted]:
            disk.must(disk.write(zone.start, disk.data()), _OK, what="a write within the limits")
            status = disk.operate(ZoneRequest.CLOSE, zone.start)
            disk.must(status, _OK, what="a close of an open zone")
            disk.must(disk.state(zone.start), ZoneState.CLOSED, what="the zone's state")
        if active is not None:
            status = disk.operate(ZoneRequest.OPEN, empty[-1].start)
            lacking = ZoneStatus.ACTIVE_RESOURCE
            disk.must(status, lacking, what="one zone more than max_active_zones")


# Opening, closing, finishing, resetting


@case("blk.zone.dev.conventional-invalid", device_id=_BLK, needs=_ZONED)
def a_conventional_zone(ctx: Context) -> None:
    """Open, close, finish and reset of a conventional zone end with INVALID_CMD."""
    disk = zones(ctx)
    zone = disk.some(lambda z: z.type == ZoneType.CONVENTIONAL, "conventional zone")
    for kind in _STATEFUL:
        status = disk.operate(kind, zone.start)
        disk.must(status, _INVALID, what=f"{kind.name} of a conventional zone")


@case(
    "blk.zone.dev.open-impossible",
    "blk.zone.dev.close-impossible",
    device_id=_BLK,
    needs=_ZONED,
)
def a_full_zone(ctx: Context) -> None:
    """A full zone can be neither opened nor closed: INVALID_CMD, and it stays full. A finish
    succeeds, and a reset makes it empty."""
    disk = zones(ctx)
    with disk.empty() as (zone,):
        disk.make_full(zone)
        for kind in (ZoneRequest.OPEN, ZoneRequest.CLOSE):
            status = disk.operate(kind, zone.start)
            disk.must(status, _INVALID, what=f"{kind.name} of a full zone")
            disk.must(disk.state(zone.start), ZoneState.FULL, what="the zone's state")
        status = disk.operate(ZoneRequest.FINISH, zone.start)
        disk.must(status, _OK, what="FINISH of a full zone")
        disk.must(disk.operate(ZoneRequest.RESET, zone.start), _OK, what="RESET of a full zone")
        now = disk.at(zone.start)
        expect(now.state == ZoneState.EMPTY, "an empty zone", now)
        expect(now.write_pointer == zone.start, "the write pointer at its start", now)


@case(
    "blk.zone.dev.finish-impossible",
    "blk.zone.dev.reset-impossible",
    "blk.zone.dev.open-impossible",
    "blk.zone.dev.close-impossible",
    device_id=_BLK,
    needs=_ZONED,
)
def a_zone_that_is_read_only(ctx: Context) -> None:
    """A read-only zone changes its state for no request: INVALID_CMD for each."""
    disk = zones(ctx)
    zone = disk.of_state(ZoneState.READ_ONLY)
    for kind in _STATEFUL:
        status = disk.operate(kind, zone.start)
        disk.must(status, _INVALID, what=f"{kind.name} of a read-only zone")
        now = disk.state(zone.start)
        expect(now == ZoneState.READ_ONLY, "a zone that stays read-only", f"state {now}")


@case("blk.zone.dev.open-resources", device_id=_BLK, needs=_ZONED)
def an_open_too_many(ctx: Context) -> None:
    """An open for which resources are lacking ends with a resource status, and the zone's state is
    as it was."""
    disk = zones(ctx)
    rooms = [room for room in disk.room() if room is not None]
    if not rooms:
        raise NotObservable("the device has no limits")
    with disk.empty(max(min(rooms), 0) + 1) as empty:
        for zone in empty[:-1]:
            disk.must(disk.operate(ZoneRequest.OPEN, zone.start), _OK, what="an open")
        status = disk.operate(ZoneRequest.OPEN, empty[-1].start)
        disk.must(status, *_LACKING, what="an open without resources")
        now = disk.state(empty[-1].start)
        expect(now == ZoneState.EMPTY, "a zone that stays empty", f"state {now}")


@case("blk.zone.dev.implicit-open-resources", device_id=_BLK, needs=_ZONED)
def a_write_that_opens_too_many(ctx: Context) -> None:
    """A write, and an append, to an empty zone while all that can be open is explicitly open ends
    with a resource status, and nothing is written."""
    disk = zones(ctx)
    rooms = [room for room in disk.room() if room is not None]
    if not rooms:
        raise NotObservable("the device has no limits")
    with disk.empty(max(min(rooms), 0) + 1, _SWR) as empty:
        for zone in empty[:-1]:
            disk.must(disk.operate(ZoneRequest.OPEN, zone.start), _OK, what="an open")
        start = empty[-1].start
        status = disk.write(start, disk.data())
        disk.must(status, *_LACKING, what="a write that would open a zone")
        if disk.config.zoned.max_append_sectors:
            status, _ = disk.append(start, disk.data())
            disk.must(status, *_LACKING, what="an append that would open a zone")
        now = disk.at(start)
        expect(now.write_pointer == start, "a write pointer that stays", now)


@case("blk.zone.dev.auto-close", device_id=_BLK, needs=_ZONED)
def implicitly_open_zones_give_way(ctx: Context) -> None:
    """When a write would open one zone too many, the device may close one that is implicitly open,
    or refuse: it does not close one that was opened explicitly, nor go beyond its limit, and what
    is closed keeps its write pointer."""
    disk = zones(ctx)
    room, active = disk.room()
    if room is None or room < 2:
        raise NotObservable("fewer than two zones can be open, or there is no limit")
    if active is not None and active < room + 1:
        raise NotObservable("the limit of active zones is reached before")
    with disk.empty(room + 1) as empty:
        held = empty[0].start
        disk.must(disk.operate(ZoneRequest.OPEN, held), _OK, what="an open")
        for zone in empty[1:-1]:
            disk.must(disk.write(zone.start, disk.data()), _OK, what="a write within the limits")
        status = disk.write(empty[-1].start, disk.data())
        disk.must(status, _OK, *_LACKING, what="a write that opens one zone too many")
        now = disk.all()
        opened = sum(zone.state in OPEN for zone in now)
        most = disk.config.zoned.max_open_zones
        expect(opened <= most, f"{most} open zones at most", opened)
        by_start = {zone.start: zone for zone in now}
        expect(
            by_start[held].state == ZoneState.EXPLICITLY_OPEN,
            "the zone that was opened explicitly still so",
            by_start[held],
        )
        for zone in empty[1:-1]:
            at = zone.start + disk.granule
            pointer = by_start[zone.start].write_pointer
            expect(pointer == at, f"the write pointer at {at}", by_start[zone.start])
