"""Every case fails on a device that breaks what it checks, and passes on one that does not."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.check.mutants import BUSES, CATCHES, REFERENCES
from tests.check.reference import Reference
from tests.check.reference_vhost_user import BackEnd
from virtq.check.case import Result, Verdict
from virtq.check.cases import all_cases
from virtq.check.results import BAD
from virtq.check.run import Subject, run
from virtq.transports.base import DriverTransport

PATIENCE_S, PATIENCE_WITH_A_MUTANT_S = 10.0, 0.25

for file in sorted(Path(__file__).parent.glob("mutants_*.py")):
    importlib.import_module(f"tests.check.{file.stem}")


DEVICE_CASES = {name: case for name, case in all_cases().items() if case.party == "device"}


def judge(
    device: type[DriverTransport | BackEnd],
    names: tuple[str, ...],
    patience_s: float = PATIENCE_S,
) -> Iterator[Result]:
    if issubclass(device, BackEnd):
        with device() as back_end:
            yield from run(
                back_end.subject(), [DEVICE_CASES[name] for name in names], patience_s=patience_s
            )
        return
    bus = next((bus for parent, bus in BUSES.items() if issubclass(device, parent)), None)
    subject = Subject.find("reference:", device, None, bus)
    yield from run(subject, [DEVICE_CASES[name] for name in names], patience_s=patience_s)


def test_every_case_has_a_mutant() -> None:
    caught = {name for names in CATCHES.values() for name in names}
    assert caught == set(DEVICE_CASES)


@pytest.mark.parametrize("area", sorted({case.area for case in DEVICE_CASES.values()}))
def test_the_reference_passes(area: str) -> None:
    names = tuple(name for name, case in DEVICE_CASES.items() if case.area == area)
    results = [
        result
        for reference in REFERENCES.get(area, (Reference,))
        for result in judge(reference, names)
    ]
    wrong = [result for result in results if result.verdict in BAD]
    assert not wrong, [(r.title, r.expected, r.came, r.reason) for r in wrong]
    passed = {result.case.name for result in results if result.verdict is Verdict.PASS}
    assert passed == set(names), "cases that were only skipped"


@pytest.mark.parametrize("mutant", CATCHES, ids=lambda mutant: mutant.__name__)
def test_a_mutant_is_caught(mutant: type[DriverTransport | BackEnd]) -> None:
    for name in CATCHES[mutant]:
        results = judge(mutant, (name,), PATIENCE_WITH_A_MUTANT_S)
        assert any(result.verdict in BAD for result in results), f"{name} does not notice"
