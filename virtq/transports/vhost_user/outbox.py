"""What waits to be sent on a non-blocking socket."""

from __future__ import annotations

import socket
from collections import deque

from virtq.transports.vhost_user import channel
from virtq.transports.vhost_user.protocol import Outgoing


class Outbox:
    """Messages in order; one that a full socket takes only in part goes on where it stopped."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._queue: deque[Outgoing] = deque()
        self.pending_bytes = 0

    def put(self, outgoing: Outgoing) -> None:
        if outgoing.data:
            self._queue.append(outgoing)
            self.pending_bytes += len(outgoing.data)

    def flush(self) -> bool:
        """Send what fits; True if nothing is left. Raises OSError, but not for a full socket."""
        while self._queue:
            data, fds = self._queue[0]
            try:
                sent = channel.send(self._sock, data, fds)
            except (BlockingIOError, InterruptedError):
                return False
            self.pending_bytes -= sent
            if sent == len(data):
                self._queue.popleft()
            else:
                self._queue[0] = Outgoing(data[sent:])
        return True
