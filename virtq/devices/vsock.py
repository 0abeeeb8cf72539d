"""The socket device (VIRTIO 1.4, section 5.10).

    virtq.serve(VsockDevice("/run/guest.vsock", guest_cid=42), "vhost-user:/run/vsock.sock")

The guest's connections to the host, and the host's to the guest, are Unix sockets: see
`vsock_host`. How connections behave is `virtq.wire.vsock_flow`, which the driver shares. This file
brings both to the virtqueues.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable

from virtq._core import DeviceQueue, Position, Request
from virtq.device import Device, QueueSpec
from virtq.devices.anew import Starts, begins_anew
from virtq.devices.vsock_host import HostConnection, HostListener, connect_to_host
from virtq.features import Change
from virtq.handlers import handles
from virtq.wire.vsock import (
    DEVICE_ID,
    EVENT,
    HEADER_BYTES,
    HOST_CID,
    PACKET_DATA_MAX,
    QUEUE_NAMES,
    RECEIVE,
    TRANSMIT,
    TRANSPORT_RESET,
    Header,
    SocketType,
    VsockConfig,
    VsockFeature,
    check_cid,
    pack_event,
)
from virtq.wire.vsock_flow import BUFFER_BYTES, Flow, Mux

BUFFER_MAX_BYTES = (1 << 32) - 1
"""`buf_alloc` has 32 bits (5.10.6)."""
CONNECTIONS_MAX = 1024
BACKLOG_MAX = 1024
"""Replies that wait for receive buffers at most; with more, transmit buffers are held back
(5.10.6.1)."""
FIRST_HOST_PORT = 1 << 30
"""Ports of the host's ends are given out from here, so that they do not meet those that guests
connect to."""
EVENT_QUEUE_SIZE = 64
BATCH_BUFFERS = 64
"""Receive buffers that are filled before the driver is notified."""


class VsockDevice(Device):
    """Sockets between a guest and Unix sockets of the host."""

    device_id = DEVICE_ID
    features = VsockFeature.STREAM | VsockFeature.SEQPACKET | VsockFeature.NO_IMPLIED_STREAM
    config: VsockConfig

    def __init__(
        self,
        uds_path: str,
        *,
        guest_cid: int = 3,
        buffer_bytes: int = BUFFER_BYTES,
        connections_max: int = CONNECTIONS_MAX,
        queue_size: int = 256,
        offer: Change | str = "",
    ) -> None:
        """`uds_path`: the Unix socket to listen on; the host's listeners are at the same path with
        `_PORT` behind. `buffer_bytes`: what a connection holds at most before the host has taken
        it.

        Raises ValueError for a reserved CID, or limits below 1 or beyond 32 bits, OSError if the
        path cannot be listened on."""
        if buffer_bytes < 1 or connections_max < 1:
            raise ValueError(f"{connections_max} connections of {buffer_bytes} bytes are none")
        if buffer_bytes > BUFFER_MAX_BYTES:
            text = f"a connection holds {BUFFER_MAX_BYTES} bytes at most"
            raise ValueError(f"{text}, not {buffer_bytes}")
        self.uds_path = uds_path
        self.offer = offer
        self.queues = (
            QueueSpec(QUEUE_NAMES[RECEIVE], queue_size, fills=True),
            QueueSpec(QUEUE_NAMES[TRANSMIT], queue_size),
            QueueSpec(QUEUE_NAMES[EVENT], EVENT_QUEUE_SIZE, fills=True),
        )
        self.config = VsockConfig(guest_cid=check_cid(guest_cid))
        self.mux = Mux(
            local_cid=HOST_CID,
            accept=self._guest_asks,
            wake=self._wake,
            is_peer=self._is_guest,
            buffer_bytes=buffer_bytes,
            connections_max=connections_max,
        )
        self._listener = HostListener(uds_path, self._host_asks)
        self._next_port = FIRST_HOST_PORT
        self._sending_soon = False
        self._waiting: asyncio.Task[None] | None = None
        self._held: list[asyncio.Future[int]] = []
        self._announce_reset = False
        self._starts = Starts(RECEIVE, TRANSMIT)

    # Life

    def negotiated(self, features: int) -> None:
        """Stream sockets are there unless only seqpacket was negotiated, and nothing implied
        (5.10.3.2)."""
        types = set()
        alone = VsockFeature.SEQPACKET | VsockFeature.NO_IMPLIED_STREAM
        if features & VsockFeature.STREAM or features & alone != alone:
            types.add(SocketType.STREAM)
        if features & VsockFeature.SEQPACKET:
            types.add(SocketType.SEQPACKET)
        self.mux.types = frozenset(types)

    def start_queue(self, queue: DeviceQueue, enabled: bool) -> None:
        if self._starts.started(queue):
            self.mux.reset()  # another driver, of which nobody has told
        elif queue.index == RECEIVE and not self.mux.flows and not begins_anew(queue):
            # A driver that was at work before, with another device process or another connection,
            # has connections that nobody knows any more.
            self._announce_reset = True
        super().start_queue(queue, enabled)

    def stop_queue(self, index: int) -> Position:
        self._starts.stopped(index)
        return super().stop_queue(index)

    def started(self) -> None:
        """The driver is live: let the host in, and tell the driver if its connections are gone."""
        self._listener.start()
        if self._announce_reset:
            self._announce_reset = False
            self.transport_reset()

    def was_reset(self) -> None:
        self._listener.stop()
        self._announce_reset = False
        self._waiting = None  # cancelled, perhaps before it could say so
        self.mux.reset()
        for held in self._held:
            held.cancel()
        self._held.clear()

    def close(self) -> None:
        """Close all connections, and remove the Unix socket."""
        self.mux.reset()
        self._listener.close()

    def transport_reset(self, guest_cid: int | None = None) -> None:
        """Close all connections and tell the driver so (5.10.6.7), perhaps with a new CID. From the
        device's thread. Raises ValueError for a reserved CID."""
        if guest_cid is not None:
            self.update_config(guest_cid=check_cid(guest_cid))
        self.mux.reset()
        self.spawn(self.supplies[QUEUE_NAMES[EVENT]].put(pack_event(TRANSPORT_RESET)))

    # From the driver

    @handles(QUEUE_NAMES[TRANSMIT])
    def transmit(self, request: Request) -> int | Awaitable[int]:
        """Serve one packet (5.10.6.4). It is held while too many replies wait for receive
        buffers."""
        self.mux.receive(request.read(HEADER_BYTES + PACKET_DATA_MAX))
        if self.mux.backlog < BACKLOG_MAX:
            return 0
        held: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._held.append(held)
        return held

    def _is_guest(self, header: Header) -> bool:
        return header.src_cid == self.config.guest_cid

    def _guest_asks(self, flow: Flow) -> HostConnection | None:
        sock = connect_to_host(self.uds_path, flow.key.local_port, flow.key.type)
        if sock is None:
            return None
        connection = HostConnection(sock, flow)
        flow.accept()
        connection.start()
        return connection

    # From the host

    def _host_asks(self, sock: socket.socket, port: int, early: bytes) -> None:
        connection = None
        try:
            while connection is None:
                local, self._next_port = self._next_port, self._next_port + 1
                if self._next_port == 1 << 31:
                    self._next_port = FIRST_HOST_PORT
                connection = self._connect(sock, local, port)
        except (OSError, ValueError):
            sock.close()  # too many connections, or a driver without stream sockets
            return
        connection.expect(early)

    def _connect(self, sock: socket.socket, local: int, port: int) -> HostConnection | None:
        """None if the local port is in use."""
        peer = (self.config.guest_cid, port)
        if self.mux.key(local, peer, SocketType.STREAM) in self.mux.flows:
            return None
        flow = self.mux.connect(local, peer, SocketType.STREAM)
        connection = HostConnection(sock, flow)
        flow.attach(connection)
        return connection

    # To the driver

    def _wake(self) -> None:
        if not self._sending_soon:
            self._sending_soon = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        """Fill receive buffers as far as there are packets and buffers."""
        self._sending_soon = False
        supply = self.supplies[QUEUE_NAMES[RECEIVE]]
        while self.mux.has_packet and self._waiting is None:
            packets: list[bytes] = []
            rooms = supply.rooms(BATCH_BUFFERS)
            for room in rooms:
                if room < HEADER_BYTES:
                    supply.give_up(f"a receive buffer of {room} bytes, less than a header")
                    return
                packet = self.mux.next_packet(room)
                if packet is None:
                    break
                packets.append(packet)
            if packets:
                supply.put_nowait(*packets)
            elif rooms:
                break
            else:
                self._waiting = self.spawn(self._wait_for_buffers())
        if self._held and self.mux.backlog < BACKLOG_MAX:
            held, self._held = self._held, []
            for future in held:
                future.set_result(0)

    async def _wait_for_buffers(self) -> None:
        try:
            await self.supplies[QUEUE_NAMES[RECEIVE]].wait_free()
        finally:
            self._waiting = None
        self._send()
