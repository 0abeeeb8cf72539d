"""Where a PCI function has its structures: the capability list (4.1.4)."""

from __future__ import annotations

from virtq.check.case import NotObservable, case, expect
from virtq.check.context import Context
from virtq.check.registers import pci
from virtq.features import F
from virtq.status import Status
from virtq.transports.qtest.capabilities import BARS, Cfg, VirtioCapability, place, scan
from virtq.transports.qtest.pci import CONFIG_BYTES
from virtq.transports.qtest.virtio_pci import PciRegisters

_LENGTHS = {
    Cfg.COMMON: 16,
    Cfg.NOTIFY: 20,  # notify_off_multiplier
    Cfg.ISR: 16,
    Cfg.DEVICE: 16,
    Cfg.PCI: 20,  # pci_cfg_data
    Cfg.SHARED_MEMORY: 24,  # offset_hi, length_hi
}
"""Bytes of each capability with its extra data."""

_WITH_CONFIGURATION = {1, 2, 3, 5, 8, 9, 16, 18, 19, 20, 22, 23, 24, 25, 26, 27, 28, 36, 40, 41}
"""Device types whose section has a device configuration layout without a condition."""


def _of(registers: PciRegisters, kind: Cfg) -> list[VirtioCapability]:
    """Those of a type that a driver does not have to ignore."""
    found = scan(registers.function)
    return [one for one in found if one.cfg_type == kind and one.bar < BARS]


@case("pci.cap.dev.cap-len-covers-extra", bus="pci", rings=False)
def cap_len(ctx: Context) -> None:
    """A capability's cap_len covers all of it, from cap_vndr to the end of the extra data that its
    type has."""
    with pci(ctx) as (_, registers):
        for one in scan(registers.function):
            if not one.is_reserved and one.cfg_type in _LENGTHS:
                least = _LENGTHS[Cfg(one.cfg_type)]
                expect(
                    one.cap_len >= least,
                    f"cap_len {least} or more for cfg_type {one.cfg_type} at {one.at:#x}",
                    one.cap_len,
                )


@case("pci.cap.dev.extra-data", bus="pci", rings=False)
def what_is_appended(ctx: Context) -> None:
    """What a device appends to a capability is its own: it lies in no other capability, and not
    behind the end of configuration space."""
    with pci(ctx) as (_, registers):
        starts = sorted(found.offset for found in registers.function.capabilities())
        for one in scan(registers.function):
            end = one.at + one.cap_len
            expect(
                end <= CONFIG_BYTES,
                f"the capability at {one.at:#x} ends within {CONFIG_BYTES} bytes",
                end,
            )
            inside = [at for at in starts if one.at < at < end]
            expect(
                not inside,
                f"no other capability within {one.at:#x} to {end:#x}",
                ", ".join(f"one at {at:#x}" for at in inside),
            )


@case("pci.cap.dev.several-structures", bus="pci", rings=False)
def several_structures(ctx: Context) -> None:
    """Of several structures of one type, each shows the same device."""
    with pci(ctx) as (session, registers):
        found = {kind: _of(registers, kind) for kind in (Cfg.COMMON, Cfg.DEVICE)}
        usable = {
            kind: [one for one in them if one.bar in registers.function.bars]
            for kind, them in found.items()
        }
        if all(len(them) < 2 for them in usable.values()):
            raise NotObservable("there is one structure of each type")
        session.acknowledge()
        for kind, at, size in ((Cfg.COMMON, 18, 2), (Cfg.COMMON, 20, 1), (Cfg.DEVICE, 0, 4)):
            shown = {
                one.at: registers.load(place(registers.function, one), at, size)
                for one in usable[kind]
            }
            expect(
                len(set(shown.values())) < 2,
                f"the same {size} bytes at {at} of every {kind.name} structure",
                ", ".join(f"{value:#x} by the one at {where:#x}" for where, value in shown.items()),
            )
        expect(
            session.transport.read_status() == Status.ACKNOWLEDGE | Status.DRIVER,
            "the status that was written",
            session.transport.read_status(),
        )


@case("pci.common.dev.present", bus="pci", rings=False)
def a_common_structure(ctx: Context) -> None:
    """There is a common configuration structure, whatever state the device is in."""
    with pci(ctx) as (session, registers):
        for _ in range(2):
            expect(_of(registers, Cfg.COMMON), "a COMMON_CFG capability", "none")
            session.acknowledge()


@case("pci.common.dev.offset-aligned", bus="pci", rings=False)
def the_common_structure_is_aligned(ctx: Context) -> None:
    """It lies at a multiple of 4 bytes."""
    with pci(ctx) as (_, registers):
        for one in _of(registers, Cfg.COMMON):
            expect(one.offset % 4 == 0, "an offset that is a multiple of 4", f"{one.offset:#x}")


@case("pci.notifycap.dev.present", bus="pci", rings=False)
def a_notification_structure(ctx: Context) -> None:
    """There is a notification structure."""
    with pci(ctx) as (_, registers):
        expect(_of(registers, Cfg.NOTIFY), "a NOTIFY_CFG capability", "none")


@case("pci.isr.dev.present", bus="pci", rings=False)
def an_isr_structure(ctx: Context) -> None:
    """There is an ISR status, also where MSI-X makes it unnecessary."""
    with pci(ctx) as (_, registers):
        found = _of(registers, Cfg.ISR)
        expect(found, "an ISR_CFG capability", "none")
        expect(all(one.length for one in found), "one byte or more", found)


@case("pci.devcfg.dev.present", bus="pci", rings=False)
def a_device_structure(ctx: Context) -> None:
    """A device type that has a configuration of its own has a structure for it."""
    with pci(ctx) as (session, registers):
        if session.transport.device_id not in _WITH_CONFIGURATION:
            raise NotObservable("this device type has no configuration of its own")
        found = _of(registers, Cfg.DEVICE)
        expect(found, "a DEVICE_CFG capability", "none")
        expect(all(one.length for one in found), "one byte or more", found)


@case("pci.devcfg.dev.offset-aligned", bus="pci", rings=False)
def the_device_structure_is_aligned(ctx: Context) -> None:
    """It lies at a multiple of 4 bytes."""
    with pci(ctx) as (_, registers):
        found = _of(registers, Cfg.DEVICE)
        if not found:
            raise NotObservable("the function has no DEVICE_CFG capability")
        for one in found:
            expect(one.offset % 4 == 0, "an offset that is a multiple of 4", f"{one.offset:#x}")


# The notification structure, by the width of a notification: 2 bytes, or 4 where NOTIFICATION_DATA
# is offered


def _notification(registers: PciRegisters, offered: int, width: int) -> list[VirtioCapability]:
    if width == 2 and offered & F.NOTIFICATION_DATA:
        raise NotObservable("NOTIFICATION_DATA is offered, which asks for more")
    return _of(registers, Cfg.NOTIFY)


def _aligned(ctx: Context, width: int) -> None:
    with pci(ctx) as (session, registers):
        for one in _notification(registers, session.offered, width):
            expect(
                one.offset % width == 0,
                f"an offset that is a multiple of {width}",
                f"{one.offset:#x}",
            )


@case("pci.notifycap.dev.offset-align-2", bus="pci", rings=False)
def aligned_for_16_bits(ctx: Context) -> None:
    """Without NOTIFICATION_DATA, notifications of 16 bits begin at a multiple of 2 bytes."""
    _aligned(ctx, 2)


@case("pci.notifycap.dev.offset-align-4", bus="pci", rings=False, needs=F.NOTIFICATION_DATA)
def aligned_for_32_bits(ctx: Context) -> None:
    """With NOTIFICATION_DATA, notifications of 32 bits begin at a multiple of 4 bytes."""
    _aligned(ctx, 4)


@case("pci.notifycap.dev.multiplier", bus="pci", rings=False)
def the_multiplier_for_16_bits(ctx: Context) -> None:
    """Without NOTIFICATION_DATA, notify_off_multiplier is 0 or an even power of 2; both readings of
    that pass, so every power of 2 does."""
    with pci(ctx) as (session, registers):
        for one in _notification(registers, session.offered, 2):
            expect(_is_power_of_two_or_zero(one.extra), "a power of 2, or 0", one.extra)


@case("pci.notifycap.dev.multiplier-data", bus="pci", rings=False, needs=F.NOTIFICATION_DATA)
def the_multiplier_for_32_bits(ctx: Context) -> None:
    """With NOTIFICATION_DATA, notify_off_multiplier is 0, or a power of 2 that 4 divides."""
    with pci(ctx) as (session, registers):
        for one in _notification(registers, session.offered, 4):
            expect(
                _is_power_of_two_or_zero(one.extra) and one.extra % 4 == 0,
                "a power of 2 that 4 divides, or 0",
                one.extra,
            )


def _is_power_of_two_or_zero(number: int) -> bool:
    return not number & (number - 1)


def _long_enough(ctx: Context, width: int) -> None:
    with pci(ctx) as (session, registers):
        for one in _notification(registers, session.offered, width):
            expect(one.length >= width, f"a length of {width} bytes or more", one.length)


@case("pci.notifycap.dev.length-min-2", bus="pci", rings=False)
def room_for_16_bits(ctx: Context) -> None:
    """Without NOTIFICATION_DATA, the structure has 2 bytes or more."""
    _long_enough(ctx, 2)


@case("pci.notifycap.dev.length-min-4", bus="pci", rings=False, needs=F.NOTIFICATION_DATA)
def room_for_32_bits(ctx: Context) -> None:
    """With NOTIFICATION_DATA, the structure has 4 bytes or more."""
    _long_enough(ctx, 4)


def _reaches_every_queue(registers: PciRegisters, offered: int, width: int) -> None:
    for one in _notification(registers, offered, width):
        for index in range(registers.queue_count):
            registers.put("queue_select", index)
            end = registers.get("queue_notify_off") * one.extra + width
            expect(
                end <= one.length,
                f"room for the notifications of queue {index}, {end} bytes",
                f"a structure of {one.length}",
            )


@case("pci.notifycap.dev.length-formula", bus="pci", rings=False)
def room_for_every_queue_16(ctx: Context) -> None:
    """Without NOTIFICATION_DATA, queue_notify_off * notify_off_multiplier + 2 is within the
    structure for every queue."""
    with pci(ctx) as (session, registers):
        _reaches_every_queue(registers, session.offered, 2)


@case("pci.notifycap.dev.length-formula-data", bus="pci", rings=False, needs=F.NOTIFICATION_DATA)
def room_for_every_queue_32(ctx: Context) -> None:
    """With NOTIFICATION_DATA, queue_notify_off * notify_off_multiplier + 4 is within the structure
    for every queue."""
    with pci(ctx) as (session, registers):
        _reaches_every_queue(registers, session.offered, 4)


def _reaches_in_this_configuration(ctx: Context, width: int) -> None:
    with pci(ctx) as (session, registers):
        expect(session.negotiate(ctx.features(session)), "FEATURES_OK kept", "it is off")
        _reaches_every_queue(registers, session.offered, width)
        session.reset()
        ctx.live(session=session)
        _reaches_every_queue(registers, session.offered, width)


@case("pci.notifycap.dev.length-covers-all", bus="pci")
def room_in_every_configuration_16(ctx: Context) -> None:
    """Without NOTIFICATION_DATA, the structure reaches every queue in every kind of ring, before
    and after the device is live."""
    _reaches_in_this_configuration(ctx, 2)


@case("pci.notifycap.dev.length-covers-all-data", bus="pci", needs=F.NOTIFICATION_DATA)
def room_in_every_configuration_32(ctx: Context) -> None:
    """With NOTIFICATION_DATA, the same."""
    _reaches_in_this_configuration(ctx, 4)
