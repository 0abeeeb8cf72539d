"""Huge pages for DPDK, reserved while somebody needs them and given back afterwards.

The machine's count of huge pages is one number for all: a lock lets one process at a time change
it. The count found at first is kept in the lock file, so that the run after one that was killed
still restores the right number.
"""

from __future__ import annotations

import contextlib
import fcntl
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from virtq.testing.process import PeerError

PAGE_MIB: Final = 2
_POOL: Final = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
_COUNT: Final = _POOL / "nr_hugepages"
_LOCK: Final = Path(tempfile.gettempdir()) / "virtq-hugepages.lock"


def _kept() -> int:
    """The pages that the kernel keeps. Its count has those too that were given back while somebody
    had them mapped, a peer on its way out, say: they go with their last mapping."""
    surplus = _POOL / "surplus_hugepages"
    while True:
        going = int(surplus.read_text())
        count = int(_COUNT.read_text())
        if going == int(surplus.read_text()):
            return count - going


class _Reservation:
    """The sum of what this process has reserved, and the lock that goes with it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._pages = 0
        self._original = 0
        self._file: IO[str] | None = None

    def add(self, pages: int) -> None:
        with self._guard:
            if self._file is None:
                self._take_lock()
            self._pages += pages
            try:
                self._apply()
            except BaseException:
                self._give_back(pages)
                raise

    def remove(self, pages: int) -> None:
        with self._guard:
            self._give_back(pages)

    def _give_back(self, pages: int) -> None:
        self._pages -= pages
        _COUNT.write_text(str(self._original + self._pages))
        if self._pages == 0:
            self._drop_lock()

    def _apply(self) -> None:
        wanted = self._original + self._pages
        _COUNT.write_text(str(wanted))
        # The kernel gives as many as it finds, and reports no error.
        given = _kept()
        if given < wanted:
            raise PeerError(f"the kernel gave {given} of {wanted} huge pages of {PAGE_MIB} MiB")

    def _take_lock(self) -> None:
        file = _LOCK.open("a+")
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        left_behind = file.read().strip()
        self._original = int(left_behind) if left_behind else _kept()
        file.truncate(0)
        file.write(str(self._original))
        file.flush()
        self._file = file

    def _drop_lock(self) -> None:
        assert self._file is not None
        self._file.truncate(0)
        self._file.close()
        self._file = None


_reservation = _Reservation()


@contextlib.contextmanager
def reserve(size_mib: int) -> Iterator[None]:
    """Holds `size_mib` of huge pages; waits while another process holds any."""
    pages = -(-size_mib // PAGE_MIB)
    _reservation.add(pages)
    try:
        yield
    finally:
        _reservation.remove(pages)
