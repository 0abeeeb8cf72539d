"""Entropy (5.4) and consoles (5.3): what their buffers are."""

from __future__ import annotations

from collections.abc import Callable

from virtq.check.case import NotObservable, case, expect
from virtq.check.driver.context import DriverContext
from virtq.check.driver.peer import Peer, serve_plainly
from virtq.check.driver.roles import Switchboard
from virtq.wire.console import CONTROL_RECEIVE, ConsoleFeature, Control, Event


@case("entropy.op.drv.no-readable", party="driver", device_id=4)
def entropy_buffers_are_for_writing(driver: DriverContext) -> None:
    """The queue of an entropy device has no device-readable buffers."""
    for chain in driver.seen().chains():
        count = chain.readable_bytes
        expect(not count, f"{chain}: nothing to read", f"{count} bytes")


@case("console.op.drv.rx-no-readable", party="driver", device_id=3)
def console_receive_buffers_are_for_writing(driver: DriverContext) -> None:
    """Receive queues of a console have no device-readable buffers."""
    for chain in driver.seen().chains(0):
        count = chain.readable_bytes
        expect(not count, f"{chain}: nothing to read", f"{count} bytes")


@case("console.op.drv.tx-no-writable", party="driver", device_id=3)
def console_transmit_buffers_are_for_reading(driver: DriverContext) -> None:
    """Transmit queues of a console have no device-writable buffers."""
    for chain in driver.seen().chains(1):
        count = chain.writable_bytes
        expect(not count, f"{chain}: nothing to write", f"{count} bytes")


def _multiport(driver: DriverContext) -> tuple[Peer, Switchboard]:
    """A driver of a console with control queues. Raises NotObservable if it does not take them."""
    role = Switchboard()
    features = driver.offer.features | ConsoleFeature.MULTIPORT
    peer = driver.fresh(driver.offer.with_(features=features), role)
    driver.going(peer)
    if not (peer.features or 0) & ConsoleFeature.MULTIPORT:
        raise NotObservable("MULTIPORT was not accepted")
    peer.service = serve_plainly(peer)
    return peer, role


def _hear(driver: DriverContext, peer: Peer, said: Callable[[], bool]) -> bool:
    """Whether the driver says it in time."""
    return any(said() for _ in peer.turns(driver.patience_s))


def _say(driver: DriverContext, peer: Peer, message: Control) -> None:
    ring = peer.rings.get(CONTROL_RECEIVE)
    if ring is None:
        raise NotObservable("the control receive queue is not set up")
    peer.until(lambda: bool(ring.held), driver.patience_s, "a buffer for a control message")
    chain = ring.held[0]
    assert chain.taken is not None
    chain.taken.write(message.pack())
    ring.complete(chain, len(message.pack()))
    ring.publish()
    ring.notify()
    ring.enable_kicks()


def _ready(role: Switchboard) -> bool:
    return any(said.event == Event.DEVICE_READY and said.value == 1 for said in role.heard)


@case("console.multi.drv.device-ready", party="driver", device_id=3, rings=False, alone=True)
def a_console_says_that_it_is_ready(driver: DriverContext) -> None:
    """With MULTIPORT the driver sends DEVICE_READY with value 1 when it is."""
    peer, role = _multiport(driver)
    ready = _hear(driver, peer, lambda: _ready(role))
    expect(ready, "DEVICE_READY with value 1", [str(said) for said in role.heard])


@case(
    "console.multi.drv.port-open-reply",
    "console.multi.drv.port-open-value",
    party="driver",
    device_id=3,
    rings=False,
    alone=True,
)
def a_console_port_is_opened(driver: DriverContext) -> None:
    """A driver that is told that a port is a console answers with PORT_OPEN, of value 1."""
    peer, role = _multiport(driver)
    if not _hear(driver, peer, lambda: _ready(role)):
        raise NotObservable("the driver does not say that it is ready")
    _say(driver, peer, Control(0, Event.DEVICE_ADD))
    _hear(driver, peer, lambda: any(said.event == Event.PORT_READY for said in role.heard))
    _say(driver, peer, Control(0, Event.CONSOLE_PORT, 1))
    _hear(driver, peer, lambda: any(said.event == Event.PORT_OPEN for said in role.heard))
    opened = [said for said in role.heard if said.event == Event.PORT_OPEN and said.id == 0]
    told = [str(said) for said in role.heard]
    expect(opened and opened[0].value == 1, "PORT_OPEN of port 0 with value 1", told)
