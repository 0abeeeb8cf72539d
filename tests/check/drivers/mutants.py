"""Drivers that get one thing wrong, and the cases that must notice.

A mutant is a reference with one method, or one method of its ring's half, replaced. `CATCHES` says
which cases have to fail on it, in at least one kind of ring. They stand in the files `mutants_*.py`
beside this one.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.check.drivers.reference import Reference

CATCHES: dict[type[Reference], tuple[str, ...]] = {}
REFERENCES: dict[str, tuple[type[Reference], ...]] = {}
"""The drivers that are right, by case or area: each case has to pass on one of them, and to fail on
none. What is not here has the reference alone."""

PARTS_WAY = 7
"""Which of the buffers a mutant spoils, if it is one."""


def catches(*cases: str) -> Callable[[type[Reference]], type[Reference]]:
    def register(mutant: type[Reference]) -> type[Reference]:
        CATCHES[mutant] = tuple(f"driver.{name}" for name in cases)
        return mutant

    return register
