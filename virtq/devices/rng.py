"""The entropy device (VIRTIO 1.4, section 5.4).

    virtq.serve(RngDevice(), "vhost-user:/run/rng.sock")
    RngDevice(SeededSource(b"a test"))        # the same bytes every time
    RngDevice(FileSource("/dev/hwrng"), bytes_per_s=4096)

A buffer need not be filled (5.4.6.2): what a source or a limit gives less is told by the used
length, and under IN_ORDER such a buffer ends its batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import stat
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Protocol

from virtq._core import Request
from virtq.device import Device, QueueSpec
from virtq.features import Change
from virtq.wire.rng import DEVICE_ID, QUEUE

if TYPE_CHECKING:
    from _typeshed import StrPath

BUFFER_BYTES_MAX = 64 << 10
"""What is put into one buffer at most, unless the caller says less."""
SOURCE_RETRY_S = 0.01
"""Between two looks at a source that has nothing at the moment."""


class Source(Protocol):
    """Where random bytes come from."""

    def read(self, count: int) -> bytes:
        """One to `count` bytes, at once. Raises BlockingIOError if there are none now, EOFError if
        there will be none any more, and OSError."""
        ...

    def close(self) -> None: ...


class SystemSource:
    """The operating system's generator (`os.urandom`)."""

    def read(self, count: int) -> bytes:
        return os.urandom(count)

    def close(self) -> None:
        pass


class SeededSource:
    """A stream that follows from its seed: for tests, and for nothing that should be secret.

    The bytes do not depend on how many are asked for at a time. They are the SHA-256 digests of the
    seed followed by a counter of 8 bytes, little-endian, from 0."""

    def __init__(self, seed: bytes | str | int) -> None:
        text = str(seed) if isinstance(seed, int) else seed
        self._seed = text.encode() if isinstance(text, str) else text
        self._blocks = 0
        self._left = b""

    def read(self, count: int) -> bytes:
        blocks = [self._left]
        have = len(self._left)
        while have < count:
            counter = self._blocks.to_bytes(8, "little")
            blocks.append(hashlib.sha256(self._seed + counter).digest())
            have += len(blocks[-1])
            self._blocks += 1
        whole = b"".join(blocks)
        self._left = whole[count:]
        return whole[:count]

    def close(self) -> None:
        pass


class FileSource:
    """A regular file, read once from its beginning to its end, or a character device."""

    def __init__(self, path: StrPath) -> None:
        """Raises OSError, and ValueError for what is neither: reading a pipe could wait for
        ever."""
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        mode = os.fstat(self._fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode)):
            self.close()
            raise ValueError(f"{os.fspath(path)!r} is neither a file nor a character device")
        self._name = os.fspath(path)

    def read(self, count: int) -> bytes:
        data = os.read(self._fd, count)
        if not data:
            raise EOFError(f"{self._name!r} has no more random bytes")
        return data

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class RateLimit:
    """An allowance of bytes that grows with time, up to what one second brings."""

    def __init__(self, bytes_per_s: int) -> None:
        """Raises ValueError below 1."""
        if bytes_per_s < 1:
            raise ValueError(f"a rate is 1 byte per second or more, not {bytes_per_s}")
        self.bytes_per_s = bytes_per_s
        self._allowance = float(bytes_per_s)
        self._at_s: float | None = None

    def take(self, wanted: int, now_s: float) -> int:
        """How many of `wanted` bytes may be given at a time; 0 to `wanted`."""
        if self._at_s is not None:
            grown = self._allowance + (now_s - self._at_s) * self.bytes_per_s
            self._allowance = min(float(self.bytes_per_s), grown)
        self._at_s = now_s
        given = min(wanted, int(self._allowance))
        self._allowance -= given
        return given

    @property
    def wait_s(self) -> float:
        """How long until there is one byte more."""
        return max(0.0, (1 - self._allowance) / self.bytes_per_s)


class RngDevice(Device):
    """Fills buffers with random bytes."""

    device_id = DEVICE_ID

    def __init__(
        self,
        source: Source | None = None,
        *,
        buffer_bytes_max: int = BUFFER_BYTES_MAX,
        bytes_per_s: int | None = None,
        queue_size: int = 256,
        offer: Change | str = "",
    ) -> None:
        """`source`: by default the operating system's generator; the device closes it.
        `buffer_bytes_max`: how much goes into one buffer at most. `bytes_per_s`: how many bytes the
        driver gets per second, up to a second's worth at once (None: no limit).

        Raises ValueError for limits below 1."""
        if buffer_bytes_max < 1:
            raise ValueError(f"a buffer gets 1 byte or more, not {buffer_bytes_max}")
        self.source = source if source is not None else SystemSource()
        self.buffer_bytes_max = buffer_bytes_max
        self.limit = RateLimit(bytes_per_s) if bytes_per_s is not None else None
        self.queues = (QueueSpec(QUEUE, queue_size),)
        self.offer = offer
        self._turn: asyncio.Lock | None = None

    def handle(self, request: Request) -> int | Awaitable[int]:
        """Fill one buffer (5.4.6), as far as source and limits allow. A buffer without
        device-writable part breaks the queue: it cannot get the one byte that is due."""
        wanted = min(request.writable, self.buffer_bytes_max)
        if not wanted:
            raise ValueError("a buffer without device-writable part, which nothing can fill")
        if self.limit is None:
            with contextlib.suppress(BlockingIOError):
                return request.write(self.source.read(wanted))
        return self._handle_later(request, wanted)

    async def _handle_later(self, request: Request, wanted: int) -> int:
        # One at a time, so that buffers get their bytes in the order in which they came.
        if self._turn is None:
            self._turn = asyncio.Lock()
        async with self._turn:
            if self.limit is not None:
                clock = asyncio.get_running_loop().time
                while not (given := self.limit.take(wanted, clock())):
                    await asyncio.sleep(self.limit.wait_s)
                wanted = given
            while True:
                with contextlib.suppress(BlockingIOError):
                    return request.write(self.source.read(wanted))
                await asyncio.sleep(SOURCE_RETRY_S)

    def was_reset(self) -> None:
        self._turn = None

    def close(self) -> None:
        """Close the source."""
        self.source.close()
