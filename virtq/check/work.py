"""Requests that a device type is known to serve, so that rings can be judged on any device."""

from __future__ import annotations

import struct
from typing import Protocol

from virtq.check.session import UNTOUCHED, Job, Session
from virtq.wire import blk, gpio, i2c, input, net, vsock

ENTROPY_ID, CONSOLE_ID = 4, 3
_FRAME_BYTES = 60
_ENTROPY_BYTES = 64
FS_ID = 26
FUSE_IN, FUSE_OUT = struct.Struct("<IIQQIII4x"), struct.Struct("<IiQ")
"""FUSE's heads of a request (length, operation, number, node, user, group, process) and of an
answer (length, error, number)."""
_STATFS_BYTES = 80


class Work(Protocol):
    """What to ask of a device type."""

    queue: int
    """The virtqueue that the jobs go to."""
    features: int
    """Device-specific features to negotiate where they are offered."""

    def prepare(self, session: Session) -> None:
        """Set up other virtqueues that the device needs to do its work."""
        ...

    def job(self, seed: int) -> Job:
        """A buffer that the device uses soon; different for each seed."""
        ...


class BlkWork:
    """Reads of sectors that are never written, and GET_ID in turn (5.2.6)."""

    queue, features = 0, 0

    def prepare(self, session: Session) -> None:
        """A request queue stands alone."""

    def job(self, seed: int) -> Job:
        if seed % 2:
            return Job(
                blk.Header(blk.Type.GET_ID, 0).pack(), blk.ID_BYTES + 1, _ends_with_ok, full=True
            )
        header = blk.Header(blk.Type.IN, seed // 2 % 8)
        return Job(header.pack(), blk.SECTOR_BYTES + 1, _ends_with_ok, full=True)


def _ends_with_ok(reply: bytes, written: int) -> str | None:
    if reply[-1] == UNTOUCHED:
        return "no status was written"
    if reply[-1] != blk.Status.OK:
        return f"status {reply[-1]}"
    # A length may understate (2.7.8.2), but not what lies before the status.
    return None


class NetWork:
    """Frames to transmit (5.1.6.2)."""

    queue, features = 1, 0

    def prepare(self, session: Session) -> None:
        """A receive queue, which stays empty."""
        session.ring(0)

    def job(self, seed: int) -> Job:
        frame = bytes(6) + struct.pack("!6sHI", b"\x02virtq", 0x88B5, seed)
        return Job(bytes(net.HEADER_BYTES) + frame.ljust(_FRAME_BYTES, b"\0"), 0, _nothing)


def _nothing(reply: bytes, written: int) -> str | None:
    return f"{written} bytes are reported as written" if written else None


class EntropyWork:
    """Buffers for random bytes (5.4.6)."""

    queue, features = 0, 0

    def prepare(self, session: Session) -> None:
        """The one queue stands alone."""

    def job(self, seed: int) -> Job:
        return Job(b"", _ENTROPY_BYTES, _some_entropy)


def _some_entropy(reply: bytes, written: int) -> str | None:
    if not written:
        return "a buffer without a single random byte (5.4.6.1)"
    beyond = reply[written:]
    if written == len(reply) and reply == bytes([UNTOUCHED]) * len(reply):
        return f"{written} bytes are reported as written, and none was"
    if beyond and beyond != bytes([UNTOUCHED]) * len(beyond):
        return None  # more may have been written than is reported
    return None


class ConsoleWork:
    """Characters to transmit on port 0 (5.3.6)."""

    queue, features = 1, 0

    def prepare(self, session: Session) -> None:
        """The receive queue of port 0, which stays empty."""
        session.ring(0)

    def job(self, seed: int) -> Job:
        return Job(f"line {seed}\n".encode(), 0, _nothing)


class VsockWork:
    """Resets of connections that there are none of, which need no answer (5.10.6.5)."""

    queue, features = vsock.TRANSMIT, 0
    _cid = 3

    def prepare(self, session: Session) -> None:
        """The queues that the device fills, which stay empty."""
        config = session.transport.read_config(0, 8) if session.transport.config_size >= 8 else b""
        self._cid = int.from_bytes(config, "little") or self._cid
        session.ring(vsock.RECEIVE)
        session.ring(vsock.EVENT)

    def job(self, seed: int) -> Job:
        ports = 0x1000_0000 + seed % 0x1000, 0x2000_0000 + seed
        header = vsock.Header(self._cid, vsock.HOST_CID, *ports, op=vsock.Op.RST)
        return Job(header.pack(), 0, _nothing)


class InputWork:
    """Lights, on and off (5.8.6.2)."""

    queue, features = 1, 0
    _EV_LED = 0x11

    def prepare(self, session: Session) -> None:
        """The event queue, which stays empty."""
        session.ring(0)

    def job(self, seed: int) -> Job:
        return Job(input.Event(self._EV_LED, seed // 2 % 3, seed % 2).pack(), 0, _nothing)


class I2cWork:
    """Bytes written to targets, which need not be there: then the status is ERR (5.16.6)."""

    queue, features = 0, int(i2c.I2cFeature.ZERO_LENGTH_REQUEST)

    def prepare(self, session: Session) -> None:
        """The one queue stands alone."""

    def job(self, seed: int) -> Job:
        address = i2c.encode_address(0x08 + seed % 0x10)
        return Job(i2c.Header(address, 0).pack() + bytes([seed % 256]), 1, _ends_in_01, full=True)


class GpioWork:
    """Questions for the direction of line 0 (5.18.6)."""

    queue, features = 0, 0

    def prepare(self, session: Session) -> None:
        """The event queue is there with IRQ only, which is not negotiated."""

    def job(self, seed: int) -> Job:
        request = gpio.Request(gpio.Message.GET_DIRECTION)
        return Job(request.pack(), gpio.RESPONSE_BYTES, _begins_with_01, full=True)


class FsWork:
    """Questions for the room that is left, FUSE_STATFS of the root (5.11.6): whether they fail does
    not matter, but they are answered."""

    queue, features = 1, 0
    _STATFS, _ROOT = 17, 1

    def prepare(self, session: Session) -> None:
        """The queue for urgent requests, which stays empty."""
        session.ring(0)

    def job(self, seed: int) -> Job:
        def judge(reply: bytes, written: int) -> str | None:
            length, error, unique = FUSE_OUT.unpack_from(reply)
            if unique != seed + 1:
                return f"an answer to request {unique}, not {seed + 1}"
            if error > 0 or not FUSE_OUT.size <= length <= len(reply):
                return f"an answer of {length} bytes with error {error}"
            return None

        size = FUSE_IN.size
        request = FUSE_IN.pack(size, self._STATFS, seed + 1, self._ROOT, 0, 0, 0)
        return Job(request, FUSE_OUT.size + _STATFS_BYTES, judge)


def _ends_in_01(reply: bytes, written: int) -> str | None:
    return None if reply[-1] in (0, 1) else f"status {reply[-1]:#x}"


def _begins_with_01(reply: bytes, written: int) -> str | None:
    return None if reply[0] in (0, 1) else f"status {reply[0]:#x}"


WORK: dict[int, type[Work]] = {
    blk.DEVICE_ID: BlkWork,
    net.DEVICE_ID: NetWork,
    ENTROPY_ID: EntropyWork,
    CONSOLE_ID: ConsoleWork,
    vsock.DEVICE_ID: VsockWork,
    input.DEVICE_ID: InputWork,
    i2c.DEVICE_ID: I2cWork,
    gpio.DEVICE_ID: GpioWork,
    FS_ID: FsWork,
}
"""By device id."""
