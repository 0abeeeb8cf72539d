"""Devices that get the packed virtqueue (2.8) wrong."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tests.check.mutants import catches
from tests.check.reference import Packed, Reference, Served
from virtq.model.memory import WRITE, DeviceHalf, Taken
from virtq.model.notify import PackedEvent


@catches("packed.the_first_used_descriptor")
class WrapBeginsAtZero(Reference):
    class packed(Packed):
        def _use(self, batch: list[Taken]) -> None:
            self.next_used = self.next_used._replace(wrap=1 - self.next_used.wrap)
            super()._use(batch)
            self.next_used = self.next_used._replace(wrap=1 - self.next_used.wrap)


@catches("packed.around_the_ring")
class NeverWraps(Reference):
    class packed(Packed):
        def _use(self, batch: list[Taken]) -> None:
            super()._use(batch)
            self.next_used = self.next_used._replace(wrap=1)


@catches("packed.a_size_that_is_no_power_of_two")
class PowersOfTwo(Reference):
    def serve(self, served: Served) -> None:
        size = getattr(served.half, "size", 0)
        if not size & (size - 1):
            super().serve(served)


@catches("packed.a_list_has_one_used_descriptor")
class MovesByOne(Reference):
    class packed(Packed):
        def _use(self, batch: list[Taken]) -> None:
            for buffer in batch:
                buffer.slots = 1
            super()._use(batch)


@catches("packed.a_list_across_the_end")
class NoListAcrossTheEnd(Reference):
    class packed(Packed):
        def _take_one(self) -> Taken | None:
            taken = super()._take_one()
            if taken is not None and self.next_avail.slot < taken.slots - 1:
                self.next_avail = self.next_avail.back(taken.slots, self.size)
                return None
            return taken


@catches("packed.the_write_flag")
class NoWriteFlag(Reference):
    class packed(Packed):
        def _use(self, batch: list[Taken]) -> None:
            slot = self.next_used.slot
            super()._use(batch)
            desc = self.ring.desc(slot)
            self.ring.set_desc(slot, desc._replace(flags=desc.flags & ~WRITE))


@catches("packed.used_descriptors_stay")
class ScribblesLater(Reference):
    def serve(self, served: Served) -> None:
        super().serve(served)
        if isinstance(served.half, Packed) and served.half.all_taken:
            time.sleep(0.004)
            ring = served.half.ring
            desc = ring.desc(0)
            ring.set_desc(0, desc._replace(addr=desc.addr + 1))


@catches("packed.what_is_not_available_is_not_used")
class IgnoresTheFlags(Reference):
    class packed(Packed):
        def _take_one(self) -> Taken | None:
            at = self.next_avail
            desc = self.ring.desc(at.slot)
            behind = self.ring.desc(at.advanced(1, self.size).slot)
            if self.all_taken and not self.has_available and behind.len and behind.id:
                self.ring.set_desc(at.slot, desc._replace(flags=desc.flags ^ 0x80))
            return super()._take_one()


@catches("packed.many_at_once", "split.the_largest_queue")
class TakesHalf(Reference):
    def take(self, half: DeviceHalf) -> Sequence[Taken]:
        taken = super().take(half)
        if len(taken) > 20:
            half.put_back(taken[20:])
            self.stopped = True
        return taken[:20] if not getattr(self, "held", False) else []

    def use(self, half: DeviceHalf, taken: Sequence[Taken]) -> None:
        super().use(half, taken)
        self.held = getattr(self, "stopped", False)


@catches("packed.the_device_event_structure")
class ReservedEventFlags(Reference):
    class packed(Packed):
        def enable_kicks(self) -> bool:
            found = super().enable_kicks()
            event = self.ring.device_event
            self.ring.device_event = PackedEvent(event.offset, event.wrap, event.flags | 0x100)
            return found


@catches("packed.the_driver_event_structure_stays")
class WritesTheDriverArea(Reference):
    class packed(Packed):
        def _use(self, batch: list[Taken]) -> None:
            super()._use(batch)
            self.ring.driver_event = PackedEvent(7, 0, 0)


@catches("packed.a_list_of_the_whole_ring")
class CountsTheWrapTwice(Reference):
    class packed(Packed):
        def _use(self, batch: list[Taken]) -> None:
            super()._use(batch)
            if sum(buffer.slots for buffer in batch) == self.size:
                self.next_used = self.next_used._replace(wrap=1 - self.next_used.wrap)


@catches("packed.a_list_of_the_whole_ring")
class ShortListsOnly(Reference):
    def handle(self, buffer: Taken) -> int:
        if len(buffer.pieces) > 4:
            raise ValueError("a list that is too long")
        return super().handle(buffer)
