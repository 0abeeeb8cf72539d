"""Split virtqueues as a driver sets them up and fills them (2.7)."""

from __future__ import annotations

from virtq.check.case import case, expect
from virtq.check.driver.context import DriverContext
from virtq.check.driver.record import Chain, Record

MAX_CHAIN_BYTES = 1 << 32


def split_chains(record: Record) -> list[Chain]:
    """The buffers of split queues."""
    return [chain for queue in record.queues if not queue.packed for chain in queue.chains]


@case("split.drv.align-desc-table", party="driver", packed=False)
def the_descriptor_table_is_aligned(driver: DriverContext) -> None:
    """The descriptor table of each virtqueue begins at a multiple of 16 bytes."""
    for queue in driver.seen().queues:
        expect(queue.desc % 16 == 0, "an address that is a multiple of 16", hex(queue.desc))


@case("split.drv.align-avail-ring", party="driver", packed=False)
def the_available_ring_is_aligned(driver: DriverContext) -> None:
    """The available ring of each virtqueue begins at a multiple of 2 bytes."""
    for queue in driver.seen().queues:
        expect(queue.driver % 2 == 0, "an address that is a multiple of 2", hex(queue.driver))


@case("split.drv.align-used-ring", party="driver", packed=False)
def the_used_ring_is_aligned(driver: DriverContext) -> None:
    """The used ring of each virtqueue begins at a multiple of 4 bytes."""
    for queue in driver.seen().queues:
        expect(queue.device % 4 == 0, "an address that is a multiple of 4", hex(queue.device))


@case("split.desc.in-order-ring-use", party="driver", packed=False, in_order=True)
def in_order_slots_follow_one_another(driver: DriverContext) -> None:
    """In order, the descriptor table is used as a ring: the first buffer begins in slot 0, and each
    later one right after the slots of the one before, around the table's end."""
    for queue in driver.seen().queues:
        at = 0
        for chain in queue.chains:
            expect(chain.id == at, f"{chain} to begin in slot {at}", f"slot {chain.id}")
            at = (at + len(chain.descriptors)) % queue.size
