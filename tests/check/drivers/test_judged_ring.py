"""What the judge writes down of a ring, while the driver goes on working."""

from __future__ import annotations

import pytest

from tests.check.drivers.reference import Split
from virtq._core import Memory, Position
from virtq.check.driver.record import Chain, Record
from virtq.check.driver.ring import JudgedRing
from virtq.features import F, RingKind
from virtq.model.packed import Descriptor, PackedRing

SIZE = 8
AREAS = (0x0000, 0x1000, 0x2000)
DATA = 0x3000


class _RacedRing(JudgedRing):
    """The driver makes as many buffers available as it can whenever the judge has looked at one."""

    driver: Split | None = None

    def _note(self, chain: Chain) -> None:
        super()._note(chain)
        fill(self.driver)


def fill(driver: Split | None) -> None:
    while driver is not None and driver.free:
        driver.add([(DATA, 16)], [], 0)
        driver.publish()


def nothing(queue: int, chain: Chain) -> int:
    return 0


def test_an_index_that_grows_during_a_look() -> None:
    """Each step of the index is as large as the ring at most, however the looks fall."""
    memory = Memory.allocate(1 << 16)
    driver = Split(memory, 0, SIZE, *AREAS)
    record = Record(RingKind.SPLIT, 0)
    ring = _RacedRing(record, memory, 0, 0, SIZE, AREAS, Position(0, 0, 0, 0, 0), nothing)
    ring.driver = driver
    for _ in range(5):
        if driver.free:
            driver.add([(DATA, 16)], [], 0)
            driver.publish()
        ring.look()
        ring.use(list(ring.held))
        while driver.has_used:
            driver.reap()
        fill(driver)
    steps = [b - a for a, b in zip(ring.seen.indices, ring.seen.indices[1:], strict=False)]
    assert max(steps) <= SIZE
    assert sum(steps) > 4 * SIZE
    assert not ring.broken


@pytest.mark.parametrize(
    ("descriptor", "faults"),
    [
        (Descriptor(0, 0, 3, 0), 0),  # an id that was written ahead
        (Descriptor(DATA, 16, 3, 0), 0),  # on its way: the flags are written last
        (Descriptor(DATA, 16, 3, 1 << 15), 1),  # made available in the wrong lap
        (Descriptor(DATA, 16, 3, 1 << 7 | 1 << 15), 1),  # made available in no lap
    ],
)
def test_only_flags_make_a_new_descriptor_available(descriptor: Descriptor, faults: int) -> None:
    memory = Memory.allocate(1 << 16)
    record = Record(RingKind.PACKED, F.RING_PACKED)
    start = Position(0, 1, 0, 1, 0)
    ring = JudgedRing(record, memory, F.RING_PACKED, 0, SIZE, AREAS, start, nothing)
    PackedRing(memory, SIZE, *AREAS).set_desc(0, descriptor)
    ring.audit()
    assert len(ring.seen.faults) == faults
