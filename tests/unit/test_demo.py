"""The demo: that it verifies, that it would notice, that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock
from xml.etree import ElementTree

import pytest

from virtq.cli import run
from virtq.demo import DEVICES, Outcome, picture, run_demo
from virtq.demo.drive import BLOCKS, Mismatch, Work, check, check_frames
from virtq.drivers.blk import BlkDriver
from virtq.drivers.net import NetDriver
from virtq.errors import VirtqError
from virtq.features import RingKind

DEADLINE_S = 60.0


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the demo makes its own folder; nothing may be left in it."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def quick() -> list[Outcome]:
    return run_demo(0.1, lambda done, count, what: None, turns=1)


def test_every_kind_of_ring_is_driven_and_verified(folder: Path) -> None:
    steps: list[tuple[int, int, str]] = []
    outcomes = run_demo(0.1, lambda *step: steps.append(step), turns=2)
    assert [(o.kind, o.device) for o in outcomes] == [(k, d) for k in RingKind for d in DEVICES]
    assert steps[0] == (0, 16, "disk, split, any order")
    assert len(steps) == 16
    for outcome in outcomes:
        assert outcome.error is None
        assert outcome.work.bytes > 0
        assert outcome.buffers >= outcome.work.buffers > 0
        assert outcome.buffers_per_second > 0
        assert outcome.kicks > 0
        assert outcome.calls > 0 or outcome.device == "net"  # a frame may be there when looked for
        if not outcome.kind.in_order:
            assert outcome.used_entries == outcome.buffers
        elif outcome.device == "disk":
            assert outcome.used_entries < outcome.buffers / 10
        else:
            assert outcome.used_entries < outcome.buffers
    assert list(folder.iterdir()) == []


def test_a_wrong_byte_on_the_disk_is_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read_many = BlkDriver.read_many

    def wrong(self: BlkDriver, *args: object, **settings: object) -> list[bytes]:
        blocks = read_many(self, *args, **settings)  # type: ignore[arg-type]
        if self.kind is RingKind.PACKED and len(blocks) == BLOCKS:
            blocks[7] = blocks[7][:99] + bytes([blocks[7][99] ^ 1]) + blocks[7][100:]
        return blocks

    monkeypatch.setattr(BlkDriver, "read_many", wrong)
    assert run(["demo", "--seconds", "0.1", "--json"]) == 1
    out, err = capsys.readouterr()
    report = json.loads(out)
    failed = [r for r in report["runs"] if not r["verified"]]
    assert not report["verified"]
    assert [(r["ring"], r["device"]) for r in failed] == [("packed", "disk")]
    assert f"byte {7 * 4096 + 99} is" in err


def test_a_lost_frame_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    receive = NetDriver.receive
    monkeypatch.setattr("virtq.demo.drive.FRAME_TIMEOUT_S", 0.2)

    def lossy(self: NetDriver, *args: object, **settings: object) -> list[bytes]:
        frames = receive(self, *args, **settings)  # type: ignore[arg-type]
        return frames[1:] if self.kind is RingKind.SPLIT else frames

    monkeypatch.setattr(NetDriver, "receive", lossy)
    failed = [outcome for outcome in quick() if outcome.error]
    assert [(o.kind, o.device) for o in failed] == [(RingKind.SPLIT, "net")]
    assert failed[0].error is not None
    assert "of 64 frames arrived" in failed[0].error


def test_what_differs_is_told() -> None:
    check("it", b"same", b"same")
    with pytest.raises(Mismatch, match="it: byte 2 is 63, not 43"):
        check("it", b"abc", b"abC")
    with pytest.raises(Mismatch, match="byte 3 is missing, not 64"):
        check("it", b"abc", b"abcd")
    with pytest.raises(Mismatch, match="frame 1: byte 0 is 62, not 61"):
        check_frames(RingKind.SPLIT, [b"a", b"b"], [b"a", b"a"])


def test_the_command_shows_a_table_and_a_picture(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = folder / "demo.svg"
    assert run(["demo", "--seconds", "0.1", "--picture", str(target)]) == 0
    text = capsys.readouterr().out
    assert all(len(line) <= 80 for line in text.splitlines())
    assert text.count("right") == 9
    assert "Every byte right" in text
    for measure in picture.MEASURES:
        assert measure.title in text
    assert "█" in text
    root = ElementTree.parse(target).getroot()
    assert root.tag.endswith("svg")
    target.unlink()
    assert list(folder.iterdir()) == []


# The picture


def outcome(kind: RingKind, device: str, used_entries: int, error: str | None = None) -> Outcome:
    work = Work()
    work.add(Work(bytes=1 << 20, buffers=1000, seconds=0.1))
    return Outcome(device, kind, work, 1000, 8, 9, used_entries, error)


OUTCOMES = [outcome(k, d, 30 if k.in_order else 1000) for k in RingKind for d in DEVICES]


def test_the_picture_fits_its_frame() -> None:
    drawing = picture.draw(OUTCOMES)
    for part in drawing.parts:
        assert 0 < part.x < drawing.width
        assert 0 < part.y < drawing.height
        if isinstance(part, picture.Box):
            assert part.x + part.width < drawing.width
            assert part.y + part.height < drawing.height
    svg = picture.to_svg(drawing)
    ElementTree.fromstring(svg)
    for text in ("split, in order", "10k", "used entries", ">30<", ">1000<", "every byte"):
        assert text in svg


def test_the_picture_tells_of_failures() -> None:
    drawing = picture.draw([*OUTCOMES[1:], outcome(RingKind.SPLIT, "disk", 0, "a <wrong> byte")])
    svg = picture.to_svg(drawing)
    assert "1 of them failed" in svg
    assert svg.count(">failed<") == len(picture.MEASURES)


def test_the_picture_as_png(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    library = MagicMock()
    monkeypatch.setattr(picture, "import_module", lambda name: library)
    monkeypatch.setattr(picture, "find_spec", lambda name: object())
    drawing = picture.draw(OUTCOMES)
    picture.save(drawing, tmp_path / "a.png")
    library.Figure().savefig.assert_called_once()
    assert library.Figure().add_axes().text.call_count + library.Rectangle.call_count == len(
        drawing.parts
    )

    monkeypatch.setattr(picture, "find_spec", lambda name: None)
    assert run(["demo", "--picture", str(tmp_path / "a.png")]) == 2  # before it begins
    assert "matplotlib is not installed" in capsys.readouterr().err
    with pytest.raises(VirtqError, match=r"a .png file needs virtq\[plot\]"):
        picture.save(drawing, tmp_path / "a.png")
    with pytest.raises(VirtqError, match=r"an .svg or a .png file"):
        picture.save(drawing, tmp_path / "a.jpeg")


# The end


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_an_interrupted_demo_leaves_nothing(number: int, code: int, folder: Path) -> None:
    command = subprocess.Popen(
        [sys.executable, "-m", "virtq", "demo", "--seconds", "40"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    until(lambda: any(folder.glob("virtq-demo-*/net3b")))
    server = child_of(command.pid)
    time.sleep(0.3)
    command.send_signal(number)
    out, err = command.communicate(timeout=DEADLINE_S)
    assert command.returncode == code
    assert out == ""
    assert err.strip() == ""
    until(lambda: not any(folder.iterdir()))
    until(lambda: not Path(f"/proc/{server}/cwd").exists())


def test_a_server_that_dies_is_told(folder: Path) -> None:
    def kill(done: int, count: int, what: str) -> None:
        if done == 3:
            os.kill(child_of(os.getpid()), signal.SIGKILL)

    with pytest.raises(VirtqError, match="the second process has ended"):
        run_demo(0.1, kill, turns=1)
    assert list(folder.iterdir()) == []


def child_of(pid: int) -> int:
    """The one child that runs the demo's server."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    servers = [c for c in children if "virtq.demo.server" in Path(f"/proc/{c}/cmdline").read_text()]
    assert len(servers) == 1
    return int(servers[0])


def until(holds: Callable[[], bool]) -> None:
    """Wait for something to be so."""
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
