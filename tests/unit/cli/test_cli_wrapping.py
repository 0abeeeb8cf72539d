"""`virtq serve` with faults, traces and captures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.cli.support import served
from tests.unit.cli.test_cli_serve import frames, net, received
from tests.unit.wrap.test_captured import packets as captured
from virtq import connect
from virtq.cli import run
from virtq.drivers.blk import BlkDriver
from virtq.errors import RequestError


def test_a_disk_with_faults_and_a_trace(tmp_path: Path) -> None:
    path, trace = tmp_path / "s", tmp_path / "out.json"
    words = ["--fault", "read:2:EIO", "--fault", "write:always:delay=1ms", "--trace", str(trace)]
    with served("blk", "memory:1M", "--socket-path", path, *words, "--json") as service:
        with connect(f"vhost-user:{path}", driver=BlkDriver) as disk:
            disk.write(0, b"x" * 512)
            assert disk.read(0, 512) == b"x" * 512
            with pytest.raises(RequestError, match="IOERR"):
                disk.read(0, 512)
            assert disk.read(0, 512) == b"x" * 512
        report = service.report()
    assert report["faults"] == {"read:2:EIO": 1, "write:always:delay=1ms": 1}
    assert report["queues"]["requestq1"]["faults"] == 2
    spans = [record["name"] for record in json.loads(trace.read_text()) if record["ph"] == "b"]
    assert spans.count("read") == 3


def test_what_happened_is_in_the_summary(tmp_path: Path) -> None:
    path = tmp_path / "s"
    words = ["--fault", "read:1:EIO", "--seed", "7"]
    with served("blk", "memory:1M", "--socket-path", path, *words) as service:
        with (
            connect(f"vhost-user:{path}", driver=BlkDriver) as disk,
            pytest.raises(RequestError),
        ):
            disk.read(0, 512)
        summary = service.end()
    assert "read:1:EIO, 1 time" in summary


def test_each_device_captures_into_a_file_of_its_own(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    words: list[str | Path] = ["--socket-path", a, "--socket-path", b]
    words += ["--capture", tmp_path / "hub.pcapng"]
    sent = frames(20)
    with served("net", "--hub", *words, sockets=2) as service:
        with net(a) as left, net(b) as right:
            left.send(sent)
            assert received(right, 20) == sent
        service.end()
    for name, direction in (("hub.pcapng", "out"), ("hub-2.pcapng", "in")):
        _, packets = captured(tmp_path / name)
        assert packets == [(direction, frame) for frame in sent]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fault", "read:1%"], "fault 'read:1%': it has the form WHAT:WHEN:FAULT"),
        (["--fault", "raed:1:EIO"], "'raed'; did you mean read?"),
        (["--fault", "read:1:EIEIO"], "'EIEIO' is no fault"),
        (["--fault", "@/nowhere"], "fault script /nowhere: No such file or directory"),
        (["--capture", "x"], "packets are what network and socket devices have, not blk"),
        (["--trace", "/nowhere/x"], "/nowhere/x: No such file or directory"),
        (["--seed", "7"], "--seed goes with --fault"),
    ],
)
def test_what_cannot_begin(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["serve", "blk", "memory:1M", "--socket-path", str(tmp_path / "s"), *words]
    assert run(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


FLAKY = """
import virtq
from virtq.devices.blk import BlkDevice
from virtq.devices.disk import Disk

def flaky():
    return virtq.wrap.Faulty(BlkDevice(Disk.memory(1 << 20)), "read:1:EIO")
"""


def test_a_wrapped_device_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "flaky.py").write_text(FLAKY)
    path = tmp_path / "s"
    with served(f"{tmp_path}/flaky.py:flaky", "--socket-path", path, "--json") as service:
        with (
            connect(f"vhost-user:{path}", driver=BlkDriver) as disk,
            pytest.raises(RequestError),
        ):
            disk.read(0, 512)
        report = service.report()
    assert report["faults"] == {"read:1:EIO": 1}
    assert report["device"] == "BlkDevice (device type 2)"


def test_the_help_tells_the_grammar(capsys: pytest.CaptureFixture[str]) -> None:
    for device in ("blk", "net", "x.py:X"):
        assert run(["serve", device, "--help"]) == 0
        assert "corrupt-used=id, =length or =order" in capsys.readouterr().out
