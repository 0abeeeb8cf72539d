"""Memory that comes and goes while Linux's virtio_blk works: DIMMs plugged into QEMU, whose pages
hold the buffers of requests, with the disk busy throughout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from virtq.features import RingKind

from .peers.availability import require
from .peers.guest import GUEST_TIMEOUT_S, GuestConfig, LinuxGuest, vhost_user
from .serving import Serving
from .test_linux_blk import check_queues

pytestmark = pytest.mark.interop

MIB = 1 << 20
MEMORY_MIB = 192
DIMM_MIB = 256
DATA_MIB = 64
"""More than this guest has free without the DIMM (about 44 MiB)."""
SMALL_MIB = 1

# Movable memory is where Linux takes a process's buffers from first. DIMMs begin at 4 GiB, and
# a block of memory has 128 MiB: the first is number 32.
SCRIPT = f"""
set -e
echo online_movable >/sys/devices/system/memory/auto_online_blocks
copy() {{
    dd if=/dev/vda of=/dev/vda bs=$1 count=$2 seek=$3 iflag=direct oflag=direct 2>/dev/null
}}
(
    while copy 32k {SMALL_MIB * 32} {2 * DATA_MIB * 32} && ! [ -e /tmp/enough ]; do echo round; done
    echo end of rounds
) &
plugged() {{
    cat /sys/devices/system/memory/memory3[2-5]/state 2>/dev/null | grep -c online || true
}}
while read -r wanted; do
    until [ "$(plugged)" = "$wanted" ]; do sleep 0.05; done
    echo plugged $wanted
    if [ "$wanted" = {DIMM_MIB // 128} ]; then
        copy {DATA_MIB}M 1 1
        echo copied
    fi
    [ "$wanted" != 0 ] || break
done
touch /tmp/enough
wait
"""


@pytest.mark.parametrize(
    ("kind", "protocol"),
    [
        pytest.param(RingKind.SPLIT, "", id="split-one-region-at-a-time"),
        pytest.param(RingKind.PACKED_IN_ORDER, "-CONFIGURE_MEM_SLOTS", id="packed-in-order-tables"),
    ],
)
def test_memory_comes_and_goes_under_a_busy_disk(
    kind: RingKind, protocol: str, tmp_path: Path
) -> None:
    require("qemu")
    image, socket_path = tmp_path / "disk", tmp_path / "disk.sock"
    data = np.random.Generator(np.random.SFC64(6)).bytes(DATA_MIB * MIB)
    with image.open("wb") as file:
        file.write(data)
        file.truncate((2 * DATA_MIB + SMALL_MIB) * MIB)
    wanted = {"packed": kind.packed, "in_order": kind.in_order}
    config = GuestConfig(
        SCRIPT,
        [
            *("-m", "slots=4,maxmem=2G"),
            *vhost_user("vhost-user-blk-pci", socket_path, properties=wanted),
        ],
        modules=["virtio_blk"],
        memory_mib=MEMORY_MIB,
        machine="q35",
        timeout_s=GUEST_TIMEOUT_S,
    )
    with Serving("blk", image, "--protocol", protocol, socket_path=socket_path) as disk:
        with LinuxGuest(config) as guest:
            guest.wait_for("round")
            for number in (0, 1):
                plug(guest, number)
                guest.send(f"{(number + 1) * DIMM_MIB // 128}\n")
                guest.wait_for(f"plugged {(number + 1) * DIMM_MIB // 128}\n")
                if number == 0:
                    guest.wait_for("copied")
                guest.wait_for("round")
            for number in (1, 0):
                unplug(guest, number)
                guest.send(f"{number * DIMM_MIB // 128}\n")
                guest.wait_for(f"plugged {number * DIMM_MIB // 128}\n")
                if number == 1:
                    guest.wait_for("copied")
                    guest.wait_for("round")
            guest.wait_for("end of rounds")
            guest.result().check()
        report = disk.end()

    check_queues(report, kind, front_ends=1)
    with image.open("rb") as file:
        written = file.read()
    assert written[: DATA_MIB * MIB] == data
    assert written[DATA_MIB * MIB : 2 * DATA_MIB * MIB] == data
    assert written[2 * DATA_MIB * MIB :] == data[: SMALL_MIB * MIB]


def plug(guest: LinuxGuest, number: int) -> None:
    memory, dimm = f"more{number}", f"dimm{number}"
    guest.qmp.execute(
        "object-add",
        {"qom-type": "memory-backend-memfd", "id": memory, "size": DIMM_MIB * MIB, "share": True},
    )
    guest.qmp.execute("device_add", {"driver": "pc-dimm", "id": dimm, "memdev": memory})


def unplug(guest: LinuxGuest, number: int) -> None:
    """Linux moves what the DIMM holds elsewhere, then lets go of it."""
    guest.qmp.execute("device_del", {"id": f"dimm{number}"})
    guest.qmp.wait_event("DEVICE_DELETED", GUEST_TIMEOUT_S)
    guest.qmp.execute("object-del", {"id": f"more{number}"})
