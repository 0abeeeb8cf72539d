"""Processes that are killed and born again, many times a second: `virtq serve`, and drivers.

    with Nursery(serve_argv("blk", image, socket_path=path)) as nursery:
        nursery.kill()     # SIGKILL: nothing is finished, nothing is told
        nursery.start()    # another one

Python with all that they import takes most of a second to start, so a process that has imported it
waits and forks: what runs is the command as ever, in a process of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from .peers.process import PeerError, Process

PATIENCE_S: Final = 60.0
_PR_SET_PDEATHSIG: Final = 1
_ACCEPTS: Final = "00010000"
_CONNECTED: Final = "03"


def is_listening(socket_path: Path) -> bool:
    """By the kernel's table of sockets: a connection would be taken for a front-end's."""
    return any(words[3] == _ACCEPTS for words in _sockets(socket_path))


def is_connected(socket_path: Path) -> bool:
    """Whether somebody has connected to a socket that is served there."""
    return any(words[5] == _CONNECTED for words in _sockets(socket_path))


def _sockets(socket_path: Path) -> list[list[str]]:
    """The lines of /proc/net/unix for a path: address, references, protocol, flags, type, state,
    inode, path."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return [words for words in lines if words[-1] == str(socket_path)]


class Nursery:
    """A process after the other; the first runs from the moment that the context is entered."""

    def __init__(self, *argv: object) -> None:
        """`serve` and what comes behind `virtq serve`, or `write` and what comes behind that in
        `writer`."""
        self.argv = [*map(str, argv)]
        self.births = 0
        self.pid: int | None = None
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._log = stack.enter_context(tempfile.TemporaryFile())
            self._control, theirs = socket.socketpair()
            stack.enter_context(self._control)
            self._control.settimeout(PATIENCE_S)
            with theirs:
                self._process = Process(
                    [sys.executable, "-m", "tests.interop.nursery", str(theirs.fileno())],
                    stdout=self._log.fileno(),
                    pass_fds=[theirs.fileno()],
                )
            stack.callback(self._process.kill)
            self.start()
            self._resources = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        with self._resources:
            if self.pid is not None:
                self.kill()

    def start(self, *argv: object) -> None:
        """Another process; `argv` is for this one only, by default as ever."""
        self.pid = self._ask(json.dumps([*map(str, argv or self.argv)]))
        self.births += 1

    def await_that(self, holds: Callable[[], bool], what: str) -> None:
        """Returns once it holds. Raises PeerError if it does not come."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            if time.monotonic() > deadline:
                raise PeerError(f"not in {PATIENCE_S} s: {what}\n{self.log}")
            time.sleep(0.001)

    def kill(self) -> None:
        """SIGKILL; returns once it is gone."""
        self._ask("kill")
        self.pid = None

    @property
    def log(self) -> str:
        """What all of them have said so far."""
        said = os.pread(self._log.fileno(), 1 << 20, 0).decode(errors="replace")
        return said + self._process.log

    def _ask(self, what: str) -> int:
        self._control.sendall(what.encode() + b"\n")
        try:
            answer = self._control.recv(64)
        except TimeoutError:
            answer = b""
        if not answer:
            raise PeerError(f"no answer to {what!r}\n{self.log}")
        return int(answer)


def _run(control: socket.socket) -> None:
    """Fork a command for each line with its arguments; kill it and wait for it."""
    pid = 0
    for line in control.makefile("r"):
        if line.startswith("["):
            pid = os.fork()
            if not pid:
                control.close()
                _live(json.loads(line))
        else:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        control.sendall(str(pid).encode())


def _live(argv: list[str]) -> None:
    """The child, which ends with its parent."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    status = 1
    try:
        if argv[0] == "write":
            write(*argv[1:])
        else:
            sys.argv = ["virtq", *argv]
            main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    import virtq.cli.serve
    import virtq.cli.serving
    import virtq.devices.blk
    import virtq.devices.disk  # noqa: F401 - imported here so that the children have it
    from virtq.cli import main

    from .writer import write

    _run(socket.socket(fileno=int(sys.argv[1])))
