"""Devices that do not survive a malformed ring, or say nothing of it."""

from __future__ import annotations

from collections.abc import Sequence

from tests.check.mutants import catches
from tests.check.reference import Packed, Reference, Served, Split
from virtq.errors import TransportError
from virtq.model.memory import DeviceHalf, Taken


class Mortal(Reference):
    """Like a device that the judge starts: when it is gone, it is its process that is gone, and not
    a connection to it."""

    def renew(self) -> None:
        raise TransportError("each one is a new one")


@catches(
    "malformed.a_buffer_nowhere",
    "malformed.an_address_that_overflows",
    "malformed.a_length_of_zero",
    "malformed.a_loop",
    "malformed.a_head_beyond_the_table",
    "malformed.an_index_that_jumps",
    "malformed.a_table_of_odd_length",
    "malformed.a_table_of_no_length",
    "malformed.a_table_with_next",
    "malformed.a_list_longer_than_the_ring",
    "malformed.readable_after_writable",
    "malformed_rings.a_ring_nowhere",
    "malformed_rings.a_ring_half_in_memory",
    "malformed.a_buffer_over_the_ring",
    "malformed.a_buffer_twice",
    "malformed.a_next_beyond_the_table",
    "malformed.a_chain_without_an_end",
    "malformed.a_table_within_a_table",
    "malformed.a_table_that_was_not_negotiated",
    "malformed.a_list_that_is_not_all_available",
    "malformed.a_descriptor_that_changes",
    "malformed_rings.event_flags_3",
    "malformed_rings.an_event_beyond_the_ring",
)
class DiesOfAMalformedRing(Mortal):
    def handle(self, buffer: Taken) -> int:
        if not all(piece.length for piece in buffer.pieces):
            raise ValueError("a descriptor of no bytes")
        return super().handle(buffer)

    def serve(self, served: Served) -> None:
        try:
            super().serve(served)
        except Exception:
            self.gone = True
            raise


@catches("status.a_need_for_a_reset_is_announced")
class NeedsAResetSilently(Reference):
    def tell_of_change(self) -> None:
        """Nobody is told."""


@catches("status.a_queue_that_stops_says_so")
class StopsSilently(Reference):
    def give_up(self, served: Served) -> None:
        served.broken = True


@catches("malformed_rings.a_queue_that_is_too_large", "malformed_rings.a_split_queue_of_twelve")
class DiesOfASize(Mortal):
    def check_size(self, size: int) -> None:
        try:
            super().check_size(size)
        except TransportError:
            self.gone = True
            raise


@catches("malformed.a_buffer_across_regions", "malformed.a_table_across_regions")
class DiesAtABorder(Mortal):
    def take(self, half: DeviceHalf) -> Sequence[Taken]:
        taken = super().take(half)
        for buffer in taken:
            pieces = [(piece.address, piece.length) for piece in buffer.pieces]
            for start, length in (*pieces, *([buffer.table] if buffer.table else [])):
                borders = [region.guest_addr for region in self.memory.regions]
                self.gone |= any(start < border < start + length for border in borders)
        return taken


@catches("malformed_rings.reserved_available_flags")
class DiesOfAvailableFlags(Mortal):
    class split(Split):
        def _call_wanted(self) -> bool:
            if self.ring.avail_flags & ~1:
                raise MemoryError
            return super()._call_wanted()

    def serve(self, served: Served) -> None:
        try:
            super().serve(served)
        except MemoryError:
            self.gone = True


@catches("malformed_rings.descriptor_flags_of_all_sorts")
class HangsOnUnknownFlags(Reference):
    stuck = False

    def look_at(self, flags: int) -> None:
        self.stuck = self.stuck or bool(flags & 0x7F78)

    def serve(self, served: Served) -> None:
        half = served.half
        if isinstance(half, Split):
            self.look_at(half.ring.desc(0).flags | half.ring.desc(4).flags)
        elif isinstance(half, Packed):
            self.look_at(half.ring.desc(4).flags)
        if not self.stuck:
            super().serve(served)


@catches("malformed_rings.another_queue_goes_on")
class OneForAll(Reference):
    """With one queue, all are broken, and nobody is told."""

    def give_up(self, served: Served) -> None:
        for each in self.queues.values():
            each.broken = True
