"""Drivers that get one thing wrong in a packed virtqueue."""

from __future__ import annotations

import time

from tests.check.drivers.mutants import catches
from tests.check.drivers.reference import Asked, Packed, Queue, Reference
from virtq.model.memory import NEXT, Piece, Position
from virtq.model.notify import PackedEvent
from virtq.model.packed import Cursor
from virtq.model.packed import Descriptor as PackedDescriptor


@catches("packed.the_ring_begins_as_zero")
class LeavesRubbish(Reference):
    def prepare(self, ring: Queue) -> None:
        if isinstance(ring.half, Packed):
            ring.half.ring.set_desc(ring.size - 1, PackedDescriptor(0x1000, 2, 3, 0))


@catches("packed.available_as_the_wrap_counter_says")
class BeginsWithZero(Reference):
    class packed(Packed):
        def _initialize(self, position: Position | None) -> None:
            super()._initialize(position)
            self.next_avail = Cursor(0, 0)


@catches("packed.available_as_the_wrap_counter_says")
class NeverWraps(Reference):
    class packed(Packed):
        def _place(self, pieces: list[Piece], indirect: bool) -> tuple[int, list[int]]:
            placed = super()._place(pieces, indirect)
            self.next_avail = self.next_avail._replace(wrap=1)
            return placed


@catches("packed.available_as_the_wrap_counter_says")
class SetsBothBits(Reference):
    class packed(Packed):
        def publish(self) -> int:
            self.heads = [
                (slot, descriptor._replace(flags=descriptor.flags | 1 << 7 | 1 << 15))
                for slot, descriptor in self.heads
            ]
            return super().publish()


class PackedPlacing(Packed):
    """A half that spoils its lists."""

    def _place(self, pieces: list[Piece], indirect: bool) -> tuple[int, list[int]]:
        id, slots = super()._place(pieces, indirect)
        if len(slots) > 1:
            self.spoil(slots)
        return id, slots

    def spoil(self, slots: list[int]) -> None:
        raise NotImplementedError

    def change(self, slot: int, **fields: int) -> None:
        self.ring.set_desc(slot, self.ring.desc(slot)._replace(**fields))

    def change_head(self, **fields: int) -> None:
        slot, head = self.heads[-1]
        self.heads[-1] = slot, head._replace(**fields)


@catches("packed.every_descriptor_of_a_list_is_available")
class FlagsOnlyTheHead(Reference):
    class packed(PackedPlacing):
        def spoil(self, slots: list[int]) -> None:
            last = self.ring.desc(slots[-1])
            self.change(slots[-1], flags=last.flags & ~(1 << 7 | 1 << 15))


@catches(
    "packed.every_descriptor_of_a_list_is_available",
    "packed.lists_are_whole_though_nothing_is_used",
)
class BeginsWithoutRoom(Reference):
    """Writes the first descriptors of a list into a ring that has no room for all."""

    def fill(self, ring: Queue) -> None:
        super().fill(ring)
        half = ring.half
        if isinstance(half, Packed) and 0 < half.free < 3:
            half.publish()
            at = half.next_avail
            flags = NEXT | at.available_flags
            half.ring.set_desc(at.slot, PackedDescriptor(ring.areas[0], 16, 0, flags))


@catches("packed.every_descriptor_of_a_list_is_available")
class HeadFirst(Reference):
    class packed(PackedPlacing):
        def spoil(self, slots: list[int]) -> None:
            rest = [self.ring.desc(slot) for slot in slots[1:]]
            for slot, descriptor in zip(slots[1:], rest, strict=True):
                self.ring.set_desc(slot, descriptor._replace(flags=0))
            self.publish()
            time.sleep(0.002)
            for slot, descriptor in zip(slots[1:], rest, strict=True):
                self.ring.set_desc(slot, descriptor)


@catches("packed.no_list_is_longer_than_the_queue")
class GoesOnForEver(Reference):
    class packed(PackedPlacing):
        def spoil(self, slots: list[int]) -> None:
            if len(slots) == self.size:
                self.change(slots[-1], flags=self.ring.desc(slots[-1]).flags | NEXT)

    def ask(self, queue: int, number: int) -> Asked:
        if number:
            return super().ask(queue, number)
        return Asked([b"x"] * self.ring_size, [])


@catches("packed.the_last_descriptor_has_the_buffer_id")
class NamesTheFirst(Reference):
    class packed(PackedPlacing):
        def spoil(self, slots: list[int]) -> None:
            self.change_head(id=self.ring.desc(slots[-1]).id)
            self.change(slots[-1], id=0)


@catches("packed.descriptor_events_need_event_idx")
class WantsDescriptors(Reference):
    class packed(Packed):
        def enable_calls(self) -> bool:
            self.ring.driver_event = PackedEvent(*self.next_used, 2)
            return self.has_used


@catches("packed.event_words_have_no_reserved_bits")
class WantsTheReserved(Reference):
    class packed(Packed):
        def enable_calls(self) -> bool:
            self.ring.driver_event = PackedEvent(0, 0, 3)
            return self.has_used


@catches("packed.event_words_have_no_reserved_bits")
class LeavesBitsAbove(Reference):
    class packed(Packed):
        def enable_calls(self) -> bool:
            self.ring.driver_event = PackedEvent(0, 0, 0x40)
            return self.has_used


@catches("packed.event_offsets_are_in_the_ring")
class WantsWhatIsNotThere(Reference):
    class packed(Packed):
        def enable_calls(self) -> bool:
            event = PackedEvent(self.size + 1, 0, 2) if self.event_idx else PackedEvent(0, 0, 0)
            self.ring.driver_event = event
            return self.has_used


@catches("packed.only_the_device_writes_its_event_structure")
class WritesTheDevicesEvent(Reference):
    class packed(Packed):
        def disable_calls(self) -> None:
            super().disable_calls()
            self.ring.device_event = PackedEvent(7, 1, 0)
