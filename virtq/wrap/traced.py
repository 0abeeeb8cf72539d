"""A device around a device that writes down what happens to it.

    Traced(device, "out.json")      for ui.perfetto.dev or chrome://tracing
    Traced(device, "out.jsonl")     one JSON object on each line, for programs
    Traced(device, print)           each event as a dict, to a function

Every event has `time_us` (since the trace began) and `event`:

    negotiated      features (names)
    queue_started   queue, size, enabled           queue_enabled   queue, on
    queue_stopped   queue
    take            queue, request, kind, readable, writable
    complete        queue, request, written, latency_us
    put_back        queue, requests
    kick            queue (the driver notified the device)
    call            queue, sent (the device has notified the driver, or spared it)
    config_written  offset, length                 config_changed
    reset

`request` counts the requests of the device, from 1. A device whose data path runs in the core is
served by its Python path within this.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from virtq._core import Batch, DeviceQueue, Position, Request
from virtq.device import Device
from virtq.features import names
from virtq.wrap.around import BatchAround, QueueAround, RequestAround, Wrapper

if TYPE_CHECKING:
    from _typeshed import StrPath

log = logging.getLogger("virtq.device")

Sink = Callable[[dict[str, Any]], None]


class Traced(Wrapper):
    """A device that is watched."""

    def __init__(self, device: Device | Wrapper, to: StrPath | Sink) -> None:
        """`to`: a file, whose name says in which form to write, or a function for each event.
        Raises OSError if the file cannot be written."""
        super().__init__(device)
        self._began = time.perf_counter_ns()
        self._requests = 0
        self._file: _File | None = None
        if callable(to):
            self._sink: Sink = to
        else:
            kind = _Lines if os.fspath(to).endswith(".jsonl") else _Chrome
            file = open(to, "w", encoding="utf-8")  # noqa: SIM115
            self._file = kind(file, type(self.innermost).__name__)
            self._sink = self._file.put
            weakref.finalize(self, self._file.close)

    def emit(self, event: str, **facts: Any) -> float:
        """Note an event; returns its time in microseconds. An author's own events are welcome."""
        time_us = (time.perf_counter_ns() - self._began) / 1000
        self._sink({"time_us": time_us, "event": event, **facts})
        return time_us

    def number(self) -> int:
        """The next request's number."""
        self._requests += 1
        return self._requests

    def around_queue(self, queue: DeviceQueue) -> DeviceQueue:
        return TracedQueue.of(queue, self)

    def accept_features(self, features: int) -> None:
        super().accept_features(features)
        self.emit("negotiated", features=names(features, self.device_id))

    def start_queue(self, queue: DeviceQueue, enabled: bool) -> None:
        name = self.queue_name(queue.index)
        self.emit("queue_started", queue=name, size=queue.size, enabled=enabled)
        super().start_queue(queue, enabled)

    def enable_queue(self, index: int, enabled: bool) -> None:
        self.emit("queue_enabled", queue=self.queue_name(index), on=enabled)
        super().enable_queue(index, enabled)

    def stop_queue(self, index: int) -> Position:
        position = super().stop_queue(index)
        self.emit("queue_stopped", queue=self.queue_name(index))
        return position

    def write_config(self, offset: int, data: bytes) -> None:
        super().write_config(offset, data)
        self.emit("config_written", offset=offset, length=len(data))

    def on_config_change(self, notify: Callable[[], None] | None) -> None:
        def tell() -> None:
            self.emit("config_changed")
            assert notify is not None
            notify()

        super().on_config_change(None if notify is None else tell)

    def reset(self) -> None:
        super().reset()
        self.emit("reset")
        if self._file is not None:
            self._file.flush()

    def release(self) -> None:
        super().release()
        if self._file is not None:
            self._file.close()


class TracedQueue(QueueAround):
    """A queue that tells the trace what happens on it."""

    def __init__(self, queue: DeviceQueue, trace: Traced) -> None:
        super().__init__(queue)
        self._trace = trace
        self.name = trace.queue_name(queue.index)

    def around_request(self, request: Request) -> TracedRequest:
        trace = self._trace
        made = TracedRequest(request, self, trace.number())
        made.taken_us = trace.emit(
            "take",
            queue=self.name,
            request=made.number,
            kind=trace.request_kind(request),
            readable=request.readable,
            writable=request.writable,
        )
        return made

    def completed(self, request: TracedRequest, written: int) -> None:
        trace = self._trace
        latency_us = (time.perf_counter_ns() - trace._began) / 1000 - request.taken_us
        trace.emit(
            "complete",
            queue=self.name,
            request=request.number,
            written=written,
            latency_us=round(latency_us, 3),
        )

    def put_back(self, batch: Batch, start: int = 0) -> int:
        assert isinstance(batch, BatchAround)
        back = [r.number for r in batch.requests[start:] if isinstance(r, TracedRequest)]
        count = super().put_back(batch, start)
        self._trace.emit("put_back", queue=self.name, requests=back)
        return count

    def drain_kick(self) -> None:
        super().drain_kick()
        self._trace.emit("kick", queue=self.name)

    def notify(self) -> bool:
        sent = super().notify()
        self._trace.emit("call", queue=self.name, sent=sent)
        return sent


class TracedRequest(RequestAround):
    """A request that tells when it is done."""

    __slots__ = ("number", "queue", "taken_us")

    def __init__(self, request: Request, queue: TracedQueue, number: int) -> None:
        super().__init__(request)
        self.queue = queue
        self.number = number
        self.taken_us = 0.0

    def complete(self, written: int | None = None) -> None:
        written = self.request.written if written is None else written
        self.request.complete(written)
        self.queue.completed(self, written)


# Files


class _File:
    """A trace on its way to a file. When that cannot be written any more, the trace ends, and the
    device goes on."""

    def __init__(self, file: TextIO, title: str) -> None:
        self._file: TextIO | None = file
        self._title = title
        self.begin()

    def begin(self) -> None:
        """What comes before the first event."""

    def end(self) -> str:
        """What comes behind the last event."""
        return ""

    def put(self, event: dict[str, Any]) -> None:
        raise NotImplementedError

    def write(self, text: str) -> None:
        if self._file is None:
            return
        try:
            self._file.write(text)
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        log.error("the trace ends: %s", error)
        file, self._file = self._file, None
        with contextlib.suppress(OSError):
            if file is not None:
                file.close()

    def flush(self) -> None:
        if self._file is not None:
            try:
                self._file.flush()
            except OSError as error:
                self._failed(error)

    def close(self) -> None:
        self.write(self.end())
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None


class _Lines(_File):
    """One JSON object on each line."""

    def put(self, event: dict[str, Any]) -> None:
        self.write(json.dumps(event, separators=(",", ":")) + "\n")


class _Chrome(_File):
    """The JSON array form of the trace event format: requests are spans from take to complete, one
    track for each queue; everything else is an instant. Without its last line (a process that was
    killed) the viewers still read it."""

    def begin(self) -> None:
        self._tracks: dict[str, int] = {}
        self._open: dict[int, tuple[str, str]] = {}
        self._separator = "[\n"
        self._record("M", "process_name", 0, args={"name": self._title})

    def end(self) -> str:
        return "\n]\n"

    def _record(self, phase: str, name: str, time_us: float, **more: Any) -> None:
        record = {"ph": phase, "name": name, "ts": time_us, "pid": 1, **more}
        self.write(self._separator + json.dumps(record, separators=(",", ":")))
        self._separator = ",\n"

    def _track(self, queue: str | None) -> int:
        if queue is None:
            return 0
        if queue not in self._tracks:
            track = self._tracks[queue] = len(self._tracks) + 1
            self._record("M", "thread_name", 0, tid=track, args={"name": queue})
        return self._tracks[queue]

    def put(self, event: dict[str, Any]) -> None:
        facts = dict(event)
        time_us, name = facts.pop("time_us"), facts.pop("event")
        queue = facts.pop("queue", None)
        track = self._track(queue)
        if name == "take":
            number, title = facts.pop("request"), facts.pop("kind") or queue
            self._open[number] = title, queue
            span = {"cat": queue, "id": number, "tid": track}
            self._record("b", title, time_us, **span, args=facts)
        elif name == "complete":
            number = facts.pop("request")
            title, queue = self._open.pop(number, (queue, queue))
            span = {"cat": queue, "id": number, "tid": track}
            self._record("e", title, time_us, **span, args=facts)
        elif name == "put_back":
            for number in facts["requests"]:
                title, queue = self._open.pop(number, (queue, queue))
                span = {"cat": queue, "id": number, "tid": track}
                self._record("e", title, time_us, **span, args={"put_back": True})
        else:
            scope = "t" if queue else "p"
            self._record("i", name, time_us, tid=track, s=scope, args=facts)
