"""How a driver comes to the judge: somebody's own, which is waited for, or a command's, which is
started for it and ended after it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Protocol, Self

from virtq.features import F, RingKind, names
from virtq.transports.vhost_user import channel

END_S = 3.0
"""How long a driver that is told to end may take."""
_POLL_S = 0.02
_LAST_BYTES = 2000
_SIGNAL_BASE = 128
"""A shell's exit status for a signal is this and its number."""


class NoDriver(Exception):
    """No driver came; the text says why."""


@dataclass(frozen=True)
class Ending:
    """How a driver ended by itself. `crashed`: by a signal that nobody sent it."""

    text: str
    crashed: bool
    failed: bool


class Running(Protocol):
    """A driver that was started."""

    def ended(self) -> Ending | None:
        """How it ended, if it did without being told to."""
        ...

    def end(self, meanwhile: Callable[[], None]) -> bool:
        """End it and all that it started; `meanwhile` is called while it is waited for. Whether it
        did so when it was asked, without being killed."""
        ...


class Starter(Protocol):
    """What starts drivers."""

    def start(self, path: str, kind: RingKind | None, features: int) -> Running: ...


class Command:
    """A shell command, with these words replaced in it:

    {socket}      where the judge listens
    {features}    what it will offer, as names with commas between
    {packed}      1 for a packed ring, else 0
    {in_order}    1 for IN_ORDER, else 0

    It has the same in its environment as VIRTQ_SOCKET, VIRTQ_FEATURES, VIRTQ_PACKED and
    VIRTQ_IN_ORDER. It has to keep the device busy until it is ended, by SIGTERM; a status above 128
    is a crash, as from a shell that tells of a signal."""

    def __init__(self, text: str, device_id: int | None = None) -> None:
        self._text = text
        self._device_id = device_id

    def start(self, path: str, kind: RingKind | None, features: int) -> RunningCommand:
        values = {
            "socket": path,
            "features": ",".join(names(features, self._device_id)).replace(" ", "_"),
            "packed": str(int(bool(features & F.RING_PACKED))),
            "in_order": str(int(bool(features & F.IN_ORDER))),
        }
        text = self._text
        for name, value in values.items():
            text = text.replace("{" + name + "}", value)
        more = {f"VIRTQ_{name.upper()}": value for name, value in values.items()}
        return RunningCommand(text, os.environ | more)


class RunningCommand:
    """A command in a process group of its own."""

    def __init__(self, text: str, environment: Mapping[str, str]) -> None:
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 closed by `end`
        self._process = subprocess.Popen(
            text,
            shell=True,
            # Open until the end: there are programs that end when they have read theirs.
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )

    def ended(self) -> Ending | None:
        code = self._process.poll()
        if code is None:
            return None
        number = -code if code < 0 else code - _SIGNAL_BASE
        try:
            how = f"by {signal.Signals(number).name}"
            crashed = True
        except ValueError:
            how, crashed = f"with status {code}", False
        return Ending(f"it ended {how}{self._last_words()}", crashed, code != 0)

    def _last_words(self) -> str:
        if self._output.closed:
            return ""
        size = self._output.seek(0, os.SEEK_END)
        self._output.seek(max(0, size - _LAST_BYTES))
        lines = self._output.read().decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return f": {said[-1]}" if said else ""

    def end(self, meanwhile: Callable[[], None]) -> bool:
        willing = self._process.poll() is not None or self._ask(meanwhile)
        self._send(signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._output.close()
        return willing

    def _ask(self, meanwhile: Callable[[], None]) -> bool:
        self._send(signal.SIGTERM)
        deadline = time.monotonic() + END_S
        while self._process.poll() is None:
            if time.monotonic() > deadline:
                return False
            meanwhile()
        return True

    def _send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """What would end this process, Ctrl-C or SIGTERM, waits until what is inside is done: nothing
    that was started is forgotten between its start and the assignment."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for waiting in came:
            signal.raise_signal(waiting)


class Door:
    """Where drivers come in: a socket that is listened on."""

    def __init__(self, path: str) -> None:
        """Raises TransportError if the path cannot be had."""
        self.path = path
        self._listener = channel.listen(path)
        self._listener.setblocking(False)
        self._identity = os.lstat(path).st_ino

    def accept(self, running: Running | None, wait_s: float) -> socket.socket:
        """The next driver that connects. Raises NoDriver."""
        deadline = time.monotonic() + wait_s
        poller = select.poll()
        poller.register(self._listener, select.POLLIN)
        while True:
            if poller.poll(_POLL_S * 1000):
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    return self._listener.accept()[0]
            if running is not None and (ending := running.ended()):
                raise NoDriver(f"the driver did not connect: {ending.text}")
            if time.monotonic() > deadline:
                raise NoDriver(f"no driver came within {wait_s:g} s")

    def close(self) -> None:
        self._listener.close()
        with contextlib.suppress(OSError):
            if os.lstat(self.path).st_ino == self._identity:
                os.unlink(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
