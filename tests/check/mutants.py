"""Devices that get one thing wrong, and the cases that must notice.

A mutant is the reference with one method, or one method of its ring's half, replaced. `CATCHES`
says which cases have to fail on it, in at least one kind of ring. Here are those of every device
type; the files `mutants_*.py` beside this one have those of one type or one bus.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import ClassVar, TypeVar

from tests.check.reference import RAM_BYTES, Packed, Reference, Served, Split
from virtq._core import Position
from virtq.features import F
from virtq.model.memory import INDIRECT, NEXT, WRITE, DeviceHalf, Piece, Taken
from virtq.model.memory import Position as ModelPosition
from virtq.model.notify import PackedEvent
from virtq.model.packed import Descriptor as PackedDescriptor
from virtq.status import Status
from virtq.transports.base import DriverTransport
from virtq.wire.blk import BlkFeature

T = TypeVar("T", bound=DriverTransport)

CATCHES: dict[type[DriverTransport], tuple[str, ...]] = {}
REFERENCES: dict[str, tuple[type[DriverTransport], ...]] = {}
"""The devices that are right, by area of cases: every case has to pass on one of them, and to fail
on none. Areas that are not here have the reference alone."""
BUSES: dict[type[DriverTransport], str] = {}
"""References that stand behind a bus: "pci" or "mmio"."""


class SplitOnly(Reference):
    offered = Reference.offered & ~int(F.RING_PACKED)


REFERENCES["features"] = (Reference, SplitOnly)


def catches(*cases: str) -> Callable[[type[T]], type[T]]:
    def register(mutant: type[T]) -> type[T]:
        CATCHES[mutant] = cases
        return mutant

    return register


# Status and reset


@catches("status.reset_reads_zero", "in_order_resets.a_reset_with_buffers_outstanding")
class KeepsAStatusBit(Reference):
    def reset(self) -> None:
        self.forget_queues()
        self.status = Status.ACKNOWLEDGE if self.status else 0


@catches("status.reset_while_live")
class LivesOnce(Reference):
    lived = False

    def accepts(self, features: int) -> bool:
        return not self.lived and super().accepts(features)

    def reset(self) -> None:
        self.lived = self.lived or bool(self.status & Status.DRIVER_OK)
        super().reset()


@catches("status.nothing_before_driver_ok")
class Hasty(Reference):
    def may_serve(self) -> bool:
        return bool(self.status & Status.FEATURES_OK)


@catches("status.quiet_after_reset")
class GoesOnAfterAReset(Reference):
    look_again_s = 0.001

    def reset(self) -> None:
        self.status = self.features = 0

    def may_serve(self) -> bool:
        return True


@catches("status.needs_reset_is_off")
class WantsAReset(Reference):
    def read_status(self) -> int:
        status = super().read_status()
        return status | Status.DEVICE_NEEDS_RESET if status & Status.FEATURES_OK else status


@catches("status.configuration_before_features_ok")
class HidesItsConfiguration(Reference):
    def read_config(self, offset: int, length: int) -> bytes:
        if self.status & Status.FEATURES_OK:
            return super().read_config(offset, length)
        return bytes(length)


# Features


@catches("features.version_1_is_offered")
class Legacy(Reference):
    offered = Reference.offered & ~int(F.VERSION_1)


@catches("features.prerequisites_are_offered", "blk.flush_is_offered")
class CacheWithoutFlush(Reference):
    offered = Reference.offered & ~int(BlkFeature.FLUSH)


@catches("features.every_kind_is_accepted")
class RefusesPacked(Reference):
    def accepts(self, features: int) -> bool:
        return super().accepts(features) and not features & F.RING_PACKED


@catches("features.each_ring_feature_alone")
class WantsEventsWithTables(Reference):
    def accepts(self, features: int) -> bool:
        both = F.INDIRECT_DESC | F.EVENT_IDX
        return super().accepts(features) and features & both in (0, both)


@catches("features.what_was_not_offered")
class TakesWhatItDoesNotHave(Reference):
    offered = Reference.offered & ~int(F.RING_PACKED)
    stuck = False

    def accepts(self, features: int) -> bool:
        self.stuck = self.stuck or bool(features & F.RING_PACKED)
        return True

    def may_serve(self) -> bool:
        return super().may_serve() and not self.stuck


@catches("features.no_reserved_bits")
class OffersTheFuture(Reference):
    offered = Reference.offered | 1 << 45


@catches("features.version_1_declined")
class DiesOfLegacy(Reference):
    def write_features(self, features: int) -> None:
        super().write_features(features)
        self.gone = self.gone or not features


@catches("features.the_kind_takes_effect")
class AlwaysSplit(Reference):
    def make_half(self, size: int, desc: int, driver: int, device: int) -> DeviceHalf:
        return Split(self.memory, self.features, size, desc, driver, device)


# The split ring


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


# The packed ring


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


# Indirect


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


# Framing


@catches("framing.any_cut", "framing.a_long_chain")
class HeaderInOnePiece(Reference):
    def handle(self, buffer: Taken) -> int:
        if buffer.pieces[0].length != 16:
            raise ValueError("the first descriptor is not the header")
        return super().handle(buffer)


# Notifications


@catches(
    "notifications.flags_0",
    "notifications.used_event_without_event_idx",
    "notifications.the_event_index_is_hit",
    "notifications.flags_with_event_idx",
    "notifications.an_event_index_within_a_batch",
    "notifications.event_flags_enable",
    "notifications.a_descriptor_event_is_hit",
    "notifications.a_descriptor_event_within_a_batch",
    "in_order.event_index_within_a_batch",
    "in_order.an_event_at_every_place_of_a_batch",
)
class NeverCalls(Reference):
    def notify(self, served: Served) -> None:
        served.half.call_wanted()


@catches(
    "notifications.flags_1",
    "notifications.the_event_index_is_missed",
    "notifications.event_flags_disable",
    "notifications.a_descriptor_event_is_missed",
    "in_order.an_event_at_every_place_of_a_batch",
)
class AlwaysCalls(Reference):
    def notify(self, served: Served) -> None:
        os.eventfd_write(served.call, 1)


@catches("notifications.used_event_without_event_idx")
class MindsUsedEvent(Reference):
    class split(Split):
        def _call_wanted(self) -> bool:
            self.event_idx, had = True, self.event_idx
            self.called_before = True
            wanted = super()._call_wanted()
            self.event_idx = had
            return wanted


@catches("notifications.flags_with_event_idx")
class MindsFlagsWithEventIdx(Reference):
    class split(Split):
        def _call_wanted(self) -> bool:
            return super()._call_wanted() and not self.ring.avail_flags


@catches(
    "notifications.an_event_index_within_a_batch", "in_order.an_event_at_every_place_of_a_batch"
)
class ComparesOnlyTheFirst(Reference):
    class split(Split):
        def _call_wanted(self) -> bool:
            old = self.decided_at
            self.called_before = True
            wanted = super()._call_wanted()
            return wanted and (not self.event_idx or self.ring.used_event == old)


# Resetting a queue


@catches("queue_reset.begins_anew", "queue_reset.many_times", "in_order.after_a_reset")
class RemembersWhereItStood(Reference):
    stood: Position | None = None

    def drop(self, index: int) -> None:
        at = self.queues[index].half.position
        self.stood = Position(*at)
        super().drop(index)

    def make_half(self, size: int, desc: int, driver: int, device: int) -> DeviceHalf:
        half = super().make_half(size, desc, driver, device)
        if self.stood is not None and self.stood.available < size:
            half.restore(ModelPosition(*self.stood))
        return half


@catches("queue_reset.nothing_while_reset")
class IgnoresAQueueReset(Reference):
    def reset_queue(self, index: int) -> Position:
        return Position(0, 1, 0, 1, 0)


# Features, and what else belongs to every device


@catches("features.a_layout_that_works")
class NoLayout(Reference):
    def serve(self, served: Served) -> None:
        """It serves nobody."""


@catches("features.addresses_are_what_they_are")
class ReachesHalfTheMemory(Reference):
    def handle(self, buffer: Taken) -> int:
        middle = self.memory.regions[0].guest_addr + RAM_BYTES // 2
        if any(piece.address >= middle for piece in buffer.pieces):
            raise ValueError("beyond what it reaches")
        return super().handle(buffer)


class Platform(Reference):
    offered = Reference.offered | int(F.ACCESS_PLATFORM | F.ORDER_PLATFORM)


REFERENCES["features"] = (*REFERENCES["features"], Platform)


@catches("features.access_platform_declined", "features.order_platform_declined")
class NeverAgain(Platform):
    """Once something was declined, it takes nothing any more."""

    declined = False

    def accepts(self, features: int) -> bool:
        both = F.ACCESS_PLATFORM | F.ORDER_PLATFORM
        self.declined = self.declined or not features & both
        return not self.declined and super().accepts(features)


class OnMmio(Reference):
    """Behind virtio-mmio, as far as feature bits go."""


BUSES[OnMmio] = "mmio"
REFERENCES["features"] = (*REFERENCES["features"], OnMmio)


@catches("features.what_belongs_to_pci")
class VirtualFunctionsOnMmio(OnMmio):
    offered = Reference.offered | int(F.SR_IOV)


@catches("features.what_belongs_to_pci")
class AdministrationOnMmio(OnMmio):
    offered = Reference.offered | int(F.ADMIN_VQ)


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
