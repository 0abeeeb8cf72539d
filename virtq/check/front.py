"""A vhost-user front-end that does what it is told, right or wrong.

It implements `virtq.transports.base.DriverTransport`, message by message and with nothing behind
it, so that a `Session` can drive a device over it; and it can be made to send what no front-end
should.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from typing import Self

from virtq._core import Memory, Position
from virtq.check.case import NotObservable, expect
from virtq.check.connection import Connection
from virtq.transports.base import QueueEnd
from virtq.transports.vhost_user.fds import close_fd
from virtq.transports.vhost_user.messages import (
    PROTOCOL_FEATURES,
    TRANSPORT_FEATURES,
    P,
    protocol_names,
)
from virtq.transports.vhost_user.messages import Front as Code
from virtq.transports.vhost_user.wire import (
    NO_FD,
    U64,
    Config,
    Region,
    RegionTable,
    VringAddress,
    VringState,
)

USUAL = P.MQ | P.REPLY_ACK | P.CONFIG
"""Protocol features that a connection takes where they are offered."""
QUEUE_SIZE = 16
MEMORY_BYTES = 1 << 20
GUEST_BASE = 1 << 32
USER_BASE = 0x7F00_0000_0000
"""Far from any guest address, so that one taken for the other shows at once."""


class Front(Connection):
    """Close it."""

    def __init__(
        self, dial: Callable[[], socket.socket], patience_s: float, moment_s: float
    ) -> None:
        """Raises PeerGone if nobody listens any more."""
        super().__init__(dial, patience_s)
        self.moment_s = moment_s
        self.offered = 0
        self.features = 0
        self.offered_protocol = P(0)
        self.status = 0
        self.extra_features = 0
        """Feature bits of vhost-user itself to set, besides PROTOCOL_FEATURES."""
        self.queue_count = 1
        self.shared = False
        """Whether the memory table was sent."""
        self.bases: dict[int, int] = {}
        """What SET_VRING_BASE tells of a ring, if not 0."""
        self.log_addresses: dict[int, int] = {}
        """Where the log has the used ring, for rings whose writes are to be logged."""
        self._fds: list[int] = []
        self.err_fds: dict[int, int] = {}
        self.regions: list[Region] = []
        self.memory = Memory()
        self.lay_out([Region(GUEST_BASE, MEMORY_BYTES, USER_BASE, 0)])

    @classmethod
    def begin(
        cls,
        dial: Callable[[], socket.socket],
        need: P,
        take: P,
        patience_s: float,
        moment_s: float,
    ) -> Self:
        """What every front-end says first. Raises NotObservable if `need` is not offered."""
        front = cls(dial, patience_s, moment_s)
        try:
            front.offered = front.greet()
            if front.offered & PROTOCOL_FEATURES:
                front.offered_protocol = P(front.number(Code.GET_PROTOCOL_FEATURES))
            if lacking := need & ~front.offered_protocol:
                raise NotObservable(f"not offered: {protocol_names(lacking)}")
            front.take(need | take & front.offered_protocol)
            front.tell(Code.SET_OWNER)
            if P.MQ in front.protocol:
                front.queue_count = front.number(Code.GET_QUEUE_NUM)
        except BaseException:
            front.close()
            raise
        return front

    def take(self, chosen: P) -> None:
        """Set protocol features; nothing is sent where the back-end does not know them."""
        if self.offered & PROTOCOL_FEATURES:
            # The request that turns acknowledgements on is itself never acknowledged.
            self.send(Code.SET_PROTOCOL_FEATURES, U64(int(chosen)))
            self.protocol = chosen

    # Memory

    def lay_out(self, regions: Sequence[Region]) -> None:
        """Have memory of these regions, each with a file of its own."""
        self._drop_memory()
        self.regions = list(regions)
        for region in regions:
            fd = os.memfd_create("virtq-check", os.MFD_CLOEXEC)
            self._fds.append(fd)
            os.ftruncate(fd, region.offset + region.size)
            self.memory.add_region(fd, region.guest_addr, region.size, region.offset)

    @property
    def fds(self) -> Sequence[int]:
        """The files of the regions."""
        return self._fds

    def fds_times(self, count: int) -> Sequence[int]:
        """The file of the first region, so many times."""
        return self._fds[:1] * count

    def share(self) -> None:
        """Send the memory table."""
        self.tell(Code.SET_MEM_TABLE, RegionTable(tuple(self.regions)), self._fds)
        self.shared = True

    def user(self, guest_addr: int) -> int:
        """The user address of a guest address."""
        for region in self.regions:
            if region.guest_addr <= guest_addr < region.guest_addr + region.size:
                return guest_addr - region.guest_addr + region.user_addr
        return guest_addr

    def _drop_memory(self) -> None:
        while self._fds:
            close_fd(self._fds.pop())
        self.memory = Memory()

    # What a driver asks of its transport

    @property
    def device_id(self) -> int | None:
        return None

    def queue_size_max(self, index: int) -> int:
        return QUEUE_SIZE

    def read_features(self) -> int:
        return self.offered & ~TRANSPORT_FEATURES

    def write_features(self, features: int) -> None:
        self.features = features | self.offered & PROTOCOL_FEATURES | self.extra_features
        self.tell(Code.SET_FEATURES, U64(self.features))

    def read_status(self) -> int:
        return self.status

    def write_status(self, status: int) -> None:
        """The device's part of it is told by the messages."""
        self.status = status

    @property
    def config_size(self) -> int:
        return 0

    def read_config(self, offset: int, length: int) -> bytes:
        """Raises Broken if the reply has another size."""
        answer = self.ask(Code.GET_CONFIG, Config(offset, length, 0, bytes(length)))
        expect(
            len(answer.body) == 12 + length,
            f"a configuration of {length} bytes",
            f"{len(answer.body) - 12} bytes",
        )
        return answer.body[12:]

    def write_config(self, offset: int, data: bytes) -> None:
        self.tell(Code.SET_CONFIG, Config(offset, len(data), 0, data))

    def on_config_change(self, callback: Callable[[], None] | None) -> None:
        """Nobody asks for it here."""

    def enable_queue(self, queue: QueueEnd, desc: int, driver: int, device: int) -> None:
        """Set a ring up, start it, and enable it."""
        self.set_up(queue, desc, driver, device)
        self.connect(queue)
        self.enable(queue.index)

    def set_up(self, queue: QueueEnd, desc: int, driver: int, device: int) -> None:
        """Size, addresses and base."""
        if not self.shared:
            self.share()
        index = queue.index
        log = self.log_addresses.get(index)
        areas = self.user(desc), self.user(device), self.user(driver)
        self.tell(Code.SET_VRING_NUM, VringState(index, queue.size))
        self.tell(Code.SET_VRING_BASE, VringState(index, self.base(queue)))
        address = VringAddress(index, int(log is not None), *areas, log or 0)
        self.tell(Code.SET_VRING_ADDR, address)

    def base(self, queue: QueueEnd) -> int:
        """By default the beginning: for a packed ring slot 0 with wrap counter 1, twice."""
        packed = 1 << 34
        return self.bases.get(queue.index, 0x8000_8000 if queue.features & packed else 0)

    def connect(self, queue: QueueEnd) -> None:
        """Notifications: errors, calls and, which starts the ring, kicks."""
        self.connect_calls(queue)
        self._signal_by(Code.SET_VRING_KICK, queue, queue.set_kick)

    def connect_calls(self, queue: QueueEnd) -> None:
        """What the back-end notifies of: errors and used buffers. A ring without it may wait."""
        self._drop_err(queue.index)
        fd = self.err_fds[queue.index] = _eventfd()
        self.tell(Code.SET_VRING_ERR, U64(queue.index), [fd])
        self._signal_by(Code.SET_VRING_CALL, queue, queue.set_call)

    def _signal_by(self, code: Code, queue: QueueEnd, take: Callable[[int], None]) -> None:
        fd = _eventfd()
        try:
            take(fd)
            self.tell(code, U64(queue.index), [fd])
        finally:
            os.close(fd)

    def poll_instead(self, code: Code, index: int) -> None:
        """Tell that no descriptor comes."""
        self.tell(code, U64(index | NO_FD))

    def enable(self, index: int, enabled: bool = True) -> None:
        """Nothing is sent where rings are enabled from the beginning."""
        if self.features & PROTOCOL_FEATURES:
            self.tell(Code.SET_VRING_ENABLE, VringState(index, int(enabled)))

    def get_base(self, index: int) -> int:
        """Stop a ring; returns where it stood. Raises Broken for another ring's answer."""
        answer = self.ask(Code.GET_VRING_BASE, VringState(index, 0))
        expect(len(answer.body) == 8, "a ring's state of 8 bytes", f"{len(answer.body)} bytes")
        ring = int.from_bytes(answer.body[:4], "little")
        expect(ring == index, f"the base of ring {index}", f"that of ring {ring}")
        return int.from_bytes(answer.body[4:], "little")

    def reset_queue(self, index: int) -> Position:
        self.get_base(index)
        return Position(0, 1, 0, 1, 0)

    def _drop_err(self, index: int) -> None:
        if (fd := self.err_fds.pop(index, None)) is not None:
            close_fd(fd)

    def close(self) -> None:
        super().close()
        self._drop_memory()
        for index in list(self.err_fds):
            self._drop_err(index)


def _eventfd() -> int:
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
