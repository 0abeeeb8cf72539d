"""What a vhost-user front-end shares: memory, log, in-flight buffer, configuration."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from virtq.check.case import Hung, NotObservable, expect
from virtq.check.connection import Closed, Outcome
from virtq.check.context import Context, Live
from virtq.check.device.vhost_user_support import (
    live_on,
    message,
    negotiated,
    refused,
    ring_case,
    serves,
    start_anyway,
    watched_fd,
)
from virtq.check.front import GUEST_BASE, MEMORY_BYTES, USER_BASE, Front
from virtq.check.session import Sent
from virtq.transports.vhost_user.fds import close_fd
from virtq.transports.vhost_user.messages import LOG_ALL, P
from virtq.transports.vhost_user.messages import Front as Code
from virtq.transports.vhost_user.wire import (
    INFLIGHT,
    U64,
    VRING_LOG,
    Config,
    Inflight,
    LogBase,
    Region,
    RegionTable,
    VringAddress,
)
from virtq.wire import blk, console, vsock

_PAGE = 4096
_SPREAD = (
    Region(GUEST_BASE, _PAGE, USER_BASE + (1 << 30), 3 * _PAGE),
    Region(GUEST_BASE + 16 * _PAGE, MEMORY_BYTES, USER_BASE, 5 * _PAGE),
)
"""A region for a ring and one for buffers, whose user addresses are the other way round."""
_SLOTS_TRIED = 64
_MANY_SLOTS = 1024
_LOG_PAGE = GUEST_BASE + MEMORY_BYTES - _PAGE
"""Nothing is written there: where the log is told that the used ring is."""
_LOG_BYTES = 1 << 18
_WRITEBACK = 32
"""Offset of the disk's field of that name."""
_READ_ONLY = (blk.DEVICE_ID, console.DEVICE_ID, vsock.DEVICE_ID)
"""Device types whose configuration begins with a field that no driver may write."""


def _apart(ctx: Context, front: Front) -> Live:
    """A device whose ring lies in the first region and whose buffers in the second."""
    live = live_on(ctx, front)
    rest = _PAGE - (live.ring.areas.end - GUEST_BASE) % _PAGE - 64
    while (filler := live.session.arena.alloc(rest, 8)).addr >= GUEST_BASE + _PAGE and rest > 64:
        live.session.arena.free(filler)
        rest //= 2
    return live


# ---------------------------------------------------------------- regions


@ring_case(
    "vhost-user.mem.user-addresses",
    "vhost-user.mem.guest-addresses",
    "vhost-user.mem.descriptor-order",
    "vhost-user.mem.offset",
)
def regions(ctx: Context) -> None:
    """Two regions, each with a file, an offset, guest and user addresses of its own: the ring in
    one, its buffers in the other."""
    front = ctx.front()
    front.lay_out(_SPREAD)
    live = _apart(ctx, front)
    live.ring.serve(*live.jobs(5))


@ring_case("vhost-user.mem.table-replaces")
def another_table(ctx: Context) -> None:
    """A table that is sent again under a live ring does not disturb it; one with another region
    more brings that too."""
    front = ctx.front()
    live = live_on(ctx, front)
    live.ring.serve(*live.jobs(2))
    front.share()
    live.ring.serve(*live.jobs(2, 2))
    more = Region(GUEST_BASE - 64 * _PAGE, 16 * _PAGE, USER_BASE - 64 * _PAGE, 0)
    fd = os.memfd_create("virtq-check", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, more.size)
        front.tell(Code.SET_MEM_TABLE, RegionTable((*front.regions, more)), [*front.fds, fd])
        live.ring.serve(*live.jobs(2, 4))
    finally:
        os.close(fd)


@message("vhost-user.slots.add")
def a_slot(ctx: Context) -> None:
    """Regions that are added one by one can be used."""
    front = ctx.front(P.CONFIGURE_MEM_SLOTS)
    front.lay_out(_SPREAD)
    front.shared = True
    session = ctx.front_session(front)
    if not session.negotiate(ctx.features(session)):
        raise NotObservable("the device does not take its features")
    for region, fd in zip(front.regions, front.fds, strict=True):
        front.tell(Code.ADD_MEM_REG, region, [fd])
    work = ctx.work
    work.prepare(session)
    ring = session.ring(work.queue)
    live = Live(session, ring, work)
    ring.serve(*live.jobs(3))


@message("vhost-user.slots.max", "vhost-user.survive.too-many-regions")
def as_many_slots_as_there_are(ctx: Context) -> None:
    """As many regions can be added as GET_MAX_MEM_SLOTS tells (64 are tried at most), and with one
    more the back-end lives."""
    front = ctx.front(P.CONFIGURE_MEM_SLOTS)
    negotiated(ctx, front)
    slots = front.number(Code.GET_MAX_MEM_SLOTS)
    expect(slots >= 1, "one slot or more", slots)

    def add(slot: int) -> Outcome:
        at = 2 * slot * _PAGE
        region = Region(GUEST_BASE + at, _PAGE, USER_BASE + at, slot * _PAGE)
        return front.attempt(Code.ADD_MEM_REG, region, front.fds)

    for slot in range(min(slots, _SLOTS_TRIED)):
        outcome = add(slot)
        expect(
            outcome in (Outcome.ACCEPTED, Outcome.SILENT),
            f"{slots} slots, as was told",
            f"region {slot + 1}: {outcome.value}",
        )
    if slots <= _MANY_SLOTS:
        for slot in range(min(slots, _SLOTS_TRIED), slots + 1):
            if add(slot) is Outcome.CLOSED:
                break
    serves(ctx, front)


@message("vhost-user.slots.remove", "vhost-user.slots.remove-closes-descriptor")
def a_slot_is_removed(ctx: Context) -> None:
    """A region is found by its addresses and size, whatever offset is told, and is gone then; a
    descriptor that came with it is closed."""
    front = ctx.front(P.CONFIGURE_MEM_SLOTS | P.REPLY_ACK)
    negotiated(ctx, front)
    region = front.regions[0]
    front.tell(Code.ADD_MEM_REG, region, front.fds)
    elsewhere = region._replace(offset=region.offset + _PAGE)
    front.tell(Code.REM_MEM_REG, elsewhere)
    refused(front, front.attempt(Code.REM_MEM_REG, elsewhere), "a region that is gone")
    front = ctx.front(P.CONFIGURE_MEM_SLOTS | P.REPLY_ACK)
    negotiated(ctx, front)
    front.tell(Code.ADD_MEM_REG, front.regions[0], front.fds)
    with watched_fd(front) as fd:
        front.attempt(Code.REM_MEM_REG, front.regions[0], [fd])
        front.close()


def _table_anyway(ctx: Context, table: RegionTable | bytes, fds: int, ring_at: int) -> None:
    """Send a table that should not be, and start a ring in it all the same."""
    front = ctx.front()
    negotiated(ctx, front)
    if front.attempt(Code.SET_MEM_TABLE, table, front.fds_times(fds)) is not Outcome.CLOSED:
        start_anyway(front, ctx.own_queue, 16, ring_at)
    front.close()


@message("vhost-user.survive.regions-overlap")
def regions_that_overlap(ctx: Context) -> None:
    """Regions whose guest addresses, or user addresses, overlap."""
    first = Region(GUEST_BASE, 16 * _PAGE, USER_BASE, 0)
    apart = 1 << 24
    for second in (
        first._replace(guest_addr=GUEST_BASE + _PAGE, user_addr=USER_BASE + apart),
        first._replace(guest_addr=GUEST_BASE + apart, user_addr=USER_BASE + _PAGE),
        first,
    ):
        _table_anyway(ctx, RegionTable((first, second)), 2, USER_BASE + _PAGE)
    serves(ctx, ctx.front())


@message("vhost-user.survive.region-empty")
def regions_of_no_size(ctx: Context) -> None:
    """A region of no bytes; one whose end passes 64 bits; one larger than any memory."""
    for region in (
        Region(GUEST_BASE, 0, USER_BASE, 0),
        Region(2**64 - _PAGE, 2 * _PAGE, 2**64 - _PAGE, 0),
        Region(GUEST_BASE, 2**63, USER_BASE, 0),
        Region(GUEST_BASE, _PAGE, USER_BASE, 2**64 - _PAGE),
    ):
        _table_anyway(ctx, RegionTable((region,)), 1, region.user_addr)
    serves(ctx, ctx.front())


@message("vhost-user.survive.too-many-regions")
def too_many_regions(ctx: Context) -> None:
    """A table of more regions than one can have, and one that only says so."""
    rows = b"".join(
        word.to_bytes(8, "little")
        for i in range(9)
        for word in (GUEST_BASE + i * _PAGE, _PAGE, USER_BASE + i * _PAGE, i * _PAGE)
    )
    _table_anyway(ctx, (9).to_bytes(8, "little") + rows, 9, USER_BASE)
    _table_anyway(ctx, (0xFFFF_FFFF).to_bytes(8, "little") + rows[:32], 1, USER_BASE)
    serves(ctx, ctx.front())


@message("vhost-user.survive.short-file")
def a_file_that_is_short(ctx: Context) -> None:
    """A region that reaches beyond the end of its file, with the ring beyond it."""
    region = Region(GUEST_BASE, 64 * MEMORY_BYTES, USER_BASE, 0)
    _table_anyway(ctx, RegionTable((region,)), 1, USER_BASE + 32 * MEMORY_BYTES)
    serves(ctx, ctx.front())


@message("vhost-user.survive.truncated-file")
def a_file_that_is_truncated(ctx: Context) -> None:
    """The file is truncated while the ring in it is live."""
    front = ctx.front()
    live = live_on(ctx, front)
    live.ring.serve(live.work.job(0))
    for fd in front.fds:
        os.ftruncate(fd, 0)
    live.ring.signal()
    front.readable(front.moment_s)
    front.sound()
    serves(ctx, front)


# ---------------------------------------------------------------- the dirty log


@ring_case("vhost-user.log.buffers", "vhost-user.log.used-ring", "vhost-user.log.base-replied")
def the_dirty_log(ctx: Context) -> None:
    """With LOG_ALL, pages of buffers that are written are marked, and of the used ring at the
    address that the front-end told for it."""
    front = ctx.front(P.LOG_SHMFD)
    if not front.offered & LOG_ALL:
        raise NotObservable("LOG_ALL is not offered")
    front.extra_features = LOG_ALL
    work = ctx.work
    if not work.job(0).writable:
        raise NotObservable("this device type writes no buffers of its work")
    session = negotiated(ctx, front)
    front.share()
    fd = os.memfd_create("virtq-check-log", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, _LOG_BYTES)
        front.let_go(front.ask(Code.SET_LOG_BASE, LogBase(_LOG_BYTES, 0), [fd]))
        front.log_addresses[work.queue] = _LOG_PAGE
        work.prepare(session)
        ring = session.ring(work.queue)
        live = Live(session, ring, work)
        sent = ring.serve(*live.jobs(3))
        _expect_marked(live, fd, sent)
    finally:
        os.close(fd)


@ring_case("vhost-user.log.begins-live")
def logging_begins(ctx: Context) -> None:
    """A migration begins while the ring is live: features with LOG_ALL, ring addresses with the log
    flag. What is written from then on is marked."""
    front = ctx.front(P.LOG_SHMFD)
    if not front.offered & LOG_ALL:
        raise NotObservable("LOG_ALL is not offered")
    if not ctx.work.job(0).writable:
        raise NotObservable("this device type writes no buffers of its work")
    live = live_on(ctx, front)
    ring = live.ring
    ring.serve(*live.jobs(2))
    fd = os.memfd_create("virtq-check-log", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, _LOG_BYTES)
        front.let_go(front.ask(Code.SET_LOG_BASE, LogBase(_LOG_BYTES, 0), [fd]))
        front.tell(Code.SET_FEATURES, U64(front.features | LOG_ALL))
        desc, driver, device = (front.user(area) for area in ring.areas[:3])
        address = VringAddress(ring.index, VRING_LOG, desc, device, driver, _LOG_PAGE)
        front.tell(Code.SET_VRING_ADDR, address)
        _expect_marked(live, fd, ring.serve(*live.jobs(2, 2)))
    finally:
        os.close(fd)


def _expect_marked(live: Live, fd: int, sent: Sequence[Sent]) -> None:
    """The pages of buffers that were written, and of the used ring, are marked in the log."""
    for buffer in sent:
        page = buffer.writable[0].addr // _PAGE
        what = f"page {page:#x} of a written buffer marked"
        expect(_is_marked(live, fd, page), what, "it is not")
    # A packed ring has no used ring; what then counts as one is told nowhere.
    marked = live.ring.packed or _is_marked(live, fd, _LOG_PAGE // _PAGE)
    expect(marked, "the used ring's page marked", "it is not")


def _is_marked(live: Live, fd: int, page: int) -> bool:
    """Soon enough: what is written may be marked a little later."""
    with contextlib.suppress(Hung):
        for _ in live.session.patience("a mark in the log"):
            if os.pread(fd, 1, page // 8)[0] & 1 << page % 8:
                return True
    return False


# ---------------------------------------------------------------- what is in flight


@ring_case("vhost-user.inflight.get", "vhost-user.inflight.set")
def the_inflight_buffer(ctx: Context) -> None:
    """GET_INFLIGHT_FD gives a buffer that is as large as it says; it can be handed back, and rings
    are served with it."""
    front = ctx.front(P.INFLIGHT_SHMFD)
    session = negotiated(ctx, front)
    work = ctx.work
    # The device may need more rings than that of its work.
    queues = max(front.queue_count, work.queue + 1)
    size = front.queue_size_max(work.queue)
    answer = front.ask(Code.GET_INFLIGHT_FD, Inflight(0, 0, queues, size))
    try:
        expect(len(answer.fds) == 1, "one descriptor with the buffer", len(answer.fds))
        told = INFLIGHT.decode(answer.body)
        assert isinstance(told, Inflight)
        end = told.mmap_size + told.mmap_offset
        have = os.fstat(answer.fds[0]).st_size
        expect(told.mmap_size and end <= have, f"a buffer of {end} bytes", f"{have} bytes")
        given = Inflight(told.mmap_size, told.mmap_offset, queues, size)
        front.tell(Code.SET_INFLIGHT_FD, given, answer.fds)
        work.prepare(session)
        ring = session.ring(work.queue)
        live = Live(session, ring, work)
        ring.serve(*live.jobs(5))
    finally:
        front.let_go(answer)


@message("vhost-user.survive.inflight")
def an_inflight_buffer_that_cannot_be(ctx: Context) -> None:
    """Buffers that are too small, larger than their file, or for more queues than there are; and
    rings started with them."""
    for given in (
        Inflight(8, 0, 1, 16),
        Inflight(1 << 40, 0, 1, 16),
        Inflight(MEMORY_BYTES, 2**64 - _PAGE, 1, 16),
        Inflight(MEMORY_BYTES, 0, 0xFFFF, 0xFFFF),
        Inflight(0, 0, 0, 0),
    ):
        front = ctx.front(P.INFLIGHT_SHMFD)
        negotiated(ctx, front)
        fd = os.memfd_create("virtq-check", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, _PAGE)
            outcome = front.attempt(Code.SET_INFLIGHT_FD, given, [fd])
        finally:
            close_fd(fd)
        if outcome is not Outcome.CLOSED:
            front.share()
            start_anyway(front, ctx.own_queue, 16, USER_BASE)
    serves(ctx, ctx.front())


# ---------------------------------------------------------------- configuration space


def _config(front: Front, offset: int, size: int) -> bytes:
    """The payload of the reply; empty if the back-end says that it cannot."""
    answer = front.ask(Code.GET_CONFIG, Config(offset, size, 0, bytes(size)))
    if not any(answer.body[4:8]):
        return b""  # an error; some tell it with the head of a configuration
    expect(
        len(answer.body) == 12 + size,
        f"a reply of {12 + size} bytes, as was asked for",
        f"{len(answer.body)} bytes",
    )
    told = int.from_bytes(answer.body[4:8], "little")
    expect(told == size, f"size {size} in the reply", told)
    return answer.body[12:]


@message("vhost-user.config.size-matches")
def configuration_in_pieces(ctx: Context) -> None:
    """The reply to GET_CONFIG has the size that was asked for, whatever that is."""
    front = ctx.front(P.CONFIG)
    negotiated(ctx, front)
    found = [_config(front, 0, size) for size in (1, 2, 4, 8)]
    if not any(found):
        raise NotObservable("there is no configuration space")
    for piece in found:
        expect(found[-1].startswith(piece) or not found[-1], "the same bytes", piece.hex())


@message("vhost-user.config.offset")
def configuration_at_an_offset(ctx: Context) -> None:
    """A part of the configuration space that is asked for by itself is that part."""
    front = ctx.front(P.CONFIG)
    negotiated(ctx, front)
    for size in (16, 8):
        if whole := _config(front, 0, size):
            break
    else:
        raise NotObservable("there are no 8 bytes of configuration space")
    rights = {offset: whole[offset : offset + 2] for offset in range(0, size, 2)}
    if len(set(rights.values())) < 2:
        raise NotObservable("every part of the configuration space is the same")
    for offset, right in rights.items():
        part = _config(front, offset, 2)
        expect(part == right, f"{right.hex()} at offset {offset}", part.hex())


@message("vhost-user.config.error-is-empty")
def configuration_that_is_not_there(ctx: Context) -> None:
    """What lies beyond the configuration space is answered with a reply without payload."""
    front = ctx.front(P.CONFIG)
    negotiated(ctx, front)
    front.send(Code.GET_CONFIG, Config(0xFFFF_F000, 8, 0, bytes(8)))
    try:
        answer = front.read("the answer to GET_CONFIG")
    except Closed:
        return  # what a back-end may do about any error
    front.let_go(answer)
    # Some tell the empty payload with the head of a configuration before it.
    told = answer.body[12:]
    expect(not told, "a reply without payload", f"{len(told)} bytes of configuration")


@message("vhost-user.config.set", device_id=blk.DEVICE_ID, needs=blk.BlkFeature.CONFIG_WCE)
def a_writable_field(ctx: Context) -> None:
    """The disk's writeback is changed, and put back."""
    front = ctx.front(P.CONFIG)
    negotiated(ctx, front, int(blk.BlkFeature.CONFIG_WCE))
    old = _config(front, 0, _WRITEBACK + 1)[-1]
    for value in (1 - old, old):
        front.tell(Code.SET_CONFIG, Config(_WRITEBACK, 1, 0, bytes([value])))
        now = _config(front, 0, _WRITEBACK + 1)[-1]
        expect(now == value, f"writeback {value}", now)


@message("vhost-user.config.read-only", "vhost-user.config.flags")
def a_read_only_field(ctx: Context) -> None:
    """A field that no driver may write is not changed by SET_CONFIG, nor under a flag that does not
    exist; it is not told as a success either."""
    for flags in (0, 2, 0x8000_0000):
        front = ctx.front(P.CONFIG)
        session = negotiated(ctx, front)
        if ctx.device_id not in _READ_ONLY:
            raise NotObservable("no field of this device type is known to be read-only")
        old = session.transport.read_config(0, 4)
        other = bytes(byte ^ 0xFF for byte in old)
        outcome = front.attempt(Code.SET_CONFIG, Config(0, 4, flags, other))
        front = ctx.front(P.CONFIG)
        now = negotiated(ctx, front).transport.read_config(0, 4)
        expect(now == old, f"{old.hex()} as it was, with flags {flags:#x}", now.hex())
        refused(front, outcome, f"a read-only field, with flags {flags:#x}")
