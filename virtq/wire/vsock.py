"""The socket device on the wire (VIRTIO 1.4, section 5.10): features, configuration, packets,
events."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import NamedTuple

from virtq.wire.bits import unbounded_complement
from virtq.wire.layout import u64

DEVICE_ID = 19
HEADER_BYTES = 44
EVENT_BYTES = 4
PACKET_DATA_MAX = 64 << 10
"""The most data that one packet carries here, either way; the specification has no limit, Linux
this one."""

RECEIVE, TRANSMIT, EVENT = range(3)
"""The virtqueues by index (5.10.2)."""
QUEUE_NAMES = ("rx", "tx", "event")

HOST_CID = 2
ANY_PORT = 0xFFFFFFFF
_RESERVED_CIDS = frozenset((0, 1, HOST_CID, 0xFFFFFFFF))


@unbounded_complement
class VsockFeature(IntFlag):
    """Feature bits of the socket device (5.10.3)."""

    STREAM = 1 << 0
    SEQPACKET = 1 << 1
    NO_IMPLIED_STREAM = 1 << 2


@dataclass
class VsockConfig:
    """The configuration space (5.10.4)."""

    guest_cid: u64 = 3


def check_cid(cid: int) -> int:
    """A guest's context ID. Raises ValueError for a reserved one (5.10.4) and for more than 32
    bits."""
    if cid in _RESERVED_CIDS or not 0 <= cid < 1 << 32:
        raise ValueError(f"{cid} cannot be a guest's CID: 3 to 4294967294 can")
    return cid


class SocketType(IntEnum):
    """Socket types (5.10.6.2)."""

    STREAM = 1
    SEQPACKET = 2


class Op(IntEnum):
    """What a packet is for (5.10.6)."""

    INVALID = 0
    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class Shutdown(IntFlag):
    """Flags of SHUTDOWN: what its sender will not do any more (5.10.6.5)."""

    RECEIVE = 1 << 0
    SEND = 1 << 1


BOTH_WAYS = Shutdown.RECEIVE | Shutdown.SEND


class Boundary(IntFlag):
    """Flags of RW on a seqpacket socket: what ends with this packet (5.10.6.6.1)."""

    MESSAGE = 1 << 0
    RECORD = 1 << 1


NO_BOUNDARY = Boundary(0)


TRANSPORT_RESET = 0
"""The id of the only event (5.10.6.7)."""


class Header(NamedTuple):
    """What every packet begins with (5.10.6)."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    len: int = 0
    type: int = SocketType.STREAM
    op: int = Op.INVALID
    flags: int = 0
    buf_alloc: int = 0
    fwd_cnt: int = 0

    @classmethod
    def parse(cls, data: bytes) -> Header:
        """From exactly 44 bytes."""
        return cls(*_HEADER.unpack(data))

    def pack(self) -> bytes:
        return _HEADER.pack(*self)

    def __str__(self) -> str:
        name = Op(self.op).name if self.op in set(Op) else f"op {self.op}"
        source, target = f"{self.src_cid}:{self.src_port}", f"{self.dst_cid}:{self.dst_port}"
        return f"{name} from {source} to {target}, {self.len} bytes"


_HEADER = struct.Struct("<QQIIIHHIII")


def pack_event(event: int) -> bytes:
    """An event, as the device writes it into a buffer of the event virtqueue."""
    return event.to_bytes(EVENT_BYTES, "little")
