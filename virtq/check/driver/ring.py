"""One virtqueue of a driver, served by the device's half of the executable specification.

Each buffer is written down as it stands before the model takes it, so that the record has it even
if the model finds that it makes no sense; the queue is broken then, and the rest goes on.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from virtq._core import Memory, Position
from virtq.check.case import Broken
from virtq.check.driver.record import READ_BYTES, Chain, Event, Queue, Record, Slot
from virtq.errors import VirtqError
from virtq.features import F
from virtq.model.memory import AVAIL, DESCRIPTOR_BYTES, USED, WRITE, Taken, Violation, load, store
from virtq.model.memory import Position as ModelPosition
from virtq.model.packed import Descriptor as PackedDescriptor
from virtq.model.packed import PackedDevice, PackedRing, is_available
from virtq.model.split import Descriptor as SplitDescriptor
from virtq.model.split import SplitDevice, SplitRing

_TABLE_ENTRIES = 4096
"""So many entries of an indirect table are written down."""
_WORDS = 4096
KEPT_ENTRIES = 256
KEPT_CHAINS = 20_000
"""So many buffers of a queue are remembered."""

Answer = Callable[[int, Chain], int]


class _NotingSplit(SplitDevice):
    """Writes down what it writes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.entries: deque[dict[str, Any]] = deque(maxlen=KEPT_ENTRIES)

    def _use(self, batch: list[Taken]) -> None:
        slot = self.used_idx % self.size
        super()._use(batch)
        id, length = self.ring.used(slot)
        self.entries.append({"slot": slot, "id": id, "length": length, "covers": len(batch)})


class _DressedRing(PackedRing):
    """A ring on which `dress` has a last look at each used descriptor before it is written."""

    dress: Callable[[PackedDescriptor], PackedDescriptor] | None = None

    def set_desc(self, slot: int, descriptor: PackedDescriptor) -> None:
        super().set_desc(slot, self.dress(descriptor) if self.dress else descriptor)


class _NotingPacked(PackedDevice):
    """Writes down what it writes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        plain = self.ring
        areas = plain.desc_area, plain.driver_area, plain.device_area
        self.ring: _DressedRing = _DressedRing(plain.memory, plain.size, *areas)
        self.entries: deque[dict[str, Any]] = deque(maxlen=KEPT_ENTRIES)
        self.overwritten: set[int] = set()
        """Slots that a used descriptor was written to since they were made available."""
        self.left: dict[int, PackedDescriptor] = {}
        """What each slot held when either side was done with it."""

    def _use(self, batch: list[Taken]) -> None:
        slot = self.next_used.slot
        super()._use(batch)
        _, length, id, flags = self.ring.desc(slot)
        self.overwritten.add(slot)
        self.left[slot] = self.ring.desc(slot)
        self.entries.append(
            {"slot": slot, "id": id, "length": length, "flags": flags, "covers": len(batch)}
        )


class JudgedRing:
    """The device's side of one virtqueue. `held`: what is available and not used, oldest first."""

    def __init__(
        self,
        record: Record,
        memory: Memory,
        features: int,
        index: int,
        size: int,
        areas: tuple[int, int, int],
        position: Position,
        answer: Answer,
    ) -> None:
        """Raises VirtqError if the areas are not in the driver's memory."""
        self._record = record
        self._answer = answer
        self.memory = memory
        self.index, self.size, self.features = index, size, features
        self.packed = bool(features & F.RING_PACKED)
        self.seen = Queue(index, size, *areas, packed=self.packed, features=features)
        half = _NotingPacked if self.packed else _NotingSplit
        self.half: _NotingPacked | _NotingSplit = half(
            memory, features, size, *areas, position=ModelPosition(*position)
        )
        self.held: list[Chain] = []
        self.kick_fd: int | None = None
        self.call_fd: int | None = None
        self.kicks = 0
        """Available buffer notifications so far."""
        self.count = 0
        """Buffers seen so far."""
        self._look_at_start()
        self._device_words = self._read_device_words()
        record.queues.append(self.seen)

    @property
    def split_ring(self) -> SplitRing:
        assert isinstance(self.half, SplitDevice)
        return self.half.ring

    @property
    def packed_ring(self) -> _DressedRing:
        assert isinstance(self.half, _NotingPacked)
        return self.half.ring

    @property
    def in_order(self) -> bool:
        return self.half.in_order

    @property
    def event_idx(self) -> bool:
        return self.half.event_idx

    @property
    def broken(self) -> str:
        """Why nothing more can be taken; empty if all is well."""
        return self.seen.broken

    def resume(self) -> Position:
        """Where another device goes on: what is not used is taken again, if it is the newest."""
        with contextlib.suppress(Violation):
            self.half.stop()
        return Position(*self.half.position)

    def use_memory(self, memory: Memory) -> None:
        """The driver has told its memory anew."""
        self.memory = self.half.memory = self.half.ring.memory = memory

    def _look_at_start(self) -> None:
        if self.packed:
            ring, half = self.packed_ring, self.half
            assert isinstance(half, PackedDevice)
            self.seen.device_words_at_start = (
                load(self.memory, ring.device_area, 2),
                load(self.memory, ring.device_area + 2, 2),
            )
            fresh = half.position == ModelPosition(0, 1, 0, 1, 0)
            for slot in range(self.size if fresh else 0):
                descriptor = ring.desc(slot)
                if any(descriptor) and not is_available(descriptor, half.next_avail):
                    self.seen.stale_at_start.append(slot)
        else:
            split = self.split_ring
            self.seen.device_words_at_start = split.used_flags, split.used_idx
            self.seen.indices.append(split.avail_idx)

    def _read_device_words(self) -> tuple[int, int]:
        """Split: flags and avail_event of the used ring. Packed: the two words of the device's
        event suppression structure."""
        if self.packed:
            at = self.packed_ring.device_area
            return load(self.memory, at, 2), load(self.memory, at + 2, 2)
        return self.split_ring.used_flags, self.split_ring.avail_event

    # What becomes available

    def look(self) -> list[Chain]:
        """Take what became available, and return it."""
        self._look_at_words()
        new: list[Chain] = []
        while not self.broken:
            try:
                chain = self._next_chain()
                if chain is None:
                    break
                self._note(chain)
                self._compare(chain)
                taken = self.half.take(1)
            except (Violation, VirtqError, OverflowError) as error:
                self.seen.broken = _text(error)
                break
            if not taken:
                self.seen.broken = f"{chain} was available, and is not any more"
                break
            chain.taken = taken[0]
            self.held.append(chain)
            new.append(chain)
        return new

    def _note(self, chain: Chain) -> None:
        self.count += 1
        if len(self.seen.chains) < KEPT_CHAINS:
            self.seen.chains.append(chain)
            self._record.events.append(Event("available", self.index, chain.number))

    def _compare(self, chain: Chain) -> None:
        """What is wrong with a buffer beside those that are available and not used."""
        for other in self.held:
            if other.id == chain.id:
                self.seen.fault("same id", f"{chain} while {other} is not used")
            elif not self.packed:
                slots = {d.slot for d in other.descriptors} & {d.slot for d in chain.descriptors}
                if slots:
                    self.seen.fault("overlap", f"{chain} has slot {min(slots)} of {other}")

    def _look_at_words(self) -> None:
        words = self.seen.words
        if self.packed:
            at = self.packed_ring.driver_area
            first, second = at, at + 2
        else:
            ring = self.split_ring
            first, second = ring.driver_area, ring.driver_area + 4 + 2 * self.size
            self._note_index(ring.avail_idx)
        for address, known in ((first, words.first), (second, words.second)):
            if len(known) < _WORDS:
                known.add(load(self.memory, address, 2))

    def _note_index(self, idx: int) -> None:
        if idx != self.seen.indices[-1] and len(self.seen.indices) < KEPT_CHAINS:
            self.seen.indices.append(idx)

    def _next_chain(self) -> Chain | None:
        if self.packed:
            return self._next_packed()
        return self._next_split()

    def _next_split(self) -> Chain | None:
        half, ring = self.half, self.split_ring
        assert isinstance(half, SplitDevice)
        idx = ring.avail_idx
        # It may have grown since the look began; what is used next lets it grow by as much again.
        self._note_index(idx)
        if idx == half.last_avail:
            return None
        if (idx - half.used_idx) % 65536 > self.size:
            raise Violation(f"available index {idx} is more than a ring ahead")
        slot = half.last_avail % self.size
        head = ring.avail(slot)
        chain = Chain(self.index, self.count, slot, 0, head, [])
        at, count = head, 0
        while True:
            if at >= self.size:
                chain.fault = f"there is no descriptor {at}"
                break
            if count >= 2 * self.size:
                chain.fault = "a loop"
                break
            descriptor = Slot(at, *_split(ring.desc(at)))
            chain.descriptors.append(descriptor)
            count += 1
            if descriptor.indirect:
                self._split_table(chain, descriptor)
            if not descriptor.has_next:
                break
            at = descriptor.next
        return self._finish(chain)

    def _split_table(self, chain: Chain, descriptor: Slot) -> None:
        entries = min(descriptor.len // DESCRIPTOR_BYTES, _TABLE_ENTRIES)
        chain.table, chain.table_bytes = [], descriptor.len
        at = 0
        while at < entries and len(chain.table) <= entries:
            address = descriptor.addr + at * DESCRIPTOR_BYTES
            read = SplitDescriptor.load(self.memory, address)
            entry = Slot(at, *_split(read))
            chain.table.append(entry)
            if not entry.has_next:
                return
            at = entry.next
        chain.fault = f"the indirect table goes on at entry {at} of {entries}"

    def _next_packed(self) -> Chain | None:
        half, ring = self.half, self.packed_ring
        assert isinstance(half, PackedDevice)
        at = half.next_avail
        if not is_available(ring.desc(at.slot), at):
            return None
        chain = Chain(self.index, self.count, at.slot, at.wrap, 0, [])
        while True:
            raw = ring.desc(at.slot)
            descriptor = Slot(at.slot, raw.addr, raw.len, raw.flags, raw.id, 0)
            chain.descriptors.append(descriptor)
            half.overwritten.discard(at.slot)
            half.left[at.slot] = raw
            if not is_available(raw, at):
                chain.fault = f"slot {at.slot} is part of the list, but not available"
                break
            if descriptor.indirect and chain.table is None:
                self._packed_table(chain, descriptor)
            if not descriptor.has_next:
                break
            if len(chain.descriptors) >= self.size:
                chain.fault = "a list longer than the ring"
                break
            at = at.advanced(1, self.size)
        chain.id = chain.descriptors[-1].id
        return self._finish(chain)

    def _packed_table(self, chain: Chain, descriptor: Slot) -> None:
        entries = min(descriptor.len // DESCRIPTOR_BYTES, _TABLE_ENTRIES)
        chain.table, chain.table_bytes = [], descriptor.len
        for i in range(entries):
            address = descriptor.addr + i * DESCRIPTOR_BYTES
            raw = PackedDescriptor.load(self.memory, address)
            chain.table.append(Slot(i, raw.addr, raw.len, raw.flags, raw.id, 0))

    def _finish(self, chain: Chain) -> Chain:
        data = b""
        for piece in chain.pieces:
            if not piece.writable and piece.length and len(data) < READ_BYTES:
                try:
                    data += self.memory.read(piece.address, min(piece.length, READ_BYTES))
                except VirtqError as error:
                    chain.fault = chain.fault or _text(error)
        chain.readable = data[:READ_BYTES]
        return chain

    # What was exposed has to stay

    def audit(self) -> None:
        """Note what the driver changed that it must not: what is exposed and not used, and what
        only the device writes."""
        for chain in self.held:
            self._audit_chain(chain)
        self._audit_device_words()
        if self.packed:
            self._audit_next()
        elif not self.broken:
            self._audit_used()

    def _audit_device_words(self) -> None:
        if (words := self._read_device_words()) != self._device_words:
            text = f"its event words are {words}, the device wrote {self._device_words}"
            self.seen.fault("device area", text)

    def _audit_chain(self, chain: Chain) -> None:
        for before in chain.descriptors:
            if self.packed:
                assert isinstance(self.half, _NotingPacked)
                if before.slot in self.half.overwritten:
                    continue
                raw = self.packed_ring.desc(before.slot)
                now = Slot(before.slot, raw.addr, raw.len, raw.flags, raw.id, 0)
            else:
                now = Slot(before.slot, *_split(self.split_ring.desc(before.slot)))
                if not before.has_next:
                    now = now._replace(next=before.next)
            if now != before:
                self.seen.fault("altered", f"{chain}: {before} became {now}")

    def _audit_next(self) -> None:
        """A descriptor that was written where the next one is due, but not made available there."""
        half = self.half
        assert isinstance(half, _NotingPacked)
        at = half.next_avail
        raw = self.packed_ring.desc(at.slot)
        before = half.left.get(at.slot, PackedDescriptor(0, 0, 0, 0))
        if raw == before or is_available(raw, at) or self.broken:
            return
        other = at._replace(wrap=at.wrap ^ 1)
        about = "wrap" if is_available(raw, other) else "encoding"
        self.seen.fault(about, f"slot {at.slot} holds {raw}, with a wrap counter of {at.wrap}")

    def _audit_used(self) -> None:
        half, ring = self.half, self.split_ring
        assert isinstance(half, SplitDevice)
        if ring.used_idx != half.used_idx:
            text = f"the used index is {ring.used_idx}, the device wrote {half.used_idx}"
            self.seen.fault("device area", text)
        newest = {entry["slot"]: entry for entry in half.entries}
        for slot, entry in newest.items():
            if (now := ring.used(slot)) != (entry["id"], entry["length"]):
                self.seen.fault("device area", f"used entry {slot} is {now}, written was {entry}")

    # Using

    def serve(self, chains: Sequence[Chain]) -> None:
        """Do what the device type does with these buffers; none of it shows before `publish`.
        Raises Broken if one changed meanwhile."""
        for chain in chains:
            assert chain.taken is not None
            if chain.taken.written is not None:
                continue  # whoever had it done was ended before it was published
            written = chain.written
            if written is None:
                written = self._answer(self.index, chain)
            self.complete(chain, written)

    def complete(self, chain: Chain, written: int) -> None:
        """The buffer is done, with so many bytes written."""
        assert chain.taken is not None
        try:
            self.half.complete(chain.taken, written)
        except Violation as violation:
            raise Broken("what was made available to stay as it is", str(violation)) from None
        chain.written = written

    def publish(self) -> int:
        """Make used what is done; returns the number of buffers. Under IN_ORDER one used entry
        stands for as many as the model's rule lets it."""
        done = self.half.flush()
        left = {id(taken) for taken in self.half.taken}
        self.held = [chain for chain in self.held if id(chain.taken) in left]
        return done

    def use(self, chains: Sequence[Chain]) -> int:
        """Serve these, and make them used."""
        self.serve(chains)
        return self.publish()

    # What no device should do

    def lie(self, id: int, length: int, covers: int = 1) -> None:
        """Write a used entry with this identifier and length, which the index then counts as so
        many buffers (split). What is held stays so."""
        half = self.half
        if isinstance(half, _NotingPacked):
            flags = half.next_used.used_flags | WRITE
            descriptor = PackedDescriptor(0, length, id, flags)
            half.ring.set_desc(half.next_used.slot, descriptor)
            half.overwritten.add(half.next_used.slot)
            half.left[half.next_used.slot] = descriptor
            return
        self.forge(half.used_idx, id, length, covers)
        half.used_idx = (half.used_idx + covers) % 65536
        half.ring.used_idx = half.used_idx

    def forge(self, at: int, id: int, length: int, covers: int = 1) -> None:
        """Write a used entry where this used index is (split), which does not count it yet."""
        slot = at % self.size
        self.split_ring.set_used(slot, id, length)
        entry = {"slot": slot, "id": id, "length": length, "covers": covers}
        self.half.entries.append(entry)

    # Notifications

    def wants_call(self) -> bool:
        """Whether the driver wants a used buffer notification for what was published since the last
        time. Raises Broken for words that say nothing."""
        try:
            return self.half._call_wanted()
        except Violation as violation:
            raise Broken("event suppression as 2.8.10 describes it", str(violation)) from None

    def notify(self) -> bool:
        """Send a used buffer notification if one is due; whether it was."""
        due = self.wants_call()
        if due:
            self.signal()
        return due

    def signal(self) -> None:
        """Send a used buffer notification, wanted or not."""
        if self.call_fd is not None:
            with contextlib.suppress(BlockingIOError):
                os.write(self.call_fd, (1).to_bytes(8, sys.byteorder))

    def enable_kicks(self) -> bool:
        """Ask for a notification of the next buffer; whether there is one already."""
        self._audit_device_words()
        there = self.half.enable_kicks()
        self._device_words = self._read_device_words()
        return there

    def ask(self, first: int, second: int) -> None:
        """Write the words that say which notifications the device wants. Split: flags and
        avail_event of the used ring. Packed: the two words of the event suppression structure."""
        self._audit_device_words()
        if self.packed:
            at = self.packed_ring.device_area
            store(self.memory, at, 2, first)
            store(self.memory, at + 2, 2, second)
        else:
            self.split_ring.used_flags = first
            self.split_ring.avail_event = second % 65536
        self._device_words = self._read_device_words()

    def drain_kick(self) -> bool:
        """Whether a notification has come since the last time."""
        if self.kick_fd is None:
            return False
        try:
            os.read(self.kick_fd, 8)
        except (BlockingIOError, InterruptedError):
            return False
        self.kicks += 1
        self._record.events.append(Event("kick", self.index))
        return True

    def close(self) -> None:
        for fd in (self.kick_fd, self.call_fd):
            if fd is not None:
                os.close(fd)
        self.kick_fd = self.call_fd = None

    # As it stands

    def picture(self) -> dict[str, Any]:
        """The ring for a report."""
        common: dict[str, Any] = {
            "queue": self.index,
            "size": self.size,
            "not used yet": len(self.held),
        }
        if self.broken:
            common["broken"] = self.broken
        used = list(self.half.entries)[-64:]
        if self.packed:
            packed = self.packed_ring
            assert isinstance(self.half, PackedDevice)
            return {
                "layout": "packed",
                **common,
                "device position": list(self.half.position),
                "driver event": list(packed.driver_event),
                "device event": list(packed.device_event),
                "slots": [_packed_slot(i, packed.desc(i)) for i in range(min(self.size, 64))],
                "used entries": used,
            }
        ring = self.split_ring
        return {
            "layout": "split",
            **common,
            "available": {
                "flags": ring.avail_flags,
                "idx": ring.avail_idx,
                "used_event": ring.used_event,
            },
            "used": {
                "flags": ring.used_flags,
                "idx": ring.used_idx,
                "avail_event": ring.avail_event,
            },
            "device position": list(self.half.position),
            "slots": [
                {"slot": i, "avail": ring.avail(i), "used": list(ring.used(i))}
                | ring.desc(i)._asdict()
                for i in range(min(self.size, 64))
            ],
            "used entries": used,
        }


def _split(descriptor: SplitDescriptor) -> tuple[int, int, int, int, int]:
    return descriptor.addr, descriptor.len, descriptor.flags, 0, descriptor.next


def _packed_slot(slot: int, descriptor: PackedDescriptor) -> dict[str, int]:
    flags = descriptor.flags
    return {
        "slot": slot,
        "addr": descriptor.addr,
        "len": descriptor.len,
        "id": descriptor.id,
        "flags": flags & ~(AVAIL | USED),
        "AVAIL": int(bool(flags & AVAIL)),
        "USED": int(bool(flags & USED)),
    }


def _text(error: Exception) -> str:
    return str(error.args[0]) if error.args else str(error)
