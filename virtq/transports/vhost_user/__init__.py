"""vhost-user: devices and drivers in two processes, with a socket and shared memory between them.

From the ground up: `wire` (payloads and bytes), `messages` (every message as data), `rings` and
`negotiation` (what both ends have agreed on), `protocol` (a connection without I/O), `channel`
(sockets); on these the back-end (`backend`, with `session`, `vrings`, `guest`) serves a device, and
the front-end (`frontend`, with `exchange`, `other_channel`) is a driver's transport. What outlives
a back-end is in `inflight` (the region that both ends know) and `reconnect`.
"""

from virtq.transports.vhost_user.backend import Backend, serve
from virtq.transports.vhost_user.frontend import Frontend
from virtq.transports.vhost_user.messages import P as ProtocolFeature
from virtq.transports.vhost_user.reconnect import NotResumable
from virtq.transports.vhost_user.wire import ProtocolError

__all__ = ["Backend", "Frontend", "NotResumable", "ProtocolError", "ProtocolFeature", "serve"]
