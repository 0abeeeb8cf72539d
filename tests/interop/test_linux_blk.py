"""Linux's virtio_blk in QEMU, on disks of `virtq serve blk`, over every kind of ring."""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from virtq.features import F, RingKind
from virtq.wire.blk import BlkFeature

from .peers.availability import require
from .peers.guest import GUEST_TIMEOUT_S, GuestConfig, LinuxGuest, run_guest, vhost_user
from .serving import Report, Serving

pytestmark = pytest.mark.interop

MIB = 1 << 20
DATA_BYTES = 256 * MIB
SMALL_DATA_BYTES = 8 * MIB
KIND_BITS = F.RING_PACKED | F.IN_ORDER
ALWAYS_NEGOTIATED = (
    F.INDIRECT_DESC
    | F.EVENT_IDX
    | F.VERSION_1
    | F.RING_RESET
    | BlkFeature.FLUSH
    | BlkFeature.CONFIG_WCE
    | BlkFeature.MQ
    | BlkFeature.DISCARD
    | BlkFeature.WRITE_ZEROES
)

# Offsets and counts in MiB, then options of dd: "direct" goes past the guest's page cache, without
# it Linux reads ahead and writes many requests at a time.
TOOLS: Mapping[str, bytes] = {
    "digest": rb"""#!/bin/sh
        dd if=/dev/vda bs=1M skip=$1 count=$2 $3 2>/dev/null | sha256sum | cut -d' ' -f1
    """,
    "copy": rb"""#!/bin/sh
        dd if=/dev/vda of=/dev/vda bs=1M skip=$1 seek=$2 count=$3 $4 conv=fsync 2>/dev/null
    """,
    "overwrite": rb"""#!/bin/sh
        while dd if=/dev/zero of=/dev/vda bs=1M seek=$1 count=$2 oflag=direct 2>/dev/null
        do echo overwritten $1
        done
    """,
}

# The disk in MiB: 0 to 256 is what the host made, 256 to 512 where the guest copies it to. Each
# processor has a queue of its own, and takes one half of it.
LIFE_OF_A_GUEST = """
case $BOOT in
1)
    cat /sys/bus/virtio/devices/virtio0/features
    ls /sys/block/vda/mq | wc -l
    taskset 1 /data/digest 0 128 iflag=direct >/tmp/low &
    taskset 2 /data/digest 128 128 >/tmp/high &
    wait
    cat /tmp/low /tmp/high
    taskset 1 /data/copy 0 256 128 oflag=direct &
    taskset 2 /data/copy 128 384 128 &
    wait
    reboot -f
    ;;
2)
    /data/digest 376 16
    read -r go
    blkdiscard -o 0 -l $((64 << 20)) /dev/vda
    /data/digest 24 8
    /data/copy 256 0 16 && echo synced
    # Two of them: while one is between its rounds, the other is in the middle of a write.
    taskset 1 /data/overwrite 64 32 &
    taskset 2 /data/overwrite 96 32 &
    wait
    ;;
esac
"""

LIFE_OF_ITS_HEIR = """
set -e
/data/digest 0 16
/data/digest 376 16 iflag=direct
/data/copy 256 32 8
/data/copy 264 40 8 oflag=direct
"""

SMALL_LIFE = """
set -e
cat /sys/bus/virtio/devices/virtio0/features
/data/digest 0 8
dd if=/dev/vda of=/dev/vda bs=16k seek=512 count=256 oflag=direct 2>/dev/null
dd if=/dev/vda of=/dev/vda bs=1M skip=4 seek=12 count=4 conv=fsync 2>/dev/null
"""


@dataclass(frozen=True)
class Data:
    """Random bytes in a file, and in memory."""

    path: Path
    content: memoryview

    def digest(self, start_mib: int, count_mib: int) -> str:
        """What the guest's `digest` prints of that part."""
        return digest(self.content[start_mib * MIB : (start_mib + count_mib) * MIB])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Data]:
    path = tmp_path_factory.mktemp("data") / "data"
    words = np.random.Generator(np.random.SFC64(2)).integers(
        0, 1 << 64, DATA_BYTES // 8, dtype=np.uint64
    )
    words.tofile(path)
    yield Data(path, words.data.cast("B"))
    path.unlink()


def digest(content: memoryview | mmap.mmap | bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def parse_features(shown: bytes) -> int:
    """From sysfs, where they are one character per bit, bit 0 first."""
    return int(shown[::-1], 2)


def disk_card(socket_path: Path, **properties: object) -> list[str]:
    return vhost_user("vhost-user-blk-pci", socket_path, properties=properties)


def allocated_bytes(path: Path) -> int:
    """Once all of it is on disk: until then the file system may still be finding room for it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_blocks * 512


def check_queues(report: Report, kind: RingKind, front_ends: int) -> None:
    """What every report says of a disk on which all went well."""
    assert report.front_ends == front_ends
    assert report.remarks == ()
    assert report.negotiated & KIND_BITS == kind.features
    for counters in report.queues.values():
        assert counters["errors"] == counters["unsupported"] == 0
        assert 0 < counters["used_entries"] <= counters["buffers"]
        assert 0 < counters["kicks_received"] <= counters["buffers"]


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_a_disk_outlives_reboot_and_sudden_death_of_its_guest(
    kind: RingKind, data: Data, tmp_path: Path
) -> None:
    require("qemu")
    image, socket_path = tmp_path / "disk", tmp_path / "disk.sock"
    shutil.copyfile(data.path, image)
    os.truncate(image, 2 * DATA_BYTES)
    card = disk_card(socket_path, packed=kind.packed, in_order=kind.in_order, **{"num-queues": 2})
    config = GuestConfig(
        LIFE_OF_A_GUEST,
        card,
        modules=["virtio_blk"],
        files=TOOLS,
        cpus=2,
        reboots=1,
        timeout_s=GUEST_TIMEOUT_S,
    )
    with Serving("blk", image, "--queues", 2, socket_path=socket_path) as disk:
        with LinuxGuest(config) as guest:
            features = parse_features(guest.wait_for(r"([01]+)\n")[1])
            assert features & KIND_BITS == kind.features
            assert features & ALWAYS_NEGOTIATED == ALWAYS_NEGOTIATED
            assert int(guest.wait_for(r"(\d+)\n")[1]) == 2
            for start_mib in (0, 128):
                seen = guest.wait_for(r"([0-9a-f]{64})\n")[1].decode()
                assert seen == data.digest(start_mib, 128)

            seen = guest.wait_for(r"([0-9a-f]{64})\n")[1].decode()
            assert guest.boots == 2
            assert seen == data.digest(120, 16)

            before_bytes = allocated_bytes(image)
            guest.send("go\n")
            seen = guest.wait_for(r"([0-9a-f]{64})\n")[1].decode()
            assert seen == digest(bytes(8 * MIB))
            freed_bytes = before_bytes - allocated_bytes(image)
            assert freed_bytes >= 63 * MIB

            guest.wait_for("synced")
            rounds = {64: 0, 96: 0}
            while min(rounds.values()) < 2:
                rounds[int(guest.wait_for(r"overwritten (\d+)\r?\n")[1])] += 1
            guest.kill()
        heir = run_guest(
            GuestConfig(LIFE_OF_ITS_HEIR, card, ["virtio_blk"], TOOLS, timeout_s=GUEST_TIMEOUT_S)
        )
        assert heir.text.split() == [data.digest(0, 16), data.digest(120, 16)]
        report = disk.end()

    assert report.negotiated == features
    check_queues(report, kind, front_ends=2)
    assert set(report.queues) == {"requestq1", "requestq2"}
    assert all(counters["reads"] > 100 for counters in report.queues.values())
    assert all(counters["writes"] > 100 for counters in report.queues.values())
    for once in ("flushes", "discards"):
        assert sum(counters[once] for counters in report.queues.values()) > 0
    with image.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
        assert digest(content[DATA_BYTES:]) == data.digest(0, 256)
        assert content[: 16 * MIB] == data.content[: 16 * MIB]
        assert content[16 * MIB : 32 * MIB] == bytes(16 * MIB)
        assert content[32 * MIB : 48 * MIB] == data.content[: 16 * MIB]
        assert content[48 * MIB : 64 * MIB] == bytes(16 * MIB)
        assert content[64 * MIB : 128 * MIB] == bytes(64 * MIB)
        assert content[128 * MIB : DATA_BYTES] == data.content[128 * MIB :]


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_a_guest_gets_the_features_that_are_offered_and_no_others(
    kind: RingKind, data: Data, tmp_path: Path
) -> None:
    require("qemu")
    image, socket_path = tmp_path / "disk", tmp_path / "disk.sock"
    small = data.content[:SMALL_DATA_BYTES]
    with image.open("wb") as file:
        file.write(small)
        file.truncate(2 * SMALL_DATA_BYTES)
    offer = ["-EVENT_IDX", "-INDIRECT_DESC", "-RING_RESET"]
    offer += [("+" if kind.features & bit else "-") + str(bit.name) for bit in KIND_BITS]
    card = disk_card(socket_path, packed=True, in_order=True)
    with Serving("blk", image, "--offer", ",".join(offer), socket_path=socket_path) as disk:
        result = run_guest(
            GuestConfig(SMALL_LIFE, card, ["virtio_blk"], TOOLS, timeout_s=GUEST_TIMEOUT_S)
        )
        report = disk.end()

    shown, seen = result.text.split()
    features = parse_features(shown.encode())
    assert features == report.negotiated
    assert features & ~report.offered == 0
    assert features & (KIND_BITS | F.EVENT_IDX | F.INDIRECT_DESC | F.RING_RESET) == kind.features
    assert features & F.VERSION_1
    assert features & BlkFeature.MQ == 0
    check_queues(report, kind, front_ends=1)
    assert seen == data.digest(0, 8)
    assert digest(image.read_bytes()[SMALL_DATA_BYTES:]) == digest(small)
