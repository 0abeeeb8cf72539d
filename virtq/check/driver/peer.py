"""One front-end, from its connection to its end, as the judge serves it.

Everything happens in the judge's thread and in `turn`: a message is answered, a notification is
noted, what became available is written down. So between two turns nothing changes but what the
driver does, and a case is straight-line code. Which message may come when is the protocol's
(`virtq.transports.vhost_user.protocol`); what the messages do is here, as little as a judge needs.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from virtq._core import Position
from virtq.check.case import Broken, Hung
from virtq.check.driver.record import Event, Record
from virtq.check.driver.ring import JudgedRing
from virtq.check.driver.roles import Role
from virtq.check.waiting import counted
from virtq.errors import ConfigError, PeerGone, VirtqError
from virtq.features import RingKind
from virtq.status import Status
from virtq.transports.vhost_user import channel
from virtq.transports.vhost_user.fds import close_fd
from virtq.transports.vhost_user.guest import MAX_SLOTS, Guest
from virtq.transports.vhost_user.messages import (
    PROTOCOL_FEATURES,
    TRANSPORT_FEATURES,
    Back,
    Front,
    P,
)
from virtq.transports.vhost_user.outbox import Outbox
from virtq.transports.vhost_user.protocol import BackendProtocol, Refusal, Request
from virtq.transports.vhost_user.rings import pack_base, split_vring_fd, unpack_base
from virtq.transports.vhost_user.wire import (
    U64,
    Config,
    Iotlb,
    IotlbType,
    Payload,
    ProtocolError,
    Region,
    RegionTable,
    VringState,
)

POLL_S = 0.001
"""How long a turn sleeps if nothing comes: memory makes no noise."""
OFFERED = (
    P.MQ
    | P.REPLY_ACK
    | P.BACKEND_REQ
    | P.CONFIG
    | P.RESET_DEVICE
    | P.CONFIGURE_MEM_SLOTS
    | P.STATUS
)
_BEGUN = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK
_EVERY_BIT = (1 << 64) - 1
_EVERY_SIZE = 1 << 16


@dataclass(frozen=True)
class Offer:
    """What the judge is towards a driver. `features` are the device's; `keeps_features_ok`: whether
    it takes the driver's choice; `status`: bits that its status shows besides those that the driver
    wrote; `config`: its configuration space, if it is not the role's."""

    features: int
    keeps_features_ok: bool = True
    status: int = 0
    config: bytes | None = None
    protocol: P = OFFERED

    def with_(self, **changes: Any) -> Offer:
        return replace(self, **changes)


class Peer:
    """One connected driver. `service` is called with each ring that has buffers, each turn; by
    default nothing is used."""

    def __init__(self, sock: socket.socket, kind: RingKind, role: Role, offer: Offer) -> None:
        """`sock` is owned here from now on."""
        self.offer = offer
        self.role = role
        self.record = Record(kind, offer.features)
        self.config = bytearray(role.config() if offer.config is None else offer.config)
        protocol = offer.protocol if self.config else offer.protocol & ~P.CONFIG
        # What was not offered is to be seen, and judged: so no bit is refused here.
        self._protocol = BackendProtocol(_EVERY_BIT, int(protocol), role.queue_sizes)
        self._negotiation = self._protocol.negotiation
        for ring in self._negotiation.rings:
            ring.size_max = _EVERY_SIZE
        self._guest = Guest()
        self._sock: socket.socket | None = sock
        sock.setblocking(False)
        self._outbox = Outbox(sock)
        self._other: socket.socket | None = None
        self._events: dict[tuple[str, int], int] = {}
        self.rings: dict[int, JudgedRing] = {}
        self.service: Callable[[JudgedRing], None] | None = None
        self.gone = False
        """The driver has closed the connection."""

    # What is known of it

    @property
    def features(self) -> int | None:
        return self.record.features

    @property
    def status(self) -> int:
        return self._negotiation.status

    @property
    def tells_status(self) -> bool:
        return self._negotiation.has(P.STATUS)

    def is_live(self, index: int) -> bool:
        """Whether a virtqueue may be served: it is enabled, and the driver has set DRIVER_OK where
        it tells. A front-end that makes up a status starts its rings when its driver has set
        DRIVER_OK; not every one says so (QEMU's vhost-user-base never does)."""
        if index not in self.rings or not self._negotiation.rings[index].enabled:
            return False
        if not self.tells_status or self.status & Status.DRIVER_OK:
            return True
        return self.status & _BEGUN == Status.FEATURES_OK

    # Turns

    def turn(self, wait_s: float = POLL_S) -> None:
        """Wait a moment at most, and take in what came."""
        if self._sock is None or self.gone:
            raise PeerGone("the driver has closed the connection")
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        for ring in self.rings.values():
            if ring.kick_fd is not None:
                poller.register(ring.kick_fd, select.POLLIN)
        if self._other is not None:
            poller.register(self._other, select.POLLIN)
        came = {fd for fd, _ in poller.poll(wait_s * 1000)}
        # Messages first: one that allows notifications comes before the first of them.
        if self._other is not None and self._other.fileno() in came:
            self._hear_other()
        if self._sock.fileno() in came:
            self._receive()
        self._drain_kicks()
        self.look()

    def _drain_kicks(self) -> None:
        for ring in self.rings.values():
            ring.drain_kick()

    def look(self) -> None:
        """Write down what became available, and have it served."""
        for index, ring in list(self.rings.items()):
            ring.look()
            if self.service is not None and self.is_live(index):
                self.service(ring)

    def until(self, done: Callable[[], Any], patience_s: float, what: str) -> None:
        """Turns until something is so. Raises Hung, PeerGone."""
        for _ in self.turns(patience_s):
            if done():
                return
        if not done():
            raise Hung(f"waited {patience_s:g} s for {what}")

    def turns(self, seconds: float) -> Iterator[None]:
        """Turns for so long; a look before each."""
        yield
        for _ in counted(seconds, 4 * POLL_S):
            self.turn(min(POLL_S, seconds))
            yield

    def turns_or_gone(self, seconds: float) -> Iterator[None]:
        """As `turns`, until the driver has closed the connection."""
        with contextlib.suppress(PeerGone):
            yield from self.turns(seconds)

    # Messages

    def _receive(self) -> None:
        main = self._protocol.main
        assert self._sock is not None
        try:
            while True:
                data, fds = channel.receive(self._sock, main.wanted)
                if not data:
                    self.gone = True
                    main.end_of_stream()
                    return
                main.receive(data, fds)
                while (event := main.next_request()) is not None:
                    self._outbox.put(self._answer(event))
                    self._outbox.flush()
        except (BlockingIOError, InterruptedError):
            return
        except ConnectionError:
            self.gone = True
        except ProtocolError as error:
            self.gone = True
            raise Broken("vhost-user messages as they have to be", str(error)) from None

    def _answer(self, event: Request | Refusal) -> Any:
        if isinstance(event, Refusal):
            self.record.events.append(Event("refused", None, str(event.error)))
            return event.answer
        main = self._protocol.main
        name = event.message.name
        if event.message.code != Front.SET_STATUS:
            # What has come by now came before the answer to this, and all that is said after it.
            self._drain_kicks()
        with event.fds:
            self.record.events.append(Event(name, _queue_of(event.payload), event.payload))
            try:
                handler = _HANDLERS.get(event.message.code)
                if handler is None:
                    raise ProtocolError(name, "request", int(event.message.code), "not known here")
                reply = handler(self, event)
            except (VirtqError, ValueError, OSError, OverflowError) as error:
                return main.refuse(event, error)
        return main.accept(event, reply)

    def _get_features(self, request: Request) -> Payload:
        return U64(self.offer.features | PROTOCOL_FEATURES)

    def _set_features(self, request: Request) -> None:
        assert isinstance(request.payload, U64)
        value = request.payload.value
        self.record.features = value & ~TRANSPORT_FEATURES
        self._guest.use_features(value & ~(1 << 26))

    def _get_protocol_features(self, request: Request) -> Payload:
        return U64(int(self._negotiation.offered_protocol))

    def _set_protocol_features(self, request: Request) -> None:
        assert isinstance(request.payload, U64)
        self.record.protocol = request.payload.value

    def _nothing(self, request: Request) -> None:
        """The protocol's own bookkeeping is all."""

    def _get_queue_num(self, request: Request) -> Payload:
        return U64(len(self._negotiation.rings))

    def _get_max_mem_slots(self, request: Request) -> Payload:
        return U64(MAX_SLOTS)

    def _set_mem_table(self, request: Request) -> None:
        assert isinstance(request.payload, RegionTable)
        self._guest.set_table(request.payload.regions, request.fds)
        for ring in self.rings.values():
            ring.use_memory(self._guest.memory)

    def _add_mem_reg(self, request: Request) -> None:
        assert isinstance(request.payload, Region)
        self._guest.add(request.payload, request.fds.peek())

    def _rem_mem_reg(self, request: Request) -> None:
        assert isinstance(request.payload, Region)
        self._guest.remove(request.payload)

    def _iotlb(self, request: Request) -> Payload:
        assert isinstance(request.payload, Iotlb)
        if request.payload.type in (IotlbType.UPDATE, IotlbType.INVALIDATE):
            self._guest.translate(request.payload)
        return U64(0)

    def _set_vring_kick(self, request: Request) -> None:
        index, fd = _take_event(request)
        if ring := self.rings.get(index):
            if ring.kick_fd is not None:
                close_fd(ring.kick_fd)
            ring.kick_fd = fd
            return
        told = self._negotiation.rings[index]
        try:
            assert told.address is not None
            areas = self._guest.areas(told.address)
            ring = JudgedRing(
                self.record,
                self._guest.memory,
                (self._negotiation.features or 0) & ~TRANSPORT_FEATURES,
                index,
                told.num,
                areas,
                self._position(told.base, areas[2]),
                self.role.answer,
            )
        except BaseException:
            if fd is not None:
                close_fd(fd)
            raise
        ring.kick_fd = fd
        ring.call_fd = self._events.pop(("call", index), None)
        self.rings[index] = ring

    def _position(self, base: int, device_area: int) -> Position:
        if self._negotiation.packed:
            return unpack_base(base, True)
        used = int.from_bytes(self._guest.memory.read(device_area + 2, 2), "little")
        return unpack_base(base, False)._replace(used=used)

    def _set_vring_call(self, request: Request) -> None:
        index, fd = _take_event(request)
        if ring := self.rings.get(index):
            old, ring.call_fd = ring.call_fd, fd
        else:
            old = self._events.pop(("call", index), None)
            if fd is not None:
                self._events["call", index] = fd
        if old is not None:
            close_fd(old)

    def _set_vring_err(self, request: Request) -> None:
        """The judge has no errors to tell: the descriptor is closed with the request."""

    def _get_vring_base(self, request: Request) -> Payload:
        assert isinstance(request.payload, VringState)
        index = request.payload.ring
        base = self._negotiation.rings[index].base
        if ring := self.rings.get(index):
            with contextlib.suppress(VirtqError):
                ring.audit()
                base = pack_base(ring.resume(), self._negotiation.packed)
            self._stop(index)
        return VringState(index, base)

    def _stop(self, index: int) -> None:
        ring = self.rings.pop(index)
        with contextlib.suppress(VirtqError):
            self.record.pictures.append(ring.picture())
        ring.close()

    def _set_backend_req_fd(self, request: Request) -> None:
        other = channel.adopt(request.fds.peek())
        request.fds.take()
        if self._other is not None:
            self._other.close()
        self._protocol.reopen_other()
        other.setblocking(False)
        self._other = other

    def _get_config(self, request: Request) -> Payload:
        asked = request.payload
        assert isinstance(asked, Config)
        self._check_config(asked)
        data = bytes(self.config[asked.offset : asked.offset + asked.size])
        return Config(asked.offset, asked.size, asked.flags, data)

    def _set_config(self, request: Request) -> None:
        asked = request.payload
        assert isinstance(asked, Config)
        self._check_config(asked)
        self.config[asked.offset : asked.offset + asked.size] = asked.data

    def _check_config(self, asked: Config) -> None:
        if not asked.size or asked.offset + asked.size > len(self.config):
            raise ConfigError(f"the configuration space has {len(self.config)} bytes")

    def _set_status(self, request: Request) -> None:
        assert isinstance(request.payload, U64)
        if not request.payload.value:
            self._reset()

    def _get_status(self, request: Request) -> Payload:
        status = self._negotiation.status | self.offer.status
        if not self.offer.keeps_features_ok:
            status &= ~Status.FEATURES_OK
        self.record.events.append(Event("status read", None, status))
        return U64(status)

    def _reset_device(self, request: Request) -> None:
        self._reset()

    def _reset(self) -> None:
        for index in list(self.rings):
            self._stop(index)

    # The other channel

    def tell_config_change(self) -> bool:
        """Send a configuration change notification; False if the driver cannot take one."""
        if self._other is None or not self._negotiation.has(P.CONFIG | P.BACKEND_REQ):
            return False
        outgoing = self._protocol.other.request(Back.CONFIG_CHANGE)
        channel.send(self._other, outgoing.data)
        return True

    def _hear_other(self) -> None:
        assert self._other is not None
        other = self._protocol.other
        with contextlib.suppress(BlockingIOError, InterruptedError):
            data, fds = channel.receive(self._other, other.wanted)
            if not data:
                self._other.close()
                self._other = None
                return
            other.receive(data, fds)
            while (reply := other.next_reply()) is not None:
                reply.fds.close()

    # The end

    def pictures(self) -> list[dict[str, Any]]:
        """The rings as they stand, or as they stood when they were stopped."""
        found = []
        for ring in self.rings.values():
            with contextlib.suppress(VirtqError):
                found.append(ring.picture())
        return found or self.record.pictures[-4:]

    def close(self) -> None:
        """Let the driver go. Harmless if it is gone."""
        if self._sock is None:
            return
        self._reset()
        for fd in self._events.values():
            close_fd(fd)
        self._events.clear()
        self._protocol.close()
        self._guest.close()
        if self._other is not None:
            self._other.close()
        self._sock.close()
        self._sock = None
        self.gone = True


def serve_plainly(peer: Peer) -> Callable[[JudgedRing], None]:
    """A service: everything is used at once, in order, with a used entry for each buffer, but what
    the device has nothing for."""

    def service(ring: JudgedRing) -> None:
        if ring.index in peer.role.supplied:
            return
        if ring.held and not ring.broken:
            ring.half.one_used_entry_per_buffer = True
            ring.use(list(ring.held))
            ring.notify()
            ring.enable_kicks()

    return service


def _queue_of(payload: Payload | None) -> int | None:
    return getattr(payload, "ring", None)


def _take_event(request: Request) -> tuple[int, int | None]:
    assert isinstance(request.payload, U64)
    index, has_fd = split_vring_fd(request.message.name, request.payload.value)
    if not has_fd:
        return index, None
    channel.check_event(request.message.name, request.fds.peek())
    return index, request.fds.take()


_HANDLERS: Mapping[int, Callable[[Peer, Request], Payload | None]] = {
    Front.GET_FEATURES: Peer._get_features,
    Front.SET_FEATURES: Peer._set_features,
    Front.SET_OWNER: Peer._nothing,
    Front.RESET_OWNER: Peer._nothing,
    Front.SET_MEM_TABLE: Peer._set_mem_table,
    Front.ADD_MEM_REG: Peer._add_mem_reg,
    Front.REM_MEM_REG: Peer._rem_mem_reg,
    Front.GET_MAX_MEM_SLOTS: Peer._get_max_mem_slots,
    Front.IOTLB_MSG: Peer._iotlb,
    Front.SET_VRING_NUM: Peer._nothing,
    Front.SET_VRING_ADDR: Peer._nothing,
    Front.SET_VRING_BASE: Peer._nothing,
    Front.GET_VRING_BASE: Peer._get_vring_base,
    Front.SET_VRING_KICK: Peer._set_vring_kick,
    Front.SET_VRING_CALL: Peer._set_vring_call,
    Front.SET_VRING_ERR: Peer._set_vring_err,
    Front.SET_VRING_ENABLE: Peer._nothing,
    Front.GET_PROTOCOL_FEATURES: Peer._get_protocol_features,
    Front.SET_PROTOCOL_FEATURES: Peer._set_protocol_features,
    Front.GET_QUEUE_NUM: Peer._get_queue_num,
    Front.SET_BACKEND_REQ_FD: Peer._set_backend_req_fd,
    Front.GET_CONFIG: Peer._get_config,
    Front.SET_CONFIG: Peer._set_config,
    Front.SET_STATUS: Peer._set_status,
    Front.GET_STATUS: Peer._get_status,
    Front.RESET_DEVICE: Peer._reset_device,
}
