"""A child process that is stopped in order, and cannot outlive the one that started it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from virtq.errors import VirtqError
from virtq.testing.stream import Stream

TERM_GRACE_S: Final = 5.0


class PeerError(VirtqError):
    """A peer failed, or did not do in time what was awaited of it."""


class Process:
    """One peer process. Its standard error, and its output unless redirected, are its log.

    The kernel kills the child when the *thread* that started it ends (PR_SET_PDEATHSIG), so a
    test run that is itself killed leaves nothing behind: start peers from a thread that lives
    as long as they do.
    """

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        stdin: int = subprocess.DEVNULL,
        stdout: int | None = None,
        pass_fds: Collection[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.argv = [str(word) for word in argv]
        read_fd, write_fd = os.pipe()
        try:
            self._child = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *self.argv],
                stdin=stdin,
                stdout=write_fd if stdout is None else stdout,
                stderr=write_fd,
                pass_fds=tuple(pass_fds),
                env={**os.environ, **(environment or {})},
                # Out of the terminal's foreground group: Ctrl-C reaches the tests, and they stop
                # the peer.
                start_new_session=True,
            )
        except BaseException:
            os.close(read_fd)
            raise
        finally:
            os.close(write_fd)
        self._log = Stream(read_fd)

    @property
    def pid(self) -> int:
        """The process id; `setpriv` replaces itself by the peer, so this is the peer's."""
        return self._child.pid

    @property
    def returncode(self) -> int | None:
        """The exit status (negative: the signal that ended it), None while it runs."""
        return self._child.poll()

    @property
    def log(self) -> str:
        """All that the process has logged so far."""
        return self._log.text

    def wait_log(self, text: str, timeout_s: float = 30.0) -> None:
        """Awaits `text` anywhere in the log; raises PeerError when it does not come."""
        if self._log.find(text.encode(), 0, timeout_s) is None:
            raise self.failure(f"did not log {text!r} in {timeout_s} s")

    def wait(self, timeout_s: float) -> int:
        """The exit status, awaited; raises PeerError when the time is up."""
        try:
            status = self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise self.failure(f"still runs after {timeout_s} s") from None
        self._log.join()
        return status

    def stop(self) -> int:
        """SIGTERM, then SIGKILL if that is ignored; the exit status. Harmless when it has ended."""
        self._signal(signal.SIGTERM)
        try:
            return self.wait(TERM_GRACE_S)
        except PeerError:
            return self.kill()

    def kill(self) -> int:
        """SIGKILL; the exit status."""
        self._signal(signal.SIGKILL)
        status = self._child.wait()
        self._log.join()
        return status

    def failure(self, what: str) -> PeerError:
        """An error that names the program and carries the end of its log."""
        tail = "\n".join(self.log.splitlines()[-15:])
        return PeerError(f"{Path(self.argv[0]).name} (pid {self.pid}) {what}\n{tail}")

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._child.send_signal(number)
