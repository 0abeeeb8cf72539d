"""The block device and its driver: every request type, any framing, whatever goes wrong."""

from __future__ import annotations

import errno
import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.blk_support import IOERR, MIB, OK, UNSUPP, UNTOUCHED, Faulty, Raw
from virtq.devices.blk import BlkDevice
from virtq.devices.disk import Disk
from virtq.drivers.blk import BlkDriver
from virtq.errors import ConfigError, FeatureError
from virtq.features import RingKind
from virtq.transports.loopback import LoopbackTransport
from virtq.wire import layout
from virtq.wire.blk import BlkConfig, BlkFeature, Header, Segment, Type


@pytest.fixture
def raw() -> Iterator[Raw]:
    made: list[Raw] = []

    def make(device: BlkDevice | None = None, kind: RingKind = RingKind.SPLIT) -> Raw:
        made.append(Raw(device or BlkDevice(Disk.memory(MIB)), kind))
        return made[-1]

    yield make  # type: ignore[misc]
    for one in made:
        one.driver.close()


Make = Callable[..., Raw]


# Framing


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_any_framing_is_the_same_request(kind: RingKind, raw: Make) -> None:
    sender = raw(kind=kind)
    rng = random.Random(2)
    for _ in range(30):
        data = rng.randbytes(1024)
        cuts = [rng.randrange(1040) for _ in range(rng.randrange(20))]
        assert sender.send(Header(Type.OUT, 3).pack() + data, 1, (cuts, [])) == (OK, 1)
        cuts = [rng.randrange(1025) for _ in range(rng.randrange(20))]
        answer = sender.send(Header(Type.IN, 3).pack(), 1025, ([1, 7, 15], cuts))
        assert answer == (data + OK, 1025)


def test_data_may_follow_the_header_in_one_piece(raw: Make) -> None:
    sender = raw()
    everything = Header(Type.OUT, 0).pack() + b"z" * 512
    assert sender.send(everything, 1) == (OK, 1)
    assert sender.device.disk.read(0, 512) == b"z" * 512


# Requests that make no sense


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(header=st.binary(max_size=40), room=st.integers(0, 1100), kind=st.integers(0, 30))
def test_whatever_comes_a_status_goes(header: bytes, room: int, kind: int) -> None:
    sender = Raw(BlkDevice(Disk.memory(MIB)))
    try:
        request = struct.pack("<I", kind) + header
        answer, written = sender.send(request, room)
        assert written <= room
        assert room == 0 or answer[-1:] in (OK, IOERR, UNSUPP)
        assert sender.status(Type.IN, 0, room=512) == OK
    finally:
        sender.driver.close()


def test_no_room_for_a_status(raw: Make) -> None:
    sender = raw()
    assert sender.send(Header(Type.OUT, 0).pack() + b"x" * 512, 0) == (b"", 0)
    assert sender.device.disk.read(0, 512) == bytes(512)


@pytest.mark.parametrize("length", [1, 8, 15])
def test_a_header_that_is_too_short(raw: Make, length: int) -> None:
    answer, written = raw().send(bytes(length), 513)
    assert answer == bytes(512) + IOERR
    assert written == 513  # zeroes where there is no data, so that the length is true


@pytest.mark.parametrize(
    ("kind", "sector", "data", "room"),
    [
        (Type.IN, 0, 0, 100),
        (Type.IN, 2047, 0, 1024),
        (Type.IN, 2048, 0, 512),
        (Type.IN, 2**64 - 1, 0, 512),
        (Type.IN, 2**55, 0, 512),
        (Type.OUT, 0, 100, 0),
        (Type.OUT, 2047, 1024, 0),
        (Type.OUT, 2**64 - 1, 512, 0),
        (Type.GET_ID, 0, 0, 19),
        (Type.DISCARD, 0, 0, 0),
        (Type.DISCARD, 0, 15, 0),
        (Type.DISCARD, 0, 33 * 16, 0),
    ],
)
def test_out_of_range_or_shape(raw: Make, kind: Type, sector: int, data: int, room: int) -> None:
    assert raw().status(kind, sector, bytes(data), room) == IOERR


@pytest.mark.parametrize("kind", [2, 3, 5, 7, 9, 10, 12, 14, 15, 16, 18, 20, 22, 24, 26, 2**31])
def test_types_that_are_not_served(raw: Make, kind: int) -> None:
    assert raw().status(kind, data=bytes(16), room=64) == UNSUPP


def test_lengths_of_zero(raw: Make) -> None:
    sender = raw()
    assert sender.status(Type.IN, 2048) == OK
    assert sender.status(Type.OUT, 2048) == OK
    assert sender.status(Type.IN, 2049) == IOERR


# Discard and write zeroes


@pytest.mark.parametrize(
    ("kind", "segments", "status"),
    [
        (Type.DISCARD, [Segment(0, 8)], OK),
        (Type.DISCARD, [Segment(0, 8), Segment(2040, 8)], OK),
        (Type.DISCARD, [Segment(0, 0)], OK),
        (Type.DISCARD, [Segment(0, 8, 1)], UNSUPP),
        (Type.DISCARD, [Segment(0, 8, 2)], UNSUPP),
        (Type.DISCARD, [Segment(2041, 8)], IOERR),
        (Type.DISCARD, [Segment(2**64 - 1, 1)], IOERR),
        (Type.DISCARD, [Segment(0, 8), Segment(5000, 1)], IOERR),
        (Type.WRITE_ZEROES, [Segment(0, 8)], OK),
        (Type.WRITE_ZEROES, [Segment(0, 8, 1)], OK),
        (Type.WRITE_ZEROES, [Segment(0, 8, 2)], UNSUPP),
        (Type.WRITE_ZEROES, [Segment(0, 8, 1 << 31)], UNSUPP),
        (Type.WRITE_ZEROES, [Segment(0, 2049)], IOERR),
        (Type.WRITE_ZEROES, [Segment(2048, 1)], IOERR),
    ],
)
def test_segments(raw: Make, kind: Type, segments: list[Segment], status: bytes) -> None:
    sender = raw()
    sender.device.disk.write(0, b"\xff" * MIB)
    assert sender.status(kind, data=b"".join(s.pack() for s in segments)) == status
    first = sender.device.disk.read(0, 4096)
    if kind is Type.WRITE_ZEROES and status == OK:
        assert first == bytes(4096)
    if status != OK:
        assert first == b"\xff" * 4096  # one bad segment, and none is carried out


def test_limits_of_segments(raw: Make) -> None:
    device = BlkDevice(Disk.memory(MIB))
    device.config.max_discard_sectors = 4
    device.config.max_write_zeroes_seg = 1
    sender = raw(device)
    assert sender.status(Type.DISCARD, data=Segment(0, 4).pack()) == OK
    assert sender.status(Type.DISCARD, data=Segment(0, 5).pack()) == IOERR
    assert sender.status(Type.WRITE_ZEROES, data=Segment(0, 1).pack() * 2) == IOERR


def test_not_negotiated_is_not_supported() -> None:
    device = BlkDevice(Disk.memory(MIB), offer="-DISCARD,-WRITE_ZEROES")
    sender = Raw(device)
    assert sender.status(Type.DISCARD, data=Segment(0, 1).pack()) == UNSUPP
    assert sender.status(Type.WRITE_ZEROES, data=Segment(0, 1).pack()) == UNSUPP
    sender.driver.close()


# Read-only


def test_read_only(raw: Make, tmp_path: Path) -> None:
    path = tmp_path / "ro.img"
    path.write_bytes(b"r" * 4096)
    sender = raw(BlkDevice(Disk.file(path, read_only=True)))
    assert sender.device.offered_features & BlkFeature.RO
    assert not sender.device.offered_features & (BlkFeature.DISCARD | BlkFeature.WRITE_ZEROES)
    assert sender.status(Type.OUT, 0, b"x" * 512) == IOERR
    assert sender.status(Type.DISCARD, 0, Segment(0, 1).pack()) == IOERR
    assert sender.status(Type.WRITE_ZEROES, 0, Segment(0, 1).pack()) == IOERR
    assert sender.send(Header(Type.IN, 0).pack(), 513) == (b"r" * 512 + OK, 513)
    assert sender.status(Type.FLUSH) == OK
    assert path.read_bytes() == b"r" * 4096


# Errors of the file


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EROFS])
def test_errors_of_the_file_are_a_status(
    code: int, raw: Make, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Faulty()
    sender = raw(BlkDevice(disk))
    disk.error = code
    for _ in range(2):
        assert sender.status(Type.IN, 0, room=512) == IOERR
        assert sender.status(Type.OUT, 0, bytes(512)) == IOERR
        assert sender.status(Type.FLUSH) == IOERR
    assert caplog.text.count("requests end with IOERR") == 1
    disk.error = None
    assert sender.status(Type.IN, 0, room=512) == OK


def test_a_read_that_fails_half_way_reports_what_it_read(raw: Make) -> None:
    disk = Faulty(2 * MIB)
    sender = raw(BlkDevice(disk), RingKind.PACKED_IN_ORDER)
    disk.fails_from = MIB + 512
    length = MIB + 1024
    answer, written = sender.send(Header(Type.IN, 0).pack(), length + 1)
    assert answer[-1:] == IOERR
    assert written == MIB
    assert answer[MIB:-1] == UNTOUCHED * 1024


# Write cache


def flushes_after_a_write(driver: BlkDriver, disk: Faulty) -> int:
    before = disk.flushes
    driver.write(0, bytes(512))
    return disk.flushes - before


def test_the_write_cache_can_be_switched() -> None:
    disk = Faulty()
    device = BlkDevice(disk)
    with BlkDriver(LoopbackTransport(device)) as driver:
        assert driver.write_cache
        assert flushes_after_a_write(driver, disk) == 0
        driver.write_cache = False
        assert not driver.write_cache
        assert flushes_after_a_write(driver, disk) == 1
        before = disk.flushes
        driver.write_zeroes(0, 512)
        assert disk.flushes == before + 1
        driver.write_cache = True
        assert flushes_after_a_write(driver, disk) == 0
        with pytest.raises(ConfigError, match="0 or 1"):
            driver.write_config("writeback", 2)
        driver.write_cache = False
        driver.reset()
        assert driver.write_cache


@pytest.mark.parametrize(
    ("offer", "cached", "flushes"),
    [
        ("", True, 0),
        ("-CONFIG_WCE", True, 0),
        ("-FLUSH", False, 1),
        ("-FLUSH,-CONFIG_WCE", False, 1),
    ],
)
def test_who_declines_flush_gets_stable_writes(offer: str, cached: bool, flushes: int) -> None:
    disk = Faulty()
    with BlkDriver(LoopbackTransport(BlkDevice(disk)), offer=offer) as driver:
        assert driver.write_cache == cached
        assert flushes_after_a_write(driver, disk) == flushes
        driver.flush()
        if "CONFIG_WCE" in offer:
            with pytest.raises(FeatureError, match="CONFIG_WCE"):
                driver.write_cache = False


def test_config_wce_without_flush_starts_write_through() -> None:
    device = BlkDevice(Disk.memory(MIB))
    features = device.offered_features & ~BlkFeature.FLUSH
    device.accept_features(features)
    assert device.config.writeback == 0
    assert device.write_through


def test_writeback_needs_its_feature() -> None:
    device = BlkDevice(Disk.memory(MIB))
    device.accept_features(device.offered_features & ~BlkFeature.CONFIG_WCE)
    with pytest.raises(ConfigError, match="CONFIG_WCE was not negotiated"):
        device.write_config(32, b"\0")


# Configuration space


def test_the_layout_of_section_5_2_4() -> None:
    offsets = {leaf.name: leaf.offset for leaf in layout.fields_of(BlkConfig)}
    assert layout.size_of(BlkConfig) == 96
    expected = {
        "capacity": 0,
        "seg_max": 12,
        "blk_size": 20,
        "topology.opt_io_size": 28,
        "writeback": 32,
        "num_queues": 34,
        "max_discard_sectors": 36,
        "max_write_zeroes_seg": 52,
        "write_zeroes_may_unmap": 56,
        "max_secure_erase_sectors": 60,
        "zoned.model": 92,
    }
    assert {name: offsets[name] for name in expected} == expected


def test_capacity_may_change(tmp_path: Path) -> None:
    path = tmp_path / "growing.img"
    path.write_bytes(bytes(MIB))
    device = BlkDevice(Disk.file(path))
    with BlkDriver(LoopbackTransport(device)) as disk:
        assert disk.capacity == MIB
        assert not device.refresh_capacity()
        os.truncate(path, 2 * MIB)
        assert device.refresh_capacity()
        disk.transport.read_config(0, 1)
        assert disk.capacity == 2 * MIB
        disk.write(2 * MIB - 512, b"e" * 512)


@pytest.mark.parametrize(
    "settings",
    [
        {"queues": 0},
        {"block_size": 500},
        {"block_size": 4096, "physical_block_size": 512},
        {"serial": "x" * 21},
        {"serial": "ä"},
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        BlkDevice(Disk.memory(MIB), **settings)  # type: ignore[arg-type]
