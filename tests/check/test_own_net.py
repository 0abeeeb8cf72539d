"""virtq's own network device passes every case that is about it, in this process and over
vhost-user; and what it takes to judge one says what others say."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.cli.support import served
from tests.unit.vhost_user.support import Served
from virtq.check.case import OUR_FAULT, Result, Verdict
from virtq.check.cases import all_cases
from virtq.check.net.far_end import (
    FarEnd,
    HubEnd,
    PacketEnd,
    QemuWire,
    StreamEnd,
    by_itself,
    named,
    wants_wire,
)
from virtq.check.net.frames import (
    TCP4,
    TCP6,
    UDP4,
    UDP6,
    Packet,
    ip,
    is_complete,
    offloaded,
    parts,
    tunnelled,
    whole,
)
from virtq.check.net.toeplitz import IPV4_TYPE, TCPV4_TYPE, packet_hash
from virtq.check.results import BAD
from virtq.check.run import Subject, run
from virtq.cli import run as cli
from virtq.devices.net import NetDevice
from virtq.devices.net_native import NativePort
from virtq.devices.net_ports import HubPort, Port
from virtq.devices.net_tap import TapPort
from virtq.errors import PeerGone, UriError
from virtq.transports.base import DriverTransport
from virtq.transports.loopback import LoopbackTransport
from virtq.transports.vhost_user import Frontend
from virtq.wire.net import DEVICE_ID, LinkStatus

NET_CASES = [case for case in all_cases().values() if case.area.startswith("net_")]
PATIENCE_S = 10.0


class Announcing(NetDevice):
    """It asks for an announcement as soon as it is driven."""

    def negotiated(self, features: int) -> None:
        super().negotiated(features)
        self.config.status |= LinkStatus.ANNOUNCE


def device() -> NetDevice:
    return Announcing(HubPort(), pairs=2, mtu=1500)


def judged(
    open: Callable[[], DriverTransport],
    far_end: Callable[[DriverTransport], FarEnd | None],
    areas: tuple[str, ...] = (),
) -> list[Result]:
    found = Subject.find("own", open, DEVICE_ID, None)
    subject = Subject("own", open, DEVICE_ID, found.offered, None, far_end)
    cases = [case for case in NET_CASES if not areas or case.area in areas]
    return list(run(subject, cases, patience_s=PATIENCE_S))


def expect_good(results: list[Result]) -> set[str]:
    """None is bad, none failed by itself; the cases that passed."""
    bad = [(r.title, r.expected, r.came, r.reason) for r in results if r.verdict in BAD]
    assert not bad
    assert not [r.reason for r in results if OUR_FAULT in r.reason]
    return {r.case.name for r in results if r.verdict is Verdict.PASS}


def test_in_this_process() -> None:
    def open() -> LoopbackTransport:
        net = device()
        return LoopbackTransport(net, when_closed=net.close)

    passed = expect_good(judged(open, by_itself))
    areas = {name.partition(".")[0] for name in passed}
    assert areas == {
        "net_config",
        "net_control",
        "net_filter",
        "net_offloads",
        "net_receive",
        "net_transmit",
        "net_tunnel",
    }
    of_control = {case.name for case in NET_CASES if case.area in ("net_control", "net_filter")}
    assert of_control <= passed


def test_over_vhost_user(tmp_path: Path) -> None:
    net = device()
    hub = net.port
    assert isinstance(hub, HubPort)
    path = str(tmp_path / "net.sock")
    with Served(net, path):
        passed = expect_good(judged(lambda: Frontend(path, queues=5), lambda _: HubEnd(hub)))
    net.close()
    assert "net_receive.all_used_together" in passed
    assert "net_filter.the_table_at_once" in passed


@pytest.fixture
def tap() -> Iterator[Callable[..., str]]:
    """Makes a tap that stays while devices come and go."""
    name = f"vqc{os.getpid() % 100000}"

    def make(*flags: str) -> str:
        try:
            ip_link("tuntap", "add", "dev", name, "mode", "tap", "vnet_hdr", *flags)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no tap interface can be made here: {error}")
        made.append(name)
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
        ip_link("link", "set", name, "up")
        return name

    made: list[str] = []
    yield make
    for one in made:
        ip_link("link", "del", one)


def ip_link(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def on_tap(port: Port, name: str, areas: tuple[str, ...] = (), pairs: int = 1) -> set[str]:
    """The cases that a device passes whose other side is the kernel's network."""
    net = NetDevice(port, pairs=pairs)
    results = judged(lambda: LoopbackTransport(net), lambda _: PacketEnd(name), areas)
    net.close()
    return expect_good(results)


OFFLOADS = {
    "net_offloads.segmentation_with_a_checksum",
    "net_offloads.tcp_over_ipv4",
    "net_offloads.an_unfinished_checksum",
    "net_offloads.finishing_a_checksum",
    "net_transmit.a_wrong_header_length",
}


def test_offloads_on_a_tap(tap: Callable[..., str]) -> None:
    """The kernel's own segmentation and checksums, on the other side of the device."""
    name = tap()
    assert on_tap(TapPort(name), name) >= OFFLOADS


def test_offloads_of_the_core(tap: Callable[..., str]) -> None:
    """The same by the core's data path."""
    name = tap()
    areas = ("net_receive", "net_offloads", "net_transmit")
    assert on_tap(NativePort.tap(name), name, areas) >= OFFLOADS


def test_steering_by_the_kernel(tap: Callable[..., str]) -> None:
    name = tap("multi_queue")
    passed = on_tap(TapPort(name), name, ("net_control",), pairs=2)
    assert {
        "net_control.where_it_was_transmitted",
        "net_control.another_queue_while_one_is_reset",
        "net_control.dropped_while_all_are_reset",
    } <= passed


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`virtq serve net --stream` in a process of its own, and `virtq check --port`."""
    path, wire = tmp_path / "net.sock", tmp_path / "wire.sock"
    with served("net", "--stream", wire, "--socket-path", path, "--queues", "2"):
        words = ["check", f"vhost-user:{path}?queues=5", "--type", "net", "--port", f"unix:{wire}"]
        only = [word for area in ("net_config", "net_control") for word in ("--only", area)]
        assert cli([*words, *only, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    passed = {result["case"] for result in results if result["verdict"] == "pass"}
    assert passed >= {"net_config.which_queue_is_which", "net_control.where_it_was_transmitted"}


# What it takes


def test_the_hash_is_the_one_that_everybody_has() -> None:
    """Two of the values that are published with the algorithm."""
    key = bytes.fromhex(
        "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"
    )
    flow = TCP4._replace(
        source=bytes([66, 9, 149, 187]),
        target=bytes([161, 142, 100, 80]),
        source_port=2794,
        target_port=1766,
    )
    frame = ip(flow, b"", bytes(6))
    assert packet_hash(frame, TCPV4_TYPE | IPV4_TYPE, key) == (2, 0x51CCC178)
    assert packet_hash(frame, IPV4_TYPE, key) == (1, 0x323E8FC2)
    assert packet_hash(frame, 0, key) == (0, 0)


@pytest.mark.parametrize("flow", [TCP4, TCP6, UDP4, UDP6])
@pytest.mark.parametrize("in_a_tunnel", [False, True])
def test_a_packet_and_its_segments(flow: object, in_a_tunnel: bool) -> None:
    payload = bytes(range(256)) * 8
    assert isinstance(flow, type(TCP4))
    packet = offloaded(flow, payload, b"\2" * 6, segment_bytes=500)
    start = 0
    if in_a_tunnel:
        packet = tunnelled(packet, b"\2" * 6, checksum=True)
    got = b""
    for frame in whole(packet):
        found = parts(frame)
        assert is_complete(frame, found)
        if in_a_tunnel:
            start = found.payload + 8
            found = parts(frame, start)
            assert is_complete(frame, found)
        got += frame[found.payload :]
    assert got == payload
    assert len(whole(packet)) == 5


def test_a_stream_has_a_length_before_each_frame(tmp_path: Path) -> None:
    path = str(tmp_path / "wire.sock")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(path)
        listener.listen()
        end = StreamEnd(path)
        peer, _ = listener.accept()
        with contextlib.closing(end), peer:
            end.send(Packet(b"x" * 70))
            assert peer.recv(100) == struct.pack("!I", 70) + b"x" * 70
            peer.sendall(struct.pack("!I", 60) + b"y" * 60 + struct.pack("!I", 61) + b"z" * 30)
            assert end.receive() == [Packet(b"y" * 60)]
            peer.sendall(b"z" * 31)
            assert end.receive() == [Packet(b"z" * 61)]
            assert end.receive() == []
            peer.sendall(b"\xff" * 8)
            with pytest.raises(PeerGone, match="frame of 4294967295 bytes"):
                end.receive()


@pytest.mark.parametrize("text", ["", "unix", "unix:", "tcp:1.2.3.4:5", "packet:"])
def test_a_far_end_that_is_none(text: str) -> None:
    with pytest.raises(UriError, match="neither unix:PATH nor packet:NAME"):
        named(text)


def test_a_wire_for_qemu() -> None:
    assert wants_wire("qtest:virtio-net-pci,packed=on?args=-s")
    assert not wants_wire("qtest:virtio-net-pci,netdev=n0")
    assert not wants_wire("qtest:virtio-blk-pci")
    with contextlib.closing(QemuWire()) as wire:
        uri = wire.uri("qtest:virtio-net-pci?args=-s&memory=64M")
        assert uri.startswith("qtest:virtio-net-pci,netdev=virtq-far?args=-s -netdev dgram,")
        assert uri.endswith("&memory=64M")


def test_the_port_on_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli(["check", "loopback:net", "--port", "tcp:1"]) == 2
    assert "'tcp:1' is neither unix:PATH nor packet:NAME" in capsys.readouterr().err
    nobody = f"unix:{tmp_path}/nobody"
    assert cli(["check", "loopback:net", "--port", nobody]) == 2
    assert f"--port {nobody}: No such file or directory" in capsys.readouterr().err
