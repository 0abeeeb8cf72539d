"""Devices that get their status, or a reset, wrong."""

from __future__ import annotations

from tests.check.mutants import catches
from tests.check.reference import Reference
from virtq.status import Status


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
