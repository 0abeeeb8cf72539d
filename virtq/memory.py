"""Memory for driver code: an allocator over the guest memory that a device can reach.

A driver keeps its rings and buffers in the memory that its transport shares with the device. An
`Arena` hands out pieces of it: first fit over a sorted list of free ranges, neighbours merged when
they come back. Allocation is for setting things up; data paths allocate a slab once and cut it.
"""

from __future__ import annotations

import bisect
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from virtq._core import Memory
from virtq.errors import GuestMemoryError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PAGE_BYTES = 4096


class ArenaFull(GuestMemoryError):
    """No free range of guest memory is large enough; the text says what was asked for and what is
    left."""


class NotAllocated(GuestMemoryError):
    """A range was freed that is not allocated: never, or not any more."""


@dataclass(frozen=True, slots=True, eq=False)
class Buffer:
    """A piece of guest memory: its guest address, its length in bytes, a writable view of it."""

    addr: int
    size: int
    view: memoryview

    def read(self, length: int | None = None, offset: int = 0) -> bytes:
        """`length` bytes (None: to the end) from `offset`. Raises ValueError beyond the end."""
        end = self.size if length is None else offset + length
        self._check(offset, end)
        return bytes(self.view[offset:end])

    def write(self, data: ReadableBuffer, offset: int = 0) -> None:
        """Store `data` at `offset`. Raises ValueError beyond the end."""
        source = memoryview(data).cast("B")
        self._check(offset, offset + len(source))
        self.view[offset : offset + len(source)] = source

    def part(self, offset: int, size: int) -> Buffer:
        """A piece of this piece; it is freed with the whole. Raises ValueError beyond the end."""
        self._check(offset, offset + size)
        return Buffer(self.addr + offset, size, self.view[offset : offset + size])

    @property
    def piece(self) -> tuple[int, int]:
        """(address, length), as descriptors want it."""
        return self.addr, self.size

    def _check(self, start: int, end: int) -> None:
        if not 0 <= start <= end <= self.size:
            raise ValueError(f"bytes {start} to {end} of a buffer of {self.size} at {self.addr:#x}")


class Arena:
    """Allocates from all regions of a `Memory`. Any thread may allocate and free."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        # Sorted, never touching within a region: (start, end) in guest addresses.
        self._free = sorted((r.guest_addr, r.guest_addr + r.size) for r in memory.regions)
        self._borders = {start for start, _ in self._free}
        self._held: dict[int, int] = {}
        self._lock = threading.Lock()

    @property
    def free_bytes(self) -> int:
        return sum(end - start for start, end in self._free)

    @property
    def held_bytes(self) -> int:
        return sum(self._held.values())

    def alloc(self, size: int, align: int = 16) -> Buffer:
        """A zeroed buffer of `size` bytes at a multiple of `align` (a power of two).

        Raises ArenaFull, and ValueError for a size below 1 or an align that is no power of two.
        """
        if size < 1 or align < 1 or align & (align - 1):
            raise ValueError(f"cannot allocate {size} bytes at a multiple of {align}")
        with self._lock:
            addr = self._take(size, align)
        if addr is not None:
            buffer = Buffer(addr, size, self.memory.view(addr, size))
            buffer.view[:] = bytes(size)
            return buffer
        largest = max((end - start for start, end in self._free), default=0)
        raise ArenaFull(
            f"no {size} bytes of guest memory: {self.free_bytes} are free, {largest} in one piece"
        )

    def _take(self, size: int, align: int) -> int | None:
        for index, (start, end) in enumerate(self._free):
            addr = -(-start // align) * align
            if addr + size <= end:
                rest = [(start, addr), (addr + size, end)]
                self._free[index : index + 1] = [(a, b) for a, b in rest if a < b]
                self._held[addr] = size
                return addr
        return None

    def free(self, buffer: Buffer) -> None:
        """Take a buffer back. Raises NotAllocated unless it is one that `alloc` gave and has not
        taken back since."""
        with self._lock:
            self._give_back(buffer)

    def _give_back(self, buffer: Buffer) -> None:
        if self._held.get(buffer.addr) != buffer.size:
            raise NotAllocated(f"{buffer.size} bytes at {buffer.addr:#x} are not allocated")
        del self._held[buffer.addr]
        start, end = buffer.addr, buffer.addr + buffer.size
        at = bisect.bisect(self._free, (start, end))
        if at < len(self._free) and self._free[at][0] == end and end not in self._borders:
            end = self._free.pop(at)[1]
        if at and self._free[at - 1][1] == start and start not in self._borders:
            at -= 1
            start = self._free.pop(at)[0]
        self._free.insert(at, (start, end))

    def __repr__(self) -> str:
        return (
            f"<Arena: {self.held_bytes} bytes in {len(self._held)} buffers, {self.free_bytes} free>"
        )
