"""`virtq blk`: reading, writing, copying."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.unit.cli.support import MIB, START_TIMEOUT_S, VIRTQ, loaded, printed, served
from virtq import connect
from virtq.cli import run
from virtq.cli.transfer import runs


def test_blk_info(disk: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = loaded(capsys, "blk", disk, "info", "--want", "-RING_PACKED")
    assert found["capacity"] == 16 * MIB
    assert found["serial"] == "serial 7"
    assert found["queues"] == 2
    assert found["ring"] == "split-in-order"
    text = printed(capsys, "blk", disk, "info")
    for fact in ("16777216 bytes, 16 MiB", "serial 7", "read and write", "packed, in order"):
        assert fact in text


def test_blk_read(disk: str, image: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    content = image.read_bytes()
    for offset, length in ((MIB, 512), (MIB + 100, 1), (MIB - 3, 70_000), (15 * MIB, MIB)):
        words = ["read", "--offset", str(offset), "--length", str(length), "--chunk", "64K"]
        assert run(["blk", disk, *words]) == 0
        assert capsysbinary.readouterr().out == content[offset : offset + length]


def test_blk_read_for_eyes_and_programs(
    disk: str, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = image.read_bytes()[MIB + 5 : MIB + 25]
    words = ["blk", disk, "read", "--offset", str(MIB + 5), "--length", "20"]
    lines = printed(capsys, *words, "--hex").splitlines()
    assert lines[0].startswith(f"{MIB + 5:010x}  {part[:16].hex(' ')}  ")
    assert len(lines) == 2
    assert loaded(capsys, *words) == {"offset": MIB + 5, "length": 20, "hex": part.hex()}
    target = tmp_path / "part"
    target.write_bytes(bytes(100))
    assert loaded(capsys, *words, "-o", str(target))["bytes"] == 20
    assert target.read_bytes() == part


def test_blk_write_leaves_the_neighbours_alone(
    disk: str, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = bytearray(image.read_bytes())
    source = tmp_path / "source"
    for offset, length in ((3 * MIB, 512), (MIB + 7, 3), (8 * MIB - 5, 100_000), (0, MIB)):
        data = os.urandom(length)
        source.write_bytes(data)
        expected[offset : offset + length] = data
        words = ["write", str(source), "--offset", str(offset), "--chunk", "64K"]
        assert loaded(capsys, "blk", disk, *words)["bytes"] == length
    assert image.read_bytes() == expected
    assert run(["blk", disk, "write", str(source), "--offset", str(15 * MIB + 1)]) == 2
    assert image.read_bytes() == expected


@pytest.mark.parametrize("sparse", ["--sparse", "--no-sparse"])
def test_blk_copy_out(
    sparse: str, disk: str, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.img"
    target.write_bytes(os.urandom(20 * MIB))  # larger, and full of other bytes
    words = ["blk", disk, "copy", "--out", str(target), "--verify", sparse, "--chunk", "128K"]
    moved = loaded(capsys, *words)
    assert target.read_bytes() == image.read_bytes()
    assert moved["bytes"] == 16 * MIB
    assert moved["zero_bytes"] == (7 * MIB if sparse == "--sparse" else 0)
    assert len(moved["sha256"]) == 64
    if sparse == "--sparse":
        assert target.stat().st_blocks * 512 < 12 * MIB


@pytest.mark.parametrize("sparse", ["--sparse", "--no-sparse"])
@pytest.mark.parametrize("want", ["+IN_ORDER,+RING_PACKED", "-IN_ORDER,-RING_PACKED"])
def test_blk_copy_in(
    sparse: str,
    want: str,
    disk: str,
    image: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "in.img"
    source.write_bytes(os.urandom(MIB) + bytes(9 * MIB) + os.urandom(6 * MIB))
    words = ["blk", disk, "copy", "--in", str(source), "--verify", sparse, "--want", want]
    moved = loaded(capsys, *words, "--queue-depth", "7")
    assert image.read_bytes() == source.read_bytes()
    assert moved["ring"] == ("packed-in-order" if want[0] == "+" else "split")
    assert moved["zero_bytes"] == (9 * MIB if sparse == "--sparse" else 0)


def test_blk_copy_of_other_sizes(
    disk: str, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, source = image.read_bytes(), tmp_path / "in.img"
    source.write_bytes(bytes(16 * MIB + 1))
    assert run(["blk", disk, "copy", "--in", str(source)]) == 2
    assert "has 16777217 bytes, the disk 16777216" in capsys.readouterr().err
    assert image.read_bytes() == before
    small = os.urandom(70_001)
    source.write_bytes(small)
    assert run(["blk", disk, "copy", "--in", str(source)]) == 0
    assert "of the disk stay as they were" in capsys.readouterr().err
    assert image.read_bytes() == small + before[len(small) :]


def test_blk_copy_through_pipes(disk: str, image: Path, tmp_path: Path) -> None:
    other, path = tmp_path / "other.img", tmp_path / "other.sock"
    other.write_bytes(bytes(16 * MIB))
    with served("blk", other, "--socket-path", path) as service:
        out = subprocess.Popen([*VIRTQ, "blk", disk, "copy", "--out", "-"], stdout=subprocess.PIPE)
        words = ["blk", f"vhost-user:{path}", "copy", "--in", "-", "--verify"]
        into = subprocess.run([*VIRTQ, *words], stdin=out.stdout, timeout=60)
        assert out.stdout is not None
        out.stdout.close()
        assert (out.wait(START_TIMEOUT_S), into.returncode) == (0, 0)
        service.end()
    assert other.read_bytes() == image.read_bytes()


def test_blk_on_a_read_only_disk(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s"
    with served("blk", image, "--socket-path", path, "--read-only"):
        uri = f"vhost-user:{path}"
        for words in (["write", str(image)], ["copy", "--in", str(image)]):
            assert run(["blk", uri, *words]) == 2
            assert capsys.readouterr().err == f"virtq: {uri} is read-only\n"
        assert "read-only" in printed(capsys, "blk", uri, "info")


def test_blk_copy_from_a_back_end_that_dies(image: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with served("blk", image, "--socket-path", path) as service, connect(f"vhost-user:{path}"):
        copying = subprocess.Popen(
            [*VIRTQ, "blk", f"vhost-user:{path}", "copy", "--out", str(tmp_path / "out")],
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(0.5)
        service.process.kill()
    _, err = copying.communicate(timeout=START_TIMEOUT_S)
    assert copying.returncode in (1, 2)  # 2 if it was before the first answer
    assert err.startswith("virtq: ")
    assert err.count("\n") == 1


def test_failing_requests_are_told(
    tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s"
    with served("blk", image, "--socket-path", path):
        os.truncate(image, 4 * MIB)
        out = tmp_path / "out"
        assert run(["blk", f"vhost-user:{path}", "copy", "--out", str(out)]) == 1
    err = capsys.readouterr().err
    assert "IN of" in err
    assert "IOERR" in err
    assert err.count("\n") == 1


def test_runs_of_zeroes() -> None:
    data = bytes(65536) + b"x" * 65536 + bytes(3 * 65536) + b"\0" * 1000 + b"x"
    assert list(runs(data)) == [
        (0, 65536, True),
        (65536, 65536, False),
        (131072, 196608, True),
        (327680, 1001, False),
    ]
    assert list(runs(bytes(10))) == [(0, 10, True)]
    assert list(runs(b"x")) == [(0, 1, False)]
