"""`virtq serve blk`, and what serving has in common."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.unit.cli.support import MIB, START_TIMEOUT_S, VIRTQ, printed, served
from virtq import F, connect
from virtq.drivers.blk import BlkDriver
from virtq.features import RingKind


@pytest.mark.parametrize(
    ("kind", "wait"),
    list(zip(RingKind, ["poll", "adaptive", "event", "event"], strict=True)),
)
def test_serve_blk_tells_what_it_did(
    kind: RingKind, wait: str, image: Path, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    with served("blk", image, "--socket-path", path, "--json", "--wait", wait) as service:
        with connect(
            f"vhost-user:{path}", driver=BlkDriver, want=kind.features, offer=kind.change
        ) as disk:
            data = disk.read(0, MIB)
            disk.write(MIB, data)
            disk.flush()
            counted = disk.queues[0].stats
        report = service.report()
    assert not path.exists()
    assert image.read_bytes()[MIB : 2 * MIB] == data
    queue = report["queues"]["requestq1"]
    assert report["front_ends"] == 1
    assert report["queue_sizes"] == {"requestq1": 256}
    assert int(report["negotiated"]["bits"], 16) & kind.features == kind.features
    assert ("IN_ORDER" in report["negotiated"]["names"]) == kind.in_order
    assert queue["buffers"] == counted["buffers"]
    assert queue["used_entries"] == counted["used_entries"]
    assert queue["bytes_read"] > MIB
    assert queue["bytes_written"] > MIB
    assert queue["kicks_received"] <= counted["kicks_sent"]
    assert queue["calls_sent"] > 0
    assert report["total"]["buffers"] == queue["buffers"]


def test_serve_blk_prints_a_table(image: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    words = ["--queues", "2", "--read-only", "--offer", "-RING_PACKED", "--queue-size", "128"]
    with served("blk", image, "--socket-path", path, *words) as service:
        with connect(f"vhost-user:{path}?queue_size=128", driver=BlkDriver) as disk:
            disk.read(0, MIB)
            assert disk.read_only
        text = service.end(signal.SIGINT)
    assert all(len(line) <= 80 for line in text.splitlines())
    for fact in ("read-only", "1 front-end in", "split, in order", "2 of 128 slots"):
        assert fact in text
    for line in ("requestq1", "requestq2", "all"):
        assert f"\n{line} " in text


def test_serve_blk_over_one_used_entry_per_buffer(image: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    words = ["--json", "--one-used-entry-per-buffer"]
    with served("blk", image, "--socket-path", path, *words) as service:
        with connect(f"vhost-user:{path}", driver=BlkDriver, want=F.IN_ORDER) as disk:
            disk.read(0, 4 * MIB)
        queue = service.report()["queues"]["requestq1"]
    assert queue["used_entries"] == queue["buffers"] > 1


def test_serve_blk_from_memory_and_from_nothing(tmp_path: Path) -> None:
    for image, kept in (("memory:4M", b"kept"), ("null:4M", bytes(4))):
        path = tmp_path / "s"
        with served("blk", image, "--socket-path", path) as service:
            with connect(f"vhost-user:{path}", driver=BlkDriver) as disk:
                disk.write(0, b"kept".ljust(512, b"\0"))
                assert disk.read(0, 512)[:4] == kept
                assert disk.capacity == 4 * MIB
            service.end()


def test_serve_on_a_listening_socket(image: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        fd = listener.fileno()
        with served("blk", image, "--fd", str(fd), fds=(fd,)) as service:
            for _ in range(2):
                with connect(f"vhost-user:{path}", driver=BlkDriver) as disk:
                    assert disk.capacity == 16 * MIB
            assert "2 front-ends" in service.end()


def test_serve_on_a_connected_socket(image: Path) -> None:
    ours, theirs = socket.socketpair()
    fd = theirs.fileno()
    with served("blk", image, "--fd", str(fd), "--json", fds=(fd,)) as service:
        theirs.close()
        ours.close()
        assert service.process.wait(START_TIMEOUT_S) == 0
        out, _ = service.process.communicate()
    assert json.loads(out)["devices"][0]["front_ends"] == 1


def test_serve_reports_a_front_end_that_breaks_the_protocol(image: Path) -> None:
    ours, theirs = socket.socketpair()
    fd = theirs.fileno()
    with served("blk", image, "--fd", str(fd), fds=(fd,)) as service:
        theirs.close()
        ours.sendall(b"this is no vhost-user message")
        assert service.process.wait(START_TIMEOUT_S) == 1
        ours.close()
        out, err = service.process.communicate()
    assert "1 front-end" in out
    assert err.splitlines()[-1].startswith("virtq: ")
    assert "Traceback" not in err


def test_serve_replaces_no_other_service(image: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with served("blk", image, "--socket-path", path):
        other = subprocess.run(
            [*VIRTQ, "serve", "blk", image, "--socket-path", path],
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S,
        )
    assert other.returncode == 2
    assert other.stderr == f"virtq: {path}: cannot listen: another process serves it\n"


def test_serve_prints_rates_now_and_then(image: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with served("blk", image, "--socket-path", path, "--stats", "0.05") as service:
        assert service.process.stdout is not None
        lines = [service.process.stdout.readline() for _ in range(2)]
        service.end()
    assert all("buffers/s" in line and "kicks/s" in line for line in lines)
    assert all(len(line.rstrip("\n")) <= 80 for line in lines)
    with served("blk", image, "--socket-path", path, "--stats", "0.05", "--json") as service:
        assert service.process.stdout is not None
        first = json.loads(service.process.stdout.readline())
        assert first["devices"][0]["front_ends"] == 0
        assert all(json.loads(line) for line in service.end().splitlines())


def test_capabilities_as_management_tools_ask_for_them(capsys: pytest.CaptureFixture[str]) -> None:
    answer = json.loads(printed(capsys, "serve", "blk", "--print-capabilities", "--fd", "99"))
    assert answer == {"type": "block", "features": ["read-only", "blk-file"]}
    assert json.loads(printed(capsys, "serve", "net", "--print-capabilities")) == {"type": "net"}


def test_serve_blk_as_management_tools_start_it(image: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with served("blk", f"--blk-file={image}", f"--socket-path={path}", "--read-only") as service:
        with connect(f"vhost-user:{path}", driver=BlkDriver) as disk:
            assert disk.read(MIB, 512) == image.read_bytes()[MIB : MIB + 512]
        service.end()
