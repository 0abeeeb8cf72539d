"""A front-end that does everything right, one step at a time, with its driver's memory."""

from __future__ import annotations

import os
import socket
from typing import Any, Protocol, Self

from tests.unit.vhost_user.support import RawFront, eventfd, memfd
from virtq._core import DriverQueue, Memory
from virtq.features import F
from virtq.transports.vhost_user import channel
from virtq.transports.vhost_user.messages import PROTOCOL_FEATURES, Back, Front, P
from virtq.transports.vhost_user.protocol import FrontendProtocol, Request
from virtq.transports.vhost_user.wire import (
    U64,
    Region,
    RegionTable,
    VringAddress,
    VringState,
)

GUEST = 0x100000
USER = 0x7F0000000000
SIZE = 1 << 20
DESC, DRIVER, DEVICE, DATA = 0x0, 0x4000, 0x8000, 0x10000
ALL = (
    P.MQ | P.LOG_SHMFD | P.REPLY_ACK | P.BACKEND_REQ | P.BACKEND_SEND_FD
    | P.RESET_DEVICE | P.CONFIGURE_MEM_SLOTS | P.STATUS | P.CONFIG | P.INFLIGHT_SHMFD
)  # fmt: skip
PLAIN = F.VERSION_1 | PROTOCOL_FEATURES


class Connects(Protocol):
    """A back-end, wherever it is."""

    def connect(self) -> RawFront: ...


class RightFront:
    """Connects, and negotiates the features given; the rest comes step by step."""

    def __init__(self, served: Connects, features: int = PLAIN, protocol: int = ALL) -> None:
        self.raw = served.connect()
        self.features = features
        self.fd = memfd(SIZE)
        self.memory = Memory()
        self.memory.add_region(self.fd, GUEST, SIZE, 0, USER)
        self.events = {name: eventfd() for name in ("kick", "call", "err")}
        self.other: socket.socket | None = None
        if features & PROTOCOL_FEATURES:
            self.raw.send(Front.SET_PROTOCOL_FEATURES, U64(protocol))
        self.raw.send(Front.SET_OWNER)
        self.raw.send(Front.SET_FEATURES, U64(features))

    @property
    def region(self) -> Region:
        return Region(GUEST, SIZE, USER, 0)

    def share(self) -> None:
        self.raw.send(Front.SET_MEM_TABLE, RegionTable((self.region,)), [self.fd])

    def set_up(self, index: int = 0, *, num: int = 16, base: int | None = None) -> None:
        packed = bool(self.features & F.RING_PACKED)
        start = base if base is not None else 0x80008000 if packed else 0
        self.raw.send(Front.SET_VRING_NUM, VringState(index, num))
        self.raw.send(Front.SET_VRING_BASE, VringState(index, start))
        self.raw.send(Front.SET_VRING_ADDR, self.address(index))

    def address(self, index: int = 0, origin: int = USER) -> VringAddress:
        return VringAddress(index, 0, origin + DESC, origin + DEVICE, origin + DRIVER, 0)

    def events_on(self, index: int = 0) -> None:
        self.raw.send(Front.SET_VRING_CALL, U64(index), [self.events["call"]])
        self.raw.send(Front.SET_VRING_ERR, U64(index), [self.events["err"]])
        self.raw.send(Front.SET_VRING_KICK, U64(index), [self.events["kick"]])

    def enable(self, index: int = 0, on: bool = True) -> None:
        self.raw.send(Front.SET_VRING_ENABLE, VringState(index, int(on)))

    def start(self, index: int = 0) -> None:
        self.share()
        self.set_up(index)
        self.events_on(index)
        self.enable(index)
        self.sync()

    def sync(self) -> None:
        """Wait until the back-end has dealt with everything."""
        self.raw.ask(Front.GET_FEATURES)

    def queue(self, **more: Any) -> DriverQueue:
        areas = GUEST + DESC, GUEST + DRIVER, GUEST + DEVICE
        queue = DriverQueue(self.memory, self.features & ~PROTOCOL_FEATURES, 16, *areas, **more)
        queue.set_kick(self.events["kick"])
        queue.set_call(self.events["call"])
        return queue

    def shout(self, queue: DriverQueue, text: bytes, cookie: int = 1) -> bytes:
        """One buffer to the device and back."""
        self.memory.write(GUEST + DATA, text)
        reply = GUEST + DATA + 0x1000
        queue.add([(GUEST + DATA, len(text))], [(reply, len(text))], cookie)
        queue.kick()
        assert queue.wait(5.0)
        assert queue.reap() == [(cookie, len(text))]
        return self.memory.read(reply, len(text))

    def open_other(self) -> socket.socket:
        self.other, theirs = socket.socketpair()
        self.other.settimeout(5.0)
        self.raw.send(Front.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])
        self.sync()
        theirs.close()
        return self.other

    def told(self) -> tuple[Back, Any]:
        """The next request on the other channel."""
        assert self.other is not None
        protocol = FrontendProtocol()
        protocol.negotiation.protocol = ALL
        while (event := protocol.other.next_request()) is None:
            protocol.other.receive(*channel.receive(self.other, protocol.other.wanted))
        assert isinstance(event, Request)
        assert isinstance(event.message.code, Back)
        return event.message.code, event.payload

    def close(self) -> None:
        self.raw.close()
        self.memory.clear()
        os.close(self.fd)
        for fd in self.events.values():
            os.close(fd)
        if self.other is not None:
            self.other.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
