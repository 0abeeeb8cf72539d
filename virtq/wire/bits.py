"""Sets of named bits."""

from __future__ import annotations

from enum import IntFlag
from typing import TypeVar

Bits = TypeVar("Bits", bound=type[IntFlag])


def unbounded_complement(flags: Bits) -> Bits:
    """Class decorator: let `~` of an `IntFlag` be a plain integer with all other bits set.

    Feature sets hold bits of several enumerations, and bits that none of them names. Python's own
    `features & ~F.IN_ORDER` would drop every bit above the highest one of `F`.
    """
    flags.__invert__ = _complement  # type: ignore[method-assign, assignment]
    return flags


def _complement(self: IntFlag) -> int:
    return ~int(self)
