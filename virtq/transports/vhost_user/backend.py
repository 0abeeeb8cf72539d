"""The back-end: a device served over vhost-user sockets, to one front-end after another.

A back-end outlives its front-ends. Whatever one of them does, leave in the middle of a message or
send nonsense, ends its session alone: the queues are stopped, the device is reset, memory and
descriptors are let go, and the next front-end finds the device as the first one did.

Sockets are waited for by the event loop, so several back-ends can share one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator

from virtq.errors import TransportError
from virtq.transports.base import DeviceSide
from virtq.transports.vhost_user import channel
from virtq.transports.vhost_user.offer import (
    ProtocolChange,
    offered_features,
    offered_protocol_features,
)
from virtq.transports.vhost_user.session import Session

log = logging.getLogger("virtq.vhost_user")

_ACCEPT_PAUSE_S = 0.1
"""After a failed accept: descriptors may have run out, and come back."""


class Backend:
    """Serves `device` to front-ends. Call it from the thread of the event loop only.

    `name` is what log lines begin with; the device's class by default. `protocol` is how the
    protocol features that are offered differ from the usual ones (see `offer`). Raises FeatureError
    if what is to be offered makes no sense.
    """

    def __init__(self, device: DeviceSide, *, name: str | None = None, protocol: str = "") -> None:
        self._device = device
        self._name = name or type(device).__name__
        self._tasks: set[asyncio.Task[object]] = set()
        self._busy = False
        self._closed = False
        # A device with a wrong offer says so now, not when a front-end asks.
        offered_features(device)
        self._protocol = ProtocolChange.parse(protocol)
        offered_protocol_features(device, self._protocol)

    async def serve(self, listener: socket.socket) -> None:
        """Serve one front-end after another from a listening socket, until `close`.

        Further front-ends wait in the listener's backlog. The listener stays the caller's.
        """
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        with self._until_closed():
            while not self._closed:
                try:
                    sock, _ = await loop.sock_accept(listener)
                except OSError as error:
                    if listener.fileno() < 0:
                        raise TransportError(f"{self._name}: the listener is closed") from None
                    log.warning("%s: cannot accept: %s", self._name, str(error))
                    await asyncio.sleep(_ACCEPT_PAUSE_S)
                    continue
                try:
                    await self._serve(sock)
                except TransportError as error:
                    log.warning("%s: front-end dropped: %s", self._name, str(error))

    async def serve_connection(self, sock: socket.socket) -> None:
        """Serve one connected front-end until it leaves, or until `close`. `sock` is owned here.

        Raises TransportError (ProtocolError for a violation of the protocol) if it does not leave
        in good order, RuntimeError if another one is being served.
        """
        with self._until_closed():
            await self._serve(sock)

    def close(self) -> None:
        """Let the front-end go and serve no other; `serve` and `serve_connection` return."""
        self._closed = True
        for task in self._tasks:
            task.cancel()

    async def _serve(self, sock: socket.socket) -> None:
        if self._busy or self._closed:
            sock.close()
            raise RuntimeError(f"{self._name}: {'closed' if self._closed else 'busy'}")
        self._busy = True
        try:
            with sock:
                await Session(self._device, sock, self._name, self._protocol).run()
        finally:
            self._busy = False

    @contextlib.contextmanager
    def _until_closed(self) -> Iterator[None]:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            yield
        except asyncio.CancelledError:
            # Cancelled by `close`: that is the ordinary end. By anyone else: theirs to see.
            if not self._closed or task.uncancel() > 0:
                raise
        finally:
            self._tasks.discard(task)


async def serve(
    device: DeviceSide,
    where: str | int,
    *,
    name: str | None = None,
    protocol: str = "",
    ready: Callable[[Backend], None] | None = None,
) -> None:
    """Serve `device` at a socket path, or over a socket that this process was started with.

    A path is bound and listened on; a socket file that nobody listens on any more is replaced, and
    ours is removed in the end. A number is a listening socket, or a connected one: then its one
    front-end is served. `ready` is called with the back-end once front-ends can come; `name` and
    `protocol` are those of `Backend`.

    Raises TransportError if the socket cannot be had, and for a connected socket as
    `Backend.serve_connection` does.
    """
    backend = Backend(device, name=name, protocol=protocol)
    sock = channel.listen(where) if isinstance(where, str) else channel.adopt(where)
    if ready is not None:
        ready(backend)
    if not channel.is_listening(sock):
        await backend.serve_connection(sock)
        return
    identity = _identity(where) if isinstance(where, str) else None
    with sock:
        try:
            await backend.serve(sock)
        finally:
            if isinstance(where, str) and identity and identity == _identity(where):
                os.unlink(where)


def _identity(path: str) -> tuple[int, int] | None:
    """Which file is at `path`."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
