"""Devices that notify too often, or not often enough."""

from __future__ import annotations

import os

from tests.check.mutants import catches
from tests.check.reference import Reference, Served, Split


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
