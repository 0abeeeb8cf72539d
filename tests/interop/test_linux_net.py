"""Linux's virtio_net in QEMU, on a tap of the host by `virtq serve net`, over every kind of ring.

The tap is in a network namespace of its own: nothing of the host's network is touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import itertools
import os
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from virtq.features import F, RingKind
from virtq.wire.net import NetFeature

from .peers.availability import require
from .peers.guest import GUEST_TIMEOUT_S, GuestConfig, LinuxGuest, vhost_user_net
from .serving import Serving

pytestmark = pytest.mark.interop

MIB = 1 << 20
DATA_BYTES = 64 * MIB
ETHERNET_FRAME_BYTES = 1514
GUEST_ADDRESS: Final = "192.0.2.1"
HOST_ADDRESS: Final = "192.0.2.2"
TRANSFER_TIMEOUT_S = 180.0
PINGS = 5
KIND_BITS = F.RING_PACKED | F.IN_ORDER
ALWAYS_NEGOTIATED = (
    F.INDIRECT_DESC
    | F.EVENT_IDX
    | F.VERSION_1
    | NetFeature.CSUM
    | NetFeature.GUEST_CSUM
    | NetFeature.HOST_TSO4
    | NetFeature.GUEST_TSO4
    | NetFeature.MRG_RXBUF
)
# QEMU keeps the configuration space and the control queue, and tells no back-end of their features.
SERVED_BY_QEMU = (
    NetFeature.MAC
    | NetFeature.STATUS
    | NetFeature.CTRL_VQ
    | NetFeature.CTRL_GUEST_OFFLOADS
    | NetFeature.CTRL_MAC_ADDR
)

SCRIPT = f"""
ip address add {GUEST_ADDRESS}/24 dev eth0
ip link set eth0 up
cat /sys/class/net/eth0/device/features
ping -c {PINGS} -i 0.2 -W 5 {HOST_ADDRESS}
read -r port
nc {HOST_ADDRESS} $port -e dd of=/tmp/data bs=1M 2>/dev/null
sha256sum </tmp/data
nc {HOST_ADDRESS} $port -e cat /tmp/data
"""

_CLONE_NEWNET = 0x40000000
_instances = itertools.count()


class Namespace:
    """A network namespace with a tap interface in it, until the context is left."""

    TAP: Final = "tap0"

    def __init__(self) -> None:
        self.name = f"virtq-{os.getpid()}-{next(_instances)}"

    def __enter__(self) -> Namespace:
        with contextlib.ExitStack() as stack:
            ip("netns", "add", self.name)
            stack.callback(ip, "netns", "delete", self.name)
            self.ip("tuntap", "add", "dev", self.TAP, "mode", "tap", "vnet_hdr")
            self.ip("address", "add", f"{HOST_ADDRESS}/24", "dev", self.TAP)
            self.ip("link", "set", self.TAP, "up")
            self._resources = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._resources.close()

    def ip(self, *words: str) -> None:
        """The `ip` command, in the namespace."""
        ip("-netns", self.name, *words)

    def listen(self) -> socket.socket:
        """A listening TCP socket on a free port of the namespace's address.

        A socket belongs to the namespace of the thread that made it: this one's stays as it is.
        """
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(self._listen).result()

    def _listen(self) -> socket.socket:
        with open(f"/run/netns/{self.name}") as namespace:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(namespace.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"cannot enter namespace {self.name}")
        return socket.create_server((HOST_ADDRESS, 0))


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=10)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace() as namespace:
        yield namespace


@pytest.fixture(scope="module")
def data() -> bytes:
    return np.random.Generator(np.random.SFC64(3)).bytes(DATA_BYTES)


def accept(listener: socket.socket) -> socket.socket:
    listener.settimeout(TRANSFER_TIMEOUT_S)
    connection, _ = listener.accept()
    connection.settimeout(TRANSFER_TIMEOUT_S)
    return connection


def send(listener: socket.socket, data: bytes) -> None:
    with accept(listener) as connection:
        connection.sendall(data)


def receive(listener: socket.socket) -> tuple[int, str]:
    """How many bytes come until the end, and their digest."""
    count, digest = 0, hashlib.sha256()
    with accept(listener) as connection:
        while chunk := connection.recv(MIB):
            count += len(chunk)
            digest.update(chunk)
    return count, digest.hexdigest()


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_a_guest_talks_to_the_host(
    kind: RingKind, data: bytes, namespace: Namespace, tmp_path: Path
) -> None:
    require("qemu")
    socket_path = tmp_path / "net.sock"
    wanted = {"packed": kind.packed, "in_order": kind.in_order}
    card = vhost_user_net(socket_path, properties=wanted)
    config = GuestConfig(
        SCRIPT, card, modules=["virtio_net"], memory_mib=320, timeout_s=GUEST_TIMEOUT_S
    )
    digest = hashlib.sha256(data).hexdigest()
    with (
        Serving(
            "net", "--tap", namespace.TAP, socket_path=socket_path, namespace=namespace.name
        ) as network,
        namespace.listen() as listener,
    ):
        with LinuxGuest(config) as guest:
            shown = guest.wait_for(r"([01]+)\n")[1]
            assert int(guest.wait_for(r"(\d+) packets received")[1]) == PINGS
            guest.send(f"{listener.getsockname()[1]}\n")
            send(listener, data)
            assert guest.wait_for(r"([0-9a-f]{64})")[1].decode() == digest
            assert receive(listener) == (len(data), digest)
            guest.result().check()
        report = network.end()

    # One character per bit, bit 0 first.
    features = int(shown[::-1], 2)
    assert features & KIND_BITS == kind.features
    assert features & ALWAYS_NEGOTIATED == ALWAYS_NEGOTIATED
    assert features & report.offered & ~SERVED_BY_QEMU == report.negotiated
    assert report.front_ends == 1
    assert report.remarks == ()
    for name in ("receiveq1", "transmitq1"):
        counters = report.queues[name]
        assert counters["bytes"] > len(data)
        # Segmentation is left to the other side: most packets are larger than a frame.
        assert counters["bytes"] > ETHERNET_FRAME_BYTES * counters["packets"]
        assert 0 < counters["used_entries"] <= counters["buffers"]
