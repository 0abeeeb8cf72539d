"""The other end of a network device's wire: frames are sent to the device there, and what it
transmits arrives.

Three kinds of devices bring it along: one in this process on a hub (`loopback:net`), one of a QEMU
that is started for it (`QemuWire`), and a transport that has `far_end`. For all others it is named:

    unix:PATH      a stream socket that listens; each frame after its length in four bytes,
                   big-endian, as QEMU's `-netdev stream` has it
    packet:NAME    a network interface of this host, such as the tap of a back-end; offloads pass
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import socket
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

from virtq.check.case import NotObservable
from virtq.check.net.frames import Packet
from virtq.check.net.header import NEEDS_CSUM, Header
from virtq.devices.net import NetDevice
from virtq.devices.net_ports import HubLink, HubPort
from virtq.errors import PeerGone, TransportError, UriError
from virtq.transports.base import DriverTransport
from virtq.transports.loopback import LoopbackTransport
from virtq.wire.net import BIG_PACKET_BYTES, HEADER_BYTES, NO_OFFLOAD

SEND_TIMEOUT_S = 5.0
FRAMES_KEPT = 4096
"""Of those that nobody has looked at."""
_LENGTH_BYTES = 4
_SOL_PACKET, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 263, 15, 23
_ETH_P_ALL = 3
_KERNEL_HEADER_BYTES = 10  # without num_buffers


class FarEnd(Protocol):
    """The wire, seen from the other side."""

    @property
    def offloads(self) -> bool:
        """Whether packets may have work to be done on them (checksum, segmentation)."""
        ...

    @property
    def tunnels(self) -> bool:
        """Whether that may be work on tunnelled packets."""
        ...

    def send(self, packet: Packet) -> None:
        """Raises PeerGone."""
        ...

    def receive(self) -> list[Packet]:
        """What has arrived since the last time; does not wait. Raises PeerGone."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class HasFarEnd(Protocol):
    """A transport that knows the wire of its device."""

    @property
    def far_end(self) -> FarEnd: ...


Finder = Callable[[DriverTransport], FarEnd | None]
"""Opens the far end of the device behind a transport; None if there is none."""


def by_itself(transport: DriverTransport) -> FarEnd | None:
    """The far end that a device brings along."""
    if isinstance(transport, HasFarEnd):
        return transport.far_end
    if isinstance(transport, LoopbackTransport):
        device = transport.device
        if isinstance(device, NetDevice) and isinstance(device.port, HubPort):
            return HubEnd(device.port)
    return None


def named(text: str) -> Finder:
    """The far end at `unix:PATH` or `packet:NAME`; where it cannot be opened there is nothing to
    see (NotObservable). Raises UriError for another form."""
    open_it = _named(text)

    def find(transport: DriverTransport) -> FarEnd:
        try:
            return open_it()
        except OSError as error:
            raise NotObservable(f"--port {text}: {error.strerror or error}") from None

    return find


def _named(text: str) -> Callable[[], FarEnd]:
    kind, _, target = text.partition(":")
    if not target or kind not in ("unix", "packet"):
        raise UriError(f"{text!r} is neither unix:PATH nor packet:NAME")
    return partial(StreamEnd if kind == "unix" else PacketEnd, target)


@contextlib.contextmanager
def reached(uri: str, port: str | None) -> Iterator[tuple[str, Finder]]:
    """What to open instead of a URI, and how to find the far end of its device's wire: at `port` if
    that is given, else by itself; a QEMU that is started for it gets a wire. Raises UriError, and
    TransportError if nothing is at `port`."""
    if port is not None:
        if not uri.startswith("qtest:"):  # what QEMU has is there once it is started
            try:
                _named(port)().close()
            except OSError as error:
                raise TransportError(f"--port {port}: {error.strerror or error}") from None
        yield uri, named(port)
    elif wants_wire(uri):
        with contextlib.closing(QemuWire()) as wire:
            yield wire.uri(uri), wire.end
    else:
        yield uri, by_itself


class HubEnd:
    """A place at the hub that a device of this process is on."""

    offloads = tunnels = False

    def __init__(self, hub: HubPort) -> None:
        self._link = HubLink(hub, 1)
        hub.add(self._link)

    def send(self, packet: Packet) -> None:
        self._link.send(0, [NO_OFFLOAD + packet.frame])

    def receive(self) -> list[Packet]:
        packets = []
        while (packet := self._link.receive(0)) is not None:
            packets.append(Packet(packet[HEADER_BYTES:], Header.parse(packet[:HEADER_BYTES])))
        return packets

    def close(self) -> None:
        self._link.close()


class StreamEnd:
    """A stream socket, with the length before each frame."""

    offloads = tunnels = False

    def __init__(self, path: str) -> None:
        """Raises OSError if nobody listens there."""
        self._socket = socket.socket(socket.AF_UNIX)
        self._come = bytearray()
        try:
            self._socket.connect(path)
            self._socket.setblocking(False)
        except OSError:
            self._socket.close()
            raise

    def send(self, packet: Packet) -> None:
        data = len(packet.frame).to_bytes(_LENGTH_BYTES) + packet.frame
        while data:
            data = data[_write(self._socket, partial(self._socket.send, data)) :]

    def receive(self) -> list[Packet]:
        while (data := _read(self._socket, 1 << 16)) is not None:
            if not data:
                raise PeerGone("the far end of the wire was closed")
            self._come += data
        packets = []
        while len(self._come) >= _LENGTH_BYTES:
            end = _LENGTH_BYTES + int.from_bytes(self._come[:_LENGTH_BYTES])
            if end > _LENGTH_BYTES + BIG_PACKET_BYTES:
                raise PeerGone(f"the far end of the wire: a frame of {end - _LENGTH_BYTES} bytes")
            if len(self._come) < end:
                break
            packets.append(Packet(bytes(self._come[_LENGTH_BYTES:end])))
            del self._come[:end]
        return packets

    def close(self) -> None:
        self._socket.close()


class PacketEnd:
    """A network interface of this host, with the header that its kernel has for offloads."""

    offloads, tunnels = True, False

    def __init__(self, name: str) -> None:
        """Raises OSError without the interface, or the right to use it."""
        kind = socket.htons(_ETH_P_ALL)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, kind)
        try:
            self._socket.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            self._socket.bind((name, _ETH_P_ALL))
            self._socket.setblocking(False)
        except OSError:
            self._socket.close()
            raise

    def send(self, packet: Packet) -> None:
        header = packet.header
        if not header.flags & NEEDS_CSUM:
            header = Header()
        data = header.pack(0)[:_KERNEL_HEADER_BYTES] + packet.frame
        _write(self._socket, partial(self._socket.send, data))

    def receive(self) -> list[Packet]:
        packets = []
        while data := _read(self._socket, _KERNEL_HEADER_BYTES + BIG_PACKET_BYTES):
            header = Header.parse(data[:_KERNEL_HEADER_BYTES])
            packets.append(Packet(data[_KERNEL_HEADER_BYTES:], header))
        return packets

    def close(self) -> None:
        self._socket.close()


class DatagramEnd:
    """A datagram socket, a frame in each datagram. What came before is not looked at."""

    offloads = tunnels = False

    def __init__(self, sock: socket.socket, peer: str, come: deque[bytes]) -> None:
        """`come`: the frames that are read from the socket, which stays open when this is
        closed."""
        self._socket, self._peer, self._come = sock, peer, come
        come.clear()

    def send(self, packet: Packet) -> None:
        _write(self._socket, partial(self._socket.sendto, packet.frame, self._peer))

    def receive(self) -> list[Packet]:
        packets = []
        with contextlib.suppress(IndexError):
            while True:
                packets.append(Packet(self._come.popleft()))
        return packets

    def close(self) -> None:
        """The next QEMU has the same."""


class QemuWire:
    """A network back-end of QEMU (`-netdev dgram`) whose other end is here. Close it.

    What comes is read at once, whether somebody looks at it or not: QEMU stops transmitting when
    the socket is full."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="virtq-")
        here, self._there = (str(Path(self._folder, name)) for name in ("here", "there"))
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(here)
        self._socket.setblocking(False)
        self.netdev = (
            f"dgram,id=virtq-far,local.type=unix,local.path={self._there},"
            f"remote.type=unix,remote.path={here}"
        )
        self._come: deque[bytes] = deque(maxlen=FRAMES_KEPT)
        self._end = os.eventfd(0)
        self._reader = threading.Thread(target=self._read_all, name="virtq-wire", daemon=True)
        self._reader.start()

    def _read_all(self) -> None:
        both: list[int | socket.socket] = [self._socket, self._end]
        while self._end not in select.select(both, [], [])[0]:
            while (data := _read(self._socket, BIG_PACKET_BYTES)) is not None:
                self._come.append(data)

    def uri(self, uri: str) -> str:
        """The `qtest:` URI of a network device, on this wire."""
        head, mark, options = uri.partition("?")
        given = [item for item in options.split("&") if mark and item]
        arguments = f"-netdev {self.netdev}"
        for i, item in enumerate(given):
            if item.startswith("args="):
                given[i] = f"{item} {arguments}"
                break
        else:
            given.append(f"args={arguments}")
        return f"{head},netdev=virtq-far?{'&'.join(given)}"

    def end(self, transport: DriverTransport) -> FarEnd:
        return DatagramEnd(self._socket, self._there, self._come)

    def close(self) -> None:
        os.eventfd_write(self._end, 1)
        self._reader.join()
        os.close(self._end)
        self._socket.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def wants_wire(uri: str) -> bool:
    """Whether a URI names a network device of a QEMU that has no back-end yet."""
    head = uri.partition("?")[0]
    return head.startswith("qtest:virtio-net-") and ",netdev=" not in head


def _read(sock: socket.socket, size: int) -> bytes | None:
    """What is there; None if nothing is."""
    with contextlib.suppress(BlockingIOError):
        return sock.recv(size)
    return None


def _write(sock: socket.socket, send: Callable[[], int]) -> int:
    """Send once there is room; how many bytes it was. Raises PeerGone, and NotObservable for a
    frame that is too large for the wire."""
    try:
        while True:
            with contextlib.suppress(BlockingIOError):
                return send()
            if not select.select([], [sock], [], SEND_TIMEOUT_S)[1]:
                raise PeerGone(f"the far end of the wire took nothing in {SEND_TIMEOUT_S} s")
    except OSError as error:
        if error.errno == errno.EMSGSIZE:
            raise NotObservable("a frame is too large for the wire") from None
        raise PeerGone(f"the far end of the wire: {error.strerror or error}") from None
