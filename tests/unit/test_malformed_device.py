"""Hostile drivers: the catalogue of malformed rings as it concerns the device half of the core.

A row number stands in the name of each test that is about it. What the driver does is written into
ring memory by hand; the device half must name what is wrong, break that queue alone, change
nothing, and not hang.

| row | what the driver does | tested |
|---|---|---|
| 1 | "anything new?" on a broken queue | here |
| 2 | indirect tables of odd lengths | here |
| 3 | queue sizes beyond the limits | here; larger than the device's maximum: vhost_user |
| 4 | indirect table across memory regions | here |
| 5, 6 | in-flight tables | not offered yet |
| 7 | rings that do not map | here |
| 8 | more outstanding than the ring holds | here |
| 9 | buffers of length 0 or too short | here; request headers: the tests of each device type |
| 10 | addresses that do not map or overflow | here |
| 11 | notification for a queue that does not exist | vhost_user |
| 12 | a buffer that is the ring itself | here; device registers: nothing maps them |
| 13 | stopped with a request pending | here |
| 14 | available index too far ahead | here |
| 15 | heads, links, loops, order and flags of descriptors | here |
| 16, 17 | packed lists as long as the ring, across the wrap, stale flags, odd sizes | here |
| 18 | descriptors rewritten while they are read | here |
| 19, 20 | used ids, lengths, batches | test_malformed_driver; completing too much: here |
| 21 | in order, resumed after chains of several descriptors | here |
| 22 | a full ring in order | here |
| 23 | reserved event suppression values | here |
| 24 | memory tables | test_core_memory and the core's own tests |
| 25 | vhost-user messages | vhost_user |
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.model import EVENT_IDX, IN_ORDER, INDIRECT_DESC, RING_PACKED, Place
from virtq import _core
from virtq.model.memory import AVAIL, INDIRECT, NEXT, USED, WRITE
from virtq.model.notify import DESC, PackedEvent
from virtq.model.packed import Cursor, PackedRing
from virtq.model.packed import Descriptor as PackedDescriptor
from virtq.model.split import Descriptor as SplitDescriptor
from virtq.model.split import SplitRing

pytestmark = pytest.mark.timeout(60)

BASE = 0x10000  # guest memory neither begins at 0 nor ends at 2^64
BYTES = 0x20000
RING_AT = BASE
NEIGHBOUR_AT = BASE + 0x8000
TABLE_AT = BASE + 0x10000
DATA_AT = BASE + 0x18000
NEIGHBOUR_DATA = BASE + 0x1F000

SPLIT = 0
PACKED = RING_PACKED
split_only = pytest.mark.parametrize("features", [SPLIT, IN_ORDER], ids=["split", "split-in-order"])
packed_only = pytest.mark.parametrize(
    "features", [PACKED, PACKED | IN_ORDER], ids=["packed", "packed-in-order"]
)
both = pytest.mark.parametrize(
    "features",
    [SPLIT, IN_ORDER, PACKED, PACKED | IN_ORDER],
    ids=["split", "split-in-order", "packed", "packed-in-order"],
)

Element = tuple[int, int, int]  # address, length, flags besides NEXT, AVAIL and USED


class Neighbour:
    """Another queue on the same memory, of the same kind, that goes on working."""

    def __init__(self, memory: _core.Memory, features: int) -> None:
        self.memory = memory
        place = Place.at(NEIGHBOUR_AT, features, 4)
        self.driver = _core.DriverQueue(memory, features, 4, *place.areas[:3])
        self.device = _core.DeviceQueue(memory, features, 4, *place.areas[:3], index=1)
        self.turns = 0

    def goes_on(self) -> None:
        self.turns += 1
        said = b"%08d" % self.turns
        self.memory.write(NEIGHBOUR_DATA, said)
        self.driver.add([(NEIGHBOUR_DATA, 8)], [(NEIGHBOUR_DATA + 16, 8)], self.turns)
        self.driver.kick()
        (request,) = self.device.take()
        request.write(request.read()[::-1])
        request.complete()
        self.device.notify()
        assert self.driver.reap() == [(self.turns, 8)]
        assert self.memory.read(NEIGHBOUR_DATA + 16, 8) == said[::-1]


@dataclass
class Bench:
    """A ring that is written by hand, the device half under test, and its neighbour."""

    memory: _core.Memory
    place: Place
    device: _core.DeviceQueue
    neighbour: Neighbour
    err_fd: int

    @property
    def features(self) -> int:
        return self.place.features

    @property
    def packed(self) -> bool:
        return bool(self.features & RING_PACKED)

    @property
    def split_ring(self) -> SplitRing:
        return self.place.split(self.memory)

    @property
    def packed_ring(self) -> PackedRing:
        return self.place.packed(self.memory)

    def restart(self, position: _core.Position | None = None) -> None:
        self.device = _core.DeviceQueue(
            self.memory, self.features, self.place.size, *self.place.areas[:3], position=position
        )
        self.device.set_err(self.err_fd)

    def offer(self, *chains: list[Element], start: int = 0, wrap: int = 1) -> None:
        """Chains from slot `start` on, one after the other, as a good driver writes them."""
        if self.packed:
            at = Cursor(start, wrap)
            for id, elements in enumerate(chains):
                for i, (addr, length, flags) in enumerate(elements):
                    more = NEXT if i + 1 < len(elements) else 0
                    written = flags | more | at.available_flags
                    descriptor = PackedDescriptor(addr, length, id, written)
                    self.packed_ring.set_desc(at.slot, descriptor)
                    at = at.advanced(1, self.place.size)
            return
        slot, ring = start, self.split_ring
        for elements in chains:
            head = slot
            for i, (addr, length, flags) in enumerate(elements):
                following = (slot + 1) % self.place.size
                more = NEXT if i + 1 < len(elements) else 0
                ring.set_desc(slot, SplitDescriptor(addr, length, flags | more, following))
                slot = following
            ring.set_avail(ring.avail_idx % self.place.size, head)
            ring.avail_idx += 1

    def table(self, *entries: Element, at: int = TABLE_AT) -> Element:
        """An indirect table; returns the element that refers to it. Entries' flags are all there
        is, with NEXT and a link to the following one in a split ring's."""
        for i, (addr, length, flags) in enumerate(entries):
            where = at + 16 * i
            if self.packed:
                PackedDescriptor(addr, length, 0, flags).store(self.memory, where)
            else:
                more = NEXT if i + 1 < len(entries) else 0
                SplitDescriptor(addr, length, flags | more, i + 1).store(self.memory, where)
        return at, 16 * len(entries), INDIRECT

    def image(self) -> bytes:
        return self.memory.read(BASE, BYTES)

    def faults(self, *texts: str, requirement: str | None = None) -> None:
        """take() names the fault, and then the queue is broken, for good, alone, and silent."""
        before = self.image()
        with pytest.raises(_core.RingFault) as caught:
            self.device.take()
        self.is_broken(caught.value, *texts, requirement=requirement)
        assert self.image() == before
        self.neighbour.goes_on()

    def is_broken(
        self, fault: _core.RingFault, *texts: str, requirement: str | None = None
    ) -> None:
        text, id = fault.args
        for part in texts:
            assert re.search(part, text), text
        if requirement is not None:
            assert id == requirement
        assert self.device.broken == text
        assert not self.device.has_available
        for operation in (self.device.take, self.device.flush, self.device.notify):
            with pytest.raises(_core.RingFault, match=re.escape(text)):
                operation()
        assert not self.device.has_available
        assert os.eventfd_read(self.err_fd) == 1


@pytest.fixture
def size() -> int:
    return 4


@pytest.fixture
def features() -> int:
    return SPLIT


@contextmanager
def make_bench(features: int, size: int, memory: _core.Memory | None = None) -> Iterator[Bench]:
    memory = memory or _core.Memory.allocate(BYTES, BASE)
    place = Place.at(RING_AT, features, size)
    device = _core.DeviceQueue(memory, features, size, *place.areas[:3])
    err_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    device.set_err(err_fd)
    try:
        yield Bench(memory, place, device, Neighbour(memory, features), err_fd)
    finally:
        os.close(err_fd)


@pytest.fixture
def bench(features: int, size: int) -> Iterator[Bench]:
    with make_bench(features, size) as bench:
        yield bench


@pytest.fixture
def indirect(features: int, size: int) -> Iterator[Bench]:
    with make_bench(features | INDIRECT_DESC, size) as bench:
        yield bench


GOOD: Element = (DATA_AT, 8, 0)
GOOD_WRITE: Element = (DATA_AT + 8, 8, WRITE)
BAD: Element = (0x100, 8, 0)  # not in guest memory


# The catalogue.


@both
def test_row_01_broken_queue_is_not_busy(bench: Bench) -> None:
    bench.offer([BAD])
    assert bench.device.has_available
    bench.faults("0x100")
    turns = 0
    while bench.device.has_available and turns < 1000:  # a worker's loop
        turns += 1
    assert turns == 0
    assert not bench.device.enable_kicks()
    bench.device.disable_kicks()


@both
def test_row_01_good_buffers_before_the_fault_are_taken(bench: Bench) -> None:
    bench.offer([GOOD], [GOOD, GOOD_WRITE], [BAD])
    batch = bench.device.take()
    assert [len(request.segments()) for request in batch] == [1, 2]
    assert bench.device.broken is None
    bench.faults("0x100")
    assert batch[1].read() == bytes(8)


@both
@pytest.mark.parametrize("length", [0, 8, 17, 24, 16 * 32769, 0xFFFFFFF0, 0xFFFFFFFF])
def test_row_02_indirect_table_length(indirect: Bench, length: int) -> None:
    indirect.table(GOOD)
    indirect.offer([(TABLE_AT, length, INDIRECT)])
    indirect.faults(f"table of {length} bytes")


@pytest.mark.parametrize("half", ["device", "driver"])
@pytest.mark.parametrize("features", [SPLIT, PACKED], ids=["split", "packed"])
@pytest.mark.parametrize("size", [0, 32769, 65536])
def test_row_03_queue_size(half: str, features: int, size: int) -> None:
    memory = _core.Memory.allocate(0x200000)
    queue = _core.DeviceQueue if half == "device" else _core.DriverQueue
    with pytest.raises(ValueError, match=str(size)):
        queue(memory, features, size, 0, 0x100000, 0x180000)


@pytest.mark.parametrize("size", [3, 6, 255, 32767])
def test_row_03_split_queue_size_is_a_power_of_two(size: int) -> None:
    memory = _core.Memory.allocate(0x200000)
    for queue in (_core.DeviceQueue, _core.DriverQueue):
        with pytest.raises(ValueError, match=str(size)):
            queue(memory, SPLIT, size, 0, 0x100000, 0x180000)
        queue(memory, PACKED, size, 0, 0x100000, 0x180000)


@contextmanager
def two_regions(features: int) -> Iterator[Bench]:
    """Guest memory whose end goes on in another file, mapped elsewhere."""
    memory = _core.Memory.allocate(BYTES, BASE)
    fd = os.memfd_create("second")
    try:
        os.ftruncate(fd, 0x1000)
        memory.add_region(fd, BASE + BYTES, 0x1000)
    finally:
        os.close(fd)
    with make_bench(features, 4, memory) as bench:
        yield bench


@both
@pytest.mark.parametrize("before_the_seam", [16, 8, 20])
def test_row_04_indirect_table_across_regions(features: int, before_the_seam: int) -> None:
    """Guest memory is whole, so the table is whole, wherever the regions are mapped."""
    with two_regions(features | INDIRECT_DESC) as bench:
        seam = BASE + BYTES
        bench.memory.write(DATA_AT, b"firstsecond")
        entries: list[Element] = [(DATA_AT, 5, 0), (DATA_AT + 5, 6, 0)]
        bench.offer([bench.table(*entries, at=seam - before_the_seam)])
        (request,) = bench.device.take()
        assert request.read() == b"firstsecond"


@both
def test_row_04_buffer_across_regions(features: int) -> None:
    with two_regions(features) as bench:
        seam = BASE + BYTES
        bench.memory.write(seam - 4, b"leftright")
        bench.offer([(seam - 4, 9, 0), (seam - 2, 4, WRITE)])
        (request,) = bench.device.take()
        assert request.read() == b"leftright"
        assert request.write(b"WXYZ") == 4
        assert bench.memory.read(seam - 4, 9) == b"leWXYZght"
        segments = request.segments()
        assert sum(length for _, length, writable in segments if not writable) == 9
        assert sum(length for _, length, writable in segments if writable) == 4


@both
@pytest.mark.parametrize("at", [BASE + BYTES - 16, BASE + BYTES, 0, 2**64 - 16])
def test_row_04_indirect_table_beyond_memory(indirect: Bench, at: int) -> None:
    if at == BASE + BYTES - 16:
        indirect.table(GOOD, at=at)
        if not indirect.packed:
            SplitDescriptor(*GOOD[:2], NEXT, 1).store(indirect.memory, at)
    indirect.offer([(at, 32, INDIRECT)])
    indirect.faults("0x[0-9a-f]+", "not mapped|exceeds 64 bits")


@both
@pytest.mark.parametrize("area", [0, 1, 2], ids=["desc", "driver", "device"])
@pytest.mark.parametrize(
    "at",
    [0, BASE - 16, BASE + BYTES, BASE + BYTES - 2**4, 2**64 - 16],
    ids=["unmapped", "from below", "behind the end", "beyond the end", "end of addresses"],
)
def test_row_07_ring_areas_that_do_not_map(features: int, area: int, at: int) -> None:
    memory = _core.Memory.allocate(BYTES, BASE)
    areas = list(Place.at(RING_AT, features, 64).areas[:3])
    if features & RING_PACKED and area and at == BASE + BYTES - 16:
        at = BASE + BYTES - 2  # four bytes do not fit there; nor are they aligned
    areas[area] = at
    for queue in (_core.DeviceQueue, _core.DriverQueue):
        with pytest.raises((_core.VirtqError, ValueError), match=r"0x[0-9a-f]+"):
            queue(memory, features, 64, *areas)


@both
@pytest.mark.parametrize("area", [0, 1, 2], ids=["desc", "driver", "device"])
def test_row_07_ring_areas_that_are_not_aligned(features: int, area: int) -> None:
    memory = _core.Memory.allocate(BYTES, BASE)
    areas = list(Place.at(RING_AT, features, 4).areas[:3])
    areas[area] += 1
    with pytest.raises(ValueError, match=f"{areas[area]:#x}.*aligned"):
        _core.DeviceQueue(memory, features, 4, *areas)


@both
def test_row_07_ring_memory_goes_away(bench: Bench) -> None:
    bench.offer([GOOD])
    (request,) = bench.device.take()
    with pytest.raises(_core.VirtqError):
        bench.device.set_memory(_core.Memory())
    assert not bench.device.has_available
    with pytest.raises(_core.VirtqError):
        bench.device.take()
    assert request.read() == bytes(8)
    bench.neighbour.goes_on()


@split_only
def test_row_08_more_outstanding_than_the_ring_holds_split(bench: Bench) -> None:
    bench.offer([GOOD], [GOOD], [GOOD], [GOOD])
    assert len(bench.device.take()) == 4
    bench.split_ring.avail_idx = 5
    bench.faults("index 5", "size 4", "used index 0")
    assert bench.device.outstanding == 4


@packed_only
def test_row_08_more_outstanding_than_the_ring_holds_packed(bench: Bench) -> None:
    bench.offer([GOOD], [GOOD], [GOOD], [GOOD])
    assert len(bench.device.take()) == 4
    before = bench.image()
    for slot in range(4):  # the next lap, though nothing was used
        bench.packed_ring.set_desc(slot, PackedDescriptor(*GOOD[:2], 8 + slot, USED))
    assert not bench.device.has_available
    assert len(bench.device.take()) == 0
    assert bench.device.outstanding == 4
    bench.memory.write(BASE, before)
    bench.neighbour.goes_on()


@packed_only
def test_row_08_list_goes_on_into_slots_that_are_taken(bench: Bench) -> None:
    bench.offer([GOOD], [GOOD])
    taken = bench.device.take()
    assert len(taken) == 2
    bench.offer([GOOD, GOOD, GOOD], start=2)  # two slots are left
    bench.faults("chain at 2", "2 descriptors")


@both
def test_row_09_zero_length_is_taken(bench: Bench) -> None:
    bench.offer([(DATA_AT, 0, 0)], [(DATA_AT, 0, WRITE)], [(DATA_AT, 0, 0), GOOD_WRITE])
    batch = bench.device.take()
    assert [(request.readable, request.writable) for request in batch] == [(0, 0), (0, 0), (0, 8)]
    assert batch[0].read() == b""
    assert batch[1].write(b"") == 0
    with pytest.raises(ValueError, match=r".+"):
        batch[1].write(b"x")
    batch.complete(0)
    assert bench.device.flush() == 3
    bench.neighbour.goes_on()


@both
@pytest.mark.parametrize("addr", [0, 0x100, 2**64 - 1])
def test_row_09_zero_length_anywhere_does_no_harm(bench: Bench, addr: int) -> None:
    """An address that does not map matters only if there are bytes at it; either way is right."""
    bench.offer([(addr, 0, 0)])
    before = bench.image()
    try:
        (request,) = bench.device.take()
    except _core.RingFault as fault:
        bench.is_broken(fault, f"{addr:#x}")
    else:
        assert request.read() == b""
    assert bench.image() == before
    bench.neighbour.goes_on()


@both
def test_row_09_shorter_than_asked_for(bench: Bench) -> None:
    bench.memory.write(DATA_AT, b"shortish")
    bench.offer([GOOD, GOOD_WRITE])
    (request,) = bench.device.take()
    assert request.read(16) == b"shortish"
    assert request.read(16) == b""
    with pytest.raises(ValueError, match=r".+"):
        request.write(bytes(9))
    with pytest.raises(ValueError, match=r".+"):
        request.write_at(4, bytes(5))
    with pytest.raises(ValueError, match=r".+"):
        request.write_at(2**64 - 1, b"xy")
    assert bench.memory.read(DATA_AT + 8, 16) == bytes(16)


UNMAPPED = [
    (0x100, 8),
    (BASE - 1, 2),
    (BASE + BYTES - 1, 2),
    (BASE + BYTES, 1),
    (BASE, BYTES + 1),
    (BASE, 0xFFFFFFFF),
    (2**64 - 8, 8),
    (2**64 - 8, 9),
    (2**64 - 1, 0xFFFFFFFF),
]


@both
@pytest.mark.parametrize("flags", [0, WRITE], ids=["readable", "writable"])
@pytest.mark.parametrize(("addr", "length"), UNMAPPED)
def test_row_10_buffer_that_does_not_map(bench: Bench, flags: int, addr: int, length: int) -> None:
    bench.offer([GOOD, (addr, length, flags)])
    bench.faults("0x[0-9a-f]+", "not mapped|exceeds 64 bits")


@both
@pytest.mark.parametrize(("addr", "length"), UNMAPPED)
def test_row_10_table_entry_that_does_not_map(indirect: Bench, addr: int, length: int) -> None:
    indirect.offer([indirect.table(GOOD, (addr, length, WRITE))])
    indirect.faults("0x[0-9a-f]+", "not mapped|exceeds 64 bits")


@both
def test_row_12_buffer_that_is_the_ring(bench: Bench) -> None:
    """The device overwrites its own ring: what it finds there next is its own affair."""
    areas = bench.place.areas
    length = bench.place.end - areas.desc
    bench.offer([GOOD, (areas.desc, length, WRITE)])
    outside = bench.memory.read(bench.place.end, BASE + BYTES - bench.place.end)
    (request,) = bench.device.take()
    request.write(b"\xff" * length)
    request.complete()
    bench.device.flush()
    for _ in range(20):
        try:
            bench.device.notify()
            bench.device.take()
            bench.device.enable_kicks()
        except _core.RingFault:
            assert bench.device.broken is not None
    found = bench.memory.read(bench.place.end, BASE + BYTES - bench.place.end)
    assert found == outside
    bench.neighbour.goes_on()


@both
def test_row_13_stopped_with_a_request_pending(bench: Bench) -> None:
    bench.memory.write(DATA_AT, b"still me")
    bench.offer([GOOD, GOOD_WRITE], [GOOD, GOOD_WRITE])
    batch = bench.device.take()
    bench.device.stop()
    before = bench.image()
    for request in batch:
        with pytest.raises(_core.StaleBuffer):
            request.complete(0)
    with pytest.raises(_core.StaleBuffer):
        batch.complete(0)
    with pytest.raises(_core.StaleBuffer):
        bench.device.take()
    assert not bench.device.has_available
    assert bench.image() == before
    assert batch[0].read() == b"still me"
    bench.neighbour.goes_on()


@both
def test_row_13_memory_goes_away_under_a_pending_request(features: int) -> None:
    memory = _core.Memory.allocate(BYTES, BASE)
    with make_bench(features, 4, memory) as bench:
        bench.memory.write(DATA_AT, b"still me")
        bench.offer([GOOD, GOOD_WRITE])
        (request,) = bench.device.take()
        memory.clear()
        bench.device.stop()
        del bench, memory
    assert request.read() == b"still me"
    assert request.write(b"12345678") == 8


@split_only
@pytest.mark.parametrize("index", [5, 6, 1000, 0x7FFF, 0x8000, 0xFFFF])
def test_row_14_available_index_jumps(bench: Bench, index: int) -> None:
    bench.split_ring.avail_idx = index
    bench.faults(f"index {index}", "size 4", requirement="split.avail.drv.no-decrement")


@split_only
def test_row_14_available_index_goes_back(bench: Bench) -> None:
    bench.offer([GOOD], [GOOD])
    batch = bench.device.take()
    batch.complete(0)
    bench.device.flush()
    bench.split_ring.avail_idx = 1
    bench.faults("index 1", "used index 2")


@split_only
@pytest.mark.parametrize("head", [4, 5, 0x7FFF, 0xFFFF])
def test_row_15_head_out_of_range(bench: Bench, head: int) -> None:
    bench.offer([GOOD])
    bench.split_ring.set_avail(0, head)
    bench.faults(f"head {head}", "slot 0", "size is 4")


@split_only
@pytest.mark.parametrize("following", [4, 0xFFFF])
def test_row_15_next_out_of_range(bench: Bench, following: int) -> None:
    bench.offer([GOOD, GOOD])
    bench.split_ring.set_desc(0, SplitDescriptor(*GOOD[:2], NEXT, following))
    bench.faults(f"descriptor 0 links to {following}", "size is 4")


@split_only
@pytest.mark.parametrize("back_to", [0, 1, 2, 3])
def test_row_15_descriptor_loop(bench: Bench, back_to: int) -> None:
    bench.offer([GOOD, GOOD, GOOD, GOOD])
    bench.split_ring.set_desc(3, SplitDescriptor(*GOOD[:2], NEXT, back_to))
    bench.faults("chain at 0", "4 descriptors", requirement=None)


@packed_only
def test_row_15_list_without_end(bench: Bench) -> None:
    for slot in range(4):
        bench.packed_ring.set_desc(slot, PackedDescriptor(*GOOD[:2], 0, NEXT | AVAIL))
    bench.faults("chain at 0", "4 descriptors")


@split_only
@pytest.mark.parametrize("back_to", [0, 1])
def test_row_15_loop_in_a_table(indirect: Bench, back_to: int) -> None:
    referring = indirect.table(GOOD, GOOD)
    SplitDescriptor(*GOOD[:2], NEXT, back_to).store(indirect.memory, TABLE_AT + 16)
    indirect.offer([referring])
    indirect.faults("chain at 0", "2 descriptors")


@split_only
@pytest.mark.parametrize("following", [2, 0xFFFF])
def test_row_15_next_beyond_the_table(indirect: Bench, following: int) -> None:
    referring = indirect.table(GOOD, GOOD)
    SplitDescriptor(*GOOD[:2], NEXT, following).store(indirect.memory, TABLE_AT + 16)
    indirect.offer([referring])
    indirect.faults(f"links to {following}", "size is 2")


@both
def test_row_15_readable_after_writable(bench: Bench) -> None:
    bench.offer([GOOD, GOOD_WRITE, GOOD])
    bench.faults("descriptor 2", requirement="packed.list.drv.writable-after-readable")


@both
def test_row_15_readable_after_writable_in_a_table(indirect: Bench) -> None:
    indirect.offer([indirect.table(GOOD_WRITE, GOOD)])
    indirect.faults("descriptor 1", requirement="packed.list.drv.writable-after-readable")


@split_only
def test_row_15_readable_table_after_writable_descriptor(indirect: Bench) -> None:
    indirect.offer([GOOD_WRITE, indirect.table(GOOD)])
    indirect.faults("readable", requirement="packed.list.drv.writable-after-readable")


@both
def test_row_15_indirect_not_negotiated(bench: Bench) -> None:
    bench.offer([bench.table(GOOD)])
    bench.faults("descriptor 0", requirement="split.indirect.drv.negotiated-only")


@both
def test_row_15_indirect_with_next(indirect: Bench) -> None:
    indirect.offer([indirect.table(GOOD), GOOD])
    indirect.faults("descriptor 0", requirement="split.indirect.drv.not-with-next")


@packed_only
def test_row_15_indirect_at_the_end_of_a_packed_list(indirect: Bench) -> None:
    indirect.offer([GOOD, indirect.table(GOOD)])
    indirect.faults("descriptor 1", requirement="split.indirect.drv.not-with-next")


@split_only
def test_row_15_direct_descriptors_then_a_table_are_valid(indirect: Bench) -> None:
    """Valid in a split ring (2.7.5.3.2), where WRITE on the referring descriptor means nothing."""
    indirect.memory.write(DATA_AT, b"abcdefgh")
    table, length, flags = indirect.table(GOOD, GOOD_WRITE)
    indirect.offer([GOOD, (table, length, flags | WRITE)])
    (request,) = indirect.device.take()
    assert request.read() == b"abcdefghabcdefgh"
    assert request.writable == 8
    request.complete(0)
    assert indirect.device.flush() == 1


@split_only
def test_row_15_nested_indirect(indirect: Bench) -> None:
    inner = indirect.table(GOOD, at=TABLE_AT + 0x100)
    indirect.offer([indirect.table(GOOD, inner)])
    indirect.faults("entry 1", requirement="split.indirect.drv.no-nesting")


@both
def test_row_15_table_that_refers_to_itself(indirect: Bench) -> None:
    """Split: nested. Packed: INDIRECT means nothing in a table, and the table is a buffer."""
    indirect.offer([indirect.table((TABLE_AT, 16, INDIRECT))])
    if indirect.packed:
        (request,) = indirect.device.take()
        assert request.read() == indirect.memory.read(TABLE_AT, 16)
    else:
        indirect.faults("entry 0", requirement="split.indirect.drv.no-nesting")


@both
def test_row_15_table_longer_than_the_queue_is_taken(indirect: Bench) -> None:
    indirect.offer([indirect.table(*[GOOD] * 100)])
    (request,) = indirect.device.take()
    assert request.readable == 800


@both
def test_row_15_chain_of_more_than_four_gigabytes(features: int) -> None:
    """32768 entries, all of the same 132 KiB: more than 2^32 bytes in total (2.7.5.2)."""
    memory = _core.Memory.allocate(0x100000, BASE)
    with make_bench(features | INDIRECT_DESC, 4, memory) as bench:
        table: Element = (BASE, 0x20001, 0)
        bench.offer([bench.table(*[table] * 32768, at=BASE + 0x40000)])
        with pytest.raises(_core.RingFault, match=str(32768 * 0x20001)) as caught:
            bench.device.take()
        bench.is_broken(caught.value, requirement="split.desc.drv.chain-4gib")
        bench.neighbour.goes_on()


@packed_only
@pytest.mark.parametrize("start", [0, 1, 4])
@pytest.mark.parametrize("size", [5])
def test_row_16_list_of_exactly_the_ring_size(bench: Bench, start: int) -> None:
    """The wrap is counted once: the next position is the same slot in the next lap."""
    at = _core.Position(start, 1, start, 1, 0)
    bench.restart(at)
    bench.offer([GOOD] * 5, start=start)
    (request,) = bench.device.take()
    assert bench.device.position == (start, 0, start, 1, 0)
    assert not bench.device.has_available
    assert len(bench.device.take()) == 0
    request.complete(0)
    assert bench.device.flush() == 1
    assert bench.device.position == (start, 0, start, 0, 0)
    assert bench.packed_ring.desc(start).flags & (AVAIL | USED) == AVAIL | USED
    # And once more, in the lap with counter 0.
    bench.offer([GOOD] * 5, start=start, wrap=0)
    (request,) = bench.device.take()
    request.complete(0)
    bench.device.flush()
    assert bench.device.position == (start, 1, start, 1, 0)
    assert bench.packed_ring.desc(start).flags & (AVAIL | USED) == 0


@packed_only
@pytest.mark.parametrize("size", [3, 5, 7, 300])
def test_row_17_list_across_the_wrap(bench: Bench, size: int) -> None:
    last = size - 1
    bench.restart(_core.Position(last, 1, last, 1, 0))
    bench.memory.write(DATA_AT, b"abcdefgh")
    bench.offer([GOOD, (DATA_AT + 1, 2, 0)], start=last)
    (request,) = bench.device.take()
    assert request.read() == b"abcdefghbc"
    assert bench.device.position == (1, 0, last, 1, 0)
    request.complete(0)
    bench.device.flush()
    assert bench.device.position == (1, 0, 1, 0, 0)
    assert bench.packed_ring.desc(last).flags & (AVAIL | USED) == AVAIL | USED
    assert bench.packed_ring.desc(0).flags & (AVAIL | USED) == USED


@packed_only
@pytest.mark.parametrize(
    "stale",
    [NEXT, AVAIL, USED, INDIRECT, 0xFFFF & ~WRITE],
    ids=["NEXT", "AVAIL", "USED", "INDIRECT", "all but WRITE"],
)
def test_row_17_stale_flags_in_a_packed_table(indirect: Bench, stale: int) -> None:
    """WRITE is the only valid flag there, all others are ignored by the device (2.8.7)."""
    indirect.memory.write(DATA_AT, b"abcdefgh")
    entries: list[Element] = [(DATA_AT, 4, stale), (DATA_AT + 4, 4, stale), GOOD_WRITE]
    indirect.offer([indirect.table(*entries)])
    (request,) = indirect.device.take()
    assert request.read() == b"abcdefgh"
    assert request.writable == 8


FLIPPER = """
import mmap, random, sys
fd, length, *ranges = map(int, sys.argv[1:])
memory = mmap.mmap(fd, length)
chance = random.Random(1)
slots = [at for start, end in zip(ranges[::2], ranges[1::2]) for at in range(start, end, 16)]
good = {at: memory[at : at + 16] for at in slots}
print("go", flush=True)
while True:
    at = chance.choice(slots)
    memory[at : at + 16] = chance.randbytes(16)
    for flags in (b"\\x01\\x00", b"\\x80\\x00", b"\\x81\\x00", b"\\x04\\x80"):
        memory[at + 12 : at + 16] = flags + flags
    for at, descriptor in good.items():
        memory[at : at + 16] = descriptor
"""


@both
def test_row_18_descriptors_rewritten_while_they_are_read(features: int) -> None:
    """Another process rewrites ring and table all the time. Whatever is read, it is checked."""
    with make_bench(features | INDIRECT_DESC, 4) as bench:
        bench.offer([GOOD, GOOD_WRITE], [bench.table(GOOD, GOOD_WRITE)])
        outside = bench.memory.read(bench.place.end, TABLE_AT - bench.place.end)
        fd, ring, table = bench.memory.fd_of(BASE), bench.place.areas.desc - BASE, TABLE_AT - BASE
        ranges = [str(n) for n in (fd, BYTES, ring, ring + 4 * 16, table, table + 2 * 16)]
        peer = subprocess.Popen(
            [sys.executable, "-c", FLIPPER, *ranges], pass_fds=[fd], stdout=subprocess.PIPE
        )
        try:
            assert peer.stdout is not None
            assert peer.stdout.readline() == b"go\n"
            faults = taken = rounds = 0
            end = time.monotonic() + 5
            while rounds < 1000 or (not (faults and taken) and time.monotonic() < end):
                rounds += 1
                bench.restart()
                try:
                    for request in bench.device.take():
                        taken += 1
                        assert len(request.read()) == request.readable
                        for addr, length, _ in request.segments():
                            assert length == 0 or BASE <= addr < addr + length <= BASE + BYTES
                except _core.RingFault:
                    faults += 1
                    assert not bench.device.has_available
        finally:
            peer.kill()
            peer.wait()
            assert peer.stdout is not None
            peer.stdout.close()
        assert taken + faults
        assert bench.memory.read(bench.place.end, TABLE_AT - bench.place.end) == outside
        bench.neighbour.goes_on()


@pytest.mark.parametrize("features", [SPLIT, PACKED], ids=["split", "packed"])
def test_row_19_made_available_twice(bench: Bench) -> None:
    bench.offer([GOOD], [GOOD])
    assert len(bench.device.take()) == 2
    if bench.packed:
        bench.packed_ring.set_desc(2, PackedDescriptor(*GOOD[:2], 1, AVAIL))
    else:
        bench.split_ring.set_avail(2, 1)
        bench.split_ring.avail_idx = 3
    bench.faults("buffer 1", "outstanding")


@both
def test_row_19_completing_more_than_was_taken(bench: Bench) -> None:
    """The device's own mistakes are refused before the driver sees anything of them."""
    bench.offer([GOOD, GOOD_WRITE])
    (request,) = bench.device.take()
    before = bench.image()
    with pytest.raises(ValueError, match="9 bytes"):
        request.complete(9)
    request.complete(8)
    with pytest.raises(_core.StaleBuffer):
        request.complete(8)
    assert bench.image() == before
    assert bench.device.flush() == 1
    assert bench.device.flush() == 0
    with pytest.raises(_core.StaleBuffer):
        request.complete(8)
    assert bench.device.broken is None


@pytest.mark.parametrize("features", [IN_ORDER], ids=["split-in-order"])
def test_row_21_resumed_behind_chains_split(bench: Bench) -> None:
    """The descriptor cursor is not the buffer cursor: heads are those of the available ring."""
    bench.memory.write(DATA_AT, b"abcdefgh")
    bench.split_ring.avail_idx = bench.split_ring.used_idx = 5
    bench.restart(_core.Position(5, 0, 5, 0, 0))
    bench.offer([(DATA_AT, 2, 0), (DATA_AT + 4, 2, 0)], [(DATA_AT + 2, 1, 0)], start=3)
    batch = bench.device.take()
    assert batch.read_all() == [b"abef", b"c"]
    batch.complete(0)
    assert bench.device.flush() == 2
    assert bench.split_ring.used(5 % 4) == (1, 0)  # descriptors 3, 0, then 1
    assert bench.split_ring.used_idx == 7


@both
@pytest.mark.parametrize(
    ("available", "used"), [((1, 1), (2, 1)), ((3, 0), (2, 1))], ids=["behind", "a lap ahead"]
)
def test_row_21_position_that_cannot_be(
    bench: Bench, available: tuple[int, int], used: tuple[int, int]
) -> None:
    """What a front-end hands over: the device cannot have used what it has not taken, nor have
    taken more than the ring holds."""
    if not bench.packed:
        available, used = (available[0] + 4 * (1 - available[1]), 0), (used[0], 0)
    with pytest.raises(ValueError, match=r"position"):
        bench.restart(_core.Position(*available, *used, 0))


@both
def test_row_21_stop_forgets_half_a_batch(bench: Bench) -> None:
    """The finished prefix is published; the rest is taken again by whoever resumes."""
    bench.offer([GOOD], [GOOD, GOOD], [GOOD])
    batch = bench.device.take()
    batch[0].complete(0)
    if bench.features & IN_ORDER:
        batch[2].complete(0)  # waits for the one before, and is void with it
    position = bench.device.stop()
    bench.restart(position)
    again = bench.device.take()
    assert [len(request.segments()) for request in again] == [2, 1]
    again.complete(0)
    assert bench.device.flush() == 2
    if bench.packed:
        assert bench.device.position == (0, 0, 0, 0, 0)
    else:
        assert bench.split_ring.used_idx == 3


@both
def test_row_22_full_ring_comes_back_whole(bench: Bench) -> None:
    """As many buffers as the ring has slots: full is not empty."""
    bench.offer([GOOD], [GOOD], [GOOD], [GOOD])
    batch = bench.device.take()
    assert len(batch) == 4
    batch.complete(0)
    assert bench.device.outstanding == 4
    assert bench.device.flush() == 4
    assert bench.device.outstanding == 0
    assert not bench.device.has_available
    if bench.packed:
        last = 3 if bench.features & IN_ORDER else 0
        assert bench.packed_ring.desc(0)[2:] == (last, AVAIL | USED)
        assert bench.device.position == (0, 0, 0, 0, 0)
    else:
        assert bench.split_ring.used_idx == 4
        last = 3 if bench.features & IN_ORDER else 0
        assert bench.split_ring.used(0) == (last, 0)


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
    with make_bench(features | extra, 4) as bench:
        bench.offer([GOOD])
        bench.packed_ring.driver_event = event
        (request,) = bench.device.take()
        request.complete(0)
        with pytest.raises(_core.RingFault, match=text) as caught:
            bench.device.notify()
        bench.is_broken(caught.value)
        bench.neighbour.goes_on()


@packed_only
def test_row_23_reserved_bits_beside_the_event_flags(bench: Bench) -> None:
    """Fourteen bits of the word are reserved; only two are the flags (2.8.14)."""
    bench.offer([GOOD], [GOOD])
    call_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    bench.device.set_call(call_fd)
    for flags, wanted in ((0xFFFC, True), (0xFFFD, False)):
        bench.memory.write(bench.place.areas.driver + 2, flags.to_bytes(2, "little"))
        (request,) = bench.device.take(1)
        request.complete(0)
        assert bench.device.notify() is wanted
    os.close(call_fd)


@split_only
@pytest.mark.parametrize(("flags", "wanted"), [(0, True), (1, False), (0xFFFE, True)])
def test_row_23_reserved_bits_of_the_available_flags(
    bench: Bench, flags: int, wanted: bool
) -> None:
    bench.offer([GOOD])
    bench.split_ring.avail_flags = flags
    (request,) = bench.device.take()
    request.complete(0)
    assert bench.device.notify() is wanted


@split_only
@pytest.mark.parametrize("event", [0, 1, 0x7FFF, 0xFFFF])
def test_row_23_any_event_index_is_harmless(features: int, event: int) -> None:
    with make_bench(features | EVENT_IDX, 4) as bench:
        bench.offer([GOOD], [GOOD])
        bench.split_ring.used_event = event
        for turn in range(2):
            (request,) = bench.device.take(1)
            request.complete(0)
            # The first one of a device half calls to be sure.
            assert bench.device.notify() is (turn == 0 or event == 1)
