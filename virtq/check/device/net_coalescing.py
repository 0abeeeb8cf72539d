"""Coalescing of notifications of the network device (5.1.6.5.9)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from virtq.check.case import case, expect
from virtq.check.context import Context
from virtq.check.net.nic import SOMEBODY, Nic
from virtq.check.session import UNTOUCHED, Job
from virtq.features import F
from virtq.wire.net import DEVICE_ID, Ack
from virtq.wire.net import NetFeature as N

_CLASS = 6
_TX_SET, _RX_SET, _VQ_SET, _VQ_GET = range(4)
_ALL = N.NOTF_COAL | N.VQ_NOTF_COAL
_RECEIVE, _TRANSMIT = 0, 1
_NONE = (0, 0)
_LONG_US = 10_000_000
"""Longer than any case waits."""


class Reading(NamedTuple):
    """One way to read the answer to VQ_GET."""

    ack: int
    parameters: tuple[int, int]


def _nic(ctx: Context, features: int) -> Nic:
    return Nic(ctx, int(N.CTRL_VQ | features), wire=False)


def _set(nic: Nic, command: int, packets: int, usecs: int) -> None:
    nic.order(_CLASS, command, struct.pack("<II", packets, usecs))


def _set_queue(nic: Nic, index: int, packets: int, usecs: int, reserved: int = 0) -> int:
    data = struct.pack("<HHII", index, reserved, packets, usecs)
    return nic.command(_CLASS, _VQ_SET, data)[0]


def _get(nic: Nic, index: int, reserved: int = 0) -> list[Reading]:
    """VQ_GET. The structure that the device writes stands before the ack, where the data of a
    command are, or after it, where a result is: the specification says it of the data, and shows
    results for statistics only. Both are read."""
    data = struct.pack("<HH", index, reserved)
    ring = nic.session.rings[nic.control_index]
    reply = ring.serve(Job(bytes([_CLASS, _VQ_GET]) + data, 9))[0].reply
    readings = ((reply[8], reply[:8]), (reply[0], reply[1:]))
    return [
        Reading(ack, struct.unpack("<II", coalescing))
        for ack, coalescing in readings
        if ack != UNTOUCHED
    ]


def _expect(nic: Nic, index: int, packets: int, usecs: int, when: str, reserved: int = 0) -> None:
    wanted = Reading(Ack.OK, (packets, usecs))
    readings = _get(nic, index, reserved)
    what = f"max_packets {packets} and max_usecs {usecs} of virtqueue {index} {when}"
    expect(wanted in readings, what, " or ".join(map(str, readings)) or "no answer")


@case("net.ctrl.coal.dev.ignore-reserved", device_id=DEVICE_ID, needs=N.VQ_NOTF_COAL, rings=False)
def the_reserved_field(ctx: Context) -> None:
    """reserved is ignored in VQ_SET and VQ_GET."""
    nic = _nic(ctx, N.VQ_NOTF_COAL)
    ack = _set_queue(nic, _TRANSMIT, 3, 40, reserved=0xBEEF)
    expect(ack == Ack.OK, "OK for VQ_SET with something in reserved", ack)
    _expect(nic, _TRANSMIT, 3, 40, "after VQ_SET", reserved=0xBEEF)


@case("net.ctrl.coal.dev.err-tx-rx", device_id=DEVICE_ID, needs=N.NOTF_COAL, rings=False)
def parameters_that_are_cut_short(ctx: Context) -> None:
    """TX_SET and RX_SET without all of their parameters cannot be carried out, and should be
    answered with an error."""
    nic = _nic(ctx, N.NOTF_COAL)
    for command in (_TX_SET, _RX_SET):
        for length in (0, 4, 7):
            ack, _ = nic.command(_CLASS, command, bytes(length))
            expect(ack == Ack.ERR, f"ERR (1) for {length} bytes of parameters", ack)


@case("net.ctrl.coal.dev.err-vq-set", device_id=DEVICE_ID, needs=N.VQ_NOTF_COAL, rings=False)
def parameters_of_a_queue_that_are_cut_short(ctx: Context) -> None:
    """VQ_SET without all of its parameters cannot be carried out, and is answered with an error."""
    nic = _nic(ctx, N.VQ_NOTF_COAL)
    for length in (0, 4, 8, 11):
        ack, _ = nic.command(_CLASS, _VQ_SET, struct.pack("<H10x", _TRANSMIT)[:length])
        expect(ack == Ack.ERR, f"ERR (1) for {length} bytes of parameters", ack)


@case("net.ctrl.coal.dev.err-not-enabled", device_id=DEVICE_ID, needs=N.VQ_NOTF_COAL, rings=False)
def queues_that_are_not_enabled(ctx: Context) -> None:
    """VQ_SET and VQ_GET for the control queue, for one that does not exist, and for one that is not
    enabled are answered with an error."""
    session = ctx.session()
    mq = N.MQ & session.offered
    nic = Nic(ctx, int(N.CTRL_VQ | N.VQ_NOTF_COAL | mq), wire=False, session=session)
    wrong = [nic.control_index, 0xFFFF]
    if nic.most_pairs > 1:
        wrong += [2, 3]
    for index in wrong:
        ack = _set_queue(nic, index, 3, 40)
        expect(ack == Ack.ERR, f"ERR (1) for VQ_SET of virtqueue {index}", ack)
        acks = [reading.ack for reading in _get(nic, index)]
        expect(Ack.ERR in acks, f"ERR (1) for VQ_GET of virtqueue {index}", acks)


def _reenabled(ctx: Context, index: int, command: int) -> None:
    for set_before in (False, True):
        nic = _nic(ctx, int(_ALL) | int(F.RING_RESET))
        if set_before:
            _set(nic, command, 5, 60)
        ack = _set_queue(nic, index, 7, 80)
        expect(ack == Ack.OK, "OK for VQ_SET", ack)
        _expect(nic, index, 7, 80, "after VQ_SET")
        nic.reset_queue(index)
        nic.session.ring(index, 16)
        packets, usecs = (5, 60) if set_before else _NONE
        _expect(nic, index, packets, usecs, "once it is enabled again")


@case("net.ctrl.coal.dev.reenable-tx", device_id=DEVICE_ID, needs=_ALL | F.RING_RESET, rings=False)
def a_transmit_queue_that_is_enabled_again(ctx: Context) -> None:
    """A transmit queue that was reset and is enabled again has what TX_SET said, or 0."""
    _reenabled(ctx, _TRANSMIT, _TX_SET)


@case("net.ctrl.coal.dev.reenable-rx", device_id=DEVICE_ID, needs=_ALL | F.RING_RESET, rings=False)
def a_receive_queue_that_is_enabled_again(ctx: Context) -> None:
    """A receive queue that was reset and is enabled again has what RX_SET said, or 0."""
    _reenabled(ctx, _RECEIVE, _RX_SET)


@case("net.ctrl.coal.dev.reset-zero", device_id=DEVICE_ID, needs=_ALL, rings=False)
def nothing_after_a_reset(ctx: Context) -> None:
    """After a reset all parameters are 0."""
    nic = _nic(ctx, _ALL)
    _set(nic, _TX_SET, 5, 60)
    _set(nic, _RX_SET, 7, 80)
    _expect(nic, _TRANSMIT, 5, 60, "after TX_SET")
    _expect(nic, _RECEIVE, 7, 80, "after RX_SET")
    nic = nic.anew(ctx)
    for index in (_RECEIVE, _TRANSMIT):
        _expect(nic, index, *_NONE, "after a reset")


@case("net.ctrl.coal.dev.suppression-wins", device_id=DEVICE_ID, needs=N.NOTF_COAL)
def suppressed_is_suppressed(ctx: Context) -> None:
    """Notifications that the driver suppresses should stay away, also when a condition for one is
    met."""
    nic = _nic(ctx, N.NOTF_COAL)
    _set(nic, _TX_SET, 2, _LONG_US)
    ring = nic.session.rings[_TRANSMIT]
    ring.half.disable_calls()
    ring.calls()
    for _ in range(3):
        nic.hand_over(nic.frame(SOMEBODY), nic.frame(SOMEBODY))
    expect(ring.quiet(), "nothing used any more", "a used entry")
    expect(ring.calls() == 0, "no notification", "a used buffer notification")
