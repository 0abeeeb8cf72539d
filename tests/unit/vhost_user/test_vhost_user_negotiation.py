"""What may come when: features, protocol features, ring states, and where rings resume."""

from __future__ import annotations

import pytest

from virtq._core import Position
from virtq.features import F
from virtq.transports.vhost_user.messages import (
    FRONT_MESSAGES,
    LOG_ALL,
    PROTOCOL_FEATURES,
    Front,
    Message,
    P,
)
from virtq.transports.vhost_user.negotiation import Negotiation
from virtq.transports.vhost_user.rings import RingState, pack_base, unpack_base
from virtq.transports.vhost_user.wire import (
    NO_FD,
    U64,
    Config,
    Iotlb,
    Payload,
    ProtocolError,
    VringAddress,
    VringState,
)

ALL_PROTOCOL = P((1 << 23) - 1)
OFFERED = F.VERSION_1 | F.RING_PACKED | F.ACCESS_PLATFORM | PROTOCOL_FEATURES | LOG_ALL
PLAIN = F.VERSION_1 | PROTOCOL_FEATURES
ADDRESS = VringAddress(0, 0, 0x1000, 0x2000, 0x3000, 0)


class Told(Negotiation):
    """Two rings, of at most 256 and 64 slots; what `tell` gets is checked and applied."""

    def __init__(self, offered: int = OFFERED) -> None:
        super().__init__(offered, ALL_PROTOCOL, [256, 64])

    def tell(self, code: Front, payload: Payload | None = None) -> None:
        message = FRONT_MESSAGES[code]
        self.check(message, payload)
        self.apply(message, payload)

    def refuses(self, code: Front, payload: Payload | None = None) -> ProtocolError:
        with pytest.raises(ProtocolError) as caught:
            self.check(FRONT_MESSAGES[code], payload)
        assert caught.value.message == code.name
        return caught.value

    def start(self, ring: int = 0) -> None:
        self.tell(Front.SET_VRING_NUM, VringState(ring, 64))
        self.tell(Front.SET_VRING_ADDR, ADDRESS._replace(ring=ring))
        self.tell(Front.SET_VRING_KICK, U64(ring))


@pytest.fixture
def told() -> Told:
    told = Told()
    told.tell(Front.SET_PROTOCOL_FEATURES, U64(ALL_PROTOCOL))
    told.tell(Front.SET_FEATURES, U64(PLAIN))
    return told


# ---------------------------------------------------------------- features


def test_features_beyond_the_offer() -> None:
    assert "0x800000000" in str(Told().refuses(Front.SET_FEATURES, U64(F.IN_ORDER)))


def test_protocol_features_beyond_the_offer() -> None:
    Told().refuses(Front.SET_PROTOCOL_FEATURES, U64(1 << 40))


@pytest.mark.parametrize("code", [Front.GET_PROTOCOL_FEATURES, Front.SET_PROTOCOL_FEATURES])
def test_protocol_features_that_were_not_offered_at_all(code: Front) -> None:
    payload = U64(0) if code is Front.SET_PROTOCOL_FEATURES else None
    assert Told(F.VERSION_1).refuses(code, payload).value == "PROTOCOL_FEATURES"


@pytest.mark.parametrize("beside", [P(0), P.BACKEND_REQ, P.REPLY_ACK])
def test_inband_notifications_need_two_others(beside: P) -> None:
    told = Told()
    told.refuses(Front.SET_PROTOCOL_FEATURES, U64(P.INBAND_NOTIFICATIONS | beside))
    both = P.BACKEND_REQ | P.REPLY_ACK
    told.tell(Front.SET_PROTOCOL_FEATURES, U64(P.INBAND_NOTIFICATIONS | both))


def test_features_do_not_change_under_a_started_ring(told: Told) -> None:
    told.start()
    told.refuses(Front.SET_FEATURES, U64(PLAIN | F.RING_PACKED))
    told.tell(Front.SET_FEATURES, U64(PLAIN | LOG_ALL))
    told.tell(Front.SET_FEATURES, U64(PLAIN))
    told.tell(Front.GET_VRING_BASE, VringState(0, 0))
    told.tell(Front.SET_FEATURES, U64(PLAIN | F.RING_PACKED))


@pytest.mark.parametrize(
    "message", [m for m in FRONT_MESSAGES.values() if m.needs], ids=lambda m: m.name
)
def test_a_request_whose_protocol_feature_is_missing(message: Message) -> None:
    lacking = Negotiation(OFFERED, 0, [256])
    with pytest.raises(ProtocolError) as caught:
        lacking.check_needs(message)
    assert caught.value.value == message.needs.name
    merely_offered = Negotiation(OFFERED, message.needs, [256])
    if message.offer_is_enough:
        merely_offered.check_needs(message)
    else:
        with pytest.raises(ProtocolError):
            merely_offered.check_needs(message)
    merely_offered.protocol = message.needs
    merely_offered.check_needs(message)


def test_owner(told: Told) -> None:
    told.tell(Front.SET_OWNER)
    assert told.owned
    told.tell(Front.RESET_OWNER)
    assert not told.owned


# ---------------------------------------------------------------- ring states


def state_of(told: Told, ring: int = 0) -> RingState:
    return told.rings[ring].state


def test_the_three_states(told: Told) -> None:
    assert state_of(told) is RingState.STOPPED
    told.start()
    assert state_of(told) is RingState.DISABLED
    told.tell(Front.SET_VRING_ENABLE, VringState(0, 1))
    assert state_of(told) is RingState.ENABLED
    told.tell(Front.SET_VRING_ENABLE, VringState(0, 0))
    assert state_of(told) is RingState.DISABLED
    told.tell(Front.GET_VRING_BASE, VringState(0, 0))
    assert state_of(told) is RingState.STOPPED
    assert state_of(told, 1) is RingState.STOPPED


def test_enabling_is_kept_until_the_ring_starts(told: Told) -> None:
    told.tell(Front.SET_VRING_ENABLE, VringState(0, 1))
    assert state_of(told) is RingState.STOPPED
    told.start()
    assert state_of(told) is RingState.ENABLED


def test_enabling_before_any_features() -> None:
    told = Told()
    told.tell(Front.SET_VRING_ENABLE, VringState(0, 1))
    told.tell(Front.SET_FEATURES, U64(PLAIN))
    assert told.rings[0].enabled


def test_declining_protocol_features_enables_every_ring() -> None:
    told = Told()
    told.tell(Front.SET_FEATURES, U64(F.VERSION_1))
    assert all(ring.enabled for ring in told.rings)
    told.refuses(Front.SET_VRING_ENABLE, VringState(0, 1))


def test_enabling_where_it_was_not_offered() -> None:
    Told(F.VERSION_1).refuses(Front.SET_VRING_ENABLE, VringState(0, 1))


@pytest.mark.parametrize("num", [2, 2**32 - 1])
def test_enabling_with_something_else(told: Told, num: int) -> None:
    told.refuses(Front.SET_VRING_ENABLE, VringState(0, num))


def test_reset_owner_disables(told: Told) -> None:
    told.start()
    told.tell(Front.SET_VRING_ENABLE, VringState(0, 1))
    told.tell(Front.RESET_OWNER)
    assert state_of(told) is RingState.DISABLED


@pytest.mark.parametrize("code", [Front.SET_STATUS, Front.RESET_DEVICE])
def test_a_reset_stops_every_ring_and_forgets_features(told: Told, code: Front) -> None:
    told.start()
    told.tell(Front.SET_VRING_ENABLE, VringState(0, 1))
    told.tell(Front.SET_STATUS, U64(15))
    told.tell(code, U64(0) if code is Front.SET_STATUS else None)
    assert told.features is None
    assert told.status == 0
    assert told.protocol == ALL_PROTOCOL
    assert state_of(told) is RingState.STOPPED
    # RESET_DEVICE is to disable all rings; a status of 0 says nothing about that.
    assert told.rings[0].enabled == (code is Front.SET_STATUS)


@pytest.mark.parametrize("missing", ["num", "address", "features"])
def test_starting_too_early(told: Told, missing: str) -> None:
    if missing != "num":
        told.tell(Front.SET_VRING_NUM, VringState(0, 64))
    if missing != "address":
        told.tell(Front.SET_VRING_ADDR, ADDRESS)
    if missing == "features":
        told.features = None
    told.refuses(Front.SET_VRING_KICK, U64(0))
    told.refuses(Front.SET_VRING_KICK, U64(NO_FD))


def test_what_stands_while_a_ring_is_started(told: Told) -> None:
    told.start()
    told.tell(Front.SET_VRING_NUM, VringState(0, 64))
    told.refuses(Front.SET_VRING_NUM, VringState(0, 32))
    told.refuses(Front.SET_VRING_BASE, VringState(0, 0))
    told.tell(Front.SET_VRING_ADDR, ADDRESS._replace(flags=1))
    for field in ("descriptor", "available", "used"):
        moved = ADDRESS._replace(**{field: 0x9000})
        assert told.refuses(Front.SET_VRING_ADDR, moved).field == field
    told.tell(Front.GET_VRING_BASE, VringState(0, 0))
    told.tell(Front.SET_VRING_NUM, VringState(0, 32))
    told.tell(Front.SET_VRING_BASE, VringState(0, 7))
    told.tell(Front.SET_VRING_ADDR, ADDRESS._replace(descriptor=0x9000))


@pytest.mark.parametrize(("ring", "num"), [(0, 0), (0, 257), (1, 65), (1, 2**32 - 1)])
def test_row_3_sizes_beyond_the_ring(told: Told, ring: int, num: int) -> None:
    assert told.refuses(Front.SET_VRING_NUM, VringState(ring, num)).value == num


def test_no_ring_is_larger_than_the_largest_virtqueue() -> None:
    negotiation = Negotiation(OFFERED, 0, [2**20])
    assert negotiation.rings[0].size_max == 32768


def test_reserved_flags_of_an_address(told: Told) -> None:
    assert told.refuses(Front.SET_VRING_ADDR, ADDRESS._replace(flags=2)).field == "flags"


@pytest.mark.parametrize("base", [0x10000, 2**32 - 1])
def test_a_split_base_has_16_bits(told: Told, base: int) -> None:
    told.refuses(Front.SET_VRING_BASE, VringState(0, base))
    told.tell(Front.SET_FEATURES, U64(PLAIN | F.RING_PACKED))
    told.tell(Front.SET_VRING_BASE, VringState(0, base))


RING_REQUESTS = [
    (Front.SET_VRING_NUM, VringState),
    (Front.SET_VRING_BASE, VringState),
    (Front.GET_VRING_BASE, VringState),
    (Front.SET_VRING_ENABLE, VringState),
    (Front.SET_VRING_ENDIAN, VringState),
    (Front.VRING_KICK, VringState),
    (Front.SET_VRING_ADDR, VringAddress),
    (Front.SET_VRING_KICK, U64),
    (Front.SET_VRING_CALL, U64),
    (Front.SET_VRING_ERR, U64),
]


@pytest.mark.parametrize(
    ("code", "kind"), RING_REQUESTS, ids=lambda value: getattr(value, "name", "")
)
@pytest.mark.parametrize("ring", [2, 255])
def test_row_11_a_ring_that_does_not_exist(told: Told, code: Front, kind: type, ring: int) -> None:
    payload: Payload
    if kind is U64:
        payload = U64(ring | NO_FD)
    elif kind is VringAddress:
        payload = ADDRESS._replace(ring=ring)
    else:
        payload = VringState(ring, 1)
    error = told.refuses(code, payload)
    assert (error.field, error.value) == ("index", ring)


@pytest.mark.parametrize("code", [Front.SET_VRING_KICK, Front.SET_VRING_CALL, Front.SET_VRING_ERR])
@pytest.mark.parametrize("value", [0x200, 1 << 63])
def test_reserved_bits_beside_a_ring_index(told: Told, code: Front, value: int) -> None:
    assert told.refuses(code, U64(value)).field == "payload"


# ---------------------------------------------------------------- the rest


@pytest.mark.parametrize("config", [Config(0, 257, 0, b""), Config(256, 1, 0, b"x")])
def test_config_beyond_256_bytes(told: Told, config: Config) -> None:
    told.refuses(Front.GET_CONFIG, config)
    told.refuses(Front.SET_CONFIG, config)


def test_config_flags(told: Told) -> None:
    told.tell(Front.SET_CONFIG, Config(0, 1, 1, b"x"))
    assert told.refuses(Front.SET_CONFIG, Config(0, 1, 2, b"x")).field == "flags"


def test_status_is_a_byte(told: Told) -> None:
    told.refuses(Front.SET_STATUS, U64(0x100))


def test_iotlb_needs_access_platform(told: Told) -> None:
    message = Iotlb(0, 4096, 0, 3, 2)
    assert told.refuses(Front.IOTLB_MSG, message).value == "ACCESS_PLATFORM"
    told.tell(Front.SET_FEATURES, U64(PLAIN | F.ACCESS_PLATFORM))
    told.tell(Front.IOTLB_MSG, message)
    told.refuses(Front.IOTLB_MSG, message._replace(type=1))


# ---------------------------------------------------------------- bases


@pytest.mark.parametrize(
    ("base", "position"),
    [
        (0, Position(0, 0, 0, 0, 0)),
        (0xFFFF, Position(0xFFFF, 0, 0xFFFF, 0, 0)),
    ],
)
def test_a_split_base_is_the_available_index(base: int, position: Position) -> None:
    assert unpack_base(base, packed=False) == position
    assert pack_base(position, packed=False) == base


@pytest.mark.parametrize(
    ("base", "position"),
    [
        (0x80008000, Position(0, 1, 0, 1, 0)),
        (0x7FFF_FFFF, Position(0x7FFF, 1, 0x7FFF, 0, 0)),
        (0x8003_0005, Position(5, 0, 3, 1, 0)),
        (0x0003_8001, Position(1, 1, 3, 0, 0)),
    ],
)
def test_a_packed_base_has_both_halves(base: int, position: Position) -> None:
    assert unpack_base(base, packed=True) == position
    assert pack_base(position, packed=True) == base


def test_a_packed_base_without_the_used_half() -> None:
    assert unpack_base(0x8000, packed=True) == Position(0, 1, 0, 1, 0)
    assert unpack_base(0x8123, packed=True) == Position(0x123, 1, 0x123, 1, 0)
