"""virtq's block driver on qemu-storage-daemon's back-end: split rings, any order."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

import virtq
from virtq.drivers.blk import CHUNK_BYTES, BlkDriver, BlkRequestError
from virtq.errors import PeerGone, RequestError, TransportError
from virtq.features import F
from virtq.wire.blk import SECTOR_BYTES, BlkFeature, Header, Status, Type

from .peers.availability import require
from .peers.qsd import BlockExport, StorageDaemon

pytestmark = pytest.mark.interop

MIB: Final = 1 << 20
WHOLE_BYTES: Final = 64 * MIB
PART_BYTES: Final = 8 * MIB
PIECE_BYTES: Final = 4 * MIB
QUEUES: Final = 2
# A bound on waits, not a measure: far more than any of this takes on a machine that is busy.
LIMIT_S: Final = 30.0

# What the driver is ready to accept, and what then must be negotiated of the two.
KINDS: Final = {
    "indirect, event index": ("", F.INDIRECT_DESC | F.EVENT_IDX),
    "indirect": ("-EVENT_IDX", F.INDIRECT_DESC),
    "event index": ("-INDIRECT_DESC", F.EVENT_IDX),
    "neither": ("-INDIRECT_DESC,-EVENT_IDX", F(0)),
}


@pytest.fixture(autouse=True)
def _peer() -> None:
    require("qemu-storage-daemon")


@pytest.fixture(scope="module")
def noise() -> bytes:
    """Twice a whole image of random bytes."""
    return os.urandom(2 * WHOLE_BYTES)


@pytest.fixture
def whole(tmp_path: Path, noise: bytes) -> BlockExport:
    """An image of random bytes, to be exported with two queues."""
    image = tmp_path / "disk.img"
    image.write_bytes(noise[:WHOLE_BYTES])
    return BlockExport(tmp_path / "blk.sock", image, queues=QUEUES)


@pytest.fixture
def export(tmp_path: Path, noise: bytes) -> BlockExport:
    """A small one."""
    image = tmp_path / "disk.img"
    image.write_bytes(noise[:PART_BYTES])
    return BlockExport(tmp_path / "blk.sock", image, queues=QUEUES)


def connect(export: BlockExport, **settings: Any) -> BlkDriver:
    return virtq.connect(f"vhost-user:{export.socket_path}", driver=BlkDriver, **settings)


def image_of(export: BlockExport) -> Path:
    assert export.image is not None
    return export.image


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_all(disk: BlkDriver) -> bytes:
    return b"".join(disk.read(at, PIECE_BYTES) for at in range(0, disk.capacity, PIECE_BYTES))


def counted(disk: BlkDriver, counter: str) -> list[int]:
    """A counter of each queue."""
    return [queue[counter] for queue in disk.stats().values()]


@pytest.mark.parametrize(("offer", "agreed"), KINDS.values(), ids=KINDS)
def test_whole_image_out_and_in(whole: BlockExport, noise: bytes, offer: str, agreed: F) -> None:
    image = image_of(whole)
    new = noise[WHOLE_BYTES:]
    with StorageDaemon(whole), connect(whole, offer=offer) as disk:
        assert disk.driver_features & (F.INDIRECT_DESC | F.EVENT_IDX) == agreed
        assert not disk.offered_features & (F.RING_PACKED | F.IN_ORDER)
        assert disk.capacity == WHOLE_BYTES
        assert len(disk.queues) == QUEUES

        assert hashlib.sha256(read_all(disk)).hexdigest() == sha256(image)
        for at in range(0, WHOLE_BYTES, PIECE_BYTES):
            disk.write(at, new[at : at + PIECE_BYTES])
        disk.flush()
        assert sha256(image) == hashlib.sha256(new).hexdigest()
        assert read_all(disk) == new

        transfers = 3 * WHOLE_BYTES // CHUNK_BYTES
        flushes = 1
        assert sum(counted(disk, "buffers")) == transfers + flushes
        assert all(buffers >= transfers // QUEUES for buffers in counted(disk, "buffers"))
        # Each read is used with its data and its status written; the others with the status.
        read = 2 * WHOLE_BYTES
        assert sum(counted(disk, "bytes_written")) == read + transfers + flushes
        assert sum(counted(disk, "used_entries")) == transfers + flushes
    assert sha256(image) == hashlib.sha256(new).hexdigest()


@pytest.mark.parametrize("depth", [1, 7, 32, 128])
def test_requests_in_flight(export: BlockExport, depth: int) -> None:
    before = image_of(export).read_bytes()
    with StorageDaemon(export), connect(export) as disk:
        ranges = [(at * 4096 % PART_BYTES, 4096) for at in range(0, 1280 * 13, 13)]
        parts = disk.read_many(ranges, depth=depth)
        assert parts == [before[at : at + size] for at, size in ranges]
        assert sum(counted(disk, "buffers")) == len(ranges)
        published = sum(counted(disk, "batches"))
        if depth == 1:
            assert published == len(ranges)
        else:
            assert published < len(ranges)
        turned = [(at, part[::-1]) for (at, _), part in zip(ranges, parts, strict=True)]
        disk.write_many(turned, depth=depth)
        disk.flush()
    after = image_of(export).read_bytes()
    assert all(after[at : at + len(part)] == part for at, part in turned)
    written = {at for at, _ in turned}
    kept = [at for at in range(0, PART_BYTES, 4096) if at not in written]
    assert all(after[at : at + 4096] == before[at : at + 4096] for at in kept)


@pytest.mark.parametrize(("offer", "agreed"), KINDS.values(), ids=KINDS)
def test_an_indirect_table_takes_one_slot(export: BlockExport, offer: str, agreed: F) -> None:
    before = image_of(export).read_bytes()
    slots, descriptors = 16, 2
    with StorageDaemon(export), connect(export, offer=offer, queue_size=slots) as disk:
        queue = disk.queues[1]
        requests = [Header(Type.IN, sector).pack() for sector in range(slots + 1)]
        added = queue.add_batch(requests, SECTOR_BYTES + 1)
        assert added == (slots if agreed & F.INDIRECT_DESC else slots // descriptors)
        queue.kick()
        replies: dict[int, bytes] = {}
        while len(replies) < added:
            assert queue.wait(LIMIT_S)
            replies |= {used.cookie: used.reply for used in queue.reap()}
        for sector, reply in replies.items():
            at = sector * SECTOR_BYTES
            assert reply == before[at : at + SECTOR_BYTES] + bytes([Status.OK])


def test_flush_discard_write_zeroes_and_identity(whole: BlockExport) -> None:
    image = image_of(whole)
    before = image.read_bytes()
    allocated = image.stat().st_blocks * 512
    assert allocated >= WHOLE_BYTES
    with StorageDaemon(whole), connect(whole) as disk:
        assert disk.has(BlkFeature.FLUSH | BlkFeature.DISCARD | BlkFeature.WRITE_ZEROES)
        assert disk.get_id() == "vhost_user_blk"
        # More than one request takes: the daemon's limit is 16 MiB.
        assert disk.info().discard_bytes_max == 16 * MIB
        disk.discard(4 * MIB, 40 * MIB)
        disk.flush()
        # What a discarded range reads as is open; that the image lost its blocks is not.
        assert image.stat().st_blocks * 512 == allocated - 40 * MIB
        disk.write_zeroes(44 * MIB, 2 * MIB)
        disk.write_zeroes(46 * MIB, 512)
        disk.write_zeroes(48 * MIB, 4 * MIB, unmap=True)
        disk.flush()
        zeroed = [(44 * MIB, 46 * MIB + 512), (48 * MIB, 52 * MIB)]
        for start, end in zeroed:
            assert disk.read(start, end - start) == bytes(end - start)
        kept = [(0, 4 * MIB), (46 * MIB + 512, 48 * MIB), (52 * MIB, WHOLE_BYTES)]
        for start, end in kept:
            assert disk.read(start, end - start) == before[start:end]
        buffers = sum(counted(disk, "buffers"))
        reads = sum(-(-(end - start) // CHUNK_BYTES) for start, end in zeroed + kept)
        get_id, discards, zeroes, flushes = 1, 3, 3, 2
        assert buffers == get_id + discards + zeroes + flushes + reads
    after = image.read_bytes()
    for start, end in zeroed:
        assert after[start:end] == bytes(end - start)
    for start, end in kept:
        assert after[start:end] == before[start:end]


def test_write_cache_can_be_switched(export: BlockExport) -> None:
    with StorageDaemon(export), connect(export) as disk:
        assert disk.has(BlkFeature.CONFIG_WCE)
        for on in (True, False, True):
            disk.write_cache = on
            assert disk.write_cache == on
        disk.write(0, bytes(4096))
    assert image_of(export).read_bytes()[:4096] == bytes(4096)


def test_every_queue_is_served(export: BlockExport) -> None:
    with StorageDaemon(replace(export, queues=4)), connect(export) as disk:
        assert disk.has(BlkFeature.MQ)
        assert disk.config.num_queues == len(disk.queues) == 4
        assert disk.read(0, PIECE_BYTES) == image_of(export).read_bytes()[:PIECE_BYTES]
        assert counted(disk, "buffers") == [PIECE_BYTES // CHUNK_BYTES // 4] * 4


def test_disk_that_grows_tells_so(export: BlockExport) -> None:
    with StorageDaemon(export) as daemon, connect(export) as disk:
        assert disk.capacity == PART_BYTES
        size = PART_BYTES + 4 * MIB
        daemon.monitor.execute("block_resize", {"node-name": "disk", "size": size})
        assert disk._config_stale.wait(LIMIT_S)
        assert disk.capacity == size
        disk.write(PART_BYTES, b"behind the old end".ljust(SECTOR_BYTES))
        disk.flush()
    assert image_of(export).read_bytes()[PART_BYTES:].startswith(b"behind the old end")


def test_read_only_export(export: BlockExport) -> None:
    digest = sha256(image_of(export))
    with StorageDaemon(replace(export, writable=False)), connect(export) as disk:
        assert disk.has(BlkFeature.RO)
        assert hashlib.sha256(read_all(disk)).hexdigest() == digest
        with pytest.raises(RequestError, match="read-only"):
            disk.write(0, bytes(512))
        # The daemon refuses by itself, too.
        refused = disk.queues[0].call(Header(Type.OUT, 0).pack() + bytes(512), 1, LIMIT_S)
        assert refused == bytes([Status.IOERR])
    assert sha256(image_of(export)) == digest


def test_error_status_becomes_an_exception(export: BlockExport) -> None:
    with (
        StorageDaemon(replace(export, logical_block_size_bytes=4096)),
        connect(export) as disk,
    ):
        assert disk.info().block_size == 4096
        with pytest.raises(BlkRequestError, match=r"512 bytes at sector 1: IOERR"):
            disk.read(512, 512)
        assert disk.read(4096, 4096) == image_of(export).read_bytes()[4096:8192]


# The command line


def virtq_blk(export: BlockExport, *words: str | Path) -> list[str]:
    uri = f"vhost-user:{export.socket_path}"
    return [sys.executable, "-m", "virtq", "blk", uri, *map(str, words)]


def report_of(argv: list[str]) -> dict[str, Any]:
    """What the command prints with --json, which has to end well."""
    done = subprocess.run([*argv, "--json"], capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("want", ["", "-EVENT_IDX,-INDIRECT_DESC"], ids=["all", "neither"])
def test_command_copies_the_image_out_and_in(
    whole: BlockExport, tmp_path: Path, noise: bytes, want: str
) -> None:
    image, out, new = image_of(whole), tmp_path / "out.img", tmp_path / "new.img"
    # The second quarter is zeroes: the command asks for them without sending them.
    zeroes = WHOLE_BYTES // 4
    new.write_bytes(noise[-zeroes:] + bytes(zeroes) + noise[-3 * zeroes : -zeroes])
    with StorageDaemon(whole):
        info = report_of(virtq_blk(whole, "info", f"--want={want}"))
        assert info["capacity"] == WHOLE_BYTES
        assert info["queues"] == QUEUES
        assert ("INDIRECT_DESC" in info["features"]) == ("EVENT_IDX" in info["features"])
        assert ("EVENT_IDX" in info["features"]) == (not want)

        copied = report_of(virtq_blk(whole, "copy", "--out", out, "--verify", f"--want={want}"))
        assert copied["bytes"] == WHOLE_BYTES
        assert sha256(out) == sha256(image) == copied["sha256"]

        copied = report_of(virtq_blk(whole, "copy", "--in", new, "--verify", f"--want={want}"))
        assert (copied["bytes"], copied["zero_bytes"]) == (WHOLE_BYTES, zeroes)
        assert sha256(image) == sha256(new) == copied["sha256"]


def test_command_says_in_one_line_that_the_daemon_died(whole: BlockExport, noise: bytes) -> None:
    half = WHOLE_BYTES // 2
    with StorageDaemon(whole) as daemon:
        copy = subprocess.Popen(
            virtq_blk(whole, "copy", "--in", "-"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with copy:
            try:
                assert copy.stdin is not None
                copy.stdin.write(noise[half : 2 * half])
                copy.stdin.flush()
                # A pipe holds little: nearly all of this half has gone through the command.
                daemon.kill()
                try:
                    copy.stdin.write(noise[:half])
                except BrokenPipeError:
                    copy.stdin = None
                _, errors = copy.communicate(timeout=LIMIT_S)
            except BaseException:
                copy.kill()
                raise
    assert copy.returncode == 1
    assert len(errors.splitlines()) == 1
    assert str(whole.socket_path).encode() in errors


# The daemon dies


def test_daemon_killed_with_requests_in_flight(export: BlockExport) -> None:
    with StorageDaemon(export) as daemon, connect(export) as disk:
        queue = disk.queues[0]
        os.kill(daemon.pid, signal.SIGSTOP)
        for sector in range(32):
            queue.add(Header(Type.IN, sector).pack(), SECTOR_BYTES + 1, sector)
        queue.kick()
        daemon.kill()
        with pytest.raises(PeerGone):
            queue.wait(LIMIT_S)
        assert queue.outstanding == 32
        # It stays gone, whatever is asked.
        with pytest.raises(PeerGone):
            disk.read(0, 512)
        with pytest.raises(PeerGone):
            disk.flush()


@pytest.mark.parametrize("writing", [False, True], ids=["reading", "writing"])
def test_daemon_killed_in_mid_transfer(export: BlockExport, noise: bytes, writing: bool) -> None:
    before, new = noise[:PART_BYTES], noise[PART_BYTES : 2 * PART_BYTES]
    under_way = threading.Event()

    def transfer(disk: BlkDriver) -> BaseException | None:
        """What ended it: it goes on as long as it can."""
        try:
            while True:
                for at in range(0, PART_BYTES, PIECE_BYTES):
                    if writing:
                        disk.write(at, new[at : at + PIECE_BYTES])
                    elif disk.read(at, PIECE_BYTES) != before[at : at + PIECE_BYTES]:
                        return None
                    under_way.set()
        except Exception as error:
            return error.with_traceback(None)

    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    with (
        StorageDaemon(export) as daemon,
        connect(export) as disk,
        ThreadPoolExecutor(1) as worker,
    ):
        ended = worker.submit(transfer, disk)
        assert under_way.wait(LIMIT_S)
        daemon.kill()
        error = ended.result(LIMIT_S)
        assert isinstance(error, PeerGone), error
        assert str(export.socket_path) in str(error)
    # The error that a connection ended with refers to the driver, and the other way round.
    del disk, ended, error
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == descriptors

    # Each sector is the old or the new one, and the next daemon serves what is there.
    after = image_of(export).read_bytes()
    for at in range(0, PART_BYTES, SECTOR_BYTES):
        end = at + SECTOR_BYTES
        assert after[at:end] == before[at:end] or (writing and after[at:end] == new[at:end])
    with StorageDaemon(export), connect(export) as disk:
        assert read_all(disk) == after


def test_nothing_listens(export: BlockExport) -> None:
    with pytest.raises(TransportError, match=str(export.socket_path)):
        connect(export)
    # A daemon that was killed leaves its socket behind.
    with StorageDaemon(export) as daemon:
        daemon.kill()
        assert export.socket_path.exists()
        with pytest.raises(TransportError, match=str(export.socket_path)):
            connect(export)
