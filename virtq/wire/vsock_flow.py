"""Connections of the socket device without I/O, as either end sees them (VIRTIO 1.4, 5.10.6).

Both ends of a socket device do the same: they open and accept connections, count each other's
buffer space, and answer what belongs to no connection with RST. `Mux` is that, for device and
driver alike. Packets go in by `receive`, and packets come out by `next_packet`, when there is a
buffer to put one into; what a connection's user has to know comes as calls of its `User`.

    REQUEST  ->  opening      we asked, or (accepting) were asked: RESPONSE opens, RST refuses
    RESPONSE ->  open         RW both ways as far as the other end has buffer space (5.10.6.3)
    SHUTDOWN ->  half closed, in either direction
                 closing      both directions are shut by us: the other end answers with RST
    RST      ->  gone

What waits to be sent is bounded by whoever uses it: data because `Flow.room` tells how much may be
handed over, replies because the caller stops to `receive` while `backlog` is high (5.10.6.1).
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Collection
from enum import Enum, auto
from typing import NamedTuple, Protocol

from virtq.wire.vsock import (
    BOTH_WAYS,
    HEADER_BYTES,
    NO_BOUNDARY,
    PACKET_DATA_MAX,
    Boundary,
    Header,
    Op,
    Shutdown,
    SocketType,
)

BUFFER_BYTES = 256 << 10
"""Buffer space for what a connection's user has not consumed yet, unless the caller says
otherwise."""
PENDING_BYTES = 64 << 10
"""How much of a connection's data waits to be packed at most."""

_COUNTER = 1 << 32
NO_DATA = memoryview(b"")


class User(Protocol):
    """Who uses a connection. Everything is called from within the calls of `Mux` and `Flow`."""

    def opened(self) -> None:
        """The other end accepted."""
        ...

    def received(self, data: bytes, boundary: Boundary) -> None:
        """Data came; `Flow.consumed` gives its buffer space free again."""
        ...

    def room(self) -> None:
        """`Flow.room` may be more than it was."""
        ...

    def shut(self, flags: Shutdown) -> None:
        """All that the other end will not do any more (permanent)."""
        ...

    def closed(self, clean: bool) -> None:
        """The connection is gone; not clean: before both ends had shut it down."""
        ...


class State(Enum):
    """Where a connection stands."""

    ASKED = auto()
    ACCEPTING = auto()
    OPEN = auto()
    CLOSING = auto()
    GONE = auto()


class Key(NamedTuple):
    """What tells connections apart at one end."""

    local_cid: int
    local_port: int
    peer_cid: int
    peer_port: int
    type: int


class _Item(NamedTuple):
    """Something that a connection has to send: data (RW), or only a header."""

    op: Op
    flags: int = 0
    data: memoryview = NO_DATA


class Flow:
    """One connection. Made by `Mux`."""

    def __init__(self, mux: Mux, key: Key, state: State) -> None:
        self.key = key
        self.state = state
        self.peer_shutdown = Shutdown(0)
        self.own_shutdown = Shutdown(0)
        self._mux = mux
        self.user: User | None = None
        self._items: deque[_Item] = deque()
        self._pending_bytes = 0
        # Free-running 32-bit counters (5.10.6.3).
        self._sent = 0
        self._peer_buf_alloc = 0
        self._peer_fwd_cnt = 0
        self._received = 0
        self._consumed = 0
        self._told_consumed = 0
        self._owes_update = False
        self._was_asked = False
        self._asked_for_credit = False
        self.ready = False

    # What its user may do

    @property
    def room(self) -> int:
        """How many bytes of data may be handed to `send` now."""
        shut = self.own_shutdown & Shutdown.SEND or self.peer_shutdown & Shutdown.RECEIVE
        if self.state is not State.OPEN or shut:
            return 0
        return max(0, PENDING_BYTES - self._pending_bytes)

    @property
    def has_unsent(self) -> bool:
        """Whether something waits that the other end has no room for, or the virtqueue."""
        return bool(self._items)

    @property
    def message_bytes_max(self) -> int:
        """The longest message of a seqpacket connection: it has to fit the other end's buffer."""
        return self._peer_buf_alloc

    def accept(self) -> None:
        """Take a connection that `Mux.accept` was asked about."""
        if self.state is State.ACCEPTING:
            self.state = State.OPEN
            self._push(_Item(Op.RESPONSE))

    def send(self, data: bytes | memoryview, boundary: Boundary = NO_BOUNDARY) -> None:
        """Data for the other end, sent as its buffer space allows. `boundary` for its last byte.
        Does nothing once the direction is shut down."""
        if self.state is not State.OPEN or self.own_shutdown & Shutdown.SEND:
            return
        if self.peer_shutdown & Shutdown.RECEIVE:
            return
        view = memoryview(data)
        self._pending_bytes += len(view)
        self._push(_Item(Op.RW, boundary, view))

    def consumed(self, count: int) -> None:
        """The user is done with `count` received bytes. The other end is told once it is a quarter
        of the buffer space."""
        self._consumed = (self._consumed + count) % _COUNTER
        untold = (self._consumed - self._told_consumed) % _COUNTER
        if self.state is State.OPEN and untold >= self._mux.buffer_bytes // 4:
            self._owe_update()

    def shutdown(self, flags: Shutdown) -> None:
        """Announce what this end will not do any more, behind the data that waits. With both flags
        the other end answers with RST, and the connection is closed."""
        new = flags & ~self.own_shutdown
        if self.state is not State.OPEN or not new:
            return
        self.own_shutdown |= flags
        if self.peer_shutdown & Shutdown.RECEIVE:
            self._drop_data()
        self._push(_Item(Op.SHUTDOWN, self.own_shutdown))
        if self.own_shutdown == BOTH_WAYS:
            self.state = State.CLOSING

    def reset(self) -> None:
        """Break the connection, or refuse one that was to be accepted, at once."""
        if self.state is not State.GONE:
            self._mux.reply(self._header(Op.RST))
            self._mux.forget(self, clean=False)

    # What `Mux` calls

    def request(self) -> None:
        self._push(_Item(Op.REQUEST))

    def attach(self, user: User) -> None:
        """Say who uses the connection."""
        self.user = user

    def take_credit(self, header: Header) -> None:
        """What the other end says of its buffer space, in every packet."""
        self._peer_buf_alloc = header.buf_alloc
        self._peer_fwd_cnt = header.fwd_cnt

    @property
    def credit(self) -> int:
        """How many bytes the other end has room for. A counter that makes no sense means none."""
        in_flight = (self._sent - self._peer_fwd_cnt) % _COUNTER
        return max(0, self._peer_buf_alloc - in_flight)

    def receive(self, header: Header, data: bytes) -> None:
        """A packet of this connection, whose `type` and `op` are known ones."""
        credit = self.credit
        self.take_credit(header)
        op = header.op
        if op == Op.RST:
            at_end = self.own_shutdown & self.peer_shutdown & Shutdown.SEND
            self._mux.forget(self, clean=self.state is State.CLOSING or bool(at_end))
        elif self.state is State.ASKED and op == Op.RESPONSE:
            self.state = State.OPEN
            self._tell(lambda user: user.opened())
        elif self.state in (State.OPEN, State.CLOSING) and op in _WHILE_OPEN:
            _WHILE_OPEN[op](self, header, data)
        else:
            self.reset()
        if self._items and self.credit > credit:
            self._asked_for_credit = False
            self._mux.has_something(self)

    def _receive_data(self, header: Header, data: bytes) -> None:
        unread = (self._received - self._consumed) % _COUNTER
        if self.peer_shutdown & Shutdown.SEND or unread + len(data) > self._mux.buffer_bytes:
            # More than was promised, or than there is room for: no peer does that by accident.
            self.reset()
            return
        self._received = (self._received + len(data)) % _COUNTER
        if self.own_shutdown & Shutdown.RECEIVE:
            self.consumed(len(data))
        elif data or header.flags:
            self._tell(lambda user: user.received(data, Boundary(header.flags & 3)))

    def _receive_shutdown(self, header: Header, data: bytes) -> None:
        before = self.peer_shutdown
        self.peer_shutdown |= Shutdown(header.flags & BOTH_WAYS)
        if self.peer_shutdown & Shutdown.RECEIVE:
            self._drop_data()
        if self.peer_shutdown != before:
            self._tell(lambda user: user.shut(self.peer_shutdown))
        if self.peer_shutdown == BOTH_WAYS and self.state is not State.GONE:
            self._mux.reply(self._header(Op.RST))
            self._mux.forget(self, clean=True)

    def _receive_credit_request(self, header: Header, data: bytes) -> None:
        self._was_asked = True
        self._mux.has_something(self)

    def _receive_credit_update(self, header: Header, data: bytes) -> None:
        pass  # every packet carries it

    def next_packet(self, room: int) -> bytes | None:
        """What to send next, in `room` bytes; None if nothing can be sent now."""
        if self._was_asked and (not self._items or self._items[0].op is Op.RW):
            # Every packet tells the credit, but the answer to this question has a name of its own.
            self._was_asked = False
            return self._pack(Op.CREDIT_UPDATE)
        if self._items and self._items[0].op is Op.RW:
            packet = self._next_data(room)
        elif self._items:
            item = self._items.popleft()
            self._mux.backlog -= 1
            packet = self._pack(item.op, item.flags)
        else:
            packet = None
        if packet is None and self._owes_update:
            packet = self._pack(Op.CREDIT_UPDATE)
        return packet

    def _next_data(self, room: int) -> bytes | None:
        item, credit = self._items[0], self.credit
        if not credit and len(item.data):
            if self._asked_for_credit:
                return None
            self._asked_for_credit = True
            return self._pack(Op.CREDIT_REQUEST)
        count = min(len(item.data), credit, room - HEADER_BYTES, PACKET_DATA_MAX)
        if not count and len(item.data):
            return None
        rest = item.data[count:]
        self._pending_bytes -= count
        self._sent = (self._sent + count) % _COUNTER
        if len(rest):
            self._items[0] = item._replace(data=rest)
            return self._pack(Op.RW, 0, item.data[:count])
        self._items.popleft()
        packet = self._pack(Op.RW, item.flags, item.data[:count])
        self._tell(lambda user: user.room())
        return packet

    @property
    def blocked(self) -> bool:
        """Whether nothing can be sent before the other end has said something."""
        if self._owes_update or self._was_asked:
            return False
        if not self._items:
            return True
        head = self._items[0]
        return (
            head.op is Op.RW and len(head.data) > 0 and not self.credit and self._asked_for_credit
        )

    def end(self, clean: bool) -> None:
        """It is not `Mux`'s any more."""
        self._drop_data()
        self._mux.backlog -= len(self._items)
        self._items.clear()
        self._owes_update = self._was_asked = False
        self.state = State.GONE
        self._tell(lambda user: user.closed(clean))

    # Details

    def _owe_update(self) -> None:
        self._owes_update = True
        self._mux.has_something(self)

    def _push(self, item: _Item) -> None:
        self._items.append(item)
        if item.op is not Op.RW:
            self._mux.backlog += 1
        self._mux.has_something(self)

    def _drop_data(self) -> None:
        kept = [item for item in self._items if item.op is not Op.RW]
        self._items = deque(kept)
        self._pending_bytes = 0

    def _tell(self, call: Callable[[User], None]) -> None:
        if self.user is not None:
            call(self.user)

    def _header(self, op: Op, flags: int = 0, length: int = 0) -> Header:
        key = self.key
        return Header(
            src_cid=key.local_cid,
            dst_cid=key.peer_cid,
            src_port=key.local_port,
            dst_port=key.peer_port,
            len=length,
            type=key.type,
            op=op,
            flags=flags,
            buf_alloc=self._mux.buffer_bytes,
            fwd_cnt=self._consumed,
        )

    def _pack(self, op: Op, flags: int = 0, data: memoryview = NO_DATA) -> bytes:
        self._owes_update = False
        self._told_consumed = self._consumed
        return self._header(op, flags, len(data)).pack() + data

    def __repr__(self) -> str:
        key = self.key
        return f"<Flow {key.local_port} to {key.peer_cid}:{key.peer_port}, {self.state.name}>"


_WHILE_OPEN: dict[int, Callable[[Flow, Header, bytes], None]] = {
    Op.RW: Flow._receive_data,
    Op.SHUTDOWN: Flow._receive_shutdown,
    Op.CREDIT_REQUEST: Flow._receive_credit_request,
    Op.CREDIT_UPDATE: Flow._receive_credit_update,
}


class Mux:
    """All connections of one end."""

    def __init__(
        self,
        *,
        local_cid: int,
        accept: Callable[[Flow], User | None],
        wake: Callable[[], None],
        is_peer: Callable[[Header], bool],
        types: Collection[int] = (SocketType.STREAM,),
        buffer_bytes: int = BUFFER_BYTES,
        connections_max: int = 1024,
    ) -> None:
        """`accept` is asked for each REQUEST: who is to use the connection, which is then opened by
        `Flow.accept` or refused by `Flow.reset`; None refuses it. `wake` is told when
        `next_packet` may have something. `is_peer` judges the addresses of a packet: those from
        elsewhere are dropped. `types`: the socket types to have."""
        self.local_cid = local_cid
        self.types = frozenset(types)
        self.buffer_bytes = buffer_bytes
        self.connections_max = connections_max
        self.flows: dict[Key, Flow] = {}
        self.backlog = 0
        """Packets without data that wait to be sent."""
        self.stats = {"packets": 0, "malformed": 0, "refused": 0, "resets": 0}
        self._accept = accept
        self._wake = wake
        self._is_peer = is_peer
        self._replies: deque[Header] = deque()
        self._ready: deque[Flow] = deque()

    def key(self, local_port: int, peer: tuple[int, int], type: int) -> Key:
        """What a connection to `peer` (CID, port) has in `flows`."""
        return Key(self.local_cid, local_port, *peer, type)

    def connect(self, local_port: int, peer: tuple[int, int], type: int) -> Flow:
        """Ask for a connection to `peer` (CID, port); `Flow.attach` says who uses it. Raises
        ValueError for a socket type that was not negotiated, OSError if the addresses are in use or
        there are too many connections."""
        if type not in self.types:
            raise ValueError(f"socket type {type} was not negotiated")
        key = self.key(local_port, peer, type)
        if key in self.flows:
            text = f"port {local_port} is connected to {peer[0]}:{peer[1]} already"
            raise OSError(errno.EADDRINUSE, text)
        if len(self.flows) >= self.connections_max:
            raise OSError(errno.ENOBUFS, f"there are {self.connections_max} connections already")
        flow = self.flows[key] = Flow(self, key, State.ASKED)
        flow.request()
        return flow

    def receive(self, packet: bytes) -> None:
        """A packet from the other end. Whatever is wrong with it ends as an RST, or as nothing
        where there is nobody to send it to."""
        self.stats["packets"] += 1
        if len(packet) < HEADER_BYTES:
            self.stats["malformed"] += 1
            return
        header = Header.parse(packet[:HEADER_BYTES])
        data = packet[HEADER_BYTES : HEADER_BYTES + header.len]
        if not self._is_peer(header):
            self.stats["malformed"] += 1
            return
        key = Key(header.dst_cid, header.dst_port, header.src_cid, header.src_port, header.type)
        flow = self.flows.get(key)
        sound = len(data) == header.len and Op.INVALID < header.op <= Op.CREDIT_REQUEST
        if not sound:
            self.stats["malformed"] += 1
        if flow is not None and sound:
            flow.receive(header, data)
        elif flow is not None:
            flow.reset()
        elif sound and header.op == Op.REQUEST and header.type in self.types:
            self._asked(key, header)
        elif header.op != Op.RST:
            self._refuse(header)

    def _asked(self, key: Key, header: Header) -> None:
        if key.local_cid != self.local_cid or len(self.flows) >= self.connections_max:
            self._refuse(header)
            return
        flow = Flow(self, key, State.ACCEPTING)
        flow.take_credit(header)
        user = self._accept(flow)
        if user is None:
            self._refuse(header)
        elif flow.state is not State.GONE:
            flow.attach(user)
            self.flows[key] = flow

    def _refuse(self, header: Header) -> None:
        """Answer what belongs to no connection (5.10.6.4, 5.10.6.5)."""
        self.stats["refused"] += 1
        self.reply(
            Header(
                src_cid=header.dst_cid,
                dst_cid=header.src_cid,
                src_port=header.dst_port,
                dst_port=header.src_port,
                type=header.type,
                op=Op.RST,
            )
        )

    def next_packet(self, room: int) -> bytes | None:
        """The next packet to send, of up to `room` bytes (at least 44): replies first, then the
        connections in turn. None if there is none now, or if `room` has no place for data."""
        if self._replies:
            self.backlog -= 1
            return self._replies.popleft().pack()
        for _ in range(len(self._ready)):
            flow = self._ready.popleft()
            flow.ready = False
            packet = flow.next_packet(room)
            if not flow.blocked:
                flow.ready = True
                self._ready.append(flow)
            if packet is not None:
                return packet
        return None

    @property
    def has_packet(self) -> bool:
        """Whether `next_packet` has one, given room."""
        return bool(self._replies or self._ready)

    def reset(self) -> None:
        """Forget all connections, without a word to the other end: it has forgotten them, too."""
        for flow in list(self.flows.values()):
            self.forget(flow, clean=False)
        self._replies.clear()
        self.backlog = 0

    # What `Flow` calls

    def reply(self, header: Header) -> None:
        self._replies.append(header)
        self.backlog += 1
        if header.op == Op.RST:
            self.stats["resets"] += 1
        self._wake()

    def has_something(self, flow: Flow) -> None:
        if not flow.ready:
            flow.ready = True
            self._ready.append(flow)
        self._wake()

    def forget(self, flow: Flow, *, clean: bool) -> None:
        if self.flows.pop(flow.key, None) is not None or flow.state is State.ACCEPTING:
            if flow.ready:
                self._ready.remove(flow)
                flow.ready = False
            flow.end(clean)
