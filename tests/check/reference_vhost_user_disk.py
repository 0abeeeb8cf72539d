"""The disk, and the network device, behind the reference of a vhost-user back-end."""

from __future__ import annotations

import os

from tests.check.reference import Reference, Served
from virtq.features import F
from virtq.model.memory import Taken


class Disk(Reference):
    """The disk as the rings of a front-end see it."""

    offered = Reference.offered | int(F.ACCESS_PLATFORM)
    look_again_s = 0.001
    serves_disabled = False

    def __init__(self) -> None:
        super().__init__()
        self.enabled: set[int] = set()
        self.errs: dict[int, int] = {}
        self.logs: dict[int, int] = {}
        self.write_cache = 1

    def may_serve(self) -> bool:
        return True

    def writeback(self) -> int:
        return self.write_cache

    def serve(self, served: Served) -> None:
        index = next(i for i, other in self.queues.items() if other is served)
        if index not in self.enabled and not self.serves_disabled:
            return
        try:
            super().serve(served)
        except Exception:
            self.failed(index)
            raise
        if index in self.logs:
            self.log_used(self.logs[index])

    def log_used(self, addr: int) -> None:
        self.memory.mark_dirty(addr, 4)

    def failed(self, index: int) -> None:
        if index in self.errs:
            os.eventfd_write(self.errs[index], 1)


class Wire(Disk):
    """A network device that nothing leaves: enough to be asked about disabled rings."""

    device_id = 1
    queue_count = 2
    offered = int(F.VERSION_1 | F.RING_PACKED)
    serves_disabled = True

    def handle(self, buffer: Taken) -> int:
        buffer.read()
        return 0
