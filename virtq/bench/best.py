"""What a run of `virtq bench net` says as a whole: our best in-order ring beside the best that DPDK
has, whatever the options of either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from virtq.bench.case import Target
from virtq.bench.comparison import Comparison, Summary
from virtq.bench.net import OPTION_SETS
from virtq.bench.net_pairs import DPDK, DPDK_LOOKS, OURS

RATIO: Final = 2.0
"""How many times DPDK's best rate is hoped for, at `BYTES` a frame."""
BYTES: Final = 64
_IN_ORDER: Final = frozenset(one.title for one in OPTION_SETS if one.kind.in_order)
WORK: Final = (
    "From the cases above: both ends ours in order, and both ends DPDK's. The target is met beside "
    "both DPDK's highest median and its highest best, of whatever options; and beside those of the "
    "pair whose driver looks at what it receives."
)


def best_in_order(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """A comparison for each direction in which frames of `BYTES` were measured with both ends ours
    and both ends DPDK's. Its rows were measured in cases of their own, one after the other."""
    small = [one for one in comparisons if one.parameters.get("bytes") == BYTES]
    directions = dict.fromkeys(one.parameters["direction"] for one in small)
    made = []
    for direction in directions:
        cases = [one for one in small if one.parameters["direction"] == direction]
        ours = [
            row for case in cases if case.parameters["ring"] in _IN_ORDER for row in _of(case, OURS)
        ]
        theirs = [row for case in cases for row in _of(case, DPDK)]
        if not ours or not theirs:
            continue
        best = max(ours, key=lambda row: row.median)
        looking = [row for case in cases for row in _of(case, DPDK_LOOKS)]
        rivals = dict.fromkeys(row.name for rows in (theirs, looking) for row in _highest(rows))
        theirs += looking
        first = [row for row in theirs if row.name in rivals]
        rest = [row for row in theirs if row.name not in rivals]
        made.append(
            Comparison(
                f"{direction}, best in order, {BYTES} bytes",
                cases[0].unit,
                WORK,
                {"direction": direction, "ring": "best in order", "bytes": BYTES},
                max(case.rounds_planned for case in cases),
                min(case.rounds for case in cases),
                max(case.window_s for case in cases),
                (*first, *ours, *rest),
                tuple(Target(best.name, rival, RATIO) for rival in rivals),
            )
        )
    return made


def _highest(rows: Sequence[Summary]) -> list[Summary]:
    """Those of the highest median and of the highest best."""
    if not rows:
        return []
    return [max(rows, key=lambda row: row.median), max(rows, key=lambda row: row.best)]


def _of(case: Comparison, name: str) -> list[Summary]:
    """The contender of that name, under the name of its ring as well."""
    return [
        replace(row, name=f"{name}: {case.parameters['ring']}")
        for row in case.contenders
        if row.name == name and row.median > 0
    ]
