"""What a kind of ring is worth, with nothing around it: both halves of a virtqueue at work against
each other on two threads of the core."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from virtq._core import RingLoop
from virtq.bench.case import BenchError, Case, Contender, Target, Window
from virtq.bench.distance import between
from virtq.features import F, RingKind

BATCHES: Final = (1, 32)
DIRECTIONS: Final = ("send", "receive", "both")
ALMOST = 1.01
"""Of a count that is hoped for: batches are cut short where a window ends."""


@dataclass(frozen=True)
class Shape:
    """What goes through the ring; see `_core.RingLoop`. `event`: "flags", "index" (EVENT_IDX) or
    None for polling."""

    direction: str = "send"
    size: int = 256
    batch: int = 32
    chain: int = 1
    length: int = 64
    indirect: bool = False
    event: str | None = None
    regions: int = 1

    @property
    def title(self) -> str:
        words = [self.direction, f"batch {self.batch}", f"queue {self.size}"]
        if self.chain > 1:
            words.append(f"chain {self.chain} {'indirect' if self.indirect else 'direct'}")
        if self.length != 64:
            words.append(f"{self.length} bytes")
        if self.regions > 1:
            words.append(f"{self.regions} regions")
        words += {None: [], "flags": ["event"], "index": ["event index"]}[self.event]
        return ", ".join(words)


class Ring:
    """A kind of ring as a contender. Its units are buffers."""

    def __init__(self, kind: RingKind, shape: Shape, pin: tuple[int, int] | None = None) -> None:
        """Raises ValueError for a shape that cannot be."""
        self.name = kind.title
        features = kind.features | (F.EVENT_IDX if shape.event == "index" else F(0))
        self._loop = RingLoop(
            features,
            shape.size,
            direction=shape.direction,
            batch=shape.batch,
            chain=shape.chain,
            length=shape.length,
            indirect=shape.indirect,
            event=shape.event is not None,
            regions=shape.regions,
            pin=pin,
        )

    def window(self, seconds: float) -> Window:
        """Raises VirtqError for a payload that is not what was sent."""
        did = self._loop.run(seconds)
        counts = {
            "kicks": did["kicks_sent"],
            "calls": did["calls_sent"],
            "used_entries": did["used_entries"],
            "batches": did["batches"],
            "verified": did["verified"],
        }
        return Window(int(did["buffers"]), did["seconds"], counts)

    def close(self) -> None:
        """Threads end with each window, memory goes with the object."""


def case(
    shape: Shape, kinds: Sequence[RingKind] = tuple(RingKind), pin: tuple[int, int] | None = None
) -> Case:
    """One shape through several kinds of ring. Raises BenchError for a shape that cannot be."""
    for kind in kinds:
        try:
            Ring(kind, shape)
        except ValueError as error:
            raise BenchError(f"{shape.title}: {error}") from error

    def make() -> list[Contender]:
        return [Ring(kind, shape, pin) for kind in kinds]

    ordered = (
        (RingKind.SPLIT_IN_ORDER, RingKind.SPLIT),
        (RingKind.PACKED_IN_ORDER, RingKind.PACKED),
    )
    targets = [
        Target(one.title, other.title, 1.0)
        for one, other in ordered
        if one in kinds and other in kinds
    ]
    return Case(
        shape.title,
        make,
        ceilings={kind.title: _ceilings(shape) for kind in kinds if kind.in_order},
        unit="buffers",
        parameters={
            "direction": shape.direction,
            "batch": shape.batch,
            "chain": shape.chain,
            "indirect": shape.indirect,
            "queue": shape.size,
            "bytes": shape.length,
            "wait": shape.event or "poll",
            "regions": shape.regions,
        },
        targets=targets,
        work="The sender writes every payload, the receiver copies it out; one in 32 is compared.",
        look=between(pin),
    )


def _ceilings(shape: Shape) -> dict[str, float]:
    """What is hoped for in order: one used entry for a batch, and a notification at the most."""
    if shape.batch == 1:
        return {}
    each = 1000 / shape.batch
    found = {"used_entries": ALMOST * each}
    if shape.event is not None:
        found |= {"kicks": ALMOST * each, "calls": ALMOST * each}
    return found


def cases(
    *,
    directions: Sequence[str] = ("send",),
    sizes: Sequence[int] = (256,),
    batches: Sequence[int] = BATCHES,
    chains: Sequence[int] = (1,),
    lengths: Sequence[int] = (64,),
    indirect: Sequence[bool] = (False,),
    events: Sequence[str | None] = (None, "index"),
    kinds: Sequence[RingKind] = tuple(RingKind),
    pin: tuple[int, int] | None = None,
    quick: bool = False,
) -> list[Case]:
    """What `virtq bench rings` compares: the kinds of ring, over all combinations. Raises
    BenchError for one that cannot be."""
    if quick:
        directions, sizes, chains, lengths = directions[:1], sizes[:1], chains[:1], lengths[:1]
        events = events[:2]
    made = []
    for direction, size, batch, chain, length, event in itertools.product(
        directions, sizes, batches, chains, lengths, events
    ):
        for tables in indirect if chain > 1 else (False,):
            shape = Shape(direction, size, batch, chain, length, tables, event)
            made.append(case(shape, kinds, pin))
    return made
