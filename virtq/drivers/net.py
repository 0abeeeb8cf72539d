"""Driving a network device (VIRTIO 1.4, section 5.1).

    with virtq.connect("vhost-user:/run/net.sock", driver=NetDriver) as net:
        net.send([frame] * 32)
        for frame in net.receive(32, timeout_s=1.0):
            ...

Packets are Ethernet frames. `receive_packets` shows the header before each as well, and `send`
takes `Packet`s with one: that is where checksum and segmentation offloads are, once they were
asked for with `offer="+CSUM,+HOST_TSO4"`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from virtq.device import QueueSpec
from virtq.driver import Driver
from virtq.drivers.net_queues import Packet, ReceiveQueue, TransmitQueue
from virtq.errors import FeatureError, RequestError
from virtq.queue import DriverQueue
from virtq.transports.base import DriverTransport
from virtq.wire.net import (
    BIG_PACKET_BYTES,
    CTRL_ANNOUNCE_ACK,
    CTRL_GUEST_OFFLOADS_SET,
    CTRL_MQ_PAIRS_SET,
    DEVICE_ID,
    ETHERNET_HEADER_BYTES,
    FIELD_FEATURE,
    GUEST_OFFLOADS,
    GUEST_SEGMENTATION,
    HEADER_BYTES,
    HOST_SEGMENTATION,
    MAC_BYTES,
    VLAN_TAG_BYTES,
    Ack,
    Ctrl,
    CtrlMac,
    CtrlRx,
    CtrlVlan,
    LinkStatus,
    NetConfig,
    NetFeature,
    mac_table,
    receive_queue,
    transmit_queue,
)

__all__ = ["NetDriver", "Packet"]

CONTROL_TIMEOUT_S = 10.0
CONTROL_QUEUE_SIZE = 64
MERGEABLE_BUFFER_BYTES = 2048
STANDARD_MTU = 1500

_OFFLOADS = (
    GUEST_OFFLOADS
    | HOST_SEGMENTATION
    | NetFeature.CSUM
    | NetFeature.HOST_ECN
    | NetFeature.CTRL_GUEST_OFFLOADS
)


class NetDriver(Driver):
    """Drives a network device: send and receive batches, on one or more queue pairs."""

    device_id = DEVICE_ID
    features = (
        NetFeature.MAC
        | NetFeature.STATUS
        | NetFeature.MTU
        | NetFeature.SPEED_DUPLEX
        | NetFeature.MRG_RXBUF
        | NetFeature.CTRL_VQ
        | NetFeature.CTRL_RX
        | NetFeature.CTRL_RX_EXTRA
        | NetFeature.CTRL_MAC_ADDR
        | NetFeature.GUEST_ANNOUNCE
        | NetFeature.MQ
    )
    optional_features = _OFFLOADS | NetFeature.CTRL_VLAN
    config_layout = NetConfig
    config_fields: Mapping[str, int] = FIELD_FEATURE
    config: NetConfig | None

    def __init__(
        self,
        transport: DriverTransport,
        *,
        pairs: int = 1,
        receive_buffer_bytes: int | None = None,
        **settings: Any,
    ) -> None:
        """`pairs`: queue pairs to use; fewer where the device has fewer. `receive_buffer_bytes`:
        size of each receive buffer, by default 2048 if packets can be spread over several, else
        what the largest packet needs. `settings`: see `Driver`, which also tells what is
        raised."""
        self._wanted_pairs = max(1, pairs)
        self._receive_buffer_bytes = receive_buffer_bytes
        self._receive: dict[int, ReceiveQueue] = {}
        self._transmit: dict[int, TransmitQueue] = {}
        super().__init__(transport, **settings)

    # Initialization

    def choose(self, acceptable: int) -> int:
        if self.config is not None:
            return acceptable
        # No configuration space (vhost-user without CONFIG): what needs it, or a control queue
        # that the other end would have to serve, cannot work. MQ can: the transport enables the
        # queues.
        needs_config = sum(FIELD_FEATURE.values())
        keep = NetFeature.MQ | NetFeature.CTRL_VQ if self._wanted_pairs > 1 else NetFeature(0)
        return acceptable & ~(needs_config | _CONTROL | NetFeature.CTRL_VQ) | acceptable & keep

    def plan(self) -> Mapping[int, QueueSpec]:
        offered = 1
        if self.has(NetFeature.MQ):
            offered = self.config.max_virtqueue_pairs if self.config else self._wanted_pairs
        self.pairs = max(1, min(self._wanted_pairs, offered))
        plan = {}
        for pair in range(self.pairs):
            plan[receive_queue(pair)] = QueueSpec(f"receiveq{pair + 1}", self.queue_size)
            plan[transmit_queue(pair)] = QueueSpec(f"transmitq{pair + 1}", self.queue_size)
        self._has_control = self.config is not None and self.has(NetFeature.CTRL_VQ)
        if self._has_control:
            control = 2 * offered if self.has(NetFeature.MQ) else 2
            plan[control] = QueueSpec("controlq", CONTROL_QUEUE_SIZE)
        return plan

    def populate(self, queue: DriverQueue) -> None:
        pair = queue.index // 2
        if queue.name == "controlq":
            return
        if queue.index == receive_queue(pair):
            if old := self._receive.pop(pair, None):
                old.release()
            mergeable = self.has(NetFeature.MRG_RXBUF)
            size = self._receive_bytes(mergeable)
            self._receive[pair] = ReceiveQueue(queue, size, mergeable=mergeable)
        else:
            if before := self._transmit.pop(pair, None):
                before.release()
            big = self.driver_features & HOST_SEGMENTATION
            largest = BIG_PACKET_BYTES if big else self._frame_bytes()
            self._transmit[pair] = TransmitQueue(queue, -(-(HEADER_BYTES + largest) // 64) * 64)

    def _receive_bytes(self, mergeable: bool) -> int:
        if self._receive_buffer_bytes is not None:
            return max(HEADER_BYTES, self._receive_buffer_bytes)
        if mergeable:
            return MERGEABLE_BUFFER_BYTES
        if self.driver_features & GUEST_SEGMENTATION:
            return HEADER_BYTES + BIG_PACKET_BYTES
        return HEADER_BYTES + max(self._frame_bytes(), STANDARD_MTU + ETHERNET_HEADER_BYTES)

    def _frame_bytes(self) -> int:
        """The largest frame without segmentation."""
        return self.mtu + ETHERNET_HEADER_BYTES + VLAN_TAG_BYTES

    def went_live(self) -> None:
        for receive in self._receive.values():
            receive.queue.kick()
        if self._has_control and self.pairs > 1:
            self.set_pairs(self.pairs)

    def was_reset(self) -> None:
        for receive in self._receive.values():
            receive.release()
        for transmit in self._transmit.values():
            transmit.release()
        self._receive, self._transmit = {}, {}

    # What the device tells

    @property
    def mac(self) -> bytes | None:
        """Its address; None if it has none to give."""
        return self.config.mac if self.config and self.has(NetFeature.MAC) else None

    @property
    def mtu(self) -> int:
        """The largest packet in bytes, without its Ethernet header; 1500 if the device does not
        say."""
        return self.config.mtu if self.config and self.has(NetFeature.MTU) else STANDARD_MTU

    @property
    def link_up(self) -> bool:
        """Up where the device does not say (5.1.4.2)."""
        if self.config is None or not self.has(NetFeature.STATUS):
            return True
        return bool(self.config.status & LinkStatus.LINK_UP)

    @property
    def announce_asked(self) -> bool:
        """The device asks to send gratuitous packets, and then to call `acknowledge_announce`."""
        if self.config is None or not self.has(NetFeature.GUEST_ANNOUNCE | NetFeature.STATUS):
            return False
        return bool(self.config.status & LinkStatus.ANNOUNCE)

    # Packets. All raise PeerGone and RingFault, and KeyError for a pair that is not set up.

    def send(
        self, packets: Sequence[bytes | Packet], *, pair: int = 0, timeout_s: float | None = None
    ) -> int:
        """Transmit frames, or packets with a header; waits for room in the ring. Returns how many
        were handed over, all unless the time was over before.

        Raises ValueError for a frame above the MTU, and for a header that asks for what was not
        negotiated.
        """
        limit = self._frame_bytes()
        for packet in packets:
            if isinstance(packet, Packet):
                self._check_header(packet, limit)
            elif len(packet) > limit:
                raise ValueError(f"a frame of {len(packet)} bytes; the most is {limit}")
        return self._transmit[pair].send(packets, timeout_s)

    def _check_header(self, packet: Packet, limit: int) -> None:
        header = packet.header
        if header.flags and not self.has(NetFeature.CSUM):
            raise ValueError("the header has flags, but CSUM was not negotiated (5.1.6.2.1)")
        if header.gso_type and not self.driver_features & HOST_SEGMENTATION:
            raise ValueError("the header has gso_type, but no HOST_* offload was negotiated")
        if not header.gso_type and len(packet.frame) > limit:
            raise ValueError(f"a frame of {len(packet.frame)} bytes; the most is {limit}")

    def drain(self, *, pair: int = 0, timeout_s: float | None = None) -> bool:
        """Wait until the device has taken all that was sent; False on time-out."""
        return self._transmit[pair].drain(timeout_s)

    def receive(
        self, max: int = 32, timeout_s: float | None = None, *, pair: int = 0
    ) -> list[bytes]:
        """Up to `max` frames; waits for the first as long as `timeout_s` (None: for ever)."""
        return [packet.frame for packet in self.receive_packets(max, timeout_s, pair=pair)]

    def receive_packets(
        self, max: int = 32, timeout_s: float | None = None, *, pair: int = 0
    ) -> list[Packet]:
        """The same with the header of each."""
        return self._receive[pair].receive(max, timeout_s)

    # The control queue (5.1.6.5). All raise RequestError if the device answers with an error,
    # FeatureError if the feature was not negotiated, TimeoutError.

    def set_pairs(self, pairs: int) -> None:
        """Use the first `pairs` queue pairs, of those that were set up. Raises ValueError for
        more."""
        if not 1 <= pairs <= len(self._receive):
            raise ValueError(f"{len(self._receive)} queue pairs are set up, not {pairs}")
        self._control(Ctrl.MQ, CTRL_MQ_PAIRS_SET, pairs.to_bytes(2, "little"), NetFeature.MQ)
        self.pairs = pairs

    def set_mac(self, mac: bytes) -> None:
        """Have the device receive packets for this address as its own."""
        self._check_mac(mac)
        self._control(Ctrl.MAC, CtrlMac.ADDR_SET, mac, NetFeature.CTRL_MAC_ADDR)
        self._config_stale.set()

    def set_mac_table(self, unicast: Sequence[bytes] = (), multicast: Sequence[bytes] = ()) -> None:
        """Further addresses to receive packets for."""
        for mac in (*unicast, *multicast):
            self._check_mac(mac)
        table = mac_table(list(unicast), list(multicast))
        self._control(Ctrl.MAC, CtrlMac.TABLE_SET, table, NetFeature.CTRL_RX)

    def set_rx_mode(self, mode: CtrlRx, on: bool) -> None:
        """Turn one of the receive modes on or off: PROMISC, ALLMULTI; with CTRL_RX_EXTRA the
        others."""
        basic = mode in (CtrlRx.PROMISC, CtrlRx.ALLMULTI)
        feature = NetFeature.CTRL_RX if basic else NetFeature.CTRL_RX_EXTRA
        self._control(Ctrl.RX, mode, bytes([on]), feature)

    def set_vlan(self, vlan: int, on: bool) -> None:
        """Receive packets with this VLAN tag, or no longer."""
        command = CtrlVlan.ADD if on else CtrlVlan.DEL
        self._control(Ctrl.VLAN, command, vlan.to_bytes(2, "little"), NetFeature.CTRL_VLAN)

    def set_offloads(self, offloads: int) -> None:
        """Which of the negotiated GUEST_* offloads received packets may have from now on."""
        if strange := offloads & ~self.driver_features:
            raise FeatureError(f"offloads {NetFeature(strange)!r} were not negotiated")
        data = offloads.to_bytes(8, "little")
        feature = NetFeature.CTRL_GUEST_OFFLOADS
        self._control(Ctrl.GUEST_OFFLOADS, CTRL_GUEST_OFFLOADS_SET, data, feature)

    def acknowledge_announce(self) -> None:
        """Tell the device that the packets it asked for are sent."""
        self._control(Ctrl.ANNOUNCE, CTRL_ANNOUNCE_ACK, b"", NetFeature.GUEST_ANNOUNCE)
        self._config_stale.set()

    def _check_mac(self, mac: bytes) -> None:
        if len(mac) != MAC_BYTES:
            raise ValueError(f"{mac.hex(':')} is not a MAC address")

    def _control(self, kind: Ctrl, command: int, data: bytes, feature: NetFeature) -> None:
        if not (self.has(feature) and self._has_control):
            raise FeatureError(f"{feature.name} cannot be used: it was not negotiated")
        request = bytes([kind, command]) + data
        ack = self.queues["controlq"].call(request, reply=1, timeout_s=CONTROL_TIMEOUT_S)
        if ack != bytes([Ack.OK]):
            answer = ack.hex() or "nothing"
            raise RequestError(
                f"control command {kind.name} {command}: the device answered {answer}"
            )


_CONTROL = (
    NetFeature.CTRL_RX
    | NetFeature.CTRL_RX_EXTRA
    | NetFeature.CTRL_VLAN
    | NetFeature.CTRL_VLAN
    | NetFeature.CTRL_MAC_ADDR
    | NetFeature.CTRL_GUEST_OFFLOADS
    | NetFeature.GUEST_ANNOUNCE
)
