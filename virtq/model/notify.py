"""When a notification is due: the event index of the split ring (2.7.7, 2.7.10) and the event
suppression structure of the packed ring (2.8.10, 2.8.14)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from .memory import GuestMemory, Violation, load, store

# Split: the flags of the available ring (no used buffer notifications, please) and of the used ring
# (no available buffer notifications, please).
NO_NOTIFICATION = 1

# Packed: Descriptor Ring Change Event Flags.
ENABLE = 0
DISABLE = 1
DESC = 2


def need_event(event: int, new: int, old: int) -> bool:
    """Was one of the entries old, old + 1, ... new - 1 (mod 65536) the one named by `event`?

    The text's literal test looks at the index before the entry; with a batch the index jumps, and
    the range test (`virtq_need_event` in the specification's header) covers what it jumped over.
    """
    return (new - event - 1) % 65536 < (new - old) % 65536


class PackedEvent(NamedTuple):
    """An event suppression structure (2.8.14)."""

    offset: int
    wrap: int
    flags: int

    @classmethod
    def load(cls, memory: GuestMemory, addr: int) -> PackedEvent:
        desc = load(memory, addr, 2)
        return cls(desc & 0x7FFF, desc >> 15, load(memory, addr + 2, 2) & 3)

    def store(self, memory: GuestMemory, addr: int) -> None:
        # The other side must not see the new flags with the old descriptor.
        store(memory, addr, 2, self.offset | self.wrap << 15)
        store(memory, addr + 2, 2, self.flags)

    def wanted(self, size: int, event_idx: bool, passed: Iterable[tuple[int, int]]) -> bool:
        """Is a notification due after these (slot, wrap counter) were made available or used?

        A slot inside a chain or a batch is passed like any other, though nothing may be written
        there.
        """
        if self.flags == DISABLE:
            return False
        if self.flags == ENABLE:
            return True
        if self.flags != DESC or not event_idx:
            raise Violation(f"event flags {self.flags} are reserved")
        if self.offset >= size:
            raise Violation(f"event offset {self.offset} is beyond the ring")
        return (self.offset, self.wrap) in passed
