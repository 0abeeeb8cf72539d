"""The core's ports: their packets go between ring and port without the interpreter.

Each says the same as its namesake in `net_ports` or `net_tap`, but a device on one of these has its
data queues served by `NetPump` threads. It takes every frame that the port has for it, so it offers
no receive filters (CTRL_RX, CTRL_VLAN): the driver filters for itself.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from virtq._core import NetHub, NetPort
from virtq.devices.net_ports import HubPort, Link, PcapPort, Port, SinkPort, SourcePort
from virtq.devices.net_tap import TapPort

if TYPE_CHECKING:
    from _typeshed import StrPath


class NativePort(Port):
    """A port of the core. Use one of the class methods."""

    def __init__(self, make: Callable[[int], NetPort], python: Callable[[], Port]) -> None:
        """`python`: makes the namesake, for a device that is wrapped."""
        self._make = make
        self._make_python = python
        self._python: Port | None = None

    @property
    def python(self) -> Port:
        """Its namesake in Python, one for all devices that share this port."""
        if self._python is None:
            self._python = self._make_python()
        return self._python

    @classmethod
    def sink(cls) -> Self:
        """Takes everything, gives nothing."""
        return cls(lambda pairs: NetPort.sink(), SinkPort)

    @classmethod
    def source(cls, size: int = 64, count: int | None = None) -> Self:
        """Gives `count` frames (None: without end) of `size` bytes, as in `NetPort.source`."""
        most = sys.maxsize if count is None else min(count, sys.maxsize)
        return cls(
            lambda pairs: NetPort.source(size, None if count is None else most),
            lambda: SourcePort(most, size),
        )

    @classmethod
    def hub(cls) -> Self:
        """A hub: give the same port to each device."""
        hub = NetHub()
        return cls(lambda pairs: NetPort.hub(hub), HubPort)

    @classmethod
    def pcap(cls, read: StrPath | None = None, write: StrPath | None = None) -> Self:
        """Gives the frames of one capture file, and writes what is sent into another."""
        return cls(lambda pairs: NetPort.pcap(read, write), lambda: PcapPort(read, write))

    @classmethod
    def tap(cls, name: str) -> Self:
        """A tap interface of the host, offloads passed through."""
        port = cls(lambda pairs: _open_tap(name, pairs), lambda: TapPort(name))
        port.offloads = TapPort.offloads
        return port

    def open(self, pairs: int) -> NativeLink:
        return NativeLink(self._make(pairs))


def _open_tap(name: str, pairs: int) -> NetPort:
    try:
        return NetPort.tap(name, pairs)
    except OSError as error:
        if error.errno == errno.EPERM:
            text = "to make a tap interface takes root; one that is there can be a user's"
        elif error.errno == errno.EINVAL:
            count = f"{pairs} queue pair{'s' if pairs > 1 else ''}"
            text = f"it is no tap interface that can have {count}"
        else:
            raise
        raise OSError(error.errno, text, name) from None


class NativeLink(Link):
    """An open port of the core; `NetPump` moves its packets."""

    def __init__(self, native: NetPort) -> None:
        super().__init__()
        self._native: NetPort | None = native
        self._offloads = 0

    @property
    def native(self) -> NetPort:
        """Raises ValueError after `close`."""
        if self._native is None:
            raise ValueError("the network device's port is closed")
        return self._native

    def configure(self, pairs: int, offloads: int) -> None:
        """Raises OSError for offloads that the kernel does not have together."""
        if self._native is not None and offloads != self._offloads:
            self._native.set_offloads(offloads)
            self._offloads = offloads

    def close(self) -> None:
        # What the port holds (a tap, a file) goes with its last owner, and a queue that is still
        # served is one: nobody's memory is closed under it.
        self._native = None
