"""All of virtq's own devices pass all of `virtq check`, in this process and over vhost-user."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtq.check.case import OUR_FAULT
from virtq.check.device.vsock import LISTENED_PORT
from virtq.check.results import BAD
from virtq.check.run import Subject, chosen, run
from virtq.connecting import open_transport
from virtq.device import Device
from virtq.devices.console import ConsoleDevice, PortSpec
from virtq.devices.console_ends import NullEnd
from virtq.devices.gpio import GpioDevice
from virtq.devices.i2c import I2cAdapter, Registers
from virtq.devices.input import InputDevice
from virtq.devices.rng import RngDevice
from virtq.devices.vsock import VsockDevice
from virtq.features import DEVICE_NAMES
from virtq.transports.vhost_user import channel
from virtq.transports.vhost_user.backend import Backend, serve
from virtq.wire.input import InputDescription

PATIENCE_S = 10.0
SLOW = ("split.past_65536",)
"""A case of many seconds that says nothing about what is between the ring and the device."""
BY_MESSAGES = ("vhost_user*", "in_order", "status", "features", "queue_reset")
"""Where it matters that there is a socket in between; the rings themselves do not know."""
OWN_AREAS = {"rng": "entropy", "console": "console", "vsock": "vsock"}
TYPES = ("rng", "console", "vsock", "input", "i2c", "gpio")


def make(kind: str, folder: Path) -> Device:
    if kind == "console":
        ports = [PortSpec(NullEnd(), console=True), PortSpec(NullEnd(), name="agent")]
        return ConsoleDevice(ports, size=(80, 25))
    if kind == "vsock":
        return VsockDevice(str(folder / "vsock"))
    if kind == "input":
        return InputDevice(InputDescription.keyboard())
    if kind == "i2c":
        return I2cAdapter({0x10: Registers()})
    return RngDevice() if kind == "rng" else GpioDevice(4, ["a", "b"])


@contextlib.contextmanager
def echo(path: Path) -> Iterator[None]:
    """A service of the host for guests: everything comes back."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(16)

        def answer() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=return_all, args=(sock,), daemon=True).start()

        def return_all(sock: socket.socket) -> None:
            with sock, contextlib.suppress(OSError):
                while data := sock.recv(4096):
                    sock.sendall(data)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextlib.contextmanager
def served(device: Device, path: Path, protocol: str) -> Iterator[None]:
    ready, found = threading.Event(), []

    async def work() -> None:
        def begin(back_end: Backend) -> None:
            found.append((asyncio.get_running_loop(), back_end))
            ready.set()

        await serve(device, str(path), protocol=protocol, ready=begin)

    thread = threading.Thread(target=asyncio.run, args=(work(),), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield
    finally:
        [(loop, back_end)] = found
        loop.call_soon_threadsafe(back_end.close)
        thread.join()
        device.close()


def verdicts(uri: str, kind: str, *areas: str) -> dict[str, set[str]]:
    """What each case came to; nothing may fail."""
    bus, dial = None, None
    if uri.startswith("vhost-user:"):
        path = uri.partition(":")[2]
        bus, dial = "vhost-user", lambda: channel.connect(path, PATIENCE_S)
    device_id = next(id for id, name in DEVICE_NAMES.items() if name == kind)
    subject = Subject.find(uri, lambda: open_transport(uri), device_id, bus, dial)
    cases = [case for case in chosen(areas) if case.name not in SLOW]
    results = list(run(subject, cases, patience_s=PATIENCE_S))
    wrong = [
        (r.title, r.verdict, r.expected, r.came, r.reason)
        for r in results
        if r.verdict in BAD or OUR_FAULT in r.reason
    ]
    assert not wrong
    found: dict[str, set[str]] = {}
    for result in results:
        found.setdefault(result.case.name, set()).add(str(result.verdict))
    return found


def passed(found: dict[str, set[str]], area: str) -> int:
    return sum("pass" in came for name, came in found.items() if name.startswith(area))


@pytest.mark.parametrize("kind", TYPES)
def test_in_one_process(tmp_path: Path, kind: str) -> None:
    uri = f"loopback:{kind}"
    if kind == "vsock":
        uri += f"?uds_path={tmp_path / 'vsock'}"
    with echo(tmp_path / f"vsock_{LISTENED_PORT}"):
        found = verdicts(uri, kind)
    for area in ("in_order", "packed", "split", "malformed", "notifications"):
        assert passed(found, area), f"{area}: all skipped"


@pytest.mark.parametrize("kind", ["blk", "rng", "console"])
def test_suspended(kind: str) -> None:
    found = verdicts(f"loopback:{kind}?offer=+SUSPEND", kind, "suspend")
    assert passed(found, "suspend") >= 5


@pytest.mark.parametrize("kind", TYPES)
def test_over_vhost_user(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s"
    protocol = "+INBAND_NOTIFICATIONS" if kind == "rng" else ""
    device = make(kind, tmp_path)
    with served(device, path, protocol), echo(tmp_path / f"vsock_{LISTENED_PORT}"):
        found = verdicts(f"vhost-user:{path}", kind, *BY_MESSAGES, OWN_AREAS.get(kind, "framing"))
    for area in ("vhost_user_memory", "vhost_user_messages", "vhost_user_rings", "in_order"):
        assert passed(found, area) > 5, f"{area}: nearly all skipped"
    if own := OWN_AREAS.get(kind):
        skipped = [n for n, came in found.items() if n.startswith(own) and came == {"skipped"}]
        assert not skipped
    if kind == "rng":
        aside = [
            n for n, came in found.items() if n.startswith("vhost_user") and "pass" not in came
        ]
        assert len(aside) <= 8, aside
        assert found["vhost_user_memory.the_dirty_log"] == {"pass"}
        assert found["vhost_user_memory.logging_begins"] == {"pass"}
