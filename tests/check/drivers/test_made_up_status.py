"""A driver behind a front-end that keeps the status to itself, makes up another, and adds features
of its own: what is not the driver's is not held against it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.check.drivers.reference import Reference
from tests.check.drivers.reference_types import EntropyReference, NetReference
from tests.check.drivers.test_driver_mutants import judge
from tests.check.drivers.threads import Threads
from virtq.check.case import Result, Verdict
from virtq.check.driver.bench import Bench
from virtq.check.driver.peer import Peer
from virtq.check.driver.run import run
from virtq.check.run import chosen
from virtq.wire.net import NetFeature

PATIENCE_S = 1.0


class _Between(Reference):
    """Such a front-end: of all steps FEATURES_OK is told, and DRIVER_OK never."""

    def reset(self) -> None:
        self.status = 0

    def acknowledge(self) -> None:
        """Told to the front-end."""

    def know(self) -> None:
        """Told to the front-end."""

    def fail(self) -> None:
        """Told to the front-end."""

    def driver_ok(self) -> None:
        for index in self.queues:
            self.transport._enable(index, True)

    def leave(self) -> None:
        """Told to the front-end."""


class Entropy(_Between, EntropyReference):
    """Works with the device all the same."""


class Net(_Between, NetReference):
    """Its front-end has a control queue of its own, of which the device knows nothing."""

    announces = int(NetFeature.GUEST_ANNOUNCE)

    def choose(self) -> int:
        return super().choose() | self.offered & self.announces


class GreedyNet(Net):
    """Takes segmentation without checksums, which no front-end adds."""

    announces = int(NetFeature.GUEST_ANNOUNCE | NetFeature.HOST_TSO4)


def verdicts(driver: type[Reference], folder: Path, *patterns: str) -> dict[str, Result]:
    cases = chosen(patterns, "driver")
    return {result.title: result for result in judge(driver, cases, folder, PATIENCE_S)}


def test_its_rings_are_served(tmp_path: Path) -> None:
    found = verdicts(Entropy, tmp_path, "in_order.one_used_entry_for_all", "init.steps*")
    rings = {r.verdict for r in found.values() if r.case.area == "driver.in_order"}
    steps = {r.reason for r in found.values() if r.case.area == "driver.init"}
    assert rings == {Verdict.PASS}
    assert steps == {"the front-end makes up the status instead of passing it on"}


@pytest.mark.parametrize(
    ("driver", "verdict"), [(Net, Verdict.PASS), (GreedyNet, Verdict.FAIL)], ids=["its own", "not"]
)
def test_features_of_its_own(driver: type[Reference], verdict: Verdict, tmp_path: Path) -> None:
    (result,) = verdicts(driver, tmp_path, "features.nothing_without_what_it_needs").values()
    assert result.verdict is verdict
    if verdict is Verdict.FAIL:
        assert "HOST_TSO4" in result.came
        assert "GUEST_ANNOUNCE" not in result.came


class NeverLive(Reference):
    """Negotiates, and leaves it at that."""

    def set_up(self) -> None:
        """Not today."""

    def driver_ok(self) -> None:
        """Nor this."""

    def work(self) -> None:
        """Nothing."""


class NotingBench(Bench):
    """Writes down how long it would wait."""

    def await_live(self, peer: Peer) -> None:
        self.granted = [*getattr(self, "granted", ()), self.ready_s]
        super().await_live(peer)


def test_not_every_case_waits_for_one_that_never_begins(tmp_path: Path) -> None:
    """The time that a driver may take to begin is granted three times, not to every case."""
    with NotingBench(
        str(tmp_path / "s"),
        Reference.device_id,
        starter=Threads(NeverLive),
        wait_s=0.1,
        patience_s=0.01,
        moment_s=0.01,
    ) as bench:
        results = list(run(bench, chosen(["in_order.[ab]*"], "driver")))
    assert bench.granted == [0.1] * 3 + [0.01] * (len(bench.granted) - 3)
    assert len(bench.granted) > len(results) > 3
    assert {result.verdict for result in results} == {Verdict.HUNG}
