"""Suspending a device and resuming it (3.4)."""

from __future__ import annotations

import contextlib

from virtq.check.case import NotObservable, case, expect
from virtq.check.context import Context, Live
from virtq.check.session import Ring, Session
from virtq.errors import VirtqError
from virtq.features import F
from virtq.status import Status
from virtq.wire import blk

_LIVE = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK
_WRITEBACK = 32
_CONFIG_BYTES_MAX = 64


def _live(ctx: Context, add: int = 0) -> Live:
    return ctx.live(add=int(F.SUSPEND) | add)


def _suspend(session: Session) -> None:
    """Raises NotObservable if the device would rather be reset, Hung if it does neither."""
    session.transport.write_status(_LIVE | Status.SUSPEND)
    for _ in session.patience("the device to be suspended, or to need a reset"):
        status = session.transport.read_status()
        if status & Status.DEVICE_NEEDS_RESET:
            raise NotObservable("the device needs a reset instead of being suspended")
        if status & Status.SUSPEND and not status & Status.DRIVER_OK:
            return


def _resume(session: Session) -> None:
    session.transport.write_status(_LIVE | Status.SUSPEND)
    for _ in session.patience("the device to run again, or to need a reset"):
        status = session.transport.read_status()
        if status & Status.DEVICE_NEEDS_RESET:
            raise NotObservable("the device needs a reset instead of running again")
        if status & Status.DRIVER_OK and not status & Status.SUSPEND:
            return


@case("suspend.dev.suspend-or-needs-reset", "suspend.dev.resume-or-needs-reset", needs=F.SUSPEND)
def there_and_back(ctx: Context) -> None:
    """The device is suspended, and runs again, several times, and serves each time."""
    live = _live(ctx)
    for turn in range(3):
        live.ring.serve(*live.jobs(2, 2 * turn))
        _suspend(live.session)
        _resume(live.session)
    live.ring.serve(*live.jobs(2, 6))


@case("suspend.dev.ignore-before-init", needs=F.SUSPEND)
def before_it_is_initialized(ctx: Context) -> None:
    """SUSPEND is ignored before DRIVER_OK, and initialization goes on."""
    session = ctx.session()
    session.acknowledge()
    early = Status.ACKNOWLEDGE | Status.DRIVER
    session.transport.write_status(early | Status.SUSPEND)
    _not_suspended(session)
    session.reset()
    session.negotiate(ctx.features(session, int(F.SUSPEND)))
    session.transport.write_status(early | Status.FEATURES_OK | Status.SUSPEND)
    _not_suspended(session)
    work = ctx.work
    work.prepare(session)
    ring = session.ring(work.queue)
    session.go_live()
    ring.serve(*(work.job(i) for i in range(2)))


def _not_suspended(session: Session) -> None:
    status = session.transport.read_status()
    expect(not status & Status.SUSPEND, "SUSPEND ignored", f"status {status:#x}")


@case("suspend.dev.no-queue-access", "suspend.dev.stop-consuming-first", needs=F.SUSPEND)
def queues_are_left_alone(ctx: Context) -> None:
    """A buffer that is made available, with a notification, after the device was suspended is not
    used, and the device's part of the ring stays as it is; the buffer is used once it runs
    again."""
    live = _live(ctx)
    live.ring.serve(*live.jobs(2))
    _suspend(live.session)
    before = _device_area(live.ring)
    live.ring.add(live.work.job(2))
    live.ring.kick(always=True)
    expect(live.ring.quiet(), "nothing used by a suspended device", "a buffer")
    expect(_device_area(live.ring) == before, "the device's area left alone", "it was written")
    _resume(live.session)
    live.ring.signal()
    live.ring.wait(1)


def _device_area(ring: Ring) -> bytes:
    size = 4 if ring.packed else 6 + 8 * ring.size
    return ring.half.memory.read(ring.areas.device, size)


@case(
    "suspend.dev.drain-first",
    "suspend.dev.notify-first",
    "suspend.dev.no-notify",
    needs=F.SUSPEND,
)
def what_is_under_way_ends_first(ctx: Context) -> None:
    """Suspended while requests are under way: what the device has begun is used, and notified,
    before it shows itself as suspended, and neither happens afterwards (SHOULD, MUST NOT)."""
    live = _live(ctx)
    ring = live.ring
    for turn in range(3):
        ring.calls()
        for job in live.jobs(8, 8 * turn):
            ring.add(job)
        ring.kick()
        _suspend(live.session)
        done = ring.collect()
        expect(ring.calls() or not done, "a notification of what was used", "none")
        expect(ring.quiet(), "nothing used once it shows itself as suspended", "a buffer")
        expect(not ring.calls(), "no notification while suspended", "one")
        _resume(live.session)
        ring.signal()
        ring.wait(8 - len(done))


@case(
    "suspend.dev.no-config-change",
    "suspend.dev.no-config-notify",
    "suspend.dev.deferred-config-notify",
    needs=F.SUSPEND,
)
def the_configuration_stays(ctx: Context) -> None:
    """While it is suspended a device changes none of its configuration and announces no change;
    what has changed when it runs again is announced then."""
    live = _live(ctx)
    transport = live.session.transport
    size = min(transport.config_size, _CONFIG_BYTES_MAX)
    if not size:
        raise NotObservable("there is no configuration space")
    told: list[bool] = []
    transport.on_config_change(lambda: told.append(True))
    try:
        before = transport.read_config(0, size)
        _suspend(live.session)
        told.clear()
        for _ in live.session.moment():
            expect(
                transport.read_config(0, size) == before, "the configuration as it was", "another"
            )
        expect(not told, "no configuration change notification", "one")
        _resume(live.session)
        for _ in live.session.moment():
            if told:
                break
        if transport.read_config(0, size) != before:
            expect(told, "a notification of the configuration that has changed", "none")
    finally:
        transport.on_config_change(None)


@case(
    "suspend.dev.ignore-config-writes",
    needs=F.SUSPEND | blk.BlkFeature.CONFIG_WCE,
    device_id=blk.DEVICE_ID,
)
def writes_to_the_configuration(ctx: Context) -> None:
    """A field that is written while the device is suspended keeps its value (SHOULD)."""
    live = _live(ctx, int(blk.BlkFeature.CONFIG_WCE))
    transport = live.session.transport
    before = transport.read_config(_WRITEBACK, 1)
    _suspend(live.session)
    with contextlib.suppress(VirtqError):  # a refusal will do as well
        transport.write_config(_WRITEBACK, bytes([1 - before[0]]))
    now = transport.read_config(_WRITEBACK, 1)
    _resume(live.session)
    after = transport.read_config(_WRITEBACK, 1)
    expect(now == after == before, f"writeback {before.hex()}", f"{now.hex()}, then {after.hex()}")
