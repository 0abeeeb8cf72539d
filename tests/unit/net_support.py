"""What the tests of the network device share: frames, drivers, a port that records."""

from __future__ import annotations

import os
import random

from virtq import Driver
from virtq.devices.net import NetDevice
from virtq.devices.net_ports import (
    Link,
    Port,
    SinkLink,
)
from virtq.drivers.net import NetDriver
from virtq.features import Change, RingKind
from virtq.transports.loopback import LoopbackTransport
from virtq.wire.net import (
    NetFeature,
)

MAC = bytes.fromhex("525400000001")
PEER = bytes.fromhex("525400000002")


def frame(number: int, size: int = 64, to: bytes = MAC, kind: bytes = b"\x88\xb5") -> bytes:
    head = to + PEER + kind + number.to_bytes(4, "big")
    return head + random.Random(number).randbytes(max(0, size - len(head)))


def drive(device: NetDevice, kind: RingKind = RingKind.SPLIT, **settings: object) -> NetDriver:
    offer = Change.of(settings.pop("offer", None), 1)  # type: ignore[arg-type]
    both = Change(kind.change.add | offer.add, kind.change.remove | offer.remove)
    transport = LoopbackTransport(device)
    return NetDriver(transport, want=kind.features, offer=both, **settings)  # type: ignore[arg-type]


def collect(net: NetDriver, count: int, pair: int = 0) -> list[bytes]:
    frames: list[bytes] = []
    while len(frames) < count:
        more = net.receive(64, 5, pair=pair)
        assert more, f"{len(frames)} of {count} packets came"
        frames += more
    assert len(frames) == count
    return frames


def settle(net: NetDriver) -> None:
    """Everything sent so far has gone through the device."""
    for pair in range(net.pairs):
        assert net.drain(pair=pair, timeout_s=5)
    net.transport.read_features()


class RawNet:
    """Sends hand-made buffers on the transmit and control queues."""

    def __init__(self, device: NetDevice, offer: Change | None = None) -> None:
        self.device = device
        change = offer or Change(add=device.features)
        self.driver = Driver(LoopbackTransport(device), offer=change)

    def send(self, data: bytes) -> bytes:
        return self.driver.queues[1].call(data, timeout_s=5)

    def command(self, kind: int, command: int, data: bytes = b"", reply: int = 1) -> bytes:
        return self.driver.queues["queue2"].call(bytes([kind, command]) + data, reply, 5)


class Recording(Port):
    """Remembers what was sent, and gives what it is told."""

    offloads = (
        NetFeature.CSUM | NetFeature.HOST_TSO4 | NetFeature.GUEST_CSUM | NetFeature.GUEST_TSO4
    )

    def __init__(self) -> None:
        self.link = RecordingLink()

    def open(self, pairs: int) -> Link:
        return self.link


class RecordingLink(SinkLink):
    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[int, bytes]] = []
        self.give: list[bytes] = []
        self.configured: list[tuple[int, int]] = []
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.fails = False

    def send(self, pair: int, packets: object) -> None:
        self.sent += [(pair, packet) for packet in packets]  # type: ignore[attr-defined]

    def receive(self, pair: int) -> bytes | None:
        if not self.give:
            try:
                os.eventfd_read(self.fd)
            except BlockingIOError:
                return None
        return self.give.pop(0) if self.give else None

    def fileno(self, pair: int) -> int | None:
        return self.fd

    def configure(self, pairs: int, offloads: int) -> None:
        if self.fails:
            raise OSError("no")
        self.configured.append((pairs, offloads))

    def feed(self, *packets: bytes) -> None:
        self.give += packets
        os.eventfd_write(self.fd, 1)
