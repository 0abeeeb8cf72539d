"""A small entropy device, to be judged."""

from __future__ import annotations

import os

from tests.check.reference import Reference
from virtq.features import F
from virtq.model.memory import Taken

RING_FEATURES = int(
    F.VERSION_1 | F.RING_PACKED | F.IN_ORDER | F.INDIRECT_DESC | F.EVENT_IDX | F.RING_RESET
)


class Entropy(Reference):
    offered = RING_FEATURES
    device_id = 4

    @property
    def config(self) -> bytes:
        return b""

    def handle(self, buffer: Taken) -> int:
        data = self.random(buffer.writable)
        buffer.write(data)
        return len(data)

    def random(self, room: int) -> bytes:
        return os.urandom(room)


class Sparing(Entropy):
    """It fills no more than 48 bytes of a buffer."""

    def random(self, room: int) -> bytes:
        return os.urandom(min(room, 48))
