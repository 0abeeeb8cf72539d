"""Every rule about register accesses passes on drivers that do it right, and fails on one that does
not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.check.bus_logs import (
    RIGHT,
    Edit,
    Match,
    after,
    before,
    both,
    change,
    drop,
    is_read,
    is_status,
    is_write,
    moved,
    read,
    right,
    until,
    value,
    width,
    write,
)
from virtq.check.case import Verdict
from virtq.check.register_log import RULES, judge, qemu
from virtq.check.register_log import read as read_log
from virtq.check.register_log.log import Access, LogError, lines, parse
from virtq.check.register_log.trail import Step
from virtq.cli import run
from virtq.features import F
from virtq.status import Status

LIVE = is_write("device_status", Status.DRIVER_OK)
OK = is_write("device_status", Status.FEATURES_OK)
FAILED = is_write("device_status", Status.FAILED)
ZERO = is_status(0)


def _word(feature: int) -> tuple[int, int]:
    """The feature word that a bit is in, and the bit there."""
    number = feature.bit_length() - 1
    return number // 32, 1 << number % 32


def accepting(feature: int) -> Edit:
    word, bit = _word(feature)
    return change(
        lambda step: step.puts("driver_feature") and step.select == word, value(lambda v: v | bit)
    )


def declining(feature: int) -> Edit:
    word, bit = _word(feature)
    return change(
        lambda step: step.puts("driver_feature") and step.select == word, value(lambda v: v & ~bit)
    )


def reads_status(shown: int) -> Match:
    return lambda step: step.gets("device_status") and step.value == shown


def sets_again(step: Step) -> bool:
    """DRIVER_OK, of a device that is suspended."""
    return step.puts("device_status") and bool(step.status & Status.SUSPEND)


def telling(make: Callable[[int], int]) -> Edit:
    return change(is_write("notify"), value(make))


LATE_ACKNOWLEDGE = both(drop(is_status(1)), change(is_status(3), value(lambda v: 2)))
NOTIFICATION = Access(0, "write", "notify", 0, 2, 0)
CONFIG = Access(0, "write", "device", 32, 1, 1)
ISR = Access(0, "read", "isr", 0, 1, 1)
IRQ = Access(0, "interrupt")

MUTANTS: list[tuple[str, str, Edit]] = [
    ("initialization.begins_with_a_reset", "pci", drop(ZERO)),
    (
        "initialization.waits_for_zero",
        "pci",
        drop(reads_status(0)),
    ),
    ("initialization.acknowledges_first", "pci", LATE_ACKNOWLEDGE),
    ("initialization.knows_how_to_drive_it", "pci", drop(is_status(3))),
    (
        "initialization.reads_and_writes_features",
        "pci",
        moved(is_read("device_feature"), is_status(1)),
    ),
    ("initialization.reads_and_writes_features", "pci", drop(is_write("driver_feature"))),
    ("initialization.says_that_features_are_ok", "pci", drop(is_status(0xB))),
    (
        "initialization.looks_again",
        "pci",
        drop(reads_status(0xB)),
    ),
    (
        "initialization.stops_without_features_ok",
        "pci refused",
        before(FAILED, write("pci", "device_status", 0xF)),
    ),
    (
        "initialization.stops_without_features_ok",
        "pci refused",
        before(FAILED, write("pci", "queue_enable", 1)),
    ),
    ("initialization.says_that_it_failed", "pci refused", drop(FAILED)),
    (
        "initialization.sets_queues_up_in_time",
        "pci",
        before(is_status(0xB), write("pci", "queue_enable", 1)),
    ),
    (
        "initialization.sets_queues_up_in_time",
        "pci",
        after(LIVE, write("pci", "queue_select", 5), write("pci", "queue_enable", 1)),
    ),
    ("initialization.ends_with_driver_ok", "pci", drop(LIVE)),
    ("initialization.keeps_the_order", "pci", moved(is_write("driver_feature"), LIVE)),
    ("initialization.keeps_the_order", "mmio", LATE_ACKNOWLEDGE),
    ("initialization.writes_no_configuration_early", "pci", before(OK, CONFIG)),
    (
        "initialization.accepts_nothing_later",
        "pci",
        before(LIVE, write("pci", "driver_feature", 1)),
    ),
    ("initialization.notifies_a_live_device", "pci", before(LIVE, NOTIFICATION)),
    ("initialization.clears_no_bit", "pci", change(LIVE, value(lambda v: v & ~1))),
    ("initialization.records_each_step", "pci", change(LIVE, value(lambda v: v & ~1))),
    (
        "initialization.resets_what_failed",
        "pci refused",
        after(FAILED, write("pci", "device_status", 0x8F)),
    ),
    ("general.accepts_what_is_offered", "pci", accepting(1 << 22)),
    ("general.accepts_what_it_needs", "pci", declining(1 << 9)),  # FLUSH, and CONFIG_WCE needs it
    ("general.accepts_no_reserved_bit", "pci strange", accepting(1 << 45)),
    (
        "general.accepts_no_reserved_bit",
        "pci strange",
        both(until(OK), after(is_read("device_feature"), write("pci", "device_status", 0x83))),
    ),
    ("general.accepts_version_1", "pci", declining(F.VERSION_1)),
    ("general.accepts_packed_rings", "pci", declining(F.RING_PACKED)),
    ("general.accepts_access_platform", "pci strange", declining(F.ACCESS_PLATFORM)),
    ("general.accepts_order_platform", "pci strange", declining(F.ORDER_PLATFORM)),
    ("general.accepts_notif_config_data", "pci config data", declining(F.NOTIF_CONFIG_DATA)),
    ("general.reads_in_a_loop", "pci", drop(is_read("config_generation"))),
    ("general.reads_in_a_loop", "mmio", drop(is_read("config_generation"))),
    ("general.verifies_a_queue_reset", "pci queue reset", drop(is_read("queue_reset"))),
    (
        "general.configures_a_queue_again",
        "pci queue reset",
        drop(lambda s: s.puts("queue_desc") and bool(s.status & Status.DRIVER_OK)),
    ),
    (
        "general.tells_a_place_in_the_ring",
        "pci data",
        telling(lambda v: v | 0x7FFF0000),
    ),
    ("general.tells_a_place_in_the_ring", "mmio data", telling(lambda v: v & ~0xFFFF | 9)),
    (
        "general.reads_what_is_there",
        "pci",
        before(LIVE, Access(0, "read", "device", 60, 4, 0)),  # secure erase is not offered
    ),
    ("general.suspends_a_live_device", "pci suspended", declining(F.SUSPEND)),
    (
        "general.suspends_a_live_device",
        "pci suspended",
        before(LIVE, write("pci", "device_status", 0x1B), read("pci", "device_status", 0x1B)),
    ),
    (
        "general.verifies_that_it_is_suspended",
        "pci suspended",
        drop(reads_status(0x1B)),
    ),
    (
        "general.does_not_notify_while_suspended",
        "pci suspended",
        after(is_status(0x1F), NOTIFICATION),
    ),
    (
        "general.leaves_the_configuration_while_suspended",
        "pci suspended",
        after(is_status(0x1F), CONFIG),
    ),
    (
        "general.waits_until_it_is_resumed",
        "pci suspended",
        after(sets_again, NOTIFICATION),
    ),
    # PCI
    (
        "pci.enables_what_is_set_up",
        "pci queue reset",
        drop(lambda s: s.puts("queue_driver") and bool(s.status & Status.DRIVER_OK)),
    ),
    (
        "mmio.enables_what_is_set_up",
        "mmio queue reset",
        drop(lambda s: s.puts("queue_device") and bool(s.status & Status.DRIVER_OK)),
    ),
    ("pci.access_widths", "pci", change(is_read("config"), width(8), only_first=True)),
    ("pci.access_widths", "pci", change(is_read("config"), width(1), only_first=True)),
    ("pci.access_widths", "pci", change(is_write("device_status"), width(4), only_first=True)),
    ("pci.access_widths", "pci", change(is_write("queue_desc"), width(8), only_first=True)),
    ("pci.capabilities_are_read_only", "pci", before(OK, Access(0, "write", "config", 0x48, 4, 0))),
    ("pci.reserved_types", "pci strange", until(LIVE)),
    ("pci.reserved_bars", "pci strange", until(LIVE)),
    ("pci.long_capabilities", "pci strange", until(LIVE)),
    ("pci.long_structures", "pci strange", until(LIVE)),
    ("pci.long_configurations", "pci strange", until(LIVE)),
    ("pci.tables_of_any_size", "pci strange", until(LIVE)),
    *(
        ("pci.read_only_fields", "pci", before(LIVE, write("pci", name, 0)))
        for name in (
            "device_feature",
            "num_queues",
            "config_generation",
            "queue_notify_off",
            "queue_notif_config_data",
        )
    ),
    ("pci.no_queue_of_no_size", "pci", change(is_write("queue_size"), value(lambda v: 0))),
    ("pci.powers_of_two", "pci split", change(is_write("queue_size"), value(lambda v: 100))),
    ("pci.configures_first", "pci", moved(is_write("queue_device"), is_write("queue_enable"))),
    (
        "pci.configures_first",
        "pci",
        before(LIVE, write("pci", "queue_select", 0), write("pci", "queue_size", 8)),
    ),
    ("pci.waits_for_its_reset", "pci", drop(reads_status(0))),
    ("pci.disables_no_queue", "pci", after(LIVE, write("pci", "queue_enable", 0))),
    ("pci.waits_for_a_queue_reset", "pci queue reset", drop(is_read("queue_reset"))),
    (
        "pci.administration_queues",
        "pci administration",
        change(lambda s: s.puts("queue_select") and s.value == 2, value(lambda v: 3)),
    ),
    ("pci.leaves_the_isr_alone", "pci", after(lambda s: s.puts("notify"), ISR)),
    ("pci.vectors_of_the_table", "pci", change(is_write("queue_msix_vector"), value(lambda v: 3))),
    ("pci.verifies_each_mapping", "pci", drop(is_read("queue_msix_vector"))),
    ("pci.verifies_each_mapping", "pci", drop(is_read("config_msix_vector"))),
    ("pci.notifies_with_16_bits", "pci", change(is_write("notify"), width(4))),
    ("pci.notifies_with_32_bits", "pci data", change(is_write("notify"), width(2))),
    ("pci.tells_the_queue", "pci", change(is_write("notify"), value(lambda v: v + 1))),
    (
        "pci.tells_the_queue",
        "pci",
        change(is_write("notify"), lambda a: Access(0, a.do, a.at, a.offset + 4, a.width, a.value)),
    ),
    (
        "pci.tells_the_queue_with_data",
        "pci data",
        change(is_write("notify"), value(lambda v: v ^ 2)),
    ),
    (
        "pci.tells_what_it_was_told",
        "pci config data",
        change(is_write("notify"), value(lambda v: 0)),
    ),
    (
        "pci.tells_what_it_was_told_with_data",
        "pci both",
        change(is_write("notify"), value(lambda v: v & ~0xFFFF)),
    ),
    # Memory-mapped registers
    ("mmio.registers_that_there_are", "mmio", before(OK, Access(0, "read", "mmio", 0x40, 4, 0))),
    ("mmio.read_only_registers", "mmio", before(LIVE, write("mmio", "QueueSizeMax", 8))),
    ("mmio.write_only_registers", "mmio", before(LIVE, read("mmio", "QueueSize", 8))),
    ("mmio.words", "mmio", before(LIVE, read("mmio", "Status", 0xB, 1))),
    ("mmio.configuration_widths", "mmio", change(is_read("config"), width(1), only_first=True)),
    (
        "mmio.magic_and_version_first",
        "mmio",
        moved(lambda s: s.register == "Version", lambda s: s.register == "DeviceID"),
    ),
    ("mmio.device_id_next", "mmio", drop(lambda s: s.register == "DeviceID")),
    (
        "mmio.ignores_another_magic",
        "mmio magic",
        after(lambda s: s.register == "MagicValue", write("mmio", "Status", 0)),
    ),
    (
        "mmio.ignores_another_version",
        "mmio version",
        after(lambda s: s.register == "Version", write("mmio", "Status", 0)),
    ),
    (
        "mmio.ignores_a_placeholder",
        "mmio placeholder",
        after(lambda s: s.register == "DeviceID", read("mmio", "VendorID", 0)),
    ),
    (
        "mmio.ignores_a_placeholder",
        "mmio placeholder",
        after(lambda s: s.register == "DeviceID", write("mmio", "Status", 0)),
    ),
    ("mmio.no_shared_memory", "mmio", before(LIVE, write("mmio", "SHMSel", 0))),
    ("mmio.the_general_procedure", "mmio", LATE_ACKNOWLEDGE),
    (
        "mmio.selects_what_it_reads",
        "mmio",
        drop(lambda s: s.register == "DeviceFeaturesSel"),
    ),
    (
        "mmio.selects_what_it_writes",
        "mmio",
        drop(lambda s: s.register == "DriverFeaturesSel"),
    ),
    (
        "mmio.sizes_within_the_maximum",
        "mmio",
        change(is_write("queue_size"), value(lambda v: 512)),
    ),
    (
        "mmio.leaves_a_ready_queue_alone",
        "mmio",
        before(LIVE, write("mmio", "QueueSel", 0), write("mmio", "QueueSize", 8)),
    ),
    ("mmio.sets_a_queue_up", "mmio", drop(lambda s: s.register == "QueueReady" and s.reads)),
    ("mmio.sets_a_queue_up", "mmio", drop(lambda s: s.register == "QueueDriverLow")),
    (
        "mmio.reads_a_stopped_queue",
        "mmio stopped",
        drop(lambda s: s.register == "QueueReady" and s.reads and bool(s.status & 4)),
    ),
    (
        "mmio.stops_by_writing_zero",
        "mmio stopped",
        change(
            lambda s: s.puts("queue_enable") and s.value == 0, value(lambda v: 1), only_first=True
        ),
    ),
    ("mmio.waits_for_a_queue_reset", "mmio queue reset", drop(is_read("queue_reset"))),
    ("mmio.tells_the_queue", "mmio", change(is_write("notify"), value(lambda v: v + 7))),
    (
        "mmio.tells_the_queue_with_data",
        "mmio data",
        change(is_write("notify"), value(lambda v: v ^ 2)),
    ),
    (
        "mmio.reads_interrupt_status",
        "mmio",
        before(lambda s: s.register == "InterruptACK" and bool(s.status & 4), IRQ),
    ),
    (
        "mmio.acknowledges",
        "mmio",
        both(
            drop(lambda s: s.register == "InterruptACK"),
            after(lambda s: s.puts("notify"), *2 * [read("mmio", "InterruptStatus", 1)]),
        ),
    ),
    (
        "mmio.acknowledges_what_there_is",
        "mmio",
        change(lambda s: s.register == "InterruptACK", value(lambda v: v | 4)),
    ),
    (
        "mmio.ignores_undefined_events",
        "mmio undefined",
        change(lambda s: s.register == "InterruptACK", value(lambda v: v | 0x10)),
    ),
]


def test_every_rule_has_a_mutant() -> None:
    assert {f"driver_{name}" for name, _, _ in MUTANTS} == set(RULES)


def test_our_own_drivers_pass() -> None:
    passed = set()
    for name in RIGHT:
        for result in judge([right(name)], list(RULES.values())):
            assert result.verdict is not Verdict.FAIL, (name, result.title, result.came)
            if result.verdict is Verdict.PASS:
                passed.add(result.case.name)
    assert passed == set(RULES), "rules that had no occasion"


@pytest.mark.parametrize(
    ("rule", "log", "edit"), MUTANTS, ids=[f"{i}-{name}" for i, (name, _, _) in enumerate(MUTANTS)]
)
def test_a_driver_that_gets_it_wrong_is_caught(rule: str, log: str, edit: Edit) -> None:
    case = RULES[f"driver_{rule}"]
    (before,) = judge([right(log)], [case])
    assert before.verdict is Verdict.PASS
    (result,) = judge([edit(right(log))], [case])
    assert result.verdict is Verdict.FAIL
    assert result.came, result
    assert "expected" not in result.expected


# Files


def test_a_log_is_read_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    text = [*lines(right("pci"), 0), *lines(right("mmio"), 1)]
    path.write_text("\n".join(text) + "\n")
    first, second = read_log(str(path))
    assert (first.bus, first.device_id, first.config) == ("pci", 2, right("pci").config)
    assert [a.value for a in first.accesses] == [a.value for a in right("pci").accesses]
    assert [a.offset for a in second.accesses] == [a.offset for a in right("mmio").accesses]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "nothing in it"),
        ("{", ":1: "),
        ("[]", ":1: not an object"),
        ('{"do": "read"}', ":1: the first line has to say which bus"),
        ('{"bus": "usb"}', ":1: bus: there are pci and mmio"),
        ('{"bus": "pci", "config": "zz"}', ":1: "),
        ('{"bus": "pci", "config": 5}', ":1: config: not a string"),
        ('{"bus": "pci", "colour": 1}', ":1: nothing is called 'colour'"),
        ('{"bus": "pci"}\n{"bus": "pci"}', ":2: what it is about was said before"),
        ('{"bus": "pci"}\n{"do": "poke"}', ":2: do: there are read, write and interrupt"),
        ('{"bus": "pci"}\n{"do": "read", "at": "mmio"}', ":2: at: there are common"),
        (
            '{"bus": "mmio"}\n{"do": "read", "at": "mmio", "width": 3}',
            ":2: width: 1, 2, 4 or 8 bytes, not 3",
        ),
        (
            '{"bus": "mmio"}\n{"do": "read", "at": "mmio", "width": 4, "offset": -4}',
            ":2: offset: a number from 0",
        ),
        (
            '{"bus": "mmio"}\n{"do": "read", "at": "mmio", "width": 1, "offset": 0, "value": 256}',
            ":2: value: a number from 0 to 0xff",
        ),
        ('{"bus": "mmio"}\n{"do": "interrupt", "vector": true}', ":2: vector: a number"),
    ],
)
def test_a_log_that_makes_no_sense(text: str, what: str) -> None:
    with pytest.raises(LogError, match=r"^x") as caught:
        parse("x", text.split("\n"))
    assert what in str(caught.value)


TRACE = """
pci_cfg_read virtio-blk-pci 00:02.0 @0x34 -> 0x98
pci_cfg_write virtio-blk-pci 00:02.0 @0x9a <- 0x8001
pci_cfg_read e1000 00:03.0 @0x34 -> 0xdc
OPS_write cpu 0 mr 0x5 addr 0xfe000014 value 0x0 size 1 name 'virtio-pci-common-virtio-blk'
OPS_read cpu -1 mr 0x5 addr 0xfe001000 value 0x1 size 1 name 'virtio-pci-isr-virtio-blk'
OPS_write cpu 0 mr 0x5 addr 0xfeb02e50 value 0x3 size 4 name 'virtio-mmio'
OPS_write cpu 0 mr 0x5 addr 0x604 value 0x2001 size 2 name 'acpi-cnt'
virtio_mmio_setting_irq virtio_mmio setting IRQ 1
""".replace("OPS", "memory_region_ops")


def test_a_trace_of_qemu() -> None:
    pci, mmio = qemu.parse(TRACE.split("\n"))
    assert (pci.bus, pci.device_id, mmio.bus) == ("pci", 2, "mmio")
    assert [(a.do, a.at, a.offset, a.width, a.value) for a in pci.accesses] == [
        ("read", "config", 0x34, 1, 0x98),
        ("write", "config", 0x9A, 2, 0x8001),
        ("write", "common", 0x14, 1, 0),
        ("read", "isr", 0, 1, 1),
    ]
    assert [(a.do, a.offset, a.value) for a in mmio.accesses] == [
        ("write", 0x50, 3),
        ("interrupt", 0, 0),
    ]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text("\n".join(lines(right("pci"))))
    bad.write_text("\n".join(lines(drop(ZERO)(right("pci")))))
    assert run(["check", f"registers:{good}"]) == 0
    assert "pass" in capsys.readouterr().out
    report = tmp_path / "r.html"
    assert run(["check", f"registers:{bad}", "--json", "--report", str(report)]) == 1
    shown = json.loads(capsys.readouterr().out)
    failed = {r["case"] for r in shown["results"] if r["verdict"] == "fail"}
    assert "driver_initialization.begins_with_a_reset" in failed
    assert "begins_with_a_reset" in report.read_text()
    assert run(["check", f"registers:{bad}", "--only", "driver_mmio"]) == 2
    assert run(["check", f"registers:{bad}", "--only", "nothing"]) == 2
    assert run(["check", f"registers:{tmp_path}/none"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert "gives no occasion" in errors[0]
