"""How the cost of a buffer grows: with regions of memory, queue size, chain length, batch, queues.

One thing grows at a time, and its values are the contenders. Both halves of the ring are the
core's, on a thread each (`virtq._core.RingLoop`).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from virtq._core import RingLoop
from virtq.bench.case import Case, Parameter, Target, Window
from virtq.bench.distance import between
from virtq.features import F, RingKind

NOT_SLOWER = 1 / 1.15
"""Of the rate, where something should hardly matter."""


KINDS = (RingKind.SPLIT_IN_ORDER, RingKind.PACKED_IN_ORDER)
ROOMY_SLOTS = 2048


@dataclass(frozen=True)
class Settings:
    """What a measurement is made with, but for what grows."""

    size: int = 256
    """Slots of the queue."""
    batch: int = 32
    """Buffers made available and taken at a time."""
    length: int = 64
    """Bytes of each buffer, all its pieces together."""
    chain: int = 1
    """Pieces of each buffer."""
    regions: int = 1
    """Of memory, that the buffers are spread over."""
    depth: int | None = None
    """Buffers outstanding at the most; None: as many as fit into the queue."""
    spread: bool = False
    """Whether each buffer is on a page of its own, at an offset that does not depend on the
    regions; else they are neighbours."""
    queues: int = 1
    """At once, each with two threads."""
    event: bool = False
    """Whether either half sleeps until it is notified, instead of polling."""
    pin: tuple[int, int] | None = None


@dataclass(frozen=True)
class Growth:
    """One thing that grows."""

    setting: str
    one: str
    several: str
    values: Sequence[int]
    target: tuple[int, int] | None = None
    """Between which two values the rate should hardly fall."""
    title: str = ""
    """Of the comparison, unless it is what grows."""
    least_size: int = 1
    """Slots of the queue at the least, so that what grows has its effect."""
    depth: int | None = None
    spread: bool = False
    event: bool = False
    work: str = ""

    def name(self, value: int) -> str:
        return f"{value} {self.one if value == 1 else self.several}"


GROWTHS = (
    Growth(
        "regions",
        "region",
        "regions",
        (1, 8, 64, 509),
        (1, 509),
        least_size=512,
        spread=True,
        work="Each buffer is on a page of its own, whatever the regions, and the pages are cut "
        "into more and more of them: with 509, almost every buffer is in another region than the "
        "one before. ",
    ),
    Growth(
        "size",
        "slot",
        "slots",
        (256, 1024, 4096, 32768),
        (256, 32768),
        title="slots, 256 outstanding",
        depth=256,
        work="The same 256 buffers go round in every size, so that what grows is the ring alone: "
        "its descriptors take 4 KiB of 256 slots, 512 KiB of 32768. ",
    ),
    Growth(
        "size",
        "slot",
        "slots",
        (64, 256, 1024, 4096, 32768),
        (256, 32768),
        title="slots, as many outstanding as fit",
        work="A larger queue has more buffers, and lets the driver run further ahead. ",
    ),
    Growth("chain", "piece", "pieces", (1, 2, 4, 8, 16), least_size=ROOMY_SLOTS),
    Growth(
        "batch",
        "buffer a batch",
        "buffers a batch",
        (1, 4, 16, 32, 128, 256),
        least_size=ROOMY_SLOTS,
    ),
    # Sleepers share processors; those that poll would only take them from each other.
    Growth("queues", "queue", "queues", (1, 2, 4, 8), event=True),
)
"""509 regions are what Linux offers a vhost-user front-end at the most."""

WORK = (
    "The driver writes {length} bytes into each buffer, the device copies them out; both halves "
    "are the core's, on a thread each. What is compared of the payloads is right."
)


class Loops:
    """Some queues at work at once, as a contender."""

    def __init__(self, name: str, kind: RingKind, settings: Settings) -> None:
        """Raises ValueError for settings that make no sense together."""
        self.name = name
        self._loops = [
            RingLoop(
                int(kind.features | F.VERSION_1),
                settings.size,
                batch=settings.batch,
                chain=settings.chain,
                length=settings.length,
                event=settings.event,
                regions=settings.regions,
                depth=settings.depth,
                spread=settings.spread,
                pin=settings.pin,
            )
            for _ in range(settings.queues)
        ]
        self._threads = ThreadPoolExecutor(len(self._loops))

    def window(self, seconds: float) -> Window:
        did = list(self._threads.map(lambda loop: loop.run(seconds), self._loops))
        total = {key: sum(one[key] for one in did) for key in did[0]}
        counts = {
            "kicks": total["kicks_sent"],
            "calls": total["calls_sent"],
            "used_entries": total["used_entries"],
            "batches": total["batches"],
            "verified": total["verified"],
        }
        return Window(int(total["buffers"]), max(one["seconds"] for one in did), counts)

    def close(self) -> None:
        self._threads.shutdown()
        self._loops.clear()


def cases(
    settings: Settings = Settings(),
    *,
    kinds: Sequence[RingKind] = KINDS,
    quick: bool = False,
) -> list[Case]:
    """What `virtq bench scale` compares: for each kind of ring, each thing that grows, everything
    else as in `settings`. `quick`: the last kind only."""
    chosen = kinds[-1:] if quick else kinds
    return [_case(kind, growth, settings) for kind in chosen for growth in GROWTHS]


def _case(kind: RingKind, growth: Growth, settings: Settings) -> Case:
    base = replace(
        settings,
        size=max(settings.size, growth.least_size),
        event=settings.event or growth.event,
        depth=growth.depth,
        spread=growth.spread,
    )
    values = [value for value in growth.values if _fits(_with(base, growth, value))]
    names = {value: growth.name(value) for value in values}
    target = growth.target
    targets = []
    if target is not None and set(target) <= names.keys():
        targets = [Target(names[target[1]], names[target[0]], NOT_SLOWER)]
    shown: dict[str, Parameter] = {"ring": kind.title}
    for setting in ("size", "batch", "chain"):
        if setting != growth.setting:
            shown[setting] = getattr(base, setting)
    shown["waiting"] = "by notifications" if base.event else "polling"
    return Case(
        f"{growth.title or growth.several}: {kind.title}",
        lambda: [Loops(names[value], kind, _with(base, growth, value)) for value in values],
        parameters=shown,
        targets=targets,
        work=growth.work + WORK.format(length=base.length),
        look=between(base.pin),
    )


def _with(settings: Settings, growth: Growth, value: int) -> Settings:
    changed: dict[str, Any] = {growth.setting: value}
    return replace(settings, **changed)


def _fits(settings: Settings) -> bool:
    """Whether a queue can hold a batch of such buffers."""
    fits = settings.chain <= settings.length and settings.chain * settings.batch <= settings.size
    return fits and (settings.depth is None or settings.batch <= settings.depth <= settings.size)
