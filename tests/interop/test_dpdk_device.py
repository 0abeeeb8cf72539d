"""virtq's network driver on DPDK's vhost library (testpmd with a net_vhost port).

testpmd counts what it is sent, returns it with its addresses swapped, or sends packets of its own;
counters of both sides are equal to the packet, and contents to the byte.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

import virtq
from virtq.drivers.net import NetDriver
from virtq.errors import PeerGone
from virtq.features import F
from virtq.wire.net import HEADER_BYTES, NetFeature

from .packets import made_up, swapped
from .peers.availability import require
from .peers.testpmd import ForwardStats, Testpmd, TestpmdConfig, VhostPort
from .waiting import wait_until

pytestmark = [pytest.mark.interop, pytest.mark.alone]

DEVICE_CPU: Final = 0
DRIVER_CPU: Final = 1
BURST: Final = 32
# A bound on waits, not a measure: far more than any of this takes on a machine that is busy.
LIMIT_S: Final = 30.0
# DPDK drops what it has no receive buffer for: fewer than the ring has are on their way at once.
WINDOW: Final = 128

KINDS: Final = [
    (packed, in_order, mergeable)
    for packed in (False, True)
    for in_order in (False, True)
    for mergeable in (False, True)
]


def kind_id(kind: tuple[bool, bool, bool]) -> str:
    packed, in_order, mergeable = kind
    words = ["packed" if packed else "split", "in order" if in_order else "any order"]
    return ", ".join(words + ["mergeable"] * mergeable)


every_kind: Final = pytest.mark.parametrize("kind", KINDS, ids=kind_id)
ORDERED: Final = (True, True, True)


@pytest.fixture(autouse=True)
def _peer() -> Iterator[None]:
    """This process shares its CPU with nothing that spins."""
    require("dpdk")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {DRIVER_CPU})
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "net.sock"


def device_config(port: VhostPort) -> TestpmdConfig:
    # Without --no-flush-rx, "start" throws away what has come before.
    args = ["--no-flush-rx", "--txonly-multi-flow"]
    return TestpmdConfig(port, cpus=[DEVICE_CPU], burst=BURST, args=args)


def connect(
    socket_path: Path, kind: tuple[bool, bool, bool], *, queues: int = 2, **settings: Any
) -> NetDriver:
    """A driver of exactly this kind. DPDK tells pairs where queues are asked for: say how many."""
    bits = zip(kind, (F.RING_PACKED, F.IN_ORDER, NetFeature.MRG_RXBUF), strict=True)
    change = ",".join(f"{'+' if on else '-'}{bit.name}" for on, bit in bits)
    uri = f"vhost-user:{socket_path}?queues={queues}"
    return virtq.connect(uri, driver=NetDriver, offer=change, **settings)


def check_agreed(net: NetDriver, device: Testpmd, kind: tuple[bool, bool, bool]) -> None:
    device.wait_link()
    packed, in_order, mergeable = kind
    assert net.has(F.VERSION_1)
    assert net.has(F.RING_PACKED) == packed
    assert net.has(F.IN_ORDER) == in_order
    assert net.has(NetFeature.MRG_RXBUF) == mergeable
    # The log comes another way than the prompt, and later.
    wait_until(lambda: device.negotiated_features() == net.driver_features)


def exchange(net: NetDriver, frames: Sequence[bytes], pair: int = 0) -> list[bytes]:
    """Sends all, a few at a time, and receives as many."""
    received: list[bytes] = []
    sent = 0
    while len(received) < len(frames):
        room = WINDOW - (sent - len(received))
        sent += net.send(frames[sent : sent + min(room, BURST)], pair=pair, timeout_s=LIMIT_S)
        came = net.receive(WINDOW, LIMIT_S if sent == len(frames) else 0.0, pair=pair)
        assert came or sent < len(frames), f"{len(received)} of {len(frames)} packets came"
        received += came
    return received


def check_ip(frame: bytes) -> None:
    """The packets of testpmd's txonly: UDP from port 9 to port 9."""
    assert frame[12:14] == b"\x08\x00"
    ip = frame[14:34]
    assert ip[0] == 0x45
    assert int.from_bytes(ip[2:4]) == len(frame) - 14
    assert ip[9] == 17
    assert sum(int.from_bytes(ip[at : at + 2]) for at in range(0, 20, 2)) % 0xFFFF == 0
    assert frame[34:40] == bytes.fromhex("0009 0009") + (len(frame) - 34).to_bytes(2)


@every_kind
def test_packets_each_way(socket_path: Path, kind: tuple[bool, bool, bool]) -> None:
    in_order = kind[1]
    sent = made_up(3000, seed=2)
    count, size = len(sent), sum(map(len, sent))
    with (
        Testpmd(device_config(VhostPort(socket_path))) as device,
        connect(socket_path, kind) as net,
    ):
        check_agreed(net, device, kind)

        device.start("rxonly")
        for at in range(0, count, BURST):
            assert net.send(sent[at : at + BURST], timeout_s=LIMIT_S) == len(sent[at : at + BURST])
        assert net.drain(timeout_s=LIMIT_S)
        stats = device.wait_stats(lambda stats: stats.rx_packets >= count, LIMIT_S)
        assert device.stop() == ForwardStats(count, 0, 0, 0)
        assert (stats.rx_packets, stats.rx_bytes) == (count, size)
        transmit = net.stats()["transmitq1"]
        assert transmit["buffers"] == count
        assert transmit["bytes_written"] == 0
        assert transmit["kicks_sent"] + transmit["kicks_saved"] == transmit["batches"]

        device.start("macswap")
        assert exchange(net, sent) == [swapped(frame) for frame in sent]
        assert net.drain(timeout_s=LIMIT_S)
        assert device.stop() == ForwardStats(count, 0, count, 0)
        stats = device.port_stats()
        assert (stats.rx_packets, stats.rx_bytes) == (2 * count, 2 * size)
        assert (stats.tx_packets, stats.tx_bytes) == (count, size)
        assert net.stats()["transmitq1"]["buffers"] == 2 * count
        receive = net.stats()["receiveq1"]
        assert receive["buffers"] == count
        assert receive["bytes_written"] == size + HEADER_BYTES * count

        device.clear_stats()
        device.set_packet(200)
        device.start("txonly")
        received: list[bytes] = []
        while len(received) < 20_000:
            came = net.receive(256, LIMIT_S)
            assert came
            received += came
        flood = device.stop()
        # Stopped is stopped: what it has sent is on the ring.
        while len(received) < flood.tx_packets:
            came = net.receive(256, LIMIT_S)
            assert came
            received += came
        assert net.receive(1, 0.0) == []
        stats = device.port_stats()
        assert len(received) == flood.tx_packets == stats.tx_packets
        assert stats.tx_bytes == 200 * len(received)
        assert net.stats()["receiveq1"]["buffers"] == count + len(received)
        assert {len(frame) for frame in received} == {200}
        for frame in received[:256] + received[-256:]:
            check_ip(frame)

        # One used entry may stand for a whole batch, and here it does.
        transmit = net.stats()["transmitq1"]
        if kind[0] and in_order:
            assert transmit["used_entries"] < transmit["buffers"]
        else:
            assert transmit["used_entries"] == transmit["buffers"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind[2]], ids=kind_id)
def test_packets_over_several_receive_buffers(
    socket_path: Path, kind: tuple[bool, bool, bool]
) -> None:
    """The first buffer has the header too; up to six are needed."""
    room = 256
    sent = made_up(2000, seed=3)
    pieces = sum(-(-(HEADER_BYTES + len(frame)) // room) for frame in sent)
    with (
        Testpmd(device_config(VhostPort(socket_path))) as device,
        connect(socket_path, kind, receive_buffer_bytes=room, queue_size=1024) as net,
    ):
        check_agreed(net, device, kind)
        device.start("macswap")
        assert exchange(net, sent) == [swapped(frame) for frame in sent]
        assert device.stop() == ForwardStats(len(sent), 0, len(sent), 0)
        receive = net.stats()["receiveq1"]
        assert receive["buffers"] == pieces
        assert receive["bytes_written"] == sum(map(len, sent)) + HEADER_BYTES * len(sent)


@pytest.mark.parametrize("offer", ["-EVENT_IDX", "-INDIRECT_DESC", "-EVENT_IDX,-INDIRECT_DESC"])
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_without_event_index_or_indirect(socket_path: Path, packed: bool, offer: str) -> None:
    sent = made_up(500, seed=4)
    layout = "+RING_PACKED" if packed else "-RING_PACKED"
    with (
        Testpmd(device_config(VhostPort(socket_path))) as device,
        virtq.connect(
            f"vhost-user:{socket_path}?queues=2", driver=NetDriver, offer=f"{layout},{offer}"
        ) as net,
    ):
        device.wait_link()
        assert net.has(F.EVENT_IDX) == ("EVENT_IDX" not in offer)
        assert net.has(F.INDIRECT_DESC) == ("INDIRECT_DESC" not in offer)
        assert net.has(F.RING_PACKED) == packed
        device.start("macswap")
        assert exchange(net, sent) == [swapped(frame) for frame in sent]
        assert device.stop() == ForwardStats(len(sent), 0, len(sent), 0)


def test_ring_sizes(socket_path: Path) -> None:
    """Packed rings have any size; positions then wrap at odd places."""
    sent = made_up(1000, seed=5)
    with Testpmd(device_config(VhostPort(socket_path))) as device:
        for packed, size in ((True, 256), (True, 257), (True, 1000), (False, 256), (False, 1024)):
            with connect(socket_path, (packed, True, True), queue_size=size) as net:
                check_agreed(net, device, (packed, True, True))
                assert net.queues["receiveq1"].size == size
                device.start("macswap")
                assert exchange(net, sent) == [swapped(frame) for frame in sent]
                assert device.stop() == ForwardStats(len(sent), 0, len(sent), 0)
            device.wait_link(up=False)


def test_two_queue_pairs(socket_path: Path) -> None:
    frames = [made_up(1000, seed=6), made_up(1000, seed=7)]
    with (
        Testpmd(device_config(VhostPort(socket_path, queues=2))) as device,
        connect(socket_path, ORDERED, queues=4, pairs=2) as net,
    ):
        check_agreed(net, device, ORDERED)
        assert net.has(NetFeature.MQ)
        device.start("macswap")
        for pair in (0, 1):
            expected = [swapped(frame) for frame in frames[pair]]
            assert exchange(net, frames[pair], pair) == expected
            assert net.drain(pair=pair, timeout_s=LIMIT_S)
        device.stop()
        counted = device.extended_stats()
        for pair in (0, 1):
            for direction in ("rx", "tx"):
                assert counted[f"{direction}_q{pair}_packets"] == 1000
            assert net.stats()[f"transmitq{pair + 1}"]["buffers"] == 1000
            assert net.stats()[f"receiveq{pair + 1}"]["buffers"] == 1000


def test_one_driver_after_another(socket_path: Path) -> None:
    """Also without an orderly end of the one before."""
    sent = made_up(300, seed=8)
    with Testpmd(device_config(VhostPort(socket_path))) as device:
        for kind in KINDS:
            with connect(socket_path, kind) as net:
                check_agreed(net, device, kind)
                device.start("macswap")
                assert exchange(net, sent) == [swapped(frame) for frame in sent]
                assert device.stop() == ForwardStats(len(sent), 0, len(sent), 0)
                if kind[1]:
                    net.transport.close()
            device.wait_link(up=False)


def keep(doing: str, net: NetDriver, frames: Sequence[bytes]) -> None:
    """Does the same over and over, until time is up or an error comes."""
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        if doing == "receiving":
            net.receive(1, LIMIT_S)
        elif doing == "sending":
            net.send(frames, timeout_s=LIMIT_S)
        else:
            net.drain(timeout_s=LIMIT_S)


@pytest.mark.parametrize("doing", ["receiving", "sending", "draining"])
def test_device_killed(socket_path: Path, doing: str) -> None:
    sent = made_up(64, seed=9)
    with (
        Testpmd(device_config(VhostPort(socket_path))) as device,
        connect(socket_path, ORDERED) as net,
    ):
        device.wait_link()
        device.start("macswap")
        assert exchange(net, sent) == [swapped(frame) for frame in sent]
        # It takes nothing from now on, so something is in flight when it dies.
        device.stop()
        if doing == "draining":
            net.send(sent)
        device.kill()
        with pytest.raises(PeerGone):
            keep(doing, net, sent)
    with (
        Testpmd(device_config(VhostPort(socket_path))) as device,
        connect(socket_path, ORDERED) as net,
    ):
        device.wait_link()
        device.start("macswap")
        assert exchange(net, sent) == [swapped(frame) for frame in sent]
