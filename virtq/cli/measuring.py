"""What every bench has in common: its options, how it is carried out, and what it prints."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from virtq.bench import machine
from virtq.bench.case import BenchError, Case
from virtq.bench.comparison import Comparison
from virtq.bench.measure import PAIRS, WINDOW_LEAST_S, WINDOW_MOST_S, WINDOW_S, run_case
from virtq.bench.result import Result
from virtq.bench.table import Rows, caption, markdown, rows, targets
from virtq.cli.demo import interruptible
from virtq.cli.failures import EXIT_FAILED, beginning, reason
from virtq.cli.options import SIZE, Seconds, command_line
from virtq.cli.output import print_json, say, show, table
from virtq.errors import VirtqError
from virtq.features import RingKind

QUICK_S = 80.0
"""What `--quick` takes altogether, but for what comes before the first case and behind the last."""
OUTPUT_OPTIONS = {"as_json", "as_markdown", "report", "lists"}
"""Options that do not change what is measured."""

C = TypeVar("C", bound=Callable[..., Any])


class Numbers(click.ParamType[tuple[int, ...]]):
    """Several numbers with commas between, each within bounds."""

    name = "n[,n]"

    def __init__(self, least: int, most: int) -> None:
        self.least = least
        self.most = most

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(dict.fromkeys(int(part) for part in str(value).split(",")))
        except ValueError:
            self.fail(f"{value!r} is not made of numbers with commas between", param, ctx)
        for number in numbers:
            if not self.least <= number <= self.most:
                self.fail(f"{number} is not within {self.least} to {self.most}", param, ctx)
        return numbers


class Sizes(click.ParamType[tuple[int, ...]]):
    """Several sizes with commas between, each within bounds."""

    name = "size[,size]"

    def __init__(self, least: int, most: int) -> None:
        self.least = least
        self.most = most

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        sizes = [SIZE.convert(part.strip(), param, ctx) for part in str(value).split(",")]
        for size in sizes:
            if not self.least <= size <= self.most or size % 512:
                text = f"{size} is not a multiple of 512 within {self.least} to {self.most}"
                self.fail(text, param, ctx)
        return tuple(dict.fromkeys(sizes))


class Kind(click.ParamType[RingKind]):
    """A kind of ring by its name."""

    name = "kind"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> RingKind:
        if isinstance(value, RingKind):
            return value
        try:
            return RingKind.parse(value)
        except VirtqError as error:
            self.fail(str(error), param, ctx)


class Pin(click.ParamType[tuple[int, int]]):
    """Two processors that this process may use."""

    name = "driver,device"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        numbers = Numbers(0, 1 << 16).convert(value, param, ctx)
        if len(numbers) != 2:
            self.fail(f"{value!r} is not two processors, such as 0,1", param, ctx)
        usable = os.sched_getaffinity(0)
        for number in numbers:
            if number not in usable:
                have = ", ".join(map(str, sorted(usable)))
                self.fail(
                    f"there is no processor {number}: this process may use {have}", param, ctx
                )
        return numbers[0], numbers[1]


@dataclass(frozen=True)
class Terms:
    """How to measure and what to print, the same for every bench."""

    pairs: int
    window: float
    pin: tuple[int, int] | None
    quick: bool
    as_json: bool
    as_markdown: bool
    report: Path | None
    seconds: float | None = None
    """What all of it may take."""
    only: tuple[str, ...] = ()
    """Titles of cases, or parts of them; none: all cases."""
    lists: bool = False
    """Only say which cases there are."""

    @property
    def budget_s(self) -> float | None:
        """What the cases may take altogether."""
        return QUICK_S if self.quick and self.seconds is None else self.seconds

    def chosen(self, cases: Sequence[Case]) -> list[Case]:
        """Raises BenchError for words that are in no title."""
        titles = {case.title for case in cases}
        for word in self.only:
            if not any(word in title for title in titles):
                raise BenchError(f"no case has {word!r} in its title; see --list")
        # What is a title as a whole is that case, even if others go on from there.
        whole, parts = titles & set(self.only), set(self.only) - titles
        return [
            case
            for case in cases
            if not self.only or case.title in whole or any(word in case.title for word in parts)
        ]


def bench_command(command: C) -> C:
    """The options that every bench has; they come as `terms`."""

    def wrapped(
        pairs: int,
        window: float,
        pin: tuple[int, int] | None,
        quick: bool,
        seconds: float | None,
        only: tuple[str, ...],
        lists: bool,
        as_json: bool,
        as_markdown: bool,
        report: str | None,
        **others: Any,
    ) -> Any:
        if as_json and as_markdown:
            raise click.UsageError("say one of --json and --markdown")
        path = report_path(report)
        terms = Terms(pairs, window, pin, quick, as_json, as_markdown, path, seconds, only, lists)
        return command(terms=terms, **others)

    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    decorators = [
        click.option(
            "--pairs",
            type=click.IntRange(1, 1000),
            default=PAIRS,
            show_default=True,
            help="Windows of each contender.",
        ),
        click.option(
            "--window",
            metavar="SECONDS",
            type=Seconds(WINDOW_LEAST_S, WINDOW_MOST_S),
            default=WINDOW_S,
            show_default=True,
            help="How long each is at the most.",
        ),
        click.option("--pin", type=Pin(), help="Processors for driver and device, such as 0,1."),
        click.option("--quick", is_flag=True, help="Fewer cases, all in less than 90 seconds."),
        click.option(
            "--seconds",
            metavar="SECONDS",
            type=Seconds(min=1.0),
            help="What all of it may take: windows become shorter.",
        ),
        click.option(
            "--only", metavar="TEXT", multiple=True, help="Cases with this in their title."
        ),
        click.option("--list", "lists", is_flag=True, help="Say which cases there are, and end."),
        *output_options,
    ]
    made: Any = wrapped
    for decorator in reversed(decorators):
        made = decorator(made)
    # Options of the command itself were noted on the function it was.
    made.__click_params__ = getattr(command, "__click_params__", []) + made.__click_params__
    return made  # type: ignore[no-any-return]


output_options = [
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    click.option("--markdown", "as_markdown", is_flag=True, help="Print Markdown tables."),
    click.option(
        "--report", metavar="FILE.html", help="Write a page with plots that needs nothing else."
    ),
]


def report_path(report: str | None) -> Path | None:
    if report is None:
        return None
    path = Path(report)
    with beginning():
        if path.suffix.lower() not in (".html", ".htm"):
            raise BenchError(f"{report}: a report is an .html file")
        if not os.access(path.parent, os.W_OK) or path.is_dir():
            raise BenchError(f"{report}: cannot be written to")
    return path


# Measuring


def measure(
    name: str,
    cases: Sequence[Case],
    terms: Terms,
    *,
    notes: Iterable[str] = (),
    peers: Mapping[str, str] | None = None,
) -> int:
    """Carry out the cases of a bench and print what came out; returns the exit code."""
    with beginning():
        cases = terms.chosen(cases)
    if terms.lists:
        click.echo("".join(f"{case.title}\n" for case in cases), nl=False)
        return 0
    started, begun = machine.now(), time.monotonic()
    kept = list(notes)
    comparisons: list[Comparison] = []
    failures: list[str] = []
    deadline = None if terms.budget_s is None else begun + terms.budget_s
    with interruptible(), _progress() as progress:
        task = progress.add_task(name, total=len(cases), what="")
        for position, case in enumerate(cases):

            def turn(done: int, count: int, who: str, at: int = position, c: Case = case) -> None:
                what = f"{at + 1} of {len(cases)}: {c.title}" + (f", {who}" if who else "")
                progress.update(task, completed=at + done / max(count, 1), what=what)

            turn(0, 1, "")
            budget_s = None
            if deadline is not None:
                # What a case takes beyond its share, to start a peer for one, the others lack.
                left_s = deadline - time.monotonic()
                budget_s = max(left_s / (len(cases) - position), 0.0)
                if left_s <= 0 and comparisons:
                    kept.append(f"not measured, as time was up: {case.title}")
                    continue
            try:
                comparisons.append(
                    run_case(
                        case,
                        pairs=terms.pairs,
                        window_s=terms.window,
                        budget_s=budget_s,
                        progress=turn,
                    )
                )
            except (VirtqError, OSError) as error:
                failures.append(f"{case.title}: {reason(error)}")
    if not comparisons:
        raise BenchError("; ".join(failures) or "there is nothing to measure")
    result = Result(
        name,
        command_line(OUTPUT_OPTIONS),
        started,
        time.monotonic() - begun,
        machine.describe(peers),
        tuple(comparisons),
        tuple(kept + [f"not measured: {failure}" for failure in failures]),
    )
    publish([result], terms.as_json, terms.as_markdown, terms.report)
    for text in [*failures, *result.errors]:
        say(f"virtq: {text}")
    return EXIT_FAILED if failures or result.errors else 0


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        BarColumn(bar_width=30),
        TextColumn("{task.fields[what]}"),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


# What it prints


def publish(
    results: Sequence[Result], as_json: bool, as_markdown: bool, report: Path | None
) -> None:
    """Print results as asked for, and write the report."""
    if report is not None:
        from virtq.bench.report import save

        save(results, report)
    if as_json:
        print_json(results[0].as_json() if len(results) == 1 else [r.as_json() for r in results])
    elif as_markdown:
        click.echo("\n".join(markdown(one) for r in results for one in r.comparisons), nl=False)
    else:
        parts = [part for result in results for part in _tables(result)]
        if report is not None:
            parts.append(Text(f"The report is in {report}."))
        show(*parts)


def _tables(result: Result) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for comparison in result.comparisons:
        failed = {c.name: c.error for c in comparison.contenders if c.error and not c.rates}
        made = rows(comparison, brief=True).without(failed)
        title: str | None = comparison.title
        for part in made.fitting(_fits) if made.rows else ():
            parts.append(_table(part, title))
            title = None
        if failed:
            words = [title] if title else []
            words += [f"{name}: {error}" for name, error in failed.items()]
            parts.append(Text("\n".join(words), "red"))
        parts.append(Text(_below(comparison), "dim"))
    notes = [Text(note) for note in result.notes]
    where = Text(f"{result.machine.title}\n{result.started}, {result.seconds:.0f} s", "dim")
    return [*parts, *notes, where]


def _fits(made: Rows) -> bool:
    return Console(width=1000).measure(_table(made, None)).maximum <= Console().width


def _table(made: Rows, title: str | None) -> Table:
    headings = [heading.replace(" ", "\n") for heading in made.headings]
    shown = table(*headings, title=title, numbers=range(1, len(headings)))
    shown.columns[0].no_wrap = False  # rather the names than the numbers
    for row in made.rows:
        shown.add_row(*row)
    return shown


def _below(comparison: Comparison) -> str:
    verdicts = [f"{name}: {text}" for name, text in targets(comparison).items()]
    return "\n".join(filter(None, [comparison.work, caption(comparison), *verdicts]))
