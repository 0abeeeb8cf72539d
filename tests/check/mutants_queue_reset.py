"""Devices that do not reset a virtqueue as they should (2.6.1)."""

from __future__ import annotations

from tests.check.mutants import catches
from tests.check.reference import Reference
from virtq._core import Position
from virtq.model.memory import DeviceHalf
from virtq.model.memory import Position as ModelPosition


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
