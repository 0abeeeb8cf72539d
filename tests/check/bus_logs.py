"""Logs of what our own drivers do to the registers of devices in this process, and what can be done
to such a log to have it of a driver that gets one thing wrong."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from typing import Any

from tests.check.recorder import MmioRecorder, PciRecorder
from tests.check.reference_buses import WithAdministration, WithNotificationData
from tests.check.reference_mmio import BLOCK, MmioReference, MmioWindow
from tests.check.reference_pci import PciFunction, PciReference
from tests.check.reference_registers import Disk
from virtq.check.register_log.log import Access, Log
from virtq.check.register_log.trail import Step, follow
from virtq.drivers.blk import BlkDriver
from virtq.errors import TransportError, VirtqError
from virtq.features import F
from virtq.status import Status
from virtq.transports.qtest.virtio_mmio import REGISTERS
from virtq.transports.qtest.virtio_pci import FIELDS

# Devices with which a driver has occasion to do something that others give none for


class RefusingDisk(Disk):
    def accepts(self, features: int) -> bool:
        return False


class Refusing(PciReference):
    disk = RefusingDisk


class SplitDisk(Disk):
    offered = Disk.offered & ~int(F.RING_PACKED)


class SplitOnly(PciReference):
    disk = SplitDisk


class StrangeDisk(Disk):
    offered = Disk.offered | 1 << 45 | int(F.ACCESS_PLATFORM | F.ORDER_PLATFORM)


class Strange(PciReference):
    """Reserved features, platform features; one vector; capabilities that no driver expects."""

    disk = StrangeDisk

    class function(PciFunction):
        vectors = table_entries = 1

        def structures(self) -> Iterator[tuple[int, int, int, int, bytes]]:
            yield 0x55, 4, 0, 64, b""
            yield 1, 7, 0, 64, b""
            for kind, bar, offset, length, extra in super().structures():
                # All have something behind them, and one is larger than any that is known.
                yield kind, bar, offset, 1 << 20 if kind == 4 else length, extra + bytes(4)


class ConfigDataDisk(Disk):
    offered = Disk.offered | int(F.NOTIF_CONFIG_DATA | F.NOTIFICATION_DATA)


class WithConfigData(PciReference):
    """Queues have other numbers in notifications."""

    disk = ConfigDataDisk

    class function(PciFunction):
        def get(self, name: str) -> int:
            if name == "queue_notif_config_data":
                return self.select + 0x100
            return super().get(name)

        def notified(self, index: int) -> None:
            super().notified(index - 0x100)


class MmioDataDisk(Disk):
    offered = Disk.offered | int(F.NOTIFICATION_DATA)


class MmioWithData(MmioReference):
    disk = MmioDataDisk


class UndefinedEvents(MmioReference):
    class window(MmioWindow):
        def get(self, name: str) -> int:
            value = super().get(name)
            return value | 0x10 if name == "InterruptStatus" and value else value


class OtherMagic(MmioReference):
    class window(MmioWindow):
        def get(self, name: str) -> int:
            return 0x12345678 if name == "MagicValue" else super().get(name)


class OtherVersion(MmioReference):
    class window(MmioWindow):
        def get(self, name: str) -> int:
            return 3 if name == "Version" else super().get(name)


# Right logs


def _use(transport: Any, log: Log, want: int, reset: bool) -> None:
    with suppress(VirtqError):  # a device may have to be given up
        driver = BlkDriver(transport, want=want)
        driver.read(0, 4096)
        _await_interrupts(driver, log)
        if reset:
            driver.reset_queue(0)
            driver.read(0, 512)
        assert driver.config.capacity == 64
        driver.close()
        return
    transport.close()


def _await_interrupts(driver: BlkDriver, log: Log) -> None:
    """The thread that notifies and acknowledges may be behind the one that uses the disk."""
    wanted = {"notify"} if log.bus == "pci" else {"notify", "InterruptACK"}
    if not any(step.writes for step in follow(log).steps):
        return  # it is the log of a block that nothing is behind
    deadline = time.monotonic() + 10
    while not wanted <= {step.field or step.register for step in follow(log).steps if step.writes}:
        assert time.monotonic() < deadline
        driver.read(0, 512)


def _pci(device: type[PciReference], want: int = 0, reset: bool = False) -> Log:
    made: list[PciRecorder] = []

    def between(board: Any) -> PciRecorder:
        made.append(PciRecorder(board))
        return made[0]

    _use(device(between), made[0].log, want, reset)
    return made[0].log


def _mmio(
    device: type[MmioReference],
    want: int = 0,
    reset: bool = False,
    block: int = BLOCK,
) -> Log:
    made: list[MmioRecorder] = []

    def between(board: Any) -> MmioRecorder:
        made.append(MmioRecorder(board, block))
        return made[0]

    with suppress(TransportError):  # it may be no device to drive
        _use(device(between), made[0].log, want, reset)
    return made[0].log


def _administration() -> Log:
    """A driver that sets an administration queue up."""
    log = _pci(WithAdministration, want=F.ADMIN_VQ)
    more = [read("pci", "admin_queue_index", 2), read("pci", "admin_queue_num", 1)]
    more.append(write("pci", "queue_select", 2))
    more += [write("pci", name, 0x5000) for name in ("queue_desc", "queue_driver", "queue_device")]
    more.append(write("pci", "queue_enable", 1))
    return before(is_write("device_status", Status.DRIVER_OK), *more)(log)


class SuspendableDisk(Disk):
    offered = Disk.offered | int(F.SUSPEND)


class Suspendable(PciReference):
    disk = SuspendableDisk


def _suspended() -> Log:
    """A driver that suspends the device, resumes it, and goes on."""
    suspended, live = 0x1B, 0xF
    more = [write("pci", "device_status", live | 0x10), read("pci", "device_status", live | 0x10)]
    more += [read("pci", "device_status", suspended)]
    more += [write("pci", "device_status", live), read("pci", "device_status", suspended)]
    more += [read("pci", "device_status", live), Access(0, "write", "notify", 0, 2, 0)]
    return after(lambda step: step.puts("notify"), *more)(_pci(Suspendable, want=F.SUSPEND))


def _stopped() -> Log:
    """A driver that stops a queue."""
    stop = [write("mmio", "QueueSel", 0), write("mmio", "QueueReady", 0)]
    return after(lambda step: step.puts("notify"), *stop, read("mmio", "QueueReady", 0))(
        _mmio(MmioReference)
    )


RIGHT: dict[str, Callable[[], Log]] = {
    "pci": lambda: _pci(PciReference),
    "pci split": lambda: _pci(SplitOnly),
    "pci queue reset": lambda: _pci(PciReference, reset=True),
    "pci data": lambda: _pci(WithNotificationData, want=F.NOTIFICATION_DATA),
    "pci config data": lambda: _pci(WithConfigData, want=F.NOTIF_CONFIG_DATA),
    "pci both": lambda: _pci(WithConfigData, want=F.NOTIF_CONFIG_DATA | F.NOTIFICATION_DATA),
    "pci refused": lambda: _pci(Refusing),
    "pci strange": lambda: _pci(Strange, want=F.ACCESS_PLATFORM | F.ORDER_PLATFORM),
    "pci administration": _administration,
    "pci suspended": _suspended,
    "mmio": lambda: _mmio(MmioReference),
    "mmio queue reset": lambda: _mmio(MmioReference, reset=True),
    "mmio data": lambda: _mmio(MmioWithData, want=F.NOTIFICATION_DATA),
    "mmio stopped": _stopped,
    "mmio undefined": lambda: _mmio(UndefinedEvents),
    "mmio placeholder": lambda: _mmio(MmioReference, block=0),
    "mmio magic": lambda: _mmio(OtherMagic),
    "mmio version": lambda: _mmio(OtherVersion),
}
"""By name: what makes a log of a driver that does everything right."""


@cache
def right(name: str) -> Log:
    return RIGHT[name]()


# What is done to a log

Edit = Callable[[Log], Log]
Match = Callable[[Step], bool]


def write(bus: str, field: str, value: int, width: int | None = None) -> Access:
    return _access("write", bus, field, value, width)


def read(bus: str, field: str, value: int, width: int | None = None) -> Access:
    return _access("read", bus, field, value, width)


def _access(do: Any, bus: str, field: str, value: int, width: int | None) -> Access:
    if bus == "mmio":
        return Access(0, do, "mmio", REGISTERS[field], width or 4, value)
    offset, size = FIELDS[field]
    return Access(0, do, "common", offset, width or min(size, 4), value)


def is_write(field: str, bits: int = 0) -> Match:
    """A write of a field, with these bits set."""
    return lambda step: step.puts(field) and step.value & bits == bits


def is_read(field: str) -> Match:
    return lambda step: step.gets(field)


def is_status(value: int) -> Match:
    return lambda step: step.puts("device_status") and step.value == value


def _edited(edit: Callable[[list[Step]], list[Access]]) -> Edit:
    def apply(log: Log) -> Log:
        accesses = edit(follow(log).steps)
        numbered = [dataclasses.replace(one, line=i) for i, one in enumerate(accesses, 2)]
        assert numbered != log.accesses, "nothing was found to change"
        return dataclasses.replace(log, accesses=numbered)

    return apply


def drop(match: Match) -> Edit:
    """Without the accesses that match."""
    return _edited(lambda steps: [step.access for step in steps if not match(step)])


def change(match: Match, make: Callable[[Access], Access], only_first: bool = False) -> Edit:
    """Those that match are others."""

    def edit(steps: list[Step]) -> list[Access]:
        found = [step for step in steps if match(step)]
        changed = {id(step) for step in (found[:1] if only_first else found)}
        return [make(step.access) if id(step) in changed else step.access for step in steps]

    return _edited(edit)


def value(make: Callable[[int], int]) -> Callable[[Access], Access]:
    return lambda access: dataclasses.replace(access, value=make(access.value))


def width(number: int) -> Callable[[Access], Access]:
    return lambda access: dataclasses.replace(access, width=number)


def before(match: Match, *accesses: Access) -> Edit:
    """More of them before the first that matches."""

    def edit(steps: list[Step]) -> list[Access]:
        at = next(i for i, step in enumerate(steps) if match(step))
        found = [step.access for step in steps]
        return [*found[:at], *accesses, *found[at:]]

    return _edited(edit)


def after(match: Match, *accesses: Access) -> Edit:
    """More of them after the last that matches."""

    def edit(steps: list[Step]) -> list[Access]:
        at = max(i for i, step in enumerate(steps) if match(step)) + 1
        found = [step.access for step in steps]
        return [*found[:at], *accesses, *found[at:]]

    return _edited(edit)


def until(match: Match) -> Edit:
    """The driver gives up before the first that matches."""

    def edit(steps: list[Step]) -> list[Access]:
        at = next(i for i, step in enumerate(steps) if match(step))
        return [step.access for step in steps[:at]]

    return _edited(edit)


def moved(match: Match, to: Match) -> Edit:
    """Those that match come before the first that `to` matches, or after it if they came before."""

    def edit(steps: list[Step]) -> list[Access]:
        found = [step.access for step in steps if match(step)]
        rest = [step for step in steps if not match(step)]
        at = next(i for i, step in enumerate(rest) if to(step))
        at += steps.index(rest[at]) > next(i for i, step in enumerate(steps) if match(step))
        kept = [step.access for step in rest]
        return [*kept[:at], *found, *kept[at:]]

    return _edited(edit)


def both(*edits: Edit) -> Edit:
    def apply(log: Log) -> Log:
        for edit in edits:
            log = edit(log)
        return log

    return apply
