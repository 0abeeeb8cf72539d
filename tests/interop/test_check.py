"""`virtq check` on devices that nobody here wrote, and on our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.interop.peers.availability import program
from tests.interop.peers.qsd import BlockExport, StorageDaemon
from virtq.check.case import Verdict
from virtq.check.run import OUR_FAULT, Subject, chosen
from virtq.check.run import run as run_cases
from virtq.cli import run
from virtq.transports.base import DriverTransport
from virtq.uri import open_transport

QUICK = ("features", "in_order", "packed", "notifications")


def verdicts(
    capsys: pytest.CaptureFixture[str], uri: str, *words: str, code: int
) -> dict[str, set[str]]:
    """What each case came to, and the exit code as it has to be."""
    assert run(["check", uri, "--json", *words]) == code
    shown: dict[str, Any] = json.loads(capsys.readouterr().out)
    ours = [result for result in shown["results"] if OUR_FAULT in result["reason"]]
    assert not ours, ours
    found: dict[str, set[str]] = {}
    for result in shown["results"]:
        found.setdefault(result["case"], set()).add(result["verdict"])
    return found


@pytest.mark.parametrize(
    ("uri", "only"),
    [("loopback:blk?size=1M", ("split",)), ("loopback:net?port=sink", QUICK), ("loopback:rng", ())],
)
def test_our_own_devices(
    capsys: pytest.CaptureFixture[str], uri: str, only: tuple[str, ...]
) -> None:
    words = [word for area in only for word in ("--only", area)]
    found = verdicts(capsys, uri, *words, code=0)
    assert {"pass"} <= set().union(*found.values()) <= {"pass", "skipped"}


@pytest.mark.interop
def test_qemu_entropy_leaves_the_write_flag_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """docs/findings.md: everything in these areas holds but that."""
    program("qemu")
    files = {kind: tmp_path / kind for kind in ("junit", "sarif", "report")}
    words = [word for kind, path in files.items() for word in (f"--{kind}", str(path))]
    words += [word for area in QUICK for word in ("--only", area)]
    found = verdicts(capsys, "qtest:virtio-rng-pci,packed=on,in_order=on", *words, code=1)
    wrong = {name for name, came in found.items() if came & {"fail", "hung", "crashed"}}
    assert wrong == {"packed.the_write_flag"}
    suite = ElementTree.fromstring(files["junit"].read_text())
    assert suite.attrib["failures"] == "2"
    sarif = json.loads(files["sarif"].read_text())
    assert {r["ruleId"] for r in sarif["runs"][0]["results"]} == wrong
    page = files["report"].read_text()
    assert "packed.the_write_flag" in page
    assert "http" not in page, "nothing is fetched"


@pytest.mark.interop
def test_qemu_dies_of_an_empty_table(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/findings.md: an assertion; the suite goes on."""
    program("qemu")
    uri = "qtest:virtio-rng-pci,packed=on"
    only = ("--only", "malformed.a_table_*", "--only", "status.reset_while_live")
    found = verdicts(capsys, uri, *only, code=1)
    assert "crashed" in found["malformed.a_table_of_no_length"]
    assert found["status.reset_while_live"] == {"pass", "skipped"}


@pytest.mark.interop
def test_a_qemu_that_does_well_is_kept() -> None:
    """It is started again after a crash, and not otherwise."""
    program("qemu")
    uri = "qtest:virtio-rng-pci,packed=on"
    starts = []

    def start() -> DriverTransport:
        starts.append(uri)
        return open_transport(uri)

    subject = Subject.find(uri, start, None, "pci")
    names = ("malformed.a_table_of_no_length", "status.reset_while_live")
    found = [result.verdict for result in run_cases(subject, chosen(names))]
    assert found.count(Verdict.CRASHED) == 1
    assert found.count(Verdict.PASS) == 3
    assert len(starts) == 1 + 2, "one to look, one until the crash, one after it"


@pytest.mark.interop
def test_qemu_storage_daemon(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It has split rings, and no order: the rest is skipped with its reason."""
    program("qemu-storage-daemon")
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    socket_path = tmp_path / "disk.sock"
    with StorageDaemon(BlockExport(socket_path, image)):
        uri = f"vhost-user:{socket_path}?device=blk"
        found = verdicts(capsys, uri, "--only", "split", "--only", "notifications", code=0)
    assert found["split.around_the_ring"] == {"pass", "skipped"}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["check"], "missing URI"),
        (["check", "vhost-user:/nonexistent"], "/nonexistent"),
        (["check", "loopback:blk", "--only", "nothing"], "no case is called 'nothing'"),
        (["check", "loopback:blk", "--report", "/nonexistent/x"], "/nonexistent/x"),
    ],
)
def test_what_cannot_be_judged(
    capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    assert run(words) == 2
    shown = capsys.readouterr().err
    assert text in shown
    assert len(shown.strip().splitlines()) == 1


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "--list", "--json", "--only", "in_order"]) == 0
    assert {case["case"].partition(".")[0] for case in json.loads(capsys.readouterr().out)} == {
        "in_order"
    }
    assert run(["check", "--coverage"]) == 0
    assert "requirements that can be observed have a case" in capsys.readouterr().out
