"""`virtq check --driver` on Linux in a guest: a quick selection with verdicts that are known.

docs/findings.md has the whole; DPDK's driver is judged in `test_check_driver.py`.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from virtq.check.case import OUR_FAULT
from virtq.cli import run

from .peers.availability import ROOT, require

pytestmark = pytest.mark.interop

QUICK = ("driver.split.the_*", "driver.packed.the_*", "driver.split.in_order_slots*")
RINGS = {"split", "split-in-order", "packed", "packed-in-order"}


def verdicts(
    capsys: pytest.CaptureFixture[str], device: str, socket_path: Path, start: str
) -> dict[tuple[str, str], str]:
    """What each case came to in each kind of ring."""
    words = [word for pattern in QUICK for word in ("--only", pattern)]
    uri = f"vhost-user:{socket_path}"
    words += ["--type", device, "--start", start, "--patience", "10", "--json"]
    run(["check", "--driver", uri, *words])
    shown = json.loads(capsys.readouterr().out)
    ours = [result for result in shown["results"] if OUR_FAULT in result["reason"]]
    assert not ours, ours
    return {(result["case"], result["ring"]): result["verdict"] for result in shown["results"]}


def check(found: dict[tuple[str, str], str]) -> None:
    """Everything that could be looked at holds, and something could in every kind of ring."""
    assert set(found.values()) <= {"pass", "skipped"}, found
    assert {ring for (_, ring), verdict in found.items() if verdict == "pass"} == RINGS


def start(device: str) -> str:
    """Starts a guest whose driver is at work."""
    words = [sys.executable, "-m", "tests.interop.peers.loaded_guest", device]
    return f"cd {shlex.quote(str(ROOT))} && exec {shlex.join(words)} {{socket}}"


@pytest.mark.parametrize("device", ["blk", "rng"])
def test_linux(capsys: pytest.CaptureFixture[str], tmp_path: Path, device: str) -> None:
    """Entropy as well: QEMU never tells DRIVER_OK of that."""
    require("qemu")
    require("linux")
    check(verdicts(capsys, device, tmp_path / "d.sock", start(device)))
