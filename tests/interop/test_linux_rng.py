"""Linux's virtio-rng in QEMU, on entropy devices of `virtq serve rng`, over every kind of ring."""

from __future__ import annotations

from pathlib import Path

import pytest

from virtq.devices.rng import SeededSource
from virtq.features import F, RingKind

from .peers.availability import require
from .peers.guest import GUEST_TIMEOUT_S, GuestConfig, LinuxGuest, vhost_user
from .serving import Report, Serving

pytestmark = pytest.mark.interop

READ_BYTES = 4096
SHORT_BUFFER_BYTES = 24
LINUX_BUFFER_BYTES = 64
KIND_BITS = F.RING_PACKED | F.IN_ORDER

# Two devices: one fills each of Linux's buffers, one does not. The second device also has another
# driver life, after its driver was taken from it and given back.
SCRIPT = f"""
cd /sys/bus/virtio/drivers/virtio_rng
for device in virtio0 virtio1
do cat $device/features
done
hwrng=/sys/class/misc/hw_random
for name in $(grep -o 'virtio_rng[.0-9]*' $hwrng/rng_available)
do
    echo $name >$hwrng/rng_current
    echo reading $(cat $hwrng/rng_current)
    dd if=/dev/hwrng bs={READ_BYTES} count=1 iflag=fullblock 2>/dev/null | xxd -p | tr -d '\\n'
    echo
done
echo virtio1 >unbind
echo virtio1 >bind
echo $(grep -o 'virtio_rng[.0-9]*' $hwrng/rng_available | tail -n 1) >$hwrng/rng_current
echo reading again
dd if=/dev/hwrng bs={READ_BYTES} count=1 iflag=fullblock 2>/dev/null | xxd -p | tr -d '\\n'
echo
# Linux may power off before a serial port has sent as much.
read -r received
"""


def pieces(data: bytes, stream: bytes, least: int) -> int:
    """How many runs of `stream` `data` is made of, one behind the other; each but the first and
    last has at least `least` bytes. Linux keeps some bytes for its own pool in between."""
    runs, at = 0, 0
    position = 0
    while at < len(data):
        probe = data[at : at + least]
        found = stream.find(probe, position)
        assert found >= 0, f"byte {at} and those behind are not the device's"
        length = 0
        while at + length < len(data) and data[at + length] == stream[found + length]:
            length += 1
        runs, at, position = runs + 1, at + length, found + length
    return runs


def check(report: Report, kind: RingKind, room: int) -> None:
    assert report.remarks == ()
    assert report.front_ends == 1
    assert report.negotiated & KIND_BITS == kind.features
    counters = report.queues["requestq"]
    assert counters["handler_errors"] == 0
    # Linux asks with one buffer at a time, so each has its used entry.
    assert counters["used_entries"] == counters["buffers"] >= READ_BYTES // room
    assert counters["bytes_written"] == counters["buffers"] * room
    assert counters["bytes_read"] == 0


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_a_guest_reads_the_bytes_of_the_device(kind: RingKind, tmp_path: Path) -> None:
    require("qemu")
    offer = [("+" if kind.features & bit else "-") + str(bit.name) for bit in KIND_BITS]
    common = ["--offer", ",".join(offer)]
    sockets = tmp_path / "full.sock", tmp_path / "short.sock"
    cards = [
        *vhost_user("vhost-user-rng-pci", sockets[0], name="full"),
        *vhost_user("vhost-user-rng-pci", sockets[1], name="short"),
    ]
    config = GuestConfig(SCRIPT, cards, modules=["virtio-rng"], timeout_s=GUEST_TIMEOUT_S)
    short = ["--max-bytes", SHORT_BUFFER_BYTES]
    with (
        Serving("rng", "--seed", "full", *common, socket_path=sockets[0]) as full_rng,
        Serving("rng", "--seed", "short", *short, *common, socket_path=sockets[1]) as short_rng,
    ):
        with LinuxGuest(config) as guest:
            for _ in sockets:
                shown = guest.wait_for(r"([01]+)\n")[1]
                assert int(shown[::-1], 2) & KIND_BITS == kind.features
            read = []
            for _ in range(3):
                found = guest.wait_for(rf"reading (\S+)\n([0-9a-f]{{{2 * READ_BYTES}}})\n")
                read.append(bytes.fromhex(found[2].decode()))
            guest.send("received\n")
            guest.result().check()
        full, scarce = full_rng.end(), short_rng.end()

    check(full, kind, LINUX_BUFFER_BYTES)
    check(scarce, kind, SHORT_BUFFER_BYTES)
    stream = SeededSource("full").read(full.queues["requestq"]["bytes_written"])
    assert pieces(read[0], stream, 16) < READ_BYTES // LINUX_BUFFER_BYTES // 2
    stream = SeededSource("short").read(scarce.queues["requestq"]["bytes_written"])
    start = stream.find(read[2][:16])
    assert pieces(read[1], stream[:start], 16) < READ_BYTES // SHORT_BUFFER_BYTES // 2
    assert pieces(read[2], stream[start:], 16) < READ_BYTES // SHORT_BUFFER_BYTES // 2
