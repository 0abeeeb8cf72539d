"""Linux's virtio_console on a console device, over every kind of ring.

QEMU has no front-end for a console that somebody else serves, but the newest one has a front-end
for whatever device it is told (`vhost-user-test-device-pci`). The device lives in this process, so
that ports can be plugged in and out, and the console be resized, while the guest runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.unit.vhost_user.support import Served
from virtq.devices.console import ConsoleDevice, PortSpec
from virtq.devices.console_ends import FileEnd, PtyEnd, SocketEnd
from virtq.features import F, RingKind
from virtq.wire.console import DEVICE_ID, ConsoleConfig, ConsoleFeature
from virtq.wire.layout import size_of

from .peers.availability import require
from .peers.guest import GUEST_TIMEOUT_S, GuestConfig, LinuxGuest, vhost_user

pytestmark = pytest.mark.interop

MIB = 1 << 20
PORTS_MAX = 4
QUEUE_SIZE = 64
SOCKET_TIMEOUT_S = 120.0
KIND_BITS = F.RING_PACKED | F.IN_ORDER
LINUX_FEATURES = ConsoleFeature.SIZE | ConsoleFeature.MULTIPORT

SCRIPT = f"""
cat /sys/bus/virtio/devices/virtio0/features

# The port of that name, once it is there.
port() {{
    while true
    do
        for port in /sys/class/virtio-ports/*
        do
            if [ "$(cat $port/name 2>/dev/null)" = "$1" ]
            then
                echo /dev/${{port##*/}}
                return
            fi
        done
        usleep 10000
    done
}}

# Both ways at the same time, then what follows when the host's program has gone.
exec 4<>$(port agent)
head -c {MIB} /dev/urandom >/tmp/up
sha256sum </tmp/up
cat /tmp/up >&4 &
head -c {MIB} <&4 | sha256sum
wait
echo transferred
wc -c <&4
exec 4>&-

for number in $(seq 200)
do echo line $number
done >$(port log)
echo logged

# The console; its host's side is a terminal. Closing it would drop what has come meanwhile.
exec 5<>/dev/hvc0
stty raw -echo <&5
stty size <&5
echo welcome >&5
read -r typed <&5
echo typed $typed
until [ "$(stty size <&5)" != "25 80" ]
do usleep 10000
done
stty size <&5
exec 5>&-

# A port that is plugged in, used, and plugged out.
plugged=$(port plugged)
echo plugged in
until head -c 5 $plugged | grep hello
do usleep 10000
done
while [ -e $plugged ]
do usleep 10000
done
echo plugged out

# Another driver life.
cd /sys/bus/virtio/drivers/virtio_console
echo virtio0 >unbind
echo virtio0 >bind
echo again >$(port agent)
"""


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[socket.socket]:
    """The host's program on the agent's port."""
    with socket.socket(socket.AF_UNIX) as outside:
        outside.settimeout(SOCKET_TIMEOUT_S)
        yield outside


def read_up(connection: socket.socket, count: int) -> str:
    """The digest of the next `count` bytes."""
    digest = hashlib.sha256()
    while count:
        chunk = connection.recv(min(count, 65536))
        assert chunk, f"{count} bytes are missing"
        digest.update(chunk)
        count -= len(chunk)
    return digest.hexdigest()


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_a_guest_uses_consoles_and_ports(
    kind: RingKind, outside: socket.socket, tmp_path: Path
) -> None:
    require("qemu-newest")
    agent, console, log = (tmp_path / name for name in ("agent", "console", "log"))
    ports = [
        PortSpec(PtyEnd(console), console=True),
        PortSpec(SocketEnd(agent), name="agent"),
        PortSpec(FileEnd(log), name="log"),
    ]
    device = ConsoleDevice(
        ports, ports_max=PORTS_MAX, size=(80, 25), queue_size=QUEUE_SIZE, offer=str_offer(kind)
    )
    card = vhost_user(
        "vhost-user-test-device-pci",
        tmp_path / "console.sock",
        properties={
            "virtio-id": DEVICE_ID,
            "num_vqs": len(device.queues),
            "vq_size": QUEUE_SIZE,
            "config_size": size_of(ConsoleConfig),
        },
    )
    config = GuestConfig(SCRIPT, card, modules=(), timeout_s=GUEST_TIMEOUT_S, qemu="qemu-newest")
    down = np.random.Generator(np.random.SFC64(5)).bytes(MIB)
    outside.connect(str(agent))
    with contextlib.ExitStack() as stack:
        stack.callback(device.close)
        served = stack.enter_context(Served(device, str(tmp_path / "console.sock")))
        terminal = os.open(console, os.O_RDWR | os.O_NOCTTY)
        stack.callback(os.close, terminal)
        guest = stack.enter_context(LinuxGuest(config))
        features = int(guest.wait_for(r"([01]+)\n")[1][::-1], 2)
        assert features & KIND_BITS == kind.features
        assert features & LINUX_FEATURES == LINUX_FEATURES

        up = guest.wait_for(r"([0-9a-f]{64})")[1].decode()
        with ThreadPoolExecutor(1) as threads:
            sending = threads.submit(outside.sendall, down)
            assert read_up(outside, MIB) == up
            sending.result(SOCKET_TIMEOUT_S)
        assert guest.wait_for(r"([0-9a-f]{64})")[1].decode() == hashlib.sha256(down).hexdigest()
        guest.wait_for("transferred")
        outside.sendall(b"the last")
        outside.close()
        assert guest.wait_for(r"(\d+)\n")[1] == b"8"

        guest.wait_for("logged")
        assert log.read_text() == "".join(f"line {number}\n" for number in range(1, 201))

        assert guest.wait_for(r"(\d+ \d+)\n")[1] == b"25 80"
        assert os.read(terminal, 100).split() == [b"welcome"]
        os.write(terminal, b"some words\n")
        assert guest.wait_for("typed (.*)\n")[1] == b"some words"
        served.ask(lambda: device.resize(132, 50))
        assert guest.wait_for(r"(\d+ \d+)\n")[1] == b"50 132"

        plugged = tmp_path / "plugged"
        served.ask(lambda: device.add_port(PortSpec(SocketEnd(plugged), name="plugged")))
        guest.wait_for("plugged in")
        with socket.socket(socket.AF_UNIX) as program:
            program.connect(str(plugged))
            program.sendall(b"hello")
            guest.wait_for("hello")
            served.ask(lambda: device.remove_port(device.port("plugged").id))
            guest.wait_for("plugged out")

        with socket.socket(socket.AF_UNIX) as program:
            program.settimeout(SOCKET_TIMEOUT_S)
            program.connect(str(agent))
            assert program.recv(100) == b"again\n"
        guest.result().check()

    for name in ("port1_receiveq", "port1_transmitq"):
        counters = device.stats()[name]
        assert 0 < counters["used_entries"] <= counters["buffers"]
        assert counters["bytes_read"] + counters["bytes_written"] >= MIB
        assert counters.get("handler_errors", 0) == 0


def str_offer(kind: RingKind) -> str:
    """The change that makes the device offer this kind of ring and no other."""
    return ",".join(("+" if kind.features & bit else "-") + str(bit.name) for bit in KIND_BITS)
