"""What each request of a front-end does: to its memory (`Guest`), its rings (`Vrings`), the device.

The protocol has checked the form of what arrives here, and that its time has come. What a request
cannot do it raises, and the session refuses it. What a back-end asks of its own, on the other
channel, starts and ends here as well: translations, notifications, a changed configuration.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from virtq.errors import ConfigError, TranslationMiss, TransportError
from virtq.status import Status
from virtq.transports.base import DeviceSide, DrainingDevice, TranslatedDevice
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
from virtq.transports.vhost_user.offer import has_state
from virtq.transports.vhost_user.protocol import BackendProtocol, Reply, Request
from virtq.transports.vhost_user.rings import split_vring_fd
from virtq.transports.vhost_user.state import (
    USE_YOUR_FD,
    Direction,
    Loading,
    Saving,
    Transfer,
    check_pipe,
)
from virtq.transports.vhost_user.translation import Translations
from virtq.transports.vhost_user.vrings import Vrings
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


class Echo(NamedTuple):
    """An answer that is the request's own payload, changed; the front-end confirms it."""

    payload: Payload


class Requests:
    """Carries out the requests of one connected front-end, whose socket is `fileno`."""

    def __init__(
        self, device: DeviceSide, protocol: BackendProtocol, fileno: int, name: str
    ) -> None:
        self._device = device
        self._fileno = fileno
        self._name = name
        self._negotiation = protocol.negotiation
        self._guest = Guest()
        self._translations = Translations(self._ask_translation, name)
        self._inflight = HeldRegion()
        self._vrings = Vrings(
            device, self._guest, self._negotiation, self._missed, name, self._inflight
        )
        self._inband = BackNotifications(self._notify_inband)
        self._transfer: Transfer | None = None
        self._postcopy = postcopy.Postcopy()
        self._told_events: set[tuple[Back, int]] = set()
        self._asking = Asking(protocol, name, self._acknowledged, self._no_answers)
        self._config_changed = False
        self._features_refused = False

    def begin(self) -> None:
        """Have the device say what it has to say of its own."""
        self._device.on_config_change(self._notify_config_change)
        if isinstance(self._device, TranslatedDevice):
            self._device.on_translation_miss(self._queue_missed)

    def close(self) -> None:
        """Let go of everything that the front-end has shared. What fails is logged."""
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

    def _release_device(self) -> None:
        self._device.on_config_change(None)
        if isinstance(self._device, TranslatedDevice):
            self._device.on_translation_miss(None)
        self._device.reset()

    def must_finish(self, request: Request) -> Awaitable[object] | None:
        """What has to be waited for before a request is carried out: GET_VRING_BASE stops a ring
        when what the device holds of it is done, unless that is recorded for the next owner."""
        if not isinstance(request.payload, VringState):
            return None
        recorded = self._negotiation.has(P.GET_VRING_BASE_INFLIGHT) and self._inflight.region
        if request.message.code != Front.GET_VRING_BASE or recorded:
            return None
        if not isinstance(self._device, DrainingDevice):
            return None
        return self._device.drain_queue(request.payload.ring)

    def carry_out(self, request: Request) -> Payload | Answer | Echo | None:
        """Returns what is to be answered, None for a request that has no reply of its own. Raises
        RingError where one ring cannot be served; whatever else is raised is a refusal."""
        handler = HANDLERS.get(request.message.code)
        if handler is None:
            name, code = request.message.name, int(request.message.code)
            raise ProtocolError(name, "request", code, "this back-end does not know it")
        return handler(self, request, request.payload)

    # ------------------------------------------------------------ features and owner

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

    # ------------------------------------------------------------ memory

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
        return Answer(None, (self._postcopy.advise(self._fileno),))

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

    # ------------------------------------------------------------ virtqueues

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

    # ------------------------------------------------------------ translations

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

    # ------------------------------------------------------------ the device

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
        assert has_state(self._device)
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
        elif self._features_refused and payload.value & Status.FEATURES_OK:
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

    # ------------------------------------------------------------ what the back-end says of its own

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


def _take_event(request: Request, payload: U64) -> tuple[int, int | None]:
    """(ring index, descriptor that is the caller's now) of SET_VRING_KICK, CALL and ERR."""
    name = request.message.name
    index, has_fd = split_vring_fd(name, payload.value)
    if not has_fd:
        return index, None
    channel.check_event(name, request.fds.peek())
    return index, request.fds.take()


_Handler = Callable[..., Payload | Answer | Echo | None]

HANDLERS: Mapping[int, _Handler] = {
    Front.GET_FEATURES: Requests._get_features,
    Front.SET_FEATURES: Requests._set_features,
    Front.SET_OWNER: Requests._nothing_to_do,
    Front.RESET_OWNER: Requests._reset_owner,
    Front.SET_MEM_TABLE: Requests._set_mem_table,
    Front.SET_LOG_BASE: Requests._set_log_base,
    Front.SET_LOG_FD: Requests._set_log_fd,
    Front.SET_VRING_NUM: Requests._nothing_to_do,
    Front.SET_VRING_ADDR: Requests._set_vring_addr,
    Front.SET_VRING_BASE: Requests._nothing_to_do,
    Front.GET_VRING_BASE: Requests._get_vring_base,
    Front.SET_VRING_KICK: Requests._set_vring_kick,
    Front.SET_VRING_CALL: Requests._set_vring_call,
    Front.SET_VRING_ERR: Requests._set_vring_err,
    Front.GET_PROTOCOL_FEATURES: Requests._get_protocol_features,
    Front.SET_PROTOCOL_FEATURES: Requests._nothing_to_do,
    Front.GET_QUEUE_NUM: Requests._get_queue_num,
    Front.SET_VRING_ENABLE: Requests._set_vring_enable,
    Front.VRING_KICK: Requests._vring_kick,
    Front.SET_BACKEND_REQ_FD: Requests._set_backend_req_fd,
    Front.IOTLB_MSG: Requests._iotlb_msg,
    Front.GET_CONFIG: Requests._get_config,
    Front.SET_CONFIG: Requests._set_config,
    Front.GET_INFLIGHT_FD: Requests._get_inflight_fd,
    Front.SET_INFLIGHT_FD: Requests._set_inflight_fd,
    Front.RESET_DEVICE: Requests._reset_device,
    Front.SET_DEVICE_STATE_FD: Requests._set_device_state_fd,
    Front.CHECK_DEVICE_STATE: Requests._check_device_state,
    Front.POSTCOPY_ADVISE: Requests._postcopy_advise,
    Front.POSTCOPY_LISTEN: Requests._postcopy_listen,
    Front.POSTCOPY_END: Requests._postcopy_end,
    Front.GET_MAX_MEM_SLOTS: Requests._get_max_mem_slots,
    Front.ADD_MEM_REG: Requests._add_mem_reg,
    Front.REM_MEM_REG: Requests._rem_mem_reg,
    Front.SET_STATUS: Requests._set_status,
    Front.GET_STATUS: Requests._get_status,
}
