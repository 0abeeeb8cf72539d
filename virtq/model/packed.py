"""The packed virtqueue (2.8), to be read beside the text."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from .memory import (
    AVAIL,
    DESCRIPTOR_BYTES,
    INDIRECT,
    NEXT,
    USED,
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
from .notify import DESC, DISABLE, ENABLE, PackedEvent

MAX_INDIRECT = 32768


class Descriptor(NamedTuple):
    """struct pvirtq_desc (2.8.13)."""

    addr: int
    len: int
    id: int
    flags: int

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
        store(memory, at + 12, 2, self.id)
        store(memory, at + 14, 2, self.flags)  # last: it exposes the rest (2.8.21.1)


class Cursor(NamedTuple):
    """A slot of the ring and the wrap counter with which it is passed (2.8.1)."""

    slot: int
    wrap: int

    def advanced(self, slots: int, size: int) -> Cursor:
        """The counter changes each time the ring's last slot is passed."""
        laps, slot = divmod(self.slot + slots, size)
        return Cursor(slot, (self.wrap + laps) % 2)

    def back(self, slots: int, size: int) -> Cursor:
        laps, slot = divmod(self.slot - slots, size)
        return Cursor(slot, (self.wrap + laps) % 2)

    @property
    def available_flags(self) -> int:
        """AVAIL matches the wrap counter, USED does not (2.8.1)."""
        return AVAIL if self.wrap else USED

    @property
    def used_flags(self) -> int:
        """Both match the wrap counter (2.8.1)."""
        return AVAIL | USED if self.wrap else 0


class PackedRing:
    """The three parts in memory; no behaviour."""

    def __init__(self, memory: GuestMemory, size: int, desc: int, driver: int, device: int) -> None:
        self.memory = memory
        self.size = size
        self.desc_area = desc
        self.driver_area = driver
        self.device_area = device

    @staticmethod
    def areas(size: int, at: int = 0) -> Areas:
        """The parts one after the other, aligned as the table in 2.8.10.1 asks (16, 4, 4 bytes)."""
        desc = (at + 15) // 16 * 16
        driver = desc + 16 * size
        return Areas(desc, driver, driver + 4, driver + 8)

    def clear(self) -> None:
        self.memory.write(self.desc_area, bytes(16 * self.size))
        self.memory.write(self.driver_area, bytes(4))
        self.memory.write(self.device_area, bytes(4))

    def desc(self, slot: int) -> Descriptor:
        return Descriptor.load(self.memory, self.desc_area + DESCRIPTOR_BYTES * slot)

    def set_desc(self, slot: int, descriptor: Descriptor) -> None:
        descriptor.store(self.memory, self.desc_area + DESCRIPTOR_BYTES * slot)

    @property
    def driver_event(self) -> PackedEvent:
        """Written by the driver, controls used buffer notifications (2.8.10)."""
        return PackedEvent.load(self.memory, self.driver_area)

    @driver_event.setter
    def driver_event(self, event: PackedEvent) -> None:
        event.store(self.memory, self.driver_area)

    @property
    def device_event(self) -> PackedEvent:
        """Written by the device, controls available buffer notifications (2.8.10)."""
        return PackedEvent.load(self.memory, self.device_area)

    @device_event.setter
    def device_event(self, event: PackedEvent) -> None:
        event.store(self.memory, self.device_area)


def is_available(descriptor: Descriptor, at: Cursor) -> bool:
    return descriptor.flags & (AVAIL | USED) == at.available_flags


def is_used(descriptor: Descriptor, at: Cursor) -> bool:
    return descriptor.flags & (AVAIL | USED) == at.used_flags


class PackedDriver(DriverHalf):
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
        self.ring = PackedRing(memory, size, desc, driver, device)
        self._initialize(position)

    def _initialize(self, position: Position | None) -> None:
        position = position or Position(available_wrap=1, used_wrap=1)  # 2.8.1
        self.ring.clear()  # the ring is zero-initialized (2.8.13)
        self.next_avail = Cursor(position.available, position.available_wrap)
        self.next_used = Cursor(position.used, position.used_wrap)
        self.free_ids = list(range(self.size))
        self.heads: list[tuple[int, Descriptor]] = []  # written at publish, until then withheld
        self.passed: list[tuple[int, int]] = []  # made available since the last kick decision

    @property
    def position(self) -> Position:
        return Position(*self.next_avail, *self.next_used)

    def _place(self, pieces: list[Piece], indirect: bool) -> tuple[int, list[int]]:
        id = self.free_ids.pop(0)
        if indirect:
            table = self.indirect_table + id * self.indirect_length * DESCRIPTOR_BYTES
            for i, piece in enumerate(pieces):
                # WRITE is the only flag in a table, entries follow one another (2.8.7).
                flags = WRITE if piece.writable else 0
                entry = Descriptor(piece.address, piece.length, 0, flags)
                entry.store(self.memory, table + i * DESCRIPTOR_BYTES)
            length = len(pieces) * DESCRIPTOR_BYTES
            descriptors = [Descriptor(table, length, id, INDIRECT)]
        else:
            # NEXT on all but the last, which carries the Buffer ID (2.8.6).
            descriptors = [
                Descriptor(p.address, p.length, 0, NEXT | (WRITE if p.writable else 0))
                for p in pieces
            ]
            last = descriptors[-1]
            descriptors[-1] = last._replace(id=id, flags=last.flags & ~NEXT)
        slots: list[int] = []
        for descriptor in descriptors:
            at = self.next_avail
            flagged = descriptor._replace(flags=descriptor.flags | at.available_flags)
            if slots:
                self.ring.set_desc(at.slot, flagged)
            else:
                # The head exposes the list, so it is written after the rest (2.8.6).
                self.heads.append((at.slot, flagged))
            slots.append(at.slot)
            self.passed.append(at)
            self.next_avail = at.advanced(1, self.size)
        return id, slots

    def publish(self) -> int:
        published, self.unpublished = self.unpublished, 0
        for slot, descriptor in reversed(self.heads):
            self.ring.set_desc(slot, descriptor)
        self.heads = []
        return published

    def _kick_wanted(self) -> bool:
        passed, self.passed = self.passed, []
        if not passed:
            return False
        return self.ring.device_event.wanted(self.size, self.event_idx, passed)

    def _used_entry(self) -> tuple[int, int] | None:
        """The single location that is polled (2.8.2)."""
        if len(self.added) == self.unpublished:
            return None  # nothing can be used; the slot may hold anything
        descriptor = self.ring.desc(self.next_used.slot)
        if not is_used(descriptor, self.next_used):
            return None
        # Without WRITE the length is reserved (2.8.4). QEMU's devices never set the flag, though
        # their length is right: it is believed if the buffer has the room.
        rooms = [buffer.writable for buffer in self.added if buffer.id == descriptor.id]
        claimed = descriptor.flags & WRITE or descriptor.len <= sum(rooms)
        return descriptor.id, descriptor.len if claimed else 0

    def _skip(self, batch: list[Added]) -> None:
        """Past all slots of the list or batch, of which only the first was written (2.8.2)."""
        for buffer in batch:
            self.next_used = self.next_used.advanced(len(buffer.slots), self.size)
            self.free_ids.append(buffer.id)

    def enable_calls(self) -> bool:
        flags = DESC if self.event_idx else ENABLE
        self.ring.driver_event = PackedEvent(*self.next_used, flags)
        return self.has_used  # look again: buffers may have been used meanwhile (2.8.22)

    def disable_calls(self) -> None:
        self.ring.driver_event = PackedEvent(0, 0, DISABLE)


class PackedDevice(DeviceHalf):
    """The device half."""

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
        self.ring = PackedRing(memory, size, desc, driver, device)
        self.restore(position or Position(available_wrap=1, used_wrap=1))  # 2.8.1

    def restore(self, position: Position) -> None:
        self.next_avail = Cursor(position.available, position.available_wrap)
        self.next_used = Cursor(position.used, position.used_wrap)
        self.passed: list[tuple[int, int]] = []  # used since the last call decision
        self.called_before = False

    @property
    def position(self) -> Position:
        return Position(*self.next_avail, *self.next_used)

    @property
    def has_available(self) -> bool:
        """The single location that is polled (2.8.2). With the ring full of buffers that are taken,
        it holds the oldest of them, flagged for the other lap."""
        return is_available(self.ring.desc(self.next_avail.slot), self.next_avail)

    def _take_one(self) -> Taken | None:
        if not self.has_available:
            return None
        at, slots = self.next_avail, 0
        pieces: list[Piece] = []
        table: tuple[int, int] | None = None
        while True:
            descriptor = self.ring.desc(at.slot)
            if not is_available(descriptor, at):
                raise Violation(f"slot {at.slot} is part of a list, but not available (2.8.6)")
            slots += 1
            if slots > self.size:
                raise Violation("a list longer than the ring (2.8.17)")
            at = at.advanced(1, self.size)
            if descriptor.flags & INDIRECT:
                if descriptor.flags & NEXT or slots > 1 or not self.indirect:
                    raise Violation("INDIRECT as part of a list, or not negotiated (2.8.19)")
                table = descriptor.addr, descriptor.len
                pieces += self._walk_table(*table)
                break
            pieces.append(Piece(descriptor.addr, descriptor.len, bool(descriptor.flags & WRITE)))
            if not descriptor.flags & NEXT:
                break
        if any(a.writable and not b.writable for a, b in pairwise(pieces)):
            raise Violation("device-readable after device-writable (2.8.17)")
        self.next_avail = at
        return Taken(self.memory, descriptor.id, slots, pieces, table)  # the last one's id (2.8.6)

    def _check_unchanged(self, buffer: Taken) -> None:
        """A table may be read at any time until it is used (2.8.21.1); slots of the ring may hold
        used descriptors by now."""
        if buffer.table and self._walk_table(*buffer.table) != buffer.pieces:
            raise Violation(f"the table of buffer {buffer.id} changed while it was outstanding")

    def _walk_table(self, addr: int, length: int) -> list[Piece]:
        """All of the table, one entry after the other; only WRITE counts in it (2.8.7)."""
        entries, rest = divmod(length, DESCRIPTOR_BYTES)
        if rest or not 0 < entries <= MAX_INDIRECT:
            raise Violation(f"an indirect table of {length} bytes")
        table = [Descriptor.load(self.memory, addr + i * DESCRIPTOR_BYTES) for i in range(entries)]
        return [Piece(entry.addr, entry.len, bool(entry.flags & WRITE)) for entry in table]

    def _untake(self, buffer: Taken) -> None:
        self.next_avail = self.next_avail.back(buffer.slots, self.size)

    def _use(self, batch: list[Taken]) -> None:
        # 2.8.8: one used descriptor over the batch's first slot, with the last buffer's ID and
        # length; its flags follow the wrap counter of that slot, not of where the batch ends.
        last = batch[-1]
        assert last.written is not None
        flags = self.next_used.used_flags | (WRITE if last.written else 0)
        self.ring.set_desc(self.next_used.slot, Descriptor(0, last.written, last.id, flags))
        for _ in range(sum(buffer.slots for buffer in batch)):
            self.passed.append(self.next_used)
            self.next_used = self.next_used.advanced(1, self.size)

    def _publish(self) -> None:
        """Nothing is left to do: each used descriptor's flags published it (2.8.1)."""

    def _call_wanted(self) -> bool:
        passed, self.passed = self.passed, []
        if not passed:
            return False
        first, self.called_before = not self.called_before, True
        event = self.ring.driver_event
        wanted = event.wanted(self.size, self.event_idx, passed)
        # What an earlier owner of this half called for is unknown: the first one calls.
        return wanted or (first and event.flags == DESC)

    def enable_kicks(self) -> bool:
        flags = DESC if self.event_idx else ENABLE
        self.ring.device_event = PackedEvent(*self.next_avail, flags)
        return self.has_available

    def disable_kicks(self) -> None:
        self.ring.device_event = PackedEvent(0, 0, DISABLE)
