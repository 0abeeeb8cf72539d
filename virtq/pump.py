"""A virtqueue that a data path of the core serves, on a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from virtq._core import DeviceQueue, Position
from virtq.errors import TranslationMiss
from virtq.runner import log_broken


class Pump(Protocol):
    """A data path of the core: one queue on a thread of its own (`BlkPump`, `NetPump`)."""

    def enable(self, on: bool) -> None: ...
    def wake(self) -> None: ...
    @property
    def attention_fd(self) -> int: ...
    def trouble(self) -> Exception | None: ...
    def stop(self) -> Position: ...
    @property
    def stats(self) -> dict[str, int]: ...


class PumpRunner:
    """Serves a virtqueue by a data path of the core, and watches over it from the loop."""

    def __init__(
        self,
        queue: DeviceQueue,
        make: Callable[[], Pump],
        *,
        name: str,
        missed: Callable[[int, TranslationMiss], None] | None = None,
        ended: Callable[[], None] | None = None,
    ) -> None:
        """`make` starts the pump, disabled. `ended` is called when it has stopped."""
        self._queue = queue
        self._make = make
        self._name = name
        self._missed = missed
        self._ended = ended
        self._pump: Pump | None = None
        self._misses = 0
        self._last: Mapping[str, int] = {}

    def start(self) -> None:
        self._pump = self._make()
        asyncio.get_running_loop().add_reader(self._pump.attention_fd, self._look)

    def enable(self, on: bool) -> None:
        if self._pump is not None:
            self._pump.enable(on)

    def retry(self) -> None:
        if self._pump is not None:
            self._pump.wake()

    def stop(self) -> Position:
        if self._pump is None:
            return self._queue.stop()
        asyncio.get_running_loop().remove_reader(self._pump.attention_fd)
        position = self._pump.stop()
        self._last, self._pump = self._pump.stats, None
        if self._ended is not None:
            self._ended()
        return position

    @property
    def stats(self) -> dict[str, int]:
        own = self._last if self._pump is None else self._pump.stats
        return {**own, **self._queue.stats, "translation_misses": self._misses}

    def _look(self) -> None:
        trouble = self._pump.trouble() if self._pump is not None else None
        if isinstance(trouble, TranslationMiss) and self._missed is not None:
            self._misses += 1
            self._missed(self._queue.index, trouble)
        elif trouble is not None:
            log_broken(self._name, trouble)
