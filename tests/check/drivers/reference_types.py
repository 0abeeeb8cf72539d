"""Small drivers of entropy devices, network devices and consoles, right as they stand."""

from __future__ import annotations

import struct

from tests.check.drivers.reference import SLOT_BYTES, Asked, Queue, Reference, Wrong
from virtq.features import F
from virtq.wire import net
from virtq.wire.console import CONTROL_RECEIVE, CONTROL_TRANSMIT, ConsoleFeature, Control, Event
from virtq.wire.console import DEVICE_ID as CONSOLE_ID
from virtq.wire.rng import DEVICE_ID as ENTROPY_ID


class EntropyReference(Reference):
    """A driver of an entropy device (5.4)."""

    device_id = ENTROPY_ID

    def read_config(self) -> None:
        """There is nothing to read."""

    def ask(self, queue: int, number: int) -> Asked:
        return Asked([], [64] if number % 3 else [32, 16, 16], random_bytes)


def random_bytes(reply: bytes, written: int) -> None:
    if not written or reply[:written].endswith(b"\xa5" * 8):
        raise Wrong("bytes that the device did not write")


class NetReference(Reference):
    """A driver of a network device (5.1): it transmits, and receives what comes."""

    device_id = net.DEVICE_ID
    accepted = int(
        F.VERSION_1
        | F.RING_PACKED
        | F.IN_ORDER
        | F.INDIRECT_DESC
        | F.EVENT_IDX
        | net.NetFeature.MAC
        | net.NetFeature.MTU
        | net.NetFeature.MRG_RXBUF
        | net.NetFeature.CSUM
        | net.NetFeature.HOST_TSO4
        | net.NetFeature.GUEST_CSUM
        | net.NetFeature.GUEST_TSO4
    )
    queues = (0, 1)

    def read_config(self) -> None:
        self.mac = self.transport.read_config(0, 6)
        self.mtu = 1500
        if self.features & net.NetFeature.MTU:
            self.mtu = int.from_bytes(self.transport.read_config(10, 2), "little")

    def receive_bytes(self) -> int:
        if self.features & net.NetFeature.MRG_RXBUF:
            return 256
        if self.features & net.NetFeature.GUEST_TSO4:
            return 65601
        return 1526

    def slot_bytes(self, index: int) -> int:
        return SLOT_BYTES if index else self.receive_bytes()

    def has(self, feature: int) -> bool:
        return bool(self.features & feature)

    def header(self, number: int) -> net.NetHeader:
        if not self.has(net.NetFeature.CSUM):
            return net.NetHeader()
        if self.has(net.NetFeature.HOST_TSO4) and number % 4 == 0:
            return net.NetHeader(1, net.Gso.TCPV4, 54, 1000, 34, 16)
        return net.NetHeader(flags=1, csum_start=34, csum_offset=6)

    def frame(self, number: int) -> bytes:
        """IPv4 and UDP, with checksums, or with what the device finishes."""
        return datagram(self.mac, number, partial=self.has(net.NetFeature.CSUM))

    def ask(self, queue: int, number: int) -> Asked:
        if queue == 0:
            return Asked([], [self.receive_bytes()], self.received)
        header, frame = self.header(number).pack(), self.frame(number)
        return Asked([header, frame] if number % 2 else [header + frame], [])

    def received(self, reply: bytes, written: int) -> None:
        if written < net.HEADER_BYTES + 14:
            raise Wrong(f"a packet of {written} bytes")


class ConsoleReference(Reference):
    """A driver of a console (5.3)."""

    device_id = CONSOLE_ID
    queues: tuple[int, ...] = (0, 1)

    def read_config(self) -> None:
        """There is nothing to read."""

    def ask(self, queue: int, number: int) -> Asked:
        return Asked([], [64]) if queue == 0 else Asked([b"a line\n"], [])


class PortsReference(ConsoleReference):
    """A driver of a console with control queues (MULTIPORT)."""

    accepted = Reference.accepted | int(ConsoleFeature.MULTIPORT)
    queues = (0, 1, CONTROL_RECEIVE, CONTROL_TRANSMIT)

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.says: list[Control] = []

    def driver_ok(self) -> None:
        super().driver_ok()
        self.ready()

    def ready(self) -> None:
        self.says.append(Control(0, Event.DEVICE_READY, 1))

    def fill(self, ring: Queue) -> None:
        if ring.index != CONTROL_TRANSMIT:
            super().fill(ring)
            return
        while self.says and ring.room():
            ring.add(Asked([self.says.pop(0).pack()], []))

    def ask(self, queue: int, number: int) -> Asked:
        if queue == CONTROL_RECEIVE:
            return Asked([], [64], self.told)
        return super().ask(queue, number)

    def told(self, reply: bytes, written: int) -> None:
        message = Control.parse(reply[:written])
        if message.event == Event.DEVICE_ADD:
            self.says.append(Control(message.id, Event.PORT_READY, 1))
        elif message.event == Event.CONSOLE_PORT:
            self.open(message.id)

    def open(self, port: int) -> None:
        self.says.append(Control(port, Event.PORT_OPEN, 1))


def datagram(mac: bytes, number: int, partial: bool = False) -> bytes:
    """A frame to nobody, with right checksums; `partial`: with the pseudo header's alone."""
    data = b"virtq %06d" % (number % 1_000_000)
    udp = struct.pack("!HHHH", 7, 7, 8 + len(data), 0) + data
    source, target = bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2])
    pseudo = source + target + struct.pack("!BBH", 0, 17, len(udp))
    due = ~checksum(pseudo) & 0xFFFF if partial else checksum(pseudo + udp)
    udp = udp[:6] + struct.pack("!H", due) + udp[8:]
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0) + source + target
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return b"\x02" * 6 + mac + b"\x08\x00" + head + udp


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
