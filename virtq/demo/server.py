"""The demo's second process: `python -m virtq.demo.server FOLDER`.

Serves the disks and hubs in FOLDER. "ready" on standard output says that all sockets are there;
then every line on standard input is answered by the devices' counters as one line of JSON. The
end of standard input is the end of the process, and of the folder, however the other process ended.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
from pathlib import Path

from virtq.device import Device
from virtq.devices.blk import BlkDevice
from virtq.devices.disk import Disk
from virtq.devices.net import NetDevice
from virtq.devices.net_ports import HubPort
from virtq.features import RingKind
from virtq.transports.vhost_user import Backend, serve

DISK_BYTES = 16 << 20

_NUMBER = {kind: number for number, kind in enumerate(RingKind)}


def image_path(folder: Path, kind: RingKind) -> Path:
    """The file behind the disk."""
    return folder / f"{kind}.img"


def disk_name(kind: RingKind) -> str:
    """What the disk is called: its socket, and its counters. Short, for a socket's path must be."""
    return f"disk{_NUMBER[kind]}"


def port_names(kind: RingKind) -> tuple[str, str]:
    """What the two network devices on one hub are called."""
    return f"net{_NUMBER[kind]}a", f"net{_NUMBER[kind]}b"


def socket_path(folder: Path, name: str) -> Path:
    """Where a device is served."""
    return folder / name


def make_devices(folder: Path) -> dict[str, Device]:
    """A disk and a hub with two network devices for each kind of ring, by name."""
    devices: dict[str, Device] = {}
    for kind in RingKind:
        image = image_path(folder, kind)
        with image.open("wb") as file:
            file.truncate(DISK_BYTES)
        devices[disk_name(kind)] = BlkDevice(Disk.file(image), serial="virtq demo")
        hub = HubPort()
        for name in port_names(kind):
            devices[name] = NetDevice(hub)
    return devices


async def serve_all(folder: Path) -> None:
    """Until standard input ends."""
    devices = make_devices(folder)
    backends: list[Backend] = []
    tasks = [
        asyncio.ensure_future(
            serve(device, str(socket_path(folder, name)), name=name, ready=backends.append)
        )
        for name, device in devices.items()
    ]
    commands = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    await asyncio.sleep(0)  # every task has run to where its socket listens
    print("ready", flush=True)
    while await commands.readline():
        counters = {name: device.stats() for name, device in devices.items()}
        print(json.dumps(counters), flush=True)
    for backend in backends:
        backend.close()
    await asyncio.gather(*tasks, return_exceptions=True)


def main() -> None:
    """The process."""
    # The terminal's Ctrl-C is for the other process, whose end is the end of standard input here.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    folder = Path(sys.argv[1])
    try:
        asyncio.run(serve_all(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
