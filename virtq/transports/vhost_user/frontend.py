"""The front-end: a driver's transport to a device that another process serves over a socket.

Calls block, with a time limit. Where the back-end has REPLY_ACK every request is acknowledged, so
that a refusal is an error at the call that caused it; otherwise the calls that set something up
end with a question that a back-end cannot answer before it has dealt with the rest.

What the back-end has to say of its own arrives on the other channel and is answered by a thread.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from virtq._core import Memory, Position
from virtq.errors import FeatureError, PeerGone, TransportError
from virtq.features import F
from virtq.status import Status
from virtq.transports.base import QueueEnd
from virtq.transports.vhost_user import channel, config, state
from virtq.transports.vhost_user.exchange import Exchange, Refused
from virtq.transports.vhost_user.fds import close_fd
from virtq.transports.vhost_user.inband import FrontKicks, new_event
from virtq.transports.vhost_user.inflight import KeptRegion
from virtq.transports.vhost_user.link import Link
from virtq.transports.vhost_user.messages import (
    PROTOCOL_FEATURES,
    TRANSPORT_FEATURES,
    Back,
    Front,
    P,
)
from virtq.transports.vhost_user.negotiation import Negotiation
from virtq.transports.vhost_user.offer import WANTED, ProtocolChange
from virtq.transports.vhost_user.reconnect import connect_again, resume_position
from virtq.transports.vhost_user.rings import MAX_QUEUE_SIZE, pack_base, unpack_base
from virtq.transports.vhost_user.wire import (
    U64,
    Inflight,
    Iotlb,
    IotlbType,
    Payload,
    VringAddress,
    VringState,
)

log = logging.getLogger("virtq.vhost_user")

TIMEOUT_S = 5.0
MEMORY_BYTES = 64 << 20
QUEUE_SIZE = 1024
GUEST_BASE = 1 << 32
"""Beyond 32 bits, so that an address that was cut short shows at once."""


@dataclass(slots=True)
class _Enabled:
    queue: QueueEnd
    areas: tuple[int, int, int]
    """Guest addresses of descriptor, driver and device area."""
    err: int


class Frontend:
    """Implements `virtq.transports.base.DriverTransport` over a vhost-user socket.

    `where` is the path that a back-end listens on, or a connected socket (owned here from now on).
    Shared with the back-end: `memory_size` bytes of memory.

    vhost-user tells neither how many virtqueues a device needs nor how large they may be.
    `queues` is the number of virtqueues; without it that of GET_QUEUE_NUM, or 1 for a back-end
    without MQ. Some back-ends (DPDK's) count pairs there, so for a network device give the number.
    `queue_size_max` (at most 32768) is the largest queue to ask for; where the back-end refuses it,
    half of it is tried, and so on. `protocol` is how the protocol features that are taken, where
    they are offered, differ from the usual ones (see `offer`).

    With `reconnect_s` a back-end that goes away is waited for so many seconds wherever `check` is
    called (whoever waits for a buffer does), and the next one goes on with all that is outstanding:
    see `reconnect`. `track`: whether what is in flight is tracked, where the back-end can; by
    default only if that is needed to reconnect.

    Raises TransportError that names the socket if there is no back-end or it does not answer,
    FeatureError for a `protocol` that makes no sense.
    """

    def __init__(
        self,
        where: str | socket.socket,
        *,
        timeout_s: float = TIMEOUT_S,
        memory_size: int = MEMORY_BYTES,
        queues: int | None = None,
        queue_size_max: int = QUEUE_SIZE,
        reconnect_s: float | None = None,
        track: bool | None = None,
        protocol: str = "",
    ) -> None:
        self._name = where if isinstance(where, str) else f"socket {where.fileno()}"
        self._wanted = ProtocolChange.parse(protocol).apply(WANTED)
        self._timeout_s = timeout_s
        self._reconnect_s = reconnect_s if isinstance(where, str) else None
        self._track = track
        self._kept: KeptRegion | None = None
        self._features: int | None = None
        self._closed = False
        self._reconnecting = threading.Lock()
        self.reconnects = 0
        """How often another back-end has taken over."""
        self._queue_size_max = min(queue_size_max, MAX_QUEUE_SIZE)
        self._callback: Callable[[], None] | None = None
        self._enabled: dict[int, _Enabled] = {}
        self._queue_sizes: dict[int, int] = {}
        self._status = 0
        self._queue_count = 0
        self._events_lock = threading.Lock()
        self._config_size: int | None = None
        self._kicks: FrontKicks | None = None
        sock = channel.connect(where, timeout_s) if isinstance(where, str) else where
        self._link = Link(sock, self._name, timeout_s, self._told)
        try:
            self._memory = Memory.allocate(memory_size, GUEST_BASE)
            self._queue_count = self._open(queues)
        except BaseException:
            self.close()
            raise

    def _open(self, queues: int | None) -> int:
        """Negotiate what comes before the device's own features; returns the number of queues."""
        queues = self._link.open(self._wanted, queues)
        if self._negotiation.has(P.INBAND_NOTIFICATIONS) and self._kicks is None:
            self._kicks = FrontKicks(self._kick_inband, self._name)
        return queues

    @property
    def _exchange(self) -> Exchange:
        return self._link.exchange

    @property
    def _negotiation(self) -> Negotiation:
        return self._link.negotiation

    # ------------------------------------------------------------ what is on the other end

    @property
    def name(self) -> str:
        """The socket's path."""
        return self._name

    @property
    def offered_protocol_features(self) -> P:
        return self._negotiation.offered_protocol

    @property
    def protocol_features(self) -> P:
        """Those that were negotiated."""
        return self._negotiation.protocol

    @property
    def tracks(self) -> bool:
        """Whether the back-end writes down what is in flight (INFLIGHT_SHMFD), for the next one."""
        return self._kept is not None

    @property
    def memory(self) -> Memory:
        return self._memory

    @property
    def device_id(self) -> int | None:
        """None: vhost-user does not tell."""
        return None

    @property
    def queue_count(self) -> int:
        return self._queue_count

    def queue_size_max(self, index: int) -> int:
        """Found by asking, where the back-end acknowledges: the messages do not tell it."""
        if index not in self._queue_sizes:
            self._queue_sizes[index] = self._accepted_size(index)
        return self._queue_sizes[index]

    def _accepted_size(self, index: int) -> int:
        size = self._queue_size_max
        while size > 1 and self._negotiation.has(P.REPLY_ACK):
            try:
                self._exchange.tell(Front.SET_VRING_NUM, VringState(index, size))
                return size
            except Refused:
                size //= 2
        return size

    # ------------------------------------------------------------ features and status

    def read_features(self) -> int:
        """Without ACCESS_PLATFORM where the back-end could not ask for a translation."""
        self._negotiation.offered = self._exchange.ask(Front.GET_FEATURES)
        hidden = TRANSPORT_FEATURES
        if not self._negotiation.has(P.BACKEND_REQ | P.REPLY_ACK):
            hidden |= F.ACCESS_PLATFORM
        return self._negotiation.offered & ~hidden

    def write_features(self, features: int) -> None:
        """Raises FeatureError for features that are not offered, or that the back-end refuses."""
        offered = self._negotiation.offered
        if surplus := features & ~(offered & ~TRANSPORT_FEATURES):
            raise FeatureError(f"{self._name}: features {surplus:#x} are not offered")
        try:
            self._exchange.tell(Front.SET_FEATURES, U64(features | offered & PROTOCOL_FEATURES))
        except Refused as refused:
            raise FeatureError(f"{self._name}: features {features:#x}: {refused}") from None
        self._exchange.settle()
        self._features = features

    def read_status(self) -> int:
        if self._negotiation.has(P.STATUS):
            return self._exchange.ask(Front.GET_STATUS)
        return self._status

    def write_status(self, status: int) -> None:
        """0 stops every virtqueue, and resets the device where the back-end knows how to."""
        goes_live = bool(status & ~self._status & Status.DRIVER_OK)
        if not status:
            for index in list(self._enabled):
                self.reset_queue(index)
        elif goes_live:
            for index in list(self._enabled):
                self._enable(index, True)
        if self._negotiation.has(P.STATUS):
            self._exchange.tell(Front.SET_STATUS, U64(status))
        elif not status and self._negotiation.has(P.RESET_DEVICE):
            self._exchange.tell(Front.RESET_DEVICE)
        self._status = status
        if not status:
            # The back-end has forgotten it as well; the next rings get a new one.
            self._drop_kept()
        if goes_live or not status:
            # A notification does not pass through the socket: it must not be there before these.
            self._exchange.settle()

    # ------------------------------------------------------------ configuration space

    @property
    def config_size(self) -> int:
        """How much of the configuration space the back-end shows (at most 256 bytes); found out by
        asking, the first time. 0 without CONFIG."""
        if self._config_size is None:
            self._config_size = config.find_size(self._link)
        return self._config_size

    def read_config(self, offset: int, length: int) -> bytes:
        """Raises ConfigError beyond what the back-end shows, and without CONFIG."""
        return config.read(self._link, offset, length, self._name)

    def write_config(self, offset: int, data: bytes) -> None:
        """Raises ConfigError if the back-end refuses, and without CONFIG."""
        config.write(self._link, offset, data, self._name)

    def on_config_change(self, callback: Callable[[], None] | None) -> None:
        """`callback` is called in the thread of the other channel."""
        self._callback = callback

    # ------------------------------------------------------------ the device's own state

    def save_state(self, timeout_s: float = TIMEOUT_S) -> bytes:
        """What the device knows beside its rings, for another back-end to go on with; no virtqueue
        is enabled. Raises TransportError, ProtocolError without DEVICE_STATE."""
        return state.save(self._exchange, timeout_s)

    def load_state(self, saved: bytes, timeout_s: float = TIMEOUT_S) -> None:
        """Have the device go on with what `save_state` returned elsewhere. Raises as it does."""
        state.load(self._exchange, saved, timeout_s)

    # ------------------------------------------------------------ virtqueues

    def enable_queue(self, queue: QueueEnd, desc: int, driver: int, device: int) -> None:
        """Raises TransportError if the back-end refuses, GuestMemoryError for an area outside of
        `memory`."""
        index = queue.index
        if index in self._enabled:
            raise ValueError(f"{self._name}: queue {index} is enabled already")
        call, err = new_event(), new_event()
        kick = new_event() if self._kicks is None else self._kicks.add(index)
        try:
            queue.set_call(call)
            queue.set_kick(kick)
        finally:
            os.close(kick)
            os.close(call)
        enabled = _Enabled(queue, (desc, driver, device), err)
        # Where the device begins: at what it has not used yet, even if it is available already.
        at = queue.position
        start = Position(at.used, at.used_wrap, at.used, at.used_wrap, 0)
        try:
            with self._exchange.lock:
                self._keep_track(queue)
                # From the first message on the back-end may notify.
                self._enabled[index] = enabled
                self._set_up(enabled, start)
                self._exchange.settle()
        except BaseException:
            self._enabled.pop(index, None)
            self._forget(enabled)
            raise

    def _set_up(self, enabled: _Enabled, start: Position) -> None:
        """Tell the back-end all about a ring, and that it may begin."""
        queue = enabled.queue
        index = queue.index
        self._link.share(self._memory)
        self._exchange.tell(Front.SET_VRING_NUM, VringState(index, queue.size))
        base = pack_base(start, bool(queue.features & F.RING_PACKED))
        self._exchange.tell(Front.SET_VRING_BASE, VringState(index, base))
        desc, driver, used = (self._link.ring_address(self._memory, area) for area in enabled.areas)
        self._exchange.tell(Front.SET_VRING_ADDR, VringAddress(index, 0, desc, used, driver, 0))
        self._connect_events(enabled)
        if not self._status or self._status & Status.DRIVER_OK:
            # Else when the driver is done: from here on the back-end serves the ring (2.1.2).
            self._enable(index, True)

    def _connect_events(self, enabled: _Enabled) -> None:
        queue = enabled.queue
        index = queue.index
        if self._kicks is not None:
            if self._negotiation.has(P.INBAND_NOTIFICATIONS):
                self._exchange.tell(Front.VRING_KICK, VringState(index, 0))  # starts the ring
                return
            self._kicks.remove(index)  # it was another back-end that had messages
        assert queue.call_fd is not None
        assert queue.kick_fd is not None
        self._exchange.tell(Front.SET_VRING_CALL, U64(index), [queue.call_fd])
        self._exchange.tell(Front.SET_VRING_ERR, U64(index), [enabled.err])
        self._exchange.tell(Front.SET_VRING_KICK, U64(index), [queue.kick_fd])

    def _keep_track(self, queue: QueueEnd) -> None:
        """Before the first ring: a region for what is in flight, if it is wanted and can be had."""
        needed = self._reconnect_s is not None and not queue.features & F.IN_ORDER
        wanted = needed if self._track is None else self._track
        if self._kept or self._enabled or not wanted or not self._negotiation.has(P.INFLIGHT_SHMFD):
            return
        largest = max(self.queue_size_max(index) for index in range(self._queue_count))
        asked = Inflight(0, 0, self._queue_count, max(largest, queue.size))
        reply = self._exchange.transact(Front.GET_INFLIGHT_FD, asked, keep_fds=True)
        if reply is None:
            return
        with reply.fds:
            if isinstance(reply.payload, Inflight) and reply.payload.mmap_size and len(reply.fds):
                self._kept = KeptRegion(reply.payload, reply.fds.take())
                self._hand_on()

    def _hand_on(self) -> None:
        if self._kept is not None:
            self._exchange.tell(Front.SET_INFLIGHT_FD, self._kept.description, [self._kept.fd])

    def _kick_inband(self, index: int) -> None:
        with self._exchange.lock:
            if index in self._enabled:
                self._exchange.tell(Front.VRING_KICK, VringState(index, 0))

    def _enable(self, index: int, enabled: bool) -> None:
        if (self._negotiation.features or 0) & PROTOCOL_FEATURES:
            self._exchange.tell(Front.SET_VRING_ENABLE, VringState(index, int(enabled)))

    def reset_queue(self, index: int) -> Position:
        """Raises ValueError for a virtqueue that is not enabled."""
        if index not in self._enabled:
            raise ValueError(f"{self._name}: queue {index} is not enabled")
        with self._exchange.lock:
            if self._kicks is not None:
                self._kicks.remove(index)
            self._enable(index, False)
            reply = self._exchange.transact(Front.GET_VRING_BASE, VringState(index, 0))
            enabled = self._enabled.pop(index)
        self._forget(enabled)
        if self._kept is not None:
            self._kept.clear(index)
        if reply is None or not isinstance(reply.payload, VringState):
            raise TransportError(f"{self._name}: no base of queue {index}")
        position = unpack_base(reply.payload.num, self._negotiation.packed)
        if self._negotiation.packed:
            return position
        used = int.from_bytes(self._memory.read(enabled.areas[2] + 2, 2), "little")
        return position._replace(used=used)

    def _forget(self, enabled: _Enabled) -> None:
        with self._events_lock:
            close_fd(enabled.err)

    def queue_error(self, index: int) -> bool:
        """Whether the back-end has signalled an error of this virtqueue since the last call."""
        enabled = self._enabled.get(index)
        return enabled is not None and channel.drain(enabled.err)

    # ------------------------------------------------------------ the end

    @property
    def alarm_fd(self) -> int | None:
        """The socket: it hangs up when the back-end goes (`virtq.transports.base.Alarming`)."""
        fd = self._exchange.fd
        return fd if fd >= 0 else None

    def check(self) -> None:
        """Raises PeerGone if the back-end has closed or died, and again whatever ended the
        connection before. With `reconnect_s` it first waits for another one to take over; what
        cannot be handed on to that is NotResumable, and features that it lacks a FeatureError."""
        try:
            self._exchange.check()
            return
        except PeerGone:
            if self._reconnect_s is None or self._closed:
                raise
        with self._reconnecting:
            try:
                self._exchange.check()  # another thread may have seen to it meanwhile
            except PeerGone:
                if self._reconnect_s is None or self._closed:
                    raise
                self._reconnect(time.monotonic() + self._reconnect_s)

    def _reconnect(self, deadline: float) -> None:
        """Have another back-end go on where the last one was; if that dies as well, the next."""
        while True:
            starts = self._resume_positions()
            self._link.close()
            sock = connect_again(self._name, deadline, self._timeout_s)
            self._link = Link(sock, self._name, self._timeout_s, self._told)
            try:
                self._open(self._queue_count)
                self._resume(starts)
            except PeerGone as error:
                self._exchange.fail(error)
                if time.monotonic() >= deadline:
                    raise
            except BaseException as error:
                # One that cannot do it: whoever asks again is told the same.
                self._exchange.fail(PeerGone(f"no back-end to go on with: {error}"))
                self._reconnect_s = None
                raise
            else:
                self.reconnects += 1
                return

    def _resume_positions(self) -> dict[int, Position]:
        tracked = self._kept is not None
        return {
            index: resume_position(enabled.queue, tracked, self._name)
            for index, enabled in self._enabled.items()
        }

    def _resume(self, starts: dict[int, Position]) -> None:
        """Everything that the back-end before has been told, as it is now."""
        if self._features is None:
            return
        if lacking := self._features & ~self._negotiation.offered:
            raise FeatureError(f"{self._name}: the next back-end does not offer {lacking:#x}")
        if self._kept is not None and not self._negotiation.has(P.INFLIGHT_SHMFD):
            raise FeatureError(f"{self._name}: the next back-end does not track what is in flight")
        self.write_features(self._features)
        # A status of 0 would be a reset.
        has_status = self._negotiation.has(P.STATUS) and self._status != 0
        if has_status:
            self._exchange.tell(Front.SET_STATUS, U64(self._status & ~int(Status.DRIVER_OK)))
        self._hand_on()
        for index, start in starts.items():
            self._set_up(self._enabled[index], start)
        if has_status and self._status & Status.DRIVER_OK:
            self._exchange.tell(Front.SET_STATUS, U64(self._status))
        self._exchange.settle()
        for index in starts:
            # Neither end knows what the other had wanted to be told of before.
            queue = self._enabled[index].queue
            for fd in (queue.kick_fd, queue.call_fd):
                if fd is not None:
                    channel.signal(fd)

    def _drop_kept(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def close(self) -> None:
        """Let go of the back-end. Harmless when done twice."""
        self._closed = True
        self._link.close()
        if self._kicks is not None:
            self._kicks.close()
            self._kicks = None
        for enabled in self._enabled.values():
            self._forget(enabled)
        self._enabled.clear()
        self._drop_kept()

    # ------------------------------------------------------------ what the back-end asks

    def _told(self, code: Back, payload: Payload | None) -> bool:
        """A request of the back-end, in the other channel's thread; False says no."""
        if code is Back.CONFIG_CHANGE:
            if self._callback is not None:
                self._callback()
            return True
        if code is Back.IOTLB_MSG and isinstance(payload, Iotlb):
            if payload.type == IotlbType.MISS:
                return self._link.translate(self._memory, payload)
            log.warning("%s: access to %#x failed", self._name, payload.iova)
            return payload.type == IotlbType.ACCESS_FAIL
        if code in (Back.VRING_CALL, Back.VRING_ERR) and isinstance(payload, VringState):
            return self._notified(code, payload)
        return False

    def _notified(self, code: Back, payload: VringState) -> bool:
        """A notification came as a message; one for a ring that has just been stopped is late."""
        if payload.num or payload.ring >= self._queue_count:
            return False
        with self._events_lock:
            enabled = self._enabled.get(payload.ring)
            if enabled is not None:
                event = enabled.queue.call_fd if code is Back.VRING_CALL else enabled.err
                if event is not None:
                    channel.signal(event)
        return True
