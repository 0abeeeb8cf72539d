"""The frame of the benches: turns, bounds, and what is made of the windows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import pytest

from virtq.bench.case import BenchError, Case, Contender, Rated, Target, Window
from virtq.bench.comparison import Comparison, Summary
from virtq.bench.distance import between, levels, same
from virtq.bench.machine import describe
from virtq.bench.measure import compare, run_case
from virtq.bench.result import SCHEMA, Result
from virtq.bench.table import caption, duration, goals, markdown, rate, rows
from virtq.errors import VirtqError


class Fake:
    """A contender whose windows are told beforehand; the last one repeats."""

    def __init__(
        self,
        name: str,
        rates: Sequence[float] = (1000.0,),
        counts: Mapping[str, float] | None = None,
        diary: list[str] | None = None,
        fails_at: int | None = None,
    ) -> None:
        self.name = name
        self.rates = list(rates)
        self.counts = counts or {}
        self.diary = [] if diary is None else diary
        self.fails_at = fails_at
        self.asked: list[float] = []
        self.closed = 0

    def window(self, seconds: float) -> Window:
        self.diary.append(self.name)
        self.asked.append(seconds)
        if self.fails_at is not None and len(self.asked) > self.fails_at:
            raise VirtqError(f"{self.name} is gone")
        rate = self.rates[min(len(self.asked), len(self.rates)) - 1]
        return Window(int(rate * 2), 2.0, self.counts)

    def close(self) -> None:
        self.closed += 1


def test_contenders_take_turns_and_change_their_order() -> None:
    diary: list[str] = []
    contenders = [Fake(name, diary=diary) for name in "abc"]
    turns = compare(contenders, pairs=3, window_s=0.2, warm_up=1)
    assert "".join(diary) == "abc" + "cba" + "abc" + "cba"
    assert turns.rounds == 3
    assert [one.name for one in turns.summaries] == ["a", "b", "c"]
    assert all(len(one.rates) == 3 for one in turns.summaries)
    assert {seconds for one in contenders for seconds in one.asked} == {0.2}


def test_what_warms_up_does_not_count() -> None:
    (summary,) = compare([Fake("a", (1.0, 10.0, 30.0, 20.0))], pairs=3, warm_up=1).summaries
    assert summary.rates == (10.0, 30.0, 20.0)
    assert (summary.median, summary.best, summary.worst) == (20.0, 30.0, 10.0)
    assert summary.quartiles == (15.0, 25.0)
    assert summary.work == 120
    assert summary.ns_per_unit == 5e7


def test_counts_are_summed_and_percentiles_are_not() -> None:
    counts = {"kicks": 50, "p50_ns": 1500.0, "p99.9_ns": 9000.0, "p999_ns": 8000.0, "pages_ns": 1}
    (summary,) = compare([Fake("a", (100.0,), counts)], pairs=4, warm_up=0).summaries
    assert summary.counts["kicks"] == 200
    assert summary.per_1000 == {"kicks": 250.0, "pages_ns": 5.0}
    assert summary.latency_ns["p50"] == 1500.0
    assert set(summary.latency_ns) == {"p50", "p99.9"}


def test_who_fails_is_left_out_and_the_others_go_on() -> None:
    good, bad = Fake("good"), Fake("bad", fails_at=2)
    turns = compare([good, bad], pairs=5, warm_up=1)
    first, second = turns.summaries
    assert (turns.rounds, len(first.rates), first.error) == (5, 5, None)
    assert (len(second.rates), second.error) == (1, "bad is gone")
    assert len(bad.asked) == 3


def test_nothing_goes_on_when_all_have_failed() -> None:
    contenders = [Fake("a", fails_at=0), Fake("b", fails_at=0)]
    turns = compare(contenders, pairs=50, warm_up=1)
    summaries = turns.summaries
    assert turns.rounds == 0
    assert [len(one.asked) for one in contenders] == [1, 1]
    assert [one.rates for one in summaries] == [(), ()]
    assert summaries[0].median == summaries[0].best == summaries[0].ns_per_unit == 0.0


def ticking(seconds: float) -> Callable[[], float]:
    def tick() -> Iterator[float]:
        now = 0.0
        while True:
            yield now
            now += seconds

    return tick().__next__


def test_a_comparison_ends_when_its_time_is_up() -> None:
    contender = Fake("slow")
    turns = compare([contender], pairs=1000, warm_up=1, time_limit_s=10, clock=ticking(seconds=3))
    assert turns.rounds == 4  # the clock is read after the first round that counts: 3, 6, 9, 12
    assert len(contender.asked) == 1 + 4


def test_one_round_is_made_even_without_time() -> None:
    turns = compare([Fake("a")], pairs=9, time_limit_s=0, clock=ticking(1))
    assert turns.rounds == 1


def looks(*trips: float | None) -> Callable[[], float | None]:
    """What is seen at each look; the last one stays."""
    left = list(trips)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def test_a_round_through_which_the_processors_moved_is_made_again() -> None:
    near, far = 60e-9, 300e-9
    # Four looks at a round: the second one that counts begins near and ends far.
    look = looks(*[near] * 9, *[far] * 99)
    contenders = [Fake("a", (1.0, 2.0, 3.0, 4.0)), Fake("b"), Fake("c")]
    turns = compare(contenders, pairs=2, warm_up=1, look=look)
    assert turns.rounds == 2
    assert turns.summaries[0].rates == (2.0, 4.0)
    assert [len(one.asked) for one in contenders] == [4, 4, 4]
    assert turns.round_trips_s == (near, far)


def test_rounds_count_where_the_processors_never_rest() -> None:
    moving = [60e-9 * (1 + 2 * (at % 2)) for at in range(99)]
    contender = Fake("a", [float(number) for number in range(1, 9)])
    turns = compare([contender], pairs=3, warm_up=0, look=looks(*moving))
    assert (turns.rounds, len(contender.asked)) == (3, 4)
    assert turns.summaries[0].rates == (1.0, 2.0, 3.0)
    assert len(turns.round_trips_s) == 3


def test_nothing_is_made_again_where_nobody_can_look() -> None:
    turns = compare([Fake("a"), Fake("b")], pairs=3, warm_up=1, look=looks(None))
    assert (turns.rounds, turns.round_trips_s) == (3, ())


def test_distances_by_level() -> None:
    assert levels([]) == []
    assert levels([64.0, 310.0, 62.0, 320.0, 70.0]) == [[62.0, 64.0, 70.0], [310.0, 320.0]]
    assert same([])
    assert same([60.0, 89.0])
    assert not same([60.0, 91.0])
    assert between((3, 3)) is None
    assert between((0, 1 << 20)) is None


def test_it_is_told_how_far_the_processors_were_apart() -> None:
    made = comparison()
    assert "processors" not in caption(made)
    far = replace(made, round_trips_s=(60e-9, 66e-9, 300e-9))
    text = "a line between the processors and back: 63 ns in 2 of them, 300 ns in 1"
    assert caption(far).endswith(text)
    assert caption(replace(made, round_trips_s=(60e-9,))).endswith("and back: 60 ns")
    assert Comparison.from_json(far.as_json()).round_trips_s == far.round_trips_s


def test_progress_is_told() -> None:
    told: list[tuple[int, int, str]] = []
    compare(
        [Fake("a"), Fake("b")],
        pairs=1,
        warm_up=1,
        progress=lambda done, count, name: told.append((done, count, name)),
    )
    assert told == [(0, 4, "a"), (1, 4, "b"), (2, 4, "b"), (3, 4, "a"), (4, 4, "")]


@pytest.mark.parametrize(
    ("names", "options", "text"),
    [
        ("ab", {"pairs": 0}, "0 rounds"),
        ("ab", {"warm_up": -1}, "-1 to warm up"),
        ("ab", {"window_s": 1.5}, "1.5 s is not within 1 s"),
        ("ab", {"window_s": 0.0}, "0 s"),
        ("aa", {}, "same name"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(
    names: str, options: dict[str, float], text: str
) -> None:
    with pytest.raises(BenchError, match=text):
        compare([Fake(name) for name in names], **options)  # type: ignore[arg-type]


def comparison() -> Comparison:
    case = Case(
        "a title",
        lambda: [
            Fake("base", (100.0, 200.0), {"kicks": 3.0, "p50_ns": 1200.0}),
            Fake("other", (300.0, 500.0), {"used_entries": 8.0}),
            Fake("bad", fails_at=0),
        ],
        unit="requests",
        parameters={"batch": 32, "indirect": False, "mergeable": True},
        targets=[Target("other", "base", 2.0), Target("base", "other", 1.0)],
        floors={"base": 150.0, "other": 450.0},
        work="Nothing is done.",
    )
    return run_case(case, pairs=2, window_s=0.1, warm_up=0)


def test_ratios_and_targets() -> None:
    made = comparison()
    to_base, to_other = made.ratios
    assert (to_base.of, to_base.to, to_base.target) == ("other", "base", 2.0)
    assert to_base.medians == pytest.approx(400 / 150)
    assert to_base.bests == pytest.approx(2.5)
    assert (to_base.met, to_other.met) == (True, False)
    assert [one.met for one in made.contenders] == [True, False, None]
    assert made.errors == {"bad": "bad is gone"}


def test_targets_may_be_of_whoever_comes_out_first() -> None:
    def aims(rated: Sequence[Rated]) -> list[Target]:
        slow, fast = sorted(rated, key=lambda one: one.median)
        return [Target(fast.name, slow.name, 3.0)]

    case = Case(
        "a title",
        lambda: [Fake("one", (100.0,)), Fake("other", (400.0,))],
        targets=[Target("one", "other", 1.0)],
        aims=aims,
    )
    made = run_case(case, pairs=2, window_s=0.1, warm_up=0)
    assert made.targets == (Target("one", "other", 1.0), Target("other", "one", 3.0))
    assert {(one.of, one.to): one.met for one in made.ratios} == {
        ("one", "other"): False,
        ("other", "one"): True,
    }


def test_contenders_are_let_go_whatever_happens() -> None:
    made: list[Fake] = []

    def make(*names: str) -> Sequence[Contender]:
        made.extend(Fake(name) for name in names)
        return made

    run_case(Case("good", lambda: make("a", "b")), pairs=1, window_s=0.1)
    with pytest.raises(BenchError):
        run_case(Case("twins", lambda: make("a")), pairs=1, window_s=0.1)
    assert [one.closed for one in made] == [2, 2, 1]


def test_a_budget_makes_windows_shorter() -> None:
    fakes = [Fake("a"), Fake("b")]
    run_case(Case("short", lambda: fakes), pairs=9, warm_up=1, window_s=1.0, budget_s=2.0)
    assert all(0.05 < seconds <= 0.1 for one in fakes for seconds in one.asked)


class Slow(Fake):
    """Takes a time of its own beside each window, by a clock that it moves itself."""

    now = 0.0

    def window(self, seconds: float) -> Window:
        Slow.now += seconds + 0.3
        return super().window(seconds)


def test_windows_are_fitted_to_what_comes_on_top_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Slow, "now", 0.0)
    fakes = [Slow("a"), Slow("b")]
    options = {"pairs": 9, "window_s": 0.5, "time_limit_s": 10.0, "clock": lambda: Slow.now}
    assert compare(fakes, **options, fit=True).rounds == 9  # type: ignore[arg-type]
    # 10 s less 1.6 for the warm-up, for 18 windows and 0.3 s with each.
    assert {round(each, 4) for one in fakes for each in one.asked[1:]} == {round(8.4 / 18 - 0.3, 4)}
    assert compare([Slow("a"), Slow("b")], **options).rounds < 9  # type: ignore[arg-type]


def counting(name: str, kicks: float, p50: float, fails_at: int | None = None) -> Fake:
    return Fake(name, (1000.0,), {"kicks": kicks, "p50_ns": p50}, fails_at=fails_at)


def test_what_is_hoped_for_of_counts_and_latencies() -> None:
    case = Case(
        "counts",
        lambda: [counting("a", 2000, 900.0), counting("b", 500, 600.0), counting("c", 1, 1.0, 0)],
        targets=[
            Target("b", "a", 1.0, "p50_ns"),
            Target("b", "a", 5.0, "kicks"),
            Target("b", "a", 1.0, "calls"),
            Target("c", "a", 1.0),
        ],
        ceilings={"a": {"kicks": 999}, "b": {"kicks": 250}, "c": {"kicks": 1}},
    )
    made = run_case(case, pairs=20, window_s=0.1)
    seen = {(aim.of, aim.target): (aim.medians, aim.verdict) for aim in goals(made)}
    assert seen == {
        ("a", "≤ 999 kicks per 1000"): ("1,000", "missed"),
        ("b", "≤ 250 kicks per 1000"): ("250", "met"),
        ("c", "≤ 1 kicks per 1000"): ("", "not measured"),
        ("b", "p50 ≤ a"): ("1.50 \N{MULTIPLICATION SIGN}", "met"),
        ("b", "kicks per 1000 ≤ 0.2 \N{MULTIPLICATION SIGN} a"): (
            "4.00 \N{MULTIPLICATION SIGN}",
            "missed",
        ),
        ("b", "calls per 1000 ≤ a"): ("", "not measured"),
        ("c", "≥ 1 \N{MULTIPLICATION SIGN} a"): ("", "not measured"),
    }
    again = Comparison.from_json(json.loads(json.dumps(made.as_json())))
    assert goals(again) == goals(made)
    assert again == made


def test_a_verdict_over_few_windows_says_so() -> None:
    verdicts = {aim.target: aim.verdict for aim in goals(comparison())}
    assert verdicts["≥ 150 requests/s"] == "met, over 2 windows"


def result() -> Result:
    return Result(
        "rings",
        "virtq bench rings",
        "2026-01-02T03:04:05+00:00",
        1.5,
        describe(),
        (comparison(),),
        ("a note",),
    )


def test_json_holds_everything() -> None:
    first = result()
    stored = json.loads(json.dumps(first.as_json()))
    assert stored["schema"] == SCHEMA
    assert set(stored) == {
        "schema", "bench", "command", "started", "seconds", "machine", "notes", "comparisons"
    }  # fmt: skip
    contender = stored["comparisons"][0]["contenders"][0]
    assert contender["median_per_s"] == 150.0
    assert contender["best_per_s"] == 200.0
    assert contender["per_1000"] == {"kicks": 1000 * 6 / 600}
    assert contender["latency_ns"] == {"p50": 1200.0}
    assert contender["rates_per_s"] == [100.0, 200.0]
    again = Result.from_json(stored)
    assert again.as_json() == first.as_json()
    assert again == first


@pytest.mark.parametrize(
    "spoil",
    [
        lambda stored: stored.update(schema=SCHEMA + 1),
        lambda stored: stored.pop("machine"),
        lambda stored: stored["machine"].pop("cpu"),
        lambda stored: stored["comparisons"][0].pop("contenders"),
        lambda stored: stored["comparisons"][0]["contenders"][0].update(rates_per_s=["fast"]),
        lambda stored: stored.update(comparisons=7),
    ],
)
def test_json_that_is_no_result_is_refused(spoil: Callable[[dict[str, object]], object]) -> None:
    stored = json.loads(json.dumps(result().as_json()))
    spoil(stored)
    with pytest.raises(BenchError):
        Result.from_json(stored)


def test_the_machine_is_described() -> None:
    machine = describe({"peer": "1.2"})
    assert machine.cpu
    assert machine.cores >= 1
    assert machine.memory_bytes > 1 << 20
    assert set(machine.versions) == {"virtq", "python", "numpy", "peer"}
    assert f"{machine.cores} cores" in machine.title


def test_rows_for_people() -> None:
    made = rows(comparison(), verdicts=True)
    base, other, bad = made.rows
    cells = dict(zip(made.headings, base, strict=True))
    assert cells["median /s"] == "150"
    assert cells["per request"] == "6.67 ms"
    assert cells["kicks per 1000"] == "10"
    assert cells["used entries per 1000"] == ""
    assert cells["p50"] == "1.2 µs"
    assert "≥ 150 requests/s: met" in cells["target"]
    assert "2.67" in other[made.headings.index("medians")]
    assert bad[:2] == ["bad", "bad is gone"]
    assert {len(row) for row in made.rows} == {len(made.headings)}


def test_markdown_is_a_table() -> None:
    lines = markdown(comparison()).splitlines()
    assert lines[0].startswith("**a title** (batch 32, mergeable, requests, 2 windows")
    assert {line.count("|") for line in lines[2:]} == {lines[2].count("|")}
    assert len(lines) == 2 + 2 + 3


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (950, "950"), (999.6, "1 k"), (15_240, "15.2 k"), (2.5e6, "2.5 M"), (3e9, "3 G")],
)
def test_rates_as_text(value: float, text: str) -> None:
    assert rate(value) == text


@pytest.mark.parametrize(
    ("ns", "text"), [(5.25, "5.25 ns"), (21_400, "21.4 µs"), (1.2e6, "1.2 ms"), (3e9, "3 s")]
)
def test_durations_as_text(ns: float, text: str) -> None:
    assert duration(ns) == text


def test_a_summary_of_nothing() -> None:
    nothing = Summary.of("nothing", [])
    assert nothing.per_1000 == {}
    assert nothing.quartiles == (0.0, 0.0)
