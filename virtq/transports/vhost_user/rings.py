"""What a vhost-user connection knows of one virtqueue, and which requests it allows when.

Two facts make the three states of a ring: started or stopped, enabled or disabled. They are
independent: a front-end may enable a ring long before it starts (QEMU's network front-end enables
rings before it has told anything about them), and the fact is kept until the ring starts.

    SET_VRING_KICK   starts it; size and addresses must be known by then
    GET_VRING_BASE   stops it and tells where it stood
    SET_VRING_ENABLE enables or disables it; so does SET_FEATURES without PROTOCOL_FEATURES

While a ring is started its size, base and addresses stand; its descriptors, its enabling and the
log flag may change. Both ends of a connection follow this same table: the back-end for what it
receives, the front-end for what it sends.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from virtq._core import Position
from virtq.transports.vhost_user.wire import (
    NO_FD,
    VRING_INDEX_MASK,
    VRING_LOG,
    ProtocolError,
    VringAddress,
    VringState,
)

MAX_QUEUE_SIZE = 32768
MAX_QUEUES = VRING_INDEX_MASK + 1


class RingState(Enum):
    STOPPED = "stopped"
    DISABLED = "started, disabled"
    ENABLED = "started, enabled"


@dataclass(slots=True)
class Ring:
    """One virtqueue as the messages describe it."""

    index: int
    size_max: int = MAX_QUEUE_SIZE
    num: int = 0
    address: VringAddress | None = None
    base: int = 0
    started: bool = False
    enabled: bool = False

    @property
    def state(self) -> RingState:
        if not self.started:
            return RingState.STOPPED
        return RingState.ENABLED if self.enabled else RingState.DISABLED

    def check_num(self, name: str, num: int) -> None:
        if not 1 <= num <= self.size_max:
            raise ProtocolError(name, "num", num, f"ring {self.index} has 1 to {self.size_max}")
        if num != self.num:
            self._check_stopped(name, "num", num)

    def check_address(self, name: str, address: VringAddress) -> None:
        if address.flags & ~VRING_LOG:
            raise ProtocolError(name, "flags", hex(address.flags), "reserved bits are set")
        if self.address is None or address.descriptor != self.address.descriptor:
            self._check_stopped(name, "descriptor", hex(address.descriptor))
        elif address.available != self.address.available:
            self._check_stopped(name, "available", hex(address.available))
        elif address.used != self.address.used:
            self._check_stopped(name, "used", hex(address.used))

    def check_base(self, name: str, base: int, packed: bool) -> None:
        if not packed and base > 0xFFFF:
            raise ProtocolError(name, "num", hex(base), "a split ring's index has 16 bits")
        self._check_stopped(name, "num", base)

    def check_kick(self, name: str) -> None:
        if not self.num:
            raise ProtocolError(name, "index", self.index, "the ring's size is not set")
        if self.address is None:
            raise ProtocolError(name, "index", self.index, "the ring's addresses are not set")

    def _check_stopped(self, name: str, field: str, value: object) -> None:
        if self.started:
            raise ProtocolError(name, field, value, f"ring {self.index} is {self.state.value}")


def ring_of(rings: list[Ring], name: str, index: int) -> Ring:
    """The ring that a request names. Raises ProtocolError if there is none."""
    if index >= len(rings):
        raise ProtocolError(name, "index", index, f"there are {len(rings)} rings")
    return rings[index]


def split_vring_fd(name: str, value: int) -> tuple[int, bool]:
    """(ring index, comes with a descriptor) of SET_VRING_KICK, CALL and ERR."""
    if value & ~(VRING_INDEX_MASK | NO_FD):
        raise ProtocolError(name, "payload", hex(value), "reserved bits are set")
    return value & VRING_INDEX_MASK, not value & NO_FD


def check_enable(name: str, state: VringState) -> None:
    if state.num > 1:
        raise ProtocolError(name, "num", state.num, "neither 0 nor 1")


# ---------------------------------------------------------------- how large, and where it resumes


def area_bytes(num: int, packed: bool) -> tuple[int, int, int]:
    """Sizes of the descriptor, driver and device area of a ring (VIRTIO 1.4, 2.7 and 2.8)."""
    if packed:
        return 16 * num, 4, 4
    return 16 * num, 6 + 2 * num, 6 + 8 * num


def pack_base(position: Position, packed: bool) -> int:
    """A position as SET_VRING_BASE and GET_VRING_BASE carry it.

    Split: the available index. Packed: available slot and wrap counter in the low half, used slot
    and wrap counter in the high half.
    """
    if not packed:
        return position.available & 0xFFFF
    low = position.available & 0x7FFF | position.available_wrap << 15
    high = position.used & 0x7FFF | position.used_wrap << 15
    return low | high << 16


def unpack_base(base: int, packed: bool) -> Position:
    """The position that a base stands for; the used half of a split ring's equals the other.

    DPDK fills in only the low half for a packed ring, so an empty high half means that nothing was
    outstanding: the same as the low one.
    """
    low, high = base & 0xFFFF, base >> 16
    if not packed:
        return Position(low, 0, low, 0, 0)
    high = high or low
    return Position(low & 0x7FFF, low >> 15, high & 0x7FFF, high >> 15, 0)
