"""MSI-X of a virtio function. There is no processor to receive the messages, so each vector is
pointed at a word of guest RAM instead: the device writes the message there, and we see the word
change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from virtq.errors import TransportError
from virtq.memory import Arena
from virtq.transports.qtest.access import Accesses
from virtq.transports.qtest.capabilities import MSIX
from virtq.transports.qtest.pci import Function

NO_VECTOR = 0xFFFF
"""What an event is mapped to that is mapped to no vector (4.1.5.1.2)."""
_CONTROL, _TABLE, ENTRY_BYTES = 2, 4, 16
_ENABLE, _SIZE_MASK = 1 << 15, 0x7FF


@dataclass(frozen=True)
class Entry:
    """An entry of the table: where the message goes, what it says, whether it is masked."""

    address: int
    data: int
    masked: bool


class Msix:
    """The capability, its table, and the words that its messages go to."""

    def __init__(self, client: Accesses, function: Function, at: int, words: Arena) -> None:
        """`at`: the capability's offset. Raises TransportError for a table that is nowhere."""
        self._client = client
        self._function = function
        self._at = at
        self.size = (function.read(at + _CONTROL, 2) & _SIZE_MASK) + 1
        """Vectors in the table."""
        table = function.read(at + _TABLE, 4)
        if table & 7 not in function.bars:
            raise TransportError(f"the MSI-X table is in BAR {table & 7}, which does not exist")
        self._base = function.bars[table & 7] + (table & ~7)
        self._words = words.alloc(4 * self.size)

    def point(self) -> None:
        """Each vector at a word of its own; the message is the vector's number plus one."""
        for vector in range(self.size):
            self.set_entry(vector, Entry(self._words.addr + 4 * vector, vector + 1, False))

    def set_entry(self, vector: int, entry: Entry) -> None:
        at = self._base + vector * ENTRY_BYTES
        words = (entry.address, entry.address >> 32, entry.data, int(entry.masked))
        for offset, value in zip((0, 4, 8, 12), words, strict=True):
            self._client.store(at + offset, 4, value)

    def entry(self, vector: int) -> Entry:
        at = self._base + vector * ENTRY_BYTES
        low, high, data, control = (self._client.load(at + i, 4) for i in (0, 4, 8, 12))
        return Entry(low | high << 32, data, bool(control & 1))

    @property
    def enabled(self) -> bool:
        return bool(self._function.read(self._at + _CONTROL, 2) & _ENABLE)

    def enable(self, on: bool) -> None:
        control = self._function.read(self._at + _CONTROL, 2) & ~_ENABLE
        self._function.write(self._at + _CONTROL, 2, control | (_ENABLE if on else 0))

    def take(self) -> set[int]:
        """The vectors whose message arrived since the last time."""
        words = self._words.view.cast("I")
        raised = {vector for vector in range(self.size) if words[vector]}
        for vector in raised:
            words[vector] = 0
        return raised


def find(client: Accesses, function: Function, words: Arena) -> Msix | None:
    """None for a function without MSI-X."""
    for at in _offsets(function):
        return Msix(client, function, at, words)
    return None


def _offsets(function: Function) -> Iterator[int]:
    return (found.offset for found in function.capabilities() if found.id == MSIX)
