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

CONFIG_CHANGES = {blk.DEVICE_ID: (0, 4), net.DEVICE_ID: (6, 2)}
"""What changes when a device's owner changes it, by device type: offset and size in bytes (the low
half of a disk's capacity, a network device's status)."""
CHANGE_NEEDS = {net.DEVICE_ID: int(net.NetFeature.STATUS)}
"""The feature that it takes."""


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


def change_config(session: Session, device_id: int | None) -> None:
    """Have the device change its configuration. Raises NotObservable if there is no way to."""
    transport = session.transport
    assert isinstance(transport, ByRegisters)
    if device_id not in CONFIG_CHANGES or not transport.change_config():
        raise NotObservable("there is no way to have this device change its configuration")
