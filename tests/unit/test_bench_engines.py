"""The engines behind `virtq bench rings` and `virtq bench net`: what they run, never how fast."""

from __future__ import annotations

import pytest

from virtq.bench import net, rings
from virtq.bench.best import best_in_order
from virtq.bench.case import BenchError, Window
from virtq.bench.comparison import Comparison, Summary
from virtq.bench.net_pairs import DPDK, DPDK_LOOKS, OURS, contenders
from virtq.bench.net_traffic import DIRECTIONS, Direction, Options, Traffic
from virtq.features import RingKind


def test_a_ring_case_has_every_kind_and_counts() -> None:
    case = rings.case(rings.Shape(direction="both", chain=3, indirect=True, length=100))
    contenders = case.make()
    assert [one.name for one in contenders] == [kind.title for kind in RingKind]
    for contender in contenders:
        windows = [contender.window(0.005) for _ in range(4)]
        for _ in range(200):  # its threads may not be given a processor in so short a time
            if sum(window.work for window in windows):
                break
            windows.append(contender.window(0.005))
        assert sum(window.work for window in windows) > 0
        assert set(windows[0].counts) == {"kicks", "calls", "used_entries", "batches", "verified"}
        contender.close()


def test_ring_cases_are_all_combinations() -> None:
    made = rings.cases(
        directions=("send", "receive"), batches=(1, 4), chains=(1, 2), indirect=(False, True)
    )
    titles = [case.title for case in made]
    # A chain of one has no indirect form.
    assert len(titles) == len(set(titles)) == 2 * 2 * 2 * (1 + 2)
    assert len(rings.cases(quick=True)) < len(made)


def test_a_ring_that_cannot_be_is_named() -> None:
    with pytest.raises(BenchError, match="queue 24"):
        rings.case(rings.Shape(size=24, batch=8))
    with pytest.raises(BenchError, match="batch 512"):
        rings.case(rings.Shape(batch=512))


def test_net_cases_say_what_they_compare() -> None:
    made = net.cases(lengths=(64, 1500))
    assert len(made) == len(net.OPTION_SETS) * len(DIRECTIONS) * 2
    for case in made:
        looked_at = case.parameters["direction"] == "both" or (
            case.parameters["direction"] == "receive" and "vectorized" not in case.title
        )
        rivals = {DPDK, DPDK_LOOKS} if looked_at else {DPDK}
        assert {target.to for target in case.targets} == rivals
    alone = net.cases(against_dpdk=False)
    assert all(not case.targets for case in alone)
    sizes = [(case.parameters["bytes"], case.parameters["ring"]) for case in net.cases()]
    assert {ring for size, ring in sizes if size == 64} == {one.title for one in net.OPTION_SETS}
    large = {(size, ring) for size, ring in sizes if size != 64}
    assert large == {(length, one.title) for one, length in net.LARGE_FRAMES}
    assert {size for size, _ in large} == {1500}
    split = net.cases(options=net.OPTION_SETS[:1])
    assert {case.parameters["bytes"] for case in split} == {64}
    with pytest.raises(BenchError, match="9001"):
        net.cases(lengths=(9001,))
    kinds = [case.parameters["ring"] for case in net.cases(lengths=(9000,), directions=["send"])]
    assert kinds == [f"{kind.title}, mergeable" for kind in RingKind]


def _compared(ring: str, rates: dict[str, tuple[int, int]], frame_bytes: int = 64) -> Comparison:
    """Two windows of a second for each contender."""
    rows = [Summary.of(name, [Window(rate, 1.0) for rate in of]) for name, of in rates.items()]
    parameters: dict[str, str | int | float | bool] = {
        "direction": "send",
        "ring": ring,
        "bytes": frame_bytes,
    }
    return Comparison(ring, "frames", "", parameters, 2, 2, 1.0, tuple(rows))


def test_the_best_in_order_ring_is_held_against_the_best_of_dpdk() -> None:
    split = _compared("split, in order", {OURS: (200, 240), DPDK: (90, 130)})
    packed = _compared("packed, in order", {OURS: (170, 250), DPDK: (100, 110)})
    any_order = _compared("packed, any order", {OURS: (900, 900), DPDK: (50, 60)})
    large = _compared("split, in order", {OURS: (9, 9), DPDK: (9, 9)}, 1500)
    (best,) = best_in_order([split, packed, any_order, large])
    ours = f"{OURS}: split, in order"
    targets = {(one.of, one.to): one.met for one in best.ratios if one.target is not None}
    # The highest median and the highest best of DPDK are here both those of one ring.
    assert targets == {(ours, f"{DPDK}: split, in order"): False}
    faster = _compared("split, in order", {OURS: (220, 260), DPDK: (90, 110)})
    steady = _compared("packed, in order", {DPDK: (105, 106)})
    (best,) = best_in_order([faster, steady])
    targets = {(one.of, one.to): one.met for one in best.ratios if one.target is not None}
    assert targets == {
        (ours, f"{DPDK}: packed, in order"): True,
        (ours, f"{DPDK}: split, in order"): True,
    }
    looking = _compared("split, any order", {DPDK_LOOKS: (70, 80)})
    (best,) = best_in_order([faster, steady, looking])
    targets = {(one.of, one.to): one.met for one in best.ratios if one.target is not None}
    assert targets[ours, f"{DPDK_LOOKS}: split, any order"]
    assert len(targets) == 3
    assert best_in_order([_compared("split, in order", {OURS: (1, 1)})]) == []


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_our_driver_on_our_device(direction: Direction) -> None:
    options = Options(RingKind.PACKED_IN_ORDER, mergeable=True)
    length = 9000 if direction == "receive" else 64
    (pair,) = contenders(Traffic(options, direction, length), [OURS])
    try:
        # On a busy machine a single window may find the two processes without a processor.
        windows = [pair.window(0.05) for _ in range(6)]
    finally:
        pair.close()
    assert sum(window.work for window in windows) > 0
    verified = sum(window.counts["verified"] for window in windows)
    assert verified > 0 or direction == "send"
