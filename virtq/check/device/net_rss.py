"""Receive-side scaling and hashes of the network device (5.1.6.4.3, 5.1.6.4.4, 5.1.6.5.5 to
5.1.6.5.7)."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

from virtq.check.case import NotObservable, case, expect
from virtq.check.context import Context
from virtq.check.net.frames import (
    GENEVE_PORT,
    GRE_PROTOCOL,
    IPIP_PROTOCOL,
    TCP4,
    TCP6,
    UDP4,
    UDP6,
    VXLAN_PORT,
    Packet,
    encapsulated,
    ip,
)
from virtq.check.net.nic import SOMEBODY, Nic
from virtq.check.net.toeplitz import (
    IPV4_TYPE,
    IPV6_TYPE,
    TCPV4_TYPE,
    TCPV6_TYPE,
    TUNNEL_GENEVE,
    TUNNEL_GRE,
    TUNNEL_IPIP,
    TUNNEL_VXLAN,
    UDPV4_TYPE,
    UDPV6_TYPE,
    packet_hash,
)
from virtq.features import F
from virtq.wire.net import DEVICE_ID, Ack, Ctrl, receive_queue
from virtq.wire.net import NetFeature as N

_RSS_CONFIG, _HASH_CONFIG = 1, 2
_HASH_TUNNEL, _CONTEXTS = 7, 9
_KEY_BYTES = 40
_TABLE_LENGTH = 8
_TYPES = IPV4_TYPE | TCPV4_TYPE | UDPV4_TYPE | IPV6_TYPE | TCPV6_TYPE | UDPV6_TYPE
_FLOWS = (TCP4, UDP4, TCP6, UDP6, TCP4._replace(protocol=99), TCP6._replace(protocol=99))
_TUNNELS = {
    TUNNEL_VXLAN: UDP4._replace(target_port=VXLAN_PORT),
    TUNNEL_GENEVE: UDP4._replace(target_port=GENEVE_PORT),
    TUNNEL_IPIP: UDP4._replace(protocol=IPIP_PROTOCOL),
    TUNNEL_GRE: UDP4._replace(protocol=GRE_PROTOCOL),
}
_REPORTED = N.CTRL_VQ | N.HASH_REPORT


def _key(ctx: Context) -> bytes:
    return random.Random(ctx.seed + 1).randbytes(_KEY_BYTES)


def _types(nic: Nic) -> int:
    return int.from_bytes(nic.config(20, 4), "little") & _TYPES


def _hash_config(types: int, key: bytes) -> bytes:
    return struct.pack("<I8xB", types, len(key)) + key


def _rss_config(
    types: int, key: bytes, table: Sequence[int], unclassified: int, pairs: int
) -> bytes:
    """Queues by the number of their pair, which is bits 1 to 16 of their index."""
    head = struct.pack("<IHH", types, len(table) - 1, unclassified)
    return head + struct.pack(f"<{len(table)}HHB", *table, pairs, len(key)) + key


def _frames(nic: Nic, count: int = 4) -> list[bytes]:
    """IPv4 and IPv6, TCP, UDP and neither, with different ports."""
    frames = (
        ip(flow._replace(source_port=2000 + i), nic.payload(80), nic.mac)
        for flow in _FLOWS
        for i in range(count)
    )
    return list(dict.fromkeys(frames))  # without ports, there is one


def _expect_hashes(
    nic: Nic, frames: Sequence[bytes], types: int, key: bytes, tunnels: int = 0
) -> None:
    came = nic.deliver(*frames)
    expect(len(came) == len(frames), f"{len(frames)} frames", len(came))
    for received in came:
        header = received.header
        report, value = packet_hash(received.frame, types, key, tunnels)
        got = header.hash_report, header.hash_value if report else 0
        what = f"hash_report {report} and hash_value {value:#010x}"
        expect(got == (report, value), what, f"{got[0]} and {got[1]:#010x}")


@case(
    "net.hash.dev.report-command",
    "net.hash.dev.hash-command",
    device_id=DEVICE_ID,
    needs=N.HASH_REPORT,
    rings=False,
)
def hash_without_scaling(ctx: Context) -> None:
    """A device that offers HASH_REPORT and not RSS has HASH_CONFIG, even with one pair."""
    session = ctx.session()
    if session.offered & N.RSS:
        raise NotObservable("RSS is offered")
    nic = Nic(ctx, int(_REPORTED), wire=False, session=session)
    nic.order(Ctrl.MQ, _HASH_CONFIG, _hash_config(_types(nic), _key(ctx)))


@case(
    "net.hash.dev.report-command",
    "net.hash.dev.rss-command",
    device_id=DEVICE_ID,
    needs=N.HASH_REPORT | N.RSS,
    rings=False,
)
def hash_with_scaling(ctx: Context) -> None:
    """A device that offers HASH_REPORT and RSS has RSS_CONFIG."""
    nic = Nic(ctx, int(_REPORTED | N.RSS), wire=False)
    nic.order(Ctrl.MQ, _RSS_CONFIG, _rss_config(_types(nic), _key(ctx), [0], 0, 1))


@case("net.ctrl.hash.dev.support", device_id=DEVICE_ID, needs=N.HASH_REPORT | N.MQ, rings=False)
def hash_with_automatic_steering(ctx: Context) -> None:
    """With HASH_REPORT and automatic steering, HASH_CONFIG sets the types and the key of the hash
    that is reported."""
    nic = Nic(ctx, int(_REPORTED | N.MQ))
    key, all_types = _key(ctx), _types(nic)
    for types in (all_types, all_types & (IPV4_TYPE | IPV6_TYPE), 0):
        nic.order(Ctrl.MQ, _HASH_CONFIG, _hash_config(types, key))
        _expect_hashes(nic, [*_frames(nic, 1), nic.frame()], types, key)


# Hashes of what is inside a tunnel


def _tunnel_nic(ctx: Context) -> tuple[Nic, int, bytes, int, list[bytes]]:
    """A device that reports hashes; the types, the key, a type of tunnel that it supports, and
    frames in one."""
    nic = Nic(ctx, int(_REPORTED | N.HASH_TUNNEL))
    supported = int.from_bytes(nic.config(24, 4), "little")
    kind = next((kind for kind in _TUNNELS if kind & supported), 0)
    if not kind:
        raise NotObservable(f"no tunnel of the types {supported:#x} is known here")
    key, types = _key(ctx), _types(nic)
    nic.order(Ctrl.MQ, _HASH_CONFIG, _hash_config(types, key))
    inner = [
        ip(TCP4._replace(source=bytes([10, 9, 9, i])), nic.payload(80), nic.mac) for i in range(4)
    ]
    frames = [encapsulated(frame, nic.mac, _TUNNELS[kind]) for frame in inner]
    return nic, types, key, kind, frames


def _enable_tunnels(nic: Nic, types: int) -> None:
    nic.order(_HASH_TUNNEL, 0, types.to_bytes(4, "little"))


@case(
    "net.ctrl.tunnelhash.dev.outer",
    device_id=DEVICE_ID,
    needs=N.HASH_TUNNEL | N.HASH_REPORT,
    rings=False,
)
def a_tunnel_that_is_not_enabled(ctx: Context) -> None:
    """The hash of a packet in a tunnel whose type is not enabled is that of its outer header."""
    nic, types, key, kind, frames = _tunnel_nic(ctx)
    _expect_hashes(nic, frames, types, key)
    supported = int.from_bytes(nic.config(24, 4), "little")
    _enable_tunnels(nic, supported & ~kind)
    _expect_hashes(nic, frames, types, key)


@case(
    "net.ctrl.tunnelhash.dev.disable",
    device_id=DEVICE_ID,
    needs=N.HASH_TUNNEL | N.HASH_REPORT,
    rings=False,
)
def a_tunnel_that_is_enabled_no_longer(ctx: Context) -> None:
    """The hash of a packet in a tunnel is that of its inner header while the type is enabled, and
    that of the outer one again after it is set to none, or after a reset."""
    nic, types, key, kind, frames = _tunnel_nic(ctx)
    _enable_tunnels(nic, kind)
    _expect_hashes(nic, frames, types, key, kind)
    _enable_tunnels(nic, 0)
    _expect_hashes(nic, frames, types, key)
    _enable_tunnels(nic, kind)
    again = nic.anew(ctx)
    again.token = nic.token
    again.order(Ctrl.MQ, _HASH_CONFIG, _hash_config(types, key))
    _expect_hashes(again, frames, types, key)


@case(
    "net.ctrl.tunnelhash.dev.unsupported-err",
    device_id=DEVICE_ID,
    needs=N.HASH_TUNNEL | N.HASH_REPORT,
    rings=False,
)
def a_tunnel_that_is_not_supported(ctx: Context) -> None:
    """Enabling a type that is not in supported_tunnel_types should be answered with an error."""
    nic = Nic(ctx, int(_REPORTED | N.HASH_TUNNEL), wire=False)
    supported = int.from_bytes(nic.config(24, 4), "little")
    for types in (1 << 31, supported | 1 << 31):
        ack, _ = nic.command(_HASH_TUNNEL, 0, types.to_bytes(4, "little"))
        expect(ack == Ack.ERR, f"ERR (1) for the types {types:#x}", ack)


# Receive-side scaling


def _scaled(ctx: Context, add: int = 0) -> tuple[Nic, int, bytes, list[int]]:
    """A device with two pairs, scaled by a table; the types, the key, the table."""
    nic = Nic(ctx, int(N.CTRL_VQ | N.RSS) | add, pairs=2)
    key, types = _key(ctx), _types(nic)
    table = [0, 1, 1, 0, 1, 0, 0, 1][:_TABLE_LENGTH]
    nic.order(Ctrl.MQ, _RSS_CONFIG, _rss_config(types, key, table, 1, 2))
    return nic, types, key, table


def _choice(frame: bytes, types: int, key: bytes, table: Sequence[int], unclassified: int) -> int:
    report, value = packet_hash(frame, types, key)
    return table[value & len(table) - 1] if report else unclassified


@case("net.ctrl.rss.dev.queue-choice", device_id=DEVICE_ID, needs=N.RSS, rings=False)
def the_queue_of_a_hash(ctx: Context) -> None:
    """A packet comes to the queue that its hash has in the table, and one without a hash to the
    unclassified queue."""
    nic, types, key, table = _scaled(ctx)
    for frame in [*_frames(nic), nic.frame()]:
        pair = _choice(frame, types, key, table, 1)
        came = [received.pair for received in nic.arrivals(frame)]
        expect(came == [pair], f"receiveq{pair + 1} alone", came)


@case("net.ctrl.rss.dev.reset-drop", device_id=DEVICE_ID, needs=N.RSS | F.RING_RESET, rings=False)
def dropped_while_its_queue_is_reset(ctx: Context) -> None:
    """Packets for a queue that is reset are dropped: they come to no other one, and not later."""
    nic, types, key, table = _scaled(ctx, int(F.RING_RESET))
    frames = _frames(nic)
    to_second = [frame for frame in frames if _choice(frame, types, key, table, 1) == 1]
    to_first = [frame for frame in frames if frame not in to_second]
    if not to_first or len(to_second) < 2:
        raise NotObservable("the hash types leave all packets to one queue")
    nic.reset_queue(receive_queue(1))
    for frame in to_second[:-1]:
        nic.far.send(Packet(frame))
    *dropped, last = to_second
    came = [received for received in nic.until(to_first[0]) if received.frame in to_second]
    expect(not came, "nothing but the packet for receiveq1", f"{len(came)} others")
    nic.transmit(nic.frame(SOMEBODY))
    nic.begin_again(1)
    came = [received for received in nic.until(last) if received.frame in dropped]
    expect(not came, "nothing but the packet that is sent afterwards", f"{len(came)} others")


# Contexts


def _capability(nic: Nic) -> list[int]:
    """max_rss_contexts: the structure is written before the ack, as the data of a command are, or
    after it, as a result is; both are read."""
    ack, rest = nic.command(_CONTEXTS, 0, b"", 2)
    reply = bytes([ack]) + rest
    readings = [(reply[2], reply[:2]), (reply[0], reply[1:])]
    return [int.from_bytes(data, "little") for ack, data in readings if ack == Ack.OK]


@case("net.ctrl.rssctx.dev.min-one", device_id=DEVICE_ID, needs=N.RSS_CONTEXT, rings=False)
def at_least_one_context(ctx: Context) -> None:
    """With RSS_CONTEXT, max_rss_contexts is 1 or more."""
    nic = Nic(ctx, int(N.CTRL_VQ | N.RSS | N.RSS_CONTEXT), wire=False)
    most = _capability(nic)
    expect(any(most), "max_rss_contexts of 1 or more", most or "an error")


@case("net.ctrl.rssctx.dev.reset-clears", device_id=DEVICE_ID, needs=N.RSS_CONTEXT, rings=False)
def no_context_after_a_reset(ctx: Context) -> None:
    """After a reset, contexts can be added as at first."""
    nic = Nic(ctx, int(N.CTRL_VQ | N.RSS | N.RSS_CONTEXT), wire=False)
    context = struct.pack("<H6x", 1) + _rss_config(_types(nic), _key(ctx), [0], 0, 1)
    nic.order(_CONTEXTS, 1, context)
    if nic.command(_CONTEXTS, 1, context)[0] == Ack.OK:
        raise NotObservable("a context can be added a second time")
    nic = nic.anew(ctx)
    nic.order(_CONTEXTS, 1, context)
