"""One connection of a front-end to one back-end: what was negotiated and shared on it.

A front-end that reconnects has another one for the next back-end, which knows nothing yet.
"""

from __future__ import annotations

import socket

from virtq._core import Memory
from virtq.errors import TransportError
from virtq.features import F
from virtq.transports.vhost_user.exchange import Exchange
from virtq.transports.vhost_user.messages import PROTOCOL_FEATURES, Front, P
from virtq.transports.vhost_user.other_channel import Handler, OtherChannel
from virtq.transports.vhost_user.protocol import FrontendProtocol
from virtq.transports.vhost_user.rings import MAX_QUEUES, Ring
from virtq.transports.vhost_user.wire import (
    IOTLB_READ,
    IOTLB_WRITE,
    MAX_REGIONS,
    U64,
    Iotlb,
    IotlbType,
    Region,
    RegionTable,
)


class Link:
    """Owns the socket. `told` is called for each request of the back-end, in the other channel's
    thread. Close it."""

    def __init__(self, sock: socket.socket, name: str, timeout_s: float, told: Handler) -> None:
        self._name = name
        self._told = told
        self._protocol = FrontendProtocol()
        self.negotiation = self._protocol.negotiation
        self.negotiation.rings = [Ring(index) for index in range(MAX_QUEUES)]
        self.exchange = Exchange(sock, self._protocol.main, name, timeout_s)
        self._shared: set[Region] = set()
        self._other: OtherChannel | None = None

    def open(self, wanted: P, queues: int | None) -> int:
        """Negotiate what comes before the device's own features; returns the number of queues.

        `wanted`: protocol features to take where they are offered. `queues`: their number, where it
        is known."""
        negotiation = self.negotiation
        negotiation.offered = self.exchange.ask(Front.GET_FEATURES)
        if negotiation.offered & PROTOCOL_FEATURES:
            negotiation.offered_protocol = P(self.exchange.ask(Front.GET_PROTOCOL_FEATURES))
            chosen = negotiation.offered_protocol & wanted
            self.exchange.tell(Front.SET_PROTOCOL_FEATURES, U64(chosen))
        if queues is None:
            reported = self.exchange.ask(Front.GET_QUEUE_NUM) if negotiation.has(P.MQ) else 1
            queues = min(reported, MAX_QUEUES)
        if negotiation.has(P.BACKEND_REQ):
            self._open_other()
        self.exchange.tell(Front.SET_OWNER)
        return queues

    def _open_other(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self._other = OtherChannel(ours, self._protocol.other, self._name, self._told)
            self.exchange.tell(Front.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])

    def share(self, memory: Memory) -> None:
        """Tell the regions that the back-end does not have yet. Raises TransportError if it does
        not take so many."""
        regions = [Region(*region) for region in memory.regions]
        new = [region for region in regions if region not in self._shared]
        if not new:
            return
        if self.negotiation.has(P.CONFIGURE_MEM_SLOTS):
            for region in new:
                fd = memory.fd_of(region.guest_addr)
                self.exchange.tell(Front.ADD_MEM_REG, region, [fd])
        else:
            if len(regions) > MAX_REGIONS:
                raise TransportError(
                    f"{self._name}: {len(regions)} regions, it takes {MAX_REGIONS}"
                )
            fds = [memory.fd_of(region.guest_addr) for region in regions]
            self.exchange.tell(Front.SET_MEM_TABLE, RegionTable(tuple(regions)), fds)
        self._shared.update(new)

    def ring_address(self, memory: Memory, guest_addr: int) -> int:
        """A ring's area as SET_VRING_ADDR tells it: an address of ours, or an IOVA."""
        if self._is_translated:
            return guest_addr
        region = _region_of(memory, guest_addr)
        if region is None:
            raise ValueError(f"{self._name}: address {guest_addr:#x} is not in shared memory")
        return region.user_addr + guest_addr - region.guest_addr

    def translate(self, memory: Memory, question: Iotlb) -> bool:
        """Tell the back-end what it did not find; False if there is nothing to tell: an address
        outside of `memory`, or features (a reset forgets them) without ACCESS_PLATFORM."""
        region = _region_of(memory, question.iova)
        if region is None:
            return False
        where = region.guest_addr, region.size, region.user_addr
        answer = Iotlb(*where, IOTLB_READ | IOTLB_WRITE, IotlbType.UPDATE)
        with self.exchange.lock:  # no reset in between
            if not self._is_translated:
                return False
            return self.exchange.transact(Front.IOTLB_MSG, answer, ack=True) is not None

    @property
    def _is_translated(self) -> bool:
        """Whether the back-end has to ask where an address is."""
        return bool((self.negotiation.features or 0) & F.ACCESS_PLATFORM)

    def close(self) -> None:
        """Harmless when done twice."""
        if self._other is not None:
            self._other.close()
            self._other = None
        self.exchange.close()


def _region_of(memory: Memory, guest_addr: int) -> Region | None:
    """The region in which an address lies."""
    regions = (Region(*region) for region in memory.regions)
    return next((r for r in regions if r.guest_addr <= guest_addr < r.guest_addr + r.size), None)
