"""The device's half of a driver's packed virtqueue, which sees and writes down more than it needs.

It reads a buffer descriptor by descriptor before the model takes it, however little sense it makes,
and can write what no device should.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from virtq._core import Memory
from virtq.check.driver.record import KEPT_ENTRIES, TABLE_ENTRIES, Chain, Queue, Slot
from virtq.check.picture import packed_slots
from virtq.check.waiting import MOMENT_S, turns
from virtq.model.memory import DESCRIPTOR_BYTES, WRITE, Position, Taken, load, store
from virtq.model.packed import Descriptor, PackedDevice, PackedRing, is_available


class DressedRing(PackedRing):
    """A ring on which `dress` has a last look at each used descriptor before it is written."""

    dress: Callable[[Descriptor], Descriptor] | None = None

    def set_desc(self, slot: int, descriptor: Descriptor) -> None:
        super().set_desc(slot, self.dress(descriptor) if self.dress else descriptor)


class PackedHalf(PackedDevice):
    """`seen`: where it is written down."""

    def __init__(self, memory: Memory, seen: Queue, position: Position) -> None:
        """Raises VirtqError if the areas are not in the driver's memory."""
        areas = seen.desc, seen.driver, seen.device
        super().__init__(memory, seen.features, seen.size, *areas, position=position)
        self._seen = seen
        self.ring: DressedRing = DressedRing(memory, seen.size, *areas)
        self.entries: deque[dict[str, Any]] = deque(maxlen=KEPT_ENTRIES)
        """Used descriptors that it wrote."""
        self._overwritten: set[int] = set()
        """Slots that a used descriptor was written to since they were made available."""
        self._left: dict[int, Descriptor] = {}
        """What each slot held when either side was done with it."""
        self._look_at_start()

    def _look_at_start(self) -> None:
        self._seen.device_words_at_start = self.device_words()
        is_fresh = self.position == Position(0, 1, 0, 1, 0)
        for slot in range(self.size if is_fresh else 0):
            descriptor = self.ring.desc(slot)
            if any(descriptor) and not is_available(descriptor, self.next_avail):
                self._seen.stale_at_start.append(slot)

    def _use(self, batch: list[Taken]) -> None:
        slot = self.next_used.slot
        super()._use(batch)
        written = self.ring.desc(slot)
        self._keep(slot, written)
        self.entries.append(
            {
                "slot": slot,
                "id": written.id,
                "length": written.len,
                "flags": written.flags,
                "covers": len(batch),
            }
        )

    def _keep(self, slot: int, written: Descriptor) -> None:
        self._overwritten.add(slot)
        self._left[slot] = written

    # Words beside the entries

    def driver_words(self) -> tuple[int, int]:
        """The two words of the driver's event suppression structure."""
        return self._words(self.ring.driver_area)

    def device_words(self) -> tuple[int, int]:
        """The two words of the device's event suppression structure."""
        return self._words(self.ring.device_area)

    def _words(self, at: int) -> tuple[int, int]:
        return load(self.memory, at, 2), load(self.memory, at + 2, 2)

    def set_device_words(self, first: int, second: int) -> None:
        at = self.ring.device_area
        store(self.memory, at, 2, first)
        store(self.memory, at + 2, 2, second)

    # What becomes available

    def next_chain(self, number: int) -> Chain | None:
        """The next buffer as it stands in the ring; None if there is none."""
        at = self.next_avail
        if not is_available(self.ring.desc(at.slot), at):
            return None
        chain = Chain(self._seen.index, number, at.slot, at.wrap, 0, [])
        while True:
            raw = self.ring.desc(at.slot)
            descriptor = _slot(at.slot, raw)
            chain.descriptors.append(descriptor)
            self._overwritten.discard(at.slot)
            self._left[at.slot] = raw
            if not is_available(raw, at):
                chain.fault = f"slot {at.slot} is part of the list, but not available"
                break
            if descriptor.indirect and chain.table is None:
                self._read_table(chain, descriptor)
            if not descriptor.has_next:
                break
            if len(chain.descriptors) >= self.size:
                chain.fault = "a list longer than the ring"
                break
            at = at.advanced(1, self.size)
        chain.id = chain.descriptors[-1].id
        return chain

    def _read_table(self, chain: Chain, descriptor: Slot) -> None:
        entries = min(descriptor.len // DESCRIPTOR_BYTES, TABLE_ENTRIES)
        chain.table, chain.table_bytes = [], descriptor.len
        for i in range(entries):
            address = descriptor.addr + i * DESCRIPTOR_BYTES
            chain.table.append(_slot(i, Descriptor.load(self.memory, address)))

    # What was exposed has to stay

    def as_it_is(self, before: Slot) -> Slot:
        """A descriptor as it is now, in what the driver must not change."""
        if before.slot in self._overwritten:
            return before
        return _slot(before.slot, self.ring.desc(before.slot))

    def audit(self) -> None:
        """Note a descriptor that was written where the next one is due, but not made available
        there. One that is being written becomes available in a moment. Where nothing was ever
        available only the flags count: what else is in a new ring is a case by itself."""
        at = self.next_avail
        before = self._left.get(at.slot)
        for _ in turns(MOMENT_S):
            raw = self.ring.desc(at.slot)
            same = raw == before if before else raw.flags == 0
            if same or is_available(raw, at) or self._seen.broken:
                return
        other = at._replace(wrap=at.wrap ^ 1)
        about = "wrap" if is_available(raw, other) else "encoding"
        self._seen.fault(about, f"slot {at.slot} holds {raw}, with a wrap counter of {at.wrap}")

    # What no device should do

    def lie(self, id: int, length: int) -> None:
        """Write a used descriptor where the next one is due."""
        at = self.next_used
        descriptor = Descriptor(0, length, id, at.used_flags | WRITE)
        self.ring.set_desc(at.slot, descriptor)
        self._keep(at.slot, descriptor)

    def picture(self) -> dict[str, Any]:
        """The ring as it stands, for a report."""
        ring = self.ring
        return {
            "device position": list(self.position),
            "driver event": list(ring.driver_event),
            "device event": list(ring.device_event),
            "slots": packed_slots(ring),
        }


def _slot(at: int, descriptor: Descriptor) -> Slot:
    return Slot(at, descriptor.addr, descriptor.len, descriptor.flags, descriptor.id, 0)
