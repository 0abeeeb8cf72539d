"""`virtq serve` processes that are killed and born again, many times a second.

    with Nursery("blk", image, socket_path=path) as nursery:
        nursery.kill()     # SIGKILL: nothing is finished, nothing is told
        nursery.start()    # another one, at the same socket

Python with all that the command imports takes most of a second to start, so a process that has
imported it waits and forks: what runs is the command as ever, in a process of its own.
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
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from .peers.process import PeerError, Process

READY_TIMEOUT_S: Final = 20.0
_PR_SET_PDEATHSIG: Final = 1


class Nursery:
    """The command, running from the moment that the context is entered."""

    def __init__(self, *arguments: object, socket_path: Path) -> None:
        """`arguments` are those behind `virtq serve`."""
        self._argv = ["serve", *map(str, arguments), "--socket-path", str(socket_path)]
        self.socket_path = socket_path
        self.births = 0
        self.pid: int | None = None
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._log = stack.enter_context(tempfile.TemporaryFile())
            self._control, theirs = socket.socketpair()
            stack.enter_context(self._control)
            self._control.settimeout(READY_TIMEOUT_S)
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._resources:
            if self.pid is not None:
                self.kill()

    def start(self) -> None:
        """Another process; returns once front-ends can connect."""
        self.pid = self._ask(json.dumps(self._argv))
        self.births += 1
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not self._listens():
            if time.monotonic() > deadline:
                raise PeerError(f"virtq does not serve {self.socket_path}\n{self.log}")
            time.sleep(0.002)

    def kill(self) -> None:
        """SIGKILL; returns once it is gone."""
        self._ask("kill")
        self.pid = None

    def end(self) -> None:
        """SIGTERM; returns once it has ended."""
        self._ask("end")
        self.pid = None

    @property
    def log(self) -> str:
        """What all of them have said so far."""
        said = os.pread(self._log.fileno(), 1 << 20, 0).decode(errors="replace")
        return said + self._process.log

    def _listens(self) -> bool:
        """By the kernel's table of sockets: a connection would be taken for a front-end's."""
        for line in Path("/proc/net/unix").read_text().splitlines():
            words = line.split()
            if words[-1] == str(self.socket_path) and words[3] == "00010000":
                return True
        return False

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
                _serve(json.loads(line))
        else:
            os.kill(pid, signal.SIGKILL if line == "kill\n" else signal.SIGTERM)
            os.waitpid(pid, 0)
        control.sendall(str(pid).encode())


def _serve(argv: list[str]) -> None:
    """The child: the command, that ends with its parent."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    from virtq.cli import main

    sys.argv = ["virtq", *argv]
    status = 1
    try:
        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        os._exit(status)


if __name__ == "__main__":
    import virtq.cli.serve
    import virtq.cli.serving
    import virtq.devices.blk
    import virtq.devices.disk  # noqa: F401 - imported here so that the children have it

    _run(socket.socket(fileno=int(sys.argv[1])))
