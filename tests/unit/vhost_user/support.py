"""What the vhost-user tests share: a device that notes what it is told, a loop to serve it in, a
front-end that sends whatever it likes, and a count of open descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from virtq._core import DeviceQueue, Position, TranslationMiss
from virtq.errors import ConfigError, FeatureError, RingFault
from virtq.features import F
from virtq.transports.base import DeviceSide
from virtq.transports.vhost_user import channel
from virtq.transports.vhost_user.backend import Backend
from virtq.transports.vhost_user.messages import FRONT_MESSAGES, Front
from virtq.transports.vhost_user.wire import (
    HEADER_BYTES,
    NEED_REPLY,
    Payload,
    pack_message,
    unpack_header,
)

T = TypeVar("T")
PATIENCE_S = 5.0


class FakeDevice:
    """A device with two virtqueues that answers each buffer with its bytes in capitals."""

    device_id = 63
    config_size = 16
    one_used_entry_per_buffer = False

    def __init__(self) -> None:
        self.queue_sizes: Sequence[int] = (256, 64)
        self.offered_features: int = (
            F.VERSION_1 | F.IN_ORDER | F.RING_PACKED | F.EVENT_IDX | F.ACCESS_PLATFORM
        )
        self.config = bytearray(range(16))
        self.refused_features = 0
        self.calls: list[tuple[Any, ...]] = []
        self.queues: dict[int, DeviceQueue] = {}
        self.enabled: dict[int, bool] = {}
        self.notify_config: Callable[[], None] | None = None
        self.miss: Callable[[int, TranslationMiss], None] | None = None

    def accept_features(self, features: int) -> None:
        self.calls.append(("features", features))
        if features & self.refused_features:
            raise FeatureError("not these")

    def read_config(self, offset: int, length: int) -> bytes:
        return bytes(self.config[offset : offset + length])

    def write_config(self, offset: int, data: bytes) -> None:
        if offset < 8:
            raise ConfigError(f"byte {offset} is not writable")
        self.config[offset : offset + len(data)] = data

    def start_queue(self, queue: DeviceQueue, enabled: bool) -> None:
        self.calls.append(("start", queue.index, enabled))
        self.queues[queue.index] = queue
        self.enabled[queue.index] = enabled
        if queue.kick_fd is not None:
            loop = asyncio.get_running_loop()
            loop.add_reader(queue.kick_fd, self._kicked, queue)
            loop.call_soon(self.retry_queue, queue.index)

    def enable_queue(self, index: int, enabled: bool) -> None:
        self.calls.append(("enable", index, enabled))
        self.enabled[index] = enabled
        self.retry_queue(index)

    def stop_queue(self, index: int) -> Position:
        self.calls.append(("stop", index))
        queue = self.queues.pop(index)
        if queue.kick_fd is not None:
            asyncio.get_running_loop().remove_reader(queue.kick_fd)
        return queue.stop()

    def reset(self) -> None:
        self.calls.append(("reset",))
        for index in list(self.queues):
            self.stop_queue(index)

    def on_config_change(self, notify: Callable[[], None] | None) -> None:
        self.notify_config = notify

    def on_translation_miss(self, resolve: Callable[[int, TranslationMiss], None] | None) -> None:
        self.miss = resolve

    def retry_queue(self, index: int) -> None:
        if index in self.queues:
            self._serve(self.queues[index])

    def _kicked(self, queue: DeviceQueue) -> None:
        queue.drain_kick()
        self._serve(queue)

    def _serve(self, queue: DeviceQueue) -> None:
        if not self.enabled[queue.index] or queue.broken:
            return
        try:
            while len(batch := queue.take(16)):
                for request in batch:
                    request.complete(request.write(request.read().upper()[: request.writable]))
                queue.notify()
        except TranslationMiss as miss:
            if self.miss is not None:
                self.miss(queue.index, miss)
        except RingFault:
            pass  # the queue is broken, and has signalled it


class Untranslated(FakeDevice):
    """The same, but not able to work behind an IOMMU."""

    on_translation_miss = None  # type: ignore[assignment]
    retry_queue = None  # type: ignore[assignment]

    def start_queue(self, queue: DeviceQueue, enabled: bool) -> None:
        self.queues[queue.index] = queue


class Served:
    """A device served in a thread with a loop of its own, from a listening socket."""

    def __init__(self, device: DeviceSide, path: str, protocol: str = "") -> None:
        self.path = path
        self.backend = Backend(device, name="test", protocol=protocol)
        self._listener = channel.listen(path)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self.backend.serve(self._listener))

    def ask(self, call: Callable[[], T]) -> T:
        """Make a call in the device's thread."""

        async def make() -> T:
            return call()

        return asyncio.run_coroutine_threadsafe(make(), self._loop).result(PATIENCE_S)

    def connect(self) -> RawFront:
        return RawFront(channel.connect(self.path, PATIENCE_S))

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self.backend.close)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the back-end hangs"
        self._loop.close()
        self._listener.close()
        os.unlink(self.path)

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class RawFront:
    """A front-end that sends what it is told to, right or wrong."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(PATIENCE_S)

    def send(
        self,
        code: Front,
        payload: Payload | None = None,
        fds: Sequence[int] = (),
        *,
        need_reply: bool = False,
    ) -> None:
        body = FRONT_MESSAGES[code].payload.build(code.name, payload)
        self.send_bytes(pack_message(code, NEED_REPLY if need_reply else 0, body), fds)

    def send_bytes(self, data: bytes, fds: Sequence[int] = ()) -> None:
        assert channel.send(self.sock, data, fds) == len(data)

    def receive(self, code: Front) -> Payload | None:
        """The reply to a request, explicit or an acknowledgement."""
        header = unpack_header(self._exactly(HEADER_BYTES))
        assert header.request == code
        assert header.is_reply
        layout = FRONT_MESSAGES[code].reply or FRONT_MESSAGES[Front.GET_FEATURES].reply
        assert layout is not None
        return layout.parse(code.name, self._exactly(header.size))

    def ask(
        self,
        code: Front,
        payload: Payload | None = None,
        fds: Sequence[int] = (),
        *,
        need_reply: bool = False,
    ) -> Any:
        self.send(code, payload, fds, need_reply=need_reply)
        return self.receive(code)

    def ended(self) -> bool:
        """Whether the back-end has closed the connection (it is waited for)."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionError:
            return True

    def silent(self) -> bool:
        """Whether nothing arrives, not even the end."""
        self.sock.settimeout(0.05)
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(PATIENCE_S)
        return False

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.sock.recv(size - len(data))
            assert piece, "the back-end has closed the connection"
            data += piece
        return data

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> RawFront:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_fds() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def no_leaks() -> Iterator[None]:
    """Whatever is opened inside is closed inside."""
    before = open_fds()
    yield

    def are_closed() -> bool:
        if open_fds() > before:
            gc.collect()  # an error that was raised and kept holds on to what it passed
        return open_fds() <= before

    assert eventually(are_closed), f"{open_fds() - before} descriptors leaked"


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether it comes true within a few seconds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def eventfd() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def memfd(size: int) -> int:
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd
