"""Another driver comes, and the front-end has not reset the device in between."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtq.devices.console import ConsoleDevice, PortSpec
from virtq.devices.console_ends import SocketEnd
from virtq.devices.vsock import VsockDevice
from virtq.drivers.console import ConsoleDriver
from virtq.drivers.vsock import VsockDriver
from virtq.features import RingKind
from virtq.status import Step
from virtq.transports.loopback import LoopbackTransport

PATIENCE_S = 10.0


class Forgetful(LoopbackTransport):
    """Stops the virtqueues where it should reset the device, as QEMU's front-end for any device."""

    def _carry_out(self, step: Step) -> bool:
        if step is not Step.RESET:
            return super()._carry_out(step)
        for index in list(self._queues):
            self.device.stop_queue(index)
        self._queues.clear()
        self._features = 0
        return True


@pytest.fixture
def outside() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as outside:
        outside.settimeout(PATIENCE_S)
        yield outside


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_a_console(kind: RingKind, outside: socket.socket, tmp_path: Path) -> None:
    path = tmp_path / "agent"
    device = ConsoleDevice([PortSpec(SocketEnd(path), name="agent")])
    outside.connect(str(path))
    transport = Forgetful(device, when_closed=device.close)
    with ConsoleDriver(transport, want=kind.features, offer=kind.change) as console:
        for number in range(3):
            port = console.open("agent")
            port.timeout_s = PATIENCE_S
            port.write(b"%d" % number)
            assert outside.recv(10) == b"%d" % number
            outside.sendall(b"answer")
            assert port.read(10) == b"answer"
            console.reset()


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_sockets(kind: RingKind, tmp_path: Path) -> None:
    path = str(tmp_path / "vsock")
    device = VsockDevice(path)
    transport = Forgetful(device, when_closed=device.close)
    with (
        VsockDriver(transport, want=kind.features, offer=kind.change) as guest,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        listener.bind(f"{path}_1")
        listener.listen()
        for number in range(3):
            inside = guest.connect((2, 1), port=5000)
            with listener.accept()[0] as outside:
                outside.settimeout(PATIENCE_S)
                inside.sendall(b"%d" % number)
                assert outside.recv(10) == b"%d" % number
                guest.reset()
                assert outside.recv(1) == b""
