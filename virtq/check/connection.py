"""A vhost-user connection on which is sent what is to be sent, right or wrong.

All waits end. What a back-end may do with a message that is wrong is left to it: refuse it, close
the connection, or ignore it (`Outcome`).
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple

from virtq.check.case import Broken, Hung, expect
from virtq.check.waiting import POLL_S
from virtq.errors import PeerGone, TransportError
from virtq.transports.vhost_user import channel
from virtq.transports.vhost_user.fds import close_fd
from virtq.transports.vhost_user.messages import FRONT_MESSAGES, P
from virtq.transports.vhost_user.messages import Front as Code
from virtq.transports.vhost_user.wire import (
    HEADER_BYTES,
    NEED_REPLY,
    REPLY,
    VERSION,
    Payload,
    pack_message,
    unpack_header,
)

_ANSWER_BYTES_MAX = 1 << 16
_PAUSE_S = 0.01


class Closed(Exception):
    """The back-end has closed the connection."""


class Outcome(Enum):
    """What became of a request that may be wrong."""

    ACCEPTED = "acknowledged with zero"
    REFUSED = "acknowledged with another number"
    CLOSED = "the connection was closed"
    SILENT = "nothing was said"


class Answer(NamedTuple):
    """A message of the back-end; descriptors are the caller's."""

    request: int
    flags: int
    body: bytes
    fds: list[int]

    @property
    def number(self) -> int:
        """Raises Broken for a body that is no number."""
        expect(len(self.body) == 8, "a reply of 8 bytes", f"{len(self.body)} bytes")
        return int.from_bytes(self.body, "little")


class Connection:
    """Close it."""

    def __init__(self, dial: Callable[[], socket.socket], patience_s: float) -> None:
        """`dial` opens one more connection. Raises PeerGone if nobody listens any more."""
        self._dial = dial
        self.patience_s = patience_s
        self._sock = self._connect()
        self.protocol = P(0)
        """What was negotiated; with REPLY_ACK, requests are acknowledged."""

    def greet(self) -> int:
        """The features that are offered, asked for before anything else. A connection that was
        closed before it got any answer may have reached a listener that was on its way out: then
        there is another. Raises Broken, Hung."""
        deadline = time.monotonic() + self.patience_s
        while True:
            self.send(Code.GET_FEATURES)
            try:
                answer = self._checked(self.read("the answer to GET_FEATURES"), Code.GET_FEATURES)
                return answer.number
            except Closed:
                self._sock.close()
                if time.monotonic() > deadline:
                    came = Outcome.CLOSED.value
                    raise Broken("an answer to GET_FEATURES", came) from None
            time.sleep(_PAUSE_S)
            self._sock = self._connect()

    # Bytes

    def send_bytes(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send them as they are. A back-end that has closed is noticed when it is listened to."""
        self._sock.settimeout(self.patience_s)
        try:
            while data:
                data, fds = data[channel.send(self._sock, data, fds) :], ()
        except TimeoutError:
            raise Hung(f"the back-end did not read for {self.patience_s} s") from None
        except OSError:
            return

    def send(
        self,
        request: int,
        payload: Payload | bytes | None = None,
        fds: Sequence[int] = (),
        flags: int = 0,
    ) -> None:
        """Send a request; bytes as its payload need not make sense."""
        if not isinstance(payload, bytes):
            payload = FRONT_MESSAGES[request].payload.build(Code(request).name, payload)
        self.send_bytes(pack_message(request, flags, payload), fds)

    def read(self, what: str = "an answer") -> Answer:
        """The next message. Raises Closed, Hung."""
        deadline = time.monotonic() + self.patience_s
        fds: list[int] = []
        header = unpack_header(self._exactly(HEADER_BYTES, fds, deadline, what))
        expect(header.size <= _ANSWER_BYTES_MAX, "an answer of its size", f"{header.size} bytes")
        body = self._exactly(header.size, fds, deadline, what)
        return Answer(header.request, header.flags, body, fds)

    def _exactly(self, size: int, fds: list[int], deadline: float, what: str) -> bytes:
        data = b""
        while len(data) < size:
            self._sock.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                more, came = channel.receive(self._sock, size - len(data))
            except TimeoutError:
                raise Hung(f"waited {self.patience_s} s for {what}") from None
            except OSError:
                raise Closed from None
            fds += came
            if not more:
                raise Closed
            data += more
        return data

    # Requests that are right

    def ask(
        self,
        request: Code,
        payload: Payload | bytes | None = None,
        fds: Sequence[int] = (),
        flags: int = 0,
    ) -> Answer:
        """Send a request that has a reply, and check its form. Raises Broken."""
        self.send(request, payload, fds, flags)
        return self.answer(request)

    def answer(self, request: Code) -> Answer:
        """The reply to a request. Raises Broken for another message, or none."""
        try:
            answer = self.read(f"the answer to {request.name}")
        except Closed:
            self._sock.close()
            self.alive()
            raise Broken(f"an answer to {request.name}", Outcome.CLOSED.value) from None
        return self._checked(answer, request)

    def _checked(self, answer: Answer, request: Code) -> Answer:
        came = f"request {answer.request}, flags {answer.flags:#x}"
        right = answer.request == request and answer.flags & ~NEED_REPLY == VERSION | REPLY
        if not right:
            self.let_go(answer)
        expect(right, f"a reply to {request.name}: request {int(request)}, flags 0x5", came)
        return answer

    def number(self, request: Code, payload: Payload | None = None, flags: int = 0) -> int:
        answer = self.ask(request, payload, flags=flags)
        self.let_go(answer)
        return answer.number

    def tell(
        self, request: Code, payload: Payload | bytes | None = None, fds: Sequence[int] = ()
    ) -> None:
        """Send a request that is right, and see that it is acknowledged where it can be. Raises
        Broken."""
        outcome = self.attempt(request, payload, fds)
        if outcome is Outcome.CLOSED:
            self._sock.close()
            self.alive()
        expect(
            outcome in (Outcome.ACCEPTED, Outcome.SILENT),
            f"{request.name} accepted",
            outcome.value,
        )

    def let_go(self, answer: Answer) -> None:
        for fd in answer.fds:
            close_fd(fd)
        answer.fds.clear()

    # Requests that may be wrong

    def attempt(
        self,
        request: int,
        payload: Payload | bytes | None = None,
        fds: Sequence[int] = (),
    ) -> Outcome:
        """Send a request that has no reply of its own, with need_reply where REPLY_ACK holds, and
        see what becomes of it. Raises Hung if nothing does."""
        acks = P.REPLY_ACK in self.protocol
        self.send(request, payload, fds, NEED_REPLY if acks else 0)
        if not acks:
            return self.sound()
        try:
            answer = self.read(f"an acknowledgement of request {request}")
        except Closed:
            return Outcome.CLOSED
        self.let_go(answer)
        expect(
            answer.request == request and answer.flags & REPLY,
            f"an acknowledgement of request {request}",
            f"request {answer.request}, flags {answer.flags:#x}",
        )
        return Outcome.REFUSED if answer.number else Outcome.ACCEPTED

    def sound(self) -> Outcome:
        """Whether the connection still is there once everything that was sent has been read; what
        is answered meanwhile is let go."""
        self.send(Code.GET_FEATURES)
        try:
            while True:
                answer = self.read("the answer to GET_FEATURES behind it")
                self.let_go(answer)
                if answer.request == Code.GET_FEATURES and answer.flags & REPLY:
                    return Outcome.SILENT
        except Closed:
            return Outcome.CLOSED

    def unasked(self) -> str:
        """What comes beside the answer to a question that is asked now; empty if nothing does."""
        self.send(Code.GET_FEATURES)
        try:
            answer = self.read("the answer to GET_FEATURES")
        except Closed:
            return Outcome.CLOSED.value
        self.let_go(answer)
        if answer.request != Code.GET_FEATURES:
            return f"a message with request {answer.request}, flags {answer.flags:#x}"
        return "another message" if self.readable(0) else ""

    def readable(self, within_s: float) -> bool:
        """Whether a message, or the end, comes within a time."""
        return bool(select.select([self._sock], [], [], within_s)[0])

    def alive(self) -> None:
        """See that the back-end answers another connection; this one has to be closed. Raises
        PeerGone, Hung."""
        deadline = time.monotonic() + self.patience_s
        while True:
            with self._connect() as self._sock, contextlib.suppress(Closed):
                self.send(Code.GET_FEATURES)
                self.let_go(self.read("an answer on another connection"))
                return
            if time.monotonic() > deadline:
                raise PeerGone("every other connection is closed before it is answered")
            time.sleep(_PAUSE_S)

    def _connect(self) -> socket.socket:
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                return self._dial()
            except PeerGone:
                raise
            except TransportError as error:
                if not isinstance(error.__context__, BlockingIOError):
                    raise PeerGone(f"nobody takes another connection: {error}") from None
            # The backlog is full: somebody listens, and takes no connection.
            if time.monotonic() > deadline:
                raise Hung(f"waited {self.patience_s} s for another connection to be taken")
            time.sleep(POLL_S)

    def check(self) -> None:
        """Raises Broken if the back-end has closed, and PeerGone if it is gone altogether."""
        try:
            channel.check_alive(self._sock, "the connection")
        except PeerGone:
            self._sock.close()
            self.alive()
            raise Broken("the connection kept", Outcome.CLOSED.value) from None

    def close(self) -> None:
        self._sock.close()
