"""Driving a socket device (VIRTIO 1.4, section 5.10).

    with virtq.connect("vhost-user:/run/vsock.sock", driver=VsockDriver) as vsock:
        with vsock.connect((2, 1234)) as connection:
            connection.sendall(b"hello")
            print(connection.recv(100))
        with vsock.listen(5000) as listener:
            connection, (cid, port) = listener.accept()

What a call sends and receives is moved by a thread of the driver's own (see
`virtq.drivers.background`), so sockets may be used from any thread, and from asyncio by the methods
that end in `_async`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from virtq.device import QueueSpec
from virtq.driver import Driver
from virtq.drivers.background import Background
from virtq.drivers.slab import Slab
from virtq.drivers.vsock_socket import CONNECT_TIMEOUT_S, VsockListener, VsockSocket
from virtq.errors import VirtqError
from virtq.queue import DriverQueue, Used
from virtq.transports.base import DriverTransport
from virtq.wire import layout
from virtq.wire.vsock import (
    ANY_PORT,
    BOTH_WAYS,
    DEVICE_ID,
    EVENT,
    EVENT_BYTES,
    HEADER_BYTES,
    PACKET_DATA_MAX,
    QUEUE_NAMES,
    RECEIVE,
    TRANSMIT,
    TRANSPORT_RESET,
    Header,
    SocketType,
    VsockConfig,
    VsockFeature,
    pack_event,
)
from virtq.wire.vsock_flow import BUFFER_BYTES, Flow, Mux

T = TypeVar("T")

RECEIVE_BUFFER_BYTES = 16 << 10
EVENT_BUFFERS = 8
TRANSMIT_BYTES_MAX = 4 << 20
"""How much the device has not taken yet at most; more waits outside of the virtqueue."""
BACKLOG_MAX = 1024
"""Replies that wait to be sent at most; with more, no packets are received (5.10.6.1)."""
LINGER_S = 2.0
"""How long closing the driver waits for connections that are being shut down."""
FIRST_EPHEMERAL_PORT = 49152


class VsockDriver(Driver):
    """Drives a socket device: connections to the host, and from it."""

    device_id = DEVICE_ID
    features = VsockFeature.STREAM | VsockFeature.SEQPACKET | VsockFeature.NO_IMPLIED_STREAM
    config_layout = VsockConfig
    needs_config = True
    config: VsockConfig

    def __init__(
        self,
        transport: DriverTransport,
        *,
        buffer_bytes: int = BUFFER_BYTES,
        receive_buffer_bytes: int = RECEIVE_BUFFER_BYTES,
        connections_max: int = 1024,
        **settings: Any,
    ) -> None:
        """`buffer_bytes`: what a connection holds at most before it is received by the program.
        `receive_buffer_bytes`: size of each buffer of the receive queue. `settings`: see `Driver`,
        which also tells what is raised; ValueError for buffers without room for data."""
        if receive_buffer_bytes <= HEADER_BYTES or buffer_bytes < 1:
            raise ValueError(f"a receive buffer of {receive_buffer_bytes} bytes has no room")
        self._buffer_bytes = buffer_bytes
        self._receive_buffer_bytes = receive_buffer_bytes
        self._connections_max = connections_max
        self._slabs: dict[int, Slab] = {}
        self._listeners: dict[tuple[int, int], VsockListener] = {}
        self._next_port = FIRST_EPHEMERAL_PORT
        self._sending_soon = False
        self._unsent_bytes = 0
        self._held: list[Used] = []
        self._mux: Mux | None = None
        self.background = Background("virtq-vsock", self._failed)
        super().__init__(transport, **settings)

    # Initialization (5.10.5)

    def plan(self) -> Mapping[int, QueueSpec]:
        # A front-end between us and the device may keep the event virtqueue for itself.
        count = min(len(QUEUE_NAMES), self.transport.queue_count)
        return {i: QueueSpec(QUEUE_NAMES[i], self.queue_size) for i in range(count)}

    def populate(self, queue: DriverQueue) -> None:
        if queue.index == RECEIVE:
            self._slabs[RECEIVE] = Slab(queue, queue.size, self._receive_buffer_bytes)
        elif queue.index == EVENT:
            self._slabs[EVENT] = Slab(queue, EVENT_BUFFERS, EVENT_BYTES)

    def went_live(self) -> None:
        self._mux = Mux(
            local_cid=self.config.guest_cid,
            accept=self._asked,
            wake=self._wake,
            is_peer=self._is_peer,
            types=self._types(),
            buffer_bytes=self._buffer_bytes,
            connections_max=self._connections_max,
        )
        self.background.start()
        self.background.watch(self.queues[TRANSMIT], self._sent)
        self.background.watch(self.queues[RECEIVE], self._received)
        self.queues[RECEIVE].kick()
        if len(self.queues) > EVENT:
            self.background.watch(self.queues[EVENT], self._events)
            self.queues[EVENT].kick()

    def _types(self) -> list[int]:
        """Stream sockets are there unless only seqpacket was negotiated, and nothing implied
        (5.10.3.1)."""
        types = []
        alone = VsockFeature.SEQPACKET | VsockFeature.NO_IMPLIED_STREAM
        if self.has(VsockFeature.STREAM) or not self.has(alone):
            types.append(SocketType.STREAM)
        if self.has(VsockFeature.SEQPACKET):
            types.append(SocketType.SEQPACKET)
        return list(types)

    def _tear_down(self) -> None:
        self._stop()
        super()._tear_down()

    def close(self) -> None:
        """Wait up to 2 seconds for connections that are being closed, reset the device, and close
        the transport."""
        if self.background.running:
            with contextlib.suppress(VirtqError):
                self.background.call(self._linger())
        self._stop()
        super().close()

    async def _linger(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while any(flow.own_shutdown == BOTH_WAYS for flow in self.mux.flows.values()):
                    await asyncio.sleep(0.001)

    def _stop(self) -> None:
        if self.background.running:
            with contextlib.suppress(VirtqError):
                self.background.call(self._forget_all(ConnectionResetError("the device was reset")))
            self.background.stop()

    async def _forget_all(self, error: Exception) -> None:
        self.background.unwatch()
        for listener in list(self._listeners.values()):
            listener.end(error)
        self.mux.reset()

    def was_reset(self) -> None:
        for slab in self._slabs.values():
            slab.release()
        self._slabs.clear()
        self._held.clear()
        self._unsent_bytes = 0
        self._sending_soon = False

    # What the device tells

    @property
    def cid(self) -> int:
        """The guest's context ID."""
        return self.mux.local_cid

    @property
    def mux(self) -> Mux:
        """All connections, for the driver's thread."""
        assert self._mux is not None  # the driver is live since it was made
        return self._mux

    # Sockets

    def connect(
        self,
        address: tuple[int, int],
        *,
        type: SocketType = SocketType.STREAM,
        port: int | None = None,
        timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> VsockSocket:
        """A connection to (CID, port); the host's CID is 2. `port`: the local one, by default any.

        Raises ConnectionRefusedError if nobody listens there, TimeoutError, OSError if the local
        port is in use, ValueError for a type that was not negotiated or a port out of range, and
        PeerGone."""
        return self.call(self._connect(address, type, port, timeout_s))

    async def connect_async(
        self,
        address: tuple[int, int],
        *,
        type: SocketType = SocketType.STREAM,
        port: int | None = None,
        timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> VsockSocket:
        """`connect` for asyncio."""
        return await self.call_async(self._connect(address, type, port, timeout_s))

    def listen(
        self, port: int, *, backlog: int = 16, type: SocketType = SocketType.STREAM
    ) -> VsockListener:
        """Accept connections to a port. `backlog`: how many may wait to be accepted. Raises
        ValueError as `connect` does, OSError if the port is in use."""
        return self.call(self._listen(port, backlog, type))

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Have the driver's thread do something for a socket, and wait for it."""
        return self.background.call(work)

    async def call_async(self, work: Coroutine[Any, Any, T]) -> T:
        """The same from asyncio."""
        return await self.background.call_async(work)

    async def _connect(
        self, address: tuple[int, int], type: SocketType, port: int | None, timeout_s: float
    ) -> VsockSocket:
        self._check_usable()
        cid, peer_port = address
        if not 0 <= cid < 1 << 32 or not 0 <= peer_port < ANY_PORT:
            raise ValueError(f"{cid}:{peer_port} is no address of a socket device")
        local = self._free_port(cid, peer_port, type) if port is None else check_port(port)
        connection = VsockSocket(self, type)
        connection.flow = self.mux.connect(local, (cid, peer_port), type)
        connection.flow.attach(connection)
        await connection.until_open(timeout_s)
        return connection

    def _free_port(self, cid: int, peer_port: int, type: int) -> int:
        flows, listeners = self.mux.flows, self._listeners
        while True:
            port, self._next_port = self._next_port, self._next_port + 1
            if self._next_port == ANY_PORT:
                self._next_port = FIRST_EPHEMERAL_PORT
            key = self.mux.key(port, (cid, peer_port), type)
            if key not in flows and (type, port) not in listeners:
                return port

    async def _listen(self, port: int, backlog: int, type: SocketType) -> VsockListener:
        self._check_usable()
        if type not in self.mux.types:
            raise ValueError(f"socket type {type.name} was not negotiated")
        if (type, check_port(port)) in self._listeners:
            raise OSError(errno.EADDRINUSE, f"port {port} has a listener already")
        listener = self._listeners[type, port] = VsockListener(self, port, backlog, type)
        return listener

    def unlisten(self, listener: VsockListener) -> None:
        """In the driver's thread: a listener is closed."""
        self._listeners.pop((listener.type, listener.port), None)

    def _check_usable(self) -> None:
        if self.background.failure is not None:
            raise self.background.failure

    # What the thread does

    def _is_peer(self, header: Header) -> bool:
        return header.dst_cid == self.mux.local_cid

    def _asked(self, flow: Flow) -> VsockSocket | None:
        listener = self._listeners.get((flow.key.type, flow.key.local_port))
        return listener.asked(flow) if listener is not None else None

    def _wake(self) -> None:
        if not self._sending_soon:
            self._sending_soon = True
            self.background.loop.call_soon(self._send)

    def _send(self) -> None:
        """Put packets on the transmit queue as far as it has room."""
        self._sending_soon = False
        if self.background.failure is not None:
            return
        queue, added = self.queues[TRANSMIT], 0
        while queue.free and self._unsent_bytes < TRANSMIT_BYTES_MAX:
            packet = self.mux.next_packet(HEADER_BYTES + PACKET_DATA_MAX)
            if packet is None:
                break
            queue.add(packet, cookie=len(packet))
            self._unsent_bytes += len(packet)
            added += 1
        if added:
            queue.kick()
        if self._held and self.mux.backlog < BACKLOG_MAX:
            held, self._held = self._held, []
            self._received(held)

    def _sent(self, buffers: list[Used]) -> None:
        self._unsent_bytes -= sum(used.cookie for used in buffers)
        self._send()

    def _received(self, buffers: list[Used]) -> None:
        slab = self._slabs[RECEIVE]
        for at, used in enumerate(buffers):
            if self.mux.backlog >= BACKLOG_MAX:
                self._held += buffers[at:]
                break
            self.mux.receive(slab.take(used))
        slab.queue.kick()

    def _events(self, buffers: list[Used]) -> None:
        slab = self._slabs[EVENT]
        events = [slab.take(used) for used in buffers]
        slab.queue.kick()
        if pack_event(TRANSPORT_RESET) in events:
            self._transport_was_reset()

    def _transport_was_reset(self) -> None:
        """Connections are gone, listeners stay, and the CID may be another (5.10.6.7.1)."""
        self.mux.reset()
        raw = self.transport.read_config(0, layout.size_of(VsockConfig))
        self.mux.local_cid = layout.unpack(VsockConfig, raw).guest_cid
        self._config_stale.set()

    def _failed(self, error: Exception) -> None:
        """The other end is gone, or broke a queue."""
        for listener in list(self._listeners.values()):
            listener.end(error)
        for flow in list(self.mux.flows.values()):
            if isinstance(flow.user, VsockSocket):
                flow.user.fail(error)
        self.mux.reset()


def check_port(port: int) -> int:
    """A port number. Raises ValueError if it is out of range."""
    if not 0 <= port < ANY_PORT:
        raise ValueError(f"{port} is no port: 0 to {ANY_PORT - 1} are")
    return port
