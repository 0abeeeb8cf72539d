"""How far apart the processors were: what decides between two levels of every rate.

A ring's two ends hand cache lines to each other. Where the host moves a virtual machine's
processors, a line's way between them changes by factors, and all rates with it. So it is measured
beside every window, and a round through which it changed is made again: what took turns in it did
not have the same machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from virtq._core import line_round_trip

SAME = 1.5
"""Times that are within this factor are of one level."""

Look = Callable[[], float | None]
"""How long a line takes to go round, in seconds; None if that cannot be told just now."""


def between(pin: tuple[int, int] | None) -> Look | None:
    """Looks at the processors that the ends of a ring run on. None if nobody knows which these are,
    or they are one, or not this process's to use."""
    usable = sorted(os.sched_getaffinity(0))
    one, other = pin or (usable[0], usable[-1])
    known = pin is not None or len(usable) == 2
    if one == other or not known or not {one, other} <= set(usable):
        return None
    return lambda: line_round_trip(one, other)


def same(trips: Sequence[float]) -> bool:
    """Whether all are of one level."""
    return not trips or max(trips) <= SAME * min(trips)


def levels(trips: Sequence[float]) -> list[list[float]]:
    """By level, the nearest first; each sorted."""
    found: list[list[float]] = []
    for trip in sorted(trips):
        if found and trip <= SAME * found[-1][0]:
            found[-1].append(trip)
        else:
            found.append([trip])
    return found
