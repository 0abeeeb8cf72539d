"""One payload for each vhost-user message, its bytes as the specification lays them out, and a
reply where there is one. Fields have values that cannot be taken for one another."""

from __future__ import annotations

import struct
from typing import NamedTuple

from virtq.transports.vhost_user.messages import Back, Front
from virtq.transports.vhost_user.wire import (
    U64,
    Config,
    DeviceState,
    Inflight,
    Iotlb,
    LogBase,
    Opaque,
    Payload,
    Region,
    RegionTable,
    SharedObject,
    ShmemConfig,
    ShmemMap,
    VringAddress,
    VringArea,
    VringState,
)


class Sample(NamedTuple):
    payload: Payload | None = None
    body: bytes = b""
    fds: int = 0
    reply: Payload | None = None
    reply_body: bytes | None = None
    """None: no explicit reply."""
    reply_fds: int = 0


def _u64(value: int) -> bytes:
    return struct.pack("=Q", value)


def _words(*values: int) -> bytes:
    return struct.pack(f"={len(values)}I", *values)


def _quads(*values: int) -> bytes:
    return struct.pack(f"={len(values)}Q", *values)


_NUMBER = U64(0x1122334455667788)
_NUMBER_BYTES = _u64(0x1122334455667788)
_STATE = VringState(1, 0x0BAD)
_STATE_BYTES = _words(1, 0x0BAD)
_REGION = Region(0x1000, 0x2000, 0x7F0000003000, 0x4000)
_REGION_BYTES = _quads(0x1000, 0x2000, 0x7F0000003000, 0x4000)
_IOTLB = Iotlb(0x1000, 0x2000, 0x3000, 3, 2)
_IOTLB_BYTES = _quads(0x1000, 0x2000, 0x3000) + b"\x03\x02" + bytes(6)
_INFLIGHT = Inflight(0x10000, 0x2000, 4, 256)
_INFLIGHT_BYTES = _quads(0x10000, 0x2000) + struct.pack("=HH", 4, 256) + bytes(4)
_UUID = SharedObject(bytes(range(16)))
_MAP = ShmemMap(7, 0x1000, 0x2000, 0x3000, 1)
_MAP_BYTES = b"\x07" + bytes(7) + _quads(0x1000, 0x2000, 0x3000, 1)


def _asks(reply: Payload | None, reply_body: bytes, reply_fds: int = 0) -> Sample:
    return Sample(reply=reply, reply_body=reply_body, reply_fds=reply_fds)


FRONT = {
    Front.GET_FEATURES: _asks(_NUMBER, _NUMBER_BYTES),
    Front.SET_FEATURES: Sample(_NUMBER, _NUMBER_BYTES),
    Front.SET_OWNER: Sample(),
    Front.RESET_OWNER: Sample(),
    Front.SET_MEM_TABLE: Sample(
        RegionTable((_REGION, _REGION._replace(guest_addr=0x9000))),
        _words(2, 0) + _REGION_BYTES + _quads(0x9000) + _REGION_BYTES[8:],
        fds=2,
    ),
    Front.SET_LOG_BASE: Sample(
        LogBase(0x8000, 0x1000), _quads(0x8000, 0x1000), 1, _NUMBER, _NUMBER_BYTES
    ),
    Front.SET_LOG_FD: Sample(fds=1),
    Front.SET_VRING_NUM: Sample(_STATE, _STATE_BYTES),
    Front.SET_VRING_ADDR: Sample(
        VringAddress(1, 1, 0x1000, 0x2000, 0x3000, 0x4000),
        _words(1, 1) + _quads(0x1000, 0x2000, 0x3000, 0x4000),
    ),
    Front.SET_VRING_BASE: Sample(_STATE, _STATE_BYTES),
    Front.GET_VRING_BASE: Sample(
        _STATE, _STATE_BYTES, reply=VringState(1, 0x80058005), reply_body=_words(1, 0x80058005)
    ),
    Front.SET_VRING_KICK: Sample(U64(3), _u64(3), fds=1),
    Front.SET_VRING_CALL: Sample(U64(3), _u64(3), fds=1),
    Front.SET_VRING_ERR: Sample(U64(0x103), _u64(0x103)),
    Front.GET_PROTOCOL_FEATURES: _asks(_NUMBER, _NUMBER_BYTES),
    Front.SET_PROTOCOL_FEATURES: Sample(U64(0x12B), _u64(0x12B)),
    Front.GET_QUEUE_NUM: _asks(_NUMBER, _NUMBER_BYTES),
    Front.SET_VRING_ENABLE: Sample(VringState(1, 1), _words(1, 1)),
    Front.SEND_RARP: Sample(_NUMBER, _NUMBER_BYTES),
    Front.NET_SET_MTU: Sample(U64(1500), _u64(1500)),
    Front.SET_BACKEND_REQ_FD: Sample(fds=1),
    Front.IOTLB_MSG: Sample(_IOTLB, _IOTLB_BYTES, reply=U64(0), reply_body=_u64(0)),
    Front.SET_VRING_ENDIAN: Sample(VringState(1, 1), _words(1, 1)),
    Front.GET_CONFIG: Sample(
        Config(4, 3, 0, b"abc"),
        _words(4, 3, 0) + b"abc",
        reply=Config(4, 3, 0, b"xyz"),
        reply_body=_words(4, 3, 0) + b"xyz",
    ),
    Front.SET_CONFIG: Sample(Config(4, 3, 1, b"abc"), _words(4, 3, 1) + b"abc"),
    Front.CREATE_CRYPTO_SESSION: Sample(
        Opaque(b"cipher"), b"cipher", reply=Opaque(b"session"), reply_body=b"session"
    ),
    Front.CLOSE_CRYPTO_SESSION: Sample(U64(5), _u64(5)),
    Front.POSTCOPY_ADVISE: _asks(None, b"", reply_fds=1),
    Front.POSTCOPY_LISTEN: Sample(),
    Front.POSTCOPY_END: _asks(U64(0), _u64(0)),
    Front.GET_INFLIGHT_FD: Sample(
        _INFLIGHT, _INFLIGHT_BYTES, reply=_INFLIGHT, reply_body=_INFLIGHT_BYTES, reply_fds=1
    ),
    Front.SET_INFLIGHT_FD: Sample(_INFLIGHT, _INFLIGHT_BYTES, fds=1),
    Front.GPU_SET_SOCKET: Sample(fds=1),
    Front.RESET_DEVICE: Sample(),
    Front.VRING_KICK: Sample(VringState(1, 0), _words(1, 0)),
    Front.GET_MAX_MEM_SLOTS: _asks(U64(509), _u64(509)),
    Front.ADD_MEM_REG: Sample(_REGION, bytes(8) + _REGION_BYTES, fds=1),
    Front.REM_MEM_REG: Sample(_REGION, bytes(8) + _REGION_BYTES),
    Front.SET_STATUS: Sample(U64(15), _u64(15)),
    Front.GET_STATUS: _asks(U64(15), _u64(15)),
    Front.GET_SHARED_OBJECT: Sample(
        _UUID, bytes(range(16)), reply=_UUID, reply_body=bytes(range(16)), reply_fds=1
    ),
    Front.SET_DEVICE_STATE_FD: Sample(DeviceState(1, 0), _words(1, 0), 1, U64(0x100), _u64(0x100)),
    Front.CHECK_DEVICE_STATE: _asks(U64(0), _u64(0)),
    Front.GET_SHMEM_CONFIG: _asks(
        ShmemConfig((0x1000, 0, 0x2000, *[0] * 253)),
        _words(2, 0) + _quads(0x1000, 0, 0x2000, *[0] * 253),
    ),
}

BACK = {
    Back.IOTLB_MSG: Sample(_IOTLB, _IOTLB_BYTES),
    Back.CONFIG_CHANGE: Sample(),
    Back.VRING_HOST_NOTIFIER: Sample(
        VringArea(1, 0x1000, 0x2000), _quads(1, 0x1000, 0x2000), fds=1
    ),
    Back.VRING_CALL: Sample(VringState(1, 0), _words(1, 0)),
    Back.VRING_ERR: Sample(VringState(1, 0), _words(1, 0)),
    Back.SHARED_OBJECT_ADD: Sample(_UUID, bytes(range(16))),
    Back.SHARED_OBJECT_REMOVE: Sample(_UUID, bytes(range(16))),
    Back.SHARED_OBJECT_LOOKUP: Sample(
        _UUID, bytes(range(16)), reply=U64(0), reply_body=_u64(0), reply_fds=1
    ),
    Back.SHMEM_MAP: Sample(_MAP, _MAP_BYTES, fds=1),
    Back.SHMEM_UNMAP: Sample(_MAP, _MAP_BYTES),
}

NUMBERS = {
    Front: range(1, 45),
    Back: range(1, 11),
}
"""The ids that the specification has given out."""
