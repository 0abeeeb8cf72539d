"""`virtq serve` as its users run it: a process of its own, ended by SIGTERM, that tells how it was.

A test begins it, does what it likes, and looks at the report:

    with Serving("blk", image, "--queues", 2, socket_path=socket_path) as disk:
        run_guest(...)
        report = disk.end()
    assert report.queues["requestq1"]["buffers"] > 0
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from virtq.testing.process import PeerError, Process

START_TIMEOUT_S: Final = 30.0


class ServingError(PeerError):
    """The command ended otherwise than it should, or did not tell its statistics."""


@dataclass(frozen=True)
class Report:
    """What the command said in the end of its only device.

    `queues` are the counters by name of the queue, `remarks` what it had to say besides that it
    serves: nothing, when all went well.
    """

    front_ends: int
    offered: int
    negotiated: int
    queue_sizes: Mapping[str, int]
    queues: Mapping[str, Mapping[str, int]]
    remarks: tuple[str, ...]
    faults: Mapping[str, int] = field(default_factory=dict)
    """How often each of the faults that were asked for has happened."""


class Serving:
    """The running command; once it is entered, the socket accepts connections.

    Leaving the context ends the command, and unless an error is on its way already, raises
    ServingError if it did not exit with 0. An error that leaves it says what the command said.
    """

    def __init__(self, *arguments: object, socket_path: Path, namespace: str | None = None) -> None:
        """`arguments` are those behind `virtq serve`; `namespace` is a network namespace to run
        in."""
        self._input: int | None = None
        inside = [] if namespace is None else ["ip", "netns", "exec", namespace]
        serve = [sys.executable, "-m", "virtq", "serve", *map(str, arguments)]
        self.argv = [*inside, *serve, "--socket-path", str(socket_path), "--json"]
        self.socket_path = socket_path
        self._report: Report | None = None
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._results = stack.enter_context(tempfile.TemporaryFile())
            given, self._input = os.pipe()
            stack.callback(self._close_input)
            try:
                self._process = Process(self.argv, stdin=given, stdout=self._results.fileno())
            finally:
                os.close(given)
            stack.callback(self._process.stop)
            self._process.wait_log("virtq: serving ", START_TIMEOUT_S)
            self._resources = stack.pop_all()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with self._resources:
            if error is None:
                self.end()
            elif self._report is None:
                status = self._process.stop()
                error.add_note(f"virtq serve exited {status}\n{self.log}{self._written()}")

    @property
    def uri(self) -> str:
        """What `virtq.connect` takes."""
        return f"vhost-user:{self.socket_path}"

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def log(self) -> str:
        """What the command has said so far on standard error."""
        return self._process.log

    def feed(self, text: str) -> None:
        """Gives the command standard input; less than 64 KiB at a time."""
        assert self._input is not None
        os.write(self._input, text.encode())

    def wait_log(self, text: str) -> None:
        """Awaits `text` on the command's standard error."""
        self._process.wait_log(text)

    def _close_input(self) -> None:
        if self._input is not None:
            os.close(self._input)
            self._input = None

    def end(self) -> Report:
        """Ends the command by SIGTERM; what it reported. The same again when it has ended."""
        if self._report is None:
            status = self._process.stop()
            if status != 0:
                raise ServingError(str(self._process.failure(f"exited {status}")))
            if self.socket_path.exists():
                raise ServingError(str(self._process.failure("left its socket behind")))
            self._report = self._read_report()
        return self._report

    def _written(self) -> str:
        return os.pread(self._results.fileno(), 1 << 20, 0).decode(errors="replace")

    def _read_report(self) -> Report:
        written = self._written()
        try:
            (device,) = json.loads(written)["devices"]
            offered, negotiated = (device[key] for key in ("offered", "negotiated"))
            return Report(
                front_ends=device["front_ends"],
                offered=int(offered["bits"], 16),
                negotiated=int(negotiated["bits"], 16) if negotiated else 0,
                queue_sizes=device["queue_sizes"],
                queues=device["queues"],
                faults=device.get("faults", {}),
                remarks=tuple(
                    line
                    for line in self.log.splitlines()
                    if line and not line.startswith("virtq: serving ")
                ),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ServingError(f"no report, but: {written!r}\n{self.log}") from error
