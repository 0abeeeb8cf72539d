"""Devices that get indirect tables wrong."""

from __future__ import annotations

from tests.check.mutants import catches
from tests.check.reference import Packed, Reference, Split
from virtq.model.memory import INDIRECT, NEXT, WRITE, DeviceHalf, Piece, Taken
from virtq.model.packed import Descriptor as PackedDescriptor


@catches("indirect.tables")
class NoTables(Reference):
    def make_half(self, size: int, desc: int, driver: int, device: int) -> DeviceHalf:
        half = super().make_half(size, desc, driver, device)
        half.indirect = False
        return half


class Walks(Split):
    """Judges the flags of what it reads."""

    def judge(self, flags: int) -> None: ...

    def _walk(self, head: int) -> tuple[int, list[Piece], tuple[int, int] | None]:
        self.judge(self.ring.desc(head).flags)
        return super()._walk(head)


@catches("indirect.write_on_the_referring_descriptor")
class MindsWriteOnATable(Reference):
    class split(Walks):
        def judge(self, flags: int) -> None:
            if flags & INDIRECT and flags & WRITE:
                raise ValueError("WRITE with INDIRECT")


@catches("indirect.write_on_the_referring_descriptor_packed")
class MindsWriteOnAPackedTable(Reference):
    class packed(Packed):
        def _take_one(self) -> Taken | None:
            flags = self.ring.desc(self.next_avail.slot).flags
            if self.has_available and flags & INDIRECT and flags & WRITE:
                raise ValueError("WRITE with INDIRECT")
            return super()._take_one()


@catches("indirect.noise_in_a_table")
class MindsNextInATable(Reference):
    class packed(Packed):
        def _walk_table(self, addr: int, length: int) -> list[Piece]:
            for at in range(addr, addr + length, 16):
                if PackedDescriptor.load(self.memory, at).flags & NEXT:
                    raise ValueError("NEXT in a table")
            return super()._walk_table(addr, length)


@catches("indirect.direct_then_indirect")
class TablesAlone(Reference):
    class split(Split):
        def _walk(self, head: int) -> tuple[int, list[Piece], tuple[int, int] | None]:
            slots, pieces, table = super()._walk(head)
            if table and slots > 1:
                raise ValueError("a table behind direct descriptors")
            return slots, pieces, table
