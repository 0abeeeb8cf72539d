"""A QEMU process that runs nothing: its processor halts, its devices wait for us.

Debian's QEMU has no qtest accelerator, so the machine runs under TCG with a firmware of one
instruction, `hlt`. RAM is a memfd that QEMU and we both map, from guest address 0 on.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from virtq.errors import PeerGone, TransportError
from virtq.transports.qtest.client import Client
from virtq.transports.qtest.monitor import Monitor

QEMU = "qemu-system-x86_64"
RAM_BYTES = 64 << 20
_RAM_BYTES_MAX = 2 << 30
"""Below the hole that PC machines have for devices."""
_QUIT_TIMEOUT_S = 5.0
_FIRMWARE_BYTES = 1 << 16
_RESET_OFFSET = 0xFFF0
_HALT = bytes([0xFA, 0xF4, 0xEB, 0xFD])  # cli; hlt; jmp to the hlt
_COMPLAINT_BYTES = 4096


class Machine:
    """The process with its sockets. `close` ends it."""

    def __init__(
        self,
        machine: str,
        arguments: Sequence[str],
        *,
        qemu: str = QEMU,
        ram_bytes: int = RAM_BYTES,
        name: str = "qtest",
    ) -> None:
        """Start QEMU with `-machine machine` and further `arguments`.

        Raises TransportError with QEMU's own complaint if it does not start, ValueError for an
        amount of RAM that it cannot have."""
        if not 1 << 21 <= ram_bytes <= _RAM_BYTES_MAX or ram_bytes % (1 << 20):
            raise ValueError(f"RAM of {ram_bytes} bytes: it takes whole MiB, from 2 to 2048")
        self.name = name
        self.ram_bytes = ram_bytes
        program = shutil.which(qemu)
        if program is None:
            raise TransportError(f"{name}: {qemu} is not installed")
        with contextlib.ExitStack() as stack:
            self.ram_fd = os.memfd_create("virtq-ram", os.MFD_CLOEXEC)
            stack.callback(os.close, self.ram_fd)
            os.ftruncate(self.ram_fd, ram_bytes)
            self._complaints = stack.enter_context(tempfile.TemporaryFile())
            ours, theirs = zip(*(socket.socketpair() for _ in range(2)), strict=True)
            with _closed(theirs), _firmware() as firmware:
                command = [program, *self._arguments(machine, firmware, theirs), *arguments]
                fds = [self.ram_fd, *(end.fileno() for end in theirs)]
                try:
                    self._process = subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=self._complaints,
                        stderr=subprocess.STDOUT,
                        pass_fds=fds,
                    )
                except OSError as error:
                    for end in ours:
                        end.close()
                    raise TransportError(f"{name}: {program}: {error.strerror}") from None
                stack.callback(self._end)
                for end in theirs:
                    end.close()
                # The monitor greets once every device is made, and the firmware is loaded.
                try:
                    self.monitor = Monitor(ours[1], name=name)
                except TransportError:
                    ours[0].close()
                    raise TransportError(f"{name}: {self._complaint()}") from None
                stack.callback(self.monitor.close)
            self.client = Client(ours[0], name=name, ending=self._complaint)
            stack.callback(self.client.close)
            self._resources = stack.pop_all()

    def _arguments(
        self, machine: str, firmware: str, sockets: Sequence[socket.socket]
    ) -> Iterator[str]:
        qtest, qmp = (end.fileno() for end in sockets)
        ram = f"memory-backend-file,id=ram,share=on,size={self.ram_bytes}"
        yield from ("-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg")
        yield from ("-machine", f"{machine},memory-backend=ram", "-m", f"{self.ram_bytes >> 20}M")
        yield from ("-object", f"{ram},mem-path=/proc/self/fd/{self.ram_fd}")
        yield from ("-bios", firmware)
        yield from ("-chardev", f"socket,id=qtest,fd={qtest}", "-qtest", "chardev:qtest")
        yield from ("-qtest-log", "none")  # what it says of itself is only what went wrong
        yield from ("-chardev", f"socket,id=qmp,fd={qmp}", "-mon", "chardev=qmp,mode=control")

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Raises PeerGone, with its last words, if QEMU has ended."""
        if self._process.poll() is not None:
            raise PeerGone(f"{self.name}: {self._complaint()}")

    def clear_ram(self, start: int) -> None:
        """Have zeroes in RAM from the guest address `start` on, a multiple of the page size."""
        with mmap.mmap(self.ram_fd, self.ram_bytes) as ram:
            ram.madvise(mmap.MADV_REMOVE, start, self.ram_bytes - start)

    def close(self) -> None:
        """End QEMU and let its memory go; one that hangs is killed. Harmless when done twice."""
        if self.client.hangs:
            self._process.kill()
        self._resources.close()

    def _complaint(self) -> str:
        """How QEMU ended, and what it said last."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_QUIT_TIMEOUT_S)
        self._complaints.seek(max(0, self._complaints.seek(0, os.SEEK_END) - _COMPLAINT_BYTES))
        lines = self._complaints.read().decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        status = self._process.returncode
        if status is None:
            ended = "does not answer"
        elif status < 0:
            ended = f"ended by {signal.Signals(-status).name}"
        else:
            ended = f"ended with status {status}"
        return f"QEMU {ended}" + (f": {said[-1]}" if said else "")

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_QUIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def _closed(sockets: Sequence[socket.socket]) -> Iterator[None]:
    try:
        yield
    finally:
        for end in sockets:
            end.close()


@contextlib.contextmanager
def _firmware() -> Iterator[str]:
    """A file that QEMU loads at the end of the first 4 GiB, where the processor begins."""
    image = bytearray(b"\xf4" * _FIRMWARE_BYTES)
    image[_RESET_OFFSET : _RESET_OFFSET + len(_HALT)] = _HALT
    with tempfile.TemporaryDirectory(prefix="virtq-") as folder:
        path = Path(folder, "halt.bin")
        path.write_bytes(image)
        yield str(path)
