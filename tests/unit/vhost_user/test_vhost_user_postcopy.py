"""Postcopy with a real userfaultfd: the test is the front-end that owns the memory, puts pages
there when they are asked for, and does it wrong."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.vhost_user.elsewhere import DISK_BYTE, Elsewhere
from tests.unit.vhost_user.right_front import (
    ALL,
    DATA,
    DESC,
    DEVICE,
    DRIVER,
    GUEST,
    PLAIN,
    SIZE,
    USER,
    RightFront,
)
from tests.unit.vhost_user.support import (
    PATIENCE_S,
    eventually,
)
from virtq._core import DriverQueue
from virtq.transports.vhost_user import channel, postcopy
from virtq.transports.vhost_user.messages import FRONT_MESSAGES, Front, P
from virtq.transports.vhost_user.wire import (
    HEADER_BYTES,
    NEED_REPLY,
    REPLY,
    U64,
    Region,
    RegionTable,
    pack_message,
    unpack_header,
)

if not postcopy.is_possible():
    pytest.skip("this process may not have a userfaultfd", allow_module_level=True)

PAGE = 4096
WAKE = 0x8010AA02
"""UFFDIO_WAKE"""
POSTCOPY = ALL & ~P.CONFIG | P.PAGEFAULT


class Destination(RightFront):
    """A front-end whose memory has yet to arrive. `memory` and `pages` are the owner's view: what
    is written there is on this machine, what was never written is not."""

    def __init__(self, served: Elsewhere) -> None:
        super().__init__(served, PLAIN, POSTCOPY)
        self.faults = -1
        self.base = 0

    def advise(self) -> None:
        self.raw.send(Front.POSTCOPY_ADVISE)
        data, fds = channel.receive(self.raw.sock, HEADER_BYTES)
        header = unpack_header(data)
        assert (header.request, header.flags, header.size) == (Front.POSTCOPY_ADVISE, 1 | REPLY, 0)
        (self.faults,) = fds

    def tell(self, code: Front, payload: Any = None) -> bool:
        """Whether it is acknowledged with success."""
        answer: U64 = self.raw.ask(code, payload, need_reply=True)
        return answer.value == 0

    def place(self, slots: bool) -> None:
        """Share memory, and take in where it lies."""
        code = Front.ADD_MEM_REG if slots else Front.SET_MEM_TABLE
        payload = self.region if slots else RegionTable((self.region,))
        self.raw.send(code, payload, [self.fd])
        answer = self._answer(code)
        (region,) = answer.regions if isinstance(answer, RegionTable) else (answer,)
        assert region._replace(user_addr=USER) == self.region
        self.base = region.user_addr

    def _answer(self, code: Front) -> Any:
        data = b""
        while len(data) < HEADER_BYTES:
            data += self.raw.sock.recv(HEADER_BYTES - len(data))
        header = unpack_header(data)
        assert (header.request, header.flags) == (code, 1 | REPLY)
        body = b""
        while len(body) < header.size:
            body += self.raw.sock.recv(header.size - len(body))
        return FRONT_MESSAGES[code].payload.parse(code.name, body)

    def confirm(self, code: Front, value: int = 0) -> None:
        self.raw.send_bytes(pack_message(code, 0, value.to_bytes(8, "little")))

    def fault(self) -> int | None:
        """The offset of the page that somebody waits for."""
        if not select.select([self.faults], [], [], PATIENCE_S)[0]:
            return None
        event, _, _, _, _, address = struct.unpack("=BBHIQQ8x", os.read(self.faults, 32))
        assert event == 0x12
        offset: int = address - self.base
        return offset // PAGE * PAGE

    def arrive(self, offset: int, content: bytes = b"") -> None:
        """A page is here, with this at its beginning."""
        os.pwrite(self.fd, content.ljust(PAGE, b"\0"), offset)
        self.wake(offset)

    def wake(self, offset: int) -> None:
        fcntl.ioctl(self.faults, WAKE, struct.pack("=QQ", self.base + offset, PAGE))

    def close(self) -> None:
        if self.faults >= 0:
            os.close(self.faults)
            self.faults = -1
        super().close()


@pytest.fixture(scope="module")
def shout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    with Elsewhere(tmp_path_factory.mktemp("shout") / "s", "shout") as served:
        yield served


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    with Elsewhere(tmp_path_factory.mktemp("disk") / "s", "disk") as served:
        yield served


@pytest.fixture
def front(shout: Elsewhere) -> Iterator[Destination]:
    """Whatever it does, the back-end is as before when it is gone."""
    next_is_served(shout)
    before = shout.open_fds
    with Destination(shout) as front:
        yield front
    next_is_served(shout)
    assert eventually(lambda: shout.open_fds <= before)


def next_is_served(served: Elsewhere) -> None:
    with RightFront(served, PLAIN, ALL & ~P.CONFIG) as after:
        after.start()


def ready(front: Destination, slots: bool = False) -> None:
    front.advise()
    assert front.tell(Front.POSTCOPY_LISTEN)
    front.place(slots)
    front.confirm(Front.ADD_MEM_REG if slots else Front.SET_MEM_TABLE)
    front.sync()


def ring_here(front: Destination) -> DriverQueue:
    """A ring whose pages have arrived, with a buffer whose pages have not."""
    queue = front.queue()  # writes, and so makes its pages present
    for offset in (DESC, DRIVER, DEVICE):
        os.pwrite(front.fd, os.pread(front.fd, PAGE, offset), offset)
    return queue


@pytest.mark.parametrize("slots", [False, True], ids=["table", "slots"])
def test_a_buffer_that_has_yet_to_arrive(front: Destination, slots: bool) -> None:
    ready(front, slots)
    queue = ring_here(front)
    front.set_up()
    front.events_on()
    front.enable()
    front.sync()
    queue.add([(GUEST + DATA, 4)], [(GUEST + DATA + PAGE, 4)], 5)
    queue.kick()
    assert front.fault() == DATA
    assert not queue.reap()
    front.arrive(DATA, b"late")
    assert front.fault() == DATA + PAGE
    front.arrive(DATA + PAGE)
    assert queue.wait(PATIENCE_S)
    assert queue.reap() == [(5, 4)]
    assert front.memory.read(GUEST + DATA + PAGE, 4) == b"LATE"
    assert front.raw.ask(Front.POSTCOPY_END) == U64(0)
    assert front.shout(queue, b"as ever") == b"AS EVER"


def test_a_ring_that_has_yet_to_arrive(front: Destination) -> None:
    """Starting it waits as well, and the rest of the connection with it."""
    ready(front)
    front.set_up()
    front.events_on()
    seen: list[int] = []
    while len(seen) < 3 and (offset := front.fault()) is not None:
        seen.append(offset)
        if offset == DRIVER:
            front.queue()
        front.arrive(offset)
        if DEVICE in seen and not select.select([front.faults], [], [], 0.05)[0]:
            break
    assert set(seen) <= {DESC, DRIVER, DEVICE}
    assert seen
    front.sync()
    assert front.raw.ask(Front.POSTCOPY_END) == U64(0)
    front.enable()
    assert front.shout(front.queue(), b"ring") == b"RING"


def test_the_native_data_path_waits_alone(disk: Elsewhere) -> None:
    """While a request of a disk waits for its pages, the back-end answers."""
    with Destination(disk) as front:
        ready(front)
        queue = ring_here(front)
        front.set_up()
        front.events_on()
        front.enable()
        front.sync()
        header, data, status = GUEST + DATA, GUEST + DATA + PAGE, GUEST + DATA + 2 * PAGE
        queue.add([(header, 16)], [(data, PAGE), (status, 1)], 5)
        queue.kick()
        assert front.fault() == DATA
        front.sync()
        front.arrive(DATA, bytes(16))
        for offset in (DATA + PAGE, DATA + 2 * PAGE):
            assert front.fault() == offset
            front.sync()
            front.arrive(offset)
        assert queue.wait(PATIENCE_S)
        assert queue.reap() == [(5, PAGE + 1)]
        assert front.memory.read(data, PAGE) == DISK_BYTE * PAGE
        assert front.raw.ask(Front.POSTCOPY_END) == U64(0)


@pytest.mark.parametrize("which", ["shout", "disk"])
def test_a_front_end_that_dies_wakes_everybody(which: str, request: pytest.FixtureRequest) -> None:
    """The loop, or a data path, waits for a page when the front-end goes: the next is served."""
    served: Elsewhere = request.getfixturevalue(which)
    next_is_served(served)
    before = served.open_fds
    for _ in range(3):
        with Destination(served) as front:
            ready(front)
            queue = ring_here(front)
            front.set_up()
            front.events_on()
            front.enable()
            front.sync()
            queue.add([(GUEST + DATA, 16)], [(GUEST + DATA + PAGE, 1)], 5)
            queue.kick()
            assert front.fault() == DATA
        next_is_served(served)
        assert eventually(lambda: served.open_fds <= before)


# ---------------------------------------------------------------- out of order, and wrong


def test_listen_without_advice(front: Destination) -> None:
    assert not front.tell(Front.POSTCOPY_LISTEN)
    assert front.raw.ask(Front.POSTCOPY_END) == U64(1)


def test_listen_when_memory_is_shared_already(front: Destination) -> None:
    front.advise()
    front.share()
    assert not front.tell(Front.POSTCOPY_LISTEN)
    front.set_up()
    front.events_on()
    front.enable()
    queue = front.queue()
    assert front.shout(queue, b"precopy") == b"PRECOPY"
    assert front.raw.ask(Front.POSTCOPY_END) == U64(0)
    assert front.shout(queue, b"as ever") == b"AS EVER"


def test_advice_while_listening(front: Destination) -> None:
    front.advise()
    assert front.tell(Front.POSTCOPY_LISTEN)
    front.raw.send(Front.POSTCOPY_ADVISE, need_reply=True)
    assert front.raw.ended()


def test_advice_again_and_again(front: Destination) -> None:
    for _ in range(5):
        front.advise()
        os.close(front.faults)
        front.faults = -1
    assert front.raw.ask(Front.POSTCOPY_END) == U64(0)
    assert front.raw.ask(Front.POSTCOPY_END) == U64(1)


@pytest.mark.parametrize("value", [1, 2**64 - 1])
@pytest.mark.parametrize("slots", [False, True], ids=["table", "slots"])
def test_a_front_end_that_cannot_tell_faults(front: Destination, slots: bool, value: int) -> None:
    front.advise()
    front.tell(Front.POSTCOPY_LISTEN)
    front.place(slots)
    front.confirm(Front.ADD_MEM_REG if slots else Front.SET_MEM_TABLE, value)
    assert front.raw.ended()


@pytest.mark.parametrize("slots", [False, True], ids=["table", "slots"])
def test_something_else_than_the_confirmation(front: Destination, slots: bool) -> None:
    front.advise()
    front.tell(Front.POSTCOPY_LISTEN)
    front.place(slots)
    front.raw.send(Front.GET_FEATURES)
    assert front.raw.ended()


def test_several_slots_are_confirmed_at_once(front: Destination) -> None:
    front.advise()
    front.tell(Front.POSTCOPY_LISTEN)
    front.place(slots=True)
    first = front.base
    more = Region(GUEST + SIZE, PAGE, USER + SIZE, 0)
    fd = os.memfd_create("more")
    os.ftruncate(fd, PAGE)
    front.raw.send(Front.ADD_MEM_REG, more, [fd])
    os.close(fd)
    assert front._answer(Front.ADD_MEM_REG).user_addr not in (0, first)
    front.confirm(Front.ADD_MEM_REG)
    front.sync()
    front.base = first
    assert front.raw.ask(Front.POSTCOPY_END) == U64(0)


def test_memory_that_cannot_be_waited_for(front: Destination, tmp_path: Path) -> None:
    """A file on a disk: the mapping is refused when it is to be registered."""
    front.advise()
    front.tell(Front.POSTCOPY_LISTEN)
    with contextlib.closing(open(tmp_path / "file", "w+b", buffering=0)) as file:
        file.truncate(SIZE)
        kind = os.fstatvfs(file.fileno())
        front.raw.send(Front.SET_MEM_TABLE, RegionTable((front.region,)), [file.fileno()])
    front._answer(Front.SET_MEM_TABLE)
    front.confirm(Front.SET_MEM_TABLE)
    if kind.f_bsize and _is_on_a_disk(tmp_path):
        assert front.raw.ended()


def _is_on_a_disk(path: Path) -> bool:
    with open("/proc/mounts") as mounts:
        found = [line.split()[1:3] for line in mounts]
    deepest = max((m for m in found if path.is_relative_to(m[0])), key=lambda m: len(m[0]))
    return deepest[1] not in ("tmpfs", "hugetlbfs")


def test_a_confirmation_with_descriptors(front: Destination) -> None:
    front.advise()
    front.tell(Front.POSTCOPY_LISTEN)
    front.place(slots=False)
    front.raw.send_bytes(pack_message(Front.SET_MEM_TABLE, NEED_REPLY, bytes(8)), [front.fd])
    assert front.raw.ended()


def test_without_the_feature(shout: Elsewhere) -> None:
    with RightFront(shout, PLAIN, ALL & ~P.CONFIG) as front:
        answer = front.raw.ask(Front.POSTCOPY_LISTEN, need_reply=True)
        assert answer == U64(1)
        assert front.raw.ask(Front.POSTCOPY_END) == U64(1)
        front.raw.send(Front.POSTCOPY_ADVISE)
        assert front.raw.ended()
