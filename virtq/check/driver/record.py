"""What was seen of a driver, as it was when it was seen.

A `Chain` is a buffer as it stood in memory when it had just become available: every descriptor
as it was read, before anything was judged. So a buffer that makes no sense is here as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from virtq.features import RingKind
from virtq.model.memory import INDIRECT, NEXT, WRITE, Piece, Taken

KEPT_CHAINS = 20_000
"""So many buffers of a queue are remembered."""
KEPT_ENTRIES = 256
"""So many used entries of a queue, the newest."""
KEPT_WORDS = 4096
"""So many values of a word."""
TABLE_ENTRIES = 4096
"""So many entries of an indirect table are written down."""
READ_BYTES = 4096
"""How much of the device-readable part of a buffer is written down."""


class Slot(NamedTuple):
    """A descriptor as it was read: of the ring, or of an indirect table. `id` is that of a packed
    descriptor, `next` that of a split one."""

    slot: int
    addr: int
    len: int
    flags: int
    id: int
    next: int

    @property
    def writable(self) -> bool:
        return bool(self.flags & WRITE)

    @property
    def has_next(self) -> bool:
        return bool(self.flags & NEXT)

    @property
    def indirect(self) -> bool:
        return bool(self.flags & INDIRECT)


@dataclass(eq=False)
class Chain:
    """A buffer that was made available.

    `number` counts those of its queue. `slot`, `wrap`: where it was found: a slot of the available
    ring, or (packed) of the descriptor ring with the driver's wrap counter. `fault`: why it could
    not be followed to its end. `table`: the entries of its indirect table, in the order in which
    they follow one another (packed: all)."""

    queue: int
    number: int
    slot: int
    wrap: int
    id: int
    descriptors: list[Slot]
    table: list[Slot] | None = None
    table_bytes: int = 0
    fault: str = ""
    readable: bytes = b""
    """Its device-readable part, up to `READ_BYTES`, as it was then."""
    taken: Taken | None = None
    written: int | None = None

    @property
    def pieces(self) -> list[Piece]:
        """Its elements in order."""
        ring = [d for d in self.descriptors if not d.indirect]
        return [Piece(d.addr, d.len, d.writable) for d in (*ring, *(self.table or ()))]

    @property
    def readable_bytes(self) -> int:
        return sum(piece.length for piece in self.pieces if not piece.writable)

    @property
    def writable_bytes(self) -> int:
        return sum(piece.length for piece in self.pieces if piece.writable)

    @property
    def length(self) -> int:
        """Elements in it."""
        return len(self.pieces)

    def __str__(self) -> str:
        return f"buffer {self.number} of queue {self.queue} (id {self.id}, slot {self.slot})"


class Event(NamedTuple):
    """Something the driver did. `what`: the name of a vhost-user message, "kick" (queue), or
    "available" (queue, number of the chain)."""

    what: str
    queue: int | None = None
    value: Any = None


@dataclass
class Words:
    """What the driver wrote into the words of its area, in the order in which it was seen: split,
    the flags and used_event of the available ring; packed, the two words of the driver's event
    suppression structure."""

    first: set[int] = field(default_factory=set)
    second: set[int] = field(default_factory=set)


@dataclass
class Queue:
    """One virtqueue as it was set up, and what came on it since."""

    index: int
    size: int
    desc: int
    driver: int
    device: int
    packed: bool
    features: int
    chains: list[Chain] = field(default_factory=list)
    words: Words = field(default_factory=Words)
    indices: list[int] = field(default_factory=list)
    """Split: the available index each time that it was another one, from the start."""
    faults: dict[str, list[str]] = field(default_factory=dict)
    """What was found wrong in passing, by what it is about."""
    device_words_at_start: tuple[int, ...] = ()
    """Split: flags and index of the used ring when the queue was set up; packed: the two words of
    the device's event suppression structure."""
    stale_at_start: list[int] = field(default_factory=list)
    """Packed: slots that were not zero when the queue was set up, and not available either."""
    broken: str = ""

    def fault(self, about: str, text: str) -> None:
        found = self.faults.setdefault(about, [])
        if len(found) < 8 and text not in found:
            found.append(text)


@dataclass
class Record:
    """What was seen of one driver in one connection."""

    kind: RingKind
    offered: int
    protocol: int = 0
    features: int | None = None
    """What the driver accepted."""
    events: list[Event] = field(default_factory=list)
    queues: list[Queue] = field(default_factory=list)
    """Every virtqueue that was set up, in that order; one that was set up again is there twice."""
    pictures: list[dict[str, Any]] = field(default_factory=list)

    def has(self, features: int) -> bool:
        """Whether all these features were negotiated."""
        return (self.features or 0) & features == features

    def chains(self, queue: int | None = None) -> Iterator[Chain]:
        for each in self.queues:
            if queue in (None, each.index):
                yield from each.chains

    def messages(self, *names: str) -> list[Event]:
        return [event for event in self.events if event.what in names]

    def first(self, *names: str) -> int | None:
        """The place of the first such event."""
        return next((i for i, event in enumerate(self.events) if event.what in names), None)
