"""Captured packets, read by scapy."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from scapy.utils import RawPcapNgReader

from tests.unit.net_support import MAC, collect, drive, frame, settle
from virtq import Device, Driver, QueueSpec, Request, RingKind
from virtq.devices.blk import BlkDevice
from virtq.devices.disk import Disk
from virtq.devices.net import NetDevice
from virtq.devices.net_native import NativePort
from virtq.devices.net_ports import HubPort
from virtq.transports.loopback import LoopbackTransport
from virtq.wire.net import NetFeature
from virtq.wrap import Captured, Faulty, Traced
from virtq.wrap.pcapng import LINKTYPE_ETHERNET, LINKTYPE_VSOCK


def packets(path: Path) -> tuple[int, list[tuple[str, bytes]]]:
    """The link type, and (direction, bytes) of each packet. Raises what scapy does for a file that
    it does not like."""
    found, link_type = [], -1
    with RawPcapNgReader(str(path)) as reader:
        data: bytes
        facts: Any
        for data, facts in reader:
            link_type = facts.linktype
            found.append(({1: "in", 2: "out"}[facts.direction], bytes(data)))
    return link_type, found


@pytest.mark.parametrize("kind", RingKind, ids=str)
@pytest.mark.parametrize("port", [HubPort, NativePort.hub])
def test_frames_of_a_hub(kind: RingKind, port: type[HubPort], tmp_path: Path) -> None:
    hub, path = port(), tmp_path / "packets.pcapng"
    left, right = (NetDevice(hub, mac=MAC) for _ in range(2))
    captured = Captured(left, path)
    right.wrapped()  # on the hub's namesake in Python, as the other one is now
    sent = [frame(number, 60 + number * 7) for number in range(40)]
    with captured, drive(captured, kind) as a, drive(right, kind) as b:  # type: ignore[arg-type]
        a.send(sent[:20])
        assert collect(b, 20) == sent[:20]
        b.send(sent[20:])
        assert collect(a, 20) == sent[20:]
        settle(a)
    link_type, found = packets(path)
    assert link_type == LINKTYPE_ETHERNET
    assert [data for direction, data in found if direction == "out"] == sent[:20]
    assert [data for direction, data in found if direction == "in"] == sent[20:]


def test_a_packet_over_several_buffers_is_one_packet(tmp_path: Path) -> None:
    hub, path = HubPort(), tmp_path / "packets.pcapng"
    left, right = (NetDevice(hub, mac=MAC, mtu=9000) for _ in range(2))
    jumbo = frame(1, 8000)
    captured = Captured(left, path)
    with captured, drive(captured) as a, drive(right) as b:  # type: ignore[arg-type]
        assert a.has(NetFeature.MRG_RXBUF)
        b.send([jumbo, frame(2)])
        assert collect(a, 2) == [jumbo, frame(2)]
    assert packets(path)[1] == [("in", jumbo), ("in", frame(2))]


class Sockets(Device):
    """Answers each packet with one that goes the other way."""

    device_id = 19
    queues: Sequence[QueueSpec] = (
        QueueSpec("rx", 8, fills=True),
        QueueSpec("tx", 8),
        QueueSpec("event", 8, fills=True),
    )

    def handle(self, request: Request) -> int:
        packet = request.read()
        fields = list(struct.unpack_from("<QQIIIHHIII", packet))
        fields[0], fields[1], fields[2], fields[3] = fields[1], fields[0], fields[3], fields[2]
        self.supplies["rx"].put_nowait(struct.pack("<QQIIIHHIII", *fields) + packet[44:])
        return 0


def test_packets_of_sockets(tmp_path: Path) -> None:
    path = tmp_path / "packets.pcapng"
    packet = struct.pack("<QQIIIHHIII", 3, 2, 1024, 5000, 5, 1, 5, 0, 65536, 0) + b"hello"
    device = Captured(Traced(Faulty(Sockets()), lambda event: None), path)
    with device, Driver(LoopbackTransport(device)) as driver:
        driver.queues[0].add(reply=100)
        driver.queues[0].kick()
        driver.queues[1].call(packet, timeout_s=5)
    link_type, found = packets(path)
    assert link_type == LINKTYPE_VSOCK
    assert [direction for direction, _ in found] == ["in", "out"]
    there = dict(found)["out"]
    # struct af_vsockmon_hdr of Linux: addresses, payload (4), over virtio (2), 44 bytes of header.
    assert struct.unpack("<QQIIHHHxx", there[:32]) == (3, 2, 1024, 5000, 4, 2, 44)
    assert there[32:] == packet
    back = dict(found)["in"]
    assert struct.unpack("<QQIIHHHxx", back[:32]) == (2, 3, 5000, 1024, 4, 2, 44)
    assert back[-5:] == b"hello"


def test_other_devices_have_no_packets(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="what network and socket devices have, not blk"):
        Captured(BlkDevice(Disk.memory(1 << 16)), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_disk_that_is_full_ends_the_capture_and_not_the_device(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub = HubPort()
    device = Captured(NetDevice(hub, mac=MAC), "/dev/full")
    with device, drive(device) as a, drive(NetDevice(hub)) as b:  # type: ignore[arg-type]
        for number in range(20):
            a.send([frame(number, 1400)])
        assert len(collect(b, 20)) == 20
    assert caplog.text.count("the capture ends") == 1
