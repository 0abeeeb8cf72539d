"""One virtqueue of a driver, served by the device's half of the executable specification.

Each buffer is written down as it stands before the model takes it, so that the record has it even
if the model finds that it makes no sense; the queue is broken then, and the rest goes on.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from virtq._core import Memory, Position
from virtq.check.case import Broken
from virtq.check.driver.packed_half import DressedRing, PackedHalf
from virtq.check.driver.record import (
    KEPT_CHAINS,
    KEPT_WORDS,
    READ_BYTES,
    Chain,
    Event,
    Queue,
    Record,
)
from virtq.check.driver.split_half import SplitHalf
from virtq.errors import VirtqError
from virtq.features import F
from virtq.model.memory import Position as ModelPosition
from virtq.model.memory import Violation
from virtq.model.split import SplitRing

Answer = Callable[[int, Chain], int]


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
        half = PackedHalf if self.packed else SplitHalf
        self.half: PackedHalf | SplitHalf = half(memory, self.seen, ModelPosition(*position))
        self.held: list[Chain] = []
        self.kick_fd: int | None = None
        self.call_fd: int | None = None
        self.kicks = 0
        """Available buffer notifications so far."""
        self.count = 0
        """Buffers seen so far."""
        self._device_words = self.half.device_words()
        record.queues.append(self.seen)

    @property
    def split_ring(self) -> SplitRing:
        assert isinstance(self.half, SplitHalf)
        return self.half.ring

    @property
    def packed_ring(self) -> DressedRing:
        assert isinstance(self.half, PackedHalf)
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

    # What becomes available

    def look(self) -> list[Chain]:
        """Take what became available, and return it."""
        self._look_at_words()
        new: list[Chain] = []
        while not self.broken:
            try:
                chain = self.half.next_chain(self.count)
                if chain is None:
                    break
                self._read(chain)
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
        for known, word in zip((words.first, words.second), self.half.driver_words(), strict=True):
            if len(known) < KEPT_WORDS:
                known.add(word)

    def _read(self, chain: Chain) -> None:
        data = b""
        for piece in chain.pieces:
            if not piece.writable and piece.length and len(data) < READ_BYTES:
                try:
                    data += self.memory.read(piece.address, min(piece.length, READ_BYTES))
                except VirtqError as error:
                    chain.fault = chain.fault or _text(error)
        chain.readable = data[:READ_BYTES]

    # What was exposed has to stay

    def audit(self) -> None:
        """Note what the driver changed that it must not: what is exposed and not used, and what
        only the device writes."""
        for chain in self.held:
            for before in chain.descriptors:
                if (now := self.half.as_it_is(before)) != before:
                    self.seen.fault("altered", f"{chain}: {before} became {now}")
        self._audit_device_words()
        self.half.audit()

    def _audit_device_words(self) -> None:
        if (words := self.half.device_words()) != self._device_words:
            text = f"its event words are {words}, the device wrote {self._device_words}"
            self.seen.fault("device area", text)

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
        if isinstance(self.half, PackedHalf):
            self.half.lie(id, length)
        else:
            self.half.lie(id, length, covers)

    def forge(self, at: int, id: int, length: int) -> None:
        """Write a used entry where this used index is (split), which does not count it yet."""
        assert isinstance(self.half, SplitHalf)
        self.half.forge(at, id, length)

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
        self._device_words = self.half.device_words()
        return there

    def ask(self, first: int, second: int) -> None:
        """Write the words that say which notifications the device wants. Split: flags and
        avail_event of the used ring. Packed: the two words of the event suppression structure."""
        self._audit_device_words()
        self.half.set_device_words(first, second)
        self._device_words = self.half.device_words()

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
        drawn: dict[str, Any] = {
            "layout": "packed" if self.packed else "split",
            "queue": self.index,
            "size": self.size,
            "not used yet": len(self.held),
        }
        if self.broken:
            drawn["broken"] = self.broken
        return drawn | self.half.picture() | {"used entries": list(self.half.entries)[-64:]}


def _text(error: Exception) -> str:
    return str(error.args[0]) if error.args else str(error)
