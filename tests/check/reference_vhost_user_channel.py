"""The socket of the reference of a vhost-user back-end: one front-end after another, one message
after another, each checked for its form, handed on and answered."""

from __future__ import annotations

import array
import contextlib
import os
import shutil
import socket
import struct
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from virtq.errors import VirtqError
from virtq.transports.vhost_user import channel
from virtq.transports.vhost_user.messages import Front, P

REPLY, NEED_REPLY, NO_FD = 4, 8, 256
PROTOCOL_FEATURES, LOG_ALL = 1 << 30, 1 << 26
PATIENCE_S = 5.0

STATE, NUMBER, ADDRESS = struct.Struct("=II"), struct.Struct("=Q"), struct.Struct("=IIQQQQ")
REGION, CONFIG, INFLIGHT = struct.Struct("=QQQQ"), struct.Struct("=III"), struct.Struct("=QQHH4x")
LOG, IOTLB = struct.Struct("=QQ"), struct.Struct("=QQQBB6x")
SIZES = {
    Front.SET_FEATURES: 8,
    Front.SET_PROTOCOL_FEATURES: 8,
    Front.SET_VRING_NUM: 8,
    Front.SET_VRING_ADDR: ADDRESS.size,
    Front.SET_VRING_BASE: 8,
    Front.GET_VRING_BASE: 8,
    Front.SET_VRING_KICK: 8,
    Front.SET_VRING_CALL: 8,
    Front.SET_VRING_ERR: 8,
    Front.SET_VRING_ENABLE: 8,
    Front.VRING_KICK: 8,
    Front.SET_LOG_BASE: LOG.size,
    Front.IOTLB_MSG: IOTLB.size,
    Front.GET_INFLIGHT_FD: INFLIGHT.size,
    Front.SET_INFLIGHT_FD: INFLIGHT.size,
    Front.ADD_MEM_REG: 8 + REGION.size,
    Front.REM_MEM_REG: 8 + REGION.size,
    Front.SET_STATUS: 8,
}
VARIABLE = (Front.SET_MEM_TABLE, Front.GET_CONFIG, Front.SET_CONFIG)
ONE_FD = (Front.SET_LOG_BASE, Front.SET_BACKEND_REQ_FD, Front.SET_INFLIGHT_FD, Front.ADD_MEM_REG)
BODY_MAX = 4096


class Bad(Exception):
    """The front-end did something wrong."""


class Gone(Exception):
    """The front-end has closed."""


class Channel:
    """Listens from the beginning. Close it. What a request does is in methods `on_<request>`, which
    take its payload and its descriptors, and return the reply."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="virtq-check-"))
        self.path = str(self.folder / "s")
        self.listener = channel.listen(self.path)
        self.dead = False
        self.kept_fds: list[int] = []
        self.begin()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def begin(self) -> None:
        """A front-end that has said nothing yet."""
        self.chosen = P(0)

    def end(self) -> None:
        """The front-end has gone, or is not listened to any more."""

    def dial(self) -> socket.socket:
        return channel.connect(self.path, PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.die()
        self.thread.join()
        for fd in self.kept_fds:
            os.close(fd)
        shutil.rmtree(self.folder)

    def die(self) -> None:
        """End all of it, as a crash does."""
        self.dead = True
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    # One connection after another

    def _run(self) -> None:
        while not self.dead:
            try:
                self.listener.settimeout(None)
                sock, _ = self.listener.accept()
            except OSError:
                return
            with sock:
                self._serve(sock)

    def _serve(self, sock: socket.socket) -> None:
        self.begin()
        try:
            while not self.dead:
                self.one(sock)
        except (Bad, Gone, OSError):
            pass
        finally:
            self.end()

    def one(self, sock: socket.socket) -> None:
        fds: list[int] = []
        try:
            request, flags, size = struct.unpack("=III", self.read(sock, 12, fds))
            self.check(request, flags, size)
            body = self.read(sock, size, fds)
            self.check_fds(request, body, fds)
            self.answer(sock, Front(request), flags, body, fds)
        except Bad:
            self.bad()
            raise
        finally:
            self.let_go(fds)

    def bad(self) -> None:
        """Something was wrong, and the connection is about to be closed."""

    def let_go(self, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)

    def read(self, sock: socket.socket, size: int, fds: list[int]) -> bytes:
        data = b""
        while len(data) < size:
            sock.settimeout(0.05)
            try:
                more, came, _, _ = sock.recvmsg(size - len(data), socket.CMSG_SPACE(64 * 4))
            except TimeoutError:
                if self.dead:
                    raise Gone from None
                continue
            for _, _, content in came:
                numbers = array.array("i")
                numbers.frombytes(content)
                fds += numbers
            if not more:
                if data or fds:
                    raise Bad("it ends in the middle")
                raise Gone
            data += more
        return data

    def check(self, request: int, flags: int, size: int) -> None:
        known = request in list(Front) and hasattr(self, f"on_{Front(request).name.lower()}")
        if not known or flags & ~NEED_REPLY != 1 or size > BODY_MAX:
            raise Bad("a header that cannot be")
        if request not in VARIABLE and size != SIZES.get(Front(request), 0):
            raise Bad("a size that cannot be")

    def check_fds(self, request: int, body: bytes, fds: Sequence[int]) -> None:
        expected = int(request in ONE_FD)
        if request in (Front.SET_VRING_KICK, Front.SET_VRING_CALL, Front.SET_VRING_ERR):
            expected = int(not NUMBER.unpack(body)[0] & NO_FD)
        if request == Front.SET_MEM_TABLE:
            expected = int.from_bytes(body[:4], "little")
        most = 1 if request == Front.REM_MEM_REG else expected
        if not expected <= len(fds) <= most:
            raise Bad("not the descriptors that belong to it")

    def answer(
        self, sock: socket.socket, request: Front, flags: int, body: bytes, fds: list[int]
    ) -> None:
        handler = getattr(self, f"on_{request.name.lower()}")
        acks = bool(flags & NEED_REPLY) and self.acks()
        try:
            reply = handler(body, fds)
        except (Bad, VirtqError, ValueError, OverflowError) as error:
            if not acks:
                raise Bad(str(error)) from None
            self.send(sock, request, NUMBER.pack(self.failure(request)))
            return
        if reply is not None:
            self.send(sock, request, *(reply if isinstance(reply, tuple) else (reply,)))
        elif acks:
            self.acknowledge(sock, request)

    def acks(self) -> bool:
        return P.REPLY_ACK in self.chosen

    def failure(self, request: Front) -> int:
        return 1

    def acknowledge(self, sock: socket.socket, request: Front) -> None:
        self.send(sock, request, NUMBER.pack(0))

    def send(self, sock: socket.socket, request: Front, body: bytes, *fds: int) -> None:
        data = struct.pack("=III", request, 1 | REPLY, len(body)) + body
        channel.send(sock, data, fds)
        for fd in fds:
            os.close(fd)
