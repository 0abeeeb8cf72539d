"""What each device type is when the judge is it, and how it serves a buffer."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Protocol

from virtq.check.driver.record import Chain
from virtq.features import F
from virtq.model.memory import Taken
from virtq.wire import blk, layout, net
from virtq.wire.console import (
    CONTROL_BYTES,
    CONTROL_RECEIVE,
    CONTROL_TRANSMIT,
    ConsoleConfig,
    ConsoleFeature,
    Control,
)
from virtq.wire.console import DEVICE_ID as CONSOLE_ID
from virtq.wire.rng import DEVICE_ID as ENTROPY_ID

ETHERTYPE = 0x88B5
FRAME_BYTES = 60
"""The least that an Ethernet frame has."""
"""Local experimental (IEEE 802): what the judge sends is nobody's protocol."""


class Role(Protocol):
    """A device of one type."""

    device_id: int
    queue_sizes: tuple[int, ...]
    """The largest size of each virtqueue."""
    work: int
    """The virtqueue on which the driver asks for something, or waits for something."""
    supplied: frozenset[int]
    """Virtqueues whose buffers the device keeps until it has something for the driver."""
    features: int
    """Device-specific features that it offers."""

    def config(self) -> bytearray: ...
    def answer(self, queue: int, chain: Chain) -> int:
        """Serve a buffer that is taken; returns the bytes written from its beginning on. A buffer
        that makes no sense for the type is answered as an error, where there is a form for it."""
        ...


class Disk:
    """A block device (5.2) that keeps what is written to it."""

    device_id = blk.DEVICE_ID
    queue_sizes: tuple[int, ...] = (1024,)
    work = 0
    supplied: frozenset[int] = frozenset()
    features = int(
        blk.BlkFeature.FLUSH
        | blk.BlkFeature.SEG_MAX
        | blk.BlkFeature.BLK_SIZE
        | blk.BlkFeature.DISCARD
        | blk.BlkFeature.WRITE_ZEROES
    )
    capacity_sectors = 1 << 17
    segments_max = 62
    segments_to_discard = 2
    segments_to_zero = 3

    def __init__(self) -> None:
        self.sectors: dict[int, bytes] = {}

    def config(self) -> bytearray:
        return bytearray(
            layout.pack(
                blk.BlkConfig(
                    capacity=self.capacity_sectors,
                    seg_max=self.segments_max,
                    blk_size=512,
                    max_discard_sectors=1024,
                    max_discard_seg=self.segments_to_discard,
                    discard_sector_alignment=1,
                    max_write_zeroes_sectors=1024,
                    max_write_zeroes_seg=self.segments_to_zero,
                )
            )
        )

    def answer(self, queue: int, chain: Chain) -> int:
        taken = chain.taken
        assert taken is not None
        if taken.writable < 1:
            return 0
        room = taken.writable - 1
        status, reply = self._carry_out(taken.read(), room)
        data = reply.ljust(room, b"\0") if status == blk.Status.OK or room <= blk.ID_BYTES else b""
        if len(data) == room:
            taken.write(data + bytes([status]))
            return room + 1
        write_last(taken, status)
        return 0

    def _carry_out(self, request: bytes, room: int) -> tuple[int, bytes]:
        if len(request) < blk.HEADER_BYTES:
            return blk.Status.IOERR, b""
        header = blk.Header.parse(request[: blk.HEADER_BYTES])
        data = request[blk.HEADER_BYTES :]
        sectors = (room if header.type == blk.Type.IN else len(data)) // blk.SECTOR_BYTES
        beyond = header.sector + sectors > self.capacity_sectors
        match header.type:
            case blk.Type.IN if not beyond:
                every = range(header.sector, header.sector + sectors)
                return blk.Status.OK, b"".join(self.sectors.get(i, bytes(512)) for i in every)
            case blk.Type.OUT if not beyond:
                for i in range(sectors):
                    self.sectors[header.sector + i] = data[512 * i : 512 * (i + 1)]
                return blk.Status.OK, b""
            case blk.Type.IN | blk.Type.OUT:
                return blk.Status.IOERR, b""
            case blk.Type.FLUSH:
                return blk.Status.OK, b""
            case blk.Type.GET_ID:
                return blk.Status.OK, b"virtq check".ljust(blk.ID_BYTES, b"\0")[:room]
            case blk.Type.DISCARD | blk.Type.WRITE_ZEROES:
                for segment in blk.Segment.parse_all(data[: len(data) // 16 * 16]):
                    for i in range(min(segment.num_sectors, self.capacity_sectors)):
                        self.sectors.pop(segment.sector + i, None)
                return blk.Status.OK, b""
        return blk.Status.UNSUPP, b""


class Port:
    """A network device (5.1) with one pair of queues. What is sent to it is gone."""

    device_id = net.DEVICE_ID
    queue_sizes: tuple[int, ...] = (1024, 1024)
    work = 1
    supplied = frozenset({0})
    features = int(net.NetFeature.MAC | net.NetFeature.MRG_RXBUF)
    mac = bytes.fromhex("525400767101")
    mtu = 1400

    def config(self) -> bytearray:
        return bytearray(layout.pack(net.NetConfig(mac=self.mac, mtu=self.mtu)))

    def answer(self, queue: int, chain: Chain) -> int:
        taken = chain.taken
        assert taken is not None
        if queue != 0:
            return 0
        packet = packet_for(self.mac, chain.number)[: taken.writable]
        taken.write(packet)
        return len(packet)


def packet_for(mac: bytes, number: int) -> bytes:
    """A packet for the driver: a header without any offload, and a frame that nobody takes."""
    header = net.NetHeader(num_buffers=1).pack()
    frame = mac + struct.pack("!6sHI", b"\x02virtq", ETHERTYPE, number & 0xFFFFFFFF)
    return header + frame.ljust(FRAME_BYTES, b"\0")


class Entropy:
    """An entropy device (5.4)."""

    device_id = ENTROPY_ID
    queue_sizes: tuple[int, ...] = (256,)
    work = 0
    supplied: frozenset[int] = frozenset()
    features = 0

    def config(self) -> bytearray:
        return bytearray()

    def answer(self, queue: int, chain: Chain) -> int:
        taken = chain.taken
        assert taken is not None
        block = bytes((chain.number * 31 + i * 7) % 251 for i in range(256))
        length = min(taken.writable, 1 << 16)
        taken.write((block * (length // 256 + 1))[:length])
        return length


class Terminal:
    """A console (5.3) with one port. What is written to it is gone."""

    device_id = CONSOLE_ID
    queue_sizes: tuple[int, ...] = (256, 256)
    work = 1
    supplied = frozenset({0})
    features = 0

    def config(self) -> bytearray:
        return bytearray(12)

    def answer(self, queue: int, chain: Chain) -> int:
        taken = chain.taken
        assert taken is not None
        if queue != 0:
            return 0
        text = f"{chain.number}\n".encode()[: taken.writable]
        taken.write(text)
        return len(text)


class Switchboard(Terminal):
    """A console with control queues (MULTIPORT), and one port. `heard`: what the driver said."""

    queue_sizes: tuple[int, ...] = (256, 256, 256, 256)
    supplied = frozenset({0, CONTROL_RECEIVE})
    features = int(ConsoleFeature.MULTIPORT)

    def __init__(self) -> None:
        self.heard: list[Control] = []

    def config(self) -> bytearray:
        return bytearray(layout.pack(ConsoleConfig(max_nr_ports=1)))

    def answer(self, queue: int, chain: Chain) -> int:
        if queue == CONTROL_TRANSMIT and chain.readable_bytes >= CONTROL_BYTES:
            self.heard.append(Control.parse(chain.readable))
        return super().answer(queue, chain)


ROLES: dict[int, Callable[[], Role]] = {
    blk.DEVICE_ID: Disk,
    net.DEVICE_ID: Port,
    ENTROPY_ID: Entropy,
    CONSOLE_ID: Terminal,
}
"""By device id."""

RING_FEATURES = int(F.INDIRECT_DESC | F.EVENT_IDX)
"""What is offered beside the kind of ring, unless a case says otherwise."""


def write_last(taken: Taken, value: int) -> None:
    """Write the last device-writable byte."""
    last = [piece for piece in taken.pieces if piece.writable and piece.length][-1]
    taken.memory.write(last.address + last.length - 1, bytes([value]))
