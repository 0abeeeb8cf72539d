"""`virtq serve rng`, `vsock` and `console`, and what `virtq probe` says of them."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from tests.unit.cli.support import loaded, printed, served
from virtq import connect
from virtq.cli import run
from virtq.cli.serve_console import make_port, parse_console_size
from virtq.devices.console_ends import FileEnd, NullEnd, PtyEnd, SocketEnd
from virtq.devices.rng import SeededSource
from virtq.drivers.console import ConsoleDriver
from virtq.drivers.rng import RngDriver
from virtq.drivers.vsock import VsockDriver
from virtq.errors import UriError

PATIENCE_S = 10.0


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command that cannot begin says, on one line."""
    assert run(["serve", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_serve_rng(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s"
    words = ["rng", "--seed", "x", "--max-bytes", "100", "--rate", "1M", "--json"]
    with served(*words, "--socket-path", path) as service:
        with connect(f"vhost-user:{path}", driver=RngDriver) as rng:
            assert rng.read(1000, timeout_s=PATIENCE_S) == SeededSource("x").read(1000)
        found = loaded(capsys, "probe", f"vhost-user:{path}", "--type", "rng")
        report = service.report()
    assert found["device"]["name"] == "rng"
    assert found["config"]["size"] == 0
    assert report["device"] == "rng from a seed"
    assert report["queues"]["requestq"]["bytes_written"] == 1000


def test_serve_rng_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, source = tmp_path / "s", tmp_path / "bytes"
    source.write_bytes(os.urandom(300))
    with (
        served("rng", "--source", source, "--socket-path", path) as service,
        connect(f"vhost-user:{path}", driver=RngDriver) as rng,
    ):
        assert rng.read(300, timeout_s=PATIENCE_S) == source.read_bytes()
        assert f"rngfrom{source}" in "".join(service.end().split())  # it is wrapped somewhere
    place = ["--socket-path", str(path)]
    assert "exclude each other" in complaint(
        capsys, "rng", "--source", str(source), "--seed", "1", *place
    )
    assert "No such file" in complaint(capsys, "rng", "--source", str(tmp_path / "none"), *place)
    assert "1 byte or more" in complaint(capsys, "rng", "--max-bytes", "0", *place)
    assert "1 byte per second" in complaint(capsys, "rng", "--rate", "0", *place)


def test_serve_vsock(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, host = tmp_path / "s", tmp_path / "host"
    words: list[str | Path] = [
        "vsock",
        "--uds-path",
        host,
        "--guest-cid",
        "42",
        "--buffer",
        "64K",
        "--json",
    ]
    with (
        served(*words, "--connections", "5", "--socket-path", path) as service,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        listener.bind(f"{host}_7")
        listener.listen()
        with (
            connect(f"vhost-user:{path}", driver=VsockDriver) as guest,
            guest.connect((2, 7)) as inside,
            listener.accept()[0] as outside,
        ):
            inside.sendall(b"hello")
            assert outside.recv(10) == b"hello"
            [flow] = guest.mux.flows.values()
            assert flow._peer_buf_alloc == 64 << 10
        found = loaded(capsys, "probe", f"vhost-user:{path}", "--type", "vsock")
        report = service.report()
    assert found["config"]["fields"] == {"guest_cid": 42}
    assert {"STREAM", "SEQPACKET", "NO_IMPLIED_STREAM"} <= set(found["features"]["names"])
    assert report["device"] == f"vsock {host}, CID 42"
    assert {"rx", "tx", "event"} == set(report["queues"])
    assert not host.exists()
    place = ["--socket-path", str(path)]
    assert "cannot be a guest's CID" in complaint(
        capsys, "vsock", "--uds-path", str(host), "--guest-cid", "2", *place
    )
    assert "uds-path" in complaint(capsys, "vsock", *place)
    too_much = ["--uds-path", str(host), "--buffer", "4G"]
    assert "holds 4294967295 bytes at most" in complaint(capsys, "vsock", *too_much, *place)
    letter = tmp_path / "letter"
    letter.write_text("kept")
    assert "letter: the file is not a socket" in complaint(
        capsys, "vsock", "--uds-path", str(letter), *place
    )
    assert letter.read_text() == "kept"


def test_serve_console(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, agent, log, terminal = (tmp_path / name for name in ("s", "agent", "log", "terminal"))
    ports = [f"0:pty={terminal}", f"agent:socket={agent}", f"log:file={log}", "nobody:null"]
    words = [word for port in ports for word in ("--port", port)]
    size = ["--size", "80x25", "--ports-max", "6"]
    with served("console", *words, *size, "--socket-path", path, "--json") as service:
        with connect(f"vhost-user:{path}", driver=ConsoleDriver) as console:
            assert console.size == (80, 25)
            console.open("log").write(b"logged\n")
            console.open("nobody").write(b"lost")
            port = console.open("agent")
            with socket.socket(socket.AF_UNIX) as program:
                program.connect(str(agent))
                program.sendall(b"hello")
                assert port.read_exactly(5) == b"hello"
            outside = os.open(terminal, os.O_RDWR | os.O_NOCTTY)
            console.open(0).write(b"login: ")
            assert os.read(outside, 100) == b"login: "
            os.close(outside)
        found = loaded(capsys, "probe", f"vhost-user:{path}?queues=14", "--type", "console")
        text = printed(capsys, "probe", f"vhost-user:{path}", "--type", "console")
        report = service.report()
    fields = {"cols": 80, "rows": 25, "max_nr_ports": 6, "emerg_wr": 0}
    assert found["config"]["fields"] == fields
    assert "max_nr_ports" in text
    assert report["device"] == "console with 4 ports"
    assert len(report["queues"]) == 14
    assert log.read_text() == "logged\n"
    assert not agent.exists()
    assert not terminal.is_symlink()


def test_serve_console_on_standard_output(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with served("console", "--no-multiport", "--socket-path", path) as service:
        with connect(f"vhost-user:{path}", driver=ConsoleDriver) as console:
            assert len(console.queues) == 2
            console.open(0).write(b"from the guest\n")
        said = service.end()
    assert said.startswith("from the guest\n")
    assert "console with 1 port" in said


def test_ports_of_the_command_line(tmp_path: Path) -> None:
    kinds = {
        "a:null": NullEnd,
        f"b:file={tmp_path}/f": FileEnd,
        f"c:socket={tmp_path}/s": SocketEnd,
        f"3:pty={tmp_path}/p": PtyEnd,
        "4:pty": PtyEnd,
    }
    for text, kind in kinds.items():
        port = make_port(text)
        assert isinstance(port.end, kind)
        assert (port.name or str(port.id)) == text.partition(":")[0]
        assert port.console == text[0].isdecimal()
        port.end.close()
    for text in (
        "",
        "null",
        ":null",
        "a:",
        "a:socket",
        "a:file",
        "a:null=1",
        "a:what",
        "a:stdio=x",
    ):
        with pytest.raises(UriError):
            make_port(text)
    assert parse_console_size("132X50") == (132, 50)
    for text in ("", "80", "80x", "x25", "80x25x1", "-1x1", "1000000x1"):
        with pytest.raises(UriError):
            parse_console_size(text)


def test_consoles_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--socket-path", str(tmp_path / "s")]
    for words, text in (
        (["--port", "what"], "PORT:KIND"),
        (["--port", "0:null", "--port", "0:null"], "port 0 is there already"),
        (["--port", "5:null", "--no-multiport"], "its number is 0"),
        (["--port", "9:null", "--ports-max", "4"], "4 ports at most"),
        (["--port", "0:null", "--size", "big"], "not a size"),
        (["--port", f"a:file={tmp_path}/no/file"], "No such file"),
        (["--port", f"0:pty={tmp_path}/no/link"], "no/link: No such file"),
        (["--port", f"0:pty={tmp_path}"], f"{tmp_path}: File exists"),
    ):
        assert text in complaint(capsys, "console", *words, *place)


@pytest.mark.parametrize("device", ["rng", "vsock", "console"])
def test_capabilities(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(printed(capsys, "serve", device, "--print-capabilities"))["type"] == device
