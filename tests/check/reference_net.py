"""A network device in plain Python, to be judged by `virtq check`: right as it stands, with every
feature that 1.4 has but STANDBY, and made of small parts, so that a mutant can get one of them
wrong.

Its wire ends in `WireEnd`, which the judge finds at it: packets may have work to be done on them
there, and the device does it, or leaves it to a driver that negotiated so. It never has a security
association, so that no packet is ever processed for IPsec.
"""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from tests.check.reference import Packed, Reference, Served
from tests.check.reference_net_control import (
    ALL_FEATURES,
    HASH_TYPES,
    KEY_BYTES_MAX,
    OFFLOADS,
    RX_BASIC,
    RX_CSUM,
    TABLE_LENGTH_MAX,
    TUNNEL_TYPES,
    TX_BASIC,
    NetControl,
    Settings,
)
from virtq._core import Position
from virtq.check.net.frames import (
    TCP_PROTOCOL,
    Packet,
    Parts,
    is_complete,
    parts,
    stored,
    whole,
)
from virtq.check.net.header import (
    DATA_VALID,
    ECN,
    NEEDS_CSUM,
    RSC_INFO,
    TCPV4,
    TCPV6,
    TUNNEL,
    TUNNEL_CSUM,
    UDP,
    UDP_L4,
    Header,
    header_bytes,
)
from virtq.check.net.toeplitz import packet_hash
from virtq.devices.net_ports import flow_of
from virtq.features import F
from virtq.model.memory import WRITE, DeviceHalf, Taken
from virtq.model.packed import Descriptor
from virtq.status import Status
from virtq.transports.base import QueueEnd
from virtq.wire.net import NO_OFFLOAD, LinkStatus
from virtq.wire.net import NetFeature as N

MTU = 1600
SEGMENTATION = {
    TCPV4: N.GUEST_TSO4,
    TCPV6: N.GUEST_TSO6,
    UDP: N.GUEST_UFO,
    UDP_L4: N.GUEST_USO4 | N.GUEST_USO6,
}


class WireEnd:
    """The other end of the wire, as the judge has it."""

    offloads = tunnels = True

    def __init__(self, device: NetReference) -> None:
        self._device = device

    def send(self, packet: Packet) -> None:
        self._device.come_in(packet)

    def receive(self) -> list[Packet]:
        with self._device.lock:
            packets, self._device.outbox = self._device.outbox, []
        return packets

    def close(self) -> None:
        """It is the device's."""


class NetPacked(Packed):
    """Used descriptors of one flush are published from the last to the first, so that the driver
    finds all of them once it finds one (2.8.8 leaves the order open)."""

    def __init__(self, *arguments: Any) -> None:
        self._unpublished: list[tuple[int, Descriptor]] = []
        super().__init__(*arguments)

    def _use(self, batch: list[Taken]) -> None:
        last = batch[-1]
        assert last.written is not None
        flags = self.next_used.used_flags | (WRITE if last.written else 0)
        entry = Descriptor(0, last.written, last.id, flags)
        self._unpublished.append((self.next_used.slot, entry))
        for _ in range(sum(buffer.slots for buffer in batch)):
            self.passed.append(self.next_used)
            self.next_used = self.next_used.advanced(1, self.size)

    def _publish(self) -> None:
        for slot, entry in reversed(self._unpublished):
            self.ring.set_desc(slot, entry)
        self._unpublished.clear()


class NetReference(NetControl, Reference):
    """Three queue pairs and a control queue."""

    packed = NetPacked

    device_id = 1
    queue_count = 7
    offered = ALL_FEATURES | int(
        F.VERSION_1 | F.RING_PACKED | F.IN_ORDER | F.INDIRECT_DESC | F.EVENT_IDX | F.RING_RESET
    )

    def __init__(self) -> None:
        NetControl.__init__(self)
        self.inbox: deque[Packet] = deque()
        self.outbox: list[Packet] = []
        self.waiting: dict[int, deque[Packet]] = {pair: deque() for pair in range(self.pairs)}
        self.flows: dict[bytes, int] = {}
        self.serving = 0
        self.unsaid: dict[int, tuple[int, float]] = {}
        Reference.__init__(self)

    @property
    def far_end(self) -> WireEnd:
        return WireEnd(self)

    def reset(self) -> None:
        super().reset()
        self.settings = self.fresh()
        self.inbox.clear()
        self.flows.clear()
        self.unsaid.clear()
        for waiting in self.waiting.values():
            waiting.clear()

    def fresh(self) -> Settings:
        return Settings()

    @property
    def config(self) -> bytes:
        return struct.pack(
            "<6sHHHIBBHII",
            self.settings.mac,
            LinkStatus.LINK_UP | (LinkStatus.ANNOUNCE if self.settings.announce else 0),
            self.pairs,
            MTU,
            1000,
            1,
            self.key_bytes_max(),
            self.table_length_max(),
            HASH_TYPES,
            TUNNEL_TYPES,
        )

    def key_bytes_max(self) -> int:
        return KEY_BYTES_MAX

    def table_length_max(self) -> int:
        return TABLE_LENGTH_MAX

    # Queues

    def enable_queue(self, queue: QueueEnd, desc: int, driver: int, device: int) -> None:
        super().enable_queue(queue, desc, driver, device)
        with self.lock:
            self.queue_enabled(queue.index)

    def reset_queue(self, index: int) -> Position:
        with self.lock:
            if index % 2 == 0 and index // 2 in self.waiting:
                self.waiting[index // 2].clear()
        return super().reset_queue(index)

    def serve(self, served: Served) -> None:
        self.serving = next(index for index, other in self.queues.items() if other is served)
        self.sort()
        if self.serving == self.control_index or self.serving % 2:
            super().serve(served)
        else:
            self.receive(served, self.waiting[self.serving // 2])
        self.say(served, self.serving)

    def handle(self, buffer: Taken) -> int:
        if self.serving != self.control_index:
            self.transmit(buffer.read())
            return 0
        command = buffer.read()
        ack, result = self.command(command, buffer.writable - 1)
        self.write(buffer, self.reply(command[:2], ack, result))
        return 1 + len(result)

    def reply(self, command: bytes, ack: int, result: bytes) -> bytes:
        """Statistics come after the ack (5.1.6.5); other structures that the device writes are data
        of the command, which come before it."""
        if command[:1] == b"\x08":
            return bytes([ack]) + result
        return result + bytes([ack])

    # Notifications

    def notify(self, served: Served) -> None:
        packets, since = self.unsaid.get(self.serving, (0, time.monotonic()))
        self.unsaid[self.serving] = packets + 1, since
        self.say(served, self.serving)

    def say(self, served: Served, index: int) -> None:
        """A used buffer notification, if it is time for one."""
        if index not in self.unsaid:
            return
        packets, since = self.unsaid[index]
        packets_max, usecs_max = self.settings.coalescing.get(index, (0, 0))
        waited = time.monotonic() - since >= usecs_max / 1e6
        if waited or packets >= packets_max or not packets_max:
            del self.unsaid[index]
            self.call(served)

    def call(self, served: Served) -> None:
        super().notify(served)

    # Transmitting

    def transmit(self, data: bytes) -> None:
        size = header_bytes(self.features)
        pair = self.serving // 2
        packet = Packet(data[size:], Header.parse(data[:size]))
        if len(data) < size + 14 or not self.accepts_packet(packet.header):
            self.count(self.serving, TX_BASIC, 4)
            return
        for frame in self.carried_out(packet):
            self.flows[self.flow(frame)] = pair
            self.count(self.serving, TX_BASIC, 1)
            self.count(self.serving, TX_BASIC, 2, len(frame))
            self.send_out(frame)

    def flow(self, frame: bytes) -> bytes:
        return flow_of(NO_OFFLOAD + frame)

    def send_out(self, frame: bytes) -> None:
        self.outbox.append(Packet(frame))

    def carried_out(self, packet: Packet) -> list[bytes]:
        """The frames that a packet stands for. Header lengths are taken from the packet."""
        return whole(packet)

    def accepts_packet(self, header: Header) -> bool:
        if header.gso_type & TUNNEL:
            return self.accepts_tunnel(header)
        return self.accepts_tunnel_checksum(header)

    def accepts_tunnel(self, header: Header) -> bool:
        return (
            header.gso_type & TUNNEL != TUNNEL
            and bool(header.flags & NEEDS_CSUM)
            and not header.flags & DATA_VALID
            and header.segmentation != 0
        )

    def accepts_tunnel_checksum(self, header: Header) -> bool:
        return not header.flags & TUNNEL_CSUM

    # Receiving

    def come_in(self, packet: Packet) -> None:
        with self.lock:
            self.inbox.append(packet)
        self._look()

    def sort(self) -> None:
        """What has come in goes to the queues, as the driver may see it."""
        while self.inbox:
            packet = self.inbox.popleft()
            if not self.fits(packet) or not self.wants(packet.frame):
                continue
            for shaped in self.shaped(packet):
                pair = self.steer(shaped.frame)
                if pair is not None:
                    self.waiting[pair].append(shaped)

    def fits(self, packet: Packet) -> bool:
        """Whether it is within the MTU."""
        if packet.header.gso_type or not self.has(N.MTU):
            return True
        return len(packet.frame) <= MTU + 14

    def offloads(self) -> int:
        settings = self.settings
        return self.features & OFFLOADS if settings.offloads is None else settings.offloads

    def shaped(self, packet: Packet) -> list[Packet]:
        """As the driver may see it: what it did not negotiate is done before."""
        if packet.header.flags & NEEDS_CSUM and self.passes(packet.header):
            return [Packet(packet.frame, self.offload_header(packet))]
        return [Packet(frame, self.plain_header(frame)) for frame in whole(packet)]

    def passes(self, header: Header) -> bool:
        """Whether the work that is to be done on it may be left to the driver."""
        offloads = self.offloads()
        needed = {
            N.GUEST_CSUM: True,
            SEGMENTATION.get(header.segmentation, N(0)): header.segmentation,
            N.GUEST_ECN: header.gso_type & ECN,
            N.GUEST_UDP_TUNNEL_GSO: header.gso_type & TUNNEL,
            N.GUEST_UDP_TUNNEL_GSO_CSUM: header.flags & TUNNEL_CSUM,
        }
        return all(offloads & feature for feature, wanted in needed.items() if wanted)

    def offload_header(self, packet: Packet) -> Header:
        header = packet.header._replace(hdr_len=0)
        inner = self.innermost(packet)
        if header.gso_type:
            header = header._replace(hdr_len=inner.payload)
        if self.has(N.RSC_EXT) and inner.protocol == TCP_PROTOCOL and header.gso_type:
            segments = -(-(len(packet.frame) - inner.payload) // header.gso_size)
            flags = header.flags | RSC_INFO
            header = header._replace(flags=flags, csum_start=segments, csum_offset=0)
        return self.with_network_offset(header, packet.frame)

    def innermost(self, packet: Packet) -> Parts:
        header, frame = packet.header, packet.frame
        if not header.gso_type & TUNNEL:
            return parts(frame)
        return parts(frame, parts(frame).payload + 8)

    def plain_header(self, frame: bytes) -> Header:
        found = parts(frame)
        valid = self.offloads() & N.GUEST_CSUM and found.transport and self.validated(frame, found)
        header = Header(flags=DATA_VALID if valid else 0)
        return self.with_network_offset(header, frame)

    def validated(self, frame: bytes, found: Parts) -> bool:
        return stored(frame, found) != 0 and is_complete(frame, found)

    def with_network_offset(self, header: Header, frame: bytes) -> Header:
        if not self.has(N.OUT_NET_HEADER):
            return header
        return header._replace(outer_nh_offset=parts(frame).network)

    # Steering

    def hash_settings(self) -> tuple[int, bytes]:
        rss = self.settings.rss
        if self.has(N.RSS) and rss is not None:
            return rss.types, rss.key
        return self.settings.hash_types, self.settings.hash_key

    def hashed(self, frame: bytes) -> tuple[int, int]:
        """The report and the hash."""
        types, key = self.hash_settings()
        return packet_hash(frame, types, key, self.settings.tunnels)

    def steer(self, frame: bytes) -> int | None:
        """The queue pair; None if the frame is dropped."""
        rss = self.settings.rss
        if rss is None:
            return self.steer_by_flow(frame)
        report, value = self.hashed(frame)
        pair = rss.table[value % len(rss.table)] if report else rss.unclassified
        return pair if 2 * pair in self.queues else None

    def steer_by_flow(self, frame: bytes) -> int | None:
        live = [pair for pair in range(self.settings.pairs) if 2 * pair in self.queues]
        if not live:
            return None
        pair = self.flows.get(self.flow(frame), 0)
        return pair if pair in live else live[0]

    # Into the driver's buffers

    def receive(self, served: Served, waiting: deque[Packet]) -> None:
        for _ in range(2):
            while waiting and self.place(served, waiting[0]):
                waiting.popleft()
            if not served.half.enable_kicks():
                return

    def place(self, served: Served, packet: Packet) -> bool:
        """Into the driver's buffers, if there are enough now; one that is too large for a buffer is
        dropped."""
        half = served.half
        data = packet.header.pack(self.features) + packet.frame
        merge = self.merges()
        buffers: list[Taken] = []
        while sum(self.room(buffer) for buffer in buffers) < len(data):
            if buffers and not merge:
                half.put_back(buffers)
                return True
            more = half.take(1)
            if not more:
                half.put_back(buffers)
                return False
            buffers += more
        report, value = self.hashed(packet.frame) if self.has(N.HASH_REPORT) else (0, 0)
        header = packet.header._replace(
            num_buffers=self.num_buffers(len(buffers)), hash_report=report, hash_value=value
        )
        self.fill(served, buffers, header.pack(self.features) + packet.frame)
        self.count(self.serving, RX_BASIC, 1)
        self.count(self.serving, RX_BASIC, 2, len(packet.frame))
        if header.flags & DATA_VALID:
            self.count(self.serving, RX_CSUM, 0)
        self.notify(served)
        return True

    def merges(self) -> bool:
        return self.has(N.MRG_RXBUF)

    def room(self, buffer: Taken) -> int:
        return buffer.writable

    def num_buffers(self, count: int) -> int:
        return count

    def fill(self, served: Served, buffers: Sequence[Taken], data: bytes) -> None:
        for buffer in buffers:
            part, data = data[: self.room(buffer)], data[self.room(buffer) :]
            self.write(buffer, part)
            self.complete(served.half, buffer, len(part))
        served.half.flush()

    def complete(self, half: DeviceHalf, buffer: Taken, written: int) -> None:
        half.complete(buffer, written)

    def may_serve(self) -> bool:
        return bool(self.status & Status.DRIVER_OK)
