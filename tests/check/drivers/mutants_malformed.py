"""Drivers that trust the device too much."""

from __future__ import annotations

import time

from tests.check.drivers.mutants import catches
from tests.check.drivers.reference import Asked, Packed, Queue, Reference, Split
from virtq.model.memory import Added, Violation


class _Indexes:
    """Looks buffers up without asking whether there is one."""

    def collect(self) -> list[tuple[Added, int]]:
        id, _ = self.used_entry()  # type: ignore[attr-defined]
        table = {buffer.id: buffer for buffer in self.added}  # type: ignore[attr-defined]
        assert table[id]
        return super().collect()  # type: ignore[misc,no-any-return]


@catches(
    "malformed.an_identifier_that_does_not_exist",
    "malformed.an_identifier_of_no_buffer",
    "malformed.used_twice",
    "malformed.a_batch_that_ends_within_a_buffer",
)
class LooksUpBlindly(Reference):
    class split(_Indexes, Split):
        pass

    class packed(_Indexes, Packed):
        pass


class _Searches:
    """Takes buffers off one by one until it finds the one that is named."""

    driver: Reference

    def collect(self) -> list[tuple[Added, int]]:
        id, _ = self.used_entry()  # type: ignore[attr-defined]
        while id not in [buffer.id for buffer in self.added]:  # type: ignore[attr-defined]
            time.sleep(0.001)
            if self.driver.killed:
                raise Violation("killed")
        return super().collect()  # type: ignore[misc,no-any-return]


@catches(
    "malformed.an_identifier_that_does_not_exist",
    "malformed.a_batch_that_ends_within_a_buffer",
)
class SearchesForEver(Reference):
    class split(_Searches, Split):
        pass

    class packed(_Searches, Packed):
        pass

    def prepare(self, ring: Queue) -> None:
        ring.half.driver = self  # type: ignore[attr-defined]


class _Oldest:
    def collect(self) -> list[tuple[Added, int]]:
        buffer = self.added.pop(0)  # type: ignore[attr-defined]
        self.collected.append((buffer, 0))  # type: ignore[attr-defined]
        self._skip([buffer])  # type: ignore[attr-defined]
        return self.collected[-1:]  # type: ignore[attr-defined,no-any-return]


@catches("malformed.an_identifier_of_no_buffer")
class TakesTheOldest(Reference):
    class split(_Oldest, Split):
        pass

    class packed(_Oldest, Packed):
        pass

    def ask(self, queue: int, number: int) -> Asked:
        asked = super().ask(queue, number)
        return Asked(asked.readable, asked.writable)


class _Lengths:
    def collect(self) -> list[tuple[Added, int]]:
        _, length = self.used_entry()  # type: ignore[attr-defined]
        assert length < 0x10_0000, "a bounce buffer overflows"
        return super().collect()  # type: ignore[misc,no-any-return]


@catches("malformed.a_length_beyond_the_buffer")
class CopiesAsTold(Reference):
    class split(_Lengths, Split):
        pass

    class packed(_Lengths, Packed):
        pass


@catches("malformed.a_used_index_that_jumps")
class FollowsTheIndex(Reference):
    class split(Split):
        def used_entry(self) -> tuple[int, int] | None:
            assert (self.ring.used_idx - self.last_used) % 65536 <= self.size
            return super().used_entry()


@catches("malformed.a_batch_that_ends_beyond_the_index")
class MindsNoIndex(Reference):
    class split(Split):
        def _skip(self, batch: list[Added]) -> None:
            assert len(batch) <= (self.ring.used_idx - self.last_used) % 65536
            super()._skip(batch)


@catches("malformed.skipped_buffers_that_were_not_written")
class DiesOfWhatIsMissing(Reference):
    def ask(self, queue: int, number: int) -> Asked:
        asked = super().ask(queue, number)

        def check(reply: bytes, written: int) -> None:
            assert not reply or reply[-1] == 0, "who wrote that?"

        return Asked(asked.readable, asked.writable, check)


@catches("malformed.reserved_event_flags")
class KnowsThreeEvents(Reference):
    class packed(Packed):
        def _kick_wanted(self) -> bool:
            wanted = {0: True, 1: False, 2: True}
            return wanted[self.ring.device_event.flags]


@catches("malformed.an_event_offset_beyond_the_ring")
class LooksAtTheSlot(Reference):
    class packed(Packed):
        def _kick_wanted(self) -> bool:
            event = self.ring.device_event
            assert event.flags != 2 or list(range(self.size))[event.offset] >= 0
            return super()._kick_wanted()
