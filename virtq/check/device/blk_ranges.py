"""Discard, write zeroes and secure erase (5.2.6)."""

from __future__ import annotations

import os

from virtq.check.case import NotObservable, case, expect
from virtq.check.context import Context, Live
from virtq.check.disk import (
    capacity,
    config,
    live_disk,
    put_back,
    read,
    segments,
    status_of,
    succeed,
    writable_disk,
    write,
)
from virtq.wire import blk
from virtq.wire.blk import SECTOR_BYTES, SEGMENT_UNMAP, BlkFeature, Segment, Status, Type

_BLK = blk.DEVICE_ID
_SECTORS = 8
_AT_ONCE = 64
"""Segments in one request, at most."""
_SAVED_SECTORS_MAX = 1024
"""A larger range is not tried: what is there has to be put back."""


def _around(live: Live, kind: int, ranges: list[Segment], sectors: int) -> tuple[bytes, bytes]:
    """Write something, send the ranges, and read: what was written, and what is there."""
    data = os.urandom(sectors * SECTOR_BYTES)
    write(live, 0, data)
    succeed(live, segments(kind, *ranges), f"{len(ranges)} segments")
    return data, read(live, 0, sectors)


def _the_rest_stays(data: bytes, now: bytes, ranges: list[Segment]) -> None:
    touched = {s for r in ranges for s in range(r.sector, r.sector + r.num_sectors)}
    for sector in range(len(data) // SECTOR_BYTES):
        at = slice(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES)
        if sector not in touched:
            expect(now[at] == data[at], f"sector {sector} as it was", "it changed")


@case("feat.dev.no-unsupported-offer", device_id=_BLK, needs=BlkFeature.DISCARD)
def a_discard(ctx: Context) -> None:
    """A discard of a range ends with OK, and what is beside the range stays."""
    live = writable_disk(ctx, BlkFeature.DISCARD)
    settings = config(live.session)
    unit = max(settings.discard_sector_alignment, 1)
    if not unit <= min(settings.max_discard_sectors, _SAVED_SECTORS_MAX):
        raise NotObservable(f"a discard is of {unit} sectors at the least")
    ranges = [Segment(unit, unit, 0)]
    with put_back(live, 3 * unit):
        data, now = _around(live, Type.DISCARD, ranges, 3 * unit)
        _the_rest_stays(data, now, ranges)


@case("blk.op.dev.zeroes-read-zero", device_id=_BLK, needs=BlkFeature.WRITE_ZEROES)
def zeroes_with_unmap(ctx: Context) -> None:
    """With unmap as well, the range reads as zeroes after write zeroes, and what is beside it
    stays."""
    live = writable_disk(ctx, BlkFeature.WRITE_ZEROES)
    ranges = [Segment(2, 4, SEGMENT_UNMAP)]
    with put_back(live, _SECTORS):
        data, now = _around(live, Type.WRITE_ZEROES, ranges, _SECTORS)
        zeroed = now[2 * SECTOR_BYTES : 6 * SECTOR_BYTES]
        expect(not any(zeroed), "zeroes in sectors 2 to 5", "other bytes")
        _the_rest_stays(data, now, ranges)


@case("blk.op.dev.zeroes-read-zero", device_id=_BLK, needs=BlkFeature.WRITE_ZEROES)
def as_many_ranges_as_it_says(ctx: Context) -> None:
    """Write zeroes with max_write_zeroes_seg ranges (64 at most): each reads as zeroes."""
    live = writable_disk(ctx, BlkFeature.WRITE_ZEROES)
    most = config(live.session).max_write_zeroes_seg
    count = min(most, _AT_ONCE, capacity(live.session) // 2)
    if count < 1:
        raise NotObservable(f"max_write_zeroes_seg is {most}")
    ranges = [Segment(2 * index, 1, 0) for index in range(count)]
    with put_back(live, 2 * count):
        data, now = _around(live, Type.WRITE_ZEROES, ranges, 2 * count)
        for sector, _, _ in ranges:
            part = now[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES]
            expect(not any(part), f"zeroes in sector {sector}", "other bytes")
        _the_rest_stays(data, now, ranges)


@case("blk.op.dev.unknown-flag-unsupp", device_id=_BLK, needs=BlkFeature.WRITE_ZEROES)
def an_unknown_flag_among_many(ctx: Context) -> None:
    """An unknown flag in any of several ranges makes the request end with UNSUPP."""
    live = writable_disk(ctx, BlkFeature.WRITE_ZEROES)
    count = min(config(live.session).max_write_zeroes_seg, 4)
    if count < 2:
        raise NotObservable("a request has one range at most")
    with put_back(live, _SECTORS):
        for odd in range(count):
            ranges = [Segment(index, 1, 4 if index == odd else 0) for index in range(count)]
            status = status_of(live, segments(Type.WRITE_ZEROES, *ranges))
            expect(status == Status.UNSUPP, f"UNSUPP for a flag in range {odd}", f"{status}")


@case("feat.dev.no-unsupported-offer", device_id=_BLK, needs=BlkFeature.SECURE_ERASE)
def a_secure_erase(ctx: Context) -> None:
    """A secure erase ends with OK; what was there cannot be read any more, and what is beside the
    range stays."""
    live = writable_disk(ctx, BlkFeature.SECURE_ERASE)
    settings = config(live.session)
    unit = max(settings.secure_erase_sector_alignment, 1)
    if not unit <= min(settings.max_secure_erase_sectors, _SAVED_SECTORS_MAX):
        raise NotObservable(f"a secure erase is of {unit} sectors at the least")
    sectors = 3 * unit
    ranges = [Segment(unit, unit, 0)]
    with put_back(live, sectors):
        data, now = _around(live, Type.SECURE_ERASE, ranges, sectors)
        at = slice(unit * SECTOR_BYTES, 2 * unit * SECTOR_BYTES)
        expect(now[at] != data[at], "erased sectors", "what was written before")
        _the_rest_stays(data, now, ranges)


@case("blk.op.dev.unknown-flag-unsupp", device_id=_BLK, needs=BlkFeature.SECURE_ERASE)
def an_erase_with_flags(ctx: Context) -> None:
    """A secure erase with a flag that does not exist ends with UNSUPP."""
    live = live_disk(ctx, BlkFeature.SECURE_ERASE)
    unit = max(config(live.session).secure_erase_sector_alignment, 1)
    if unit > _SAVED_SECTORS_MAX:
        raise NotObservable(f"a secure erase is of {unit} sectors at the least")
    with put_back(live, unit):
        for flags in (2, 0x8000_0000):
            status = status_of(live, segments(Type.SECURE_ERASE, Segment(0, unit, flags)))
            expect(status == Status.UNSUPP, f"UNSUPP for flags {flags:#x}", f"status {status}")


@case("blk.op.dev.ro-no-write", device_id=_BLK, needs=BlkFeature.RO)
def zeroes_on_a_read_only_disk(ctx: Context) -> None:
    """With RO offered, write zeroes does not end with OK, and nothing is written."""
    live = live_disk(ctx, BlkFeature.RO | BlkFeature.WRITE_ZEROES)
    old = read(live, 0, _SECTORS)
    status = status_of(live, segments(Type.WRITE_ZEROES, Segment(0, _SECTORS, 0)))
    expect(status != Status.OK, "a status other than OK", "OK")
    expect(read(live, 0, _SECTORS) == old, "the sectors as they were", "they changed")
