"""The entropy device and its driver."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
from pathlib import Path

import pytest

from tests.unit.vhost_user.support import Served
from virtq import Driver, F, Used, connect
from virtq.devices.rng import FileSource, RateLimit, RngDevice, SeededSource
from virtq.drivers.rng import RngDriver
from virtq.errors import RingFault
from virtq.features import RingKind
from virtq.transports.loopback import LoopbackTransport


@pytest.fixture
def stream() -> bytes:
    return SeededSource("seed").read(1 << 20)


def drive(device: RngDevice, kind: RingKind = RingKind.SPLIT, **settings: int) -> RngDriver:
    transport = LoopbackTransport(device, when_closed=device.close)
    return RngDriver(transport, want=kind.features, offer=kind.change, **settings)


@pytest.mark.parametrize("kind", RingKind, ids=str)
@pytest.mark.parametrize("buffer_bytes_max", [1 << 16, 1000, 1])
def test_bytes_come_in_order(kind: RingKind, buffer_bytes_max: int, stream: bytes) -> None:
    device = RngDevice(SeededSource("seed"), buffer_bytes_max=buffer_bytes_max)
    total = 200_000 if buffer_bytes_max > 1 else 300
    with drive(device, kind, queue_size=8) as rng:
        assert rng.kind is kind
        got = rng.read(total) + rng.read(0) + rng.read(1) + rng.read(4096)
        assert got == stream[: total + 4097]
    stats = device.stats()["requestq"]
    assert stats["bytes_written"] >= total + 4097
    assert stats["buffers"] >= (total + 4097) / min(4096, buffer_bytes_max)


@pytest.mark.parametrize("kind", [RingKind.SPLIT_IN_ORDER, RingKind.PACKED_IN_ORDER], ids=str)
@pytest.mark.parametrize("room", [100, 200])
def test_only_full_buffers_are_skipped(kind: RingKind, room: int, stream: bytes) -> None:
    """Eight buffers at once: full ones share a used entry, short ones do not."""
    device = RngDevice(SeededSource("seed"), buffer_bytes_max=100)
    transport = LoopbackTransport(device)
    with Driver(transport, want=kind.features, offer=kind.change) as driver:
        queue = driver.queues[0]
        for number in range(8):
            queue.add(reply=room, cookie=number)
        queue.kick()
        used: list[Used] = []
        while len(used) < 8:
            assert queue.wait(5)
            used += queue.reap()
        assert [u.cookie for u in used] == list(range(8))
        assert b"".join(u.reply for u in used) == stream[:800]
        stats = device.stats()["requestq"]
        assert stats["used_entries"] == (1 if room == 100 else 8)


def test_a_seeded_stream_follows_from_its_seed_alone() -> None:
    block = hashlib.sha256(b"x" + bytes(8)).digest()
    other = hashlib.sha256(b"x" + b"\1" + bytes(7)).digest()
    source = SeededSource("x")
    assert source.read(40) + source.read(1) + source.read(23) == block + other
    assert SeededSource(7).read(10) == SeededSource("7").read(10) != SeededSource(8).read(10)


def test_the_systems_bytes_are_not_the_same_twice() -> None:
    with drive(RngDevice()) as rng:
        assert rng.read(32) != rng.read(32)


def test_a_file_and_its_end(tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(200)))
    device = RngDevice(FileSource(path))
    with drive(device) as rng:
        assert rng.read(150) == bytes(range(150))
        with pytest.raises(RingFault, match="given it up"):
            rng.read(51)
        assert rng.read(50) == bytes(range(150, 200))
    assert device.stats()["requestq"]["handler_errors"] == 1
    with pytest.raises(ValueError, match="neither a file nor a character device"):
        FileSource(tmp_path)
    with pytest.raises(FileNotFoundError):
        FileSource(tmp_path / "none")
    zeroes = FileSource("/dev/zero")
    assert zeroes.read(10) == bytes(10)
    zeroes.close()
    zeroes.close()


class Hesitant(SeededSource):
    """Has nothing every other time."""

    asked = 0

    def read(self, count: int) -> bytes:
        self.asked += 1
        if self.asked % 2:
            raise BlockingIOError
        return super().read(count)


def test_a_source_that_has_nothing_now_is_asked_again(stream: bytes) -> None:
    with drive(RngDevice(Hesitant("seed"), buffer_bytes_max=10)) as rng:
        assert rng.read(60) == stream[:60]


def test_a_rate_limit_counts_time() -> None:
    limit = RateLimit(100)
    assert limit.take(60, 10.0) == 60
    assert limit.take(60, 10.0) == 40
    assert limit.take(60, 10.0) == 0
    assert limit.wait_s == pytest.approx(0.01)
    assert limit.take(60, 10.125) == 12
    assert limit.take(1000, 99.0) == 100
    with pytest.raises(ValueError, match="1 byte per second or more"):
        RateLimit(0)


def test_a_limited_device_gives_the_same_bytes(stream: bytes) -> None:
    device = RngDevice(SeededSource("seed"), bytes_per_s=20_000)
    with drive(device, RingKind.PACKED_IN_ORDER) as rng:
        assert rng.read(22_000) == stream[:22_000]


def test_what_came_in_time_is_kept() -> None:
    device = RngDevice(SeededSource("seed"), bytes_per_s=1)
    with drive(device) as rng:
        with pytest.raises(TimeoutError, match="1 of 2 random bytes within"):
            rng.read(2, timeout_s=0.05)
        assert rng.read(1) == SeededSource("seed").read(1)


def test_as_a_file(stream: bytes) -> None:
    with drive(RngDevice(SeededSource("seed"))) as rng, rng.open() as file:
        assert file.readable()
        assert file.read(10) == stream[:10]
        with io.BufferedReader(file, 64) as buffered:
            assert buffered.read(100) == stream[10:110]


def test_from_asyncio(stream: bytes) -> None:
    async def read(rng: RngDriver) -> bytes:
        return await rng.read_async(5000)

    with drive(RngDevice(SeededSource("seed"))) as rng:
        assert asyncio.run(read(rng)) == stream[:5000]


def test_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="1 byte or more"):
        RngDevice(buffer_bytes_max=0)
    with drive(RngDevice()) as rng, pytest.raises(ValueError, match="-1 random bytes"):
        rng.read(-1)


def test_a_reset_begins_anew(stream: bytes) -> None:
    with drive(RngDevice(SeededSource("seed"), buffer_bytes_max=16)) as rng:
        assert rng.read(16) == stream[:16]
        rng.reset()
        assert rng.read(16) == stream[16:32]
        rng.reset_queue("requestq")
        assert rng.read(16) == stream[32:48]


@pytest.fixture
def socket_path(tmp_path: Path) -> str:
    return str(tmp_path / "rng.sock")


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_over_vhost_user(kind: RingKind, socket_path: str, stream: bytes) -> None:
    with (
        Served(RngDevice(SeededSource("seed")), socket_path),
        connect(
            f"vhost-user:{socket_path}", want=kind.features, offer=kind.change, driver=RngDriver
        ) as rng,
    ):
        assert rng.kind is kind
        assert rng.read(100_000, timeout_s=10) == stream[:100_000]


def test_a_buffer_that_nothing_can_fill_breaks_the_queue(socket_path: str) -> None:
    device = RngDevice(SeededSource("seed"))
    with Served(device, socket_path):
        with connect(f"vhost-user:{socket_path}") as driver:
            queue = driver.queues[0]
            assert len(queue.call(reply=10, timeout_s=5)) == 10
            queue.add(b"readable")
            queue.kick()
            with pytest.raises(RingFault, match="given it up"):
                queue.wait(5)
        with connect(f"vhost-user:{socket_path}", want=F.IN_ORDER, driver=RngDriver) as rng:
            assert len(rng.read(10, timeout_s=5)) == 10


def test_by_uri() -> None:
    with connect("loopback:rng?seed=seed&max_bytes=7", driver=RngDriver) as rng:
        assert rng.read(70) == SeededSource("seed").read(70)
    with connect("loopback:rng") as other:
        assert isinstance(other, RngDriver)
        assert len(other.read(os.cpu_count() or 1)) >= 1
