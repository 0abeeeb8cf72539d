"""The block device (5.2)."""

from __future__ import annotations

import os
import struct

from virtq.check.case import NotObservable, case, expect
from virtq.check.context import Context, Live
from virtq.check.disk import (
    capacity,
    config,
    has_field,
    live_disk,
    put_back,
    read,
    request,
    segments,
    serve,
    status_of,
    succeed,
    writable_disk,
    write,
)
from virtq.check.session import UNTOUCHED, Job
from virtq.features import F
from virtq.wire import blk
from virtq.wire.blk import ID_BYTES, SECTOR_BYTES, BlkFeature, Segment, Status, Type
from virtq.wire.blk_zones import APPEND_SECTOR_BYTES, ZoneRequest

_BLK = blk.DEVICE_ID
_FAR = 1 << 40
"""A sector that no disk has."""
_REPORT_BYTES = 4096
_SEGMENT_SECTORS = 8
_LIFETIME_BYTES = 6


@case("blk.req.status-last-byte", device_id=_BLK)
def read_and_write(ctx: Context) -> None:
    """What is written is read back, and the last byte is the status. The disk is left as it was."""
    live = writable_disk(ctx)
    new = os.urandom(SECTOR_BYTES)
    with put_back(live, 1):
        write(live, 0, new)
        expect(read(live, 0) == new, "the bytes that were written", "other bytes")


@case("blk.req.status-last-byte", device_id=_BLK)
def an_unknown_request(ctx: Context) -> None:
    """A request type that does not exist ends with UNSUPP."""
    live = live_disk(ctx)
    status = status_of(live, request(0x4711))
    expect(status == Status.UNSUPP, f"status UNSUPP ({Status.UNSUPP:d})", status)


@case("blk.req.status-last-byte", device_id=_BLK)
def beyond_the_end(ctx: Context) -> None:
    """A read beyond the capacity ends with IOERR, and the device goes on."""
    live = live_disk(ctx)
    status = status_of(live, request(Type.IN, _FAR, room=SECTOR_BYTES))
    expect(status == Status.IOERR, f"status IOERR ({Status.IOERR:d})", status)
    live.ring.serve(*live.jobs(4))


@case("blk.op.dev.ro-write-ioerr", "blk.op.dev.ro-no-write", device_id=_BLK)
def read_only(ctx: Context) -> None:
    """With RO offered, a write ends with IOERR, and nothing is written."""
    live = live_disk(ctx, BlkFeature.RO)
    old = read(live, 0)
    changed = bytes(byte ^ 0xFF for byte in old)
    status = status_of(live, request(Type.OUT, 0, changed))
    expect(status == Status.IOERR, f"status IOERR ({Status.IOERR:d})", status)
    expect(read(live, 0) == old, "the sector as it was", "other bytes")


@case("blk.init.dev.wce-implies-flush", "blk.init.dev.offer-flush", device_id=_BLK, rings=False)
def flush_is_offered(ctx: Context) -> None:
    """FLUSH is offered, at the least where CONFIG_WCE is."""
    offered = ctx.session().offered
    if offered & BlkFeature.CONFIG_WCE:
        expect(offered & BlkFeature.FLUSH, "FLUSH offered with CONFIG_WCE", f"{offered:#x}")
    expect(offered & BlkFeature.FLUSH, "FLUSH offered", f"{offered:#x}")


@case("blk.init.dev.padding-zero", device_id=_BLK, rings=False)
def padding(ctx: Context) -> None:
    """The padding behind writeback is zero."""
    session = ctx.session()
    if not has_field(session, "unused0"):
        raise NotObservable("the configuration space ends before it")
    padding = config(session).unused0
    expect(not padding, "unused0 of 0", padding)


@case("blk.init.dev.writeback-zero", device_id=_BLK, rings=False, needs=BlkFeature.CONFIG_WCE)
def writeback_without_flush(ctx: Context) -> None:
    """With CONFIG_WCE and without FLUSH, writeback begins as 0."""
    session = ctx.session()
    features = F.VERSION_1 | BlkFeature.CONFIG_WCE
    if not session.negotiate(int(features)):
        raise NotObservable("the device does not take CONFIG_WCE without FLUSH")
    value = config(session).writeback
    expect(not value, "writeback 0", value)


def _segment(kind: int, flags: int) -> Job:
    return segments(kind, Segment(0, _SEGMENT_SECTORS, flags))


@case(
    "blk.op.dev.unknown-flag-unsupp",
    "blk.op.dev.discard-unmap-unsupp",
    device_id=_BLK,
    needs=BlkFeature.DISCARD,
)
def discard_with_flags(ctx: Context) -> None:
    """A discard with unmap, or with a flag that does not exist, ends with UNSUPP."""
    live = live_disk(ctx, BlkFeature.DISCARD)
    with put_back(live, _SEGMENT_SECTORS):
        for flags in (1, 2, 0x8000_0000):
            status = status_of(live, _segment(Type.DISCARD, flags))
            expect(status == Status.UNSUPP, f"UNSUPP for flags {flags:#x}", f"status {status}")


@case("blk.op.dev.unknown-flag-unsupp", device_id=_BLK, needs=BlkFeature.WRITE_ZEROES)
def zeroes_with_flags(ctx: Context) -> None:
    """Write zeroes with a flag that does not exist ends with UNSUPP."""
    live = live_disk(ctx, BlkFeature.WRITE_ZEROES)
    with put_back(live, _SEGMENT_SECTORS):
        for flags in (2, 0x8000_0000):
            status = status_of(live, _segment(Type.WRITE_ZEROES, flags))
            expect(status == Status.UNSUPP, f"UNSUPP for flags {flags:#x}", f"status {status}")


@case("blk.op.dev.zeroes-read-zero", device_id=_BLK, needs=BlkFeature.WRITE_ZEROES)
def zeroes_read_as_zeroes(ctx: Context) -> None:
    """After write zeroes the range reads as zeroes. What was there is put back."""
    live = writable_disk(ctx, BlkFeature.WRITE_ZEROES)
    with put_back(live, _SEGMENT_SECTORS):
        write(live, 0, os.urandom(_SEGMENT_SECTORS * SECTOR_BYTES))
        succeed(live, _segment(Type.WRITE_ZEROES, 0), "write zeroes")
        expect(not any(read(live, 0, _SEGMENT_SECTORS)), "zeroes", "other bytes")


@case("blk.zone.dev.not-negotiated-unsupp", device_id=_BLK)
def zone_requests_without_zoned(ctx: Context) -> None:
    """Without ZONED, every zone request ends with UNSUPP."""
    live = live_disk(ctx)
    room = {ZoneRequest.APPEND: APPEND_SECTOR_BYTES, ZoneRequest.REPORT: _REPORT_BYTES}
    for kind in ZoneRequest:
        data = bytes(SECTOR_BYTES) if kind == ZoneRequest.APPEND else b""
        status = status_of(live, request(kind, 0, data, room.get(kind, 0)))
        expect(status == Status.UNSUPP, f"UNSUPP for {kind.name}", f"status {status}")


# What else a request can be


@case("blk.req.status-last-byte", device_id=_BLK)
def every_status_is_known(ctx: Context) -> None:
    """Whatever is asked, the status is OK, IOERR or UNSUPP (without ZONED), and is written: it is
    the last byte of all, however much room there is before it."""
    live = live_disk(ctx)
    known = (Status.OK, Status.IOERR, Status.UNSUPP)
    for kind in (*range(32), 0x7FFF_FFFF, 0xFFFF_FFFF):
        if kind in (Type.OUT, Type.DISCARD, Type.WRITE_ZEROES, Type.SECURE_ERASE):
            continue  # they would change what is on the disk
        for room in (0, SECTOR_BYTES):
            if not room and kind in (ZoneRequest.APPEND, ZoneRequest.REPORT):
                continue  # they have none
            status = status_of(live, request(kind, 0, room=room))
            expect(status in known, f"0, 1 or 2 for request type {kind}", f"status {status}")


@case(
    "blk.req.status-last-byte",
    "split.used.dev.data-before-idx",
    "packed.used.len-meaning",
    device_id=_BLK,
)
def the_device_id(ctx: Context) -> None:
    """GET_ID ends with UNSUPP, or gives up to 20 bytes of ASCII, padded with zeroes: the same each
    time. All that the used length covers was written."""
    live = live_disk(ctx)
    seen = set()
    for _ in range(3):
        sent = live.ring.serve(request(Type.GET_ID, room=ID_BYTES))[0]
        reply, written = sent.reply, sent.written or 0
        if reply[-1] == Status.UNSUPP:
            raise NotObservable("the device has no ID")
        expect(reply[-1] == Status.OK, "status OK or UNSUPP", f"status {reply[-1]}")
        untouched = reply[:written].count(UNTOUCHED)
        expect(
            not untouched,
            "a used length that covers bytes which were written",
            f"{written}, of which {untouched} were not",
        )
        text, _, padding = reply[:-1].partition(b"\0")
        expect(text.isascii(), "an ID of ASCII characters", text)
        expect(not any(padding), "zeroes behind the ID", padding)
        seen.add(text)
    expect(len(seen) == 1, "the same ID each time", seen)


@case("framing.dev.no-layout-assumption", device_id=_BLK)
def a_header_in_many_pieces(ctx: Context) -> None:
    """The header in 16 descriptors of a byte, the data in odd pieces, the status in one with the
    data or in one of its own: the same request."""
    live = live_disk(ctx)
    if live.ring.size < 24:
        raise NotObservable("the queue is too short")
    if capacity(live.session) < 3:
        raise NotObservable("the disk has fewer than 3 sectors")
    whole = read(live, 1, 2)
    length = len(whole)
    job = request(Type.IN, 1, room=length)
    for cut in ((length, 1), (length + 1,), (1, length - 1, 1), (511, 514), (3, length - 2)):
        live.ring.add(job, (*[1] * 16, 0, *cut))
        live.ring.kick()
        reply = live.ring.wait(1)[0].reply
        expect(reply == whole + b"\0", f"the same data for pieces of {cut}", "other bytes")


@case("framing.dev.no-layout-assumption", device_id=_BLK)
def data_beside_the_header(ctx: Context) -> None:
    """A write whose header and data share a descriptor, or meet in the middle of one."""
    live = writable_disk(ctx)
    with put_back(live, 1):
        for seed, cut in enumerate(((528,), (8, 520), (15, 2, 511), (17, 511), (16, 1, 511))):
            data = bytes([seed + 1]) * SECTOR_BYTES
            live.ring.add(request(Type.OUT, 0, data), (*cut, 0, 1))
            live.ring.kick()
            status = live.ring.wait(1)[0].reply[-1]
            expect(status == Status.OK, f"status OK for pieces of {cut}", f"status {status}")
            expect(read(live, 0) == data, f"what was written in pieces of {cut}", "other bytes")


@case("split.used.dev.data-before-idx", "vq.used-length-reported", device_id=_BLK)
def a_failed_read_does_not_claim_data(ctx: Context) -> None:
    """The used length counts bytes that were written, from the first on: for a read that fails it
    does not cover bytes that were never touched."""
    live = live_disk(ctx)
    for sectors in (1, 3):
        sent = live.ring.serve(request(Type.IN, _FAR, room=sectors * SECTOR_BYTES))[0]
        assert sent.written is not None
        untouched = sent.reply[: sent.written].count(bytes([UNTOUCHED]) * 64)
        expect(
            untouched == 0,
            "a used length that covers bytes which were written",
            f"{sent.written}, of which {64 * untouched} bytes at the least were not",
        )


@case("split.desc.dev.no-read-of-writable", device_id=_BLK, packed=False)
def nothing_is_read_from_writable_memory(ctx: Context) -> None:
    """SHOULD: device-writable bytes are not read: what stands there is no header."""
    _hidden_header(ctx)


@case("packed.desc.dev.no-read-of-writable", device_id=_BLK, packed=True)
def nothing_is_read_from_writable_memory_packed(ctx: Context) -> None:
    """SHOULD: device-writable bytes are not read: what stands there is no header."""
    _hidden_header(ctx)


def _hidden_header(ctx: Context) -> None:
    live = live_disk(ctx)
    header = request(Type.GET_ID).readable
    sent = live.ring.add(Job(b"", 2 * ID_BYTES + 1))
    sent.writable[0].write(header)
    live.ring.kick()
    for _ in live.session.moment():
        live.session.transport.check()
        if live.ring.half.used_entry() is not None:
            break
    else:
        live.session.reset()  # it gave the queue up, which is as good
        again = live_disk(ctx, session=live.session)
        again.ring.serve(*again.jobs(2))
        return
    reply = live.ring.wait(1)[0].reply
    expect(reply[-1] != Status.OK, "no GET_ID served from device-writable bytes", "status OK")


@case("blk.req.status-last-byte", device_id=_BLK)
def odd_lengths(ctx: Context) -> None:
    """Requests of a length that none should have end with a status that there is, or break the
    queue; after a reset the device serves."""
    odd = [
        request(Type.IN, 0, room=100),
        request(Type.IN, 0, room=SECTOR_BYTES + 1),
        request(Type.OUT, _FAR, bytes(100)),
        request(Type.GET_ID, room=3),
        request(Type.GET_ID, room=100),
        request(Type.FLUSH, 7, room=SECTOR_BYTES),
        Job(request(Type.IN).readable[:9], SECTOR_BYTES + 1),
        Job(request(Type.IN).readable[:15], 1),
    ]
    session = ctx.session()
    for job in odd:
        live = live_disk(ctx, session=session)
        live.ring.add(job)
        live.ring.kick()
        for _ in session.moment():
            session.transport.check()
            if live.ring.half.used_entry() is not None:
                status = live.ring.wait(1)[0].reply[-1]
                known = (Status.OK, Status.IOERR, Status.UNSUPP, UNTOUCHED)
                expect(status in known, "status OK, IOERR, UNSUPP or none", f"status {status}")
                live.ring.serve(*live.jobs(2))
                break
        session.reset()
    live = live_disk(ctx, session=session)
    live.ring.serve(*live.jobs(4))


# Lifetime


def _lifetime(live: Live) -> tuple[int, int, int, int]:
    """Status, pre_eol_info and the two estimates."""
    reply = serve(live, request(Type.GET_LIFETIME, room=_LIFETIME_BYTES))
    return (reply[-1], *struct.unpack("<HHH", reply[:-1]))


@case(
    "blk.op.dev.lifetime-no-reserved",
    "blk.op.dev.lifetime-not-offer",
    device_id=_BLK,
    needs=BlkFeature.LIFETIME,
)
def the_lifetime(ctx: Context) -> None:
    """With LIFETIME, GET_LIFETIME gives values that are not reserved, and not all undefined: that
    would be storage without such metrics."""
    live = live_disk(ctx, BlkFeature.LIFETIME)
    status, info, first, second = _lifetime(live)
    expect(status == Status.OK, "status OK with LIFETIME", f"status {status}")
    expect(info <= 3, "pre_eol_info of 3 at most", info)
    expect(max(first, second) <= 11, "estimates of 11 at most", (first, second))
    expect(info or first or second, "a metric that is not undefined", "0, 0, 0")


@case("blk.op.dev.lifetime-offer", device_id=_BLK)
def a_lifetime_that_is_not_offered(ctx: Context) -> None:
    """SHOULD: a device that has such metrics offers LIFETIME: one that does not offer it has no
    answer to GET_LIFETIME."""
    session = ctx.session()
    if session.offered & BlkFeature.LIFETIME:
        raise NotObservable("LIFETIME is offered")
    status = _lifetime(live_disk(ctx, session=session))[0]
    expect(status != Status.OK, "GET_LIFETIME without an answer", "status OK")
