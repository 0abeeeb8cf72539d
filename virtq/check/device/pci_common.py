"""The common configuration structure of a PCI function (4.1.4.3)."""

from __future__ import annotations

from virtq.check.case import NotObservable, case, expect
from virtq.check.context import Context, Live
from virtq.check.registers import (
    change_needs,
    expect_generations,
    expect_no_write,
    expect_unused,
    pci,
    reset_queue,
    serve,
    submit,
)
from virtq.check.session import Session
from virtq.features import F
from virtq.transports.qtest.virtio_pci import PciRegisters

_WORD = 0xFFFF_FFFF
_EXPRESS = 0x10
"""The PCI Express capability, without which there are no extended ones."""
_FEATURE_BITS = 128
"""Those from here on are reserved (2.2)."""


@case("pci.layout.dev.halves-independent", bus="pci", rings=False)
def halves(ctx: Context) -> None:
    """The halves of a 64-bit field are written and read each on its own."""
    with pci(ctx) as (session, registers):
        session.negotiate(ctx.features(session))
        registers.put("queue_select", 0)
        for field in ("queue_desc", "queue_driver", "queue_device"):
            registers.put(field, 0x1111_1000_2222_2000)
            for high, value in ((False, 0x3333_3000), (True, 0x4444), (False, 0x5555_5000)):
                other = registers.get_half(field, not high)
                registers.put_half(field, high, value)
                came = registers.get_half(field, high), registers.get_half(field, not high)
                expect(
                    came == (value, other),
                    f"{value:#x} in the half of {field} that was written, {other:#x} in the other",
                    " and ".join(f"{word:#x}" for word in came),
                )


# Features


@case("pci.common.dev.feature-window", bus="pci", rings=False)
def device_feature(ctx: Context) -> None:
    """device_feature shows the 32 bits that device_feature_select chooses, in whatever order they
    are asked for; those that do not exist are 0."""
    with pci(ctx) as (session, registers):
        selects = (0, 1, 2, 3, 1, 0, 4, 5, 1, 32, 0x100, 0, 0x8000_0000, 0x8000_0001, _WORD, 1, 0)
        for select in selects:
            registers.put("device_feature_select", select)
            shown = registers.get("device_feature")
            offered = session.offered >> 32 * select & _WORD if 32 * select < _FEATURE_BITS else 0
            expect(
                shown == offered,
                f"{offered:#x} in device_feature with device_feature_select {select:#x}",
                f"{shown:#x}",
            )


def _read_back(registers: PciRegisters, select: int) -> int:
    registers.put("driver_feature_select", select)
    return registers.get("driver_feature")


@case("pci.common.dev.driver-feature-readback", bus="pci", rings=False)
def driver_feature(ctx: Context) -> None:
    """driver_feature shows the bits that were written, if they are offered, for each
    driver_feature_select; a later write replaces an earlier one."""
    with pci(ctx) as (session, registers):
        session.acknowledge()
        low, high = session.offered & _WORD, session.offered >> 32 & _WORD
        for words in ((low, high), (0, high), (low & 0x5555_5555, int(F.VERSION_1) >> 32)):
            for select, word in enumerate(words):
                registers.write_feature_word(select, word)
            for select in (1, 0):
                shown = _read_back(registers, select)
                wanted = words[select]
                expect(
                    shown & (low, high)[select] == wanted,
                    f"{wanted:#x} in driver_feature with driver_feature_select {select}",
                    f"{shown:#x}",
                )


@case("pci.common.dev.invalid-readback", bus="pci", rings=False)
def driver_feature_that_is_not_offered(ctx: Context) -> None:
    """Bits that are not offered may be shown after they were written, or not. None is shown that
    was not written, and those that are offered are shown in either case."""
    with pci(ctx) as (session, registers):
        session.acknowledge()
        for select in (0, 1):
            offered = session.offered >> 32 * select & _WORD
            invalid = ~offered & _WORD & 0x00FF_FFF0
            written = invalid | offered & 0x0F0F_0F0F
            registers.write_feature_word(select, written)
            shown = _read_back(registers, select)
            expect(
                not shown & ~written,
                f"no bit but those that were written, {written:#x}",
                f"{shown:#x}",
            )
            expect(
                shown & offered == written & offered,
                f"those that are offered, {written & offered:#x}, beside others that are not",
                f"{shown:#x}",
            )


# The configuration's generation


@case("pci.common.dev.generation-change", bus="pci")
def generation_while_live(ctx: Context) -> None:
    """config_generation changes by the time that a driver reads something new, on a live device."""
    with pci(ctx) as (session, registers):
        ctx.live(add=change_needs(session), session=session)
        expect_generations(session, registers)


@case("pci.common.dev.generation-change", bus="pci", rings=False)
def generation_before_driver_ok(ctx: Context) -> None:
    """It does so, too, before DRIVER_OK, while a driver reads the configuration to set itself
    up."""
    with pci(ctx) as (session, registers):
        session.negotiate(ctx.features(session, change_needs(session)))
        expect_generations(session, registers)


# Reset


def _live(ctx: Context, session: Session, registers: PciRegisters, add: int = 0) -> Live:
    live = ctx.live(add=add, session=session)
    serve(live, registers, 2)
    return live


@case("pci.common.dev.reset-on-zero", bus="pci")
def status_zero(ctx: Context) -> None:
    """0 in device_status resets a live device: device_status reads 0 then, and goes on to, and the
    virtqueue is not used any more."""
    with pci(ctx) as (session, registers):
        live = _live(ctx, session, registers)
        registers.put("device_status", 0)
        for _ in session.patience("device_status to read 0 after a reset"):
            if registers.get("device_status") == 0:
                break
        expect_unused(live, registers, "after a reset")
        status = registers.get("device_status")
        expect(status == 0, "device_status 0", f"{status:#x}")


@case("pci.common.dev.queue-enable-zero", bus="pci")
def queue_enable_after_a_reset(ctx: Context) -> None:
    """queue_enable reads 0 for every queue after a reset, also for one that was enabled."""
    with pci(ctx) as (session, registers):
        live = _live(ctx, session, registers)
        registers.put("queue_select", live.work.queue)
        if registers.get("queue_enable") != 1:
            raise NotObservable("queue_enable does not read 1 for a queue that is in use")
        session.reset()
        for index in range(registers.queue_count):
            registers.put("queue_select", index)
            enabled = registers.get("queue_enable")
            expect(enabled == 0, f"queue_enable 0 for queue {index}", enabled)


@case("pci.common.dev.unavailable-size-zero", bus="pci", rings=False)
def queues_that_are_not_there(ctx: Context) -> None:
    """queue_size reads 0 for the queues behind the last one."""
    with pci(ctx) as (session, registers):
        if session.offered & F.ADMIN_VQ:
            raise NotObservable("administration virtqueues may be there")
        session.negotiate(ctx.features(session))
        count = registers.queue_count
        _expect_no_queue(registers, [count, count + 1, count + 7])


@case("pci.common.dev.unavailable-size-zero", bus="pci", rings=False)
def queues_that_are_nowhere_near(ctx: Context) -> None:
    """queue_size reads 0, too, for any other index that queue_select has room for."""
    with pci(ctx) as (session, registers):
        if session.offered & F.ADMIN_VQ:
            raise NotObservable("administration virtqueues may be there")
        session.negotiate(ctx.features(session))
        _expect_no_queue(registers, [1024, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF])


def _expect_no_queue(registers: PciRegisters, indices: list[int]) -> None:
    for index in indices:
        if index < registers.queue_count:
            continue
        registers.put("queue_select", 0)
        registers.put("queue_select", index)
        size = registers.get("queue_size")
        expect(
            size == 0,
            f"queue_size 0 with queue_select {index}, where there are {registers.queue_count}",
            f"{size} (queue_select reads {registers.get('queue_select')})",
        )


@case("pci.common.dev.size-power-of-two", bus="pci", rings=False)
def queue_sizes(ctx: Context) -> None:
    """Without RING_PACKED, queue_size reads 0 or a power of 2 for every queue."""
    with pci(ctx) as (session, registers):
        session.negotiate(ctx.features(session))
        for index in range(registers.queue_count):
            registers.put("queue_select", index)
            size = registers.get("queue_size")
            expect(not size & (size - 1), f"a power of 2 as the size of queue {index}", size)


@case("pci.common.queue-size-max-on-reset", bus="pci", rings=False)
def queue_size_after_a_reset(ctx: Context) -> None:
    """queue_size is the largest size after a reset. A smaller one that a driver writes is what it
    reads then, and is forgotten with the next reset."""
    with pci(ctx) as (session, registers):
        session.negotiate(ctx.features(session))
        registers.put("queue_select", 0)
        largest = registers.get("queue_size")
        if largest < 4:
            raise NotObservable(f"queue 0 has {largest} slots")
        registers.put("queue_size", largest // 2)
        size = registers.get("queue_size")
        expect(size == largest // 2, f"queue_size {largest // 2}, as it was written", size)
        session.reset()
        registers.put("queue_select", 0)
        size = registers.get("queue_size")
        expect(size == largest, f"queue_size {largest} again after a reset", size)


@case("resv.dev.sriov-otherwise-not", bus="pci", rings=False)
def no_virtual_functions(ctx: Context) -> None:
    """SR_IOV is not offered by a function that has no PCI Express capability, and so has no SR-IOV
    capability either."""
    with pci(ctx) as (session, registers):
        if any(found.id == _EXPRESS for found in registers.function.capabilities()):
            raise NotObservable("the function may have an SR-IOV capability")
        expect(not session.offered & F.SR_IOV, "SR_IOV not offered", f"{session.offered:#x}")


@case("pci.common.dev.admin-index-above", bus="pci", rings=False, needs=F.ADMIN_VQ)
def the_first_administration_queue(ctx: Context) -> None:
    """admin_queue_index is num_queues or more."""
    with pci(ctx) as (session, registers):
        session.negotiate(ctx.features(session, F.ADMIN_VQ))
        first = registers.get("admin_queue_index")
        expect(
            first >= registers.get("num_queues"),
            f"admin_queue_index {registers.get('num_queues')} or more",
            first,
        )


@case("pci.common.dev.admin-num-range", bus="pci", rings=False, needs=F.ADMIN_VQ)
def the_last_administration_queue(ctx: Context) -> None:
    """admin_queue_index + admin_queue_num is 0x10000 at most."""
    with pci(ctx) as (session, registers):
        session.negotiate(ctx.features(session, F.ADMIN_VQ))
        end = registers.get("admin_queue_index") + registers.get("admin_queue_num")
        expect(end <= 0x10000, "administration queues within 0x10000", f"{end:#x}")


# Resetting one virtqueue


@case("pci.common.dev.queue-reset-zero", bus="pci", needs=F.RING_RESET)
def queue_reset_after_a_reset(ctx: Context) -> None:
    """queue_reset reads 0 for every queue after the device was reset, also if queues were reset
    before."""
    with pci(ctx) as (session, registers):
        live = _live(ctx, session, registers, F.RING_RESET)
        reset_queue(live, registers)
        session.reset()
        session.negotiate(ctx.features(session, F.RING_RESET))
        for index in range(registers.queue_count):
            registers.put("queue_select", index)
            value = registers.get("queue_reset")
            expect(value == 0, f"queue_reset 0 for queue {index}", value)


@case("pci.common.dev.queue-reset-zero-after-enable", bus="pci", needs=F.RING_RESET)
def queue_reset_of_a_queue_in_use(ctx: Context) -> None:
    """queue_reset reads 0 once the queue is enabled, and once it is enabled again."""
    with pci(ctx) as (session, registers):
        live = ctx.live(add=F.RING_RESET, session=session)
        for _ in range(2):
            registers.put("queue_select", live.work.queue)
            value = registers.get("queue_reset")
            expect(value == 0, "queue_reset 0 of an enabled queue", value)
            reset_queue(live, registers)
            live = Live(session, session.ring(live.work.queue), live.work)


@case("pci.common.dev.queue-reset-on-one", bus="pci", needs=F.RING_RESET)
def queue_reset_resets(ctx: Context) -> None:
    """1 in queue_reset resets the queue: it is not used any more, and serves from its beginning
    once it is enabled again."""
    with pci(ctx) as (session, registers):
        live = _live(ctx, session, registers, F.RING_RESET)
        reset_queue(live, registers)
        expect_unused(live, registers, "after the reset of the queue")
        live = Live(session, session.ring(live.work.queue), live.work)
        serve(live, registers, 2)
        expect(live.ring.entries[0].slot == 0, "the first used entry in slot 0", live.ring.entries)


@case("pci.common.dev.queue-reset-done", bus="pci", needs=F.RING_RESET)
def queue_reset_is_done(ctx: Context) -> None:
    """Once queue_reset reads 0, queue_enable does, too."""
    with pci(ctx) as (session, registers):
        live = _live(ctx, session, registers, F.RING_RESET)
        reset_queue(live, registers)
        value = registers.get("queue_enable")
        expect(value == 0, f"queue_enable 0 of queue {live.work.queue}, which was reset", value)


@case("pci.common.dev.queue-reset-busy", bus="pci", needs=F.RING_RESET)
def queue_reset_is_on_its_way(ctx: Context) -> None:
    """queue_reset reads 1 as long as the reset is not done: with buffers on their way, nothing is
    written to the ring any more once it reads 0."""
    with pci(ctx) as (session, registers):
        live = _live(ctx, session, registers, F.RING_RESET)
        submit(live, registers, live.jobs(8, first=2))
        reset_queue(live, registers)
        expect_no_write(live, "once queue_reset reads 0")
