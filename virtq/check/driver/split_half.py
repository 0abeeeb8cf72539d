"""The device's half of a driver's split virtqueue, which sees and writes down more than it needs.

It reads a buffer descriptor by descriptor before the model takes it, however little sense it makes,
and can write what no device should.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from virtq._core import Memory
from virtq.check.driver.record import KEPT_CHAINS, KEPT_ENTRIES, TABLE_ENTRIES, Chain, Queue, Slot
from virtq.check.picture import split_slots
from virtq.model.memory import DESCRIPTOR_BYTES, Position, Taken, Violation, load
from virtq.model.split import Descriptor, SplitDevice


class SplitHalf(SplitDevice):
    """`seen`: where it is written down."""

    def __init__(self, memory: Memory, seen: Queue, position: Position) -> None:
        """Raises VirtqError if the areas are not in the driver's memory."""
        areas = seen.desc, seen.driver, seen.device
        super().__init__(memory, seen.features, seen.size, *areas, position=position)
        self._seen = seen
        self.entries: deque[dict[str, Any]] = deque(maxlen=KEPT_ENTRIES)
        """Used entries that it wrote."""
        seen.device_words_at_start = self.ring.used_flags, self.ring.used_idx
        seen.indices.append(self.ring.avail_idx)

    def _use(self, batch: list[Taken]) -> None:
        slot = self.used_idx % self.size
        super()._use(batch)
        id, length = self.ring.used(slot)
        self.entries.append({"slot": slot, "id": id, "length": length, "covers": len(batch)})

    # Words beside the entries

    def driver_words(self) -> tuple[int, int]:
        """Flags and used_event of the available ring; its index is written down."""
        self._note_index(self.ring.avail_idx)
        at = self.ring.driver_area
        return load(self.memory, at, 2), load(self.memory, at + 4 + 2 * self.size, 2)

    def device_words(self) -> tuple[int, int]:
        """Flags and avail_event of the used ring."""
        return self.ring.used_flags, self.ring.avail_event

    def set_device_words(self, first: int, second: int) -> None:
        """`second` counts on from the index: it may be larger than 16 bits."""
        self.ring.used_flags = first
        self.ring.avail_event = second % 65536

    def _note_index(self, idx: int) -> None:
        indices = self._seen.indices
        if idx != indices[-1] and len(indices) < KEPT_CHAINS:
            indices.append(idx)

    # What becomes available

    def next_chain(self, number: int) -> Chain | None:
        """The next buffer as it stands in the ring; None if there is none. Raises Violation for an
        index that cannot be."""
        idx = self.ring.avail_idx
        # It may have grown since the look began; what is used next lets it grow by as much again.
        self._note_index(idx)
        if idx == self.last_avail:
            return None
        if (idx - self.used_idx) % 65536 > self.size:
            raise Violation(f"available index {idx} is more than a ring ahead")
        slot = self.last_avail % self.size
        head = self.ring.avail(slot)
        chain = Chain(self._seen.index, number, slot, 0, head, [])
        at, count = head, 0
        while True:
            if at >= self.size:
                chain.fault = f"there is no descriptor {at}"
                break
            if count >= 2 * self.size:
                chain.fault = "a loop"
                break
            descriptor = _slot(at, self.ring.desc(at))
            chain.descriptors.append(descriptor)
            count += 1
            if descriptor.indirect:
                self._follow_table(chain, descriptor)
            if not descriptor.has_next:
                break
            at = descriptor.next
        return chain

    def _follow_table(self, chain: Chain, descriptor: Slot) -> None:
        entries = min(descriptor.len // DESCRIPTOR_BYTES, TABLE_ENTRIES)
        chain.table, chain.table_bytes = [], descriptor.len
        at = 0
        while at < entries and len(chain.table) <= entries:
            address = descriptor.addr + at * DESCRIPTOR_BYTES
            entry = _slot(at, Descriptor.load(self.memory, address))
            chain.table.append(entry)
            if not entry.has_next:
                return
            at = entry.next
        chain.fault = f"the indirect table goes on at entry {at} of {entries}"

    # What was exposed has to stay

    def as_it_is(self, before: Slot) -> Slot:
        """A descriptor as it is now, in what the driver must not change."""
        now = _slot(before.slot, self.ring.desc(before.slot))
        return now if before.has_next else now._replace(next=before.next)

    def audit(self) -> None:
        """Note what the driver wrote into the used ring."""
        if self._seen.broken:
            return
        if self.ring.used_idx != self.used_idx:
            text = f"the used index is {self.ring.used_idx}, the device wrote {self.used_idx}"
            self._seen.fault("device area", text)
        newest = {entry["slot"]: entry for entry in self.entries}
        for slot, entry in newest.items():
            if (now := self.ring.used(slot)) != (entry["id"], entry["length"]):
                self._seen.fault("device area", f"used entry {slot} is {now}, written was {entry}")

    # What no device should do

    def lie(self, id: int, length: int, covers: int) -> None:
        """Write a used entry that the index then counts as so many buffers."""
        self.forge(self.used_idx, id, length, covers)
        self.used_idx = (self.used_idx + covers) % 65536
        self.ring.used_idx = self.used_idx

    def forge(self, at: int, id: int, length: int, covers: int = 1) -> None:
        """Write a used entry where this used index is, which does not count it yet."""
        slot = at % self.size
        self.ring.set_used(slot, id, length)
        self.entries.append({"slot": slot, "id": id, "length": length, "covers": covers})

    def picture(self) -> dict[str, Any]:
        """The ring as it stands, for a report."""
        ring = self.ring
        return {
            "available": {
                "flags": ring.avail_flags,
                "idx": ring.avail_idx,
                "used_event": ring.used_event,
            },
            "used": {
                "flags": ring.used_flags,
                "idx": ring.used_idx,
                "avail_event": ring.avail_event,
            },
            "device position": list(self.position),
            "slots": split_slots(ring),
        }


def _slot(at: int, descriptor: Descriptor) -> Slot:
    return Slot(at, descriptor.addr, descriptor.len, descriptor.flags, 0, descriptor.next)
