"""Moving bytes between a disk behind a driver and files: in rounds, with progress."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from virtq.cli.failures import Unusable
from virtq.cli.output import size_text
from virtq.drivers.blk import BlkDriver
from virtq.wire.blk import BlkFeature

ZERO_BYTES = 64 << 10
"""Zeroes are looked for in pieces of this length."""
_ZEROES = bytes(ZERO_BYTES)


@dataclass
class Pace:
    """How a transfer goes about it: bytes a round, and requests in flight."""

    chunk: int
    depth: int


@dataclass
class Moved:
    """What a transfer did."""

    bytes: int = 0
    zeroes: int = 0
    """Of those, bytes that were zeroes and did not have to be stored."""
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    sha256: str | None = None

    def done(self) -> Moved:
        self.seconds = time.monotonic() - self.started
        return self

    def as_json(self) -> dict[str, Any]:
        rate = round(self.bytes / self.seconds) if self.seconds else None
        return {
            "bytes": self.bytes,
            "zero_bytes": self.zeroes,
            "seconds": round(self.seconds, 3),
            "bytes_per_second": rate,
            "sha256": self.sha256,
        }

    def __str__(self) -> str:
        rate = f" ({size_text(self.bytes / self.seconds)}/s)" if self.seconds else ""
        zeroes = f", {size_text(self.zeroes)} of it zeroes" if self.zeroes else ""
        return f"{size_text(self.bytes)} in {self.seconds:.2f} s{rate}{zeroes}"


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{size_text(round(task.speed))}/s" if task.speed else "")


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Any]:
    """A bar on standard error if that is a terminal; call what this gives with the bytes done."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        _Speed(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.update(task, advance=count)


# Any byte of a disk, though it takes whole blocks only


class Blocks:
    """Reads and writes anywhere on a disk, with requests that are aligned to its blocks."""

    def __init__(self, disk: BlkDriver, depth: int) -> None:
        self.disk = disk
        self.size = disk.capacity
        self._block = disk.info().block_size
        self._may_unmap = disk.info().write_zeroes_may_unmap
        self._depth = depth

    def check(self, offset: int, length: int) -> None:
        """Raises Unusable for a range that is not on the disk."""
        if offset + length > self.size:
            end = offset + length
            raise Unusable(f"bytes {offset} to {end} are not on a disk of {self.size} bytes")

    def read(self, offset: int, length: int) -> bytes:
        start, end = self._around(offset, length)
        data = self.disk.read_many([(start, end - start)], depth=self._depth)[0]
        return data[offset - start : offset - start + length]

    def write(self, offset: int, data: bytes) -> None:
        """What else is in the first and last block stays as it is."""
        start, end = self._around(offset, len(data))
        if start < offset or offset + len(data) < end:
            head = self.read(start, offset - start)
            tail = self.read(offset + len(data), end - offset - len(data))
            data = head + data + tail
        self.disk.write_many([(start, data)], depth=self._depth)

    def write_zeroes(self, offset: int, length: int) -> bool:
        """Without sending them; False if the disk has no such request, or the range is no whole
        blocks."""
        if self._around(offset, length) != (offset, offset + length):
            return False
        if not self.disk.has(BlkFeature.WRITE_ZEROES):
            return False
        self.disk.write_zeroes(offset, length, unmap=self._may_unmap)
        return True

    def _around(self, offset: int, length: int) -> tuple[int, int]:
        block = self._block
        start, end = offset // block * block, -(-(offset + length) // block) * block
        return start, max(start, min(end, self.size))


# Files


def file_size(file: BinaryIO) -> int | None:
    """In bytes; None for what has no end yet, such as a pipe."""
    mode = os.fstat(file.fileno()).st_mode
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        at = file.tell()
        size = file.seek(0, os.SEEK_END)
        file.seek(at)
        return size - at
    return None


def open_input(path: str) -> AbstractContextManager[BinaryIO]:
    """A file to read, `-` for standard input. Raises OSError."""
    return nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb")


class Output:
    """A file to fill from its beginning, `-` for standard output. Zeroes become holes where the
    file can have them and `sparse` asks for it."""

    def __init__(self, path: str, *, sparse: bool) -> None:
        """Raises OSError."""
        self.path = path
        if path == "-":
            self._file: BinaryIO = sys.stdout.buffer
        else:
            # Not truncated by opening: that would be an error for a block device.
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._file = os.fdopen(fd, "wb", buffering=0)
        mode = os.fstat(self._file.fileno()).st_mode
        self._regular = stat.S_ISREG(mode) and path != "-"
        self._sparse = sparse and self._regular
        self.room = file_size(self._file) if stat.S_ISBLK(mode) else None
        """The most that fits, where that is known."""
        if self._regular:
            self._file.truncate(0)

    def write(self, data: bytes) -> int:
        """All of it; returns how much of it was zeroes that were left out."""
        if not self._sparse or _ZEROES not in data:
            self._write(data)
            return 0
        left_out = 0
        for at, length, zero in runs(data):
            if zero:
                self._file.seek(length, os.SEEK_CUR)
                left_out += length
            else:
                self._write(data[at : at + length])
        return left_out

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        with self._named():
            while rest:
                rest = rest[self._file.write(rest) :]

    def close(self, size: int) -> None:
        """Done, with `size` bytes in all, the last of which may have been left out."""
        with self._named():
            if self._regular:
                self._file.truncate(size)
                os.fsync(self._file.fileno())
            self._file.flush()
            if self.path != "-":
                self._file.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Raises OSError that says which file it is about."""
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            name = "standard output" if self.path == "-" else self.path
            raise OSError(error.errno, error.strerror, name) from None


def runs(data: bytes) -> Iterator[tuple[int, int, bool]]:
    """(offset, length, whether it is all zeroes) of the stretches that data is made of."""
    start, zero = 0, data[:ZERO_BYTES] == _ZEROES[: len(data)]
    for at in range(ZERO_BYTES, len(data), ZERO_BYTES):
        piece = data[at : at + ZERO_BYTES]
        if (piece == _ZEROES[: len(piece)]) != zero:
            yield start, at - start, zero
            start, zero = at, not zero
    yield start, len(data) - start, zero


# Transfers


def copy_out(
    blocks: Blocks, offset: int, length: int, output: Output, pace: Pace, *, hashed: bool = False
) -> Moved:
    """From the disk into a file. Raises VirtqError, OSError."""
    moved, digest = Moved(), hashlib.sha256()
    with progress("reading", length) as advance:
        for at in range(0, length, pace.chunk):
            data = blocks.read(offset + at, min(pace.chunk, length - at))
            moved.zeroes += output.write(data)
            moved.bytes += len(data)
            if hashed:
                digest.update(data)
            advance(len(data))
        output.close(length)
    moved.sha256 = digest.hexdigest() if hashed else None
    return moved.done()


def copy_in(
    source: BinaryIO,
    blocks: Blocks,
    offset: int,
    pace: Pace,
    *,
    sparse: bool = False,
    hashed: bool = False,
) -> Moved:
    """From a file onto the disk, and flush it. Raises VirtqError, OSError, and Unusable as soon as
    there is more than the disk has room for."""
    moved, digest = Moved(), hashlib.sha256()
    with progress("writing", file_size(source)) as advance:
        while data := _read_full(source, pace.chunk):
            blocks.check(offset, moved.bytes + len(data))
            moved.zeroes += _put(blocks, offset + moved.bytes, data, sparse=sparse)
            moved.bytes += len(data)
            if hashed:
                digest.update(data)
            advance(len(data))
        blocks.disk.flush()
    moved.sha256 = digest.hexdigest() if hashed else None
    return moved.done()


def _read_full(source: BinaryIO, length: int) -> bytes:
    """`length` bytes unless the file ends before; pipes give less at once."""
    data = source.read(length)
    while data and len(data) < length and (more := source.read(length - len(data))):
        data += more
    return data


def _put(blocks: Blocks, offset: int, data: bytes, *, sparse: bool) -> int:
    if not sparse or _ZEROES not in data:
        blocks.write(offset, data)
        return 0
    left_out = 0
    for at, length, zero in runs(data):
        if zero and blocks.write_zeroes(offset + at, length):
            left_out += length
        else:
            blocks.write(offset + at, data[at : at + length])
    return left_out


def disk_sha256(blocks: Blocks, offset: int, length: int, pace: Pace) -> str:
    """Of what the disk holds."""
    digest = hashlib.sha256()
    with progress("verifying", length) as advance:
        for at in range(0, length, pace.chunk):
            data = blocks.read(offset + at, min(pace.chunk, length - at))
            digest.update(data)
            advance(len(data))
    return digest.hexdigest()


def file_sha256(path: str, length: int) -> str:
    """Of the first `length` bytes of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file, progress("verifying", length) as advance:
        while length and (data := file.read(min(1 << 20, length))):
            digest.update(data)
            length -= len(data)
            advance(len(data))
    return digest.hexdigest()
