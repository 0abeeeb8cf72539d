"""DPDK's virtio driver (testpmd with a virtio-user port) on `virtq serve net`.

A capture file takes every packet that the driver sends, so contents are compared byte for byte;
what the driver receives comes from a capture file, and goes back into another one. Counters of
both sides are equal to the packet.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from virtq.features import F
from virtq.wire import pcap
from virtq.wire.net import HEADER_BYTES, NetFeature

from .packets import made_up, swapped
from .peers.availability import require
from .peers.process import Process
from .peers.testpmd import ForwardStats, Testpmd, TestpmdConfig, VirtioUserPort
from .serving import Report, Serving
from .waiting import wait_until

pytestmark = [pytest.mark.interop, pytest.mark.alone]

MAC: Final = bytes.fromhex("525400000007")
DEVICE_CPU: Final = 0
DRIVER_CPU: Final = 1
BURST: Final = 32
QUEUE_SIZE: Final = 256
# A bound on waits, not a measure: far more than any of this takes on a machine that is busy.
LIMIT_S: Final = 30.0
# For packets that are on their way to a driver of which it is not known how many it shall get.
SETTLE_S: Final = 0.3

HEADS_BYTES: Final = 14 + 20 + 8  # Ethernet, IPv4, UDP
PCAP_HEADER_BYTES: Final = 24
PCAP_RECORD_BYTES: Final = 16


@dataclass(frozen=True)
class Kind:
    """What the driver is asked to be."""

    packed: bool
    in_order: bool
    mergeable: bool = False
    vectorized: bool = False

    def __str__(self) -> str:
        words = [
            "packed" if self.packed else "split",
            "in order" if self.in_order else "any order",
            *(["mergeable"] if self.mergeable else []),
            *(["vectorized"] if self.vectorized else []),
        ]
        return ", ".join(words)

    def port(self, socket_path: Path, **more: Any) -> VirtioUserPort:
        return VirtioUserPort(
            socket_path,
            packed=self.packed,
            in_order=self.in_order,
            mrg_rxbuf=self.mergeable,
            vectorized=self.vectorized,
            queue_size=QUEUE_SIZE,
            mac=MAC.hex(":"),
            **more,
        )

    @property
    def features(self) -> int:
        """What must be negotiated, of the features that make the kind."""
        return (
            F.VERSION_1
            | (F.RING_PACKED if self.packed else F(0))
            | (F.IN_ORDER if self.in_order else F(0))
            | (NetFeature.MRG_RXBUF if self.mergeable else NetFeature(0))
        )

    @property
    def data_paths(self) -> list[str]:
        """The code that DPDK must take."""
        if self.packed:
            if self.vectorized and "avx512vl" in Path("/proc/cpuinfo").read_text():
                return ["packed ring vectorized Tx", "packed ring vectorized Rx"]
            receive = "mergeable buffer" if self.mergeable else "standard"
            return ["packed ring standard Tx", f"packed ring {receive} Rx"]
        if self.in_order:
            return ["inorder Tx", "inorder Rx"]
        if self.vectorized:
            return ["standard Tx", "vectorized Rx"]
        return ["standard Tx", "mergeable buffer Rx" if self.mergeable else "standard Rx"]


PLAIN: Final = [
    Kind(packed, in_order, mergeable)
    for packed in (False, True)
    for in_order in (False, True)
    for mergeable in (False, True)
]
# DPDK vectorizes the split layout in any order, and the packed one in order.
KINDS: Final = [*PLAIN, Kind(False, False, vectorized=True), Kind(True, True, vectorized=True)]
ORDERED: Final = Kind(packed=True, in_order=True, mergeable=True)

every_kind: Final = pytest.mark.parametrize("kind", KINDS, ids=str)


@pytest.fixture(autouse=True)
def _peer() -> None:
    require("dpdk")


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "net.sock"


class Device(Serving):
    """`virtq serve net`, on a CPU of its own: DPDK never sleeps."""

    def __init__(self, *arguments: object, socket_path: Path) -> None:
        super().__init__("net", *arguments, socket_path=socket_path)

    def __enter__(self) -> Device:
        super().__enter__()
        os.sched_setaffinity(self.pid, {DEVICE_CPU})
        return self

    def wait_log(self, text: str) -> None:
        """Until the command has said so."""
        self._process.wait_log(text, LIMIT_S)


def driver_config(
    port: VirtioUserPort, *args: str, cpu: int = DRIVER_CPU, **more: Any
) -> TestpmdConfig:
    # Without --no-flush-rx, "start" throws away what has come before.
    args = ("--no-flush-rx", "--txonly-multi-flow", *args)
    return TestpmdConfig(port, cpus=[cpu], burst=BURST, args=args, **more)


def check_agreed(driver: Testpmd, kind: Kind) -> None:
    # The log comes another way than the prompt, and later.
    driver.process.wait_log(f"using {kind.data_paths[-1]} path", LIMIT_S)
    mask = F.VERSION_1 | F.RING_PACKED | F.IN_ORDER | NetFeature.MRG_RXBUF
    assert driver.negotiated_features() & mask == kind.features
    assert driver.data_paths() == kind.data_paths


def check_device(report: Report, kind: Kind) -> None:
    """What the device says of any run that went well."""
    assert report.remarks == ()
    assert report.front_ends == 1
    assert report.negotiated & kind.features == kind.features
    for queue in report.queues.values():
        assert not any(queue[name] for name in queue if name.startswith("dropped"))
    sent, received = report.queues["transmitq1"], report.queues["receiveq1"]
    # The driver's packets are used a batch at a time where that is allowed, and receive buffers
    # always one by one: DPDK does not accept skipped ones.
    if kind.in_order:
        assert sent["used_entries"] == sent["batches"]
    else:
        assert sent["used_entries"] == sent["buffers"]
    assert received["used_entries"] == received["buffers"]


def wait_captured(path: Path, frames: int, frame_bytes: int) -> None:
    """Until a capture file has packets of so many bytes in all."""
    wanted = PCAP_HEADER_BYTES + PCAP_RECORD_BYTES * frames + frame_bytes
    wait_until(lambda: path.stat().st_size >= wanted)
    assert path.stat().st_size == wanted


def sent_by(address: bytes, path: Path) -> list[bytes]:
    """The captured packets from this MAC address."""
    return [frame for frame in captured(path) if frame[6:12] == address]


def has_from(address: bytes, frames: int, path: Path) -> bool:
    return len(sent_by(address, path)) >= frames


def wait_received(driver: Testpmd, frames: int) -> None:
    driver.wait_stats(lambda stats: stats.rx_packets >= frames, LIMIT_S)


def thrown_away(frames: int, received: int) -> int:
    """How many of the first frames DPDK threw away.

    The device may fill buffers as soon as they are available. DPDK's virtio driver makes them
    available first and then, as the last step of starting its port, drops what has come in them:
    at most a ring of packets, seldom any, and counted nowhere.
    """
    lost = frames - received
    assert 0 <= lost <= QUEUE_SIZE
    return lost


def captured(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        return [packet.data for packet in pcap.read(file)]


def capture(path: Path, frames: Iterable[bytes]) -> Path:
    with path.open("wb") as file:
        writer = pcap.Writer(file)
        for frame in frames:
            writer.write(frame, 0)
    return path


def flow_frame(number: int, size: int, source: bytes = MAC) -> bytes:
    """What testpmd sends with --txonly-multi-flow: UDP from 198.18.n.3, of zeroes."""
    ip_bytes, udp_bytes = size - 14, size - 34
    ip = bytearray(b"\x45\x00" + ip_bytes.to_bytes(2) + bytes.fromhex("0000 0000 40 11 0000"))
    ip += bytes([198, 18, number & 0xFF, 3, 198, 18, 0, 2])
    total = sum(int.from_bytes(ip[at : at + 2]) for at in range(0, len(ip), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    ip[10:12] = (~total & 0xFFFF).to_bytes(2)
    udp = bytes.fromhex("0009 0009") + udp_bytes.to_bytes(2) + bytes(2)
    head = bytes.fromhex("020000000000") + source + b"\x08\x00" + ip + udp
    return head + bytes(size - len(head))


def send_exactly(driver: Testpmd, bursts: int) -> ForwardStats:
    """So many bursts of txonly's packets, none of which is dropped if the ring has room."""
    driver.start("rxonly", tx_first_bursts=bursts)
    sent = driver.stop()
    assert (sent.tx_packets, sent.tx_dropped) == (bursts * BURST, 0)
    return sent


# Driver to device


@every_kind
def test_driver_sends(tmp_path: Path, socket_path: Path, kind: Kind) -> None:
    """In bursts that fit the ring, each where the one before ended, and then a flood."""
    out, size, bursts, rounds, flood = tmp_path / "sent.pcap", 64, 7, 8, 10_000
    config = driver_config(kind.port(socket_path))
    with Device("--pcap", out, socket_path=socket_path) as device:
        with Testpmd(config) as driver:
            check_agreed(driver, kind)
            driver.set_packet(size)
            counted = 0
            for _ in range(rounds):
                counted += send_exactly(driver, bursts).tx_packets
                wait_captured(out, counted, counted * size)
            driver.start("txonly")
            driver.wait_stats(lambda stats: stats.tx_packets >= counted + flood, LIMIT_S)
            driver.stop()
            stats = driver.port_stats()
            wait_captured(out, stats.tx_packets, stats.tx_packets * size)
            assert (stats.tx_bytes, stats.tx_errors) == (stats.tx_packets * size, 0)
        report = device.end()

    check_device(report, kind)
    sent = report.queues["transmitq1"]
    assert sent["packets"] == sent["buffers"] == stats.tx_packets
    assert sent["bytes"] == stats.tx_bytes
    assert sent["bytes_read"] == stats.tx_bytes + HEADER_BYTES * stats.tx_packets
    assert sent["bytes_written"] == 0
    assert sent["kicks_received"] <= sent["batches"]

    frames = captured(out)
    assert len(frames) == stats.tx_packets
    known = [flow_frame(number, size) for number in range(256)]
    assert frames[:counted] == [known[number % 256] for number in range(counted)]
    # Where the ring is full DPDK drops packets, and counts them out.
    assert set(frames[counted:]) <= set(known)


@pytest.mark.parametrize("kind", [kind for kind in PLAIN if kind.mergeable], ids=str)
def test_driver_sends_packets_in_pieces(tmp_path: Path, socket_path: Path, kind: Kind) -> None:
    """Packets of three pieces, and a header before them, in chains or indirect tables.

    In the packed layout DPDK's driver leaves WRITE in the flags of the header's descriptor in an
    indirect table (2.8.7), which breaks the queue as it has to. So it gets no such tables there.
    """
    out, pieces, rounds = tmp_path / "sent.pcap", (100, 300, 500), 24
    offer = ["--offer", "-INDIRECT_DESC"] if kind.packed else []
    config = driver_config(kind.port(socket_path))
    size = sum(pieces)
    with Device("--pcap", out, *offer, socket_path=socket_path) as device:
        with Testpmd(config) as driver:
            check_agreed(driver, kind)
            assert bool(driver.negotiated_features() & F.INDIRECT_DESC) != kind.packed
            driver.set_packet(*pieces)
            counted = 0
            for _ in range(rounds):
                counted += send_exactly(driver, 1).tx_packets
                wait_captured(out, counted, counted * size)
            assert driver.port_stats().tx_bytes == counted * size
        report = device.end()
    check_device(report, kind)
    assert report.queues["transmitq1"]["packets"] == counted
    # What is behind the headers is left over from other packets.
    frames = captured(out)
    assert [len(frame) for frame in frames] == [size] * counted
    heads = [flow_frame(number, size)[:HEADS_BYTES] for number in range(counted)]
    assert [frame[:HEADS_BYTES] for frame in frames] == heads


def test_packed_indirect_tables_of_dpdk_break_the_queue(tmp_path: Path, socket_path: Path) -> None:
    """The device says so once for all, and goes on living for the next driver."""
    out = tmp_path / "sent.pcap"
    with Device("--pcap", out, socket_path=socket_path) as device:
        for size, pieces in ((64, (64,)), (900, (100, 300, 500))):
            config = driver_config(ORDERED.port(socket_path))
            with Testpmd(config) as driver:
                check_agreed(driver, ORDERED)
                assert driver.negotiated_features() & F.INDIRECT_DESC
                driver.set_packet(*pieces)
                send_exactly(driver, 1)
                if size == 64:
                    wait_captured(out, BURST, BURST * size)
                else:
                    device.wait_log("transmitq1 is broken")
        with Testpmd(driver_config(ORDERED.port(socket_path))) as driver:
            driver.set_packet(64)
            send_exactly(driver, 1)
            wait_captured(out, 2 * BURST, 2 * BURST * 64)
        report = device.end()
    assert report.front_ends == 3
    assert len(captured(out)) == 2 * BURST


# Device to driver


def check_returns(
    tmp_path: Path, socket_path: Path, kind: Kind, *options: str, room: int = 2048
) -> Report:
    """Packets of all sizes come back as they went, by way of packet buffers with `room` bytes."""
    sent = made_up(4000, seed=1)
    frames, size = len(sent), sum(map(len, sent))
    last = swapped(sent[-1])
    source, out = capture(tmp_path / "in.pcap", sent), tmp_path / "out.pcap"
    scatter = ["--enable-scatter"] if kind.mergeable else []
    # DPDK keeps 128 bytes of each packet buffer for itself.
    config = driver_config(kind.port(socket_path), *scatter, mbuf_size_bytes=room + 128)
    with Device("--pcap-in", source, "--pcap", out, *options, socket_path=socket_path) as device:
        with Testpmd(config) as driver:
            check_agreed(driver, kind)
            # A full ring is tried again, for a second at most.
            driver.command("set fwd macswap retry")
            driver.command("set burst tx delay 100 retry 10000")
            driver.start()
            wait_until(lambda: out.read_bytes().endswith(last))
            stopped, stats = driver.stop(), driver.port_stats()
        report = device.end()

    lost = thrown_away(frames, stats.rx_packets)
    kept, kept_bytes = frames - lost, sum(map(len, sent[lost:]))
    assert stopped == ForwardStats(kept, 0, kept, 0)
    assert (stats.rx_packets, stats.rx_bytes) == (kept, kept_bytes)
    assert (stats.tx_packets, stats.tx_bytes) == (kept, kept_bytes)
    assert (stats.rx_missed, stats.rx_errors, stats.rx_nombuf, stats.tx_errors) == (0, 0, 0, 0)
    check_device(report, kind)
    received, returned = report.queues["receiveq1"], report.queues["transmitq1"]
    assert (received["packets"], received["bytes"]) == (frames, size)
    assert (returned["packets"], returned["bytes"]) == (kept, kept_bytes)
    # Each buffer begins with room for a header, which is put into that of the first one only.
    pieces = [-(-(HEADER_BYTES + len(frame)) // (HEADER_BYTES + room)) for frame in sent]
    assert received["buffers"] == sum(pieces)
    assert received["bytes_written"] == size + HEADER_BYTES * frames
    assert captured(out) == [swapped(frame) for frame in sent[lost:]]
    return report


@every_kind
def test_driver_returns_what_it_receives(tmp_path: Path, socket_path: Path, kind: Kind) -> None:
    report = check_returns(tmp_path, socket_path, kind)
    received = report.queues["receiveq1"]
    assert received["buffers"] == received["packets"]


@pytest.mark.parametrize("kind", [kind for kind in PLAIN if kind.mergeable], ids=str)
def test_driver_returns_packets_in_pieces(tmp_path: Path, socket_path: Path, kind: Kind) -> None:
    """Each in up to six receive buffers, and as many descriptors on the way back."""
    no_tables = ["--offer", "-INDIRECT_DESC"] if kind.packed else []
    report = check_returns(tmp_path, socket_path, kind, *no_tables, room=256)
    received = report.queues["receiveq1"]
    assert received["buffers"] > 3 * received["packets"]


@pytest.mark.parametrize("wait", ["poll", "adaptive", "event"])
def test_device_waits_in_each_way(tmp_path: Path, socket_path: Path, wait: str) -> None:
    check_returns(tmp_path, socket_path, ORDERED, "--wait", wait)


@every_kind
def test_driver_receives_all_of_a_source(socket_path: Path, kind: Kind) -> None:
    frames, size = 50_000, 60
    with Device("--source", f"{size}:{frames}", socket_path=socket_path) as device:
        with Testpmd(driver_config(kind.port(socket_path))) as driver:
            check_agreed(driver, kind)
            driver.start("rxonly")
            wait_received(driver, frames - QUEUE_SIZE)
            # The last ones are in the ring by now, or will be in a moment.
            time.sleep(SETTLE_S)
            got = driver.stop().rx_packets
            stats = driver.port_stats()
        report = device.end()
    thrown_away(frames, got)
    assert (stats.rx_packets, stats.rx_bytes) == (got, got * size)
    assert (stats.rx_missed, stats.rx_errors, stats.rx_nombuf) == (0, 0, 0)
    check_device(report, kind)
    received = report.queues["receiveq1"]
    assert received["packets"] == received["buffers"] == frames
    assert received["bytes"] == frames * size


# More of the device


@pytest.mark.parametrize("pairs", [1, 2])
def test_two_drivers_on_a_hub(tmp_path: Path, pairs: int) -> None:
    """One returns what the other sends, through rings of different kinds."""
    paths = [tmp_path / "near.sock", tmp_path / "far.sock"]
    sockets = [word for path in paths for word in ("--socket-path", path)]
    serve = [sys.executable, "-m", "virtq", "serve", "net", "--hub", "--queues", str(pairs)]
    bursts, rounds, size = 7, 8, 64
    hub = Process([*serve, "--json", *sockets])
    try:
        for path in paths:
            hub.wait_log(f"on {path}", LIMIT_S)
        os.sched_setaffinity(hub.pid, {DEVICE_CPU})
        split = Kind(packed=False, in_order=False)
        with (
            Testpmd(driver_config(ORDERED.port(paths[0], queues=pairs))) as near,
            Testpmd(driver_config(split.port(paths[1], queues=pairs), cpu=DEVICE_CPU)) as far,
        ):
            for driver, kind in ((near, ORDERED), (far, split)):
                check_agreed(driver, kind)
                assert bool(driver.negotiated_features() & NetFeature.MQ) == (pairs > 1)
            far.start("macswap")
            near.set_packet(size)
            for done in range(1, rounds + 1):
                near.start("rxonly", tx_first_bursts=bursts)
                wait_received(near, done * bursts * BURST * pairs)
                assert near.stop().tx_dropped == 0
            of_pair = rounds * bursts * BURST
            frames = pairs * of_pair
            assert far.stop() == ForwardStats(frames, 0, frames, 0)
            stats, counted = near.port_stats(), near.extended_stats()
    finally:
        hub.stop()
    assert (stats.tx_packets, stats.rx_packets) == (frames, frames)
    assert (stats.tx_bytes, stats.rx_bytes) == (size * frames, size * frames)
    devices = [device["queues"] for device in json.loads(hub.log.splitlines()[-1])["devices"]]
    for queues in devices:
        for direction in ("transmit", "receive"):
            packets = [queues[f"{direction}q{pair + 1}"]["packets"] for pair in range(pairs)]
            assert sum(packets) == frames
            assert all(packets)
    for pair in range(pairs):
        sent, received = f"tx_q{pair}_good_packets", f"rx_q{pair}_good_packets"
        assert counted[sent] == devices[0][f"transmitq{pair + 1}"]["packets"] == of_pair
        assert counted[received] == devices[0][f"receiveq{pair + 1}"]["packets"]


def test_driver_killed_and_the_next_one_served(tmp_path: Path, socket_path: Path) -> None:
    out, bursts, size = tmp_path / "sent.pcap", 7, 64
    kinds = [*PLAIN[::3], ORDERED]
    with Device("--pcap", out, socket_path=socket_path) as device:
        for number, kind in enumerate(kinds):
            with Testpmd(driver_config(kind.port(socket_path))) as driver:
                driver.start("txonly")
                driver.wait_stats(lambda stats: stats.tx_packets >= 10_000, LIMIT_S)
                driver.kill()
            address = bytes.fromhex("5254000001") + bytes([number])
            own = replace(kind.port(socket_path), mac=address.hex(":"))
            with Testpmd(driver_config(own)) as driver:
                check_agreed(driver, kind)
                driver.set_packet(size)
                frames = send_exactly(driver, bursts).tx_packets
                expected = [flow_frame(at, size, address) for at in range(frames)]
                wait_until(partial(has_from, address, frames, out))
                assert sent_by(address, out) == expected
        report = device.end()
    assert report.front_ends == 2 * len(kinds)
    assert report.remarks == ()
