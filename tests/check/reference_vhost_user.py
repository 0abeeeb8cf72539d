"""A small vhost-user back-end in plain Python, to be judged by `virtq check`: right as it stands,
and made of small parts, so that a mutant can get one of them wrong.

It shares nothing with `virtq.transports.vhost_user` but the names of requests and bits. Behind it
is the disk of `reference`, whose thread serves the rings.
"""

from __future__ import annotations

import os

from tests.check.reference import Packed, Served, Split
from tests.check.reference_vhost_user_channel import (
    ADDRESS,
    CONFIG,
    INFLIGHT,
    IOTLB,
    LOG,
    LOG_ALL,
    NO_FD,
    NUMBER,
    PATIENCE_S,
    PROTOCOL_FEATURES,
    REGION,
    STATE,
    Bad,
    Channel,
)
from tests.check.reference_vhost_user_disk import Disk, Wire
from virtq._core import Memory
from virtq.check.run import Subject
from virtq.features import F
from virtq.model.memory import DeviceHalf
from virtq.model.memory import Position as ModelPosition
from virtq.transports.base import DriverTransport
from virtq.transports.vhost_user.frontend import Frontend
from virtq.transports.vhost_user.messages import P


class Ring:
    """What was said about a ring."""

    def __init__(self) -> None:
        self.num = self.base = self.log = 0
        self.areas: tuple[int, int, int] | None = None
        self.call: int | None = None
        self.err: int | None = None


class BackEnd(Channel):
    disk_type: type[Disk] = Disk
    protocol = (
        P.MQ
        | P.LOG_SHMFD
        | P.REPLY_ACK
        | P.BACKEND_REQ
        | P.CONFIG
        | P.INFLIGHT_SHMFD
        | P.RESET_DEVICE
        | P.INBAND_NOTIFICATIONS
        | P.CONFIGURE_MEM_SLOTS
        | P.STATUS
    )
    slots = 8

    def __init__(self) -> None:
        self.disk = self.disk_type()
        super().__init__()

    def begin(self) -> None:
        super().begin()
        self.features = self.status = 0
        self.without_protocol = False
        self.memory = Memory()
        self.log: tuple[int, int, int] | None = None
        self.table: list[tuple[int, ...]] = []
        self.rings = [Ring() for _ in range(self.disk.queue_count)]

    def end(self) -> None:
        self.forget_rings()
        self.memory.set_log(None)
        self.drop_log()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.disk.close()

    # What judges it

    def subject(self) -> Subject:
        """Nothing is asked: a mutant may not answer."""
        disk = self.disk
        return Subject(
            "reference:", self.open, disk.device_id, disk.offered, "vhost-user", dial=self.dial
        )

    def open(self) -> DriverTransport:
        return Frontend(self.path, timeout_s=PATIENCE_S, memory_size=1 << 20, queue_size_max=16)

    # Features and owner

    def on_get_features(self, body: bytes, fds: list[int]) -> bytes:
        return NUMBER.pack(self.disk.offered | PROTOCOL_FEATURES | LOG_ALL)

    def on_set_features(self, body: bytes, fds: list[int]) -> None:
        (features,) = NUMBER.unpack(body)
        if features & ~(self.disk.offered | PROTOCOL_FEATURES | LOG_ALL):
            raise Bad("not offered")
        if self.disk.queues and features & F.RING_PACKED != self.features & F.RING_PACKED:
            raise Bad("a ring is started")
        self.features = features
        self.disk.features = features & ~(PROTOCOL_FEATURES | LOG_ALL)
        self.memory.iotlb_enable(bool(features & F.ACCESS_PLATFORM))
        self.use_log()
        self.without_protocol = not features & PROTOCOL_FEATURES
        if self.without_protocol:
            self.disk.enabled = set(range(len(self.rings)))

    def on_get_protocol_features(self, body: bytes, fds: list[int]) -> bytes:
        return NUMBER.pack(int(self.protocol))

    def on_set_protocol_features(self, body: bytes, fds: list[int]) -> None:
        chosen = P(NUMBER.unpack(body)[0])
        needs = P.BACKEND_REQ | P.REPLY_ACK
        if chosen & ~self.protocol or (P.INBAND_NOTIFICATIONS in chosen and needs not in chosen):
            raise Bad("protocol features that cannot be")
        self.chosen = chosen

    def on_set_owner(self, body: bytes, fds: list[int]) -> None:
        """Nobody else can own it."""

    def on_reset_owner(self, body: bytes, fds: list[int]) -> None:
        self.disk.enabled.clear()

    def on_get_queue_num(self, body: bytes, fds: list[int]) -> bytes:
        return NUMBER.pack(len(self.rings))

    def on_set_backend_req_fd(self, body: bytes, fds: list[int]) -> None:
        """It never has anything to say there."""

    # Memory

    def on_set_mem_table(self, body: bytes, fds: list[int]) -> None:
        count = int.from_bytes(body[:4], "little")
        if count > 8 or len(body) != 8 + count * REGION.size:
            raise Bad("a table that cannot be")
        regions = list(REGION.iter_unpack(body[8:]))
        memory = Memory()
        for region, fd in zip(regions, self.in_order(fds), strict=True):
            self.map(memory, region, fd)
        self.table = regions
        self.use(memory)

    def in_order(self, fds: list[int]) -> list[int]:
        return fds

    def map(self, memory: Memory, region: tuple[int, ...], fd: int) -> None:
        guest, size, user, offset = region
        memory.add_region(fd, guest, size, offset, user)

    def use(self, memory: Memory) -> None:
        with self.disk.lock:
            self.memory = self.disk.memory = memory
            memory.iotlb_enable(bool(self.features & F.ACCESS_PLATFORM))
            for served in self.disk.queues.values():
                half = served.half
                assert isinstance(half, Split | Packed)
                half.memory = half.ring.memory = memory

    def on_get_max_mem_slots(self, body: bytes, fds: list[int]) -> bytes:
        return NUMBER.pack(self.slots)

    def on_add_mem_reg(self, body: bytes, fds: list[int]) -> None:
        if len(self.table) >= self.slots:
            raise Bad("no slot is left")
        region = REGION.unpack(body[8:])
        self.map(self.memory, region, fds[0])
        self.disk.memory = self.memory
        self.table.append(region)

    def on_rem_mem_reg(self, body: bytes, fds: list[int]) -> None:
        region = self.find(REGION.unpack(body[8:]))
        self.table.remove(region)
        self.memory.remove_region(*region[:3])

    def find(self, wanted: tuple[int, ...]) -> tuple[int, ...]:
        for region in self.table:
            if region[:3] == wanted[:3]:
                return region
        raise Bad("there is no such region")

    def on_set_log_base(self, body: bytes, fds: list[int]) -> bytes | None:
        self.drop_log()
        self.log = (fds.pop(0), *LOG.unpack(body))
        self.use_log()
        return NUMBER.pack(0)

    def use_log(self) -> None:
        if self.log is not None and self.features & LOG_ALL:
            self.memory.set_log(*self.log)

    def drop_log(self) -> None:
        if self.log is not None:
            os.close(self.log[0])
            self.log = None

    def on_iotlb_msg(self, body: bytes, fds: list[int]) -> bytes:
        iova, size, user, permissions, kind = IOTLB.unpack(body)
        if kind == 3:
            self.memory.iotlb_invalidate(iova, size)
            return NUMBER.pack(0)
        for region in self.table:
            if region[2] <= user and user + size <= region[2] + region[1]:
                self.memory.iotlb_update(iova, size, user, True, bool(permissions & 2))
                return NUMBER.pack(0)
        return NUMBER.pack(1)

    # Rings

    def ring(self, index: int) -> Ring:
        if index >= len(self.rings):
            raise Bad("there is no such ring")
        return self.rings[index]

    def on_set_vring_num(self, body: bytes, fds: list[int]) -> None:
        index, num = STATE.unpack(body)
        if not 1 <= num <= self.disk.size_max:
            raise Bad("a size that cannot be")
        self.ring(index).num = num

    def on_set_vring_addr(self, body: bytes, fds: list[int]) -> None:
        index, flags, desc, used, avail, log = ADDRESS.unpack(body)
        ring = self.ring(index)
        ring.areas, ring.log = (desc, avail, used), log
        self.disk.logs.pop(index, None)
        if flags & 1:
            self.disk.logs[index] = log

    def on_set_vring_base(self, body: bytes, fds: list[int]) -> None:
        index, base = STATE.unpack(body)
        self.ring(index).base = base

    def on_get_vring_base(self, body: bytes, fds: list[int]) -> bytes | None:
        index, _ = STATE.unpack(body)
        ring = self.ring(index)
        ring.base = self.stop(index)
        return STATE.pack(index, ring.base)

    def on_set_vring_kick(self, body: bytes, fds: list[int]) -> None:
        index, fd = self.take_fd(body, fds)
        self.ring(index)
        self.start(index, os.eventfd(0, os.EFD_NONBLOCK) if fd is None else fd)

    def on_set_vring_call(self, body: bytes, fds: list[int]) -> None:
        index, fd = self.take_fd(body, fds)
        with self.disk.lock:
            self.exchange(self.ring(index), "call", fd)
            if index in self.disk.queues:
                os.close(self.disk.queues[index].call)
                self.disk.queues[index].call = self.call_of(index)

    def on_set_vring_err(self, body: bytes, fds: list[int]) -> None:
        index, fd = self.take_fd(body, fds)
        with self.disk.lock:
            self.exchange(self.ring(index), "err", fd)
            self.disk.errs.pop(index, None)
            if fd is not None:
                self.disk.errs[index] = fd

    def on_set_vring_enable(self, body: bytes, fds: list[int]) -> None:
        index, on = STATE.unpack(body)
        self.ring(index)
        self.enable(index, bool(on))

    def enable(self, index: int, on: bool) -> None:
        with self.disk.lock:
            (self.disk.enabled.add if on else self.disk.enabled.discard)(index)

    def on_vring_kick(self, body: bytes, fds: list[int]) -> None:
        index, _ = STATE.unpack(body)
        self.ring(index)
        if index not in self.disk.queues:
            self.start(index, os.eventfd(0, os.EFD_NONBLOCK))

    def take_fd(self, body: bytes, fds: list[int]) -> tuple[int, int | None]:
        (value,) = NUMBER.unpack(body)
        index = value & 0xFF
        self.ring(index)
        return index, None if value & NO_FD else fds.pop(0)

    def exchange(self, ring: Ring, name: str, fd: int | None) -> None:
        old = getattr(ring, name)
        setattr(ring, name, fd)
        if old is not None:
            os.close(old)

    def call_of(self, index: int) -> int:
        call = self.rings[index].call
        return os.eventfd(0, os.EFD_NONBLOCK) if call is None else os.dup(call)

    def start(self, index: int, kick: int) -> None:
        """`kick` is owned here."""
        ring, disk = self.rings[index], self.disk
        with disk.lock:
            old = disk.queues.pop(index, None)
            if old is not None:
                os.close(old.kick)
                old.kick = kick
                disk.queues[index] = old
                return
            try:
                half = self.make_half(ring)
            except BaseException:
                os.close(kick)
                disk.failed(index)
                raise
            disk.queues[index] = Served(half, kick, self.call_of(index))
        disk._look()

    def make_half(self, ring: Ring) -> DeviceHalf:
        if ring.areas is None or not ring.num:
            raise Bad("nothing is known of the ring")
        areas = [self.guest(area) for area in ring.areas]
        for area, size in zip(areas, (16 * ring.num, 4, 4), strict=True):
            self.memory.read(area, size)
        half = self.disk.make_half(ring.num, *areas)
        half.restore(self.position(ring.base))
        return half

    def guest(self, user: int) -> int:
        return self.memory.guest_from_user(user)

    def position(self, base: int) -> ModelPosition:
        low, high = base & 0xFFFF, base >> 16
        if not self.features & F.RING_PACKED:
            return ModelPosition(low, 0, low, 0)
        return ModelPosition(low & 0x7FFF, low >> 15, high & 0x7FFF, high >> 15)

    def stop(self, index: int) -> int:
        with self.disk.lock:
            if index not in self.disk.queues:
                return self.rings[index].base
            at = self.disk.queues[index].half.position
            self.disk.drop(index)
        if not self.features & F.RING_PACKED:
            return at.available
        return at.available | at.available_wrap << 15 | at.used << 16 | at.used_wrap << 31

    def forget_rings(self) -> None:
        with self.disk.lock:
            self.disk.forget_queues()
            self.disk.enabled.clear()
            self.disk.errs.clear()
            self.disk.logs.clear()
        for ring in self.rings:
            self.exchange(ring, "call", None)
            self.exchange(ring, "err", None)

    # Device

    def on_get_config(self, body: bytes, fds: list[int]) -> bytes:
        offset, size, flags = CONFIG.unpack(body[:12])
        if P.CONFIG not in self.chosen or offset + size > self.disk.config_size:
            return b""
        return CONFIG.pack(offset, size, flags) + self.disk.read_config(offset, size)

    def on_set_config(self, body: bytes, fds: list[int]) -> None:
        offset, size, flags = CONFIG.unpack(body[:12])
        data = body[12:]
        if len(data) != size or not self.may_write(offset, size, flags):
            raise Bad("a field that cannot be written")
        if (offset, size) == (32, 1):
            self.disk.write_cache = data[0]
        elif offset == 0:
            self.resize(data)

    def may_write(self, offset: int, size: int, flags: int) -> bool:
        return flags == 1 or (flags == 0 and (offset, size) == (32, 1))

    def resize(self, data: bytes) -> None:
        """A migration that brings another capacity is none."""

    def on_set_status(self, body: bytes, fds: list[int]) -> None:
        (self.status,) = NUMBER.unpack(body)
        if not self.status:
            self.reset()

    def on_get_status(self, body: bytes, fds: list[int]) -> bytes:
        return NUMBER.pack(self.status)

    def on_reset_device(self, body: bytes, fds: list[int]) -> None:
        self.reset()
        self.disk.enabled.clear()

    def reset(self) -> None:
        with self.disk.lock:
            self.disk.forget_queues()
        self.features = self.status = 0

    def on_get_inflight_fd(self, body: bytes, fds: list[int]) -> tuple[bytes, int]:
        _, _, queues, size = INFLIGHT.unpack(body)
        fd = os.memfd_create("inflight", os.MFD_CLOEXEC)
        length = 4096 * queues
        os.ftruncate(fd, self.buffer_bytes(length))
        return INFLIGHT.pack(length, 0, queues, size), fd

    def buffer_bytes(self, told: int) -> int:
        return told

    def on_set_inflight_fd(self, body: bytes, fds: list[int]) -> None:
        size, offset, queues, _ = INFLIGHT.unpack(body)
        if not 1 <= queues <= len(self.rings) or size < 4096 * queues:
            raise Bad("a buffer that cannot be")
        if os.fstat(fds[0]).st_size < size + offset:
            raise Bad("a buffer that is not there")


class Network(BackEnd):
    disk_type = Wire
    protocol = BackEnd.protocol & ~P.CONFIG
