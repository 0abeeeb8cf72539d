"""A guest that runs at its new place before its memory has arrived there (postcopy migration): its
first deed is to write to the disk what it had in its page cache, so the back-end meets pages that
are not there yet."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from virtq.features import RingKind
from virtq.transports.vhost_user import postcopy

from .peers.availability import require
from .peers.guest import GUEST_TIMEOUT_S, GuestConfig, GuestError, LinuxGuest, vhost_user
from .serving import Serving
from .test_linux_blk import digest

pytestmark = pytest.mark.interop

MIB = 1 << 20
DATA_MIB = 16
PRECOPY_BYTES_PER_S = MIB
"""So little that nearly everything is left for later; postcopy itself has no such limit."""

# Nothing is written to the disk until it is told to be; the last one to close the disk would.
SCRIPT = f"""
set -e
echo 0 >/proc/sys/vm/dirty_writeback_centisecs
for ratio in dirty_ratio dirty_background_ratio; do echo 90 >/proc/sys/vm/$ratio; done
exec 4<>/dev/vda
dd if=/dev/vda of=/dev/vda bs=1M count={DATA_MIB} seek={DATA_MIB} 2>/dev/null
echo dirty
read -r moved
sync
echo synced
dd if=/dev/vda bs=1M count={DATA_MIB} iflag=direct 2>/dev/null | sha256sum
"""


@pytest.mark.parametrize("kind", [RingKind.PACKED_IN_ORDER], ids=str)
def test_a_disk_whose_guest_has_yet_to_arrive(kind: RingKind, tmp_path: Path) -> None:
    require("qemu")
    if not postcopy.is_possible():
        pytest.skip("this process may not have a userfaultfd")
    image = tmp_path / "disk"
    data = np.random.Generator(np.random.SFC64(10)).bytes(DATA_MIB * MIB)
    image.write_bytes(data + bytes(len(data)))
    properties = {"packed": kind.packed, "in_order": kind.in_order}
    sockets = [tmp_path / "here", tmp_path / "there"]
    here, there = (
        GuestConfig(
            SCRIPT,
            vhost_user("vhost-user-blk-pci", socket_path, properties=properties),
            ["virtio_blk"],
            memory_mib=192,
            timeout_s=GUEST_TIMEOUT_S,
        )
        for socket_path in sockets
    )
    with (
        Serving("blk", image, socket_path=sockets[0]) as at_home,
        Serving("blk", image, socket_path=sockets[1]) as abroad,
        ExitStack() as behind,
    ):
        guest = behind.enter_context(LinuxGuest(here))
        guest.wait_for("dirty\n")
        with LinuxGuest(there, heir_of=guest) as heir:
            begin(guest, heir, tmp_path / "move")
            assert image.read_bytes()[len(data) :] == bytes(len(data))
            heir.send("moved\n")
            heir.wait_for("synced\n")
            assert heir.wait_for(r"([0-9a-f]{64})")[1].decode() == digest(data)
            info = wait_for(guest, "completed")
            behind.close()
            heir.result().check()
        reports = [at_home.end(), abroad.end()]

    assert image.read_bytes() == data + data
    assert info["ram"]["postcopy-requests"] > 0
    for report in reports:
        assert report.front_ends == 1
        assert report.remarks == ()
        assert report.queues["requestq1"]["errors"] == 0
    assert reports[1].queues["requestq1"]["bytes_read"] > len(data)


def begin(guest: LinuxGuest, heir: LinuxGuest, socket_path: Path) -> None:
    """Migrate, and return when the guest runs at its new place, most of its memory here."""
    capability = {"capabilities": [{"capability": "postcopy-ram", "state": True}]}
    for one in (guest, heir):
        one.qmp.execute("migrate-set-capabilities", capability)
    guest.qmp.execute("migrate-set-parameters", {"max-bandwidth": PRECOPY_BYTES_PER_S})
    heir.qmp.execute("migrate-incoming", {"uri": f"unix:{socket_path}"})
    guest.qmp.execute("migrate", {"uri": f"unix:{socket_path}"})
    wait_for(guest, "active")
    guest.qmp.execute("migrate-start-postcopy")
    deadline = time.monotonic() + GUEST_TIMEOUT_S
    while heir.qmp.execute("query-status")["status"] != "running":
        if time.monotonic() > deadline:
            raise GuestError(f"the guest does not run at its new place\n{heir.qemu_log}")
        time.sleep(0.01)


def wait_for(guest: LinuxGuest, status: str) -> dict[str, dict[str, int]]:
    """What QEMU tells of the migration once it has this status."""
    deadline = time.monotonic() + GUEST_TIMEOUT_S
    while (info := guest.qmp.execute("query-migrate")).get("status") != status:
        if info.get("status") in ("failed", "cancelled") or time.monotonic() > deadline:
            raise GuestError(f"migration: {info}\n{guest.qemu_log}")
        time.sleep(0.01)
    found: dict[str, dict[str, int]] = info
    return found
