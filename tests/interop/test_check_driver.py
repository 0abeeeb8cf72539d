"""`virtq check --driver` on virtq's own drivers, each in a process of its own, and what it says and
writes."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from virtq.check.case import OUR_FAULT
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
    assert "queue 0 as it stood: split" in page


def test_a_driver_that_comes_by_itself(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Without --start somebody else starts it again whenever it ends; when nobody does any more,
    what is left is skipped."""
    path = tmp_path / "s"
    command = load("rng").replace("{socket}", shlex.quote(str(path)))
    listens = f"grep -q ' 00010000 .* {path}$' /proc/net/unix"
    again = f"for i in 1 2; do until {listens}; do sleep 0.02; done; ({command}); done"
    with subprocess.Popen(again, shell=True, stderr=subprocess.DEVNULL) as process:
        words = ["--type", "rng", "--wait", "5", *only("others", "features.w*", "features.no_s*")]
        found = judged(capsys, tmp_path, *words, code=0)
        process.wait(30)
    assert found["driver.others.entropy_buffers_are_for_writing"] == {"pass", "skipped"}
    assert found["driver.features.works_with_version_1_alone"] == {"skipped"}


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
        (["vhost-user:/tmp/x", "--type", "fs"], "cannot be a fs device"),
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
