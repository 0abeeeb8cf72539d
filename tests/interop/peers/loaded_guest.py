"""A Linux guest whose driver is at work until the guest is ended: a driver for the judge.

    virtq check --driver vhost-user:/tmp/disk.sock --type blk \\
        --start 'exec python -m tests.interop.peers.loaded_guest blk {socket}'

QEMU is the front-end, and takes of the rings' features what the judge offers.

A judge starts its driver a hundred times. So a guest is booted once, without the device, and saved
while it looks for one; each start goes on from there, with the device, in a quarter of the time.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import inspect
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from qemu.qmp import QMPError

from .availability import guest_parts
from .guest import GuestConfig, GuestError, LinuxGuest, SavedGuest, vhost_user, vhost_user_net

LIFE_S: Final = 280.0
"""The guest's whole life, should nobody end it."""
SLOT: Final = "10"
"""Of the PCI bus: where the device will be."""
PROPERTIES: Final = {"packed": True, "in_order": True, "addr": SLOT}

SEARCH: Final = f"""
until [ -e /sys/bus/pci/devices/0000:00:{SLOT}.0 ]
do
    echo looking
    usleep 20000
    echo 1 >/sys/bus/pci/rescan
done
"""
"""What the guest is saved in."""

DISK: Final = """
until [ -b /dev/vda ]; do usleep 1000; done
while :; do dd if=/dev/vda of=/dev/null bs=512 iflag=direct; done 2>/dev/null &
while :; do dd if=/dev/vda of=/dev/null bs=4k iflag=direct; done 2>/dev/null &
while :; do dd if=/dev/vda of=/dev/null bs=1k skip=999 iflag=direct; done 2>/dev/null &
while :; do dd if=/dev/zero of=/dev/vda bs=2k count=4000 oflag=direct; done 2>/dev/null &
while :
do
    dd if=/dev/vda of=/dev/null bs=64k count=4 skip=64 iflag=direct
    dd if=/dev/zero of=/dev/vda bs=16k count=4 conv=fsync
    cat /sys/block/vda/serial >/dev/null
    blkdiscard -l 1048576 /dev/vda
    usleep 20000
done 2>/dev/null
"""
NETWORK: Final = """
until [ -e /sys/class/net/eth0 ]; do usleep 1000; done
ip link set eth0 up
ip addr add 192.0.2.1/24 dev eth0
arp -s 192.0.2.2 02:00:00:00:00:02
# A datagram for each line: what busybox has to send many.
syslogd -n -R 192.0.2.2:9 &
until [ -S /dev/log ]; do usleep 1000; done
yes a line of text | logger &
yes "$(seq -s ' ' 60)" | logger &
wait
"""
ENTROPY: Final = """
until [ -c /dev/hwrng ]; do usleep 1000; done
# Who reads there sleeps in between; so there are several.
for reader in 1 2 3 4 5 6 7 8; do while :; do cat /dev/hwrng; done >/dev/null 2>&1 & done
wait
"""
CONSOLE: Final = """
# With MULTIPORT it is there when the device says that port 0 is a console.
until [ -c /dev/hvc0 ]; do usleep 1000; done
stty raw -echo </dev/hvc0
cat /dev/hvc0 >/dev/null &
yes a line of text >/dev/hvc0
"""


@dataclass(frozen=True)
class Load:
    """What keeps a driver busy: the guest's script, the driver's module if it is one, the card."""

    script: str
    module: str | None
    card: str
    qemu: str = "qemu"

    def config(self) -> GuestConfig:
        """A guest without the device."""
        return GuestConfig(
            SEARCH + self.script,
            modules=[self.module] if self.module else (),
            memory_mib=128,
            timeout_s=LIFE_S,
            qemu=self.qemu,
        )

    def card_at(self, socket_path: Path) -> Sequence[str]:
        """QEMU's words for the device."""
        if self.card == "virtio-net-pci":
            return vhost_user_net(socket_path, properties=PROPERTIES)
        more: dict[str, object] = {}
        if self.card == "vhost-user-blk-pci":
            more = {"num-queues": 1}
        elif self.card == "vhost-user-test-device-pci":
            queues = 4 if "MULTIPORT" in os.environ.get("VIRTQ_FEATURES", "") else 2
            more = {"virtio-id": 3, "num_vqs": queues, "vq_size": 64, "config_size": 12}
        return vhost_user(self.card, socket_path, properties=PROPERTIES | more)


LOADS: Final = {
    "blk": Load(DISK, "virtio_blk", "vhost-user-blk-pci"),
    "net": Load(NETWORK, "virtio_net", "virtio-net-pci"),
    "rng": Load(ENTROPY, "virtio-rng", "vhost-user-rng-pci"),
    "console": Load(CONSOLE, None, "vhost-user-test-device-pci", "qemu-newest"),
}


def saved(config: GuestConfig) -> SavedGuest:
    """The guest that looks for its device, booted if there is none of this kernel, this QEMU, this
    script and this way to start it yet."""
    parts = guest_parts()
    digest = hashlib.sha256(repr(replace(config, parts=None)).encode())
    made_of = (parts.kernel.image, parts.busybox, parts.qemu_called(config.qemu))
    for file in (*made_of, Path(inspect.getfile(LinuxGuest))):
        about = os.stat(file)
        digest.update(f"{file} {about.st_size} {about.st_mtime_ns}".encode())
    name = digest.hexdigest()[:24]
    folder = parts.cache_dir / "saved"
    folder.mkdir(parents=True, exist_ok=True)
    for found in folder.glob(f"{name}-*"):
        return SavedGuest(found, found.name.removeprefix(f"{name}-"))
    with (
        tempfile.TemporaryDirectory(dir=folder) as partly,
        LinuxGuest(config) as guest,
    ):
        guest.wait_for("looking")
        made = guest.save(Path(partly) / "guest")
        # Two may do this at once: each has its own word, and either will do.
        return replace(made, path=made.path.rename(folder / f"{name}-{made.word}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("device", choices=LOADS)
    parser.add_argument("socket", type=Path)
    arguments = parser.parse_args()
    # Told to end, QEMU is ended too, and what the guest has put on disk is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    load = LOADS[arguments.device]
    with contextlib.suppress(KeyboardInterrupt):
        asleep = saved(load.config())
        *wire, _, card = load.card_at(arguments.socket)
        with LinuxGuest(replace(load.config(), args=wire), heir_of=asleep) as guest:
            plug(guest, card)
            guest.result()


def plug(guest: LinuxGuest, card: str) -> None:
    """The device, once the guest goes on: most of these would not let it be loaded beside them.
    Raises GuestError if QEMU does not take it."""
    # Before that QEMU tells of it, which its monitor must not do while one connects.
    guest.wait_for("looking")
    words = {"command-line": f"device_add {card}"}
    try:
        said = guest.qmp.execute("human-monitor-command", words)
    except (QMPError, EOFError, TimeoutError) as error:
        said = f"{error!r}"
    if said:
        raise GuestError(f"{said.strip()} ({guest.qemu_log.strip()})".replace("\n", " "))


if __name__ == "__main__":
    main()
