"""A disk as a Python file."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Protocol

from virtq.wire.blk import SECTOR_BYTES

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


class Sectors(Protocol):
    """What a file needs of a disk: whole sectors only."""

    @property
    def capacity(self) -> int: ...
    @property
    def read_only(self) -> bool: ...
    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, offset: int, data: ReadableBuffer) -> None: ...
    def flush(self) -> None: ...


class BlkFile(io.RawIOBase):
    """Reads and writes at any byte; a write that begins or ends within a sector reads that sector
    first. The size is fixed: a write past the end stores what fits. Closing flushes, and leaves the
    disk open."""

    def __init__(self, disk: Sectors) -> None:
        self._disk = disk
        self._position = 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return not self._disk.read_only

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Raises ValueError for a position before the start."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._disk.capacity}
        if whence not in base or base[whence] + offset < 0:
            raise ValueError(f"cannot seek to {offset} from {whence}")
        self._position = base[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, target: WriteableBuffer) -> int:
        """0 at the end."""
        view = memoryview(target).cast("B")
        length = self._fitting(len(view))
        if length:
            start, end = self._sectors(length)
            data = self._disk.read(start, end - start)
            skip = self._position - start
            view[:length] = data[skip : skip + length]
            self._position += length
        return length

    def write(self, data: ReadableBuffer) -> int:
        """The number of bytes stored. Raises io.UnsupportedOperation on a read-only disk, OSError
        (ENOSPC) at the end."""
        if not self.writable():
            raise io.UnsupportedOperation("the disk is read-only")
        source = memoryview(data).cast("B")
        length = self._fitting(len(source))
        if not length:
            if len(source):
                raise OSError(28, "no space left on the disk")
            return 0
        start, end = self._sectors(length)
        skip, image = self._position - start, bytearray(end - start)
        if skip:
            image[:SECTOR_BYTES] = self._disk.read(start, SECTOR_BYTES)
        if (skip + length) % SECTOR_BYTES:
            image[-SECTOR_BYTES:] = self._disk.read(end - SECTOR_BYTES, SECTOR_BYTES)
        image[skip : skip + length] = source[:length]
        self._disk.write(start, image)
        self._position += length
        return length

    def flush(self) -> None:
        if not self.closed and self.writable():
            self._disk.flush()
        super().flush()

    def _fitting(self, length: int) -> int:
        return max(0, min(length, self._disk.capacity - self._position))

    def _sectors(self, length: int) -> tuple[int, int]:
        end = self._position + length
        return self._position // SECTOR_BYTES * SECTOR_BYTES, -(-end // SECTOR_BYTES) * SECTOR_BYTES
