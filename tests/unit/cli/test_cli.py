"""The command line as such: help, errors on one line, exit codes."""

from __future__ import annotations

import subprocess

import pytest

from tests.unit.cli.support import START_TIMEOUT_S, VIRTQ, printed
from virtq.cli import features, run


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
