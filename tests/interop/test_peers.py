"""The peers with one another, without virtq: what the harness says of them can be relied upon."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from pathlib import Path

import pytest

from .peers.availability import require
from .peers.guest import (
    GuestConfig,
    GuestError,
    GuestStalled,
    LinuxGuest,
    run_guest,
    vhost_user,
    vhost_user_net,
)
from .peers.hugepages import reserve
from .peers.process import PeerError
from .peers.qsd import BlockExport, StorageDaemon
from .peers.testpmd import Testpmd, TestpmdConfig, TestpmdError, VhostPort, VirtioUserPort
from .serving import Serving
from .waiting import wait_until

pytestmark = [pytest.mark.interop, pytest.mark.alone]

MIB = 1 << 20
MAP_HUGETLB = 0x40000
VIRTIO_F_VERSION_1 = 32
VIRTIO_F_RING_PACKED = 34
VIRTIO_F_IN_ORDER = 35

BLK_SCRIPT = """
case $BOOT in
1)
    sha256sum </dev/vda
    cat /sys/bus/virtio/devices/virtio0/features
    printf 'written by boot 1' | dd of=/dev/vda conv=fsync 2>/dev/null
    reboot -f
    ;;
2)
    head -c 17 /dev/vda
    blkdiscard -o 1048576 -l 1048576 /dev/vda && echo && echo discarded
    ;;
esac
"""

NET_SCRIPT = """
ip address add 192.0.2.1/24 dev eth0
ip link set eth0 up
ping -c 3 -i 0.1 -W 5 192.0.2.2
ls -d /sys/class/net/eth0/queues/rx-* | wc -l
cat /sys/class/net/eth0/device/features
echo finished
read -r anything
"""

STALL_SCRIPT = """
echo "<0>rcu: rcu_preempt kthread timer wakeup didn't happen for 5249 jiffies!" > /dev/kmsg
echo told
read -r anything
"""


def test_linux_guest_uses_a_disk_of_the_storage_daemon_across_a_reboot(tmp_path: Path) -> None:
    require("qemu")
    require("qemu-storage-daemon")
    image = tmp_path / "disk"
    image.write_bytes(os.urandom(4 * MIB))
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    export = BlockExport(tmp_path / "blk.sock", image, queues=2)
    with StorageDaemon(export) as daemon:
        assert daemon.monitor.execute("query-block-exports")[0]["type"] == "vhost-user-blk"
        disk = vhost_user("vhost-user-blk-pci", export.socket_path, properties={"num-queues": 2})
        config = GuestConfig(BLK_SCRIPT, disk, modules=["virtio_blk"], reboots=1)
        result = run_guest(config)

    first, second = (boot.decode().split() for boot in result.boots)
    assert first[0] == digest
    # One character per bit, bit 0 first.
    features = first[2]
    assert features[VIRTIO_F_VERSION_1] == "1"
    assert features[VIRTIO_F_RING_PACKED] == "0"
    assert " ".join(second) == "written by boot 1 discarded"
    disk_after = image.read_bytes()
    assert disk_after[MIB : 2 * MIB] == bytes(MIB)
    assert disk_after.startswith(b"written by boot 1")


def test_linux_guest_pings_testpmd_and_is_killed(tmp_path: Path) -> None:
    require("qemu")
    require("dpdk")
    socket_path = tmp_path / "net.sock"
    both = {"packed": True, "in_order": True, "mac": "52:54:00:12:34:56"}
    with Testpmd(TestpmdConfig(VhostPort(socket_path, queues=2))) as device:
        device.start("icmpecho")
        card = vhost_user_net(socket_path, queues=2, properties=both)
        config = GuestConfig(NET_SCRIPT, card, modules=["virtio_net"], cpus=2)
        with LinuxGuest(config) as guest:
            answers = guest.wait_for(r"(\d+) packets received")
            assert int(answers[1]) == 3
            assert int(guest.wait_for(r"(\d+)\n")[1]) == 2
            shown = guest.wait_for(r"([01]+)\nfinished")[1].decode()
            agreed = device.negotiated_features()
            for bit in (VIRTIO_F_VERSION_1, VIRTIO_F_RING_PACKED, VIRTIO_F_IN_ORDER):
                assert agreed >> bit & 1
                assert shown[bit] == "1"
            device.wait_link(up=True)
            guest.kill()
            device.wait_link(up=False)
            with pytest.raises(GuestError, match="without an exit status"):
                guest.result()
        assert device.stop().rx_packets >= 3


def test_a_guest_whose_kernel_misses_its_timer_is_given_up_before_its_time_is_up() -> None:
    require("qemu")
    config = GuestConfig(STALL_SCRIPT, modules=[], timeout_s=600.0)
    with (
        LinuxGuest(config) as guest,
        pytest.raises(GuestStalled, match="timer interrupts stay away"),
    ):
        guest.result()


@pytest.mark.parametrize(("cpus", "error"), [(1, GuestError), (2, GuestStalled)])
def test_a_guest_of_several_processors_that_does_not_come_to_its_init_has_stalled(
    cpus: int, error: type[GuestError]
) -> None:
    require("qemu")
    with LinuxGuest(GuestConfig("echo here\n", modules=[], cpus=cpus, timeout_s=4.0)) as guest:
        guest.qmp.execute("stop")
        with pytest.raises(GuestError, match=r"ran out of its 4\.0 s") as raised:
            guest.result()
    assert raised.type is error


def test_a_guest_of_several_processors_that_runs_out_of_time_later_has_not_stalled() -> None:
    require("qemu")
    config = GuestConfig("echo here\nread -r anything\n", modules=[], cpus=2, timeout_s=20.0)
    with LinuxGuest(config) as guest:
        guest.wait_for("here")
        with pytest.raises(GuestError, match=r"ran out of its 20\.0 s") as raised:
            guest.result()
    assert raised.type is GuestError


def test_what_fails_beside_a_guest_that_stalls_is_its_doing() -> None:
    require("qemu")

    def fail_beside_it() -> None:
        with LinuxGuest(GuestConfig(STALL_SCRIPT, modules=[])) as guest:
            guest.wait_for("told")
            wait_until(lambda: "timer wakeup" in guest.console)
            raise TimeoutError("of another side")

    with pytest.raises(GuestStalled, match="timer interrupts stay away") as raised:
        fail_beside_it()
    assert isinstance(raised.value.__cause__, TimeoutError)


def test_what_fails_beside_a_guest_and_a_device_says_what_they_said(tmp_path: Path) -> None:
    require("qemu")
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    socket_path = tmp_path / "blk.sock"
    card = vhost_user("vhost-user-blk-pci", socket_path)
    script = "cat /dev/vda >/dev/null; echo I have read it >&2; echo done; read -r anything\n"

    def fail_beside_them() -> None:
        with (
            Serving("blk", image, socket_path=socket_path),
            LinuxGuest(GuestConfig(script, card)) as guest,
        ):
            guest.wait_for("done")
            wait_until(lambda: "I have read it" in guest.console)
            raise TimeoutError("of another side")

    with pytest.raises(TimeoutError, match="of another side") as raised:
        fail_beside_them()
    of_guest, of_device = raised.value.__notes__
    assert "I have read it" in of_guest
    assert "exited 0" in of_device
    (device,) = json.loads(of_device[of_device.index("{") :])["devices"]
    assert device["queues"]["requestq1"]["buffers"] > 0


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_testpmd_passes_packets_to_testpmd(tmp_path: Path, packed: bool) -> None:
    require("dpdk")
    socket_path = tmp_path / "net.sock"
    driver_port = VirtioUserPort(socket_path, packed=packed, in_order=True, mrg_rxbuf=False)
    with (
        Testpmd(TestpmdConfig(VhostPort(socket_path), cpus=[0])) as device,
        Testpmd(TestpmdConfig(driver_port, cpus=[1])) as driver,
    ):
        device.wait_link()
        device.start("macswap")
        driver.set_packet(200)
        driver.start("io", tx_first_bursts=1)
        driver.wait_stats(lambda stats: stats.rx_packets >= 1000)
        sent = driver.stop()
        assert sent.tx_packets >= 1000
        forwarded = device.stop()
        assert 1000 <= forwarded.rx_packets <= sent.tx_packets

        stats = driver.port_stats()
        assert stats.tx_packets == sent.tx_packets
        assert stats.tx_bytes == 200 * stats.tx_packets
        assert driver.extended_stats()["tx_q0_good_packets"] == sent.tx_packets
        assert driver.negotiated_features() == device.negotiated_features()
        assert driver.negotiated_features() >> VIRTIO_F_IN_ORDER & 1
        assert driver.negotiated_features() >> VIRTIO_F_RING_PACKED & 1 == packed
        kind = "packed ring standard" if packed else "inorder"
        assert set(driver.data_paths()) == {f"{kind} Tx", f"{kind} Rx"}
        with pytest.raises(TestpmdError, match="refused"):
            driver.command("set fwd nonsense")


def test_testpmd_driver_can_be_the_listening_side(tmp_path: Path) -> None:
    require("dpdk")
    socket_path = tmp_path / "net.sock"
    driver_port = VirtioUserPort(socket_path, server=True)
    with (
        Testpmd(TestpmdConfig(driver_port, cpus=[1])) as driver,
        Testpmd(TestpmdConfig(VhostPort(socket_path, client=True), cpus=[0])) as device,
    ):
        driver.wait_ready()
        device.wait_link()
        device.start("rxonly")
        driver.start("txonly")
        device.wait_stats(lambda stats: stats.rx_packets >= 1000)


def test_huge_pages_are_given_back() -> None:
    require("dpdk")
    count = Path("/proc/sys/vm/nr_hugepages")
    before = int(count.read_text())
    with reserve(64):
        with reserve(3):
            assert int(count.read_text()) == before + 34
        assert int(count.read_text()) == before + 32
    assert int(count.read_text()) == before


def test_huge_pages_that_are_given_back_while_mapped_are_not_taken_for_the_machines() -> None:
    require("dpdk")
    count = Path("/proc/sys/vm/nr_hugepages")
    before = int(count.read_text())
    with reserve(8):
        mapped = mmap.mmap(-1, 8 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB)
        mapped[:: 2 * MIB] = b"used"
    with reserve(2):
        pass
    mapped.close()
    assert int(count.read_text()) == before


def test_a_peer_that_cannot_start_says_why(tmp_path: Path) -> None:
    require("qemu")
    require("qemu-storage-daemon")
    absent = tmp_path / "absent"
    with (
        pytest.raises(PeerError, match="Could not open"),
        StorageDaemon(BlockExport(tmp_path / "blk.sock", absent)),
    ):
        pass
    config = GuestConfig("true", vhost_user("vhost-user-blk-pci", absent))
    with pytest.raises(GuestError, match="Failed to connect"):
        run_guest(config)
