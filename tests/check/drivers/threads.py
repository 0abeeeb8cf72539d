"""What starts a driver that is a thread of this process."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.check.drivers.reference import Reference, Wrong
from virtq.check.driver.start import Ending
from virtq.features import RingKind

END_S = 0.3


class RunningThread:
    """Implements `virtq.check.driver.start.Running`."""

    def __init__(self, driver: Reference) -> None:
        self.driver = driver
        driver.thread.start()

    def ended(self) -> Ending | None:
        if self.driver.thread.is_alive():
            return None
        error = self.driver.error
        text = "it ended" if error is None else f"it ended with {error!r}"
        crashed = error is not None and not isinstance(error, Wrong)
        return Ending(text, crashed=crashed, failed=error is not None)

    def end(self, meanwhile: Callable[[], None]) -> bool:
        self.driver.ending = True
        deadline = time.monotonic() + END_S
        while self.driver.thread.is_alive() and time.monotonic() < deadline:
            meanwhile()
        willing = not self.driver.thread.is_alive()
        self.driver.killed = True
        while self.driver.thread.is_alive():
            meanwhile()
        self.driver.thread.join()
        return willing


class Threads:
    """Implements `virtq.check.driver.start.Starter`."""

    def __init__(self, kind: type[Reference]) -> None:
        self.kind = kind

    def start(self, path: str, kind: RingKind | None, features: int) -> RunningThread:
        return RunningThread(self.kind(path))
