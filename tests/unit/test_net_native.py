"""Network devices on a port of the core: who holds the port, and how long."""

from __future__ import annotations

import pytest

from virtq._core import NetHub, NetPort
from virtq.devices.net import NetDevice
from virtq.devices.net_native import NativeLink, NativePort
from virtq.devices.net_ports import HubPort
from virtq.wire.net import NetFeature


def test_a_device_that_is_closed_holds_its_port_no_longer() -> None:
    """Whoever still holds the device: a tap can be opened again at once."""
    hub = NetHub()
    device = NetDevice(NativePort(lambda pairs: NetPort.hub(hub), HubPort))
    assert hub.members == 1
    device.close()
    assert hub.members == 0
    device.close()
    device.negotiated(NetFeature.GUEST_CSUM)
    device.reset()
    assert isinstance(device.link, NativeLink)
    with pytest.raises(ValueError, match="port is closed"):
        _ = device.link.native
