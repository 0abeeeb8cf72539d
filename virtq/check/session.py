"""One device, initialized by the judge, and its virtqueues by the executable specification.

The driver's half here is `virtq.model`: it is slow, but it keeps every word of the ring in plain
sight, and it can be made to do what no driver should. All waits end: a device that does not do what
it is waited for is `Hung`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from virtq._core import Position
from virtq.check.case import Broken, Hung
from virtq.check.picture import packed_slots, split_slots
from virtq.check.waiting import turns
from virtq.errors import FeatureError
from virtq.features import F
from virtq.memory import Arena, Buffer
from virtq.model.memory import AVAIL, INDIRECT, NEXT, USED, WRITE, Added, DriverHalf, Violation
from virtq.model.packed import Descriptor as PackedDescriptor
from virtq.model.packed import PackedDriver, PackedRing
from virtq.model.split import Descriptor as SplitDescriptor
from virtq.model.split import SplitDriver, SplitRing
from virtq.status import Status
from virtq.transports.base import DriverTransport
from virtq.transports.vhost_user.frontend import Frontend
from virtq.transports.vhost_user.messages import P

UNTOUCHED = 0xA5
"""What device-writable bytes hold before the device gets them."""

T = TypeVar("T")
Judgement = Callable[[bytes, int], str | None]


@dataclass(frozen=True)
class Job:
    """A buffer that the device is known to use: what it reads, how many bytes it may write, and a
    judge of what it wrote (all writable bytes, the reported length), which names what is wrong.

    `full`: whether a device that does it right writes every writable byte."""

    readable: bytes
    writable: int
    judge: Judgement = lambda reply, written: None
    full: bool = False


class Entry(NamedTuple):
    """A used entry as the device wrote it: its slot, id, length, and (packed) flags; and how many
    buffers it stands for."""

    slot: int
    id: int
    length: int
    flags: int | None
    covers: int

    def __str__(self) -> str:
        flags = "" if self.flags is None else f", flags {_flag_names(self.flags)}"
        stands = f", for {self.covers} buffers" if self.covers > 1 else ""
        return f"used entry in slot {self.slot}: id {self.id}, length {self.length}{flags}{stands}"


@dataclass(eq=False)
class Sent:
    """A buffer that was added, and what became of it."""

    job: Job
    number: int
    readable: list[Buffer]
    writable: list[Buffer]
    written: int | None = None
    reply: bytes = b""
    """All device-writable bytes as they were when the buffer was used."""

    def check(self) -> None:
        """Raises Broken if the device did something wrong with it."""
        assert self.written is not None
        sent = b"".join(piece.read() for piece in self.readable)
        if sent != self.job.readable:
            raise Broken("device-readable bytes as they were sent", "the device changed them")
        self.reply = b"".join(piece.read() for piece in self.writable)
        if wrong := self.job.judge(self.reply, self.written):
            raise Broken(f"buffer {self.number} served right", wrong)

    @property
    def untouched_end(self) -> int:
        """Device-writable bytes at the end that the device did not write."""
        return len(self.reply) - len(self.reply.rstrip(bytes([UNTOUCHED])))


class Ring:
    """One virtqueue, as `DriverTransport.enable_queue` takes it, with the driver half of the
    model."""

    def __init__(
        self, session: Session, index: int, size: int, features: int, indirect_length: int
    ) -> None:
        self._session = session
        self.index = index
        self.size = size
        self.features = features
        self.packed = bool(features & F.RING_PACKED)
        layout = PackedRing if self.packed else SplitRing
        arena = session.arena
        end = layout.areas(size).end
        self.areas = layout.areas(size, arena.alloc(end, 4096).addr)
        table = 0
        if indirect_length and features & F.INDIRECT_DESC:
            table = arena.alloc(16 * size * indirect_length, 16).addr
        half = PackedDriver if self.packed else SplitDriver
        self.half: DriverHalf = half(
            arena.memory,
            features,
            size,
            *self.areas[:3],
            indirect_table=table,
            indirect_length=indirect_length,
        )
        self.half.bears_long_lengths = session.bears_long_lengths
        self.kick_fd, self.call_fd = _eventfd(), _eventfd()
        self.sent: dict[int, Sent] = {}
        self.entries: list[Entry] = []
        self._count = 0

    @property
    def split_ring(self) -> SplitRing:
        assert isinstance(self.half, SplitDriver)
        return self.half.ring

    @property
    def packed_ring(self) -> PackedRing:
        assert isinstance(self.half, PackedDriver)
        return self.half.ring

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
        """The judge does not let another device half go on with a ring."""
        return self.position

    def set_kick(self, fd: int | None) -> None:
        self._replace("kick_fd", fd)

    def set_call(self, fd: int | None) -> None:
        self._replace("call_fd", fd)

    def _replace(self, name: str, fd: int | None) -> None:
        os.close(getattr(self, name))
        setattr(self, name, _eventfd() if fd is None else os.dup(fd))

    def close(self) -> None:
        os.close(self.kick_fd)
        os.close(self.call_fd)

    # Making buffers available

    def add(self, job: Job, pieces: tuple[int, ...] | None = None) -> Sent:
        """Add a buffer. `pieces`: the lengths to cut its device-readable part into, 0, and those
        for the device-writable part; by default each part is one piece."""
        arena = self._session.arena
        cut = _cut(job, pieces)
        readable = [arena.alloc(length) for length in cut[0]]
        writable = [arena.alloc(length) for length in cut[1]]
        at = 0
        for piece in readable:
            piece.write(job.readable[at : at + piece.size])
            at += piece.size
        for piece in writable:
            piece.view[:] = bytes([UNTOUCHED]) * piece.size
        sent = Sent(job, self._count, readable, writable)
        self.half.add([p.piece for p in readable], [p.piece for p in writable], self._count)
        self.sent[self._count] = sent
        self._count += 1
        return sent

    def head(self) -> SplitDescriptor | PackedDescriptor:
        """The first descriptor of the buffer that was added last."""
        if isinstance(self.half, PackedDriver):
            return self.half.heads[-1][1]
        return self.split_ring.desc(self.half.added[-1].id)

    def change_head(self, change: Callable[[Any], Any]) -> None:
        """Change the first descriptor of the buffer that was added last, before it is published."""
        if isinstance(self.half, PackedDriver):
            slot, descriptor = self.half.heads[-1]
            self.half.heads[-1] = slot, change(descriptor)
        else:
            self.split_ring.set_desc(self.half.added[-1].id, change(self.head()))

    def kick(self, always: bool = False) -> bool:
        """Publish, and notify the device if it wants it (or `always`); whether it was notified."""
        wanted = self._legal(self.half.kick_wanted)
        if wanted or always:
            self.signal()
        return wanted or always

    def signal(self) -> None:
        """Notify the device, and nothing else."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self.kick_fd, 1)

    # What comes back

    def collect(self) -> list[Sent]:
        """The buffers that the device has used since the last time, in the order of use. Raises
        Broken for a used entry that makes no sense."""
        done: list[Sent] = []
        while self._legal(lambda: self.half.used_entry() is not None):
            slot = self._used_slot()
            raw = self._legal(self.half.used_entry)
            assert raw is not None
            flags = self.packed_ring.desc(slot).flags if self.packed else None
            batch = self._legal(self.half.collect)
            self.half.collected.clear()
            self.entries.append(Entry(slot, *raw, flags, len(batch)))
            done += [self._done(*buffer) for buffer in batch]
        return done

    def _done(self, added: Added, written: int) -> Sent:
        sent = self.sent[added.cookie]
        sent.written = written
        return sent

    def wait(self, count: int) -> list[Sent]:
        """Collect until `count` buffers are used, check each, and return them. Raises Hung."""
        done: list[Sent] = []
        while len(done) < count:
            done += self._next(_buffers(count, self.index))
        for sent in done:
            sent.check()
            for piece in (*sent.readable, *sent.writable):
                self._session.arena.free(piece)
        return done

    def _next(self, what: str) -> list[Sent]:
        """What is used next; for each the device has its whole time."""
        for _ in self._session.patience(what):
            if done := self.collect():
                return done
        raise AssertionError("patience ends with Hung")

    def serve(self, *jobs: Job) -> list[Sent]:
        """Add, notify, wait."""
        for job in jobs:
            self.add(job)
        self.kick()
        return self.wait(len(jobs))

    def calls(self) -> int:
        """Used buffer notifications since the last time."""
        try:
            return os.eventfd_read(self.call_fd)
        except BlockingIOError:
            return 0

    def wait_call(self) -> None:
        """Raises Hung if no used buffer notification comes."""
        for _ in self._session.patience(f"a used buffer notification of queue {self.index}"):
            if self.calls():
                return

    def quiet(self) -> bool:
        """Whether nothing is used for as long as a device needs to use something, and longer."""
        return all(self.half.used_entry() is None for _ in self._session.moment())

    def _used_slot(self) -> int:
        if isinstance(self.half, PackedDriver):
            return self.half.next_used.slot
        assert isinstance(self.half, SplitDriver)
        return self.half.last_used % self.size

    def _legal(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except Violation as violation:
            raise Broken("a ring as sections 2.7 and 2.8 describe it", str(violation)) from None

    # As it stands

    def picture(self) -> dict[str, object]:
        """The ring for a report: the words of both sides, and the slots around the position."""
        if isinstance(self.half, PackedDriver):
            ring = self.half.ring
            return {
                "layout": "packed",
                "size": self.size,
                "driver position": list(self.half.position),
                "driver event": list(ring.driver_event),
                "device event": list(ring.device_event),
                "slots": packed_slots(ring),
                "used entries": [entry._asdict() for entry in self.entries[-64:]],
            }
        ring_ = self.split_ring
        return {
            "layout": "split",
            "size": self.size,
            "available": {"flags": ring_.avail_flags, "idx": ring_.avail_idx},
            "used": {"flags": ring_.used_flags, "idx": ring_.used_idx},
            "driver position": list(self.half.position),
            "slots": split_slots(ring_),
            "used entries": [entry._asdict() for entry in self.entries[-64:]],
        }


def _flag_names(flags: int) -> str:
    known = {"AVAIL": AVAIL, "USED": USED, "WRITE": WRITE, "NEXT": NEXT, "INDIRECT": INDIRECT}
    set_ = [name for name, bit in known.items() if flags & bit]
    return f"{flags:#06x} ({' '.join(set_) or 'none'})"


def _buffers(count: int, queue: int) -> str:
    return f"{count} buffer{'s' * (count != 1)} of queue {queue} to be used"


def _cut(job: Job, pieces: tuple[int, ...] | None) -> tuple[list[int], list[int]]:
    """The lengths of the device-readable and the device-writable pieces."""
    if pieces is None:
        return [n for n in (len(job.readable),) if n], [n for n in (job.writable,) if n]
    border = pieces.index(0) if 0 in pieces else len(pieces)
    readable, writable = list(pieces[:border]), list(pieces[border + 1 :])
    assert sum(readable) == len(job.readable)
    assert sum(writable) == job.writable
    return readable, writable


class Session:
    """A device from its reset on. Close it: it is reset again then, if it still can be."""

    def __init__(
        self,
        transport: DriverTransport,
        *,
        patience_s: float,
        moment_s: float,
        let_go: Callable[[], None] | None = None,
        bears_long_lengths: bool = False,
    ) -> None:
        """`patience_s`: how long to wait for what must come. `moment_s`: how long to look for what
        must not. `let_go`: what is done with the transport in the end, if it is not closed.
        `bears_long_lengths`: used lengths beyond the buffer are let pass."""
        self.transport = transport
        self._let_go = let_go or transport.close
        self.patience_s = patience_s
        self.moment_s = moment_s
        self.bears_long_lengths = bears_long_lengths
        self.arena = Arena(transport.memory)
        self.rings: dict[int, Ring] = {}
        self.features = 0
        self.reset()
        self.offered = transport.read_features()

    @property
    def tells_status(self) -> bool:
        """Whether the device learns its status; a vhost-user back-end may not have the message."""
        transport = self.transport
        return not isinstance(transport, Frontend) or bool(transport.protocol_features & P.STATUS)

    @property
    def shows_config(self) -> bool:
        """Whether the configuration space is the device's: a vhost-user front-end makes it up for a
        back-end without CONFIG."""
        transport = self.transport
        return not isinstance(transport, Frontend) or bool(transport.protocol_features & P.CONFIG)

    def has_queue(self, index: int) -> bool:
        """Whether a virtqueue that the features promise is the device's: a vhost-user front-end
        serves itself what is beyond those of the back-end, as the control queue of a network
        device, though the back-end has a say in the features that bring it."""
        return not isinstance(self.transport, Frontend) or index < self.transport.queue_count

    # Initialization (3.1.1)

    def reset(self) -> None:
        """Reset the device, and wait until it is (2.4.2)."""
        self.transport.write_status(0)
        for _ in self.patience("the status to read 0 after a reset"):
            if self.transport.read_status() == 0:
                break
        self._forget_rings()

    def acknowledge(self) -> None:
        self.transport.write_status(Status.ACKNOWLEDGE)
        self.transport.write_status(Status.ACKNOWLEDGE | Status.DRIVER)

    def negotiate(self, features: int) -> bool:
        """Write the features and FEATURES_OK; whether the device kept it. One that refuses the
        features by the transport's own means did not."""
        self.acknowledge()
        try:
            self.transport.write_features(features)
        except FeatureError:
            return False
        self.features = features
        done = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK
        self.transport.write_status(done)
        return bool(self.transport.read_status() & Status.FEATURES_OK)

    def ring(self, index: int, size: int | None = None, indirect_length: int = 0) -> Ring:
        """Set a virtqueue up; by default of the device's largest size, at most 256."""
        largest = self.transport.queue_size_max(index)
        chosen = min(largest, 256) if size is None else size
        ring = Ring(self, index, chosen, self.features, indirect_length)
        if old := self.rings.pop(index, None):
            old.close()
        self.rings[index] = ring
        self.transport.enable_queue(ring, *ring.areas[:3])
        return ring

    def go_live(self) -> None:
        """DRIVER_OK, and a look at it: a back-end may acknowledge the message before it does what
        it says, but reads the next one after that."""
        status = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK
        self.transport.write_status(status)
        self.transport.read_status()

    def close(self) -> None:
        """Reset the device and let the transport go. Harmless if the other end is gone."""
        try:
            with contextlib.suppress(Exception):
                self.transport.write_status(0)
            self._forget_rings()
        finally:
            self._let_go()

    def _forget_rings(self) -> None:
        for ring in self.rings.values():
            ring.close()
        self.rings.clear()

    # Waiting

    def patience(self, what: str) -> Iterator[None]:
        """Turns until the patience ends, which raises Hung; the process is watched meanwhile."""
        for _ in turns(self.patience_s):
            yield
            self.transport.check()
        raise Hung(f"waited {self.patience_s:g} s for {what}")

    def moment(self) -> Iterator[None]:
        """Turns for a moment in which something must not happen."""
        return turns(self.moment_s)


def _eventfd() -> int:
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
