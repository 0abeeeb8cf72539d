"""Requests to a block device (5.2.6), for the cases that are about one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from virtq.check.case import NotObservable, expect
from virtq.check.context import Context, Live
from virtq.check.session import UNTOUCHED, Job, Session
from virtq.features import describe
from virtq.wire import blk
from virtq.wire.blk import SECTOR_BYTES, BlkConfig, BlkFeature, Header, Segment, Status, Type
from virtq.wire.layout import fields_of, unpack

_FIELDS = {field.name: field for field in fields_of(BlkConfig)}


def request(kind: int, sector: int = 0, data: bytes = b"", room: int = 0) -> Job:
    """A request with no judge: its status is looked at by the case. `room`: bytes that the device
    may write before the status."""
    return Job(Header(kind, sector).pack() + data, room + 1)


def segments(kind: int, *ranges: Segment) -> Job:
    """A discard, write zeroes or secure erase."""
    return request(kind, 0, b"".join(segment.pack() for segment in ranges))


def live_disk(
    ctx: Context, need: int = 0, *, without: int = 0, session: Session | None = None
) -> Live:
    """The device live, with the features that the case is about. Raises NotObservable without."""
    session = session or ctx.session()
    if lacking := need & ~session.offered:
        raise NotObservable(f"not offered: {describe(lacking, blk.DEVICE_ID)}")
    return ctx.live(add=need, without=without, session=session)


def writable_disk(ctx: Context, need: int = 0) -> Live:
    """The same, and it may be written."""
    session = ctx.session()
    if session.offered & BlkFeature.RO:
        raise NotObservable("the disk is read-only")
    return live_disk(ctx, need, session=session)


def serve(live: Live, job: Job) -> bytes:
    """Everything that may be written by the device, after the request; a status has come."""
    reply = live.ring.serve(job)[0].reply
    expect(reply[-1] != UNTOUCHED, "a status byte at the end", "none was written")
    return reply


def status_of(live: Live, job: Job) -> int:
    return serve(live, job)[-1]


def succeed(live: Live, job: Job, what: str) -> bytes:
    """The data of a request that has to end with OK."""
    reply = serve(live, job)
    expect(reply[-1] == Status.OK, f"status OK for {what}", f"status {reply[-1]}")
    return reply[:-1]


def read(live: Live, sector: int, sectors: int = 1) -> bytes:
    job = request(Type.IN, sector, room=sectors * SECTOR_BYTES)
    return succeed(live, job, f"a read of {sectors} sectors at {sector}")


def write(live: Live, sector: int, data: bytes) -> None:
    job = request(Type.OUT, sector, data)
    succeed(live, job, f"a write of {len(data)} bytes at sector {sector}")


@contextlib.contextmanager
def put_back(live: Live, sectors: int) -> Iterator[bytes]:
    """The first sectors as they are; they are written again at the end."""
    if capacity(live.session) < sectors:
        raise NotObservable(f"the disk has fewer than {sectors} sectors")
    old = read(live, 0, sectors)
    try:
        yield old
    finally:
        live.ring.serve(request(Type.OUT, 0, old))


# Configuration space (5.2.4)


def config(session: Session) -> BlkConfig:
    """As it reads now; what lies beyond the end of the configuration space is 0."""
    size = min(session.transport.config_size, sum(field.size for field in _FIELDS.values()))
    return unpack(BlkConfig, session.transport.read_config(0, size))


def capacity(session: Session) -> int:
    """In sectors of 512 bytes."""
    return int.from_bytes(session.transport.read_config(0, 8), "little")


def has_field(session: Session, name: str) -> bool:
    """Whether the configuration space reaches as far as that field."""
    field = _FIELDS[name]
    return session.transport.config_size >= field.offset + field.size


def offset_of(name: str) -> int:
    return _FIELDS[name].offset
