"""`virtq probe`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.cli.support import MIB, loaded, printed, served
from virtq import F
from virtq.cli.probe import guess_device
from virtq.wire.blk import BlkFeature
from virtq.wire.net import NetFeature


def test_probe_a_disk(disk: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = loaded(capsys, "probe", disk)
    assert found["device"] == {"id": 2, "name": "blk", "guessed": True}
    assert {"IN_ORDER", "RING_PACKED", "FLUSH", "MQ"} <= set(found["features"]["names"])
    assert {"CONFIG", "MQ", "REPLY_ACK"} <= set(found["protocol_features"]["names"])
    assert found["queues"] == {"count": 2, "sizes": [256, 256]}
    assert found["memory_slots"] == 509
    assert found["config"]["fields"]["capacity"] == 16 * MIB // 512
    assert found["config"]["fields"]["num_queues"] == 2
    text = printed(capsys, "probe", disk)
    for fact in ("blk (a guess", "32768 sectors, 16 MiB", "2, of up to 256 slots", "509 slots"):
        assert fact in text
    assert "guess" not in printed(capsys, "probe", f"{disk}?device=blk")
    assert "guess" not in printed(capsys, "probe", disk, "--type", "blk")


def test_probe_a_network_interface(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s"
    words: list[str | Path] = [
        "--sink",
        "--mac",
        "52:54:00:00:00:07",
        "--mtu",
        "9000",
        "--socket-path",
        path,
    ]
    with served("net", *words):
        found = loaded(capsys, "probe", f"vhost-user:{path}")
        text = printed(capsys, "probe", f"vhost-user:{path}")
        other = printed(capsys, "probe", f"vhost-user:{path}", "--type", "rng")
    assert found["device"] == {"id": 1, "name": "net", "guessed": True}
    assert found["queues"]["sizes"] == [256, 256, 64]
    assert found["config"]["fields"]["mac"] == "525400000007"
    for fact in ("52:54:00:00:00:07", "link up", "9000 bytes"):
        assert fact in text
    assert "0x000  52 54 00 00 00 07 01 00" in other


def test_probe_without_a_socket(capsys: pytest.CaptureFixture[str]) -> None:
    found = loaded(capsys, "probe", "loopback:blk?size=1M&queue_size=64")
    assert found["device"] == {"id": 2, "name": "blk", "guessed": False}
    assert found["queues"] == {"count": 1, "sizes": [64]}
    assert found["protocol_features"] is None
    assert found["memory_slots"] is None


@pytest.mark.parametrize(
    ("features", "config_size", "device_id"),
    [
        (F.VERSION_1 | BlkFeature.SEG_MAX | BlkFeature.FLUSH | BlkFeature.BLK_SIZE, 60, 2),
        (F.VERSION_1 | NetFeature.MRG_RXBUF | NetFeature.CTRL_VQ | NetFeature.MAC, 12, 1),
        (F.VERSION_1 | NetFeature.MRG_RXBUF, 0, 1),
        (F.VERSION_1 | BlkFeature.RO | BlkFeature.TOPOLOGY, 60, 2),
        (0xD3866E7CB, 0, 1),  # DPDK's, in which bit 6 has no name and bit 13 lacks what it needs
        (0x131007E46, 96, 2),  # qemu-storage-daemon's
        (F.VERSION_1 | F.IN_ORDER, 0, None),
        (F.VERSION_1 | 1 << 49 | 1 << 27, 8, None),
    ],
)
def test_guessing_the_device_type(features: int, config_size: int, device_id: int | None) -> None:
    assert guess_device(features, config_size) == device_id
