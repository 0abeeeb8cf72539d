"""The block device's driver, with its twin behind it: transfers, batches, the file, failures."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.blk_support import MIB, Faulty
from virtq import connect
from virtq.devices.blk import BlkDevice
from virtq.devices.disk import Disk
from virtq.drivers.blk import BlkDriver, BlkRequestError
from virtq.errors import FeatureError, PeerGone, QueueFull, RequestError
from virtq.features import Change, F, RingKind
from virtq.transports.loopback import LoopbackTransport
from virtq.wire.blk import Type, status_name

# The disk


@pytest.mark.parametrize("where", ["file", "memory"])
def test_a_disk(where: str, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(10_000))
    disk = Disk.file(path) if where == "file" else Disk.memory(10_000)
    assert disk.capacity == 19
    disk.write(1000, b"hello")
    assert disk.read(998, 9) == b"\0\0hello\0\0"
    disk.flush()
    disk.write_zeroes(1000, 3, unmap=False)
    disk.write_zeroes(1004, 1, unmap=True)
    assert disk.read(1000, 5) == b"\0\0\0l\0"
    disk.discard(0, 4096)
    with pytest.raises(OSError, match="Input/output error") as caught:
        disk.read(9_999, 2)
    assert caught.value.errno == errno.EIO
    disk.close()
    disk.close()


# Both twins


@pytest.mark.parametrize("kind", RingKind, ids=str)
@pytest.mark.parametrize("queues", [1, 3])
def test_a_whole_disk_in_and_out(kind: RingKind, queues: int, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(3 * MIB))
    content = random.Random(1).randbytes(3 * MIB)
    device = BlkDevice(Disk.file(path), queues=queues, serial="disk no. 1")
    transport = LoopbackTransport(device)
    with BlkDriver(transport, want=kind.features, offer=kind.change) as disk:
        assert disk.kind is kind
        assert (disk.capacity, len(disk.queues)) == (3 * MIB, queues)
        disk.write(0, content)
        disk.flush()
        assert hashlib.sha256(disk.read(0, 3 * MIB)).digest() == hashlib.sha256(content).digest()
        assert disk.get_id() == "disk no. 1"
        disk.write_zeroes(512, 1024)
        disk.write_zeroes(4096, 4096, unmap=True)
        disk.discard(8192, 512)
        expected = bytearray(content)
        expected[512:1536], expected[4096:8192] = bytes(1024), bytes(4096)
        back = bytearray(disk.read(0, 3 * MIB))
        back[8192:8704] = expected[8192:8704]  # what was discarded reads as anything
        assert back == expected
    assert path.read_bytes()[:8192] == expected[:8192]


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_batches_in_any_order_are_what_a_bytearray_is(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(RingKind))
    segment = data.draw(st.sampled_from([0, 512, 1536, 65536]))
    device = BlkDevice(
        Disk.memory(MIB),
        queues=data.draw(st.integers(1, 2)),
        queue_size=data.draw(st.sampled_from([4, 8, 64])),
        segment_bytes_max=segment,
        segments_max=data.draw(st.sampled_from([1, 2, 7])),
    )
    offer = Change(
        kind.change.add,
        kind.change.remove | data.draw(st.sampled_from([0, F.INDIRECT_DESC, F.EVENT_IDX])),
    )
    model = bytearray(MIB)
    sectors = st.integers(0, MIB // 512 - 200)
    with BlkDriver(LoopbackTransport(device), offer=offer) as disk:
        for _ in range(data.draw(st.integers(1, 4))):
            writes: list[tuple[int, bytes]] = []
            taken = 0
            for _ in range(data.draw(st.integers(0, 6))):  # ranges that do not overlap
                start = taken + data.draw(st.integers(0, 50)) * 512
                blob = os.urandom(512 * data.draw(st.integers(0, 90)))
                writes.append((start, blob))
                taken = start + len(blob)
                model[start:taken] = blob
            disk.write_many(writes, depth=data.draw(st.integers(1, 40)))
            reads = [
                (512 * data.draw(sectors), 512 * data.draw(st.integers(0, 200))) for _ in range(3)
            ]
            answers = disk.read_many(reads, depth=data.draw(st.integers(1, 40)))
            assert answers == [bytes(model[o : o + n]) for o, n in reads]


def test_a_queue_with_no_room_for_one_request() -> None:
    device = BlkDevice(Disk.memory(MIB), queue_size=2)
    with (
        BlkDriver(LoopbackTransport(device), offer="-INDIRECT_DESC") as disk,
        pytest.raises(QueueFull, match="no room for one request"),
    ):
        disk.read(0, 512)


def test_reading_into_a_callers_buffer() -> None:
    with connect("loopback:blk?size=1M", driver=BlkDriver) as disk:
        disk.write(512, b"x" * 512)
        target = bytearray(1024)
        disk.read_into(0, target)
        assert target == bytes(512) + b"x" * 512


def test_what_the_driver_does_not_even_ask() -> None:
    with connect("loopback:blk?size=1M", driver=BlkDriver) as disk:
        for offset, length in ((0, 100), (100, 512), (-512, 512), (MIB, 512), (MIB - 512, 1024)):
            with pytest.raises(ValueError, match=r"."):
                disk.read(offset, length)
        with pytest.raises(ValueError, match="not whole sectors"):
            disk.write(0, b"x")
        assert disk.read(MIB, 0) == b""


def test_info() -> None:
    device = BlkDevice(
        Disk.memory(MIB), queues=2, block_size=1024, physical_block_size=4096, segments_max=5
    )
    with BlkDriver(LoopbackTransport(device)) as disk:
        info = disk.info()
        assert (info.capacity, info.block_size, info.physical_block_size) == (MIB, 1024, 4096)
        assert (info.queues, info.segments_max, info.read_only) == (2, 5, False)
        assert info.write_zeroes_may_unmap
        assert "MQ" in info.features
    with BlkDriver(LoopbackTransport(device), offer="-BLK_SIZE,-TOPOLOGY,-MQ,-DISCARD") as disk:
        info = disk.info()
        assert (info.block_size, info.physical_block_size, info.queues) == (512, 512, 1)
        assert info.discard_bytes_max == 0
        with pytest.raises(FeatureError, match="DISCARD was not negotiated"):
            disk.discard(0, 512)


# The file


def test_the_disk_as_a_file() -> None:
    with connect("loopback:blk?size=64K", driver=BlkDriver) as disk:
        with disk.open() as file:
            assert (file.readable(), file.writable(), file.seekable()) == (True, True, True)
            assert file.seek(1000) == 1000
            assert file.write(b"hello") == 5
            assert file.tell() == 1005
            file.seek(-5, io.SEEK_CUR)
            assert file.read(5) == b"hello"
            assert file.seek(0, io.SEEK_END) == 65536
            assert file.read(1) == b""
            with pytest.raises(OSError, match="no space"):
                file.write(b"x")
            file.seek(-3, io.SEEK_END)
            assert file.write(b"12345") == 3
            with pytest.raises(ValueError, match="cannot seek"):
                file.seek(-1)
        assert disk.read(512, 512) == bytes(488) + b"hello" + bytes(19)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 9000), st.binary(max_size=3000)), max_size=8))
def test_a_file_is_what_a_bytearray_is(writes: list[tuple[int, bytes]]) -> None:
    model = bytearray(16384)
    with connect("loopback:blk?size=16K", driver=BlkDriver) as disk:
        with io.BufferedRandom(disk.open()) as file:
            for offset, data in writes:
                file.seek(offset)
                file.write(data)
                model[offset : offset + len(data)] = data
            file.seek(0)
            assert file.read() == model
        assert disk.read(0, 16384) == model


def test_long_ranges_are_cut_to_the_devices_limit() -> None:
    device = BlkDevice(Disk.memory(MIB))
    device.config.max_write_zeroes_sectors = 100
    device.disk.write(0, b"\xff" * MIB)
    with BlkDriver(LoopbackTransport(device)) as disk:
        disk.write_zeroes(512, MIB - 1024)
        assert device.disk.native.stats["write_zeroes"] == 21
    assert device.disk.read(0, MIB) == b"\xff" * 512 + bytes(MIB - 1024) + b"\xff" * 512


def test_the_driver_of_a_read_only_disk() -> None:
    with BlkDriver(LoopbackTransport(BlkDevice(Disk.memory(MIB), read_only=True))) as disk:
        assert disk.read_only
        with pytest.raises(RequestError, match="read-only"):
            disk.write(0, bytes(512))
        with pytest.raises(io.UnsupportedOperation):
            disk.open().write(b"x")


def test_the_driver_names_what_failed() -> None:
    disk = Faulty()
    with BlkDriver(LoopbackTransport(BlkDevice(disk))) as driver:
        disk.error = errno.EIO
        with pytest.raises(BlkRequestError, match="IN of 512 bytes at sector 5: IOERR") as caught:
            driver.read(5 * 512, 512)
        error = caught.value
        assert (error.type, error.sector, error.length, error.status) == (Type.IN, 5, 512, 1)
        with pytest.raises(BlkRequestError, match="FLUSH"):
            driver.flush()
        with pytest.raises(BlkRequestError):
            driver.write(0, bytes(MIB))
        disk.error = None
        driver.write(0, b"y" * MIB)
        assert driver.read(0, MIB) == b"y" * MIB


def test_a_device_that_forgets_the_status() -> None:
    class Forgets(BlkDevice):
        def handle(self, request) -> int:  # type: ignore[no-untyped-def]
            return 0

    with (
        BlkDriver(LoopbackTransport(Forgets(Disk.memory(MIB)))) as disk,
        pytest.raises(BlkRequestError, match="no status written"),
    ):
        disk.read(0, 512)
    assert status_name(77) == "status 77"


def test_a_peer_that_dies_while_a_request_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtq.queue.CHECK_INTERVAL_S", 0.02)

    class Never(BlkDevice):
        async def handle(self, request) -> int:  # type: ignore[no-untyped-def, override]
            import asyncio

            await asyncio.sleep(3600)
            return 0

    transport = LoopbackTransport(Never(Disk.memory(MIB)))
    driver = BlkDriver(transport)

    def gone() -> None:
        raise PeerGone("the other end has died")

    for queue in driver.queues:
        driver.queues[queue]._check = gone
    with pytest.raises(PeerGone):
        driver.read(0, 512)
    driver.close()


def test_segment_limits_are_kept_by_the_driver() -> None:
    longest: list[int] = []

    class Watches(BlkDevice):
        def handle(self, request) -> int:  # type: ignore[no-untyped-def]
            data = [n for _, n, w in request.segments() if n not in (1, 16)]
            longest.append(max(data, default=0))
            assert len(data) <= 3
            return super().handle(request)

    device = Watches(Disk.memory(MIB), segment_bytes_max=1024, segments_max=3)
    with BlkDriver(LoopbackTransport(device)) as disk:
        disk.write(0, b"q" * 10240)
        assert disk.read(0, 10240) == b"q" * 10240
    assert max(longest) == 1024


def test_a_queue_reset_drops_its_requests() -> None:
    with connect("loopback:blk?size=1M", driver=BlkDriver) as disk:
        disk.write(0, b"a" * 512)
        disk.reset_queue(0)
        assert disk.read(0, 512) == b"a" * 512
        held = disk.arena.held_bytes
        disk.reset()
        assert disk.read(0, 512) == b"a" * 512
        assert disk.arena.held_bytes == held
