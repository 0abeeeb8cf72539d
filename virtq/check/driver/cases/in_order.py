"""In-order use, as a driver has to accept it (2.7.9, 2.8.8).

The device may make one used entry stand for a whole batch, of any size, as long as each buffer of
it but the last was used up. A driver works out from the entry's identifier how many buffers that
are; if it gets that wrong, it goes on at the wrong place of the ring, runs out of room, or reuses
what is not used yet. All of that shows, so these cases only look on while it works.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from virtq.check.case import NotObservable, case
from virtq.check.driver.context import DriverContext, Live

LAPS = 3
"""So often around the ring, that what is lost of a lap is missed."""
LONG_RUN_BUFFERS = 3000
_LOOKS = 16


def depth_of(live: Live, needed: int = 2) -> int:
    """How many buffers the driver has at once, sooner or later. Raises NotObservable if those are
    not enough."""
    depth = 0
    for _ in range(_LOOKS):
        depth = max(depth, len(live.settle()))
        if depth >= needed:
            return depth
        live.use(list(live.ring.held))
        live.ring.enable_kicks()
    raise NotObservable(f"the driver has {depth} buffers at once, {needed} are needed")


def laps(live: Live, size_of: Callable[[], int]) -> None:
    """Around the ring, in batches; the driver has to keep up."""
    slots = 0
    while slots < LAPS * live.ring.size:
        chains = live.take(size_of())
        slots += sum(len(chain.descriptors) for chain in chains)
        live.use(chains)
        live.ring.enable_kicks()


@case(
    "split.inorder.drv.derive-batch",
    "packed.inorder.drv.derive-batch",
    party="driver",
    in_order=True,
)
def one_used_entry_for_each_buffer(driver: DriverContext) -> None:
    """The device makes a used entry for each buffer, though it need not: batches of one."""
    live = driver.live()
    depth = depth_of(live, 1)
    live.ring.half.one_used_entry_per_buffer = True
    laps(live, lambda: max(1, depth // 2))


@case(
    "split.inorder.drv.derive-batch",
    "packed.inorder.drv.derive-batch",
    "split.inorder.drv.skipped-fully-used",
    "packed.inorder.drv.skipped-fully-used",
    "packed.inorder.group-skip-both",
    party="driver",
    in_order=True,
)
def one_used_entry_for_all(driver: DriverContext) -> None:
    """One used entry stands for everything that the driver has made available, again and again."""
    live = driver.live()
    depth = depth_of(live)
    laps(live, lambda: depth)


@case(
    "split.inorder.drv.derive-batch",
    "packed.inorder.drv.derive-batch",
    "packed.inorder.group-skip-both",
    party="driver",
    in_order=True,
)
def batches_of_changing_size(driver: DriverContext) -> None:
    """Batches of one, two, three and more buffers by turns, around the ring several times, so that
    batches begin and end in every slot and go across the ring's end."""
    live = driver.live()
    depth = depth_of(live)
    sizes = 0

    def size() -> int:
        nonlocal sizes
        sizes += 1
        return 1 + sizes % depth

    laps(live, size)


@case(
    "split.inorder.drv.derive-batch",
    "packed.inorder.drv.derive-batch",
    party="driver",
    in_order=True,
)
def several_batches_before_a_notification(driver: DriverContext) -> None:
    """Several batches become used before the driver is notified, and then it is so once."""
    live = driver.live()
    depth = depth_of(live)
    slots = 0
    while slots < LAPS * live.ring.size:
        chains = live.take(depth)
        slots += sum(len(chain.descriptors) for chain in chains)
        while chains:
            count = max(1, len(chains) // 2)
            live.use(chains[:count], notify=False)
            chains = chains[count:]
        live.ring.notify()
        live.ring.enable_kicks()


@case(
    "split.inorder.drv.derive-batch",
    "packed.inorder.drv.derive-batch",
    party="driver",
    in_order=True,
)
def a_batch_as_long_as_the_ring(driver: DriverContext) -> None:
    """The ring is full, and one used entry empties it: the positions are the same afterwards as
    before, a lap later."""
    live = driver.live()
    for _ in range(LAPS):
        depth_of(live)
        chains = live.settle()
        taken = sum(len(chain.descriptors) for chain in chains)
        longest = max(len(chain.descriptors) for chain in chains)
        if taken + longest <= live.ring.size:
            raise NotObservable(f"the driver fills {taken} of {live.ring.size} slots at most")
        live.use(chains)
        live.ring.enable_kicks()
    live.serve(live.ring.size)


@case(
    "split.inorder.drv.skipped-fully-used",
    "packed.inorder.drv.skipped-fully-used",
    party="driver",
    in_order=True,
    device_id=4,
)
def a_short_buffer_ends_its_batch(driver: DriverContext) -> None:
    """The last buffer of each batch is written only in part, which its length tells; those before
    it are full. Around the ring several times."""
    live = driver.live()
    depth = depth_of(live)
    slots = 0
    while slots < LAPS * live.ring.size:
        chains = live.take(depth)
        slots += sum(len(chain.descriptors) for chain in chains)
        last = chains[-1]
        assert last.taken is not None
        if last.writable_bytes > 1:
            last.taken.write(b"\x5a" * (last.writable_bytes // 2))
            last.written = last.writable_bytes // 2
        live.use(chains)
        live.ring.enable_kicks()


@case(
    "split.inorder.drv.derive-batch",
    "packed.inorder.drv.derive-batch",
    "packed.inorder.group-skip-both",
    party="driver",
    in_order=True,
)
def a_long_run_of_everything(driver: DriverContext) -> None:
    """Thousands of buffers in batches of random sizes, one used entry for each or for all, with
    notifications that are due, or late, or not asked for."""
    live = driver.live()
    depth = depth_of(live, 1)
    chance = random.Random(driver.seed)
    buffers = min(LONG_RUN_BUFFERS, 8 * live.ring.size)
    late = False
    while buffers > 0:
        chains = live.take(chance.randint(1, depth))
        live.ring.half.one_used_entry_per_buffer = chance.random() < 0.3
        late = chance.random() < 0.3
        live.use(chains, notify=not late)
        if late and chance.random() < 0.5:
            live.turns(0.001)
        if late or chance.random() < 0.1:
            live.ring.signal()
        live.ring.enable_kicks()
        buffers -= len(chains)
