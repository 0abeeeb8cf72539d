"""What serves a virtqueue on the device's side.

A `Runner` owns one `DeviceQueue` from start to stop. Those here call Python handlers from the
asyncio loop of the transport's thread; devices with a native data path bring runners that work on
threads of their own (`virtq.pump`). The rest of the device does not see the difference.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from functools import partial
from inspect import isawaitable
from types import coroutine
from typing import Any, NoReturn, Protocol

from virtq._core import Batch, DeviceQueue, Position, Request
from virtq.errors import RingFault, StaleBuffer, TranslationMiss, VirtqError

log = logging.getLogger("virtq.device")

BATCH_BUFFERS = 256
"""Buffers taken at once."""
TURN_BUFFERS = 1024
"""Buffers served before the loop gets a turn for everything else."""
LINGER_US = 50
"""How long to look for more before asking for a kick: less than it takes to be woken by one."""
POLL_INTERVAL_S = 0.001
"""Between two looks at a queue that came without a descriptor for kicks."""

Written = int | Sequence[int] | None
RequestHandler = Callable[[Request], int | Awaitable[int | None] | None]
BatchHandler = Callable[[Batch], Written | Awaitable[Written]]
FailHandler = Callable[[Request, Exception], int | None]


class Runner(Protocol):
    """Serves one virtqueue. All calls come from the transport's thread."""

    def start(self) -> None:
        """Begin; the queue is disabled until `enable(True)`."""
        ...

    def enable(self, on: bool) -> None:
        """While disabled nothing is taken, or (network transmit) what is taken is discarded."""
        ...

    def retry(self) -> None:
        """Look again at a queue that waited for guest memory to be mapped."""
        ...

    def stop(self) -> Position:
        """Publish what is finished, forget the rest, and tell where the next owner resumes."""
        ...

    @property
    def stats(self) -> Mapping[str, int]:
        """The counters of the queue, and the runner's own."""
        ...


class Watch:
    """Calls back when the driver kicks: by the queue's kick descriptor, or by polling without
    one."""

    def __init__(self, queue: DeviceQueue, ready: Callable[[], None]) -> None:
        self._queue = queue
        self._ready = ready
        self._loop = asyncio.get_running_loop()
        self._fd: int | None = queue.kick_fd
        self._timer: asyncio.TimerHandle | None = None
        if self._fd is None:
            self._poll()
        else:
            self._loop.add_reader(self._fd, self._kicked)

    def _kicked(self) -> None:
        self._queue.drain_kick()
        self._ready()

    def _poll(self) -> None:
        self._timer = self._loop.call_later(POLL_INTERVAL_S, self._poll)
        if self._queue.has_available:
            self._ready()

    def close(self) -> None:
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
        if self._timer is not None:
            self._timer.cancel()


def log_broken(name: str, error: Exception) -> None:
    """Say in the log why a queue is not served any more, with the requirement that was not kept."""
    is_cited = isinstance(error, RingFault) and len(error.args) > 1 and error.args[1]
    requirement = f" [{error.args[1]}]" if is_cited else ""
    log.error("queue %s is broken: %s%s", name, error.args[0], requirement)


class LoopRunner:
    """Serves a virtqueue from the asyncio loop of the thread that starts it, batch by batch.

    What is done with buffers is the subclass's: `RequestRunner` calls a handler for each,
    `BatchRunner` one for all that came together. A handler's result is the number of bytes
    written; it may be awaitable, and other buffers are served meanwhile. When a handler raises,
    `fail` ends each request that it has not completed, or the queue breaks; the first time for each
    place in the code is logged with the traceback."""

    def __init__(
        self,
        queue: DeviceQueue,
        *,
        name: str,
        missed: Callable[[int, TranslationMiss], None] | None = None,
        fail: FailHandler | None = None,
    ) -> None:
        """`missed` is told of guest memory that has no mapping; `retry` continues afterwards.
        `fail` ends a request whose handler raised, and returns the bytes written to it; without
        it, and if it raises in turn, the queue breaks."""
        self._queue = queue
        self._name = name
        self._missed = missed
        self._fail = fail
        self._watch: Watch | None = None
        self._given_up = False
        self._tasks: set[asyncio.Future[Any]] = set()
        self._publish_soon: asyncio.Handle | None = None
        self._turn_soon: asyncio.Handle | None = None
        self._stopped = False
        self._handler_errors = 0
        self._misses = 0
        self._places: set[tuple[str, int]] = set()

    def _round(self) -> int:
        """Take what is available, up to a batch, and serve it; returns how many buffers."""
        batch = self._queue.take(BATCH_BUFFERS)
        if taken := len(batch):
            self._serve(batch)
        return taken

    def _serve(self, batch: Batch) -> None:
        """Have the handler do its work; complete what is done already."""
        raise NotImplementedError

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()

    def enable(self, on: bool) -> None:
        if on and self._watch is None and not self._stopped:
            self._watch = Watch(self._queue, self._turn)
            self._schedule_turn()
        elif not on:
            self._unwatch()

    def retry(self) -> None:
        """Look again at a queue that waited for guest memory to be mapped."""
        if self._watch is not None:
            self._schedule_turn()

    def drain(self) -> Awaitable[object] | None:
        """Take nothing more; what is returned is done when every handler is. None if none runs."""
        self._unwatch()
        return asyncio.wait(set(self._tasks)) if self._tasks else None

    def stop(self) -> Position:
        self._stopped = True
        self._unwatch()
        for task in self._tasks:
            task.cancel()
        self._publish()
        try:
            return self._queue.stop()
        except VirtqError:
            return self._queue.position

    @property
    def stats(self) -> dict[str, int]:
        own = {"handler_errors": self._handler_errors, "translation_misses": self._misses}
        return {**self._queue.stats, **own}

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._turn_soon is not None:
            self._turn_soon.cancel()
            self._turn_soon = None

    def _schedule_turn(self) -> None:
        if self._turn_soon is None:
            self._turn_soon = self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Serve what is available, up to a fair share; then ask for kicks again."""
        if self._turn_soon is not None:
            self._turn_soon.cancel()
            self._turn_soon = None
        try:
            self._queue.disable_kicks()
            served = 0
            while served < TURN_BUFFERS:
                if taken := self._round():
                    self._queue.notify()
                    served += taken
                elif not (served and self._queue.linger(LINGER_US)):
                    if not self._queue.enable_kicks():
                        return
                    self._queue.disable_kicks()
            self._schedule_turn()
        except TranslationMiss as miss:
            self._wait_for_mapping(miss)
        except RingFault as fault:
            self._give_up(fault)

    def _later(
        self,
        pending: Awaitable[Any],
        complete: Callable[[Any], None],
        requests: Iterable[Request],
    ) -> None:
        """Complete when `pending` is done, with its result; if it raises, fail the requests."""
        task = asyncio.ensure_future(self._finish(pending, complete, requests))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if asyncio.iscoroutine(pending):
            # Cancelled before its first step, the task never gets to await it.
            task.add_done_callback(lambda _task: pending.close())

    async def _finish(
        self,
        pending: Awaitable[Any],
        complete: Callable[[Any], None],
        requests: Iterable[Request],
    ) -> None:
        try:
            written, error = await pending, None
        except Exception as raised:
            written, error = None, raised
        if self._stopped:
            return
        try:
            if error is not None:
                self._failed(requests, error)
            else:
                self._complete(complete, written, requests)
        except RingFault as fault:
            self._give_up(fault)
        if self._publish_soon is None:
            self._publish_soon = self._loop.call_soon(self._publish)

    def _complete(
        self, complete: Callable[[Any], None], written: Any, requests: Iterable[Request]
    ) -> None:
        """A result that makes no sense, such as more bytes than there is room for, is a failure of
        the handler as well. A handler may have completed its request itself."""
        try:
            complete(written)
        except StaleBuffer:
            pass
        except (TypeError, ValueError, OverflowError) as error:
            self._failed(requests, error)

    def _publish(self) -> None:
        self._publish_soon = None
        try:
            self._queue.notify()
        except TranslationMiss as miss:
            self._wait_for_mapping(miss)
        except RingFault as fault:
            self._give_up(fault)
        except StaleBuffer:
            pass

    def _failed(self, requests: Iterable[Request], error: Exception) -> None:
        """A handler raised: end what it has left undone as the device type says. Raises RingFault
        if the type has no way to say it: the queue is broken then."""
        self._handler_errors += 1
        self._log_once(error)
        for request in requests:
            if not request.outstanding:
                continue
            try:
                if self._fail is None:
                    raise error
                request.complete(self._fail(request, error))
            except Exception as final:
                self._break(final)

    def _log_once(self, error: Exception) -> None:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = (trace.tb_frame.f_code.co_filename, trace.tb_lineno) if trace else ("", 0)
        if place not in self._places:
            self._places.add(place)
            log.error(
                "queue %s: the handler failed (logged once for this place)",
                self._name,
                exc_info=error,
            )

    def _break(self, error: Exception) -> NoReturn:
        """Break the queue because of what a handler raised; what was completed before still
        leaves."""
        with contextlib.suppress(TranslationMiss):
            self._queue.notify()
        text = " ".join(str(error).split())
        reason = f"the handler failed: {type(error).__name__}{': ' if text else ''}{text}"
        self._queue.give_up(reason)
        raise RingFault(reason, "")

    def _wait_for_mapping(self, miss: TranslationMiss) -> None:
        self._misses += 1
        if self._missed is not None:
            self._missed(self._queue.index, miss)
        else:
            log.warning("queue %s waits: %s", self._name, miss.args[0])

    def _give_up(self, fault: RingFault) -> None:
        if not self._given_up:
            log_broken(self._name, fault)
        self._given_up = True
        self._unwatch()


class RequestRunner(LoopRunner):
    """Calls `handler` for each buffer; its result is the bytes written, None for what the request
    knows itself.

    Where the handler is a coroutine, all of a turn begins in one task, and what has nothing to wait
    for is done at once. The first that waits keeps the task for itself; those behind it get a task
    each. So a handler is always in one and the same task, and only those that wait pay for it."""

    def __init__(self, queue: DeviceQueue, handler: RequestHandler, **options: Any) -> None:
        super().__init__(queue, **options)
        self._handler = handler
        self._is_coroutine = False
        """Whether the handler was seen to return coroutines."""
        self._begins: asyncio.Task[None] | None = None
        """A turn's task that has not begun."""
        self._may_begin = False
        """Whether a coroutine may take its first step here and now."""
        self._begun: tuple[Request, Coroutine[Any, Any, Any], Any] | None = None
        """One that has, and what it waits for."""

    def _turn(self) -> None:
        if not self._is_coroutine:
            super()._turn()
        elif self._begins is None:
            self._begins = self._loop.create_task(self._turn_in_task())
            self._tasks.add(self._begins)
            self._begins.add_done_callback(self._tasks.discard)

    async def _turn_in_task(self) -> None:
        self._begins = None
        if self._watch is None:
            return
        self._may_begin = True
        try:
            super()._turn()
        finally:
            self._may_begin = False
        if self._begun is not None:
            (request, coroutine, step), self._begun = self._begun, None
            await self._finish(_rest_of(coroutine, step), request.complete, (request,))

    def _round(self) -> int:
        # The loop over the buffers, and what a handler mostly returns, are the core's.
        waits = (self._keep_task,) if self._may_begin else ()
        return self._queue.serve(
            self._handler, self._finish_one, self._fail_one, BATCH_BUFFERS, *waits
        )

    def _keep_task(self, request: Request, coroutine: Coroutine[Any, Any, Any], step: Any) -> None:
        self._begun, self._may_begin = (request, coroutine, step), False

    def _finish_one(self, request: Request, written: Any) -> None:
        if isawaitable(written):
            self._is_coroutine |= asyncio.iscoroutine(written)
            self._later(written, request.complete, (request,))
        else:
            self._complete(request.complete, written, (request,))

    def _fail_one(self, request: Request, error: BaseException) -> None:
        if not isinstance(error, Exception):
            error = RuntimeError(f"it raised {type(error).__name__}")
        self._failed((request,), error)


@coroutine
def _rest_of(begun: Coroutine[Any, Any, Any], step: Any) -> Generator[Any, Any, Any]:
    """What is left of a coroutine that has begun and waits for `step`."""
    while True:
        try:
            yield step
        except GeneratorExit:
            begun.close()
            raise
        except BaseException as error:
            try:
                step = begun.throw(error)
            except StopIteration as end:
                return end.value
        else:
            return (yield from begun)


class BatchRunner(LoopRunner):
    """Calls `handler` for each batch; its result is the bytes written to all, to each, or None if
    it has completed every request itself."""

    def __init__(self, queue: DeviceQueue, handler: BatchHandler, **options: Any) -> None:
        super().__init__(queue, **options)
        self._handler = handler

    def _serve(self, batch: Batch) -> None:
        try:
            written = self._handler(batch)
        except Exception as error:
            self._failed(batch, error)
            return
        if isawaitable(written):
            self._later(written, partial(_complete_batch, batch), batch)
        else:
            self._complete(partial(_complete_batch, batch), written, batch)


def _complete_batch(batch: Batch, written: Written) -> None:
    """Complete what the handler has not completed itself."""
    if written is None:
        return
    try:
        batch.complete(written)
    except StaleBuffer:
        each = [written] * len(batch) if isinstance(written, int) else written
        for request, one in zip(batch, each, strict=True):
            with contextlib.suppress(StaleBuffer):
                request.complete(one)
