"""The device from one case to the next: one that the judge starts itself is kept as long as all is
well, for starting it takes longer than most cases do, and started again when it has ended."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Self, TypeVar

from virtq.check.driver.start import Ending, RunningCommand, uninterrupted
from virtq.errors import PeerGone, TransportError, VirtqError
from virtq.transports.base import DriverTransport, Renewable
from virtq.transports.vhost_user.channel import NobodyListens

START_S = 30.0
"""How long a device that is started may take until it can be opened."""
RETURN_S = 2.0
"""How long one that somebody else has started may take until it listens again."""
_ATTEMPTS = 3
"""One that took too long to answer once, as QEMU does beside much else, may not the next time."""
_LAST_BREATH_S = 1.0
"""A connection may be closed before its process has ended."""
_POLL_S = 0.01

T = TypeVar("T")


class Gone(Exception):
    """There is no device any more, and no way to start another one; the text says why."""


def _is_full(error: TransportError) -> bool:
    """Whether its backlog is: it is there, and takes nothing."""
    return isinstance(error.__context__, BlockingIOError)


class Lasting:
    """A device that somebody else has started, and that was there before."""

    def __init__(self) -> None:
        self._is_told = False
        self._gone = ""

    def reach(self, open: Callable[[], T]) -> T:
        """Open it. Some back-ends make their socket anew for every connection: it may be away for a
        moment. Raises PeerGone if it went away and nobody has been told, Gone if that is known."""
        if self._gone:
            raise Gone(self._gone)
        deadline = time.monotonic() + RETURN_S
        attempts = 0
        while True:
            attempts += 1
            try:
                return open()
            except TransportError as error:
                if _is_full(error):
                    raise
                if attempts >= _ATTEMPTS and time.monotonic() > deadline:
                    self._gone = str(error)
                    if self._is_told:
                        raise Gone(self._gone) from None
                    raise PeerGone(f"it cannot be reached any more: {error}") from None
            time.sleep(_POLL_S)

    def case_begins(self) -> None:
        """A case begins."""

    def has_ended(self) -> Ending | None:
        """How its process ended badly, as far as that is known."""
        return None

    def failed(self, *, gone: bool) -> None:
        """That it went away is told now, and that it stays away is no news."""
        self._is_told |= gone

    def ending(self) -> str:
        """How its process ended, as far as that is known; empty if it runs."""
        return ""

    def close(self) -> None:
        """It is not ours to end."""


class Started:
    """A device that a command serves. Close it: it is ended.

    One that ends by itself with a status other than 0, or by a signal, has crashed. With status 0
    it has ended with its connection, as some do, and is started again for the next."""

    def __init__(self, start: Callable[[], RunningCommand]) -> None:
        self._start = start
        self._running: RunningCommand | None = None
        self._ends_with_its_connection = False
        self._since = ""

    def reach(self, open: Callable[[], T]) -> T:
        """Open it. Raises PeerGone if it has ended, TransportError if it can never be opened."""
        if self._ends_with_its_connection:
            self._ending()  # it must not take another connection on its way out
        if self._running is not None and (ending := self._running.ended()):
            self.close()
            if ending.failed:
                raise PeerGone(f"the device is gone{self._since}: {ending.text}")
        if self._running is None:
            with uninterrupted():
                self._running = self._start()
        deadline = time.monotonic() + START_S
        while True:
            try:
                return open()
            except TransportError as error:
                if _is_full(error):
                    raise
                if ending := self._running.ended():
                    raise PeerGone(f"the device is gone: {ending.text}") from None
                if not isinstance(error, NobodyListens):  # it is there, and does not do its part
                    deadline = min(deadline, time.monotonic() + RETURN_S)
                if time.monotonic() > deadline:
                    raise
            time.sleep(_POLL_S)

    def look_whether_it_ends(self) -> None:
        """Its only connection was closed: whether it ends with that."""
        ending = self._ending()
        self._ends_with_its_connection = ending is not None and not ending.failed

    def case_begins(self) -> None:
        """A case begins: what has ended by now did not end in it."""
        is_gone = self._running is not None and self._running.ended() is not None
        self._since = ", since the case before" if is_gone else ""

    def has_ended(self) -> Ending | None:
        """How its process ended badly, if it did by now."""
        ending = self._running.ended() if self._running is not None else None
        return ending if ending is not None and ending.failed else None

    def failed(self, *, gone: bool) -> None:
        """Another one is started next: this one may not have got over it."""
        self.close()

    def ending(self) -> str:
        """How its process ended other than with status 0; empty if it did not. Waits a moment for
        one that is about to end."""
        ending = self._ending()
        return ending.text if ending and ending.failed else ""

    def _ending(self) -> Ending | None:
        deadline = time.monotonic() + _LAST_BREATH_S
        while self._running:
            if (ending := self._running.ended()) or time.monotonic() > deadline:
                return ending
            time.sleep(_POLL_S)
        return None

    def close(self) -> None:
        with uninterrupted():
            running, self._running = self._running, None
            if running is not None:
                running.end(lambda: time.sleep(_POLL_S))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Keeper:
    """Opens transports, and keeps one that is no longer needed. Close it: that one goes."""

    def __init__(self, device: Lasting | Started, open: Callable[[], DriverTransport]) -> None:
        self._device, self._open = device, open
        self._kept: DriverTransport | None = None

    def open(self) -> DriverTransport:
        """The one that was kept, or a new one. Raises TransportError, PeerGone, Gone."""
        kept, self._kept = self._kept, None
        return kept or self._device.reach(self._open)

    def give_back(self, transport: DriverTransport, *, well: bool) -> None:
        """Done with a transport; `well`: nothing speaks against using the device again."""
        if well and self._kept is None and isinstance(transport, Renewable):
            with contextlib.suppress(VirtqError):
                transport.renew()
                self._kept = transport
                return
        transport.close()

    def reach(self, open: Callable[[], T]) -> T:
        """Open the device in another way. Raises as `open()` does."""
        return self._device.reach(open)

    def case_begins(self) -> None:
        """A case begins."""
        self._device.case_begins()

    def has_ended(self) -> Ending | None:
        """How the device's process ended badly, if it did by now, and as far as that is known."""
        return self._device.has_ended()

    def failed(self, *, gone: bool) -> None:
        """A case ended badly, and what was opened for it is closed; `gone`: it went away."""
        self._device.failed(gone=gone)

    def ending(self) -> str:
        """How the device's process ended, as far as that is known."""
        return self._device.ending()

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None
