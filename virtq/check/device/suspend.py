"""Suspending a device, and resuming it (3.4)."""

from __future__ import annotations

from virtq.check.case import NotObservable, case, expect
from virtq.check.context import Context, Live
from virtq.check.session import Session
from virtq.errors import ConfigError, StatusError
from virtq.features import F
from virtq.status import Status

_STARTED = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK
_SUSPEND = F.SUSPEND
_TYPE_BITS = (1 << 24) - 1
"""What makes fields of the configuration writable."""
_BOTH = Status.SUSPEND | Status.DRIVER_OK | Status.DEVICE_NEEDS_RESET


def _live(ctx: Context) -> Live:
    return ctx.live(add=_SUSPEND)


def _ask(session: Session) -> int:
    """Set SUSPEND, and wait until the device shows that it is suspended or needs a reset; which of
    the two."""
    session.transport.write_status(_STARTED | Status.DRIVER_OK | Status.SUSPEND)
    for _ in session.patience("SUSPEND on and DRIVER_OK off, or DEVICE_NEEDS_RESET"):
        status = session.transport.read_status()
        if status & Status.DEVICE_NEEDS_RESET or status & _BOTH == Status.SUSPEND:
            break
    return status


def _suspend(session: Session) -> None:
    """Raises NotObservable for a device that needs a reset instead."""
    if _ask(session) & Status.DEVICE_NEEDS_RESET:
        raise NotObservable("the device fails to suspend, and asks for a reset")


def _resume(session: Session) -> int:
    session.transport.write_status(_STARTED | Status.SUSPEND | Status.DRIVER_OK)
    for _ in session.patience("DRIVER_OK on and SUSPEND off, or DEVICE_NEEDS_RESET"):
        status = session.transport.read_status()
        if status & Status.DEVICE_NEEDS_RESET or status & _BOTH == Status.DRIVER_OK:
            break
    return status


@case("suspend.dev.ignore-before-init", needs=_SUSPEND, rings=False)
def before_the_device_is_live(ctx: Context) -> None:
    """SUSPEND is ignored before the device is initialized: the status does not show it."""
    session = ctx.session()
    steps = (Status.ACKNOWLEDGE, Status.ACKNOWLEDGE | Status.DRIVER)
    for status in steps:
        session.reset()
        for step in steps[: steps.index(status) + 1]:
            session.transport.write_status(step)
        _ignored(session, int(status))
    session.reset()
    session.negotiate(int(F.VERSION_1 | _SUSPEND))
    _ignored(session, int(_STARTED))


def _ignored(session: Session, status: int) -> None:
    try:
        session.transport.write_status(status | Status.SUSPEND)
    except StatusError:
        return  # it does not even reach the device
    shown = session.transport.read_status()
    expect(not shown & Status.SUSPEND, f"SUSPEND off in status {status:#x}", f"{shown:#x}")


@case("suspend.dev.suspend-or-needs-reset", needs=_SUSPEND)
def it_suspends(ctx: Context) -> None:
    """A live device that is asked to suspend shows SUSPEND and not DRIVER_OK, or asks for a
    reset."""
    live = _live(ctx)
    live.ring.serve(*live.jobs(3))
    _ask(live.session)


@case("suspend.dev.resume-or-needs-reset", needs=_SUSPEND)
def it_resumes(ctx: Context) -> None:
    """A suspended device that is asked to go on shows DRIVER_OK and not SUSPEND, and serves, again
    and again; or it asks for a reset."""
    live = _live(ctx)
    for turn in range(4):
        live.ring.serve(*live.jobs(3, 3 * turn))
        _suspend(live.session)
        if _resume(live.session) & Status.DEVICE_NEEDS_RESET:
            return
    live.ring.serve(*live.jobs(3, 12))


@case("suspend.dev.no-queue-access", "suspend.dev.no-notify", needs=_SUSPEND)
def nothing_while_suspended(ctx: Context) -> None:
    """A suspended device uses no buffer, writes nothing to a ring and sends no notification,
    whatever is made available; it does so once it runs again."""
    live = _live(ctx)
    live.ring.serve(*live.jobs(2))
    _suspend(live.session)
    live.ring.calls()
    for job in live.jobs(3, 2):
        live.ring.add(job)
    live.ring.half.publish()
    before = live.ring_bytes()
    live.ring.signal()
    for _ in live.session.moment():
        expect(live.ring_bytes() == before, "rings untouched while suspended", "a write to one")
    calls = live.ring.calls()
    expect(calls == 0, "no notification while suspended", f"{calls} of them")
    if not _resume(live.session) & Status.DEVICE_NEEDS_RESET:
        live.ring.kick(always=True)
        live.ring.wait(3)


@case(
    "suspend.dev.drain-first",
    "suspend.dev.stop-consuming-first",
    "suspend.dev.notify-first",
    needs=_SUSPEND,
)
def what_was_begun_is_finished(ctx: Context) -> None:
    """SHOULD: before it shows that it is suspended, a device finishes what it took, takes no more,
    and notifies: afterwards no buffer becomes used, and for those that did there was a
    notification."""
    live = ctx.live(add=_SUSPEND, without=F.EVENT_IDX)
    live.ring.half.enable_calls()
    for turn in range(6):
        live.ring.calls()
        count = 6
        for job in live.jobs(count, count * turn):
            live.ring.add(job)
        live.ring.kick(always=True)
        _suspend(live.session)
        shown = live.ring_bytes()
        calls = live.ring.calls()
        used = len(live.ring.collect())
        if used:
            expect(calls, f"a notification for {used} buffers that were used", "none")
        for _ in live.session.moment():
            expect(live.ring_bytes() == shown, "all that was begun used by then", "more came")
        late = live.ring.calls()
        expect(late == 0, "notifications before SUSPEND is shown", f"{late} after it")
        if _resume(live.session) & Status.DEVICE_NEEDS_RESET:
            return
        live.ring.signal()
        if count > used:
            live.ring.wait(count - used)


@case("suspend.dev.ignore-config-writes", "suspend.dev.no-config-change", needs=_SUSPEND)
def the_configuration_stays(ctx: Context) -> None:
    """SHOULD: a write to the configuration while suspended changes nothing, and the device changes
    nothing of it by itself."""
    session = ctx.session()
    live = ctx.live(add=_SUSPEND | session.offered & _TYPE_BITS, session=session)
    transport = live.session.transport
    size = min(transport.config_size, 64)
    if not size:
        raise NotObservable("there is no configuration space")
    live.ring.serve(*live.jobs(4))
    _suspend(live.session)
    before = transport.read_config(0, size)
    for offset in range(size):
        try:
            transport.write_config(offset, bytes([before[offset] ^ 1]))
        except ConfigError:
            continue  # it is refused, which is as good
    for _ in live.session.moment():
        now = transport.read_config(0, size)
        changed = [at for at in range(size) if now[at] != before[at]]
        expect(not changed, "the configuration as it was", f"byte {changed[:1]} changed")


@case("suspend.dev.no-config-notify", "suspend.dev.deferred-config-notify", needs=_SUSPEND)
def a_change_while_suspended_is_told_later(ctx: Context) -> None:
    """A configuration change that arises while the device is suspended is announced when it runs
    again, and not before."""
    live = _live(ctx)
    announced: list[None] = []
    transport = live.session.transport
    size = min(transport.config_size, 64)
    before = transport.read_config(0, size)
    transport.on_config_change(lambda: announced.append(None))
    live.ring.serve(*live.jobs(4))
    _suspend(live.session)
    told = len(announced)
    for _ in live.session.moment():
        expect(len(announced) == told, "no announcement while suspended", "one came")
    if _resume(live.session) & Status.DEVICE_NEEDS_RESET:
        return
    for _ in live.session.moment():
        if (now := transport.read_config(0, size)) != before:
            break
    if now == before or told:
        raise NotObservable("nothing changed in the configuration while it was suspended")
    for _ in live.session.patience("the announcement of the change"):
        if announced:
            break
