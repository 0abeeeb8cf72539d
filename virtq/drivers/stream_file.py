"""A stream of bytes, such as a socket or a port, as a binary file."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


def buffered(read: Callable[[int], bytes], write: Callable[[ReadableBuffer], None]) -> BinaryIO:
    """`read` returns that many bytes at most, and none at the end; `write` takes all that it is
    given."""
    raw = _StreamFile(read, write)
    return cast(BinaryIO, io.BufferedRWPair(raw, raw))


class _StreamFile(io.RawIOBase):
    def __init__(
        self, read: Callable[[int], bytes], write: Callable[[ReadableBuffer], None]
    ) -> None:
        self._read, self._write = read, write

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, target: WriteableBuffer, /) -> int:
        view = memoryview(target).cast("B")
        data = self._read(len(view)) if len(view) else b""
        view[: len(data)] = data
        return len(data)

    def write(self, data: ReadableBuffer, /) -> int:
        self._write(data)
        return memoryview(data).nbytes
