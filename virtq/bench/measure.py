"""The frame of every measurement: contenders take turns in short windows.

Rates on a shared machine jump between levels, so that one run of A and then one of B says more
about the machine than about either. Here A and B work in turn, a second or less each and twenty
times or more, the order changing from round to round. Compared are the medians and the bests; what
does not jump, the counts, stands beside them. Where the work is between two processors, it is
looked at how far these are apart, and a round through which that changed is made again.

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

import math
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, Self

from virtq.bench.distance import Look, same
from virtq.errors import VirtqError

PAIRS = 20
"""Rounds: windows of each contender."""
WINDOW_S = 0.25
WINDOW_MOST_S = 1.0
"""A window longer than this would see the machine change."""
WINDOW_LEAST_S = 0.01
SLACK = 3.0
"""How much longer than planned a comparison may take, as a factor, before it ends early."""
SPARE = 0.2
"""Of the rounds: how many more there is time for where some may have to be made again."""
START_S = 30.0
"""What the windows may take longer than planned at the least."""

_PERCENTILE = re.compile(r"p\d+(\.\d+)?_ns")

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
    floors: Mapping[str, float] = field(default_factory=dict)
    """By contender, how many units a second are hoped for, of the median and the best."""
    ceilings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By contender and count, how many for every 1000 units are hoped for at the most."""
    work: str = ""
    """What is done for each unit, the same by every contender; a sentence for the report."""
    look: Look | None = None
    """Tells how far apart the processors are, where the work is between two of them."""


@dataclass(frozen=True)
class Summary:
    """One contender over all its windows. Rates are units a second."""

    name: str
    rates: tuple[float, ...]
    """Of each window, in the order of the rounds."""
    work: int
    seconds: float
    counts: dict[str, float]
    """Totals over all windows; of percentiles the median."""
    error: str | None = None
    """Why it does not go on, or never began."""
    floor_per_s: float | None = None
    """What is hoped for."""
    ceilings: dict[str, float] = field(default_factory=dict)
    """By count, what is hoped for at the most for every 1000 units."""
    each: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Of each count for one unit, and of each percentile: the median and the least of the
    windows."""

    @property
    def met(self) -> bool | None:
        """Whether median and best are what is hoped for; None without that."""
        return None if self.floor_per_s is None else self.median >= self.floor_per_s

    @property
    def median(self) -> float:
        return statistics.median(self.rates) if self.rates else 0.0

    @property
    def best(self) -> float:
        return max(self.rates, default=0.0)

    @property
    def worst(self) -> float:
        return min(self.rates, default=0.0)

    @property
    def quartiles(self) -> tuple[float, float]:
        """A quarter of the windows were below the first, a quarter above the second."""
        if len(self.rates) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.rates, n=4, method="inclusive")
        return low, high

    @property
    def ns_per_unit(self) -> float:
        """Nanoseconds for each unit, at the median rate."""
        return 1e9 / self.median if self.median else 0.0

    @property
    def per_1000(self) -> dict[str, float]:
        """The counts for every 1000 units. Percentiles are not among them."""
        if not self.work:
            return {}
        return {
            name: 1000 * count / self.work
            for name, count in self.counts.items()
            if not is_percentile(name)
        }

    @property
    def latency_ns(self) -> dict[str, float]:
        """Percentiles of latency, such as {"p50": 21000.0, "p99.9": 61000.0}."""
        found = {n: c for n, c in self.counts.items() if is_percentile(n)}
        return {percentile(name): value for name, value in found.items()}

    @classmethod
    def of(cls, name: str, windows: Sequence[Window], error: str | None = None) -> Self:
        """From the windows of one contender."""
        names = dict.fromkeys(key for window in windows for key in window.counts)
        counts: dict[str, float] = {}
        each: dict[str, tuple[float, float]] = {}
        for key in names:
            having = [window for window in windows if key in window.counts]
            seen = [window.counts[key] for window in having]
            if is_percentile(key):
                counts[key], single = statistics.median(seen), seen
            else:
                counts[key] = sum(seen)
                single = [window.counts[key] / window.work for window in having if window.work]
            if single:
                each[key] = statistics.median(single), min(single)
        return cls(
            name,
            tuple(window.rate for window in windows),
            sum(window.work for window in windows),
            sum(window.seconds for window in windows),
            counts,
            error,
            each=each,
        )

    def as_json(self) -> dict[str, Any]:
        low, high = self.quartiles
        return {
            "name": self.name,
            "error": self.error,
            "floor_per_s": self.floor_per_s,
            "met": self.met,
            "median_per_s": self.median,
            "best_per_s": self.best,
            "worst_per_s": self.worst,
            "quartiles_per_s": [low, high],
            "ns_per_unit": self.ns_per_unit,
            "per_1000": self.per_1000,
            "latency_ns": self.latency_ns,
            "work": self.work,
            "seconds": self.seconds,
            "counts": self.counts,
            "each": {name: list(values) for name, values in self.each.items()},
            "ceilings_per_1000": self.ceilings,
            "rates_per_s": list(self.rates),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(
            str(value["name"]),
            tuple(float(rate) for rate in value["rates_per_s"]),
            int(value["work"]),
            float(value["seconds"]),
            {str(name): float(count) for name, count in value["counts"].items()},
            value["error"],
            value["floor_per_s"],
            {str(name): float(most) for name, most in value.get("ceilings_per_1000", {}).items()},
            {str(name): (float(m), float(b)) for name, (m, b) in value.get("each", {}).items()},
        )


@dataclass(frozen=True)
class Ratio:
    """How one contender does beside another, as factors."""

    of: str
    to: str
    medians: float
    bests: float
    target: float | None = None
    quantity: str = RATE

    @property
    def met(self) -> bool | None:
        """Whether both are at the target; None without one."""
        return None if self.target is None else min(self.medians, self.bests) >= self.target

    def as_json(self) -> dict[str, Any]:
        return {
            "of": self.of,
            "to": self.to,
            "medians": self.medians,
            "bests": self.bests,
            "target": self.target,
            "quantity": self.quantity,
            "met": self.met,
        }


@dataclass(frozen=True)
class Comparison:
    """What came out of a case."""

    title: str
    unit: str
    work: str
    parameters: dict[str, Parameter]
    rounds_planned: int
    rounds: int
    """Fewer than planned if time ran out."""
    window_s: float
    contenders: tuple[Summary, ...]
    targets: tuple[Target, ...] = ()
    round_trips_s: tuple[float, ...] = ()
    """Of each round, how long a cache line took to go round between the processors, if that was
    looked at."""

    @property
    def ratios(self) -> list[Ratio]:
        """Of every contender to the first that has a rate, and those that have a target."""
        by_name = {one.name: one for one in self.contenders if one.median > 0}
        hoped = {(one.of, one.to, one.quantity): one.ratio for one in self.targets}
        base = next(iter(by_name), "")
        pairs = [(name, base, RATE) for name in by_name if name != base]
        found = []
        for of, to, quantity in dict.fromkeys([*pairs, *hoped]):
            if (one := by_name.get(of)) and (other := by_name.get(to)):
                factors = _factors(one, other, quantity)
                if factors is not None:
                    aim = hoped.get((of, to, quantity))
                    found.append(Ratio(of, to, *factors, aim, quantity))
        return found

    @property
    def errors(self) -> dict[str, str]:
        """By contender, why it does not take part."""
        return {one.name: one.error for one in self.contenders if one.error is not None}

    def as_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "unit": self.unit,
            "work": self.work,
            "parameters": self.parameters,
            "rounds_planned": self.rounds_planned,
            "rounds": self.rounds,
            "window_s": self.window_s,
            "round_trips_s": list(self.round_trips_s),
            "contenders": [one.as_json() for one in self.contenders],
            "targets": [asdict(target) for target in self.targets],
            "ratios": [ratio.as_json() for ratio in self.ratios],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        hoped = value.get("targets")
        if hoped is None:  # as it was before a target could be one of a count
            of_ratios = [ratio for ratio in value["ratios"] if ratio["target"] is not None]
            hoped = [{"of": r["of"], "to": r["to"], "ratio": r["target"]} for r in of_ratios]
        return cls(
            str(value["title"]),
            str(value["unit"]),
            str(value["work"]),
            dict(value["parameters"]),
            int(value["rounds_planned"]),
            int(value["rounds"]),
            float(value["window_s"]),
            tuple(Summary.from_json(one) for one in value["contenders"]),
            tuple(Target(**one) for one in hoped),
            tuple(float(trip) for trip in value.get("round_trips_s", ())),
        )


def _factors(one: Summary, other: Summary, quantity: str) -> tuple[float, float] | None:
    """How many times better one is than another, by the medians and by the bests; None if either
    has not measured the quantity."""
    if quantity == RATE:
        return one.median / other.median, one.best / other.best
    if quantity not in one.each or quantity not in other.each:
        return None
    middle, least = (
        theirs / ours if ours > 0 else float(theirs > 0)
        for ours, theirs in zip(one.each[quantity], other.each[quantity], strict=True)
    )
    return middle, least


def is_percentile(count: str) -> bool:
    """Whether a count is a percentile of latency, which windows cannot be summed over."""
    return _PERCENTILE.fullmatch(count) is not None


def percentile(count: str) -> str:
    """`p99.9` for p99.9_ns and p999_ns."""
    digits = count.removeprefix("p").removesuffix("_ns")
    return f"p{digits}" if "." in digits or len(digits) < 3 else f"p{digits[:2]}.{digits[2:]}"


# Taking turns

Progress = Callable[[int, int, str], None]
"""Told how many of how many windows are done, and whose turn it is."""


@dataclass(frozen=True)
class _Round:
    turn: int
    windows: dict[str, Window]
    """By contender."""
    trips: tuple[float, ...]
    """How far apart the processors were, before and after each window."""


@dataclass(frozen=True)
class Turns:
    """What came of taking turns."""

    summaries: list[Summary]
    """In the order in which the contenders were given."""
    rounds: int
    round_trips_s: tuple[float, ...] = ()
    """Of each round, if it was looked at."""


def compare(
    contenders: Sequence[Contender],
    *,
    pairs: int = PAIRS,
    window_s: float = WINDOW_S,
    warm_up: int = 1,
    time_limit_s: float | None = None,
    fit: bool = False,
    look: Look | None = None,
    progress: Progress = lambda done, count, name: None,
    clock: Callable[[], float] = time.monotonic,
) -> Turns:
    """Windows of all contenders in turn: `warm_up` rounds that do not count, then `pairs` rounds
    that do, every other one backwards.

    After `time_limit_s` (by default a multiple of what the windows should take) no further round
    begins. With `fit` windows are shortened, after the rounds to warm up, by what comes on top of
    each, so that all rounds fit in. A contender that raises VirtqError or OSError is left out from
    then on.

    With `look` a round through which the processors moved is made again, as long as there is time
    and not more than all of them were; where they never rest, such rounds count as well.

    Raises BenchError for numbers that make no sense."""
    if pairs < 1 or warm_up < 0:
        raise BenchError(f"{pairs} rounds after {warm_up} to warm up: at least 1 after 0")
    if not 0 < window_s <= WINDOW_MOST_S:
        raise BenchError(f"a window of {window_s:g} s is not within {WINDOW_MOST_S:g} s")
    if len({contender.name for contender in contenders}) != len(contenders):
        raise BenchError("two contenders have the same name")
    planned = pairs if look is None else pairs + math.ceil(SPARE * pairs)
    count = (warm_up + pairs) * len(contenders)
    limit_s = max(SLACK * count * window_s, START_S) if time_limit_s is None else time_limit_s
    begun = clock()
    deadline = begun + limit_s
    errors: dict[str, str] = {}
    steady: list[_Round] = []
    moved: list[_Round] = []
    turn = 0
    while turn < warm_up or (len(steady) < pairs and len(moved) <= pairs):
        if len(errors) == len(contenders) or (turn > warm_up and clock() >= deadline):
            break
        if fit and turn == warm_up > 0:
            now = clock()
            extra_s = max((now - begun) / (turn * len(contenders)) - window_s, 0)
            share_s = (deadline - now) / (planned * (len(contenders) - len(errors)))
            window_s = max(min(window_s, share_s - extra_s), WINDOW_LEAST_S)
        made: dict[str, Window] = {}
        trips = [look() if look else None]
        done = (min(turn, warm_up) + len(steady)) * len(contenders)
        for contender in contenders if turn % 2 == 0 else reversed(contenders):
            progress(done, count, contender.name)
            done += 1
            if contender.name in errors:
                continue
            try:
                made[contender.name] = contender.window(window_s)
            except (VirtqError, OSError) as error:
                errors[contender.name] = str(error) or type(error).__name__
                continue
            trips.append(look() if look else None)
        if turn >= warm_up:
            seen = tuple(trip for trip in trips if trip is not None)
            (steady if same(seen) else moved).append(_Round(turn, made, seen))
        turn += 1
    progress(count, count, "")
    # In a place where the processors never rest, better those rounds than none.
    rounds = sorted([*steady, *moved[: pairs - len(steady)]], key=lambda one: one.turn)
    summaries = []
    for name in (contender.name for contender in contenders):
        windows = [one.windows[name] for one in rounds if name in one.windows]
        summaries.append(Summary.of(name, windows, errors.get(name)))
    return Turns(
        summaries,
        len(rounds),
        tuple(statistics.median(one.trips) for one in rounds if one.trips),
    )


def run_case(
    case: Case,
    *,
    pairs: int = PAIRS,
    window_s: float = WINDOW_S,
    warm_up: int = 1,
    budget_s: float | None = None,
    progress: Progress = lambda done, count, name: None,
) -> Comparison:
    """Make the contenders of a case, compare them, and let them go. With `budget_s` the windows
    are as much shorter as it takes to do that in about this time, and no round begins later.
    Raises what making the contenders raises."""
    begun = time.monotonic()
    with ExitStack() as stack:
        contenders = case.make()
        for contender in contenders:
            stack.callback(contender.close)
        left_s = None
        if budget_s is not None:
            left_s = max(budget_s - (time.monotonic() - begun), WINDOW_LEAST_S)
            share_s = left_s / ((warm_up + pairs) * max(len(contenders), 1))
            window_s = max(min(window_s, share_s), WINDOW_LEAST_S)
        turns = compare(
            contenders,
            pairs=pairs,
            window_s=window_s,
            warm_up=warm_up,
            time_limit_s=left_s,
            fit=left_s is not None,
            look=case.look,
            progress=progress,
        )
    if left_s is not None:
        made = [one.seconds / len(one.rates) for one in turns.summaries if one.rates]
        window_s = statistics.median(made) if made else window_s
    return Comparison(
        case.title,
        case.unit,
        case.work,
        dict(case.parameters),
        pairs,
        turns.rounds,
        window_s,
        tuple(
            replace(
                one,
                floor_per_s=case.floors.get(one.name),
                ceilings=dict(case.ceilings.get(one.name, {})),
            )
            for one in turns.summaries
        ),
        tuple(case.targets),
        turns.round_trips_s,
    )
