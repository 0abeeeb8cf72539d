"""The block load against qemu-storage-daemon: what a device that nobody here wrote makes of it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import virtq
from virtq.drivers.blk import BlkDriver
from virtq.features import F

from .peers.availability import require
from .peers.qsd import BlockExport, StorageDaemon

MIB = 1 << 20
IMAGE_BYTES = 8 * MIB
BLOCK_BYTES = 4096
BLOCKS = IMAGE_BYTES // BLOCK_BYTES


@pytest.fixture(autouse=True, scope="module")
def needs_daemon() -> None:
    require("qemu-storage-daemon")


@pytest.fixture
def export(tmp_path: Path) -> BlockExport:
    image = tmp_path / "disk.img"
    image.write_bytes(os.urandom(IMAGE_BYTES))
    return BlockExport(tmp_path / "blk.sock", image, queues=2, aio="io_uring")


def connect(export: BlockExport, **settings: Any) -> BlkDriver:
    return virtq.connect(f"vhost-user:{export.socket_path}", driver=BlkDriver, **settings)


def mix(value: int) -> int:
    """splitmix64, from its description."""
    mask = (1 << 64) - 1
    value = (value + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


@pytest.mark.parametrize("offer", ["", "-EVENT_IDX,-INDIRECT_DESC"], ids=["all", "neither"])
@pytest.mark.parametrize("wait", ["poll", "event"])
def test_every_block_is_written_and_found(export: BlockExport, offer: str, wait: str) -> None:
    image = export.image
    assert image is not None
    with StorageDaemon(export), connect(export, offer=offer) as disk:
        assert disk.has(F.INDIRECT_DESC) == (not offer)
        before = {name: stats["buffers"] for name, stats in disk.stats().items()}
        with disk.load(depth=32, write_percent=30, verify="pattern", wait=wait, seed=5) as load:
            filled = load.fill()
            assert filled["requests"] == filled["writes"] == BLOCKS
            assert (filled["errors"], filled["bytes"]) == (0, IMAGE_BYTES)
            disk.flush()
            content = image.read_bytes()
            for sector in range(0, IMAGE_BYTES // 512, 97):
                first = mix(sector ^ mix(5)).to_bytes(8, "little")
                assert content[sector * 512 : sector * 512 + 8] == first

            did = load.run(0.3)
            assert did["requests"] == did["reads"] + did["writes"]
            assert did["verified"] > 0
            assert (did["errors"], did["mismatches"], did["first_failure"]) == (0, 0, None)
            assert did["bytes"] == did["requests"] * BLOCK_BYTES
            # It does not complete in order: each request has a used element of its own.
            assert did["used_entries"] == did["requests"]
            if wait == "poll":
                assert did["calls"] == 0
        counted = {name: stats["buffers"] - before[name] for name, stats in disk.stats().items()}
        flushes = 1
        assert sum(counted.values()) == filled["requests"] + did["requests"] + flushes
        assert all(counted.values())
        # The driver goes on as before, in the memory that the load had.
        assert disk.read(0, BLOCK_BYTES) == content[:BLOCK_BYTES]
    # What the mixed load wrote is what was there.
    assert image.read_bytes() == content


def test_the_daemon_says_no(export: BlockExport) -> None:
    with (
        StorageDaemon(replace(export, logical_block_size_bytes=4096)),
        connect(export) as disk,
        disk.load(block_bytes=512, depth=4, random=False) as load,
    ):
        did = load.run(0.1)
        # Of eight sectors in a row it accepts the one that a block of 4096 bytes begins with.
        assert did["requests"] > 16
        assert did["errors"] == did["requests"] - -(-did["requests"] // 8)
        assert did["first_failure"].startswith("reading at sector ")
        assert did["first_failure"].endswith(" ended with status 1")
        assert did["bytes"] == 512 * (did["requests"] - did["errors"])


def test_a_load_that_the_device_does_not_take(export: BlockExport) -> None:
    with StorageDaemon(export), connect(export) as disk:
        with (
            pytest.raises(ValueError, match="block_bytes is 16777216, the device takes"),
            disk.load(block_bytes=16 * MIB),
        ):
            pass
        with (
            pytest.raises(ValueError, match="depth is 1000, which takes 1000 slots"),
            disk.load(block_bytes=512, depth=1000),
        ):
            pass
        held = disk.arena.held_bytes
        with disk.load(depth=8) as load:
            assert load.run(0.05)["errors"] == 0
            assert disk.arena.held_bytes > held
        assert disk.arena.held_bytes == held
