"""The model on its own: the rules that it is built of against their definitions, and that it names
what the other side does wrong. Its two halves meet in `test_rings`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.model import (
    EVENT_IDX,
    IN_ORDER,
    INDIRECT_DESC,
    RING_PACKED,
    Bytes,
    Full,
    Position,
    Violation,
)
from tests.property.strategies import SHAPES, Shape
from virtq.model.memory import AVAIL, INDIRECT, NEXT, USED, WRITE, Piece, Taken, in_order_batches
from virtq.model.notify import DESC, DISABLE, ENABLE, PackedEvent, need_event
from virtq.model.packed import (
    Cursor,
    PackedDevice,
    PackedDriver,
    PackedRing,
    is_available,
    is_used,
)
from virtq.model.packed import Descriptor as PackedDescriptor
from virtq.model.split import Descriptor as SplitDescriptor
from virtq.model.split import SplitDevice, SplitDriver, SplitRing

u16 = st.integers(0, 65535)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
shapes = st.sampled_from(SHAPES)


# Rules.


@given(old=u16, entries=st.integers(0, 300), ahead=st.integers(-310, 310))
def test_event_is_due_when_one_of_the_entries_has_its_index(
    old: int, entries: int, ahead: int
) -> None:
    event, new = (old + ahead) % 65536, (old + entries) % 65536
    indices = [(old + i) % 65536 for i in range(entries)]
    assert need_event(event, new, old) == (event in indices)


@st.composite
def cursors(draw: st.DrawFn) -> tuple[Cursor, int]:
    size = draw(st.integers(1, 300) | st.just(32768))
    return Cursor(draw(st.integers(0, size - 1)), draw(st.integers(0, 1))), size


@given(start=cursors(), slots=st.integers(0, 700))
def test_wrap_counter_changes_with_each_pass_of_the_last_slot(
    start: tuple[Cursor, int], slots: int
) -> None:
    cursor, size = start
    at = cursor
    for _ in range(slots):
        at = Cursor(0, 1 - at.wrap) if at.slot == size - 1 else Cursor(at.slot + 1, at.wrap)
    assert cursor.advanced(slots, size) == at
    assert at.back(slots, size) == cursor


@given(wrap=st.integers(0, 1), flags=u16)
def test_available_and_used_exclude_each_other(wrap: int, flags: int) -> None:
    descriptor, at = PackedDescriptor(0, 0, 0, flags), Cursor(0, wrap)
    available, used = bool(flags & AVAIL), bool(flags & USED)
    assert is_available(descriptor, at) == (available == bool(wrap) and used != bool(wrap))
    assert is_used(descriptor, at) == (available == used == bool(wrap))


@st.composite
def finished_buffers(draw: st.DrawFn) -> list[Taken]:
    buffers = []
    for id, (writable, written) in enumerate(
        draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=12))
    ):
        pieces = [Piece(0, writable, True)]
        buffers.append(Taken(Bytes(0), id, 1, pieces, written=min(writable, written)))
    return buffers


@given(finished=finished_buffers())
def test_batches_skip_full_buffers_only_and_are_as_few_as_can_be(finished: list[Taken]) -> None:
    batches = in_order_batches(finished)
    assert [buffer for batch in batches for buffer in batch] == finished
    for batch in batches:
        assert all(buffer.written == buffer.writable for buffer in batch[:-1])
    for batch in batches[:-1]:
        assert batch[-1].written != batch[-1].writable
    assert in_order_batches(finished, True) == [[buffer] for buffer in finished]


@given(
    flags=st.sampled_from([ENABLE, DISABLE, DESC]),
    offset=st.integers(0, 32767),
    wrap=st.integers(0, 1),
)
def test_event_structure_keeps_its_fields_apart(flags: int, offset: int, wrap: int) -> None:
    memory = Bytes(8)
    event = PackedEvent(offset, wrap, flags)
    event.store(memory, 4)
    assert PackedEvent.load(memory, 4) == event
    assert memory.data == bytes(4) + (offset | wrap << 15 | flags << 16).to_bytes(4, "little")


@given(addr=u64, len=u32, low=u16, high=u16)
def test_descriptors_have_sixteen_bytes(addr: int, len: int, low: int, high: int) -> None:
    memory = Bytes(48)
    expected = b"".join(
        value.to_bytes(size, "little") for value, size in ((addr, 8), (len, 4), (low, 2), (high, 2))
    )
    SplitDescriptor(addr, len, low, high).store(memory, 16)
    assert SplitDescriptor.load(memory, 16) == (addr, len, low, high)
    assert memory.data == bytes(16) + expected + bytes(16)
    PackedDescriptor(addr, len, low, high).store(memory, 16)
    assert PackedDescriptor.load(memory, 16) == (addr, len, low, high)
    assert memory.data == bytes(16) + expected + bytes(16)


@pytest.mark.parametrize("size", [1, 2, 8, 256, 32768])
def test_areas_are_aligned_and_apart(size: int) -> None:
    desc, driver, device, end = SplitRing.areas(size, 5)
    assert (desc % 16, driver % 2, device % 4) == (0, 0, 0)
    assert desc + 16 * size <= driver
    assert driver + 6 + 2 * size <= device
    assert device + 6 + 8 * size == end
    desc, driver, device, end = PackedRing.areas(size, 5)
    assert (desc % 16, driver % 4, device % 4) == (0, 0, 0)
    assert desc + 16 * size <= driver
    assert driver + 4 <= device
    assert device + 4 == end


# What the driver writes.


def split_driver(features: int, size: int = 8) -> tuple[Bytes, SplitDriver, SplitDevice]:
    memory = Bytes(0x4000)
    areas = SplitRing.areas(size)[:3]
    table, length = (0x1000, 12) if features & INDIRECT_DESC else (0, 0)
    driver = SplitDriver(
        memory, features, size, *areas, indirect_table=table, indirect_length=length
    )
    return memory, driver, SplitDevice(memory, features, size, *areas)


def packed_driver(features: int, size: int = 8) -> tuple[Bytes, PackedDriver, PackedDevice]:
    memory = Bytes(0x4000)
    features |= RING_PACKED
    areas = PackedRing.areas(size)[:3]
    table, length = (0x1000, 12) if features & INDIRECT_DESC else (0, 0)
    driver = PackedDriver(
        memory, features, size, *areas, indirect_table=table, indirect_length=length
    )
    return memory, driver, PackedDevice(memory, features, size, *areas)


def fill(driver: SplitDriver | PackedDriver, chains: list[Shape]) -> list[Shape]:
    """Add what fits."""
    added: list[Shape] = []
    for shape in chains:
        try:
            driver.add(
                [(0x3000, length) for length in shape.readable],
                [(0x3800, length) for length in shape.writable],
                len(added),
            )
            added.append(shape)
        except Full:
            pass
    driver.publish()
    return added


@given(chains=st.lists(shapes, max_size=8), before=st.integers(0, 7))
def test_in_order_the_split_table_is_a_ring(chains: list[Shape], before: int) -> None:
    _, driver, device = split_driver(IN_ORDER)
    for _ in range(before):
        driver.add([(0x3000, 1)], [])
        driver.publish()
        device.complete(device.take()[0], 0)
        device.flush()
        driver.reap()
    slot = before
    for index, shape in enumerate(fill(driver, chains)):
        assert driver.ring.avail((before + index) % 8) == slot
        for piece in range(shape.pieces):
            descriptor = driver.ring.desc(slot)
            assert bool(descriptor.flags & WRITE) == (piece >= len(shape.readable))
            assert bool(descriptor.flags & NEXT) == (piece + 1 < shape.pieces)
            slot = 0 if slot == 7 else slot + 1
            if descriptor.flags & NEXT:
                assert descriptor.next == slot
    assert driver.position.descriptor == slot


@given(shape=shapes)
def test_split_tables_link_entry_to_entry(shape: Shape) -> None:
    memory, driver, _ = split_driver(INDIRECT_DESC | IN_ORDER)
    fill(driver, [shape])
    referring = driver.ring.desc(0)
    if shape.pieces == 1:
        assert not referring.flags & INDIRECT
        return
    assert (referring.flags, referring.len) == (INDIRECT, 16 * shape.pieces)
    for i in range(shape.pieces):
        entry = SplitDescriptor.load(memory, referring.addr + 16 * i)
        last = i + 1 == shape.pieces
        assert entry.flags & ~WRITE == (0 if last else NEXT)
        assert last or entry.next == i + 1


@given(shape=shapes)
def test_packed_tables_carry_no_flag_but_write(shape: Shape) -> None:
    memory, driver, _ = packed_driver(INDIRECT_DESC)
    fill(driver, [shape])
    referring = driver.ring.desc(0)
    if shape.pieces == 1:
        assert not referring.flags & INDIRECT
        return
    assert (referring.flags, referring.len) == (INDIRECT | AVAIL, 16 * shape.pieces)
    for i in range(shape.pieces):
        entry = PackedDescriptor.load(memory, referring.addr + 16 * i)
        assert entry.flags == (WRITE if i >= len(shape.readable) else 0)


@given(chains=st.lists(shapes, min_size=1, max_size=8))
def test_packed_lists_stay_invisible_until_published(chains: list[Shape]) -> None:
    _, driver, device = packed_driver(0)
    for shape in chains:
        if shape.pieces <= driver.free:
            driver.add([(0x3000, n) for n in shape.readable], [(0x3800, n) for n in shape.writable])
            assert not device.has_available
    outstanding = driver.outstanding
    assert driver.publish() == outstanding
    assert len(device.take()) == outstanding


@given(chains=st.lists(shapes, max_size=8), first=st.integers(0, 7))
def test_in_order_packed_reads_one_descriptor_for_a_batch(chains: list[Shape], first: int) -> None:
    memory = Bytes(0x4000)
    areas, start = PackedRing.areas(8)[:3], Position(first, 1, first, 1)
    driver = PackedDriver(memory, RING_PACKED | IN_ORDER, 8, *areas, position=start)
    device = PackedDevice(memory, RING_PACKED | IN_ORDER, 8, *areas, position=start)
    added = fill(driver, chains)
    before = [driver.ring.desc(slot) for slot in range(8)]
    for buffer in device.take():
        device.complete(buffer, buffer.writable)
    assert device.flush() == len(added)
    changed = [slot for slot in range(8) if driver.ring.desc(slot) != before[slot]]
    assert changed == ([first] if added else [])
    assert driver.reap() == [(i, sum(shape.writable)) for i, shape in enumerate(added)]
    assert driver.used_entries == (1 if added else 0)


# What the other side does wrong.

SplitFault = Callable[[SplitRing], None]

SPLIT_FAULTS: dict[str, tuple[int, SplitFault]] = {
    "head beyond the table": (0, lambda ring: ring.set_avail(0, 8)),
    "next beyond the table": (0, lambda ring: ring.set_desc(0, SplitDescriptor(0, 1, NEXT, 8))),
    "loop": (0, lambda ring: ring.set_desc(0, SplitDescriptor(0, 1, NEXT, 0))),
    "index too far ahead": (0, lambda ring: setattr(ring, "avail_idx", 9)),
    "table not negotiated": (
        0,
        lambda ring: ring.set_desc(0, SplitDescriptor(0x1000, 16, INDIRECT, 0)),
    ),
    "table with next": (
        INDIRECT_DESC,
        lambda ring: ring.set_desc(0, SplitDescriptor(0x1000, 16, INDIRECT | NEXT, 1)),
    ),
    "table of no entry": (
        INDIRECT_DESC,
        lambda ring: ring.set_desc(0, SplitDescriptor(0x1000, 0, INDIRECT, 0)),
    ),
    "table of half an entry": (
        INDIRECT_DESC,
        lambda ring: ring.set_desc(0, SplitDescriptor(0x1000, 24, INDIRECT, 0)),
    ),
    "not in ring order": (IN_ORDER, lambda ring: ring.set_avail(1, 5)),
    "the same buffer twice": (0, lambda ring: ring.set_avail(1, 0)),
}


@pytest.mark.parametrize("name", SPLIT_FAULTS)
def test_split_device_names_what_the_driver_did_wrong(name: str) -> None:
    features, spoil = SPLIT_FAULTS[name]
    _, driver, device = split_driver(features)
    fill(driver, [Shape((8,), ()), Shape((8,), ())])
    spoil(driver.ring)
    with pytest.raises(Violation):
        device.take()


@pytest.mark.parametrize("event", [PackedEvent(0, 0, 3), PackedEvent(8, 0, DESC)])
def test_reserved_events_are_named(event: PackedEvent) -> None:
    _, driver, device = packed_driver(EVENT_IDX)
    fill(driver, [Shape((8,), ())])
    driver.ring.driver_event = event
    device.complete(device.take()[0], 0)
    with pytest.raises(Violation, match="event"):
        device.call_wanted()


@pytest.mark.parametrize("features", [0, IN_ORDER], ids=["any-order", "in-order"])
@pytest.mark.parametrize(("id", "length"), [(0, 9), (7, 0)], ids=["too long", "unknown"])
def test_driver_names_what_the_device_did_wrong(features: int, id: int, length: int) -> None:
    _, split, _ = split_driver(features)
    fill(split, [Shape((), (8,)), Shape((), (8,))])
    split.ring.set_used(0, id, length)
    split.ring.used_idx = 1
    with pytest.raises(Violation, match="used"):
        split.reap()

    _, packed, _ = packed_driver(features)
    fill(packed, [Shape((), (8,)), Shape((), (8,))])
    packed.ring.set_desc(0, PackedDescriptor(0, length, id, AVAIL | USED | WRITE))
    with pytest.raises(Violation, match="used"):
        packed.reap()


@pytest.mark.parametrize("index", [1, 3])
def test_split_driver_checks_a_batch_against_the_index(index: int) -> None:
    _, driver, _ = split_driver(IN_ORDER)
    fill(driver, [Shape((), (8,)), Shape((), (8,))])
    driver.ring.set_used(0, 1, 8)
    driver.ring.used_idx = index
    with pytest.raises(Violation, match="used index"):
        driver.reap()
