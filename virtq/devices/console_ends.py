"""What is at the host's side of a console's port: a terminal, a socket, a file, nothing.

An `End` reads and writes bytes from the device's asyncio loop. Some are there at once, some wait
for somebody: `arrived` returns when there is somebody to talk to, and `read` gives no bytes once
they have gone. An end that can be used again waits for the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import sys
import termios
import tty
from collections.abc import Callable
from typing import TYPE_CHECKING

from virtq.devices import unix_socket

if TYPE_CHECKING:
    from _typeshed import StrPath

CHUNK_BYTES = 4096
LISTEN_BACKLOG = 8


class End:
    """The host's side of a port. All calls but the constructor's come from the device's loop; at
    most one `read` and one `write` are under way."""

    title = "nothing"

    async def arrived(self) -> bool:
        """Wait for somebody at the host's side. False if nobody will come (any more)."""
        raise NotImplementedError

    async def read(self) -> bytes:
        """The next bytes from the host; none once who was there has gone."""
        raise NotImplementedError

    async def write(self, data: bytes) -> None:
        """Give the host bytes, as fast as it takes them. What nobody takes is lost."""
        raise NotImplementedError

    def write_now(self, data: bytes) -> bool:
        """Give the host bytes without waiting (emergency writes); False if they are lost."""
        raise NotImplementedError

    def close(self) -> None:
        """Give up what the end holds. Harmless when done twice."""


async def _ready(add: Callable[..., object], remove: Callable[..., object], fd: int) -> None:
    """Wait until the loop says that a descriptor is ready. A regular file always is."""
    future = asyncio.get_running_loop().create_future()

    def ready() -> None:
        if not future.done():
            future.set_result(None)

    try:
        add(fd, ready)
    except PermissionError:  # epoll does not take regular files
        return
    try:
        await future
    finally:
        remove(fd)


async def read_fd(fd: int) -> bytes:
    """The next bytes of a descriptor; none at its end."""
    loop = asyncio.get_running_loop()
    while True:
        await _ready(loop.add_reader, loop.remove_reader, fd)
        with contextlib.suppress(BlockingIOError, InterruptedError):
            try:
                return os.read(fd, CHUNK_BYTES)
            except OSError as error:
                if error.errno in (errno.EIO, errno.ECONNRESET, errno.EBADF):
                    return b""
                raise


async def write_fd(fd: int, data: bytes) -> None:
    """All of `data`, in pieces that a descriptor that is ready takes without blocking. Raises
    OSError."""
    loop = asyncio.get_running_loop()
    rest = memoryview(data)
    while rest:
        await _ready(loop.add_writer, loop.remove_writer, fd)
        with contextlib.suppress(BlockingIOError, InterruptedError):
            rest = rest[os.write(fd, rest[:CHUNK_BYTES]) :]


class DescriptorEnd(End):
    """Open descriptors, owned here from now on: one to read from and one to write to, which may be
    the same, and each of which may be missing. The end of input is the end of everything only where
    there is no other descriptor to write to."""

    def __init__(self, read_from: int | None, write_to: int | None, title: str) -> None:
        self.title = title
        self._read_from = read_from
        self._write_to = write_to
        self._ended = False

    async def arrived(self) -> bool:
        return not self._ended

    async def read(self) -> bytes:
        if self._read_from is not None:
            if data := await read_fd(self._read_from):
                return data
            self._ended = self._write_to in (None, self._read_from)
        if not self._ended:  # there is still somebody to write to
            await asyncio.get_running_loop().create_future()
        return b""

    async def write(self, data: bytes) -> None:
        if self._write_to is not None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                await write_fd(self._write_to, data)

    def write_now(self, data: bytes) -> bool:
        if self._write_to is None:
            return False
        with contextlib.suppress(OSError):
            return os.write(self._write_to, data) == len(data)
        return False

    def close(self) -> None:
        for fd in {self._read_from, self._write_to} - {None}:
            assert fd is not None
            os.close(fd)
        self._read_from = self._write_to = None
        self._ended = True


class NullEnd(DescriptorEnd):
    """Nobody: what the guest writes is forgotten."""

    def __init__(self) -> None:
        super().__init__(None, None, "nothing")


class StdioEnd(DescriptorEnd):
    """Standard input and output of this process. A terminal gives characters as they are typed,
    not lines; its interrupt key still ends the process."""

    def __init__(self) -> None:
        self._terminal: list[object] | None = None
        stdin = sys.stdin.fileno()
        if os.isatty(stdin):
            self._terminal = termios.tcgetattr(stdin)
            tty.setcbreak(stdin)
        super().__init__(os.dup(stdin), os.dup(sys.stdout.fileno()), "standard input and output")

    def close(self) -> None:
        if self._terminal is not None:
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._terminal)  # type: ignore[arg-type]
            self._terminal = None
        super().close()


class PtyEnd(DescriptorEnd):
    """A new pseudo-terminal of the host. `path` is where programs open it."""

    def __init__(self, link: StrPath | None = None) -> None:
        """`link`: a symbolic link to it to make, and to remove in the end. Raises OSError."""
        master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(master, False)
        self.path = os.ttyname(self._slave)
        self.link = None if link is None else os.fspath(link)
        # The slave stays open here: without anyone who has it open, the master reads errors.
        super().__init__(master, master, f"terminal {self.link or self.path}")
        if self.link is not None:
            try:
                os.symlink(self.path, self.link)
            except OSError as error:
                wanted, self.link = self.link, None
                self.close()
                raise OSError(error.errno, error.strerror, wanted) from None

    def close(self) -> None:
        super().close()
        if self._slave >= 0:
            os.close(self._slave)
            self._slave = -1
        if self.link is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.link)
            self.link = None


class FileEnd(DescriptorEnd):
    """A file or a device to which all output is appended; there is no input."""

    def __init__(self, path: StrPath) -> None:
        """Raises OSError."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
        super().__init__(None, os.open(path, flags, 0o644), f"file {os.fspath(path)}")


class SocketEnd(End):
    """A Unix socket that listens for programs: one at a time, one after the other. Who is there
    stays there while drivers come and go."""

    def __init__(self, path: StrPath) -> None:
        """Replaces a socket that nobody listens on any more. Raises OSError."""
        self.path = os.fspath(path)
        self.title = f"socket {self.path}"
        self._listener = unix_socket.listen(self.path, LISTEN_BACKLOG)
        self._client: socket.socket | None = None
        self._writing = False

    async def arrived(self) -> bool:
        loop = asyncio.get_running_loop()
        while self._client is None:
            await _ready(loop.add_reader, loop.remove_reader, self._listener.fileno())
            with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
                self._client, _ = self._listener.accept()
                self._client.setblocking(False)
        return True

    async def read(self) -> bytes:
        client = self._client
        data = await read_fd(client.fileno()) if client is not None else b""
        if not data:
            self._hang_up()
        return data

    async def write(self, data: bytes) -> None:
        if (client := self._client) is None:
            return
        self._writing = True
        try:
            with contextlib.suppress(OSError):
                await write_fd(client.fileno(), data)
        finally:
            self._writing = False
            if client is not self._client:
                client.close()

    def write_now(self, data: bytes) -> bool:
        if self._client is not None:
            with contextlib.suppress(OSError):
                return self._client.send(data) == len(data)
        return False

    def _hang_up(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)  # which ends a write that waits
        if not self._writing:
            client.close()

    def close(self) -> None:
        self._writing = False
        self._hang_up()
        unix_socket.close(self._listener, self.path)
