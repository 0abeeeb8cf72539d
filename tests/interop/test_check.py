"""`virtq check` on devices that nobody here wrote, and on our own."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.interop.peers.availability import program
from tests.interop.peers.testpmd import Testpmd, TestpmdConfig, VhostPort
from tests.unit.vhost_user.support import eventually
from virtq.bench.peers import storage_daemon as qemu_storage_daemon
from virtq.check.case import OUR_FAULT, Verdict
from virtq.check.run import Subject, chosen
from virtq.check.run import run as run_cases
from virtq.cli import run
from virtq.connecting import open_transport
from virtq.transports.base import DriverTransport

MORTAL = """
import os, signal
from pathlib import Path
import virtq

class Mortal(virtq.Device):
    device_id = 4
    queues = (virtq.QueueSpec("requests", 256),)
    served = 0

    def handle(self, request):
        self.served += 1
        if self.served == 20 and not Path("{once}").exists():
            Path("{once}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return request.write(os.urandom(request.writable))
"""
"""An entropy device that dies at its 20th request, once."""
FINDING_48 = "in_order.event_index_within_a_batch", "in_order.an_event_at_every_place_of_a_batch"
QUICK = ("features", "in_order", "packed", "notifications")


def verdicts(
    capsys: pytest.CaptureFixture[str], uri: str, *words: str, code: int, patience_s: float = 20.0
) -> dict[str, set[str]]:
    """What each case came to, and the exit code as it has to be. Only what hangs takes longer with
    more patience."""
    assert run(["check", uri, "--json", "--patience", str(patience_s), *words]) == code
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


def bad(found: dict[str, set[str]]) -> set[str]:
    return {name for name, came in found.items() if came & {"fail", "hung", "crashed"}}


def only(*patterns: str) -> list[str]:
    return [word for pattern in patterns for word in ("--only", pattern)]


@pytest.mark.interop
@pytest.mark.parametrize("device", ["net", "serial"])
@pytest.mark.parametrize("bus", ["pci", "device"])
def test_qemu_cards_and_consoles(capsys: pytest.CaptureFixture[str], device: str, bus: str) -> None:
    """docs/findings.md: they complete in order, and what they send has nothing to be written. That
    the card hangs now and then with EVENT_IDX in packed rings is finding 48: those cases have to
    hold in its split rings."""
    program("qemu")
    uri = f"qtest:virtio-{device}-{bus},packed=on,in_order=on?queue_size=128"
    cases = {case.name for case in chosen(("in_order", "packed.m*", "status"))}
    assert cases >= set(FINDING_48)
    if device == "net":
        cases -= set(FINDING_48)
        split = verdicts(capsys, uri.replace("packed=on,", ""), *only(*FINDING_48), code=0)
        assert split == {name: {"pass", "skipped"} for name in FINDING_48}
    found = verdicts(capsys, uri, *only(*cases), code=0)
    assert not bad(found)
    assert "pass" in found["in_order.a_full_ring"]


@pytest.mark.interop
def test_qemu_disk_loses_what_is_complete_in_a_full_ring(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """docs/findings.md: in order, and packed; out of order everything comes back."""
    program("qemu")
    uri = "qtest:virtio-blk-pci,packed=on,in_order=on"
    words = only("in_order.a_full_ring", "in_order.one_by_one", "packed.many_at_once")
    found = verdicts(capsys, uri, *words, code=1, patience_s=0.3)
    assert "hung" in found["in_order.a_full_ring"]
    assert found["packed.many_at_once"] == {"pass", "hung"}
    assert found["in_order.one_by_one"] == {"pass"}


@pytest.mark.interop
def test_qemu_registers_promise_more_than_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/findings.md: as large a queue as QueueSizeMax allows ruins the heap of QEMU 10.0."""
    program("qemu")
    uri = "qtest:virtio-rng-device,packed=on,in_order=on"
    words = only("in_order.batches", "split.the_largest_queue")
    found = verdicts(capsys, uri, *words, code=1, patience_s=0.3)
    assert bad(found)
    assert not bad(verdicts(capsys, f"{uri}?queue_size=8", *words, code=0))


@pytest.mark.interop
def test_qemu_storage_daemon(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It has split rings, and no order: the rest is skipped with its reason."""
    program("qemu-storage-daemon")
    uri, start = storage_daemon(tmp_path)
    words = only("split.a*", "split.the_u*", "notifications", "malformed.a_loop")
    found = verdicts(capsys, uri, "--start", start, *words, code=0)
    assert found["split.around_the_ring"] == {"pass", "skipped"}
    assert found["malformed.a_loop"] == {"pass", "skipped"}, "it closes, and takes another session"


@pytest.mark.interop
def test_qemu_storage_daemon_takes_a_table_for_data(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """docs/findings.md: a table behind other descriptors is taken for data."""
    uri, start = storage_daemon(tmp_path)
    words = only("indirect.direct_then_indirect", "split.around_the_ring")
    found = verdicts(capsys, uri, "--start", start, *words, code=1, patience_s=0.3)
    assert "hung" in found["indirect.direct_then_indirect"]
    assert "pass" in found["split.around_the_ring"]


def storage_daemon(folder: Path) -> tuple[str, str]:
    """The URI of a disk, and the command that serves it."""
    program("qemu-storage-daemon")
    image, socket_path = folder / "disk.img", folder / "disk.sock"
    image.write_bytes(bytes(1 << 20))
    command = qemu_storage_daemon.command(socket_path, image=image, polls=False)
    return f"vhost-user:{socket_path}?device=blk", f"exec {shlex.join(command)}"


@pytest.mark.interop
def test_a_device_that_dies_is_started_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """How it ended is told, and the next case has another one."""
    source, socket_path = tmp_path / "mortal.py", tmp_path / "s"
    source.write_text(MORTAL.format(once=tmp_path / "once"))
    start = f"exec {sys.executable} -m virtq serve {source}:Mortal --socket-path {{socket}}"
    words = ["--json", "--start", start, *only("packed.many_at_once", "in_order.one_by_one")]
    assert run(["check", f"vhost-user:{socket_path}?device=rng", *words]) == 1
    shown = json.loads(capsys.readouterr().out)
    found = {(r["case"], r["ring"]): r["verdict"] for r in shown["results"]}
    assert Counter(found.values()) == {"crashed": 1, "pass": 3}
    crashed = next(r for r in shown["results"] if r["verdict"] == "crashed")
    assert "SIGKILL" in crashed["reason"]


@pytest.mark.interop
def test_dpdk_vhost_in_every_kind(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It serves all kinds of ring, and everything here holds; what it offers and only a front-end
    can serve is not asked of it."""
    program("dpdk")
    with Testpmd(TestpmdConfig(VhostPort(tmp_path / "net.sock"), cpus=[0])) as device:
        device.start("rxonly")
        uri = f"vhost-user:{tmp_path / 'net.sock'}?device=net&queues=2"
        started = "vhost_user_rings.a_kick_starts_a_ring", "vhost_user_rings.a_ring_that_is_polled"
        passed = "packed.many_at_once", "in_order.a_long_random_run", *started
        left = "net_control.acknowledgements", "net_config.the_number_of_pairs"
        found = verdicts(capsys, uri, *only("in_order", *passed, *left), code=0)
    assert {case: found[case] for case in passed} == {case: {"pass"} for case in passed}
    assert {case: found[case] for case in left} == {case: {"skipped"} for case in left}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["check"], "missing URI"),
        (["check", "vhost-user:/nonexistent"], "/nonexistent"),
        (["check", f"vhost-user:{__file__}"], "not a socket"),
        (["check", "registers:"], "names no file"),
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


@pytest.mark.interop
def test_what_was_started_does_not_outlive_the_judge(tmp_path: Path) -> None:
    """However it is told to end."""
    uri, start = storage_daemon(tmp_path)
    pid = tmp_path / "pid"
    words = [sys.executable, "-m", "virtq", "check", uri, "--repeat", "1000"]
    command = [*words, "--start", f"echo $$ >{pid}; {start}", "--only", "split.around_the_ring"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as judge:
        assert eventually(lambda: pid.exists() and pid.read_text().strip() != "")
        daemon = Path("/proc", pid.read_text().strip())
        assert daemon.exists()
        judge.terminate()
        assert judge.wait(30.0) == 128 + signal.SIGTERM
    assert not daemon.exists()
