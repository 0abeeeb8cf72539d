"""A tap interface of the host as the port of a network device.

The kernel speaks the same packet header as the network device (its `virtio_net_hdr` is that
header), so checksum and segmentation offloads pass through untouched: the driver's half-finished
packets are finished by the host's network stack or by the hardware below it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Sequence

from virtq.devices.net_ports import Link, Port
from virtq.wire.net import BIG_PACKET_BYTES, HEADER_BYTES, NetFeature

_HDR_LEN = slice(2, 4)

_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_TUNSETVNETHDRSZ = 0x400454D8
_TUNSETQUEUE = 0x400454D9
_TUNSETVNETLE = 0x400454DC

_IFF_TAP = 0x0002
_IFF_MULTI_QUEUE = 0x0100
_IFF_ATTACH_QUEUE = 0x0200
_IFF_DETACH_QUEUE = 0x0400
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000

# What the kernel may leave to the reader of the tap, by feature of the driver.
_TUN_F = {
    NetFeature.GUEST_CSUM: 0x01,
    NetFeature.GUEST_TSO4: 0x02,
    NetFeature.GUEST_TSO6: 0x04,
    NetFeature.GUEST_ECN: 0x08,
}


class TapPort(Port):
    """The tap interface `name`; it is made if it does not exist, and needs CAP_NET_ADMIN or to be
    its owner."""

    offloads = (
        NetFeature.CSUM
        | NetFeature.GUEST_CSUM
        | NetFeature.HOST_TSO4
        | NetFeature.HOST_TSO6
        | NetFeature.HOST_ECN
        | NetFeature.GUEST_TSO4
        | NetFeature.GUEST_TSO6
        | NetFeature.GUEST_ECN
    )

    def __init__(self, name: str) -> None:
        """Raises ValueError for a name that no interface can have."""
        if not 0 < len(name.encode()) < 16 or "/" in name:
            raise ValueError(f"{name!r} is not an interface name of up to 15 bytes")
        self.name = name

    def open(self, pairs: int) -> Link:
        return TapLink(self.name, open_queues(self.name, pairs))


def open_queues(name: str, count: int) -> list[int]:
    """File descriptors of `count` queues of a tap interface, non-blocking, each packet with the
    12-byte little-endian header. Raises OSError that says what was tried."""
    fds: list[int] = []
    # A persistent interface made for several queues can only be opened as such, even for one.
    wanted = [_IFF_MULTI_QUEUE] if count > 1 else [0, _IFF_MULTI_QUEUE]
    try:
        for _ in range(count):
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fds.append(fd)
            _attach(fd, name, wanted)
            fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", HEADER_BYTES))
            fcntl.ioctl(fd, _TUNSETVNETLE, struct.pack("i", 1))
            fcntl.ioctl(fd, _TUNSETOFFLOAD, 0)
    except OSError as error:
        for fd in fds:
            os.close(fd)
        raise OSError(error.errno, f"{error.strerror} (queue {len(fds)}, tap {name})") from None
    return fds


def _attach(fd: int, name: str, wanted: list[int]) -> None:
    for attempt, extra in enumerate(wanted):
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | extra
        try:
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
            return
        except OSError as error:
            if error.errno != errno.EINVAL or attempt == len(wanted) - 1:
                raise


class TapLink(Link):
    """The open queues of a tap interface, one for each queue pair."""

    def __init__(self, name: str, fds: list[int]) -> None:
        """Takes the descriptors over."""
        super().__init__()
        self.name = name
        self._fds = fds
        self._pairs = len(fds)
        self._attached = set(range(len(fds)))
        self._deaf = False
        self.configure(1, 0)

    def send(self, pair: int, packets: Sequence[bytes]) -> None:
        fd = self._fds[pair if pair in self._attached else min(self._attached)]
        for packet in packets:
            if int.from_bytes(packet[_HDR_LEN], "little") > len(packet) - HEADER_BYTES:
                # It need not be right (5.1.6.2.2), but the kernel refuses a packet for it.
                packet = packet[: _HDR_LEN.start] + b"\0\0" + packet[_HDR_LEN.stop :]
            try:
                os.write(fd, packet)
            except OSError:  # no room, link down, or a header that the kernel does not believe
                self.dropped += 1

    def receive(self, pair: int) -> bytes | None:
        try:
            return os.read(self._fds[pair], HEADER_BYTES + BIG_PACKET_BYTES) or None
        except OSError:
            return None

    def fileno(self, pair: int) -> int | None:
        return self._fds[pair]

    def configure(self, pairs: int, offloads: int) -> None:
        """The kernel spreads packets over attached queues only. Raises OSError."""
        self._pairs = pairs
        self._attach(set(range(pairs)))
        flags = sum(flag for feature, flag in _TUN_F.items() if offloads & feature)
        for index in self._attached:
            fcntl.ioctl(self._fds[index], _TUNSETOFFLOAD, flags)

    def receivers(self, pairs: frozenset[int] | None) -> None:
        """What comes while there is none waits in a queue that stays attached for what is
        transmitted, and is dropped later."""
        wanted = set(range(self._pairs)) if pairs is None else set(pairs)
        if not wanted:
            self._deaf = True
            return
        if self._deaf:
            self._deaf = False
            for index in self._attached:
                while self.receive(index) is not None:
                    self.dropped += 1
        self._attach(wanted)

    def _attach(self, wanted: set[int]) -> None:
        """Raises OSError."""
        if len(self._fds) == 1:
            return  # it may be no interface for several
        for index in sorted(wanted - self._attached):
            self._switch(index, _IFF_ATTACH_QUEUE)
            self._attached.add(index)
        for index in sorted(self._attached - wanted):
            self._switch(index, _IFF_DETACH_QUEUE)
            self._attached.remove(index)

    def _switch(self, index: int, flags: int) -> None:
        fcntl.ioctl(self._fds[index], _TUNSETQUEUE, struct.pack("16xH22x", flags))

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())
