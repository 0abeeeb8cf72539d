"""A comparison as a picture: every window of every contender on one scale, as inline SVG.

Colours come from the page's style sheet, so that a picture is right on light and on dark paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from xml.sax.saxutils import escape

from virtq.bench.comparison import Comparison, Summary
from virtq.bench.table import rate

WIDTH = 880
ROW_HEIGHT = 38
TOP = 10
AXIS_HEIGHT = 40
LETTER_WIDTH = 7.2
"""Of the labels, about."""
LABEL_MOST = 290
VALUES_WIDTH = 150
BOX_HEIGHT = 14
TICKS = 6


def ticks(most: float, count: int = TICKS) -> list[float]:
    """Round numbers from 0 to beyond `most`, about `count` of them."""
    if most <= 0:
        return [0.0, 1.0]
    rough = most / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999)
    last = math.ceil(most / step - 1e-9)
    return [step * position for position in range(last + 1)]


def strips(comparison: Comparison) -> str:
    """A row for each contender: its windows as dots, a box over the middle half, a stroke at the
    median, a ring around the best. The scale begins at zero."""
    shown = [one for one in comparison.contenders if one.rates]
    longest = max((len(one.name) for one in shown), default=0)
    left = min(longest * LETTER_WIDTH, LABEL_MOST) + 16
    room = WIDTH - left - VALUES_WIDTH
    floors = [one.floor_per_s or 0.0 for one in shown]
    marks = ticks(max([one.best for one in shown] + floors, default=0.0))
    bottom = TOP + ROW_HEIGHT * len(shown)
    height = bottom + AXIS_HEIGHT

    def x(value: float) -> float:
        return left + room * value / marks[-1]

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{_alt(comparison)}">',
        f"<title>{escape(comparison.title)}</title>",
    ]
    parts += _axis(marks, [x(mark) for mark in marks], bottom, f"{comparison.unit} a second")
    for position, one in enumerate(shown):
        kind = "base" if position == 0 and len(shown) > 1 else "other"
        middle = TOP + ROW_HEIGHT * position + ROW_HEIGHT / 2
        parts += _row(one, kind, middle, left, x)
    return "\n".join([*parts, "</svg>"])


def _alt(comparison: Comparison) -> str:
    """For those who cannot see it."""
    each = [f"{one.name}: median {rate(one.median)}" for one in comparison.contenders if one.rates]
    return escape("; ".join(each), {'"': "&quot;"})


def _axis(marks: Sequence[float], places: Sequence[float], bottom: float, unit: str) -> list[str]:
    parts = []
    for mark, place in zip(marks, places, strict=True):
        parts.append(
            f'<line class="grid" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{bottom}"/>'
        )
        parts.append(
            f'<text class="tick" x="{place:.1f}" y="{bottom + 16}">{escape(rate(mark))}</text>'
        )
    middle = (places[0] + places[-1]) / 2
    parts.append(f'<text class="tick" x="{middle:.1f}" y="{bottom + 33}">{escape(unit)}</text>')
    return parts


def _row(
    one: Summary, kind: str, middle: float, left: float, x: Callable[[float], float]
) -> list[str]:
    low, high = one.quartiles
    top = middle - BOX_HEIGHT / 2
    box = max(x(high) - x(low), 2)
    name = one.name if len(one.name) * LETTER_WIDTH <= LABEL_MOST else one.name[:38] + "…"
    parts = [
        f'<g class="{kind}">',
        f'<text class="name" x="{left - 12:.1f}" y="{middle + 4:.1f}">{escape(name)}</text>',
        f'<line class="range" x1="{x(one.worst):.1f}" x2="{x(one.best):.1f}" '
        f'y1="{middle}" y2="{middle}"/>',
        f'<rect class="box" x="{x(low):.1f}" y="{top}" width="{box:.1f}" height="{BOX_HEIGHT}" '
        'rx="3"/>',
    ]
    parts += [f'<circle class="dot" cx="{x(r):.1f}" cy="{middle}" r="2.2"/>' for r in one.rates]
    if one.floor_per_s is not None:
        parts.append(
            f'<line class="floor" x1="{x(one.floor_per_s):.1f}" x2="{x(one.floor_per_s):.1f}" '
            f'y1="{middle - 15}" y2="{middle + 15}"/>'
        )
    parts += [
        f'<line class="median" x1="{x(one.median):.1f}" x2="{x(one.median):.1f}" '
        f'y1="{middle - 11}" y2="{middle + 11}"/>',
        f'<circle class="best" cx="{x(one.best):.1f}" cy="{middle}" r="4.5"/>',
        f'<text class="value" x="{WIDTH - VALUES_WIDTH + 14}" y="{middle + 4:.1f}">'
        f'<tspan class="strong">{escape(rate(one.median))}</tspan>'
        f" · best {escape(rate(one.best))}</text>",
        "</g>",
    ]
    return parts
