"""The network device's configuration space, and which of its virtqueues is which (5.1.2, 5.1.4)."""

from __future__ import annotations

from virtq.check.case import NotObservable, case, expect
from virtq.check.context import Context
from virtq.check.net.nic import Nic
from virtq.check.session import Session
from virtq.wire.net import DEVICE_ID, PAIRS_MAX, Ctrl, CtrlRx
from virtq.wire.net import NetFeature as N

_CTRL_VQ_INDEX = 2
_KEY_BYTES_LEAST = 40
_TABLE_LENGTH_LEAST = 128


def _number(session: Session, offset: int, size: int) -> int:
    return int.from_bytes(session.transport.read_config(offset, size), "little")


@case("net.cfg.dev.max-pairs-range", device_id=DEVICE_ID, needs=N.MQ, rings=False)
def the_number_of_pairs(ctx: Context) -> None:
    """With MQ offered, max_virtqueue_pairs is 1 to 0x8000."""
    pairs = _number(ctx.session(), 8, 2)
    expect(1 <= pairs <= PAIRS_MAX, f"1 to {PAIRS_MAX} queue pairs", pairs)


@case("net.cfg.dev.rss-key-size", device_id=DEVICE_ID, rings=False)
def room_for_a_key(ctx: Context) -> None:
    """With RSS or HASH_REPORT offered, rss_max_key_size is 40 or more."""
    session = ctx.session()
    if not session.offered & (N.RSS | N.HASH_REPORT):
        raise NotObservable("neither RSS nor HASH_REPORT is offered")
    size = _number(session, 17, 1)
    expect(size >= _KEY_BYTES_LEAST, f"rss_max_key_size of {_KEY_BYTES_LEAST} or more", size)


@case("net.cfg.dev.rss-table-length", device_id=DEVICE_ID, needs=N.RSS, rings=False)
def room_for_a_table(ctx: Context) -> None:
    """With RSS offered, rss_max_indirection_table_length is 128 or more."""
    length = _number(ctx.session(), 18, 2)
    expect(length >= _TABLE_LENGTH_LEAST, f"a length of {_TABLE_LENGTH_LEAST} or more", length)


@case("net.cfg.dev.hash-report-needs-ctrl", device_id=DEVICE_ID, needs=N.HASH_REPORT, rings=False)
def hash_report_with_a_control_queue(ctx: Context) -> None:
    """HASH_REPORT should be offered together with CTRL_VQ only."""
    offered = ctx.session().offered
    expect(offered & N.CTRL_VQ, "CTRL_VQ offered with HASH_REPORT", f"{offered:#x}")


@case("net.cfg.dev.rx-extra-needs-ctrl", device_id=DEVICE_ID, needs=N.CTRL_RX_EXTRA, rings=False)
def more_modes_with_a_control_queue(ctx: Context) -> None:
    """CTRL_RX_EXTRA should be offered together with CTRL_VQ only."""
    offered = ctx.session().offered
    expect(offered & N.CTRL_VQ, "CTRL_VQ offered with CTRL_RX_EXTRA", f"{offered:#x}")


@case("net.queues.ctrl-conditional", device_id=DEVICE_ID, rings=False)
def no_control_queue(ctx: Context) -> None:
    """Where CTRL_VQ is not offered, there is no virtqueue after the first pair."""
    session = ctx.session()
    if session.offered & N.CTRL_VQ:
        raise NotObservable("CTRL_VQ is offered")
    count = session.transport.queue_count
    there = count > _CTRL_VQ_INDEX and session.transport.queue_size_max(_CTRL_VQ_INDEX)
    expect(not there, "two virtqueues", f"a third one of {there} slots")


@case("net.queues.numbering", device_id=DEVICE_ID)
def which_queue_is_which(ctx: Context) -> None:
    """Virtqueues with even indices receive, those with odd indices transmit; the control queue
    comes after all of them."""
    session = ctx.session()
    features = int(session.offered & (N.CTRL_VQ | N.MQ))
    most = _number(session, 8, 2) if features & N.MQ else 1
    pairs = 2 if most > 1 else 1
    nic = Nic(ctx, features, pairs=pairs, session=session)
    if features & N.CTRL_VQ:
        # Whatever is answered: it is answered there.
        nic.command(Ctrl.RX, CtrlRx.PROMISC, b"\1")
    if features & N.MQ:
        nic.order(Ctrl.MQ, 0, pairs.to_bytes(2, "little"))
    frame = nic.frame()
    for pair in range(pairs):
        came = [packet.frame for packet in nic.transmit(frame, pair=pair)]
        expect(came == [frame], f"the frame that transmitq{pair + 1} has", came)
    came_in = len(nic.deliver(frame))
    expect(came_in == 1, "one frame in a receive queue", came_in)
