"""`virtq bench net` beside DPDK: each pair works whenever it is its turn."""

from __future__ import annotations

import pytest

from virtq.bench.best import best_case
from virtq.bench.net_pairs import PAIRS, contenders
from virtq.bench.net_traffic import DIRECTIONS, Direction, Options, Traffic
from virtq.features import RingKind

from .peers.availability import require

pytestmark = [pytest.mark.interop, pytest.mark.alone]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_pair_takes_turns(direction: Direction) -> None:
    require("dpdk")
    traffic = Traffic(Options(RingKind.PACKED_IN_ORDER), direction)
    pairs = contenders(traffic, list(PAIRS))
    try:
        work = [[pair.window(0.1).work for pair in pairs] for _ in range(2)]
    finally:
        for pair in pairs:
            pair.close()
    assert all(done > 0 for window in work for done in window)


def test_the_best_case_has_pairs_of_several_rings() -> None:
    require("dpdk")
    options = [Options(kind) for kind in (RingKind.PACKED, RingKind.PACKED_IN_ORDER)]
    pairs = best_case("both", options, (0, 1)).make()
    try:
        assert [pair.name for pair in pairs] == [
            "DPDK on DPDK: packed, any order",
            "DPDK on DPDK: packed, in order",
            "virtq on virtq: packed, in order",
        ]
        assert all(pair.window(0.1).work > 0 for pair in pairs)
    finally:
        for pair in pairs:
            pair.close()
