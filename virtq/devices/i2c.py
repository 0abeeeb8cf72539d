"""The I2C adapter (VIRTIO 1.4, section 5.16): a bus with simulated targets on it.

    adapter = I2cAdapter({0x50: Eeprom("eeprom.bin"), 0x48: Thermometer()})
    virtq.serve(adapter, "vhost-user:/run/i2c.sock")

Requests are served strictly one after the other (5.16.6.4), however long a target takes. Requests
that FAIL_NEXT ties together are one transaction: what follows a failed one fails without being
tried. Nothing that a driver sends breaks the bus; a request that makes no sense, or goes to an
address where nobody is, ends with the status ERR, and one without room for a status with nothing
written.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from inspect import isawaitable

from virtq._core import Request
from virtq.device import Device, QueueSpec
from virtq.devices.i2c_targets import Eeprom, I2cTarget, Nak, Registers
from virtq.errors import FeatureError
from virtq.features import Change
from virtq.wire.i2c import (
    ADDRESS_MAX,
    DEVICE_ID,
    HEADER_BYTES,
    MESSAGE_BYTES_MAX,
    STATUS_BYTES,
    Flags,
    Header,
    I2cFeature,
    Status,
    decode_address,
)

__all__ = ["Eeprom", "I2cAdapter", "I2cTarget", "Nak", "Registers"]

log = logging.getLogger("virtq.device")

_KNOWN_FLAGS = Flags.FAIL_NEXT | Flags.M_RD


class I2cAdapter(Device):
    """An I2C bus, with targets by address: up to 0x7f with 7 bits, from 0x80 to 0x3ff with 10."""

    device_id = DEVICE_ID
    features = I2cFeature.ZERO_LENGTH_REQUEST
    feature_bits = I2cFeature

    def __init__(
        self,
        targets: Mapping[int, I2cTarget] | None = None,
        *,
        queue_size: int = 64,
        offer: Change | str = "",
    ) -> None:
        """Raises ValueError for an address that there is not."""
        self.targets: dict[int, I2cTarget] = {}
        self.offer = offer
        self.queues = (QueueSpec("requestq", queue_size),)
        self.was_reset()
        for address, target in (targets or {}).items():
            self.attach(address, target)

    # What an author calls

    def attach(self, address: int, target: I2cTarget) -> None:
        """Put a target on the bus, in place of what is there. Raises ValueError for an address that
        there is not."""
        if not 0 <= address <= ADDRESS_MAX:
            raise ValueError(f"an I2C address is 0 to {ADDRESS_MAX:#x}, not {address:#x}")
        self.targets[address] = target

    def detach(self, address: int) -> I2cTarget:
        """Take a target off the bus. Raises KeyError if there is none."""
        return self.targets.pop(address)

    # Life

    def negotiated(self, features: int) -> None:
        """Raises FeatureError unless ZERO_LENGTH_REQUEST was accepted (5.16.6.4)."""
        if not features & I2cFeature.ZERO_LENGTH_REQUEST:
            raise FeatureError("a driver has to accept ZERO_LENGTH_REQUEST (5.16.6.4)")

    def was_reset(self) -> None:
        # Requests of the old driver that wait for their turn are cancelled with their queue.
        self._turn = asyncio.Lock()
        self._fail_next = False
        self._addressed: list[I2cTarget] = []

    def close(self) -> None:
        """Close every target."""
        for target in self.targets.values():
            target.close()

    # Requests

    async def handle(self, request: Request) -> int:
        """Serve one request when it is its turn; returns the bytes written to it."""
        async with self._turn:
            flags = Flags(0)
            try:
                header = self._header(request)
                flags = Flags(header.flags & _KNOWN_FLAGS)
                failed = self._fail_next or not await self._serve(request, header)
            except Exception:
                await self._end_request(flags, failed=True)
                raise
            await self._end_request(flags, failed=failed)
        return _finish(request, Status.ERR if failed else Status.OK)

    def fail(self, request: Request, error: Exception) -> int:
        """A target raised something else than `Nak`: the request ends with ERR."""
        return _finish(request, Status.ERR)

    def _header(self, request: Request) -> Header:
        if request.readable < HEADER_BYTES:
            return _NO_HEADER
        return Header.parse(request.read(HEADER_BYTES))

    async def _serve(self, request: Request, header: Header) -> bool:
        """Have the target do its work; False if the request failed."""
        address = decode_address(header.addr)
        target = None if address is None else self.targets.get(address)
        sent = request.readable - HEADER_BYTES
        room = request.writable - STATUS_BYTES
        reads = header.flags & Flags.M_RD
        wrong_way = sent if reads else room  # bytes of the other direction's kind
        if target is None or header.flags & ~_KNOWN_FLAGS or room < 0 or wrong_way:
            return False
        if max(sent, room) > MESSAGE_BYTES_MAX:
            return False
        if target not in self._addressed:
            self._addressed.append(target)
        try:
            if not reads:
                written = target.write(request.read())
                if isawaitable(written):
                    await written
                return True
            data = target.read(room)
            if isawaitable(data):
                data = await data
        except Nak:
            return False
        if len(data) != room:
            raise ValueError(f"{target!r} read {len(data)} bytes instead of {room}")
        request.write(data)
        return True

    async def _end_request(self, flags: Flags, *, failed: bool) -> None:
        """What the next request has to know; after the last one of a transaction, nothing."""
        self._fail_next = failed and Flags.FAIL_NEXT in flags
        if Flags.FAIL_NEXT in flags:
            return
        addressed, self._addressed = self._addressed, []
        for target in addressed:
            try:
                stopped = target.stop()
                if isawaitable(stopped):
                    await stopped
            except Exception:
                log.exception("%r failed at the end of a transaction", target)


_NO_HEADER = Header(0xFFFF, 0)


def _finish(request: Request, status: Status) -> int:
    """Write the status as the last byte. It counts as written only when all before it was: a read
    that failed reports nothing, and is not to be skipped under IN_ORDER (2.7.9)."""
    if request.writable < STATUS_BYTES:
        return 0
    data_written, status_at = request.written, request.writable - STATUS_BYTES
    request.write_at(status_at, bytes([status]))
    return request.writable if data_written == status_at else data_written
