"""`virtq bench net` beside DPDK: each pair works whenever it is its turn."""

from __future__ import annotations

import pytest

from virtq.bench import net
from virtq.features import RingKind

from .peers.availability import require

pytestmark = [pytest.mark.interop, pytest.mark.alone]


@pytest.mark.parametrize("direction", net.DIRECTIONS)
def test_every_pair_takes_turns(direction: net.Direction) -> None:
    require("dpdk")
    traffic = net.Traffic(net.Options(RingKind.PACKED_IN_ORDER), direction)
    pairs = net.contenders(traffic, list(net.PAIRS))
    try:
        work = [[pair.window(0.03).work for pair in pairs] for _ in range(2)]
    finally:
        for pair in pairs:
            pair.close()
    assert all(done > 0 for window in work for done in window)
