"""Devices that get one thing wrong when they are suspended."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from tests.check.mutants import REFERENCES, catches
from tests.check.reference import Served
from tests.check.reference_suspend import RUNS, Growing, Suspending
from virtq.model.memory import DeviceHalf, Taken
from virtq.status import Status

REFERENCES["suspend"] = (Suspending, Growing)


@catches("suspend.there_and_back")
class NeverSuspends(Suspending):
    def may_suspend(self, status: int) -> bool:
        return False


@catches("suspend.there_and_back")
class KeepsDriverOk(Suspending):
    def suspend(self) -> None:
        self.status = RUNS | Status.SUSPEND | Status.DRIVER_OK


@catches("suspend.there_and_back")
class NeverResumes(Suspending):
    def resume(self) -> None:
        """It is better off this way."""


@catches("suspend.there_and_back")
class ResumesInNameOnly(Suspending):
    ever = False

    def suspend(self) -> None:
        super().suspend()
        self.ever = True

    def may_serve(self) -> bool:
        return super().may_serve() and not self.ever


@catches("suspend.before_it_is_initialized")
class SuspendsEarly(Suspending):
    def may_suspend(self, status: int) -> bool:
        return bool(status & Status.SUSPEND) and not self.suspended


@catches("suspend.queues_are_left_alone", "suspend.what_is_under_way_ends_first")
class ServesInItsSleep(Suspending):
    look_again_s = 0.001

    def may_serve(self) -> bool:
        return super().may_serve() or self.suspended

    def suspend(self) -> None:
        super().suspend()
        self.asleep_at = time.monotonic()

    asleep_at = 0.0

    def take(self, half: DeviceHalf) -> Sequence[Taken]:
        """Late enough to be seen."""
        early = self.suspended and time.monotonic() < self.asleep_at + 0.005
        return [] if early else super().take(half)[: 8 if self.suspended else 1]


class LeavesSomeBehind(Suspending):
    """It serves two buffers of each eight, and the rest when it is suspended for 3 ms."""

    look_again_s = 0.001
    asleep_at = 0.0

    def suspend(self) -> None:
        super().suspend()
        self.asleep_at = time.monotonic()


@catches("suspend.what_is_under_way_ends_first")
class UsesAfterwards(LeavesSomeBehind):
    """What it has begun when it is suspended it ends after it has shown itself as suspended."""

    held: list[tuple[Served, Sequence[Taken]]]

    def __init__(self) -> None:
        self.held = []
        super().__init__()

    def may_serve(self) -> bool:
        return super().may_serve() or self.suspended

    def serve(self, served: Served) -> None:
        if self.held and time.monotonic() > self.due:
            held, self.held = self.held, []
            for _, taken in held:
                self.use(served.half, taken)
                self.notify(served)
        if not self.suspended and (taken := self.take(served.half)):
            self.held.append((served, taken))
            self.due = time.monotonic() + 0.005

    due = 0.0


@catches("suspend.what_is_under_way_ends_first")
class NotifiesAfterwards(LeavesSomeBehind):
    """It is silent about what was used before, until it is suspended."""

    owed: Served | None = None

    def may_serve(self) -> bool:
        return super().may_serve() or self.suspended

    def serve(self, served: Served) -> None:
        if self.suspended:
            if self.owed is not None and time.monotonic() > self.asleep_at + 0.005:
                super().notify(self.owed)
                self.owed = None
            return
        super().serve(served)

    def notify(self, served: Served) -> None:
        self.owed = served


@catches("suspend.what_is_under_way_ends_first")
class NotifiesInItsSleep(LeavesSomeBehind):
    """Once more, for good measure."""

    def may_serve(self) -> bool:
        return super().may_serve() or self.suspended

    def serve(self, served: Served) -> None:
        if not self.suspended:
            super().serve(served)
        elif time.monotonic() > self.asleep_at + 0.005:
            os.eventfd_write(served.call, 1)


@catches("suspend.the_configuration_stays")
class GrowsInItsSleep(Growing):
    @property
    def config(self) -> bytes:
        config = super().config
        return bytes([config[0] + self.suspended]) + config[1:]


@catches("suspend.the_configuration_stays")
class TalksInItsSleep(LeavesSomeBehind):
    def may_serve(self) -> bool:
        return super().may_serve() or self.suspended

    def serve(self, served: Served) -> None:
        if not self.suspended:
            super().serve(served)
        elif time.monotonic() > self.asleep_at + 0.005:
            self.tell()


@catches("suspend.the_configuration_stays")
class GrowsInSecret(Growing):
    def tell(self) -> None:
        """Nobody asked."""


@catches("suspend.writes_to_the_configuration")
class WritesInItsSleep(Suspending):
    def may_write(self) -> bool:
        return True


@catches("suspend.writes_to_the_configuration")
class WritesWhenItWakes(Suspending):
    late: bytes = b""

    def write_config(self, offset: int, data: bytes) -> None:
        if self.suspended:
            self.late = data
        super().write_config(offset, data)

    def resume(self) -> None:
        super().resume()
        if self.late:
            self.write_config(32, self.late)


@catches("suspend.queues_are_left_alone")
class TouchesItsRing(LeavesSomeBehind):
    def may_serve(self) -> bool:
        return super().may_serve() or self.suspended

    def serve(self, served: Served) -> None:
        if not self.suspended:
            super().serve(served)
        elif time.monotonic() > self.asleep_at + 0.002:
            served.half.disable_kicks()
