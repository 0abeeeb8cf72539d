"""QEMU's monitor (QMP) for code that is not asynchronous."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from qemu.qmp import ExecuteError, QMPClient, QMPError

from virtq.errors import TransportError

T = TypeVar("T")


class Monitor:
    """Sends commands; the protocol runs on a loop in a thread of its own."""

    def __init__(self, sock: socket.socket, *, name: str, timeout_s: float = 10.0) -> None:
        """Takes over the connected socket and negotiates. Raises TransportError."""
        self._name = name
        self._timeout_s = timeout_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="virtq-qmp", daemon=True
        )
        self._thread.start()
        self._client = QMPClient("virtq")
        # What goes wrong is raised here, and need not be told twice.
        self._client.logger.setLevel(logging.CRITICAL)
        try:
            self._call(self._client.connect(sock))
        except BaseException:
            self._end()
            raise

    def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Run a command and return its value. Raises TransportError that names the command if
        QEMU refuses it or is gone."""
        try:
            return self._call(self._client.execute(command, dict(arguments or {})))
        except ExecuteError as error:
            raise TransportError(f"{self._name}: {command}: {error}") from None

    def close(self) -> None:
        """Disconnect. Harmless if QEMU is gone."""
        if not self._thread.is_alive():
            return
        try:
            self._call(self._client.disconnect())
        except (TransportError, EOFError, OSError):
            pass
        finally:
            self._end()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        bounded = asyncio.wait_for(work, self._timeout_s)
        try:
            return asyncio.run_coroutine_threadsafe(bounded, self._loop).result()
        except ExecuteError:
            raise
        except (QMPError, TimeoutError, OSError, EOFError) as error:
            what = str(error) or type(error).__name__
            raise TransportError(f"{self._name}: the monitor: {what}") from None

    def _end(self) -> None:
        with contextlib.suppress(TimeoutError):
            cancelled = asyncio.run_coroutine_threadsafe(_cancel_the_rest(), self._loop)
            cancelled.result(self._timeout_s)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_the_rest() -> None:
    """What Ctrl-C left half done ends in order, not with the loop under it."""
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
