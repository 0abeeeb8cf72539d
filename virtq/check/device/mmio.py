"""Memory-mapped registers (4.2.2)."""

from __future__ import annotations

from virtq.check.case import case, expect
from virtq.check.context import Context, Live
from virtq.check.registers import (
    break_queue,
    change_config,
    change_needs,
    expect_generations,
    expect_no_write,
    expect_unused,
    mmio,
    reset_queue,
    serve,
    submit,
)
from virtq.check.session import Ring, Session
from virtq.features import F
from virtq.transports.qtest.virtio_mmio import MAGIC_VALUE, MmioRegisters

_USED, _CONFIG = 1, 2
"""Events of InterruptStatus."""


def _in_every_state(ctx: Context, register: str, value: int) -> None:
    with mmio(ctx) as (session, registers):

        def look(when: str) -> None:
            came = registers.get(register)
            expect(came == value, f"{register} {value:#x} {when}", f"{came:#x}")

        look("after a reset")
        session.acknowledge()
        look("with DRIVER")
        session.reset()
        live = ctx.live(session=session)
        look("with DRIVER_OK")
        serve(live, registers, 1)
        look("after a buffer was used")


@case("mmio.reg.dev.magic", bus="mmio", rings=False)
def magic_value(ctx: Context) -> None:
    """MagicValue reads 0x74726976, in every state."""
    _in_every_state(ctx, "MagicValue", MAGIC_VALUE)


@case("mmio.reg.dev.version", bus="mmio", rings=False)
def version(ctx: Context) -> None:
    """Version reads 2, in every state."""
    _in_every_state(ctx, "Version", 2)


# Interrupts


def _wait_event(session: Session, registers: MmioRegisters, event: int) -> int:
    """Until the bit is set in InterruptStatus; returns all of them."""
    for _ in session.patience(f"bit {event:#x} of InterruptStatus"):
        if (status := registers.get("InterruptStatus")) & event:
            return status
    raise AssertionError("patience ends in Hung")


def _expect_held(registers: MmioRegisters, event: int) -> None:
    """A bit that is set stays, whatever is read and whatever else is acknowledged, until it is
    acknowledged itself."""
    for what, acknowledged in (("read", 0), ("read", 0), ("the other event's ACK", 3 & ~event)):
        if acknowledged:
            registers.put("InterruptACK", acknowledged)
        status = registers.get("InterruptStatus")
        expect(
            status & event, f"bit {event:#x} of InterruptStatus set after {what}", f"{status:#x}"
        )
    registers.put("InterruptACK", event)
    status = registers.get("InterruptStatus")
    expect(
        not status & event, f"bit {event:#x} of InterruptStatus off after its ACK", f"{status:#x}"
    )


def _settle(session: Session) -> None:
    """Whatever comes of a used buffer has come."""
    for _ in session.moment():
        pass


@case("mmio.reg.dev.interrupt-status-hold", bus="mmio")
def a_used_buffer_is_held(ctx: Context) -> None:
    """The bit for used buffers is set from a notification on, until it is acknowledged."""
    with mmio(ctx) as (session, registers):
        live = ctx.live(session=session)
        for seed in range(3):
            serve(live, registers, 1, seed)
            _wait_event(session, registers, _USED)
            _settle(session)
            _expect_held(registers, _USED)


@case("mmio.reg.dev.interrupt-status-hold", bus="mmio", rings=False)
def a_configuration_change_is_held(ctx: Context) -> None:
    """The bit for configuration changes is set from a change on, until it is acknowledged."""
    with mmio(ctx) as (session, registers):
        ctx.live(add=change_needs(session), session=session)
        for _ in range(2):
            change_config(session)
            _wait_event(session, registers, _CONFIG)
            _expect_held(registers, _CONFIG)


@case("mmio.reg.dev.interrupt-status-clean", bus="mmio")
def no_event_but_used_buffers(ctx: Context) -> None:
    """InterruptStatus is 0 before anything happened, and has the bit for used buffers alone where
    nothing else did."""
    with mmio(ctx) as (session, registers):
        live = ctx.live(session=session)
        status = registers.get("InterruptStatus")
        expect(status == 0, "InterruptStatus 0 before anything happened", f"{status:#x}")
        for seed in range(3):
            serve(live, registers, 1, seed)
            _wait_event(session, registers, _USED)
            _settle(session)
            status = registers.get("InterruptStatus")
            expect(status == _USED, "InterruptStatus 1 after a used buffer", f"{status:#x}")
            registers.put("InterruptACK", _USED)


@case("mmio.reg.dev.interrupt-status-clean", bus="mmio", rings=False)
def no_event_but_a_configuration_change(ctx: Context) -> None:
    """Where the configuration changed and no buffer was used, InterruptStatus says so."""
    with mmio(ctx) as (session, registers):
        ctx.live(add=change_needs(session), session=session)
        change_config(session)
        status = _wait_event(session, registers, _CONFIG)
        expect(
            status == _CONFIG,
            "InterruptStatus 2 after a configuration change, with no buffer used",
            f"{status:#x}",
        )


@case("status.dev.needs-reset-config-notify", bus="mmio", packed=False)
def asking_for_a_reset(ctx: Context) -> None:
    """A live device that sets DEVICE_NEEDS_RESET sends a configuration change notification."""
    with mmio(ctx) as (session, registers):
        live = ctx.live(session=session)
        serve(live, registers, 1)
        _settle(session)
        registers.put("InterruptACK", _USED | _CONFIG)
        break_queue(live, registers)
        _wait_event(session, registers, _CONFIG)


# Features


@case("mmio.no-admin-vq", "resv.mmio-no-admin-vq", bus="mmio", rings=False)
def no_administration_queues(ctx: Context) -> None:
    """ADMIN_VQ is not offered: there are no administration virtqueues on this transport."""
    with mmio(ctx) as (session, _):
        expect(not session.offered & F.ADMIN_VQ, "ADMIN_VQ not offered", f"{session.offered:#x}")


@case("resv.dev.sriov-otherwise-not", bus="mmio", rings=False)
def no_virtual_functions(ctx: Context) -> None:
    """SR_IOV is not offered: this is no PCI device."""
    with mmio(ctx) as (session, _):
        expect(not session.offered & F.SR_IOV, "SR_IOV not offered", f"{session.offered:#x}")


# Reset


@case("mmio.reg.dev.reset-clears", bus="mmio")
def reset_clears(ctx: Context) -> None:
    """A reset clears InterruptStatus, and QueueReady of every queue."""
    with mmio(ctx) as (session, registers):
        live = ctx.live(session=session)
        serve(live, registers, 2)
        _wait_event(session, registers, _USED)
        _settle(session)
        session.reset()
        status = registers.get("InterruptStatus")
        expect(status == 0, "InterruptStatus 0 after a reset", f"{status:#x}")
        for index in range(registers.queue_count):
            registers.put("QueueSel", index)
            ready = registers.get("QueueReady")
            expect(ready == 0, f"QueueReady 0 of queue {index} after a reset", ready)


# The configuration


@case("mmio.reg.dev.generation", bus="mmio")
def generation_while_live(ctx: Context) -> None:
    """ConfigGeneration changes by the time that a driver reads something new, on a live device."""
    with mmio(ctx) as (session, registers):
        ctx.live(add=change_needs(session), session=session)
        expect_generations(session, registers)


@case("mmio.reg.dev.generation", bus="mmio", rings=False)
def generation_before_driver_ok(ctx: Context) -> None:
    """It does so, too, before DRIVER_OK, while a driver reads the configuration to set itself
    up."""
    with mmio(ctx) as (session, registers):
        session.negotiate(ctx.features(session, change_needs(session)))
        expect_generations(session, registers)


# Queues


@case("mmio.reg.dev.not-ready-no-access", bus="mmio")
def a_queue_that_is_not_ready(ctx: Context) -> None:
    """A queue that has its size and its addresses, but not QueueReady, is not used."""
    with mmio(ctx) as (session, registers):
        session.negotiate(ctx.features(session))
        work = ctx.work
        work.prepare(session)
        size = min(session.transport.queue_size_max(work.queue), 64)
        ring = Ring(session, work.queue, size, session.features, 0)
        session.rings[work.queue] = ring
        registers.configure_queue(work.queue, size, *ring.areas[:3])
        session.go_live()
        expect_unused(Live(session, ring, work), registers, "before QueueReady is 1", first=0)


@case("mmio.reg.dev.not-ready-no-access", bus="mmio")
def a_queue_that_is_stopped(ctx: Context) -> None:
    """A queue is not used any more once QueueReady was set to 0 and reads 0."""
    with mmio(ctx) as (session, registers):
        live = ctx.live(session=session)
        serve(live, registers, 2)
        registers.put("QueueSel", live.work.queue)
        registers.put("QueueReady", 0)
        for _ in session.patience("QueueReady to read 0 after 0 was written"):
            if registers.get("QueueReady") == 0:
                break
        expect_unused(live, registers, "with QueueReady 0")


@case("mmio.reg.dev.queue-reset-zero", bus="mmio", needs=F.RING_RESET)
def queue_reset_after_a_reset(ctx: Context) -> None:
    """QueueReset reads 0 for every queue after the device was reset, also if queues were reset
    before."""
    with mmio(ctx) as (session, registers):
        live = ctx.live(add=F.RING_RESET, session=session)
        serve(live, registers, 2)
        reset_queue(live, registers)
        session.reset()
        session.negotiate(ctx.features(session, F.RING_RESET))
        for index in range(registers.queue_count):
            registers.put("QueueSel", index)
            value = registers.get("QueueReset")
            expect(value == 0, f"QueueReset 0 of queue {index}", value)


@case("mmio.reg.dev.queue-reset-zero-after-ready", bus="mmio", needs=F.RING_RESET)
def queue_reset_of_a_queue_in_use(ctx: Context) -> None:
    """QueueReset reads 0 once the queue is ready."""
    with mmio(ctx) as (session, registers):
        live = ctx.live(add=F.RING_RESET, session=session)
        registers.put("QueueSel", live.work.queue)
        value = registers.get("QueueReset")
        expect(value == 0, "QueueReset 0 of a queue that is ready", value)


@case("mmio.reg.dev.queue-reset-on-one", bus="mmio", needs=F.RING_RESET)
def queue_reset_resets(ctx: Context) -> None:
    """1 in QueueReset resets the queue: it is not used any more, and serves from its beginning once
    it is ready again."""
    with mmio(ctx) as (session, registers):
        live = ctx.live(add=F.RING_RESET, session=session)
        serve(live, registers, 2)
        reset_queue(live, registers)
        expect_unused(live, registers, "after the reset of the queue")
        registers.put("QueueReady", 0)  # for one whose reset does not do it
        live = Live(session, session.ring(live.work.queue), live.work)
        serve(live, registers, 2)
        expect(live.ring.entries[0].slot == 0, "the first used entry in slot 0", live.ring.entries)


@case("mmio.reg.dev.queue-reset-done", bus="mmio", needs=F.RING_RESET)
def queue_reset_is_done(ctx: Context) -> None:
    """Once QueueReset reads 0, QueueReady does, too."""
    with mmio(ctx) as (session, registers):
        live = ctx.live(add=F.RING_RESET, session=session)
        serve(live, registers, 2)
        reset_queue(live, registers)
        value = registers.get("QueueReady")
        expect(value == 0, f"QueueReady 0 of queue {live.work.queue}, which was reset", value)


@case("mmio.reg.dev.queue-reset-busy", bus="mmio", needs=F.RING_RESET)
def queue_reset_is_on_its_way(ctx: Context) -> None:
    """QueueReset reads 1 as long as the reset is not done: with buffers on their way, nothing is
    written to the ring any more once it reads 0."""
    with mmio(ctx) as (session, registers):
        live = ctx.live(add=F.RING_RESET, session=session)
        serve(live, registers, 2)
        submit(live, registers, live.jobs(8, first=2))
        reset_queue(live, registers)
        expect_no_write(live, "once QueueReset reads 0")
