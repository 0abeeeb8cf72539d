"""Small drivers in plain Python, to be judged by `virtq check --driver`: right as they stand, and
made of small parts, so that a mutant can get one of them wrong.

Each is a thread with a vhost-user front-end, that initializes the device and keeps its virtqueues
busy by the model's driver half until it is told to end. What the device does that no device should
it refuses: it gives up the virtqueue, and waits for its end.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from virtq._core import Position
from virtq.errors import PeerGone, TransportError
from virtq.features import F, closed
from virtq.memory import Arena, Buffer
from virtq.model.memory import DriverHalf, Violation
from virtq.model.memory import Position as ModelPosition
from virtq.model.packed import PackedDriver
from virtq.model.split import SplitDriver
from virtq.status import Status
from virtq.transports.vhost_user import Frontend
from virtq.transports.vhost_user.rings import area_bytes
from virtq.wire import blk

SLOT_BYTES = 2048


class Split(SplitDriver):
    """The split driver half; mutants derive from it."""


class Packed(PackedDriver):
    """The packed driver half; mutants derive from it."""


@dataclass
class Asked:
    """A buffer: what the device reads, in pieces; the lengths of what it writes; and a check of
    what came back (all device-writable bytes, the length), which raises Wrong."""

    readable: Sequence[bytes]
    writable: Sequence[int]
    check: Callable[[bytes, int], None] = lambda reply, written: None


@dataclass(eq=False)
class Slot:
    """Memory for one buffer."""

    room: Buffer
    asked: Asked | None = None
    writable: list[tuple[int, int]] = field(default_factory=list)


class Queue:
    """The driver's end of a virtqueue, as a transport takes it."""

    def __init__(self, driver: Reference, index: int, size: int) -> None:
        self.driver, self.index, self.size = driver, index, size
        self.features = driver.features
        packed = bool(self.features & F.RING_PACKED)
        parts = [
            driver.arena.alloc(length + 64, 4096).addr + shift
            for length, shift in zip(area_bytes(size, packed), driver.shifts, strict=True)
        ]
        self.areas = parts[0], parts[1], parts[2]
        tables = driver.arena.alloc(16 * size * driver.table_entries + 64, 16).addr
        kind: Any = driver.packed if packed else driver.split
        self.half: DriverHalf = kind(
            driver.transport.memory,
            self.features,
            size,
            *self.areas,
            indirect_table=tables,
            indirect_length=driver.table_entries,
            position=driver.begin(packed),
        )
        self.kick_fd, self.call_fd = _eventfd(), _eventfd()
        room = driver.slot_bytes(index)
        self.free = [Slot(driver.arena.alloc(room)) for _ in range(min(size, 64))]
        self.out: dict[int, Slot] = {}
        self.made = 0

    # What a transport asks of a queue

    @property
    def position(self) -> Position:
        return Position(*self.half.position)

    @property
    def outstanding(self) -> int:
        return self.half.outstanding

    @property
    def torn(self) -> bool:
        return False

    @property
    def device_position(self) -> Position:
        return self.position

    def set_kick(self, fd: int | None) -> None:
        os.close(self.kick_fd)
        self.kick_fd = _eventfd() if fd is None else os.dup(fd)

    def set_call(self, fd: int | None) -> None:
        os.close(self.call_fd)
        self.call_fd = _eventfd() if fd is None else os.dup(fd)

    def close(self) -> None:
        os.close(self.kick_fd)
        os.close(self.call_fd)

    # Buffers

    def room(self) -> bool:
        return bool(self.free) and self.half.free >= 3

    def add(self, asked: Asked) -> None:
        slot = self.free.pop(0)
        at = slot.room.addr
        slot.asked, slot.writable = asked, []
        readable = []
        for data in asked.readable:
            self.driver.transport.memory.write(at, data)
            readable.append((at, len(data)))
            at += len(data)
        for length in asked.writable:
            self.driver.transport.memory.write(at, b"\xa5" * length)
            slot.writable.append((at, length))
            at += length
        self.half.add(readable, slot.writable, self.made)
        self.out[self.made] = slot
        self.made += 1

    def kick(self) -> None:
        if self.half.kick_wanted():
            self.signal()

    def signal(self) -> None:
        os.eventfd_write(self.kick_fd, 1)

    def reap(self) -> int:
        """What was used; raises Violation for what makes no sense."""
        done = 0
        while self.half.used_entry() is not None:
            self.half.collect()
            while self.half.collected:
                added, written = self.half.collected.pop(0)
                self.done(added.cookie, written)
                done += 1
        return done

    def done(self, cookie: int, written: int) -> None:
        slot = self.out.pop(cookie)
        assert slot.asked is not None
        memory = self.driver.transport.memory
        reply = b"".join(memory.read(at, length) for at, length in slot.writable)
        slot.asked.check(reply, written)
        self.free.append(slot)


class Reference:
    """A driver of a block device (5.2)."""

    split: type[SplitDriver] = Split
    packed: type[PackedDriver] = Packed
    device_id = blk.DEVICE_ID
    accepted = int(
        F.VERSION_1
        | F.RING_PACKED
        | F.IN_ORDER
        | F.INDIRECT_DESC
        | F.EVENT_IDX
        | F.ORDER_PLATFORM
        | F.ACCESS_PLATFORM
        | blk.BlkFeature.FLUSH
        | blk.BlkFeature.RO
        | blk.BlkFeature.SEG_MAX
        | blk.BlkFeature.DISCARD
        | blk.BlkFeature.WRITE_ZEROES
    )
    queues: tuple[int, ...] = (0,)
    ring_size = 16
    ram_bytes = 4 << 20
    shifts = (0, 0, 0)
    """What is added to the addresses of the descriptor, driver and device area."""
    table_entries = 2
    """Buffers of so many elements get an indirect table, longer ones a list."""
    sleep_s = 0.002

    def __init__(self, path: str) -> None:
        self.path = path
        self.ending = self.killed = False
        self.refused = ""
        self.error: BaseException | None = None
        self.features = self.offered = self.status = 0
        self.rings: dict[int, Queue] = {}
        self.transport: Frontend
        self.arena: Arena
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.transport = self.connect()
        except TransportError:
            return
        try:
            self.live()
        except (PeerGone, TransportError) as error:
            if not self.ending and not isinstance(error, PeerGone):
                self.error = error
        except BaseException as error:
            self.error = error
        finally:
            for ring in self.rings.values():
                ring.close()
            self.transport.close()

    def connect(self) -> Frontend:
        return Frontend(
            self.path, memory_size=self.ram_bytes, queues=max(self.queues) + 1, timeout_s=2.0
        )

    def live(self) -> None:
        self.arena = Arena(self.transport.memory)
        if self.initialize():
            self.work()
        self.wait_for_the_end()
        self.leave()

    # Initialization (3.1.1)

    def initialize(self) -> bool:
        """Whether the device is live."""
        self.reset()
        self.acknowledge()
        self.know()
        self.negotiate()
        if not self.features_ok():
            self.fail()
            return False
        self.read_config()
        self.set_up()
        self.driver_ok()
        return True

    def tell(self, status: int) -> None:
        self.status |= status
        self.transport.write_status(self.status)

    def reset(self) -> None:
        self.transport.write_status(0)
        self.status = self.transport.read_status()

    def acknowledge(self) -> None:
        self.tell(Status.ACKNOWLEDGE)

    def know(self) -> None:
        self.tell(Status.DRIVER)

    def negotiate(self) -> None:
        self.offered = self.transport.read_features()
        self.features = self.choose()
        self.transport.write_features(self.features)

    def choose(self) -> int:
        return closed(self.offered & self.accepted, self.device_id)

    def features_ok(self) -> bool:
        if not self.features & F.VERSION_1:
            return False
        self.tell(Status.FEATURES_OK)
        return self.is_features_ok()

    def is_features_ok(self) -> bool:
        return bool(self.transport.read_status() & Status.FEATURES_OK)

    def fail(self) -> None:
        self.tell(Status.FAILED)

    def read_config(self) -> None:
        self.capacity = int.from_bytes(self.transport.read_config(0, 8), "little")
        self.segments = 1
        if self.features & blk.BlkFeature.SEG_MAX:
            self.segments = int.from_bytes(self.transport.read_config(12, 4), "little")

    def set_up(self) -> None:
        for index in self.queues:
            ring = Queue(self, index, self.ring_size)
            self.rings[index] = ring
            self.prepare(ring)
            self.transport.enable_queue(ring, *ring.areas)

    def slot_bytes(self, index: int) -> int:
        """The memory of each buffer of a virtqueue."""
        return SLOT_BYTES

    def prepare(self, ring: Queue) -> None:
        """Before the device gets it."""

    def begin(self, packed: bool) -> ModelPosition | None:
        """Where a virtqueue begins."""
        return None

    def driver_ok(self) -> None:
        self.tell(Status.DRIVER_OK)

    # Work

    def work(self) -> None:
        try:
            while not self.ending:
                self.turn()
        except Violation as violation:
            self.refused = str(violation)

    def turn(self) -> None:
        busy = False
        for ring in self.rings.values():
            busy = bool(self.reap(ring)) or busy
            self.fill(ring)
            self.kick(ring)
        if not busy:
            self.sleep()

    def reap(self, ring: Queue) -> int:
        return ring.reap()

    def fill(self, ring: Queue) -> None:
        while ring.room() and not self.ending:
            ring.add(self.ask(ring.index, ring.made))

    def kick(self, ring: Queue) -> None:
        ring.kick()

    def sleep(self) -> None:
        fds = [ring.call_fd for ring in self.rings.values()]
        there = [ring.half.enable_calls() for ring in self.rings.values()]
        if not any(there):
            select.select(fds, [], [], self.sleep_s)
        for ring in self.rings.values():
            ring.half.disable_calls()
            self.drain(ring.call_fd)

    def drain(self, fd: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(fd)

    def ask(self, queue: int, number: int) -> Asked:
        """The next buffer of a virtqueue: a disk is written, read, and asked for its name."""
        sector = number // 6 % 32
        match number % 6:
            case 0:
                data = bytes([number % 251]) * 512
                header = blk.Header(blk.Type.OUT, sector).pack()
                return Asked([header, data], [1], ok)
            case 1:
                header = blk.Header(blk.Type.IN, sector).pack()
                return Asked([header], [512, 1], whole)
            case 2:
                header = blk.Header(blk.Type.GET_ID, 0).pack()
                return Asked([header], [blk.ID_BYTES + 1], whole)
            case 3:
                segments = b"".join(blk.Segment(sector + i, 1).pack() for i in range(2))
                return Asked([blk.Header(blk.Type.DISCARD, 0).pack(), segments], [1], ok)
            case 4:
                segment = blk.Segment(sector, 8).pack()
                return Asked([blk.Header(blk.Type.WRITE_ZEROES, 0).pack(), segment], [1], ok)
            case _:
                return Asked([blk.Header(blk.Type.FLUSH, 0).pack()], [1], ok)

    # The end

    def wait_for_the_end(self) -> None:
        while not self.ending:
            self.transport.check()
            time.sleep(0.002)

    def leave(self) -> None:
        self.transport.write_status(0)


class Wrong(Exception):
    """The device did not do what it was asked for: the driver ends with an error."""


def ok(reply: bytes, written: int) -> None:
    if reply[-1] != 0:
        raise Wrong(f"status {reply[-1]}")


def whole(reply: bytes, written: int) -> None:
    ok(reply, written)
    if written != len(reply):
        raise Wrong(f"{written} of {len(reply)} bytes")


def _eventfd() -> int:
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
