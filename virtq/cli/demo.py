"""`virtq demo`: both halves at work, checked, as a table and as a picture."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from virtq.cli.failures import EXIT_FAILED, beginning
from virtq.cli.options import Seconds
from virtq.cli.output import json_option, print_json, rate_text, say, show, size_text, table
from virtq.demo import DEVICES, Outcome, run_demo
from virtq.demo.picture import COLORS, MEASURES, Measure, check_form, draw, save
from virtq.errors import VirtqError
from virtq.features import RingKind

BAR_WIDTH = 20
_EIGHTHS = " ▏▎▍▌▋▊▉█"


@click.command(short_help="Show both halves at work: every kind of ring, every byte checked.")
@click.option(
    "--seconds",
    type=Seconds(0.1, 50),
    default=8,
    show_default=True,
    help="How long to drive, all kinds of ring together.",
)
@click.option(
    "--picture", metavar="FILE", help="Draw the result: FILE.svg, or FILE.png (virtq[plot])."
)
@json_option
def demo(seconds: float, picture: str | None, as_json: bool) -> int:
    """Serve a disk and a network from a second process and drive them from this one.

    Over vhost-user, with split and packed rings, in any order and in order. Disk blocks are
    written, read back and compared, also with the file behind the disk; frames go through a hub
    and are compared where they arrive. The exit code is 1 if a single byte is not what it should
    be.

    \b
    Examples:
      virtq demo
      virtq demo --seconds 2 --picture demo.svg
      virtq demo --json
    """
    if picture is not None:
        with beginning():
            _check_picture(Path(picture))
    begun = time.monotonic()
    with interruptible():
        outcomes = _run(seconds)
    elapsed = time.monotonic() - begun
    if picture is not None:
        save(draw(outcomes), Path(picture))
    if as_json:
        _print_json(outcomes, elapsed)
    else:
        bars = [_bars(measure, outcomes) for measure in MEASURES]
        show(_table(outcomes), *bars, _verdict(outcomes, elapsed))
    failed = [outcome for outcome in outcomes if outcome.error]
    for outcome in failed:
        say(f"virtq: {outcome.device}, {outcome.kind.title}: {outcome.error}")
    return EXIT_FAILED if failed else 0


def _check_picture(path: Path) -> None:
    check_form(path)
    if path.is_dir():
        raise VirtqError(f"{path}: it is a folder")
    if not os.access(path.parent, os.W_OK):
        raise VirtqError(f"{path}: {path.parent} cannot be written to")


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends this as Ctrl-C does: the second process and the files go with it."""

    def stop(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(seconds: float) -> list[Outcome]:
    """The outcomes; on a terminal, a line on standard error tells how far it is."""
    with Console(stderr=True).status("starting a second process") as status:
        return run_demo(
            seconds,
            lambda done, count, what: status.update(f"{done + 1} of {count}: {what}"),
        )


# What it shows


def _table(outcomes: Sequence[Outcome]) -> Table:
    counts = ("kicks\nper 1000", "calls\nper 1000", "used\nentries\nper 1000")
    headings = ("device", "ring", "buffers/s", *counts, "compared", "")
    made = table(*headings, numbers=range(2, 8))
    made.columns[1].no_wrap = True
    last = None
    for outcome in outcomes:
        if last not in (None, outcome.kind):
            made.add_section()
        last = outcome.kind
        per_1000 = (outcome.kicks, outcome.calls, outcome.used_entries)
        made.add_row(
            outcome.device,
            outcome.kind.title,
            rate_text(outcome.buffers_per_second),
            *(f"{outcome.per_1000(count):.1f}" for count in per_1000),
            f"{outcome.work.bytes / (1 << 20):.1f} MiB",
            Text("wrong", "bold red") if outcome.error else Text("right", "green"),
        )
    return made


def _bars(measure: Measure, outcomes: Sequence[Outcome]) -> Table:
    """A bar for each kind of ring, with the devices side by side."""
    made = Table.grid(padding=(0, 1))
    made.title, made.title_justify, made.title_style = (
        f"{measure.title}, {measure.note}",
        "left",
        "bold",
    )
    made.add_column(no_wrap=True)
    for _ in DEVICES:
        made.add_column(width=BAR_WIDTH)
        made.add_column(width=6, justify="right", no_wrap=True)
    most = {d: max(measure.value(o) for o in outcomes if o.device == d) for d in DEVICES}
    heading: list[Any] = [""]
    for device in DEVICES:
        heading += [Text(device, "dim"), ""]
    made.add_row(*heading)
    for kind in RingKind:
        row: list[Any] = [kind.title]
        for outcome in outcomes:
            if outcome.kind is kind:
                value = measure.value(outcome)
                row += [_bar(value, most[outcome.device], COLORS[kind]), measure.text(value)]
        made.add_row(*row)
    return made


def _bar(value: float, most: float, color: str) -> Text:
    eighths = max(1, round(8 * BAR_WIDTH * value / most)) if most else 0
    return Text("█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip(), color)


def _verdict(outcomes: Sequence[Outcome], elapsed: float) -> Text:
    compared = size_text(sum(outcome.work.bytes for outcome in outcomes))
    wrong = sum(outcome.error is not None for outcome in outcomes)
    if wrong:
        return Text(f"{wrong} of {len(outcomes)} runs went wrong, in {elapsed:.1f} s.", "bold red")
    return Text(f"Every byte right: {compared} compared in {elapsed:.1f} s.", "bold green")


def _print_json(outcomes: Sequence[Outcome], elapsed: float) -> None:
    print_json(
        {
            "verified": not any(outcome.error for outcome in outcomes),
            "seconds": round(elapsed, 2),
            "runs": [outcome.as_json() for outcome in outcomes],
        }
    )
