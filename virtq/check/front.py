"""A vhost-user front-end that sends what it is told, right or wrong.

It implements `virtq.transports.base.DriverTransport`, message by message and with nothing behind
it, so that a `Session` can drive a device over it; and it can be made to send what no front-end
should. All waits end. What a back-end may do with a message that is wrong is left to it: refuse it,
close the connection, or ignore it (`Outcome`).
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple, Self

from virtq._core import Memory, Position
from virtq.check.case import Broken, Hung, NotObservable, expect
from virtq.check.waiting import POLL_S
from virtq.errors import PeerGone, TransportError
from virtq.transports.base import QueueEnd
from virtq.transports.vhost_user import channel
from virtq.transports.vhost_user.fds import close_fd
from virtq.transports.vhost_user.messages import (
    FRONT_MESSAGES,
    PROTOCOL_FEATURES,
    TRANSPORT_FEATURES,
    P,
    protocol_names,
)
from virtq.transports.vhost_user.messages import (
    Front as Code,
)
from virtq.transports.vhost_user.wire import (
    HEADER_BYTES,
    NEED_REPLY,
    NO_FD,
    REPLY,
    U64,
    VERSION,
    Config,
    Payload,
    Region,
    RegionTable,
    VringAddress,
    VringState,
    pack_message,
    unpack_header,
)

USUAL = P.MQ | P.REPLY_ACK | P.CONFIG
"""Protocol features that a connection takes where they are offered."""
QUEUE_SIZE = 16
MEMORY_BYTES = 1 << 20
GUEST_BASE = 1 << 32
USER_BASE = 0x7F00_0000_0000
"""Far from any guest address, so that one taken for the other shows at once."""
_ANSWER_BYTES_MAX = 1 << 16
_PAUSE_S = 0.01


class Closed(Exception):
    """The back-end has closed the connection."""


class Outcome(Enum):
    """What became of a request that may be wrong."""

    ACCEPTED = "acknowledged with zero"
    REFUSED = "acknowledged with another number"
    CLOSED = "the connection was closed"
    SILENT = "nothing was said"


class Answer(NamedTuple):
    """A message of the back-end; descriptors are the caller's."""

    request: int
    flags: int
    body: bytes
    fds: list[int]

    @property
    def number(self) -> int:
        """Raises Broken for a body that is no number."""
        expect(len(self.body) == 8, "a reply of 8 bytes", f"{len(self.body)} bytes")
        return int.from_bytes(self.body, "little")


class Front:
    """A connection. Close it."""

    def __init__(
        self, dial: Callable[[], socket.socket], patience_s: float, moment_s: float
    ) -> None:
        """Raises PeerGone if nobody listens any more."""
        self._dial = dial
        self.patience_s, self.moment_s = patience_s, moment_s
        self._sock = self._connect()
        self.offered = 0
        self.features = 0
        self.offered_protocol = self.protocol = P(0)
        self.status = 0
        self.extra_features = 0
        """Feature bits of vhost-user itself to set, besides PROTOCOL_FEATURES."""
        self.queue_count = 1
        self.shared = False
        """Whether the memory table was sent."""
        self.bases: dict[int, int] = {}
        """What SET_VRING_BASE tells of a ring, if not 0."""
        self.log_addresses: dict[int, int] = {}
        """Where the log has the used ring, for rings whose writes are to be logged."""
        self._fds: list[int] = []
        self.err_fds: dict[int, int] = {}
        self.regions: list[Region] = []
        self.memory = Memory()
        self.lay_out([Region(GUEST_BASE, MEMORY_BYTES, USER_BASE, 0)])

    @classmethod
    def begin(
        cls,
        dial: Callable[[], socket.socket],
        need: P,
        take: P,
        patience_s: float,
        moment_s: float,
    ) -> Self:
        """What every front-end says first. Raises NotObservable if `need` is not offered."""
        front = cls(dial, patience_s, moment_s)
        try:
            front.offered = front._first_answer()
            if front.offered & PROTOCOL_FEATURES:
                front.offered_protocol = P(front.number(Code.GET_PROTOCOL_FEATURES))
            if lacking := need & ~front.offered_protocol:
                raise NotObservable(f"not offered: {protocol_names(lacking)}")
            front.take(need | take & front.offered_protocol)
            front.tell(Code.SET_OWNER)
            if P.MQ in front.protocol:
                front.queue_count = front.number(Code.GET_QUEUE_NUM)
        except BaseException:
            front.close()
            raise
        return front

    def _first_answer(self) -> int:
        """The features. A connection that was closed before it got any answer may have reached a
        listener that was on its way out: then there is another. Raises Broken, Hung."""
        deadline = time.monotonic() + self.patience_s
        while True:
            self.send(Code.GET_FEATURES)
            try:
                answer = self._checked(self.read("the answer to GET_FEATURES"), Code.GET_FEATURES)
                return answer.number
            except Closed:
                self._sock.close()
                if time.monotonic() > deadline:
                    came = Outcome.CLOSED.value
                    raise Broken("an answer to GET_FEATURES", came) from None
            time.sleep(_PAUSE_S)
            self._sock = self._connect()

    def take(self, chosen: P) -> None:
        """Set protocol features; nothing is sent where the back-end does not know them."""
        if self.offered & PROTOCOL_FEATURES:
            # The request that turns acknowledgements on is itself never acknowledged.
            self.send(Code.SET_PROTOCOL_FEATURES, U64(int(chosen)))
            self.protocol = chosen

    # Bytes

    def send_bytes(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send them as they are. A back-end that has closed is noticed when it is listened to."""
        self._sock.settimeout(self.patience_s)
        try:
            while data:
                data, fds = data[channel.send(self._sock, data, fds) :], ()
        except TimeoutError:
            raise Hung(f"the back-end did not read for {self.patience_s} s") from None
        except OSError:
            return

    def send(
        self,
        request: int,
        payload: Payload | bytes | None = None,
        fds: Sequence[int] = (),
        flags: int = 0,
    ) -> None:
        """Send a request; bytes as its payload need not make sense."""
        if not isinstance(payload, bytes):
            payload = FRONT_MESSAGES[request].payload.build(Code(request).name, payload)
        self.send_bytes(pack_message(request, flags, payload), fds)

    def read(self, what: str = "an answer") -> Answer:
        """The next message. Raises Closed, Hung."""
        deadline = time.monotonic() + self.patience_s
        fds: list[int] = []
        header = unpack_header(self._exactly(HEADER_BYTES, fds, deadline, what))
        expect(header.size <= _ANSWER_BYTES_MAX, "an answer of its size", f"{header.size} bytes")
        body = self._exactly(header.size, fds, deadline, what)
        return Answer(header.request, header.flags, body, fds)

    def _exactly(self, size: int, fds: list[int], deadline: float, what: str) -> bytes:
        data = b""
        while len(data) < size:
            self._sock.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                more, came = channel.receive(self._sock, size - len(data))
            except TimeoutError:
                raise Hung(f"waited {self.patience_s} s for {what}") from None
            except OSError:
                raise Closed from None
            fds += came
            if not more:
                raise Closed
            data += more
        return data

    # Requests that are right

    def ask(
        self,
        request: Code,
        payload: Payload | bytes | None = None,
        fds: Sequence[int] = (),
        flags: int = 0,
    ) -> Answer:
        """Send a request that has a reply, and check its form. Raises Broken."""
        self.send(request, payload, fds, flags)
        return self.answer(request)

    def answer(self, request: Code) -> Answer:
        """The reply to a request. Raises Broken for another message, or none."""
        try:
            answer = self.read(f"the answer to {request.name}")
        except Closed:
            self._sock.close()
            self.alive()
            raise Broken(f"an answer to {request.name}", Outcome.CLOSED.value) from None
        return self._checked(answer, request)

    def _checked(self, answer: Answer, request: Code) -> Answer:
        came = f"request {answer.request}, flags {answer.flags:#x}"
        right = answer.request == request and answer.flags & ~NEED_REPLY == VERSION | REPLY
        if not right:
            self.let_go(answer)
        expect(right, f"a reply to {request.name}: request {int(request)}, flags 0x5", came)
        return answer

    def number(self, request: Code, payload: Payload | None = None, flags: int = 0) -> int:
        answer = self.ask(request, payload, flags=flags)
        self.let_go(answer)
        return answer.number

    def tell(
        self, request: Code, payload: Payload | bytes | None = None, fds: Sequence[int] = ()
    ) -> None:
        """Send a request that is right, and see that it is acknowledged where it can be. Raises
        Broken."""
        outcome = self.attempt(request, payload, fds)
        if outcome is Outcome.CLOSED:
            self._sock.close()
            self.alive()
        expect(
            outcome in (Outcome.ACCEPTED, Outcome.SILENT),
            f"{request.name} accepted",
            outcome.value,
        )

    def let_go(self, answer: Answer) -> None:
        for fd in answer.fds:
            close_fd(fd)
        answer.fds.clear()

    # Requests that may be wrong

    def attempt(
        self,
        request: int,
        payload: Payload | bytes | None = None,
        fds: Sequence[int] = (),
    ) -> Outcome:
        """Send a request that has no reply of its own, with need_reply where REPLY_ACK holds, and
        see what becomes of it. Raises Hung if nothing does."""
        acks = P.REPLY_ACK in self.protocol
        self.send(request, payload, fds, NEED_REPLY if acks else 0)
        if not acks:
            return self.sound()
        try:
            answer = self.read(f"an acknowledgement of request {request}")
        except Closed:
            return Outcome.CLOSED
        self.let_go(answer)
        expect(
            answer.request == request and answer.flags & REPLY,
            f"an acknowledgement of request {request}",
            f"request {answer.request}, flags {answer.flags:#x}",
        )
        return Outcome.REFUSED if answer.number else Outcome.ACCEPTED

    def sound(self) -> Outcome:
        """Whether the connection still is there once everything that was sent has been read; what
        is answered meanwhile is let go."""
        self.send(Code.GET_FEATURES)
        try:
            while True:
                answer = self.read("the answer to GET_FEATURES behind it")
                self.let_go(answer)
                if answer.request == Code.GET_FEATURES and answer.flags & REPLY:
                    return Outcome.SILENT
        except Closed:
            return Outcome.CLOSED

    def unasked(self) -> str:
        """What comes beside the answer to a question that is asked now; empty if nothing does."""
        self.send(Code.GET_FEATURES)
        try:
            answer = self.read("the answer to GET_FEATURES")
        except Closed:
            return Outcome.CLOSED.value
        self.let_go(answer)
        if answer.request != Code.GET_FEATURES:
            return f"a message with request {answer.request}, flags {answer.flags:#x}"
        return "another message" if self.readable(0) else ""

    def readable(self, within_s: float) -> bool:
        """Whether a message, or the end, comes within a time."""
        return bool(select.select([self._sock], [], [], within_s)[0])

    def alive(self) -> None:
        """See that the back-end answers another connection; this one has to be closed. Raises
        PeerGone, Hung."""
        deadline = time.monotonic() + self.patience_s
        while True:
            with self._connect() as self._sock, contextlib.suppress(Closed):
                self.send(Code.GET_FEATURES)
                self.let_go(self.read("an answer on another connection"))
                return
            if time.monotonic() > deadline:
                raise PeerGone("every other connection is closed before it is answered")
            time.sleep(_PAUSE_S)

    def _connect(self) -> socket.socket:
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                return self._dial()
            except PeerGone:
                raise
            except TransportError as error:
                if not isinstance(error.__context__, BlockingIOError):
                    raise PeerGone(f"nobody takes another connection: {error}") from None
            # The backlog is full: somebody listens, and takes no connection.
            if time.monotonic() > deadline:
                raise Hung(f"waited {self.patience_s} s for another connection to be taken")
            time.sleep(POLL_S)

    # Memory

    def lay_out(self, regions: Sequence[Region]) -> None:
        """Have memory of these regions, each with a file of its own."""
        self._drop_memory()
        self.regions = list(regions)
        for region in regions:
            fd = os.memfd_create("virtq-check", os.MFD_CLOEXEC)
            self._fds.append(fd)
            os.ftruncate(fd, region.offset + region.size)
            self.memory.add_region(fd, region.guest_addr, region.size, region.offset)

    @property
    def fds(self) -> Sequence[int]:
        """The files of the regions."""
        return self._fds

    def fds_times(self, count: int) -> Sequence[int]:
        """The file of the first region, so many times."""
        return self._fds[:1] * count

    def share(self) -> None:
        """Send the memory table."""
        self.tell(Code.SET_MEM_TABLE, RegionTable(tuple(self.regions)), self._fds)
        self.shared = True

    def user(self, guest_addr: int) -> int:
        """The user address of a guest address."""
        for region in self.regions:
            if region.guest_addr <= guest_addr < region.guest_addr + region.size:
                return guest_addr - region.guest_addr + region.user_addr
        return guest_addr

    def _drop_memory(self) -> None:
        while self._fds:
            close_fd(self._fds.pop())
        self.memory = Memory()

    # What a driver asks of its transport

    @property
    def device_id(self) -> int | None:
        return None

    def queue_size_max(self, index: int) -> int:
        return QUEUE_SIZE

    def read_features(self) -> int:
        return self.offered & ~TRANSPORT_FEATURES

    def write_features(self, features: int) -> None:
        self.features = features | self.offered & PROTOCOL_FEATURES | self.extra_features
        self.tell(Code.SET_FEATURES, U64(self.features))

    def read_status(self) -> int:
        return self.status

    def write_status(self, status: int) -> None:
        """The device's part of it is told by the messages."""
        self.status = status

    @property
    def config_size(self) -> int:
        return 0

    def read_config(self, offset: int, length: int) -> bytes:
        """Raises Broken if the reply has another size."""
        answer = self.ask(Code.GET_CONFIG, Config(offset, length, 0, bytes(length)))
        expect(
            len(answer.body) == 12 + length,
            f"a configuration of {length} bytes",
            f"{len(answer.body) - 12} bytes",
        )
        return answer.body[12:]

    def write_config(self, offset: int, data: bytes) -> None:
        self.tell(Code.SET_CONFIG, Config(offset, len(data), 0, data))

    def on_config_change(self, callback: Callable[[], None] | None) -> None:
        """Nobody asks for it here."""

    def enable_queue(self, queue: QueueEnd, desc: int, driver: int, device: int) -> None:
        """Set a ring up, start it, and enable it."""
        self.set_up(queue, desc, driver, device)
        self.connect(queue)
        self.enable(queue.index)

    def set_up(self, queue: QueueEnd, desc: int, driver: int, device: int) -> None:
        """Size, addresses and base."""
        if not self.shared:
            self.share()
        index = queue.index
        log = self.log_addresses.get(index)
        areas = self.user(desc), self.user(device), self.user(driver)
        self.tell(Code.SET_VRING_NUM, VringState(index, queue.size))
        self.tell(Code.SET_VRING_BASE, VringState(index, self.base(queue)))
        address = VringAddress(index, int(log is not None), *areas, log or 0)
        self.tell(Code.SET_VRING_ADDR, address)

    def base(self, queue: QueueEnd) -> int:
        """By default the beginning: for a packed ring slot 0 with wrap counter 1, twice."""
        packed = 1 << 34
        return self.bases.get(queue.index, 0x8000_8000 if queue.features & packed else 0)

    def connect(self, queue: QueueEnd) -> None:
        """Notifications: errors, calls and, which starts the ring, kicks."""
        self.connect_calls(queue)
        self._signal_by(Code.SET_VRING_KICK, queue, queue.set_kick)

    def connect_calls(self, queue: QueueEnd) -> None:
        """What the back-end notifies of: errors and used buffers. A ring without it may wait."""
        self._drop_err(queue.index)
        fd = self.err_fds[queue.index] = _eventfd()
        self.tell(Code.SET_VRING_ERR, U64(queue.index), [fd])
        self._signal_by(Code.SET_VRING_CALL, queue, queue.set_call)

    def _signal_by(self, code: Code, queue: QueueEnd, take: Callable[[int], None]) -> None:
        fd = _eventfd()
        try:
            take(fd)
            self.tell(code, U64(queue.index), [fd])
        finally:
            os.close(fd)

    def poll_instead(self, code: Code, index: int) -> None:
        """Tell that no descriptor comes."""
        self.tell(code, U64(index | NO_FD))

    def enable(self, index: int, enabled: bool = True) -> None:
        """Nothing is sent where rings are enabled from the beginning."""
        if self.features & PROTOCOL_FEATURES:
            self.tell(Code.SET_VRING_ENABLE, VringState(index, int(enabled)))

    def get_base(self, index: int) -> int:
        """Stop a ring; returns where it stood. Raises Broken for another ring's answer."""
        answer = self.ask(Code.GET_VRING_BASE, VringState(index, 0))
        expect(len(answer.body) == 8, "a ring's state of 8 bytes", f"{len(answer.body)} bytes")
        ring = int.from_bytes(answer.body[:4], "little")
        expect(ring == index, f"the base of ring {index}", f"that of ring {ring}")
        return int.from_bytes(answer.body[4:], "little")

    def reset_queue(self, index: int) -> Position:
        self.get_base(index)
        return Position(0, 1, 0, 1, 0)

    def check(self) -> None:
        """Raises Broken if the back-end has closed, and PeerGone if it is gone altogether."""
        try:
            channel.check_alive(self._sock, "the connection")
        except PeerGone:
            self._sock.close()
            self.alive()
            raise Broken("the connection kept", Outcome.CLOSED.value) from None

    def _drop_err(self, index: int) -> None:
        if (fd := self.err_fds.pop(index, None)) is not None:
            close_fd(fd)

    def close(self) -> None:
        self._sock.close()
        self._drop_memory()
        for index in list(self.err_fds):
            self._drop_err(index)


def _eventfd() -> int:
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
