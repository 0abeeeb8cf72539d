"""vhost-user rings: when they are stopped, disabled and enabled, and where they begin."""

from __future__ import annotations

import socket

from virtq.check.case import Broken, NotObservable, expect
from virtq.check.connection import Outcome
from virtq.check.context import Context, Live
from virtq.check.device.malformed import NOWHERE
from virtq.check.device.vhost_user_support import (
    idle,
    live_on,
    message,
    negotiated,
    ring_case,
    serves,
    signalled,
    start_anyway,
)
from virtq.check.front import MEMORY_BYTES, USER_BASE, Front
from virtq.check.session import Job, Ring
from virtq.check.waiting import turns
from virtq.features import F
from virtq.transports.vhost_user.messages import PROTOCOL_FEATURES, P, protocol_names
from virtq.transports.vhost_user.messages import Front as Code
from virtq.transports.vhost_user.wire import U64, Iotlb, IotlbType, VringState
from virtq.wire import blk, net

_SECTOR = 3


def _raw_ring(ctx: Context, front: Front) -> tuple[Live, Ring]:
    """The work's ring, set up and with its calls, and not started; the others that the device needs
    are live."""
    session = negotiated(ctx, front)
    work = ctx.work
    work.prepare(session)
    ring = Ring(session, work.queue, front.queue_size_max(work.queue), session.features, 0)
    session.rings[work.queue] = ring
    front.set_up(ring, *ring.areas[:3])
    front.connect_calls(ring)
    return Live(session, ring, work), ring


@ring_case("vhost-user.ring.stopped-first", "vhost-user.ring.starts-on-kick")
def a_kick_starts_a_ring(ctx: Context) -> None:
    """A ring that is set up and enabled is left alone until it has a kick descriptor; one that was
    signalled before it was handed over starts it."""
    front = ctx.front()
    live, ring = _raw_ring(ctx, front)
    front.enable(ring.index)
    ring.add(live.work.job(0))
    ring.kick(always=True)
    idle(ring)
    ring.set_kick(None)
    ring.signal()
    front.tell(Code.SET_VRING_KICK, U64(ring.index), [ring.kick_fd])
    ring.wait(1)


@ring_case("vhost-user.ring.stopped-by-base", "vhost-user.base.returned")
def base_stops_a_ring(ctx: Context) -> None:
    """GET_VRING_BASE tells the next position in the available ring, and nothing is used after
    it."""
    front = ctx.front()
    live = live_on(ctx, front)
    ring = live.ring
    ring.serve(*live.jobs(3))
    base = front.get_base(ring.index)
    at = ring.position
    expected = at.available | at.available_wrap << 15 if ring.packed else at.available
    expect(base & 0xFFFF == expected, f"base {expected:#x}", f"{base:#x}")
    ring.add(live.work.job(3))
    ring.kick(always=True)
    idle(ring)


@ring_case("vhost-user.base.begins-there")
def a_ring_begins_at_its_base(ctx: Context) -> None:
    """A ring that is stopped and set up again with its base goes on there, with base 0 from its
    beginning; and a buffer that was added meanwhile is served."""
    front = ctx.front()
    live = live_on(ctx, front)
    ring = live.ring
    ring.serve(*live.jobs(3))
    front.bases[ring.index] = front.get_base(ring.index)
    ring.add(live.work.job(3))
    ring.kick()
    front.enable_queue(ring, *ring.areas[:3])
    ring.signal()
    ring.wait(1)
    ring.serve(*live.jobs(3, 4))
    front.get_base(ring.index)
    del front.bases[ring.index]
    anew = live.session.ring(ring.index)
    anew.serve(*live.jobs(3, 7))


@ring_case("vhost-user.num.used")
def a_small_ring(ctx: Context) -> None:
    """A ring of four entries, several times around."""
    live = live_on(ctx, ctx.front(), size=4)
    for turn in range(11):
        live.ring.serve(live.work.job(turn))


@ring_case("vhost-user.ring.enable")
def enabled_and_disabled(ctx: Context) -> None:
    """A ring that was disabled and enabled again serves what was added meanwhile, every time."""
    front = ctx.front()
    _needs_protocol_features(front)
    live = live_on(ctx, front)
    for turn in range(3):
        front.enable(live.ring.index, False)
        live.ring.add(live.work.job(turn))
        live.ring.kick(always=True)
        front.enable(live.ring.index)
        live.ring.wait(1)


def _needs_protocol_features(front: Front) -> None:
    if not front.offered & PROTOCOL_FEATURES:
        raise NotObservable("PROTOCOL_FEATURES is not offered")


@ring_case("vhost-user.ring.disabled-first", device_id=blk.DEVICE_ID)
def a_disabled_disk_is_not_written(ctx: Context) -> None:
    """A write to a disk whose ring was never enabled has no effect. The sector is put back."""
    front = ctx.front()
    _needs_protocol_features(front)
    live = live_on(ctx, front)
    if live.session.offered & blk.BlkFeature.RO:
        raise NotObservable("the disk is read-only")
    old = live.ring.serve(_read())[0].reply[: blk.SECTOR_BYTES]
    front = ctx.front()
    _, ring = _raw_ring(ctx, front)
    front.connect(ring)
    ring.add(Job(blk.Header(blk.Type.OUT, _SECTOR).pack() + bytes(b ^ 0xFF for b in old), 1))
    ring.kick(always=True)
    ring.quiet()  # it may be used: without an effect
    front.get_base(ring.index)
    live = live_on(ctx, ctx.front())
    now = live.ring.serve(_read())[0].reply[: blk.SECTOR_BYTES]
    if now != old:
        live.ring.serve(Job(blk.Header(blk.Type.OUT, _SECTOR).pack() + old, 1))
    expect(now == old, "the sector as it was", "what was written through a disabled ring")


def _read() -> Job:
    return Job(blk.Header(blk.Type.IN, _SECTOR).pack(), blk.SECTOR_BYTES + 1)


@ring_case("vhost-user.ring.disabled-is-processed", device_id=net.DEVICE_ID)
def disabled_packets_are_discarded(ctx: Context) -> None:
    """Packets on a transmit queue that is started and disabled are used."""
    front = ctx.front()
    _needs_protocol_features(front)
    live, ring = _raw_ring(ctx, front)
    front.connect(ring)
    ring.serve(*live.jobs(3))


@message("vhost-user.ring.changes-on-the-fly")
def descriptors_are_exchanged(ctx: Context) -> None:
    """Kick and call descriptors of a live ring are exchanged: the new ones count."""
    front = ctx.front()
    live = live_on(ctx, front)
    ring = live.ring
    ring.serve(*live.jobs(2))
    ring.calls()
    front.connect(ring)
    for turn in range(2):
        ring.serve(live.work.job(2 + turn))
        ring.wait_call()


@ring_case("vhost-user.vring-fd.kick-by-polling")
def a_ring_that_is_polled(ctx: Context) -> None:
    """A kick without a descriptor: the back-end looks by itself."""
    front = ctx.front()
    live, ring = _raw_ring(ctx, front)
    front.connect(ring)
    front.get_base(ring.index)
    front.set_up(ring, *ring.areas[:3])
    front.connect_calls(ring)  # a ring that was stopped may have forgotten it
    front.poll_instead(Code.SET_VRING_KICK, ring.index)
    front.enable(ring.index)
    for turn in range(2):
        ring.add(live.work.job(turn))
        ring.half.publish()
        ring.wait(1)


@ring_case("vhost-user.vring-fd.call", "vhost-user.vring-fd.call-by-polling")
def calls(ctx: Context) -> None:
    """The call descriptor is signalled; without one the ring is served, and the old one is let
    go."""
    front = ctx.front()
    live = live_on(ctx, front)
    ring = live.ring
    ring.serve(live.work.job(0))
    ring.wait_call()
    front.poll_instead(Code.SET_VRING_CALL, ring.index)
    ring.calls()
    ring.serve(live.work.job(1))
    expect(not signalled(ring.call_fd, front.moment_s), "nobody called", "the old descriptor")


@ring_case("vhost-user.vring-fd.err")
def errors(ctx: Context) -> None:
    """A ring that cannot be served, because a descriptor lies nowhere, signals its error
    descriptor. A device that uses the buffer all the same has served it: it saw no error."""
    front = ctx.front()
    live = live_on(ctx, front)
    ring = live.ring
    ring.serve(live.work.job(0))
    ring.add(live.work.job(1))
    ring.change_head(lambda head: head._replace(addr=NOWHERE))
    ring.kick(always=True)
    err = front.err_fds[ring.index]
    for _ in turns(front.patience_s):
        if signalled(err, 0):
            return
        if ring.half.used_entry() is not None and not signalled(err, front.moment_s):
            raise NotObservable("a buffer that lies nowhere is used, and the ring goes on")
    raise Broken("the error descriptor signalled", f"nothing within {front.patience_s:g} s")


@ring_case("vhost-user.reset.stops-rings", "vhost-user.reset.ready-again")
def reset_device(ctx: Context) -> None:
    """RESET_DEVICE stops all rings, and the device can be initialized again on the same
    connection."""
    front = ctx.front(P.RESET_DEVICE)
    live = live_on(ctx, front)
    live.ring.serve(*live.jobs(2))
    front.tell(Code.RESET_DEVICE)
    front.sound()
    live.ring.add(live.work.job(2))
    live.ring.kick(always=True)
    idle(live.ring)
    live.session.reset()
    again = ctx.live(session=live.session)
    again.ring.serve(*again.jobs(3))


@message("vhost-user.status.kept")
def status(ctx: Context) -> None:
    """GET_STATUS tells what SET_STATUS told, also 0."""
    front = ctx.front(P.STATUS)
    for value in (1, 3, 0, 1):
        front.tell(Code.SET_STATUS, U64(value))
        told = front.number(Code.GET_STATUS)
        expect(told == value, f"status {value}", told)


@message("vhost-user.iotlb.replied", needs=F.ACCESS_PLATFORM)
def iotlb_messages_are_answered(ctx: Context) -> None:
    """An update and an invalidation are answered with zero, an update that lies in no region with
    another number."""
    front = ctx.front(P.BACKEND_REQ | P.REPLY_ACK)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        front.tell(Code.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])
        negotiated(ctx, front, int(F.ACCESS_PLATFORM))
        front.share()
        for kind, user_addr, right in (
            (IotlbType.UPDATE, USER_BASE, True),
            (IotlbType.INVALIDATE, 0, True),
            (IotlbType.UPDATE, USER_BASE + MEMORY_BYTES, False),
        ):
            answer = front.number(Code.IOTLB_MSG, Iotlb(4096, 4096, user_addr, 3, kind))
            wanted = "zero" if right else "another number than zero"
            expect((answer == 0) is right, f"{wanted} for {kind.name} {user_addr:#x}", answer)


@message("vhost-user.inband.needs")
def inband_needs_its_channel(ctx: Context) -> None:
    """In-band notifications without the back-end channel, or without REPLY_ACK, end the
    connection (SHOULD)."""
    for lacking in (P.BACKEND_REQ, P.REPLY_ACK):
        front = ctx.front(P.INBAND_NOTIFICATIONS | P.BACKEND_REQ | P.REPLY_ACK)
        front.take((P.INBAND_NOTIFICATIONS | P.BACKEND_REQ | P.REPLY_ACK) & ~lacking)
        outcome = front.sound()
        expect(
            outcome is Outcome.CLOSED, f"the end without {protocol_names(lacking)}", outcome.value
        )


@ring_case("vhost-user.inband.kick")
def inband_kicks(ctx: Context) -> None:
    """VRING_KICK starts a ring that never had a descriptor, and has the back-end look at it."""
    front = ctx.front(P.INBAND_NOTIFICATIONS | P.BACKEND_REQ | P.REPLY_ACK)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        front.tell(Code.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])
        live, ring = _raw_ring(ctx, front)
        front.enable(ring.index)
        for turn in range(3):
            ring.add(live.work.job(turn))
            ring.half.publish()
            front.tell(Code.VRING_KICK, VringState(ring.index, 0))
            ring.wait(1)


@message("vhost-user.survive.ring-nowhere")
def a_ring_nowhere(ctx: Context) -> None:
    """Ring addresses that are in no region, or leave it, or pass 64 bits; started and kicked."""
    for user_addr in (0, 4096, USER_BASE + MEMORY_BYTES - 64, 2**64 - (1 << 16)):
        front = ctx.front()
        negotiated(ctx, front)
        front.share()
        start_anyway(front, ctx.own_queue, 16, user_addr)
    serves(ctx, front)
