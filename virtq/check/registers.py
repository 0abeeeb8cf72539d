"""A device's registers for a case: they are the case's alone while it has them.

A transport passes notifications on and acknowledges interrupts by itself; here nobody does but the
case, so that it sees what a register shows before and after.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from virtq.check.case import NotObservable, expect
from virtq.check.context import Context, Live
from virtq.check.session import Job, Sent, Session
from virtq.status import Status
from virtq.transports.base import ByRegisters
from virtq.wire import blk, net

if TYPE_CHECKING:
    from virtq.transports.qtest.virtio_mmio import MmioRegisters
    from virtq.transports.qtest.virtio_pci import PciRegisters

    Registers: TypeAlias = PciRegisters | MmioRegisters

_CHANGES = {blk.DEVICE_ID: (0, 4), net.DEVICE_ID: (6, 2)}
"""What changes when a device's owner changes it, by device type: offset and size in bytes (the low
half of a disk's capacity, a network device's status)."""
_CHANGE_NEEDS = {net.DEVICE_ID: int(net.NetFeature.STATUS)}


@contextlib.contextmanager
def pci(ctx: Context, *, msix: bool = True) -> Iterator[tuple[Session, PciRegisters]]:
    """A device that is reset, and its registers. Without `msix` it is to use INTx."""
    session = ctx.session()
    transport = session.transport
    assert isinstance(transport, ByRegisters)
    with transport.undisturbed():
        registers: PciRegisters = transport.registers
        if not msix:
            registers.without_msix()
        yield session, registers


@contextlib.contextmanager
def mmio(ctx: Context) -> Iterator[tuple[Session, MmioRegisters]]:
    """A device that is reset, and its registers."""
    session = ctx.session()
    transport = session.transport
    assert isinstance(transport, ByRegisters)
    with transport.undisturbed():
        yield session, transport.registers


def reset_queue(live: Live, registers: Registers) -> None:
    """Reset the queue of a live device by its register, and wait until that is done."""
    select, reset = registers.QUEUE_RESET
    registers.put(select, live.work.queue)
    registers.put(reset, 1)
    for _ in live.session.patience(f"{reset} to read 0"):
        value = registers.get(reset)
        expect(value in (0, 1), f"{reset} 1 until the reset is done, and 0 then", value)
        if value == 0:
            return


def submit(live: Live, registers: Registers, jobs: Sequence[Job]) -> list[Sent]:
    """Make buffers available and notify the device, whether it wants it or not."""
    sent = [live.ring.add(job) for job in jobs]
    live.ring.half.publish()
    registers.notify(live.work.queue, None)
    return sent


def serve(live: Live, registers: Registers, count: int, first: int = 0) -> None:
    """Have so many buffers used."""
    submit(live, registers, live.jobs(count, first))
    live.ring.wait(count)


def break_queue(live: Live, registers: Registers) -> None:
    """Have a split virtqueue's available index run far ahead of what is there (2.7.6), which no
    driver does, and wait until the device asks to be reset for it. Raises NotObservable if it does
    not."""
    live.ring.split_ring.avail_idx += 2 * live.ring.size + 3
    registers.notify(live.work.queue, None)
    for _ in live.session.moment():
        if live.session.transport.read_status() & Status.DEVICE_NEEDS_RESET:
            return
    raise NotObservable("a malformed ring does not make the device ask for a reset")


# The configuration


def may_change(session: Session) -> bool:
    """Whether this type of device has a configuration that can be made to change."""
    return session.transport.device_id in _CHANGES


def change_needs(session: Session) -> int:
    """The feature that a change of this device's configuration takes."""
    return _CHANGE_NEEDS.get(session.transport.device_id or 0, 0)


def change_config(session: Session) -> None:
    """Have the device change its configuration. Raises NotObservable if there is no way to."""
    transport = session.transport
    assert isinstance(transport, ByRegisters)
    if not may_change(session) or not transport.change_config():
        raise NotObservable("there is no way to have this device change its configuration")


def see_a_change(session: Session, registers: Registers) -> tuple[int, int]:
    """As `change_config`, and read the configuration until the change shows. Returns what was
    read before, and now."""
    offset, size = _CHANGES.get(session.transport.device_id or 0, (0, 1))
    before = registers.load_config(offset, size) if may_change(session) else 0
    change_config(session)
    for _ in session.patience("the configuration to change"):
        if (now := registers.load_config(offset, size)) != before:
            return before, now
    raise AssertionError("patience ends in Hung")


def expect_generations(session: Session, registers: Registers) -> None:
    """Change, read, compare, several times: with something new there is another generation."""
    name = registers.GENERATION
    for _ in range(3):
        generation = registers.get(name)
        before, now = see_a_change(session, registers)
        after = registers.get(name)
        expect(
            after != generation,
            f"another {name} than {generation} once {now:#x} was read in place of {before:#x}",
            after,
        )


# Virtqueues that are not in use


def expect_no_write(live: Live, why: str, since: bytes | None = None) -> None:
    """For a moment the virtqueue is what it was `since` then; by default, what it is now."""
    before = live.ring_bytes() if since is None else since
    for _ in live.session.moment():
        expect(live.ring_bytes() == before, f"rings untouched {why}", "a write to a ring")


def expect_unused(live: Live, registers: Registers, why: str, first: int = 2) -> None:
    """Make buffers available and notify: no word of the virtqueue changes."""
    for job in live.jobs(3, first):
        live.ring.add(job)
    live.ring.half.publish()
    before = live.ring_bytes()
    registers.notify(live.work.queue, None)
    expect_no_write(live, why, before)
