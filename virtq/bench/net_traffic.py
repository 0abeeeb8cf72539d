"""What goes through a network device in a comparison: which frames, which way, in which ring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from virtq.bench.case import BenchError
from virtq.features import F, RingKind

Direction = Literal["send", "receive", "both"]
DIRECTIONS: Final[tuple[Direction, ...]] = ("send", "receive", "both")
LENGTH_LEAST: Final = 64
LENGTH_MOST: Final = 9000
UNSPREAD_MOST: Final = 1518
"""The largest frame that needs no mergeable buffers."""


@dataclass(frozen=True)
class Options:
    """How the ring is negotiated, in the words of DPDK's driver."""

    kind: RingKind
    mergeable: bool = False
    vectorized: bool = False
    """DPDK's driver only: AVX-512 for the packed layout."""

    @property
    def title(self) -> str:
        words = [self.kind.title]
        words += ["mergeable"] if self.mergeable else []
        words += ["vectorized"] if self.vectorized else []
        return ", ".join(words)

    @property
    def features(self) -> F:
        return self.kind.features

    @property
    def change(self) -> str:
        """What our driver accepts besides: no more than was asked for."""
        kind = self.kind
        off = ["INDIRECT_DESC", "EVENT_IDX"]
        off += [] if self.mergeable else ["MRG_RXBUF"]
        off += [] if kind.packed else ["RING_PACKED"]
        off += [] if kind.in_order else ["IN_ORDER"]
        return ",".join(f"-{name}" for name in off)


@dataclass(frozen=True)
class Traffic:
    """What goes through. `pin`: processors of driver and device."""

    options: Options
    direction: Direction
    length: int = 64
    pin: tuple[int, int] = (0, 1)

    @property
    def sends(self) -> bool:
        return self.direction != "receive"

    @property
    def receives(self) -> bool:
        return self.direction != "send"

    @property
    def in_pieces(self) -> bool:
        """Whether a frame needs several of DPDK's packet buffers."""
        return self.length > UNSPREAD_MOST


def able(options: Sequence[Options], length: int) -> list[Options]:
    """The option sets for frames of that length: a large one needs mergeable buffers. Raises
    BenchError for a size that cannot be."""
    if not LENGTH_LEAST <= length <= LENGTH_MOST:
        raise BenchError(f"a frame of {length} bytes is not in {LENGTH_LEAST} to {LENGTH_MOST}")
    if length <= UNSPREAD_MOST:
        return list(options)
    large = (replace(one, mergeable=True, vectorized=False) for one in options)
    return list(dict.fromkeys(large))
