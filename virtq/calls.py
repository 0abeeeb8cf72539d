"""Several calls at a time on one virtqueue, from threads or from asyncio tasks.

A call adds one buffer and waits until that one is used. Whoever waits reaps for all: buffers that
are somebody else's go to them, buffers that nobody calls for are left for `DriverQueue.reap`.
Threads take turns at waiting for the device; asyncio waits for the queue's call descriptor.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from virtq.errors import QueueFull
from virtq.memory import ArenaFull

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from virtq.queue import DriverQueue, Used

CHECK_INTERVAL_S = 0.25
"""How long a wait sleeps before it makes sure that the other end is still there."""


class ThreadCalls:
    """Calls from any number of threads."""

    def __init__(self, queue: DriverQueue) -> None:
        self._queue = queue
        self._ring = threading.Condition(threading.Lock())
        self._answers: dict[object, Used | None] = {}
        """By the cookies of those who call now: their buffer once it is used."""
        self._somebody_waits = False

    def call(self, data: ReadableBuffer, reply: int, timeout_s: float | None) -> bytes:
        """Raises what `DriverQueue.call` does."""
        mine = object()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._ring:
            self._queue.add(data, reply, mine)
            self._queue.kick()
            self._answers[mine] = None
            try:
                while True:
                    self._sort()
                    if (answer := self._answers[mine]) is not None:
                        return answer.reply
                    left = None if deadline is None else deadline - time.monotonic()
                    if not self._wait(left):
                        raise TimeoutError(
                            f"queue {self._queue.name}: no answer within {timeout_s} s"
                        )
            finally:
                del self._answers[mine]

    def _sort(self) -> None:
        """Give everybody their answers."""
        for used in self._queue.reap_ring():
            if used.cookie in self._answers:
                self._answers[used.cookie] = used
            else:
                self._queue.keep(used)

    def _wait(self, timeout_s: float | None) -> bool:
        """Until there may be an answer; False on time-out. Without the lock meanwhile."""
        if self._somebody_waits:
            return self._ring.wait(timeout_s)
        self._somebody_waits = True
        self._ring.release()
        try:
            return self._queue.wait_for_ring(timeout_s)
        finally:
            self._ring.acquire()
            self._somebody_waits = False
            self._ring.notify_all()


class AsyncCalls:
    """Calls from the tasks of one asyncio loop."""

    def __init__(self, queue: DriverQueue) -> None:
        self._queue = queue
        self._loop = asyncio.get_running_loop()
        self._pending: set[asyncio.Future[Used]] = set()
        self._want_room: deque[asyncio.Future[None]] = deque()
        self._fd: int | None = None
        self._timer: asyncio.TimerHandle | None = None

    def belongs_here(self) -> bool:
        """Whether the loop that runs is the one that this was made in."""
        return self._loop is asyncio.get_running_loop()

    async def call(self, data: ReadableBuffer, reply: int) -> bytes:
        """Raises what `DriverQueue.acall` does."""
        done: asyncio.Future[Used] = self._loop.create_future()
        await self._room(lambda: self._queue.add(data, reply, done))
        self._queue.kick()
        self._pending.add(done)
        self._listen()
        try:
            return (await done).reply
        finally:
            self._pending.discard(done)

    async def _room(self, add: Callable[[], None]) -> None:
        """Add as soon as there is room, first come, first served."""
        if not self._want_room:
            try:
                add()
                return
            except (QueueFull, ArenaFull):
                if not self._pending:
                    raise
        join_line = self._want_room.append
        while True:
            turn: asyncio.Future[None] = self._loop.create_future()
            join_line(turn)
            join_line = self._want_room.appendleft
            try:
                await turn
                add()
                self._next_in_line()
                return
            except (QueueFull, ArenaFull):
                if not self._pending:
                    raise
            except asyncio.CancelledError:
                self._next_in_line()
                raise

    def _next_in_line(self) -> None:
        while self._want_room:
            turn = self._want_room.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def _listen(self) -> None:
        if self._fd is None:
            self._fd = self._queue.core.call_fd
            if self._fd is not None:
                self._loop.add_reader(self._fd, self._look)
            self._check_later()
            self._look()

    def _check_later(self) -> None:
        self._timer = self._loop.call_later(CHECK_INTERVAL_S, self._check)

    def _check(self) -> None:
        self._check_later()
        try:
            self._queue.check()
        except Exception as error:
            self._fail(error)
            return
        self._look()

    def _look(self) -> None:
        """Give everybody their answers, and ask for a notification of the next ones."""
        try:
            while True:
                for used in self._queue.reap():
                    if used.cookie not in self._pending:
                        if not isinstance(used.cookie, asyncio.Future):  # whose call was cancelled
                            self._queue.keep(used)
                    elif not used.cookie.done():
                        used.cookie.set_result(used)
                self._pending = {done for done in self._pending if not done.done()}
                self._next_in_line()
                if not self._pending and not self._want_room:
                    self._stop_listening()
                    return
                if not self._queue.core.wait(0):
                    return
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._stop_listening()
        pending, self._pending = self._pending, set()
        for done in pending:
            if not done.done():
                done.set_exception(error)
        while self._want_room:
            turn = self._want_room.popleft()
            if not turn.done():
                turn.set_exception(error)

    def _stop_listening(self) -> None:
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
            self._fd = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._queue.core.disable_calls()

    def close(self, error: Exception) -> None:
        """The queue goes away: pending calls fail."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._fail, error)
