"""Guest memory from Python: the table, copies, views, the log, the IOTLB."""

import gc
import os
import subprocess
import sys
import threading

import pytest

from virtq import _core

PAGE = 4096


def file_of(size: int) -> int:
    fd = os.memfd_create("test")
    os.ftruncate(fd, size)
    return fd


def test_exceptions_form_a_family() -> None:
    assert issubclass(_core.VirtqError, Exception)
    assert issubclass(_core.MemoryError_, _core.VirtqError)
    assert issubclass(_core.TranslationMiss, _core.MemoryError_)
    for error in (_core.RingFault, _core.QueueFull, _core.StaleBuffer):
        assert issubclass(error, _core.VirtqError)
        assert error.__module__ == "virtq._core"
        assert error.__doc__


def test_allocate_rounds_up_and_shows_itself() -> None:
    memory = _core.Memory.allocate(5000, guest_addr=0x10000)
    (region,) = memory.regions
    assert isinstance(region, tuple)
    assert isinstance(region, _core.RegionInfo)
    guest_addr, size, user_addr, offset = region
    assert (guest_addr, size, offset) == (0x10000, 8192, 0)
    assert region.guest_addr == 0x10000
    assert region._fields == ("guest_addr", "size", "user_addr", "offset")
    assert memory.guest_from_user(user_addr + 5000) == 0x10000 + 5000
    with pytest.raises(_core.MemoryError_, match="user range"):
        memory.guest_from_user(user_addr, 8193)
    fd = memory.fd_of(0x10000)
    assert os.fstat(fd).st_size == 8192
    assert memory.fd_of(0x11FFF) == fd
    with pytest.raises(_core.MemoryError_, match="0x12000"):
        memory.fd_of(0x12000)


def test_final() -> None:
    with pytest.raises(TypeError):
        type("Sub", (_core.Memory,), {})


def test_read_write_view() -> None:
    memory = _core.Memory.allocate(PAGE)
    memory.write(16, b"bytes")
    memory.write(32, bytearray(b"array"))
    memory.write(48, memoryview(b"xxviewxx")[2:6])
    assert memory.read(16, 5) == b"bytes"
    assert memory.read(32, 5) == b"array"
    assert memory.read(48, 4) == b"view"
    assert memory.read(0, 0) == b""
    memory.write(0, b"")
    view = memory.view(16, 5)
    assert isinstance(view, memoryview)
    assert not view.readonly
    assert view.format == "B"
    assert bytes(view) == b"bytes"
    view[0:2] = b"BY"
    assert memory.read(16, 5) == b"BYtes"
    memory.write(20, view)
    assert memory.read(16, 9) == b"BYteBYtes"
    with pytest.raises(BufferError):
        memory.write(0, memoryview(b"abcdef")[::2])
    with pytest.raises(TypeError):
        memory.write(0, "text")  # type: ignore[arg-type]


def test_numpy() -> None:
    numpy = pytest.importorskip("numpy")
    memory = _core.Memory.allocate(1 << 20)
    array = numpy.frombuffer(memory.view(0, 1 << 20), dtype="<u8")
    array[:] = numpy.arange(len(array))
    assert memory.read(80, 8) == (10).to_bytes(8, "little")
    memory.write(0, numpy.arange(1 << 17, dtype="<u8")[::-1].copy())
    assert array[0] == (1 << 17) - 1


def test_large_copies() -> None:
    memory = _core.Memory.allocate(4 << 20)
    data = os.urandom(3 << 20)
    memory.write(12345, data)
    assert memory.read(12345, len(data)) == data


@pytest.mark.parametrize(
    ("addr", "length", "named"),
    [
        (PAGE, 1, "0x1000.0x1 "),
        (PAGE - 1, 3, "0x1000.0x2 "),
        (1 << 40, 1 << 60, "0x10000000000"),
        (2**64 - 1, 2, "exceeds 64 bits"),
        (8, 2**64 - 1, "exceeds 64 bits"),
    ],
)
def test_outside_names_the_range(addr: int, length: int, named: str) -> None:
    memory = _core.Memory.allocate(PAGE)
    for use in (memory.read, memory.view):
        with pytest.raises(_core.MemoryError_, match=named) as caught:
            use(addr, length)
        assert type(caught.value) is _core.MemoryError_
    if length < 100:
        with pytest.raises(_core.MemoryError_, match=named):
            memory.write(addr, bytes(length))


def test_view_keeps_the_mapping_alive() -> None:
    memory = _core.Memory.allocate(1 << 20)
    view = memory.view(0, 1 << 20)
    view[-1] = 7
    memory.clear()
    del memory
    gc.collect()
    assert view[-1] == 7
    part = view[-8:].cast("Q")
    del view
    gc.collect()
    assert part[0] == 7 << 56


def mapped() -> int:
    with open("/proc/self/maps") as maps:
        return sum("memfd:virtq" in line for line in maps)


def test_dropping_everything_unmaps() -> None:
    before = mapped()
    memory = _core.Memory.allocate(PAGE)
    view = memory.view(0, 1)
    assert mapped() == before + 1
    del memory
    assert mapped() == before + 1
    del view
    gc.collect()
    assert mapped() == before


def test_add_and_remove() -> None:
    fd = file_of(4 * PAGE)
    memory = _core.Memory()
    memory.add_region(fd, 0x10000, PAGE, offset=2 * PAGE, user_addr=0x7000)
    memory.add_region(fd, 0, PAGE, PAGE, 0x1000)
    os.pwrite(fd, b"two", 2 * PAGE)
    os.close(fd)
    assert memory.read(0x10000, 3) == b"two"
    assert memory.regions == [(0, PAGE, 0x1000, PAGE), (0x10000, PAGE, 0x7000, 2 * PAGE)]
    with pytest.raises(_core.MemoryError_, match="no region"):
        memory.remove_region(0, PAGE, user_addr=0x2000)
    memory.remove_region(0, PAGE)
    memory.remove_region(0x10000, PAGE, 0x7000)
    assert memory.regions == []


def test_row_24_bad_regions() -> None:
    fd = file_of(4 * PAGE)
    memory = _core.Memory()
    memory.add_region(fd, 0x10000, 2 * PAGE, user_addr=0)
    for arguments, text in [
        ((fd, 0x11000, PAGE), "overlaps"),
        ((fd, 0, PAGE, 0, 0x1000), "overlaps"),
        ((fd, 0, 0), "size 0"),
        ((fd, 0, 5 * PAGE), "too few"),
        ((fd, 0, PAGE, 4 * PAGE), "too few"),
        ((fd, 0, PAGE, 2**64 - 1), "exceeds"),
        ((fd, 2**64 - PAGE, PAGE), "exceeds"),
        ((-1, 0, PAGE), "fstat"),
        ((9999, 0, PAGE), "fstat"),
    ]:
        with pytest.raises(_core.MemoryError_, match=text):
            memory.add_region(*arguments)
    assert len(memory.regions) == 1
    with pytest.raises(_core.MemoryError_):
        _core.Memory.allocate(0)
    os.close(fd)


def test_row_24_truncated_file() -> None:
    fd = file_of(4 * PAGE)
    memory = _core.Memory()
    memory.add_region(fd, 0, 4 * PAGE)
    memory.write(0, b"x" * 4 * PAGE)
    view = memory.view(0, 4 * PAGE)
    os.ftruncate(fd, PAGE)
    assert bytes(view) == b"x" * PAGE + bytes(3 * PAGE)
    assert memory.read(3 * PAGE, 4) == bytes(4)
    os.close(fd)


def test_row_24_truncated_file_with_faulthandler() -> None:
    code = """
import faulthandler, mmap, os
faulthandler.enable()
from virtq import _core
fd = os.memfd_create("test")
os.ftruncate(fd, 8192)
memory = _core.Memory()
memory.add_region(fd, 0, 8192)
theirs = mmap.mmap(fd, 8192)
os.ftruncate(fd, 0)
assert memory.read(4096, 4) == bytes(4)
print("alive", flush=True)
theirs[4096]
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=os.path.dirname(__file__)
    )
    assert done.stdout == "alive\n"
    assert "Fatal Python error: Bus error" in done.stderr
    assert done.returncode == -7


def test_iotlb() -> None:
    memory = _core.Memory.allocate(4 * PAGE)
    user = memory.regions[0].user_addr
    memory.write(PAGE, b"page one")
    with pytest.raises(_core.MemoryError_, match="not enabled"):
        memory.iotlb_update(0, PAGE, user, True, True)
    memory.iotlb_enable(True)
    with pytest.raises(_core.TranslationMiss) as caught:
        memory.read(PAGE, 8)
    text, *place = caught.value.args
    assert "no translation to read" in text
    assert place == [PAGE, 8, False]
    memory.iotlb_update(0xABC000, PAGE, user + PAGE, True, False)
    assert memory.read(0xABC000, 8) == b"page one"
    with pytest.raises(_core.TranslationMiss) as caught:
        memory.write(0xABC000, b"12345678")
    assert caught.value.args[1:] == (0xABC000, 8, True)
    memory.iotlb_enable(True)
    assert memory.read(0xABC000, 8) == b"page one"
    memory.iotlb_invalidate(0xABC000, PAGE)
    with pytest.raises(_core.TranslationMiss):
        memory.read(0xABC000, 8)
    memory.iotlb_enable(False)
    assert memory.read(PAGE, 8) == b"page one"


def test_log() -> None:
    memory = _core.Memory.allocate(16 * PAGE)
    log = file_of(PAGE)
    memory.set_log(log, PAGE)
    memory.write(2 * PAGE, b"x")
    memory.mark_dirty(9 * PAGE, 1)
    memory.mark_dirty(1 << 50, 1)
    memory.clear()
    memory.mark_dirty(15 * PAGE, 1)
    memory.set_log(None)
    memory.mark_dirty(0, 1)
    assert os.pread(log, 3, 0) == bytes([1 << 2, 1 << 1 | 1 << 7, 0])
    with pytest.raises(_core.MemoryError_):
        memory.set_log(log, 0)
    os.close(log)


def test_large_copies_let_other_threads_run() -> None:
    memory = _core.Memory.allocate(8 << 20)
    ran = []
    thread = threading.Thread(target=lambda: ran.append(True))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # Nothing but a release of the lock lets the other one run.
    try:
        thread.start()
        for _ in range(200):
            memory.write(0, bytes(8 << 20))
        assert ran
    finally:
        sys.setswitchinterval(interval)
        thread.join()
