"""The block device's configuration space (5.2.4, 5.2.5), and what follows from it."""

from __future__ import annotations

from virtq.check.case import NotObservable, case, expect
from virtq.check.context import Context, Live
from virtq.check.disk import (
    capacity,
    config,
    has_field,
    live_disk,
    offset_of,
    put_back,
    read,
    request,
    status_of,
    succeed,
    writable_disk,
)
from virtq.check.session import Session
from virtq.errors import ConfigError
from virtq.features import F
from virtq.wire import blk
from virtq.wire.blk import FIELD_FEATURE, SECTOR_BYTES, BlkFeature, Status, Type

_BLK = blk.DEVICE_ID
_LEAVES = {
    "geometry": "geometry.sectors",
    "topology": "topology.opt_io_size",
    "zoned": "zoned.unused2",
}
"""The last part of a field that is a structure."""
_SEGMENTS = 128
"""Segments in one request, at most."""


def _offered_fields(session: Session) -> list[str]:
    return [name for name, feature in FIELD_FEATURE.items() if session.offered & feature]


@case("cfg.dev.readable-before-features-ok", device_id=_BLK, rings=False)
def the_fields_of_each_feature(ctx: Context) -> None:
    """The fields of every offered feature can be read before FEATURES_OK, and all but those that
    depend on what is negotiated read the same afterwards."""
    session = ctx.session()
    session.acknowledge()
    if not session.transport.config_size:
        raise NotObservable("the transport shows no configuration space")
    for name in _offered_fields(session):
        expect(
            has_field(session, _LEAVES.get(name, name)),
            f"a configuration space that reaches to the end of {name}",
            f"{session.transport.config_size} bytes",
        )
    early = config(session)
    session.reset()
    if not session.negotiate(int(session.offered & (F.VERSION_1 | (1 << 24) - 1))):
        raise NotObservable("the device does not take all that it offers for a block device")
    late = config(session)
    for name in ("capacity", *_offered_fields(session)):
        if name in ("writeback", "capacity", "write_zeroes_may_unmap"):
            continue  # these may change
        before, now = getattr(early, name), getattr(late, name)
        expect(before == now, f"{name} {now} before FEATURES_OK as well", before)


@case("blk.init.dev.padding-zero", device_id=_BLK, rings=False)
def padding_after_write_zeroes(ctx: Context) -> None:
    """The padding behind write_zeroes_may_unmap is zero, as far as it exists."""
    session = ctx.session()
    if not session.offered & BlkFeature.WRITE_ZEROES or not has_field(session, "unused1"):
        raise NotObservable("the configuration space does not reach there")
    unused = config(session).unused1
    expect(not any(unused), "unused1 of zeroes", unused.hex())


@case("feat.dev.no-unsupported-offer", device_id=_BLK)
def the_whole_capacity(ctx: Context) -> None:
    """The last sector that the capacity names can be read."""
    live = live_disk(ctx)
    sectors = capacity(live.session)
    if not sectors:
        raise NotObservable("the disk is empty")
    read(live, sectors - 1)


@case("feat.dev.no-unsupported-offer", device_id=_BLK, needs=BlkFeature.SEG_MAX)
def as_many_segments_as_it_says(ctx: Context) -> None:
    """A read of seg_max segments is served (of 128 at most)."""
    live = live_disk(ctx, BlkFeature.SEG_MAX)
    segments = config(live.session).seg_max
    expect(segments > 0, "a seg_max that lets a request have data", segments)
    count = min(segments, _SEGMENTS, live.ring.size - 2, capacity(live.session))
    if count < 1:
        raise NotObservable("the queue has no room for a segment of data")
    job = request(Type.IN, 0, room=count * SECTOR_BYTES)
    live.ring.add(job, (len(job.readable), 0, *[SECTOR_BYTES] * count, 1))
    live.ring.kick()
    status = live.ring.wait(1)[0].reply[-1]
    expect(status == Status.OK, f"status OK for {count} segments", f"status {status}")


@case("feat.dev.no-unsupported-offer", device_id=_BLK, needs=BlkFeature.SIZE_MAX)
def segments_as_large_as_it_says(ctx: Context) -> None:
    """A read into one segment of size_max bytes is served (of 1 MiB at most)."""
    live = live_disk(ctx, BlkFeature.SIZE_MAX)
    size = config(live.session).size_max
    expect(size > 0, "a size_max that lets a segment have data", size)
    sectors = min(size, 1 << 20) // SECTOR_BYTES
    if not sectors:
        raise NotObservable(f"size_max is {size} bytes, less than a sector")
    read(live, 0, min(sectors, capacity(live.session)))


@case("feat.dev.no-unsupported-offer", device_id=_BLK, needs=BlkFeature.MQ)
def every_queue(ctx: Context) -> None:
    """With MQ, num_queues virtqueues serve, and they are one disk (of 8 at most)."""
    live = live_disk(ctx, BlkFeature.MQ)
    count = config(live.session).num_queues
    expect(count >= 1, "num_queues of 1 at the least", count)
    session = live.session
    session.reset()
    session.negotiate(session.features)
    rings = [session.ring(index, 16) for index in range(min(count, 8))]
    session.go_live()
    job = request(Type.IN, 0, room=SECTOR_BYTES)
    for ring in rings:
        reply = ring.serve(job)[0].reply
        expect(reply[-1] == Status.OK, f"status OK on queue {ring.index}", f"status {reply[-1]}")


# The write cache (5.2.5, 5.2.6.2)


@case("feat.dev.no-unsupported-offer", device_id=_BLK, needs=BlkFeature.CONFIG_WCE)
def the_cache_mode_is_switched(ctx: Context) -> None:
    """With CONFIG_WCE, writeback takes 0 and 1 and reads as it was written, also while requests are
    served. It begins as either of them."""
    live = live_disk(ctx, BlkFeature.CONFIG_WCE | BlkFeature.FLUSH)
    session, offset = live.session, offset_of("writeback")
    first = config(session).writeback
    expect(first in (0, 1), "writeback 0 or 1", first)
    for value in (0, 1, 0, 1 - first):
        try:
            session.transport.write_config(offset, bytes([value]))
        except ConfigError as error:
            expect(False, f"writeback taken as {value}", error)
        for _ in session.patience(f"writeback to read {value}"):
            if config(session).writeback == value:
                break
        succeed(live, request(Type.FLUSH), "a flush")
        live.ring.serve(*live.jobs(2))


@case("feat.dev.no-unsupported-offer", device_id=_BLK, needs=BlkFeature.FLUSH)
def a_flush(ctx: Context) -> None:
    """With FLUSH, a flush ends with OK, alone and behind other requests."""
    live = live_disk(ctx, BlkFeature.FLUSH)
    succeed(live, request(Type.FLUSH), "a flush")
    for _ in range(4):
        live.ring.serve(*live.jobs(4))
        succeed(live, request(Type.FLUSH), "a flush behind reads")


def _disk_to_write(ctx: Context, features: int, without: int = 0) -> Live:
    session = ctx.session()
    if session.offered & BlkFeature.RO:
        raise NotObservable("the disk is read-only")
    return live_disk(ctx, features, without=without, session=session)


def _survives_a_reset(ctx: Context, live: Live, *, flush: bool = False) -> None:
    """A write that is stable, as it is or by a flush, is still there after the device was reset."""
    session = live.session
    old = read(live, 0, 8)
    new = bytes(byte ^ 0xFF for byte in old)
    succeed(live, request(Type.OUT, 0, new), "a write of 8 sectors")
    if flush:
        succeed(live, request(Type.FLUSH), "a flush")
    session.reset()
    again = live_disk(ctx, session=session)
    try:
        now = read(again, 0, 8)
        expect(now == new, "what was written and became stable", "what was there before")
    finally:
        again.ring.serve(request(Type.OUT, 0, old))
        if session.features & BlkFeature.FLUSH:
            again.ring.serve(request(Type.FLUSH))


@case("blk.op.dev.stable-writes", device_id=_BLK, needs=BlkFeature.FLUSH)
def what_was_flushed_stays(ctx: Context) -> None:
    """A write that a flush came after outlasts a reset of the device."""
    _survives_a_reset(ctx, _disk_to_write(ctx, BlkFeature.FLUSH), flush=True)


@case("blk.op.dev.stable-writes", device_id=_BLK, needs=BlkFeature.CONFIG_WCE)
def what_was_written_through_stays(ctx: Context) -> None:
    """A write with writeback 0 all the time outlasts a reset of the device."""
    live = _disk_to_write(ctx, BlkFeature.CONFIG_WCE | BlkFeature.FLUSH)
    live.session.transport.write_config(offset_of("writeback"), b"\0")
    for _ in live.session.patience("writeback to read 0"):
        if config(live.session).writeback == 0:
            break
    _survives_a_reset(ctx, live)


@case("blk.op.dev.stable-writes", device_id=_BLK, needs=BlkFeature.FLUSH)
def what_was_written_without_a_cache_stays(ctx: Context) -> None:
    """With FLUSH offered and neither it nor CONFIG_WCE negotiated, a write that is completed
    outlasts a reset of the device."""
    live = _disk_to_write(ctx, 0, without=BlkFeature.FLUSH | BlkFeature.CONFIG_WCE)
    _survives_a_reset(ctx, live)


# What changes by itself


class _Announced:
    """Counts configuration change notifications."""

    def __init__(self, session: Session) -> None:
        self.count = 0
        session.transport.on_config_change(self._came)

    def _came(self) -> None:
        self.count += 1


@case("blk.op.dev.capacity-change", "blk.op.dev.capacity-notify", device_id=_BLK)
def a_capacity_that_changes(ctx: Context) -> None:
    """SHOULD: a capacity that changes during operation is announced by a configuration change
    notification; the new one is true."""
    live = live_disk(ctx)
    announced, before = _Announced(live.session), capacity(live.session)
    live.ring.serve(*live.jobs(8))
    for _ in live.session.moment():
        if (now := capacity(live.session)) != before:
            break
    else:
        raise NotObservable(f"the capacity stays at {before} sectors")
    for _ in live.session.patience("a configuration change notification for the new capacity"):
        if announced.count:
            break
    if now:
        read(live, now - 1)
    status = status_of(live, request(Type.IN, now, room=SECTOR_BYTES))
    expect(status != Status.OK, f"no sector at the end, {now}", "it was read")


@case(
    "blk.op.dev.may-unmap-change",
    "blk.op.dev.may-unmap-notify",
    device_id=_BLK,
    needs=BlkFeature.WRITE_ZEROES,
)
def may_unmap_that_changes(ctx: Context) -> None:
    """SHOULD: a write_zeroes_may_unmap that changes during operation is announced by a
    configuration change notification, and write zeroes goes on being served."""
    live = writable_disk(ctx, BlkFeature.WRITE_ZEROES)
    announced, before = _Announced(live.session), config(live.session).write_zeroes_may_unmap
    live.ring.serve(*live.jobs(8))
    for _ in live.session.moment():
        if config(live.session).write_zeroes_may_unmap != before:
            break
    else:
        raise NotObservable(f"write_zeroes_may_unmap stays {before}")
    for _ in live.session.patience("a configuration change notification for the new value"):
        if announced.count:
            break
    with put_back(live, 1):
        job = request(Type.WRITE_ZEROES, 0, blk.Segment(0, 1, 0).pack())
        succeed(live, job, "write zeroes after the change")
