"""Drivers that get one thing wrong when a buffer is used, in order or in any order."""

from __future__ import annotations

from collections.abc import Callable

from tests.check.drivers.mutants import REFERENCES, catches
from tests.check.drivers.reference import Asked, Packed, Queue, Reference, Split
from tests.check.drivers.reference_types import EntropyReference, NetReference, random_bytes
from virtq.model.memory import NEXT, Added
from virtq.model.packed import Descriptor as PackedDescriptor

REFERENCES["driver.in_order.a_short_buffer_ends_its_batch"] = (EntropyReference,)
REFERENCES["driver.using.a_length_without_write"] = (NetReference,)

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
