"""What a network device's data path carries: our driver and device, and DPDK's in their places.

A pair is a driver and a device, each a process of its own on a processor of its own, over
vhost-user. Both ends of every pair do the same: the sender writes each frame, the receiver copies
it out, and what our ends receive is checked by samples.

DPDK's driver leaves what it receives where it is: it passes on, or forgets, frames that it has not
looked at, so that their cache lines never come to its processor. Beside that pair stands one in
which it has to look, as whoever receives frames in earnest does.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

from virtq.bench.best import best_case
from virtq.bench.case import Case, Target
from virtq.bench.distance import between
from virtq.bench.net_pairs import (
    DPDK,
    DPDK_LOOKS,
    DPDK_UNDER_OURS,
    OURS,
    OURS_UNDER_DPDK,
    PAIRS,
    contenders,
)
from virtq.bench.net_traffic import DIRECTIONS, LENGTH_LEAST, Direction, Options, Traffic, able
from virtq.features import RingKind

OPTION_SETS: Final = (
    Options(RingKind.SPLIT),
    Options(RingKind.SPLIT_IN_ORDER),
    Options(RingKind.SPLIT_IN_ORDER, mergeable=True),
    Options(RingKind.PACKED),
    Options(RingKind.PACKED_IN_ORDER),
    Options(RingKind.PACKED_IN_ORDER, vectorized=True),
)
"""DPDK's driver has a data path of its own for each."""
LARGE_FRAMES: Final = (
    (Options(RingKind.SPLIT_IN_ORDER), 1500),
    (Options(RingKind.PACKED_IN_ORDER), 1500),
)
"""What is measured of larger frames, unless sizes are asked for."""
WORK: Final = (
    "The sender writes each frame, the receiver copies it out; our ends check what they receive by "
    "samples. DPDK's driver leaves what it receives where it is, unless it has to look at it. "
    "Frames are counted where the driver is: used, or received; both ways, both."
)


def cases(
    *,
    against_dpdk: bool = True,
    directions: Sequence[Direction] = DIRECTIONS,
    lengths: Sequence[int] = (),
    options: Sequence[Options] = OPTION_SETS,
    pin: tuple[int, int] | None = None,
    quick: bool = False,
) -> list[Case]:
    """What `virtq bench net` compares. Without `lengths` that is every option set with frames of 64
    bytes, and `LARGE_FRAMES` of those kinds; beside DPDK, frames of 64 bytes once more with all
    option sets in turn (`best_case`). Raises BenchError for a size that cannot be, or with DPDK if
    it is not there."""
    kinds = {one.kind for one in options}
    if quick:
        options, directions = _quickly(options), directions[:2]
    if not against_dpdk:
        options = [one for one in options if not one.vectorized]
    sizes = lengths or (LENGTH_LEAST,)
    wanted = [(one, length) for length in sizes for one in able(options, length)]
    if not lengths and not quick:
        wanted += [large for large in LARGE_FRAMES if large[0].kind in kinds]
    pin = pin or (0, 1)
    made = []
    for (one, length), direction in itertools.product(wanted, directions):
        traffic = Traffic(one, direction, length, pin)
        names = _names(traffic) if against_dpdk else [OURS]
        made.append(
            Case(
                f"{direction}, {one.title}, {length} bytes",
                lambda traffic=traffic, names=names: contenders(traffic, names),  # type: ignore[misc]
                unit="frames",
                parameters={"direction": direction, "ring": one.title, "bytes": length},
                targets=_targets(names) if against_dpdk else (),
                work=WORK,
                look=between(traffic.pin),
            )
        )
    is_best_asked_for = against_dpdk and not quick and LENGTH_LEAST in sizes
    if is_best_asked_for and any(kind.in_order for kind in kinds):
        made += [best_case(direction, options, pin) for direction in directions]
    return made


def _names(traffic: Traffic) -> list[str]:
    """The pairs that can be compared. DPDK's vectorized functions look for no VLAN tag."""
    looks = traffic.direction == "both" or (traffic.receives and not traffic.options.vectorized)
    return [name for name in PAIRS if looks or name != DPDK_LOOKS]


def _targets(names: Sequence[str]) -> list[Target]:
    targets = [Target(name, DPDK, 1.0) for name in (OURS, OURS_UNDER_DPDK, DPDK_UNDER_OURS)]
    if DPDK_LOOKS in names:
        targets += [Target(name, DPDK_LOOKS, 1.0) for name in (OURS, DPDK_UNDER_OURS)]
    return targets


def _quickly(options: Sequence[Options]) -> list[Options]:
    """The in-order ring of each layout."""
    return [one for one in options if one.kind.in_order and not (one.mergeable or one.vectorized)]
