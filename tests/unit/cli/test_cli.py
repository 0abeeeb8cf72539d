"""The command line as such: help, errors on one line, exit codes."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.cli.support import START_TIMEOUT_S, VIRTQ, printed
from virtq.cli import COMMANDS, features, run


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["serve"],
        ["serve", "blk"],
        ["serve", "net"],
        ["serve", "x:y"],
        ["probe"],
        ["blk"],
        ["blk", "info"],
        ["blk", "read"],
        ["blk", "write"],
        ["blk", "copy"],
        ["blk", "vhost-user:x", "copy"],
        ["features"],
        ["demo"],
        ["bench"],
        ["bench", "rings"],
        ["bench", "net"],
        ["bench", "blk"],
        ["bench", "python"],
        ["bench", "scale"],
        ["bench", "show"],
    ],
)
def test_help_suffices(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, *words, "--help")
    assert text.startswith("Usage: virtq")
    assert "Example" in text
    assert "  virtq " in text


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["nothing"], 2, "virtq: no such command 'nothing' (see virtq --help)"),
        (["features", "INORDER"], 2, "did you mean IN_ORDER?"),
        (["features", "MQ"], 2, "say --type net or blk"),
        (["features", "0x1" + 32 * "0"], 2, "beyond 127"),
        (["features", "0xg"], 2, "is not a number"),
        (["features", "--type", "toaster"], 2, "none of net, blk"),
        (["probe", "vhost-user:/no/such.sock"], 2, "cannot connect: No such file or directory"),
        (["probe", "disk.sock"], 2, "has no scheme"),
        (["probe", "pigeon:x"], 2, "no transport is called pigeon"),
        (["probe", "loopback:blk?color=red"], 2, "no option is called color"),
        (["blk", "loopback:net", "info"], 2, "is no block device but net"),
        (["blk", "loopback:blk", "info", "--want", "+ZONED"], 2, "does not offer: ZONED"),
        (["blk", "loopback:blk", "info", "--want", "ZONE"], 2, "did you mean ZONED?"),
        (["blk", "loopback:blk", "copy"], 2, "either --out FILE or --in FILE"),
        (["blk", "loopback:blk", "copy", "--in", "/no/such"], 2, "/no/such: No such file"),
        (["blk", "loopback:blk", "copy", "--out", "/no/such"], 2, "/no/such: No such file"),
        (["blk", "loopback:blk", "read", "--chunk", "1K"], 2, "a multiple of 64K"),
        (["blk", "loopback:blk?size=1M", "read", "--offset", "1M"], 2, "not on a disk of 1048576"),
        (["blk", "copy"], 2, "the URI comes first: virtq blk URI copy"),
        (["blk", "loopback:blk"], 2, "missing command"),
        (["serve", "blk"], 2, "missing IMAGE"),
        (["serve", "blk", "memory:1M"], 2, "--socket-path PATH"),
        (["serve", "blk", "memory:1M", "--fd", "1", "--socket-path", "x"], 2, "exclude each other"),
        (["serve", "blk", "/no/such.img", "--socket-path", "x"], 2, "No such file"),
        (["serve", "blk", "memory:much", "--socket-path", "x"], 2, "is not a size"),
        (["serve", "blk", "memory:1M", "--fd", "1234"], 2, "descriptor 1234: not a socket"),
        (["serve", "blk", "memory:1M", "--socket-path", "/no/x"], 2, "/no/x: cannot listen"),
        (["serve", "blk", "memory:1M", "--fd", "-1"], 2, "-1 is not in the range"),
        (["serve", "blk", "memory:1M", "--fd", str(1 << 64)], 2, "is not in the range"),
        (["serve", "blk", "memory:1M", "--socket-path", ""], 2, "--socket-path is empty"),
        (["serve", "blk", "memory:9999999T", "--socket-path", "x"], 2, "a disk has up to"),
        (["serve", "blk", "null:9999999T", "--socket-path", "x"], 2, "a disk has up to"),
        (
            ["serve", "blk", "memory:1M", "--socket-path", "x", "--queue-size", "0"],
            2,
            "a queue has 1 to 32768 slots, not 0 as requestq1 would",
        ),
        (
            ["serve", "net", "--sink", "--socket-path", "x", "--queue-size", "32769"],
            2,
            "a queue has 1 to 32768 slots, not 32769 as receiveq1 would",
        ),
        (
            ["serve", "blk", "memory:1M", "--socket-path", "x", "--stats", "-1"],
            2,
            "-1.0 is not in the range",
        ),
        (
            ["serve", "blk", "memory:1M", "--socket-path", "x", "--stats", "inf"],
            2,
            "'inf' is no time",
        ),
        (
            ["serve", "net", "--hub", "--socket-path", "x", "--socket-path", "x"],
            2,
            "the same --socket-path twice",
        ),
        (["serve", "net", "--tap", "lo", "--socket-path", "x"], 2, "virtq: lo: "),
        (["serve", ":Device", "--socket-path", "x"], 2, "neither FILE.py:CLASS nor"),
        (["serve", "echo.py:", "--socket-path", "x"], 2, "neither FILE.py:CLASS nor"),
        (["probe", "loopback:blk", "--type", str(1 << 32)], 2, "none of net, blk"),
        (["probe", "loopback:blk?size=9999999T"], 2, "a disk has up to"),
        (["blk", "loopback:blk", "read", "--hex", "-o", "x"], 2, "not for -o FILE"),
        (["blk", "loopback:blk?size=1M", "copy", "--out", "/dev/full"], 1, "/dev/full: No space"),
        (["check", "loopback:blk", "--patience", "nan"], 2, "'nan' is no time"),
        (
            ["check", "--driver", "vhost-user:x", "--type", "vsock"],
            2,
            "cannot be a vsock device, only blk",
        ),
        (
            ["serve", "blk", "memory:1M", "--socket-path", "x", "--offer", "+ZONED"],
            2,
            "does not have ZONED",
        ),
        (
            ["serve", "blk", "memory:1M", "--socket-path", "x", "--offer", "ZONED"],
            2,
            "needs a sign",
        ),
        (["serve", "net", "--socket-path", "x"], 2, "say one of --tap"),
        (["serve", "net", "--sink", "--hub", "--socket-path", "x"], 2, "say one of --tap"),
        (["serve", "net", "--source", "64:many", "--socket-path", "x"], 2, "is not a number"),
        (["serve", "net", "--sink", "--mac", "12", "--socket-path", "x"], 2, "not a MAC address"),
        (
            ["serve", "net", "--sink", "--socket-path", "x", "--socket-path", "y"],
            2,
            "go with --hub",
        ),
        (["serve", "none.py:Device", "--socket-path", "x"], 2, "No such file"),
        (["serve", "os:getpid", "--socket-path", "x"], 2, "is no virtq.Device but int"),
        (["serve", "virtq:Nothing", "--socket-path", "x"], 2, "no attribute 'Nothing'"),
        (["demo", "--picture", "demo.txt"], 2, "an .svg or a .png file"),
        (["demo", "--picture", "/no/such/demo.svg"], 2, "cannot be written"),
    ],
)
def test_errors_are_one_line(
    words: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("virtq")
    assert text in err
    assert err.count("\n") == 1


def test_bytes_that_are_no_whole_sector_are_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    image = tmp_path / "odd.img"
    image.write_bytes(bytes(700))
    for disk, remark in (
        (str(image), f"virtq: {image}: 700 bytes are no whole sectors: 512 of them are served\n"),
        (
            "null:1025",
            "virtq: null:1025: 1025 bytes are no whole sectors: 1024 of them are served\n",
        ),
        ("memory:1K", ""),
    ):
        assert run(["serve", "blk", disk, "--socket-path", "/no/x"]) == 2
        assert capsys.readouterr().err.startswith(f"{remark}virtq: /no/x: cannot listen")


def test_an_unexpected_error_is_one_line_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("of\nsomething")

    monkeypatch.setattr(features, "parse_set", fail)
    assert run(["features", "1"]) == 1
    hint = "(unexpected: virtq -vv shows where it came from)"
    assert capsys.readouterr().err == f"virtq: ZeroDivisionError: of something {hint}\n"
    assert run(["-vv", "features", "1"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_without_arguments_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    assert "Usage: virtq" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error() -> None:
    command = subprocess.Popen(
        [*VIRTQ, "features"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert command.stdout is not None
    assert command.stderr is not None
    command.stdout.close()
    assert command.stderr.read() == ""
    assert command.wait(START_TIMEOUT_S) == 1
    command.stderr.close()


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("features >/dev/full", 1, "virtq: standard output: No space left on device\n"),
        ("blk loopback:blk?size=1M read >/dev/full", 1, "virtq: standard output: No space"),
        ("features >&-", 1, "virtq: standard output: Bad file descriptor\n"),
        ("blk loopback:blk?size=1M read >&-", 1, "virtq: standard output: Bad file descriptor\n"),
        ("blk loopback:blk?size=1M write - <&-", 0, "wrote 0 B"),
        ("features 2>&- <&- >/dev/null", 0, ""),
        ("features NOTHING 2>&-", 2, ""),
    ],
)
def test_standard_streams_that_are_full_or_closed(line: str, code: int, said: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f"exec {shlex.join(VIRTQ)} {line}"],
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
    )
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == bool(said)


def test_a_command_does_not_wait_for_the_others() -> None:
    found = "import sys, virtq.cli; virtq.cli.run(['features', '1']); print(*sys.modules)"
    text = subprocess.run([sys.executable, "-c", found], capture_output=True, text=True).stdout
    modules = set(text.splitlines()[-1].split())
    assert "virtq.cli.features" in modules
    assert not {f"virtq.cli.{name}" for name in COMMANDS if name != "features"} & modules
