"""The slots of a ring as they stand, for a report."""

from __future__ import annotations

from virtq.model.memory import AVAIL, USED
from virtq.model.packed import Descriptor, PackedRing
from virtq.model.split import SplitRing

_SLOTS = 64
"""The first ones, no more than that."""


def split_slots(ring: SplitRing) -> list[dict[str, object]]:
    """Of each slot the entries of the available and the used ring, and the descriptor."""
    return [
        {"slot": i, "avail": ring.avail(i), "used": list(ring.used(i))} | ring.desc(i)._asdict()
        for i in range(min(ring.size, _SLOTS))
    ]


def packed_slots(ring: PackedRing) -> list[dict[str, object]]:
    """The descriptor in each slot, with the two bits that tell whose it is apart."""
    return [_packed_slot(i, ring.desc(i)) for i in range(min(ring.size, _SLOTS))]


def _packed_slot(slot: int, descriptor: Descriptor) -> dict[str, object]:
    flags = descriptor.flags
    return {
        "slot": slot,
        "addr": descriptor.addr,
        "len": descriptor.len,
        "id": descriptor.id,
        "flags": flags & ~(AVAIL | USED),
        "AVAIL": int(bool(flags & AVAIL)),
        "USED": int(bool(flags & USED)),
    }
