"""The page: whole by itself, right in a browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from virtq.bench.case import Target
from virtq.bench.comparison import Comparison, Summary
from virtq.bench.machine import Machine
from virtq.bench.plot import strips, ticks
from virtq.bench.report import page, save
from virtq.bench.result import Result
from virtq.bench.table import Rows
from virtq.cli.measuring import publish

MACHINE = Machine("A processor <fast>", 2, 8 << 30, "6.1", True, None, {"virtq": "0.1"})
CHROMIUM_TIMEOUT_S = 60


def summary(name: str, *rates: float, floor: float | None = None) -> Summary:
    counts = {"kicks": 12.0, "used_entries": 31.0, "p50_ns": 900.0}
    return Summary(name, rates, 1000, 1.0, counts, floor_per_s=floor)


def comparison(title: str = "split & packed") -> Comparison:
    contenders = (
        summary("any <order>", 1e6, 2e6, 3e6),
        summary('in "order"', 2e6, 4e6, 5e6, floor=3e6),
        Summary("gone", (), 0, 0.0, {}, "it <ended>"),
    )
    targets = (Target('in "order"', "any <order>", 1.5),)
    parameters: dict[str, str | int | float | bool] = {"batch": 32}
    return Comparison(
        title, "buffers", "Bytes are copied.", parameters, 3, 3, 0.1, contenders, targets
    )


def result(*titles: str) -> Result:
    made = tuple(comparison(title) for title in titles or ("split & packed",))
    started = "2026-01-02T03:04:05+00:00"
    return Result("rings", "virtq bench rings --quick", started, 9.0, MACHINE, made, ("a <note>",))


class Page(HTMLParser):
    """What a page consists of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def test_nothing_is_fetched() -> None:
    text = page([result("one", "two")])
    shown = Page(text)
    fetching = {"src", "href", "srcset", "data", "action", "poster", "xlink:href", "background"}
    assert [tag for tag in shown.tags if fetching & set(tag[1])] == []
    assert shown.count("script") == shown.count("link") == shown.count("iframe") == 0
    assert re.findall(r"url\s*\(|@import|https?:", text) == []


def test_everything_is_there() -> None:
    shown = Page(page([result("one", "two")]))
    assert shown.count("svg") == 2
    assert shown.count("table") == 1 + 2 * 2  # one of targets; what is timed, and counts
    said = " ".join(" ".join(shown.texts).split())
    for text in (
        "A processor <fast>",
        "2 January 2026, 03:04 UTC",
        "virtq bench rings --quick",
        "a <note>",
        "any <order>",
        'in "order"',
        "it <ended>",
        "Bytes are copied.",
        "Rings alone: 4 of 4 met",
        "≥ 3 M buffers/s",
        "met, over 3 windows",
        "p50, p99, p99.9",
        "used entries per 1000",
        "met",
    ):
        assert text in said


def test_how_far_the_processors_were_is_explained_where_it_is_told() -> None:
    plain = result("one")
    looked = replace(
        plain,
        comparisons=tuple(replace(one, round_trips_s=(64e-9,)) for one in plain.comparisons),
    )
    said, unsaid = (" ".join(" ".join(Page(page([r])).texts).split()) for r in (looked, plain))
    assert "a line between the processors and back: 64 ns" in said
    assert "hand cache lines to each other" in said
    assert "cache lines" not in unsaid


def test_results_of_several_runs_share_a_page() -> None:
    first, second = result("one"), result("two")
    shown = Page(page([first, second]))
    assert shown.count("svg") == 2
    assert shown.count("h1") == 1


def test_a_plot_has_every_window() -> None:
    plot = strips(comparison())
    assert plot.count('class="dot"') == 6
    assert plot.count('class="median"') == 2  # who has no window is not in it
    assert plot.count('class="floor"') == 1
    assert "any &lt;order&gt;" in plot
    inside = [float(x) for x in re.findall(r'(?:cx|x1|x2)="([\d.-]+)"', plot)]
    assert all(0 <= x <= 880 for x in inside)


def test_a_plot_of_nothing_is_still_one() -> None:
    empty = Comparison("none", "buffers", "", {}, 1, 0, 0.1, (Summary("x", (), 0, 0, {}, "no"),))
    assert strips(empty).endswith("</svg>")


@pytest.mark.parametrize("most", [0, 1, 3.7, 9.99, 42, 1e6, 2.5e7, 123456789])
def test_scales_are_round_and_large_enough(most: float) -> None:
    marks = ticks(most)
    assert marks[0] == 0
    assert marks[-1] >= most
    assert 2 <= len(marks) <= 10


def test_it_is_right_in_a_browser(tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not on PATH: run scripts/peers.sh")
    path = tmp_path / "page.html"
    save([result("one", "two")], path)
    command = [
        *(chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"),
        *(f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000"),
        # Whatever it would fetch has no network to come from.
        *("--proxy-server=127.0.0.1:9", f"file://{path}"),
    ]
    dump = subprocess.run(
        command, capture_output=True, text=True, timeout=CHROMIUM_TIMEOUT_S, check=True
    ).stdout
    shown = Page(dump)
    assert shown.count("svg") == 2
    assert shown.count("table") == 5
    assert shown.count("circle") == 2 * (6 + 2)
    assert "any <order>" in shown.texts


def test_tables_that_are_too_wide_are_broken_by_columns() -> None:
    made = Rows(
        ["", *"abcdefg"], [["one", *"1234567"], ["two", *"12345", "", ""], ["bad", *[""] * 7]], 6
    )

    def fits(part: Rows) -> bool:
        return len(part.headings) <= 4

    parts = made.without({"bad"}).fitting(fits)
    assert [part.headings for part in parts] == [["", *"abc"], ["", *"de"], ["", *"fg"]]
    assert [[row[0] for row in part.rows] for part in parts] == [
        ["one", "two"],
        ["one", "two"],
        ["one"],  # the other has none of these counts
    ]
    assert made.fitting(lambda part: True) == [made]
    assert all(len(part.headings) == 2 for part in made.fitting(lambda part: False))


def test_what_failed_stands_below_the_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    publish([result("one")], as_json=False, as_markdown=False, report=None)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert "gone: it <ended>" in lines
    assert [line for line in lines if line.startswith("gone")] == ["gone: it <ended>"]
    assert max(map(len, lines)) <= 80
