"""Entropy (5.4) and consoles (5.3): what their buffers are."""

from __future__ import annotations

from virtq.check.case import case, expect
from virtq.check.driver.context import DriverContext


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
