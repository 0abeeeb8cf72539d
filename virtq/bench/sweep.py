"""`virtq bench rings --sweep`: one thing after the other over its range, the rest as usual."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from virtq.bench.case import Case
from virtq.bench.rings import Shape, case
from virtq.features import RingKind

BATCHES = (1, 4, 16, 32, 64, 256)
CHAINS = (2, 4, 16)
SIZES = (16, 64, 1024, 4096, 32768)
ROOMY_SLOTS = 1024
"""For what takes more of a queue: several batches of it."""


def shapes() -> list[Shape]:
    """What is measured: batches of 1 to 256, chains of up to 16 pieces, direct and in indirect
    tables, queues of 16 to 32768 slots, and both kinds of notification."""
    usual = Shape()
    found = [replace(usual, batch=batch, size=ROOMY_SLOTS) for batch in BATCHES]
    for chain in CHAINS:
        found += [
            replace(usual, chain=chain, indirect=indirect, size=ROOMY_SLOTS)
            for indirect in (False, True)
        ]
    found += [replace(usual, size=size, batch=min(usual.batch, size)) for size in SIZES]
    found += [replace(usual, event=event) for event in ("flags", "index")]
    return found


def sweep_cases(
    *, kinds: Sequence[RingKind] = tuple(RingKind), pin: tuple[int, int] | None = None
) -> list[Case]:
    """A case for each of the shapes, with all these kinds of ring."""
    return [case(shape, kinds, pin) for shape in shapes()]
