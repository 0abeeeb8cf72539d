"""Drivers that get one thing wrong in a split virtqueue, or when they set any virtqueue up."""

from __future__ import annotations

import time

from tests.check.drivers.mutants import PARTS_WAY, REFERENCES, catches
from tests.check.drivers.reference import Packed, Queue, Reference, Split
from virtq.model.memory import NEXT, Added, Piece, Position
from virtq.model.notify import NO_NOTIFICATION
from virtq.transports.vhost_user import Frontend


class StartsLate(Reference):
    """Takes a ring over close to where its indices wrap around."""

    def begin(self, packed: bool) -> Position | None:
        return None if packed else Position(available=65000, used=65000)


REFERENCES["driver.split.the_index_wraps_at_65536"] = (StartsLate,)

# As it is set up


@catches("split.the_descriptor_table_is_aligned", "packed.the_descriptor_ring_is_aligned")
class ShiftsDescriptors(Reference):
    shifts = (8, 0, 0)


@catches("split.the_available_ring_is_aligned", "packed.the_driver_event_structure_is_aligned")
class ShiftsDriverArea(Reference):
    shifts = (0, 1, 0)


@catches("split.the_used_ring_is_aligned", "packed.the_device_event_structure_is_aligned")
class ShiftsDeviceArea(Reference):
    shifts = (0, 0, 2)


@catches("split.sizes_are_powers_of_two")
class TwelveSlots(Reference):
    ring_size = 12


@catches("split.sizes_are_powers_of_two", "packed.sizes_are_32768_at_most")
class EndlessRings(Reference):
    ring_size = 65536
    ram_bytes = 8 << 20

    def connect(self) -> Frontend:
        transport = super().connect()
        for ring in transport._negotiation.rings:
            ring.size_max = self.ring_size
        return transport


@catches("split.used_flags_begin_as_zero")
class LeavesUsedFlags(Reference):
    def prepare(self, ring: Queue) -> None:
        if isinstance(ring.half, Split):
            ring.half.ring.used_flags = 1


@catches("split.only_the_device_writes_the_used_ring")
class TidiesUp(Reference):
    class split(Split):
        def _skip(self, batch: list[Added]) -> None:
            self.ring.set_used(self.last_used % self.size, 0xFFFF, 0)
            super()._skip(batch)


# Buffers in it


class Placing(Split):
    """A half that spoils one of its buffers."""

    placed = 0

    def _place(self, pieces: list[Piece], indirect: bool) -> tuple[int, list[int]]:
        id, slots = super()._place(pieces, indirect)
        self.placed += 1
        if self.placed >= PARTS_WAY and not indirect:
            self.spoil(slots)
        return id, slots

    def spoil(self, slots: list[int]) -> None:
        raise NotImplementedError

    def change(self, slot: int, **fields: int) -> None:
        self.ring.set_desc(slot, self.ring.desc(slot)._replace(**fields))


@catches("split.no_chain_of_more_than_4_gib")
class Gigantic(Reference):
    class split(Placing):
        def spoil(self, slots: list[int]) -> None:
            for slot in slots:
                self.change(slot, len=0xFFFF_FFFF)


@catches("split.no_chain_is_a_loop", "split.no_chain_is_longer_than_the_queue")
class Loops(Reference):
    class split(Placing):
        def spoil(self, slots: list[int]) -> None:
            last = self.ring.desc(slots[-1])
            self.change(slots[-1], flags=last.flags | NEXT, next=slots[0])


@catches("split.entries_name_heads")
class NamesNothing(Reference):
    class split(Placing):
        def spoil(self, slots: list[int]) -> None:
            at = (self.ring.avail_idx + self.unpublished) % self.size
            self.ring.set_avail(at, self.size + 3)


@catches("split.entries_name_heads")
class NamesTheMiddle(Reference):
    class split(Placing):
        def spoil(self, slots: list[int]) -> None:
            longer = [other for other in self.added if len(other.slots) > 1]
            if longer:
                at = (self.ring.avail_idx + self.unpublished) % self.size
                self.ring.set_avail(at, longer[-1].slots[1])


@catches("split.the_index_counts_buffers_from_zero")
class CountsTooFar(Reference):
    class split(Split):
        def publish(self) -> int:
            published = super().publish()
            if published:
                self.ring.avail_idx += 1
            return published


@catches("split.the_index_counts_buffers_from_zero")
class BeginsAtThree(Reference):
    def prepare(self, ring: Queue) -> None:
        if isinstance(ring.half, Split):
            ring.half.ring.avail_idx = 3


@catches("split.the_index_never_goes_back")
class Recalls(Reference):
    class split(Split):
        turns = 0

        def publish(self) -> int:
            published = super().publish()
            self.turns += 1
            if published and self.turns > PARTS_WAY:
                self.ring.avail_idx -= self.size + 1
                time.sleep(0.02)
            return published


@catches("split.the_index_wraps_at_65536")
class WrapsAt65535(StartsLate):
    class split(Split):
        def publish(self) -> int:
            before = self.ring.avail_idx
            published = super().publish()
            if self.ring.avail_idx < before:
                self.ring.avail_idx += 1
            return published


@catches("split.available_flags_are_0_or_1")
class FlagsOfItsOwn(Reference):
    class split(Split):
        def enable_calls(self) -> bool:
            self.ring.avail_flags = 2
            return self.has_used


@catches("split.available_flags_are_0_with_event_idx")
class FlagsWithEvents(Reference):
    class split(Split):
        def disable_calls(self) -> None:
            self.ring.avail_flags = NO_NOTIFICATION


@catches("split.in_order_slots_follow_one_another")
class LeavesAGap(Reference):
    class split(Split):
        allocated = 0

        def _allocate(self) -> int:
            self.allocated += 1
            if self.in_order and self.allocated == PARTS_WAY:
                self.next_slot = (self.next_slot + 1) % self.size
            return super()._allocate()


@catches("split.in_order_next_is_the_next_slot")
class LinksAcross(Reference):
    class split(Placing):
        def spoil(self, slots: list[int]) -> None:
            if len(slots) == 3:
                first, second, third = slots
                pieces = [self.ring.desc(slot) for slot in slots]
                self.ring.set_desc(first, pieces[0]._replace(next=third))
                self.ring.set_desc(third, pieces[1]._replace(next=second))
                self.ring.set_desc(second, pieces[2])


class Backwards(Reference):
    """The device-writable elements first."""

    class split(Split):
        def _place(self, pieces: list[Piece], indirect: bool) -> tuple[int, list[int]]:
            return super()._place(pieces[::-1], indirect)

    class packed(Packed):
        def _place(self, pieces: list[Piece], indirect: bool) -> tuple[int, list[int]]:
            return super()._place(pieces[::-1], indirect)


catches("split.writable_elements_come_last", "packed.writable_elements_come_last")(Backwards)


@catches("split.what_is_exposed_stays", "packed.what_is_available_stays")
class ChangesItsMind(Reference):
    def sleep(self) -> None:
        for ring in self.rings.values():
            if ring.half.added:
                at = ring.areas[0] + 16 * ring.half.added[-1].slots[0] + 8
                self.transport.memory.write(at, (14).to_bytes(4, "little"))
        super().sleep()
