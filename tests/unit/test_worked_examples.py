"""Two in-order examples, worked through byte for byte, on the model and on the core.

Split: batches of three and of two, a short buffer between, a chain across the end of the table.
Packed: a batch across the end of the ring, in the lap after a batch that left stale descriptors.

Ring memory is compared as a whole after each step. What the specification leaves open is put to
zero first: `next` without NEXT, the Buffer ID of descriptors that are not the last of their list,
the address in a used descriptor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pytest

from tests.model import (
    EVENT_IDX,
    IN_ORDER,
    RING_PACKED,
    Device,
    Driver,
    GuestMemory,
    Impl,
    Place,
    Position,
    make_device,
    make_driver,
    make_memory,
)
from virtq.model.memory import AVAIL, NEXT, USED, WRITE
from virtq.model.notify import need_event

SIZE = 8
BUFFERS_AT = 0x4000

Element = tuple[Literal["R", "W"], int]


@dataclass
class Queue:
    """Both halves on one ring, and where each buffer's elements are."""

    memory: GuestMemory
    place: Place
    driver: Driver
    device: Device
    elements: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    def add(self, name: str, *elements: Element) -> None:
        """A buffer with its elements one after the other; its cookie is the letter's code."""
        at = BUFFERS_AT + 0x100 * len(self.elements)
        placed: list[tuple[int, int]] = []
        for _, length in elements:
            placed.append((at, length))
            at += length
        self.elements[name] = placed
        readable = [p for p, (kind, _) in zip(placed, elements, strict=True) if kind == "R"]
        writable = [p for p, (kind, _) in zip(placed, elements, strict=True) if kind == "W"]
        self.driver.add(readable, writable, ord(name))

    def use(self, *written: int) -> None:
        """Take so many buffers, write so many bytes to each, publish them at once."""
        buffers = self.device.take(len(written))
        for buffer, length in zip(buffers, written, strict=True):
            buffer.write(b"\xab" * length)
            self.device.complete(buffer, length)
        self.device.call_wanted()

    def reap(self) -> list[tuple[str, int]]:
        return [(chr(cookie), written) for cookie, written in self.driver.reap()]


@pytest.fixture(params=["model", "core"])
def impl(request: pytest.FixtureRequest) -> Impl:
    return "core" if request.param == "core" else "model"


@pytest.fixture
def features() -> int:
    return IN_ORDER


@pytest.fixture
def queue(impl: Impl, features: int) -> Iterator[Queue]:
    memory = make_memory(0x10000, impl == "core")
    place = Place.at(0x1000, features, SIZE)
    driver = make_driver(impl, memory, place)
    device = make_device(impl, memory, place)
    yield Queue(memory, place, driver, device)
    driver.close()
    device.close()


def le(*fields: tuple[int, int]) -> bytes:
    """(value, bytes) of each field, little-endian."""
    return b"".join(value.to_bytes(size, "little") for value, size in fields)


# Split, size 8.


class SplitBytes:
    """What the three areas hold; nothing that was not set is anything but zero."""

    def __init__(self) -> None:
        self.desc = [bytes(16)] * SIZE
        self.avail = [0] * SIZE
        self.avail_idx = 0
        self.used = [(0, 0)] * SIZE
        self.used_idx = 0

    def chain(self, slots: Sequence[int], elements: list[tuple[int, int]], flags: str) -> None:
        for i, (slot, (addr, length), kind) in enumerate(zip(slots, elements, flags, strict=True)):
            last = i + 1 == len(slots)
            flag = (WRITE if kind == "W" else 0) | (0 if last else NEXT)
            following = 0 if last else slots[i + 1]
            self.desc[slot] = le((addr, 8), (length, 4), (flag, 2), (following, 2))

    def areas(self) -> tuple[bytes, bytes, bytes]:
        heads = le((0, 2), (self.avail_idx, 2), *((head, 2) for head in self.avail), (0, 2))
        used = le((0, 2), (self.used_idx, 2))
        used += b"".join(le((id, 4), (length, 4)) for id, length in self.used) + bytes(2)
        return b"".join(self.desc), heads, used


def split_areas(queue: Queue) -> tuple[bytes, bytes, bytes]:
    areas = queue.place.areas
    table = bytearray(queue.memory.read(areas.desc, 16 * SIZE))
    for slot in range(SIZE):
        if not table[16 * slot + 12] & NEXT:
            table[16 * slot + 14 : 16 * slot + 16] = bytes(2)
    heads = queue.memory.read(areas.driver, 6 + 2 * SIZE)
    return bytes(table), heads, queue.memory.read(areas.device, 6 + 8 * SIZE)


def test_split_batches_and_a_chain_across_the_end(queue: Queue) -> None:
    expected = SplitBytes()
    assert split_areas(queue) == expected.areas()

    # A, B, C are added: heads 0, 1, 3.
    queue.add("A", ("W", 64))
    queue.add("B", ("R", 16), ("W", 100))
    queue.add("C", ("W", 32))
    assert queue.driver.publish() == 3
    expected.chain([0], queue.elements["A"], "W")
    expected.chain([1, 2], queue.elements["B"], "RW")
    expected.chain([3], queue.elements["C"], "W")
    expected.avail[:3], expected.avail_idx = [0, 1, 3], 3
    assert split_areas(queue) == expected.areas()

    # The device fills A and B and writes 20 bytes to C: one element, in the slot of the batch's
    # first buffer, with the head of its last one. The index moves by three.
    queue.use(64, 100, 20)
    expected.used[0], expected.used_idx = (3, 20), 3
    assert split_areas(queue) == expected.areas()
    assert queue.device.used_entries == 1

    # The driver derives the lengths of A and B.
    assert queue.reap() == [("A", 64), ("B", 100), ("C", 20)]
    assert queue.driver.position == Position(available=3, used=3, descriptor=4)
    assert queue.driver.free == SIZE
    assert split_areas(queue) == expected.areas()

    # D, E, F go on in ring order; E crosses the end of the table, 7 -> 0.
    queue.add("D", ("R", 16), ("W", 50))
    queue.add("E", ("R", 16), ("W", 40), ("W", 1))
    queue.add("F", ("W", 32))
    assert queue.driver.publish() == 3
    expected.chain([4, 5], queue.elements["D"], "RW")
    expected.chain([6, 7, 0], queue.elements["E"], "RWW")
    expected.chain([1], queue.elements["F"], "W")
    expected.avail[3:6], expected.avail_idx = [4, 6, 1], 6
    assert split_areas(queue) == expected.areas()

    # D is short, so it ends a batch of its own; E and F are the next one. One index update.
    queue.use(7, 41, 32)
    expected.used[3:5], expected.used_idx = [(4, 7), (1, 32)], 6
    assert split_areas(queue) == expected.areas()
    assert queue.device.used_entries == 3

    assert queue.reap() == [("D", 7), ("E", 41), ("F", 32)]
    assert queue.driver.position == Position(available=6, used=6, descriptor=2)
    assert queue.device.position == Position(available=6, used=6)
    assert split_areas(queue) == expected.areas()


@pytest.mark.parametrize("features", [IN_ORDER | EVENT_IDX], ids=["event-idx"])
@pytest.mark.parametrize(
    ("used_event", "due"), [(3, True), (4, True), (5, True), (6, False), (2, False)]
)
def test_split_event_inside_a_batch(queue: Queue, used_event: int, due: bool) -> None:
    """From 3 to 6 in one batch: a range test fires for 3, 4 and 5, equality would for 3 alone."""
    for name in "ABC":
        queue.add(name, ("R", 4))
    queue.driver.publish()
    queue.use(0, 0, 0)  # the first decision of a device half is to call
    queue.reap()
    queue.place.split(queue.memory).used_event = used_event
    for name in "DEF":
        queue.add(name, ("R", 4))
    queue.driver.publish()
    for buffer in queue.device.take():
        queue.device.complete(buffer, 0)
    assert queue.device.call_wanted() is due
    assert need_event(used_event, 6, 3) is due


# Packed, size 8.


@dataclass
class Slot:
    """One descriptor. `id` None: not the last of its list, so that its ID means nothing."""

    avail: int = 0
    used: int = 0
    addr: int = 0
    length: int = 0
    id: int | None = 0
    flags: int = 0

    @property
    def all_flags(self) -> int:
        return self.flags | (AVAIL if self.avail else 0) | (USED if self.used else 0)

    def bytes(self) -> bytes:
        return le((self.addr, 8), (self.length, 4), (self.id or 0, 2), (self.all_flags, 2))


def packed_slots(queue: Queue, expected: Sequence[Slot]) -> list[bytes]:
    """The ring, with the address of used descriptors and the IDs that mean nothing put to zero."""
    found = []
    for slot, wanted in enumerate(expected):
        raw = bytearray(queue.memory.read(queue.place.areas.desc + 16 * slot, 16))
        if wanted.avail == wanted.used:
            raw[0:8] = bytes(8)
        if wanted.id is None:
            raw[12:14] = bytes(2)
        found.append(bytes(raw))
    return found


def buffer_id(queue: Queue, slot: int) -> int:
    """Nothing demands certain Buffer IDs; those of the driver under test are what counts."""
    return queue.place.packed(queue.memory).desc(slot).id


@pytest.mark.parametrize("features", [IN_ORDER | RING_PACKED], ids=["packed"])
def test_packed_batch_across_the_end(queue: Queue) -> None:
    ring = [Slot() for _ in range(SIZE)]

    def compare() -> None:
        assert packed_slots(queue, ring) == [slot.bytes() for slot in ring]

    compare()

    # First lap: P and Q, three readable descriptors each.
    for name in "PQ":
        queue.add(name, ("R", 8), ("R", 8), ("R", 8))
    assert queue.driver.publish() == 2
    for name, first in (("P", 0), ("Q", 3)):
        for i, (addr, length) in enumerate(queue.elements[name]):
            id = buffer_id(queue, first + 2) if i == 2 else None
            ring[first + i] = Slot(1, 0, addr, length, id, 0 if i == 2 else NEXT)
    compare()
    q = buffer_id(queue, 5)

    # One used descriptor over slot 0 with Q's ID; slots 1 to 5 stay as they are.
    queue.use(0, 0)
    ring[0] = Slot(1, 1, 0, 0, q, 0)
    compare()
    assert queue.reap() == [("P", 0), ("Q", 0)]
    assert queue.driver.position == queue.device.position == Position(6, 1, 6, 1)

    # R, S, T: S spans the end, so slot 7 carries the wrap counter 1 and slot 0 the counter 0.
    queue.add("R", ("W", 64))
    queue.add("S", ("R", 16), ("W", 100))
    queue.add("T", ("W", 32))
    assert queue.driver.publish() == 3
    (r_at, _), (s0_at, _), (s1_at, _), (t_at, _) = (
        queue.elements["R"] + queue.elements["S"] + queue.elements["T"]
    )
    r, s, t = (buffer_id(queue, slot) for slot in (6, 0, 1))
    assert len({r, s, t}) == 3
    ring[6] = Slot(1, 0, r_at, 64, r, WRITE)
    ring[7] = Slot(1, 0, s0_at, 16, None, NEXT)
    ring[0] = Slot(0, 1, s1_at, 100, s, WRITE)
    ring[1] = Slot(0, 1, t_at, 32, t, WRITE)
    compare()
    assert queue.driver.position == Position(2, 0, 6, 1)

    # One used descriptor over slot 6, with T's ID and length; its flags are those of slot 6's
    # counter, not of where the batch ends.
    queue.use(64, 100, 20)
    ring[6] = Slot(1, 1, 0, 20, t, WRITE)
    compare()
    assert queue.device.position == Position(2, 0, 2, 0)
    assert queue.reap() == [("R", 64), ("S", 100), ("T", 20)]
    assert queue.driver.position == Position(2, 0, 2, 0)
    compare()

    # What is left in slot 2 from the first lap is neither available nor used under counter 0.
    assert not queue.device.has_available
    assert not queue.driver.has_used

    queue.add("U", ("W", 10))
    assert queue.driver.publish() == 1
    u = buffer_id(queue, 2)
    ring[2] = Slot(0, 1, queue.elements["U"][0][0], 10, u, WRITE)
    compare()
    queue.use(10)
    ring[2] = Slot(0, 0, 0, 10, u, WRITE)
    compare()
    assert queue.reap() == [("U", 10)]
    assert queue.driver.position == queue.device.position == Position(3, 0, 3, 0)


@pytest.mark.parametrize("features", [IN_ORDER | RING_PACKED | EVENT_IDX], ids=["event-idx"])
@pytest.mark.parametrize(
    ("event", "due"),
    [((6, 1), True), ((7, 1), True), ((0, 0), True), ((1, 0), True), ((2, 0), False)],
)
def test_packed_event_inside_a_batch(queue: Queue, event: tuple[int, int], due: bool) -> None:
    """From slot 6, counter 1, to slot 2, counter 0: every slot on the way counts as used."""
    for name in "PQ":
        queue.add(name, ("R", 8), ("R", 8), ("R", 8))
    queue.driver.publish()
    queue.use(0, 0)
    queue.reap()
    ring = queue.place.packed(queue.memory)
    ring.driver_event = ring.driver_event._replace(offset=event[0], wrap=event[1], flags=2)
    for name, length in (("R", 1), ("S", 2), ("T", 1)):
        queue.add(name, *[("R", 4) for _ in range(length)])
    queue.driver.publish()
    for buffer in queue.device.take():
        queue.device.complete(buffer, 0)
    assert queue.device.call_wanted() is due
