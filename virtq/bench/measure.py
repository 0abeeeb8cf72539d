"""The frame of every measurement: contenders take turns in short windows.

Rates on a shared machine jump between levels, so that one run of A and then one of B says more
about the machine than about either. Here A and B work in turn, a second or less each and twenty
times or more, the order changing from round to round. Compared are the medians and the bests; what
does not jump, the counts, stands beside them. Where the work is between two processors, it is
looked at how far these are apart, and a round through which that changed is made again.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from virtq.bench.case import BenchError, Case, Contender, Window
from virtq.bench.comparison import Comparison, Summary
from virtq.bench.distance import Look, same
from virtq.errors import VirtqError

PAIRS = 20
"""Rounds: windows of each contender."""
WINDOW_S = 0.25
WINDOW_MOST_S = 1.0
"""A window longer than this would see the machine change."""
WINDOW_LEAST_S = 0.01
SLACK = 3.0
"""How much longer than planned a comparison may take, as a factor, before it ends early."""
SPARE = 0.2
"""Of the rounds: how many more there is time for where some may have to be made again."""
START_S = 30.0
"""What the windows may take longer than planned at the least."""

Progress = Callable[[int, int, str], None]
"""Told how many of how many windows are done, and whose turn it is."""


@dataclass(frozen=True)
class _Round:
    turn: int
    windows: dict[str, Window]
    """By contender."""
    trips: tuple[float, ...]
    """How far apart the processors were, before and after each window."""


@dataclass(frozen=True)
class Turns:
    """What came of taking turns."""

    summaries: list[Summary]
    """In the order in which the contenders were given."""
    rounds: int
    round_trips_s: tuple[float, ...] = ()
    """Of each round, if it was looked at."""


def compare(
    contenders: Sequence[Contender],
    *,
    pairs: int = PAIRS,
    window_s: float = WINDOW_S,
    warm_up: int = 1,
    time_limit_s: float | None = None,
    fit: bool = False,
    look: Look | None = None,
    progress: Progress = lambda done, count, name: None,
    clock: Callable[[], float] = time.monotonic,
) -> Turns:
    """Windows of all contenders in turn: `warm_up` rounds that do not count, then `pairs` rounds
    that do, every other one backwards.

    After `time_limit_s` (by default a multiple of what the windows should take) no further round
    begins. With `fit` windows are shortened, after the rounds to warm up, by what comes on top of
    each, so that all rounds fit in. A contender that raises VirtqError or OSError is left out from
    then on.

    With `look` a round through which the processors moved is made again, as long as there is time
    and not more than all of them were; where they never rest, such rounds count as well.

    Raises BenchError for numbers that make no sense."""
    if pairs < 1 or warm_up < 0:
        raise BenchError(f"{pairs} rounds after {warm_up} to warm up: at least 1 after 0")
    if not 0 < window_s <= WINDOW_MOST_S:
        raise BenchError(f"a window of {window_s:g} s is not within {WINDOW_MOST_S:g} s")
    if len({contender.name for contender in contenders}) != len(contenders):
        raise BenchError("two contenders have the same name")
    planned = pairs if look is None else pairs + math.ceil(SPARE * pairs)
    count = (warm_up + pairs) * len(contenders)
    limit_s = max(SLACK * count * window_s, START_S) if time_limit_s is None else time_limit_s
    begun = clock()
    deadline = begun + limit_s
    errors: dict[str, str] = {}
    steady: list[_Round] = []
    moved: list[_Round] = []
    turn = 0
    while turn < warm_up or (len(steady) < pairs and len(moved) <= pairs):
        if len(errors) == len(contenders) or (turn > warm_up and clock() >= deadline):
            break
        if fit and turn == warm_up > 0:
            now = clock()
            extra_s = max((now - begun) / (turn * len(contenders)) - window_s, 0)
            share_s = (deadline - now) / (planned * (len(contenders) - len(errors)))
            window_s = max(min(window_s, share_s - extra_s), WINDOW_LEAST_S)
        made: dict[str, Window] = {}
        trips = [look() if look else None]
        done = (min(turn, warm_up) + len(steady)) * len(contenders)
        for contender in contenders if turn % 2 == 0 else reversed(contenders):
            progress(done, count, contender.name)
            done += 1
            if contender.name in errors:
                continue
            try:
                made[contender.name] = contender.window(window_s)
            except (VirtqError, OSError) as error:
                errors[contender.name] = str(error) or type(error).__name__
                continue
            trips.append(look() if look else None)
        if turn >= warm_up:
            seen = tuple(trip for trip in trips if trip is not None)
            (steady if same(seen) else moved).append(_Round(turn, made, seen))
        turn += 1
    progress(count, count, "")
    # In a place where the processors never rest, better those rounds than none.
    rounds = sorted([*steady, *moved[: pairs - len(steady)]], key=lambda one: one.turn)
    summaries = []
    for name in (contender.name for contender in contenders):
        windows = [one.windows[name] for one in rounds if name in one.windows]
        summaries.append(Summary.of(name, windows, errors.get(name)))
    return Turns(
        summaries,
        len(rounds),
        tuple(statistics.median(one.trips) for one in rounds if one.trips),
    )


def run_case(
    case: Case,
    *,
    pairs: int = PAIRS,
    window_s: float = WINDOW_S,
    warm_up: int = 1,
    budget_s: float | None = None,
    progress: Progress = lambda done, count, name: None,
) -> Comparison:
    """Make the contenders of a case, compare them, and let them go. With `budget_s` the windows
    are as much shorter as it takes to do that in about this time, and no round begins later.
    Raises what making the contenders raises."""
    begun = time.monotonic()
    with ExitStack() as stack:
        contenders = case.make()
        for contender in contenders:
            stack.callback(contender.close)
        left_s = None
        if budget_s is not None:
            left_s = max(budget_s - (time.monotonic() - begun), WINDOW_LEAST_S)
            share_s = left_s / ((warm_up + pairs) * max(len(contenders), 1))
            window_s = max(min(window_s, share_s), WINDOW_LEAST_S)
        turns = compare(
            contenders,
            pairs=pairs,
            window_s=window_s,
            warm_up=warm_up,
            time_limit_s=left_s,
            fit=left_s is not None,
            look=case.look,
            progress=progress,
        )
    if left_s is not None:
        made = [one.seconds / len(one.rates) for one in turns.summaries if one.rates]
        window_s = statistics.median(made) if made else window_s
    return Comparison(
        case.title,
        case.unit,
        case.work,
        dict(case.parameters),
        pairs,
        turns.rounds,
        window_s,
        tuple(
            replace(
                one,
                floor_per_s=case.floors.get(one.name),
                ceilings=dict(case.ceilings.get(one.name, {})),
            )
            for one in turns.summaries
        ),
        (*case.targets, *case.aims(turns.summaries)),
        turns.round_trips_s,
    )
