"""The engines behind `virtq bench rings` and `virtq bench net`: what they run, never how fast."""

from __future__ import annotations

import pytest

from virtq.bench import net, rings
from virtq.bench.best import best_case
from virtq.bench.case import BenchError, Window
from virtq.bench.comparison import Summary
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
    *made, send, receive, both = net.cases(lengths=(64, 1500))
    bests = [
        (case.parameters["direction"], case.parameters["ring"]) for case in (send, receive, both)
    ]
    assert bests == [(direction, "best in order") for direction in DIRECTIONS]
    assert len(made) == len(net.OPTION_SETS) * len(DIRECTIONS) * 2
    for case in made:
        looked_at = case.parameters["direction"] == "both" or (
            case.parameters["direction"] == "receive" and "vectorized" not in case.title
        )
        rivals = {DPDK, DPDK_LOOKS} if looked_at else {DPDK}
        assert {target.to for target in case.targets} == rivals
    alone = net.cases(against_dpdk=False)
    assert all(not case.targets for case in alone)
    for none in (alone, net.cases(quick=True), net.cases(lengths=(1500,))):
        assert none
        assert all(case.parameters["ring"] != "best in order" for case in none)
    sizes = [(case.parameters["bytes"], case.parameters["ring"]) for case in net.cases()]
    rings = {one.title for one in net.OPTION_SETS} | {"best in order"}
    assert {ring for size, ring in sizes if size == 64} == rings
    large = {(size, ring) for size, ring in sizes if size != 64}
    assert large == {(length, one.title) for one, length in net.LARGE_FRAMES}
    assert {size for size, _ in large} == {1500}
    split = net.cases(options=net.OPTION_SETS[:1])
    assert {case.parameters["bytes"] for case in split} == {64}
    with pytest.raises(BenchError, match="9001"):
        net.cases(lengths=(9001,))
    kinds = [case.parameters["ring"] for case in net.cases(lengths=(9000,), directions=["send"])]
    assert kinds == [f"{kind.title}, mergeable" for kind in RingKind]


def test_the_best_in_order_ring_is_held_against_the_best_of_dpdk() -> None:
    """Whatever the options of either: who that is comes out of the windows."""

    def aims(rates: dict[str, tuple[int, ...]]) -> set[tuple[str, str, float]]:
        rows = [Summary.of(name, [Window(rate, 1.0) for rate in of]) for name, of in rates.items()]
        return {(one.of, one.to, one.ratio) for one in best.aims(rows)}

    best = best_case("both", net.OPTION_SETS, (0, 1))
    split, packed = f"{OURS}: split, in order", f"{OURS}: packed, in order"
    theirs = [f"{DPDK}: {one.title}" for one in net.OPTION_SETS]
    ours: dict[str, tuple[int, ...]] = {split: (200, 240), packed: (170, 250)}
    # The highest median and the highest best of one ring, and of two.
    assert aims({theirs[0]: (90, 130), theirs[3]: (100, 110), **ours}) == {(split, theirs[0], 2.0)}
    assert aims({theirs[0]: (90, 110), theirs[3]: (105, 106), **ours}) == {
        (split, theirs[0], 2.0),
        (split, theirs[3], 2.0),
    }
    # Those that did not come up have no rate.
    assert aims({theirs[0]: (), **ours}) == set()
    assert aims({split: (), packed: (1, 1), theirs[0]: (1, 1)}) == {(packed, theirs[0], 2.0)}


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
