"""What the cases for vhost-user back-ends share."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable, Iterator
from functools import partial

from virtq.check.case import NotObservable, case, expect
from virtq.check.connection import Outcome
from virtq.check.context import Context, Live
from virtq.check.front import Front
from virtq.check.session import Ring, Session
from virtq.transports.vhost_user.messages import Front as Code
from virtq.transports.vhost_user.wire import U64, VringAddress, VringState

message = partial(case, bus="vhost-user", rings=False)
ring_case = partial(case, bus="vhost-user", in_order=False)


def serves(ctx: Context, front: Front) -> None:
    """See that the back-end serves another front-end. Raises PeerGone, Hung, Broken."""
    ctx.close()
    front.alive()
    with contextlib.suppress(NotObservable):  # a device whose requests are not known
        live = ctx.live()
        live.ring.serve(*live.jobs(2))


def survives(ctx: Context, *spoil: Callable[[Front], object]) -> None:
    """Do harm, each on a connection of its own, and see that the back-end serves another one."""
    for harm in spoil:
        front = ctx.front()
        harm(front)
        front.close()
    serves(ctx, front)


def refused(front: Front, outcome: Outcome, what: str) -> None:
    """Raises Broken if it was acknowledged as a success."""
    expect(outcome is not Outcome.ACCEPTED, f"no success told for {what}", outcome.value)


def negotiated(ctx: Context, front: Front, add: int = 0) -> Session:
    """A session on this connection whose features are set. Raises NotObservable."""
    session = ctx.front_session(front)
    if not session.negotiate(ctx.features(session, add)):
        raise NotObservable("the device does not take its features")
    return session


def live_on(ctx: Context, front: Front, size: int | None = None) -> Live:
    """An initialized device on this connection."""
    return ctx.live(session=ctx.front_session(front), size=size)


def start_anyway(front: Front, index: int, size: int, user_addr: int) -> None:
    """Start a ring that lies at a user address, whatever the back-end says to it, and kick it."""
    kick, call = os.eventfd(1), os.eventfd(0)
    desc, used, avail = (
        (user_addr + offset) % 2**64 for offset in (0, 16 * size + 4096, 16 * size)
    )
    try:
        for code, payload, fds in (
            (Code.SET_VRING_NUM, VringState(index, size), ()),
            (Code.SET_VRING_BASE, VringState(index, 0), ()),
            (Code.SET_VRING_ADDR, VringAddress(index, 0, desc, used, avail, 0), ()),
            (Code.SET_VRING_CALL, U64(index), (call,)),
            (Code.SET_VRING_KICK, U64(index), (kick,)),
            (Code.SET_VRING_ENABLE, VringState(index, 1), ()),
        ):
            if front.attempt(code, payload, fds) is Outcome.CLOSED:
                return
        # It has started: whether it lives is asked when it had occasion to look at the ring.
        front.readable(front.moment_s)
        front.sound()
    finally:
        os.close(kick)
        os.close(call)


@contextlib.contextmanager
def watched_fd(front: Front) -> Iterator[int]:
    """A descriptor to send. At the end of the block, in which the connection has to be closed, the
    back-end must have closed it. Raises Broken."""
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    try:
        yield theirs
        os.close(theirs)
        theirs = -1
        closed = bool(select.select([ours], [], [], front.patience_s)[0])
        expect(closed, "descriptors that came with it closed", "one is still open")
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)


def signalled(fd: int, within_s: float) -> bool:
    """Whether an eventfd is signalled within a time."""
    return bool(select.select([fd], [], [], within_s)[0])


def idle(ring: Ring) -> None:
    """Raises Broken if a buffer that was just added is used."""
    expect(ring.quiet(), "the ring left alone", "a buffer was used")
