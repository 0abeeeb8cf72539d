"""Devices that get in-order use wrong: batches, lengths, places, and what comes of a reset."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence

from tests.check.mutants import catches
from tests.check.mutants_queue_reset import RemembersWhereItStood
from tests.check.reference import Packed, Reference, Served, Split
from virtq._core import Position
from virtq.features import F
from virtq.model.memory import DeviceHalf, Taken
from virtq.wire.blk import Header, Type


@catches(
    "in_order.batches",
    "in_order.a_full_ring",
    "in_order.around_the_end",
    "in_order.mixed_sizes",
    "in_order.indirect_within_a_batch",
    "in_order.event_index_within_a_batch",
    "in_order.a_long_random_run",
    "packed.many_at_once",
)
class NamesTheFirstOfABatch(Reference):
    class split(Split):
        def _use(self, batch: list[Taken]) -> None:
            super()._use(batch)
            if self.in_order:
                slot = (self.used_idx - len(batch)) % self.size
                self.ring.set_used(slot, batch[0].id, self.ring.used(slot)[1])

    class packed(Packed):
        def _use(self, batch: list[Taken]) -> None:
            slot = self.next_used.slot
            super()._use(batch)
            if self.in_order:
                self.ring.set_desc(slot, self.ring.desc(slot)._replace(id=batch[0].id))


@catches("in_order.one_by_one", "in_order.after_a_reset")
class SwapsTheSecondAndThird(Reference):
    """Of buffers that come one by one, it keeps the second until the third is done."""

    held: Taken | None = None
    seen = 0

    def use(self, half: DeviceHalf, taken: Sequence[Taken]) -> None:
        self.seen += len(taken)
        if half.in_order and self.seen >= 2:
            return  # never comes
        super().use(half, taken)


@catches("in_order.skipped_buffers_are_full")
class SkipsWhatIsShort(Reference):
    class split(Split):
        def complete(self, buffer: Taken, written: int) -> None:
            super().complete(buffer, buffer.writable if self.in_order else written)

    class packed(Packed):
        def complete(self, buffer: Taken, written: int) -> None:
            super().complete(buffer, buffer.writable if self.in_order else written)

    def request(self, header: Header, data: bytes, room: int) -> tuple[int, bytes]:
        status, reply = super().request(header, data, room)
        return status, reply[: len(reply) // 2] if header.type == Type.GET_ID else reply

    def put_last(self, buffer: Taken, status: int) -> None:
        """The status of what was cut is where the data ended."""
        length = buffer.writable
        if length != 21:
            super().put_last(buffer, status)
            return
        self.memory.write(buffer.pieces[-1].address, b"x" * 10 + b"\xa5" * 10 + b"\xa5")
        self.memory.write(buffer.pieces[-1].address, b"\0" * 10)


class Later(Reference):
    """Some of what it took it finishes when there is nobody any more: after a reset."""

    left: tuple[DeviceHalf, int, list[Taken]] | None = None

    def serve(self, served: Served) -> None:
        self.left = served.half, served.call, list(served.half.all_taken[-1:])
        super().serve(served)

    def finish(self) -> None:
        if self.left is None:
            return
        half, _, taken = self.left
        self.left = None

        def late() -> None:
            time.sleep(0.004)
            for buffer in taken:
                buffer.write(b"late")
            if isinstance(half, Packed):
                half.ring.set_desc(0, half.ring.desc(0)._replace(addr=1))
            elif isinstance(half, Split):
                half.ring.used_flags = 2

        threading.Thread(target=late, daemon=True).start()


@catches("in_order_resets.a_reset_with_buffers_outstanding")
class WritesAfterAReset(Later):
    def reset(self) -> None:
        super().reset()
        self.finish()


@catches("in_order_resets.a_queue_reset_with_buffers_outstanding")
class WritesAfterAQueueReset(Later):
    def reset_queue(self, index: int) -> Position:
        position = super().reset_queue(index)
        self.finish()
        return position


@catches(
    "in_order_resets.a_queue_reset_with_buffers_outstanding", "queue_reset.nothing_while_reset"
)
class NotifiesAfterAQueueReset(Reference):
    def reset_queue(self, index: int) -> Position:
        call = os.dup(self.queues[index].call)
        position = super().reset_queue(index)

        def late() -> None:
            time.sleep(0.004)
            os.eventfd_write(call, 1)
            os.close(call)

        threading.Thread(target=late, daemon=True).start()
        return position


@catches(
    "in_order_resets.a_queue_reset_with_buffers_outstanding",
    "in_order_resets.a_reset_with_buffers_outstanding",
    "in_order_resets.a_long_random_run_with_resets",
)
class GoesOnWhereItStood(RemembersWhereItStood):
    """A queue that comes again goes on at the slot where it was reset."""


@catches("in_order_resets.chains_across_the_end", "in_order.around_the_end")
class FlagsOfTheEndOfABatch(Reference):
    """The wrap counter of where the batch ends, not of where it begins; the head of the first chain
    where there are two."""

    class packed(Packed):
        def _use(self, batch: list[Taken]) -> None:
            at = self.next_used
            super()._use(batch)
            if self.next_used.wrap != at.wrap:
                desc = self.ring.desc(at.slot)
                self.ring.set_desc(at.slot, desc._replace(flags=desc.flags ^ 0x8080))

    class split(Split):
        def _use(self, batch: list[Taken]) -> None:
            slot = self.used_idx % self.size
            super()._use(batch)
            if slot + len(batch) > self.size:
                self.ring.set_used(slot, batch[0].id, self.ring.used(slot)[1])


@catches("in_order_resets.a_ring_full_of_tables", "in_order.indirect_within_a_batch")
class LosesAFullRing(Reference):
    """Row 22: how many are to be used is counted modulo the size of the ring."""

    def use(self, half: DeviceHalf, taken: Sequence[Taken]) -> None:
        if half.in_order and len(taken) % 8 == 0:
            return
        super().use(half, taken)


@catches("in_order_resets.tables_and_lists_in_a_batch")
class CountsTablesAsLists(Reference):
    """It moves on by the descriptors of a buffer, though they are in a table."""

    class packed(Packed):
        def _use(self, batch: list[Taken]) -> None:
            for buffer in batch:
                buffer.slots = len(buffer.pieces)
            super()._use(batch)

    class split(Split):
        def _use(self, batch: list[Taken]) -> None:
            self.used_idx += sum(len(b.pieces) - b.slots for b in batch if b.table)
            super()._use(batch)


@catches("in_order_resets.a_long_random_run_with_resets")
class OneKindForEver(Reference):
    """It keeps the layout that was negotiated first."""

    first: int | None = None

    def make_half(self, size: int, desc: int, driver: int, device: int) -> DeviceHalf:
        layout = self.features & F.RING_PACKED
        self.first = layout if self.first is None else self.first
        chosen = Packed if self.first else Split
        return chosen(self.memory, self.features, size, desc, driver, device)


@catches("in_order.an_event_at_every_place_of_a_batch")
class LooksAtTheSlotItWrote(Reference):
    """Of a batch, only the slot of its used descriptor can be the one of the event."""

    class packed(Packed):
        def _call_wanted(self) -> bool:
            self.passed = self.passed[:1] if self.in_order else self.passed
            return super()._call_wanted()


@catches("in_order.batches", "in_order.mixed_sizes", "blk_in_order.what_fails_is_not_skipped")
class AddsTheLengths(Reference):
    """The length of a used entry is that of all buffers of its batch together."""

    class split(Split):
        def _use(self, batch: list[Taken]) -> None:
            slot = self.used_idx % self.size
            super()._use(batch)
            total = sum(buffer.written or 0 for buffer in batch)
            self.ring.set_used(slot, self.ring.used(slot)[0], total)

    class packed(Packed):
        def _use(self, batch: list[Taken]) -> None:
            slot = self.next_used.slot
            super()._use(batch)
            total = sum(buffer.written or 0 for buffer in batch)
            self.ring.set_desc(slot, self.ring.desc(slot)._replace(len=total))
