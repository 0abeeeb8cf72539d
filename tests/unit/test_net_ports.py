"""What a network device can be connected to, and captures."""

from __future__ import annotations

import fcntl
import io
import socket
import struct
import time
from pathlib import Path

import pytest

from tests.unit.net_support import MAC, PEER, collect, drive, frame, settle
from virtq.devices.net import NetDevice
from virtq.devices.net_ports import (
    HELD_PACKETS_MAX,
    HubPort,
    PcapPort,
    SinkLink,
    SinkPort,
    SourcePort,
    flow_of,
    source_frame,
)
from virtq.devices.net_tap import TapPort
from virtq.drivers.net import NetDriver, Packet
from virtq.features import RingKind
from virtq.wire import pcap
from virtq.wire.net import (
    BROADCAST,
    HEADER_BYTES,
    CtrlRx,
    HeaderFlag,
    NetHeader,
)


def test_a_hub_connects_devices() -> None:
    hub = HubPort()
    with drive(NetDevice(hub)) as a, drive(NetDevice(hub)) as b, drive(NetDevice(hub)) as c:
        a.send([frame(1)])
        b.send([frame(2)])
        assert collect(c, 2) in ([frame(1), frame(2)], [frame(2), frame(1)])
        assert collect(a, 1) == [frame(2)]
        assert collect(b, 1) == [frame(1)]


def test_a_hub_holds_only_so_much() -> None:
    hub = HubPort()
    link = hub.open(1)
    for _ in range(HELD_PACKETS_MAX + 5):
        link.send(0, [bytes(12) + frame(1)])
    assert link.dropped == 5
    link.reset()
    assert link.receive(0) is None
    link.close()


def test_a_sink_counts() -> None:
    device = NetDevice(SinkPort())
    with drive(device) as net:
        net.send([frame(i, 100) for i in range(300)])
        settle(net)
    assert isinstance(device.link, SinkLink)
    assert (device.link.packets, device.link.bytes) == (300, 30_000)
    stats = device.stats()["transmitq1"]
    assert (stats["packets"], stats["buffers"]) == (300, 300)


@pytest.mark.parametrize("size", [14, 22, 64, 1500])
def test_source_frames(size: int) -> None:
    data = source_frame(0x123, size)
    assert len(data) == size
    assert data[:14] == BROADCAST + bytes.fromhex("02000000000188b5")
    if size >= 64:
        assert int.from_bytes(data[14:22]) == 0x123
        assert data[22:26] == bytes([0x23, 0x24, 0x25, 0x26])
    with pytest.raises(ValueError, match="cannot make"):
        SourcePort(1, 13)


def test_captures_in_and_out(tmp_path: Path) -> None:
    played, recorded = tmp_path / "in.pcap", tmp_path / "out.pcap"
    with played.open("wb") as file:
        writer = pcap.Writer(file)
        for i in range(20):
            writer.write(frame(i, 60 + i), i * 1_000_000_001)
    device = NetDevice(PcapPort(played, recorded))
    with drive(device) as net:
        assert collect(net, 20) == [frame(i, 60 + i) for i in range(20)]
        net.send([frame(i) for i in range(5)])
        settle(net)
    device.close()
    with recorded.open("rb") as file:
        assert [p.data for p in pcap.read(file)] == [frame(i) for i in range(5)]


def test_a_capture_that_is_broken_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "broken.pcap"
    path.write_bytes(b"not a capture, by any means")
    with drive(NetDevice(PcapPort(path))) as net:
        assert net.receive(1, 0.1) == []
    assert "not a pcap file" in caplog.text


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("magic", "unit"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)])
def test_pcap_formats(order: str, magic: int, unit: int) -> None:
    head = struct.pack(order + "IHHIIII", magic, 2, 4, 0, 0, 65535, 1)
    record = struct.pack(order + "IIII", 3, 7, 4, 4) + b"data"
    whole = io.BytesIO(head + record + record[:-1])
    assert list(pcap.read(whole)) == [(3_000_000_000 + 7 * unit, b"data")]
    for wrong in (head[:20], struct.pack(order + "IHHIIII", magic, 2, 4, 0, 0, 65535, 113)):
        with pytest.raises(ValueError, match="pcap file"):
            list(pcap.read(io.BytesIO(wrong)))
    with pytest.raises(ValueError, match="record of"):
        list(pcap.read(io.BytesIO(head + struct.pack(order + "IIII", 0, 0, 1 << 30, 0))))


def _may_make_taps() -> bool:
    try:
        device = TapPort("virtqt0").open(1)
    except OSError:
        return False
    device.close()
    return True


needs_tap = pytest.mark.skipif(not _may_make_taps(), reason="cannot make tap interfaces here")


class HostSide:
    """A packet socket on a tap interface that was brought up."""

    def __init__(self, name: str) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, 0x8914, struct.pack("16sH22x", name.encode(), 0x1 | 0x40))
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
        self.socket.bind((name, 0x88B5))
        self.socket.settimeout(5)

    def receive(self, count: int) -> list[bytes]:
        return [self.socket.recv(65536) for _ in range(count)]

    def reply(self, net: NetDriver) -> Packet:
        """The next packet that is ours, not the host's own chatter."""
        while True:
            [packet] = net.receive_packets(1, 5)
            if packet.frame[12:14] == b"\x88\xb5":
                return packet


@needs_tap
@pytest.mark.parametrize("pairs", [1, 2])
def test_a_tap_interface(pairs: int) -> None:
    device = NetDevice(TapPort("virtqt1"), pairs=pairs)
    try:
        with drive(device, RingKind.PACKED_IN_ORDER, pairs=pairs) as net:
            host = HostSide("virtqt1")
            sent = [frame(i, 60 + i) for i in range(50)]
            net.send(sent, pair=pairs - 1)
            assert host.receive(50) == sent
            net.set_rx_mode(CtrlRx.PROMISC, True)
            back = [frame(1000 + i, 100 + i, to=device.config.mac) for i in range(50)]
            for one in back:
                host.socket.send(one)
            got: list[bytes] = []
            deadline = time.monotonic() + 5
            while len(got) < 50 and time.monotonic() < deadline:
                for pair in range(pairs):
                    new = net.receive(64, 0.05, pair=pair)
                    got += [f for f in new if f[12:14] == b"\x88\xb5"]
            assert sorted(got) == sorted(back)
            host.socket.close()
    finally:
        device.close()


@needs_tap
def test_checksum_offload_passes_through_a_tap() -> None:
    device = NetDevice(TapPort("virtqt2"))
    body = bytes(20) + b"\x12\x34" * 10
    header = NetHeader(HeaderFlag.NEEDS_CSUM, 0, 0, 0, csum_start=34, csum_offset=2)
    try:
        with drive(device, offer="+CSUM,+GUEST_CSUM,+CTRL_GUEST_OFFLOADS") as net:
            host = HostSide("virtqt2")
            host.socket.setsockopt(263, 15, 1)  # SOL_PACKET, PACKET_VNET_HDR
            out = BROADCAST + PEER + b"\x88\xb5" + body
            net.send([Packet(header, out)])
            assert host.receive(1) == [header.pack()[:10] + out]
            incoming = device.config.mac + PEER + b"\x88\xb5" + body
            host.socket.send(header.pack()[:10] + incoming)
            assert host.reply(net) == Packet(header._replace(num_buffers=1), incoming)
            net.set_offloads(0)
            host.socket.send(header.pack()[:10] + incoming)
            packet = host.reply(net)
            assert packet.header == NetHeader(num_buffers=1)
            assert packet.frame[36:38] != b"\x12\x34"  # the kernel did what the driver cannot
            host.socket.close()
    finally:
        device.close()


@pytest.mark.parametrize("name", ["", "a" * 16, "a/b"])
def test_names_that_no_interface_has(name: str) -> None:
    with pytest.raises(ValueError, match="not an interface name"):
        TapPort(name)


def test_flows() -> None:
    def packet(kind: bytes, body: bytes) -> bytes:
        return bytes(HEADER_BYTES) + MAC + PEER + kind + body

    def ip4(a: bytes, b: bytes, ports: bytes, protocol: int = 17) -> bytes:
        return packet(b"\x08\x00", b"\x45" + bytes(8) + bytes([protocol, 0, 0]) + a + b + ports)

    one, two = b"\x0a\0\0\1", b"\x0a\0\0\2"
    assert flow_of(ip4(one, two, b"\0\1\0\2")) == flow_of(ip4(two, one, b"\0\2\0\1"))
    assert flow_of(ip4(one, two, b"\0\1\0\2")) != flow_of(ip4(one, two, b"\0\1\0\3"))
    assert flow_of(ip4(one, two, b"\0\1\0\2", 1)) == flow_of(ip4(one, two, b"\0\1\0\3", 1))
    six = packet(b"\x86\xdd", bytes(6) + b"\x06\0" + one * 4 + two * 4 + b"\0\1\0\2")
    assert len(flow_of(six)) == 36
    for length in range(12, 80):
        flow_of(six[:length])
