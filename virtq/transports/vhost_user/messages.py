"""Every vhost-user message as data: one row each, for both directions.

A row tells what a request carries, what answers it, how many descriptors travel with either, and
which protocol feature must have been negotiated. The rest of the package asks the table; nothing
else knows a message's shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag, auto
from types import MappingProxyType

from virtq.features import bits
from virtq.transports.vhost_user import wire
from virtq.transports.vhost_user.wire import (
    EMPTY,
    NO_FD,
    NUMBER,
    REGION,
    REGIONS,
    U64,
    VRING_ADDRESS,
    VRING_STATE,
    Layout,
    Payload,
    ProtocolError,
    RegionTable,
    or_empty,
)

PROTOCOL_FEATURES = 1 << 30
"""In the feature bits: the back-end negotiates protocol features."""
LOG_ALL = 1 << 26
"""In the feature bits: the back-end can log which pages it writes."""
TRANSPORT_FEATURES = PROTOCOL_FEATURES | LOG_ALL
"""Feature bits that belong to vhost-user, not to the device."""


class P(IntFlag):
    """The protocol feature bits."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    XEN_MMAP = 1 << 17
    SHARED_OBJECT = 1 << 18
    DEVICE_STATE = 1 << 19
    GET_VRING_BASE_INFLIGHT = 1 << 20
    GPA_ADDRESSES = 1 << 21
    SHMEM = 1 << 22


NO_FEATURE = P(0)


def protocol_names(features: int) -> str:
    """A set of protocol features for people, on one line; empty for none."""
    return ", ".join(P(bit).name or f"bit {bit.bit_length() - 1}" for bit in bits(features))


class Front(IntEnum):
    """Requests of the front-end."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43
    GET_SHMEM_CONFIG = 44


class Back(IntEnum):
    """Requests of the back-end, on the channel that SET_BACKEND_REQ_FD opens."""

    IOTLB_MSG = 1
    CONFIG_CHANGE = 2
    VRING_HOST_NOTIFIER = 3
    VRING_CALL = 4
    VRING_ERR = 5
    SHARED_OBJECT_ADD = 6
    SHARED_OBJECT_REMOVE = 7
    SHARED_OBJECT_LOOKUP = 8
    SHMEM_MAP = 9
    SHMEM_UNMAP = 10


class FdRule(Enum):
    """How many descriptors come with a message."""

    NONE = auto()
    ONE = auto()
    MAYBE = auto()
    PER_REGION = auto()
    """One for each region of the payload."""
    UNLESS_NO_FD = auto()
    """One, or none if the payload has the NO_FD bit."""

    def bounds(self, payload: Payload | None) -> tuple[int, int]:
        """The least and the most for a message with this payload."""
        if self is FdRule.PER_REGION and isinstance(payload, RegionTable):
            return len(payload.regions), len(payload.regions)
        if self is FdRule.UNLESS_NO_FD and isinstance(payload, U64):
            return (0, 0) if payload.value & NO_FD else (1, 1)
        return (1 if self is FdRule.ONE else 0), (0 if self is FdRule.NONE else 1)


@dataclass(frozen=True, slots=True)
class Message:
    """One row of the table."""

    code: Front | Back
    payload: Layout = EMPTY
    reply: Layout | None = None
    """What always answers; None: at most an acknowledgement under REPLY_ACK."""
    fds: FdRule = FdRule.NONE
    reply_fds: FdRule = FdRule.NONE
    needs: P = NO_FEATURE
    """Must have been negotiated ..."""
    offer_is_enough: bool = False
    """... or merely offered, where the specification asks for no more."""
    refusal: Payload | None = None
    """The reply that says no; without one, and without REPLY_ACK, only closing does."""
    empty_refusal: bool = False
    """The reply that says no is one without payload."""

    @property
    def name(self) -> str:
        return self.code.name

    def check_fds(self, payload: Payload | None, count: int) -> None:
        """Raises ProtocolError if a request must not bring `count` descriptors."""
        _check_count(self.name, count, self.fds.bounds(payload))

    def check_reply_fds(self, payload: Payload | None, count: int) -> None:
        _check_count(f"reply to {self.name}", count, self.reply_fds.bounds(payload))


def _check_count(name: str, count: int, bounds: tuple[int, int]) -> None:
    least, most = bounds
    if not least <= count <= most:
        wanted = str(least) if least == most else f"{least} to {most}"
        raise ProtocolError(name, "descriptors", count, f"{wanted} belong to it")


_NACK = U64(1)
_STATE_REFUSED = U64(NO_FD | 1)


def _vring_fd(code: Front) -> Message:
    return Message(code, NUMBER, fds=FdRule.UNLESS_NO_FD)


def _table(*rows: Message) -> Mapping[int, Message]:
    return MappingProxyType({int(row.code): row for row in rows})


FRONT_MESSAGES = _table(
    Message(Front.GET_FEATURES, reply=NUMBER),
    Message(Front.SET_FEATURES, NUMBER),
    Message(Front.SET_OWNER),
    Message(Front.RESET_OWNER),
    Message(Front.SET_MEM_TABLE, REGIONS, fds=FdRule.PER_REGION),
    # Some back-ends answer with a number, some with nothing.
    Message(
        Front.SET_LOG_BASE,
        wire.LOG_BASE,
        reply=or_empty(NUMBER),
        fds=FdRule.ONE,
        needs=P.LOG_SHMFD,
    ),
    Message(Front.SET_LOG_FD, fds=FdRule.ONE),
    Message(Front.SET_VRING_NUM, VRING_STATE),
    Message(Front.SET_VRING_ADDR, VRING_ADDRESS),
    Message(Front.SET_VRING_BASE, VRING_STATE),
    Message(Front.GET_VRING_BASE, VRING_STATE, reply=VRING_STATE),
    _vring_fd(Front.SET_VRING_KICK),
    _vring_fd(Front.SET_VRING_CALL),
    _vring_fd(Front.SET_VRING_ERR),
    Message(Front.GET_PROTOCOL_FEATURES, reply=NUMBER),
    Message(Front.SET_PROTOCOL_FEATURES, NUMBER),
    Message(Front.GET_QUEUE_NUM, reply=NUMBER, needs=P.MQ, offer_is_enough=True),
    Message(Front.SET_VRING_ENABLE, VRING_STATE),
    Message(Front.SEND_RARP, NUMBER, needs=P.RARP, offer_is_enough=True),
    Message(Front.NET_SET_MTU, NUMBER, needs=P.MTU, offer_is_enough=True),
    Message(Front.SET_BACKEND_REQ_FD, fds=FdRule.ONE, needs=P.BACKEND_REQ, offer_is_enough=True),
    Message(Front.IOTLB_MSG, wire.IOTLB, reply=NUMBER, refusal=_NACK),
    Message(Front.SET_VRING_ENDIAN, VRING_STATE, needs=P.CROSS_ENDIAN),
    Message(
        Front.GET_CONFIG,
        wire.CONFIG_QUERY,
        reply=or_empty(wire.CONFIG),
        needs=P.CONFIG,
        empty_refusal=True,
    ),
    Message(Front.SET_CONFIG, wire.CONFIG, needs=P.CONFIG),
    Message(Front.CREATE_CRYPTO_SESSION, wire.OPAQUE, reply=wire.OPAQUE, needs=P.CRYPTO_SESSION),
    Message(Front.CLOSE_CRYPTO_SESSION, NUMBER, needs=P.CRYPTO_SESSION),
    Message(Front.POSTCOPY_ADVISE, reply=or_empty(NUMBER), reply_fds=FdRule.ONE, needs=P.PAGEFAULT),
    Message(Front.POSTCOPY_LISTEN, needs=P.PAGEFAULT),
    Message(Front.POSTCOPY_END, reply=NUMBER, needs=P.PAGEFAULT, refusal=_NACK),
    Message(
        Front.GET_INFLIGHT_FD,
        wire.INFLIGHT,
        reply=wire.INFLIGHT,
        reply_fds=FdRule.MAYBE,
        needs=P.INFLIGHT_SHMFD,
    ),
    Message(Front.SET_INFLIGHT_FD, wire.INFLIGHT, fds=FdRule.ONE, needs=P.INFLIGHT_SHMFD),
    Message(Front.GPU_SET_SOCKET, fds=FdRule.ONE),
    Message(Front.RESET_DEVICE, needs=P.RESET_DEVICE, offer_is_enough=True),
    Message(Front.VRING_KICK, VRING_STATE, needs=P.INBAND_NOTIFICATIONS),
    Message(Front.GET_MAX_MEM_SLOTS, reply=NUMBER, needs=P.CONFIGURE_MEM_SLOTS),
    Message(Front.ADD_MEM_REG, REGION, fds=FdRule.ONE, needs=P.CONFIGURE_MEM_SLOTS),
    # The descriptor is not needed, yet QEMU sends one: it is closed unused.
    Message(Front.REM_MEM_REG, REGION, fds=FdRule.MAYBE, needs=P.CONFIGURE_MEM_SLOTS),
    Message(Front.SET_STATUS, NUMBER, needs=P.STATUS),
    Message(Front.GET_STATUS, reply=NUMBER, needs=P.STATUS),
    Message(
        Front.GET_SHARED_OBJECT,
        wire.SHARED_OBJECT,
        reply=or_empty(wire.SHARED_OBJECT),
        reply_fds=FdRule.MAYBE,
        needs=P.SHARED_OBJECT,
        empty_refusal=True,
    ),
    Message(
        Front.SET_DEVICE_STATE_FD,
        wire.DEVICE_STATE,
        reply=NUMBER,
        fds=FdRule.ONE,
        reply_fds=FdRule.MAYBE,
        needs=P.DEVICE_STATE,
        refusal=_STATE_REFUSED,
    ),
    Message(Front.CHECK_DEVICE_STATE, reply=NUMBER, needs=P.DEVICE_STATE, refusal=_NACK),
    Message(Front.GET_SHMEM_CONFIG, reply=wire.SHMEM_CONFIG, needs=P.SHMEM),
)

BACK_MESSAGES = _table(
    Message(Back.IOTLB_MSG, wire.IOTLB, needs=P.BACKEND_REQ),
    Message(Back.CONFIG_CHANGE, needs=P.CONFIG),
    Message(Back.VRING_HOST_NOTIFIER, wire.VRING_AREA, fds=FdRule.MAYBE, needs=P.HOST_NOTIFIER),
    Message(Back.VRING_CALL, VRING_STATE, needs=P.INBAND_NOTIFICATIONS),
    Message(Back.VRING_ERR, VRING_STATE, needs=P.INBAND_NOTIFICATIONS),
    Message(Back.SHARED_OBJECT_ADD, wire.SHARED_OBJECT, needs=P.SHARED_OBJECT),
    Message(Back.SHARED_OBJECT_REMOVE, wire.SHARED_OBJECT, needs=P.SHARED_OBJECT),
    Message(
        Back.SHARED_OBJECT_LOOKUP,
        wire.SHARED_OBJECT,
        reply=NUMBER,
        reply_fds=FdRule.MAYBE,
        needs=P.SHARED_OBJECT,
        refusal=_NACK,
    ),
    Message(Back.SHMEM_MAP, wire.SHMEM_MAP, fds=FdRule.ONE, needs=P.SHMEM),
    Message(Back.SHMEM_UNMAP, wire.SHMEM_MAP, needs=P.SHMEM),
)
