"""Device status and reset (2.1, 2.4, 3.1)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from virtq.check.case import NotObservable, case, expect
from virtq.check.context import Context
from virtq.check.device.malformed import NOWHERE
from virtq.check.session import Ring, Session
from virtq.errors import PeerGone
from virtq.status import Status
from virtq.transports.base import TellsQueueErrors
from virtq.wire import blk, net

_LASTING_BYTES = {blk.DEVICE_ID: 8, net.DEVICE_ID: 6}
"""Of the configuration, from its beginning: a disk's capacity, a network device's address."""
_READY = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK


@case("reset.dev.status-zero", rings=False)
def reset_reads_zero(ctx: Context) -> None:
    """The status reads 0 after a reset, at whatever point of the initialization it comes."""
    session = ctx.session()
    for status in (Status.ACKNOWLEDGE, Status.ACKNOWLEDGE | Status.DRIVER):
        session.transport.write_status(status)
        session.reset()
        expect(session.transport.read_status() == 0, "status 0", session.transport.read_status())
    session.negotiate(ctx.features(session))
    session.reset()
    expect(session.transport.read_status() == 0, "status 0", session.transport.read_status())


@case("reset.dev.status-zero", "feat.dev.renegotiate-same-set")
def reset_while_live(ctx: Context) -> None:
    """A live device goes back to status 0, and takes the same features and serves again."""
    live = ctx.live()
    live.ring.serve(*live.jobs(4))
    features = live.session.features
    live.session.reset()
    expect(
        live.session.negotiate(features),
        f"the features {features:#x}, accepted before, accepted again after a reset",
        "FEATURES_OK off",
    )
    live.work.prepare(live.session)
    ring = live.session.ring(live.work.queue)
    live.session.go_live()
    ring.serve(*live.jobs(4))


@case("status.dev.no-consume-before-driver-ok", "status.dev.no-used-notify-before-driver-ok")
def nothing_before_driver_ok(ctx: Context) -> None:
    """Buffers that are available before DRIVER_OK are not used, and nothing is notified."""
    session = ctx.session()
    session.negotiate(ctx.features(session))
    work = ctx.work
    work.prepare(session)
    ring = session.ring(work.queue)
    for seed in range(3):
        ring.add(work.job(seed))
    ring.half.publish()
    expect(ring.quiet(), "no buffer used before DRIVER_OK", "a used entry")
    calls = ring.calls()
    if calls and not session.tells_status:
        raise NotObservable("the back-end is not told of DRIVER_OK, and has notified for nothing")
    expect(calls == 0, "no notification before DRIVER_OK", "a used buffer notification")
    session.go_live()
    ring.kick(always=True)
    ring.wait(3)


@case("reset.dev.quiesce")
def quiet_after_reset(ctx: Context) -> None:
    """Once the status reads 0, nothing is written to the rings and nothing is notified."""
    live = ctx.live()
    live.ring.serve(*live.jobs(2))
    live.session.transport.write_status(0)
    for _ in live.session.patience("the status to read 0 after a reset"):
        if live.session.transport.read_status() == 0:
            break
    live.ring.calls()
    for job in live.jobs(3, first=2):
        live.ring.add(job)
    live.ring.half.publish()
    before = live.ring_bytes()
    for _ in live.session.moment():
        expect(live.ring_bytes() == before, "rings untouched after a reset", "a write to a ring")
    expect(live.ring.calls() == 0, "no notification after a reset", "a used buffer notification")


@case("status.dev.set-needs-reset", rings=False)
def needs_reset_is_off(ctx: Context) -> None:
    """A device that nobody did anything wrong to does not ask for a reset."""
    session = ctx.session()
    session.negotiate(ctx.features(session))
    status = session.transport.read_status()
    expect(not status & Status.DEVICE_NEEDS_RESET, "DEVICE_NEEDS_RESET off", f"status {status:#x}")
    expect(status & _READY == _READY, f"the bits that were written, {_READY:#x}", f"{status:#x}")


@case("cfg.dev.readable-before-features-ok", rings=False)
def configuration_before_features_ok(ctx: Context) -> None:
    """The configuration can be read before FEATURES_OK, and reads the same after it."""
    session = ctx.session()
    size = _LASTING_BYTES.get(ctx.device_id or 0, 0)
    if not size or session.transport.config_size < size:
        raise NotObservable("no configuration is known that stays the same")
    session.acknowledge()
    early = session.transport.read_config(0, size)
    session.reset()
    session.negotiate(ctx.features(session))
    late = session.transport.read_config(0, size)
    expect(early == late, f"configuration {late.hex()} before FEATURES_OK", early.hex())


@case("status.dev.needs-reset-config-notify")
def a_need_for_a_reset_is_announced(ctx: Context) -> None:
    """A device that asks for a reset because of a malformed buffer sends a configuration change
    notification with it."""
    live = ctx.live()
    announced: list[None] = []
    live.session.transport.on_config_change(lambda: announced.append(None))
    live.ring.serve(*live.jobs(2))
    live.ring.add(live.work.job(0))
    live.ring.change_head(lambda d: d._replace(addr=NOWHERE))
    live.ring.kick(always=True)
    with _gone_is_no_answer():
        for _ in live.session.moment():
            if live.session.transport.read_status() & Status.DEVICE_NEEDS_RESET:
                break
        else:
            raise NotObservable("the device does not ask for a reset")
    for _ in live.session.patience("a configuration change notification for DEVICE_NEEDS_RESET"):
        if announced:
            break


@case("status.dev.set-needs-reset")
def a_queue_that_stops_says_so(ctx: Context) -> None:
    """SHOULD: a device that serves no more because of a malformed buffer asks for a reset, by its
    status or by what the transport has for that; or it serves on."""
    live = ctx.live()
    live.ring.serve(*live.jobs(2))
    live.ring.add(live.work.job(0))
    live.ring.change_head(lambda d: d._replace(addr=NOWHERE))
    live.ring.add(live.work.job(1))
    live.ring.kick(always=True)
    with _gone_is_no_answer():
        for _ in live.session.patience("DEVICE_NEEDS_RESET, a queue error, or a used buffer"):
            if is_given_up(live.session, live.ring) or live.ring.half.used_entry() is not None:
                break


@contextlib.contextmanager
def _gone_is_no_answer() -> Iterator[None]:
    """That a device is gone is what the cases of malformed rings are about."""
    try:
        yield
    except PeerGone as gone:
        raise NotObservable(f"the device is gone (malformed.a_buffer_nowhere): {gone}") from None


def is_given_up(session: Session, ring: Ring) -> bool:
    """Whether the device says that it serves this virtqueue no more."""
    transport = session.transport
    if transport.read_status() & Status.DEVICE_NEEDS_RESET:
        return True
    return isinstance(transport, TellsQueueErrors) and transport.queue_error(ring.index)
