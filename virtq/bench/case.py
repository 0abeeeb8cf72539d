"""What is to be compared: the words in which an engine says it.

An engine describes what it compares as `Case`s, each of which makes its `Contender`s when its turn
comes, and lets them go afterwards:

    class Mine:
        name = "packed, in order"

        def window(self, seconds: float) -> Window:
            did = self._loop.run(seconds)
            counts = {"kicks": did["kicks_sent"], "used_entries": did["used_entries"]}
            return Window(did["buffers"], did["seconds"], counts)

        def close(self) -> None:
            self._loop.close()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from virtq.bench.distance import Look
from virtq.errors import VirtqError

Parameter = str | int | float | bool


class BenchError(VirtqError):
    """A measurement cannot be made as asked; the text says why."""


@dataclass(frozen=True)
class Window:
    """What a contender did in one window."""

    work: int
    """Units done: buffers, packets or requests, as the case says."""
    seconds: float
    """How long that took, without setting up."""
    counts: Mapping[str, float] = field(default_factory=dict)
    """Totals of the window, such as kicks, calls, used_entries, batches, instructions and
    cpu_seconds; and percentiles of latency in nanoseconds, as p50_ns, p99_ns, p99.9_ns (or
    p999_ns)."""

    @property
    def rate(self) -> float:
        """Units a second."""
        return self.work / self.seconds if self.seconds > 0 else 0.0


class Contender(Protocol):
    """One of those that take turns. It is ready when it is made: a window measures work alone."""

    @property
    def name(self) -> str:
        """What it is called in tables and plots; unique within its case."""
        ...

    def window(self, seconds: float) -> Window:
        """Work for about so long, and tell what was done. Raises VirtqError or OSError if it
        cannot; it is left out from then on. Must end by itself, whatever a peer does."""
        ...

    def close(self) -> None:
        """Let go of everything: processes, sockets, memory."""
        ...


RATE = "rate"


@dataclass(frozen=True)
class Target:
    """What is hoped for: the medians and the bests of `of` at least `ratio` times those of `to`."""

    of: str
    to: str
    ratio: float
    quantity: str = RATE
    """What is compared: the rate; or a count that should be low, such as "cpu_seconds" or
    "p50_ns". Of that, for each unit, `of` is to need so many times less."""


class Rated(Protocol):
    """A contender after its windows; rates are units a second."""

    @property
    def name(self) -> str: ...

    @property
    def median(self) -> float: ...

    @property
    def best(self) -> float: ...


@dataclass(frozen=True)
class Case:
    """One comparison: who takes part, and what the units are."""

    title: str
    make: Callable[[], Sequence[Contender]]
    """Makes the contenders, the baseline first. Raises VirtqError or OSError."""
    unit: str = "buffers"
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    """What distinguishes this case from its neighbours, such as {"batch": 32, "chain": 1}."""
    targets: Sequence[Target] = ()
    aims: Callable[[Sequence[Rated]], Sequence[Target]] = lambda rated: ()
    """Targets between those that come out first; nobody knows before who that is."""
    floors: Mapping[str, float] = field(default_factory=dict)
    """By contender, how many units a second are hoped for, of the median and the best."""
    ceilings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By contender and count, how many for every 1000 units are hoped for at the most."""
    work: str = ""
    """What is done for each unit, the same by every contender; a sentence for the report."""
    look: Look | None = None
    """Tells how far apart the processors are, where the work is between two of them."""
