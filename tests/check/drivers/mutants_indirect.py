"""Drivers that get one thing wrong in an indirect table."""

from __future__ import annotations

from tests.check.drivers.mutants import catches
from tests.check.drivers.reference import Asked, Packed, Queue, Reference, Split, ok, whole
from virtq.model.memory import INDIRECT, NEXT, Piece
from virtq.model.packed import Descriptor as PackedDescriptor
from virtq.model.split import Descriptor as SplitDescriptor
from virtq.wire import blk


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
