"""QEMU's own devices under virtq's drivers, over the qtest transport."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import virtq
from tests.interop.peers.availability import program
from tests.unit.vhost_user.support import eventually
from virtq.cli import run
from virtq.drivers.blk import BlkDriver
from virtq.drivers.net import NetDriver
from virtq.errors import PeerGone, TransportError
from virtq.features import F, RingKind
from virtq.transports.qtest import QtestTransport

pytestmark = pytest.mark.interop

KINDS = {
    RingKind.of(features): ("" if not features & F.RING_PACKED else ",packed=on")
    + ("" if not features & F.IN_ORDER else ",in_order=on")
    for features in (0, int(F.IN_ORDER), int(F.RING_PACKED), int(F.RING_PACKED | F.IN_ORDER))
}
BUSES = {"pci": "virtio-{}-pci", "mmio": "virtio-{}-device"}


@pytest.fixture(autouse=True)
def qemu() -> None:
    program("qemu")


def uri(bus: str, device: str, kind: RingKind, options: str = "") -> str:
    return f"qtest:{BUSES[bus].format(device)}{KINDS[kind]}{options}"


@pytest.mark.parametrize("bus", BUSES)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_disk(bus: str, kind: RingKind, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    before = os.urandom(1 << 20)
    image.write_bytes(before)
    with virtq.connect(uri(bus, "blk", kind, f"?disk={image}"), driver=BlkDriver) as disk:
        assert disk.kind == kind
        assert disk.read(0, len(before)) == before
        after = os.urandom(len(before))
        disk.write(0, after)
        disk.flush()
        assert image.read_bytes() == after
        disk.write_zeroes(4096, 8192)
        disk.flush()
        assert image.read_bytes()[4096 : 4096 + 8192] == bytes(8192)
        # Without EVENT_IDX or with it: one kick for a batch, and no request without a call.
        stats = disk.queues[0].stats
        assert stats["used_entries"] == stats["buffers"], "QEMU uses each buffer by its own entry"
        assert stats["kicks_sent"] < stats["buffers"]
        assert 0 < stats["calls_received"] <= stats["buffers"]


@pytest.mark.parametrize("bus", BUSES)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_packets(bus: str, kind: RingKind, tmp_path: Path) -> None:
    qemu, here = tmp_path / "q", tmp_path / "h"
    frames = [bytes(6) + bytes(range(6)) + b"\x88\xb5" + os.urandom(60 + i) for i in range(50)]
    netdev = (
        f"-netdev dgram,id=n0,local.type=unix,local.path={qemu},remote.type=unix,remote.path={here}"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(here))
        other.settimeout(5.0)
        with virtq.connect(
            uri(bus, "net", kind, f",netdev=n0?args={netdev}"), driver=NetDriver
        ) as net:
            assert net.kind == kind
            net.send(frames)
            assert [other.recv(4096) for _ in frames] == frames
            for frame in frames:
                other.sendto(b"\xff" * 6 + frame[6:], str(qemu))
            got: list[bytes] = []
            while len(got) < len(frames):
                new = net.receive(len(frames), timeout_s=5.0)
                assert new, f"{len(got)} of {len(frames)} frames arrived"
                got += new
            assert got == [b"\xff" * 6 + frame[6:] for frame in frames]


@pytest.fixture
def transport() -> Iterator[QtestTransport]:
    transport = QtestTransport("virtio-blk-pci,packed=on,in_order=on")
    yield transport
    transport.close()


def test_a_configuration_change_arrives(transport: QtestTransport) -> None:
    disk = BlkDriver(transport)
    before = disk.capacity
    transport.machine.monitor.execute("block_resize", {"node-name": "virtq-disk", "size": 96 << 20})
    assert eventually(lambda: disk.capacity == 96 << 20), disk.capacity
    assert before == 64 << 20


def test_a_queue_reset_on_pci(transport: QtestTransport) -> None:
    disk = BlkDriver(transport, want=F.RING_RESET)
    data = os.urandom(512)
    for sector in range(20):
        disk.write(512 * sector, data)
        assert disk.reset_queue(0) == []
        assert disk.read(512 * sector, 512) == data


def test_a_device_that_is_reset(transport: QtestTransport) -> None:
    disk = BlkDriver(transport)
    disk.write(0, b"x" * 512)
    disk.reset()
    assert disk.read(0, 512) == b"x" * 512


@pytest.mark.parametrize("vectors", [0, 1, 2])
def test_few_interrupt_vectors(vectors: int) -> None:
    """One for all, one for the configuration and one for the queues, or none: by ISR status."""
    text = f"qtest:virtio-blk-pci,num-queues=2,vectors={vectors}"
    with virtq.connect(text, driver=BlkDriver) as disk:
        disk.write(0, b"y" * 4096)
        assert disk.read(0, 4096) == b"y" * 4096


def test_qemu_is_killed(transport: QtestTransport) -> None:
    disk = BlkDriver(transport)
    os.kill(transport.machine.pid, signal.SIGKILL)
    with pytest.raises(PeerGone, match="virtio-blk-pci"):
        disk.read(0, 512)
    with pytest.raises(PeerGone, match="ended by SIGKILL"):
        transport.check()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("qtest:virtio-blk-pci,packet=on", "packet"),
        ("qtest:virtio-nonsense-pci", "virtio-nonsense-pci"),
        ("qtest:virtio-blk-pci?disk=/nonexistent", "/nonexistent"),
        ("qtest:virtio-blk-pci?machine=none", "virtio-blk-pci"),
        ("qtest:virtio-blk-pci?qemu=qemu-nowhere", "qemu-nowhere is not installed"),
        ("qtest:virtio-blk-pci?args=-nonsense", "nonsense"),
    ],
)
def test_what_does_not_start_is_said_in_one_line(text: str, message: str) -> None:
    with pytest.raises(TransportError, match=message) as raised:
        virtq.connect(text)
    assert "\n" not in str(raised.value)


def test_probe(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["probe", "--json", "qtest:virtio-net-pci,packed=on,in_order=on"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["device"] == {"id": 1, "name": "net", "guessed": False}
    assert {"RING_PACKED", "IN_ORDER"} <= set(shown["features"]["names"])
    assert shown["queues"]["sizes"] == [256, 256, 64]


def test_a_device_that_is_made_new_again(transport: QtestTransport) -> None:
    """Nothing of what was before is in its memory, and it serves the next driver."""
    disk = BlkDriver(transport)
    disk.write(0, b"z" * 4096)
    at = disk.arena.alloc(4096).addr
    transport.memory.write(at, b"z" * 4096)
    transport.renew()
    assert transport.memory.read(at, 4096) == bytes(4096)
    assert BlkDriver(transport).read(0, 4096) == b"z" * 4096
    assert transport.change_config()
    with pytest.raises(TransportError, match="not as it was"):
        transport.renew()
