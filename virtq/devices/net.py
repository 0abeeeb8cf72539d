"""The network device (VIRTIO 1.4, section 5.1): features, configuration, link, control queue.

    hub = HubPort()
    virtq.serve(NetDevice(TapPort("tap0"), pairs=2), "vhost-user:/run/net.sock")

What carries packets is the port (`net_ports`, `net_tap`); how they get through the data queues is
`net_path`. This file is everything else.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from virtq._core import DeviceQueue, NetPort, NetPump, Position, Request
from virtq.device import Device, QueueSpec
from virtq.devices.net_native import NativeLink, NativePort
from virtq.devices.net_path import ReceiveRunner, TransmitRunner, refresh
from virtq.devices.net_ports import Link, Port
from virtq.features import Change
from virtq.pump import PumpRunner
from virtq.runner import RequestRunner, Runner
from virtq.wire.net import (
    BROADCAST,
    CTRL_ANNOUNCE_ACK,
    CTRL_GUEST_OFFLOADS_SET,
    CTRL_MQ_PAIRS_SET,
    DEVICE_ID,
    ETHERNET_HEADER_BYTES,
    GUEST_OFFLOADS,
    HEADER_BYTES,
    MAC_BYTES,
    MTU_MAX,
    MTU_MIN,
    NO_OFFLOAD,
    PAIRS_MAX,
    VLAN_TAG_BYTES,
    Ack,
    Ctrl,
    CtrlMac,
    CtrlRx,
    CtrlVlan,
    LinkStatus,
    NetConfig,
    NetFeature,
    parse_mac_table,
)

log = logging.getLogger("virtq.device")

COMMAND_BYTES_MAX = 1 << 16
CONTROL_QUEUE_SIZE = 64
_TAGGED = (b"\x81\x00", b"\x88\xa8")


def random_mac() -> bytes:
    """A locally administered unicast address."""
    return b"\x52\x54\x00" + secrets.token_bytes(3)


@dataclass
class ReceiveFilter:
    """Which packets the driver wants (5.1.6.5.1 to 5.1.6.5.3). Everything, until it says
    otherwise."""

    modes: set[CtrlRx] = field(default_factory=lambda: {CtrlRx.PROMISC})
    unicast: set[bytes] = field(default_factory=set)
    multicast: set[bytes] = field(default_factory=set)
    vlans: set[int] | None = None

    def wants(self, frame: bytes, mac: bytes) -> bool:
        """`mac`: the device's own address."""
        return self._wants_vlan(frame) and self._wants_address(frame[:MAC_BYTES], mac)

    def _wants_vlan(self, frame: bytes) -> bool:
        if self.vlans is None or frame[12:14] not in _TAGGED:
            return True
        return int.from_bytes(frame[14:16]) & 0xFFF in self.vlans

    def _wants_address(self, to: bytes, mac: bytes) -> bool:
        modes = self.modes
        if CtrlRx.PROMISC in modes:
            return True
        if to == BROADCAST:
            return CtrlRx.NOBCAST not in modes
        if to[0] & 1:
            listed = CtrlRx.ALLMULTI in modes or to in self.multicast
            return listed and CtrlRx.NOMULTI not in modes
        listed = CtrlRx.ALLUNI in modes or to == mac or to in self.unicast
        return listed and CtrlRx.NOUNI not in modes


class NetDevice(Device):
    """A network interface of one or more queue pairs, with a control queue."""

    device_id = DEVICE_ID
    config: NetConfig
    _guest_offloads: int

    def __init__(
        self,
        port: Port,
        *,
        pairs: int = 1,
        queue_size: int = 256,
        mac: bytes | None = None,
        mtu: int | None = None,
        speed_mbit_s: int | None = None,
        offer: Change | str = "",
        wait: str = "event",
    ) -> None:
        """`mac`: six bytes, by default a random local address. `mtu`: the largest packet without
        its Ethernet header, offered to the driver if given. `wait`: how the data paths of a native
        port wait: poll, adaptive or event.

        Raises ValueError for values outside what the specification allows, OSError if the port
        cannot be opened."""
        if not 1 <= pairs <= PAIRS_MAX:
            raise ValueError(f"a network device has 1 to {PAIRS_MAX} queue pairs, not {pairs}")
        if mtu is not None and not MTU_MIN <= mtu <= MTU_MAX:
            raise ValueError(f"an MTU is {MTU_MIN} to {MTU_MAX} bytes, not {mtu}")
        if mac is not None and (len(mac) != MAC_BYTES or mac[0] & 1):
            raise ValueError(f"{mac.hex(':')} is not a unicast MAC address")
        self.port = port
        self.pairs = pairs
        self.offer = offer
        self.wait = wait
        self.features = _features(port, pairs, mtu, speed_mbit_s)
        self.queues = [
            QueueSpec(f"{kind}q{pair + 1}", queue_size)
            for pair in range(pairs)
            for kind in ("receive", "transmit")
        ]
        self.queues.append(QueueSpec("controlq", CONTROL_QUEUE_SIZE))
        self.config = NetConfig(
            mac=mac or random_mac(),
            status=LinkStatus.LINK_UP,
            max_virtqueue_pairs=pairs,
            mtu=mtu or 0,
            speed=0xFFFFFFFF if speed_mbit_s is None else speed_mbit_s,
            duplex=0xFF if speed_mbit_s is None else 1,
        )
        self._initial_mac = self.config.mac
        self._link = port.open(pairs)
        self.was_reset()

    # What the data path asks

    @property
    def link(self) -> Link:
        return self._link

    @property
    def active_pairs(self) -> int:
        return self._active_pairs

    @property
    def mergeable(self) -> bool:
        return bool(self.driver_features & NetFeature.MRG_RXBUF)

    @property
    def header_passes(self) -> bool:
        return bool(self.driver_features & NetFeature.CSUM)

    @property
    def guest_offloads(self) -> int:
        """The GUEST_* offloads that packets to the driver may have now."""
        return self._guest_offloads

    def admit(self, packet: bytes) -> bytes | None:
        frame_bytes = len(packet) - HEADER_BYTES
        if frame_bytes < ETHERNET_HEADER_BYTES:
            return None
        segmentation = packet[1]
        if self.driver_features & NetFeature.MTU and not segmentation:
            tag = VLAN_TAG_BYTES if packet[HEADER_BYTES + 12 : HEADER_BYTES + 14] in _TAGGED else 0
            if frame_bytes > self.config.mtu + ETHERNET_HEADER_BYTES + tag:
                return None
        if not self.config.status & LinkStatus.LINK_UP:
            return None
        if not self._filter.wants(packet[HEADER_BYTES:], self.config.mac):
            return None
        if self._guest_offloads & NetFeature.GUEST_CSUM:
            return packet
        return None if segmentation else NO_OFFLOAD + packet[HEADER_BYTES:]

    # Life

    def negotiated(self, features: int) -> None:
        self._guest_offloads = features & GUEST_OFFLOADS
        # Front-ends that serve the control queue themselves may leave its features on.
        if features & NetFeature.CTRL_VLAN and features & NetFeature.CTRL_VQ:
            self._filter.vlans = set()
        self._configure_link()

    def was_reset(self) -> None:
        self._filter = ReceiveFilter()
        self._active_pairs = 1
        self._enabled_pairs: set[int] = set()
        self._enabled_queues: set[int] = set()
        self._guest_offloads = 0
        self.config.mac = self._initial_mac
        self.config.status &= ~LinkStatus.ANNOUNCE
        self._link.reset()
        self._configure_link()

    def _configure_link(self) -> None:
        self._link.configure(self._active_pairs, self._guest_offloads)
        for runner in self._runners.values():
            refresh(runner)
        self._let_in()
        self._tell_receivers()

    def start_queue(self, queue: DeviceQueue, enabled: bool) -> None:
        super().start_queue(queue, enabled)
        self._queue_switched(queue.index, enabled)

    def enable_queue(self, index: int, enabled: bool) -> None:
        super().enable_queue(index, enabled)
        self._queue_switched(index, enabled)

    def stop_queue(self, index: int) -> Position:
        position = super().stop_queue(index)
        self._queue_switched(index, False)
        return position

    def _let_in(self) -> None:
        """Native receive queues take packets while the transport has them enabled, the driver uses
        their pair, and the link is up."""
        for index, runner in self._runners.items():
            if isinstance(runner, PumpRunner) and index % 2 == 0:
                used = index // 2 < self._active_pairs and self.link_up
                runner.enable(used and index in self._enabled_queues)

    def _queue_switched(self, index: int, on: bool) -> None:
        """Where the transport's other end serves the control queue (vhost-user front-ends do),
        pairs in use show by their receive queues being enabled."""
        (self._enabled_queues.add if on else self._enabled_queues.discard)(index)
        self._let_in()
        self._tell_receivers()
        if self.driver_features & NetFeature.CTRL_VQ or index % 2 or index >= 2 * self.pairs:
            return
        (self._enabled_pairs.add if on else self._enabled_pairs.discard)(index // 2)
        pairs = max(self._enabled_pairs, default=0) + 1
        if pairs != self._active_pairs and self._reconfigure(pairs, self._guest_offloads) != Ack.OK:
            log.error("network port: %d queue pairs cannot be used", pairs)

    def _tell_receivers(self) -> None:
        """A receive queue that is reset gets nothing while others do (5.1.6.5.6.2). While none of
        the queues is enabled, the driver has not begun, or holds everything."""
        in_use = 2 * self._active_pairs
        enabled = {index for index in self._enabled_queues if index < in_use}
        several = self.driver_features & NetFeature.MQ and self._active_pairs > 1
        receivers = frozenset(index // 2 for index in enabled if index % 2 == 0)
        self._link.receivers(receivers if several and enabled else None)

    def close(self) -> None:
        """Give up the port."""
        self._link.close()

    def wrapped(self) -> None:
        """A port of the core cannot be wrapped: go on with its namesake in Python."""
        if isinstance(self.port, NativePort):
            self._link.close()
            self.port = self.port.python
            self._link = self.port.open(self.pairs)

    def runner(self, queue: DeviceQueue) -> Runner:
        name = self.queue_name(queue.index)
        if queue.index == self.control_index or queue.index >= 2 * self.pairs:
            missed = self._resolve_miss
            return RequestRunner(queue, self.handle, name=name, missed=missed, fail=self.fail)
        if isinstance(self._link, NativeLink):
            return self._native_runner(queue, self._link.native, name)
        kind = TransmitRunner if queue.index % 2 else ReceiveRunner
        return kind(queue, self, queue.index // 2, name=name)

    def _native_runner(self, queue: DeviceQueue, port: NetPort, name: str) -> Runner:
        make = partial(
            NetPump,
            port,
            queue,
            receive=queue.index % 2 == 0,
            pair=queue.index // 2,
            mergeable=self.mergeable,
            mtu=self.config.mtu if self.driver_features & NetFeature.MTU else None,
            wait=self.wait,
            enabled=False,
        )
        return PumpRunner(queue, make, name=name, missed=self._resolve_miss)

    @property
    def control_index(self) -> int | None:
        """The control queue's index, which depends on what was negotiated (5.1.2)."""
        if not self.driver_features & NetFeature.CTRL_VQ:
            return None
        return 2 * self.pairs if self.driver_features & NetFeature.MQ else 2

    def queue_name(self, index: int) -> str:
        return "controlq" if index == self.control_index else super().queue_name(index)

    # The link

    @property
    def link_up(self) -> bool:
        return bool(self.config.status & LinkStatus.LINK_UP)

    def set_link(self, up: bool) -> None:
        """Plug the cable in or out, and tell the driver (5.1.4). From the device's thread."""
        before = self.config.status
        self.config.status = before & ~LinkStatus.LINK_UP | (LinkStatus.LINK_UP if up else 0)
        if self.config.status != before:
            self._let_in()
            self.config_changed()

    def announce(self) -> bool:
        """Ask the driver to make itself known to its network (5.1.6.5.4). False if it did not
        negotiate GUEST_ANNOUNCE."""
        if not self.driver_features & NetFeature.GUEST_ANNOUNCE:
            return False
        self.config.status |= LinkStatus.ANNOUNCE
        self.config_changed()
        return True

    # The control queue

    def handle(self, request: Request) -> int:
        """Serve one command of the control queue (5.1.6.5); returns the bytes written."""
        if request.writable == 0:
            return 0
        ack = Ack.ERR
        if 2 <= request.readable <= COMMAND_BYTES_MAX:
            data = request.read()
            serve, feature = _COMMANDS.get((data[0], data[1]), (None, 0))
            if serve is not None and self.driver_features & feature:
                ack = serve(self, data[1], data[2:])
        return request.write(bytes([ack]))

    def fail(self, request: Request, error: Exception) -> int:
        """ERR for a command that could not be carried out."""
        if request.writable == 0:
            return 0
        request.write_at(0, bytes([Ack.ERR]))
        return 1

    def _set_rx_mode(self, command: int, data: bytes) -> Ack:
        if len(data) != 1 or data[0] > 1:
            return Ack.ERR
        if data[0]:
            self._filter.modes.add(CtrlRx(command))
        else:
            self._filter.modes.discard(CtrlRx(command))
        return Ack.OK

    def _set_mac_table(self, command: int, data: bytes) -> Ack:
        try:
            unicast, multicast = parse_mac_table(data)
        except ValueError:
            return Ack.ERR
        self._filter.unicast, self._filter.multicast = set(unicast), set(multicast)
        return Ack.OK

    def _set_mac(self, command: int, data: bytes) -> Ack:
        if len(data) != MAC_BYTES:
            return Ack.ERR
        self.config.mac = data
        return Ack.OK

    def _set_vlan(self, command: int, data: bytes) -> Ack:
        if len(data) != 2 or self._filter.vlans is None:
            return Ack.ERR
        change = self._filter.vlans.add if command == CtrlVlan.ADD else self._filter.vlans.discard
        change(int.from_bytes(data, "little") & 0xFFF)
        return Ack.OK

    def _acknowledge_announce(self, command: int, data: bytes) -> Ack:
        self.config.status &= ~LinkStatus.ANNOUNCE
        return Ack.OK

    def _set_pairs(self, command: int, data: bytes) -> Ack:
        pairs = int.from_bytes(data, "little")
        if len(data) != 2 or not 1 <= pairs <= self.pairs:
            return Ack.ERR
        return self._reconfigure(pairs, self._guest_offloads)

    def _set_offloads(self, command: int, data: bytes) -> Ack:
        offloads = int.from_bytes(data, "little")
        if len(data) != 8 or offloads & ~(self.driver_features & GUEST_OFFLOADS):
            return Ack.ERR
        return self._reconfigure(self._active_pairs, offloads)

    def _reconfigure(self, pairs: int, offloads: int) -> Ack:
        before = self._active_pairs, self._guest_offloads
        self._active_pairs, self._guest_offloads = pairs, offloads
        try:
            self._configure_link()
        except OSError:
            self._active_pairs, self._guest_offloads = before
            return Ack.ERR
        return Ack.OK


_Command = tuple[Callable[[NetDevice, int, bytes], Ack], NetFeature]

# Commands by (class, command), each with the feature that it needs (5.1.6.5).
_COMMANDS: Mapping[tuple[int, int], _Command | tuple[None, int]] = {
    (Ctrl.RX, CtrlRx.PROMISC): (NetDevice._set_rx_mode, NetFeature.CTRL_RX),
    (Ctrl.RX, CtrlRx.ALLMULTI): (NetDevice._set_rx_mode, NetFeature.CTRL_RX),
    (Ctrl.RX, CtrlRx.ALLUNI): (NetDevice._set_rx_mode, NetFeature.CTRL_RX_EXTRA),
    (Ctrl.RX, CtrlRx.NOMULTI): (NetDevice._set_rx_mode, NetFeature.CTRL_RX_EXTRA),
    (Ctrl.RX, CtrlRx.NOUNI): (NetDevice._set_rx_mode, NetFeature.CTRL_RX_EXTRA),
    (Ctrl.RX, CtrlRx.NOBCAST): (NetDevice._set_rx_mode, NetFeature.CTRL_RX_EXTRA),
    (Ctrl.MAC, CtrlMac.TABLE_SET): (NetDevice._set_mac_table, NetFeature.CTRL_RX),
    (Ctrl.MAC, CtrlMac.ADDR_SET): (NetDevice._set_mac, NetFeature.CTRL_MAC_ADDR),
    (Ctrl.VLAN, CtrlVlan.ADD): (NetDevice._set_vlan, NetFeature.CTRL_VLAN),
    (Ctrl.VLAN, CtrlVlan.DEL): (NetDevice._set_vlan, NetFeature.CTRL_VLAN),
    (Ctrl.ANNOUNCE, CTRL_ANNOUNCE_ACK): (
        NetDevice._acknowledge_announce,
        NetFeature.GUEST_ANNOUNCE,
    ),
    (Ctrl.MQ, CTRL_MQ_PAIRS_SET): (NetDevice._set_pairs, NetFeature.MQ),
    (Ctrl.GUEST_OFFLOADS, CTRL_GUEST_OFFLOADS_SET): (
        NetDevice._set_offloads,
        NetFeature.CTRL_GUEST_OFFLOADS,
    ),
}


def _features(port: Port, pairs: int, mtu: int | None, speed: int | None) -> NetFeature:
    f = NetFeature
    features = f.MAC | f.STATUS | f.MRG_RXBUF | f.CTRL_VQ | f.CTRL_RX | f.CTRL_RX_EXTRA
    features |= f.CTRL_VLAN | f.CTRL_MAC_ADDR | f.GUEST_ANNOUNCE | port.offloads
    if isinstance(port, NativePort):
        features &= ~(f.CTRL_RX | f.CTRL_RX_EXTRA | f.CTRL_VLAN)
    features |= f.MQ if pairs > 1 else f(0)
    features |= f.MTU if mtu is not None else f(0)
    features |= f.SPEED_DUPLEX if speed is not None else f(0)
    return features | (f.CTRL_GUEST_OFFLOADS if port.offloads & GUEST_OFFLOADS else f(0))
