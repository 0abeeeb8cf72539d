"""All of virtq's own devices pass all of `virtq check`, in this process and over vhost-user."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from virtq.check.device.vsock import LISTENED_PORT
from virtq.check.run import OUR_FAULT
from virtq.cli import run
from virtq.device import Device
from virtq.devices.console import ConsoleDevice, PortSpec
from virtq.devices.console_ends import NullEnd
from virtq.devices.gpio import GpioDevice
from virtq.devices.i2c import I2cAdapter, Registers
from virtq.devices.input import InputDevice
from virtq.devices.rng import RngDevice
from virtq.devices.vsock import VsockDevice
from virtq.transports.vhost_user.backend import Backend, serve
from virtq.wire.input import InputDescription

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


def verdicts(capsys: pytest.CaptureFixture[str], uri: str, *words: str) -> dict[str, set[str]]:
    code = run(["check", uri, "--json", *words])
    shown: dict[str, Any] = json.loads(capsys.readouterr().out)
    wrong = [
        (r["case"], r["ring"], r["verdict"], r["expected"], r["came"], r["reason"])
        for r in shown["results"]
        if r["verdict"] not in ("pass", "skipped") or OUR_FAULT in r["reason"]
    ]
    assert not wrong
    assert code == 0
    found: dict[str, set[str]] = {}
    for result in shown["results"]:
        found.setdefault(result["case"], set()).add(result["verdict"])
    return found


def passed(found: dict[str, set[str]], area: str) -> int:
    return sum("pass" in came for name, came in found.items() if name.startswith(area))


@pytest.mark.parametrize("kind", TYPES)
def test_in_one_process(capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str) -> None:
    uri = f"loopback:{kind}"
    if kind == "vsock":
        uri += f"?uds_path={tmp_path / 'vsock'}"
    with echo(tmp_path / f"vsock_{LISTENED_PORT}"):
        found = verdicts(capsys, uri)
    for area in ("in_order", "packed", "split", "malformed", "notifications"):
        assert passed(found, area), f"{area}: all skipped"


@pytest.mark.parametrize("kind", ["blk", "rng", "console"])
def test_suspended(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    found = verdicts(capsys, f"loopback:{kind}?offer=+SUSPEND", "--only", "suspend")
    assert passed(found, "suspend") >= 5


@pytest.mark.parametrize("kind", TYPES)
def test_over_vhost_user(capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s"
    protocol = "+INBAND_NOTIFICATIONS" if kind == "rng" else ""
    device = make(kind, tmp_path)
    with served(device, path, protocol), echo(tmp_path / f"vsock_{LISTENED_PORT}"):
        found = verdicts(capsys, f"vhost-user:{path}?device={kind}")
    for area in ("vhost_user_memory", "vhost_user_messages", "vhost_user_rings", "in_order"):
        assert passed(found, area) > 5, f"{area}: nearly all skipped"
    if kind in ("rng", "console", "vsock"):
        area = {"rng": "entropy"}.get(kind, kind)
        skipped = [n for n, came in found.items() if n.startswith(area) and came == {"skipped"}]
        assert not skipped
    if kind == "rng":
        aside = [
            n for n, came in found.items() if n.startswith("vhost_user") and "pass" not in came
        ]
        assert len(aside) <= 8, aside
        assert found["vhost_user_memory.the_dirty_log"] == {"pass"}
        assert found["vhost_user_memory.logging_begins"] == {"pass"}
