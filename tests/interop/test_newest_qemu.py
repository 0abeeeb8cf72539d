"""A device type that nobody else has, in the newest QEMU, which has vhost-user-test-device-pci for
any back-end: driven by us through QEMU's PCI, and found by a Linux guest.

QEMU 11.1 ends with a failed assertion for type ids that it has no name for, such as 63. Id 38 is
reserved in the specification without a description (a parameter server): it has a name, but no
front-end, and no driver in Linux.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from virtq.driver import Driver
from virtq.errors import TransportError
from virtq.features import F, RingKind
from virtq.transports.qtest import QtestTransport
from virtq.wire.layout import u16, u32

from .peers.availability import program, require
from .peers.guest import GuestConfig, run_guest, vhost_user
from .serving import Serving

pytestmark = pytest.mark.interop

DEVICE_ID = 38
NAMELESS_ID = 63
QUEUE_SIZE = 64
KIND_BITS = F.RING_PACKED | F.IN_ORDER
PATIENCE_S = 60.0

SHOUT = f"""
from dataclasses import dataclass
import virtq
from virtq.wire.layout import u16, u32

@dataclass
class Config:
    loudness: u32 = 7
    words: u16 = 0x1234

class Shout(virtq.Device):
    device_id = {DEVICE_ID}
    config = Config()
    queues = (virtq.QueueSpec("requests", {QUEUE_SIZE}), virtq.QueueSpec("more", {QUEUE_SIZE}))

    def handle(self, request):
        word = request.read()
        if word == b"louder":
            self.update_config(loudness=self.config.loudness + 1)
        return request.write(word.upper())
"""


@dataclass
class Config:
    loudness: u32 = 0
    words: u16 = 0


class ShoutDriver(Driver):
    """What anybody would write for a device of their own."""

    config_layout = Config
    config: Config


@contextlib.contextmanager
def shout(folder: Path, kind: RingKind = RingKind.SPLIT) -> Iterator[Serving]:
    source = folder / "shout.py"
    source.write_text(SHOUT)
    offer = ",".join(("+" if kind.features & bit else "-") + str(bit.name) for bit in KIND_BITS)
    socket_path = folder / "shout.sock"
    with Serving(f"{source}:Shout", "--offer", offer, socket_path=socket_path) as service:
        yield service


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether it comes true in time: notifications of changes have a way of their own."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def properties(device_id: int = DEVICE_ID) -> dict[str, object]:
    """Of QEMU's front-end, which knows nothing of the device by itself."""
    return {"virtio-id": device_id, "num_vqs": 2, "vq_size": QUEUE_SIZE, "config_size": 6}


def open_in_qemu(service: Serving, device_id: int = DEVICE_ID) -> QtestTransport:
    *chardev, _, card = vhost_user(
        "vhost-user-test-device-pci", service.socket_path, properties=properties(device_id)
    )
    return QtestTransport(card, arguments=chardev, qemu=str(program("qemu-newest")))


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_a_made_up_device_is_driven_through_qemu(kind: RingKind, tmp_path: Path) -> None:
    require("qemu-newest")
    with shout(tmp_path, kind) as service:
        transport = open_in_qemu(service)
        assert transport.device_id == DEVICE_ID
        with ShoutDriver(transport, want=kind.features, offer=kind.change) as driver:
            assert driver.kind is kind
            assert (driver.config.loudness, driver.config.words) == (7, 0x1234)
            requests, more = driver.queues[0], driver.queues[1]
            assert requests.call(b"hello", 5, PATIENCE_S) == b"HELLO"
            assert more.call(b"louder", 6, PATIENCE_S) == b"LOUDER"
            seen: list[bytes] = []
            words = [b"word %03d" % number for number in range(300)]
            while len(seen) < len(words):
                requests.add_batch(words[len(seen) :], 8)
                requests.kick()
                while requests.outstanding:
                    assert requests.wait(PATIENCE_S)
                    seen += [used.reply for used in requests.reap()]
            assert seen == [word.upper() for word in words]
            assert eventually(lambda: driver.config.loudness == 8)
        report = service.end()
    assert report.negotiated & KIND_BITS == kind.features
    assert report.front_ends == 1
    assert report.remarks == ()
    assert report.queues["requests"]["buffers"] == 301
    assert report.queues["more"]["buffers"] == 1
    used = report.queues["requests"]["used_entries"]
    assert used < 301 if kind.in_order else used == 301


def test_linux_finds_it(tmp_path: Path) -> None:
    require("qemu-newest")
    script = """
        cd /sys/bus/virtio/devices/virtio0
        cat device features status
        cat ../device
        test ! -e driver
    """
    with shout(tmp_path) as service:
        card = vhost_user(
            "vhost-user-test-device-pci", service.socket_path, properties=properties()
        )
        guest = run_guest(GuestConfig(script, card, qemu="qemu-newest"))
        report = service.end()
    device, features, status, function = guest.text.split()
    assert int(device, 16) == DEVICE_ID
    assert int(function, 16) == 0x1040 + DEVICE_ID
    # Nobody drives it: Linux has acknowledged it, and chosen nothing.
    assert int(features, 2) == 0
    assert int(status, 16) == 1
    assert report.front_ends == 1


def test_qemu_does_not_take_an_id_that_it_has_no_name_for(tmp_path: Path) -> None:
    """Should this fail, QEMU has become better: our own ids then go here too."""
    require("qemu-newest")
    with shout(tmp_path) as service, pytest.raises(TransportError, match="virtio_id_to_name"):
        open_in_qemu(service, NAMELESS_ID)
