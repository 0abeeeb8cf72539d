"""Devices that get one thing wrong, and the cases that must notice: how they are registered.

A mutant is the reference with one method, or one method of its ring's half, replaced. `CATCHES`
says which cases have to fail on it, in at least one kind of ring. They stand in the files
`mutants_*.py` beside this one, each named after the cases that it is about.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tests.check.reference_vhost_user import BackEnd
from virtq.transports.base import DriverTransport

M = TypeVar("M", bound=type[DriverTransport] | type[BackEnd])

CATCHES: dict[type[DriverTransport | BackEnd], tuple[str, ...]] = {}
REFERENCES: dict[str, tuple[type[DriverTransport | BackEnd], ...]] = {}
"""The devices that are right, by area of cases: every case has to pass on one of them, and to fail
on none. Areas that are not here have the reference alone."""
BUSES: dict[type[DriverTransport | BackEnd], str] = {}
"""References that stand behind a bus: "pci" or "mmio"."""


def catches(*cases: str) -> Callable[[M], M]:
    def register(mutant: M) -> M:
        CATCHES[mutant] = cases
        return mutant

    return register
