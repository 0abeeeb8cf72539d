"""vhost-user messages: their form, their replies, and those that no front-end should send.

What a back-end makes of a message that is wrong is its own affair: it refuses it, closes the
connection, or ignores it. What must hold is that it tells no success that is none, stays alive, and
serves the next front-end (rows 24 and 25 of what broke others).
"""

from __future__ import annotations

import contextlib
import socket

from virtq.check.case import NotObservable, expect
from virtq.check.connection import Outcome
from virtq.check.context import Context
from virtq.check.device.vhost_user_support import (
    live_on,
    message,
    negotiated,
    refused,
    serves,
    start_anyway,
    survives,
    watched_fd,
)
from virtq.check.front import GUEST_BASE, USER_BASE, Front
from virtq.features import F
from virtq.transports.vhost_user.messages import (
    NO_FEATURE,
    PROTOCOL_FEATURES,
    P,
    protocol_names,
)
from virtq.transports.vhost_user.messages import Front as Code
from virtq.transports.vhost_user.wire import (
    NEED_REPLY,
    REPLY,
    U64,
    Inflight,
    LogBase,
    Region,
    VringAddress,
    VringState,
    pack_message,
)

_UNKNOWN = (0, 200, 0xFFFF_FFFF)
_FAR = 0xFFFF_FFFF
_SURPLUS_FDS = 5


def _plain_features(ctx: Context, front: Front) -> U64:
    return U64((int(F.VERSION_1 | PROTOCOL_FEATURES) | ctx.own_features) & front.offered)


def _header(request: int, flags: int, size: int) -> bytes:
    return b"".join(word.to_bytes(4, "little") for word in (request, flags, size))


# What is right


@message("vhost-user.header.reply", "vhost-user.comm.replies")
def replies(ctx: Context) -> None:
    """The requests that have a reply get one, with its flag, version 1 and the request's code."""
    front = ctx.front()
    front.number(Code.GET_FEATURES)
    if front.offered & PROTOCOL_FEATURES:
        front.number(Code.GET_PROTOCOL_FEATURES)
    live = live_on(ctx, front)
    front.get_base(live.ring.index)


@message("vhost-user.features.protocol-before-features")
def protocol_features_come_first(ctx: Context) -> None:
    """Protocol features are told, and can be set, before SET_FEATURES, and are the same
    afterwards."""
    front = ctx.front()
    if not front.offered & PROTOCOL_FEATURES:
        raise NotObservable("PROTOCOL_FEATURES is not offered")
    negotiated(ctx, front)
    again = front.number(Code.GET_PROTOCOL_FEATURES)
    expect(again == front.offered_protocol, f"the same, {front.offered_protocol:#x}", f"{again:#x}")


@message("vhost-user.mq.offered")
def mq_is_offered(ctx: Context) -> None:
    """MQ is offered by every back-end that has protocol features (SHOULD)."""
    front = ctx.front()
    expect(
        front.offered_protocol & P.MQ,
        "MQ offered",
        protocol_names(front.offered_protocol) or "none",
    )


@message("vhost-user.mq.queue-num")
def the_number_of_queues(ctx: Context) -> None:
    """GET_QUEUE_NUM tells a number of queues, and the last of them can be set up."""
    front = ctx.front(P.MQ)
    number = front.queue_count
    expect(1 <= number <= 256, "a number of queues that ring indices reach", number)
    negotiated(ctx, front)
    front.tell(Code.SET_VRING_NUM, VringState(number - 1, 2))


@message("vhost-user.comm.gated", "vhost-user.ring.enabled-without-protocol-features")
def no_extensions(ctx: Context) -> None:
    """A front-end that knows nothing of protocol features is served; its rings are enabled as soon
    as they start."""
    front = ctx.front(take=NO_FEATURE)
    front.offered &= ~PROTOCOL_FEATURES  # so that it is not negotiated, and nothing is enabled
    live = live_on(ctx, front)
    live.ring.serve(*live.jobs(3))


@message("vhost-user.owner.reset-keeps-state")
def reset_owner(ctx: Context) -> None:
    """RESET_OWNER disables rings at most: enabled once more they go on (SHOULD)."""
    front = ctx.front()
    live = live_on(ctx, front)
    live.ring.serve(*live.jobs(2))
    front.send(Code.RESET_OWNER)
    for index in sorted(live.session.rings):
        front.enable(index)
    live.ring.serve(*live.jobs(2, 2))


# Acknowledgements


@message("vhost-user.ack.zero")
def success_is_acknowledged(ctx: Context) -> None:
    """With need_reply every request that brings a device to life is acknowledged with zero."""
    front = ctx.front(P.REPLY_ACK)
    live = live_on(ctx, front)
    index = live.ring.index
    outcome = front.attempt(Code.SET_VRING_ENABLE, VringState(index, 1))
    expect(outcome is Outcome.ACCEPTED, "SET_VRING_ENABLE acknowledged with zero", outcome.value)


@message("vhost-user.ack.explicit-replies-unchanged")
def a_reply_is_enough(ctx: Context) -> None:
    """A request with a reply of its own is answered once, and the same, with need_reply too."""
    front = ctx.front(P.REPLY_ACK)
    for code in (Code.GET_FEATURES, Code.GET_PROTOCOL_FEATURES):
        plain, flagged = front.number(code), front.number(code, flags=NEED_REPLY)
        expect(plain == flagged, f"{code.name}: {plain:#x} with need_reply too", f"{flagged:#x}")
    came = front.unasked()
    expect(not came, "one answer to each question", came)


@message("vhost-user.ack.not-unasked")
def nothing_unasked(ctx: Context) -> None:
    """With REPLY_ACK, a request without need_reply is not acknowledged."""
    front = ctx.front(P.REPLY_ACK)
    front.send(Code.SET_FEATURES, _plain_features(ctx, front))
    came = front.unasked()
    expect(not came, "no acknowledgement", came)


@message("vhost-user.comm.no-other-replies")
def need_reply_without_reply_ack(ctx: Context) -> None:
    """Without REPLY_ACK nothing is acknowledged, whatever the flags say."""
    front = ctx.front(take=NO_FEATURE)
    front.send(Code.SET_FEATURES, _plain_features(ctx, front))
    came = front.unasked()
    expect(not came, "no acknowledgement without REPLY_ACK", came)
    front.send(Code.SET_FEATURES, _plain_features(ctx, front), flags=NEED_REPLY)
    came = front.unasked()
    expect(came in ("", Outcome.CLOSED.value), "need_reply ignored, or the end", came)


@message("vhost-user.channel.replied")
def the_other_channel(ctx: Context) -> None:
    """SET_BACKEND_REQ_FD with a socket is acknowledged with zero, and without one it is not."""
    front = ctx.front(P.BACKEND_REQ | P.REPLY_ACK)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        outcome = front.attempt(Code.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])
        expect(outcome is Outcome.ACCEPTED, "a socket acknowledged with zero", outcome.value)
        front = ctx.front(P.BACKEND_REQ | P.REPLY_ACK)
        refused(front, front.attempt(Code.SET_BACKEND_REQ_FD), "SET_BACKEND_REQ_FD without one")


# What is wrong


@message("vhost-user.survive.cut-header")
def a_header_that_ends(ctx: Context) -> None:
    """The connection ends within a header, or before anything was said."""
    survives(
        ctx,
        lambda front: None,
        lambda front: front.send_bytes(_header(Code.GET_FEATURES, 1, 0)[:7]),
        lambda front: front.send_bytes(b"\1"),
    )


@message("vhost-user.survive.cut-payload")
def a_payload_that_ends(ctx: Context) -> None:
    """The connection ends within a payload whose descriptors came already: they are closed."""
    front = ctx.front()
    with watched_fd(front) as fd:
        table = pack_message(Code.SET_MEM_TABLE, 0, _table(Region(0, 4096, 0, 0)))
        front.send_bytes(table[:20], [fd])
        front.close()
    survives(ctx, lambda front: front.send_bytes(_header(Code.SET_FEATURES, 1, 8) + b"\0" * 3))
    serves(ctx, front)


@message("vhost-user.survive.oversize")
def a_size_beyond_any(ctx: Context) -> None:
    """A header that promises more bytes than any payload has."""
    survives(
        ctx,
        lambda front: front.send_bytes(_header(Code.SET_OWNER, 1, 0xFFFF_FFFF) + bytes(64)),
        lambda front: front.send_bytes(_header(Code.GET_FEATURES, 1, 1 << 20) + bytes(8192)),
        lambda front: front.send_bytes(_header(Code.SET_FEATURES, 1, 0x8000_0008) + bytes(64)),
    )


@message("vhost-user.survive.wrong-size")
def a_payload_of_another_size(ctx: Context) -> None:
    """Payloads that are shorter or longer than those of their requests."""
    two_of_one = (2).to_bytes(8, "little") + _table(Region(GUEST_BASE, 4096, USER_BASE, 0))[8:]

    def send(code: Code, payload: bytes, fds: int = 0) -> None:
        front = ctx.front()
        front.attempt(code, payload, front.fds_times(fds))

    send(Code.SET_FEATURES, bytes(4))
    send(Code.SET_VRING_NUM, b"")
    send(Code.SET_VRING_ADDR, bytes(12))
    send(Code.SET_OWNER, bytes(256))
    send(Code.SET_MEM_TABLE, two_of_one, fds=1)
    send(Code.SET_MEM_TABLE, bytes(3), fds=1)
    serves(ctx, ctx.front())


@message("vhost-user.survive.unknown-request", "vhost-user.ack.other-than-zero")
def an_unknown_request(ctx: Context) -> None:
    """A request that does not exist; it is not acknowledged as a success."""
    for request in _UNKNOWN:
        front = ctx.front()
        refused(front, front.attempt(request, b""), f"request {request}")
    serves(ctx, front)


@message("vhost-user.survive.version")
def another_version(ctx: Context) -> None:
    """A header whose version is not 1, or that has flags which do not exist."""
    for flags in (0, 2, 3, 0x101):
        front = ctx.front()
        front.send_bytes(_header(Code.SET_OWNER, flags, 0))
        front.sound()
    serves(ctx, front)


@message("vhost-user.survive.unasked-reply")
def a_reply_that_nobody_asked_for(ctx: Context) -> None:
    """A reply to a question that the back-end never asked."""
    for code in (Code.GET_FEATURES, Code.SET_MEM_TABLE, Code.GET_CONFIG):
        front = ctx.front()
        front.send(code, (0).to_bytes(8, "little"), flags=REPLY)
        front.sound()
    serves(ctx, front)


@message("vhost-user.survive.missing-descriptors", "vhost-user.ack.other-than-zero")
def missing_descriptors(ctx: Context) -> None:
    """Requests without the descriptors that belong to them; memory that did not come is not told as
    a success."""
    front = ctx.front()
    table = _table(Region(GUEST_BASE, 4096, USER_BASE, 0))
    refused(front, front.attempt(Code.SET_MEM_TABLE, table), "memory without a file")
    both = _table(*(Region(GUEST_BASE + at, 4096, USER_BASE + at, 0) for at in (0, 4096)))
    front = ctx.front()
    refused(front, front.attempt(Code.SET_MEM_TABLE, both, front.fds[:1]), "half of the files")
    for code in (Code.SET_VRING_KICK, Code.SET_VRING_CALL, Code.SET_VRING_ERR):
        front = ctx.front()
        negotiated(ctx, front)
        front.attempt(code, U64(0))
    offered = front.offered_protocol
    if P.CONFIGURE_MEM_SLOTS in offered:
        front = ctx.front(P.CONFIGURE_MEM_SLOTS)
        region = Region(GUEST_BASE, 4096, USER_BASE, 0)
        refused(front, front.attempt(Code.ADD_MEM_REG, region), "a region without a file")
    if P.LOG_SHMFD in offered:
        front = ctx.front(P.LOG_SHMFD)
        front.send(Code.SET_LOG_BASE, LogBase(4096, 0))
        front.sound()
    if P.INFLIGHT_SHMFD in offered:
        front = ctx.front(P.INFLIGHT_SHMFD)
        front.attempt(Code.SET_INFLIGHT_FD, Inflight(4096, 0, 1, 16))
    serves(ctx, front)


@message("vhost-user.survive.surplus-descriptors")
def surplus_descriptors(ctx: Context) -> None:
    """Descriptors that no request has any use for: they are closed at the latest when the
    connection is."""
    for code in (Code.SET_OWNER, Code.GET_FEATURES):
        front = ctx.front()
        with watched_fd(front) as fd:
            front.send(code, fds=[fd] * _SURPLUS_FDS)
            front.sound()
            front.close()
    front = ctx.front()
    with watched_fd(front) as fd:
        table = _table(Region(GUEST_BASE, 4096, USER_BASE, 0))
        front.attempt(Code.SET_MEM_TABLE, table, [*front.fds, fd])
        front.close()
    serves(ctx, front)


@message("vhost-user.survive.out-of-order")
def out_of_order(ctx: Context) -> None:
    """Rings that are enabled, kicked or asked about before anything is known of them; features
    that change under a live ring."""
    index, size = 0, 16
    address = VringAddress(index, 0, USER_BASE, USER_BASE + 8192, USER_BASE + 4096, 0)
    survives(
        ctx,
        lambda front: front.attempt(Code.SET_VRING_ENABLE, VringState(index, 1)),
        lambda front: _ask(front, Code.GET_VRING_BASE, VringState(index, 0)),
        lambda front: front.attempt(Code.SET_VRING_ADDR, address),
        lambda front: start_anyway(front, index, size, USER_BASE),
        lambda front: front.attempt(Code.SET_VRING_NUM, VringState(index, size)),
    )
    front = ctx.front()
    with contextlib.suppress(NotObservable):
        live = live_on(ctx, front)
        live.ring.serve(*live.jobs(1))
        front.attempt(Code.SET_FEATURES, U64(front.offered & ~int(F.EVENT_IDX)))
        live.ring.signal()
        front.sound()
    serves(ctx, front)


@message("vhost-user.survive.no-such-ring", "vhost-user.ack.other-than-zero")
def no_such_ring(ctx: Context) -> None:
    """Requests for a ring beyond the last; none is told as a success."""
    address = VringAddress(_FAR, 0, USER_BASE, USER_BASE + 8192, USER_BASE + 4096, 0)
    for code, payload in (
        (Code.SET_VRING_NUM, VringState(_FAR, 16)),
        (Code.SET_VRING_BASE, VringState(_FAR, 0)),
        (Code.SET_VRING_ADDR, address),
        (Code.SET_VRING_ENABLE, VringState(0x1_0000, 1)),
    ):
        front = ctx.front()
        negotiated(ctx, front)
        front.share()
        refused(front, front.attempt(code, payload), f"{code.name} of ring {payload[0]:#x}")
    for code in (Code.SET_VRING_KICK, Code.SET_VRING_CALL):
        front = ctx.front()
        negotiated(ctx, front)
        front.attempt(code, U64(0xFF), front.fds[:1])
    front = ctx.front()
    _ask(front, Code.GET_VRING_BASE, VringState(_FAR, 0))
    serves(ctx, front)


@message("vhost-user.survive.ring-size")
def a_ring_size_that_cannot_be(ctx: Context) -> None:
    """A ring of no entries, of 65536, of 2^32 - 1: set, and then started and kicked."""
    for size in (0, 1 << 16, 0xFFFF_FFFF):
        front = ctx.front()
        negotiated(ctx, front)
        front.share()
        start_anyway(front, ctx.own_queue, size, USER_BASE)
    serves(ctx, front)


def _ask(front: Front, code: Code, payload: VringState) -> Outcome:
    front.send(code, payload)
    return front.sound()


def _table(*regions: Region) -> bytes:
    """A memory table's bytes, unchecked."""
    rows = (b"".join(word.to_bytes(8, "little") for word in region) for region in regions)
    return len(regions).to_bytes(8, "little") + b"".join(rows)
