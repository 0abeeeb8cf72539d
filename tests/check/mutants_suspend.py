"""A device that can be suspended, and those that get it wrong."""

from __future__ import annotations

import os
import threading
import time

from tests.check.mutants import REFERENCES, catches
from tests.check.reference import Reference, Served
from virtq.features import F
from virtq.status import Status
from virtq.wire.blk import BlkConfig

_STARTED = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK


class Suspendable(Reference):
    offered = Reference.offered | int(F.SUSPEND)
    is_suspended = False

    def write_status(self, status: int) -> None:
        with self.lock:
            live = bool(self.status & Status.DRIVER_OK)
            suspendable = bool(self.features & F.SUSPEND)
            if live and suspendable and status & Status.SUSPEND:
                self.suspend()
                return
            if self.is_suspended and status & Status.DRIVER_OK:
                self.resume()
                return
        super().write_status(self.before_live(status))

    def before_live(self, status: int) -> int:
        return status & ~Status.SUSPEND

    def suspend(self) -> None:
        """With the lock held nothing is in processing."""
        self.is_suspended = True
        self.status = _STARTED | Status.SUSPEND

    def resume(self) -> None:
        self.is_suspended = False
        self.status = _STARTED | Status.DRIVER_OK
        self._look()

    def reset(self) -> None:
        self.is_suspended = False
        super().reset()

    def write_config(self, offset: int, data: bytes) -> None:
        if not self.is_suspended:
            super().write_config(offset, data)


class ChangesMeanwhile(Suspendable):
    """Its capacity is another one after a suspension."""

    def resume(self) -> None:
        self.sectors = Reference.sectors // 2
        super().resume()
        self.tell_of_change()


REFERENCES["suspend"] = (Suspendable, ChangesMeanwhile)


@catches("suspend.before_the_device_is_live")
class ShowsSuspendTooEarly(Suspendable):
    def before_live(self, status: int) -> int:
        return status


@catches("suspend.it_suspends")
class NeverSuspends(Suspendable):
    def suspend(self) -> None:
        """It takes its time."""


@catches("suspend.it_resumes")
class NeverResumes(Suspendable):
    def resume(self) -> None:
        """It takes its time."""


@catches("suspend.it_resumes")
class SleepsOn(Suspendable):
    """It says that it runs, and does not."""

    slept = False

    def resume(self) -> None:
        super().resume()
        self.slept = True

    def may_serve(self) -> bool:
        return super().may_serve() and not self.slept


@catches("suspend.nothing_while_suspended")
class ServesWhileSuspended(Suspendable):
    look_again_s = 0.002

    def may_serve(self) -> bool:
        return super().may_serve() or self.is_suspended


@catches("suspend.nothing_while_suspended")
class NotifiesWhileSuspended(Suspendable):
    def suspend(self) -> None:
        super().suspend()
        call = os.dup(self.queues[0].call)

        def late() -> None:
            time.sleep(0.004)
            os.eventfd_write(call, 1)
            os.close(call)

        threading.Thread(target=late, daemon=True).start()


class Dawdles(Suspendable):
    """What it took last it finishes a moment after it shows that it is suspended."""

    look_again_s = 0.002
    more = 0

    def suspend(self) -> None:
        super().suspend()
        self.more = 1

    def may_serve(self) -> bool:
        return super().may_serve() or (self.is_suspended and self.more > 0)


@catches("suspend.what_was_begun_is_finished")
class FinishesLater(Dawdles):
    def serve(self, served: Served) -> None:
        if self.is_suspended:
            self.more = 0
            super().serve(served)


@catches("suspend.what_was_begun_is_finished")
class GoesOnTaking(Dawdles):
    def serve(self, served: Served) -> None:
        if self.is_suspended:
            super().serve(served)


@catches("suspend.what_was_begun_is_finished")
class NotifiesNever(Suspendable):
    def suspend(self) -> None:
        self.status = _STARTED | Status.DRIVER_OK
        for served in self.queues.values():
            self.serve(served)
        super().suspend()

    def notify(self, served: Served) -> None:
        served.half.call_wanted()


@catches("suspend.the_configuration_stays")
class TakesConfigurationWrites(Suspendable):
    def write_config(self, offset: int, data: bytes) -> None:
        Reference.write_config(self, offset, data)


@catches("suspend.the_configuration_stays")
class ChangesWhileSuspended(Suspendable):
    def blk_config(self) -> BlkConfig:
        if self.is_suspended:
            self.sectors = Reference.sectors - int(time.monotonic() * 1000) % 32
        return super().blk_config()


@catches("suspend.a_change_while_suspended_is_told_later")
class AnnouncesAtOnce(ChangesMeanwhile):
    def suspend(self) -> None:
        super().suspend()
        changed = self.config_changed

        def late() -> None:
            time.sleep(0.004)
            if changed is not None:
                changed()

        threading.Thread(target=late, daemon=True).start()


@catches("suspend.a_change_while_suspended_is_told_later")
class AnnouncesNever(ChangesMeanwhile):
    def tell_of_change(self) -> None:
        """Nobody is told."""
