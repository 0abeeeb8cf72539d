"""Packets that the driver receives: which buffers they are in, and the header before them
(5.1.6.3, 5.1.6.4)."""

from __future__ import annotations

import random

from virtq.check.case import case, expect
from virtq.check.context import Context
from virtq.check.net.frames import (
    TCP4,
    TCP6,
    UDP4,
    UDP6,
    Packet,
    ip,
    is_complete,
    offloaded,
    parts,
)
from virtq.check.net.header import SECURITY, SECURITY_ERR, Header
from virtq.check.net.nic import Nic
from virtq.check.session import Sent
from virtq.wire.net import DEVICE_ID
from virtq.wire.net import NetFeature as N

_BUFFER_BYTES = 200
_FRAME_BYTES = 1514
_BURST_FRAMES, _BURST_BUFFERS = 20, 110
_FLOWS = (TCP4, UDP4, TCP6, UDP6)


@case("net.rx.dev.num-buffers-one", "net.rxbuf.dev.num-buffers", device_id=DEVICE_ID)
def one_buffer(ctx: Context) -> None:
    """Without MRG_RXBUF, num_buffers is 1."""
    nic = Nic(ctx)
    frames = [nic.frame(length=length) for length in (60, 61, 500, _FRAME_BYTES)]
    came = nic.deliver(*frames)
    got = [received.frame for received in came]
    expect(got == frames, f"{len(frames)} frames, as they were sent", f"{len(got)} frames")
    for received in came:
        expect(received.header.num_buffers == 1, "num_buffers 1", received.header.num_buffers)


@case("net.rxbuf.dev.single-without-mrg", device_id=DEVICE_ID)
def no_second_buffer(ctx: Context) -> None:
    """Without MRG_RXBUF, no packet goes on in a second buffer, even if the first is too small."""
    nic = Nic(ctx, buffers=0)
    nic.post(_BUFFER_BYTES, 16)
    came = nic.deliver(nic.frame(length=4 * _BUFFER_BYTES))
    expect(len(came) <= 1, "one buffer at the most", f"{len(came)} with parts of a packet")


def _spread(ctx: Context) -> tuple[Nic, bytes, list[Sent]]:
    """A frame that needs many buffers, and the buffers that the device used for it, as they come:
    until they hold enough."""
    nic = Nic(ctx, N.MRG_RXBUF, buffers=0)
    nic.post(_BUFFER_BYTES, 24)
    frame = nic.frame(length=_FRAME_BYTES)
    nic.far.send(Packet(frame))
    ring = nic.receive_ring()
    used: list[Sent] = []
    for _ in nic.session.patience("a frame of 1514 bytes to be received"):
        used += ring.collect()
        if sum(sent.written or 0 for sent in used) >= nic.header_bytes + _FRAME_BYTES:
            break
    for sent in used:
        sent.check()
    return nic, frame, used


@case(
    "net.rx.dev.num-buffers-count",
    "net.rxbuf.dev.num-buffers",
    device_id=DEVICE_ID,
    needs=N.MRG_RXBUF,
)
def spread_over_buffers(ctx: Context) -> None:
    """With MRG_RXBUF, num_buffers is the number of buffers that the packet is in."""
    nic, _, used = _spread(ctx)
    header = Header.parse(used[0].reply[: nic.header_bytes])
    expect(header.num_buffers == len(used), f"num_buffers {len(used)}", header.num_buffers)
    again = nic.deliver(nic.frame(), last_to=None)
    expect([r.header.num_buffers for r in again] == [1], "num_buffers 1 for a short one", again)


@case("net.rx.dev.fill-all-but-last", device_id=DEVICE_ID, needs=N.MRG_RXBUF)
def full_but_the_last(ctx: Context) -> None:
    """All buffers of a packet but the last are filled."""
    _, _, used = _spread(ctx)
    written = [sent.written for sent in used]
    full = all(length == _BUFFER_BYTES for length in written[:-1])
    expect(full, f"{_BUFFER_BYTES} bytes in each but the last", written)


@case("net.rx.continuation-no-header", device_id=DEVICE_ID, needs=N.MRG_RXBUF)
def a_header_in_the_first_only(ctx: Context) -> None:
    """The packet goes on at the beginning of the next buffer: only the first has a header."""
    nic, frame, used = _spread(ctx)
    data = b"".join(sent.reply[: sent.written] for sent in used)
    expect(data[nic.header_bytes :] == frame, "the frame after one header", "other bytes")


@case("net.rx.dev.used-together", device_id=DEVICE_ID, needs=N.MRG_RXBUF)
def all_used_together(ctx: Context) -> None:
    """Once the first buffer of a packet is used, all of them are."""
    nic = Nic(ctx, N.MRG_RXBUF, buffers=0)
    ring = nic.receive_ring()
    for turn in range(4):
        nic.post(_BUFFER_BYTES, 8)
        nic.far.send(Packet(nic.frame(length=_FRAME_BYTES)))
        used: list[Sent] = []
        for _ in nic.session.patience("a frame of 1514 bytes to be received"):
            if used := ring.collect():
                break
        used[0].check()
        count = Header.parse(used[0].reply[: nic.header_bytes]).num_buffers
        expect(len(used) >= count, f"{count} used buffers in turn {turn}", len(used))


@case(
    "net.rx.dev.num-buffers-count",
    "net.rx.dev.fill-all-but-last",
    "net.rx.dev.used-together",
    device_id=DEVICE_ID,
    needs=N.MRG_RXBUF,
)
def a_burst_of_all_sizes(ctx: Context) -> None:
    """Frames of all sizes at once, into buffers of all sizes: each arrives whole and in its turn,
    in buffers that are used together, full but for the last."""
    dice = random.Random(ctx.seed)
    nic = Nic(ctx, N.MRG_RXBUF, buffers=0)
    for _ in range(_BURST_BUFFERS):
        nic.post(dice.randint(nic.header_bytes, 4 * _BUFFER_BYTES))
    sizes = [dice.randint(60, _FRAME_BYTES) for _ in range(_BURST_FRAMES)]
    frames = [nic.frame(length=size) for size in sizes]
    came = nic.deliver(*frames)
    expect([one.frame for one in came] == frames, f"frames of {sizes} bytes", len(came))
    for received in came:
        room = [(sent.written, len(sent.reply)) for sent in received.buffers]
        full = all(written == size for written, size in room[:-1])
        expect(full, "all buffers but the last full", room)


@case("net.rx.dev.flags-zero", device_id=DEVICE_ID)
def no_flags(ctx: Context) -> None:
    """Without GUEST_CSUM, flags is 0, whatever the packet."""
    nic = Nic(ctx)
    packets = [offloaded(flow, nic.payload(100), nic.mac) for flow in _FLOWS]
    frames = [ip(flow, nic.payload(100), nic.mac) for flow in _FLOWS]
    for received in nic.deliver(*packets, *frames, nic.frame()):
        expect(not received.header.flags, "flags 0", f"{received.header.flags:#x}")


@case("net.rx.dev.full-checksum", device_id=DEVICE_ID)
def checksums_are_finished(ctx: Context) -> None:
    """Without GUEST_CSUM, packets should have their checksums finished."""
    nic = Nic(ctx)
    packets = [offloaded(flow, nic.payload(100), nic.mac) for flow in _FLOWS]
    came = nic.deliver(*packets)
    expect(len(came) == len(packets), f"{len(packets)} packets", len(came))
    for received in came:
        found = parts(received.frame)
        expect(is_complete(received.frame, found), "a right checksum", received.frame.hex())


@case("net.cfg.dev.rx-mtu", device_id=DEVICE_ID, needs=N.MTU)
def a_frame_above_the_mtu(ctx: Context) -> None:
    """With MTU, a packet that is larger is not passed on, and one of that size is."""
    nic = Nic(ctx, N.MTU, buffers=0)
    mtu = int.from_bytes(nic.config(10, 2), "little")
    nic.post(nic.header_bytes + mtu + 100, 8)
    frames = [nic.frame(length=mtu + 14 + more) for more in (0, 1, 40)]
    came = [len(received.frame) for received in nic.deliver(*frames)]
    expect(came == [mtu + 14], f"a frame of {mtu + 14} bytes alone", came)


@case("net.rx.dev.outer-nh", device_id=DEVICE_ID, needs=N.OUT_NET_HEADER)
def where_the_network_header_is(ctx: Context) -> None:
    """With OUT_NET_HEADER, an outer_nh_offset that is not 0 is that of the network header."""
    nic = Nic(ctx, N.OUT_NET_HEADER)
    for received in nic.deliver(*(ip(flow, nic.payload(100), nic.mac) for flow in _FLOWS)):
        offset = received.header.outer_nh_offset
        expect(offset in (0, parts(received.frame).network), "14, or 0 for none", offset)


@case("net.rx.dev.outer-nh-otherwise", device_id=DEVICE_ID, needs=N.OUT_NET_HEADER)
def no_network_header(ctx: Context) -> None:
    """A packet without a network header has none in outer_nh_offset."""
    nic = Nic(ctx, N.OUT_NET_HEADER)
    for received in nic.deliver(nic.frame()):
        offset = received.header.outer_nh_offset
        expect(offset == 0, "outer_nh_offset 0 before a frame that is not IP", offset)


@case("net.rx.dev.ipsec-flag-clear", device_id=DEVICE_ID, needs=N.IPSEC)
def no_security_flag(ctx: Context) -> None:
    """SECURITY is clear in packets that saw no IPsec processing."""
    nic = Nic(ctx, N.IPSEC)
    for received in nic.deliver(nic.frame(), ip(TCP4, nic.payload(100), nic.mac)):
        flags = received.header.flags
        expect(not flags & SECURITY, "SECURITY clear", f"flags {flags:#x}")


@case("net.rx.dev.ipsec-err-clear", device_id=DEVICE_ID, needs=N.IPSEC)
def no_security_error(ctx: Context) -> None:
    """SECURITY_ERR is clear in packets that saw no IPsec processing, and so no error in it."""
    nic = Nic(ctx, N.IPSEC)
    for received in nic.deliver(nic.frame(), ip(TCP4, nic.payload(100), nic.mac)):
        flags = received.header.flags
        expect(not flags & SECURITY_ERR, "SECURITY_ERR clear", f"flags {flags:#x}")
