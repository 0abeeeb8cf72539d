"""What commands print: tables for people, JSON for programs, progress and remarks aside.

Results go to standard output; everything else goes to standard error, so that a result can be
piped.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import click
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

EXACT_BELOW = 1_000_000
"""Counts are shown to the last digit up to here."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def say(text: str) -> None:
    """A remark on standard error."""
    click.echo(text, err=True)


@contextmanager
def printing() -> Iterator[None]:
    """What goes wrong in here went wrong at standard output. Raises OSError that says so."""
    try:
        yield
    except OSError as error:
        # What is still buffered must not be tried again at exit.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(error.errno, error.strerror, "standard output") from None


def print_json(value: object) -> None:
    """One JSON document, indented."""
    with printing():
        click.echo(json.dumps(value, indent=2))


def print_json_line(value: object) -> None:
    """One JSON document on a line of its own, at once: one of several."""
    with printing():
        click.echo(json.dumps(value))
        sys.stdout.flush()


def show(*parts: RenderableType) -> None:
    """Print tables and texts, as wide as the terminal is, with a blank line between."""
    console = Console(highlight=False, soft_wrap=False)
    for position, part in enumerate(parts):
        with printing():
            if position:
                console.print()
            console.print(part)


def table(*columns: str, title: str | None = None, numbers: Sequence[int] = ()) -> Table:
    """An empty table; the columns at `numbers` hold numbers."""
    made = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        pad_edge=False,
        padding=0,
    )
    for position, column in enumerate(columns):
        right = position in numbers
        made.add_column(
            column,
            justify="right" if right else "left",
            no_wrap=right or position == 0,
            vertical="bottom" if right else "top",
        )
    return made


def facts(title: str | None, rows: Iterable[tuple[str, str | Text]]) -> Table:
    """A list of names with what belongs to each."""
    made = Table(
        box=None,
        title=title,
        min_width=min(len(title or ""), Console().width),  # titles are not broken sooner
        title_justify="left",
        title_style="bold",
        show_header=False,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    made.add_column(no_wrap=True, style="cyan")
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(name, value)
    return made


def count_text(count: float) -> str:
    """`123,456`, `12.35M`."""
    if abs(count) < EXACT_BELOW:
        return f"{count:,.0f}"
    count /= EXACT_BELOW
    for unit in ("M", "G"):
        if abs(count) < 999.95:
            return f"{count:.4g}{unit}"
        count /= 1000
    return f"{count:,.4g}T"


def rate_text(per_second: float) -> str:
    """`950`, `15.2k`, `1.25M`: three digits, for what is measured."""
    for unit in ("", "k", "M"):
        if abs(per_second) < 999.5:
            return f"{per_second:.3g}{unit}"
        per_second /= 1000
    return f"{per_second:.3g}G"


def size_text(size_bytes: float) -> str:
    """`512 B`, `64 MiB`, `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size_bytes) < 1024:
            return f"{size_bytes:.4g} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.4g} TiB"


def feature_set(features: int, names: Sequence[str]) -> dict[str, Any]:
    """A feature set in JSON: its bits in hexadecimal, for numbers end at 53 bits, and the names."""
    return {"bits": f"{features:#x}", "names": list(names)}
