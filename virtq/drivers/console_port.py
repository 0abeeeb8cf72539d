"""A port of a console device's driver, blocking and for asyncio."""

from __future__ import annotations

from collections import deque
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, Self, TypeVar

from virtq.drivers.background import Waiting
from virtq.drivers.stream_file import buffered
from virtq.queue import DriverQueue
from virtq.wire.console import Size

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

T = TypeVar("T")

WRITE_BYTES = 4096
"""What goes into one buffer."""
HANG_UP = -1


class Owner(Protocol):
    """What ports need of their driver."""

    def call(self, work: Coroutine[Any, Any, T]) -> T: ...
    async def call_async(self, work: Coroutine[Any, Any, T]) -> T: ...
    def tell_open(self, port: ConsolePort, is_open: bool) -> None: ...
    def give_back(self, port: ConsolePort, numbers: list[int]) -> None: ...


class ConsolePort:
    """A port, for any thread. Methods that end in `_async` are for asyncio.

    `timeout_s` bounds each blocking call (None: no limit); what it ends raises TimeoutError. What
    the host sends while the port is not open is dropped; what was received and is not read yet
    keeps its buffers, so that the host has to wait."""

    def __init__(self, owner: Owner, id: int, transmit: DriverQueue) -> None:
        self.id = id
        self.name = ""
        self.is_console = False
        self.is_open = False
        """Whether the program has opened it."""
        self.host_open = False
        """Whether somebody is at the host's side, as far as the device tells."""
        self.size: Size | None = None
        """The size of the console, if the device has told."""
        self.timeout_s: float | None = None
        self._owner = owner
        self._transmit = transmit
        self._waiting = Waiting()
        # Each piece with the receive buffer that it is in; HANG_UP is the end of who was there.
        self._received: deque[tuple[bytes, int]] = deque()
        self._in_flight = 0
        self._error: Exception | None = None
        self._gone = False

    # Blocking use

    def open(self) -> None:
        """Tell the device that somebody is there. Harmless when done twice."""
        self._owner.call(self._set_open(True))

    def close(self) -> None:
        """Tell the device that nobody is there; what was not read is dropped. Harmless when done
        twice."""
        if self.is_open and not self._gone:
            self._owner.call(self._set_open(False))

    def read(self, count: int) -> bytes:
        """Up to `count` bytes, at least one; none when whoever was at the host's side has gone
        (once for each time). Raises TimeoutError, PeerGone, ConnectionResetError if the port was
        removed, and ValueError on a port that is not open."""
        return self._owner.call(self._read(count, self.timeout_s))

    def read_exactly(self, count: int) -> bytes:
        """Exactly `count` bytes. Raises EOFError if the host's side closes before."""
        return self._owner.call(self._read_exactly(count, self.timeout_s))

    def write(self, data: ReadableBuffer) -> None:
        """Send all of `data`; returns once the device has taken it. Waits for somebody to be at the
        host's side. Raises as `read` does."""
        self._owner.call(self._write(bytes(data), self.timeout_s))

    def wait_host(self, is_open: bool = True, *, timeout_s: float | None = None) -> None:
        """Wait until somebody is at the host's side, or nobody. Raises TimeoutError."""
        self._owner.call(self._wait_host(is_open, timeout_s))

    def makefile(self) -> BinaryIO:
        """The port as a buffered binary file for reading and writing; closing it leaves the port
        open."""
        return buffered(self.read, self.write)

    # asyncio

    async def open_async(self) -> None:
        """`open` for asyncio."""
        await self._owner.call_async(self._set_open(True))

    async def close_async(self) -> None:
        """`close` for asyncio."""
        if self.is_open and not self._gone:
            await self._owner.call_async(self._set_open(False))

    async def read_async(self, count: int) -> bytes:
        """`read` for asyncio."""
        return await self._owner.call_async(self._read(count, None))

    async def read_exactly_async(self, count: int) -> bytes:
        """`read_exactly` for asyncio."""
        return await self._owner.call_async(self._read_exactly(count, None))

    async def write_async(self, data: ReadableBuffer) -> None:
        """`write` for asyncio."""
        await self._owner.call_async(self._write(bytes(data), None))

    # In the driver's thread

    async def _set_open(self, is_open: bool) -> None:
        self._check()
        if self.is_open == is_open:
            return
        self.is_open = is_open
        self._drop_received()
        self._owner.tell_open(self, is_open)
        self._waiting.changed()

    async def _read(self, count: int, timeout_s: float | None) -> bytes:
        if count < 1:
            raise ValueError(f"at least 1 byte has to be asked for, not {count}")
        if not self.is_open and not self._gone:
            raise ValueError(f"port {self.id} is not open")
        await self._waiting.until(
            lambda: bool(self._received) or self._gone or not self.is_open,
            timeout_s,
            "nothing came",
        )
        if self._received:
            return self._take(count)
        self._check()
        return b""

    async def _read_exactly(self, count: int, timeout_s: float | None) -> bytes:
        parts, have = [], 0
        while have < count:
            part = await self._read(count - have, timeout_s)
            if not part:
                raise EOFError(f"the host's side closed after {have} of {count} bytes")
            parts.append(part)
            have += len(part)
        return b"".join(parts)

    async def _write(self, data: bytes, timeout_s: float | None) -> None:
        if not self.is_open and not self._gone:
            raise ValueError(f"port {self.id} is not open")
        for at in range(0, len(data), WRITE_BYTES):
            await self._waiting.until(
                lambda: self._gone or (self.host_open and self._transmit.free > 0),
                timeout_s,
                "nobody took what is written",
            )
            self._check()
            self._transmit.add(data[at : at + WRITE_BYTES])
            self._in_flight += 1
            self._transmit.kick()
        await self._waiting.until(
            lambda: not self._in_flight or self._gone, timeout_s, "nobody took what is written"
        )
        self._check()

    async def _wait_host(self, is_open: bool, timeout_s: float | None) -> None:
        what = f"the host's side of port {self.id} did not {'open' if is_open else 'close'}"
        await self._waiting.until(lambda: self.host_open == is_open or self._gone, timeout_s, what)
        self._check()

    def _take(self, count: int) -> bytes:
        taken: list[bytes] = []
        free: list[int] = []
        left = count
        if self._received[0][1] == HANG_UP:
            self._received.popleft()
            return b""
        while left and self._received and self._received[0][1] != HANG_UP:
            data, number = self._received.popleft()
            taken.append(data[:left])
            if len(data) > left:
                self._received.appendleft((data[left:], number))
            else:
                free.append(number)
            left -= len(taken[-1])
        self._owner.give_back(self, free)
        return b"".join(taken)

    def _drop_received(self) -> None:
        numbers = [number for _, number in self._received if number != HANG_UP]
        self._received.clear()
        self._owner.give_back(self, numbers)

    def _check(self) -> None:
        if self._gone:
            raise self._error or ConnectionResetError(f"port {self.id} is gone")

    # What the driver calls, in its thread

    def came(self, data: bytes, number: int) -> None:
        """Data from the host, in the receive buffer of that number."""
        self._received.append((data, number))
        self._waiting.changed()

    def sent(self, count: int) -> None:
        """The device has taken buffers."""
        self._in_flight -= count
        self._waiting.changed()

    def host_is(self, is_open: bool) -> None:
        """The device tells whether somebody is at the host's side."""
        if self.is_open and self.host_open and not is_open:
            self._received.append((b"", HANG_UP))
        self.host_open = is_open
        self._waiting.changed()

    def end(self, error: Exception | None) -> None:
        """The port is gone."""
        self._gone, self._error = True, error
        self.is_open = self.host_open = False
        self._drop_received()
        self._waiting.changed()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        sides = f"host {self.host_open}, here {self.is_open}"
        return f"<ConsolePort {self.id} {self.name!r}, open: {sides}>"
