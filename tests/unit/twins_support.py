"""What the tests of small devices share: a device with its twin driver, in this process or over a
vhost-user socket, in any kind of ring; and buffers that no proper driver would send."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from tests.unit.vhost_user.support import Served
from virtq import Device, Driver
from virtq.features import RingKind
from virtq.transports.base import DriverTransport
from virtq.transports.loopback import LoopbackTransport
from virtq.transports.vhost_user import Frontend

D = TypeVar("D", bound=Driver)

PLACES = ("loopback", "vhost-user")
PATIENCE_S = 10.0
UNTOUCHED = 0xAA


@contextlib.contextmanager
def twins(
    device: Device,
    driver: type[D],
    kind: RingKind = RingKind.SPLIT,
    place: str = "loopback",
    folder: Path | None = None,
) -> Iterator[D]:
    """The driver of a device at a place of `PLACES`; over vhost-user the socket is in `folder`."""
    with contextlib.ExitStack() as stack:
        transport: DriverTransport
        if place == "loopback":
            transport = LoopbackTransport(device)
        else:
            assert folder is not None
            path = str(folder / "device.sock")
            stack.enter_context(Served(device, path))
            transport = Frontend(path)
        opened = driver(transport, want=kind.features, offer=kind.change)
        stack.callback(opened.close)
        yield opened


def send_raw(driver: Driver, queue: str, readable: bytes, writable: int) -> tuple[int, bytes]:
    """One hand-made buffer: how many bytes the device says that it wrote, and all that there is
    room for afterwards, UNTOUCHED where it did not write."""
    buffer = driver.arena.alloc(max(1, len(readable)) + max(1, writable))
    room = buffer.part(max(1, len(readable)), max(1, writable))
    buffer.write(readable)
    room.write(bytes([UNTOUCHED]) * room.size)
    pieces = [buffer.part(0, len(readable))] * bool(readable), [room] * bool(writable)
    ring = driver.queues[queue]
    ring.add_buffers(*pieces)
    ring.kick()
    assert ring.wait(PATIENCE_S)
    (used,) = ring.reap()
    written, content = used.written, room.read(writable)
    driver.arena.free(buffer)
    return written, content
