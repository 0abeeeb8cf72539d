"""A QMP monitor over an already connected socket, for QEMU and qemu-storage-daemon alike."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from qemu.qmp import QMPClient

T = TypeVar("T")


class Monitor:
    """Sends commands and awaits events; the protocol runs on a loop in a thread of its own."""

    def __init__(self, connected: socket.socket, *, timeout_s: float = 10.0) -> None:
        """Takes over the socket and negotiates; returns once the peer has greeted."""
        self._timeout_s = timeout_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._client = QMPClient("peer")
        try:
            self._call(self._client.connect(connected), timeout_s)
        except BaseException:
            self._end_loop()
            raise

    def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Runs a command and returns its value; raises qemu.qmp.ExecuteError when refused."""
        wire = dict(arguments) if arguments else None
        return self._call(self._client.execute(command, wire), self._timeout_s)

    def wait_event(self, name: str, timeout_s: float | None = None) -> Mapping[str, Any]:
        """The next event of that name, earlier ones of other names dropped."""
        return self._call(self._next_event(name), timeout_s or self._timeout_s)

    def close(self) -> None:
        """Disconnects; an already closed peer is fine."""
        try:
            self._call(self._client.disconnect(), self._timeout_s)
        except (OSError, EOFError, TimeoutError):
            pass
        finally:
            self._end_loop()

    async def _next_event(self, name: str) -> Mapping[str, Any]:
        while True:
            event = await self._client.events.get()
            if event["event"] == name:
                return event

    def _call(self, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
        bounded = asyncio.wait_for(work, timeout_s)
        return asyncio.run_coroutine_threadsafe(bounded, self._loop).result()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
