"""Drivers that get one thing wrong, and the cases that must notice.

A mutant is a reference with one method, or one method of its ring's half, replaced. `CATCHES` says
which cases have to fail on it, in at least one kind of ring. Here are those about virtqueues; the
files `mutants_*.py` beside this one have the rest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from tests.check.drivers.reference import (
    Asked,
    EntropyReference,
    NetReference,
    Packed,
    Queue,
    Reference,
    Split,
    ok,
    random_bytes,
    whole,
)
from virtq.model.memory import INDIRECT, NEXT, Added, Piece, Position
from virtq.model.notify import NO_NOTIFICATION, PackedEvent, need_event
from virtq.model.packed import Cursor
from virtq.model.packed import Descriptor as PackedDescriptor
from virtq.model.split import Descriptor as SplitDescriptor
from virtq.transports.vhost_user import Frontend
from virtq.wire import blk

CATCHES: dict[type[Reference], tuple[str, ...]] = {}
REFERENCES: dict[str, tuple[type[Reference], ...]] = {}
"""The drivers that are right, by case or area: each case has to pass on one of them, and to fail on
none. What is not here has the reference alone."""

PARTS_WAY = 7
"""Which of the buffers a mutant spoils, if it is one."""


def catches(*cases: str) -> Callable[[type[Reference]], type[Reference]]:
    def register(mutant: type[Reference]) -> type[Reference]:
        CATCHES[mutant] = tuple(f"driver.{name}" for name in cases)
        return mutant

    return register


class StartsLate(Reference):
    """Takes a ring over close to where its indices wrap around."""

    def begin(self, packed: bool) -> Position | None:
        return None if packed else Position(available=65000, used=65000)


REFERENCES["driver.split.the_index_wraps_at_65536"] = (StartsLate,)
REFERENCES["driver.in_order.a_short_buffer_ends_its_batch"] = (EntropyReference,)
REFERENCES["driver.using.a_length_without_write"] = (NetReference,)


# The split ring, as it is set up


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


# The packed ring


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


# Indirect tables


class Unasked(Reference):
    """Has tables without the feature."""

    def prepare(self, ring: Queue) -> None:
        ring.half.indirect_table = ring.driver.arena.alloc(16 * 64 * 2, 16).addr


catches("indirect.no_table_without_the_feature", "indirect.no_packed_table_without_the_feature")(
    Unasked
)


class Tables(Split):
    """A half that spoils its tables."""

    def _place(self, pieces: list[Piece], indirect: bool) -> tuple[int, list[int]]:
        id, slots = super()._place(pieces, indirect)
        if indirect:
            self.spoil(id, self.ring.desc(id).addr, len(pieces))
        return id, slots

    def spoil(self, slot: int, table: int, entries: int) -> None:
        raise NotImplementedError

    def entry(self, table: int, at: int) -> SplitDescriptor:
        return SplitDescriptor.load(self.memory, table + 16 * at)


@catches("indirect.no_table_in_a_table")
class Nests(Reference):
    class split(Tables):
        def spoil(self, slot: int, table: int, entries: int) -> None:
            last = self.entry(table, entries - 1)
            last._replace(flags=last.flags | INDIRECT).store(
                self.memory, table + 16 * (entries - 1)
            )


@catches("indirect.a_table_is_no_longer_than_the_queue")
class LongTables(Reference):
    table_entries = 32

    def ask(self, queue: int, number: int) -> Asked:
        header = blk.Header(blk.Type.OUT, 0).pack()
        return Asked([header, *([b"\0" * 64] * 24)], [1], ok)


@catches("indirect.nothing_after_a_table")
class GoesOnAfterATable(Reference):
    class split(Tables):
        def spoil(self, slot: int, table: int, entries: int) -> None:
            after = (slot + 1) % self.size
            self.ring.set_desc(slot, SplitDescriptor(table, 32, INDIRECT | NEXT, after))


@catches("indirect.a_table_is_followed_from_entry_0")
class BeginsAtEntry1(Reference):
    table_entries = 3

    class split(Tables):
        def spoil(self, slot: int, table: int, entries: int) -> None:
            for i in reversed(range(entries)):
                at = self.entry(table, i)
                at._replace(next=at.next + 1).store(self.memory, table + 16 * (i + 1))
            SplitDescriptor(0, 0, 0, 0).store(self.memory, table)

    def ask(self, queue: int, number: int) -> Asked:
        header = blk.Header(blk.Type.GET_ID, 0).pack()
        return Asked([header], [blk.ID_BYTES + 1], whole)


@catches("indirect.a_table_is_followed_from_entry_0")
class LeavesTheTable(Reference):
    class split(Tables):
        def spoil(self, slot: int, table: int, entries: int) -> None:
            last = self.entry(table, entries - 1)
            last._replace(flags=last.flags | NEXT, next=9).store(
                self.memory, table + 16 * (entries - 1)
            )


@catches("indirect.in_order_entries_follow_one_another")
class LinksAcrossATable(Reference):
    table_entries = 3

    class split(Tables):
        def spoil(self, slot: int, table: int, entries: int) -> None:
            if entries == 3:
                first, second, third = (self.entry(table, i) for i in range(3))
                first._replace(next=2).store(self.memory, table)
                second._replace(next=1).store(self.memory, table + 32)
                third.store(self.memory, table + 16)


class PackedTables(Packed):
    """A half that spoils its tables."""

    def _place(self, pieces: list[Piece], indirect: bool) -> tuple[int, list[int]]:
        id, slots = super()._place(pieces, indirect)
        if indirect:
            self.spoil(self.heads[-1][1].addr, len(pieces))
        return id, slots

    def spoil(self, table: int, entries: int) -> None:
        raise NotImplementedError

    def change(self, table: int, at: int, **fields: int) -> None:
        entry = PackedDescriptor.load(self.memory, table + 16 * at)
        entry._replace(**fields).store(self.memory, table + 16 * at)

    def change_head(self, **fields: int) -> None:
        slot, head = self.heads[-1]
        self.heads[-1] = slot, head._replace(**fields)


@catches("indirect.only_write_in_a_packed_table")
class LinksInAPackedTable(Reference):
    class packed(PackedTables):
        def spoil(self, table: int, entries: int) -> None:
            self.change(table, 0, flags=NEXT)


@catches("indirect.a_packed_table_stands_alone")
class ListsATable(Reference):
    class packed(PackedTables):
        def spoil(self, table: int, entries: int) -> None:
            self.change_head(flags=self.heads[-1][1].flags | NEXT)


@catches("indirect.a_packed_table_is_all_entries")
class HalfAnEntry(Reference):
    class packed(PackedTables):
        def spoil(self, table: int, entries: int) -> None:
            self.change_head(len=16 * entries - 8)


@catches("indirect.a_packed_table_is_all_entries")
class LeavesAnEntryOut(Reference):
    class packed(PackedTables):
        def spoil(self, table: int, entries: int) -> None:
            self.change(table, 0, addr=0, len=0)


# In-order use


class _All:
    """Takes a used entry for everything that is outstanding."""

    def collect(self) -> list[tuple[Added, int]]:
        added = self.added  # type: ignore[attr-defined]
        visible = added[: len(added) - self.unpublished]  # type: ignore[attr-defined]
        _, length = self.used_entry()  # type: ignore[attr-defined]
        before = len(self.collected)  # type: ignore[attr-defined]
        for buffer in visible:
            self.collected.append((buffer, min(length, buffer.writable)))  # type: ignore[attr-defined]
            added.remove(buffer)
        self._skip(visible)  # type: ignore[attr-defined]
        return self.collected[before:]  # type: ignore[attr-defined,no-any-return]


@catches("in_order.one_used_entry_for_each_buffer")
class TakesAllForUsed(Reference):
    class split(_All, Split):
        def _skip(self, batch: list[Added]) -> None:
            self.last_used = (self.last_used + len(batch)) % 65536
            if not self.in_order:
                for buffer in batch:
                    self.free_slots += buffer.slots

    class packed(_All, Packed):
        pass


class _One:
    """Takes a used entry for the buffer that it names, and for no other."""

    in_order: bool

    def collect(self) -> list[tuple[Added, int]]:
        in_order, self.in_order = self.in_order, False
        try:
            return super().collect()  # type: ignore[misc,no-any-return]
        finally:
            self.in_order = in_order


@catches(
    "in_order.one_used_entry_for_all",
    "in_order.batches_of_changing_size",
    "in_order.several_batches_before_a_notification",
    "in_order.a_batch_as_long_as_the_ring",
    "in_order.a_long_run_of_everything",
)
class FollowsTheIdentifierOnly(Reference):
    class split(_One, Split):
        pass

    class packed(_One, Packed):
        pass


class _Short:
    """Skipped buffers count as empty."""

    def collect(self) -> list[tuple[Added, int]]:
        before = len(self.collected)  # type: ignore[attr-defined]
        super().collect()  # type: ignore[misc]
        collected = self.collected  # type: ignore[attr-defined]
        for i in range(before, len(collected) - 1):
            collected[i] = collected[i][0], 0
        return collected[before:]  # type: ignore[no-any-return]


@catches("in_order.one_used_entry_for_all")
class TakesSkippedForEmpty(Reference):
    class split(_Short, Split):
        pass

    class packed(_Short, Packed):
        pass


@catches("in_order.one_used_entry_for_all", "in_order.batches_of_changing_size")
class StepsOverOne(Reference):
    """Goes on right behind the first buffer of a batch."""

    class packed(Packed):
        def _skip(self, batch: list[Added]) -> None:
            super()._skip(batch)
            slots = sum(len(buffer.slots) for buffer in batch[1:])
            self.next_used = self.next_used.back(slots, self.size)


# Use in any order


class _Oldest:
    """Takes a used entry for the oldest buffer, whatever it says."""

    def collect(self) -> list[tuple[Added, int]]:
        _, length = self.used_entry()  # type: ignore[attr-defined]
        buffer = self.added.pop(0)  # type: ignore[attr-defined]
        self.collected.append((buffer, length))  # type: ignore[attr-defined]
        self._skip([buffer])  # type: ignore[attr-defined]
        return self.collected[-1:]  # type: ignore[attr-defined,no-any-return]


@catches("using.the_last_is_used_first", "using.used_in_any_order")
class ReliesOnOrder(Reference):
    class split(_Oldest, Split):
        pass

    class packed(_Oldest, Packed):
        pass


@catches("using.the_last_is_used_first", "using.used_in_any_order")
class StepsBySlot(Reference):
    """Does not know how many slots the used buffer had."""

    class packed(Packed):
        def _skip(self, batch: list[Added]) -> None:
            for buffer in batch:
                self.next_used = self.next_used.advanced(1, self.size)
                self.free_ids.append(buffer.id)


@catches("using.a_length_without_write")
class BelievesEveryLength(NetReference):
    class packed(Packed):
        def used_entry(self) -> tuple[int, int] | None:
            entry = super().used_entry()
            return entry and (entry[0], self.ring.desc(self.next_used.slot).len)


@catches("in_order.a_short_buffer_ends_its_batch")
class TakesShortForFull(EntropyReference):
    def ask(self, queue: int, number: int) -> Asked:
        asked = super().ask(queue, number)
        return Asked([], asked.writable, lambda reply, written: random_bytes(reply, len(reply)))


@catches("using.buffers_come_in_this_kind_of_ring")
class AlwaysSplit(Reference):
    packed = Split  # type: ignore[assignment]


@catches("using.slowly_and_one_by_one")
class CannotWait(Reference):
    waited = 0

    def reap(self, ring: Queue) -> int:
        count = super().reap(ring)
        self.waited = 0 if count else self.waited + 1
        assert self.waited < 6, "the device does not answer"
        return count

    sleep_s = 0.001


def _assert_used(half: Packed, wrong: Callable[[PackedDescriptor], bool]) -> None:
    descriptor = half.ring.desc(half.next_used.slot)
    assert not wrong(descriptor), descriptor


@catches("using.an_address_in_used_descriptors")
class LooksAtTheAddress(Reference):
    class packed(Packed):
        def collect(self) -> list[tuple[Added, int]]:
            _assert_used(self, lambda used: used.addr > 1 << 48)
            return super().collect()


@catches("using.next_in_used_descriptors")
class LooksAtNext(Reference):
    class packed(Packed):
        def collect(self) -> list[tuple[Added, int]]:
            _assert_used(self, lambda used: bool(used.flags & NEXT))
            return super().collect()


# Notifications


@catches("notifications.notifies_with_flags_0", "notifications.notifies_with_events_enabled")
class NotifiesAtFirst(Reference):
    kicks = 0

    def kick(self, ring: Queue) -> None:
        if ring.half.kick_wanted():
            self.kicks += 1
            if self.kicks < 4:
                ring.signal()


@catches(
    "notifications.quiet_with_flags_1",
    "notifications.quiet_until_avail_event_is_reached",
    "notifications.quiet_with_events_disabled",
)
class NotifiesAlways(Reference):
    def kick(self, ring: Queue) -> None:
        if ring.half.unpublished:
            ring.half.kick_wanted()
            ring.signal()


@catches("notifications.avail_event_means_nothing_without_event_idx")
class AlwaysReadsTheEvent(Reference):
    class split(Split):
        def _kick_wanted(self) -> bool:
            old, new = self.decided_at, self.ring.avail_idx
            self.decided_at = new
            flags = not self.ring.used_flags & NO_NOTIFICATION
            return need_event(self.ring.avail_event, new, old) and flags


@catches("notifications.notifies_when_avail_event_is_reached")
class OneTooLate(Reference):
    class split(Split):
        def _kick_wanted(self) -> bool:
            old, new = self.decided_at, self.ring.avail_idx
            self.decided_at = new
            if self.event_idx:
                return new != old and new == self.ring.avail_event
            return new != old and not self.ring.used_flags & NO_NOTIFICATION


@catches("notifications.used_flags_mean_nothing_with_event_idx")
class ReadsFlagsWithEvents(Reference):
    class split(Split):
        def _kick_wanted(self) -> bool:
            return super()._kick_wanted() and not self.ring.used_flags & NO_NOTIFICATION


@catches("notifications.notifies_for_the_descriptor")
class OnlyForTheHead(Reference):
    """Looks for the event at the last of the descriptors that it made available."""

    class packed(Packed):
        def _kick_wanted(self) -> bool:
            self.passed = self.passed[-1:]
            return super()._kick_wanted()


@catches("notifications.quiet_with_the_other_wrap_counter")
class IgnoresTheWrap(Reference):
    class packed(Packed):
        def _kick_wanted(self) -> bool:
            self.passed += [(slot, wrap ^ 1) for slot, wrap in self.passed]
            return super()._kick_wanted()


@catches("notifications.notified_for_nothing", "notifications.notified_for_nothing_packed")
class DiesOfANotification(Reference):
    def drain(self, fd: int) -> None:
        try:
            os.eventfd_read(fd)
        except BlockingIOError:
            return
        assert any(ring.half.has_used for ring in self.rings.values()), "nothing was used"


@catches("notifications.no_notification_is_lost", "notifications.no_notification_is_lost_packed")
class DecidesTooEarly(Reference):
    class split(Split):
        def kick_wanted(self) -> bool:
            if not self.unpublished:
                return False
            after = self.ring.avail_idx + self.unpublished
            if self.event_idx:
                wanted = need_event(self.ring.avail_event, after, self.decided_at)
            else:
                wanted = not self.ring.used_flags & NO_NOTIFICATION
            time.sleep(0.002)
            self.publish()
            self.decided_at = self.ring.avail_idx
            return wanted

    class packed(Packed):
        def kick_wanted(self) -> bool:
            if not self.unpublished:
                return False
            wanted = self._kick_wanted()
            time.sleep(0.002)
            self.publish()
            return wanted
