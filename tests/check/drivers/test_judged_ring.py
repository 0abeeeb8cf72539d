"""What the judge writes down of a ring, while the driver goes on working."""

from __future__ import annotations

from tests.check.drivers.reference import Split
from virtq._core import Memory, Position
from virtq.check.driver.record import Chain, Record
from virtq.check.driver.ring import JudgedRing
from virtq.features import RingKind

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
