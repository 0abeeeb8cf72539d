"""The control virtqueue of the network device that `virtq check` is tried on: all that commands
set, and the commands (5.1.6.5)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.check.reference import Served
from virtq.check.net.frames import VLAN
from virtq.wire.net import BROADCAST, Ack, Ctrl, CtrlMac, CtrlRx, CtrlVlan, parse_mac_table
from virtq.wire.net import NetFeature as N

KEY_BYTES_MAX, TABLE_LENGTH_MAX, CONTEXTS_MAX = 40, 128, 2
HASH_TYPES, TUNNEL_TYPES = 0x3F, 1 | 1 << 4 | 1 << 6 | 1 << 7
CVQ, RX_BASIC, RX_CSUM, TX_BASIC, TX_CSUM = 32, 0, 1, 16, 17
COUNTERS = {CVQ: 2, RX_BASIC: 6, RX_CSUM: 4, TX_BASIC: 6, TX_CSUM: 2}
"""Statistics by type: so many numbers of eight bytes each."""
STATS_FEATURE = {RX_CSUM: N.GUEST_CSUM, TX_CSUM: N.CSUM}
GUEST_OFFLOAD_BITS = {46: N.GUEST_UDP_TUNNEL_GSO, 47: N.GUEST_UDP_TUNNEL_GSO_CSUM}
OFFLOADS = (
    N.GUEST_CSUM
    | N.GUEST_TSO4
    | N.GUEST_TSO6
    | N.GUEST_ECN
    | N.GUEST_UFO
    | N.GUEST_USO4
    | N.GUEST_USO6
    | N.GUEST_UDP_TUNNEL_GSO
    | N.GUEST_UDP_TUNNEL_GSO_CSUM
)
INITIAL_MAC = bytes.fromhex("525400abcdef")
NO_COALESCING = (0, 0)
ALL_FEATURES = int(sum(N)) & ~int(N.STANDBY)


@dataclass
class Rss:
    """How receive-side scaling is set up: numbers of queue pairs."""

    types: int
    table: list[int]
    unclassified: int
    key: bytes


@dataclass
class Settings:
    """What commands set; as it is after a reset."""

    mac: bytes = INITIAL_MAC
    announce: bool = True
    modes: set[int] = field(default_factory=lambda: {int(CtrlRx.PROMISC)})
    unicast: set[bytes] = field(default_factory=set)
    multicast: set[bytes] = field(default_factory=set)
    vlans: set[int] = field(default_factory=set)
    pairs: int = 1
    offloads: int | None = None
    hash_types: int = 0
    hash_key: bytes = bytes(KEY_BYTES_MAX)
    tunnels: int = 0
    rss: Rss | None = None
    contexts: dict[int, Rss] = field(default_factory=dict)
    coalescing: dict[int, tuple[int, int]] = field(default_factory=dict)
    of_direction: dict[int, tuple[int, int]] = field(default_factory=dict)
    """(max_packets, max_usecs) of a virtqueue by its index; of all receive (0), transmit (1)
    virtqueues."""
    counters: dict[tuple[int, int], list[int]] = field(default_factory=dict)


class Refused(Exception):
    """The command is answered with an error."""


def check(condition: object) -> None:
    if not condition:
        raise Refused


class NetControl:
    """The commands. What it asks of the device stands in front."""

    pairs = 3
    features: int
    queues: dict[int, Served]

    def __init__(self) -> None:
        self.settings = Settings()

    def has(self, feature: int) -> bool:
        return bool(self.features & feature)

    @property
    def control_index(self) -> int | None:
        if not self.has(N.CTRL_VQ):
            return None
        return 2 * self.pairs if self.has(N.MQ | N.RSS) else 2

    def is_enabled(self, index: int) -> bool:
        """Whether that is a receive or transmit virtqueue that the driver has enabled."""
        most = self.pairs if self.has(N.MQ | N.RSS) else 1
        return index < 2 * most and index in self.queues

    # Commands

    def command(self, data: bytes, room: int) -> tuple[int, bytes]:
        """The ack and the result of a command."""
        self.count(self.control_index or 0, CVQ, 0)
        try:
            check(len(data) >= 2)
            feature, method = self.find(data[0], data[1])
            check(method and self.has(feature))
            assert method
            result: bytes | None = method(self, data[1], data[2:])
        except Refused:
            return Ack.ERR, b""
        self.count(self.control_index or 0, CVQ, 1)
        return Ack.OK, self.cut(result or b"", room)

    def find(self, kind: int, command: int) -> tuple[int, Callable[..., Any] | None]:
        name = COMMANDS.get((kind, command))
        return (0, None) if name is None else (name[0], getattr(type(self), name[1]))

    def cut(self, result: bytes, room: int) -> bytes:
        return result[:room]

    def rx_mode(self, command: int, data: bytes) -> None:
        check(len(data) == 1 and data[0] < 2)
        (self.settings.modes.add if data[0] else self.settings.modes.discard)(command)

    def mac_table(self, command: int, data: bytes) -> None:
        try:
            unicast, multicast = parse_mac_table(data)
        except ValueError:
            raise Refused from None
        self.set_table(set(unicast), set(multicast))

    def set_table(self, unicast: set[bytes], multicast: set[bytes]) -> None:
        self.settings.unicast, self.settings.multicast = unicast, multicast

    def mac_address(self, command: int, data: bytes) -> None:
        check(len(data) == 6)
        self.set_mac(data)

    def set_mac(self, mac: bytes) -> None:
        self.settings.mac = mac

    def vlan(self, command: int, data: bytes) -> None:
        check(len(data) == 2)
        change = self.settings.vlans.add if command == CtrlVlan.ADD else self.settings.vlans.discard
        change(int.from_bytes(data, "little"))

    def announce(self, command: int, data: bytes) -> None:
        self.settings.announce = False

    def mq_pairs(self, command: int, data: bytes) -> None:
        check(len(data) == 2)
        pairs = int.from_bytes(data, "little")
        check(1 <= pairs <= self.pairs)
        self.settings.pairs, self.settings.rss = pairs, None

    def rss_config(self, command: int, data: bytes) -> None:
        self.settings.rss = self.parse_rss(data)

    def parse_rss(self, data: bytes) -> Rss:
        check(len(data) >= 8)
        types, mask, unclassified = struct.unpack_from("<IHH", data)
        length = mask + 1
        check(not types & ~HASH_TYPES and length <= TABLE_LENGTH_MAX and not length & mask)
        check(len(data) >= 8 + 2 * length + 3)
        table = list(struct.unpack_from(f"<{length}H", data, 8))
        key_bytes = data[8 + 2 * length + 2]
        key = data[8 + 2 * length + 3 :]
        check(len(key) == key_bytes <= KEY_BYTES_MAX)
        check(all(pair < self.pairs for pair in (*table, unclassified)))
        return Rss(types, table, unclassified, key.ljust(KEY_BYTES_MAX, b"\0"))

    def hash_config(self, command: int, data: bytes) -> None:
        check(len(data) >= 13)
        types = int.from_bytes(data[:4], "little")
        check(not types & ~HASH_TYPES and data[12] <= KEY_BYTES_MAX and len(data) == 13 + data[12])
        self.settings.hash_types = types
        self.settings.hash_key = data[13:].ljust(KEY_BYTES_MAX, b"\0")

    def hash_tunnel(self, command: int, data: bytes) -> None:
        check(len(data) == 4)
        types = int.from_bytes(data, "little")
        self.check_tunnels(types)
        self.settings.tunnels = types

    def check_tunnels(self, types: int) -> None:
        check(not types & ~TUNNEL_TYPES)

    def guest_offloads(self, command: int, data: bytes) -> None:
        check(len(data) == 8)
        bits = int.from_bytes(data, "little")
        offloads = bits & ~(3 << 46)
        offloads |= sum(feature for bit, feature in GUEST_OFFLOAD_BITS.items() if bits >> bit & 1)
        check(not offloads & ~(self.features & OFFLOADS))
        self.settings.offloads = offloads

    def rss_contexts(self, command: int, data: bytes) -> bytes:
        return self.contexts_max().to_bytes(2, "little")

    def contexts_max(self) -> int:
        return CONTEXTS_MAX

    def rss_context(self, command: int, data: bytes) -> None:
        check(len(data) >= 8)
        id = int.from_bytes(data[:2], "little")
        check(1 <= id <= CONTEXTS_MAX and (id in self.settings.contexts) == (command == 2))
        self.settings.contexts[id] = self.parse_rss(data[8:])

    def rss_context_del(self, command: int, data: bytes) -> None:
        check(len(data) == 2)
        check(self.settings.contexts.pop(int.from_bytes(data, "little"), None))

    # Coalescing of notifications

    def coalesce(self, command: int, data: bytes) -> None:
        self.check_coalescing(data)
        transmit = int(command == 0)
        packets, usecs = struct.unpack("<II", data.ljust(8, b"\0")[:8])
        self.settings.of_direction[transmit] = packets, usecs
        for index in range(2 * self.pairs):
            if index % 2 == transmit:
                self.settings.coalescing[index] = packets, usecs

    def check_coalescing(self, data: bytes) -> None:
        check(len(data) == 8)

    def coalesce_queue(self, command: int, data: bytes) -> bytes | None:
        self.check_queue_coalescing(command, data)
        index, reserved, packets, usecs = struct.unpack("<HHII", data.ljust(12, b"\0")[:12])
        self.check_reserved(reserved)
        self.check_coalesced(index)
        if command == 2:
            self.settings.coalescing[index] = packets, usecs
            return None
        return struct.pack("<II", *self.settings.coalescing.get(index, NO_COALESCING))

    def check_queue_coalescing(self, command: int, data: bytes) -> None:
        check(len(data) == (12 if command == 2 else 4))

    def check_reserved(self, reserved: int) -> None:
        """It is ignored."""

    def check_coalesced(self, index: int) -> None:
        check(self.is_enabled(index))

    def queue_enabled(self, index: int) -> None:
        self.settings.coalescing[index] = self.of_direction(index)

    def of_direction(self, index: int) -> tuple[int, int]:
        """What holds for all queues of its direction."""
        return self.settings.of_direction.get(index % 2, NO_COALESCING)

    # Statistics

    def count(self, index: int, kind: int, at: int, number: int = 1) -> None:
        counters = self.settings.counters.setdefault((index, kind), [0] * COUNTERS[kind])
        counters[at] = (counters[at] + number) % (1 << 64)

    def stats_query(self, command: int, data: bytes) -> bytes:
        return self.supported_stats().to_bytes(8, "little")

    def supported_stats(self) -> int:
        return sum(1 << kind for kind in COUNTERS if self.has_stats(kind))

    def has_stats(self, kind: int) -> bool:
        return kind not in STATS_FEATURE or self.has(STATS_FEATURE[kind])

    def stats_get(self, command: int, data: bytes) -> bytes:
        check(data and len(data) % 16 == 0)
        reply = b""
        for at in range(0, len(data), 16):
            index, types = struct.unpack_from("<H6xQ", data, at)
            try:
                reply += self.stats_of(index, types)
            except Refused:
                self.one_is_wrong()
        return reply

    def one_is_wrong(self) -> None:
        raise Refused

    def stats_of(self, index: int, types: int) -> bytes:
        valid = self.valid_stats(index)
        check(not types & ~sum(1 << kind for kind in valid))
        reply = b""
        for kind in sorted(valid):
            if types >> kind & 1:
                numbers = self.settings.counters.get((index, kind), [0] * COUNTERS[kind])
                reply += self.stats_header(kind, index, 8 + 8 * len(numbers))
                reply += struct.pack(f"<{len(numbers)}Q", *numbers)
        return reply

    def stats_header(self, kind: int, index: int, size: int) -> bytes:
        return struct.pack("<BBHHH", kind, 0, index, 0, size)

    def valid_stats(self, index: int) -> list[int]:
        if index == self.control_index:
            return [CVQ]
        check(index < 2 * (self.pairs if self.has(N.MQ | N.RSS) else 1))
        kinds = (TX_BASIC, TX_CSUM) if index % 2 else (RX_BASIC, RX_CSUM)
        return [kind for kind in kinds if self.has_stats(kind)]

    # Which frames are wanted

    def wants(self, frame: bytes) -> bool:
        return self.wants_vlan(frame) and self.wants_address(frame[:6])

    def wants_vlan(self, frame: bytes) -> bool:
        if frame[12:14] != VLAN or not self.has(N.CTRL_VLAN):
            return True
        return int.from_bytes(frame[14:16]) & 0xFFF in self.settings.vlans

    def wants_address(self, to: bytes) -> bool:
        modes, settings = self.settings.modes, self.settings
        if CtrlRx.PROMISC in modes:
            return True
        if to == BROADCAST:
            return CtrlRx.NOBCAST not in modes
        if to[0] & 1:
            listed = CtrlRx.ALLMULTI in modes or to in settings.multicast
            return listed and CtrlRx.NOMULTI not in modes
        listed = CtrlRx.ALLUNI in modes or to == settings.mac or to in settings.unicast
        return listed and CtrlRx.NOUNI not in modes


COMMANDS: dict[tuple[int, int], tuple[int, str]] = {
    (Ctrl.RX, CtrlRx.PROMISC): (N.CTRL_RX, "rx_mode"),
    (Ctrl.RX, CtrlRx.ALLMULTI): (N.CTRL_RX, "rx_mode"),
    **{(Ctrl.RX, mode): (N.CTRL_RX_EXTRA, "rx_mode") for mode in list(CtrlRx)[2:]},
    (Ctrl.MAC, CtrlMac.TABLE_SET): (N.CTRL_RX, "mac_table"),
    (Ctrl.MAC, CtrlMac.ADDR_SET): (N.CTRL_MAC_ADDR, "mac_address"),
    (Ctrl.VLAN, CtrlVlan.ADD): (N.CTRL_VLAN, "vlan"),
    (Ctrl.VLAN, CtrlVlan.DEL): (N.CTRL_VLAN, "vlan"),
    (Ctrl.ANNOUNCE, 0): (N.GUEST_ANNOUNCE, "announce"),
    (Ctrl.MQ, 0): (N.MQ, "mq_pairs"),
    (Ctrl.MQ, 1): (N.RSS, "rss_config"),
    (Ctrl.MQ, 2): (N.HASH_REPORT, "hash_config"),
    (Ctrl.GUEST_OFFLOADS, 0): (N.CTRL_GUEST_OFFLOADS, "guest_offloads"),
    **{(6, command): (N.NOTF_COAL, "coalesce") for command in (0, 1)},
    **{(6, command): (N.VQ_NOTF_COAL, "coalesce_queue") for command in (2, 3)},
    (7, 0): (N.HASH_TUNNEL, "hash_tunnel"),
    (8, 0): (N.DEVICE_STATS, "stats_query"),
    (8, 1): (N.DEVICE_STATS, "stats_get"),
    (9, 0): (N.RSS_CONTEXT, "rss_contexts"),
    **{(9, command): (N.RSS_CONTEXT, "rss_context") for command in (1, 2)},
    (9, 3): (N.RSS_CONTEXT, "rss_context_del"),
}
