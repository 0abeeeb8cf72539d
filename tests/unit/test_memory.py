"""The allocator over guest memory."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtq import Memory
from virtq.errors import GuestMemoryError
from virtq.memory import Arena, ArenaFull, Buffer, NotAllocated

BASE = 1 << 33
SIZE = 64 << 10


@pytest.fixture
def arena() -> Arena:
    return Arena(Memory.allocate(SIZE, BASE))


def test_a_buffer_is_guest_memory(arena: Arena) -> None:
    buffer = arena.alloc(100)
    assert BASE <= buffer.addr < BASE + SIZE
    assert buffer.piece == (buffer.addr, 100)
    assert buffer.read() == bytes(100)
    buffer.write(b"hello", 10)
    assert arena.memory.read(buffer.addr + 10, 5) == b"hello"
    arena.memory.write(buffer.addr, b"J")
    assert buffer.read(1) == b"J"
    assert buffer.part(10, 5).read() == b"hello"


@pytest.mark.parametrize("align", [1, 2, 16, 4096])
def test_alignment(arena: Arena, align: int) -> None:
    arena.alloc(3, 1)
    assert arena.alloc(10, align).addr % align == 0


def test_what_is_freed_is_zeroed_and_used_again(arena: Arena) -> None:
    buffer = arena.alloc(SIZE)
    buffer.write(b"\xff" * SIZE)
    arena.free(buffer)
    assert arena.free_bytes == SIZE
    assert arena.alloc(SIZE).read() == bytes(SIZE)


def test_the_end_of_memory_names_the_sizes(arena: Arena) -> None:
    arena.alloc(SIZE - 100)
    with pytest.raises(ArenaFull, match="no 200 bytes of guest memory: 100 are free"):
        arena.alloc(200)
    assert issubclass(ArenaFull, GuestMemoryError)


def test_only_what_is_held_can_be_freed(arena: Arena) -> None:
    buffer = arena.alloc(100)
    with pytest.raises(NotAllocated):
        arena.free(buffer.part(0, 50))
    arena.free(buffer)
    with pytest.raises(NotAllocated, match=hex(buffer.addr)):
        arena.free(buffer)


@pytest.mark.parametrize(("size", "align"), [(0, 16), (-1, 16), (16, 0), (16, 3)])
def test_sizes_that_make_no_sense(arena: Arena, size: int, align: int) -> None:
    with pytest.raises(ValueError, match="cannot allocate"):
        arena.alloc(size, align)


def test_bounds_of_a_buffer(arena: Arena) -> None:
    buffer = arena.alloc(10)
    for start, length in ((0, 11), (11, 0), (-1, 2)):
        with pytest.raises(ValueError, match="of a buffer of 10"):
            buffer.read(length, start)
    with pytest.raises(ValueError, match="of a buffer of 10"):
        buffer.write(b"12345678901")


def test_regions_are_not_merged() -> None:
    memory = Memory()
    fd = os.memfd_create("two", os.MFD_CLOEXEC)
    os.ftruncate(fd, 8192)
    memory.add_region(fd, BASE, 4096, 0)
    memory.add_region(fd, BASE + 4096, 4096, 4096)
    os.close(fd)
    arena = Arena(memory)
    buffers = [arena.alloc(4096), arena.alloc(4096)]
    for buffer in buffers:
        arena.free(buffer)
    with pytest.raises(ArenaFull):
        arena.alloc(4097)


@given(st.data())
def test_buffers_never_overlap_and_nothing_is_lost(data: st.DataObject) -> None:
    arena = Arena(Memory.allocate(SIZE, BASE))
    held: list[Buffer] = []
    for _ in range(data.draw(st.integers(0, 40))):
        give_back = data.draw(st.booleans())
        if held and give_back:
            arena.free(held.pop(data.draw(st.integers(0, len(held) - 1))))
            continue
        size = data.draw(st.integers(1, SIZE // 4))
        try:
            held.append(arena.alloc(size, 1 << data.draw(st.integers(0, 12))))
        except ArenaFull:
            continue
        spans = sorted((b.addr, b.addr + b.size) for b in held)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        assert arena.free_bytes + arena.held_bytes == SIZE
    for buffer in held:
        arena.free(buffer)
    assert arena.alloc(SIZE, 1).addr == BASE
