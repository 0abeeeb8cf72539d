"""A vhost-user connection without I/O: bytes and descriptors in, events out, bytes to send back.

Two channels make a connection. On the main one the front-end asks and the back-end answers; on
the other, which SET_BACKEND_REQ_FD opens, it is the reverse. So there are two machines, and each
role is made of one of each:

                  main channel      other channel
    back-end      Responder         Requester
    front-end     Requester         Responder

Both cut the byte stream into messages with the same `Inbox`. It asks for no more than the bytes
that the current message still needs (`wanted`), so that descriptors, which travel with the first
byte of a message, cannot be mistaken for those of the next.

A `Responder` gives one `Request` at a time and wants it answered before the next: `accept`, with
the payload if the request has an explicit reply, or `refuse`. Saying no takes whatever form the
request has for it: a failed acknowledgement, an empty reply; where there is none, `refuse` raises
and only closing is left. A `Requester` hands out the bytes of each request and matches each reply
to the oldest one that waits for it.

A violation raises one `ProtocolError` and ends the machine; the descriptors that it still held
are closed. Those of an event belong to whoever got the event.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from virtq.transports.vhost_user.fds import Fds
from virtq.transports.vhost_user.messages import (
    BACK_MESSAGES,
    FRONT_MESSAGES,
    Back,
    Front,
    Message,
    P,
)
from virtq.transports.vhost_user.negotiation import Negotiation
from virtq.transports.vhost_user.wire import (
    HEADER_BYTES,
    NEED_REPLY,
    NUMBER,
    REPLY,
    U64,
    Header,
    Layout,
    Payload,
    ProtocolError,
    pack_message,
    unpack_header,
)

MAX_HELD_FDS = 64
"""Descriptors that may wait for their message to become complete."""


class Outgoing(NamedTuple):
    """What to send: the descriptors go with the first byte, and stay the sender's."""

    data: bytes
    fds: tuple[int, ...] = ()


NOTHING = Outgoing(b"")


@dataclass(slots=True)
class Request:
    """A request that arrived. Close `fds` when done: `with request.fds:`."""

    message: Message
    payload: Payload | None
    fds: Fds
    wants_ack: bool
    """A bare acknowledgement is expected (there is no explicit reply, and REPLY_ACK holds)."""


@dataclass(slots=True)
class Refusal:
    """A request that must not come now, and has a form of saying no: send `answer` and go on."""

    error: ProtocolError
    answer: Outgoing


@dataclass(slots=True)
class Reply:
    """An answer that arrived, matched to its request. Close `fds` when done."""

    message: Message
    payload: Payload | None
    fds: Fds
    is_ack: bool
    request: Payload | None = None
    """What the request carried."""


class Frame(NamedTuple):
    header: Header
    body: bytes
    fds: Fds


@dataclass(slots=True)
class _Arrival:
    """Descriptors and the span of the stream that they came with."""

    start: int
    end: int
    fds: Fds = field(default_factory=Fds)


class Inbox:
    """Cuts a stream of bytes and descriptors into messages.

    Descriptors belong to the first message that begins in the bytes they came with.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._buffer = bytearray()
        self._start = 0
        self._arrivals: deque[_Arrival] = deque()
        self._header: Header | None = None
        self.closed = False

    @property
    def wanted(self) -> int:
        """Bytes to read next, at most: what the current message still needs; at least 1."""
        size = HEADER_BYTES + (self._header.size if self._header else 0)
        return max(size - len(self._buffer), 1)

    @property
    def in_message(self) -> bool:
        return bool(self._buffer)

    def feed(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Take in what was read; the descriptors are owned here from now on."""
        owned = Fds(fds)
        if self.closed:
            owned.close()
            raise ProtocolError(self._name, "state", "closed", "nothing more can be received")
        end = self._start + len(self._buffer)
        if owned:
            self._arrivals.append(_Arrival(end, end + len(data), owned))
        self._buffer += data
        held = sum(len(arrival.fds) for arrival in self._arrivals)
        if held > MAX_HELD_FDS:
            self.close()
            raise ProtocolError(self._name, "descriptors", held, f"at most {MAX_HELD_FDS}")

    def header(self) -> Header | None:
        """The header of the current message, as soon as it is there; unchecked."""
        if self._header is None and len(self._buffer) >= HEADER_BYTES:
            self._header = unpack_header(self._buffer)
        return self._header

    def frame(self) -> Frame | None:
        """The current message if it is complete; the next one becomes the current."""
        header = self.header()
        size = HEADER_BYTES + (header.size if header else 0)
        self._check_arrivals(self._start + size)
        if header is None or len(self._buffer) < size:
            return None
        body = bytes(self._buffer[HEADER_BYTES:size])
        fds = Fds()
        while self._arrivals and self._arrivals[0].start <= self._start:
            fds.extend(self._arrivals.popleft().fds)
        del self._buffer[:size]
        self._start += size
        self._header = None
        return Frame(header, body, fds)

    def _check_arrivals(self, end: int) -> None:
        for arrival in self._arrivals:
            if arrival.start > self._start and arrival.end <= end:
                count = len(arrival.fds)
                raise ProtocolError(
                    self._name, "descriptors", count, "came in the middle of a message"
                )

    def close(self) -> None:
        """Forget everything; descriptors that nobody has got are closed."""
        self.closed = True
        self._buffer.clear()
        self._header = None
        while self._arrivals:
            self._arrivals.popleft().fds.close()


class _Machine:
    """What both directions share: the inbox, and closing it on a violation."""

    def __init__(
        self, name: str, messages: Mapping[int, Message], negotiation: Negotiation
    ) -> None:
        self.inbox = Inbox(name)
        self.negotiation = negotiation
        self._messages = messages
        self._name = name

    @property
    def wanted(self) -> int:
        """Bytes to read next, at most."""
        return self.inbox.wanted

    def receive(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Take in what was read, descriptors included. Raises ProtocolError once closed."""
        self.inbox.feed(data, fds)

    def end_of_stream(self) -> None:
        """The other end has closed. Raises ProtocolError if that cuts a message short."""
        cut = self.inbox.in_message
        self.close()
        if cut:
            raise ProtocolError(self._name, "message", "incomplete", "the connection was closed")

    def close(self) -> None:
        self.inbox.close()

    def _look_up(self, header: Header) -> Message:
        message = self._messages.get(header.request)
        if message is None:
            header.check_flags(self._name)
            raise ProtocolError(self._name, "request", header.request, "there is no such message")
        header.check_flags(message.name)
        return message


class Responder(_Machine):
    """The side of a channel that receives requests."""

    def __init__(
        self, name: str, messages: Mapping[int, Message], negotiation: Negotiation, main: bool
    ) -> None:
        super().__init__(name, messages, negotiation)
        self._main = main
        self._open: Request | None = None
        self._confirming: Message | None = None

    def next_request(self) -> Request | Refusal | None:
        """The next request, once it is complete; answer it before asking for another.

        Raises ProtocolError, which ends the machine, on a violation that leaves no way to say no.
        """
        if self._open is not None:
            raise RuntimeError(f"{self._open.message.name} has not been answered")
        try:
            return self._next_request()
        except ProtocolError:
            self.close()
            raise

    def _next_request(self) -> Request | Refusal | None:
        header = self.inbox.header()
        if header is not None:
            message = self._confirmation(header) or self._look_up(header)
            if header.is_reply:
                raise ProtocolError(message.name, "flags", hex(header.flags), "no reply is due")
            message.payload.check_size(message.name, header.size)
        frame = self.inbox.frame()
        if header is None or frame is None:
            return None
        try:
            payload = message.payload.parse(message.name, frame.body)
            message.check_fds(payload, len(frame.fds))
        except ProtocolError:
            frame.fds.close()
            raise
        wants_ack = header.need_reply and message.reply is None
        request = Request(message, payload, frame.fds, wants_ack)
        try:
            self._check(message, payload)
        except ProtocolError as error:
            frame.fds.close()
            return Refusal(error, self._say_no(request, error))
        self._open = request
        return request

    def _confirmation(self, header: Header) -> Message | None:
        """While one is due: what this header begins, if that is it. It is the answered request once
        more, with a number; before it, only more requests of that kind may come."""
        due = self._confirming
        if due is None:
            return None
        if header.request != due.code:
            raise ProtocolError(due.name, "request", header.request, "its confirmation is due")
        return due if header.size == NUMBER.largest else None

    def _check(self, message: Message, payload: Payload | None) -> None:
        if message is self._confirming:
            return
        if self._main:
            self.negotiation.check(message, payload)
        else:
            self.negotiation.check_needs(message)

    def accept(
        self, request: Request, payload: Payload | None = None, fds: Sequence[int] = ()
    ) -> Outgoing:
        """The request was carried out; `payload` is its explicit reply, if it has one."""
        self._answered(request)
        message = request.message
        if message is self._confirming:
            self._confirming = None
            return NOTHING
        if self._main:
            self.negotiation.apply(message, request.payload)
        if message.reply is not None:
            message.check_reply_fds(payload, len(fds))
            return _pack_reply(message, message.reply, payload, fds)
        if self._acks(request):
            return _pack_reply(message, NUMBER, U64(0))
        return NOTHING

    def echo(self, request: Request, payload: Payload) -> Outgoing:
        """The request was carried out, and is answered with its own payload, changed (SET_MEM_TABLE
        and ADD_MEM_REG in postcopy). The front-end will confirm that, as a request of the same code
        with a number."""
        self._answered(request)
        message = request.message
        self.negotiation.apply(message, request.payload)
        self._confirming = Message(message.code, NUMBER)
        return _pack_reply(message, message.payload, payload)

    def refuse(self, request: Request, error: Exception) -> Outgoing:
        """The request cannot be carried out, for the reason given.

        Raises ProtocolError, which ends the machine, if there is no way to say so.
        """
        self._answered(request)
        name = request.message.name
        told = error if isinstance(error, ProtocolError) else _failure(name, request.payload, error)
        try:
            return self._say_no(request, told)
        except ProtocolError:
            self.close()
            raise

    def ignore(self, request: Request) -> Outgoing:
        """The request failed in a way that concerns one ring alone: say no where that is possible,
        and go on in any case."""
        self._answered(request)
        return _pack_reply(request.message, NUMBER, U64(1)) if self._acks(request) else NOTHING

    def _answered(self, request: Request) -> None:
        if request is not self._open:
            raise RuntimeError(f"{request.message.name} is not the open request")
        self._open = None

    def _acks(self, request: Request) -> bool:
        # Without REPLY_ACK the bit has no meaning, and is ignored.
        return request.wants_ack and self.negotiation.has(P.REPLY_ACK)

    def _say_no(self, request: Request, error: ProtocolError) -> Outgoing:
        message = request.message
        if message.empty_refusal:
            return Outgoing(pack_message(message.code, REPLY, b""))
        if message.reply is not None and message.refusal is not None:
            return _pack_reply(message, message.reply, message.refusal)
        if self._acks(request):
            return _pack_reply(message, NUMBER, U64(1))
        raise error


class Requester(_Machine):
    """The side of a channel that sends requests."""

    def __init__(
        self, name: str, messages: Mapping[int, Message], negotiation: Negotiation, main: bool
    ) -> None:
        super().__init__(name, messages, negotiation)
        self._main = main
        self._waiting: deque[tuple[Message, bool, Payload | None]] = deque()

    @property
    def waiting(self) -> int:
        """Requests that have not been answered yet."""
        return len(self._waiting)

    def request(
        self,
        code: Front | Back,
        payload: Payload | None = None,
        fds: Sequence[int] = (),
        *,
        ack: bool = False,
    ) -> Outgoing:
        """The bytes of a request. With `ack` it asks for an acknowledgement if REPLY_ACK was
        negotiated. Raises ProtocolError for a request that must not be sent now."""
        message = self._messages[code]
        body = message.payload.build(message.name, payload)
        message.check_fds(payload, len(fds))
        if self._main:
            self.negotiation.check(message, payload)
        else:
            self.negotiation.check_needs(message)
        acked = ack and self.negotiation.has(P.REPLY_ACK)
        if message.reply is not None or acked:
            self._waiting.append((message, message.reply is None, payload))
        if self._main:
            self.negotiation.apply(message, payload)
        return Outgoing(pack_message(code, NEED_REPLY if acked else 0, body), tuple(fds))

    def next_reply(self) -> Reply | None:
        """The next reply, once it is complete. Raises ProtocolError, which ends the machine."""
        try:
            return self._next_reply()
        except ProtocolError:
            self.close()
            raise

    def _next_reply(self) -> Reply | None:
        header = self.inbox.header()
        if header is not None:
            message, layout, is_ack = self._expect(header)
            layout.check_size(f"reply to {message.name}", header.size)
        frame = self.inbox.frame()
        if header is None or frame is None:
            return None
        *_, request = self._waiting.popleft()
        try:
            payload = layout.parse(f"reply to {message.name}", frame.body)
            if is_ack:
                _check_no_fds(message, len(frame.fds))
            else:
                message.check_reply_fds(payload, len(frame.fds))
        except ProtocolError:
            frame.fds.close()
            raise
        return Reply(message, payload, frame.fds, is_ack, request)

    def _expect(self, header: Header) -> tuple[Message, Layout, bool]:
        """The request that this header answers, the reply's layout, whether it is a bare one."""
        message = self._look_up(header)
        if not header.is_reply:
            raise ProtocolError(
                message.name, "flags", hex(header.flags), "the reply bit is not set"
            )
        if not self._waiting:
            raise ProtocolError(message.name, "flags", hex(header.flags), "no request waits for it")
        waiting, is_ack, _ = self._waiting[0]
        if waiting is not message:
            raise ProtocolError(
                message.name, "request", header.request, f"{waiting.name} waits for its reply"
            )
        return message, message.reply or NUMBER, is_ack


def _check_no_fds(message: Message, count: int) -> None:
    if count:
        name = f"reply to {message.name}"
        raise ProtocolError(name, "descriptors", count, "0 belong to it")


def _pack_reply(
    message: Message, layout: Layout, payload: Payload | None, fds: Sequence[int] = ()
) -> Outgoing:
    body = layout.build(f"reply to {message.name}", payload)
    return Outgoing(pack_message(message.code, REPLY, body), tuple(fds))


def _failure(name: str, payload: Payload | None, error: Exception) -> ProtocolError:
    return ProtocolError(name, "payload", payload, str(error))


class BackendProtocol:
    """Both channels as the back-end sees them."""

    def __init__(self, features: int, protocol_features: int, queue_sizes: Sequence[int]) -> None:
        self.negotiation = Negotiation(features, protocol_features, queue_sizes)
        self.main = Responder("front-end", FRONT_MESSAGES, self.negotiation, main=True)
        self.other = Requester("front-end", BACK_MESSAGES, self.negotiation, main=False)

    def reopen_other(self) -> None:
        """A new other channel: nothing of the old one counts."""
        self.other.close()
        self.other = Requester("front-end", BACK_MESSAGES, self.negotiation, main=False)

    def close(self) -> None:
        self.main.close()
        self.other.close()


class FrontendProtocol:
    """Both channels as the front-end sees them. What the back-end offers is told to
    `negotiation` by whoever reads the replies."""

    def __init__(self) -> None:
        self.negotiation = Negotiation()
        self.main = Requester("back-end", FRONT_MESSAGES, self.negotiation, main=True)
        self.other = Responder("back-end", BACK_MESSAGES, self.negotiation, main=False)

    def close(self) -> None:
        self.main.close()
        self.other.close()
