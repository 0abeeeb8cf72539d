"""Where the packets of a network device come from and go to.

A `Port` says what is at the other side: a tap interface, a hub, a capture file, nothing. Opening it
for a device gives a `Link`, which carries packets for each of the device's queue pairs. A packet
on a link is the 12-byte header of the network device (5.1.6) with the frame behind it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

from virtq.wire import pcap
from virtq.wire.net import BROADCAST, ETHERNET_HEADER_BYTES, HEADER_BYTES, NO_OFFLOAD, NetFeature

if TYPE_CHECKING:
    from _typeshed import StrPath

log = logging.getLogger("virtq.device")

HELD_PACKETS_MAX = 4096
"""Packets that wait for a driver's buffers at one queue pair of a hub; more are dropped."""
ETHERTYPE_EXPERIMENT = 0x88B5  # IEEE 802, local experimental


class Link:
    """An open port, as one device sees it. All calls come from the device's thread."""

    def __init__(self) -> None:
        self.dropped = 0

    def send(self, pair: int, packets: Sequence[bytes]) -> None:
        """Packets that the driver transmitted on a queue pair. What cannot be delivered is dropped
        and counted in `dropped`."""
        raise NotImplementedError

    def receive(self, pair: int) -> bytes | None:
        """The next packet for a queue pair; None if there is none now."""
        raise NotImplementedError

    def fileno(self, pair: int) -> int | None:
        """A descriptor that is readable while `receive` may have something; None: it never has."""
        raise NotImplementedError

    def configure(self, pairs: int, offloads: int) -> None:
        """How many queue pairs are in use, and which GUEST_* offloads packets to the driver may
        have."""

    def receivers(self, pairs: frozenset[int] | None) -> None:
        """The queue pairs whose receive queues the driver has enabled, while it uses several
        (5.1.6.5.6.2): packets for others go to one of these, or are dropped if there is none. None:
        all that are in use."""

    def reset(self) -> None:
        """The driver is gone; what waits for it is dropped."""

    def close(self) -> None:
        """Give up what the link holds."""


class Port:
    """What is at the other side of a network device."""

    offloads: NetFeature = NetFeature(0)
    """The offload features that packets can have here, in both directions."""

    def open(self, pairs: int) -> Link:
        """A link for a device with `pairs` queue pairs. Raises OSError, ValueError."""
        raise NotImplementedError


class _Signal:
    """An eventfd that is readable exactly while it is on."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.close = weakref.finalize(self, os.close, self.fd)

    def on(self) -> None:
        os.eventfd_write(self.fd, 1)

    def off(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)


class SinkPort(Port):
    """Takes everything, gives nothing."""

    def open(self, pairs: int) -> Link:
        return SinkLink()


class SinkLink(Link):
    """Counts what it swallows."""

    def __init__(self) -> None:
        super().__init__()
        self.packets = 0
        self.bytes = 0

    def send(self, pair: int, packets: Sequence[bytes]) -> None:
        self.packets += len(packets)
        self.bytes += sum(map(len, packets)) - HEADER_BYTES * len(packets)

    def receive(self, pair: int) -> bytes | None:
        return None

    def fileno(self, pair: int) -> int | None:
        return None


class _Feed(SinkLink):
    """Gives the frames of an iterator, to whichever queue pair asks; swallows what is sent."""

    def __init__(self, frames: Iterator[bytes]) -> None:
        super().__init__()
        self._frames = frames
        self._more = _Signal()
        self._more.on()

    def receive(self, pair: int) -> bytes | None:
        try:
            frame = next(self._frames, None)
        except ValueError as error:
            log.error("no more packets: %s", error)
            frame = None
        if frame is None:
            self._more.off()
            return None
        return NO_OFFLOAD + frame

    def fileno(self, pair: int) -> int | None:
        return self._more.fd

    def close(self) -> None:
        self._more.close()


def source_frame(sequence: int, size: int) -> bytes:
    """The frame that a source gives as its `sequence`-th: broadcast, with the experimental
    ethertype, the sequence number in 8 big-endian bytes, then bytes that count up from it. Cut to
    `size`."""
    head = BROADCAST + bytes.fromhex("02 00 00 00 00 01") + ETHERTYPE_EXPERIMENT.to_bytes(2)
    head += sequence.to_bytes(8)
    start = sequence & 0xFF
    pattern = bytes((start + i) & 0xFF for i in range(256))
    return (head + pattern * (max(0, size - len(head)) // 256 + 1))[:size]


class SourcePort(Port):
    """Gives `count` frames of `size` bytes (see `source_frame`), as fast as the driver takes
    them."""

    def __init__(self, count: int, size: int = 64) -> None:
        """Raises ValueError for a size below the 14 bytes of an Ethernet header."""
        if size < ETHERNET_HEADER_BYTES or count < 0:
            raise ValueError(f"cannot make {count} frames of {size} bytes")
        self.count = count
        self.size = size

    def open(self, pairs: int) -> Link:
        return _Feed(source_frame(i, self.size) for i in range(self.count))


class PcapPort(Port):
    """Gives the packets of a capture file, and writes what is sent into another."""

    def __init__(self, read: StrPath | None = None, write: StrPath | None = None) -> None:
        self.read = read
        self.write = write

    def open(self, pairs: int) -> Link:
        return _PcapLink(self.read, self.write)


class _PcapLink(_Feed):
    def __init__(self, read: StrPath | None, write: StrPath | None) -> None:
        self._target: BinaryIO | None = None
        frames: Iterator[bytes] = iter(())
        with contextlib.ExitStack() as files:
            if read is not None:
                source = files.enter_context(open(read, "rb"))
                frames = (packet.data for packet in pcap.read(source))
            if write is not None:
                self._target = files.enter_context(open(write, "wb"))
                self._writer = pcap.Writer(self._target)
            super().__init__(frames)
            self._files = files.pop_all()

    def send(self, pair: int, packets: Sequence[bytes]) -> None:
        super().send(pair, packets)
        if self._target is not None:
            for packet in packets:
                self._writer.write(packet[HEADER_BYTES:])

    def reset(self) -> None:
        if self._target is not None:
            self._target.flush()

    def close(self) -> None:
        super().close()
        self._files.close()


class HubPort(Port):
    """A hub: what one device sends, all others receive. Give the same port to each device.

    A device alone on its hub receives what it sends, one queue pair further on; with a single pair
    the hub is an echo.
    """

    def __init__(self) -> None:
        self._links: list[HubLink] = []
        self.lock = threading.Lock()
        """For links: what waits at them changes under it."""

    def open(self, pairs: int) -> Link:
        link = HubLink(self, pairs)
        self.add(link)
        return link

    @property
    def links(self) -> list[HubLink]:
        """The places that are taken."""
        return self._links

    def add(self, link: HubLink) -> None:
        """Take a place."""
        with self.lock:
            self._links.append(link)

    def forward(self, source: HubLink, pair: int, packets: Sequence[bytes]) -> None:
        """Called by links, from any device's thread."""
        with self.lock:
            others = [link for link in self._links if link is not source]
            for link in others:
                link.deliver(packets)
            if not others:
                source.deliver(packets, (pair + 1) % source.pairs)

    def leave(self, link: HubLink) -> None:
        """Called by links."""
        with self.lock:
            self._links.remove(link)


class HubLink(Link):
    """A device's place at a hub. Packets of a flow arrive on the queue pair that last sent on
    it."""

    def __init__(self, hub: HubPort, pairs: int) -> None:
        super().__init__()
        self._hub = hub
        self._waiting: list[deque[bytes]] = [deque() for _ in range(pairs)]
        self._signals = [_Signal() for _ in range(pairs)]
        self._flows: dict[bytes, int] = {}
        self._receivers: frozenset[int] | None = None
        self.pairs = 1

    def configure(self, pairs: int, offloads: int) -> None:
        self.pairs = pairs

    def send(self, pair: int, packets: Sequence[bytes]) -> None:
        if self.pairs > 1:
            for packet in packets:
                self._flows[flow_of(packet)] = pair
        self._hub.forward(self, pair, packets)

    def deliver(self, packets: Sequence[bytes], pair: int | None = None) -> None:
        """Called by the hub, under its lock. Without a `pair` the flow decides."""
        for packet in packets:
            chosen = self._enabled(self._pair_for(packet) if pair is None else pair)
            if chosen is None or len(self._waiting[chosen]) >= HELD_PACKETS_MAX:
                self.dropped += 1
                continue
            self._waiting[chosen].append(packet)
            self._signals[chosen].on()

    def receivers(self, pairs: frozenset[int] | None) -> None:
        with self._hub.lock:
            self._receivers = pairs
            for pair, waiting in enumerate(self._waiting):
                if pairs is not None and pair not in pairs and waiting:
                    packets = list(waiting)
                    waiting.clear()
                    self.deliver(packets, pair)

    def _enabled(self, pair: int) -> int | None:
        """The pair, or another one whose receive queue is enabled; None if there is none."""
        enabled = self._receivers
        return pair if enabled is None or pair in enabled else min(enabled, default=None)

    def _pair_for(self, packet: bytes) -> int:
        if self.pairs == 1:
            return 0
        flow = flow_of(packet)
        return self._flows.get(flow, sum(flow)) % self.pairs

    def receive(self, pair: int) -> bytes | None:
        waiting = self._waiting[pair]
        if not waiting:
            self._signals[
                pair
            ].off()  # and look again: a packet may have come before the signal was off
        return waiting.popleft() if waiting else None

    def fileno(self, pair: int) -> int:
        return self._signals[pair].fd

    def reset(self) -> None:
        for waiting, signal in zip(self._waiting, self._signals, strict=True):
            waiting.clear()
            signal.off()
        self._flows.clear()
        self._receivers = None

    def close(self) -> None:
        self._hub.leave(self)
        for signal in self._signals:
            signal.close()


def flow_of(packet: bytes) -> bytes:
    """What the packets of one conversation have in common, whichever way they go: the two addresses
    (of IP, else of Ethernet) and, for TCP and UDP, the two ports, each pair in sorted order."""
    frame = packet[HEADER_BYTES:]
    kind, body = frame[12:14], frame[ETHERNET_HEADER_BYTES:]
    if kind == b"\x08\x00" and len(body) >= 20:
        addresses, protocol, ports_at = (body[12:16], body[16:20]), body[9], (body[0] & 15) * 4
    elif kind == b"\x86\xdd" and len(body) >= 40:
        addresses, protocol, ports_at = (body[8:24], body[24:40]), body[6], 40
    else:
        return b"".join(sorted((frame[:6], frame[6:12])))
    ports = body[ports_at : ports_at + 2], body[ports_at + 2 : ports_at + 4]
    parts = sorted(addresses) + (sorted(ports) if protocol in (6, 17) else [])
    return b"".join(parts)
