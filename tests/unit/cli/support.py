"""What the tests of the commands share: services, disks, answers."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from virtq.cli import run

VIRTQ = [sys.executable, "-m", "virtq"]
START_TIMEOUT_S = 30.0
MIB = 1 << 20


class Served:
    """`virtq serve` in a process of its own, from the line that says it serves until a signal."""

    def __init__(self, *words: str | Path, fds: tuple[int, ...] = ()) -> None:
        self.process = subprocess.Popen(
            [*VIRTQ, "serve", *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=fds,
        )
        self.lines: list[str] = []

    def wait_for(self, text: str) -> None:
        """Until a line of standard error has this text."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if text in line:
                return
        raise AssertionError(f"no {text!r} in {self.lines}")

    def feed(self, text: str) -> None:
        """Give it standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def end(self, number: int = signal.SIGTERM) -> str:
        """Send a signal; returns standard output once the process has ended well."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=START_TIMEOUT_S)
        assert self.process.returncode == 0, err
        return out

    def report(self) -> dict[str, Any]:
        """End, and the one device's statistics, for a service with --json."""
        report = json.loads(self.end())
        assert len(report["devices"]) == 1
        device: dict[str, Any] = report["devices"][0]
        return device


@contextlib.contextmanager
def served(*words: str | Path, sockets: int = 1, fds: tuple[int, ...] = ()) -> Iterator[Served]:
    service = Served(*words, fds=fds)
    try:
        for _ in range(sockets):
            service.wait_for("virtq: serving")
        yield service
    finally:
        if service.process.poll() is None:
            service.process.kill()
        service.process.communicate()


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command prints, which has to end well."""
    assert run(words) == 0
    return capsys.readouterr().out


def loaded(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    return json.loads(printed(capsys, *words, "--json"))
