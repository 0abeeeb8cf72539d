"""A comparison as rows of text: the same on a terminal, in Markdown and in HTML."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from statistics import median

from virtq.bench.case import RATE, Target
from virtq.bench.comparison import Comparison, Ratio, Summary, percentile
from virtq.bench.distance import levels
from virtq.bench.measure import PAIRS


@dataclass(frozen=True)
class Column:
    """A count that is shown: its heading, and its value for each unit of work times `scale`."""

    heading: str
    scale: float


COUNTS: Mapping[str, Column] = {
    "kicks": Column("kicks per 1000", 1000),
    "calls": Column("calls per 1000", 1000),
    "used_entries": Column("used entries per 1000", 1000),
    "batches": Column("batches per 1000", 1000),
    "cpu_seconds": Column("CPU µs each", 1e6),
    "cycles": Column("cycles each", 1),
    "instructions": Column("instructions each", 1),
    "cache_misses": Column("cache misses each", 1),
}
"""Counts that tables show, by name. Others are in the JSON."""

MEANING: Mapping[str, str] = {
    "kicks": "available buffer notifications that the driver sent",
    "calls": "used buffer notifications that the device sent",
    "used_entries": "used ring elements or used descriptors that the device wrote: "
    "in order, one covers a whole batch",
    "batches": "how often buffers were made available or taken together",
    "cpu_seconds": "processor time of the side that is measured",
    "cycles": "processor cycles, as the processor counts them",
    "instructions": "instructions, as the processor counts them",
    "cache_misses": "accesses that missed the last level of cache",
}


def rate(per_second: float) -> str:
    """`950`, `15.2 k`, `1.25 M`: three digits."""
    for unit in ("", " k", " M"):
        if abs(per_second) < 999.5:
            return f"{per_second:.3g}{unit}"
        per_second /= 1000
    return f"{per_second:.3g} G"


def plain(value: float) -> str:
    """Three digits, without an exponent."""
    if value == 0:
        return "0"
    if abs(value) >= 999.5:
        return f"{value:,.0f}"
    if abs(value) < 0.01:
        return f"{value:.4f}"
    return f"{value:.3g}"


TIMES = "\N{MULTIPLICATION SIGN}"
TO = "\N{EN DASH}"


def factor(value: float) -> str:
    """How many times, with two decimals and the sign."""
    return f"{value:.2f} {TIMES}"


def duration(nanoseconds: float) -> str:
    """`850 ns`, `21.4 µs`, `1.2 ms`."""
    for unit in ("ns", "µs", "ms"):
        if nanoseconds < 999.5:
            return f"{nanoseconds:.3g} {unit}"
        nanoseconds /= 1000
    return f"{nanoseconds:.3g} s"


def singular(unit: str) -> str:
    """`buffer`."""
    return unit.removesuffix("s")


@dataclass(frozen=True)
class Rows:
    """Headings, and a row for each contender; the first column is its name."""

    headings: list[str]
    rows: list[list[str]]
    counts_from: int
    """The column at which counts begin, after what is measured in time."""

    def halves(self) -> list[Rows]:
        """What is measured in time, and the counts, each with the names, for a narrow place."""
        return [self] if self.counts_from >= len(self.headings) else self._split(self.counts_from)

    def _split(self, at: int) -> list[Rows]:
        first = Rows(self.headings[:at], [row[:at] for row in self.rows], at)
        others = [[row[0], *row[at:]] for row in self.rows if any(row[at:])]
        return [first, Rows(["", *self.headings[at:]], others, 1)]

    def without(self, names: Collection[str]) -> Rows:
        """The rows of all others."""
        kept = [row for row in self.rows if row[0] not in names]
        return Rows(self.headings, kept, self.counts_from)

    def fitting(self, fits: Callable[[Rows], bool]) -> list[Rows]:
        """As few tables as fit a narrow place, each with the names: what is measured in time, then
        the counts, each of them in parts if it has to be."""
        width = len(self.headings)
        if width < 3 or fits(self):
            return [self]
        if 1 < self.counts_from < width:
            return [part for half in self.halves() for part in half.fitting(fits)]
        at = next((at for at in range(width - 1, 2, -1) if fits(self._split(at)[0])), 2)
        first, rest = self._split(at)
        return [first, *rest.fitting(fits)]


def rows(comparison: Comparison, *, brief: bool = False, verdicts: bool = False) -> Rows:
    """What is told of a comparison's contenders. `brief`: without the quartiles. `verdicts`: with
    what is hoped for."""
    contenders = comparison.contenders
    base = next((one.name for one in contenders if one.median > 0), None)
    to_base = {r.of: r for r in comparison.ratios if r.to == base and r.quantity == RATE}
    counts = [n for n in COUNTS if any(n in one.counts for one in contenders)]
    latencies = list(dict.fromkeys(key for one in contenders for key in one.latency_ns))
    columns: list[tuple[str, Callable[[Summary], str]]] = [
        ("median /s", lambda one: rate(one.median)),
        ("best /s", lambda one: rate(one.best)),
        ("quartiles /s", lambda one: f" {TO} ".join(rate(value) for value in one.quartiles)),
    ][: 2 if brief else 3]
    columns += [
        (f"per {singular(comparison.unit)}", lambda one: duration(one.ns_per_unit)),
    ]
    if len(contenders) > 1:
        columns += [
            ("medians", lambda one: _factor_of(to_base.get(one.name), "medians")),
            ("bests", lambda one: _factor_of(to_base.get(one.name), "bests")),
        ]
    for key in latencies:
        columns.append((key, lambda one, key=key: _latency(one, key)))  # type: ignore[misc]
    counts_from = 1 + len(columns)
    for name in counts:
        columns.append((COUNTS[name].heading, lambda one, name=name: _count(one, name)))  # type: ignore[misc]
    aims = targets(comparison)
    if aims and verdicts:
        columns.append(("target", lambda one: aims.get(one.name, "")))
    made = [
        [one.name, one.error] if one.error and not one.rates else _row(one, columns)
        for one in contenders
    ]
    width = len(columns) + 1
    headings = ["", *(name for name, _ in columns)]
    return Rows(headings, [_wide(row, width) for row in made], counts_from)


def _row(one: Summary, columns: list[tuple[str, Callable[[Summary], str]]]) -> list[str]:
    return [one.name, *(value(one) for _, value in columns)]


def _wide(row: list[str], width: int) -> list[str]:
    return row + [""] * (width - len(row))


def _factor_of(ratio: Ratio | None, what: str) -> str:
    return "" if ratio is None else factor(getattr(ratio, what))


def _count(one: Summary, name: str) -> str:
    if name not in one.counts or not one.work:
        return ""
    return plain(COUNTS[name].scale * one.counts[name] / one.work)


def _latency(one: Summary, key: str) -> str:
    return duration(one.latency_ns[key]) if key in one.latency_ns else ""


@dataclass(frozen=True)
class Goal:
    """What is hoped for of a contender, and what was seen, in words."""

    of: str
    target: str
    medians: str
    bests: str
    met: bool | None
    """None if it could not be measured."""
    verdict: str
    """`met`, `missed` or `not measured`, and over how few windows, if they are too few."""


def goals(comparison: Comparison) -> list[Goal]:
    """All that is hoped for of a comparison's contenders."""
    found = []
    few = comparison.rounds < PAIRS

    def add(of: str, target: str, medians: str, bests: str, met: bool | None) -> None:
        verdict = "not measured" if met is None else "met" if met else "missed"
        if met is not None and few:
            verdict += f", over {_windows(comparison)}"
        found.append(Goal(of, target, medians, bests, met, verdict))

    for one in comparison.contenders:
        measured = bool(one.rates)
        if one.floor_per_s is not None:
            met = one.met if measured else None
            text = f"≥ {rate(one.floor_per_s)} {comparison.unit}/s"
            add(one.name, text, rate(one.median), rate(one.best), met)
        for name, most in one.ceilings.items():
            heading = COUNTS[name].heading if name in COUNTS else f"{name} per 1000"
            seen = one.per_1000.get(name)
            text = f"≤ {plain(most)} {heading}"
            met = None if seen is None else seen <= most
            add(one.name, text, "" if seen is None else plain(seen), "", met)
    ratios = {(ratio.of, ratio.to, ratio.quantity): ratio for ratio in comparison.ratios}
    for target in comparison.targets:
        ratio = ratios.get((target.of, target.to, target.quantity))
        text = _aim(target)
        if ratio is None:
            add(target.of, text, "", "", None)
        else:
            add(target.of, text, factor(ratio.medians), factor(ratio.bests), ratio.met)
    return found


def _aim(target: Target) -> str:
    """What a target asks for, and of whom."""
    if target.quantity == RATE:
        return f"≥ {target.ratio:.3g} {TIMES} {target.to}"
    share = "" if target.ratio == 1 else f"{1 / target.ratio:.3g} {TIMES} "
    what = COUNTS[target.quantity].heading if target.quantity in COUNTS else None
    return f"{what or percentile(target.quantity)} ≤ {share}{target.to}"


def targets(comparison: Comparison) -> dict[str, str]:
    """What is hoped for of each contender, and whether it is so: `≥ 500 k/s: met`."""
    found: dict[str, list[str]] = {}
    for aim in goals(comparison):
        found.setdefault(aim.of, []).append(f"{aim.target}: {aim.verdict}")
    return {name: "; ".join(texts) for name, texts in found.items()}


def parameters(comparison: Comparison) -> str:
    """`batch 32, chain 1`; what is only so or not so is named if it is."""
    shown = {name: value for name, value in comparison.parameters.items() if value is not False}
    return ", ".join(name if v is True else f"{name} {v}" for name, v in shown.items())


def markdown(comparison: Comparison) -> str:
    """A comparison as a Markdown table, with its title and its parameters."""
    made = rows(comparison, verdicts=True)
    lines = [f"**{comparison.title}** ({caption(comparison)})", ""]
    lines.append("| " + " | ".join(made.headings) + " |")
    lines.append("|---|" + "---:|" * (len(made.headings) - 1))
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in made.rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def caption(comparison: Comparison) -> str:
    """Its parameters, and how often and how long it was measured."""
    windows = f"{_windows(comparison)} of {comparison.window_s * 1000:.3g} ms each"
    if comparison.rounds < comparison.rounds_planned:
        windows += f", of {comparison.rounds_planned} planned"
    parts = (parameters(comparison), comparison.unit, windows, way(comparison))
    return ", ".join(filter(None, parts))


def _windows(comparison: Comparison) -> str:
    return f"{comparison.rounds} window{'' if comparison.rounds == 1 else 's'}"


def way(comparison: Comparison) -> str:
    """How far apart the processors were, such as `a line between the processors and back: 64 ns in
    12 of them, 310 ns in 8`."""
    found = levels(comparison.round_trips_s)
    if not found:
        return ""
    texts = [duration(1e9 * median(one)) for one in found]
    if len(found) > 1:
        texts = [f"{text} in {len(one)} of them" for text, one in zip(texts, found, strict=True)]
        texts[1:] = [text.removesuffix(" of them") for text in texts[1:]]
    return f"a line between the processors and back: {', '.join(texts)}"
