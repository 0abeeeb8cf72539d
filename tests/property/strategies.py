"""What a generated test draws from, and how many examples it tries.

`HYPOTHESIS_PROFILE` chooses the profile: `quick` (the default) or `thorough`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import cycle, islice

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from tests.model import EVENT_IDX, IN_ORDER, INDIRECT_DESC, RING_PACKED, Position

COMMON = settings(
    deadline=None,
    report_multiple_bugs=False,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
settings.register_profile("quick", COMMON, max_examples=100, stateful_step_count=40)
settings.register_profile("thorough", COMMON, max_examples=2000, stateful_step_count=100)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

MAX_PIECES = 6
MAX_PIECE_BYTES = 24


@dataclass(frozen=True)
class Config:
    """A queue to be tested: what was negotiated, its size, where it starts."""

    features: int
    size: int
    indirect_length: int = 0  # 0: every chain is direct
    start: Position | None = None
    one_used_entry_per_buffer: bool = False

    @property
    def packed(self) -> bool:
        return bool(self.features & RING_PACKED)

    @property
    def in_order(self) -> bool:
        return bool(self.features & IN_ORDER)

    @property
    def event_idx(self) -> bool:
        return bool(self.features & EVENT_IDX)

    @property
    def origin(self) -> Position:
        """Where the halves stand before the first buffer."""
        return self.start or (Position(0, 1, 0, 1) if self.packed else Position())


@dataclass(frozen=True)
class Shape:
    """Lengths of a buffer's elements."""

    readable: tuple[int, ...]
    writable: tuple[int, ...]

    @property
    def pieces(self) -> int:
        return len(self.readable) + len(self.writable)

    def cut(self, pieces: int) -> Shape:
        """No more than so many elements."""
        return Shape(self.readable[:pieces], self.writable[: max(0, pieces - len(self.readable))])


# Mostly small: what is rare in a large ring, a wrap above all, happens all the time in a small one.
small = st.sampled_from([4, 2, 8, 1])
split_sizes = small | small | st.sampled_from([16, 64, 256]) | st.sampled_from([8, 8, 8, 32768])
packed_sizes = st.integers(1, 9) | st.integers(1, 300) | st.sampled_from([3, 5, 7, 32768])


@st.composite
def starts(draw: st.DrawFn, packed: bool, in_order: bool, size: int) -> Position | None:
    """Mostly near a wrap, of the ring or of a 16-bit index."""
    if draw(st.booleans()):
        return None
    if packed:
        slot = draw(st.integers(max(0, size - 8), size - 1) | st.integers(0, size - 1))
        wrap = draw(st.integers(0, 1))
        return Position(slot, wrap, slot, wrap)
    index = draw(st.integers(65536 - 8, 65535) | st.integers(0, 65535))
    descriptor = draw(st.integers(0, size - 1)) if in_order else 0
    return Position(available=index, used=index, descriptor=descriptor)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    features = 0
    for bit in (RING_PACKED, IN_ORDER, EVENT_IDX, INDIRECT_DESC):
        if draw(st.booleans()):
            features |= bit
    packed, in_order = bool(features & RING_PACKED), bool(features & IN_ORDER)
    size = draw(packed_sizes if packed else split_sizes)
    return Config(
        features,
        size,
        # Of no table, one for short chains only, one for every chain.
        draw(st.sampled_from([0, 4, 12])) if features & INDIRECT_DESC else 0,
        draw(starts(packed, in_order, size)),
        in_order and draw(st.integers(0, 3)) == 0,
    )


def _shapes() -> list[Shape]:
    """0 to 6 readable and 0 to 6 writable elements, of all kinds of lengths; simple ones first."""
    lengths = cycle([8, 1, MAX_PIECE_BYTES, 3, 0])
    counts = [(r, w) for r in range(MAX_PIECES + 1) for w in range(MAX_PIECES + 1)]
    shapes = [
        Shape(tuple(islice(lengths, readable)), tuple(islice(lengths, writable)))
        for readable, writable in sorted(counts, key=sum)[1:]
    ]
    return [shape for shape in shapes if shape.pieces <= 2] * 5 + shapes


SHAPES = _shapes()

# How much of each buffer in turn the device writes, in eighths: mostly all of it.
FILLS = [(8,), (8, 8, 8, 0), (8, 3), (7,), (0,), (8, 8, 8, 8, 8, 8, 5)]
