"""What both ends of a vhost-user connection have agreed on so far, and what that allows.

One object for both roles: the back-end asks it about every request that arrives, the front-end
about every request that it is about to send. `check` says whether a request may come now,
`apply` takes in a request that was carried out. Nothing happens to devices here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from virtq.features import F
from virtq.transports.vhost_user.inflight import check_numbers
from virtq.transports.vhost_user.messages import LOG_ALL, PROTOCOL_FEATURES, Front, Message, P
from virtq.transports.vhost_user.rings import (
    MAX_QUEUE_SIZE,
    Ring,
    check_enable,
    ring_of,
    split_vring_fd,
)
from virtq.transports.vhost_user.wire import (
    CONFIG_LIVE_MIGRATION,
    MAX_CONFIG_BYTES,
    U64,
    Config,
    DeviceState,
    Inflight,
    Iotlb,
    IotlbType,
    Payload,
    ProtocolError,
    VringAddress,
    VringState,
)

_INBAND_NEEDS = P.BACKEND_REQ | P.REPLY_ACK


class Negotiation:
    """Features, protocol features, ownership, status and rings of one connection."""

    def __init__(
        self, offered: int = 0, offered_protocol: int = 0, queue_sizes: Sequence[int] = ()
    ) -> None:
        self.offered = offered
        self.offered_protocol = P(offered_protocol)
        self.features: int | None = None
        """None until SET_FEATURES."""
        self.protocol = P(0)
        self.owned = False
        self.status = 0
        self.rings = [Ring(i, min(size, MAX_QUEUE_SIZE)) for i, size in enumerate(queue_sizes)]

    def has(self, feature: P) -> bool:
        """Whether a protocol feature has been negotiated."""
        return feature in self.protocol

    @property
    def packed(self) -> bool:
        return bool((self.features or 0) & F.RING_PACKED)

    @property
    def any_started(self) -> bool:
        return any(ring.started for ring in self.rings)

    def check(self, message: Message, payload: Payload | None) -> None:
        """Raises ProtocolError if this request of the front-end must not come now."""
        self.check_needs(message)
        check = _CHECKS.get(message.code)
        if check is not None:
            check(self, message.name, payload)

    def check_needs(self, message: Message) -> None:
        """Raises ProtocolError if a request, of either side, lacks its protocol feature."""
        have = self.protocol
        if message.offer_is_enough:
            have |= self.offered_protocol
        if missing := message.needs & ~have:
            raise ProtocolError(message.name, "needs", missing.name, "was not negotiated")

    def apply(self, message: Message, payload: Payload | None) -> None:
        """A request that `check` let pass has been carried out."""
        apply = _APPLIES.get(message.code)
        if apply is not None:
            apply(self, payload)

    def reset_rings(self, keep_enabled: bool) -> None:
        """Every ring is stopped; sizes, addresses and bases are kept until they are set again."""
        for ring in self.rings:
            ring.started = False
            ring.enabled = ring.enabled and keep_enabled

    # ------------------------------------------------------------ checks

    def _check_features(self, name: str, payload: U64) -> None:
        _check_bits(name, payload.value, self.offered)
        fixed = ~LOG_ALL
        if self.any_started and (payload.value ^ (self.features or 0)) & fixed:
            raise ProtocolError(name, "payload", hex(payload.value), "a ring is started")

    def _check_has_protocol(self, name: str, payload: object) -> None:
        if not self.offered & PROTOCOL_FEATURES:
            raise ProtocolError(name, "needs", "PROTOCOL_FEATURES", "was not offered")

    def _check_protocol(self, name: str, payload: U64) -> None:
        self._check_has_protocol(name, payload)
        _check_bits(name, payload.value, self.offered_protocol)
        chosen = P(payload.value)
        if P.INBAND_NOTIFICATIONS in chosen and _INBAND_NEEDS not in chosen:
            missing = _INBAND_NEEDS & ~chosen
            raise ProtocolError(name, "payload", chosen, f"INBAND_NOTIFICATIONS needs {missing}")
        if P.GET_VRING_BASE_INFLIGHT in chosen and P.INFLIGHT_SHMFD not in chosen:
            raise ProtocolError(
                name, "payload", chosen, "GET_VRING_BASE_INFLIGHT needs INFLIGHT_SHMFD"
            )

    def _check_ring(self, name: str, payload: VringState) -> None:
        ring_of(self.rings, name, payload.ring)

    def _check_num(self, name: str, payload: VringState) -> None:
        ring_of(self.rings, name, payload.ring).check_num(name, payload.num)

    def _check_address(self, name: str, payload: VringAddress) -> None:
        ring_of(self.rings, name, payload.ring).check_address(name, payload)

    def _check_base(self, name: str, payload: VringState) -> None:
        # Before SET_FEATURES the layout is not known: let it pass as the wider one.
        packed = self.packed or self.features is None
        ring_of(self.rings, name, payload.ring).check_base(name, payload.num, packed)

    def _check_vring_fd(self, name: str, payload: U64) -> None:
        index, _ = split_vring_fd(name, payload.value)
        ring_of(self.rings, name, index)

    def _check_kick(self, name: str, payload: U64) -> None:
        index, _ = split_vring_fd(name, payload.value)
        ring_of(self.rings, name, index).check_kick(name)
        if self.features is None:
            raise ProtocolError(name, "index", index, "no features are set")

    def _check_inband_kick(self, name: str, payload: VringState) -> None:
        ring = ring_of(self.rings, name, payload.ring)
        if payload.num:
            raise ProtocolError(name, "num", payload.num, "reserved, and not 0")
        if not ring.started:
            self._check_kick(name, U64(payload.ring))

    def _check_enable(self, name: str, payload: VringState) -> None:
        # Only a front-end that has declined the bit must not: QEMU enables before SET_FEATURES.
        self._check_has_protocol(name, payload)
        if self.features is not None and not self.features & PROTOCOL_FEATURES:
            raise ProtocolError(name, "needs", "PROTOCOL_FEATURES", "was not negotiated")
        ring_of(self.rings, name, payload.ring)
        check_enable(name, payload)

    def _check_iotlb(self, name: str, payload: Iotlb) -> None:
        if not (self.features or 0) & F.ACCESS_PLATFORM:
            raise ProtocolError(name, "needs", "ACCESS_PLATFORM", "was not negotiated")
        if payload.type not in (IotlbType.UPDATE, IotlbType.INVALIDATE):
            raise ProtocolError(name, "type", payload.type, "neither update nor invalidate")

    def _check_config(self, name: str, payload: Config) -> None:
        if payload.offset + payload.size > MAX_CONFIG_BYTES:
            end = payload.offset + payload.size
            raise ProtocolError(name, "offset + size", end, f"more than {MAX_CONFIG_BYTES}")
        if payload.flags > CONFIG_LIVE_MIGRATION:
            raise ProtocolError(name, "flags", hex(payload.flags), "neither 0 nor 1")

    def _check_device_state(self, name: str, payload: DeviceState) -> None:
        if payload.direction > 1:
            raise ProtocolError(name, "direction", payload.direction, "neither save nor load")
        if payload.phase:
            raise ProtocolError(name, "phase", payload.phase, "not that of a stopped device")
        for ring in self.rings:
            if ring.started:
                raise ProtocolError(name, "phase", payload.phase, f"ring {ring.index} is started")

    def _check_status(self, name: str, payload: U64) -> None:
        if payload.value > 0xFF:
            raise ProtocolError(name, "payload", hex(payload.value), "more than a byte")

    def _check_inflight(self, name: str, payload: Inflight) -> None:
        check_numbers(name, payload, len(self.rings))

    def _check_set_inflight(self, name: str, payload: Inflight) -> None:
        self._check_inflight(name, payload)
        if self.any_started:
            raise ProtocolError(name, "num_queues", payload.num_queues, "a ring is started")

    # ------------------------------------------------------------ effects

    def _set_features(self, payload: U64) -> None:
        self.features = payload.value
        if not payload.value & PROTOCOL_FEATURES:
            for ring in self.rings:
                ring.enabled = True

    def _set_protocol(self, payload: U64) -> None:
        self.protocol = P(payload.value)

    def _set_owner(self, payload: None) -> None:
        self.owned = True

    def _reset_owner(self, payload: None) -> None:
        self.owned = False
        for ring in self.rings:
            ring.enabled = False

    def _set_num(self, payload: VringState) -> None:
        self.rings[payload.ring].num = payload.num

    def _set_address(self, payload: VringAddress) -> None:
        self.rings[payload.ring].address = payload

    def _set_base(self, payload: VringState) -> None:
        self.rings[payload.ring].base = payload.num

    def _start(self, payload: U64) -> None:
        self.rings[split_vring_fd("", payload.value)[0]].started = True

    def _start_inband(self, payload: VringState) -> None:
        self.rings[payload.ring].started = True

    def _stop(self, payload: VringState) -> None:
        self.rings[payload.ring].started = False

    def _set_enable(self, payload: VringState) -> None:
        self.rings[payload.ring].enabled = bool(payload.num)

    def _set_status(self, payload: U64) -> None:
        self.status = payload.value
        if not payload.value:
            self.features = None
            self.reset_rings(keep_enabled=True)

    def _reset_device(self, payload: None) -> None:
        self.status = 0
        self.features = None
        self.reset_rings(keep_enabled=False)


def _check_bits(name: str, value: int, offered: int) -> None:
    # An inverted flag lacks the bits that its class does not know; an inverted number has them.
    if surplus := value & ~int(offered):
        raise ProtocolError(name, "payload", hex(value), f"{surplus:#x} was not offered")


_CHECKS: Mapping[int, Callable[..., None]] = {
    Front.SET_FEATURES: Negotiation._check_features,
    Front.GET_PROTOCOL_FEATURES: Negotiation._check_has_protocol,
    Front.SET_PROTOCOL_FEATURES: Negotiation._check_protocol,
    Front.SET_VRING_NUM: Negotiation._check_num,
    Front.SET_VRING_ADDR: Negotiation._check_address,
    Front.SET_VRING_BASE: Negotiation._check_base,
    Front.GET_VRING_BASE: Negotiation._check_ring,
    Front.SET_VRING_KICK: Negotiation._check_kick,
    Front.SET_VRING_CALL: Negotiation._check_vring_fd,
    Front.SET_VRING_ERR: Negotiation._check_vring_fd,
    Front.SET_VRING_ENABLE: Negotiation._check_enable,
    Front.SET_VRING_ENDIAN: Negotiation._check_ring,
    Front.VRING_KICK: Negotiation._check_inband_kick,
    Front.IOTLB_MSG: Negotiation._check_iotlb,
    Front.GET_CONFIG: Negotiation._check_config,
    Front.SET_CONFIG: Negotiation._check_config,
    Front.SET_STATUS: Negotiation._check_status,
    Front.SET_DEVICE_STATE_FD: Negotiation._check_device_state,
    Front.GET_INFLIGHT_FD: Negotiation._check_inflight,
    Front.SET_INFLIGHT_FD: Negotiation._check_set_inflight,
}

_APPLIES: Mapping[int, Callable[..., None]] = {
    Front.SET_FEATURES: Negotiation._set_features,
    Front.SET_PROTOCOL_FEATURES: Negotiation._set_protocol,
    Front.SET_OWNER: Negotiation._set_owner,
    Front.RESET_OWNER: Negotiation._reset_owner,
    Front.SET_VRING_NUM: Negotiation._set_num,
    Front.SET_VRING_ADDR: Negotiation._set_address,
    Front.SET_VRING_BASE: Negotiation._set_base,
    Front.SET_VRING_KICK: Negotiation._start,
    Front.VRING_KICK: Negotiation._start_inband,
    Front.GET_VRING_BASE: Negotiation._stop,
    Front.SET_VRING_ENABLE: Negotiation._set_enable,
    Front.SET_STATUS: Negotiation._set_status,
    Front.RESET_DEVICE: Negotiation._reset_device,
}
