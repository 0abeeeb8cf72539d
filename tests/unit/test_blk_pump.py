"""The data path of block devices, driven through a ring: every request, every way to go wrong."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import random
import resource
import select
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from virtq._core import (
    BlkDisk,
    BlkPump,
    DeviceQueue,
    DriverQueue,
    Memory,
    Position,
    RingFault,
    TranslationMiss,
)
from virtq.wire.blk import Header, Segment, Status, Type

INDIRECT, EVENT_IDX, PACKED, IN_ORDER = 1 << 28, 1 << 29, 1 << 34, 1 << 35
KINDS = {
    "split": 0,
    "split-in-order": IN_ORDER,
    "packed": PACKED,
    "packed-in-order": PACKED | IN_ORDER,
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())

SECTOR = 512
QUEUE_SIZE = 64
INDIRECT_LENGTH = 40
DESC, DRIVER, DEVICE, TABLES, ARENA = 0x1000, 0x3000, 0x5000, 0x10000, 0x100000
MEMORY_BYTES = 32 << 20
UNTOUCHED = 0xEE
PATIENCE_S = 20.0

Piece = tuple[int, int]


class Answer(NamedTuple):
    """The used length, and the device-writable part."""

    written: int
    content: bytes

    @property
    def data(self) -> bytes:
        return self.content[:-1]

    @property
    def status(self) -> int:
        return self.content[-1]


class Rig:
    """A driver in guest memory, and a pump that serves it."""

    def __init__(
        self,
        disk: BlkDisk,
        features: int = 0,
        *,
        wait: str = "event",
        enabled: bool = True,
        device_memory: Memory | None = None,
        indirect_length: int = INDIRECT_LENGTH,
        size: int = QUEUE_SIZE,
    ) -> None:
        self.disk, self.features, self.size = disk, features, size
        self.memory = Memory.allocate(MEMORY_BYTES)
        self.device_memory = device_memory or self.memory
        self.kick, self.call = os.eventfd(0), os.eventfd(0)
        self.driver = DriverQueue(
            self.memory,
            features,
            size,
            DESC,
            DRIVER,
            DEVICE,
            indirect_table=TABLES,
            indirect_length=indirect_length if features & INDIRECT else 0,
        )
        self.driver.set_kick(self.kick)
        self.driver.set_call(self.call)
        self.pump = self.start(wait=wait, enabled=enabled)
        self.arena = ARENA
        self.rooms: dict[int, list[Piece]] = {}
        self.cookies = itertools.count()

    def start(self, position: Position | None = None, **options: object) -> BlkPump:
        """A new device queue and its pump."""
        self.queue = DeviceQueue(
            self.device_memory, self.features, self.size, DESC, DRIVER, DEVICE, position=position
        )
        self.queue.set_kick(self.kick)
        self.queue.set_call(self.call)
        return BlkPump(self.disk, self.queue, **options)  # type: ignore[arg-type]

    def close(self) -> None:
        self.pump.stop()
        os.close(self.kick)
        os.close(self.call)

    # Requests

    def place(self, data: bytes, sizes: Sequence[int] = (), gap: int = 0) -> list[Piece]:
        """Puts bytes into guest memory in pieces of these sizes, the rest as one piece."""
        pieces = []
        for size in (*sizes, len(data)):
            part, data = data[:size], data[size:]
            if part:
                if self.arena + len(part) + gap > MEMORY_BYTES:
                    self.arena = ARENA
                self.memory.write(self.arena, part)
                pieces.append((self.arena, len(part)))
                self.arena += len(part) + gap
        return pieces

    def add_raw(self, readable: list[Piece], writable: list[Piece]) -> int:
        cookie = next(self.cookies)
        self.driver.add(readable, writable, cookie)
        self.rooms[cookie] = writable
        return cookie

    def add(self, kind: int, sector: int = 0, data: bytes = b"", room: int = 0) -> int:
        """A request in the usual framing: header and data, then room for data and status."""
        readable = self.place(Header(kind, sector).pack() + data, [16])
        writable = self.place(bytes([UNTOUCHED]) * (room + 1), [room])
        return self.add_raw(readable, writable)

    def reap(self, count: int) -> dict[int, Answer]:
        """The next `count` answers."""
        answers: dict[int, Answer] = {}
        deadline = time.monotonic() + PATIENCE_S
        while len(answers) < count:
            assert self.driver.wait(max(0.0, deadline - time.monotonic())), self.pump.trouble()
            for cookie, written in self.driver.reap():
                parts = (self.memory.read(*piece) for piece in self.rooms.pop(cookie))
                answers[cookie] = Answer(written, b"".join(parts))
        return answers

    def answer(self, cookie: int) -> Answer:
        """Kicks, and returns the one answer."""
        self.driver.kick()
        return self.reap(1)[cookie]

    def do(self, kind: int, sector: int = 0, data: bytes = b"", room: int = 0) -> Answer:
        """A whole request."""
        return self.answer(self.add(kind, sector, data, room))

    def trouble(self) -> Exception | None:
        """What the pump reports in time."""
        select.select([self.pump.attention_fd], [], [], PATIENCE_S)
        return self.pump.trouble()


@pytest.fixture
def rig() -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def make(*args: object, **options: object) -> Rig:
        rigs.append(Rig(*args, **options))  # type: ignore[arg-type]
        return rigs[-1]

    yield make
    for one in rigs:
        one.close()


def image(path: Path, size: int = 1 << 20) -> Path:
    path.write_bytes(random.Random(size).randbytes(size))
    return path


def segments(*parts: tuple[int, ...]) -> bytes:
    return b"".join(Segment(*part).pack() for part in parts)


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


# What requests do


@every_kind
@pytest.mark.parametrize("indirect", [0, INDIRECT], ids=["direct", "indirect"])
@pytest.mark.parametrize("event_idx", [0, EVENT_IDX], ids=["flags", "event-idx"])
@pytest.mark.parametrize("wait", ["event", "adaptive", "poll"])
def test_every_request(
    rig: Callable[..., Rig], kind: int, indirect: int, event_idx: int, wait: str
) -> None:
    disk = BlkDisk.memory(1 << 20)
    disk.serial = b"serial number 1"
    one = rig(disk, kind | indirect | event_idx, wait=wait)
    data = random.Random(1).randbytes(8 * SECTOR)
    assert one.do(Type.OUT, 5, data) == Answer(1, b"\0")
    assert one.do(Type.IN, 5, room=len(data)) == Answer(len(data) + 1, data + b"\0")
    assert one.do(Type.FLUSH) == Answer(1, b"\0")
    assert one.do(Type.GET_ID, room=20) == Answer(21, b"serial number 1".ljust(21, b"\0"))
    assert one.do(Type.DISCARD, data=segments((5, 1), (6, 1))) == Answer(1, b"\0")
    assert one.do(Type.WRITE_ZEROES, data=segments((7, 2), (11, 1, 1))) == Answer(1, b"\0")
    zeroed = bytes(4 * SECTOR) + data[4 * SECTOR : 6 * SECTOR] + bytes(SECTOR) + data[7 * SECTOR :]
    assert one.do(Type.IN, 5, room=len(data)).data == zeroed
    assert one.do(99, room=7) == Answer(8, bytes(7) + bytes([Status.UNSUPP]))
    assert one.pump.stats == disk.stats
    assert one.pump.stats == {
        "batches": 8,
        "reads": 2,
        "writes": 1,
        "flushes": 1,
        "discards": 1,
        "write_zeroes": 1,
        "get_ids": 1,
        "errors": 0,
        "unsupported": 1,
        "queued": 0,
        "submissions": 0,
        "bytes_read": 2 * len(data),
        "bytes_written": len(data),
    }


class Model:
    """What the disk should hold, and what each request should answer."""

    def __init__(self, sectors: int) -> None:
        self.content = bytearray(sectors * SECTOR)
        self.sectors = sectors

    def _range(self, sector: int, sectors: int) -> slice | None:
        whole = slice(sector * SECTOR, (sector + sectors) * SECTOR)
        return whole if sector + sectors <= self.sectors else None

    def expect(self, kind: int, sector: int, data: bytes, room: int) -> bytes:
        zeroed = bytes(room)
        if kind == Type.IN:
            where = self._range(sector, room // SECTOR)
            if where is None or room % SECTOR or data:
                return zeroed + b"\1"
            return bytes(self.content[where]) + b"\0"
        if kind == Type.OUT:
            where = self._range(sector, len(data) // SECTOR)
            if where is None or len(data) % SECTOR or room:
                return zeroed + b"\1"
            self.content[where] = data
            return b"\0"
        if kind == Type.WRITE_ZEROES:
            if room or not data or len(data) % 16:
                return zeroed + b"\1"
            parts = Segment.parse_all(data)
            if any(part.flags & ~1 for part in parts):
                return b"\2"
            wheres = [self._range(part.sector, part.num_sectors) for part in parts]
            if None in wheres:
                return b"\1"
            for where in wheres:
                assert where is not None
                self.content[where] = bytes(where.stop - where.start)
            return b"\0"
        return zeroed + (b"\0" if kind == Type.FLUSH else b"\2")


def random_request(random: random.Random, sectors: int) -> tuple[int, int, bytes, int]:
    kind = random.choice([Type.IN, Type.IN, Type.OUT, Type.OUT, Type.WRITE_ZEROES, Type.FLUSH, 77])
    sector, count = random.randrange(sectors + 2), random.randrange(12)
    data, room = b"", 0
    if kind == Type.IN:
        room = count * SECTOR
    elif kind == Type.OUT:
        data = random.randbytes(count * SECTOR)
    elif kind == Type.WRITE_ZEROES:
        part = (random.randrange(sectors), random.randrange(4), random.randrange(2))
        data = segments(*[part] * (count % 3))
    if random.random() < 0.05:
        data += bytes(random.randrange(400))  # up to 27 of 32 possible segments
    if random.random() < 0.05:
        room += random.randrange(600)
    return kind, sector, data, room


def cuts(random: random.Random, length: int) -> list[int]:
    return [random.randrange(1, 2 + length // 2) for _ in range(random.randrange(6))]


@every_kind
@pytest.mark.parametrize("indirect", [0, INDIRECT], ids=["direct", "indirect"])
def test_random_requests_in_random_framing(
    rig: Callable[..., Rig], kind: int, indirect: int, tmp_path: Path
) -> None:
    seed = kind | indirect
    dice = random.Random(seed)
    sectors = 64
    path = tmp_path / "disk"
    path.write_bytes(bytes(sectors * SECTOR))
    one = rig(BlkDisk.file(path), kind | indirect | dice.choice([0, EVENT_IDX]))
    model = Model(sectors)
    expected: dict[int, bytes] = {}
    until = time.monotonic() + 1.0
    rounds = 0
    while time.monotonic() < until or rounds < 20:
        rounds += 1
        for _ in range(dice.randrange(1, 12)):
            kind_, sector, data, room = random_request(dice, sectors)
            whole = Header(kind_, sector).pack() + data
            readable = one.place(whole, cuts(dice, len(whole)), gap=dice.randrange(3))
            untouched = bytes([UNTOUCHED]) * (room + 1)
            writable = one.place(untouched, cuts(dice, room + 1), gap=dice.randrange(3))
            if one.driver.free < (1 if indirect else len(readable) + len(writable)):
                break
            expected[one.add_raw(readable, writable)] = model.expect(kind_, sector, data, room)
        one.driver.kick()
        waits = dice.choice([0, one.driver.outstanding]) or one.driver.outstanding // 2
        for cookie, answer in one.reap(waits).items():
            assert answer == Answer(len(expected[cookie]), expected[cookie]), f"seed {seed}"
    for cookie, answer in one.reap(one.driver.outstanding).items():
        assert answer.content == expected[cookie]
    assert path.read_bytes() == model.content


def test_more_pieces_than_one_system_call_takes(rig: Callable[..., Rig]) -> None:
    one = rig(BlkDisk.memory(2 << 20), INDIRECT, indirect_length=2100, size=16)
    data = random.Random(2).randbytes(1000 * SECTOR)
    head = one.place(Header(Type.OUT, 1).pack())
    body = one.place(data, [256] * 1999, gap=1)
    assert len(body) == 2000
    status = one.place(bytes([UNTOUCHED]))
    assert one.answer(one.add_raw(head + body, status)).status == Status.OK
    head = one.place(Header(Type.IN, 1).pack())
    room = one.place(bytes(len(data) + 1), [256] * 2000, gap=1)
    assert one.answer(one.add_raw(head, room)) == Answer(len(data) + 1, data + b"\0")


def test_two_queues_of_one_disk(rig: Callable[..., Rig]) -> None:
    disk = BlkDisk.memory(1 << 20)
    rigs = [rig(disk, IN_ORDER), rig(disk, PACKED)]
    for turn in range(100):
        data = [random.Random(turn * 2 + at).randbytes(SECTOR) for at in range(2)]
        for at, one in enumerate(rigs):
            assert one.do(Type.OUT, at, data[at]).status == Status.OK
        for at, one in enumerate(rigs):
            assert one.do(Type.IN, 1 - at, room=SECTOR).data == data[1 - at]
    assert disk.stats["writes"] == 200
    assert [one.pump.stats["writes"] for one in rigs] == [100, 100]


def test_a_batch_is_one_flush_and_one_call(rig: Callable[..., Rig]) -> None:
    one = rig(BlkDisk.null(1 << 20), IN_ORDER, enabled=False)
    for _ in range(20):
        one.add(Type.IN, 0, room=SECTOR)
    one.driver.kick()
    one.pump.enable(True)
    assert {answer.status for answer in one.reap(20).values()} == {Status.OK}
    stats = one.queue.stats
    assert (stats["buffers"], stats["used_entries"], stats["calls_sent"]) == (20, 1, 1)


def test_what_was_written_is_in_the_dirty_log(rig: Callable[..., Rig]) -> None:
    log = os.memfd_create("log")
    os.ftruncate(log, 4096)
    memory = Memory()
    one = rig(BlkDisk.memory(1 << 20))
    region = one.memory.regions[0]
    memory.add_region(one.memory.fd_of(0), 0, region.size)
    memory.set_log(log, 4096)
    one.queue.set_memory(memory)
    os.pwrite(log, bytes(4096), 0)
    cookie = one.add_raw(one.place(Header(Type.IN, 9999).pack()), [(0x200000, 4096), (0x300000, 1)])
    assert one.answer(cookie).status == Status.IOERR
    bits = int.from_bytes(os.pread(log, 4096, 0), "little")
    assert {page for page in range(4096) if bits >> page & 1} == {DEVICE >> 12, 0x200, 0x300}
    os.close(log)


# What drivers do wrong


@every_kind
def test_requests_that_make_no_sense(rig: Callable[..., Rig], kind: int) -> None:
    one = rig(BlkDisk.memory(100 * SECTOR), kind)
    sector = bytes(SECTOR)
    capacity = 100
    most = 1 << 63
    for request in [
        (Type.IN, capacity, b"", SECTOR),
        (Type.IN, capacity - 1, b"", 2 * SECTOR),
        (Type.IN, most, b"", SECTOR),
        (Type.IN, (1 << 64) - 1, b"", SECTOR),
        (Type.IN, 1 << 55, b"", SECTOR),
        (Type.IN, 0, b"", SECTOR - 1),
        (Type.IN, 0, b"", 1),
        (Type.IN, 0, sector, 0),
        (Type.IN, 0, sector, SECTOR),
        (Type.OUT, capacity, sector, 0),
        (Type.OUT, capacity - 1, sector * 2, 0),
        (Type.OUT, (1 << 64) - 1, sector, 0),
        (Type.OUT, 0, sector[1:], 0),
        (Type.OUT, 0, b"", SECTOR),
        (Type.OUT, 0, sector, SECTOR),
        (Type.GET_ID, 0, b"", 19),
        (Type.GET_ID, 0, b"", 0),
        (Type.GET_ID, 0, bytes(20), 20),
    ]:
        answer = one.do(*request)
        assert answer == Answer(request[3] + 1, bytes(request[3]) + b"\1"), request
    assert one.do(Type.GET_ID, room=30) == Answer(31, bytes(31))
    assert one.do(Type.FLUSH, 5, b"data", 4) == Answer(5, bytes(5))
    assert one.do(Type.IN, capacity) == Answer(1, b"\0")
    assert one.pump.stats["errors"] == 18
    assert one.disk.failure() is None


def test_segments_that_make_no_sense(rig: Callable[..., Rig]) -> None:
    disk = BlkDisk.memory(1 << 20)
    disk.write(0, b"x" * (1 << 20))
    disk.set_limits(
        max_discard_sectors=100,
        max_discard_seg=2,
        max_write_zeroes_sectors=50,
        max_write_zeroes_seg=3,
    )
    one = rig(disk)
    for kind, data, status in [
        (Type.DISCARD, b"", Status.IOERR),
        (Type.DISCARD, segments((0, 1))[:-1], Status.IOERR),
        (Type.DISCARD, segments((0, 1)) + b"x", Status.IOERR),
        (Type.DISCARD, segments((0, 101)), Status.IOERR),
        (Type.DISCARD, segments((0, 1), (1, 1), (2, 1)), Status.IOERR),
        (Type.DISCARD, segments((0, 1, 1)), Status.UNSUPP),
        (Type.DISCARD, segments((0, 1, 2)), Status.UNSUPP),
        (Type.DISCARD, segments((2047, 2)), Status.IOERR),
        (Type.DISCARD, segments(((1 << 64) - 1, 1)), Status.IOERR),
        (Type.WRITE_ZEROES, b"", Status.IOERR),
        (Type.WRITE_ZEROES, segments((0, 51)), Status.IOERR),
        (Type.WRITE_ZEROES, segments((0, 1), (0, 1), (0, 1), (0, 1)), Status.IOERR),
        (Type.WRITE_ZEROES, segments((0, 1), (0, 1, 2)), Status.UNSUPP),
        (Type.WRITE_ZEROES, segments((0, 1), (0, 1, 1 << 31)), Status.UNSUPP),
        (Type.WRITE_ZEROES, segments((0, 1), (2048, 1)), Status.IOERR),
        (Type.WRITE_ZEROES, segments((1 << 55, 1)), Status.IOERR),
    ]:
        assert one.do(kind, data=data) == Answer(1, bytes([status])), (kind, data)
    assert one.do(Type.WRITE_ZEROES, data=segments((0, 1)), room=3).content == b"\0\0\0\1"
    assert disk.read(0, 1 << 20) == b"x" * (1 << 20)
    assert one.do(Type.WRITE_ZEROES, data=segments((3, 0), (2048, 0))).status == Status.OK
    disk.set_limits(max_discard_seg=0, max_write_zeroes_sectors=0)
    assert one.do(Type.DISCARD, data=segments((0, 1))).status == Status.UNSUPP
    assert one.do(Type.WRITE_ZEROES, data=segments((0, 1))).status == Status.UNSUPP


@every_kind
@pytest.mark.parametrize("length", range(17))
def test_row_9_buffers_too_short_for_a_request(
    rig: Callable[..., Rig], kind: int, length: int
) -> None:
    one = rig(BlkDisk.memory(1 << 20), kind)
    header = Header(Type.FLUSH, 0).pack()[:length]
    status = Status.OK if length == 16 else Status.IOERR
    pieces = one.place(header, [1, 2, 3])
    assert one.answer(one.add_raw(pieces, one.place(b"\xee"))) == Answer(1, bytes([status]))
    assert one.answer(one.add_raw(pieces or one.place(b"?"), [])) == Answer(0, b"")
    out = one.place(Header(Type.OUT, 0).pack() + bytes([7]) * SECTOR)
    assert one.answer(one.add_raw(out, [])) == Answer(0, b"")
    assert one.do(Type.IN, room=SECTOR).data == bytes(SECTOR)


def test_row_12_requests_on_the_ring_itself(rig: Callable[..., Rig]) -> None:
    disk = BlkDisk.memory(1 << 20)
    disk.write(0, b"\xff" * (1 << 20))
    one = rig(disk)
    head = one.place(Header(Type.IN, 0).pack())
    # All three areas, the descriptors of this very request among them.
    one.driver.add(head, [(DESC, 3 * SECTOR), (DRIVER, SECTOR), (DEVICE, SECTOR), (DEVICE, 1)])
    one.driver.kick()
    trouble = one.trouble()
    assert isinstance(trouble, RingFault), trouble
    other = rig(disk)
    assert other.do(Type.IN, room=SECTOR).status == Status.OK


@every_kind
def test_row_18_headers_that_change_while_they_are_read(rig: Callable[..., Rig], kind: int) -> None:
    disk = BlkDisk.memory(16 * SECTOR)
    one = rig(disk, kind)
    ((at, length),) = one.place(Header(Type.OUT, 0).pack())
    data = one.place(b"y" * SECTOR)
    room = one.place(bytes(1))
    stop = threading.Event()

    def rewrite() -> None:
        view = one.memory.view(at, length)
        while not stop.is_set():
            for sector in (0, 15, 16, (1 << 64) - 1, 1 << 55):
                struct.pack_into("<Q", view, 8, sector)
            struct.pack_into("<I", view, 0, Type.WRITE_ZEROES)
            struct.pack_into("<I", view, 0, Type.OUT)

    rewriter = threading.Thread(target=rewrite)
    rewriter.start()
    try:
        statuses = set()
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            cookies = [one.add_raw([(at, length), *data], room) for _ in range(16)]
            one.driver.kick()
            statuses |= {answer.status for answer in one.reap(len(cookies)).values()}
        assert statuses <= {0, 1, 2}
    finally:
        stop.set()
        rewriter.join()
    assert disk.refresh() == 16
    assert disk.read(SECTOR, 14 * SECTOR) == bytes(14 * SECTOR)


def test_a_broken_ring_is_trouble(rig: Callable[..., Rig]) -> None:
    one = rig(BlkDisk.memory(1 << 20))
    assert one.do(Type.FLUSH).status == Status.OK
    assert one.pump.trouble() is None
    assert select.select([one.pump.attention_fd], [], [], 0)[0] == []
    one.memory.write(DRIVER + 2, struct.pack("<H", 5000))
    os.eventfd_write(one.kick, 1)
    trouble = one.trouble()
    assert isinstance(trouble, RingFault)
    assert trouble.args[1] == "split.avail.drv.no-decrement"
    assert one.pump.trouble() is None
    assert one.pump.stop().available == 1


def test_good_requests_before_a_broken_one_are_answered(rig: Callable[..., Rig]) -> None:
    one = rig(BlkDisk.memory(1 << 20), enabled=False)
    cookies = [one.add(Type.FLUSH) for _ in range(3)]
    one.driver.add([(1 << 40, 16)], [(1 << 40, 1)], 99)
    one.driver.kick()
    one.pump.enable(True)
    assert set(one.reap(3)) == set(cookies)
    assert isinstance(one.trouble(), RingFault)


def test_a_missing_translation_is_resolved(rig: Callable[..., Rig]) -> None:
    shared = Memory()
    spare = Memory.allocate(MEMORY_BYTES)
    # The device's view: the same bytes, behind an IOTLB that knows the rings only.
    one = rig(BlkDisk.memory(1 << 20), device_memory=spare)
    one.pump.stop()
    region = one.memory.regions[0]
    shared.add_region(one.memory.fd_of(0), 0, region.size)
    base = shared.regions[0].user_addr
    shared.iotlb_enable(True)
    shared.iotlb_update(0, ARENA, base, True, True)
    one.device_memory = shared
    one.pump = one.start()
    cookie = one.add(Type.IN, room=SECTOR)
    one.driver.kick()
    trouble = one.trouble()
    assert isinstance(trouble, TranslationMiss)
    _text, address, _length, writable = trouble.args
    assert (address, writable) == (ARENA, False)
    shared.iotlb_update(ARENA, MEMORY_BYTES - ARENA, base + ARENA, True, True)
    one.pump.wake()
    assert one.reap(1)[cookie].status == Status.OK


@pytest.mark.parametrize("in_memory", [False, True], ids=["file", "memory"])
@pytest.mark.parametrize("request_kind", [Type.IN, Type.OUT])
def test_row_24_memory_truncated_under_a_request(
    rig: Callable[..., Rig], tmp_path: Path, request_kind: Type, in_memory: bool
) -> None:
    disk = BlkDisk.memory(1 << 20) if in_memory else BlkDisk.file(image(tmp_path / "disk"))
    one = rig(disk, enabled=False)
    fd = os.memfd_create("more")
    os.ftruncate(fd, 1 << 20)
    far = 1 << 32
    one.memory.add_region(fd, far, 1 << 20)
    one.queue.set_memory(one.memory)
    head, status = one.place(Header(request_kind, 0).pack()), one.place(b"\xee")
    data = [(far + 4096, 8192)]
    reading = request_kind == Type.IN
    cookie = one.add_raw(head + ([] if reading else data), (data if reading else []) + status)
    os.ftruncate(fd, 8192)
    one.driver.kick()
    one.pump.enable(True)
    # A copy, and the zeroes of a failed read, come upon the missing page; a system call says so.
    if in_memory or reading:
        trouble = one.trouble()
        assert isinstance(trouble, RingFault)
        assert "truncated" in str(trouble)
    else:
        assert one.reap(1)[cookie] == Answer(1, b"\1")
        assert one.do(Type.IN, room=SECTOR).status == Status.OK
    assert one.memory.read(*status[0]) == bytes([Status.IOERR])
    failure = one.disk.failure()
    assert failure is not None
    assert failure.errno == errno.EFAULT
    os.close(fd)


# What files do wrong


def test_a_read_only_disk_does_not_change(rig: Callable[..., Rig], tmp_path: Path) -> None:
    path = image(tmp_path / "disk")
    before = path.read_bytes()
    disk = BlkDisk.file(path, read_only=True)
    assert disk.read_only
    assert set(disk.limits.values()) == {0}
    one = rig(disk)
    assert one.do(Type.IN, 7, room=SECTOR).data == before[7 * SECTOR : 8 * SECTOR]
    assert one.do(Type.OUT, 7, bytes(SECTOR)).status == Status.IOERR
    assert one.do(Type.DISCARD, data=segments((0, 8))).status == Status.IOERR
    assert one.do(Type.WRITE_ZEROES, data=segments((0, 8))).status == Status.IOERR
    assert one.do(Type.FLUSH).status == Status.OK
    changes: list[Callable[[], object]] = [
        lambda: disk.write(0, b"x"),
        lambda: disk.discard(0, SECTOR),
        lambda: disk.write_zeroes(0, SECTOR, True),
    ]
    for change in changes:
        with pytest.raises(OSError, match="Read-only") as raised:
            change()
        assert raised.value.errno == errno.EROFS
    assert path.read_bytes() == before


@every_kind
def test_a_file_that_becomes_shorter(rig: Callable[..., Rig], kind: int, tmp_path: Path) -> None:
    path = image(tmp_path / "disk")
    content = path.read_bytes()
    one = rig(BlkDisk.file(path), kind)
    os.truncate(path, 10 * SECTOR)
    assert one.do(Type.IN, 8, room=2 * SECTOR).data == content[8 * SECTOR : 10 * SECTOR]
    assert one.do(Type.IN, 8, room=4 * SECTOR) == Answer(4 * SECTOR + 1, bytes(4 * SECTOR) + b"\1")
    assert one.do(Type.IN, 100, room=SECTOR).status == Status.IOERR
    failure = one.disk.failure()
    assert failure is not None
    assert failure.errno == errno.EIO
    assert one.disk.failure() is None
    assert one.do(Type.OUT, 100, b"z" * SECTOR).status == Status.OK
    assert one.do(Type.IN, 99, room=2 * SECTOR).data == bytes(SECTOR) + b"z" * SECTOR
    assert one.disk.refresh() == 101
    assert one.do(Type.IN, 101, room=SECTOR).status == Status.IOERR


@contextmanager
def small_file_system(path: Path) -> Iterator[Path]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(path)], check=True)
    try:
        yield path
    finally:
        gc.collect()
        subprocess.run(["umount", "-l", str(path)], check=True)


@every_kind
@pytest.mark.parametrize("writeback", [True, False])
def test_a_full_file_system(
    rig: Callable[..., Rig], kind: int, writeback: bool, tmp_path: Path
) -> None:
    with small_file_system(tmp_path / "full") as place:
        path = place / "disk"
        path.touch()
        os.truncate(path, 8 << 20)
        one = rig(BlkDisk.file(path), kind)
        one.disk.writeback = writeback
        data = b"d" * (256 << 10)
        sectors = len(data) // SECTOR
        statuses = [one.do(Type.OUT, at * sectors, data).status for at in range(8)]
        assert statuses[:3] == [Status.OK] * 3
        assert statuses[-1] == Status.IOERR
        failure = one.disk.failure()
        assert failure is not None
        assert failure.errno == errno.ENOSPC
        zeroes = segments((7 * sectors, sectors))
        assert one.do(Type.WRITE_ZEROES, data=zeroes).status == Status.IOERR
        assert one.do(Type.DISCARD, data=segments((0, sectors))).status == Status.OK
        assert one.do(Type.OUT, 0, data[: len(data) // 2]).status == Status.OK
        assert one.do(Type.IN, 0, room=SECTOR).data == b"d" * SECTOR
        stats = one.pump.stats
        assert stats["errors"] == statuses.count(Status.IOERR) + 1
        done = statuses.count(Status.OK) * len(data) + len(data) // 2
        assert stats["bytes_written"] == done
        one.pump.stop()


# Disks


def test_files_that_cannot_be_disks(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        BlkDisk.file(tmp_path / "none")
    assert raised.value.filename == str(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/null"):
        with pytest.raises(ValueError, match="neither a regular file nor a block device"):
            BlkDisk.file(path)
    image(tmp_path / "short", 511)
    with pytest.raises(ValueError, match="less than a sector"):
        BlkDisk.file(tmp_path / "short")
    for make in (BlkDisk.memory, BlkDisk.null):
        with pytest.raises(ValueError, match="less than a sector"):
            make(0)
    image(tmp_path / "odd", 4096 * 3 + 512 + 100)
    with pytest.raises(ValueError, match="multiple"):
        BlkDisk.file(tmp_path / "odd", direct=True)
    assert BlkDisk.file(tmp_path / "odd").capacity == 25


def test_what_a_disk_tells_of_itself() -> None:
    disk = BlkDisk.memory(10000)
    assert (disk.capacity, disk.read_only, disk.block_size) == (19, False, SECTOR)
    assert disk.writeback is True
    disk.writeback = False
    assert disk.writeback is False
    assert disk.serial == b""
    disk.serial = bytes(range(20))
    assert disk.serial == bytes(range(20))
    with pytest.raises(ValueError, match="21 bytes"):
        disk.serial = bytes(21)
    assert disk.serial == bytes(range(20))
    before = disk.limits
    disk.set_limits(max_discard_seg=7, write_zeroes_may_unmap=False)
    assert disk.limits == before | {"max_discard_seg": 7, "write_zeroes_may_unmap": 0}
    with pytest.raises(ValueError, match="65537 segments"):
        disk.set_limits(max_write_zeroes_seg=65537)
    assert BlkDisk.null(1 << 50).capacity == 1 << 41


@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
def test_a_disk_for_a_device_in_python(direct: bool, tmp_path: Path) -> None:
    path = image(tmp_path / "disk", 64 << 10)
    content = bytearray(path.read_bytes())
    disk = BlkDisk.file(path, direct=direct)
    assert disk.read(0, len(content)) == content
    assert disk.read(700, 1000) == content[700:1700]
    disk.write(1000, memoryview(bytearray(b"abc")))
    content[1000:1003] = b"abc"
    disk.write_zeroes(4096, 512, False)
    content[4096:4608] = bytes(512)
    disk.write_zeroes(8192 + 512, 8192, True)
    content[8704:16896] = bytes(8192)
    disk.discard(32768, 4096)
    content[32768:36864] = bytes(4096)
    disk.discard(0, 0)
    disk.write_zeroes(0, 0, False)
    disk.flush()
    assert disk.read(0, len(content)) == content
    assert path.read_bytes() == content
    calls: list[tuple[Callable[[], object], int]] = [
        (lambda: disk.read(len(content), 1), errno.EIO),
        (lambda: disk.read(0, 1 << 62), errno.EIO),
        (lambda: disk.read((1 << 64) - 1, 2), errno.EIO),
        (lambda: disk.write(len(content) - 1, b"xx"), errno.ENOSPC),
        (lambda: disk.discard(len(content), 512), errno.ENOSPC),
        (lambda: disk.write_zeroes(1, (1 << 64) - 1, True), errno.ENOSPC),
    ]
    for call, code in calls:
        with pytest.raises(OSError) as raised:  # noqa: PT011  the number is checked below
            call()
        assert raised.value.errno == code
    assert disk.failure() is None


def test_deallocation_is_for_those_who_ask_for_it(rig: Callable[..., Rig], tmp_path: Path) -> None:
    path = image(tmp_path / "disk")
    full = path.stat().st_blocks
    one = rig(BlkDisk.file(path))
    quarter = 512  # sectors
    assert one.do(Type.WRITE_ZEROES, data=segments((0, quarter, 0))).status == Status.OK
    assert path.stat().st_blocks == full
    assert one.do(Type.WRITE_ZEROES, data=segments((quarter, quarter, 1))).status == Status.OK
    assert path.stat().st_blocks <= full - quarter
    assert one.do(Type.DISCARD, data=segments((2 * quarter, quarter))).status == Status.OK
    assert path.stat().st_blocks <= full - 2 * quarter
    one.disk.set_limits(write_zeroes_may_unmap=False)
    assert one.do(Type.WRITE_ZEROES, data=segments((3 * quarter, quarter, 1))).status == Status.OK
    assert full - 3 * quarter < path.stat().st_blocks
    assert path.stat().st_size == 1 << 20
    assert path.read_bytes() == bytes(1 << 20)


@every_kind
def test_direct_transfers_of_any_alignment(
    rig: Callable[..., Rig], kind: int, tmp_path: Path
) -> None:
    path = image(tmp_path / "disk", 4 << 20)
    content = bytearray(path.read_bytes())
    one = rig(BlkDisk.file(path, direct=True), kind)
    dice = random.Random(3)
    for turn in range(60):
        sectors = dice.choice([1, 2, 7, 8, 16, 300])
        sector = dice.randrange(8192 - sectors)
        one.arena += -one.arena % 4096 + dice.choice([0, 0, 1, 8, 512])
        data = dice.randbytes(sectors * SECTOR)
        content[sector * SECTOR : (sector + sectors) * SECTOR] = data
        cuts = [16, dice.choice([512, 100, 8])]
        head = one.place(Header(Type.OUT, sector).pack() + data, cuts)
        assert one.answer(one.add_raw(head, one.place(b"\xee"))).status == Status.OK, turn
        one.arena += -one.arena % 4096 + dice.choice([0, 0, 1, 8, 512])
        assert one.do(Type.IN, sector, room=len(data)).data == data
    assert path.read_bytes() == content
    assert one.do(Type.WRITE_ZEROES, data=segments((3, 1), (8, 8, 1))).status == Status.OK
    content[3 * SECTOR : 4 * SECTOR] = bytes(SECTOR)
    content[8 * SECTOR : 16 * SECTOR] = bytes(8 * SECTOR)
    assert path.read_bytes() == content


@contextmanager
def loop_device(path: Path, *options: str) -> Iterator[str]:
    command = ["losetup", "-f", "--show", *options, str(path)]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    name = made.stdout.strip()
    try:
        yield name
    finally:
        gc.collect()
        subprocess.run(["losetup", "-d", name], check=True)


@pytest.mark.parametrize("block_size", [512, 4096])
@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
def test_a_block_device(
    rig: Callable[..., Rig], tmp_path: Path, block_size: int, direct: bool
) -> None:
    path = image(tmp_path / "disk", 4 << 20)
    content = bytearray(path.read_bytes())
    with loop_device(path, "--sector-size", str(block_size)) as name:
        disk = BlkDisk.file(name, direct=direct)
        assert (disk.capacity, disk.block_size) == (8192, block_size)
        one = rig(disk, IN_ORDER)
        for sector, sectors in ((0, 8), (3, 1), (17, 30), (8191, 1)):
            data = random.Random(sector).randbytes(sectors * SECTOR)
            content[sector * SECTOR : (sector + sectors) * SECTOR] = data
            assert one.do(Type.OUT, sector, data).status == Status.OK
            assert one.do(Type.IN, sector, room=len(data)).data == data
        ranges = ((80, 80, 0), (241, 3, 1), (400, 80, 1), (501, 1, 0))
        for sector, sectors, flags in ranges:
            answer = one.do(Type.WRITE_ZEROES, data=segments((sector, sectors, flags)))
            assert answer.status == Status.OK
            content[sector * SECTOR : (sector + sectors) * SECTOR] = bytes(sectors * SECTOR)
        assert one.do(Type.DISCARD, data=segments((4096, 2048), (8001, 1))).status == Status.OK
        assert one.do(Type.FLUSH).status == Status.OK
        after = disk.read(0, 4 << 20)
        assert after[: 4096 * SECTOR] == content[: 4096 * SECTOR]
        assert after[6144 * SECTOR : 8001 * SECTOR] == content[6144 * SECTOR : 8001 * SECTOR]
        assert one.disk.failure() is None
        one.close = lambda: None  # type: ignore[method-assign]
        one.pump.stop()
        del one, disk


# The life of a pump


def test_pumps_that_cannot_be(rig: Callable[..., Rig]) -> None:
    one = rig(BlkDisk.memory(1 << 20))
    with pytest.raises(OSError, match="another data path"):
        BlkPump(one.disk, one.queue)
    with pytest.raises(ValueError, match="not one of"):
        BlkPump(one.disk, one.queue, wait="forever")
    assert one.do(Type.FLUSH).status == Status.OK


def test_a_disabled_ring_rests(rig: Callable[..., Rig]) -> None:
    one = rig(BlkDisk.memory(1 << 20), EVENT_IDX, enabled=False)
    cookies = {one.add(Type.IN, room=SECTOR) for _ in range(5)}
    one.driver.kick()
    os.eventfd_write(one.kick, 1)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1
    assert one.driver.reap() == []
    assert one.queue.outstanding == 0
    one.pump.enable(True)
    assert set(one.reap(5)) == cookies
    one.pump.enable(False)
    one.pump.enable(True)
    assert one.do(Type.FLUSH).status == Status.OK


def test_an_idle_pump_takes_no_time(rig: Callable[..., Rig]) -> None:
    one = rig(BlkDisk.memory(1 << 20), EVENT_IDX)
    assert one.do(Type.FLUSH).status == Status.OK
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.05
    assert one.do(Type.FLUSH).status == Status.OK


@every_kind
@pytest.mark.parametrize("indirect", [0, INDIRECT], ids=["direct", "indirect"])
def test_stopped_with_requests_queued_and_continued(
    rig: Callable[..., Rig], kind: int, indirect: int
) -> None:
    disk = BlkDisk.memory(8 << 20)
    content = random.Random(4).randbytes(8 << 20)
    disk.write(0, content)
    one = rig(disk, kind | indirect)
    room = 100 * SECTOR
    dice = random.Random(kind)
    done: dict[int, Answer] = {}
    wanted: dict[int, int] = {}
    for _ in range(12):
        while one.driver.free >= 3:
            sector = dice.randrange(16000)
            wanted[one.add(Type.IN, sector, room=room)] = sector
        one.driver.kick()
        time.sleep(dice.random() * 0.002)
        position = one.pump.stop()
        assert one.pump.stop() == position
        assert one.queue.outstanding == 0
        done |= one.reap(int(one.driver.has_used))
        one.pump = one.start(position)
        done |= one.reap(min(5, one.driver.outstanding))
    done |= one.reap(one.driver.outstanding)
    assert done.keys() == wanted.keys()
    for cookie, sector in wanted.items():
        data = content[sector * SECTOR : sector * SECTOR + room]
        assert done[cookie] == Answer(room + 1, data + b"\0")


def test_dropping_a_pump_ends_its_thread() -> None:
    before = threads()
    one = Rig(BlkDisk.memory(1 << 20))
    assert one.do(Type.FLUSH).status == Status.OK
    assert threads() == before + 1
    del one.pump
    gc.collect()
    assert threads() == before
    again = BlkPump(one.disk, one.queue)
    one.pump = again
    assert one.do(Type.FLUSH).status == Status.OK
    one.close()
    assert threads() == before


def test_stopping_from_many_threads(rig: Callable[..., Rig]) -> None:
    one = rig(BlkDisk.memory(1 << 20))
    for _ in range(40):
        one.add(Type.IN, room=100 * SECTOR) if one.driver.free >= 3 else None
    one.driver.kick()
    positions: list[Position] = []
    stoppers = [
        threading.Thread(target=lambda: positions.append(one.pump.stop())) for _ in range(8)
    ]
    for stopper in stoppers:
        stopper.start()
    one.pump.enable(True)
    one.pump.wake()
    for stopper in stoppers:
        stopper.join(PATIENCE_S)
    assert len(set(positions)) == 1
    assert len(positions) == 8


# What waits for the storage


def wakeups() -> int:
    """How often the pumps of this process went to sleep."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        if (task / "comm").read_text().strip() == "virtq-blk":
            fields = (task / "status").read_text().split("voluntary_ctxt_switches:")
            total += int(fields[1].split()[0])
    return total


def on_storage(path: Path) -> Path:
    """The file, if it lies where there is a page cache and direct transfers are possible."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip(f"{path} is on a file system without direct transfers")
    return path


def add_aligned(one: Rig, kind: int, sector: int, data: bytes = b"", room: int = 0) -> int:
    """A request whose data begins at a multiple of 4096."""
    readable = one.place(Header(kind, sector).pack())
    one.arena = -(-one.arena // 4096) * 4096
    readable += one.place(data)
    one.arena = -(-one.arena // 4096) * 4096
    return one.add_raw(readable, one.place(bytes([UNTOUCHED]) * (room + 1), [room]))


@pytest.mark.parametrize("wait", ["event", "poll"])
@every_kind
def test_direct_requests_are_one_submission(
    rig: Callable[..., Rig], tmp_path: Path, kind: int, wait: str
) -> None:
    path = on_storage(image(tmp_path / "disk"))
    content = bytearray(path.read_bytes())
    one = rig(BlkDisk.file(path, direct=True), kind, wait=wait, enabled=False)
    reads = {add_aligned(one, Type.IN, at * 8, room=4096): at for at in range(10)}
    for at in range(10, 20):
        data = random.Random(at).randbytes(4096)
        add_aligned(one, Type.OUT, at * 8, data)
        content[at * 4096 : (at + 1) * 4096] = data
    one.driver.kick()
    one.pump.enable(True)
    answers = one.reap(20)
    assert {answer.status for answer in answers.values()} == {Status.OK}
    for cookie, at in reads.items():
        assert answers[cookie].data == content[at * 4096 : (at + 1) * 4096]
    stats = one.pump.stats
    assert (stats["queued"], stats["submissions"], stats["batches"]) == (20, 1, 1)
    assert (stats["bytes_read"], stats["bytes_written"]) == (40960, 40960)
    assert path.read_bytes() == content


def test_what_is_not_in_the_cache_is_queued(rig: Callable[..., Rig], tmp_path: Path) -> None:
    path = on_storage(image(tmp_path / "disk", 8 << 20))
    content = path.read_bytes()
    with path.open("rb") as file:
        os.fsync(file)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    one = rig(BlkDisk.file(path), PACKED | IN_ORDER, enabled=False)
    places = random.Random(3).sample(range(2048), 16)
    cookies = {one.add(Type.IN, at * 8, room=4096): at for at in places}
    one.driver.kick()
    one.pump.enable(True)
    for cookie, answer in one.reap(16).items():
        at = cookies[cookie] * 4096
        assert answer == Answer(4097, content[at : at + 4096] + b"\0")
    cold = one.pump.stats
    assert cold["queued"] > 0
    assert cold["submissions"] <= cold["queued"]
    for at in places:
        assert one.do(Type.IN, at * 8, room=4096).status == Status.OK
    assert one.pump.stats["queued"] == cold["queued"]


def test_writes_through_the_cache_are_not_queued(rig: Callable[..., Rig], tmp_path: Path) -> None:
    path = image(tmp_path / "disk")
    one = rig(BlkDisk.file(path))
    data = random.Random(5).randbytes(100 * SECTOR)
    assert one.do(Type.OUT, 7, data).status == Status.OK
    assert one.do(Type.IN, 7, room=len(data)).data == data
    assert one.pump.stats["queued"] == 0


@pytest.mark.parametrize("how", ["refused", "unwanted"])
def test_without_io_uring(rig: Callable[..., Rig], tmp_path: Path, how: str) -> None:
    path = on_storage(image(tmp_path / "disk"))
    content = path.read_bytes()
    one = rig(BlkDisk.file(path, direct=True, io_uring=how == "refused"), IN_ORDER)
    cookies = [add_aligned(one, Type.IN, at * 8, room=4096) for at in range(8)]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        if how == "refused":  # the ring would be one descriptor too many
            resource.setrlimit(resource.RLIMIT_NOFILE, (1, limits[1]))
        one.driver.kick()
        deadline = time.monotonic() + PATIENCE_S
        while not one.driver.has_used and time.monotonic() < deadline:
            time.sleep(0.001)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    answers = one.reap(8)
    for at, cookie in enumerate(cookies):
        assert answers[cookie] == Answer(4097, content[at * 4096 : (at + 1) * 4096] + b"\0")
    assert one.pump.stats["queued"] == 0
    assert one.pump.stats["submissions"] == 0


def test_a_file_truncated_under_direct_requests(rig: Callable[..., Rig], tmp_path: Path) -> None:
    path = on_storage(image(tmp_path / "disk"))
    content = path.read_bytes()
    one = rig(BlkDisk.file(path, direct=True), PACKED, enabled=False)
    os.truncate(path, 3 * 4096)
    cookies = [add_aligned(one, Type.IN, at * 8, room=4096) for at in range(6)]
    one.driver.kick()
    one.pump.enable(True)
    answers = one.reap(6)
    statuses = [answers[cookie].status for cookie in cookies]
    assert statuses == [Status.OK] * 3 + [Status.IOERR] * 3
    assert answers[cookies[2]].data == content[2 * 4096 : 3 * 4096]
    assert answers[cookies[5]] == Answer(4097, bytes(4096) + b"\1")
    failure = one.disk.failure()
    assert failure is not None
    assert failure.errno == errno.EIO
    stats = one.pump.stats
    assert (stats["errors"], stats["bytes_read"]) == (3, 3 * 4096)
    # The device is none the worse for it.
    assert one.do(Type.IN, 0, room=SECTOR).data == content[:SECTOR]


def test_stopped_with_direct_requests_under_way(rig: Callable[..., Rig], tmp_path: Path) -> None:
    path = on_storage(image(tmp_path / "disk", 4 << 20))
    content = path.read_bytes()
    one = rig(BlkDisk.file(path, direct=True))
    for turn in range(20):
        places = random.Random(turn).sample(range(1024), 16)
        cookies = {add_aligned(one, Type.IN, at * 8, room=4096): at for at in places}
        one.driver.kick()
        # What was taken is finished, and answered; what was not is the next pump's.
        position = one.pump.stop()
        assert one.queue.outstanding == 0
        one.pump = one.start(position)
        for cookie, answer in one.reap(16).items():
            at = cookies[cookie] * 4096
            assert answer == Answer(4097, content[at : at + 4096] + b"\0")


@pytest.mark.parametrize("kind_of_disk", ["memory", "cached", "direct"])
def test_an_idle_pump_does_not_wake_up(
    rig: Callable[..., Rig], tmp_path: Path, kind_of_disk: str
) -> None:
    path = image(tmp_path / "disk")
    if kind_of_disk == "memory":
        disk = BlkDisk.memory(1 << 20)
    else:
        direct = kind_of_disk == "direct"
        disk = BlkDisk.file(on_storage(path) if direct else path, direct=direct)
    one = rig(disk, EVENT_IDX)
    assert one.answer(add_aligned(one, Type.IN, 8, room=4096)).status == Status.OK
    settled = wakeups()
    deadline = time.monotonic() + PATIENCE_S
    while (now := wakeups()) != settled and time.monotonic() < deadline:
        settled = now
    time.sleep(0.2)
    assert wakeups() <= settled + 1
