"""The channel on which a back-end asks and its front-end answers, served by the event loop.

A front-end opens it, may open another in its place, and need not read it: what it leaves unread or
unanswered has a limit, beyond which the channel is closed. The session goes on without.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable

from virtq.transports.vhost_user import channel
from virtq.transports.vhost_user.messages import Back
from virtq.transports.vhost_user.outbox import Outbox
from virtq.transports.vhost_user.protocol import BackendProtocol, Reply
from virtq.transports.vhost_user.wire import Payload, ProtocolError

log = logging.getLogger("virtq.vhost_user")

_UNREAD_BYTES = 64 * 1024
"""What may wait for a front-end that does not read."""
_UNACKNOWLEDGED = 1024
"""Requests that a front-end may leave without their acknowledgement."""


class Asking:
    """The channel, from before it is opened to after it is closed."""

    def __init__(
        self,
        protocol: BackendProtocol,
        name: str,
        acknowledged: Callable[[Reply], None],
        lost: Callable[[], None],
    ) -> None:
        """`acknowledged` gets each answer, whose descriptors are closed here. `lost` is called when
        none will come any more to what was asked."""
        self._protocol = protocol
        self._name = name
        self._acknowledged = acknowledged
        self._lost = lost
        self._sock: socket.socket | None = None
        self._outbox: Outbox | None = None

    def open(self, sock: socket.socket) -> None:
        """Use this socket, owned here from now on, and nothing of the one before."""
        self.close()
        self._protocol.reopen_other()
        sock.setblocking(False)
        self._sock, self._outbox = sock, Outbox(sock)
        asyncio.get_running_loop().add_reader(sock, self._readable)

    def tell(self, code: Back, payload: Payload | None = None, *, ack: bool = False) -> bool:
        """Send a request; with `ack` it asks for an acknowledgement where there can be one. False
        if there is no channel, or none any more."""
        if self._outbox is None:
            return False
        machine = self._protocol.other
        try:
            if machine.waiting >= _UNACKNOWLEDGED:
                raise ProtocolError(code.name, "unacknowledged", machine.waiting, "full")
            self._outbox.put(machine.request(code, payload, ack=ack))
            self._flush()
        except (ProtocolError, OSError) as error:
            log.warning("%s: cannot tell %s: %s", self._name, code.name, str(error))
            self.close()
            return False
        return True

    def close(self) -> None:
        """Harmless when it is closed."""
        self._lost()
        if self._sock is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._sock)
            loop.remove_writer(self._sock)
            with contextlib.suppress(OSError):
                self._sock.close()
            self._sock = self._outbox = None

    def _flush(self) -> None:
        assert self._sock is not None
        assert self._outbox is not None
        loop = asyncio.get_running_loop()
        if self._outbox.flush():
            loop.remove_writer(self._sock)
        elif self._outbox.pending_bytes > _UNREAD_BYTES:
            raise ProtocolError("other channel", "unread", self._outbox.pending_bytes, "full")
        else:
            loop.add_writer(self._sock, self._writable)

    def _writable(self) -> None:
        try:
            self._flush()
        except (ProtocolError, OSError):
            self.close()

    def _readable(self) -> None:
        assert self._sock is not None
        machine = self._protocol.other
        try:
            data, fds = channel.receive(self._sock, machine.wanted)
            if data:
                machine.receive(data, fds)
                while (reply := machine.next_reply()) is not None:
                    with reply.fds:
                        self._acknowledged(reply)
                return
        except (BlockingIOError, InterruptedError):
            return
        except (ProtocolError, OSError) as error:
            log.warning("%s: the other channel is closed: %s", self._name, str(error))
        self.close()
