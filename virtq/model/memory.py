"""What both ring layouts share: guest memory as bytes, the constants of the specification, a buffer
on either side of the queue, and the rule that says what one used entry may cover.

Everything that is in guest memory is read and written there, field by field, little-endian, every
time it is needed. What a half keeps in its own attributes is what the text says it keeps track of.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple, Protocol

# Feature bits (6).
INDIRECT_DESC = 1 << 28
EVENT_IDX = 1 << 29
RING_PACKED = 1 << 34
IN_ORDER = 1 << 35

# Descriptor flags (2.7.5, 2.8.1, 2.8.3, 2.8.6, 2.8.7).
NEXT = 1
WRITE = 2
INDIRECT = 4
AVAIL = 1 << 7
USED = 1 << 15

DESCRIPTOR_BYTES = 16


class Violation(Exception):
    """The other side did what the specification forbids."""


class Full(Exception):
    """The ring has no room for the buffer; nothing was added."""


class GuestMemory(Protocol):
    """Any memory with guest addresses: `Bytes` here, `virtq._core.Memory` there."""

    def read(self, addr: int, length: int, /) -> bytes: ...
    def write(self, addr: int, data: bytes, /) -> None: ...


class Bytes:
    """Guest memory of one region at address 0, in a bytearray."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)

    def read(self, addr: int, length: int, /) -> bytes:
        self._check(addr, length)
        return bytes(self.data[addr : addr + length])

    def write(self, addr: int, data: bytes, /) -> None:
        self._check(addr, len(data))
        self.data[addr : addr + len(data)] = data

    def _check(self, addr: int, length: int) -> None:
        if addr < 0 or addr + length > len(self.data):
            raise Violation(f"guest memory {addr:#x}+{length:#x} is not there")


def load(memory: GuestMemory, addr: int, size: int) -> int:
    """The little-endian number of `size` bytes at `addr` (1.4: all fields are little-endian)."""
    return int.from_bytes(memory.read(addr, size), "little")


def store(memory: GuestMemory, addr: int, size: int, value: int) -> None:
    memory.write(addr, value.to_bytes(size, "little"))


class Areas(NamedTuple):
    """The three parts of a virtqueue (2.6) and the first address after them."""

    desc: int
    driver: int
    device: int
    end: int


class Position(NamedTuple):
    """Where a half stands. Split: free-running 16-bit indices. Packed: slots and wrap counters."""

    available: int = 0
    available_wrap: int = 0
    used: int = 0
    used_wrap: int = 0
    descriptor: int = 0


class Piece(NamedTuple):
    """One physically contiguous element of a buffer."""

    address: int
    length: int
    writable: bool


@dataclass(eq=False)
class Added:
    """A buffer as the driver remembers it while it is outstanding."""

    id: int  # split: the chain's head; packed: the Buffer ID
    slots: list[int]  # the ring's descriptors that it occupies
    writable: int  # bytes of its device-writable part
    cookie: int


@dataclass(eq=False)
class Taken:
    """A buffer as the device sees it."""

    memory: GuestMemory
    id: int
    slots: int
    pieces: list[Piece]
    table: tuple[int, int] | None = None  # address and bytes of its indirect table
    written: int | None = None  # until completed

    @property
    def readable(self) -> int:
        return sum(piece.length for piece in self.pieces if not piece.writable)

    @property
    def writable(self) -> int:
        return sum(piece.length for piece in self.pieces if piece.writable)

    def read(self) -> bytes:
        """The whole device-readable part."""
        return b"".join(
            self.memory.read(piece.address, piece.length)
            for piece in self.pieces
            if not piece.writable and piece.length
        )

    def write(self, data: bytes) -> None:
        """From the first device-writable byte on (2.7.8.2)."""
        for piece in self.pieces:
            if piece.writable and data and piece.length:
                self.memory.write(piece.address, data[: piece.length])
                data = data[piece.length :]


def in_order_batches(
    finished: Sequence[Taken], one_used_entry_per_buffer: bool = False
) -> list[list[Taken]]:
    """Which buffers each used entry covers (2.7.9, 2.8.8).

    All but the last buffer of a batch count as completely read or written, so a buffer that was
    not filled has to be the last of its batch: only the last one's length is reported.
    """
    batches: list[list[Taken]] = []
    for buffer in finished:
        before = batches[-1][-1] if batches else None
        if before is None or before.written != before.writable or one_used_entry_per_buffer:
            batches.append([])
        batches[-1].append(buffer)
    return batches


class DeviceHalf(ABC):
    """The device's bookkeeping that does not depend on the layout."""

    def __init__(self, features: int, one_used_entry_per_buffer: bool) -> None:
        self.in_order = bool(features & IN_ORDER)
        self.indirect = bool(features & INDIRECT_DESC)
        self.event_idx = bool(features & EVENT_IDX)
        self.one_used_entry_per_buffer = one_used_entry_per_buffer
        self.taken: list[Taken] = []  # not published yet, oldest first
        self.completed: list[Taken] = []  # those of them that are completed, in that order
        self.all_taken: list[Taken] = []
        self.used_entries = 0
        self.called_before = False

    @property
    def outstanding(self) -> int:
        return len(self.taken)

    def take(self, maximum: int = 65535) -> list[Taken]:
        """Buffers are begun in the order in which they were made available (2.8.12)."""
        taken: list[Taken] = []
        while len(taken) < maximum and (buffer := self._take_one()) is not None:
            if any(buffer.id == other.id for other in self.taken):
                raise Violation(f"buffer {buffer.id} was made available while it is outstanding")
            self.all_taken.append(buffer)
            self.taken.append(buffer)
            taken.append(buffer)
        return taken

    def put_back(self, buffers: Sequence[Taken]) -> int:
        """Untake the newest buffers; nobody outside can tell that they were taken."""
        newest = self.all_taken[len(self.all_taken) - len(buffers) :]
        if newest != list(buffers) or any(buffer.written is not None for buffer in buffers):
            raise ValueError("only the newest buffers, not completed, can be put back")
        for buffer in reversed(buffers):
            self.taken.pop()
            self.all_taken.pop()
            self._untake(buffer)
        return len(buffers)

    def complete(self, buffer: Taken, written: int) -> None:
        """Done with the buffer; nobody outside can tell before `flush`."""
        if buffer not in self.taken or buffer.written is not None:
            raise ValueError("the buffer is not outstanding")
        if written > buffer.writable:
            raise ValueError("more was written than the buffer holds")
        self._check_unchanged(buffer)
        buffer.written = written
        self.completed.append(buffer)

    def flush(self) -> int:
        """Make completed buffers used: in completion order (2.8.12), or, with IN_ORDER, those that
        no unfinished older one holds up (6.3), a batch for each used entry."""
        if self.in_order:
            finished = list(takewhile(lambda buffer: buffer.written is not None, self.taken))
            batches = in_order_batches(finished, self.one_used_entry_per_buffer)
        else:
            finished = list(self.completed)
            batches = [[buffer] for buffer in finished]
        for batch in batches:
            self._use(batch)
            self.used_entries += 1
        self._publish()
        self.taken = [buffer for buffer in self.taken if buffer not in finished]
        self.completed = [buffer for buffer in self.completed if buffer not in finished]
        return len(finished)

    def call_wanted(self) -> bool:
        """flush, then: is a used buffer notification due? (2.7.7.2, 2.8.10)"""
        self.flush()
        return self._call_wanted()

    def stop(self) -> tuple[Position, bool]:
        """Publish what is finished; say where the next owner resumes and whether a call is due.

        With IN_ORDER that is right after the last used buffer: all that came later is taken again.
        Without it, unfinished buffers can be taken again only if they are the newest ones.
        """
        called = self.call_wanted()
        unfinished = self.taken
        self.taken, self.completed = [], []
        newest = self.all_taken[len(self.all_taken) - len(unfinished) :]
        if self.in_order or unfinished == newest:
            for buffer in reversed(unfinished):
                self._untake(buffer)
        return self.position, called

    def close(self) -> None:  # noqa: B027
        """A half of the model holds nothing that has to be closed."""

    @abstractmethod
    def _take_one(self) -> Taken | None: ...
    @abstractmethod
    def _check_unchanged(self, buffer: Taken) -> None: ...
    @abstractmethod
    def _untake(self, buffer: Taken) -> None: ...
    @abstractmethod
    def _use(self, batch: list[Taken]) -> None: ...
    @abstractmethod
    def _publish(self) -> None: ...
    @abstractmethod
    def _call_wanted(self) -> bool: ...
    @property
    @abstractmethod
    def has_available(self) -> bool: ...
    @abstractmethod
    def enable_kicks(self) -> bool: ...
    @abstractmethod
    def disable_kicks(self) -> None: ...
    @property
    @abstractmethod
    def position(self) -> Position: ...
    @abstractmethod
    def restore(self, position: Position) -> None: ...


class DriverHalf(ABC):
    """The driver's bookkeeping that does not depend on the layout."""

    bears_long_lengths = False
    """Whether a used length beyond its buffer counts as all of the buffer, and is no violation."""

    def __init__(
        self,
        memory: GuestMemory,
        features: int,
        size: int,
        indirect_table: int,
        indirect_length: int,
    ) -> None:
        self.memory = memory
        self.size = size
        self.in_order = bool(features & IN_ORDER)
        self.event_idx = bool(features & EVENT_IDX)
        self.indirect_table = indirect_table if features & INDIRECT_DESC else 0
        self.indirect_length = indirect_length
        self._empty()

    def _empty(self) -> None:
        self.added: list[Added] = []  # outstanding, oldest first
        self.unpublished = 0  # so many of them, at the end, the device cannot see yet
        self.collected: list[tuple[Added, int]] = []  # used, with its length, not handed out yet
        self.used_entries = 0

    @property
    def outstanding(self) -> int:
        return len(self.added) + len(self.collected)

    @property
    def free(self) -> int:
        kept = self.added + [buffer for buffer, _ in self.collected]
        return self.size - sum(len(buffer.slots) for buffer in kept)

    def add(
        self,
        readable: Sequence[tuple[int, int]],
        writable: Sequence[tuple[int, int]],
        cookie: int = 0,
    ) -> None:
        """Readable elements before writable ones, at least one in all (2.7.4.2, 2.8.17)."""
        pieces = [Piece(*piece, False) for piece in readable]
        pieces += [Piece(*piece, True) for piece in writable]
        if not pieces:
            raise ValueError("a buffer has at least one element")
        indirect = self.indirect_table != 0 and 1 < len(pieces) <= self.indirect_length
        needed = 1 if indirect else len(pieces)
        if needed > self.free:
            raise Full(f"{needed} descriptors are needed, {self.free} are free")
        id, slots = self._place(pieces, indirect)
        bytes_writable = sum(piece.length for piece in pieces if piece.writable)
        self.added.append(Added(id, slots, bytes_writable, cookie))
        self.unpublished += 1

    def add_batch(
        self, addresses: Sequence[int], lengths: Sequence[int], writable: bool, first_cookie: int
    ) -> int:
        """Buffers of one element each, as many as fit."""
        pairs = list(zip(addresses, lengths, strict=True))[: self.free]
        for i, pair in enumerate(pairs):
            self.add([] if writable else [pair], [pair] if writable else [], first_cookie + i)
        return len(pairs)

    def kick_wanted(self) -> bool:
        """publish, then: is an available buffer notification due? (2.7.10.1, 2.8.10)"""
        self.publish()
        return self._kick_wanted()

    @property
    def has_used(self) -> bool:
        return bool(self.collected) or self.used_entry() is not None

    def reap(self, maximum: int = 65535) -> list[tuple[int, int]]:
        """(cookie, written) of used buffers in the order of use."""
        reaped: list[tuple[int, int]] = []
        while len(reaped) < maximum and self.has_used:
            if not self.collected:
                self.collect()
            buffer, written = self.collected.pop(0)
            reaped.append((buffer.cookie, written))
        return reaped

    def collect(self) -> list[tuple[Added, int]]:
        """Process one used entry (2.7.9, 2.8.8): with IN_ORDER it stands for a batch, which ends
        with the buffer that it names; without, for that buffer alone. Returns the buffers with the
        bytes written to each, as `reap` will hand them out."""
        entry = self.used_entry()
        assert entry is not None
        id, length = entry
        visible = self.added[: len(self.added) - self.unpublished]
        at = next((i for i, buffer in enumerate(visible) if buffer.id == id), None)
        if at is None:
            raise Violation(f"used id {id} is not outstanding")
        batch = self.added[: at + 1] if self.in_order else [self.added[at]]
        last = batch[-1]
        before = len(self.collected)
        if length > last.writable:
            if not self.bears_long_lengths:
                text = f"used length {length}, but only {last.writable} bytes are writable"
                raise Violation(text)
            length = last.writable
        for buffer in batch:
            # The buffers before the last one count as completely read or written.
            written = length if buffer is last else buffer.writable
            self.collected.append((buffer, written))
            self.added.remove(buffer)
        self.used_entries += 1
        self._skip(batch)
        return self.collected[before:]

    def take_back(self) -> list[int]:
        """After a reset (2.6.1): the ring is as new, what was not reaped is the driver's again."""
        cookies = [buffer.cookie for buffer, _ in self.collected]
        cookies += [buffer.cookie for buffer in self.added]
        self._empty()
        self._initialize(None)
        return cookies

    def close(self) -> None:  # noqa: B027
        """A half of the model holds nothing that has to be closed."""

    @abstractmethod
    def _initialize(self, position: Position | None) -> None: ...
    @abstractmethod
    def _place(self, pieces: list[Piece], indirect: bool) -> tuple[int, list[int]]: ...
    @abstractmethod
    def publish(self) -> int: ...
    @abstractmethod
    def _kick_wanted(self) -> bool: ...
    @abstractmethod
    def used_entry(self) -> tuple[int, int] | None: ...
    @abstractmethod
    def _skip(self, batch: list[Added]) -> None: ...
    @abstractmethod
    def enable_calls(self) -> bool: ...
    @abstractmethod
    def disable_calls(self) -> None: ...
    @property
    @abstractmethod
    def position(self) -> Position: ...
