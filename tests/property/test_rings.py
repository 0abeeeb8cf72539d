"""Both halves of a queue against each other on the same bytes, under generated use.

One set of steps, four pairings: the core's driver facing the model's device, the model's driver
facing the core's device, both of the core, both of the model. `Rings` knows of every buffer where
it is and what is in it, so that each step can be checked on its own:

- a buffer comes back exactly once, under its cookie, with the length and the bytes that the device
  wrote, in order under IN_ORDER, else in order of completion;
- every count and every position is what follows from the steps so far;
- a notification is sent exactly when what the other side wrote in memory asks for it; a side that
  went idle after asking for one is woken by the first thing that happens.

A state machine draws the steps (`test_any_steps`), a random walk goes further than its examples do
(`test_long_runs`), and `test_stories` tells what either would seldom come upon.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice, takewhile
from random import Random
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import Phase, given, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from tests.model import (
    EVENT_IDX,
    INDIRECT_DESC,
    RING_PACKED,
    Buffer,
    Device,
    Driver,
    Full,
    Impl,
    Place,
    Position,
    make_device,
    make_driver,
    make_memory,
)
from tests.property.strategies import (
    FILLS,
    MAX_PIECE_BYTES,
    MAX_PIECES,
    SHAPES,
    Config,
    Shape,
    configs,
)
from virtq.model.memory import Piece
from virtq.model.notify import DESC, DISABLE, ENABLE, NO_NOTIFICATION, need_event
from virtq.model.packed import Cursor

CELL_BYTES = 2 * MAX_PIECES * MAX_PIECE_BYTES
CELLS = 600
LONG_RUN_STEPS = 400
UNTOUCHED = b"\xee"

Method = TypeVar("Method", bound=Callable[..., None])


def pattern(number: int, length: int) -> bytes:
    """Bytes that no other buffer has."""
    return bytes((number * 31 + i * 7 + 1) % 251 for i in range(length))


@dataclass(eq=False)
class Record:
    """A buffer, from add to reap."""

    number: int  # its cookie
    cell: int
    readable: list[tuple[int, int]]
    writable: list[tuple[int, int]]
    slots: int
    payload: bytes
    handle: Buffer | None = None  # while the device has it
    written: int | None = None  # once the device completed it

    @property
    def room(self) -> int:
        return sum(length for _, length in self.writable)


@dataclass
class Progress:
    """Buffers and ring slots that passed one of the four points since the queue's start."""

    buffers: int = 0
    slots: int = 0

    def add(self, records: Sequence[Record], sign: int = 1) -> None:
        self.buffers += sign * len(records)
        self.slots += sign * sum(record.slots for record in records)


@dataclass
class Side:
    """What one side may expect of notifications from the other."""

    at_decision: Progress = field(default_factory=Progress)
    first: bool = False  # the next decision is a device half's first: it calls to be sure
    asleep_at: int | None = None  # buffers so far when the other side, seeing nothing, went idle


@dataclass
class Step:
    """Something that a half does, how often it is to be chosen, when it makes sense, with what."""

    name: str
    weight: int
    when: Callable[[Any], object]
    options: dict[str, Sequence[Any]]


STEPS: list[Step] = []


def step(
    weight: int,
    when: Callable[[Any], object] = lambda rings: True,
    **options: Sequence[Any],
) -> Callable[[Method], Method]:
    def register(method: Method) -> Method:
        STEPS.append(Step(method.__name__, weight, when, options))
        return method

    return register


class Rings:
    """Two halves, what they have done so far, and what follows from that."""

    def __init__(self, driver: Impl, device: Impl, config: Config) -> None:
        self.impls = driver, device
        self.config = config
        self.place = Place.at(0x1000, config.features, config.size, config.indirect_length)
        self.cells_at = (self.place.end + 0xFFF) // 0x1000 * 0x1000
        self.memory = make_memory(self.cells_at + CELLS * CELL_BYTES, "core" in self.impls)
        self.numbers = 0
        self.new_halves(config.start)
        self.forget(config.start)

    def choose(self, choice: int) -> Step:
        """The step that was drawn, or else the next one that makes sense: so an example stays much
        the same when hypothesis leaves out something that came before."""
        at = choice % len(DECK)
        return next(step for step in DECK[at:] + DECK[:at] if step.when(self))

    def perform(self, step: Step, **options: Any) -> None:
        getattr(self, step.name)(**options)
        self.steps += 1
        self.check_counts()
        self.check_positions()

    def new_halves(self, position: Position | None) -> None:
        """The driver first, for it initializes the ring."""
        self.driver: Driver = make_driver(self.impls[0], self.memory, self.place, position)
        self.device: Device = self.new_device(position)

    def new_device(self, position: Position | None) -> Device:
        self.steps = 0
        self.expected_entries = 0
        return make_device(
            self.impls[1],
            self.memory,
            self.place,
            position,
            self.config.one_used_entry_per_buffer,
        )

    def close(self) -> None:
        self.driver.close()
        self.device.close()

    def forget(self, position: Position | None) -> None:
        """Nothing has happened on this ring yet."""
        self.origin = position or Config(self.config.features, self.config.size).origin
        self.free_cells = list(range(CELLS))
        # Where the buffers are. `used` is in the order in which they come back.
        self.added: list[Record] = []
        self.available: list[Record] = []
        self.taken: list[Record] = []
        self.completed: list[Record] = []
        self.used: list[Record] = []
        self.lost: list[Record] = []  # forgotten by a device half that was stopped
        self.ever_taken: list[Record] = []
        self.published_ = Progress()
        self.taken_ = Progress()
        self.used_ = Progress()
        self.reaped_ = Progress()
        self.kicks = Side()
        self.calls = Side(first=True)

    # The driver's steps.

    @step(6, shape=SHAPES, count=[1, 1, 2, 3, 7])
    def add(self, shape: Shape, count: int) -> None:
        for _ in range(count):
            if not self.free_cells:
                return
            record = self.new_record(shape)
            free = self.driver.free
            if record.slots > free:
                with pytest.raises(Full):
                    self.driver.add(record.readable, record.writable, record.number)
                self.free_cells.append(record.cell)
                return
            self.driver.add(record.readable, record.writable, record.number)
            assert self.driver.free == free - record.slots
            self.added.append(record)

    @step(2, length=[1, 8], writable=[False, True], count=range(1, 13))
    def add_batch(self, length: int, writable: bool, count: int) -> None:
        count = min(count, len(self.free_cells))
        shape = Shape((), (length,)) if writable else Shape((length,), ())
        records = [self.new_record(shape) for _ in range(count)]
        if not records:
            return
        pairs = [(record.writable or record.readable)[0] for record in records]
        addresses, lengths = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        fits = min(count, self.driver.free)
        assert self.driver.add_batch(addresses, lengths, writable, records[0].number) == fits
        self.added += records[:fits]
        self.free_cells += [record.cell for record in records[fits:]]

    def new_record(self, shape: Shape) -> Record:
        """A buffer with its own bytes in a cell of its own."""
        if shape.pieces > self.config.indirect_length:
            shape = shape.cut(self.config.size)
        number, cell = self.numbers, self.free_cells.pop(0)
        self.numbers += 1
        at = self.cells_at + cell * CELL_BYTES
        pieces: list[tuple[int, int]] = []
        for length in shape.readable + shape.writable:
            pieces.append((at, length))
            at += length
        readable, writable = pieces[: len(shape.readable)], pieces[len(shape.readable) :]
        payload = pattern(number, sum(shape.readable))
        filler = UNTOUCHED * sum(shape.writable)
        self.memory.write(self.cells_at + cell * CELL_BYTES, payload + filler)
        in_table = 1 < shape.pieces <= self.config.indirect_length
        return Record(number, cell, readable, writable, 1 if in_table else shape.pieces, payload)

    @step(2, when=lambda rings: rings.added)
    def publish(self) -> None:
        assert self.driver.publish() == len(self.added)
        self.now_available()

    def now_available(self) -> None:
        self.published_.add(self.added)
        self.available += self.added
        self.added = []

    @step(
        4,
        when=lambda rings: (
            rings.published_.buffers > rings.kicks.at_decision.buffers or rings.added
        ),
    )
    def kick(self) -> None:
        self.published_.add(self.added)
        due = self.due(self.kicks, self.published_)
        self.published_.add(self.added, -1)
        sent = self.driver.kick_wanted()
        self.now_available()
        self.check_notification(self.kicks, self.published_, due, sent)

    @step(4, when=lambda rings: rings.used, maximum=[65535, 65535, 1, 2, 5])
    def reap(self, maximum: int) -> None:
        back, self.used = self.used[:maximum], self.used[maximum:]
        expected = [(record.number, record.written) for record in back]
        assert self.driver.reap(maximum) == expected
        for record in back:
            self.check_written(record)
            self.free_cells.append(record.cell)
        self.reaped_.add(back)

    def check_written(self, record: Record) -> None:
        """The bytes that the device wrote, from the first writable one on, and no others."""
        assert record.written is not None
        expected = pattern(record.number + 1, record.written)
        expected += UNTOUCHED * (record.room - record.written)
        at = self.cells_at + record.cell * CELL_BYTES
        found = self.memory.read(at, len(record.payload) + record.room)
        assert found == record.payload + expected

    @step(2)
    def enable_calls(self) -> None:
        assert self.driver.enable_calls() == bool(self.used)
        self.calls.asleep_at = None if self.used else self.used_.buffers

    @step(1)
    def disable_calls(self) -> None:
        self.driver.disable_calls()
        self.calls.asleep_at = None

    # The device's steps.

    @step(6, when=lambda rings: rings.available, maximum=[65535, 65535, 1, 2, 5])
    def take(self, maximum: int) -> None:
        expected, self.available = self.available[:maximum], self.available[maximum:]
        handles = self.device.take(maximum)
        assert len(handles) == len(expected)
        for record, handle in zip(expected, handles, strict=True):
            record.handle = handle
            assert (handle.readable, handle.writable) == (len(record.payload), record.room)
            pieces = [Piece(*piece, False) for piece in record.readable]
            pieces += [Piece(*piece, True) for piece in record.writable]
            assert without_empty(handle.pieces) == without_empty(pieces)
        self.taken += expected
        self.ever_taken += expected
        self.taken_.add(expected)

    @step(
        2,
        when=lambda rings: rings.ever_taken and rings.ever_taken[-1].written is None,
        count=range(1, 7),
    )
    def put_back(self, count: int) -> None:
        untouched = takewhile(lambda record: record.written is None, reversed(self.ever_taken))
        newest = list(islice(untouched, count))[::-1]
        assert self.device.put_back(handles_of(newest)) == len(newest)
        del self.ever_taken[-len(newest) :]
        del self.taken[-len(newest) :]
        self.taken_.add(newest, -1)
        self.available = newest + self.available
        for record in newest:
            record.handle = None

    @step(1, when=lambda rings: rings.can_misuse_put_back())
    def put_back_what_is_not_newest(self) -> None:
        """An older buffer, or one that is completed, cannot go back."""
        oldest = self.taken[0]
        before = self.device.position
        with pytest.raises(Exception, match=r".+"):
            self.device.put_back(handles_of([oldest]))
        assert self.device.position == before

    def can_misuse_put_back(self) -> bool:
        return bool(self.taken) and self.ever_taken[-1].written is not None

    @step(
        6,
        when=lambda rings: len(rings.taken) > len(rings.completed),
        count=[1, 2, 65535],
        order=range(8),
        eighths=FILLS,
    )
    def complete(self, count: int, order: int, eighths: tuple[int, ...]) -> None:
        """Oldest first, newest first, or in some order between."""
        pending = [record for record in self.taken if record.written is None]
        if order == 1:
            pending.reverse()
        elif order > 1:
            Random(order).shuffle(pending)
        for record, fill in zip(pending[:count], cycle(eighths), strict=False):
            handle = record.handle
            assert handle is not None
            assert handle.read() == record.payload
            record.written = record.room * fill // 8
            handle.write(pattern(record.number + 1, record.written))
            self.device.complete(handle, record.written)
            self.completed.append(record)

    @step(1, when=lambda rings: rings.completed)
    def complete_twice(self) -> None:
        record = self.completed[0]
        assert record.handle is not None
        with pytest.raises(Exception, match=r".+"):
            self.device.complete(record.handle, 0)

    def finished(self) -> list[Record]:
        """What a flush publishes: the finished prefix under IN_ORDER, else all completed ones."""
        if self.config.in_order:
            return list(takewhile(lambda record: record.written is not None, self.taken))
        return list(self.completed)

    def now_used(self, finished: list[Record]) -> None:
        for i, record in enumerate(finished):
            # A batch goes on behind a buffer that was filled (2.7.9, 2.8.8).
            previous = finished[i - 1] if i else None
            if (
                previous is None
                or not self.config.in_order
                or self.config.one_used_entry_per_buffer
                or previous.written != previous.room
            ):
                self.expected_entries += 1
            record.handle = None
        self.taken = [record for record in self.taken if record not in finished]
        self.completed = [record for record in self.completed if record not in finished]
        self.used += finished
        self.used_.add(finished)

    @step(3, when=lambda rings: rings.completed)
    def flush(self) -> None:
        finished = self.finished()
        assert self.device.flush() == len(finished)
        self.now_used(finished)

    @step(
        4,
        when=lambda rings: rings.completed or rings.used_.buffers > rings.calls.at_decision.buffers,
    )
    def call(self) -> None:
        finished = self.finished()
        self.used_.add(finished)
        due = self.due(self.calls, self.used_)
        self.used_.add(finished, -1)
        sent = self.device.call_wanted()
        self.now_used(finished)
        self.check_notification(self.calls, self.used_, due, sent)

    @step(2)
    def enable_kicks(self) -> None:
        assert self.device.enable_kicks() == bool(self.available)
        self.kicks.asleep_at = None if self.available else self.published_.buffers

    @step(1)
    def disable_kicks(self) -> None:
        self.device.disable_kicks()
        self.kicks.asleep_at = None

    @step(2)
    def idle(self) -> None:
        """Nothing comes of nothing."""
        if not self.added:
            assert self.driver.publish() == 0
        if not self.used:
            assert self.driver.reap() == []
        if not self.available:
            assert len(self.device.take()) == 0
        if not self.finished():
            assert self.device.flush() == 0
        if self.published_.buffers == self.kicks.at_decision.buffers and not self.added:
            assert not self.driver.kick_wanted()
        if self.used_.buffers == self.calls.at_decision.buffers and not self.finished():
            assert not self.device.call_wanted()

    @step(1, shape=SHAPES, count=[1, 3, 20], eighths=FILLS)
    def go_round(self, shape: Shape, count: int, eighths: tuple[int, ...]) -> None:
        """All the way, as often as it takes to get round a ring; without order, past what stays."""
        for _ in range(count):
            self.add(shape, 2)
            self.kick()
            if self.available:
                self.take(65535)
            self.complete(65535 if self.config.in_order else 2, 1, eighths)
            self.call()
            self.reap(65535)

    # Ends and beginnings.

    @step(2, when=lambda rings: rings.steps > 5 and rings.taken)
    def stop_and_resume(self) -> None:
        """Another device half goes on where the first one stopped; the driver notices nothing."""
        finished = self.finished()
        self.used_.add(finished)
        due = self.due(self.calls, self.used_)
        self.used_.add(finished, -1)
        held = [record.handle for record in self.taken if record not in finished]
        position, called = self.device.stop()
        self.now_used(finished)
        self.check_notification(self.calls, self.used_, due, called)
        for handle in held:
            assert handle is not None
            with pytest.raises(Exception, match=r".+"):
                self.device.complete(handle, 0)
        unfinished, self.taken, self.completed = self.taken, [], []
        newest = self.ever_taken[len(self.ever_taken) - len(unfinished) :]
        self.ever_taken = []
        if self.config.in_order or newest == unfinished:
            self.taken_.add(unfinished, -1)
            self.available = unfinished + self.available
        else:
            self.lost += unfinished
        for record in unfinished:
            record.handle = record.written = None
            self.memory.write(
                self.cells_at + record.cell * CELL_BYTES + len(record.payload),
                UNTOUCHED * record.room,
            )
        self.check_device_position(position)
        if self.config.in_order:
            assert position[:2] == position[2:4]
        self.device.close()
        self.device = self.new_device(position)
        self.calls = Side(replace(self.used_), first=True, asleep_at=self.calls.asleep_at)
        self.kicks.asleep_at = None

    @step(1, when=lambda rings: rings.steps > 5 and rings.is_empty())
    def start_again_where_it_stands(self) -> None:
        position = self.driver.position
        assert position[:4] == self.device.position[:4]
        self.close()
        self.new_halves(position)
        self.forget(position)

    def is_empty(self) -> bool:
        return not (
            self.added or self.available or self.taken or self.completed or self.used or self.lost
        )

    @step(1, when=lambda rings: rings.steps > 20, new_driver=[True, False])
    def reset(self, new_driver: bool) -> None:
        """A queue or device reset: buffers that were not reaped are the driver's again."""
        self.device.stop()
        outstanding = self.added + self.available + self.taken + self.used + self.lost
        assert self.driver.take_back() == sorted(record.number for record in outstanding)
        assert self.driver.take_back() == []
        if new_driver:
            self.close()
            self.new_halves(None)
        else:
            self.device.close()
            self.device = self.new_device(None)
        self.forget(None)

    # What must hold after every step.

    def check_counts(self) -> None:
        inside = self.available + self.taken + self.used + self.lost
        assert self.driver.outstanding == len(self.added) + len(inside)
        assert self.device.outstanding == len(self.taken)
        assert self.device.has_available == bool(self.available)
        assert self.driver.has_used == bool(self.used)
        slots = sum(record.slots for record in self.added + inside)
        assert self.driver.free == self.config.size - slots
        assert self.device.used_entries == self.expected_entries

    def check_positions(self) -> None:
        self.check_device_position(self.device.position)
        driver = self.driver.position
        if not self.added:
            assert driver[:2] == self.at(self.published_)
        # The model's driver steps over a whole batch at once.
        if not (self.used and self.config.in_order):
            assert driver[2:4] == self.at(self.reaped_)

    def check_device_position(self, position: Position) -> None:
        assert position[:2] == self.at(self.taken_)
        assert position[2:4] == self.at(self.used_)

    def at(self, progress: Progress) -> tuple[int, int]:
        """Index, or slot and wrap counter, after so much progress."""
        if self.config.packed:
            start = Cursor(self.origin.available, self.origin.available_wrap)
            return start.advanced(progress.slots, self.config.size)
        return (self.origin.available + progress.buffers) % 65536, 0

    # Notifications.

    def due(self, side: Side, now: Progress) -> bool | None:
        """Does memory ask for a notification of what happened since the last decision?

        None where the answer may be either: the ring was passed more than once, and an event of an
        earlier lap may count or not.
        """
        before = side.at_decision
        if now.buffers == before.buffers:
            return False
        if not self.config.packed:
            return self.split_due(side, self.at(before)[0], self.at(now)[0])
        ring = self.place.packed(self.memory)
        event = ring.driver_event if side is self.calls else ring.device_event
        if event.flags != DESC:
            return {ENABLE: True, DISABLE: False}[event.flags]
        if side.first:
            return True
        if now.slots - before.slots > self.config.size:
            return None
        start = Cursor(*self.at(before))
        passed = [start.advanced(i, self.config.size) for i in range(now.slots - before.slots)]
        return (event.offset, event.wrap) in passed

    def split_due(self, side: Side, old: int, new: int) -> bool:
        ring = self.place.split(self.memory)
        if not self.config.event_idx:
            flags = ring.avail_flags if side is self.calls else ring.used_flags
            return not flags & NO_NOTIFICATION
        event = ring.used_event if side is self.calls else ring.avail_event
        return side.first or need_event(event, new, old)

    def check_notification(self, side: Side, now: Progress, due: bool | None, sent: bool) -> None:
        if due is not None:
            assert sent == due
        if side.asleep_at is not None and now.buffers > side.asleep_at:
            assert sent, "the other side sleeps, and nothing wakes it"
            side.asleep_at = None
        if now.buffers > side.at_decision.buffers:
            side.first = False
        side.at_decision = replace(now)


def handles_of(records: Sequence[Record]) -> list[Buffer]:
    handles = [record.handle for record in records]
    return [handle for handle in handles if handle is not None]


def without_empty(pieces: Sequence[Piece]) -> list[Piece]:
    return [piece for piece in pieces if piece.length]


# A step as often as it is to be chosen, one after the other.
DECK = [step for turn in range(6) for step in STEPS if step.weight > turn]

PAIRINGS: list[tuple[Impl, Impl]] = [
    ("core", "model"),
    ("model", "core"),
    ("core", "core"),
    ("model", "model"),
]


class RingMachine(RuleBasedStateMachine):
    """One rule, which draws a step: among many rules hypothesis would switch some off in each
    example, and then a buffer seldom gets all the way round."""

    driver: ClassVar[Impl]
    device: ClassVar[Impl]
    rings: Rings | None = None

    @initialize(config=configs())
    def begin(self, config: Config) -> None:
        self.rings = Rings(self.driver, self.device, config)

    @rule(data=st.data(), choice=st.integers(0, len(DECK) - 1))
    def do(self, data: st.DataObject, choice: int) -> None:
        assert self.rings is not None
        step = self.rings.choose(choice)
        note(step.name)
        options = {
            name: data.draw(st.sampled_from(values), label=name)
            for name, values in step.options.items()
        }
        self.rings.perform(step, **options)

    def teardown(self) -> None:
        if self.rings is not None:
            self.rings.close()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("driver", "device"), PAIRINGS)
def test_any_steps(driver: Impl, device: Impl) -> None:
    machine = type("Machine", (RingMachine,), {"driver": driver, "device": device})
    run_state_machine_as_test(machine, settings=settings())


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("driver", "device"), PAIRINGS)
def test_long_runs(driver: Impl, device: Impl) -> None:
    """What takes longer than an example of hypothesis lasts; `seed` repeats a failure."""

    @settings(max_examples=settings().max_examples // 3, phases=(Phase.reuse, Phase.generate))
    @given(config=configs(), seed=st.integers(0, 2**32 - 1))
    def run(config: Config, seed: int) -> None:
        chance = Random(seed)
        rings = Rings(driver, device, config)
        try:
            for _ in range(LONG_RUN_STEPS):
                step = rings.choose(chance.randrange(len(DECK)))
                options = {name: chance.choice(values) for name, values in step.options.items()}
                rings.perform(step, **options)
        finally:
            rings.close()

    run()


Happening = tuple[str, dict[str, Any]]


def add(shape: Shape) -> Happening:
    return "add", {"shape": shape, "count": 1}


def complete(order: int) -> Happening:
    return "complete", {"count": 1, "order": order, "eighths": (8,)}


ONE, TWO = Shape((8,), ()), Shape((8, 8), ())
ADD = add(ONE)
PUBLISH: Happening = ("publish", {})
KICK: Happening = ("kick", {})
TAKE: Happening = ("take", {"maximum": 65535})
OLDEST, NEWEST = complete(0), complete(1)
FLUSH: Happening = ("flush", {})
CALL: Happening = ("call", {})
REAP: Happening = ("reap", {"maximum": 65535})
SLEEP: Happening = ("enable_calls", {})
DEVICE_SLEEPS: Happening = ("enable_kicks", {})
STOP: Happening = ("stop_and_resume", {})
IDLE: Happening = ("idle", {})
PAST = [ADD, KICK, TAKE, NEWEST, CALL, REAP]  # a buffer that overtakes all others

# Stories that a random walk seldom tells.
STORIES: dict[str, tuple[Config, list[Happening]]] = {
    "a call is owed for what was flushed before": (
        Config(0, 4),
        [ADD, KICK, TAKE, OLDEST, FLUSH, CALL],
    ),
    "a half that is stopped calls for what it flushed": (
        Config(0, 4),
        [ADD, ADD, KICK, TAKE, SLEEP, OLDEST, FLUSH, STOP],
    ),
    "the first call of a packed half that goes on elsewhere": (
        Config(RING_PACKED | EVENT_IDX, 8),
        [ADD, ADD, ADD, KICK, TAKE, SLEEP, OLDEST, CALL, REAP, STOP, TAKE, OLDEST, CALL],
    ),
    "a packed table lives as long as its buffer, whatever becomes of its slot": (
        Config(RING_PACKED | INDIRECT_DESC, 2, 12),
        [add(TWO), ADD, KICK, TAKE, NEWEST, CALL, REAP, add(TWO), KICK, TAKE, OLDEST, OLDEST],
    ),
    "every slot was passed, but not the event in the next lap": (
        Config(RING_PACKED | EVENT_IDX, 4),
        [ADD, ADD, ADD, ADD, PUBLISH, TAKE, DEVICE_SLEEPS, KICK],
    ),
    "what was overtaken cannot be taken again, however long ago": (
        Config(0, 2),
        [ADD, KICK, TAKE, *PAST * 9, ADD, KICK, TAKE, STOP, IDLE],
    ),
}


@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize(("driver", "device"), PAIRINGS)
def test_stories(driver: Impl, device: Impl, story: str) -> None:
    config, happenings = STORIES[story]
    rings = Rings(driver, device, config)
    steps = {step.name: step for step in STEPS}
    try:
        for name, options in happenings:
            rings.perform(steps[name], **options)
    finally:
        rings.close()
