"""What a driver of memory-mapped registers has to do (4.2)."""

from __future__ import annotations

from virtq.check.register_log import general, initialization
from virtq.check.register_log.rules import expect, queue_lives, rule
from virtq.check.register_log.trail import ADDRESSES, Step, Trail
from virtq.features import F
from virtq.status import Status
from virtq.transports.qtest.virtio_mmio import MAGIC_VALUE, REGISTERS

_EVENTS = 3
_READ_ONLY = {
    "MagicValue",
    "Version",
    "DeviceID",
    "VendorID",
    "DeviceFeatures",
    "QueueSizeMax",
    "InterruptStatus",
    "SHMLenLow",
    "SHMLenHigh",
    "SHMBaseLow",
    "SHMBaseHigh",
    "ConfigGeneration",
}
_BOTH = {"QueueReady", "Status", "QueueReset"}
_WRITE_ONLY = set(REGISTERS) - _READ_ONLY - _BOTH
_SHARED_MEMORY_DEVICES = {16, 26}
"""Device types with shared memory regions: GPU, file system."""


def _registers(trail: Trail) -> list[Step]:
    """The accesses below the configuration space."""
    return [step for step in trail.steps if step.access.at == "mmio" and step.field != "config"]


# The registers


@rule("mmio.reg.drv.only-listed", bus="mmio")
def registers_that_there_are(trail: Trail) -> int:
    """Only registers of the table are accessed."""
    found = _registers(trail)
    for step in found:
        expect(step.register, "a register of the table", step)
    return len(found)


@rule("mmio.reg.drv.no-write-ro", bus="mmio")
def read_only_registers(trail: Trail) -> int:
    """Read-only registers are not written."""
    found = _registers(trail)
    for step in found:
        expect(not step.writes or step.register not in _READ_ONLY, "no write to it", step)
    return len(found)


@rule("mmio.reg.drv.no-read-wo", bus="mmio")
def write_only_registers(trail: Trail) -> int:
    """Write-only registers are not read."""
    found = _registers(trail)
    for step in found:
        expect(not step.reads or step.register not in _WRITE_ONLY, "no read of it", step)
    return len(found)


@rule("mmio.reg.drv.width-control", bus="mmio")
def words(trail: Trail) -> int:
    """Registers are accessed as aligned words of 32 bits."""
    found = _registers(trail)
    for step in found:
        aligned = step.access.width == 4 and step.access.offset % 4 == 0
        expect(aligned, "an aligned access of 4 bytes", step)
    return len(found)


@rule("mmio.reg.drv.width-config", bus="mmio")
def configuration_widths(trail: Trail) -> int:
    """An access to the configuration is as wide as its field: 8, 16 or 32 bits, and 32 for each
    half of one of 64."""
    return general.widths(trail)


# Finding a device


def _read(trail: Trail, register: str) -> int | None:
    """The index of the first read."""
    for i, step in enumerate(trail.steps):
        if step.reads and step.register == register:
            return i
    return None


def _expect_ignored(trail: Trail, at: int) -> None:
    """Nothing is written after a register told that this is no device to drive."""
    for step in trail.steps[at + 1 :]:
        expect(not step.writes, f"nothing written after {trail.steps[at]}", step)


@rule("mmio.init.drv.check-first", bus="mmio")
def magic_and_version_first(trail: Trail) -> int:
    """MagicValue and Version are read before anything else."""
    seen: list[str] = []
    for step in _registers(trail):
        if len({"MagicValue", "Version"} & set(seen)) < 2:
            expect(
                step.reads and step.register in ("MagicValue", "Version"),
                "MagicValue and Version read before any other register",
                step,
            )
        seen.append(step.register)
    return len(seen)


@rule("mmio.init.drv.read-device-id", bus="mmio")
def device_id_next(trail: Trail) -> int:
    """Where both are valid, DeviceID is read next."""
    magic, version = _read(trail, "MagicValue"), _read(trail, "Version")
    if magic is None or version is None:
        return 0
    valid = trail.steps[magic].value == MAGIC_VALUE and trail.steps[version].value == 2
    later = [
        step
        for step in trail.steps[max(magic, version) + 1 :]
        if step.register not in ("MagicValue", "Version")
    ]
    if not valid or not later:
        return 0
    expect(
        later[0].reads and later[0].register == "DeviceID",
        "DeviceID read after MagicValue and Version",
        later[0],
    )
    return 1


@rule("mmio.reg.drv.ignore-bad-magic", bus="mmio")
def ignores_another_magic(trail: Trail) -> int:
    """What has another MagicValue is left alone."""
    at = _read(trail, "MagicValue")
    if at is None or trail.steps[at].value == MAGIC_VALUE:
        return 0
    _expect_ignored(trail, at)
    return 1


@rule("mmio.reg.drv.ignore-bad-version", bus="mmio")
def ignores_another_version(trail: Trail) -> int:
    """What has another Version than 2 is left alone; but a driver that also drives legacy devices
    may take version 1 for one of them."""
    at = _read(trail, "Version")
    if at is None or trail.steps[at].value in (1, 2):
        return 0
    _expect_ignored(trail, at)
    return 1


@rule(
    "mmio.reg.drv.ignore-id-zero",
    "mmio.init.drv.abort-id-zero",
    "mmio.init.drv.id-zero-no-access",
    bus="mmio",
)
def ignores_a_placeholder(trail: Trail) -> int:
    """A DeviceID of 0 is a placeholder: no register is accessed any more, but those that were read
    to find it out, if it is looked at again."""
    at = _read(trail, "DeviceID")
    if at is None or trail.steps[at].value != 0:
        return 0
    for step in trail.steps[at + 1 :]:
        again = step.reads and step.register in ("MagicValue", "Version", "DeviceID")
        expect(again or step.access.do == "interrupt", "no access after DeviceID 0", step)
    return 1


@rule("mmio.init.drv.no-shm-registers", bus="mmio")
def no_shared_memory(trail: Trail) -> int:
    """A driver of a device type that has no shared memory leaves its registers alone."""
    device = trail.log.device_id
    if device is None:
        at = _read(trail, "DeviceID")
        device = None if at is None else trail.steps[at].value
    if not device or device in _SHARED_MEMORY_DEVICES:
        return 0
    for step in _registers(trail):
        expect(not step.register.startswith("SHM"), "no use of shared memory registers", step)
    return 1


@rule("mmio.init.drv.generic-procedure", bus="mmio")
def the_general_procedure(trail: Trail) -> int:
    """After that, initialization goes as on any bus."""
    return initialization.keeps_the_order(trail)


# Features


@rule("mmio.reg.drv.sel-before-device-features", bus="mmio")
def selects_what_it_reads(trail: Trail) -> int:
    """DeviceFeaturesSel is written before DeviceFeatures is read."""
    seen = 0
    for step in trail.steps:
        if step.gets("device_feature"):
            expect(step.select is not None, "DeviceFeaturesSel written before", step)
            seen += 1
    return seen


@rule("mmio.reg.drv.sel-before-driver-features", bus="mmio")
def selects_what_it_writes(trail: Trail) -> int:
    """DriverFeaturesSel is written before DriverFeatures is."""
    seen = 0
    for step in trail.steps:
        if step.puts("driver_feature"):
            expect(step.select is not None, "DriverFeaturesSel written before", step)
            seen += 1
    return seen


# Virtqueues


@rule("mmio.reg.drv.size-within-max", bus="mmio")
def sizes_within_the_maximum(trail: Trail) -> int:
    """QueueSize is QueueSizeMax at most."""
    largest: dict[int, int] = {}
    seen = 0
    for step in trail.steps:
        if step.register == "QueueSizeMax":
            largest[step.queue] = step.value
        elif step.register == "QueueSize" and step.queue in largest:
            expect(step.value <= largest[step.queue], f"at most {largest[step.queue]}", step)
            seen += 1
    return seen


@rule("mmio.reg.drv.no-reconfigure-ready", bus="mmio")
def leaves_a_ready_queue_alone(trail: Trail) -> int:
    """Size and addresses are not accessed while QueueReady is not 0."""
    seen = 0
    for step in trail.steps:
        if step.field in ("queue_size", *ADDRESSES) and step.register != "QueueSizeMax":
            expect(step.queue not in step.enabled, f"QueueReady 0 of {step.queue} first", step)
            seen += 1
    return seen


@rule("mmio.vqcfg.sequence", bus="mmio")
def sets_a_queue_up(trail: Trail) -> int:
    """Before QueueReady is set to 1, it is read as 0, and size and addresses are written."""
    seen = 0
    for queue, steps in queue_lives(trail):
        done: set[str] = set()
        for step in steps:
            if step.puts("queue_enable") and step.value == 1:
                wanted = {"QueueSize", "QueueDescLow", "QueueDriverLow", "QueueDeviceLow"}
                wanted |= {"QueueReady 0"}
                lacking = wanted - done
                expect(not lacking, f"{', '.join(sorted(lacking))} of queue {queue} before", step)
                seen += 1
                done = set()
            elif step.gets("queue_enable") and step.value == 0:
                done.add("QueueReady 0")
            else:
                done.add(step.register)
    return seen


@rule("mmio.reg.drv.stop-readback", bus="mmio")
def reads_a_stopped_queue(trail: Trail) -> int:
    """After 0 is written to QueueReady to stop a queue, it is read."""
    seen = 0
    for queue, steps in queue_lives(trail):
        for i, step in enumerate(steps):
            if step.puts("queue_enable") and step.value == 0:
                after = steps[i + 1 : i + 2]
                expect(
                    after and after[0].gets("queue_enable"),
                    f"QueueReady of queue {queue} read after 0 was written",
                    after[0] if after else f"nothing after {step}",
                )
                seen += 1
    return seen


@rule("mmio.reg.drv.stop-write-zero", bus="mmio")
def stops_by_writing_zero(trail: Trail) -> int:
    """A queue that is ready is stopped by 0 in QueueReady, or reset, before it is set up anew."""
    seen = 0
    for step in trail.steps:
        if step.puts("queue_enable") and step.value == 1:
            expect(
                step.queue not in step.enabled,
                f"0 written to QueueReady of queue {step.queue} before 1 is again",
                step,
            )
        elif step.puts("queue_enable") and step.value == 0:
            seen += step.queue in step.enabled
    return seen


@rule("mmio.reg.drv.queue-reset-wait", bus="mmio")
def waits_for_a_queue_reset(trail: Trail) -> int:
    """After 1 was written to QueueReset, it is read as 0 before the queue is used again."""
    return general.queue_resets_are_awaited(trail)


@rule("mmio.reg.drv.queue-reenable", bus="mmio")
def enables_what_is_set_up(trail: Trail) -> int:
    """A queue that was reset may be enabled again once its other fields are set up."""
    return general.queues_are_configured_again(trail)


# Notifications


@rule("mmio.notify.value-index", bus="mmio")
def tells_the_queue(trail: Trail) -> int:
    """Without NOTIFICATION_DATA, the index of a queue that is ready is written to QueueNotify."""
    return _told(trail, data=False)


@rule("mmio.notify.value-data", bus="mmio")
def tells_the_queue_with_data(trail: Trail) -> int:
    """With NOTIFICATION_DATA, the low half of what is written is the index."""
    return _told(trail, data=True)


def _told(trail: Trail, data: bool) -> int:
    seen = 0
    for step in trail.steps:
        if step.puts("notify") and bool(step.accepted & F.NOTIFICATION_DATA) == data:
            told = step.value & 0xFFFF if data else step.value
            expect(told in step.enabled, f"one of the queues {sorted(step.enabled)}", step)
            seen += 1
    return seen


@rule("mmio.irq.drv.read-status", bus="mmio")
def reads_interrupt_status(trail: Trail) -> int:
    """After an interrupt InterruptStatus is read, before anything is acknowledged."""
    seen = 0
    pending: Step | None = None
    for step in trail.steps:
        if step.access.do == "interrupt":
            if step.status & Status.DRIVER_OK:
                pending = step
        elif step.reads and step.register == "InterruptStatus":
            seen += pending is not None
            pending = None
        elif step.register == "InterruptACK":
            expect(pending is None, f"InterruptStatus read after {pending}", step)
    return seen


@rule("mmio.reg.drv.ack", "mmio.irq.drv.ack-after-handling", bus="mmio")
def acknowledges(trail: Trail) -> int:
    """The events that InterruptStatus showed are written to InterruptACK, before it is read for the
    next interrupt."""
    seen = 0
    pending, shown = 0, None
    for step in trail.steps:
        if step.reads and step.register == "InterruptStatus":
            expect(
                not pending,
                f"{pending:#x} written to InterruptACK after {shown}",
                step,
            )
            pending, shown = step.value & _EVENTS, step
        elif step.writes and step.register == "InterruptACK":
            seen += bool(pending & step.value)
            pending &= ~step.value
        elif step.puts("device_status") and step.value == 0:
            pending = 0
    return seen


@rule("mmio.reg.drv.ack-defined-only", bus="mmio")
def acknowledges_what_there_is(trail: Trail) -> int:
    """No bit is written to InterruptACK that has no meaning."""
    seen = 0
    for step in trail.steps:
        if step.writes and step.register == "InterruptACK":
            expect(not step.value & ~_EVENTS, "no bits but 1 and 2", step)
            seen += 1
    return seen


@rule("mmio.reg.drv.ignore-undefined-status", bus="mmio")
def ignores_undefined_events(trail: Trail) -> int:
    """Bits of InterruptStatus that have no meaning are ignored: the others are acknowledged, and
    they are not."""
    seen = 0
    shown: Step | None = None
    for step in trail.steps:
        if step.reads and step.register == "InterruptStatus":
            shown = step
        elif step.writes and step.register == "InterruptACK" and shown:
            if shown.value & ~_EVENTS:
                expect(step.value == shown.value & _EVENTS, f"{shown.value & _EVENTS:#x}", step)
                seen += 1
            shown = None
    return seen
