"""A device that the judge starts itself is kept from one case to the next, as long as all is well:
starting it takes longer than most cases do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from virtq.errors import VirtqError
from virtq.transports.base import DriverTransport, Renewable


class Keeper:
    """Opens transports, and keeps one that is no longer needed. Close it: that one goes."""

    def __init__(self, start: Callable[[], DriverTransport]) -> None:
        self._start = start
        self._kept: DriverTransport | None = None

    def open(self) -> DriverTransport:
        """The one that was kept, or a new one. Raises TransportError."""
        kept, self._kept = self._kept, None
        return kept or self._start()

    def give_back(self, transport: DriverTransport, *, well: bool) -> None:
        """Done with a transport; `well`: nothing speaks against using the device again."""
        if well and self._kept is None and isinstance(transport, Renewable):
            with contextlib.suppress(VirtqError):
                transport.renew()
                self._kept = transport
                return
        transport.close()

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None
