"""Use in any order, and what else a device may do when it uses buffers."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count

from virtq.check.case import NotObservable, case
from virtq.check.driver.cases.in_order import LAPS, depth_of
from virtq.check.driver.context import DriverContext, Live
from virtq.check.driver.record import Chain
from virtq.model.memory import INDIRECT, NEXT, WRITE
from virtq.model.packed import Descriptor


@case("resv.ring-packed.meaning", party="driver")
def buffers_come_in_this_kind_of_ring(driver: DriverContext) -> None:
    """What was negotiated is what is used: with RING_PACKED buffers come in a packed ring, without
    it in a split one, around the ring several times."""
    live = driver.live()
    live.serve(LAPS * live.ring.size)


@case("packed.list.drv.track-length", party="driver", in_order=False)
def the_last_is_used_first(driver: DriverContext) -> None:
    """Without IN_ORDER the device uses what is available from the last to the first. The driver
    has to find out from the identifier which one it is, and (packed) how many slots it had."""
    live = driver.live()
    depth = depth_of(live)
    slots = 0
    while slots < LAPS * live.ring.size:
        chains = list(live.take(depth))
        slots += sum(len(chain.descriptors) for chain in chains)
        live.use(chains[::-1])
        live.ring.enable_kicks()


@case("packed.list.drv.track-length", party="driver", in_order=False)
def used_in_any_order(driver: DriverContext) -> None:
    """Without IN_ORDER the device uses what is available in a random order, some of it much later
    than the rest."""
    live = driver.live()
    chance = random.Random(driver.seed)
    depth = depth_of(live)
    kept: list[Chain] = []
    buffers = 4 * live.ring.size
    while buffers > 0:
        live.take(max(1, depth - len(kept)))
        free = [chain for chain in live.ring.held if chain not in kept]
        if not free:
            free, kept = kept, []
        chance.shuffle(free)
        if len(free) > 2 and len(kept) < depth // 2:
            kept.append(free.pop())
        live.use(free)
        live.ring.enable_kicks()
        buffers -= len(free)
        if chance.random() < 0.2:
            live.use(kept)
            buffers -= len(kept)
            kept = []
    live.use([chain for chain in live.ring.held if chain in kept])


@case(party="driver")
def slowly_and_one_by_one(driver: DriverContext) -> None:
    """The device takes its time for each buffer; the driver waits, and everything stays as it
    is."""
    live = driver.live()
    for _ in range(8):
        live.turns(driver.moment_s)
        chains = live.take(1)
        live.ring.audit()
        live.use(chains)
        live.ring.enable_kicks()
    live.serve(live.ring.size)


def _serve_dressed(live: Live, dress: Callable[[Descriptor], Descriptor]) -> None:
    ring = live.ring.packed_ring
    ring.dress = dress
    try:
        live.serve(LAPS * live.ring.size)
    finally:
        ring.dress = None


@case("packed.used.addr-unused", party="driver", packed=True)
def an_address_in_used_descriptors(driver: DriverContext) -> None:
    """The address of a used descriptor means nothing: the device leaves nonsense there."""
    nonsense = count(0xDEAD_BEEF_F00D_0000)
    _serve_dressed(driver.live(), lambda used: used._replace(addr=next(nonsense)))


@case("packed.list.next-reserved-in-used", party="driver", packed=True)
def next_in_used_descriptors(driver: DriverContext) -> None:
    """NEXT and INDIRECT mean nothing in a used descriptor: the device sets them."""
    extra = NEXT | INDIRECT
    _serve_dressed(driver.live(), lambda used: used._replace(flags=used.flags | extra))


@case("packed.used.len-reserved-without-write", party="driver", packed=True)
def a_length_without_write(driver: DriverContext) -> None:
    """The length of a used descriptor without WRITE means nothing: the device leaves nonsense
    there, for buffers that have no device-writable part."""
    live = driver.live()
    if all(chain.writable_bytes for chain in live.take(1)):
        raise NotObservable("all buffers have a device-writable part")
    _serve_dressed(
        live, lambda used: used if used.flags & WRITE else used._replace(len=0x7FFF_FFFF)
    )
