"""Linux's vsock driver in QEMU, on a socket device of `virtq serve vsock`, over every kind of
ring."""

from __future__ import annotations

import contextlib
import hashlib
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from virtq.features import F, RingKind
from virtq.wire.vsock import VsockFeature
from virtq.wire.vsock_flow import BUFFER_BYTES

from .peers.availability import require
from .peers.guest import GUEST_TIMEOUT_S, GuestConfig, LinuxGuest, vhost_user
from .peers.guest_tool import guest_tool
from .serving import Serving

pytestmark = pytest.mark.interop

MIB = 1 << 20
DATA_BYTES = 8 * MIB
LESS_BYTES = 2 * MIB
GUEST_CID = 42
SOCKET_TIMEOUT_S = 120.0
MANY = 24
MESSAGES = (1, 5000, 100_000, 7)
KIND_BITS = F.RING_PACKED | F.IN_ORDER

SCRIPT = f"""
tool=/tmp/tool
cp /data/tool $tool
chmod +x $tool
cat /sys/bus/virtio/devices/virtio0/features
head -c {LESS_BYTES} /dev/urandom >/tmp/less
cat /tmp/less /tmp/less /tmp/less /tmp/less >/tmp/up
sha256sum </tmp/up
sha256sum </tmp/less

# There and back at the same time, each way to its end.
$tool connect 1000 </tmp/up | sha256sum

# From the host; the guest's end closes first in one direction, the host's in the other.
$tool listen 2000 </tmp/less 2>/tmp/listening | sha256sum &
until grep -q listening /tmp/listening; do usleep 20000; done
echo listening
wait

# Nobody there.
$tool connect 1001 </dev/null 2>/dev/null
echo refused $?

# A reader that does not read for a while.
$tool connect 1002 </dev/null | (read -r go </dev/ttyS1; sha256sum) &
wait

# Many at the same time.
for number in $(seq {MANY})
do echo guest $number | $tool connect 1003 >/tmp/many.$number &
done
wait
cat /tmp/many.* | sort | sha256sum

# Message by message.
echo {" ".join(map(str, MESSAGES))} | $tool messages 1004

# The driver is taken away, with a connection open, and given back.
(sleep 100 | $tool connect 1005 >/dev/null 2>&1) &
read -r go
cd /sys/bus/virtio/drivers/vmw_vsock_virtio_transport
echo virtio0 >unbind
echo virtio0 >bind
echo again | $tool connect 1000
"""


@pytest.fixture(scope="module")
def tool() -> bytes:
    """The guest's program, which needs nothing of the guest but its kernel."""
    return guest_tool("vsock_tool.c")


@pytest.fixture(scope="module")
def data() -> bytes:
    return np.random.Generator(np.random.SFC64(4)).bytes(DATA_BYTES)


class Host:
    """The host's programs: listeners for the guest, and connections to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *error: object) -> None:
        self._resources.close()

    def listen(self, port: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
        listener = self._resources.enter_context(socket.socket(socket.AF_UNIX, kind))
        listener.bind(f"{self.path}_{port}")
        listener.listen(64)
        listener.settimeout(SOCKET_TIMEOUT_S)
        return listener

    def accept(self, listener: socket.socket) -> socket.socket:
        connection = self._resources.enter_context(listener.accept()[0])
        connection.settimeout(SOCKET_TIMEOUT_S)
        return connection

    def connect(self, port: int) -> tuple[socket.socket, bytes]:
        """A connection to the guest, and the line that answers it (none: refused)."""
        connection = self._resources.enter_context(socket.socket(socket.AF_UNIX))
        connection.settimeout(SOCKET_TIMEOUT_S)
        connection.connect(str(self.path))
        connection.sendall(b"CONNECT %d\n" % port)
        line = b""
        while not line.endswith(b"\n") and (byte := connection.recv(1)):
            line += byte
        return connection, line


def exchange(connection: socket.socket, data: bytes, *, close_first: bool) -> str:
    """Send `data` while receiving to the end; the digest of what came. The direction to the guest
    is closed before the other one ends, or after."""

    def send() -> None:
        connection.sendall(data)
        if close_first:
            connection.shutdown(socket.SHUT_WR)

    digest = hashlib.sha256()
    with ThreadPoolExecutor(1) as thread:
        sending = thread.submit(send)
        while chunk := connection.recv(MIB):
            digest.update(chunk)
        sending.result(SOCKET_TIMEOUT_S)
    connection.close()
    return digest.hexdigest()


def send_what_fits(connection: socket.socket, data: bytes) -> int:
    """How much of `data` is taken before the guest reads."""
    connection.settimeout(0.5)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < len(data):
            sent += connection.send(data[sent : sent + 65536])
    connection.settimeout(SOCKET_TIMEOUT_S)
    return sent


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Host(tmp_path / "guest.vsock") as host:
        yield host


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_a_guest_and_the_host_talk_both_ways(
    kind: RingKind, tool: bytes, data: bytes, host: Host, tmp_path: Path
) -> None:
    require("qemu")
    socket_path = tmp_path / "vsock.sock"
    wanted = {"packed": kind.packed, "in_order": kind.in_order}
    card = vhost_user("vhost-user-vsock-pci", socket_path, properties=wanted)
    config = GuestConfig(
        SCRIPT,
        card,
        modules=["vmw_vsock_virtio_transport"],
        files={"tool": tool},
        timeout_s=GUEST_TIMEOUT_S,
    )
    less = data[:LESS_BYTES]
    digest, less_digest = (hashlib.sha256(content).hexdigest() for content in (data, less))
    words = ["--uds-path", host.path, "--guest-cid", GUEST_CID]
    with Serving("vsock", *words, socket_path=socket_path) as vsock:
        echo, slow, many = host.listen(1000), host.listen(1002), host.listen(1003)
        messages = host.listen(1004, socket.SOCK_SEQPACKET)
        kept = host.listen(1005)
        with LinuxGuest(config) as guest:
            features = int(guest.wait_for(r"([01]+)\n")[1][::-1], 2)
            up, less_up = (guest.wait_for(r"([0-9a-f]{64})")[1].decode() for _ in range(2))

            assert exchange(host.accept(echo), data, close_first=False) == up
            assert guest.wait_for(r"([0-9a-f]{64})")[1].decode() == digest

            guest.wait_for("listening")
            connection, line = host.connect(2000)
            assert line.startswith(b"OK ")
            assert exchange(connection, less, close_first=True) == less_up
            assert guest.wait_for(r"([0-9a-f]{64})")[1].decode() == less_digest
            assert host.connect(2001)[1] == b""

            assert guest.wait_for(r"refused (\d)")[1] == b"2"

            connection = host.accept(slow)
            sent = send_what_fits(connection, less)
            assert BUFFER_BYTES // 2 < sent < LESS_BYTES * 3 // 4
            guest.send("go\n")
            connection.sendall(less[sent:])
            connection.close()
            assert guest.wait_for(r"([0-9a-f]{64})")[1].decode() == less_digest

            heard = sorted(answer_one(host.accept(many)) for _ in range(MANY))
            assert heard == sorted(b"guest %d\n" % number for number in range(1, MANY + 1))
            said = hashlib.sha256(b"".join(heard).upper()).hexdigest()
            assert guest.wait_for(r"([0-9a-f]{64})")[1].decode() == said

            connection = host.accept(messages)
            for size in MESSAGES:
                message = connection.recv(MIB)
                assert len(message) == size
                connection.send(message)
                guest.wait_for(f"{size} same")

            connection = host.accept(kept)
            guest.send("go\n")
            assert connection.recv(1) == b""
            connection = host.accept(echo)
            assert connection.recv(100) == b"again\n"
            assert connection.recv(1) == b""
            connection.close()
            guest.result().check()
        report = vsock.end()

    assert features & KIND_BITS == kind.features
    assert features & VsockFeature.SEQPACKET
    assert features == report.negotiated
    assert report.front_ends == 1
    assert report.remarks == ()
    for name in ("rx", "tx"):
        counters = report.queues[name]
        assert 0 < counters["used_entries"] <= counters["buffers"]
    assert report.queues["rx"]["bytes_written"] > DATA_BYTES + 2 * LESS_BYTES
    assert report.queues["tx"]["bytes_read"] > DATA_BYTES + LESS_BYTES
    assert not host.path.exists()


def answer_one(connection: socket.socket) -> bytes:
    """What the guest says until its end; the host says it again, in capitals."""
    said = b""
    while chunk := connection.recv(100):
        said += chunk
    connection.sendall(said.upper())
    connection.close()
    return said
