"""Drivers that get one thing wrong about notifications."""

from __future__ import annotations

import os
import time

from tests.check.drivers.mutants import catches
from tests.check.drivers.reference import Packed, Queue, Reference, Split
from virtq.model.notify import NO_NOTIFICATION, need_event


@catches("notifications.notifies_with_flags_0", "notifications.notifies_with_events_enabled")
class NotifiesAtFirst(Reference):
    kicks = 0

    def kick(self, ring: Queue) -> None:
        if ring.half.kick_wanted():
            self.kicks += 1
            if self.kicks < 4:
                ring.signal()


@catches(
    "notifications.quiet_with_flags_1",
    "notifications.quiet_until_avail_event_is_reached",
    "notifications.quiet_with_events_disabled",
)
class NotifiesAlways(Reference):
    def kick(self, ring: Queue) -> None:
        if ring.half.unpublished:
            ring.half.kick_wanted()
            ring.signal()


@catches("notifications.avail_event_means_nothing_without_event_idx")
class AlwaysReadsTheEvent(Reference):
    class split(Split):
        def _kick_wanted(self) -> bool:
            old, new = self.decided_at, self.ring.avail_idx
            self.decided_at = new
            flags = not self.ring.used_flags & NO_NOTIFICATION
            return need_event(self.ring.avail_event, new, old) and flags


@catches("notifications.notifies_when_avail_event_is_reached")
class OneTooLate(Reference):
    class split(Split):
        def _kick_wanted(self) -> bool:
            old, new = self.decided_at, self.ring.avail_idx
            self.decided_at = new
            if self.event_idx:
                return new != old and new == self.ring.avail_event
            return new != old and not self.ring.used_flags & NO_NOTIFICATION


@catches("notifications.used_flags_mean_nothing_with_event_idx")
class ReadsFlagsWithEvents(Reference):
    class split(Split):
        def _kick_wanted(self) -> bool:
            return super()._kick_wanted() and not self.ring.used_flags & NO_NOTIFICATION


@catches("notifications.notifies_for_the_descriptor")
class OnlyForTheHead(Reference):
    """Looks for the event at the last of the descriptors that it made available."""

    class packed(Packed):
        def _kick_wanted(self) -> bool:
            self.passed = self.passed[-1:]
            return super()._kick_wanted()


@catches("notifications.quiet_with_the_other_wrap_counter")
class IgnoresTheWrap(Reference):
    class packed(Packed):
        def _kick_wanted(self) -> bool:
            self.passed += [(slot, wrap ^ 1) for slot, wrap in self.passed]
            return super()._kick_wanted()


@catches("notifications.notified_for_nothing", "notifications.notified_for_nothing_packed")
class DiesOfANotification(Reference):
    def drain(self, fd: int) -> None:
        try:
            os.eventfd_read(fd)
        except BlockingIOError:
            return
        assert any(ring.half.has_used for ring in self.rings.values()), "nothing was used"


@catches("notifications.no_notification_is_lost", "notifications.no_notification_is_lost_packed")
class DecidesTooEarly(Reference):
    class split(Split):
        def kick_wanted(self) -> bool:
            if not self.unpublished:
                return False
            after = self.ring.avail_idx + self.unpublished
            if self.event_idx:
                wanted = need_event(self.ring.avail_event, after, self.decided_at)
            else:
                wanted = not self.ring.used_flags & NO_NOTIFICATION
            time.sleep(0.002)
            self.publish()
            self.decided_at = self.ring.avail_idx
            return wanted

    class packed(Packed):
        def kick_wanted(self) -> bool:
            if not self.unpublished:
                return False
            wanted = self._kick_wanted()
            time.sleep(0.002)
            self.publish()
            return wanted
