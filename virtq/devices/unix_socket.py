"""Unix sockets that devices listen on."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat


def listen(path: str, backlog: int) -> socket.socket:
    """A stream socket at `path` that listens and does not block; one that a dead process left there
    is replaced. Raises OSError that names the path."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear(path)
        sock.bind(path)
        sock.listen(backlog)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, error.strerror or str(error), path) from None
    return sock


def close(sock: socket.socket, path: str) -> None:
    """Close a listening socket, and remove it. Harmless when done twice."""
    if sock.fileno() >= 0:
        sock.close()
        with contextlib.suppress(OSError):
            os.unlink(path)


def _clear(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise OSError(errno.EEXIST, "the file is not a socket", path)
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            pass  # somebody listens: binding will say so
