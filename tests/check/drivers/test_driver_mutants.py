"""Every case about drivers fails on a driver that breaks what it checks, and passes on one that
does not."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.check.drivers.mutants import CATCHES, REFERENCES
from tests.check.drivers.reference import Reference
from tests.check.drivers.threads import Threads
from virtq.check.case import OUR_FAULT, Case, Result, Verdict
from virtq.check.cases import all_cases
from virtq.check.driver.bench import Bench
from virtq.check.driver.run import run
from virtq.check.results import BAD

PATIENCE_S, PATIENCE_WITH_A_MUTANT_S = 10.0, 0.3
ATTEMPTS = 3
MOMENT_S = 0.01
BASELINE_BUFFERS = 100

for file in sorted(Path(__file__).parent.glob("mutants_*.py")):
    importlib.import_module(f"tests.check.drivers.{file.stem}")

DRIVER_CASES = {name: case for name, case in all_cases().items() if case.party == "driver"}


def judge(
    driver: type[Reference], cases: Sequence[Case], folder: Path, patience_s: float = PATIENCE_S
) -> Iterator[Result]:
    with Bench(
        str(folder / "s"),
        driver.device_id,
        starter=Threads(driver),
        wait_s=2.0,
        patience_s=patience_s,
        moment_s=MOMENT_S,
        baseline_buffers=BASELINE_BUFFERS,
    ) as bench:
        yield from run(bench, cases)


def test_every_case_has_a_mutant() -> None:
    caught = {name for names in CATCHES.values() for name in names}
    assert caught == set(DRIVER_CASES)


def references(case: Case) -> tuple[type[Reference], ...]:
    return REFERENCES.get(case.name) or REFERENCES.get(case.area) or (Reference,)


GROUPS = sorted({(references(case), case.area) for case in DRIVER_CASES.values()}, key=str)


@pytest.mark.parametrize(
    ("drivers", "area"), GROUPS, ids=[f"{area}-{of[0].__name__}" for of, area in GROUPS]
)
def test_a_driver_that_is_right_passes(
    drivers: tuple[type[Reference], ...], area: str, tmp_path: Path
) -> None:
    chosen = [c for c in DRIVER_CASES.values() if c.area == area and references(c) == drivers]
    results = [result for driver in drivers for result in judge(driver, chosen, tmp_path)]
    wrong = [result for result in results if result.verdict in BAD or OUR_FAULT in result.reason]
    assert not wrong, [(r.title, r.expected, r.came, r.reason) for r in wrong]
    passed = {result.case.name for result in results if result.verdict is Verdict.PASS}
    assert passed == {case.name for case in chosen}, "cases that were only skipped"


@pytest.mark.parametrize("mutant", CATCHES, ids=lambda mutant: mutant.__name__)
def test_a_mutant_is_caught(mutant: type[Reference], tmp_path: Path) -> None:
    for name in CATCHES[mutant]:
        seen: list[Result] = []
        # A busy machine may leave a case too little to look at: then it is skipped.
        for _ in range(ATTEMPTS):
            for result in judge(mutant, [DRIVER_CASES[name]], tmp_path, PATIENCE_WITH_A_MUTANT_S):
                seen.append(result)
                if result.verdict in BAD:
                    break
            if seen[-1].verdict in BAD or all(one.verdict is Verdict.PASS for one in seen):
                break
        told = [(result.title, str(result.verdict), result.reason) for result in seen]
        assert seen[-1].verdict in BAD, f"{name} does not notice: {told}"
