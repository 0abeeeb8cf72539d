"""The host's side of a socket device: Unix sockets, by the convention that Firecracker began.

- Who connects to the device's Unix socket says `CONNECT <port>` and a line feed, and gets
  `OK <assigned port>` and a line feed once the guest has accepted; from then on the socket is the
  connection. A refused one is closed without a word.
- When the guest connects to port N of the host (CID 2), it is connected to the Unix socket whose
  path is the device's with `_N` behind it: a stream socket, or for seqpacket one of that type.

Everything here belongs to one asyncio loop, and nothing in it waits: sockets are looked at when the
loop says that they are ready, read as far as the guest has buffer space, and what the guest sends
is consumed (5.10.6.3) when the Unix socket has taken it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import select
import socket
from collections import deque
from collections.abc import Callable

from virtq.devices import unix_socket
from virtq.wire.vsock import ANY_PORT, BOTH_WAYS, Boundary, Shutdown, SocketType
from virtq.wire.vsock_flow import Flow, State

log = logging.getLogger("virtq.device")

LISTEN_BACKLOG = 128
CONNECT_LINE_MAX = 32
"""The longest `CONNECT <port>` line, in bytes."""
HANDSHAKE_TIMEOUT_S = 5.0
"""How long a host's program may take for its line, and the guest to answer."""
CLOSE_TIMEOUT_S = 8.0
"""How long the guest may take to answer that a connection is closed (5.10.6.5)."""
HANDSHAKES_MAX = 64
"""Connections of the host that have not said their port yet, at most."""


class HostConnection:
    """A connection between the guest and a Unix socket, which it owns: a `User` of its flow."""

    def __init__(self, sock: socket.socket, flow: Flow) -> None:
        """`sock` is connected and does not block. Starts to read once the flow is open."""
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._flow = flow
        self._to_host: deque[memoryview] = deque()
        self._message = b""
        self._greeting = b""
        self._early = b""
        self._reading = False
        self._writing = False
        self._read_ended = False
        self._write_ended = False
        self._timer: asyncio.TimerHandle | None = None

    def start(self, early: bytes = b"") -> None:
        """The flow is open. `early`: what the host's program has sent already."""
        if early:
            self._flow.send(early)
        self._read_on()

    def expect(self, early: bytes) -> None:
        """The guest was asked: wait for its answer, and then say OK."""
        self._greeting = b"OK %d\n" % self._flow.key.local_port
        self._early = early
        self._timer = self._loop.call_later(HANDSHAKE_TIMEOUT_S, self._flow.reset)

    # virtq.wire.vsock_flow.User

    def opened(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._write(self._greeting)
        self.start(self._early)

    def received(self, data: bytes, boundary: Boundary) -> None:
        if self._write_ended:
            self._flow.consumed(len(data))
        elif self._flow.key.type == SocketType.SEQPACKET:
            self._gather(data, boundary)
        else:
            self._to_host.append(memoryview(data))
            self._write_more()

    def room(self) -> None:
        self._read_on()

    def shut(self, flags: Shutdown) -> None:
        if flags & Shutdown.RECEIVE:
            self._read_off()
        if flags & Shutdown.SEND:
            self._write_more()

    def closed(self, clean: bool) -> None:
        self._read_off()
        if self._timer is not None:
            self._timer.cancel()
        # What came before the end is still the host's.
        self._write_more()

    # From the host

    def _read_on(self) -> None:
        if not self._reading and not self._read_ended and self._flow.room:
            self._reading = True
            self._loop.add_reader(self._sock, self._readable)

    def _read_off(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock)

    def _readable(self) -> None:
        room = self._flow.room
        if not room:
            self._read_off()
            return
        whole = self._flow.key.type == SocketType.SEQPACKET
        size = max(room, self._flow.message_bytes_max) if whole else room
        try:
            data, _, flags, _ = self._sock.recvmsg(size)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._host_vanished()
            return
        if flags & socket.MSG_TRUNC or (whole and len(data) > self._flow.message_bytes_max):
            log.warning("%r: the host sent a message that the guest has no room for", self._flow)
            self._host_vanished()
        elif data:
            self._flow.send(data, Boundary.MESSAGE if whole else Boundary(0))
        else:
            self._read_ended = True
            self._read_off()
            self._shutdown(BOTH_WAYS if self._hung_up() else Shutdown.SEND)

    def _hung_up(self) -> bool:
        """Whether the host's program has closed its socket, not only the direction to us."""
        poll = select.poll()
        poll.register(self._sock, 0)
        return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))

    # To the host

    def _gather(self, data: bytes, boundary: Boundary) -> None:
        """Pieces of a message wait in the queue until its end came."""
        self._message += data
        if boundary & Boundary.MESSAGE:
            whole, self._message = self._message, b""
            self._to_host.append(memoryview(whole))
            self._write_more()

    def _write(self, data: bytes) -> None:
        """Something that is not the guest's."""
        with contextlib.suppress(OSError):
            self._sock.send(data)

    def _write_more(self) -> None:
        while self._to_host:
            head = self._to_host[0]
            try:
                count = self._sock.send(head)
            except (BlockingIOError, InterruptedError):
                self._write_on()
                return
            except OSError:
                self._host_deaf()
                break
            self._flow.consumed(count)
            if count < len(head):
                self._to_host[0] = head[count:]
            else:
                self._to_host.popleft()
        self._write_off()
        self._end_if_done()

    def _write_on(self) -> None:
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._sock, self._write_more)

    def _write_off(self) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._sock)

    # Ends

    def _end_if_done(self) -> None:
        """All that came is written: pass on what the guest has ended."""
        if self._flow.state is State.GONE:
            self._close()
        elif self._flow.peer_shutdown & Shutdown.SEND and not self._write_ended:
            self._write_ended = True
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)

    def _host_deaf(self) -> None:
        """The host's program reads no more: neither does this end."""
        self._flow.consumed(sum(map(len, self._to_host)))
        self._to_host.clear()
        self._write_ended = True
        self._shutdown(BOTH_WAYS if self._read_ended or self._hung_up() else Shutdown.RECEIVE)

    def _host_vanished(self) -> None:
        self._read_ended = self._write_ended = True
        self._read_off()
        self._to_host.clear()
        self._flow.reset()

    def _shutdown(self, flags: Shutdown) -> None:
        self._flow.shutdown(flags)
        if self._flow.state is State.CLOSING and self._timer is None:
            self._timer = self._loop.call_later(CLOSE_TIMEOUT_S, self._give_up)

    def _give_up(self) -> None:
        """The guest did not answer; unless what it is to answer could not be sent yet."""
        if self._flow.has_unsent:
            self._timer = self._loop.call_later(CLOSE_TIMEOUT_S, self._give_up)
        else:
            self._flow.reset()

    def _close(self) -> None:
        self._read_ended = True
        self._read_off()
        self._write_off()
        self._sock.close()


def connect_to_host(path: str, port: int, type: int) -> socket.socket | None:
    """A socket that is connected to who listens for the guest's connections to `port`; None if
    nobody does."""
    kind = socket.SOCK_SEQPACKET if type == SocketType.SEQPACKET else socket.SOCK_STREAM
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.setblocking(False)
    try:
        sock.connect(f"{path}_{port}")
    except OSError as error:
        sock.close()
        if error.errno not in (errno.ENOENT, errno.ECONNREFUSED):
            log.warning("vsock port %d: %s_%d: %s", port, path, port, error.strerror or error)
        return None
    return sock


class HostListener:
    """The device's Unix socket, to which the host's programs connect."""

    def __init__(self, path: str, connect: Callable[[socket.socket, int, bytes], None]) -> None:
        """`connect` gets each socket with the port it asked for, and what came behind the line.
        A socket that nobody listens on any more is replaced. Raises OSError."""
        self.path = path
        self._connect = connect
        self._waiting: dict[socket.socket, tuple[bytes, asyncio.TimerHandle]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sock = unix_socket.listen(path, LISTEN_BACKLOG)

    def start(self) -> None:
        """Accept connections from now on; until then they wait."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._accept_on()

    def stop(self) -> None:
        """Accept no more; who has not said a port yet is sent away."""
        if self._loop is not None:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._sock)
            for sock in list(self._waiting):
                self._forget(sock).close()
            self._loop = None

    def close(self) -> None:
        """Remove the socket. Harmless when done twice."""
        self.stop()
        unix_socket.close(self._sock, self.path)

    def _accept_on(self) -> None:
        if self._loop is not None and len(self._waiting) < HANDSHAKES_MAX:
            self._loop.add_reader(self._sock, self._accept)

    def _accept(self) -> None:
        assert self._loop is not None
        try:
            sock, _ = self._sock.accept()
        except OSError:
            return
        sock.setblocking(False)
        timer = self._loop.call_later(HANDSHAKE_TIMEOUT_S, self._refuse, sock)
        self._waiting[sock] = (b"", timer)
        self._loop.add_reader(sock, self._readable, sock)
        if len(self._waiting) >= HANDSHAKES_MAX:
            self._loop.remove_reader(self._sock)

    def _readable(self, sock: socket.socket) -> None:
        line, timer = self._waiting[sock]
        try:
            data = sock.recv(CONNECT_LINE_MAX - len(line))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        line += data
        if b"\n" in line:
            self._asked(sock, line)
        elif not data or len(line) >= CONNECT_LINE_MAX:
            self._refuse(sock)
        else:
            self._waiting[sock] = (line, timer)

    def _asked(self, sock: socket.socket, line: bytes) -> None:
        words, _, early = line.partition(b"\n")
        command, _, number = words.partition(b" ")
        number = number.strip()
        if command != b"CONNECT" or not number.isdigit() or int(number) >= ANY_PORT:
            self._refuse(sock)
            return
        self._connect(self._forget(sock), int(number), early)

    def _refuse(self, sock: socket.socket) -> None:
        self._forget(sock).close()

    def _forget(self, sock: socket.socket) -> socket.socket:
        _, timer = self._waiting.pop(sock)
        timer.cancel()
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(sock)
            self._accept_on()
        return sock
