"""A thread that looks after a driver's virtqueues while the program does something else.

Where the device has a say of its own (it opens a connection, closes a port), somebody has to
listen when nobody calls. `Background` is a thread with an asyncio loop; all that touches the
watched queues happens in it. What a driver does is written once, as coroutines of this loop, and
called either way: `call` blocks the calling thread, `call_async` is awaited from any other loop.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from virtq.calls import CHECK_INTERVAL_S
from virtq.errors import VirtqError
from virtq.queue import DriverQueue, Used

T = TypeVar("T")


class Waiting:
    """Coroutines of the driver's thread that wait for something to change."""

    def __init__(self) -> None:
        self._futures: set[asyncio.Future[None]] = set()

    def changed(self) -> None:
        """Have all of them look again. From the thread."""
        for future in self._futures:
            if not future.done():
                future.set_result(None)
        self._futures.clear()

    async def until(self, ready: Callable[[], bool], timeout_s: float | None, what: str) -> None:
        """Wait until `ready`. Raises TimeoutError that says `what` did not happen."""
        try:
            async with asyncio.timeout(timeout_s):
                while not ready():
                    future = asyncio.get_running_loop().create_future()
                    self._futures.add(future)
                    try:
                        await future
                    finally:
                        self._futures.discard(future)
        except TimeoutError:
            raise TimeoutError(f"{what} within {timeout_s} s") from None


class Background:
    """The thread, from `start` to `stop`; it can be started again."""

    def __init__(self, name: str, failed: Callable[[Exception], None]) -> None:
        """`failed` is told, in the thread, why nothing more will come: the other end is gone, or
        one of the queues is broken."""
        self._name = name
        self._failed = failed
        self._watched: dict[int, tuple[DriverQueue, Callable[[list[Used]], None]]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Raises VirtqError while it is not running."""
        if self._loop is None:
            raise VirtqError(f"{self._name} is closed")
        return self._loop

    @property
    def failure(self) -> Exception | None:
        """Why nothing more will come, or None."""
        return self._failure

    @property
    def running(self) -> bool:
        return self._loop is not None

    def start(self) -> None:
        self._failure = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()
        self._loop.call_soon_threadsafe(self._look_around)

    def stop(self) -> None:
        """End the thread; what waits in it is cancelled. Harmless when done twice."""
        loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        self._watched.clear()

    def _run(self) -> None:
        loop = self._loop
        assert loop is not None
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        finally:
            loop.close()

    # Calls

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Have the thread do something, and wait for it. Raises what `work` raises, VirtqError if
        the thread ends meanwhile or is not running."""
        try:
            future = asyncio.run_coroutine_threadsafe(work, self.loop)
        except BaseException:
            work.close()
            raise
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise VirtqError(f"{self._name} was closed meanwhile") from None
        except BaseException:
            future.cancel()
            raise

    async def call_async(self, work: Coroutine[Any, Any, T]) -> T:
        """The same, awaited from another loop."""
        try:
            future = asyncio.run_coroutine_threadsafe(work, self.loop)
        except BaseException:
            work.close()
            raise
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise VirtqError(f"{self._name} was closed meanwhile") from None

    # Queues

    def watch(self, queue: DriverQueue, used: Callable[[list[Used]], None]) -> None:
        """From now on have `used` called, in the thread, with the buffers of a queue that the
        device has used."""
        self.loop.call_soon_threadsafe(self._watch, queue, used)

    def _watch(self, queue: DriverQueue, used: Callable[[list[Used]], None]) -> None:
        fd = queue.core.call_fd
        assert fd is not None  # transports connect it before a queue is live
        self._watched[fd] = (queue, used)
        self.loop.add_reader(fd, self._called, fd)
        self._reap(queue, used)

    def unwatch(self) -> None:
        """In the thread: look at no queue any more."""
        for fd in self._watched:
            self.loop.remove_reader(fd)
        self._watched.clear()

    def _called(self, fd: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(fd)
        queue, used = self._watched[fd]
        self._reap(queue, used)

    def _reap(self, queue: DriverQueue, used: Callable[[list[Used]], None]) -> None:
        if self._failure is not None:
            return
        try:
            while True:
                queue.core.disable_calls()
                if buffers := queue.reap():
                    used(buffers)
                if not queue.core.enable_calls():
                    return
        except (VirtqError, OSError) as error:
            self._fail(error)

    def _look_around(self) -> None:
        if self._loop is None or self._failure is not None:
            return
        try:
            for queue, _ in self._watched.values():
                queue.check()
        except (VirtqError, OSError) as error:
            self._fail(error)
        else:
            self._loop.call_later(CHECK_INTERVAL_S, self._look_around)

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error
            self._failed(error)
