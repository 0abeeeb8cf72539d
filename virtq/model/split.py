"""The split virtqueue (2.7), to be read beside the text."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from .memory import (
    DESCRIPTOR_BYTES,
    INDIRECT,
    NEXT,
    WRITE,
    Added,
    Areas,
    DeviceHalf,
    DriverHalf,
    GuestMemory,
    Piece,
    Position,
    Taken,
    Violation,
    load,
    store,
)
from .notify import NO_NOTIFICATION, need_event

MAX_INDIRECT = 32768


class Descriptor(NamedTuple):
    """struct virtq_desc (2.7.5)."""

    addr: int
    len: int
    flags: int
    next: int

    @classmethod
    def load(cls, memory: GuestMemory, at: int) -> Descriptor:
        return cls(
            load(memory, at, 8),
            load(memory, at + 8, 4),
            load(memory, at + 12, 2),
            load(memory, at + 14, 2),
        )

    def store(self, memory: GuestMemory, at: int) -> None:
        store(memory, at, 8, self.addr)
        store(memory, at + 8, 4, self.len)
        store(memory, at + 12, 2, self.flags)
        store(memory, at + 14, 2, self.next)


class SplitRing:
    """The three parts in memory, field by field; no behaviour."""

    def __init__(self, memory: GuestMemory, size: int, desc: int, driver: int, device: int) -> None:
        self.memory = memory
        self.size = size
        self.desc_area = desc
        self.driver_area = driver
        self.device_area = device

    @staticmethod
    def areas(size: int, at: int = 0) -> Areas:
        """The parts one after the other, aligned as the table in 2.7 asks (16, 2 and 4 bytes)."""
        desc = (at + 15) // 16 * 16
        driver = desc + 16 * size
        device = (driver + 6 + 2 * size + 3) // 4 * 4
        return Areas(desc, driver, device, device + 6 + 8 * size)

    def clear(self) -> None:
        self.memory.write(self.desc_area, bytes(16 * self.size))
        self.memory.write(self.driver_area, bytes(6 + 2 * self.size))
        self.memory.write(self.device_area, bytes(6 + 8 * self.size))

    # The descriptor table (2.7.5).

    def desc(self, slot: int) -> Descriptor:
        return Descriptor.load(self.memory, self.desc_area + DESCRIPTOR_BYTES * slot)

    def set_desc(self, slot: int, descriptor: Descriptor) -> None:
        descriptor.store(self.memory, self.desc_area + DESCRIPTOR_BYTES * slot)

    # The available ring (2.7.6): flags, idx, ring[size], used_event.

    @property
    def avail_flags(self) -> int:
        return load(self.memory, self.driver_area, 2)

    @avail_flags.setter
    def avail_flags(self, value: int) -> None:
        store(self.memory, self.driver_area, 2, value)

    @property
    def avail_idx(self) -> int:
        return load(self.memory, self.driver_area + 2, 2)

    @avail_idx.setter
    def avail_idx(self, value: int) -> None:
        store(self.memory, self.driver_area + 2, 2, value % 65536)

    def avail(self, slot: int) -> int:
        return load(self.memory, self.driver_area + 4 + 2 * slot, 2)

    def set_avail(self, slot: int, head: int) -> None:
        store(self.memory, self.driver_area + 4 + 2 * slot, 2, head)

    @property
    def used_event(self) -> int:
        return load(self.memory, self.driver_area + 4 + 2 * self.size, 2)

    @used_event.setter
    def used_event(self, value: int) -> None:
        store(self.memory, self.driver_area + 4 + 2 * self.size, 2, value)

    # The used ring (2.7.8): flags, idx, ring[size] of (id, len), avail_event.

    @property
    def used_flags(self) -> int:
        return load(self.memory, self.device_area, 2)

    @used_flags.setter
    def used_flags(self, value: int) -> None:
        store(self.memory, self.device_area, 2, value)

    @property
    def used_idx(self) -> int:
        return load(self.memory, self.device_area + 2, 2)

    @used_idx.setter
    def used_idx(self, value: int) -> None:
        store(self.memory, self.device_area + 2, 2, value % 65536)

    def used(self, slot: int) -> tuple[int, int]:
        at = self.device_area + 4 + 8 * slot
        return load(self.memory, at, 4), load(self.memory, at + 4, 4)

    def set_used(self, slot: int, id: int, length: int) -> None:
        at = self.device_area + 4 + 8 * slot
        store(self.memory, at, 4, id)
        store(self.memory, at + 4, 4, length)

    @property
    def avail_event(self) -> int:
        return load(self.memory, self.device_area + 4 + 8 * self.size, 2)

    @avail_event.setter
    def avail_event(self, value: int) -> None:
        store(self.memory, self.device_area + 4 + 8 * self.size, 2, value)


class SplitDriver(DriverHalf):
    """The driver half."""

    def __init__(
        self,
        memory: GuestMemory,
        features: int,
        size: int,
        desc: int,
        driver: int,
        device: int,
        *,
        indirect_table: int = 0,
        indirect_length: int = 0,
        position: Position | None = None,
    ) -> None:
        super().__init__(memory, features, size, indirect_table, indirect_length)
        self.ring = SplitRing(memory, size, desc, driver, device)
        self._initialize(position)

    def _initialize(self, position: Position | None) -> None:
        position = position or Position()
        # Flags begin as 0 (2.7.10.1), and so do indices (2.7.6, 2.7.8) unless a half goes on.
        self.ring.clear()
        self.ring.avail_idx = self.ring.used_idx = position.available
        self.last_used = position.used
        self.decided_at = position.available  # the available index at the last kick decision
        self.free_slots = list(range(self.size))
        # With IN_ORDER the table is used as a ring from slot 0 on (2.7.5).
        self.next_slot = position.descriptor

    @property
    def position(self) -> Position:
        slot = self.next_slot if self.in_order else 0
        return Position(available=self.ring.avail_idx, used=self.last_used, descriptor=slot)

    def _place(self, pieces: list[Piece], indirect: bool) -> tuple[int, list[int]]:
        slots = [self._allocate() for _ in (pieces[:1] if indirect else pieces)]
        head = slots[0]
        if indirect:
            # Entry i links to i + 1; with IN_ORDER this order is the only valid one (2.7.5.3).
            table = self.indirect_table + head * self.indirect_length * DESCRIPTOR_BYTES
            length = len(pieces) * DESCRIPTOR_BYTES
            for i, descriptor in enumerate(chain(pieces, list(range(len(pieces))))):
                descriptor.store(self.memory, table + i * DESCRIPTOR_BYTES)
            self.ring.set_desc(head, Descriptor(table, length, INDIRECT, 0))
        else:
            for slot, descriptor in zip(slots, chain(pieces, slots), strict=True):
                self.ring.set_desc(slot, descriptor)
        # The head goes into the next entry of the available ring (2.7.13.2).
        self.ring.set_avail((self.ring.avail_idx + self.unpublished) % self.size, head)
        return head, slots

    def _allocate(self) -> int:
        if not self.in_order:
            return self.free_slots.pop(0)
        slot = self.next_slot
        self.next_slot = (slot + 1) % self.size
        return slot

    def publish(self) -> int:
        # 2.7.13.3: idx grows by the number of heads, and that exposes all of them.
        published, self.unpublished = self.unpublished, 0
        self.ring.avail_idx += published
        return published

    def _kick_wanted(self) -> bool:
        old, new = self.decided_at, self.ring.avail_idx
        self.decided_at = new
        if self.event_idx:
            return need_event(self.ring.avail_event, new, old)
        return new != old and not self.ring.used_flags & NO_NOTIFICATION

    def _used_entry(self) -> tuple[int, int] | None:
        used_idx = self.ring.used_idx
        if (used_idx - self.last_used) % 65536 > len(self.added) - self.unpublished:
            raise Violation(f"used index {used_idx} counts more than was made available")
        if used_idx == self.last_used:
            return None
        # Also the first entry of a batch: it is written where the batch begins (2.7.9).
        return self.ring.used(self.last_used % self.size)

    def _skip(self, batch: list[Added]) -> None:
        if len(batch) > (self.ring.used_idx - self.last_used) % 65536:
            raise Violation("the batch ends beyond the used index")
        self.last_used = (self.last_used + len(batch)) % 65536
        if not self.in_order:
            for buffer in batch:
                self.free_slots += buffer.slots

    def enable_calls(self) -> bool:
        if self.event_idx:
            self.ring.used_event = self.last_used  # flags stay 0 (2.7.7.1)
        else:
            self.ring.avail_flags = 0
        return self.has_used  # look again: buffers may have been used meanwhile (2.7.14)

    def disable_calls(self) -> None:
        # With EVENT_IDX it is enough to leave used_event behind.
        if not self.event_idx:
            self.ring.avail_flags = NO_NOTIFICATION


def chain(pieces: list[Piece], slots: list[int]) -> list[Descriptor]:
    """The pieces as descriptors in these slots, each linked to the following slot (2.7.13.1)."""
    descriptors = []
    for piece, following in zip(pieces, [*slots[1:], None], strict=True):
        flags = (WRITE if piece.writable else 0) | (NEXT if following is not None else 0)
        descriptors.append(Descriptor(piece.address, piece.length, flags, following or 0))
    return descriptors


class SplitDevice(DeviceHalf):
    """The device half. It never writes the descriptor table (2.7.5.1)."""

    def __init__(
        self,
        memory: GuestMemory,
        features: int,
        size: int,
        desc: int,
        driver: int,
        device: int,
        *,
        position: Position | None = None,
        one_used_entry_per_buffer: bool = False,
    ) -> None:
        super().__init__(features, one_used_entry_per_buffer)
        self.memory = memory
        self.size = size
        self.ring = SplitRing(memory, size, desc, driver, device)
        self.restore(position or Position())

    def restore(self, position: Position) -> None:
        self.last_avail = position.available
        self.used_idx = position.used
        self.decided_at = position.used
        self.called_before = False
        self.next_slot: int | None = None  # where the driver must go on with IN_ORDER, once seen

    @property
    def position(self) -> Position:
        return Position(available=self.last_avail, used=self.used_idx)

    @property
    def has_available(self) -> bool:
        return self.ring.avail_idx != self.last_avail

    def _take_one(self) -> Taken | None:
        avail_idx = self.ring.avail_idx
        if (avail_idx - self.used_idx) % 65536 > self.size:
            raise Violation(f"available index {avail_idx} is more than a ring ahead")
        if avail_idx == self.last_avail:
            return None
        head = self.ring.avail(self.last_avail % self.size)
        slots, pieces, table = self._walk(head)
        self.last_avail = (self.last_avail + 1) % 65536
        if self.in_order:
            # The table is used as a ring (2.7.5).
            if self.next_slot not in (None, head):
                raise Violation(f"head {head}, in ring order it is {self.next_slot}")
            self.next_slot = (head + slots) % self.size
        return Taken(self.memory, head, slots, pieces, table)

    def _check_unchanged(self, buffer: Taken) -> None:
        """What was exposed may be read at any time until it is used (2.7.13.3)."""
        if self._walk(buffer.id) != (buffer.slots, buffer.pieces, buffer.table):
            raise Violation(f"the chain at {buffer.id} changed while it was outstanding")

    def _walk(self, head: int) -> tuple[int, list[Piece], tuple[int, int] | None]:
        """Descriptors of the ring that the chain takes, its pieces, its table (2.7.5)."""
        pieces: list[Piece] = []
        table: tuple[int, int] | None = None
        slot, slots = head, 0
        while True:
            if slot >= self.size:
                raise Violation(f"there is no descriptor {slot}")
            descriptor = self.ring.desc(slot)
            slots += 1
            if slots > self.size:
                raise Violation(f"the chain at {head} is a loop")
            if descriptor.flags & INDIRECT:
                # Zero or more direct descriptors, then one table (2.7.5.3.2); WRITE is ignored.
                if descriptor.flags & NEXT or not self.indirect:
                    raise Violation(f"descriptor {slot} must not be INDIRECT")
                table = descriptor.addr, descriptor.len
                pieces += self._walk_table(*table)
                break
            pieces.append(Piece(descriptor.addr, descriptor.len, bool(descriptor.flags & WRITE)))
            if not descriptor.flags & NEXT:
                break
            if self.in_order and descriptor.next != (slot + 1) % self.size:
                raise Violation(f"descriptor {slot} links to {descriptor.next}, not in ring order")
            slot = descriptor.next
        if any(a.writable and not b.writable for a, b in pairwise(pieces)):
            raise Violation("device-readable after device-writable (2.7.4.2)")
        if sum(piece.length for piece in pieces) > 1 << 32:
            raise Violation("a chain of more than 2^32 bytes (2.7.5.2)")
        return slots, pieces, table

    def _walk_table(self, addr: int, length: int) -> list[Piece]:
        """Entry 0 is the first, `next` counts entries of this table (2.7.5.3)."""
        entries, rest = divmod(length, DESCRIPTOR_BYTES)
        if rest or not 0 < entries <= MAX_INDIRECT:
            raise Violation(f"an indirect table of {length} bytes")
        pieces: list[Piece] = []
        entry = 0
        while True:
            if entry >= entries or len(pieces) >= entries:
                raise Violation(f"entry {entry} of {entries}: a loop, or beyond the table")
            descriptor = Descriptor.load(self.memory, addr + entry * DESCRIPTOR_BYTES)
            if descriptor.flags & INDIRECT:
                raise Violation(f"entry {entry} is itself INDIRECT")
            pieces.append(Piece(descriptor.addr, descriptor.len, bool(descriptor.flags & WRITE)))
            if not descriptor.flags & NEXT:
                return pieces
            if self.in_order and descriptor.next != entry + 1:
                raise Violation(f"entry {entry} links to {descriptor.next}, not in order")
            entry = descriptor.next

    def _untake(self, buffer: Taken) -> None:
        self.last_avail = (self.last_avail - 1) % 65536
        if self.in_order:
            self.next_slot = buffer.id

    def _use(self, batch: list[Taken]) -> None:
        # 2.7.9: one entry, at the slot of the batch's first buffer, naming the last one's head and
        # length; the slots of the skipped buffers stay as they are.
        last = batch[-1]
        assert last.written is not None
        self.ring.set_used(self.used_idx % self.size, last.id, last.written)
        self.used_idx = (self.used_idx + len(batch)) % 65536

    def _publish(self) -> None:
        self.ring.used_idx = self.used_idx  # after the entries (2.7.8.2)

    def _call_wanted(self) -> bool:
        old, new = self.decided_at, self.used_idx
        self.decided_at = new
        if old == new:
            return False
        first, self.called_before = not self.called_before, True
        if self.event_idx:
            # What an earlier owner of this half called for is unknown: the first one calls.
            return first or need_event(self.ring.used_event, new, old)
        return not self.ring.avail_flags & NO_NOTIFICATION

    def enable_kicks(self) -> bool:
        if self.event_idx:
            self.ring.avail_event = self.last_avail  # flags stay 0 (2.7.10.2)
        else:
            self.ring.used_flags = 0
        return self.has_available

    def disable_kicks(self) -> None:
        if not self.event_idx:
            self.ring.used_flags = NO_NOTIFICATION
