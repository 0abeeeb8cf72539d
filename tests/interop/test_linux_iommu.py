"""A disk and a network behind an IOMMU: Linux maps every buffer for its request alone, QEMU's Intel
IOMMU with a device IOTLB translates, and the back-end asks it for every page that it has not seen.

In order with `iommu.strict=1`: each unmapping is an invalidation at once, and they come while the
other processor's requests are on their way. In any order without it: Linux collects what it
unmaps, and invalidates everything every now and then.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from virtq.features import F, RingKind

from .peers.availability import require
from .peers.guest import GUEST_TIMEOUT_S, GuestConfig, LinuxGuest, vhost_user, vhost_user_net
from .serving import Report, Serving
from .test_linux_blk import digest, parse_features
from .test_linux_net import GUEST_ADDRESS, HOST_ADDRESS, Namespace, receive, send

pytestmark = pytest.mark.interop

MIB = 1 << 20
PAGE_BYTES = 4096
REQUEST_BYTES = 32 << 10
DATA_BYTES = MIB
REQUESTS = DATA_BYTES // REQUEST_BYTES
KIND_BITS = F.RING_PACKED | F.IN_ORDER

# ATS is a capability of PCI Express: each device sits behind a root port.
IOMMU = [
    *("-device", "intel-iommu,intremap=on,device-iotlb=on"),
    *("-device", "pcie-root-port,id=port0,chassis=1,slot=1"),
    *("-device", "pcie-root-port,id=port1,chassis=2,slot=2"),
]
TRANSLATED = {"iommu_platform": True, "ats": True}
OFFER = ("--offer", "+ACCESS_PLATFORM")

# The first half of the disk is the host's; each processor copies half of it to the second half.
SCRIPT = f"""
set -e
cat /sys/kernel/iommu_groups/*/type | tail -n 1
cat /sys/block/vda/device/features /sys/class/net/eth0/device/features
copy() {{
    dd if=/dev/vda of=/dev/vda bs={REQUEST_BYTES} skip=$1 seek=$(($1 + {REQUESTS})) \
        count={REQUESTS // 2} iflag=direct oflag=direct 2>/dev/null
}}
copy 0 &
copy {REQUESTS // 2} &
wait
dd if=/dev/vda bs=1M count={DATA_BYTES // MIB} 2>/dev/null | sha256sum

ip address add {GUEST_ADDRESS}/24 dev eth0
ip link set eth0 up
read -r port
nc {HOST_ADDRESS} $port -e dd of=/tmp/data bs=1M 2>/dev/null
sha256sum </tmp/data
nc {HOST_ADDRESS} $port -e cat /tmp/data
read -r received
"""


def check(report: Report, features: int, kind: RingKind) -> None:
    assert features & F.ACCESS_PLATFORM
    assert features & KIND_BITS == kind.features
    assert report.negotiated & (KIND_BITS | F.ACCESS_PLATFORM) == kind.features | F.ACCESS_PLATFORM
    assert report.front_ends == 1
    assert report.remarks == ()


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_a_disk_and_a_network_behind_an_iommu(kind: RingKind, tmp_path: Path) -> None:
    require("qemu")
    image, disk_path, net_path = (tmp_path / name for name in ("disk", "disk.sock", "net.sock"))
    data = np.random.Generator(np.random.SFC64(4)).bytes(DATA_BYTES)
    image.write_bytes(data + bytes(DATA_BYTES))
    strict = kind.in_order
    card = TRANSLATED | {"packed": kind.packed, "in_order": kind.in_order}
    disk_card = card | {"bus": "port0", "num-queues": 2}
    config = GuestConfig(
        SCRIPT,
        [
            *IOMMU,
            *vhost_user("vhost-user-blk-pci", disk_path, properties=disk_card),
            *vhost_user_net(net_path, properties=card | {"bus": "port1"}),
        ],
        cpus=2,
        machine="q35,kernel-irqchip=split",
        kernel_parameters=f"intel_iommu=on iommu.passthrough=0 iommu.strict={int(strict)}",
        timeout_s=GUEST_TIMEOUT_S,
    )
    with (
        Namespace() as namespace,
        Serving("blk", image, "--queues", 2, *OFFER, socket_path=disk_path) as disk,
        Serving(
            *("net", "--tap", namespace.TAP, *OFFER),
            socket_path=net_path,
            namespace=namespace.name,
        ) as network,
        namespace.listen() as listener,
    ):
        with LinuxGuest(config) as guest:
            assert guest.wait_for(r"(.+)\n")[1].decode() == ("DMA" if strict else "DMA-FQ")
            disk_features = parse_features(guest.wait_for(r"([01]+)\n")[1])
            net_features = parse_features(guest.wait_for(r"([01]+)\n")[1])
            assert guest.wait_for(r"([0-9a-f]{64})")[1].decode() == digest(data)
            guest.send(f"{listener.getsockname()[1]}\n")
            send(listener, data)
            assert guest.wait_for(r"([0-9a-f]{64})")[1].decode() == digest(data)
            assert receive(listener) == (len(data), digest(data))
            guest.send("received\n")
            guest.result().check()
        disk_report, net_report = disk.end(), network.end()

    check(disk_report, disk_features, kind)
    check(net_report, net_features, kind)
    assert image.read_bytes()[DATA_BYTES:] == data
    misses = 0
    for counters in disk_report.queues.values():
        assert counters["errors"] == counters["unsupported"] == 0
        misses += counters["translation_misses"]
    # Invalidated as soon as it is unmapped, each page of a request misses anew.
    copied = 2 * REQUESTS
    assert misses >= (copied * REQUEST_BYTES // PAGE_BYTES if strict else copied)
    for counters in net_report.queues.values():
        assert counters["bytes"] > len(data)
        assert counters["translation_misses"] > 0
