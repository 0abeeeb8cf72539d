"""The network data path without the interpreter: pumps between a driver half and every port."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import resource
import select
import socket
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from virtq import _core

IN_ORDER, PACKED, INDIRECT, EVENT_IDX = 1 << 35, 1 << 34, 1 << 28, 1 << 29
KINDS = {
    "split": 0,
    "split-in-order": IN_ORDER,
    "packed": PACKED,
    "packed-in-order": PACKED | IN_ORDER,
}
GUEST_CSUM, GUEST_TSO4, GUEST_TSO6 = 1 << 1, 1 << 7, 1 << 8

HEADER = 12
ETHERTYPE, IPV4 = 0x88B5, 0x0800
ADDRESSES = bytes([10, 99, 0, 1, 10, 99, 0, 2])
SIZE = 256
ARENA = 0x40000
ARENA_BYTES = 0x400000
PIECES_MAX = 8
WAIT_S = 10.0

kinds = pytest.mark.parametrize("features", KINDS.values(), ids=KINDS)
merging = pytest.mark.parametrize("mergeable", [False, True], ids=["single", "mergeable"])


class Side:
    """One virtqueue: a driver half that a test drives, the device half that a pump works on."""

    def __init__(self, features: int = 0, size: int = SIZE, *, notified: bool = True) -> None:
        self.memory = _core.Memory.allocate(ARENA + ARENA_BYTES)
        areas = (0x0, 0x10000, 0x20000)
        self.driver = _core.DriverQueue(
            self.memory,
            features,
            size,
            *areas,
            indirect_table=0x30000 if features & INDIRECT else 0,
            indirect_length=PIECES_MAX if features & INDIRECT else 0,
        )
        self.queue = _core.DeviceQueue(self.memory, features, size, *areas)
        self.events = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2)]
        kick, call = self.events
        self.driver.set_kick(kick)
        self.driver.set_call(call)
        if notified:
            self.queue.set_kick(kick)
        self.queue.set_call(call)
        self.at = ARENA
        self.buffers: dict[int, tuple[int, int]] = {}
        self.cookie = 0
        self.pending: list[bytes] = []

    def close(self) -> None:
        for fd in self.events:
            os.close(fd)

    def room(self, length: int) -> int:
        if self.at + length > ARENA + ARENA_BYTES:
            self.at = ARENA
        self.at += length
        return self.at - length

    def add(self, packet: bytes, cuts: Sequence[int] = ()) -> None:
        """Add a packet, header included, cut into descriptors at these offsets."""
        addr = self.room(len(packet))
        self.memory.write(addr, packet)
        edges = [0, *sorted(cuts), len(packet)]
        pieces = [(addr + a, b - a) for a, b in pairwise(edges)]
        self.driver.add(pieces, [], 0)

    def send(self, frames: Sequence[bytes], cut: random.Random | None = None) -> None:
        """Transmit all frames, each cut into random pieces, waiting for room in the ring."""
        for frame in frames:
            packet = bytes(HEADER) + frame
            cuts = sorted(cut.sample(range(1, len(packet)), cut.randint(0, 3))) if cut else []
            while True:
                try:
                    self.add(packet, cuts)
                    break
                except _core.QueueFull:
                    self.driver.kick()
                    self.reap_sent()
        self.driver.kick()
        wait_until(lambda: self.reap_sent() or self.driver.outstanding == 0)

    def reap_sent(self) -> bool:
        self.driver.wait(0.1)
        assert all(written == 0 for _, written in self.driver.reap())
        return False

    def offer(self, length: int, count: int = 1) -> None:
        """Make receive buffers available."""
        for _ in range(count):
            self.cookie += 1
            addr = self.room(length)
            self.buffers[self.cookie] = (addr, length)
            self.driver.add([], [(addr, length)], self.cookie)
        self.driver.kick()

    def reap(self) -> list[bytes]:
        """Packets that came back since the last time, headers included, put together again."""
        for cookie, written in self.driver.reap():
            addr, length = self.buffers.pop(cookie)
            assert written <= length
            self.pending.append(self.memory.read(addr, written))
        packets = []
        while self.pending:
            count = int.from_bytes(self.pending[0][10:12], "little")
            assert 1 <= count <= len(self.pending), "the buffers of a packet come together"
            packets.append(b"".join(self.pending[:count]))
            del self.pending[:count]
        return packets

    def receive(self, count: int, length: int = 2048) -> list[bytes]:
        """Wait for so many packets, making buffers available as long as there is room."""
        packets: list[bytes] = []

        def enough() -> bool:
            if free := self.driver.free:
                self.offer(length, free)
            self.driver.wait(0.05)
            packets.extend(self.reap())
            return len(packets) >= count

        wait_until(enough)
        return packets


@contextlib.contextmanager
def side(features: int = 0, size: int = SIZE, *, notified: bool = True) -> Iterator[Side]:
    made = Side(features, size, notified=notified)
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def pumping(
    port: _core.NetPort,
    at: Side,
    *,
    receive: bool = False,
    pair: int = 0,
    mergeable: bool = False,
    mtu: int | None = None,
    wait: str = "event",
    enabled: bool = True,
) -> Iterator[_core.NetPump]:
    pump = _core.NetPump(
        port,
        at.queue,
        receive=receive,
        pair=pair,
        mergeable=mergeable,
        mtu=mtu,
        wait=wait,
        enabled=enabled,
    )
    try:
        yield pump
    finally:
        pump.stop()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "nothing happened for too long"
        time.sleep(0.001)


def made_by_source(sequence: int, size: int) -> bytes:
    head = b"\xff" * 6 + bytes.fromhex("020000000001 88b5") + sequence.to_bytes(8, "big")
    rest = bytes((sequence + i) & 0xFF for i in range(max(0, size - len(head))))
    return (head + rest)[:size]


def frame(source: int, destination: int, length: int, fill: int = 0) -> bytes:
    head = b"".join(bytes([2, 0, 0, 0, 0, n]) for n in (destination, source)) + b"\x88\xb5"
    return head + bytes((fill + i) & 0xFF for i in range(length - len(head)))


def checksum(frames: Sequence[bytes]) -> int:
    return sum(zlib.crc32(one) for one in frames) % 2**64


def turns(name: str) -> list[tuple[str, int, int]]:
    """How often the threads of that name in this process ran and slept so far."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if (task / "comm").read_text().strip() == name:
                status = (task / "status").read_text()
                switches = re.findall(r"voluntary_ctxt_switches:\s*(\d+)", status)
                used = (task / "stat").read_text().rpartition(")")[2].split()[11:13]
                found.append((task.name, sum(map(int, switches)), sum(map(int, used))))
    return sorted(found)


def assert_asleep(name: str) -> None:
    """Threads of that name exist, and soon none of them runs any more."""

    def quiet() -> bool:
        before = turns(name)
        time.sleep(0.2)
        return turns(name) == before != []

    wait_until(quiet)


# Transmit


@kinds
@pytest.mark.parametrize("more", [0, EVENT_IDX, INDIRECT], ids=["", "event-idx", "indirect"])
def test_transmit(features: int, more: int) -> None:
    rng = random.Random(features)
    frames = [rng.randbytes(rng.choice([14, 60, 100, 1514, 9000])) for _ in range(700)]
    port = _core.NetPort.sink(keep=len(frames))
    with side(features | more) as guest, pumping(port, guest) as pump:
        guest.send(frames, rng)
        assert port.kept == frames
        assert port.stats["checksum"] == checksum(frames)
        for stats, prefix in ((pump.stats, ""), (port.stats, "tx_")):
            assert stats[f"{prefix}packets"] == len(frames)
            assert stats[f"{prefix}bytes"] == sum(map(len, frames))
            assert not any(n for name, n in stats.items() if "dropped" in name)


def test_in_order_one_used_entry_covers_a_batch() -> None:
    for features, entries in ((IN_ORDER, 1), (PACKED | IN_ORDER, 1), (0, 64)):
        with side(features) as guest:
            for n in range(64):
                guest.add(bytes(HEADER) + frame(1, 2, 60, n))
            guest.driver.publish()
            with pumping(_core.NetPort.sink(), guest):
                wait_until(lambda: guest.reap_sent() or guest.driver.outstanding == 0)
            assert guest.queue.stats["used_entries"] == entries


@kinds
def test_framing_that_makes_no_sense_is_dropped(features: int) -> None:
    good = frame(1, 2, 60)
    port = _core.NetPort.sink(keep=9)
    with side(features) as guest, pumping(port, guest) as pump:
        for length in (0, 1, HEADER, HEADER + 13, HEADER + 65590, 1 << 20):
            guest.add(bytes(length))
        guest.add(bytes(HEADER) + good, cuts=[1, 12, 13])
        addr = guest.room(100)
        guest.memory.write(addr, bytes(HEADER) + good)
        guest.driver.add([(addr, 72)], [(addr + 72, 4)], 0)
        guest.driver.add([], [(addr, 72)], 0)
        guest.driver.kick()
        wait_until(lambda: guest.reap_sent() or guest.driver.outstanding == 0)
        assert port.kept == [good]
        assert pump.stats["packets"] == 1
        assert pump.stats["dropped_malformed"] == 8
        assert pump.trouble() is None
        guest.send([good])
        assert pump.stats["packets"] == 2


@kinds
def test_a_broken_ring_is_trouble_of_that_queue_alone(features: int) -> None:
    port = _core.NetPort.sink(keep=4)
    with (
        side(features) as bad,
        side(features) as good,
        pumping(port, bad) as broken,
        pumping(port, good),
    ):
        bad.driver.add([(1 << 50, 100)], [], 0)
        bad.driver.kick()
        assert select.select([broken.attention_fd], [], [], WAIT_S)[0]
        trouble = broken.trouble()
        assert isinstance(trouble, _core.RingFault)
        assert "0x4000000000000" in str(trouble)
        assert broken.trouble() is None
        assert not select.select([broken.attention_fd], [], [], 0)[0]
        assert_asleep("virtq-tx0")
        good.send([frame(1, 2, 60)])
        assert len(port.kept) == 1


@kinds
def test_a_translation_that_was_missing_is_used_when_it_is_there(features: int) -> None:
    port = _core.NetPort.sink(keep=4)
    with side(features) as guest:
        (region,) = guest.memory.regions
        guest.memory.iotlb_enable(True)
        guest.memory.iotlb_update(0, ARENA, region.user_addr, True, True)
        guest.queue.set_memory(guest.memory)
        with pumping(port, guest) as pump:
            data = frame(1, 2, 60)
            addr = guest.room(72)
            os.pwrite(guest.memory.fd_of(0), bytes(HEADER) + data, addr)
            guest.driver.add([(addr, 72)], [], 0)
            guest.driver.kick()
            assert select.select([pump.attention_fd], [], [], WAIT_S)[0]
            trouble = pump.trouble()
            assert isinstance(trouble, _core.TranslationMiss)
            assert trouble.args[1:] == (addr, 72, False)
            guest.memory.iotlb_update(addr, 72, region.user_addr + addr, True, True)
            pump.wake()
            wait_until(lambda: port.kept == [data])


def test_a_disabled_transmit_queue_discards() -> None:
    port = _core.NetPort.sink(keep=4)
    with side(IN_ORDER) as guest, pumping(port, guest, enabled=False) as pump:
        guest.send([frame(1, 2, 60)] * 3)
        assert pump.stats["dropped_disabled"] == 3
        pump.enable(True)
        guest.send([frame(1, 2, 60)])
        assert pump.stats["packets"] == 1
        pump.enable(False)
        guest.send([frame(1, 2, 60)])
        assert pump.stats["dropped_disabled"] == 4
        assert len(port.kept) == 1


# Receive


@kinds
@merging
@pytest.mark.parametrize("more", [0, EVENT_IDX], ids=["", "event-idx"])
def test_receive(features: int, mergeable: bool, more: int) -> None:
    count, size = 1500, 1000
    port = _core.NetPort.source(size, count)
    with (
        side(features | more) as guest,
        pumping(port, guest, receive=True, mergeable=mergeable) as pump,
    ):
        packets = guest.receive(count, 300 if mergeable else 1526)
        assert len(packets) == count
        for sequence, packet in enumerate(packets):
            assert packet[:10] == bytes(10)
            assert packet[10:12] == (b"\4\0" if mergeable else b"\1\0")
            assert packet[HEADER:] == made_by_source(sequence, size)
        assert pump.stats["packets"] == port.stats["rx_packets"] == count
        assert pump.stats["bytes"] == count * size
        buffers = count * (4 if mergeable else 1)
        assert guest.queue.stats["used_entries"] == buffers, "one for each buffer, also in order"


@kinds
def test_spread_over_buffers_of_any_size(features: int) -> None:
    rng = random.Random(features)
    port = _core.NetPort.source(3000, 200)
    with side(features) as guest, pumping(port, guest, receive=True, mergeable=True):
        packets: list[bytes] = []

        def enough() -> bool:
            while guest.driver.free:
                guest.offer(rng.choice([12, 13, 100, 999, 4000]))
            guest.driver.wait(0.05)
            packets.extend(guest.reap())
            return len(packets) == 200

        wait_until(enough)
        assert [p[HEADER:] for p in packets] == [made_by_source(n, 3000) for n in range(200)]


@kinds
def test_buffers_of_several_descriptors(features: int) -> None:
    port = _core.NetPort.source(500, 100)
    with side(features) as guest, pumping(port, guest, receive=True):
        got = []
        for n in range(100):
            addr = guest.room(600)
            guest.driver.add([], [(addr, 5), (addr + 5, 100), (addr + 105, 495)], addr)
            guest.driver.kick()
            wait_until(lambda: guest.driver.wait(0.1))
            ((cookie, written),) = guest.driver.reap()
            got.append(guest.memory.read(cookie, written)[HEADER:])
            assert got[n] == made_by_source(n, 500)


@kinds
def test_packets_that_do_not_fit_are_dropped(features: int) -> None:
    with side(features) as guest:
        port = _core.NetPort.source(1000, 5)
        with pumping(port, guest, receive=True) as pump:
            guest.offer(500, 3)
            wait_until(lambda: pump.stats["dropped_no_room"] == 5)
            assert guest.reap() == []
            assert_asleep("virtq-rx0")


@kinds
@merging
def test_tiny_buffers(features: int, mergeable: bool) -> None:
    port = _core.NetPort.source(64, 3)
    with side(features) as guest, pumping(port, guest, receive=True, mergeable=mergeable) as pump:
        for length in (0, 1, 11, 100, 11, 100, 100):
            guest.offer(length)
        wait_until(lambda: pump.stats["packets"] == 3)
        assert [written for _, written in guest.driver.reap()] == [0, 0, 0, 76, 0, 76, 76]
        assert pump.stats["dropped_malformed"] == 4


@kinds
def test_a_packet_waits_asleep_for_the_rest_of_its_buffers(features: int) -> None:
    port = _core.NetPort.source(1000, 1)
    with side(features) as guest, pumping(port, guest, receive=True, mergeable=True):
        guest.offer(500)
        assert_asleep("virtq-rx0")
        assert guest.reap() == []
        guest.offer(400)
        assert_asleep("virtq-rx0")
        guest.offer(400)
        (packet,) = guest.receive(1)
        assert packet[10] == 3
        assert packet[HEADER:] == made_by_source(0, 1000)


@kinds
def test_stop_with_buffers_taken(features: int) -> None:
    with side(features) as guest:
        pump = _core.NetPump(
            _core.NetPort.source(1000, 3), guest.queue, receive=True, mergeable=True
        )
        guest.offer(600, 5)
        wait_until(lambda: pump.stats["packets"] == 2)
        position = pump.stop()
        assert pump.stop() == position
        assert len(guest.reap()) == 2
        areas = (0x0, 0x10000, 0x20000)
        guest.queue = _core.DeviceQueue(guest.memory, features, SIZE, *areas, position=position)
        guest.queue.set_kick(guest.events[0])
        guest.queue.set_call(guest.events[1])
        with pumping(_core.NetPort.source(100, 3), guest, receive=True, mergeable=True):
            packets = guest.receive(3, 600)
            assert [p[HEADER:] for p in packets] == [made_by_source(n, 100) for n in range(3)]


def test_a_disabled_receive_queue_is_left_alone() -> None:
    port = _core.NetPort.source(64, 100)
    with side() as guest, pumping(port, guest, receive=True, enabled=False) as pump:
        guest.offer(100, 100)
        assert_asleep("virtq-rx0")
        assert pump.stats["packets"] == 0
        pump.enable(True)
        assert len(guest.receive(100)) == 100


def test_mtu() -> None:
    for size, passed in ((1514, True), (1515, False)):
        port = _core.NetPort.source(size, 1)
        with side() as guest, pumping(port, guest, receive=True, mtu=1500) as pump:
            guest.offer(2000)
            wait_until(lambda: any(pump.stats.values()))
            assert (pump.stats["packets"], pump.stats["dropped_mtu"]) == (passed, not passed)


# Waiting


@pytest.mark.parametrize("wait", ["poll", "adaptive", "event"])
@pytest.mark.parametrize("notified", [True, False], ids=["kick", "no-kick"])
def test_every_way_to_wait(wait: str, notified: bool) -> None:
    hub = _core.NetHub()
    one, other = _core.NetPort.hub(hub), _core.NetPort.hub(hub)
    with (
        side(IN_ORDER, notified=notified) as sender,
        side(PACKED, notified=notified) as receiver,
        pumping(one, sender, wait=wait),
        pumping(other, receiver, receive=True, wait=wait),
    ):
        for n in range(30):
            sender.send([frame(1, 2, 60, n)])
            (packet,) = receiver.receive(1)
            assert packet[HEADER:] == frame(1, 2, 60, n)


def test_idle_pumps_sleep() -> None:
    hub = _core.NetHub()
    ports = [_core.NetPort.hub(hub) for _ in range(2)]
    with (
        side() as sender,
        side(EVENT_IDX) as receiver,
        side() as ended,
        pumping(ports[0], sender),
        pumping(ports[1], receiver, receive=True),
        pumping(_core.NetPort.source(64, 10), ended, receive=True),
    ):
        receiver.offer(2048, SIZE)
        assert len(ended.receive(10)) == 10
        sender.send([frame(1, 2, 60)] * 10)
        assert len(receiver.receive(10)) == 10
        assert_asleep("virtq-tx0")
        assert_asleep("virtq-rx0")
        kicks = receiver.driver.stats["kicks_sent"]
        receiver.offer(2048, receiver.driver.free)
        assert_asleep("virtq-rx0")
        assert receiver.driver.stats["kicks_sent"] == kicks, "buffers are not what it waits for"
        sender.send([frame(1, 2, 60)] * 10)
        assert len(receiver.receive(10)) == 10


def test_wrong_arguments() -> None:
    with side() as guest:
        port = _core.NetPort.sink()
        with pytest.raises(ValueError, match="adaptive"):
            _core.NetPump(port, guest.queue, receive=False, wait="sometimes")
        with pumping(port, guest), pytest.raises(OSError, match="another data path"):
            _core.NetPump(port, guest.queue, receive=False)
    for size in (0, 13, 65590):
        with pytest.raises(ValueError, match="frame of"):
            _core.NetPort.source(size)


def test_a_source_carries_on_where_the_last_pump_ended() -> None:
    port = _core.NetPort.source(60, 300)
    seen = []
    for _ in range(3):
        with side() as guest:
            guest.offer(100, 100)
            with pumping(port, guest, receive=True) as pump:
                wait_until(partial(delivered, pump, 100))
            seen += [int.from_bytes(p[26:34], "big") for p in guest.reap()]
    assert seen == list(range(300))
    assert port.stats["rx_packets"] == 300


def delivered(pump: _core.NetPump, packets: int) -> bool:
    return pump.stats["packets"] == packets


def test_an_endless_source_fills_what_there_is() -> None:
    with side(PACKED | IN_ORDER) as guest, pumping(_core.NetPort.source(64), guest, receive=True):
        assert len(guest.receive(20_000)) >= 20_000


# Hub


@kinds
def test_a_hub_between_two_devices(features: int) -> None:
    hub = _core.NetHub()
    ports = [_core.NetPort.hub(hub) for _ in range(2)]
    assert hub.members == 2
    rng = random.Random(1)
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        tx = [enter(side(features)) for _ in range(2)]
        rx = [enter(side(features)) for _ in range(2)]
        for n in range(2):
            enter(pumping(ports[n], tx[n]))
            enter(pumping(ports[n], rx[n], receive=True, mergeable=True))
        frames = [[frame(n, 1 - n, rng.randint(60, 1514), i) for i in range(600)] for n in range(2)]
        got: list[list[bytes]] = [[], []]
        senders = [threading.Thread(target=tx[n].send, args=(frames[n],)) for n in range(2)]
        for thread in senders:
            thread.start()
        receivers = [
            threading.Thread(target=lambda n=n: got[n].extend(rx[n].receive(600, 700)))
            for n in range(2)
        ]
        for thread in receivers:
            thread.start()
        for thread in senders + receivers:
            thread.join()
        for n in range(2):
            assert [p[HEADER:] for p in got[n]] == frames[1 - n]
            assert all(p[:10] == bytes(10) for p in got[n])
        del ports
    assert hub.members == 0


def test_a_hub_ignores_headers_and_drops_what_nobody_reads() -> None:
    hub = _core.NetHub()
    one, other = _core.NetPort.hub(hub), _core.NetPort.hub(hub)
    assert not one.offers_offloads
    with side() as sender, side() as receiver, pumping(one, sender):
        sender.send([frame(1, 2, 60)] * 10)  # nobody is there
        with pumping(other, receiver, receive=True) as pump:
            sender.add(b"\1\1\2\2\3\3\4\4\5\5\6\6" + frame(1, 2, 60))
            sender.driver.kick()
            (packet,) = receiver.receive(1)
            assert packet[:HEADER] == bytes(10) + b"\1\0"
            taken = receiver.driver.outstanding
            sender.send([frame(1, 2, 60)] * 5000)
            wait_until(lambda: pump.stats["packets"] == 1 + taken)
            dropped = pump.stats["dropped_inbox_full"]
            assert 0 < dropped <= 5000 - 4096
            assert other.stats["rx_dropped_inbox_full"] == dropped
            assert one.stats["tx_packets"] == 5011
            assert len(receiver.receive(5000 - dropped)) == 5000 - dropped


# Tap


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextlib.contextmanager
def tap_up(pairs: int = 1, kind: int = ETHERTYPE) -> Iterator[tuple[_core.NetPort, socket.socket]]:
    """A tap interface without addresses, and a socket that sees its frames of one type."""
    port = _core.NetPort.tap("vqtest%d", pairs)
    name = port.name
    assert name
    Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
    ip("link", "set", name, "up")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(kind)) as raw:
        raw.bind((name, kind))
        raw.settimeout(WAIT_S)
        yield port, raw


@kinds
def test_tap(features: int) -> None:
    with tap_up() as (port, raw), side(features) as tx, side(features) as rx:
        assert port.offers_offloads
        with pumping(port, tx), pumping(port, rx, receive=True, mergeable=True) as receiving:
            frames = [frame(1, 2, 60 + n * 10, n) for n in range(100)]
            tx.send(frames, random.Random(features))
            assert [raw.recv(2000) for _ in frames] == frames
            for one in frames:
                raw.send(one)
            packets = rx.receive(len(frames), 500)
            assert [p[HEADER:] for p in packets] == frames
            assert all(p[:10] == bytes(10) for p in packets)
            assert port.stats["tx_packets"] == port.stats["rx_packets"] == 100
            assert_asleep("virtq-tx0")
            assert_asleep("virtq-rx0")
            receiving.enable(False)
            raw.send(frames[0])
            assert_asleep("virtq-rx0")
            receiving.enable(True)
            assert rx.receive(1)[0][HEADER:] == frames[0]


def test_tap_takes_packets_of_many_pieces_and_refuses_nonsense() -> None:
    with tap_up() as (port, raw), side() as guest, pumping(port, guest) as pump:
        whole = frame(1, 2, 1000)
        packet = bytes(HEADER) + whole
        guest.add(packet, cuts=range(10, 1000, 9))
        guest.driver.kick()
        assert raw.recv(2000) == whole
        # Flags NEEDS_CSUM with an offset behind the end; an unknown segmentation type.
        guest.add(struct.pack("<BBHHHHH", 1, 0, 0, 0, 60000, 16, 0) + whole)
        guest.add(struct.pack("<BBHHHHH", 0, 0x55, 0, 0, 0, 0, 0) + whole)
        guest.send([whole])
        assert raw.recv(2000) == whole
        assert pump.stats["dropped_port_error"] == 2
        assert port.name
        ip("link", "set", port.name, "down")
        guest.send([whole])
        assert pump.stats["dropped_port_error"] == 3
        ip("link", "set", port.name, "up")
        assert raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ENETDOWN
        guest.send([whole])
        assert raw.recv(2000) == whole


def folded(data: bytes) -> int:
    number: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while number >> 16:
        number = (number & 0xFFFF) + (number >> 16)
    return number


def ipv4(protocol: int, body: bytes) -> bytes:
    """An Ethernet frame with an IPv4 packet."""
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0x4000, 64, protocol, 0)
    header += ADDRESSES
    header = header[:10] + struct.pack("!H", ~folded(header) & 0xFFFF) + header[12:]
    return frame(1, 2, 14)[:12] + b"\x08\x00" + header + body


def udp_frame(port: int) -> bytes:
    return ipv4(17, struct.pack("!HHHH", port, 9, 20, 0) + bytes(12))


def tcp_segment(payload: bytes) -> bytes:
    """A frame with a TCP segment, whose checksum is that of the pseudo header."""
    pseudo = folded(ADDRESSES + struct.pack("!HH", 6, 20 + len(payload)))
    header = struct.pack("!HHIIBBHHH", 1000, 2000, 1, 1, 0x50, 0x10, 4096, pseudo, 0)
    return ipv4(6, header + payload)


SEGMENTATION = struct.pack("<BBHHHHH", 1, 1, 54, 1400, 34, 16, 0)
"""The header for `tcp_segment`: NEEDS_CSUM, TCPV4, segments of 1400 bytes."""


def with_headers(raw: socket.socket) -> None:
    """From now on the socket has the first 10 bytes of the header before each frame."""
    sol_packet, packet_vnet_hdr = 263, 15
    raw.setsockopt(sol_packet, packet_vnet_hdr, 1)


def test_tap_offloads_both_ways() -> None:
    payload = random.Random(3).randbytes(8000)
    segment = tcp_segment(payload)
    with tap_up(kind=IPV4) as (port, raw), side() as tx, side() as rx:
        with_headers(raw)

        def received(count: int) -> list[bytes]:
            raw.send(SEGMENTATION[:10] + segment)
            return rx.receive(count)

        with pumping(port, tx), pumping(port, rx, receive=True, mergeable=True):
            tx.add(SEGMENTATION + segment)
            tx.driver.kick()
            assert raw.recv(20_000) == SEGMENTATION[:10] + segment

            pieces = received(6)
            assert len(pieces) == 6, "without offloads the kernel cuts it"
            assert all(p[:2] == b"\0\0" for p in pieces)
            assert b"".join(p[HEADER + 54 :] for p in pieces) == payload
            port.set_offloads(GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6)
            (whole,) = received(1)
            assert whole[:2] == b"\1\1"
            assert whole[4:6] == (1400).to_bytes(2, "little")
            assert whole[10] == 4
            assert whole[HEADER + 54 :] == payload
            port.set_offloads(0)
            assert len(received(6)) == 6
            with pytest.raises(OSError, match="Invalid"):
                port.set_offloads(GUEST_TSO4)


def test_tap_with_what_other_offloads_left_behind() -> None:
    segment = tcp_segment(bytes(8000))
    with tap_up(kind=IPV4) as (port, raw), side() as rx:
        port.set_offloads(GUEST_CSUM | GUEST_TSO4)
        with_headers(raw)
        raw.send(SEGMENTATION[:10] + segment)
        port.set_offloads(0)
        raw.send(bytes(10) + udp_frame(1))
        with pumping(port, rx, receive=True) as pump:
            (packet,) = rx.receive(1, 20_000)
            assert packet[HEADER:] == udp_frame(1)
            assert pump.stats["dropped_malformed"] == 1


def test_tap_queues_follow_their_receive_pumps() -> None:
    frames = [udp_frame(1000 + n) for n in range(64)]
    with (
        tap_up(pairs=2, kind=IPV4) as (port, raw),
        side() as first,
        side() as second,
        side() as tx,
    ):
        with pytest.raises(ValueError, match="queue pair 2"):
            _core.NetPump(port, tx.queue, receive=False, pair=2)

        def arrive() -> tuple[int, int]:
            """How many of 64 flows come on which queue."""
            for one in frames:
                raw.send(one)
            counts = [0, 0]

            def all_there() -> bool:
                for n, at in enumerate((first, second)):
                    if free := at.driver.free:
                        at.offer(200, free)
                    counts[n] += len(at.reap())
                return sum(counts) == len(frames)

            wait_until(all_there)
            return counts[0], counts[1]

        with (
            pumping(port, first, receive=True),
            pumping(port, second, receive=True, pair=1, enabled=False) as extra,
            pumping(port, tx, pair=1),
        ):
            assert arrive() == (64, 0)
            tx.send([frames[0]])  # the second queue is not in use, its transmit half works
            assert raw.recv(200) == frames[0]
            extra.enable(True)
            wait_until(lambda: arrive()[1] > 0)
            tx.send([frames[1]])
            assert raw.recv(200) == frames[1]
            extra.enable(False)
            assert_asleep("virtq-rx1")
            assert arrive() == (64, 0)
            assert_asleep("virtq-rx0")


def test_a_tap_that_disappears_leaves_pumps_asleep() -> None:
    with tap_up() as (port, _), side() as tx, side() as rx:
        assert port.name
        with pumping(port, tx) as sending, pumping(port, rx, receive=True) as receiving:
            rx.offer(2000, 10)
            ip("link", "delete", port.name)
            wait_until(lambda: receiving.stats["dropped_port_error"] == 1)
            assert_asleep("virtq-rx0")
            tx.send([frame(1, 2, 60)])
            assert sending.stats["dropped_port_error"] == 1
            assert_asleep("virtq-tx0")


def test_a_tap_that_is_brought_up_late() -> None:
    port = _core.NetPort.tap("vqtest%d")
    assert port.name
    with side() as rx, pumping(port, rx, receive=True) as pump:
        rx.offer(2000, 10)
        assert_asleep("virtq-rx0")
        Path(f"/proc/sys/net/ipv6/conf/{port.name}/disable_ipv6").write_text("1")
        for _ in range(2):
            ip("link", "set", port.name, "up")
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as raw:
                raw.bind((port.name, ETHERTYPE))
                raw.send(frame(1, 2, 60))
            assert rx.receive(1)[0][HEADER:] == frame(1, 2, 60)
            ip("link", "set", port.name, "down")
            assert_asleep("virtq-rx0")
        assert pump.stats["dropped_port_error"] == 0


def test_tap_errors() -> None:
    for name in ("", "sixteen-bytes-xx", "a/b"):
        with pytest.raises(ValueError, match="not an interface name"):
            _core.NetPort.tap(name)
    with pytest.raises(ValueError, match="queue pair"):
        _core.NetPort.tap("vqtest%d", 0)
    with pytest.raises(OSError, match="lo") as caught:
        _core.NetPort.tap("lo")
    assert caught.value.errno
    first = _core.NetPort.tap("vqtest%d")
    assert first.name
    with pytest.raises(OSError, match=first.name):
        _core.NetPort.tap(first.name)
    assert _core.NetPort.sink().name is None


def test_a_tap_made_for_several_queues_opens_for_one() -> None:
    ip("tuntap", "add", "vqpersist", "mode", "tap", "multi_queue")
    try:
        assert _core.NetPort.tap("vqpersist").name == "vqpersist"
        assert _core.NetPort.tap("vqpersist", 3).name == "vqpersist"
    finally:
        ip("link", "delete", "vqpersist")


# Capture files


def parse_pcap(data: bytes) -> list[bytes]:
    magic, major, minor, _, _, _, link = struct.unpack_from("=IHHiIII", data)
    assert (magic, major, minor, link) == (0xA1B23C4D, 2, 4, 1)
    at, frames = 24, []
    while at < len(data):
        seconds, nanoseconds, length, original = struct.unpack_from("=IIII", data, at)
        assert abs(seconds - time.time()) < 60
        assert nanoseconds < 10**9
        assert length == original
        frames.append(data[at + 16 : at + 16 + length])
        at += 16 + length
    return frames


@kinds
def test_pcap_out_and_in(features: int, tmp_path: Path) -> None:
    rng = random.Random(features)
    frames = [rng.randbytes(rng.choice([14, 60, 1514, 20_000])) for _ in range(300)]
    path = tmp_path / "sent.pcap"
    with side(features) as guest, pumping(_core.NetPort.pcap(None, path), guest) as pump:
        for start in range(0, 300, 100):
            guest.send(frames[start : start + 100], rng)
            assert parse_pcap(path.read_bytes()) == frames[: start + 100]
        assert pump.stats["packets"] == 300
    port = _core.NetPort.pcap(path, os.fspath(tmp_path / "unused.pcap"))
    with side(features) as guest, pumping(port, guest, receive=True, mergeable=True) as pump:
        assert [p[HEADER:] for p in guest.receive(300, 4096)] == frames
        assert pump.stats["bytes"] == sum(map(len, frames))
        assert_asleep("virtq-rx0")


def test_pcap_of_the_other_byte_order_with_odd_frames(tmp_path: Path) -> None:
    frames = [b"short", frame(1, 2, 60), bytes(70_000), frame(1, 2, 61)]
    path = tmp_path / "other.pcap"
    records = [struct.pack(">IIII", 0, 0, len(one), len(one)) + one for one in frames]
    header = struct.pack(">IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    path.write_bytes(header + b"".join(records))
    with side() as guest, pumping(_core.NetPort.pcap(path), guest, receive=True) as pump:
        packets = guest.receive(2)
        assert [p[HEADER:] for p in packets] == [frames[1], frames[3]]
        assert pump.stats["dropped_malformed"] == 2


def test_pcap_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    good = struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    record = struct.pack("=IIII", 0, 0, 60, 60) + bytes(60)
    for content, reason in (
        (b"", "too short"),
        (good[:-1], "too short"),
        (bytes(100), "no capture file"),
        (struct.pack("=I", 0x0A0D0D0A) + bytes(100), "pcapng"),
        (good[:20] + struct.pack("=I", 101), "link type is 101"),
        (good + record + record[:-1], "packet 2, at byte 100, is cut by 1 bytes"),
        (good + record + record[:15], "packet 2, at byte 100, is cut by 1 bytes"),
        (good + struct.pack("=IIII", 0, 0, 2**31, 60), "length of 2147483648"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=reason) as caught:
            _core.NetPort.pcap(path)
        assert os.fspath(path) in str(caught.value)
    with pytest.raises(FileNotFoundError) as missing:
        _core.NetPort.pcap(tmp_path / "missing")
    assert missing.value.filename == os.fspath(tmp_path / "missing")
    with pytest.raises(OSError, match="directory"):
        _core.NetPort.pcap(None, tmp_path)
    with pytest.raises(ValueError, match="needs a file"):
        _core.NetPort.pcap()
    path.write_bytes(good + record)
    with pytest.raises(ValueError, match="at once"):
        _core.NetPort.pcap(path, path)
    assert path.read_bytes() == good + record


def test_a_capture_that_finds_no_room_keeps_whole_packets(tmp_path: Path) -> None:
    path = tmp_path / "full.pcap"
    one = frame(1, 2, 60)
    with side() as guest, pumping(_core.NetPort.pcap(None, path), guest) as pump:
        guest.send([one])
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 30, limits[1]))
        try:
            guest.send([one])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert pump.stats["dropped_port_error"] == 1
        guest.send([one])
        assert pump.stats["packets"] == 2
    assert parse_pcap(path.read_bytes()) == [one, one]
