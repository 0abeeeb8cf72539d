"""The network device and its driver: packets, control commands, ports."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.net_support import MAC, PEER, RawNet, Recording, collect, drive, frame, settle
from virtq import Driver, connect
from virtq.devices.net import NetDevice, ReceiveFilter
from virtq.devices.net_ports import (
    HubPort,
    SinkPort,
    SourcePort,
    source_frame,
)
from virtq.drivers.net import NetDriver, Packet
from virtq.errors import FeatureError, RequestError, RingFault
from virtq.features import Change, F, RingKind
from virtq.transports.loopback import LoopbackTransport
from virtq.wire import layout
from virtq.wire.net import (
    BROADCAST,
    HEADER_BYTES,
    Ack,
    Ctrl,
    CtrlMac,
    CtrlRx,
    CtrlVlan,
    Gso,
    HeaderFlag,
    NetConfig,
    NetFeature,
    NetHeader,
    mac_table,
    mac_text,
    parse_mac,
    parse_mac_table,
)

# Packets


@pytest.mark.parametrize("kind", RingKind, ids=str)
@pytest.mark.parametrize("mergeable", [True, False])
def test_packets_come_back_from_a_lonely_hub(kind: RingKind, mergeable: bool) -> None:
    offer = "" if mergeable else "-MRG_RXBUF"
    frames = [frame(i, 60 + i * 7 % 1455) for i in range(1000)]
    with drive(NetDevice(HubPort()), kind, offer=offer, queue_size=64) as net:
        assert net.kind is kind
        assert net.has(NetFeature.MRG_RXBUF) == mergeable
        got: list[bytes] = []
        for start in range(0, 1000, 40):
            assert net.send(frames[start : start + 40]) == 40
            got += collect(net, 40)
        assert got == frames
        assert net.receive(1, 0) == []


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_packets_are_spread_over_small_buffers(kind: RingKind) -> None:
    device = NetDevice(HubPort(), mtu=9000)
    with drive(device, kind, receive_buffer_bytes=100, queue_size=256) as net:
        assert net.mtu == 9000
        frames = [frame(i, size) for i, size in enumerate((60, 88, 89, 500, 9014, 88, 189, 2000))]
        net.send(frames)
        packets: list[Packet] = []
        while len(packets) < len(frames):
            more = net.receive_packets(64, 5)
            assert more
            packets += more
        assert [p.frame for p in packets] == frames
        expected = [-(-(HEADER_BYTES + len(f)) // 100) for f in frames]
        assert [p.header.num_buffers for p in packets] == expected


def test_without_mergeable_buffers_a_packet_fits_one_or_is_dropped() -> None:
    device = NetDevice(HubPort(), mtu=9000)
    settings = {"offer": "-MRG_RXBUF", "receive_buffer_bytes": 1000}
    with drive(device, RingKind.SPLIT, **settings) as net:
        net.send([frame(1, 988), frame(2, 989), frame(3, 60)])
        packets = net.receive_packets(8, 5)
        packets += net.receive_packets(8, 1) if len(packets) < 2 else []
        assert [p.frame for p in packets] == [frame(1, 988), frame(3, 60)]
        assert {p.header.num_buffers for p in packets} == {1}
    assert device.stats()["receiveq1"]["dropped"] == 1


def test_packets_wait_for_buffers() -> None:
    device = NetDevice(SourcePort(500, 200))
    with drive(device, queue_size=8) as net:
        got: list[bytes] = []
        while len(got) < 500:
            more = net.receive(3, 5)
            assert more
            got += more
        assert got == [source_frame(i, 200) for i in range(500)]
        assert net.receive(1, 0.05) == []


@settings(deadline=None, max_examples=25)
@given(
    kind=st.sampled_from(RingKind),
    mergeable=st.booleans(),
    queue_size=st.sampled_from([4, 16, 128]),
    bursts=st.lists(st.lists(st.integers(14, 1514), max_size=30), max_size=6),
)
def test_any_bursts(
    kind: RingKind, mergeable: bool, queue_size: int, bursts: list[list[int]]
) -> None:
    offer = "" if mergeable else "-MRG_RXBUF"
    with drive(NetDevice(HubPort()), kind, offer=offer, queue_size=queue_size) as net:
        for number, sizes in enumerate(bursts):
            frames = [frame(number * 100 + i, max(size, 18)) for i, size in enumerate(sizes)]
            assert net.send(frames, timeout_s=10) == len(frames)
            assert collect(net, len(frames)) == frames


def test_what_is_too_large_to_send() -> None:
    with drive(NetDevice(SinkPort(), mtu=1000)) as net:
        assert net.send([frame(1, 1018)]) == 1
        with pytest.raises(ValueError, match="a frame of 1019 bytes; the most is 1018"):
            net.send([frame(1, 1019)])


def test_a_full_transmit_ring_waits_as_long_as_told() -> None:
    class Stuck(NetDevice):
        def start_queue(self, queue, enabled):  # type: ignore[no-untyped-def]
            pass

        def stop_queue(self, index):  # type: ignore[no-untyped-def]
            pass

    with drive(Stuck(SinkPort()), queue_size=8) as net:
        assert net.send([frame(i) for i in range(20)], timeout_s=0.05) == 8
        assert not net.drain(timeout_s=0.05)


# Malformed packets


@pytest.fixture
def raw() -> Iterator[Callable[..., RawNet]]:
    made: list[RawNet] = []

    def make(device: NetDevice | None = None, offer: Change | None = None) -> RawNet:
        made.append(RawNet(device or NetDevice(SinkPort(), mac=MAC), offer))
        return made[-1]

    yield make
    for one in made:
        one.driver.close()


Make = Callable[..., RawNet]


def test_packets_that_are_none(raw: Make) -> None:
    net = raw()
    for data in (b"x", bytes(11), bytes(12), bytes(25), bytes(70_000)):
        net.send(data)
    net.send(bytes(12) + frame(1))
    stats = net.driver.transport.device.stats()["transmitq1"]  # type: ignore[attr-defined]
    assert (stats["packets"], stats["dropped"]) == (1, 5)


def test_a_buffer_that_is_not_for_reading_is_no_packet(raw: Make) -> None:
    net = raw()
    assert net.driver.queues[1].call(b"", reply=100, timeout_s=5) == b""


def test_a_header_means_something_only_if_negotiated(raw: Make) -> None:
    header = NetHeader(HeaderFlag.NEEDS_CSUM, Gso.TCPV4, 54, 1448, 34, 16, 9).pack()
    port = Recording()
    raw(NetDevice(port)).send(header + frame(1))
    assert port.link.sent == [(0, header[:10] + b"\0\0" + frame(1))]  # num_buffers is the device's
    port = Recording()
    plain = NetDevice(port, offer="-CSUM")
    raw(plain).send(header + frame(1))
    assert port.link.sent == [(0, bytes(12) + frame(1))]


def test_offloads_towards_the_driver() -> None:
    header = NetHeader(HeaderFlag.NEEDS_CSUM, Gso.TCPV4, 54, 1448, 34, 16)
    large = frame(1, 5000)
    port = Recording()
    with drive(NetDevice(port), offer="+GUEST_CSUM,+GUEST_TSO4,+CTRL_GUEST_OFFLOADS") as net:
        both = NetFeature.GUEST_CSUM | NetFeature.GUEST_TSO4
        assert port.link.configured[-1] == (1, both)
        port.link.feed(header.pack() + large)
        [packet] = net.receive_packets(8, 5)
        assert packet == (header._replace(num_buffers=3), large)
        net.set_offloads(0)
        assert port.link.configured[-1] == (1, 0)
        port.link.feed(header.pack() + large, NetHeader(HeaderFlag.DATA_VALID).pack() + frame(2))
        [packet] = net.receive_packets(8, 5)
        assert packet == (NetHeader(num_buffers=1), frame(2))
        with pytest.raises(FeatureError, match="not negotiated"):
            net.set_offloads(NetFeature.GUEST_TSO6)
    assert port.link.configured[-1] == (1, 0)


def test_offloads_from_the_driver() -> None:
    port = Recording()
    header = NetHeader(HeaderFlag.NEEDS_CSUM, Gso.TCPV4, 54, 1448, 34, 16)
    with drive(NetDevice(port), offer="+CSUM,+HOST_TSO4") as net:
        net.send([Packet(header, frame(1, 20_000)), frame(2)])
        settle(net)
        assert [p for _, p in port.link.sent] == [
            header.pack() + frame(1, 20_000),
            bytes(12) + frame(2),
        ]
    with drive(NetDevice(Recording())) as net:
        with pytest.raises(ValueError, match="CSUM was not negotiated"):
            net.send([Packet(header, frame(1))])
        with pytest.raises(ValueError, match=r"no HOST_\* offload"):
            net.send([Packet(NetHeader(gso_type=Gso.TCPV4), frame(1))])
        with pytest.raises(ValueError, match="a frame of 2000 bytes"):
            net.send([Packet(NetHeader(), frame(1, 2000))])


def test_the_mtu_holds_for_received_packets() -> None:
    port = Recording()
    with drive(NetDevice(port, mtu=1000)) as net:
        tagged = frame(3, 1018, kind=b"\x81\x00")
        port.link.feed(*(bytes(12) + f for f in (frame(1, 1014), frame(2, 1015), tagged, b"short")))
        assert collect(net, 2) == [frame(1, 1014), tagged]


# The driver against a device that lies


@pytest.mark.parametrize("count", [0, 1000])
def test_a_packet_in_an_impossible_number_of_buffers(count: int) -> None:
    class Liar(NetDevice):
        def runner(self, queue):  # type: ignore[no-untyped-def]
            from virtq.runner import RequestRunner

            if queue.index:
                return super().runner(queue)
            lie = NetHeader(num_buffers=count).pack() + frame(1)
            return RequestRunner(queue, lambda request: request.write(lie), name="liar")

    with drive(Liar(SinkPort())) as net, pytest.raises(RingFault, match=f"in {count} buffers"):
        net.receive(1, 5)


def test_a_packet_shorter_than_its_header_is_dropped() -> None:
    class Short(NetDevice):
        def runner(self, queue):  # type: ignore[no-untyped-def]
            from virtq.runner import RequestRunner

            if queue.index:
                return super().runner(queue)
            return RequestRunner(queue, lambda request: request.write(b"12345"), name="short")

    with drive(Short(SinkPort()), queue_size=8) as net:
        assert net.receive(1, 0.1) == []
        assert net._receive[0].malformed >= 8


# Several queue pairs


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_queue_pairs(kind: RingKind) -> None:
    port = Recording()
    with drive(NetDevice(port, pairs=4), kind, pairs=3) as net:
        assert net.pairs == 3
        assert list(net.queues) == [
            *(f"{way}q{n}" for n in (1, 2, 3) for way in ("receive", "transmit")),
            "controlq",
        ]
        assert net.queues["controlq"].index == 8
        assert port.link.configured[-1][0] == 3
        for pair in range(3):
            net.send([frame(pair)], pair=pair)
        settle(net)
        assert sorted(port.link.sent) == [(p, bytes(12) + frame(p)) for p in range(3)]
        net.set_pairs(1)
        assert port.link.configured[-1][0] == 1
        with pytest.raises(ValueError, match="3 queue pairs are set up, not 4"):
            net.set_pairs(4)


def test_without_multiqueue_the_control_queue_is_the_third() -> None:
    with drive(NetDevice(SinkPort(), pairs=4), offer="-MQ", pairs=3) as net:
        assert net.pairs == 1
        assert net.queues["controlq"].index == 2
        net.set_rx_mode(CtrlRx.PROMISC, False)


def test_a_flow_returns_on_the_pair_that_sent_it() -> None:
    hub = HubPort()
    device = NetDevice(hub, pairs=2)
    with drive(device, pairs=2) as net, drive(NetDevice(hub)) as other:
        there = frame(1, to=PEER)
        here = MAC + PEER + b"\x88\xb5" + b"back"
        outgoing = PEER + MAC + b"\x88\xb5" + b"forth"
        for pair in (1, 0, 1):
            net.send([outgoing], pair=pair)
            assert collect(other, 1) == [outgoing]
            other.send([here])
            assert collect(net, 1, pair) == [here]
        assert there[:6] == PEER


def test_pairs_follow_enabled_queues_where_no_control_queue_is() -> None:
    port = Recording()
    device = NetDevice(port, pairs=3)
    offer = Change(add=device.features, remove=NetFeature.CTRL_VQ)
    with Driver(LoopbackTransport(device), offer=offer) as driver:
        assert not driver.has(NetFeature.CTRL_VQ)
        assert port.link.configured[-1][0] == 3
        driver.transport._ask(lambda: device.enable_queue(4, False))  # type: ignore[attr-defined]
        assert port.link.configured[-1][0] == 2


def test_a_disabled_transmit_queue_discards() -> None:
    port = Recording()
    device = NetDevice(port)
    with drive(device) as net:
        net.transport._ask(lambda: device.enable_queue(1, False))  # type: ignore[attr-defined]
        net.send([frame(1)])
        settle(net)
        assert port.link.sent == []
        net.transport._ask(lambda: device.enable_queue(1, True))  # type: ignore[attr-defined]
        net.send([frame(2)])
        settle(net)
        assert port.link.sent == [(0, bytes(12) + frame(2))]


# The control queue


def test_commands_of_the_driver() -> None:
    device = NetDevice(SinkPort(), mac=MAC)
    with drive(device, offer="+CTRL_VLAN") as net:
        assert (net.mac, net.link_up, net.mtu) == (MAC, True, 1500)
        net.set_mac(PEER)
        assert net.mac == device.config.mac == PEER
        net.set_rx_mode(CtrlRx.PROMISC, False)
        net.set_rx_mode(CtrlRx.NOBCAST, True)
        net.set_mac_table([MAC], [b"\x01" + bytes(5)])
        net.set_vlan(7, True)
        net.set_vlan(8, True)
        net.set_vlan(8, False)
        seen = device._filter
        assert seen.modes == {CtrlRx.NOBCAST}
        assert (seen.unicast, seen.multicast, seen.vlans) == ({MAC}, {b"\x01" + bytes(5)}, {7})
        with pytest.raises(ValueError, match="not a MAC address"):
            net.set_mac(b"123")
        net.reset()
        assert net.mac == MAC
        assert device._filter.modes == {CtrlRx.PROMISC}
    with drive(NetDevice(SinkPort()), offer="-CTRL_RX,-CTRL_RX_EXTRA") as net:
        for command in (CtrlRx.PROMISC, CtrlRx.NOUNI):
            with pytest.raises(FeatureError, match="was not negotiated"):
                net.set_rx_mode(command, True)
    with drive(NetDevice(SinkPort()), offer="-CTRL_VQ") as net:
        assert "controlq" not in net.queues
        assert not net.has(NetFeature.CTRL_RX)


@pytest.mark.parametrize(
    ("kind", "command", "data"),
    [
        (Ctrl.RX, CtrlRx.PROMISC, b""),
        (Ctrl.RX, CtrlRx.PROMISC, b"\2"),
        (Ctrl.RX, 6, b"\0"),
        (Ctrl.MAC, CtrlMac.ADDR_SET, bytes(5)),
        (Ctrl.MAC, CtrlMac.TABLE_SET, b""),
        (Ctrl.MAC, CtrlMac.TABLE_SET, bytes(7)),
        (Ctrl.MAC, CtrlMac.TABLE_SET, b"\xff" * 8),
        (Ctrl.MAC, CtrlMac.TABLE_SET, bytes(9)),
        (Ctrl.VLAN, CtrlVlan.ADD, bytes(3)),
        (Ctrl.MQ, 0, b"\1\0"),
        (Ctrl.GUEST_OFFLOADS, 0, bytes(8)),
        (9, 9, b""),
    ],
)
def test_commands_that_make_no_sense(raw: Make, kind: int, command: int, data: bytes) -> None:
    assert raw().command(kind, command, data) == bytes([Ack.ERR])


def test_commands_of_a_strange_shape(raw: Make) -> None:
    net = raw()
    queue = net.driver.queues["queue2"]
    assert queue.call(b"\0", reply=1, timeout_s=5) == bytes([Ack.ERR])
    assert queue.call(b"\0\0\1", timeout_s=5) == b""
    assert queue.call(b"", reply=1, timeout_s=5) == bytes([Ack.ERR])
    assert queue.call(bytes(70_000), reply=1, timeout_s=5) == bytes([Ack.ERR])
    assert net.command(Ctrl.RX, CtrlRx.ALLMULTI, b"\1", reply=9) == bytes([Ack.OK])


@pytest.mark.parametrize("pairs", [0, 3, 0xFFFF])
def test_pairs_out_of_range(raw: Make, pairs: int) -> None:
    net = raw(NetDevice(SinkPort(), pairs=2))
    queue = net.driver.queues["queue4"]
    data = bytes([Ctrl.MQ, 0]) + pairs.to_bytes(2, "little")
    assert queue.call(data, reply=1, timeout_s=5) == bytes([Ack.ERR])


def test_a_port_that_cannot_is_an_error_and_changes_nothing() -> None:
    port = Recording()
    with drive(NetDevice(port, pairs=2), pairs=2) as net:
        port.link.fails = True
        with pytest.raises(RequestError, match="MQ 0: the device answered 01"):
            net.set_pairs(1)
        port.link.fails = False
        device = net.transport.device  # type: ignore[attr-defined]
        assert device.active_pairs == 2


def test_link_and_announcement() -> None:
    device = NetDevice(HubPort(), mac=MAC)
    with drive(device) as net:
        ask = net.transport._ask  # type: ignore[attr-defined]
        ask(lambda: device.set_link(False))
        assert not net.link_up
        net.send([frame(1)])
        settle(net)
        assert net.receive(1, 0.05) == []
        ask(lambda: device.set_link(True))
        assert net.link_up
        assert not net.announce_asked
        assert ask(device.announce)
        assert net.announce_asked
        net.acknowledge_announce()
        assert not net.announce_asked
    with drive(device, offer="-GUEST_ANNOUNCE,-STATUS") as net:
        assert not device.announce()
        assert net.link_up


# The receive filter


OTHER = bytes.fromhex("525400000009")
MULTI = bytes.fromhex("01005e000001")


@pytest.mark.parametrize(
    ("modes", "wanted"),
    [
        ({CtrlRx.PROMISC}, "MAC OTHER MULTI LISTED BROADCAST"),
        (set(), "MAC LISTED BROADCAST"),
        ({CtrlRx.ALLMULTI}, "MAC LISTED MULTI BROADCAST"),
        ({CtrlRx.ALLUNI}, "MAC OTHER LISTED BROADCAST"),
        ({CtrlRx.ALLMULTI, CtrlRx.NOMULTI}, "MAC BROADCAST"),
        ({CtrlRx.ALLUNI, CtrlRx.NOUNI}, "LISTED BROADCAST"),
        ({CtrlRx.NOBCAST, CtrlRx.ALLMULTI}, "MAC LISTED MULTI"),
        ({CtrlRx.NOBCAST, CtrlRx.PROMISC}, "MAC OTHER MULTI LISTED BROADCAST"),
    ],
)
def test_receive_modes(modes: set[CtrlRx], wanted: str) -> None:
    listed = bytes.fromhex("01005e000002")
    chosen = ReceiveFilter(modes=modes, multicast={listed})
    addresses = {"MAC": MAC, "OTHER": OTHER, "MULTI": MULTI, "LISTED": listed}
    addresses["BROADCAST"] = BROADCAST
    for name, address in addresses.items():
        assert chosen.wants(frame(1, to=address), MAC) == (name in wanted.split()), name


def test_vlans() -> None:
    def tagged(vlan: int) -> bytes:
        return MAC + PEER + b"\x81\x00" + (0xE000 | vlan).to_bytes(2) + b"\x08\x00" + bytes(46)

    assert ReceiveFilter().wants(tagged(5), MAC)
    some = ReceiveFilter(vlans={5})
    assert some.wants(tagged(5), MAC)
    assert not some.wants(tagged(6), MAC)
    assert some.wants(frame(1), MAC)


def test_no_vlan_filter_where_nobody_can_fill_it() -> None:
    device = NetDevice(SinkPort())
    device.accept_features(F.VERSION_1 | NetFeature.CTRL_VLAN)
    assert device._filter.vlans is None
    device.accept_features(F.VERSION_1 | NetFeature.CTRL_VLAN | NetFeature.CTRL_VQ)
    assert device._filter.vlans == set()


def test_the_filter_is_used() -> None:
    with drive(NetDevice(HubPort(), mac=MAC)) as net:
        net.set_rx_mode(CtrlRx.PROMISC, False)
        frames = [frame(1, to=OTHER), frame(2, to=MAC), frame(3, to=MULTI), frame(4, to=BROADCAST)]
        net.send(frames)
        assert collect(net, 2) == [frames[1], frames[3]]


# Configuration space and small things


def test_the_layout_of_section_5_1_4() -> None:
    offsets = {leaf.name: leaf.offset for leaf in layout.fields_of(NetConfig)}
    assert layout.size_of(NetConfig) == 28
    expected = {"mac": 0, "status": 6, "max_virtqueue_pairs": 8, "mtu": 10, "speed": 12}
    assert {name: offsets[name] for name in expected} == expected


def test_the_configuration_space_is_read_only() -> None:
    from virtq.errors import ConfigError

    with pytest.raises(ConfigError, match="mac is not writable"):
        NetDevice(SinkPort()).write_config(0, bytes(6))


@pytest.mark.parametrize(
    "settings", [{"pairs": 0}, {"pairs": 0x8001}, {"mtu": 67}, {"mac": b"\1" * 6}, {"mac": b"x"}]
)
def test_settings_that_make_no_sense(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        NetDevice(SinkPort(), **settings)  # type: ignore[arg-type]


def test_what_is_offered() -> None:
    plain = NetDevice(SinkPort())
    assert not plain.features & (NetFeature.MQ | NetFeature.MTU | NetFeature.CSUM)
    full = NetDevice(Recording(), pairs=2, mtu=1500, speed_mbit_s=10_000)
    for bit in (NetFeature.MQ, NetFeature.MTU, NetFeature.CSUM, NetFeature.SPEED_DUPLEX):
        assert full.features & bit
    assert full.features & NetFeature.CTRL_GUEST_OFFLOADS
    assert not plain.features & NetFeature.CTRL_GUEST_OFFLOADS
    assert full.config.speed == 10_000


def test_mac_addresses_and_tables() -> None:
    assert parse_mac(mac_text(MAC)) == MAC
    for wrong in ("", "1:2:3:4:5", "1:2:3:4:5:6:7", "00:00:00:00:00:0g", "123:0:0:0:0:0"):
        with pytest.raises(ValueError, match=r"."):
            parse_mac(wrong)
    assert parse_mac_table(mac_table([MAC, PEER], [MULTI])) == ([MAC, PEER], [MULTI])
    assert parse_mac_table(mac_table([], [])) == ([], [])


def test_a_queue_reset_is_filled_again() -> None:
    with connect("loopback:net", driver=NetDriver) as net:
        net.send([frame(1)])
        assert collect(net, 1) == [frame(1)]
        net.reset_queue("receiveq1")
        net.reset_queue("transmitq1")
        net.send([frame(2)])
        assert collect(net, 1) == [frame(2)]
        held = net.arena.held_bytes
        net.reset()
        assert net.arena.held_bytes == held
        net.send([frame(3)])
        assert collect(net, 1) == [frame(3)]
