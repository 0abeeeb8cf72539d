"""What cases about drivers have in common when they read what was seen."""

from __future__ import annotations

from virtq.check.case import Broken, NotObservable, expect
from virtq.check.driver.record import Chain, Record


def no_fault(record: Record, about: str, expected: str) -> None:
    """Raises Broken if something of the sort was found in passing."""
    for queue in record.queues:
        for text in queue.faults.get(about, ()):
            raise Broken(expected, f"queue {queue.index}: {text}")


def writable_last(chain: Chain) -> None:
    """Raises Broken if a device-readable element comes after a device-writable one."""
    kinds = [piece.writable for piece in chain.pieces]
    came = "".join("W" if kind else "R" for kind in kinds)
    expect(kinds == sorted(kinds), f"{chain}: readable elements before writable ones", came)


def tables(record: Record) -> list[tuple[int, Chain]]:
    """The buffers that have an indirect table, each with the size of its queue. Raises
    NotObservable if there are none."""
    found = [
        (queue.size, chain)
        for queue in record.queues
        for chain in queue.chains
        if chain.table is not None
    ]
    if not found:
        raise NotObservable("the driver used no indirect table")
    return found
