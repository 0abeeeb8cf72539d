"""Packed virtqueues as a driver sets them up and fills them (2.8)."""

from __future__ import annotations

from virtq.check.case import case, expect
from virtq.check.driver.context import DriverContext


@case("packed.drv.align-desc-ring", party="driver", packed=True)
def the_descriptor_ring_is_aligned(driver: DriverContext) -> None:
    """The descriptor ring of each virtqueue begins at a multiple of 16 bytes."""
    for queue in driver.seen().queues:
        expect(queue.desc % 16 == 0, "an address that is a multiple of 16", hex(queue.desc))
