"""The demo's result as a picture: bars for every kind of ring.

A drawing is a list of rectangles and texts. It becomes an SVG file by itself, and a PNG file
through matplotlib where that is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from xml.sax.saxutils import escape

from virtq.demo.run import Outcome
from virtq.errors import VirtqError
from virtq.features import RingKind

WIDTH = 980
MARGIN = 24
LABEL_WIDTH = 116
PANEL_GAP = 20
BAR_HEIGHT = 16
BAR_STEP = 24
DEVICE_HEIGHT = 34 + BAR_STEP * len(RingKind)
PANEL_TOP = 118

INK, FAINT, PAPER, TRACK = "#1f2328", "#656d76", "#ffffff", "#eef1f4"
COLORS = {
    RingKind.SPLIT: "#a8b1bb",
    RingKind.SPLIT_IN_ORDER: "#e0803c",
    RingKind.PACKED: "#7d8893",
    RingKind.PACKED_IN_ORDER: "#c4521a",
}
TITLES = {"disk": "disk, 4 KiB reads and writes", "net": "network, 256-byte frames"}


@dataclass(frozen=True)
class Measure:
    """One thing to compare: what it is called, what it is of an outcome, how that is written."""

    title: str
    note: str
    value: Callable[[Outcome], float]
    text: Callable[[float], str]


def _thousands(value: float) -> str:
    return f"{value / 1000:.3g}k" if value >= 1000 else f"{value:.0f}"


def _plain(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


MEASURES = (
    Measure("buffers a second", "more is better", lambda o: o.buffers_per_second, _thousands),
    Measure("kicks", "by the driver, per 1000 buffers", lambda o: o.per_1000(o.kicks), _plain),
    Measure("calls", "by the device, per 1000 buffers", lambda o: o.per_1000(o.calls), _plain),
    Measure(
        "used entries",
        "written by the device, per 1000",
        lambda o: o.per_1000(o.used_entries),
        _plain,
    ),
)


@dataclass(frozen=True)
class Box:
    x: float
    y: float
    width: float
    height: float
    color: str


@dataclass(frozen=True)
class Text:
    """`y` is the baseline."""

    x: float
    y: float
    text: str
    size: float = 12
    color: str = INK
    bold: bool = False
    right: bool = False


@dataclass
class Drawing:
    width: float
    height: float
    parts: list[Box | Text] = field(default_factory=list)


def draw(outcomes: Sequence[Outcome]) -> Drawing:
    """Devices below each other, measures side by side, kinds of ring within."""
    devices = list(dict.fromkeys(outcome.device for outcome in outcomes))
    height = PANEL_TOP + DEVICE_HEIGHT * len(devices) + MARGIN
    drawing = Drawing(WIDTH, height)
    parts = drawing.parts
    parts.append(Text(MARGIN, 40, "virtq demo", 20, bold=True))
    verified = sum(outcome.work.bytes for outcome in outcomes) / (1 << 20)
    wrong = sum(outcome.error is not None for outcome in outcomes)
    verdict = f"{wrong} of them failed" if wrong else "every byte as it should be"
    what = (
        f"{len(outcomes)} runs over vhost-user between two processes, {verified:.0f} MiB compared"
    )
    parts.append(Text(MARGIN, 60, f"{what}: {verdict}", 12, FAINT))
    left = MARGIN + LABEL_WIDTH
    width = (WIDTH - MARGIN - left - PANEL_GAP * (len(MEASURES) - 1)) / len(MEASURES)
    for column, measure in enumerate(MEASURES):
        x = left + column * (width + PANEL_GAP)
        parts.append(Text(x, PANEL_TOP - 22, measure.title, 13, bold=True))
        parts.append(Text(x, PANEL_TOP - 6, measure.note, 11, FAINT))
        for row, device in enumerate(devices):
            mine = [outcome for outcome in outcomes if outcome.device == device]
            _panel(parts, measure, mine, x, PANEL_TOP + row * DEVICE_HEIGHT, width)
    for row, device in enumerate(devices):
        top = PANEL_TOP + row * DEVICE_HEIGHT
        parts.append(Text(MARGIN, top + 18, TITLES.get(device, device), 12, FAINT))
        for line, outcome in enumerate(o for o in outcomes if o.device == device):
            y = top + 28 + line * BAR_STEP + BAR_HEIGHT - 4
            parts.append(Text(left - 10, y, outcome.kind.title, 12, right=True))
    return drawing


def _panel(
    parts: list[Box | Text],
    measure: Measure,
    outcomes: Sequence[Outcome],
    x: float,
    top: float,
    width: float,
) -> None:
    room = width - 44
    most = max((measure.value(outcome) for outcome in outcomes), default=0) or 1
    for line, outcome in enumerate(outcomes):
        y = top + 28 + line * BAR_STEP
        value = measure.value(outcome)
        length = room * value / most
        parts.append(Box(x, y, room, BAR_HEIGHT, TRACK))
        parts.append(Box(x, y, max(length, 1.5), BAR_HEIGHT, COLORS[outcome.kind]))
        text = "failed" if outcome.error else measure.text(value)
        parts.append(Text(x + room + 6, y + BAR_HEIGHT - 4, text, 11.5))


# Files


def check_form(path: Path) -> None:
    """Raises VirtqError for what is neither an .svg nor a .png file, and for a .png where
    matplotlib is missing."""
    if path.suffix not in (".svg", ".png"):
        raise VirtqError(f"{path}: a picture is an .svg or a .png file")
    if path.suffix == ".png" and find_spec("matplotlib") is None:
        hint = "an .svg file needs nothing, a .png file needs virtq[plot]"
        raise VirtqError(f"{path}: matplotlib is not installed: {hint}")


def save(drawing: Drawing, path: Path) -> None:
    """Write an .svg or .png file. Raises VirtqError as `check_form` does, and OSError."""
    check_form(path)
    if path.suffix == ".svg":
        path.write_text(to_svg(drawing), encoding="utf-8")
    else:
        _save_png(drawing, path)


def to_svg(drawing: Drawing) -> str:
    """The drawing as an SVG document."""
    size = f'width="{drawing.width:g}" height="{drawing.height:g}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} '
        f'viewBox="0 0 {drawing.width:g} {drawing.height:g}" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">',
        f'<rect width="100%" height="100%" rx="8" fill="{PAPER}"/>',
    ]
    for part in drawing.parts:
        if isinstance(part, Box):
            lines.append(
                f'<rect x="{part.x:.1f}" y="{part.y:.1f}" width="{part.width:.1f}" '
                f'height="{part.height:.1f}" rx="2" fill="{part.color}"/>'
            )
        else:
            style = f'font-size="{part.size:g}" fill="{part.color}"'
            style += ' font-weight="600"' if part.bold else ""
            style += ' text-anchor="end"' if part.right else ""
            lines.append(
                f'<text x="{part.x:.1f}" y="{part.y:.1f}" {style}>{escape(part.text)}</text>'
            )
    return "\n".join([*lines, "</svg>", ""])


def _save_png(drawing: Drawing, path: Path) -> None:
    figures = import_module("matplotlib.figure")
    patches = import_module("matplotlib.patches")
    points = 72 / 100  # a unit of the drawing, at 100 units to the inch
    figure = figures.Figure(figsize=(drawing.width / 100, drawing.height / 100), facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, drawing.width)
    axes.set_ylim(drawing.height, 0)
    axes.set_axis_off()
    for part in drawing.parts:
        if isinstance(part, Box):
            place = (part.x, part.y)
            box = patches.Rectangle(place, part.width, part.height, color=part.color, linewidth=0)
            axes.add_patch(box)
        else:
            axes.text(
                part.x,
                part.y,
                part.text,
                fontsize=part.size * points,
                color=part.color,
                weight="bold" if part.bold else "normal",
                ha="right" if part.right else "left",
                va="baseline",
            )
    figure.savefig(path, format="png", dpi=200)
