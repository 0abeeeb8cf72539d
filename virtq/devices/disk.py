"""Where a block device keeps its sectors: a raw file, a host block device, memory, or nowhere.

These are the core's, and are served without the interpreter. A subclass that overrides the methods
that move bytes is a disk of one's own, and is served by `BlkDevice.handle`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from virtq._core import BlkDisk
from virtq.wire.blk import SECTOR_BYTES

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, StrPath

CHUNK_BYTES = 1 << 20
SIZE_MAX_BYTES = (1 << 63) - 1
"""As far as offsets go."""


class Disk:
    """Bytes at offsets. Every method that moves bytes raises OSError as the storage gives it: EIO
    for reading, ENOSPC for changing what lies beyond the end."""

    def __init__(self, native: BlkDisk, name: str) -> None:
        """Use `file`, `memory` or `null`."""
        self._native: BlkDisk | None = native
        self.name = name
        self.read_only = native.read_only

    @classmethod
    def file(cls, path: StrPath, *, read_only: bool = False, direct: bool = False) -> Self:
        """A raw image or a host block device; `direct` goes past the page cache. Raises OSError,
        ValueError for what is neither or smaller than a sector."""
        return cls(BlkDisk.file(path, read_only=read_only, direct=direct), str(path))

    @classmethod
    def memory(cls, size: int) -> Self:
        """`size` bytes of zeroes that vanish with the disk. Raises ValueError for a size that no
        disk has, OSError for one that there is no room for."""
        return cls(BlkDisk.memory(_bearable(size)), "memory")

    @classmethod
    def null(cls, size: int) -> Self:
        """Reads zeroes, forgets what is written: for measuring what lies above. Raises ValueError
        for a size that no disk has."""
        return cls(BlkDisk.null(_bearable(size)), "null")

    @property
    def native(self) -> BlkDisk:
        """The core's disk. Raises ValueError once closed."""
        if self._native is None:
            raise ValueError(f"disk {self.name} is closed")
        return self._native

    @property
    def is_native(self) -> bool:
        """Whether this is one of the core's disks, not a subclass with methods of its own."""
        return type(self) is Disk

    @property
    def size(self) -> int:
        """In bytes, whole sectors, as it is now."""
        return self.capacity * SECTOR_BYTES

    @property
    def capacity(self) -> int:
        """Whole sectors of 512 bytes, as it is now."""
        return self.native.refresh()

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes."""
        return self.native.read(offset, length)

    def write(self, offset: int, data: ReadableBuffer) -> None:
        """All of `data`."""
        self.native.write(offset, data)

    def flush(self) -> None:
        """Commit what was written to the storage below."""
        self.native.flush()

    def discard(self, offset: int, length: int) -> None:
        """The range's content is no longer needed; does nothing where the storage cannot use
        that."""
        self.native.discard(offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make the range read as zeroes; with `unmap` it may be deallocated."""
        self.native.write_zeroes(offset, length, unmap)

    def close(self) -> None:
        """Let go of the storage; the disk cannot be used afterwards."""
        self._native = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}{', read-only' if self.read_only else ''}>"


def _bearable(size: int) -> int:
    if not 0 <= size <= SIZE_MAX_BYTES:
        raise ValueError(f"a disk has up to {SIZE_MAX_BYTES} bytes, not {size}")
    return size
