"""Linux's drivers, firmware's, and our own of both buses, judged by QEMU's traces."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

import virtq
from virtq.check.case import Verdict
from virtq.check.register_log import RULES, Log, judge, read
from virtq.cli import run
from virtq.drivers.blk import BlkDriver

from .peers.availability import program
from .peers.guest import GuestConfig, run_guest

pytestmark = pytest.mark.interop

BLK, BALLOON = 2, 5
USE_THE_DISK = """
    dd if=/dev/vda of=/dev/null bs=64k count=4 iflag=direct
    dd if=/dev/zero of=/dev/vda bs=4k count=4 oflag=direct
"""
DISK = ("-blockdev", "driver=null-co,node-name=d,size=16777216,read-zeroes=on")


def judged(capsys: pytest.CaptureFixture[str], trace: Path) -> dict[str, Any]:
    code = run(["check", f"registers:{trace}", "--json"])
    shown = json.loads(capsys.readouterr().out)
    wrong = [r for r in shown["results"] if r["verdict"] == "fail"]
    assert code == 0, wrong
    return {r["case"]: r["verdict"] for r in shown["results"]}


def test_linux_on_pci(tmp_path: Path) -> None:
    """docs/findings.md: of a balloon's driver, everything but that; of a disk's, everything."""
    trace = tmp_path / "trace.log"
    disk = ("-device", "virtio-blk-pci,drive=d,packed=on,ioeventfd=off")
    balloon = ("-device", "virtio-balloon-pci,ioeventfd=off")
    events = ("-trace", "memory_region_ops_*", "-trace", "pci_cfg_*", "-D", str(trace))
    modules = ("virtio_blk", "virtio_balloon")
    config = GuestConfig(USE_THE_DISK, args=[*DISK, *disk, *balloon, *events], modules=modules)
    run_guest(config)
    logs = {log.device_id: log for log in read(str(trace))}
    assert set(logs) == {BLK, BALLOON}
    passed, failed = verdicts(logs[BLK])
    assert not failed
    assert {
        "driver_initialization.keeps_the_order",
        "driver_general.reads_in_a_loop",
        "driver_pci.access_widths",
        "driver_pci.capabilities_are_read_only",
        "driver_pci.configures_first",
        "driver_pci.leaves_the_isr_alone",
        "driver_pci.tells_the_queue",
        "driver_pci.verifies_each_mapping",
        "driver_pci.waits_for_its_reset",
    } <= passed
    assert len(passed) >= 30
    passed, failed = verdicts(logs[BALLOON])
    # It notifies its statistics queue while it sets its queues up.
    assert failed == {"driver_initialization.notifies_a_live_device"}
    assert len(passed) >= 25


def test_linux_on_memory_mapped_registers(tmp_path: Path) -> None:
    trace = tmp_path / "trace.log"
    settings = ("virtio-mmio.force-legacy=false", "virtio-mmio.ioeventfd=off")
    options = [word for setting in settings for word in ("-global", setting)]
    control = ("-device", "isa-serial,chardev=control,index=1")  # microvm has one port by itself
    device = ("-device", "virtio-blk-device,drive=d,packed=on")
    events = ("-trace", "memory_region_ops_*", "-trace", "virtio_mmio_setting_irq")
    config = GuestConfig(
        USE_THE_DISK,
        args=[*options, *DISK, *control, *device, *events, "-D", str(trace)],
        modules=("virtio_mmio", "virtio_blk"),
        machine="microvm,acpi=on,pit=on,pic=on,rtc=on,ioapic2=off",
        kernel_parameters="tsc_early_khz=1000000",
    )
    run_guest(config)
    (log,) = (log for log in read(str(trace)) if log.device_id == BLK)
    passed, failed = verdicts(log)
    assert not failed
    assert {
        "driver_initialization.keeps_the_order",
        "driver_mmio.acknowledges",
        "driver_mmio.magic_and_version_first",
        "driver_mmio.sets_a_queue_up",
        "driver_mmio.tells_the_queue",
        "driver_mmio.words",
    } <= passed
    assert len(passed) >= 35


def verdicts(log: Log) -> tuple[set[str], set[str]]:
    """The names of the rules that hold, and of those that do not."""
    results = list(judge([log], list(RULES.values())))
    passed, failed = (
        {result.case.name for result in results if result.verdict is verdict}
        for verdict in (Verdict.PASS, Verdict.FAIL)
    )
    return passed, failed


@pytest.mark.parametrize(
    ("device", "least"),
    [
        ("virtio-blk-pci,packed=on,ioeventfd=off", 35),
        ("virtio-blk-pci,vectors=0,ioeventfd=off", 30),
        ("virtio-blk-device,packed=on", 38),
    ],
)
def test_our_own_driver(
    device: str, least: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    program("qemu")
    trace = tmp_path / "trace.log"
    events = "-trace memory_region_ops_* -trace pci_cfg_* -trace virtio_mmio_setting_irq"
    options = f"-global virtio-mmio.ioeventfd=off {events} -D {trace}"
    with virtq.connect(f"qtest:{device}?args={options}", driver=BlkDriver) as disk:
        disk.read(0, 4096)
        if "-pci" in device:
            disk.reset_queue(0)  # its memory-mapped registers have no such thing
            disk.read(0, 4096)
        assert disk.config.capacity
    found = judged(capsys, trace)
    assert list(found.values()).count("pass") >= least


@pytest.mark.parametrize(
    ("device", "wrong"),
    [
        (
            ("-device", "virtio-blk-pci,drive=d,disable-legacy=on,ioeventfd=off"),
            # SeaBIOS: the device is not waited for after its reset.
            {
                "driver_initialization.waits_for_zero",
                "driver_general.reads_in_a_loop",
                "driver_pci.waits_for_its_reset",
            },
        ),
        (
            ("-device", "virtio-net-pci,netdev=n,disable-legacy=on,ioeventfd=off"),
            # iPXE: features are read by 16 bits, so that it never sees the upper ones.
            {"driver_general.reads_in_a_loop", "driver_pci.access_widths"},
        ),
    ],
    ids=["seabios", "ipxe"],
)
def test_firmware(
    device: tuple[str, ...],
    wrong: set[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """docs/findings.md: what the drivers in QEMU's firmware break."""
    trace = tmp_path / "trace.log"
    machine = ("-machine", "pc", "-accel", "tcg", "-m", "256", "-nodefaults", "-display", "none")
    netdev = ("-netdev", "user,id=n,restrict=on")
    events = ("-trace", "memory_region_ops_*", "-trace", "pci_cfg_*", "-D", str(trace))
    command = [str(program("qemu")), *machine, *DISK, *netdev, *device, *events]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as qemu:
        try:
            # From the first notification on, the device is initialized.
            deadline = time.monotonic() + 60
            while not (trace.exists() and "virtio-pci-notify" in trace.read_text()):
                assert qemu.poll() is None
                assert time.monotonic() < deadline, "the firmware does not use the device"
                time.sleep(0.1)
        finally:
            qemu.terminate()
            qemu.wait(10)
    run(["check", f"registers:{trace}", "--json"])
    shown = json.loads(capsys.readouterr().out)
    found = {r["case"] for r in shown["results"] if r["verdict"] == "fail"}
    assert found == wrong
    assert sum(r["verdict"] == "pass" for r in shown["results"]) >= 20
