"""A device that does what no device should. A driver cannot go on with it, and need not: it may
ignore it, refuse to go on, or end with an error. It must not crash, hang so that it cannot be
ended, or take a buffer for used that is not.

The specification has no requirement for this: these cases are tied to none.
"""

from __future__ import annotations

from virtq.check.case import NotObservable, case
from virtq.check.driver.context import DriverContext, Live
from virtq.model.memory import WRITE
from virtq.model.packed import Descriptor


def _stranger(live: Live) -> int:
    """An identifier in range that no buffer has which is available."""
    ids = {chain.id for chain in live.ring.held}
    ids |= {d.slot for chain in live.ring.held for d in chain.descriptors}
    free = [id for id in range(live.ring.size) if id not in ids]
    if not free:
        raise NotObservable("every identifier is in use")
    return free[-1]


@case(party="driver", hostile=True)
def an_identifier_that_does_not_exist(driver: DriverContext) -> None:
    """A used entry has an identifier beyond the queue's size."""
    live = driver.hostile()
    live.ring.lie(0xFFFE, 0)
    driver.outlives(live)


@case(party="driver", hostile=True)
def an_identifier_of_no_buffer(driver: DriverContext) -> None:
    """A used entry has an identifier that could be, but of nothing that is available."""
    live = driver.hostile()
    live.ring.lie(_stranger(live), 0)
    driver.outlives(live)


@case(party="driver", hostile=True)
def used_twice(driver: DriverContext) -> None:
    """The same buffer is used twice, the second time before the driver could use it again."""
    live = driver.hostile()
    chain = live.ring.held[0]
    live.ring.serve([chain])
    if live.ring.packed:
        _twice_packed(live, chain.id, len(chain.descriptors), chain.written or 0)
    else:
        ring, half = live.ring.split_ring, live.ring.half
        at = half.position.used
        for i in range(2):
            live.ring.forge(at + i, chain.id, chain.written or 0)
        ring.used_idx = at + 2
    live.ring.held.remove(chain)
    driver.outlives_anyhow(live)


def _twice_packed(live: Live, id: int, slots: int, length: int) -> None:
    """Both used descriptors, the second one first: the driver sees both at once."""
    position = live.ring.half.position
    ring = live.ring.packed_ring
    used = position.used + slots
    wrap = position.used_wrap ^ (used >= live.ring.size)
    for slot, bit in ((used % live.ring.size, wrap), (position.used, position.used_wrap)):
        flags = WRITE | (0x8080 if bit else 0)
        ring.set_desc(slot, Descriptor(0, length, id, flags))


@case(party="driver", hostile=True)
def a_length_beyond_the_buffer(driver: DriverContext) -> None:
    """A used entry reports more bytes than its buffer has device-writable ones."""
    live = driver.hostile()
    chain = live.ring.held[0]
    live.ring.serve([chain])
    live.ring.lie(chain.id, chain.writable_bytes + 0x10_0000)
    live.ring.held.remove(chain)
    driver.outlives_anyhow(live)


@case(party="driver", hostile=True, packed=False)
def a_used_index_that_jumps(driver: DriverContext) -> None:
    """The used index counts more buffers than were made available."""
    live = driver.hostile()
    live.ring.lie(live.ring.held[0].id, 0, covers=live.ring.size * 4 + 3)
    driver.outlives_anyhow(live)


@case(party="driver", hostile=True, packed=False, in_order=True)
def a_batch_that_ends_beyond_the_index(driver: DriverContext) -> None:
    """In order, a used entry names the last of several buffers, but the index counts fewer."""
    live = driver.hostile()
    if len(live.ring.held) < 3:
        raise NotObservable("the driver has fewer than 3 buffers at once")
    live.ring.lie(live.ring.held[2].id, 0, covers=1)
    driver.outlives_anyhow(live)


@case(party="driver", hostile=True, in_order=True)
def a_batch_that_ends_within_a_buffer(driver: DriverContext) -> None:
    """In order, a used entry names a descriptor in the middle of a buffer (split), or an identifier
    that is none (packed)."""
    live = driver.hostile()
    inner = [d.slot for chain in live.ring.held for d in chain.descriptors[1:]]
    if live.ring.packed:
        inner = [live.ring.size + 7]
    if not inner:
        raise NotObservable("no buffer has more than one descriptor in the ring")
    live.ring.lie(inner[-1], 0)
    driver.outlives(live)


@case(party="driver", hostile=True, in_order=True)
def skipped_buffers_that_were_not_written(driver: DriverContext) -> None:
    """In order, a used entry stands for a batch whose buffers the device has not written at all."""
    live = driver.hostile()
    if len(live.ring.held) < 2:
        raise NotObservable("the driver has 1 buffer at once")
    count = len(live.ring.held)
    live.ring.lie(live.ring.held[-1].id, 0, covers=count)
    driver.outlives_anyhow(live)


@case(party="driver", hostile=True, packed=True)
def reserved_event_flags(driver: DriverContext) -> None:
    """The device's event flags are 3, which is reserved."""
    live = driver.hostile()
    live.ring.ask(0, 3)
    live.use(list(live.ring.held))
    driver.outlives(live)


@case(party="driver", hostile=True, packed=True)
def an_event_offset_beyond_the_ring(driver: DriverContext) -> None:
    """The device asks for the event of a descriptor that the ring does not have."""
    live = driver.hostile()
    live.ring.ask(0x7FFF, 2)
    live.use(list(live.ring.held))
    driver.outlives(live)
