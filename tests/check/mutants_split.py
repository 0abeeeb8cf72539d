"""Devices that get the split virtqueue (2.7) wrong."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar

from tests.check.mutants import catches
from tests.check.reference import Reference, Served, Split
from virtq.model.memory import DeviceHalf, Taken
from virtq.status import Status


@catches("split.the_used_index_counts_from_zero")
class BeginsAtOne(Reference):
    class split(Split):
        def _publish(self) -> None:
            self.ring.used_idx = self.used_idx + 1


@catches("split.the_id_is_the_head")
class NamesTheLastDescriptor(Reference):
    class split(Split):
        def _take_one(self) -> Taken | None:
            if (taken := super()._take_one()) is not None and taken.slots > 1:
                taken.id = (taken.id + taken.slots - 1) % self.size
            return taken

        def _check_unchanged(self, buffer: Taken) -> None:
            """It could not find it again."""


@catches("split.around_the_ring")
class StopsAtTheEnd(Reference):
    class split(Split):
        def _use(self, batch: list[Taken]) -> None:
            if self.used_idx < self.size:
                super()._use(batch)


@catches("split.past_65536")
class CountsTo65535(Reference):
    class split(Split):
        def _publish(self) -> None:
            if self.used_idx < 0xFF00:
                super()._publish()


@catches("split.the_table_is_not_written")
class ClearsDescriptors(Reference):
    class split(Split):
        def _use(self, batch: list[Taken]) -> None:
            for buffer in batch:
                desc = self.ring.desc(buffer.id)
                self.ring.set_desc(buffer.id, desc._replace(flags=desc.flags | 0x100))
            super()._use(batch)


@catches("split.readable_bytes_stay", "packed.readable_bytes_stay")
class WritesTheHeader(Reference):
    def handle(self, buffer: Taken) -> int:
        written = super().handle(buffer)
        self.memory.write(buffer.pieces[0].address + 4, b"!")
        return written


@catches("split.data_is_there_when_the_index_says_so")
class DataLater(Reference):
    def use(self, half: DeviceHalf, taken: Sequence[Taken]) -> None:
        for buffer in taken:
            half.complete(buffer, buffer.writable)
        half.flush()
        time.sleep(0.002)
        for buffer in taken:
            self.handle(buffer)


class Flags(Reference):
    value: ClassVar[int]

    def serve(self, served: Served) -> None:
        super().serve(served)
        if isinstance(served.half, Split):
            served.half.ring.used_flags = self.value


@catches("split.used_flags_without_event_idx")
class ReservedUsedFlags(Flags):
    value = 4


@catches("split.used_flags_with_event_idx")
class UsedFlagsWithEventIdx(Flags):
    value = 1


@catches("split.spurious_notifications")
class BreaksWhenWokenForNothing(Reference):
    def serve(self, served: Served) -> None:
        if self.status & Status.DRIVER_OK and not served.half.has_available:
            served.broken = bool(served.half.all_taken) or served.broken
        super().serve(served)


@catches("split.the_largest_queue")
class LosesWhatIsFar(Reference):
    class split(Split):
        def _take_one(self) -> Taken | None:
            return super()._take_one() if self.last_avail < 100 else None


@catches("split.a_queue_of_two")
class NoSmallQueues(Reference):
    def serve(self, served: Served) -> None:
        if getattr(served.half, "size", 0) > 2:
            super().serve(served)


@catches("split.an_entry_is_whole_when_the_index_says_so")
class LengthLater(Reference):
    """The index first, the length after it."""

    class split(Split):
        def flush(self) -> int:
            slot = self.used_idx % self.size
            before = self.ring.used(slot)
            done = super().flush()
            if done:
                now = self.ring.used(slot)
                self.ring.set_used(slot, now[0], before[1])
                self.ring.used_idx = self.used_idx
                time.sleep(0.002)
                self.ring.set_used(slot, *now)
            return done


@catches("split.one_entry_for_each")
class BatchesWithoutOrder(Reference):
    """One used entry for several buffers, though IN_ORDER was not negotiated."""

    class split(Split):
        def flush(self) -> int:
            had, self.in_order = self.in_order, True
            try:
                return super().flush()
            finally:
                self.in_order = had
