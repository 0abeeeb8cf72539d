"""One front-end, from its connection to its end, as the back-end serves it.

The protocol says what may come; this file says what each request does: to the front-end's memory
(`Guest`), to its rings (`Vrings`), to the device. Everything runs in callbacks of the event loop,
one message at a time and never waiting, so a front-end that sends half a message, or does not read
its replies, holds up nobody but itself.

A request that fails is refused in whatever form it has for that; one without such a form ends the
session. So does any exception that nobody expected: the front-end is let go, the process stays.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple, TypeGuard

from virtq.errors import ConfigError, TranslationMiss, TransportError, VirtqError
from virtq.features import F
from virtq.transports.base import DeviceSide, DrainingDevice, StatefulDevice, TranslatedDevice
from virtq.transports.vhost_user import channel, postcopy
from virtq.transports.vhost_user.asking import Asking
from virtq.transports.vhost_user.guest import MAX_SLOTS, Guest
from virtq.transports.vhost_user.inband import BackNotifications, new_event
from virtq.transports.vhost_user.inflight import Answer, HeldRegion
from virtq.transports.vhost_user.messages import (
    PROTOCOL_FEATURES,
    TRANSPORT_FEATURES,
    Back,
    Front,
    P,
)
from virtq.transports.vhost_user.offer import AS_USUAL, ProtocolChange
from virtq.transports.vhost_user.outbox import Outbox
from virtq.transports.vhost_user.protocol import BackendProtocol, Outgoing, Refusal, Reply, Request
from virtq.transports.vhost_user.rings import MAX_QUEUES, split_vring_fd
from virtq.transports.vhost_user.state import (
    USE_YOUR_FD,
    Direction,
    Loading,
    Saving,
    Transfer,
    check_pipe,
)
from virtq.transports.vhost_user.translation import Translations
from virtq.transports.vhost_user.vrings import RingError, Vrings, reason
from virtq.transports.vhost_user.wire import (
    U64,
    Config,
    DeviceState,
    Inflight,
    Iotlb,
    IotlbType,
    LogBase,
    Payload,
    ProtocolError,
    Region,
    RegionTable,
    VringAddress,
    VringState,
)

log = logging.getLogger("virtq.vhost_user")

OFFERED = (
    P.MQ
    | P.LOG_SHMFD
    | P.REPLY_ACK
    | P.BACKEND_REQ
    | P.BACKEND_SEND_FD
    | P.INFLIGHT_SHMFD
    | P.GET_VRING_BASE_INFLIGHT
    | P.RESET_DEVICE
    | P.CONFIGURE_MEM_SLOTS
    | P.STATUS
)
"""Protocol features of every back-end; CONFIG comes with a configuration space. One that a device
type adds (RARP, MTU) goes here, and its requests into `_HANDLERS`."""


class Echo(NamedTuple):
    """An answer that is the request's own payload, changed; the front-end confirms it."""

    payload: Payload


_FEATURES_OK = 8
_DRAIN_S = 2.0
"""How long a ring that is to be stopped may take to finish what the device holds of it."""


def offered_features(device: DeviceSide) -> int:
    """The feature bits that a back-end for this device offers."""
    # vhost-user has messages for the status, but none that says how to suspend with them.
    features = int(device.offered_features) & ~(TRANSPORT_FEATURES | F.SUSPEND)
    if not isinstance(device, TranslatedDevice):
        features &= ~int(F.ACCESS_PLATFORM)
    return features | TRANSPORT_FEATURES


def offered_protocol_features(device: DeviceSide, change: ProtocolChange = AS_USUAL) -> P:
    """The protocol features that a back-end for this device offers. Raises FeatureError."""
    usual = OFFERED | (P.CONFIG if device.config_size else P(0))
    if _has_state(device):
        usual |= P.DEVICE_STATE
    if postcopy.is_possible():
        usual |= P.PAGEFAULT
    return change.apply(usual)


def _has_state(device: DeviceSide) -> TypeGuard[StatefulDevice]:
    return isinstance(device, StatefulDevice) and device.has_state


class Session:
    """Serves one connected front-end. The socket stays the caller's to close."""

    def __init__(
        self,
        device: DeviceSide,
        sock: socket.socket,
        name: str,
        protocol: ProtocolChange = AS_USUAL,
    ) -> None:
        self._device = device
        self._sock = sock
        self._name = name
        self._protocol = BackendProtocol(
            offered_features(device),
            offered_protocol_features(device, protocol),
            device.queue_sizes[:MAX_QUEUES],
        )
        self._negotiation = self._protocol.negotiation
        self._guest = Guest()
        self._translations = Translations(self._ask_translation, name)
        self._inflight = HeldRegion()
        self._vrings = Vrings(
            device, self._guest, self._negotiation, self._missed, name, self._inflight
        )
        self._inband = BackNotifications(self._notify_inband)
        self._transfer: Transfer | None = None
        self._later: asyncio.Future[None] | None = None
        self._postcopy = postcopy.Postcopy()
        self._told_events: set[tuple[Back, int]] = set()
        self._outbox = Outbox(sock)
        self._asking = Asking(self._protocol, name, self._acknowledged, self._no_answers)
        self._config_changed = False
        self._features_refused = False

    async def run(self) -> None:
        """Serve until the front-end leaves. Raises TransportError (ProtocolError for a violation of
        the protocol) if it does not leave in good order."""
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._sock.setblocking(False)
        try:
            self._device.on_config_change(self._notify_config_change)
            if isinstance(self._device, TranslatedDevice):
                self._device.on_translation_miss(self._queue_missed)
            self._loop.add_reader(self._sock, self._readable)
            await self._done
        finally:
            self._close()
            if self._later is not None:
                await asyncio.wait([self._later])

    def _close(self) -> None:
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        if self._later is not None:
            self._later.cancel()
        self._asking.close()
        clean_ups = (
            self._postcopy.close,  # first: a data path that waits for a page cannot be stopped
            self._vrings.close,
            self._inband.close,
            self._end_transfer,
            self._release_device,
            self._guest.close,
            self._inflight.forget,
        )
        for clean_up in clean_ups:
            try:
                clean_up()
            except Exception:
                log.exception("%s: cleaning up after the front-end", self._name)
        self._protocol.close()

    def _release_device(self) -> None:
        self._device.on_config_change(None)
        if isinstance(self._device, TranslatedDevice):
            self._device.on_translation_miss(None)
        self._device.reset()

    def _finish(self, error: Exception | None = None) -> None:
        if self._done.done():
            return
        if error is None:
            self._done.set_result(None)
            return
        if not isinstance(error, TransportError):
            log.error("%s: not expected", self._name, exc_info=error)
            error = TransportError(f"{self._name}: {type(error).__name__}: {error}")
        # Where it was raised would keep the front-end's memory alive as long as the error.
        error.__traceback__ = error.__context__ = error.__cause__ = None
        self._done.set_exception(error)

    # ------------------------------------------------------------ the main channel

    def _readable(self) -> None:
        main = self._protocol.main
        try:
            data, fds = channel.receive(self._sock, main.wanted)
            if not data:
                main.end_of_stream()
                self._finish()
                return
            main.receive(data, fds)
            while (event := main.next_request()) is not None:
                if (held := self._must_finish(event)) is not None:
                    self._loop.remove_reader(self._sock)
                    self._later = asyncio.ensure_future(self._answer_later(event, held))
                    return
                self._send(self._answer(event))
        except (BlockingIOError, InterruptedError):
            return
        except ConnectionError:
            self._finish()
        except Exception as error:
            self._finish(error)

    def _must_finish(self, event: Request | Refusal) -> Awaitable[object] | None:
        """What has to be waited for before a request is answered: GET_VRING_BASE stops a ring when
        what the device holds of it is done, unless that is recorded for the next owner."""
        if not isinstance(event, Request) or not isinstance(event.payload, VringState):
            return None
        recorded = self._negotiation.has(P.GET_VRING_BASE_INFLIGHT) and self._inflight.region
        if event.message.code != Front.GET_VRING_BASE or recorded:
            return None
        if not isinstance(self._device, DrainingDevice):
            return None
        return self._device.drain_queue(event.payload.ring)

    async def _answer_later(self, event: Request | Refusal, held: Awaitable[object]) -> None:
        """Nothing more is read from the front-end meanwhile; who leaves is noticed afterwards."""
        try:
            await asyncio.wait_for(held, _DRAIN_S)
        except TimeoutError:
            log.warning("%s: a ring is stopped with requests unfinished", self._name)
        except Exception as error:
            self._finish(error)
            return
        if self._done.done():
            return
        self._loop.add_reader(self._sock, self._readable)
        try:
            self._send(self._answer(event))
        except ConnectionError:
            self._finish()
        except Exception as error:
            self._finish(error)

    def _send(self, outgoing: Outgoing) -> None:
        self._outbox.put(outgoing)
        if not self._outbox.flush():
            # A front-end that does not read its replies is not listened to either.
            self._loop.remove_reader(self._sock)
            self._loop.add_writer(self._sock, self._writable)

    def _writable(self) -> None:
        try:
            if self._outbox.flush():
                self._loop.remove_writer(self._sock)
                self._loop.add_reader(self._sock, self._readable)
        except OSError:
            self._finish()

    def _answer(self, event: Request | Refusal) -> Outgoing:
        if isinstance(event, Refusal):
            level = _level(event.error.message)
            log.log(level, "%s: refused: %s", self._name, str(event.error))
            return event.answer
        log.debug("%s: %s %s", self._name, event.message.name, event.payload)
        main = self._protocol.main
        with event.fds:
            try:
                reply = self._carry_out(event)
            except RingError as error:
                log.warning("%s: %s: %s", self._name, event.message.name, str(error))
                return main.ignore(event)
            except (VirtqError, ValueError, OSError) as error:
                level = _level(event.message.name)
                log.log(level, "%s: %s failed: %s", self._name, event.message.name, reason(error))
                return main.refuse(event, error)
            except Exception as error:
                log.exception("%s: %s failed", self._name, event.message.name)
                return main.refuse(event, error)
        if isinstance(reply, Echo):
            return main.echo(event, reply.payload)
        if isinstance(reply, Answer):
            return main.accept(event, reply.payload, reply.fds)
        return main.accept(event, reply)

    def _carry_out(self, request: Request) -> Payload | Answer | Echo | None:
        handler = _HANDLERS.get(request.message.code)
        if handler is None:
            name, code = request.message.name, int(request.message.code)
            raise ProtocolError(name, "request", code, "this back-end does not know it")
        return handler(self, request, request.payload)

    # ------------------------------------------------------------ what each request does

    def _get_features(self, request: Request, payload: None) -> Payload:
        return U64(self._negotiation.offered)

    def _set_features(self, request: Request, payload: U64) -> None:
        features = payload.value
        own = features & ~TRANSPORT_FEATURES
        known = self._negotiation.features
        if known is None or own != known & ~TRANSPORT_FEATURES:
            self._features_refused = True
            self._device.accept_features(own)
            self._features_refused = False
        self._guest.use_features(features)
        self._vrings.memory_changed()
        if not features & PROTOCOL_FEATURES:
            self._vrings.enable_all(True)

    def _get_protocol_features(self, request: Request, payload: None) -> Payload:
        return U64(self._negotiation.offered_protocol)

    def _nothing_to_do(self, request: Request, payload: Payload | None) -> None:
        """The protocol's own bookkeeping is all that this request needs."""

    def _reset_owner(self, request: Request, payload: None) -> None:
        self._vrings.enable_all(False)

    def _set_mem_table(self, request: Request, payload: RegionTable | U64) -> Echo | None:
        if isinstance(payload, U64):
            self._confirm_memory(payload)
            return None
        self._guest.set_table(payload.regions, request.fds)
        if self._postcopy.listening:
            return Echo(RegionTable(tuple(map(self._locate, payload.regions))))
        self._vrings.memory_changed()
        return None

    def _add_mem_reg(self, request: Request, payload: Region | U64) -> Echo | None:
        if isinstance(payload, U64):
            self._confirm_memory(payload)
            return None
        self._guest.add(payload, request.fds.peek())
        if self._postcopy.listening:
            return Echo(self._locate(payload))
        self._vrings.memory_changed()
        return None

    def _locate(self, region: Region) -> Region:
        return self._postcopy.locate(region, self._guest.memory)

    def _confirm_memory(self, payload: U64) -> None:
        if payload.value:
            raise TransportError(f"the front-end cannot tell faults ({payload.value:#x})")
        self._postcopy.register(self._guest.memory)
        self._vrings.memory_changed()

    def _postcopy_advise(self, request: Request, payload: None) -> Answer:
        return Answer(None, (self._postcopy.advise(self._sock.fileno()),))

    def _postcopy_listen(self, request: Request, payload: None) -> None:
        self._postcopy.listen(self._guest.memory)

    def _postcopy_end(self, request: Request, payload: None) -> Payload:
        self._postcopy.end()
        return U64(0)

    def _rem_mem_reg(self, request: Request, payload: Region) -> None:
        self._guest.remove(payload)
        self._vrings.memory_changed()

    def _get_max_mem_slots(self, request: Request, payload: None) -> Payload:
        return U64(MAX_SLOTS)

    def _set_log_base(self, request: Request, payload: LogBase) -> Payload:
        self._guest.set_log(payload, request.fds.take())
        self._vrings.memory_changed()
        return U64(0)

    def _set_log_fd(self, request: Request, payload: None) -> None:
        channel.check_event(request.message.name, request.fds.peek())
        self._guest.set_log_event(request.fds.take())

    def _set_vring_addr(self, request: Request, payload: VringAddress) -> None:
        self._negotiation.rings[payload.ring].address = payload
        self._vrings.log_used(payload.ring)

    def _get_vring_base(self, request: Request, payload: VringState) -> Payload:
        base = self._vrings.stop(payload.ring)
        if not self._vrings.any_live:
            self._forget_translations()
        return VringState(payload.ring, base)

    def _set_vring_kick(self, request: Request, payload: U64) -> None:
        index, fd = _take_event(request, payload)
        self._start(index, fd)

    def _start(self, index: int, kick: int | None) -> None:
        if self._negotiation.has(P.INBAND_NOTIFICATIONS):
            self._connect_inband(index)
        self._vrings.start(index, kick)
        self._tell_config_change()

    def _connect_inband(self, index: int) -> None:
        """Have a ring notify by messages, where the front-end has told no descriptor for it."""
        for code, connect in (
            (Back.VRING_CALL, self._vrings.set_call),
            (Back.VRING_ERR, self._vrings.set_err),
        ):
            if (code, index) not in self._told_events:
                connect(index, self._inband.event(code, index))

    def _vring_kick(self, request: Request, payload: VringState) -> None:
        if not self._negotiation.rings[payload.ring].started:
            self._start(payload.ring, new_event())
        self._vrings.kick(payload.ring)

    def _set_vring_call(self, request: Request, payload: U64) -> None:
        index, fd = _take_event(request, payload)
        self._told_events.add((Back.VRING_CALL, index))
        self._vrings.set_call(index, fd)

    def _set_vring_err(self, request: Request, payload: U64) -> None:
        index, fd = _take_event(request, payload)
        self._told_events.add((Back.VRING_ERR, index))
        self._vrings.set_err(index, fd)

    def _set_vring_enable(self, request: Request, payload: VringState) -> None:
        self._vrings.enable(payload.ring, bool(payload.num))

    def _get_queue_num(self, request: Request, payload: None) -> Payload:
        return U64(len(self._negotiation.rings))

    def _set_backend_req_fd(self, request: Request, payload: None) -> None:
        other = channel.adopt(request.fds.peek())
        request.fds.take()
        self._asking.open(other)
        self._look_again()
        self._inband.tell_due()

    def _iotlb_msg(self, request: Request, payload: Iotlb) -> Payload:
        self._guest.translate(payload)
        if payload.type == IotlbType.INVALIDATE:
            self._vrings.translations_lost()
            return U64(0)
        self._translations.updated(payload)
        self._look_again()
        return U64(0)

    def _look_again(self) -> None:
        """Go on with everything that waits for a translation; what still misses one asks again."""
        self._vrings.retry()
        if isinstance(self._device, TranslatedDevice):
            for index in self._translations.take_waiting():
                self._device.retry_queue(index)

    def _get_config(self, request: Request, payload: Config) -> Payload:
        self._check_config_range(payload)
        data = self._device.read_config(payload.offset, payload.size)
        return Config(payload.offset, payload.size, payload.flags, data)

    def _set_config(self, request: Request, payload: Config) -> None:
        self._check_config_range(payload)
        self._device.write_config(payload.offset, payload.data)

    def _check_config_range(self, config: Config) -> None:
        end, size = config.offset + config.size, self._device.config_size
        if not config.size or end > size:
            raise ConfigError(f"{config.offset} to {end} of a configuration space of {size} bytes")

    def _set_device_state_fd(self, request: Request, payload: DeviceState) -> Payload:
        assert _has_state(self._device)
        self._end_transfer()
        direction = Direction(payload.direction)
        check_pipe(request.fds.peek(), direction)
        kind = Saving if direction is Direction.SAVE else Loading
        self._transfer = kind(self._device, request.fds.peek(), self._name)
        request.fds.take()
        return USE_YOUR_FD

    def _check_device_state(self, request: Request, payload: None) -> Payload:
        error = "no transfer was begun" if self._transfer is None else self._transfer.result()
        self._end_transfer()
        if error is not None:
            raise TransportError(error)
        return U64(0)

    def _end_transfer(self) -> None:
        if self._transfer is not None:
            self._transfer.close()
            self._transfer = None

    def _set_status(self, request: Request, payload: U64) -> None:
        if not payload.value:
            self._reset()
        elif self._features_refused and payload.value & _FEATURES_OK:
            raise ConfigError("FEATURES_OK, but the device does not accept the features")

    def _get_status(self, request: Request, payload: None) -> Payload:
        return U64(self._negotiation.status)

    def _reset_device(self, request: Request, payload: None) -> None:
        self._reset()

    def _reset(self) -> None:
        """Device and rings; memory, descriptors and protocol features are the connection's."""
        self._vrings.stop_all()
        self._inflight.forget()
        self._forget_translations()
        self._device.reset()
        self._features_refused = False

    def _get_inflight_fd(self, request: Request, payload: Inflight) -> Answer:
        # Before the features are known the larger layout has room for either.
        packed = self._negotiation.packed or self._negotiation.features is None
        return self._inflight.make(payload, packed)

    def _set_inflight_fd(self, request: Request, payload: Inflight) -> None:
        self._inflight.use(payload, request.fds.peek(), self._negotiation.packed)

    # ------------------------------------------------------------ the other channel

    def _forget_translations(self) -> None:
        self._guest.forget_translations()
        self._translations.forget()

    def _missed(self, miss: TranslationMiss, index: int | None = None) -> None:
        try:
            self._translations.miss(miss, index)
        except ProtocolError as error:
            log.warning("%s: the other channel is closed: %s", self._name, str(error))
            self._asking.close()

    def _queue_missed(self, index: int, miss: TranslationMiss) -> None:
        self._missed(miss, index)

    def _ask_translation(self, question: Iotlb) -> bool:
        return self._asking.tell(Back.IOTLB_MSG, question, ack=True)

    def _notify_inband(self, code: Back, ring: VringState) -> bool:
        return self._asking.tell(code, ring, ack=True)

    def _notify_config_change(self) -> None:
        self._config_changed = True
        self._tell_config_change()

    def _tell_config_change(self) -> None:
        # While all rings are stopped a back-end sends nothing of its own; it is made up for later.
        if (
            self._config_changed
            and self._vrings.any_live
            and self._negotiation.has(P.CONFIG | P.BACKEND_REQ)
        ):
            self._config_changed = False
            self._asking.tell(Back.CONFIG_CHANGE)

    def _acknowledged(self, reply: Reply) -> None:
        if isinstance(reply.request, Iotlb):
            self._translations.acknowledged(reply.request, reply.payload == U64(0))
        elif isinstance(reply.request, VringState):
            self._inband.acknowledged(Back(reply.message.code), reply.request.ring)

    def _no_answers(self) -> None:
        self._translations.forget()
        self._inband.channel_lost()


def _level(message: str) -> int:
    """How loud a refusal is: front-ends find sizes by asking for too much."""
    probing = (Front.GET_CONFIG.name, Front.SET_VRING_NUM.name)
    return logging.INFO if message in probing else logging.WARNING


def _take_event(request: Request, payload: U64) -> tuple[int, int | None]:
    """(ring index, descriptor that is the caller's now) of SET_VRING_KICK, CALL and ERR."""
    name = request.message.name
    index, has_fd = split_vring_fd(name, payload.value)
    if not has_fd:
        return index, None
    channel.check_event(name, request.fds.peek())
    return index, request.fds.take()


_Handler = Callable[..., Payload | Answer | Echo | None]

_HANDLERS: Mapping[int, _Handler] = {
    Front.GET_FEATURES: Session._get_features,
    Front.SET_FEATURES: Session._set_features,
    Front.SET_OWNER: Session._nothing_to_do,
    Front.RESET_OWNER: Session._reset_owner,
    Front.SET_MEM_TABLE: Session._set_mem_table,
    Front.SET_LOG_BASE: Session._set_log_base,
    Front.SET_LOG_FD: Session._set_log_fd,
    Front.SET_VRING_NUM: Session._nothing_to_do,
    Front.SET_VRING_ADDR: Session._set_vring_addr,
    Front.SET_VRING_BASE: Session._nothing_to_do,
    Front.GET_VRING_BASE: Session._get_vring_base,
    Front.SET_VRING_KICK: Session._set_vring_kick,
    Front.SET_VRING_CALL: Session._set_vring_call,
    Front.SET_VRING_ERR: Session._set_vring_err,
    Front.GET_PROTOCOL_FEATURES: Session._get_protocol_features,
    Front.SET_PROTOCOL_FEATURES: Session._nothing_to_do,
    Front.GET_QUEUE_NUM: Session._get_queue_num,
    Front.SET_VRING_ENABLE: Session._set_vring_enable,
    Front.VRING_KICK: Session._vring_kick,
    Front.SET_BACKEND_REQ_FD: Session._set_backend_req_fd,
    Front.IOTLB_MSG: Session._iotlb_msg,
    Front.GET_CONFIG: Session._get_config,
    Front.SET_CONFIG: Session._set_config,
    Front.GET_INFLIGHT_FD: Session._get_inflight_fd,
    Front.SET_INFLIGHT_FD: Session._set_inflight_fd,
    Front.RESET_DEVICE: Session._reset_device,
    Front.SET_DEVICE_STATE_FD: Session._set_device_state_fd,
    Front.CHECK_DEVICE_STATE: Session._check_device_state,
    Front.POSTCOPY_ADVISE: Session._postcopy_advise,
    Front.POSTCOPY_LISTEN: Session._postcopy_listen,
    Front.POSTCOPY_END: Session._postcopy_end,
    Front.GET_MAX_MEM_SLOTS: Session._get_max_mem_slots,
    Front.ADD_MEM_REG: Session._add_mem_reg,
    Front.REM_MEM_REG: Session._rem_mem_reg,
    Front.SET_STATUS: Session._set_status,
    Front.GET_STATUS: Session._get_status,
}
