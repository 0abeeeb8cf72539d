"""`virtq check` on the registers of QEMU's own devices."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.interop.peers.availability import program
from virtq.check.case import OUR_FAULT
from virtq.cli import run

pytestmark = pytest.mark.interop

BAD = {"fail", "hung", "crashed"}


def verdicts(capsys: pytest.CaptureFixture[str], uri: str, *areas: str) -> dict[str, set[str]]:
    words = [word for area in areas for word in ("--only", area)]
    assert run(["check", uri, "--json", *words]) == 1
    shown: dict[str, Any] = json.loads(capsys.readouterr().out)
    found: dict[str, set[str]] = {}
    for result in shown["results"]:
        assert OUR_FAULT not in result["reason"], result
        found.setdefault(result["case"], set()).add(result["verdict"])
    return found


def test_pci(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/findings.md: everything holds but that."""
    program("qemu")
    found = verdicts(capsys, "qtest:virtio-blk-pci", "pci*.*")
    assert {name for name, came in found.items() if came & BAD} == {
        "pci_common.generation_before_driver_ok",
        "pci_common.queues_that_are_nowhere_near",
    }
    assert sum("pass" in came for came in found.values()) >= 35


def test_mmio(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/findings.md: everything holds but that. Whether finding 8 shows in a reset that is on
    its way is chance."""
    program("qemu")
    found = verdicts(capsys, "qtest:virtio-blk-device", "mmio")
    wrong = {name for name, came in found.items() if came & BAD}
    assert wrong - {"mmio.queue_reset_is_on_its_way"} == {
        "mmio.a_queue_that_is_stopped",
        "mmio.generation_before_driver_ok",
        "mmio.no_event_but_a_configuration_change",
        "mmio.queue_reset_is_done",
        "mmio.queue_reset_resets",
    }
    assert sum("pass" in came for came in found.values()) >= 12
