"""QEMU's own entropy and console devices under virtq's drivers, over the qtest transport."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import virtq
from virtq.drivers.console import ConsoleDriver
from virtq.drivers.rng import RngDriver
from virtq.features import RingKind
from virtq.wire.console import ConsoleFeature

from .peers.availability import program
from .test_qtest import BUSES, KINDS, uri

pytestmark = pytest.mark.interop

LIMIT_S = 20.0
"""A bound on waits, not a measure."""
CONSOLE_BYTES = 64 << 10
SIZES = {"rng": 8, "serial": 32}
"""What QEMU 10.0 has room for in order, though its memory-mapped registers say 1024: it writes
beyond the end of its heap's block otherwise (docs/findings.md)."""
SEED = bytes(range(256)) * 24


@pytest.fixture(autouse=True)
def qemu() -> None:
    program("qemu")


@pytest.mark.parametrize("bus", BUSES)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_random_bytes(bus: str, kind: RingKind) -> None:
    """No block of 16 bytes comes twice: neither an old buffer, nor one that was not written."""
    with virtq.connect(
        uri(bus, "rng", kind, f"?queue_size={SIZES['rng']}"), driver=RngDriver
    ) as rng:
        assert rng.kind == kind
        data = rng.read(100_000, LIMIT_S)
        assert len(data) == 100_000
        blocks = {data[at : at + 16] for at in range(0, len(data), 16)}
        assert len(blocks) == len(data) // 16
        assert set(data) == set(range(256))
        stats = rng.queues[0].stats
        assert stats["bytes_written"] == len(data)
        assert stats["used_entries"] == stats["buffers"] >= len(data) // 4096
        assert 0 < stats["calls_received"] <= stats["buffers"]


@pytest.mark.parametrize("bus", BUSES)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_bytes_that_are_known(bus: str, kind: RingKind, tmp_path: Path) -> None:
    """From a source that we know, every byte arrives once and in its place."""
    source = tmp_path / "source"
    source.write_bytes(SEED)
    backend = f"?queue_size={SIZES['rng']}&args=-object rng-random,id=r,filename={source}"
    with virtq.connect(uri(bus, "rng", kind, f",rng=r{backend}"), driver=RngDriver) as rng:
        assert rng.kind == kind
        got = b"".join(rng.read(count, LIMIT_S) for count in (1, 15, 240, 2000, 3000))
        assert got == SEED[: len(got)]


@pytest.mark.parametrize("bus", BUSES)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_console_ports(bus: str, kind: RingKind, tmp_path: Path) -> None:
    """A named port and the console, each both ways at once; what one sends, the other does not
    see."""
    paths = {name: tmp_path / name for name in ("console", "agent")}
    arguments = " ".join(
        f"-chardev socket,id={name},path={path},server=on,wait=off" for name, path in paths.items()
    )
    arguments += " -device virtconsole,chardev=console"
    arguments += " -device virtserialport,chardev=agent,name=org.virtq.agent"
    text = uri(bus, "serial", kind, f",max_ports=4?queue_size={SIZES['serial']}&args={arguments}")
    with (
        virtq.connect(text, driver=ConsoleDriver) as console,
        ThreadPoolExecutor() as threads,
    ):
        assert console.kind == kind
        assert console.has(ConsoleFeature.MULTIPORT)
        ports = {"console": console.port(0), "agent": console.open("org.virtq.agent")}
        assert ports["console"].is_console
        assert not ports["agent"].is_console
        ports["console"].open()
        exchanges = []
        for name, port in ports.items():
            port.timeout_s = LIMIT_S
            end = socket.socket(socket.AF_UNIX)
            end.settimeout(LIMIT_S)
            end.connect(str(paths[name]))
            port.wait_host(timeout_s=LIMIT_S)
            up, down = os.urandom(CONSOLE_BYTES), os.urandom(CONSOLE_BYTES)
            exchanges.append((port, end, up, down))
        work = [
            (
                threads.submit(port.write, up),
                threads.submit(end.sendall, down),
                threads.submit(receive, end, len(up)),
                threads.submit(port.read_exactly, len(down)),
                up,
                down,
            )
            for port, end, up, down in exchanges
        ]
        for wrote, sent, came_up, came_down, up, down in work:
            wrote.result(LIMIT_S)
            sent.result(LIMIT_S)
            assert came_up.result(LIMIT_S) == up
            assert came_down.result(LIMIT_S) == down
        for _, end, _, _ in exchanges:
            end.close()
        ports["agent"].wait_host(False, timeout_s=LIMIT_S)


def receive(end: socket.socket, count: int) -> bytes:
    parts: list[bytes] = []
    while (have := sum(map(len, parts))) < count:
        part = end.recv(count - have)
        assert part, f"the end after {have} of {count} bytes"
        parts.append(part)
    return b"".join(parts)
