"""Sockets of a socket device's driver: connections and listeners, blocking and for asyncio."""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, Self, TypeVar

from virtq.drivers.background import Waiting
from virtq.drivers.stream_file import buffered
from virtq.errors import PeerGone
from virtq.wire.vsock import BOTH_WAYS, Boundary, Shutdown, SocketType
from virtq.wire.vsock_flow import Flow, State

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 8.0
"""How long the other end may take to answer that a connection is closed (5.10.6.5)."""


class Owner(Protocol):
    """What sockets need of their driver."""

    def call(self, work: Coroutine[Any, Any, T]) -> T: ...
    async def call_async(self, work: Coroutine[Any, Any, T]) -> T: ...
    def unlisten(self, listener: VsockListener) -> None: ...


class VsockSocket:
    """One connection, for any thread. Methods that end in `_async` are for asyncio.

    `timeout_s` bounds each blocking call (None: no limit); what it ends raises TimeoutError."""

    def __init__(self, owner: Owner, type: SocketType) -> None:
        self.type = type
        self.timeout_s: float | None = None
        self.flow: Flow
        self._owner = owner
        self._waiting = Waiting()
        self._came: deque[tuple[bytes, Boundary]] = deque()
        self._end_came = False
        self._error: Exception | None = None
        self._closed = False

    # What it is

    @property
    def local_address(self) -> tuple[int, int]:
        """(CID, port) of this end."""
        return self.flow.key.local_cid, self.flow.key.local_port

    @property
    def peer_address(self) -> tuple[int, int]:
        """(CID, port) of the other end."""
        return self.flow.key.peer_cid, self.flow.key.peer_port

    # Blocking use

    def recv(self, count: int) -> bytes:
        """Up to `count` bytes, at least one; none at the end. On a seqpacket socket a whole
        message, cut to `count` bytes. Raises ConnectionResetError, TimeoutError, PeerGone."""
        return self._owner.call(self._recv(count, self.timeout_s))

    def recv_exactly(self, count: int) -> bytes:
        """Exactly `count` bytes of a stream. Raises EOFError if the end comes before."""
        return self._owner.call(self._recv_exactly(count, self.timeout_s))

    def sendall(self, data: ReadableBuffer, *, end_of_record: bool = False) -> None:
        """Send all of `data`: on a seqpacket socket as one message, which may also end a record.
        Returns once the last piece waits to be sent.

        Raises BrokenPipeError once a side has shut this direction down, ConnectionResetError,
        OSError (EMSGSIZE) for a message larger than the other end's buffer, TimeoutError,
        PeerGone."""
        self._owner.call(self._sendall(bytes(data), end_of_record, self.timeout_s))

    def shutdown(self, flags: Shutdown = Shutdown.SEND) -> None:
        """Announce to the other end what this one will not do any more."""
        self._owner.call(self._shutdown(flags))

    def close(self) -> None:
        """Send what waits, and close. Harmless when done twice."""
        if not self._over:
            self._owner.call(self._close())

    def makefile(self) -> BinaryIO:
        """A stream as a buffered binary file for reading and writing; closing it leaves the socket
        open."""
        return buffered(self.recv, self.sendall)

    # asyncio

    async def recv_async(self, count: int) -> bytes:
        """`recv` for asyncio."""
        return await self._owner.call_async(self._recv(count, None))

    async def recv_exactly_async(self, count: int) -> bytes:
        """`recv_exactly` for asyncio."""
        return await self._owner.call_async(self._recv_exactly(count, None))

    async def sendall_async(self, data: ReadableBuffer, *, end_of_record: bool = False) -> None:
        """`sendall` for asyncio."""
        await self._owner.call_async(self._sendall(bytes(data), end_of_record, None))

    async def shutdown_async(self, flags: Shutdown = Shutdown.SEND) -> None:
        """`shutdown` for asyncio."""
        await self._owner.call_async(self._shutdown(flags))

    async def close_async(self) -> None:
        """`close` for asyncio."""
        if not self._over:
            await self._owner.call_async(self._close())

    @property
    def _over(self) -> bool:
        """Nothing is left to be closed."""
        self._closed = self._closed or self.flow.state is State.GONE
        return self._closed

    # In the driver's thread

    async def until_open(self, timeout_s: float) -> None:
        """Until the other end has answered. Raises ConnectionRefusedError, TimeoutError."""
        cid, port = self.peer_address
        try:
            await self._waiting.until(
                lambda: self.flow.state is not State.ASKED,
                timeout_s,
                f"no answer from {cid}:{port}",
            )
        except BaseException:
            self.flow.reset()
            raise
        if self.flow.state is State.GONE:
            if self._error is not None and not isinstance(self._error, ConnectionResetError):
                raise self._error
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"nobody listens at {cid}:{port}")

    async def _recv(self, count: int, timeout_s: float | None) -> bytes:
        if count < 1:
            raise ValueError(f"at least 1 byte has to be asked for, not {count}")
        await self._waiting.until(self._can_receive, timeout_s, "nothing came")
        if not self._has_whole():
            if self._error is not None:
                raise self._error
            return b""
        if self.type is SocketType.SEQPACKET:
            return self._take_message()[:count]
        return self._take(count)

    async def _recv_exactly(self, count: int, timeout_s: float | None) -> bytes:
        parts, have = [], 0
        while have < count:
            part = await self._recv(count - have, timeout_s)
            if not part:
                raise EOFError(f"the other end closed after {have} of {count} bytes")
            parts.append(part)
            have += len(part)
        return b"".join(parts)

    async def _sendall(self, data: bytes, end_of_record: bool, timeout_s: float | None) -> None:
        if self.type is SocketType.SEQPACKET:
            await self._wait_for_room(timeout_s)
            if len(data) > self.flow.message_bytes_max:
                text = f"{os.strerror(errno.EMSGSIZE)}: {len(data)} bytes"
                raise OSError(errno.EMSGSIZE, f"{text}, the most are {self.flow.message_bytes_max}")
            end = Boundary.MESSAGE | (Boundary.RECORD if end_of_record else Boundary(0))
            self.flow.send(data, end)
            return
        rest = memoryview(data)
        while rest:
            await self._wait_for_room(timeout_s)
            count = min(len(rest), self.flow.room)
            self.flow.send(rest[:count])
            rest = rest[count:]

    async def _wait_for_room(self, timeout_s: float | None) -> None:
        await self._waiting.until(
            lambda: bool(self.flow.room) or self._cannot_send, timeout_s, "no room came"
        )
        if self._cannot_send:
            if self._error is not None:
                raise self._error
            raise BrokenPipeError(errno.EPIPE, "this direction is shut down")

    @property
    def _cannot_send(self) -> bool:
        flow = self.flow
        shut = flow.own_shutdown & Shutdown.SEND or flow.peer_shutdown & Shutdown.RECEIVE
        return flow.state is not State.OPEN or bool(shut)

    async def _shutdown(self, flags: Shutdown) -> None:
        self.flow.shutdown(flags)
        if self.flow.state is State.CLOSING:
            asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self._give_up)
        self._waiting.changed()

    def _give_up(self) -> None:
        """The other end did not answer; unless what it is to answer could not be sent yet."""
        if self.flow.has_unsent:
            asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self._give_up)
        else:
            self.flow.reset()

    async def _close(self) -> None:
        self._closed = True
        self._came.clear()
        await self._shutdown(BOTH_WAYS)

    # What came

    def _can_receive(self) -> bool:
        return self._has_whole() or self._end_came or self._closed or self._error is not None

    def _has_whole(self) -> bool:
        if self.type is SocketType.SEQPACKET:
            return any(boundary & Boundary.MESSAGE for _, boundary in self._came)
        return bool(self._came)

    def _take(self, count: int) -> bytes:
        taken: list[bytes] = []
        left = count
        while left and self._came:
            data, boundary = self._came.popleft()
            taken.append(data[:left])
            if len(data) > left:
                self._came.appendleft((data[left:], boundary))
            left -= len(taken[-1])
        self.flow.consumed(count - left)
        return b"".join(taken)

    def _take_message(self) -> bytes:
        parts: list[bytes] = []
        boundary = Boundary(0)
        while not boundary & Boundary.MESSAGE:
            data, boundary = self._came.popleft()
            parts.append(data)
        message = b"".join(parts)
        self.flow.consumed(len(message))
        return message

    # virtq.wire.vsock_flow.User

    def opened(self) -> None:
        self._waiting.changed()

    def received(self, data: bytes, boundary: Boundary) -> None:
        if self._closed:
            self.flow.consumed(len(data))
            return
        self._came.append((data, boundary))
        self._waiting.changed()

    def room(self) -> None:
        self._waiting.changed()

    def shut(self, flags: Shutdown) -> None:
        self._end_came = self._end_came or bool(flags & Shutdown.SEND)
        self._waiting.changed()

    def closed(self, clean: bool) -> None:
        self._end_came = True
        if not clean and self._error is None:
            self._error = ConnectionResetError(errno.ECONNRESET, "the connection was reset")
        self._waiting.changed()

    def fail(self, error: Exception) -> None:
        """The device is gone, or broke a queue."""
        self._error = error if isinstance(error, PeerGone) else ConnectionResetError(str(error))

    # Context

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close_async()

    def __repr__(self) -> str:
        (_, port), (cid, peer_port) = self.local_address, self.peer_address
        return f"<VsockSocket {port} to {cid}:{peer_port}, {self.flow.state.name.lower()}>"


class VsockListener:
    """Connections to one port wait here to be accepted."""

    def __init__(self, owner: Owner, port: int, backlog: int, type: SocketType) -> None:
        self.port = port
        self.type = type
        self.timeout_s: float | None = None
        self._owner = owner
        self._backlog = backlog
        self._waiting = Waiting()
        self._came: deque[VsockSocket] = deque()
        self._error: Exception | None = None
        self._closed = False

    def accept(self) -> tuple[VsockSocket, tuple[int, int]]:
        """The next connection, and (CID, port) of its other end. Raises TimeoutError, PeerGone, and
        OSError once the listener is closed."""
        return self._owner.call(self._accept(self.timeout_s))

    async def accept_async(self) -> tuple[VsockSocket, tuple[int, int]]:
        """`accept` for asyncio."""
        return await self._owner.call_async(self._accept(None))

    def close(self) -> None:
        """Refuse connections from now on, and reset those that were not accepted. Harmless when
        done twice."""
        if not self._closed:
            self._owner.call(self._close())

    # In the driver's thread

    async def _accept(self, timeout_s: float | None) -> tuple[VsockSocket, tuple[int, int]]:
        await self._waiting.until(
            lambda: bool(self._came) or self._closed, timeout_s, "no connection came"
        )
        if not self._came:
            raise self._error or OSError(errno.EBADF, f"the listener on {self.port} is closed")
        connection = self._came.popleft()
        return connection, connection.peer_address

    async def _close(self) -> None:
        self.end(None)

    def asked(self, flow: Flow) -> VsockSocket | None:
        """Somebody asks for a connection; None refuses."""
        if len(self._came) >= self._backlog:
            return None
        connection = VsockSocket(self._owner, self.type)
        connection.flow = flow
        flow.accept()
        self._came.append(connection)
        self._waiting.changed()
        return connection

    def end(self, error: Exception | None) -> None:
        """Nothing will come any more."""
        self._closed, self._error = True, error
        self._owner.unlisten(self)
        while self._came:
            self._came.popleft().flow.reset()
        self._waiting.changed()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<VsockListener on {self.port}, {len(self._came)} waiting>"
