"""A network device's wire as a stream socket: another program at its other end.

    StreamPort("/run/wire.sock")      listens there, for one peer after another

Each frame goes after its length in four bytes, big-endian, as QEMU's `-netdev stream` has it: a
virtual machine whose back-end connects there is on the same wire.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
from collections.abc import Iterator

from virtq.devices import unix_socket
from virtq.devices.net_ports import HubLink, HubPort, Link
from virtq.wire.net import BIG_PACKET_BYTES, ETHERNET_HEADER_BYTES, HEADER_BYTES, NO_OFFLOAD

log = logging.getLogger("virtq.device")

_LENGTH_BYTES = 4
_READ_BYTES = 1 << 16
HELD_BYTES_MAX = 4 << 20
"""What waits for a peer that does not read; more frames are dropped."""


class StreamPort(HubPort):
    """A hub for one device, with a Unix socket plugged into it."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def open(self, pairs: int) -> Link:
        """Raises OSError if nobody can listen at the path."""
        if any(isinstance(link, _StreamLink) for link in self.links):
            raise ValueError(f"{self.path}: one device is on this wire already")
        link = _StreamLink(self, pairs, _Plug(self, self.path))
        self.add(link)
        return link


class _StreamLink(HubLink):
    def __init__(self, hub: HubPort, pairs: int, plug: _Plug) -> None:
        super().__init__(hub, pairs)
        self._plug = plug

    def close(self) -> None:
        self._plug.close()
        super().close()


class _Plug:
    """The socket's place at the hub, and the thread that carries frames between the two."""

    def __init__(self, hub: HubPort, path: str) -> None:
        self._path = path
        self._listener = unix_socket.listen(path, 1)
        self._link = HubLink(hub, 1)
        hub.add(self._link)
        self._end = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._peer: socket.socket | None = None
        self._come, self._gone = bytearray(), bytearray()
        self._thread = threading.Thread(target=self._run, name="virtq-wire", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Give up the place and the socket."""
        os.eventfd_write(self._end, 1)
        self._thread.join()
        self._hang_up()
        unix_socket.close(self._listener, self._path)
        self._link.close()
        os.close(self._end)

    def _run(self) -> None:
        while True:
            peer = self._peer
            full = [peer] if peer is not None and self._gone else []
            wire = self._link.fileno(0)
            looked_at: list[int | socket.socket] = [self._end, wire, peer or self._listener]
            readable, writable, _ = select.select(looked_at, full, [])
            if self._end in readable:
                return
            if self._listener in readable:
                self._answer()
            try:
                if peer is not None and peer in readable:
                    self._take_in(peer)
                if wire in readable:
                    self._take_out()
                if peer is not None and (peer in writable or self._gone):
                    self._send(peer)
            except OSError as error:
                log.info("wire %s: %s", self._path, error.strerror or error)
                self._hang_up()

    def _answer(self) -> None:
        with contextlib.suppress(OSError):
            self._peer, _ = self._listener.accept()
            self._peer.setblocking(False)

    def _hang_up(self) -> None:
        if self._peer is not None:
            self._peer.close()
        self._peer = None
        self._come.clear()
        self._gone.clear()

    def _take_in(self, peer: socket.socket) -> None:
        """From the peer to the hub. Raises OSError when the peer is gone, or makes no sense."""
        data = peer.recv(_READ_BYTES)
        if not data:
            raise OSError("the peer is gone")
        self._come += data
        self._link.send(0, [NO_OFFLOAD + frame for frame in self._frames()])

    def _frames(self) -> Iterator[bytes]:
        while len(self._come) >= _LENGTH_BYTES:
            length = int.from_bytes(self._come[:_LENGTH_BYTES])
            if not ETHERNET_HEADER_BYTES <= length <= BIG_PACKET_BYTES:
                raise OSError(f"the peer sends a frame of {length} bytes")
            end = _LENGTH_BYTES + length
            if len(self._come) < end:
                return
            yield bytes(self._come[_LENGTH_BYTES:end])
            del self._come[:end]

    def _take_out(self) -> None:
        """From the hub to the peer; without one, frames are lost as on any wire."""
        while (packet := self._link.receive(0)) is not None:
            frame = packet[HEADER_BYTES:]
            if self._peer is not None and len(self._gone) <= HELD_BYTES_MAX:
                self._gone += len(frame).to_bytes(_LENGTH_BYTES) + frame
            else:
                self._link.dropped += 1

    def _send(self, peer: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._gone:
                del self._gone[: peer.send(self._gone)]
