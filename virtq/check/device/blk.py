"""The block device (5.2)."""

from __future__ import annotations

import os

from virtq.check.case import NotObservable, case, expect
from virtq.check.context import Context, Live
from virtq.check.session import UNTOUCHED, Job
from virtq.features import F
from virtq.wire import blk
from virtq.wire.blk import BlkFeature, Header, Segment, Status, Type

_BLK = blk.DEVICE_ID
_FAR = 1 << 40


def _request(kind: int, sector: int = 0, data: bytes = b"", room: int = 0) -> Job:
    """A request with no judge: its status is looked at by the case."""
    return Job(Header(kind, sector).pack() + data, room + 1)


def _status(live: Live, job: Job) -> int:
    reply = live.ring.serve(job)[0].reply
    expect(reply[-1] != UNTOUCHED, "a status byte at the end", "none was written")
    return reply[-1]


def _live(ctx: Context, need: int = 0) -> Live:
    session = ctx.session()
    if need & ~session.offered:
        raise NotObservable(f"not offered: {BlkFeature(need & ~session.offered)!r}")
    return ctx.live(add=need, session=session)


@case("blk.req.status-last-byte", device_id=_BLK)
def read_and_write(ctx: Context) -> None:
    """What is written is read back, and the last byte is the status. The disk is left as it was."""
    live = _live(ctx)
    if live.session.offered & BlkFeature.RO:
        raise NotObservable("the disk is read-only")
    old = live.ring.serve(_request(Type.IN, 0, room=512))[0].reply
    new = os.urandom(512)
    try:
        expect(_status(live, _request(Type.OUT, 0, new)) == Status.OK, "status OK", "another")
        reply = live.ring.serve(_request(Type.IN, 0, room=512))[0].reply
        expect(reply == new + bytes([Status.OK]), "the bytes that were written", "others")
    finally:
        live.ring.serve(_request(Type.OUT, 0, old[:512]))


@case("blk.req.status-last-byte", device_id=_BLK)
def an_unknown_request(ctx: Context) -> None:
    """A request type that does not exist ends with UNSUPP."""
    live = _live(ctx)
    status = _status(live, _request(0x4711))
    expect(status == Status.UNSUPP, f"status UNSUPP ({Status.UNSUPP:d})", status)


@case("blk.req.status-last-byte", device_id=_BLK)
def beyond_the_end(ctx: Context) -> None:
    """A read beyond the capacity ends with IOERR, and the device goes on."""
    live = _live(ctx)
    status = _status(live, _request(Type.IN, _FAR, room=512))
    expect(status == Status.IOERR, f"status IOERR ({Status.IOERR:d})", status)
    live.ring.serve(*live.jobs(4))


@case("blk.op.dev.ro-write-ioerr", "blk.op.dev.ro-no-write", device_id=_BLK)
def read_only(ctx: Context) -> None:
    """With RO offered, a write ends with IOERR, and nothing is written."""
    live = _live(ctx, BlkFeature.RO)
    old = live.ring.serve(_request(Type.IN, 0, room=512))[0].reply
    status = _status(live, _request(Type.OUT, 0, bytes(511) + b"x"))
    expect(status == Status.IOERR, f"status IOERR ({Status.IOERR:d})", status)
    now = live.ring.serve(_request(Type.IN, 0, room=512))[0].reply
    expect(now == old, "the sector as it was", "it changed")


@case("blk.init.dev.wce-implies-flush", "blk.init.dev.offer-flush", device_id=_BLK, rings=False)
def flush_is_offered(ctx: Context) -> None:
    """FLUSH is offered, at the least where CONFIG_WCE is."""
    offered = ctx.session().offered
    if offered & BlkFeature.CONFIG_WCE:
        expect(offered & BlkFeature.FLUSH, "FLUSH offered with CONFIG_WCE", f"{offered:#x}")
    expect(offered & BlkFeature.FLUSH, "FLUSH offered", f"{offered:#x}")


@case("blk.init.dev.padding-zero", device_id=_BLK, rings=False)
def padding(ctx: Context) -> None:
    """The padding of the configuration space is zero, as far as it exists."""
    session = ctx.session()
    if session.offered & BlkFeature.MQ and session.transport.config_size > 33:
        padding = session.transport.read_config(33, 1)
        expect(padding == b"\0", "unused0 = 0", padding.hex())


@case("blk.init.dev.writeback-zero", device_id=_BLK, rings=False, needs=BlkFeature.CONFIG_WCE)
def writeback_without_flush(ctx: Context) -> None:
    """With CONFIG_WCE and without FLUSH, writeback begins as 0."""
    session = ctx.session()
    features = F.VERSION_1 | BlkFeature.CONFIG_WCE
    if not session.negotiate(int(features)):
        raise NotObservable("the device does not take CONFIG_WCE without FLUSH")
    value = session.transport.read_config(32, 1)
    expect(value == b"\0", "writeback 0", value.hex())


def _segment(kind: int, flags: int, sectors: int = 8) -> Job:
    return _request(kind, 0, Segment(0, sectors, flags).pack())


@case(
    "blk.op.dev.unknown-flag-unsupp",
    "blk.op.dev.discard-unmap-unsupp",
    device_id=_BLK,
    needs=BlkFeature.DISCARD,
)
def discard_with_flags(ctx: Context) -> None:
    """A discard with unmap, or with a flag that does not exist, ends with UNSUPP."""
    live = _live(ctx, BlkFeature.DISCARD)
    for flags in (1, 2, 0x8000_0000):
        status = _status(live, _segment(Type.DISCARD, flags))
        expect(status == Status.UNSUPP, f"UNSUPP for flags {flags:#x}", f"status {status}")


@case("blk.op.dev.unknown-flag-unsupp", device_id=_BLK, needs=BlkFeature.WRITE_ZEROES)
def zeroes_with_flags(ctx: Context) -> None:
    """Write zeroes with a flag that does not exist ends with UNSUPP."""
    live = _live(ctx, BlkFeature.WRITE_ZEROES)
    for flags in (2, 0x8000_0000):
        status = _status(live, _segment(Type.WRITE_ZEROES, flags))
        expect(status == Status.UNSUPP, f"UNSUPP for flags {flags:#x}", f"status {status}")


@case("blk.op.dev.zeroes-read-zero", device_id=_BLK, needs=BlkFeature.WRITE_ZEROES)
def zeroes_read_as_zeroes(ctx: Context) -> None:
    """After write zeroes the range reads as zeroes. What was there is put back."""
    live = _live(ctx, BlkFeature.WRITE_ZEROES)
    if live.session.offered & BlkFeature.RO:
        raise NotObservable("the disk is read-only")
    length = 8 * 512
    old = live.ring.serve(_request(Type.IN, 0, room=length))[0].reply[:length]
    try:
        live.ring.serve(_request(Type.OUT, 0, os.urandom(length)))
        expect(_status(live, _segment(Type.WRITE_ZEROES, 0)) == 0, "status OK", "another")
        now = live.ring.serve(_request(Type.IN, 0, room=length))[0].reply
        expect(now[:length] == bytes(length), "zeroes", "other bytes")
    finally:
        live.ring.serve(_request(Type.OUT, 0, old))


@case("blk.zone.dev.not-negotiated-unsupp", device_id=_BLK)
def zone_requests_without_zoned(ctx: Context) -> None:
    """Without ZONED, every zone request ends with UNSUPP."""
    live = _live(ctx)
    append, report = 15, 16
    for kind in (append, report, 18, 20, 22, 24, 26):
        data = bytes(512) if kind == append else b""
        room = 8 if kind == append else 4096 if kind == report else 0
        status = _status(live, _request(kind, 0, data, room))
        expect(status == Status.UNSUPP, f"UNSUPP for request {kind}", f"status {status}")
