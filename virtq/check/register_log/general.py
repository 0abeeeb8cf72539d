"""What any driver has to do, whatever bus the device is on, besides initializing it: features, the
configuration space, virtqueues that are reset, suspending (2.2, 2.5, 2.6.1, 3.5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from virtq.check.case import Broken
from virtq.check.register_log.initialization import attempts, reached, sets, when
from virtq.check.register_log.rules import expect, first, queue_lives, rule
from virtq.check.register_log.trail import ADDRESSES, Step, Trail
from virtq.features import F, closed, describe
from virtq.status import Status
from virtq.wire import blk, layout, net

GATES: Mapping[int, Mapping[str, int]] = {
    blk.DEVICE_ID: blk.FIELD_FEATURE,
    net.DEVICE_ID: net.FIELD_FEATURE,
}
"""The features that bring a field, any of them, by device type."""
_RESERVED = sum(1 << bit for bit in (24, 25, 26, 27, 30, 31, 42, *range(44, 50)))
"""Feature bits that mean nothing to a driver of this version (6)."""
LAYOUTS: Mapping[int, type] = {blk.DEVICE_ID: blk.BlkConfig, net.DEVICE_ID: net.NetConfig}
"""The configuration space by device type."""


# Features


def _accepted(trail: Trail) -> Iterator[Step]:
    """The writes of FEATURES_OK; `offered` and `accepted` are what was negotiated."""
    for life, ok in reached(trail, Status.FEATURES_OK):
        if life[ok].offered_words:
            yield life[ok]


@rule("feat.drv.only-offered")
def accepts_what_is_offered(trail: Trail) -> int:
    """Only features that the device offers are accepted."""
    seen = 0
    for step in _accepted(trail):
        extra = step.accepted & ~step.offered
        expect(
            not extra,
            "features that were offered",
            f"{describe(extra, trail.log.device_id)}, accepted at {step}",
        )
        seen += 1
    return seen


@rule("feat.drv.dependency-closed")
def accepts_what_it_needs(trail: Trail) -> int:
    """A feature that needs another one is accepted with it, or not at all."""
    seen = 0
    for step in _accepted(trail):
        lacking = step.accepted & ~closed(step.accepted, trail.log.device_id)
        expect(
            not lacking,
            "features with those that they need",
            f"{describe(lacking, trail.log.device_id)} without it, accepted at {step}",
        )
        seen += 1
    return seen


@rule("feat.drv.ignore-invalid-bits", "feat.drv.not-accept-invalid-bits")
def accepts_no_reserved_bit(trail: Trail) -> int:
    """Feature bits that are reserved are not accepted, and the device is used nevertheless."""
    seen = 0
    for life in attempts(trail):
        ok = when(life, Status.FEATURES_OK)
        if ok is None:
            if any(step.offered & _RESERVED for step in life):
                failed = when(life, Status.FAILED)
                expect(
                    failed is None,
                    "a device used that offers reserved bits among others",
                    life[failed or 0],
                )
            continue
        invalid = life[ok].accepted & _RESERVED
        expect(
            not invalid,
            "no reserved bits accepted",
            f"{describe(invalid)}, accepted at {life[ok]}",
        )
        seen += bool(life[ok].offered & _RESERVED)
    return seen


def _takes(trail: Trail, feature: F) -> int:
    seen = 0
    for step in _accepted(trail):
        if step.offered & feature:
            expect(step.accepted & feature, f"{feature.name} accepted, which is offered", step)
            seen += 1
    return seen


@rule("resv.drv.version-1-accept")
def accepts_version_1(trail: Trail) -> int:
    """VERSION_1 is accepted where it is offered."""
    return _takes(trail, F.VERSION_1)


@rule("resv.drv.ring-packed-accept")
def accepts_packed_rings(trail: Trail) -> int:
    """RING_PACKED is accepted where it is offered (SHOULD)."""
    return _takes(trail, F.RING_PACKED)


@rule("resv.drv.access-platform-accept")
def accepts_access_platform(trail: Trail) -> int:
    """ACCESS_PLATFORM is accepted where it is offered (SHOULD)."""
    return _takes(trail, F.ACCESS_PLATFORM)


@rule("resv.drv.order-platform-accept")
def accepts_order_platform(trail: Trail) -> int:
    """ORDER_PLATFORM is accepted where it is offered (SHOULD)."""
    return _takes(trail, F.ORDER_PLATFORM)


@rule("resv.drv.notif-config-data-accept")
def accepts_notif_config_data(trail: Trail) -> int:
    """NOTIF_CONFIG_DATA is accepted where it is offered (SHOULD)."""
    return _takes(trail, F.NOTIF_CONFIG_DATA)


# Notifications


@rule("notify.data.layout", "notify.data.packed-next-off", "packed.notify.drv.next-off-wrap")
def tells_a_place_in_the_ring(trail: Trail) -> int:
    """With NOTIFICATION_DATA, a notification for a packed virtqueue has the queue's index in the
    low half, and above it an offset within the ring."""
    seen = 0
    sizes: dict[int, int] = {}
    wanted = F.NOTIFICATION_DATA | F.RING_PACKED
    for step in trail.steps:
        if step.field == "queue_size":
            sizes[step.queue] = step.value
        if not step.puts("notify") or step.accepted & wanted != wanted:
            continue
        if step.accepted & F.NOTIF_CONFIG_DATA:  # another number, which does not say which queue
            continue
        queue, offset = step.value & 0xFFFF, step.value >> 16 & 0x7FFF
        expect(queue in step.enabled, f"one of the queues {sorted(step.enabled)}", step)
        if size := sizes.get(queue):
            expect(offset < size, f"an offset within a ring of {size} descriptors", step)
            seen += 1
    return seen


# The configuration space


@rule("cfg.drv.feature-gates-optional-field")
def reads_what_is_there(trail: Trail) -> int:
    """A field of the configuration that comes with a feature is not accessed before the driver saw
    that the device offers it."""
    device = trail.log.device_id or 0
    gated = [
        (leaf, GATES[device][name])
        for leaf in (layout.fields_of(LAYOUTS[device]) if device in LAYOUTS else ())
        if (name := leaf.name.partition(".")[0]) in GATES[device]
    ]
    seen = 0
    for step in trail.steps:
        if step.field != "config":
            continue
        for leaf, features in gated:
            if leaf.offset <= step.byte < leaf.offset + leaf.size:
                expect(
                    step.offered & features,
                    f"no access to {leaf.name} without {describe(int(features), device)}",
                    step,
                )
                seen += 1
    return seen


@rule("cfg.drv.generation-loop")
def reads_in_a_loop(trail: Trail) -> int:
    """A field of the configuration that takes several accesses is read between two equal
    generations (SHOULD)."""
    known = LAYOUTS.get(trail.log.device_id or 0)
    wide = [leaf for leaf in layout.fields_of(known) if leaf.size > 4] if known else []
    steps = [step for step in trail.steps if not _is_interrupt(step)]
    seen = 0
    for leaf in wide:
        inside = [
            i
            for i, step in enumerate(steps)
            if step.gets("config") and leaf.offset <= step.byte < leaf.offset + leaf.size
        ]
        for run in _runs(inside):
            if len(run) > 1:
                before = _generation(steps[: run[0]][::-1])
                after = _generation(steps[run[-1] + 1 :])
                expect(
                    before is not None and after is not None,
                    f"the generation read before and after {leaf.name}",
                    steps[run[0]],
                )
                seen += 1
    return seen


def _is_interrupt(step: Step) -> bool:
    """What may come between, from another thread of the driver's."""
    return (
        step.access.do == "interrupt"
        or step.access.at == "isr"
        or step.field == "notify"
        or step.register in ("InterruptStatus", "InterruptACK")
    )


def _runs(indices: list[int]) -> Iterator[list[int]]:
    """Those that follow on each other."""
    run: list[int] = []
    for index in indices:
        if run and index != run[-1] + 1:
            yield run
            run = []
        run.append(index)
    if run:
        yield run


def _generation(steps: list[Step]) -> Step | None:
    """The first look at the generation, with nothing but reads of the configuration before it."""
    for step in steps:
        if step.gets("config_generation"):
            return step
        if not step.gets("config"):
            return None
    return None


def widths(trail: Trail) -> int:
    """Accesses to the configuration that are as wide as their field (4.1.3.1, 4.2.2.2)."""
    known = LAYOUTS.get(trail.log.device_id or 0)
    leaves = layout.fields_of(known) if known else ()
    seen = 0
    for step in trail.steps:
        if step.field != "config":
            continue
        width, at = step.access.width, step.byte
        expect(width <= 4 and at % width == 0, "an aligned access of 1, 2 or 4 bytes", step)
        for leaf in leaves:
            if leaf.offset <= at < leaf.offset + leaf.size:
                wanted = {"H": 2, "I": 4, "Q": 4}.get(leaf.code, 1)
                expect(width == wanted, f"an access of {wanted} bytes to {leaf.name}", step)
        seen += 1
    return seen


# Resetting one virtqueue


def queue_resets_are_awaited(trail: Trail) -> int:
    """Between a reset of a queue and the next time it is enabled, its reset reads as done."""
    seen = 0
    for queue, steps in queue_lives(trail):
        pending: Step | None = None
        for step in steps:
            if step.puts("queue_reset") and step.value == 1:
                pending = step
            elif step.gets("queue_reset") and step.value == 0 and pending:
                pending = None
                seen += 1
            elif pending and step.puts("queue_enable", "queue_size", *ADDRESSES):
                raise Broken(f"queue_reset of queue {queue} read as 0 before it is used", str(step))
    return seen


@rule("vqreset.drv.verify-done")
def verifies_a_queue_reset(trail: Trail) -> int:
    """A queue that was reset is not used again before it reads as reset."""
    return queue_resets_are_awaited(trail)


@rule("vqreset.drv.reconfigure")
def configures_a_queue_again(trail: Trail) -> int:
    """A queue that was reset has its addresses written again before it is enabled again."""
    return queues_are_configured_again(trail)


def queues_are_configured_again(trail: Trail) -> int:
    seen = 0
    for queue, steps in queue_lives(trail):
        lacking: set[str] = set()
        was_reset = False
        for step in steps:
            if step.puts("queue_reset") and step.value == 1:
                was_reset, lacking = True, set(ADDRESSES)
            elif step.puts(*ADDRESSES):
                lacking.discard(step.field)
            elif step.puts("queue_enable") and step.value and was_reset:
                expect(
                    not lacking,
                    f"{', '.join(sorted(lacking))} of queue {queue} written again after its reset",
                    step,
                )
                seen += 1
                was_reset = False
    return seen


# Suspending a device


def _suspensions(trail: Trail) -> Iterator[tuple[list[Step], int, int | None]]:
    """For each write of SUSPEND: the life, where it is, and where DRIVER_OK is set again."""
    for life in attempts(trail):
        at = first(life, lambda step: sets(step, Status.SUSPEND))
        while at is not None:
            behind = first(life[at + 1 :], lambda step: sets(step, Status.DRIVER_OK))
            resumed = None if behind is None else at + 1 + behind
            yield life, at, resumed
            if resumed is None:
                break
            more = first(life[resumed + 1 :], lambda step: sets(step, Status.SUSPEND))
            at = None if more is None else resumed + 1 + more


@rule("suspend.drv.precondition")
def suspends_a_live_device(trail: Trail) -> int:
    """SUSPEND is set while DRIVER_OK is, and with the feature (SHOULD NOT otherwise)."""
    seen = 0
    for life, at, _ in _suspensions(trail):
        step = life[at]
        expect(step.status & Status.DRIVER_OK, "DRIVER_OK set before SUSPEND", step)
        expect(step.accepted & F.SUSPEND, "the feature SUSPEND accepted before", step)
        seen += 1
    return seen


def _is_suspended(step: Step) -> bool:
    return step.gets("device_status") and (
        step.value & (Status.SUSPEND | Status.DRIVER_OK) == Status.SUSPEND
        or bool(step.value & Status.DEVICE_NEEDS_RESET)
    )


@rule("suspend.drv.verify")
def verifies_that_it_is_suspended(trail: Trail) -> int:
    """After SUSPEND is set, the status is read until it shows SUSPEND, and DRIVER_OK off."""
    seen = 0
    for life, at, resumed in _suspensions(trail):
        between = life[at + 1 : resumed]
        expect(
            any(_is_suspended(step) for step in between),
            "the status read with SUSPEND on and DRIVER_OK off",
            f"nothing of it after {life[at]}",
        )
        seen += 1
    return seen


@rule("suspend.drv.no-notify")
def does_not_notify_while_suspended(trail: Trail) -> int:
    """No notification is sent after SUSPEND is set."""
    return _leaves_alone(trail, "notify", "no notification")


@rule("suspend.drv.no-config-write")
def leaves_the_configuration_while_suspended(trail: Trail) -> int:
    """The configuration is not written after SUSPEND is set."""
    return _leaves_alone(trail, "config", "no write to the configuration")


def _leaves_alone(trail: Trail, field: str, expected: str) -> int:
    seen = 0
    for life, at, resumed in _suspensions(trail):
        for step in life[at + 1 : resumed]:
            expect(not step.puts(field), f"{expected} after {life[at]}", step)
        seen += 1
    return seen


@rule("suspend.drv.resume-wait")
def waits_until_it_is_resumed(trail: Trail) -> int:
    """After DRIVER_OK is set again, the status is read until it shows it, and SUSPEND off, before
    anything else is done."""
    seen = 0
    for life, _, resumed in _suspensions(trail):
        if resumed is None:
            continue
        for step in life[resumed + 1 :]:
            if step.gets("device_status"):
                if step.value & (Status.SUSPEND | Status.DRIVER_OK) == Status.DRIVER_OK:
                    seen += 1
                    break
            else:
                expect(
                    not step.puts("notify", "config", "queue_enable", "queue_reset"),
                    "the status read with DRIVER_OK on and SUSPEND off",
                    step,
                )
    return seen
