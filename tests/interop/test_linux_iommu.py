"""Devices behind an IOMMU: Linux maps every buffer for its request alone, QEMU's Intel IOMMU with
a device IOTLB translates, and the back-end asks it for every page that it has not seen.

With `iommu.strict=1` each unmapping is an invalidation at once, so they come while the other
processor's requests are on their way; without it Linux collects them and invalidates everything.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from virtq.features import F, RingKind

from .peers.availability import require
from .peers.guest import GuestConfig, LinuxGuest, run_guest, vhost_user, vhost_user_net
from .serving import Serving
from .test_linux_blk import digest, parse_features
from .test_linux_net import HOST_ADDRESS, Namespace, namespace, receive, send

__all__ = ["namespace"]

pytestmark = pytest.mark.interop

MIB = 1 << 20
KIB = 1 << 10
PAGE_BYTES = 4 * KIB
DISK_BYTES = 2 * MIB
TCP_BYTES = 2 * MIB
GUEST_TIMEOUT_S = 90.0
KIND_BITS = F.RING_PACKED | F.IN_ORDER

# ATS is a capability of PCI Express: the device sits behind a root port.
IOMMU = [
    *("-device", "intel-iommu,intremap=on,device-iotlb=on"),
    *("-device", "pcie-root-port,id=port0,chassis=1,slot=1"),
]
BEHIND_IT = {"bus": "port0", "iommu_platform": True, "ats": True}

# In KiB, the first half of the disk is the host's; each processor copies its part of it.
DISK_SCRIPT = f"""
set -e
cat /sys/kernel/iommu_groups/*/type | tail -n 1
cat /sys/bus/virtio/devices/virtio0/features
copy() {{
    dd if=/dev/vda of=/dev/vda bs=32k skip=$1 seek=$(($1 + {DISK_BYTES // KIB // 32})) \
        count={DISK_BYTES // KIB // 64} iflag=direct oflag=direct 2>/dev/null
}}
for half in 0 {DISK_BYTES // KIB // 64}; do
    copy $half &
done
wait
dd if=/dev/vda bs=1M count={DISK_BYTES // MIB} 2>/dev/null | sha256sum | cut -d' ' -f1
"""

NET_SCRIPT = f"""
ip address add 192.0.2.1/24 dev eth0
ip link set eth0 up
cat /sys/class/net/eth0/device/features
read -r port
nc {HOST_ADDRESS} $port -e dd of=/tmp/data bs=1M 2>/dev/null
sha256sum </tmp/data
nc {HOST_ADDRESS} $port -e cat /tmp/data
"""


def behind_an_iommu(script: str, card: list[str], module: str, *, strict: bool) -> GuestConfig:
    return GuestConfig(
        script,
        [*IOMMU, *card],
        modules=[module],
        cpus=2,
        machine="q35,kernel-irqchip=split",
        kernel_parameters=f"intel_iommu=on iommu.passthrough=0 iommu.strict={int(strict)}",
        timeout_s=GUEST_TIMEOUT_S,
    )


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_a_disk_behind_an_iommu(kind: RingKind, tmp_path: Path) -> None:
    require("qemu")
    image, socket_path = tmp_path / "disk", tmp_path / "disk.sock"
    content = np.random.Generator(np.random.SFC64(4)).bytes(DISK_BYTES)
    image.write_bytes(content + bytes(DISK_BYTES))
    wanted = {"packed": kind.packed, "in_order": kind.in_order, "num-queues": 2}
    card = vhost_user("vhost-user-blk-pci", socket_path, properties=BEHIND_IT | wanted)
    strict = kind.in_order
    with Serving(
        "blk", image, "--queues", 2, "--offer", "+ACCESS_PLATFORM", socket_path=socket_path
    ) as disk:
        config = behind_an_iommu(DISK_SCRIPT, card, "virtio_blk", strict=strict)
        domain, shown, seen = run_guest(config).text.split()
        report = disk.end()

    assert domain == ("DMA" if strict else "DMA-FQ")
    features = parse_features(shown.encode())
    assert features & F.ACCESS_PLATFORM
    assert features & KIND_BITS == kind.features
    assert features == report.negotiated
    assert seen == digest(content)
    assert image.read_bytes()[DISK_BYTES:] == content
    assert report.remarks == ()
    assert report.front_ends == 1
    misses = 0
    for counters in report.queues.values():
        assert counters["errors"] == counters["unsupported"] == 0
        assert counters["reads"] and counters["writes"]
        misses += counters["translation_misses"]
    # Each of the two copies' pages was mapped at least once, and asked for at least once in a
    # while: Linux hands an address out again only after its invalidation.
    print("MISSES", misses, report)
    assert misses >= 2 * DISK_BYTES // PAGE_BYTES // 64


@pytest.mark.parametrize(
    "kind", [RingKind.SPLIT, RingKind.PACKED_IN_ORDER], ids=str
)
def test_a_network_behind_an_iommu(kind: RingKind, namespace: Namespace, tmp_path: Path) -> None:
    require("qemu")
    socket_path = tmp_path / "net.sock"
    data = np.random.Generator(np.random.SFC64(5)).bytes(TCP_BYTES)
    sent = hashlib.sha256(data).hexdigest()
    wanted = {"packed": kind.packed, "in_order": kind.in_order}
    card = vhost_user_net(socket_path, properties=BEHIND_IT | wanted)
    options = ["net", "--tap", namespace.TAP, "--offer", "+ACCESS_PLATFORM"]
    with (
        Serving(*options, socket_path=socket_path, namespace=namespace.name) as network,
        namespace.listen() as listener,
    ):
        config = behind_an_iommu(NET_SCRIPT, card, "virtio_net", strict=kind.in_order)
        with LinuxGuest(config) as guest:
            features = parse_features(guest.wait_for(r"([01]+)\n")[1])
            guest.send(f"{listener.getsockname()[1]}\n")
            send(listener, data)
            assert guest.wait_for(r"([0-9a-f]{64})")[1].decode() == sent
            assert receive(listener) == (len(data), sent)
            guest.result().check()
        report = network.end()

    assert features & F.ACCESS_PLATFORM
    assert features & KIND_BITS == kind.features
    assert report.negotiated & F.ACCESS_PLATFORM
    assert report.remarks == ()
    for name in ("receiveq1", "transmitq1"):
        assert report.queues[name]["bytes"] > len(data)
        assert report.queues[name]["translation_misses"] > 0
