"""Zones of a block device (5.2.6), for the cases that are about them.

A case works on zones that were empty, and they are reset at its end: what is on the disk stays.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from enum import IntEnum

from virtq.check.case import Broken, NotObservable, expect
from virtq.check.context import Context, Live
from virtq.check.disk import capacity, config, live_disk, request, serve, status_of
from virtq.wire.blk import SECTOR_BYTES, BlkConfig, BlkFeature, Status, Type
from virtq.wire.blk_zones import (
    ACTIVE,
    APPEND_SECTOR_BYTES,
    DESCRIPTOR_BYTES,
    OPEN,
    REPORT_HEADER_BYTES,
    Model,
    Zone,
    ZoneRequest,
    ZoneState,
    ZoneStatus,
    ZoneType,
    parse_report,
)

_AT_ONCE = 32
"""Zones in one report."""
_MANY = 4096
"""Zones that are looked at, at most."""
_FILL_SECTORS_MAX = 1 << 17
_WRITE_SECTORS = 64


class Zones:
    """The zones of a device that is live with ZONED."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self.config: BlkConfig = config(live.session)
        self.granule = max(1, self.config.zoned.write_granularity // SECTOR_BYTES)
        """Sectors of the smallest write."""

    @property
    def size(self) -> int:
        """Sectors of a zone."""
        return self.config.zoned.zone_sectors

    def report(self, sector: int = 0, count: int = _AT_ONCE) -> list[Zone]:
        """Up to `count` zones from the one that holds the sector on."""
        room = REPORT_HEADER_BYTES + count * DESCRIPTOR_BYTES
        reply = serve(self.live, request(ZoneRequest.REPORT, sector, room=room))
        expect(reply[-1] == Status.OK, "status OK for a zone report", f"status {reply[-1]}")
        try:
            return parse_report(reply[:-1])
        except ValueError as error:
            raise Broken("a zone report with as many descriptors as it says", str(error)) from None

    def all(self) -> list[Zone]:
        """Every zone, from the first sector to the last."""
        found: list[Zone] = []
        sector, end = 0, capacity(self.live.session)
        while sector < end and len(found) < _MANY:
            part = self.report(sector)
            expect(part, f"a zone that holds sector {sector}", "an empty report")
            found += part
            following = part[-1].start + max(self.size, 1)
            expect(following > sector, "zones in ascending order", f"zone at {part[-1].start}")
            sector = following
        return found

    def at(self, start: int) -> Zone:
        """The zone that begins there, as it is now."""
        found = self.report(start, 1)
        expect(
            found and found[0].start == start,
            f"a report that begins with the zone at {start}",
            found[:1] or "an empty report",
        )
        return found[0]

    def state(self, start: int) -> int:
        return self.at(start).state

    def some(self, fits: Callable[[Zone], bool], what: str) -> Zone:
        """Raises NotObservable if there is none."""
        for zone in self.all():
            if fits(zone):
                return zone
        raise NotObservable(f"the device has no {what}")

    def of_state(self, state: ZoneState) -> Zone:
        return self.some(lambda z: z.state == state, f"zone that is {state.name.lower()}")

    # Requests

    def operate(self, kind: ZoneRequest, sector: int) -> int:
        """An open, close, finish or reset; its status."""
        return status_of(self.live, request(kind, sector))

    def write(self, sector: int, data: bytes) -> int:
        return status_of(self.live, request(Type.OUT, sector, data))

    def append(self, sector: int, data: bytes) -> tuple[int, int]:
        """The status, and where the data went."""
        job = request(ZoneRequest.APPEND, sector, data, room=APPEND_SECTOR_BYTES)
        reply = serve(self.live, job)
        return reply[-1], int.from_bytes(reply[:-1], "little")

    def read(self, sector: int, sectors: int) -> tuple[int, bytes]:
        reply = serve(self.live, request(Type.IN, sector, room=sectors * SECTOR_BYTES))
        return reply[-1], reply[:-1]

    def data(self, granules: int = 1, seed: int = 1) -> bytes:
        """So many granules that differ from each other and from those of another seed."""
        length = self.granule * SECTOR_BYTES
        return b"".join(
            (seed * 1000003 + index).to_bytes(8, "big") * (length // 8) for index in range(granules)
        )

    def must(self, came: int, *wanted: IntEnum, what: str) -> None:
        """Raises Broken unless a status, or a state, is one of those."""
        names = " or ".join(value.name for value in wanted)
        known = {value.value: value.name for value in (*Status, *ZoneStatus)}
        if isinstance(wanted[0], ZoneState):
            known = {value.value: value.name for value in ZoneState}
        expect(came in wanted, f"{names} for {what}", known.get(came, came))

    # What a case works on

    @contextlib.contextmanager
    def empty(self, count: int = 1, kind: ZoneType | None = None) -> Iterator[list[Zone]]:
        """So many empty zones; they are reset at the end. Raises NotObservable if there are not as
        many."""
        kinds = (kind,) if kind else (ZoneType.SEQUENTIAL_REQUIRED, ZoneType.SEQUENTIAL_PREFERRED)
        found = [z for z in self.all() if z.state == ZoneState.EMPTY and z.type in kinds][:count]
        if len(found) < count:
            raise NotObservable(f"{count} empty zones are needed, the device has {len(found)}")
        try:
            yield found
        finally:
            for zone in found:
                self.live.ring.serve(request(ZoneRequest.RESET, zone.start))

    def room(self) -> tuple[int | None, int | None]:
        """How many more zones can be open, and active; None where there is no limit. Raises
        NotObservable if there are zones that the device may close by itself."""
        states = [zone.state for zone in self.all()]
        if ZoneState.IMPLICITLY_OPEN in states:
            raise NotObservable("there are implicitly open zones before it begins")
        limits = self.config.zoned
        opened = sum(state in OPEN for state in states)
        active = sum(state in ACTIVE for state in states)
        return (
            limits.max_open_zones - opened if limits.max_open_zones else None,
            limits.max_active_zones - active if limits.max_active_zones else None,
        )

    def fill(self, zone: Zone, leave: int) -> int:
        """Write an empty zone from its start so that `leave` sectors are left; the write pointer
        after it. Raises NotObservable for a zone that is too large."""
        if zone.capacity > _FILL_SECTORS_MAX:
            raise NotObservable(f"a zone of {zone.capacity} sectors is too large to be filled")
        at, end = zone.start, zone.start + zone.capacity - leave
        step = max(_WRITE_SECTORS // self.granule, 1) * self.granule
        while at < end:
            count = min(step, end - at)
            data = bytes([at % 251]) * (count * SECTOR_BYTES)
            status = self.write(at, data)
            self.must(status, Status.OK, what=f"a write at the write pointer {at}")
            at += count
        return at

    def make_full(self, zone: Zone) -> None:
        """Make an empty zone full, by a write and a finish."""
        self.must(self.write(zone.start, self.data()), Status.OK, what="a write to an empty zone")
        status = self.operate(ZoneRequest.FINISH, zone.start)
        self.must(status, Status.OK, what="a finish of an open zone")
        self.must(self.state(zone.start), ZoneState.FULL, what="the zone's state")


def zones(ctx: Context, need: int = 0) -> Zones:
    """A zoned device, live. Raises NotObservable for one that is not, or is drive-managed."""
    found = Zones(live_disk(ctx, BlkFeature.ZONED | need))
    if found.config.zoned.model == Model.NONE:
        raise NotObservable("a drive-managed device does not show its zones")
    return found
