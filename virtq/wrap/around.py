"""What wrappers are made of: a device around a device, a queue around a queue, and the same for
batches and requests.

Each passes everything on. A wrapper overrides what it is there for, most often
`Wrapper.around_queue`, which says what the device gets instead of the queue.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np

from virtq._core import Batch, DeviceQueue, Position, Request, TranslationMiss
from virtq.device import Device, QueueSpec
from virtq.errors import StaleBuffer

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from numpy.typing import NDArray


class Wrapper:
    """A device around a device; implements `virtq.transports.base.DeviceSide`.

    What a device has beyond that, such as its disk or its supplies, can be reached through the
    wrapper too."""

    def __init__(self, device: Device | Wrapper) -> None:
        self.device = device
        device.wrapped()

    def around_queue(self, queue: DeviceQueue) -> DeviceQueue:
        """What the device is to serve instead of `queue`."""
        return queue

    def __getattr__(self, name: str) -> Any:
        if name == "device":  # not made yet
            raise AttributeError(name)
        return getattr(self.device, name)

    @property
    def innermost(self) -> Device:
        """The device within all wrappers."""
        inner = self.device
        return inner.innermost if isinstance(inner, Wrapper) else inner

    # Device

    def wrapped(self) -> None:
        """Another wrapper goes around this one."""

    def close(self) -> None:
        """Close the device, and what the wrappers around it have opened."""
        self.innermost.close()
        self.release()

    def release(self) -> None:
        """Close what this wrapper and those within have opened, but not the device. Harmless when
        done twice."""
        if isinstance(self.device, Wrapper):
            self.device.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def queues(self) -> Sequence[QueueSpec]:
        return self.device.queues

    def queue_name(self, index: int) -> str:
        return self.device.queue_name(index)

    def request_kind(self, request: Request) -> str:
        return self.device.request_kind(request)

    def fail(self, request: Request, error: Exception) -> int | None:
        return self.device.fail(request, error)

    def stats(self) -> dict[str, dict[str, int]]:
        return self.device.stats()

    # DeviceSide

    @property
    def device_id(self) -> int:
        return self.device.device_id

    @property
    def queue_sizes(self) -> Sequence[int]:
        return self.device.queue_sizes

    @property
    def offered_features(self) -> int:
        return self.device.offered_features

    def accept_features(self, features: int) -> None:
        self.device.accept_features(features)

    @property
    def one_used_entry_per_buffer(self) -> bool:
        return self.device.one_used_entry_per_buffer

    @one_used_entry_per_buffer.setter
    def one_used_entry_per_buffer(self, on: bool) -> None:
        self.device.one_used_entry_per_buffer = on

    @property
    def config_size(self) -> int:
        return self.device.config_size

    def read_config(self, offset: int, length: int) -> bytes:
        return self.device.read_config(offset, length)

    def write_config(self, offset: int, data: bytes) -> None:
        self.device.write_config(offset, data)

    def start_queue(self, queue: DeviceQueue, enabled: bool) -> None:
        self.device.start_queue(self.around_queue(queue), enabled)

    def enable_queue(self, index: int, enabled: bool) -> None:
        self.device.enable_queue(index, enabled)

    def stop_queue(self, index: int) -> Position:
        return self.device.stop_queue(index)

    def reset(self) -> None:
        self.device.reset()

    def on_config_change(self, notify: Callable[[], None] | None) -> None:
        self.device.on_config_change(notify)

    def on_translation_miss(self, resolve: Callable[[int, TranslationMiss], None] | None) -> None:
        self.device.on_translation_miss(resolve)

    def retry_queue(self, index: int) -> None:
        self.device.retry_queue(index)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} around {self.device!r}>"


class QueueAround:
    """A queue around a queue: what runners use of `virtq.DeviceQueue`."""

    def __init__(self, queue: DeviceQueue) -> None:
        self.queue = queue

    @classmethod
    def of(cls, queue: DeviceQueue, *args: Any, **kwargs: Any) -> DeviceQueue:
        """One that passes for the core's: it has the methods, though not the type."""
        return cast(DeviceQueue, cls(queue, *args, **kwargs))

    def around_request(self, request: Request) -> RequestAround:
        """What the device gets instead of `request`."""
        return RequestAround(request)

    def take(self, max: int = 65535) -> Batch:
        batch = self.queue.take(max)
        return BatchAround.of(batch, [self.around_request(request) for request in batch])

    def serve(
        self,
        handler: Callable[[Request], Any],
        finish: Callable[[Request, Any], object],
        failed: Callable[[Request, Exception], object],
        max: int,
        waits: object = None,  # coroutines go to `finish`, which is always right
    ) -> int:
        batch = self.take(max)
        for request in batch:
            try:
                written = handler(request)
            except Exception as error:
                failed(request, error)
                continue
            if not (written is None or isinstance(written, int)) or not _completed(
                request, written
            ):
                finish(request, written)
        return len(batch)

    def linger(self, microseconds: int) -> bool:
        return bool(cast(Any, self.queue).linger(microseconds))

    def put_back(self, batch: Batch, start: int = 0) -> int:
        inner = cast(BatchAround, batch)
        count = self.queue.put_back(inner.batch, start)
        del inner.requests[start:]
        return count

    def notify(self) -> bool:
        return self.queue.notify()

    def flush(self) -> int:
        return self.queue.flush()

    def stop(self) -> Position:
        return self.queue.stop()

    def give_up(self, reason: str) -> None:
        self.queue.give_up(reason)

    def drain_kick(self) -> None:
        self.queue.drain_kick()

    def enable_kicks(self) -> bool:
        return self.queue.enable_kicks()

    def disable_kicks(self) -> None:
        self.queue.disable_kicks()

    def lose_call(self) -> bool:
        return self.queue.lose_call()

    def spoil_next_used(self, id: int = 0, written: int = 0) -> None:
        self.queue.spoil_next_used(id, written)

    @property
    def index(self) -> int:
        return self.queue.index

    @property
    def size(self) -> int:
        return self.queue.size

    @property
    def features(self) -> int:
        return self.queue.features

    @property
    def kick_fd(self) -> int | None:
        return self.queue.kick_fd

    @property
    def has_available(self) -> bool:
        return self.queue.has_available

    @property
    def outstanding(self) -> int:
        return self.queue.outstanding

    @property
    def position(self) -> Position:
        return self.queue.position

    @property
    def broken(self) -> str | None:
        return self.queue.broken

    @property
    def stats(self) -> dict[str, int]:
        return self.queue.stats


def _completed(request: Request, written: int | None) -> bool:
    """False if that makes no sense."""
    try:
        request.complete(written)
    except (ValueError, OverflowError, StaleBuffer):
        return False
    return True


class BatchAround:
    """A batch around a batch. `requests` may be fewer than the batch has: the others are not the
    device's to serve."""

    def __init__(self, batch: Batch, requests: list[RequestAround]) -> None:
        self.batch = batch
        self.requests = requests

    @classmethod
    def of(cls, batch: Batch, requests: Sequence[RequestAround]) -> Batch:
        """One that passes for the core's."""
        return cast(Batch, cls(batch, list(requests)))

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, index: int) -> Request:
        return cast(Request, self.requests[index])

    def __iter__(self) -> Iterator[Request]:
        return iter(cast(list[Request], self.requests))

    def readable(self) -> memoryview:
        return _lengths([request.readable for request in self.requests])

    def writable(self) -> memoryview:
        return _lengths([request.writable for request in self.requests])

    def read_all(self) -> list[bytes]:
        return [request.read() for request in self.requests]

    def addresses(self) -> memoryview:
        return _lengths([request.segments()[0][0] for request in self.requests])

    def read_array(self) -> NDArray[np.uint8]:
        lengths = {request.readable for request in self.requests}
        if len(lengths) > 1:
            raise ValueError(f"buffers of {min(lengths)} to {max(lengths)} device-readable bytes")
        data = np.frombuffer(b"".join(self.read_all()), np.uint8)
        return data.reshape(len(self.requests), -1 if self.requests else 0).copy()

    def write_array(self, rows: NDArray[np.uint8]) -> int:
        if rows.dtype != np.uint8 or rows.ndim != 2 or len(rows) != len(self.requests):
            raise ValueError(
                f"an array of {rows.dtype} and shape {rows.shape}, not of bytes and "
                f"{len(self.requests)} rows"
            )
        width: int = rows.shape[1]
        if any(request.writable < width for request in self.requests):
            raise ValueError(f"rows of {width} bytes do not fit into every buffer")
        for request, row in zip(self.requests, rows, strict=True):
            request.write(row.tobytes())
        return width

    def complete(self, written: int | Sequence[int] = 0) -> None:
        count = len(self.requests)
        each = [written] * count if isinstance(written, int) else list(written)
        if len(each) != count:
            raise ValueError(f"{len(each)} written lengths for {count} buffers")
        for request, one in zip(self.requests, each, strict=True):
            request.complete(one)


def _lengths(values: list[int]) -> memoryview:
    return memoryview(array("Q", values))


class RequestAround:
    """A request around a request."""

    __slots__ = ("request",)

    def __init__(self, request: Request) -> None:
        self.request = request

    @property
    def readable(self) -> int:
        return self.request.readable

    @property
    def writable(self) -> int:
        return self.request.writable

    @property
    def written(self) -> int:
        return self.request.written

    @property
    def queue_index(self) -> int:
        return self.request.queue_index

    @property
    def outstanding(self) -> bool:
        return self.request.outstanding

    def read(self, length: int = -1) -> bytes:
        return self.request.read(length)

    def peek(self, length: int) -> bytes:
        return self.request.peek(length)

    def write(self, data: ReadableBuffer) -> int:
        return self.request.write(data)

    def write_at(self, offset: int, data: ReadableBuffer) -> None:
        self.request.write_at(offset, data)

    def segments(self) -> list[tuple[int, int, bool]]:
        return self.request.segments()

    def complete(self, written: int | None = None) -> None:
        self.request.complete(written)
