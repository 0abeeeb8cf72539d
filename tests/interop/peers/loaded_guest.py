"""A Linux guest whose driver is at work until the guest is ended: a driver for the judge.

    virtq check --driver vhost-user:/tmp/disk.sock --type blk \\
        --start 'exec python -m tests.interop.peers.loaded_guest blk {socket}'

QEMU is the front-end, and takes of the rings' features what the judge offers.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .guest import GuestConfig, LinuxGuest, vhost_user, vhost_user_net

LIFE_S: Final = 280.0
"""The guest's whole life, should nobody end it."""
RINGS: Final = {"packed": True, "in_order": True}

DISK: Final = """
while :; do dd if=/dev/zero of=/dev/vda bs=16k count=64 oflag=direct conv=fsync; done 2>/dev/null &
while :; do dd if=/dev/vda of=/dev/null bs=4k count=256 iflag=direct; done 2>/dev/null &
while :; do dd if=/dev/vda of=/dev/null bs=64k count=64 skip=64 iflag=direct; done 2>/dev/null &
while :
do
    cat /sys/block/vda/serial >/dev/null
    dd if=/dev/vda of=/dev/null bs=512 count=64 iflag=direct 2>/dev/null
done
"""
NETWORK: Final = """
ip link set eth0 up
ip addr add 192.0.2.1/24 dev eth0
arp -s 192.0.2.2 02:00:00:00:00:02
while :; do dd if=/dev/zero bs=1000 count=10000 | nc -u -w 1 192.0.2.2 9; done 2>/dev/null &
while :; do dd if=/dev/zero bs=60 count=100000 | nc -u -w 1 192.0.2.2 9; done 2>/dev/null
"""
ENTROPY: Final = """
while :; do dd if=/dev/hwrng of=/dev/null bs=64 count=64 iflag=fullblock; done 2>/dev/null
"""
CONSOLE: Final = """
while :; do echo a line of text; done >/dev/hvc0
"""


@dataclass(frozen=True)
class Load:
    """What keeps a driver busy: the guest's script, the driver's module if it is one, the card."""

    script: str
    module: str | None
    card: str
    qemu: str = "qemu"

    def config(self, socket_path: Path) -> GuestConfig:
        return GuestConfig(
            self.script,
            self._arguments(socket_path),
            modules=[self.module] if self.module else (),
            timeout_s=LIFE_S,
            qemu=self.qemu,
        )

    def _arguments(self, socket_path: Path) -> Sequence[str]:
        if self.card == "virtio-net-pci":
            return vhost_user_net(socket_path, properties=RINGS)
        more: dict[str, object] = {}
        if self.card == "vhost-user-blk-pci":
            more = {"num-queues": 1}
        elif self.card == "vhost-user-test-device-pci":
            more = {"virtio-id": 3, "num_vqs": 2, "vq_size": 256, "config_size": 12}
        return vhost_user(self.card, socket_path, properties=RINGS | more)


LOADS: Final = {
    "blk": Load(DISK, "virtio_blk", "vhost-user-blk-pci"),
    "net": Load(NETWORK, "virtio_net", "virtio-net-pci"),
    "rng": Load(ENTROPY, "virtio-rng", "vhost-user-rng-pci"),
    "console": Load(CONSOLE, None, "vhost-user-test-device-pci", "qemu-newest"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("device", choices=LOADS)
    parser.add_argument("socket", type=Path)
    arguments = parser.parse_args()
    # Told to end, QEMU is ended too, and what the guest has put on disk is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    config = LOADS[arguments.device].config(arguments.socket)
    with contextlib.suppress(KeyboardInterrupt), LinuxGuest(config) as guest:
        guest.result()


if __name__ == "__main__":
    main()
