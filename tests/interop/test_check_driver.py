"""`virtq check --driver` on drivers at the other end of a socket: virtq's own, and two that nobody
here wrote."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.interop.peers.availability import require
from tests.interop.peers.testpmd import VirtioUserPort
from virtq.check.run import OUR_FAULT
from virtq.cli import run

ROOT = Path(__file__).parents[2]


def judged(
    capsys: pytest.CaptureFixture[str], folder: Path, *words: str, code: int
) -> dict[str, set[str]]:
    """What each case came to, and the exit code as it has to be."""
    assert run(["check", "--driver", f"vhost-user:{folder}/s", "--json", *words]) == code
    shown: dict[str, Any] = json.loads(capsys.readouterr().out)
    ours = [result for result in shown["results"] if OUR_FAULT in result["reason"]]
    assert not ours, ours
    found: dict[str, set[str]] = {}
    for result in shown["results"]:
        if result["reason"] != "another device type":
            found.setdefault(result["case"], set()).add(result["verdict"])
    return found


def only(*patterns: str) -> list[str]:
    return [word for pattern in patterns for word in ("--only", pattern)]


def load(kind: str) -> str:
    where = shlex.quote(str(ROOT))
    return f"cd {where} && exec {sys.executable} -m tests.check.drivers.load {kind} {{socket}}"


@pytest.mark.parametrize(
    ("kind", "areas"),
    [
        ("blk", ("in_order.[abo]*", "using.[tu]*", "blk.[dnrs]*", "packed.[ae]*", "init.s*")),
        ("net", ("in_order.[bo]*", "net.[nq]*", "split.in_*", "notifications.[nq]*_with_*")),
        ("rng", ("in_order.a_short*", "in_order.b*", "others")),
        ("console", ("in_order.b*", "others")),
    ],
)
def test_our_own_drivers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str, areas: tuple[str, ...]
) -> None:
    words = ["--type", kind, "--start", load(kind), "--patience", "5", *only(*areas)]
    found = judged(capsys, tmp_path, *words, code=0)
    assert {"pass"} <= set().union(*found.values()) <= {"pass", "skipped"}
    assert "pass" in found["driver.in_order.batches_of_changing_size"]


@pytest.mark.interop
def test_dpdk(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """virtio-user, which transmits without an end, in every kind of ring."""
    require("dpdk")
    port = VirtioUserPort(Path("SOCKET"), mrg_rxbuf=False).vdev()
    vdev = port.replace("SOCKET", "{socket}")
    vdev = vdev.replace("packed_vq=0", "packed_vq={packed}")
    vdev = vdev.replace("in_order=0", "in_order={in_order}")
    command = (
        "exec dpdk-testpmd --lcores '0@1,1@1' --no-pci --no-telemetry --in-memory -m 256 "
        f"--single-file-segments --file-prefix=virtq-check --vdev '{vdev}' -- --nb-cores=1 "
        "--txq=1 --rxq=1 --total-num-mbufs=16384 --auto-start --forward-mode=txonly"
    )
    words = ["--type", "net", "--start", command, "--wait", "30", "--patience", "5"]
    found = judged(
        capsys, tmp_path, *words, *only("in_order", "split.in_*", "packed.[ae]*"), code=0
    )
    assert "pass" in found["driver.in_order.batches_of_changing_size"]
    assert "pass" in found["driver.split.in_order_next_is_the_next_slot"]


def test_what_is_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A driver that gives out its fault: exit status 1, and every report has it."""
    files = {kind: tmp_path / kind for kind in ("junit", "sarif", "report")}
    words = [word for kind, path in files.items() for word in (f"--{kind}", str(path))]
    command = load("rng").replace("load rng", "spoilt rng")
    words += ["--type", "rng", "--start", command, *only("split.the_used_ring_is_aligned")]
    found = judged(capsys, tmp_path, *words, code=1)
    assert found == {"driver.split.the_used_ring_is_aligned": {"fail"}}
    suite = ElementTree.fromstring(files["junit"].read_text())
    assert suite.attrib["failures"] == "2"
    sarif = json.loads(files["sarif"].read_text())
    assert {r["ruleId"] for r in sarif["runs"][0]["results"]} == set(found)
    page = files["report"].read_text()
    assert "this driver" in page
    assert "the ring as it stood: split" in page


def test_a_driver_that_never_comes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["check", "--driver", f"vhost-user:{tmp_path}/s", "--type", "blk", "--wait", "0.2"]
    assert run([*words, "--only", "split"]) == 2
    assert "no driver came within 0.2 s" in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "the socket is left behind"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["loopback:blk"], "a driver comes to vhost-user:PATH"),
        (["vhost-user:/nonexistent/s", "--type", "blk"], "/nonexistent/s"),
        (["vhost-user:/tmp/x"], "which device is it for"),
        (["vhost-user:/tmp/x", "--type", "fs"], "cannot be a device of type 26"),
        (["vhost-user:/tmp/x", "--type", "blk", "--only", "status"], "no case is called 'status'"),
    ],
)
def test_what_cannot_be_judged(
    capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    assert run(["check", "--driver", *words]) == 2
    shown = capsys.readouterr().err
    assert text in shown
    assert len(shown.strip().splitlines()) == 1
