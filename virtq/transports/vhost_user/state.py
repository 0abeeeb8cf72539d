"""A device's own state, through a pipe: saved by one back-end, loaded by the next (DEVICE_STATE).

The front-end hands over one end of a pipe with SET_DEVICE_STATE_FD and has the other. Whoever
writes closes when all is written; then CHECK_DEVICE_STATE asks the back-end whether it went well.
All rings are stopped throughout. What the bytes mean is the device's affair; here they have a limit
and an end, and neither side waits for the other within a call of the event loop.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import select
import stat
import time
from enum import IntEnum

from virtq.errors import TransportError, VirtqError
from virtq.transports.base import StatefulDevice
from virtq.transports.vhost_user.exchange import Exchange
from virtq.transports.vhost_user.fds import close_fd
from virtq.transports.vhost_user.messages import Front
from virtq.transports.vhost_user.wire import NO_FD, U64, DeviceState, ProtocolError

log = logging.getLogger("virtq.vhost_user")

MAX_STATE_BYTES = 64 << 20
_PIECE_BYTES = 64 << 10
_NAME = Front.SET_DEVICE_STATE_FD.name

USE_YOUR_FD = U64(NO_FD)
"""The reply that accepts: no other descriptor comes with it, and nothing is wrong."""


class Direction(IntEnum):
    SAVE = 0
    LOAD = 1


class Phase(IntEnum):
    STOPPED = 0


def check_pipe(fd: int, direction: Direction) -> None:
    """Raises ProtocolError unless the back-end can write to it (saving) or read from it (loading)
    as far as it goes without waiting. It is made non-blocking."""
    kind = os.fstat(fd).st_mode
    if not (stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)):
        raise ProtocolError(_NAME, "descriptor", f"of type {stat.S_IFMT(kind):#o}", "not a pipe")
    mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    wrong = os.O_RDONLY if direction is Direction.SAVE else os.O_WRONLY
    if mode == wrong:
        raise ProtocolError(_NAME, "descriptor", f"of mode {mode}", f"no use to {direction.name}")
    os.set_blocking(fd, False)


class Transfer:
    """One transfer of a back-end, carried on with by the event loop; `fd` is owned here."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd: int | None = fd
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._error: str | None = "the transfer has not ended"

    def result(self) -> str | None:
        """What is wrong with it, or None."""
        return self._error

    def close(self) -> None:
        """End it, wherever it is. Harmless when it has ended."""
        if self._fd is not None:
            self._loop.remove_writer(self._fd)
            self._loop.remove_reader(self._fd)
            close_fd(self._fd)
            self._fd = None

    def _end(self, error: str | None) -> None:
        self._error = error
        if error is not None:
            log.warning("%s: device state: %s", self._name, error)
        self.close()


class Saving(Transfer):
    """Writes what the device has to say."""

    def __init__(self, device: StatefulDevice, fd: int, name: str) -> None:
        """Raises what the device's `save_state` raises; `fd` is the caller's then."""
        self._rest = memoryview(device.save_state())
        super().__init__(fd, name)
        self._loop.add_writer(fd, self._write)

    def _write(self) -> None:
        assert self._fd is not None
        try:
            while self._rest:
                self._rest = self._rest[os.write(self._fd, self._rest[:_PIECE_BYTES]) :]
        except BlockingIOError:
            return
        except OSError as error:
            self._end(f"cannot be written: {error.strerror}")
            return
        self._end(None)


class Loading(Transfer):
    """Reads to the end. The device gets it when the front-end asks how it went: one that dies in
    the middle closes its end as well."""

    def __init__(self, device: StatefulDevice, fd: int, name: str) -> None:
        super().__init__(fd, name)
        self._device = device
        self._data = bytearray()
        self._loop.add_reader(fd, self._read)

    def result(self) -> str | None:
        # The front-end has closed its end before it asks: all there is can be read now.
        while self._fd is not None and self._read():
            pass
        if self._error is None:
            self._load()
        return self._error

    def _read(self) -> bool:
        """One piece; False if nothing is there at the moment."""
        assert self._fd is not None
        try:
            piece = os.read(self._fd, _PIECE_BYTES)
        except BlockingIOError:
            return False
        except OSError as error:
            self._end(f"cannot be read: {error.strerror}")
            return True
        self._data += piece
        if len(self._data) > MAX_STATE_BYTES:
            self._end(f"more than {MAX_STATE_BYTES} bytes")
        elif not piece:
            self._end(None)
        return True

    def _load(self) -> None:
        try:
            self._device.load_state(bytes(self._data))
        except (VirtqError, ValueError) as error:
            self._end(f"the device does not take it: {error}")
        except Exception as error:
            log.exception("%s: loading the device's state", self._name)
            self._end(f"the device failed: {error}")


# ---------------------------------------------------------------- the front-end's side


def save(exchange: Exchange, timeout_s: float) -> bytes:
    """Have the back-end save its device's state. Raises TransportError."""
    deadline = time.monotonic() + timeout_s
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    try:
        ours = _hand_over(exchange, Direction.SAVE, ours, theirs)
        theirs = -1
        data = bytearray()
        while piece := _wait(ours, select.POLLIN, deadline) and os.read(ours, _PIECE_BYTES):
            data += piece
            if len(data) > MAX_STATE_BYTES:
                raise TransportError(f"the device's state has more than {MAX_STATE_BYTES} bytes")
    finally:
        close_fd(ours)
        if theirs >= 0:
            close_fd(theirs)
    _check(exchange)
    return bytes(data)


def load(exchange: Exchange, state: bytes, timeout_s: float) -> None:
    """Have the back-end load its device's state. Raises TransportError."""
    deadline = time.monotonic() + timeout_s
    theirs, ours = os.pipe2(os.O_CLOEXEC)
    try:
        ours = _hand_over(exchange, Direction.LOAD, ours, theirs)
        theirs = -1
        os.set_blocking(ours, False)
        rest = memoryview(state)
        while rest:
            _wait(ours, select.POLLOUT, deadline)
            rest = rest[os.write(ours, rest[:_PIECE_BYTES]) :]
    except BrokenPipeError:
        pass  # the back-end wants no more: it says why when it is asked
    finally:
        close_fd(ours)
        if theirs >= 0:
            close_fd(theirs)
    _check(exchange)


def _hand_over(exchange: Exchange, direction: Direction, ours: int, theirs: int) -> int:
    """Give the back-end its end, which is closed here; returns the end that is to be used: a
    back-end may answer with a descriptor of its own, then ours is closed."""
    payload = DeviceState(direction, Phase.STOPPED)
    reply = exchange.transact(Front.SET_DEVICE_STATE_FD, payload, [theirs], keep_fds=True)
    assert reply is not None
    with reply.fds:
        value = reply.payload.value if isinstance(reply.payload, U64) else 1
        if value & 0xFF or bool(value & NO_FD) == bool(len(reply.fds)):
            raise TransportError(f"the back-end refused to {direction.name} its state ({value:#x})")
        close_fd(theirs)
        if value & NO_FD:
            return ours
        close_fd(ours)
        return reply.fds.take()


def _wait(fd: int, events: int, deadline: float) -> bool:
    poller = select.poll()
    poller.register(fd, events)
    if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TransportError("the transfer of the device's state takes too long")
    return True


def _check(exchange: Exchange) -> None:
    if code := exchange.ask(Front.CHECK_DEVICE_STATE):
        raise TransportError(f"the back-end failed to transfer its device's state ({code:#x})")
