"""AF_UNIX stream sockets with descriptors in their ancillary data, and how they come to be.

Reading and writing here is one system call each; waiting, blocking or not, is the caller's affair.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import select
import socket
import stat
import sys
from collections.abc import Sequence

from virtq.errors import PeerGone, TransportError
from virtq.transports.vhost_user.fds import close_fd
from virtq.transports.vhost_user.protocol import MAX_HELD_FDS
from virtq.transports.vhost_user.wire import ProtocolError

_FD_BYTES = array.array("i").itemsize
_ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_HELD_FDS * _FD_BYTES)
_BACKLOG = 8


class NobodyListens(TransportError):
    """There is no socket at a path, or nobody listens on it."""


def receive(sock: socket.socket, size: int) -> tuple[bytes, list[int]]:
    """Up to `size` bytes and the descriptors that came with them, which the caller owns.

    No bytes: the other end has closed. Raises ProtocolError if more descriptors came than can be
    held (all are closed then), and what `recvmsg` raises.
    """
    data, ancillary, flags, _ = sock.recvmsg(size, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(content[: len(content) - len(content) % _FD_BYTES])
            fds += numbers
    if flags & socket.MSG_CTRUNC or (fds and not data):
        for fd in fds:
            close_fd(fd)
        raise ProtocolError("message", "descriptors", "too many", f"at most {MAX_HELD_FDS}")
    return data, fds


def send(sock: socket.socket, data: bytes | memoryview, fds: Sequence[int] = ()) -> int:
    """Send what fits of `data`, the descriptors with its first byte; returns the bytes sent."""
    if fds:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
        return sock.sendmsg([data], [rights], socket.MSG_NOSIGNAL)
    return sock.send(data, socket.MSG_NOSIGNAL)


def connect(path: str, timeout_s: float) -> socket.socket:
    """A connection to a listening back-end. Raises NobodyListens or another TransportError, which
    name the path."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout_s)
    try:
        sock.connect(path)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        sock.close()
        text = _reason(error)
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.stat(path).st_mode):
                text = "it is not a socket"
        raise NobodyListens(f"{path}: cannot connect: {text}") from None
    except OSError as error:
        sock.close()
        raise TransportError(f"{path}: cannot connect: {_reason(error)}") from None
    return sock


def listen(path: str) -> socket.socket:
    """A listening socket at `path`. A socket file that nobody listens on any more is replaced.

    Raises TransportError if somebody listens there, if the path is something other than a socket,
    or if it cannot be made.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_stale(path)
            sock.bind(path)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise TransportError(f"{path}: cannot listen: {_reason(error)}") from None
    except TransportError:
        sock.close()
        raise
    return sock


def _remove_stale(path: str) -> None:
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise TransportError(f"{path}: cannot listen: the file is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass
        raise TransportError(f"{path}: cannot listen: another process serves it")


def adopt(fd: int) -> socket.socket:
    """The socket behind a descriptor, which it owns from now on.

    Raises TransportError if it is not an AF_UNIX stream socket; `fd` is the caller's then.
    """
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise TransportError(f"descriptor {fd}: not a socket: {_reason(error)}") from None
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        sock.detach()
        raise TransportError(f"descriptor {fd}: not a stream socket of family AF_UNIX")
    return sock


def is_listening(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def check_alive(sock: socket.socket, name: str) -> None:
    """Raises PeerGone if the other end has closed; takes nothing from the stream."""
    poller = select.poll()
    poller.register(sock, select.POLLIN | select.POLLRDHUP)
    events = poller.poll(0)
    if events and events[0][1] & (select.POLLHUP | select.POLLRDHUP | select.POLLERR):
        raise PeerGone(f"{name}: the other end has closed the connection")


def check_event(name: str, fd: int) -> None:
    """Raises ProtocolError unless `fd` is what notifications can use: an eventfd or a pipe.

    It is made non-blocking, so that the other end cannot stall whoever reads or writes it.
    """
    kind = stat.S_IFMT(os.fstat(fd).st_mode)
    if kind not in (0, stat.S_IFIFO):
        raise ProtocolError(name, "descriptor", f"of type {kind:#o}", "neither eventfd nor pipe")
    os.set_blocking(fd, False)


def signal(fd: int) -> None:
    """Add one to an eventfd; a full one says it already."""
    with contextlib.suppress(OSError):
        os.write(fd, (1).to_bytes(8, sys.byteorder))


def drain(fd: int) -> bool:
    """Reset an eventfd; True if it had been signalled."""
    try:
        return bool(os.read(fd, 8))
    except (BlockingIOError, InterruptedError):
        return False


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
