"""Hostile devices: the catalogue of malformed rings, mirrored, as it concerns the driver half.

A row number stands in the name of each test; the head of `test_malformed_device` says where each
row is tested. What the device does is written into ring memory by hand; the driver half must name
what is wrong, break that queue alone, change nothing, and not hang.

| row | mirrored: what the device does |
|---|---|
| 1 | "anything used?" on a broken queue |
| 7 | rings that do not map: test_malformed_device |
| 8 | using before anything was made available |
| 13 | reset with buffers outstanding |
| 14 | used index too far ahead, or going back |
| 16, 17 | used descriptors around the wrap, stale flags in them |
| 18 | used entries rewritten while they are read |
| 19 | used ids that are not outstanding, or twice; lengths beyond the buffer |
| 20 | batches that end nowhere, beyond the index, or with a wrong length |
| 21 | stale used entries after a reset |
| 22 | a full ring used by one entry |
| 23 | reserved event suppression values |
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.model import EVENT_IDX, IN_ORDER, RING_PACKED, Place
from virtq import _core
from virtq.model.memory import AVAIL, INDIRECT, NEXT, USED, WRITE
from virtq.model.notify import DESC, PackedEvent
from virtq.model.packed import Cursor, PackedRing
from virtq.model.packed import Descriptor as PackedDescriptor
from virtq.model.split import SplitRing

pytestmark = pytest.mark.timeout(60)

BASE = 0x10000
BYTES = 0x20000
RING_AT = BASE
NEIGHBOUR_AT = BASE + 0x8000
DATA_AT = BASE + 0x18000
NEIGHBOUR_DATA = BASE + 0x1F000

SPLIT = 0
PACKED = RING_PACKED
BATCHES = pytest.mark.parametrize(
    "features", [IN_ORDER, PACKED | IN_ORDER], ids=["split-in-order", "packed-in-order"]
)
split_only = pytest.mark.parametrize("features", [SPLIT, IN_ORDER], ids=["split", "split-in-order"])
packed_only = pytest.mark.parametrize(
    "features", [PACKED, PACKED | IN_ORDER], ids=["packed", "packed-in-order"]
)
both = pytest.mark.parametrize(
    "features",
    [SPLIT, IN_ORDER, PACKED, PACKED | IN_ORDER],
    ids=["split", "split-in-order", "packed", "packed-in-order"],
)


class Neighbour:
    """Another queue on the same memory, of the same kind, that goes on working."""

    def __init__(self, memory: _core.Memory, features: int) -> None:
        place = Place.at(NEIGHBOUR_AT, features, 4)
        self.driver = _core.DriverQueue(memory, features, 4, *place.areas[:3], index=1)
        self.device = _core.DeviceQueue(memory, features, 4, *place.areas[:3], index=1)
        self.turns = 0

    def goes_on(self) -> None:
        self.turns += 1
        self.driver.add([], [(NEIGHBOUR_DATA, 8)], self.turns)
        self.driver.kick()
        (request,) = self.device.take()
        request.complete(request.write(b"%08d" % self.turns))
        self.device.notify()
        assert self.driver.reap() == [(self.turns, 8)]


@dataclass
class Bench:
    """The driver half under test, a device that is written by hand, and a neighbour."""

    memory: _core.Memory
    place: Place
    driver: _core.DriverQueue
    neighbour: Neighbour
    used: int = 0  # used entries so far; in a packed ring the slots that they cover

    @property
    def packed(self) -> bool:
        return bool(self.place.features & RING_PACKED)

    @property
    def in_order(self) -> bool:
        return bool(self.place.features & IN_ORDER)

    @property
    def split_ring(self) -> SplitRing:
        return self.place.split(self.memory)

    @property
    def packed_ring(self) -> PackedRing:
        return self.place.packed(self.memory)

    def add(self, *writable: int) -> list[int]:
        """Publish buffers of one element; returns the identifiers that the device would use."""
        for cookie, length in enumerate(writable):
            if length:
                self.driver.add([], [(DATA_AT, length)], 100 + cookie)
            else:
                self.driver.add([(DATA_AT, 8)], [], 100 + cookie)
        self.driver.publish()
        if self.packed:
            return [self.packed_ring.desc(slot).id for slot in range(len(writable))]
        return [self.split_ring.avail(slot) for slot in range(len(writable))]

    def use(self, id: int, length: int, advance: int = 1) -> None:
        """One used entry as a device writes it, and `advance` buffers (slots) further."""
        if self.packed:
            at = Cursor(0, 1).advanced(self.used, self.place.size)
            flags = at.used_flags | (WRITE if length else 0)
            self.packed_ring.set_desc(at.slot, PackedDescriptor(0, length, id, flags))
        else:
            ring = self.split_ring
            ring.set_used(self.used % self.place.size, id, length)
            ring.used_idx = self.used + advance
        self.used += advance

    def image(self) -> bytes:
        return self.memory.read(BASE, BYTES)

    def faults(self, *texts: str, requirement: str | None = None) -> None:
        """reap() names the fault, and then the queue is broken, for good, alone, and silent."""
        before = self.image()
        with pytest.raises(_core.RingFault) as caught:
            self.driver.reap()
        assert self.image() == before
        self.is_broken(caught.value, *texts, requirement=requirement)
        self.neighbour.goes_on()

    def is_broken(
        self, fault: _core.RingFault, *texts: str, requirement: str | None = None
    ) -> None:
        text, id = fault.args
        for part in texts:
            assert re.search(part, text), text
        if requirement is not None:
            assert id == requirement
        assert self.driver.broken == text
        assert not self.driver.has_used
        operations: list[Callable[[], object]] = [
            self.driver.reap,
            self.driver.kick,
            lambda: self.driver.add([(DATA_AT, 1)], []),
        ]
        for operation in operations:
            with pytest.raises(_core.RingFault, match=re.escape(text)):
                operation()
        assert not self.driver.has_used


@contextmanager
def make_bench(features: int, size: int = 4) -> Iterator[Bench]:
    memory = _core.Memory.allocate(BYTES, BASE)
    place = Place.at(RING_AT, features, size)
    driver = _core.DriverQueue(memory, features, size, *place.areas[:3])
    yield Bench(memory, place, driver, Neighbour(memory, features))


@pytest.fixture
def size() -> int:
    return 4


@pytest.fixture
def bench(features: int, size: int) -> Iterator[Bench]:
    with make_bench(features, size) as bench:
        yield bench


# The catalogue, mirrored.


@both
def test_row_01_broken_queue_is_not_busy(bench: Bench) -> None:
    bench.add(8)
    bench.use(77, 0)
    assert bench.driver.has_used
    bench.faults("id 77")
    turns = 0
    while bench.driver.has_used and turns < 1000:  # a worker's loop
        turns += 1
    assert turns == 0
    assert not bench.driver.enable_calls()
    bench.driver.disable_calls()
    assert bench.driver.wait()  # at once, for reap() says why


@both
def test_row_01_good_buffers_before_the_fault_come_back(bench: Bench) -> None:
    ids = bench.add(8, 8, 8)
    bench.use(ids[0], 3)
    bench.use(ids[1], 8)
    bench.use(77, 0)
    assert bench.driver.reap() == [(100, 3), (101, 8)]
    assert bench.driver.broken is None
    bench.faults("slot 2", "id 77")
    assert bench.driver.take_back() == [102]
    assert bench.driver.broken is None


@both
def test_row_08_used_before_anything_was_made_available(bench: Bench) -> None:
    bench.use(0, 0)
    if bench.packed:
        # The slot holds nothing of this driver's: there is nothing to be used.
        assert not bench.driver.has_used
        assert bench.driver.reap() == []
    else:
        bench.faults("index 1", "0 outstanding")


@both
def test_row_08_used_before_it_was_published(bench: Bench) -> None:
    bench.add(8)
    bench.driver.add([], [(DATA_AT, 8)], 200)
    bench.use(0, 0)
    assert bench.driver.reap() == [(100, 0)]
    unpublished = 1 if bench.packed or bench.in_order else bench.split_ring.avail(1)
    bench.use(unpublished, 0)
    if not bench.packed:
        bench.faults("index 2", "0 outstanding")
        return
    try:
        assert bench.driver.reap() == []
    except _core.RingFault as fault:
        bench.is_broken(fault, "id 1")


@both
def test_row_13_reset_with_buffers_outstanding(bench: Bench) -> None:
    ids = bench.add(8, 8, 8)
    bench.use(ids[0], 8)
    bench.driver.add([(DATA_AT, 1)], [], 200)
    assert bench.driver.take_back() == [100, 101, 102, 200]
    assert bench.driver.outstanding == 0
    assert bench.driver.free == 4
    assert not bench.driver.has_used
    assert bench.driver.reap() == []
    if bench.packed:
        assert bench.driver.position == (0, 1, 0, 1, 0)
    else:
        assert bench.driver.position == (0, 0, 0, 0, 0)
        assert (bench.split_ring.avail_idx, bench.split_ring.used_idx) == (0, 0)


@split_only
@pytest.mark.parametrize("index", [3, 4, 5, 0x7FFF, 0x8000, 0xFFFF])
def test_row_14_used_index_jumps(bench: Bench, index: int) -> None:
    bench.add(8, 8)
    bench.split_ring.used_idx = index
    bench.faults(f"index {index}", "2 outstanding", "of 0|ahead of 0")


@split_only
def test_row_14_used_index_goes_back(bench: Bench) -> None:
    ids = bench.add(8, 8)
    bench.use(ids[0], 0)
    assert bench.driver.reap() == [(100, 0)]
    bench.split_ring.used_idx = 0
    bench.faults("index 0", "1 outstanding", "ahead of 1")


@packed_only
def test_row_16_one_used_descriptor_for_the_whole_ring(bench: Bench) -> None:
    """A list of exactly the ring size: the wrap is counted once."""
    bench.driver.add([(DATA_AT, 1)] * 3, [(DATA_AT, 8)], 7)
    bench.driver.publish()
    assert bench.driver.position == (0, 0, 0, 1, 0)
    bench.use(bench.packed_ring.desc(3).id, 8, 4)
    assert bench.driver.reap() == [(7, 8)]
    assert bench.driver.position == (0, 0, 0, 0, 0)
    assert not bench.driver.has_used
    assert bench.driver.free == 4


@packed_only
@pytest.mark.parametrize("size", [3, 5])
def test_row_17_used_across_the_wrap(bench: Bench, size: int) -> None:
    bench.driver.add([(DATA_AT, 1)] * (size - 1), [], 1)
    bench.driver.publish()
    bench.use(bench.packed_ring.desc(size - 2).id, 0, size - 1)
    assert bench.driver.reap() == [(1, 0)]
    bench.driver.add([(DATA_AT, 1)], [(DATA_AT, 8)], 2)
    bench.driver.publish()
    assert bench.driver.position == (1, 0, size - 1, 1, 0)
    bench.use(bench.packed_ring.desc(0).id, 5, 2)
    assert bench.driver.reap() == [(2, 5)]
    assert bench.driver.position == (1, 0, 1, 0, 0)


@packed_only
@pytest.mark.parametrize("stale", [NEXT, INDIRECT, NEXT | INDIRECT, 0x7F78])
def test_row_17_stale_flags_in_a_used_descriptor(bench: Bench, stale: int) -> None:
    """NEXT is reserved in used descriptors and ignored by drivers (2.8.6); so are the others."""
    (id,) = bench.add(8)
    bench.packed_ring.set_desc(0, PackedDescriptor(0, 8, id, AVAIL | USED | WRITE | stale))
    assert bench.driver.reap() == [(100, 8)]


@packed_only
@pytest.mark.parametrize(
    ("room", "length", "written"), [(8, 0xFFFFFFFF, 0), (8, 9, 0), (8, 5, 5), (0, 8, 0)]
)
def test_row_17_length_without_write(bench: Bench, room: int, length: int, written: int) -> None:
    """It is reserved (2.8.4). QEMU's devices leave WRITE out, so what can be true is believed."""
    (id,) = bench.add(room)
    bench.packed_ring.set_desc(0, PackedDescriptor(0, length, id, AVAIL | USED))
    assert bench.driver.reap() == [(100, written)]


FLIPPER = """
import mmap, random, sys
fd, length, start, end = map(int, sys.argv[1:])
memory = mmap.mmap(fd, length)
chance = random.Random(1)
print("go", flush=True)
while True:
    at = start + 2 * chance.randrange((end - start) // 2)
    memory[at : at + 2] = chance.choice((b"\\0\\0", b"\\1\\0", b"\\2\\0", b"\\x80\\x80"))
    memory[at : at + 2] = chance.randbytes(2)
"""


@both
def test_row_18_used_entries_rewritten_while_they_are_read(features: int) -> None:
    """Another process rewrites the device's part all the time. Whatever is read, it is checked."""
    with make_bench(features) as bench:
        outside = bench.memory.read(bench.place.end, BASE + BYTES - bench.place.end)
        areas, fd = bench.place.areas, bench.memory.fd_of(BASE)
        start, end = (areas.desc, areas.driver) if bench.packed else (areas.device, areas.end - 2)
        arguments = [str(n) for n in (fd, BYTES, start - BASE, end - BASE)]
        peer = subprocess.Popen(
            [sys.executable, "-c", FLIPPER, *arguments], pass_fds=[fd], stdout=subprocess.PIPE
        )
        try:
            assert peer.stdout is not None
            assert peer.stdout.readline() == b"go\n"
            faults = rounds = 0
            until = time.monotonic() + 5
            while rounds < 1000 or (not faults and time.monotonic() < until):
                rounds += 1
                bench.driver.take_back()
                try:
                    for cookie in range(4):
                        bench.driver.add([], [(DATA_AT, 8)], cookie)
                    bench.driver.kick()
                    back: list[tuple[int, int]] = []
                    for _ in range(5):
                        back += bench.driver.reap()
                    assert len({cookie for cookie, _ in back}) == len(back) <= 4
                    assert all(cookie < 4 and written <= 8 for cookie, written in back)
                except _core.RingFault:
                    faults += 1
                    assert not bench.driver.has_used
        finally:
            peer.kill()
            peer.wait()
            assert peer.stdout is not None
            peer.stdout.close()
        found = bench.memory.read(bench.place.end, BASE + BYTES - bench.place.end)
        assert found == outside
        bench.neighbour.goes_on()


@both
@pytest.mark.parametrize("id", [2, 3, 4, 5, 0xFFFF])
def test_row_19_id_that_is_not_outstanding(bench: Bench, id: int) -> None:
    ids = bench.add(8, 8)
    assert id not in ids
    bench.use(id, 0)
    bench.faults("slot 0", f"id {id}", "not outstanding")


@split_only
@pytest.mark.parametrize("id", [0x10000, 0x10001, 0xFFFF0000, 0xFFFFFFFF])
def test_row_19_id_of_more_than_sixteen_bits(bench: Bench, id: int) -> None:
    """The field has 32 bits; none of them may be dropped before the test."""
    bench.add(8, 8)
    bench.use(id, 0)
    bench.faults("slot 0", f"id {id}")


@both
def test_row_19_used_twice(bench: Bench) -> None:
    ids = bench.add(8, 8)
    bench.use(ids[0], 0)
    assert bench.driver.reap() == [(100, 0)]
    bench.use(ids[0], 0)
    bench.faults("slot 1", f"id {ids[0]}")


@both
@pytest.mark.parametrize(("room", "length"), [(8, 9), (8, 0xFFFFFFFF), (0, 1)])
def test_row_19_length_beyond_the_buffer(bench: Bench, room: int, length: int) -> None:
    ids = bench.add(room)
    bench.use(ids[0], length)
    bench.faults(f"buffer {ids[0]}", f"length {length}", f"{room} bytes")


@both
def test_row_19_length_of_a_buffer_with_readable_part(bench: Bench) -> None:
    """The length counts device-writable bytes alone."""
    bench.driver.add([(DATA_AT, 100)], [(DATA_AT, 8)], 1)
    bench.driver.publish()
    id = bench.packed_ring.desc(1).id if bench.packed else bench.split_ring.avail(0)
    bench.use(id, 9, 2 if bench.packed else 1)
    bench.faults("length 9", "8 bytes")


@BATCHES
def test_row_20_batch_that_ends_nowhere(bench: Bench) -> None:
    ids = bench.add(8, 8, 8)
    bench.use(ids[-1] + 1, 8, 3)
    bench.faults("slot 0", f"id {ids[-1] + 1}", "not outstanding")


@BATCHES
def test_row_20_batch_that_ends_in_the_middle_of_a_chain(bench: Bench) -> None:
    """Slot 2 belongs to the second buffer, but names none."""
    bench.driver.add([], [(DATA_AT, 8)], 1)
    bench.driver.add([(DATA_AT, 8)], [(DATA_AT, 8)], 2)
    bench.driver.publish()
    if bench.packed:
        known = {bench.packed_ring.desc(0).id, bench.packed_ring.desc(2).id}
    else:
        known = {bench.split_ring.avail(0), bench.split_ring.avail(1)}
    inside = next(id for id in (2, 1) if id not in known)
    bench.use(inside, 8, 2)
    bench.faults("slot 0", f"id {inside}")


@pytest.mark.parametrize("features", [IN_ORDER], ids=["split-in-order"])
def test_row_20_batch_beyond_the_index(bench: Bench) -> None:
    """The entry covers three buffers, the index counts two."""
    ids = bench.add(8, 8, 8)
    bench.use(ids[2], 8, 2)
    bench.faults("slot 0", f"id {ids[2]}", "2 buffers")


@pytest.mark.parametrize("features", [IN_ORDER], ids=["split-in-order"])
def test_row_20_index_beyond_the_batch(bench: Bench) -> None:
    """The entry covers two buffers, the index counts three: the third has an entry of its own,
    which names a buffer that came back already."""
    ids = bench.add(8, 8, 8)
    bench.split_ring.set_used(2, ids[0], 0)
    bench.use(ids[1], 8, 3)
    assert bench.driver.reap() == [(100, 8), (101, 8)]
    bench.faults("slot 2", f"id {ids[0]}")


@BATCHES
def test_row_20_length_of_the_last_one_beyond_its_buffer(bench: Bench) -> None:
    """The length is the last buffer's, not the batch's."""
    ids = bench.add(8, 8, 8)
    bench.use(ids[2], 24, 3)
    bench.faults(f"buffer {ids[2]}", "length 24", "8 bytes")


@BATCHES
def test_row_20_skipped_buffers_count_as_filled(bench: Bench) -> None:
    """Whether they were, the driver cannot see: their length is all there was room for."""
    ids = bench.add(8, 0, 16, 4)
    bench.use(ids[3], 1, 4)
    assert bench.driver.reap(1) == [(100, 8)]
    assert bench.driver.has_used
    assert bench.driver.enable_calls()
    assert bench.driver.reap(2) == [(101, 0), (102, 16)]
    assert bench.driver.reap() == [(103, 1)]
    assert not bench.driver.has_used


@BATCHES
def test_row_20_entries_inside_a_batch_are_not_read(bench: Bench) -> None:
    """Whatever stands in the slots of skipped buffers."""
    ids = bench.add(8, 8, 8)
    if bench.packed:
        for slot in (1, 2):
            bench.packed_ring.set_desc(slot, PackedDescriptor(0, 99, 99, AVAIL | USED | WRITE))
    else:
        for slot in (1, 2, 3):
            bench.split_ring.set_used(slot, 99, 99)
    bench.use(ids[2], 0, 3)
    assert bench.driver.reap() == [(100, 8), (101, 8), (102, 0)]
    assert not bench.driver.has_used


@both
def test_row_21_stale_entries_after_a_reset(bench: Bench) -> None:
    ids = bench.add(8, 8)
    bench.use(ids[1] if bench.in_order else ids[0], 8, 2 if bench.in_order else 1)
    bench.driver.reap(1)  # in order: half of the batch
    bench.driver.take_back()
    bench.used = 0
    assert bench.image()[: bench.place.end - BASE] == bytes(bench.place.end - BASE)
    ids = bench.add(8, 8)
    assert not bench.driver.has_used
    assert bench.driver.reap() == []
    bench.use(ids[0], 5)
    bench.use(ids[1], 6)
    assert bench.driver.reap() == [(100, 5), (101, 6)]


@both
@pytest.mark.parametrize("position", [(3, 1, 2, 1, 0), (1, 0, 2, 1, 0), (2, 0, 1, 1, 0)])
def test_row_21_driver_starts_only_where_the_ring_is_empty(
    bench: Bench, position: tuple[int, int, int, int, int]
) -> None:
    areas = bench.place.areas[:3]
    before = bench.image()
    with pytest.raises(ValueError, match=r"outstanding|position"):
        _core.DriverQueue(
            bench.memory, bench.place.features, 4, *areas, position=_core.Position(*position)
        )
    assert bench.image() == before


@both
def test_row_22_full_ring_comes_back_whole(bench: Bench) -> None:
    ids = bench.add(8, 8, 8, 8)
    assert bench.driver.free == 0
    with pytest.raises(_core.QueueFull):
        bench.driver.add([(DATA_AT, 1)], [])
    if bench.in_order:
        bench.use(ids[3], 8, 4)
    else:
        for id in ids:
            bench.use(id, 8)
    assert bench.driver.has_used
    assert bench.driver.reap() == [(100 + i, 8) for i in range(4)]
    assert not bench.driver.has_used
    assert bench.driver.free == 4
    # Once more, so that a lap is counted.
    ids = bench.add(8, 8, 8, 8)
    assert not bench.driver.has_used
    if bench.in_order:
        bench.use(ids[3], 8, 4)
    else:
        for id in ids:
            bench.use(id, 8)
    assert len(bench.driver.reap()) == 4


@packed_only
@pytest.mark.parametrize(
    ("extra", "event", "text"),
    [
        (0, PackedEvent(0, 0, 3), "value 3"),
        (EVENT_IDX, PackedEvent(0, 0, 3), "value 3"),
        (0, PackedEvent(0, 0, DESC), "value 2"),
        (EVENT_IDX, PackedEvent(4, 1, DESC), "offset 4.*size 4"),
        (EVENT_IDX, PackedEvent(0x7FFF, 0, DESC), "offset 32767.*size 4"),
    ],
)
def test_row_23_reserved_event_values(
    features: int, extra: int, event: PackedEvent, text: str
) -> None:
    with make_bench(features | extra) as bench:
        bench.add(8)
        bench.packed_ring.device_event = event
        with pytest.raises(_core.RingFault, match=text) as caught:
            bench.driver.kick()
        bench.is_broken(caught.value)
        bench.neighbour.goes_on()


@packed_only
@pytest.mark.parametrize(("flags", "wanted"), [(0xFFFC, True), (0xFFFD, False)])
def test_row_23_reserved_bits_beside_the_event_flags(
    bench: Bench, flags: int, wanted: bool
) -> None:
    bench.add(8)
    bench.memory.write(bench.place.areas.device + 2, flags.to_bytes(2, "little"))
    assert bench.driver.kick() is wanted


@split_only
@pytest.mark.parametrize(("flags", "wanted"), [(0, True), (1, False), (0xFFFE, True)])
def test_row_23_reserved_bits_of_the_used_flags(bench: Bench, flags: int, wanted: bool) -> None:
    bench.add(8)
    bench.split_ring.used_flags = flags
    assert bench.driver.kick() is wanted


@split_only
@pytest.mark.parametrize("event", [0, 1, 2, 0x7FFF, 0xFFFF])
def test_row_23_any_event_index_is_harmless(features: int, event: int) -> None:
    with make_bench(features | EVENT_IDX) as bench:
        bench.split_ring.avail_event = event
        for turn in range(2):
            bench.driver.add([(DATA_AT, 1)], [])
            assert bench.driver.kick() is (turn == event)
