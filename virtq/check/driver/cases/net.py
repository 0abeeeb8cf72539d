"""What a driver transmits, and what it has for the device to fill (5.1.6)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from virtq.check.case import NotObservable, case, expect
from virtq.check.driver.context import DriverContext, Live, Stalled
from virtq.check.driver.record import Chain, Record
from virtq.check.driver.ring import JudgedRing
from virtq.check.driver.roles import RING_FEATURES, Port, packet_for
from virtq.wire import net
from virtq.wire.net import GSO_ECN, Gso, HeaderFlag, NetFeature, NetHeader

ETHERNET_BYTES = 14
NO_SEGMENT_BYTES = 1526
BIG_BYTES = 65601
"""The least that 5.1.6.3.1 names for a receive buffer that takes segments."""
KNOWN_TYPES = (0x0800, 0x0806, 0x86DD, 0x88B5, 0x8100, 0x88CC)
TUNNEL_BITS = 0x60
WITH_CSUM = RING_FEATURES | int(NetFeature.CSUM)
WITH_TSO = WITH_CSUM | int(NetFeature.HOST_TSO4)
WITH_MTU = RING_FEATURES | int(NetFeature.MTU)
_UNKNOWN_FLAGS = 0xE0


def sent(record: Record) -> Iterator[tuple[Chain, NetHeader, bytes]]:
    """What was transmitted: the buffer, its header, the beginning of its frame. Raises
    NotObservable if there is nothing."""
    found = False
    for queue in record.queues:
        for chain in queue.chains if queue.index % 2 else ():
            if chain.readable_bytes >= net.HEADER_BYTES:
                found = True
                header = NetHeader.parse(chain.readable)
                yield chain, header, chain.readable[net.HEADER_BYTES :]
    if not found:
        raise NotObservable("the driver transmitted nothing")


def posted(record: Record) -> Iterator[Chain]:
    """Receive buffers. Raises NotObservable if there are none."""
    found = False
    for queue in record.queues:
        for chain in queue.chains if not queue.index % 2 else ():
            found = True
            yield chain
    if not found:
        raise NotObservable("the driver has no receive buffers")


def checksum(data: bytes) -> int:
    """The Internet checksum of data that contain theirs: 0 if it is right."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _each_header(driver: DriverContext, holds: Callable[[NetHeader], object], what: str) -> None:
    for chain, header, _ in sent(driver.seen()):
        expect(holds(header), f"{chain}: {what}", header)


@case("net.queues.numbering", "net.tx.one-buffer", party="driver", device_id=1)
def queues_have_their_numbers(driver: DriverContext) -> None:
    """Receive queues have even numbers, and buffers for the device to write; transmit queues have
    odd ones, and buffers for it to read, each with a header and a whole packet."""
    record = driver.seen()
    for chain in record.chains():
        if chain.queue % 2:
            least = net.HEADER_BYTES + ETHERNET_BYTES
            came = f"{chain.readable_bytes} to read, {chain.writable_bytes} to write"
            good = chain.readable_bytes >= least and not chain.writable_bytes
            expect(good, f"{chain}: {least} bytes to read at least, none to write", came)
        else:
            count = chain.readable_bytes
            expect(not count, f"{chain}: nothing to read in a receive buffer", f"{count} bytes")


@case("net.cfg.drv.read-only", party="driver", device_id=1)
def the_configuration_is_not_written(driver: DriverContext) -> None:
    """The driver writes to no field of the configuration space."""
    written = driver.seen(chains=False).messages("SET_CONFIG")
    expect(not written, "no write to the configuration space", written)


@case("net.tx.drv.num-buffers-zero", party="driver", device_id=1)
def num_buffers_is_zero(driver: DriverContext) -> None:
    """num_buffers is 0 in the header of what is transmitted."""
    _each_header(driver, lambda header: header.num_buffers == 0, "num_buffers 0")


@case("net.tx.drv.flags-zero-no-csum", party="driver", device_id=1)
def flags_are_zero_without_csum(driver: DriverContext) -> None:
    """Without CSUM the header's flags are 0."""
    _each_header(driver, lambda header: header.flags == 0, "flags 0 without CSUM")


@case(
    "net.tx.drv.gso-none",
    "net.tx.drv.no-tso4",
    "net.tx.drv.no-tso6",
    "net.tx.drv.no-ufo",
    "net.tx.drv.no-uso",
    party="driver",
    device_id=1,
)
def no_segmentation_without_the_feature(driver: DriverContext) -> None:
    """Without a feature for segmentation gso_type is NONE."""
    kinds = ~(GSO_ECN | TUNNEL_BITS)
    _each_header(driver, lambda header: header.gso_type & kinds == Gso.NONE, "gso_type NONE")


@case(
    "net.tx.drv.no-tunnel-gso",
    "net.tx.drv.no-tunnel-bits-unnegotiated",
    party="driver",
    device_id=1,
)
def no_tunnel_without_the_feature(driver: DriverContext) -> None:
    """Without HOST_UDP_TUNNEL_GSO no tunnel bit is set in gso_type."""
    _each_header(driver, lambda header: not header.gso_type & TUNNEL_BITS, "no tunnel bit")


@case(
    "net.tx.drv.no-tunnel-csum-flag",
    "net.tx.drv.no-tunnel-csum-unnegotiated",
    party="driver",
    device_id=1,
)
def no_tunnel_checksum_without_the_feature(driver: DriverContext) -> None:
    """Without HOST_UDP_TUNNEL_GSO_CSUM its flag is not set."""
    _each_header(driver, lambda header: not header.flags & 8, "no UDP_TUNNEL_CSUM flag")


@case("net.tx.drv.no-rx-flags", party="driver", device_id=1, offers=WITH_CSUM)
def no_receive_flags_are_transmitted(driver: DriverContext) -> None:
    """DATA_VALID and RSC_INFO are not set in what is transmitted."""
    flags = int(HeaderFlag.DATA_VALID | HeaderFlag.RSC_INFO)
    _each_header(driver, lambda header: not header.flags & flags, "neither DATA_VALID nor RSC_INFO")


@case("net.tx.drv.full-checksum-no-csum", party="driver", device_id=1)
def packets_are_checksummed_without_csum(driver: DriverContext) -> None:
    """SHOULD: without CSUM the packets have whole checksums (seen: UDP and TCP over IPv4)."""
    looked = False
    for chain, _, frame in sent(driver.seen()):
        packet = _transport(frame)
        if packet is not None and len(frame) == chain.readable_bytes - net.HEADER_BYTES:
            looked = True
            expect(packet == 0, f"{chain}: a checksum that is right", f"off by {packet:#x}")
    if not looked:
        raise NotObservable("no UDP or TCP over IPv4 was transmitted")


def _transport(frame: bytes) -> int | None:
    """What is left of the checksum of a UDP or TCP packet over IPv4 (0: right, or none), or
    None."""
    if len(frame) < 34 or frame[12:14] != b"\x08\x00" or frame[23] not in (6, 17):
        return None
    head = (frame[14] & 15) * 4
    total = int.from_bytes(frame[16:18], "big")
    body = frame[14 + head : 14 + total]
    place = 6 if frame[23] == 17 else 16
    if len(body) < place + 2 or int.from_bytes(frame[20:22], "big") & 0x3FFF:
        return None
    if frame[23] == 17 and body[6:8] == b"\0\0":
        return 0
    pseudo = frame[26:34] + bytes([0, frame[23]]) + len(body).to_bytes(2, "big")
    return checksum(pseudo + body)


@case(
    "net.tx.drv.needs-csum-offsets",
    "net.tx.drv.needs-csum-pseudo",
    party="driver",
    device_id=1,
    offers=WITH_CSUM,
)
def partial_checksums_can_be_finished(driver: DriverContext) -> None:
    """With NEEDS_CSUM the checksum field, which csum_start and csum_offset name, holds the sum of
    the pseudo header, so that the device can finish it (seen: UDP and TCP over IPv4)."""
    record = driver.accepted(NetFeature.CSUM)
    looked = False
    for chain, header, frame in sent(record):
        if not header.flags & HeaderFlag.NEEDS_CSUM or _transport(frame) is None:
            continue
        looked = True
        head = 14 + (frame[14] & 15) * 4
        place = 6 if frame[23] == 17 else 16
        offsets = header.csum_start, header.csum_offset
        expect(offsets == (head, place), f"{chain}: csum_start, csum_offset {head, place}", offsets)
        length = int.from_bytes(frame[16:18], "big") - (head - 14)
        pseudo = frame[26:34] + bytes([0, frame[23]]) + length.to_bytes(2, "big")
        stored = int.from_bytes(frame[head + place : head + place + 2], "big")
        due = ~checksum(pseudo) & 0xFFFF
        expect(stored == due, f"{chain}: the pseudo header's sum {due:#x}", hex(stored))
    if not looked:
        raise NotObservable("no packet was transmitted with NEEDS_CSUM")


@case(
    "net.tx.drv.gso-needs-csum",
    "net.tx.drv.gso-size",
    party="driver",
    device_id=1,
    offers=WITH_TSO,
)
def segmentation_has_its_fields(driver: DriverContext) -> None:
    """A packet to be segmented has NEEDS_CSUM set, and gso_size holds the size of its segments."""
    looked = False
    for chain, header, _ in sent(driver.accepted(NetFeature.HOST_TSO4)):
        if header.gso_type & ~GSO_ECN == Gso.NONE:
            continue
        looked = True
        needs = header.flags & HeaderFlag.NEEDS_CSUM
        expect(needs, f"{chain}: NEEDS_CSUM with gso_type {header.gso_type}", header)
        expect(header.gso_size > 0, f"{chain}: a gso_size", header)
    if not looked:
        raise NotObservable("no packet to be segmented was transmitted")


@case("net.rxbuf.drv.min-header", party="driver", device_id=1)
def mergeable_buffers_hold_a_header(driver: DriverContext) -> None:
    """With MRG_RXBUF each receive buffer holds the header at least."""
    for chain in posted(driver.accepted(NetFeature.MRG_RXBUF)):
        room = chain.writable_bytes
        expect(room >= net.HEADER_BYTES, f"{chain}: {net.HEADER_BYTES} bytes at least", room)


def _lone(driver: DriverContext, extra: int) -> Record:
    """A driver that is not offered MRG_RXBUF."""
    features = driver.offer.features & ~int(NetFeature.MRG_RXBUF) | extra
    peer = driver.fresh(driver.offer.with_(features=features))
    live = driver.going(peer)
    for _ in peer.turns(driver.patience_s):
        if any(peer.record.chains(0)) and any(peer.record.chains(1)):
            break
    live.turns(driver.moment_s)
    if lacking := extra & ~(peer.features or 0):
        raise NotObservable(f"not accepted: {NetFeature(lacking)!r}")
    return peer.record


@case("net.rxbuf.drv.mtu-buffers", party="driver", device_id=1, rings=False, alone=True)
def receive_buffers_hold_a_packet(driver: DriverContext) -> None:
    """SHOULD: without MRG_RXBUF and segmentation each receive buffer has 1526 bytes at least."""
    for chain in posted(_lone(driver, 0)):
        room = chain.writable_bytes
        expect(room >= NO_SEGMENT_BYTES, f"{chain}: {NO_SEGMENT_BYTES} bytes at least", room)


@case("net.rxbuf.drv.big-buffers", party="driver", device_id=1, rings=False, alone=True)
def receive_buffers_hold_a_segment(driver: DriverContext) -> None:
    """SHOULD: without MRG_RXBUF, but with GUEST_TSO4, each receive buffer holds the largest packet
    that the device may put together."""
    extra = int(NetFeature.GUEST_CSUM | NetFeature.GUEST_TSO4)
    for chain in posted(_lone(driver, extra)):
        room = chain.writable_bytes
        expect(room >= BIG_BYTES, f"{chain}: {BIG_BYTES} bytes at least", room)


@case(
    "net.cfg.drv.mtu-rx-buffers",
    "net.cfg.drv.mtu-tx",
    party="driver",
    device_id=1,
    rings=False,
    alone=True,
    offers=WITH_MTU,
)
def the_mtu_is_kept(driver: DriverContext) -> None:
    """With MTU each packet can be received into the receive buffers, and none that is larger is
    transmitted."""
    record = _lone(driver, int(NetFeature.MTU))
    least = net.HEADER_BYTES + ETHERNET_BYTES + Port.mtu
    for chain in posted(record):
        room = chain.writable_bytes
        expect(room >= least, f"{chain}: {least} bytes at least", room)
    for chain, _, _ in sent(record):
        size = chain.readable_bytes
        expect(size <= least + net.VLAN_TAG_BYTES, f"{chain}: {least} bytes at most", size)


def _receive(live: Live, packets: int, flags: int, patience_s: float) -> None:
    """Have packets received, one after the other; the driver has to have new buffers for all."""
    ring = live.peer.rings.get(0)
    if ring is None:
        raise NotObservable("there is no receive queue")
    live.peer.service = lambda other: _discard(other) if other is not ring else None
    for number in range(packets):
        live.peer.until(lambda: bool(ring.held), patience_s, "a receive buffer")
        chain = ring.held[0]
        assert chain.taken is not None
        packet = packet_for(Port.mac, number)
        packet = (bytes([flags]) + packet[1:])[: chain.writable_bytes]
        chain.taken.write(packet)
        ring.complete(chain, len(packet))
        ring.publish()
        ring.notify()
        ring.enable_kicks()
        if ring.broken:
            raise Stalled(f"the receive queue: {ring.broken}")


def _discard(ring: JudgedRing) -> None:
    if ring.held and not ring.broken:
        ring.use(list(ring.held))
        ring.notify()
        ring.enable_kicks()


@case("net.rx.drv.ignore-unknown-flags", party="driver", device_id=1)
def unknown_flags_are_ignored(driver: DriverContext) -> None:
    """Bits of a received header's flags that mean nothing are ignored: the driver takes the packet,
    and has buffers for more, around the ring."""
    live = driver.live()
    ring = live.peer.rings.get(0)
    size = ring.size if ring is not None else 0
    _receive(live, min(2 * size, 600), _UNKNOWN_FLAGS, driver.patience_s)


@case("net.tx.drv.header-size", party="driver", device_id=1)
def headers_have_12_bytes(driver: DriverContext) -> None:
    """What is transmitted has a header of 12 bytes, as what is received: an Ethernet frame follows
    right after it."""
    kinds = {int.from_bytes(frame[12:14], "big") for _, _, frame in sent(driver.seen())}
    expect(kinds & {*KNOWN_TYPES}, "Ethernet frames after 12 bytes", [hex(kind) for kind in kinds])
