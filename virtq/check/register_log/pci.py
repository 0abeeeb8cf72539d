"""What a driver of a device on PCI has to do (4.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from virtq.check.register_log import general, initialization
from virtq.check.register_log.rules import expect, queue_lives, rule
from virtq.check.register_log.trail import ADDRESSES, Step, Trail, capabilities, known_config
from virtq.features import F
from virtq.status import Status
from virtq.transports.qtest.capabilities import BARS, MSIX, VENDOR_SPECIFIC, Cfg
from virtq.transports.qtest.msix import NO_VECTOR
from virtq.transports.qtest.virtio_pci import FIELDS

_CAP_LEN, _CFG_TYPE, _BAR, _LENGTH, _MULTIPLIER = 2, 3, 4, 12, 16
"""Offsets in bytes within a virtio capability (4.1.4, 4.1.4.4)."""
_LARGE_BYTES = 1 << 16
"""A structure of so many is longer than any driver expects."""
_READ_ONLY = (
    "device_feature",
    "num_queues",
    "config_generation",
    "queue_notify_off",
    "queue_notif_config_data",
)
_VECTORS = ("config_msix_vector", "queue_msix_vector")


@rule("pci.layout.drv.access-width", bus="pci")
def access_widths(trail: Trail) -> int:
    """Each access is as wide as its field: 8, 16 or 32 bits, and 32 for each half of one of 64."""
    seen = general.widths(trail)
    for step in trail.steps:
        if step.access.at != "common":
            continue
        expect(step.field, "an access to a field of the common configuration", step)
        size = FIELDS[step.field][1]
        wanted = min(size, 4)
        expect(
            step.access.width == wanted and step.byte % wanted == 0,
            f"an access of {wanted} bytes to {step.field}",
            step,
        )
        seen += 1
    return seen


@rule("pci.cap.drv.read-only", bus="pci")
def capabilities_are_read_only(trail: Trail) -> int:
    """No field of a virtio capability is written, but those of the one that gives access to BARs
    through configuration space."""
    config = known_config(trail)
    ranges = [
        (at, at + config.get(at + _CAP_LEN, 16))
        for at, kind in capabilities(config)
        if kind == VENDOR_SPECIFIC and config.get(at + _CFG_TYPE) != Cfg.PCI
    ]
    if not ranges:
        return 0
    for step in trail.steps:
        if step.access.at == "config" and step.writes:
            begin, end = step.access.offset, step.access.offset + step.access.width
            for at, to in ranges:
                expect(end <= at or to <= begin, f"no write to the capability at {at:#x}", step)
    return 1


def _length(config: Mapping[int, int], at: int) -> int:
    return int.from_bytes(bytes(config.get(at + _LENGTH + i, 0) for i in range(4)), "little")


def _is_driven_with(trail: Trail, strange: Callable[[Mapping[int, int], int], bool]) -> int:
    """A function with a virtio capability that is so is initialized nevertheless."""
    config = known_config(trail)
    found = [
        at for at, kind in capabilities(config) if kind == VENDOR_SPECIFIC and strange(config, at)
    ]
    if not found or not any(step.field for step in trail.steps):
        return 0
    expect(
        any(initialization.sets(step, Status.DRIVER_OK) for step in trail.steps),
        f"a function driven that has such a capability, at {found[0]:#x}",
        "no DRIVER_OK",
    )
    return 1


@rule("pci.cap.drv.ignore-reserved-cfg-type", bus="pci")
def reserved_types(trail: Trail) -> int:
    """A capability with a reserved cfg_type does not keep a driver from driving the function."""
    return _is_driven_with(trail, lambda config, at: config.get(at + _CFG_TYPE, 1) not in set(Cfg))


@rule("pci.cap.drv.ignore-reserved-bar", bus="pci")
def reserved_bars(trail: Trail) -> int:
    """A capability with a reserved bar does not keep a driver from driving the function."""
    return _is_driven_with(trail, lambda config, at: config.get(at + _BAR, 0) >= BARS)


@rule("pci.cap.drv.larger-cap-len", bus="pci")
def long_capabilities(trail: Trail) -> int:
    """A capability with a cap_len larger than specified does not keep a driver from driving the
    function."""
    return _is_driven_with(
        trail,
        lambda config, at: (
            config.get(at + _CFG_TYPE) in (Cfg.COMMON, Cfg.ISR, Cfg.DEVICE)
            and config.get(at + _CAP_LEN, 0) > 16
        ),
    )


@rule("pci.cap.drv.large-length", bus="pci")
def long_structures(trail: Trail) -> int:
    """A structure with a length that is unexpectedly large, 64 KiB or more, does not keep a driver
    from driving the function."""
    return _is_driven_with(trail, lambda config, at: _length(config, at) >= _LARGE_BYTES)


@rule("cfg.drv.no-size-limit", bus="pci")
def long_configurations(trail: Trail) -> int:
    """A configuration space of more than a driver knows, 64 KiB or more, does not keep it from
    driving the function."""
    return _is_driven_with(
        trail,
        lambda config, at: (
            config.get(at + _CFG_TYPE) == Cfg.DEVICE and _length(config, at) >= _LARGE_BYTES
        ),
    )


# The common configuration


@rule("pci.common.drv.no-write-read-only", bus="pci")
def read_only_fields(trail: Trail) -> int:
    """Fields that are read-only for the driver are not written."""
    seen = 0
    for step in trail.steps:
        if step.access.at == "common":
            expect(not step.puts(*_READ_ONLY), f"no write to {step.field}", step)
            seen += 1
    return seen


@rule("pci.common.drv.size-nonzero-packed", bus="pci")
def no_queue_of_no_size(trail: Trail) -> int:
    """With RING_PACKED, queue_size is not set to 0."""
    seen = 0
    for step in trail.steps:
        if step.puts("queue_size") and step.accepted & F.RING_PACKED:
            expect(step.value, "a queue_size other than 0", step)
            seen += 1
    return seen


@rule("pci.common.drv.size-power-of-two", bus="pci")
def powers_of_two(trail: Trail) -> int:
    """Without RING_PACKED, queue_size is set to powers of 2."""
    seen = 0
    for step in trail.steps:
        if step.puts("queue_size") and not step.accepted & F.RING_PACKED:
            expect(step.value and not step.value & (step.value - 1), "a power of 2", step)
            seen += 1
    return seen


@rule("pci.common.drv.configure-before-enable", bus="pci")
def configures_first(trail: Trail) -> int:
    """All other fields of a queue are set before queue_enable is."""
    seen = 0
    for queue, steps in queue_lives(trail):
        written: set[str] = set()
        enabled = False
        for step in steps:
            if step.puts("queue_reset"):
                written, enabled = set(), False
            elif step.puts("queue_enable"):
                lacking = set(ADDRESSES) - written
                expect(
                    not lacking, f"{', '.join(sorted(lacking))} of queue {queue} set before", step
                )
                enabled = True
                seen += 1
            elif step.puts("queue_size", *ADDRESSES):
                expect(not enabled, f"{step.field} of queue {queue} set before it is enabled", step)
                written.add(step.field)
    return seen


@rule("pci.common.drv.wait-reset", bus="pci")
def waits_for_its_reset(trail: Trail) -> int:
    """After a reset, device_status is read as 0 before the device is initialized again."""
    return initialization.status_is_awaited(trail)


@rule("pci.common.drv.no-enable-zero", bus="pci")
def disables_no_queue(trail: Trail) -> int:
    """0 is not written to queue_enable."""
    seen = 0
    for step in trail.steps:
        if step.puts("queue_enable"):
            expect(step.value != 0, "no 0 written to queue_enable", step)
            seen += 1
    return seen


@rule("pci.common.drv.queue-reset-wait", bus="pci")
def waits_for_a_queue_reset(trail: Trail) -> int:
    """After 1 was written to queue_reset, it is read as 0 before the queue is used again."""
    return general.queue_resets_are_awaited(trail)


@rule("pci.common.drv.queue-reenable", bus="pci")
def enables_what_is_set_up(trail: Trail) -> int:
    """A queue that was reset may be enabled again once its other fields are set up."""
    return general.queues_are_configured_again(trail)


@rule("pci.common.drv.admin-index-range", bus="pci")
def administration_queues(trail: Trail) -> int:
    """Administration virtqueues are those from admin_queue_index on, admin_queue_num of them."""
    count: int | None = None
    first = number = 0
    seen = 0
    for step in trail.steps:
        if step.gets("num_queues"):
            count = step.value
        elif step.gets("admin_queue_index"):
            first = step.value
        elif step.gets("admin_queue_num"):
            number = step.value
        elif step.puts("queue_enable") and step.accepted & F.ADMIN_VQ and count is not None:
            within = step.queue < count or first <= step.queue < first + number
            expect(
                within,
                f"a queue below {count}, or one of {number} from {first} on, not {step.queue}",
                step,
            )
            seen += step.queue >= count
    return seen


# MSI-X


@rule("pci.msix.drv.any-table-size", bus="pci")
def tables_of_any_size(trail: Trail) -> int:
    """A table of one vector, or one of more than 256, does not keep a driver from driving the
    function."""
    size = _table_size(trail)
    if size is None or 1 < size <= 256 or not any(step.field for step in trail.steps):
        return 0
    expect(
        any(initialization.sets(step, Status.DRIVER_OK) for step in trail.steps),
        f"a function driven that has an MSI-X table of {size}",
        "no DRIVER_OK",
    )
    return 1


@rule("pci.isr.drv.no-read-with-msix", bus="pci")
def leaves_the_isr_alone(trail: Trail) -> int:
    """With MSI-X on, the ISR status is not read for a queue's interrupt (SHOULD NOT)."""
    seen = 0
    changed = False
    config_vector = NO_VECTOR
    for step in trail.steps:
        if step.puts("config_msix_vector"):
            config_vector = step.value
        elif step.access.do == "interrupt":
            changed = changed or step.access.vector == config_vector
        elif step.access.at == "isr" and step.reads and step.msix:
            expect(
                changed or not step.status & Status.DRIVER_OK,
                "the ISR status not read while MSI-X is on",
                step,
            )
            changed = False
        elif step.puts("device_status") and step.value & Status.DRIVER_OK and step.msix:
            seen += 1
    return seen


def _table_size(trail: Trail) -> int | None:
    config = known_config(trail)
    for at, kind in capabilities(config):
        if kind == MSIX and at + 2 in config:
            return (config[at + 2] | config.get(at + 3, 0) << 8 & 0x700) + 1
    return None


@rule("pci.msix.drv.in-table", bus="pci")
def vectors_of_the_table(trail: Trail) -> int:
    """Events are mapped to vectors that the table has, or to NO_VECTOR."""
    size = _table_size(trail)
    if size is None:
        return 0
    seen = 0
    for step in trail.steps:
        if step.puts(*_VECTORS) and step.value != NO_VECTOR:
            expect(step.value < size, f"a vector below {size}", step)
            seen += 1
    return seen


@rule("pci.msix.drv.verify-mapping", bus="pci")
def verifies_each_mapping(trail: Trail) -> int:
    """After an event is mapped to a vector, its field is read, before anything else is done with
    the queue."""
    seen = 0
    for i, step in enumerate(trail.steps):
        if not step.puts(*_VECTORS) or step.value == NO_VECTOR:
            continue
        for later in trail.steps[i + 1 :]:
            if later.gets(step.field):
                seen += 1
                break
            done = later.puts("queue_select", "queue_enable", "device_status", step.field)
            expect(not done, f"{step.field} read after {step.value:#x} was written to it", later)
    return seen


# Available buffer notifications


def _notifications(trail: Trail, data: bool, config_data: bool) -> Iterator[Step]:
    for step in trail.steps:
        if step.puts("notify"):
            has_data = bool(step.accepted & F.NOTIFICATION_DATA)
            has_config_data = bool(step.accepted & F.NOTIF_CONFIG_DATA)
            if has_data == data and has_config_data == config_data:
                yield step


def _width(trail: Trail, data: bool) -> int:
    wanted, seen = 4 if data else 2, 0
    for config_data in (False, True):
        for step in _notifications(trail, data, config_data):
            expect(step.access.width == wanted, f"a notification of {wanted} bytes", step)
            seen += 1
    return seen


@rule("pci.notify.drv.width-16", bus="pci")
def notifies_with_16_bits(trail: Trail) -> int:
    """Without NOTIFICATION_DATA, a notification is a write of 16 bits."""
    return _width(trail, data=False)


@rule("pci.notify.drv.width-32", bus="pci")
def notifies_with_32_bits(trail: Trail) -> int:
    """With NOTIFICATION_DATA, a notification is a write of 32 bits."""
    return _width(trail, data=True)


def _told(trail: Trail, data: bool, config_data: bool) -> int:
    """The low 16 bits are the queue's index, or its queue_notif_config_data; and the queue is the
    one that is notified there."""
    seen = 0
    by_step = _queues_by_place(trail)
    for step in _notifications(trail, data, config_data):
        queues = by_step[step.access.line]
        told = {
            queue: number for queue, number in queues.items() if step.access.offset in number.at
        }
        wanted = {number.data if config_data else queue for queue, number in told.items()}
        if not queues:
            continue
        expect(
            step.value & 0xFFFF in wanted,
            "the number of a queue that is enabled and notified there,"
            f" {', '.join(map(str, sorted(wanted))) or 'which none is'}",
            step,
        )
        seen += 1
    return seen


class _Place:
    """Where a queue is notified, and by which number."""

    def __init__(self, offset: int, multiplier: int | None, data: int) -> None:
        self.data = data
        self.at: range | frozenset[int]
        if multiplier is None:
            self.at = range(1 << 20)  # the log does not tell
        else:
            self.at = frozenset({offset * multiplier})


def _multiplier(trail: Trail) -> int | None:
    config = known_config(trail)
    for at, kind in capabilities(config):
        word = [config.get(at + _MULTIPLIER + i) for i in range(4)]
        if (
            kind == VENDOR_SPECIFIC
            and config.get(at + _CFG_TYPE) == Cfg.NOTIFY
            and None not in word
        ):
            return int.from_bytes(bytes(byte or 0 for byte in word), "little")
    return None


def _queues_by_place(trail: Trail) -> dict[int, dict[int, _Place]]:
    """For each notification, by line: the queues that are enabled then."""
    multiplier = _multiplier(trail)
    found: dict[int, dict[int, _Place]] = {}
    offsets: dict[int, int] = {}
    numbers: dict[int, int] = {}
    for step in trail.steps:
        if step.gets("queue_notify_off"):
            offsets[step.queue] = step.value
        elif step.gets("queue_notif_config_data"):
            numbers[step.queue] = step.value
        elif step.puts("notify"):
            found[step.access.line] = {
                queue: _Place(
                    offsets.get(queue, 0),
                    multiplier if queue in offsets else None,
                    numbers.get(queue, -1),
                )
                for queue in step.enabled
            }
    return found


@rule("pci.notify.drv.value-index", "notify.plain.queue-id", "pci.notifycap.address", bus="pci")
def tells_the_queue(trail: Trail) -> int:
    """With neither NOTIFICATION_DATA nor NOTIF_CONFIG_DATA, a notification is the queue's index, at
    queue_notify_off * notify_off_multiplier."""
    return _told(trail, data=False, config_data=False)


@rule("pci.notify.drv.field-index", bus="pci")
def tells_the_queue_with_data(trail: Trail) -> int:
    """With NOTIFICATION_DATA, the low half of a notification is the queue's index."""
    return _told(trail, data=True, config_data=False)


@rule("pci.notify.drv.value-config-data", bus="pci")
def tells_what_it_was_told(trail: Trail) -> int:
    """With NOTIF_CONFIG_DATA, a notification is the queue's queue_notif_config_data."""
    return _told(trail, data=False, config_data=True)


@rule("pci.notify.drv.field-config-data", bus="pci")
def tells_what_it_was_told_with_data(trail: Trail) -> int:
    """With both, the low half of a notification is the queue's queue_notif_config_data."""
    return _told(trail, data=True, config_data=True)
