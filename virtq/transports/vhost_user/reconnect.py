"""A back-end that died, and the next one in its place: what a front-end has to know for that.

Memory, rings and what was negotiated are the front-end's and outlive every back-end. What the next
one must be told is where each ring stands:

    split     the used index is in shared memory
    packed    it follows from what the driver has reaped and what lies used in the ring behind that

With IN_ORDER that is all: everything before it is done, and nothing behind it is, so the next
back-end begins there. A packed ring can be torn, though: some devices, such as a receiver of
packets, write several used descriptors with the first one last, and one that is killed in between
leaves a ring that only the in-flight region can mend. Without IN_ORDER buffers behind it may be
done and others before them not; that too only the in-flight region tells, which the front-end keeps
and hands on. With neither a ring can go on only if the device has used all that it was given.
"""

from __future__ import annotations

import socket
import time

from virtq._core import Position
from virtq.errors import PeerGone, TransportError
from virtq.features import F
from virtq.transports.base import QueueEnd
from virtq.transports.vhost_user import channel

RECONNECT_S = 10.0
"""How long a front-end that reconnects waits for the next back-end unless told otherwise."""
_PAUSE_S = 0.005
"""Between two attempts: a socket that nobody listens on yet cannot be waited for."""


class NotResumable(PeerGone):
    """The back-end is gone, and what its rings held cannot be handed to another one."""


def resume_position(queue: QueueEnd, tracked: bool, name: str) -> Position:
    """Where the next back-end begins with this virtqueue. Raises NotResumable."""
    at = queue.device_position
    all_used = (at.available, at.available_wrap) == (at.used, at.used_wrap)
    if not (tracked or queue.features & F.IN_ORDER or all_used):
        raise NotResumable(
            f"{name}: the back-end is gone, and queue {queue.index} cannot go on with another one: "
            f"{queue.outstanding} buffers are outstanding, with neither IN_ORDER nor in-flight "
            f"tracking negotiated"
        )
    if not tracked and queue.torn:
        raise NotResumable(
            f"{name}: the back-end is gone, and queue {queue.index} cannot go on with another one: "
            f"it died in the middle of publishing used descriptors, without in-flight tracking"
        )
    return Position(at.used, at.used_wrap, at.used, at.used_wrap, 0)


def connect_again(path: str, deadline: float, timeout_s: float) -> socket.socket:
    """A connection to the next back-end at `path`, waited for until `deadline` (monotonic, in
    seconds). Raises PeerGone if there is none by then."""
    while True:
        try:
            return channel.connect(path, timeout_s)
        except TransportError as error:
            if time.monotonic() >= deadline:
                raise PeerGone(f"the back-end is gone, and no other has come: {error}") from None
        time.sleep(_PAUSE_S)
