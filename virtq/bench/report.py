"""Results as one page that needs nothing else: no script, nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from virtq.bench.plot import strips
from virtq.bench.result import Result
from virtq.bench.table import COUNTS, MEANING, Goal, Rows, caption, goals, rows

HEADINGS = {
    "rings": "Rings alone",
    "net": "Network",
    "blk": "Disk",
    "python": "Devices in Python",
    "scale": "How cost grows",
}


LATENCIES = (
    "p50, p99, p99.9",
    "how long half of the requests took at the most, 99 and 99.9 % of them: from being made "
    "available to being found used",
)


@dataclass(frozen=True)
class _Shown:
    title: str
    caption: str
    work: str
    plot: Markup
    tables: list[Rows]
    """What is measured in time, and the counts: beside each other they are too wide for a page."""
    goals: list[Goal]
    errors: list[tuple[str, str]]


@dataclass(frozen=True)
class _Part:
    heading: str
    command: str
    notes: Sequence[str]
    comparisons: list[_Shown]


def page(results: Sequence[Result]) -> str:
    """The page for one result or several of one machine, as HTML."""
    environment = Environment(
        loader=PackageLoader("virtq.bench", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    comparisons = [one for result in results for one in result.comparisons]
    names = {name for c in comparisons for one in c.contenders for name in one.counts}
    meanings = [(COUNTS[n].heading, MEANING[n]) for n in COUNTS if n in names]
    if any(one.latency_ns for c in comparisons for one in c.contenders):
        meanings.append(LATENCIES)
    machine = results[-1].machine
    versions = {name: v for result in results for name, v in result.machine.versions.items()}
    machine.versions.update(versions)
    return environment.get_template("report.html.jinja").render(
        title=f"virtq bench {results[0].bench}" if len(results) == 1 else "virtq bench",
        machine=machine,
        memory=f"{machine.memory_bytes / (1 << 30):.3g} GiB",
        dates=_dates(results),
        goals=[
            (
                HEADINGS.get(result.bench, result.bench),
                [(one.title, aim) for one in result.comparisons for aim in goals(one)],
            )
            for result in results
            if any(goals(one) for one in result.comparisons)
        ],
        meanings=meanings,
        looked=any(one.round_trips_s for one in comparisons),
        parts=[_part(result) for result in results],
    )


def save(results: Sequence[Result], path: Path) -> None:
    """Write the page. Raises OSError."""
    path.write_text(page(results), encoding="utf-8")


def _dates(results: Sequence[Result]) -> str:
    times = sorted(datetime.fromisoformat(result.started) for result in results)
    days = list(dict.fromkeys(f"{time:%-d %B %Y}" for time in (times[0], times[-1])))
    return f"{times[0]:%-d %B %Y, %H:%M} UTC" if len(times) == 1 else " to ".join(days)


def _part(result: Result) -> _Part:
    shown = [
        _Shown(
            one.title,
            caption(one),
            one.work,
            Markup(strips(one)),  # made here, and what it shows is escaped
            rows(one).halves(),
            goals(one),
            list(one.errors.items()),
        )
        for one in result.comparisons
    ]
    heading = HEADINGS.get(result.bench, result.bench)
    return _Part(heading, result.command, result.notes, shown)
