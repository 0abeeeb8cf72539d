"""The output of a process, kept as it comes, so that what is printed can be awaited."""

from __future__ import annotations

import os
import re
import threading


class Stream:
    """Reads a file descriptor to its end in a thread of its own."""

    def __init__(self, fd: int) -> None:
        """Takes over `fd`; `join` closes it."""
        self._fd = fd
        # Guards what follows; notified at every change of it.
        self._changed = threading.Condition()
        self._bytes = bytearray()
        self._ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def text(self) -> str:
        """All that has come so far."""
        return self.slice(0).decode(errors="replace")

    @property
    def ended(self) -> bool:
        """Whether the other side has closed."""
        with self._changed:
            return self._ended

    @property
    def length(self) -> int:
        """How many bytes have come so far."""
        with self._changed:
            return len(self._bytes)

    def slice(self, start: int, end: int | None = None) -> bytes:
        """The bytes from `start` to `end`, offsets from the very beginning."""
        with self._changed:
            return bytes(self._bytes[start:end])

    def find(
        self, wanted: bytes | re.Pattern[bytes], start: int, timeout_s: float
    ) -> tuple[int, int] | None:
        """Awaits `wanted` at or behind `start`: where it begins and ends; None if it never came."""
        pattern = re.compile(re.escape(wanted)) if isinstance(wanted, bytes) else wanted
        with self._changed:
            self._changed.wait_for(
                lambda: pattern.search(self._bytes, start) or self._ended, max(timeout_s, 0.0)
            )
            found = pattern.search(self._bytes, start)
            return found and found.span()

    def join(self) -> None:
        """Awaits the end, which comes when the process has ended, and closes the descriptor."""
        self._thread.join()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read(self) -> None:
        chunk = b"-"
        while chunk:
            try:
                chunk = os.read(self._fd, 65536)
            except OSError:
                # A pseudo-terminal whose other side is closed says EIO, where a pipe says end.
                chunk = b""
            with self._changed:
                self._bytes += chunk
                self._ended = not chunk
                self._changed.notify_all()
