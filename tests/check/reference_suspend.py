"""The disk of `reference`, which can be suspended."""

from __future__ import annotations

from collections.abc import Callable

from tests.check.reference import Reference
from virtq.features import F
from virtq.status import Status

RUNS = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK


class Suspending(Reference):
    offered = Reference.offered | int(F.SUSPEND)

    def __init__(self) -> None:
        self.write_cache = 1
        self.told: Callable[[], None] | None = None
        super().__init__()

    def on_config_change(self, callback: Callable[[], None] | None) -> None:
        self.told = callback

    def tell(self) -> None:
        if self.told is not None:
            self.told()

    @property
    def suspended(self) -> bool:
        return bool(self.status & Status.SUSPEND)

    def write_status(self, status: int) -> None:
        if status and self.features & F.SUSPEND:
            with self.lock:  # nothing is under way, and everything was notified
                if self.may_suspend(status):
                    self.suspend()
                    return
                if self.suspended and status & Status.DRIVER_OK:
                    self.resume()
                    return
            status &= ~Status.SUSPEND
        super().write_status(status & ~Status.SUSPEND)

    def may_suspend(self, status: int) -> bool:
        asked = bool(status & Status.SUSPEND) and not self.suspended
        return asked and bool(self.status & Status.DRIVER_OK)

    def suspend(self) -> None:
        self.status = RUNS | Status.SUSPEND

    def resume(self) -> None:
        self.status = RUNS | Status.DRIVER_OK
        self._look()

    def writeback(self) -> int:
        return self.write_cache

    def write_config(self, offset: int, data: bytes) -> None:
        if offset == 32 and self.may_write():
            self.write_cache = data[0]

    def may_write(self) -> bool:
        return not self.suspended


class Growing(Suspending):
    """Its capacity changes while it is suspended, which shows afterwards."""

    grown = 0

    @property
    def config(self) -> bytes:
        return bytes([super().config[0] + self.grown]) + super().config[1:]

    def resume(self) -> None:
        super().resume()
        self.grown += 1
        self.tell()
