"""How large a virtqueue a vhost-user back-end lets one ask for: no message tells it, and some give
up the connection, or end, when it is too large."""

from __future__ import annotations

import socket
from collections.abc import Callable

from virtq.check.case import Broken, Hung, NotObservable
from virtq.check.connection import Outcome
from virtq.check.front import USUAL, Front
from virtq.errors import PeerGone
from virtq.features import F
from virtq.transports.vhost_user.frontend import QUEUE_SIZE
from virtq.transports.vhost_user.messages import NO_FEATURE, PROTOCOL_FEATURES
from virtq.transports.vhost_user.messages import Front as Code
from virtq.transports.vhost_user.wire import U64, VringState

_LEAST = 2


def bearable_size(
    dial: Callable[[], socket.socket], has_gone: Callable[[], None], patience_s: float
) -> int:
    """The largest size, from the usual one downwards, at which the back-end stays; each is asked
    for on a connection of its own. `has_gone` is called when it did not stay. Raises PeerGone if
    it does not come back."""
    size = QUEUE_SIZE
    while size > _LEAST:
        try:
            if _stays(dial, size, patience_s):
                return size
        except PeerGone as gone:
            raise PeerGone(f"{gone}, after it was asked for a queue of {size}") from None
        except (Broken, Hung, NotObservable):
            return size  # something else is wrong, which is found out elsewhere
        has_gone()
        size //= 2
    return size


def _stays(dial: Callable[[], socket.socket], size: int, patience_s: float) -> bool:
    front = Front.begin(dial, NO_FEATURE, USUAL, patience_s, 0)
    try:
        features = int(F.VERSION_1 | PROTOCOL_FEATURES) & front.offered
        if front.attempt(Code.SET_FEATURES, U64(features)) is Outcome.CLOSED:
            raise Broken("features that were offered taken", Outcome.CLOSED.value)
        for index in range(front.queue_count):
            front.attempt(Code.SET_VRING_NUM, VringState(index, size))
        # Some refuse, and close the connection then.
        return front.sound() is not Outcome.CLOSED
    finally:
        front.close()
