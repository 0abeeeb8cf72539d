"""What came out of a case: rates and counts of each contender, and how they stand to each other."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from virtq.bench.case import RATE, Parameter, Target, Window

_PERCENTILE = re.compile(r"p\d+(\.\d+)?_ns")


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
