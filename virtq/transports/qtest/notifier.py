"""The thread between eventfds and registers.

A driver queue notifies by an eventfd and is woken by another one. Here the first becomes a write to
a notification register, and an interrupt becomes a write to the second.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from virtq.errors import TransportError
from virtq.transports.base import QueueEnd
from virtq.transports.qtest.access import Accesses
from virtq.transports.qtest.registers import Registers

log = logging.getLogger("virtq.qtest")


@dataclass(frozen=True)
class _Watched:
    queue: QueueEnd
    kick: int
    call: int


class Notifier:
    """Runs until `close`; queues come and go meanwhile."""

    def __init__(self, client: Accesses, registers: Registers) -> None:
        self._client = client
        self._registers = registers
        self._watched: dict[int, _Watched] = {}
        self._lock = threading.RLock()
        self._wake = _eventfd()
        self._closed = False
        self.notification_data = False
        """Whether NOTIFICATION_DATA was negotiated (6.1)."""
        self.config_changed: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._run, name="virtq-qtest", daemon=True)
        self._thread.start()

    def add(self, queue: QueueEnd) -> None:
        """Connect a queue's notifications."""
        watched = _Watched(queue, _eventfd(), _eventfd())
        queue.set_kick(watched.kick)
        queue.set_call(watched.call)
        with self._lock:
            self._watched[queue.index] = watched
        os.eventfd_write(self._wake, 1)

    def remove(self, index: int | None = None) -> None:
        """Disconnect one queue, or all. Nothing is written for it any more after that."""
        with self._lock:
            indices = list(self._watched) if index is None else [index]
            for watched in filter(None, (self._watched.pop(i, None) for i in indices)):
                os.close(watched.kick)
                os.close(watched.call)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nothing is passed on, and no register touched, but by the thread that holds it."""
        with self._lock:
            yield
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self.remove()
        os.close(self._wake)

    def _run(self) -> None:
        interval = self._registers.poll_s[1] if self._registers.poll_s else None
        try:
            while not self._closed:
                fds = [self._wake, *self._interrupt_fds(), *self._kicks()]
                try:
                    ready = select.select(fds, [], [], interval)[0]
                except (OSError, ValueError):
                    continue  # a queue was removed meanwhile, and its descriptor closed
                if self._wake in ready:
                    os.eventfd_read(self._wake)
                busy = self._turn()
                if self._registers.poll_s:
                    least, most = self._registers.poll_s
                    interval = least if busy else min(most, 2 * (interval or least))
        except TransportError as error:
            # Whoever waits for a queue asks the transport now and then, and learns it there.
            log.debug("the notifier ends: %s", error)

    def _interrupt_fds(self) -> tuple[int, ...]:
        return () if self._registers.poll_s else self._client.interrupt_fds

    def _kicks(self) -> list[int]:
        with self._lock:
            return [watched.kick for watched in self._watched.values()]

    def _turn(self) -> bool:
        """Pass on what waits in both directions; whether there was anything."""
        busy = False
        with self._lock:
            for index, watched in self._watched.items():
                if _drain(watched.kick):
                    busy = True
                    self._registers.notify(index, self._data(watched.queue))
            queues, config = self._registers.interrupts()
            for index in queues & self._watched.keys():
                os.eventfd_write(self._watched[index].call, 1)
        if config and self.config_changed is not None:
            self.config_changed()
        return busy or bool(queues) or config

    def _data(self, queue: QueueEnd) -> int | None:
        """Where the driver stands: the queue, and the next available slot with its wrap counter
        (packed) or the available index (split) (2.7.13.3, 2.8.21)."""
        if not self.notification_data:
            return None
        position = queue.position
        return queue.index | position.available << 16 | (position.available_wrap and 1 << 31)


def _eventfd() -> int:
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


def _drain(fd: int) -> bool:
    try:
        return bool(os.eventfd_read(fd))
    except BlockingIOError:
        return False
