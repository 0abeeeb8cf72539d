"""Blocking requests and replies on the main channel, each within a time limit.

Whatever goes wrong on the socket, or in what arrives there, is the end of the connection: where
its streams stand is no longer known. The first such error is kept, and raised again by every later
call. A refusal is no such error.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from virtq.errors import PeerGone, TransportError
from virtq.transports.vhost_user import channel
from virtq.transports.vhost_user.messages import Front, P
from virtq.transports.vhost_user.protocol import Reply, Requester
from virtq.transports.vhost_user.wire import U64, Payload


class Refused(TransportError):
    """The back-end acknowledged a request with a failure."""


class Exchange:
    """Asks over `sock`, which is owned here. `lock` keeps several requests together."""

    def __init__(self, sock: socket.socket, main: Requester, name: str, timeout_s: float) -> None:
        self.lock = threading.RLock()
        self._sock = sock
        self._main = main
        self._name = name
        self._timeout_s = timeout_s
        self._error: TransportError | None = None

    def ask(self, code: Front) -> int:
        """The number that answers a request without payload."""
        reply = self.transact(code)
        if reply is None or not isinstance(reply.payload, U64):
            raise TransportError(f"{self._name}: no answer to {code.name}")
        return reply.payload.value

    def tell(self, code: Front, payload: Payload | None = None, fds: Sequence[int] = ()) -> None:
        """Send a request, and see that it is acknowledged where it can be. Raises Refused."""
        # The request that turns acknowledgements on is itself never acknowledged.
        ack = code is not Front.SET_PROTOCOL_FEATURES
        reply = self.transact(code, payload, fds, ack=ack)
        if reply is not None and isinstance(reply.payload, U64) and reply.payload.value:
            what = f"{code.name} {payload}" if payload is not None else code.name
            raise Refused(f"{self._name}: the back-end refused {what}")

    def settle(self) -> None:
        """See that the back-end has dealt with everything, and is still there."""
        if not self._main.negotiation.has(P.REPLY_ACK):
            self.ask(Front.GET_FEATURES)

    def transact(
        self,
        code: Front,
        payload: Payload | None = None,
        fds: Sequence[int] = (),
        *,
        ack: bool = False,
        keep_fds: bool = False,
    ) -> Reply | None:
        """Send a request and wait for its reply, if it has one; with `keep_fds` the caller closes
        the descriptors that come with it.

        Raises PeerGone if the back-end is gone, TransportError after the time limit, ProtocolError
        for a reply that breaks the rules, or a request that would (and is not sent).
        """
        with self.lock:
            if self._error is not None:
                raise self._error
            outgoing = self._main.request(code, payload, fds, ack=ack)
            deadline = time.monotonic() + self._timeout_s
            try:
                self._send(outgoing.data, outgoing.fds, deadline)
                return self._receive(deadline, keep_fds) if self._main.waiting else None
            except TimeoutError:
                text = f"{self._name}: no answer to {code.name} within {self._timeout_s} s"
                raise self.fail(TransportError(text)) from None
            except TransportError as error:
                raise self.fail(error) from None
            except OSError as error:
                text = f"{self._name}: the back-end has closed at {code.name} ({error.strerror})"
                raise self.fail(PeerGone(text)) from None

    @property
    def fd(self) -> int:
        """The socket, to poll for its end; -1 once it is closed here."""
        return self._sock.fileno()

    def check(self) -> None:
        """Raises PeerGone if the back-end has closed, and again whatever ended the connection."""
        if self._error is not None:
            raise self._error
        try:
            channel.check_alive(self._sock, self._name)
        except PeerGone as error:
            raise self.fail(error) from None

    def fail(self, error: TransportError) -> TransportError:
        """End the connection; returns the error that ended it first."""
        if self._error is None:
            self._error = error
            self._main.close()
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        return self._error

    def close(self) -> None:
        self.fail(PeerGone(f"{self._name}: the connection was closed here"))
        self._sock.close()

    def _send(self, data: bytes, fds: Sequence[int], deadline: float) -> None:
        rest = memoryview(data)
        while rest:
            self._bound(deadline)
            sent = channel.send(self._sock, rest, fds)
            rest, fds = rest[sent:], ()

    def _receive(self, deadline: float, keep_fds: bool) -> Reply:
        while (reply := self._main.next_reply()) is None:
            self._bound(deadline)
            data, fds = channel.receive(self._sock, self._main.wanted)
            if not data:
                raise PeerGone(f"{self._name}: the back-end has closed the connection")
            self._main.receive(data, fds)
        if not keep_fds:
            reply.fds.close()
        return reply

    def _bound(self, deadline: float) -> None:
        """Bound the next system call on the socket. Raises TimeoutError."""
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._sock.settimeout(left_s)
