"""Notifications as messages on the sockets (INBAND_NOTIFICATIONS), where no eventfd was told.

For simulations: every notification is a message that the other end acknowledges, so both ends stay
in step. Queues know nothing of it. Each end gives its queues eventfds of its own, and what is
signalled there is told as a message: by the back-end's loop for used buffers and errors, by a
thread of the front-end for available buffers. While one message waits for its acknowledgement,
further signals of the same ring become one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import threading
from collections.abc import Callable

from virtq.errors import TransportError
from virtq.transports.vhost_user import channel
from virtq.transports.vhost_user.fds import close_fd
from virtq.transports.vhost_user.messages import Back
from virtq.transports.vhost_user.wire import VringState

log = logging.getLogger("virtq.vhost_user")

_JOIN_S = 1.0


def new_event() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


class BackNotifications:
    """Used buffer and error notifications of a back-end; all calls come from the loop's thread."""

    def __init__(self, tell: Callable[[Back, VringState], bool]) -> None:
        """`tell` sends one message; False if there is nobody to tell yet."""
        self._tell = tell
        self._events: dict[tuple[Back, int], int] = {}
        self._due: set[tuple[Back, int]] = set()
        self._unacknowledged: set[tuple[Back, int]] = set()

    def event(self, code: Back, ring: int) -> int:
        """A descriptor, the caller's, which tells `code` (VRING_CALL or VRING_ERR) when signalled;
        the same event each time."""
        key = code, ring
        if key not in self._events:
            self._events[key] = event = new_event()
            asyncio.get_running_loop().add_reader(event, self._signalled, key)
        return os.dup(self._events[key])

    def acknowledged(self, code: Back, ring: int) -> None:
        """The front-end has dealt with a message."""
        self._unacknowledged.discard((code, ring))
        self.tell_due()

    def tell_due(self) -> None:
        """Tell what waits; called when there is somebody new to tell as well."""
        for key in sorted(self._due - self._unacknowledged):
            code, ring = key
            if not self._tell(code, VringState(ring, 0)):
                return
            self._due.discard(key)
            self._unacknowledged.add(key)

    def channel_lost(self) -> None:
        """No acknowledgement will come any more; what has none is told again."""
        self._due |= self._unacknowledged
        self._unacknowledged.clear()

    def close(self) -> None:
        loop = asyncio.get_running_loop()
        for event in self._events.values():
            loop.remove_reader(event)
            close_fd(event)
        self._events.clear()

    def _signalled(self, key: tuple[Back, int]) -> None:
        channel.drain(self._events[key])
        self._due.add(key)
        self.tell_due()


class FrontKicks:
    """Available buffer notifications of a front-end, sent by a thread."""

    def __init__(self, tell: Callable[[int], None], name: str) -> None:
        """`tell` sends the message for a ring and waits for its acknowledgement; it is called in
        the thread. What it raises if the back-end is gone is of no account: the next one is kicked
        when it takes over."""
        self._tell = tell
        self._name = name
        self._lock = threading.Lock()
        self._rings: dict[int, int] = {}
        self._wake = new_event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="virtq-kicks", daemon=True)
        self._thread.start()

    def add(self, ring: int) -> int:
        """A descriptor, the caller's, which tells when it is signalled."""
        event = new_event()
        with self._lock:
            self._rings[ring] = event
        channel.signal(self._wake)
        return os.dup(event)

    def remove(self, ring: int) -> None:
        """The ring's signals are told no more. Harmless for one that was not added."""
        with self._lock:
            event = self._rings.pop(ring, None)
        if event is not None:
            close_fd(event)
            channel.signal(self._wake)

    def close(self) -> None:
        self._closed = True
        channel.signal(self._wake)
        if threading.current_thread() is not self._thread:
            self._thread.join(_JOIN_S)

    def _run(self) -> None:
        try:
            while not self._closed:
                for ring in self._signalled():
                    try:
                        self._tell(ring)
                    except TransportError as error:
                        log.info("%s: ring %d is not kicked: %s", self._name, ring, str(error))
        finally:
            with self._lock:
                for event in (*self._rings.values(), self._wake):
                    close_fd(event)
                self._rings.clear()

    def _signalled(self) -> list[int]:
        """Sleep until something is signalled; the rings that are."""
        poller = select.poll()
        with self._lock:
            poller.register(self._wake, select.POLLIN)
            for event in self._rings.values():
                poller.register(event, select.POLLIN)
        ready = {fd for fd, _ in poller.poll()}
        channel.drain(self._wake)
        with self._lock, contextlib.suppress(OSError):
            return [
                ring
                for ring, event in self._rings.items()
                if event in ready and channel.drain(event)
            ]
        return []
