"""Linux's virtio_input, i2c-virtio and gpio-virtio in QEMU, on devices of `virtq serve`, over every
kind of ring. One guest has them all.

QEMU's front-ends for these types know no properties for rings: what the back-end offers decides.
Linux's own users stand on top: evdev, at24 (an EEPROM driver), i2c-dev, GPIO edge events.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from virtq.devices import evdev
from virtq.features import F, RingKind
from virtq.wire.gpio import GpioFeature
from virtq.wire.i2c import I2cFeature
from virtq.wire.input import InputDescription

from .peers.availability import linux, require
from .peers.guest import GUEST_TIMEOUT_S, GuestConfig, LinuxGuest, vhost_user
from .peers.guest_tool import guest_tool
from .serving import Report, Serving

pytestmark = pytest.mark.interop

KIND_BITS = F.RING_PACKED | F.IN_ORDER
ALWAYS_NEGOTIATED = F.INDIRECT_DESC | F.EVENT_IDX | F.VERSION_1 | F.RING_RESET
MODULES = ("virtio_input", "evdev", "i2c-dev", "i2c-virtio", "at24", "gpio-virtio")
WRITTEN = b"by the guest"
WRITTEN_AT = 0x22

# The front-end, by the name of its service; the guest finds its devices in this order.
CARDS = {
    "keyboard": "vhost-user-input-pci",
    "tablet": "vhost-user-input-pci",
    "i2c": "vhost-user-i2c-pci",
    "gpio": "vhost-user-gpio-pci",
}

SCRIPT = f"""
set -e
for n in 0 1 2 3; do cat /sys/bus/virtio/devices/virtio$n/features; done
tool=/data/tool
find_inputs() {{
    for event in /sys/class/input/event*; do
        case $(cat $event/device/name) in
            keyboard) keyboard=/dev/input/${{event##*/}} ;;
            tablet) tablet=/dev/input/${{event##*/}} ;;
        esac
    done
}}
find_inputs

$tool describe $keyboard
$tool describe $tablet
$tool events $keyboard 4
$tool events $tablet 2
$tool led $keyboard 1 1
$tool led $keyboard 1 0

bus=/sys/bus/i2c/devices
echo 24c02 0x50 >$bus/i2c-0/new_device
sha256sum <$bus/0-0050/eeprom | cut -d' ' -f1
printf '{WRITTEN.decode()}' | dd of=$bus/0-0050/eeprom bs=64 seek={WRITTEN_AT} oflag=seek_bytes \
    2>/dev/null
$tool i2c /dev/i2c-0 0x50 w{WRITTEN_AT:02x} r{len(WRITTEN)}
$tool i2c /dev/i2c-0 0x48 w10aabbcc w11 r1
$tool i2c /dev/i2c-0 0x48 w10 r3
$tool quick /dev/i2c-0 0x48
! $tool quick /dev/i2c-0 0x49
! $tool i2c /dev/i2c-0 0x49 w00 r2
$tool i2c /dev/i2c-0 0x51 w01
! $tool i2c /dev/i2c-0 0x51 w80 r1
$tool i2c /dev/i2c-0 0x51 r4

chip=/dev/gpiochip0
$tool lines $chip
$tool drive $chip 1 1 0 1
$tool get $chip 0
read -r go
$tool get $chip 0
$tool watch $chip 6 2 0 3

# The drivers let their devices go, and begin anew.
drivers=/sys/bus/virtio/drivers
for pair in virtio0/virtio_input virtio1/virtio_input virtio2/i2c_virtio virtio3/gpio_virtio; do
    echo ${{pair%/*}} >$drivers/${{pair#*/}}/unbind
    echo ${{pair%/*}} >$drivers/${{pair#*/}}/bind
done
echo rebound
find_inputs
$tool i2c /dev/i2c-0 0x50 w{WRITTEN_AT:02x} r{len(WRITTEN)}
$tool get $chip 0
$tool watch $chip 1 3
$tool events $keyboard 2
"""


@dataclass(frozen=True)
class Services:
    """The commands that serve the guest's devices."""

    by_name: Mapping[str, Serving]

    def __getitem__(self, name: str) -> Serving:
        return self.by_name[name]

    def cards(self) -> list[str]:
        """QEMU's options."""
        options = []
        for name, card in CARDS.items():
            options += vhost_user(card, self[name].socket_path, name=name)
        return options


@contextlib.contextmanager
def services(folder: Path, kind: RingKind) -> Iterator[Services]:
    offer = ",".join(("+" if kind.features & bit else "-") + str(bit.name) for bit in KIND_BITS)
    (folder / "eeprom").write_bytes(os.urandom(256))
    (folder / "registers").write_bytes(b"hello")
    options: Mapping[str, list[object]] = {
        "keyboard": ["input", "--keyboard", "--name", "keyboard", "--serial", "K-1"],
        "tablet": ["input", "--tablet", "--name", "tablet"],
        "i2c": [
            *("i2c", "--target", f"0x50:eeprom={folder / 'eeprom'}", "--target", "0x48:registers"),
            *("--target", f"0x51:registers={folder / 'registers'}"),
        ],
        "gpio": ["gpio", "--lines", 5, "--names", "button,led,,reset"],
    }
    with contextlib.ExitStack() as stack:
        started = {
            name: stack.enter_context(
                Serving(*words, "--offer", offer, socket_path=folder / f"{name}.sock")
            )
            for name, words in options.items()
        }
        yield Services(started)


def description(guest: LinuxGuest) -> InputDescription:
    """What our own reader of evdev makes of the guest's answers, through ioctl numbers that the
    guest's C headers know as well."""
    told = guest.wait_for(r"((?:\d+ \d+ [0-9a-f]*\n)+)ok\n")[1].decode()
    answers = {}
    for line in told.splitlines():
        request, size, hexadecimal = line.split(" ")
        answers[int(request)] = bytes.fromhex(hexadecimal)[: int(size)]
    return evdev.describe(lambda number, size: answers[evdev.request_number(number, size)])


def seen_events(guest: LinuxGuest) -> list[tuple[int, ...]]:
    """What the guest's reader printed, once it has them all."""
    told = guest.wait_for(r"((?:event .*\n)+)ok\n")[1].decode()
    return [tuple(map(int, line.split()[1:])) for line in told.splitlines()]


def check_report(report: Report, kind: RingKind, own_features: int = 0) -> None:
    assert report.front_ends == 1
    assert report.negotiated & KIND_BITS == kind.features
    wanted = ALWAYS_NEGOTIATED | own_features
    assert report.negotiated & wanted == wanted
    for counters in report.queues.values():
        assert counters.get("handler_errors", 0) == 0
        assert counters["used_entries"] <= counters["buffers"]


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_linux_drives_small_devices(kind: RingKind, tmp_path: Path) -> None:
    require("qemu")
    if "gpio-virtio" not in linux().load_order:
        pytest.skip("the guest has no gpio-virtio and i2c-virtio: scripts/newer.sh builds them")
    files = {"tool": guest_tool("guest_tool.c")}
    with services(tmp_path, kind) as served:
        before = (tmp_path / "eeprom").read_bytes()
        config = GuestConfig(SCRIPT, served.cards(), MODULES, files, timeout_s=GUEST_TIMEOUT_S)
        with LinuxGuest(config) as guest:
            features = [int(guest.wait_for(r"([01]+)\n")[1][::-1], 2) for _ in CARDS]
            check_input(guest, served)
            check_i2c(guest, before)
            check_gpio(guest, served["gpio"])
            check_again(guest, served)
            guest.result().check()
        after = (tmp_path / "eeprom").read_bytes()
        end = WRITTEN_AT + len(WRITTEN)
        assert after == before[:WRITTEN_AT] + WRITTEN + before[end:]
        reports = {name: served[name].end() for name in CARDS}

    assert [report.negotiated for report in reports.values()] == features
    check_report(reports["keyboard"], kind)
    check_report(reports["tablet"], kind)
    check_report(reports["i2c"], kind, I2cFeature.ZERO_LENGTH_REQUEST)
    check_report(reports["gpio"], kind, GpioFeature.IRQ)
    assert reports["keyboard"].queues["eventq"]["buffers"] == 2 * 6
    assert reports["tablet"].queues["eventq"]["buffers"] == 3 + 4
    assert reports["tablet"].queues["statusq"]["buffers"] == 0
    # 7 edges, and 3 + 1 buffers that came back when their lines were disabled. Under IN_ORDER lines
    # that were quiet had to let others pass, and were unmasked again.
    left = reports["gpio"].queues["eventq"]["buffers"]
    assert left > 11 if kind.in_order else left == 11


def check_input(guest: LinuxGuest, served: Services) -> None:
    assert description(guest) == InputDescription.keyboard("keyboard", "K-1")
    assert description(guest) == InputDescription.tablet("tablet")

    guest.wait_for("reading")
    served["keyboard"].feed("KEY_A\nKEY_LEFTSHIFT 1\nKEY_LEFTSHIFT 0\n")
    report = (0, 0, 0)
    assert seen_events(guest) == [
        *((1, 30, 1), report, (1, 30, 0), report),
        *((1, 42, 1), report, (1, 42, 0), report),
    ]
    guest.wait_for("reading")
    served["tablet"].feed("ABS_X 100, ABS_Y 32767\nABS_X 0, REL_WHEEL -1, BTN_LEFT 1\n")
    assert seen_events(guest) == [
        *((3, 0, 100), (3, 1, 32767), report),
        *((3, 0, 0), (2, 8, -1), (1, 0x110, 1), report),
    ]
    for _ in range(2):
        guest.wait_for("ok")
    served["keyboard"].wait_log("virtq: LED_CAPSL 1\n")
    served["keyboard"].wait_log("virtq: LED_CAPSL 0\n")


def check_i2c(guest: LinuxGuest, content: bytes) -> None:
    assert guest.wait_for(r"([0-9a-f]{64})\n")[1].decode() == hashlib.sha256(content).hexdigest()
    assert bytes.fromhex(guest.wait_for(r"([0-9a-f]+)\nok\n")[1].decode()) == WRITTEN
    # QEMU's queue has 4 slots: transactions of more messages are cut short by Linux.
    assert guest.wait_for(r"(.*)\nok\n(.*)\nok\n").groups() == (b"bb", b"aabbcc")
    assert guest.wait_for(r"ok\n(.*)\n(.*)\nok\n").groups() == (b"quick: EIO", b"i2c: 0 of 2")
    assert guest.wait_for(r"(.*)\n")[1] == b"i2c: 0 of 2"
    # The read behind the refused write was not tried: the chip's pointer is where it was.
    assert bytes.fromhex(guest.wait_for(r"([0-9a-f]+)\nok\n")[1].decode()) == b"ello"


def check_gpio(guest: LinuxGuest, gpio: Serving) -> None:
    names = guest.wait_for(r"((?:\d \[.*\]\n)+)ok\n")[1].decode()
    assert names.split("\n")[:-1] == ["0 [button]", "1 [led]", "2 []", "3 [reset]", "4 []"]
    assert guest.wait_for(r"ok\n(\d)\n")[1] == b"0"
    gpio.wait_log("virtq: led released\n")
    driven = [line for line in gpio.log.splitlines() if " led " in line]
    assert driven == [f"virtq: led {level}" for level in (0, 1, 0, 1, "released")]
    gpio.feed("button 1\n")
    guest.send("go\n")
    assert guest.wait_for(r"(\d)\n")[1] == b"1"
    guest.wait_for("watching\n")
    # Line 2 was unmasked first, and stays quiet until the others have interrupted.
    for command, edge in (
        *(("button 0", b"0 falling"), ("reset 1", b"3 rising"), ("button 1", b"0 rising")),
        *(("2 1", b"2 rising"), ("reset 0", b"3 falling"), ("2 0", b"2 falling")),
    ):
        gpio.feed(f"{command}\n")
        assert guest.wait_for(r"(\d \w+)\n")[1] == edge


def check_again(guest: LinuxGuest, served: Services) -> None:
    guest.wait_for("rebound\n")
    assert bytes.fromhex(guest.wait_for(r"([0-9a-f]+)\nok\n")[1].decode()) == WRITTEN
    assert guest.wait_for(r"(\d)\n")[1] == b"1"
    guest.wait_for("watching\n")
    served["gpio"].feed("reset 1\n")
    assert guest.wait_for(r"(\d \w+)\n")[1] == b"3 rising"
    guest.wait_for("reading\n")
    served["keyboard"].feed("KEY_B\n")
    assert seen_events(guest) == [(1, 48, 1), (0, 0, 0), (1, 48, 0), (0, 0, 0)]
