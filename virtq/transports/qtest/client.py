"""The qtest protocol: a line for each command, a line for each reply.

QEMU trusts its tester: an argument that it does not expect ends the process with an assertion. So
every argument is checked here, before it is sent. Lines `IRQ raise N` and `IRQ lower N`, which QEMU
sends for interrupt lines that are intercepted, may come before a reply; they are kept for
`take_interrupts`.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import threading
from collections.abc import Callable

from virtq.errors import PeerGone, TransportError

_RECEIVE_BYTES = 1 << 16
TIMEOUT_S = 4.0
"""For a reply: what QEMU has to do for one takes microseconds."""
_SLICE_S = 0.02
ACCESS_BYTES_MAX = 1 << 16
"""Of one `read` or `write`."""
_LETTERS = {1: "b", 2: "w", 4: "l", 8: "q"}


class Client:
    """One connection to a QEMU under test; usable from several threads."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        name: str,
        timeout_s: float = TIMEOUT_S,
        ending: Callable[[], str] = lambda: "",
    ) -> None:
        """Takes over the connected socket. `timeout_s` bounds the wait for each reply; `ending`
        tells how a QEMU that is gone has ended."""
        self._sock = sock
        self._name = name
        self._ending = ending
        self._lock = threading.Lock()
        self._buffer = bytearray()
        self._interrupts: list[tuple[int, bool]] = []
        self._hangs = False
        self._timeout_s = timeout_s
        self._noted = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        sock.settimeout(timeout_s)

    @property
    def hangs(self) -> bool:
        """Whether a reply did not come in time."""
        return self._hangs

    @property
    def interrupt_fds(self) -> tuple[int, int]:
        """One of them is readable when interrupts may wait to be taken: the socket, for lines that
        have not been read, and an eventfd, for those that came before some reply."""
        return self._sock.fileno(), self._noted

    # Port and memory accesses

    def port_read(self, port: int, size: int) -> int:
        """Read an I/O port of the machine; `size` is 1, 2 or 4 bytes."""
        _check_port(port, size)
        return self._number(f"in{_LETTERS[size]} {port:#x}")

    def port_write(self, port: int, size: int, value: int) -> None:
        """Write an I/O port; the value is cut to `size` bytes."""
        _check_port(port, size)
        self._command(f"out{_LETTERS[size]} {port:#x} {_cut(value, size):#x}")

    def load(self, address: int, size: int) -> int:
        """One access of 1, 2, 4 or 8 bytes to a guest-physical address."""
        _check_access(address, size)
        return self._number(f"read{_LETTERS[size]} {address:#x}")

    def store(self, address: int, size: int, value: int) -> None:
        """One access of 1, 2, 4 or 8 bytes to a guest-physical address."""
        _check_access(address, size)
        self._command(f"write{_LETTERS[size]} {address:#x} {_cut(value, size):#x}")

    def read(self, address: int, length: int) -> bytes:
        """Bytes from a guest-physical address, in accesses of QEMU's choice."""
        _check_range(address, length)
        answer = self._command(f"read {address:#x} {length:#x}")
        try:
            data = bytes.fromhex(answer.removeprefix("0x"))
        except ValueError:
            data = b""
        if len(data) != length:
            raise TransportError(f"{self._name}: read of {length} bytes answered {answer[:40]!r}")
        return data

    def intercept(self, path: str) -> None:
        """Have the interrupt lines into the device at a QOM path reported here instead."""
        if not path.startswith("/") or any(c.isspace() for c in path):
            raise ValueError(f"{path!r} is not a QOM path")
        self._command(f"irq_intercept_in {path}")

    def take_interrupts(self) -> list[tuple[int, bool]]:
        """(line, whether it was raised) of what was reported since the last time, oldest first.
        Raises PeerGone if QEMU is gone."""
        with self._lock:
            while select.select([self._sock], [], [], 0)[0]:
                self._receive()
            while line := self._line():
                self._interrupt(line)
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._noted)
            taken, self._interrupts = self._interrupts, []
            return taken

    def close(self) -> None:
        self._sock.close()
        os.close(self._noted)

    # Lines

    def _number(self, command: str) -> int:
        answer = self._command(command)
        try:
            return int(answer, 0)
        except ValueError:
            raise TransportError(f"{self._name}: {command!r} answered {answer!r}") from None

    def _command(self, command: str) -> str:
        """Send a command; returns what follows `OK`."""
        with self._lock:
            if self._hangs:
                raise TransportError(f"{self._name}: QEMU does not answer any more")
            try:
                self._sock.sendall(command.encode() + b"\n")
            except OSError as error:
                raise self._gone(error.strerror) from None
            while True:
                line = self._line()
                if line is None:
                    self._receive()
                elif line.startswith("IRQ "):
                    self._interrupt(line)
                elif line == "OK" or line.startswith("OK "):
                    return line[3:].strip()
                else:
                    raise TransportError(f"{self._name}: {command!r} answered {line[:100]!r}")

    def _receive(self) -> None:
        # By slices: if this process has to wait for a processor, QEMU has its time all the same.
        for _ in range(math.ceil(self._timeout_s / _SLICE_S)):
            if select.select([self._sock], [], [], _SLICE_S)[0]:
                break
        else:
            self._hangs = True  # a late answer would be taken for that to the next command
            raise TransportError(f"{self._name}: QEMU does not answer")
        try:
            data = self._sock.recv(_RECEIVE_BYTES)
        except OSError as error:
            raise self._gone(error.strerror) from None
        if not data:
            raise self._gone("it closed the connection")
        self._buffer += data

    def _gone(self, reason: str | None) -> PeerGone:
        return PeerGone(f"{self._name}: {self._ending() or f'QEMU is gone: {reason}'}")

    def _line(self) -> str | None:
        end = self._buffer.find(b"\n")
        if end < 0:
            return None
        line = self._buffer[:end].decode("ascii", "replace").strip()
        del self._buffer[: end + 1]
        return line

    def _interrupt(self, line: str) -> None:
        match line.split():
            case ["IRQ", ("raise" | "lower") as level, number] if number.isdecimal():
                self._interrupts.append((int(number), level == "raise"))
                os.eventfd_write(self._noted, 1)
            case _:
                raise TransportError(f"{self._name}: unexpected line {line[:100]!r}")


def _cut(value: int, size: int) -> int:
    return value & ((1 << 8 * size) - 1)


def _check_port(port: int, size: int) -> None:
    if size not in (1, 2, 4) or not 0 <= port <= 0x10000 - size:
        raise ValueError(f"there is no I/O port {port:#x} of {size} bytes")


def _check_access(address: int, size: int) -> None:
    if size not in _LETTERS:
        raise ValueError(f"there is no access of {size} bytes")
    _check_range(address, size)


def _check_range(address: int, length: int) -> None:
    if not 0 < length <= ACCESS_BYTES_MAX:
        raise ValueError(f"an access has 1 to {ACCESS_BYTES_MAX} bytes, not {length}")
    if address < 0 or address + length > 1 << 64:
        raise ValueError(f"{length} bytes at {address:#x} are not in the address space")
