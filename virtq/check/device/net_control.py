"""The control virtqueue of the network device: acknowledgements, announcements, queue pairs
(5.1.6.5)."""

from __future__ import annotations

from virtq.check.case import NotObservable, case, expect
from virtq.check.context import Context
from virtq.check.net.frames import UDP4, Flow, Packet, ip
from virtq.check.net.nic import SOMEBODY, Nic
from virtq.features import F
from virtq.wire.net import (
    CTRL_ANNOUNCE_ACK,
    CTRL_MQ_PAIRS_SET,
    DEVICE_ID,
    Ack,
    Ctrl,
    CtrlMac,
    CtrlRx,
    LinkStatus,
    receive_queue,
)
from virtq.wire.net import NetFeature as N

_MQ = int(N.CTRL_VQ | N.MQ)
_NO_CLASS, _NO_COMMAND = 0x77, 0x66


@case("net.ctrl.ack-values", device_id=DEVICE_ID, needs=N.CTRL_VQ)
def acknowledgements(ctx: Context) -> None:
    """A command that is carried out is answered with 0, one that does not exist, or whose data are
    cut short, with 1."""
    session = ctx.session()
    features = N.CTRL_VQ | session.offered & (N.CTRL_RX | N.CTRL_MAC_ADDR)
    nic = Nic(ctx, int(features), wire=False, session=session)
    wrong = [(_NO_CLASS, 0, b"\0"), (_NO_CLASS, _NO_COMMAND, b"")]
    if features & N.CTRL_RX:
        nic.order(Ctrl.RX, CtrlRx.PROMISC, b"\1")
        wrong += [(Ctrl.RX, _NO_COMMAND, b"\1"), (Ctrl.RX, CtrlRx.PROMISC, b"")]
    if features & N.CTRL_MAC_ADDR:
        nic.order(Ctrl.MAC, CtrlMac.ADDR_SET, SOMEBODY)
        wrong += [(Ctrl.MAC, CtrlMac.ADDR_SET, SOMEBODY[:3])]
    for kind, command, data in wrong:
        ack, _ = nic.command(kind, command, data)
        what = f"ERR (1) for class {kind:#x}, command {command:#x}, data {data.hex() or 'none'}"
        expect(ack == Ack.ERR, what, ack)


@case(
    "net.ctrl.announce.dev.clear-before-used",
    device_id=DEVICE_ID,
    needs=N.GUEST_ANNOUNCE | N.STATUS,
    rings=False,
)
def an_announcement(ctx: Context) -> None:
    """Once ANNOUNCE_ACK is used, ANNOUNCE is clear in status."""
    nic = Nic(ctx, int(N.CTRL_VQ | N.GUEST_ANNOUNCE | N.STATUS), wire=False)
    status = int.from_bytes(nic.config(6, 2), "little")
    if not status & LinkStatus.ANNOUNCE:
        raise NotObservable("the device does not ask for an announcement")
    nic.order(Ctrl.ANNOUNCE, CTRL_ANNOUNCE_ACK)
    status = int.from_bytes(nic.config(6, 2), "little")
    expect(not status & LinkStatus.ANNOUNCE, "ANNOUNCE clear", f"status {status:#x}")


# Queue pairs


def _flow(number: int) -> Flow:
    return UDP4._replace(source_port=1000 + number)


def _use_pairs(nic: Nic, pairs: int) -> None:
    nic.order(Ctrl.MQ, CTRL_MQ_PAIRS_SET, pairs.to_bytes(2, "little"))


def _incoming(nic: Nic, flow: Flow) -> bytes:
    return ip(flow.reverse, nic.payload(100), nic.mac)


def _outgoing(nic: Nic, flow: Flow, pair: int) -> None:
    """A packet of the flow is transmitted, and has left the device."""
    nic.transmit(Packet(ip(flow, nic.payload(100), SOMEBODY)), pair=pair)


def _pairs_of(nic: Nic, *flows: Flow) -> list[int]:
    """The queue pairs that packets of these flows come to."""
    return sorted(one.pair for one in nic.arrivals(*(_incoming(nic, flow) for flow in flows)))


@case("net.ctrl.mq.dev.first-queue-only", device_id=DEVICE_ID, needs=N.MQ, rings=False)
def one_queue_at_first(ctx: Context) -> None:
    """Until PAIRS_SET, packets come to receiveq1 only, also after a reset of a device that used
    more."""
    nic = Nic(ctx, _MQ, pairs=2)
    flows = [_flow(i) for i in range(8)]
    came = _pairs_of(nic, *flows)
    expect(set(came) == {0}, "receiveq1 alone", came)
    _use_pairs(nic, 2)
    for flow in flows:
        _outgoing(nic, flow, 1)
    nic = nic.anew(ctx)
    came = _pairs_of(nic, *flows)
    expect(set(came) == {0}, "receiveq1 alone after a reset", came)


@case("net.ctrl.mq.dev.no-higher-queues", device_id=DEVICE_ID, needs=N.MQ, rings=False)
def no_queue_beyond(ctx: Context) -> None:
    """Once PAIRS_SET is used, packets come to the queues within that number only, also those whose
    flow had another."""
    nic = Nic(ctx, _MQ, pairs=2)
    flows = [_flow(i) for i in range(8)]
    _use_pairs(nic, 2)
    for flow in flows:
        _outgoing(nic, flow, 1)
    _use_pairs(nic, 1)
    came = _pairs_of(nic, *flows)
    expect(set(came) == {0}, "receiveq1 alone after PAIRS_SET 1", came)


def _two_pairs(ctx: Context, flows: list[Flow], add: int = 0) -> Nic:
    """Two pairs in use; of the flows, the first half has transmitted on the first one."""
    nic = Nic(ctx, _MQ | add, pairs=2)
    _use_pairs(nic, 2)
    for number, flow in enumerate(flows):
        _outgoing(nic, flow, number * 2 // len(flows))
    return nic


@case("net.ctrl.mq.dev.auto-steering", device_id=DEVICE_ID, needs=N.MQ, rings=False)
def by_flow(ctx: Context) -> None:
    """With more than one pair, packets of a flow that was transmitted come to one queue."""
    flows = [_flow(i) for i in range(4)]
    nic = _two_pairs(ctx, flows)
    for flow in flows:
        came = _pairs_of(nic, *[flow] * 6)
        expect(len(set(came)) == 1, "one queue for six packets of a flow", came)


@case("net.ctrl.mq.dev.same-queue", device_id=DEVICE_ID, needs=N.MQ, rings=False)
def where_it_was_transmitted(ctx: Context) -> None:
    """Packets of a flow should be received on the pair that it was transmitted on."""
    flows = [_flow(i) for i in range(4)]
    nic = _two_pairs(ctx, flows)
    for number, flow in enumerate(flows):
        pair = number * 2 // len(flows)
        came = _pairs_of(nic, *[flow] * 3)
        expect(set(came) == {pair}, f"receiveq{pair + 1}", came)


@case("net.ctrl.mq.dev.reset-reselect", device_id=DEVICE_ID, needs=N.MQ | F.RING_RESET, rings=False)
def another_queue_while_one_is_reset(ctx: Context) -> None:
    """While the receive queue of a flow is reset, its packets should come to another one."""
    flow = _flow(1)
    nic = _two_pairs(ctx, [_flow(0), flow], add=int(F.RING_RESET))
    nic.reset_queue(receive_queue(1))
    came = _pairs_of(nic, flow, flow)
    expect(came == [0, 0], "the other queue", came)


@case("net.ctrl.mq.dev.reset-drop", device_id=DEVICE_ID, needs=N.MQ | F.RING_RESET, rings=False)
def dropped_while_all_are_reset(ctx: Context) -> None:
    """Packets that come while every receive queue is reset are dropped: they do not come later."""
    nic = Nic(ctx, _MQ | int(F.RING_RESET), pairs=2)
    _use_pairs(nic, 2)
    for pair in (0, 1):
        nic.reset_queue(receive_queue(pair))
    for number in range(4):
        nic.far.send(Packet(_incoming(nic, _flow(number))))
    # What is transmitted afterwards shows that the device has gone on since.
    nic.transmit(nic.frame(SOMEBODY))
    nic.begin_again(0)
    nic.begin_again(1)
    came = nic.deliver()
    for _ in nic.session.moment():  # on the other queue they may come a little later
        came += [received for received in nic.collect() if nic.token in received.frame]
    expect(not came, "none of the packets", f"{len(came)} of them")
