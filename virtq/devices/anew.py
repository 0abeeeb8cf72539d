"""Telling a new driver from one that goes on.

A front-end may stop virtqueues and start them again for the same driver (a machine that pauses), or
for another one, after a reset of which it tells nobody (QEMU's front-end for any device does so).
What shows is where the virtqueues start: a driver that goes on does so where it was.
"""

from __future__ import annotations

from virtq._core import DeviceQueue
from virtq.features import F


class Starts:
    """Where some virtqueues of a device started, all of which count."""

    def __init__(self, *indices: int) -> None:
        self._indices = frozenset(indices)
        self._anew: set[int] = set()

    def started(self, queue: DeviceQueue) -> bool:
        """A virtqueue starts. True if with it all of them have, and where a new driver's do. One
        alone could be there by having gone round."""
        self._anew.discard(queue.index)
        if queue.index in self._indices and begins_anew(queue):
            self._anew.add(queue.index)
            return self._anew == self._indices
        return False

    def stopped(self, index: int) -> None:
        """A virtqueue has stopped."""
        self._anew.discard(index)


def begins_anew(queue: DeviceQueue) -> bool:
    """Whether a virtqueue is where it is after a reset (2.7, 2.8.1)."""
    at = queue.position
    wrap = 1 if queue.features & F.RING_PACKED else 0
    return (at.available, at.available_wrap, at.used, at.used_wrap) == (0, wrap, 0, wrap)
