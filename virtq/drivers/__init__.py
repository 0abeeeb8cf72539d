"""Drivers by device type, one file each; `virtq.devices` has their twins."""

from __future__ import annotations

from virtq.driver import Driver
from virtq.drivers.blk import BlkDriver
from virtq.drivers.console import ConsoleDriver
from virtq.drivers.gpio import GpioDriver
from virtq.drivers.i2c import I2cDriver
from virtq.drivers.input import InputDriver
from virtq.drivers.net import NetDriver
from virtq.drivers.rng import RngDriver
from virtq.drivers.vsock import VsockDriver
from virtq.errors import UriError


def find(device: str | int | None) -> type[Driver]:
    """The driver class for a device type by name (`blk`) or id (2); the plain `Driver` for None
    and for an id that none is for. Raises UriError for a name that none has."""
    known: list[type[Driver]] = [
        NetDriver,
        BlkDriver,
        ConsoleDriver,
        GpioDriver,
        I2cDriver,
        InputDriver,
        RngDriver,
        VsockDriver,
    ]
    for kind in known:
        if device in (kind.device_id, kind.__module__.rpartition(".")[2]):
            return kind
    if isinstance(device, str):
        names = ", ".join(kind.__module__.rpartition(".")[2] for kind in known)
        raise UriError(f"no driver is called {device!r}; there are: {names}")
    return Driver
