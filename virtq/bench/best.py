"""Our best in-order ring beside the best that DPDK has, whatever the options of either: all of them
in turn, in one run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from virtq.bench.case import Case, Contender, Rated, Target
from virtq.bench.distance import between
from virtq.bench.net_pairs import DPDK, OURS, make
from virtq.bench.net_traffic import LENGTH_LEAST, Direction, Options, Traffic

RATIO: Final = 2.0
"""How many times DPDK's best rate is hoped for."""
WORK: Final = (
    "Both ends ours in every in-order ring, and both ends DPDK's with every set of options, in "
    "turn. The target is met beside both DPDK's highest median and its highest best."
)


def best_case(direction: Direction, options: Sequence[Options], pin: tuple[int, int]) -> Case:
    """Frames of the least size, with each of these options: DPDK's pairs, and ours of them that are
    in order."""
    length = LENGTH_LEAST
    return Case(
        f"{direction}, best in order, {length} bytes",
        partial(_contenders, direction, options, pin),
        unit="frames",
        parameters={"direction": direction, "ring": "best in order", "bytes": length},
        aims=_aims,
        work=WORK,
        look=between(pin),
    )


def _contenders(
    direction: Direction, options: Sequence[Options], pin: tuple[int, int]
) -> list[Contender]:
    wanted = [(DPDK, one) for one in options]
    wanted += [(OURS, one) for one in options if one.kind.in_order]
    return make(
        (name, f"{name}: {one.title}", Traffic(one, direction, pin=pin)) for name, one in wanted
    )


def _aims(rows: Sequence[Rated]) -> list[Target]:
    """Our highest median beside DPDK's highest median and highest best."""
    ours, theirs = (
        [row for row in rows if row.name.startswith(f"{name}:") and row.median > 0]
        for name in (OURS, DPDK)
    )
    if not ours or not theirs:
        return []
    best = _fastest(ours).name
    rivals = dict.fromkeys([_fastest(theirs).name, max(theirs, key=lambda row: row.best).name])
    return [Target(best, rival, RATIO) for rival in rivals]


def _fastest(rows: Sequence[Rated]) -> Rated:
    return max(rows, key=lambda row: row.median)
