"""What the tests of the block device share: a disk that fails as told, hand-made requests."""

from __future__ import annotations

import errno
import os

from virtq import Driver
from virtq._core import BlkDisk
from virtq.devices.blk import BlkDevice
from virtq.devices.disk import Disk
from virtq.features import Change, RingKind
from virtq.transports.loopback import LoopbackTransport
from virtq.wire.blk import Header

MIB = 1 << 20
OK, IOERR, UNSUPP = b"\0", b"\1", b"\2"
UNTOUCHED = b"\xaa"


class Faulty(Disk):
    """A disk in memory that counts flushes, and fails as told."""

    def __init__(self, size: int = MIB) -> None:
        super().__init__(BlkDisk.memory(size), "faulty")
        self.flushes = 0
        self.error: int | None = None
        self.fails_from = size

    def _fail(self) -> None:
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))

    def read(self, offset: int, length: int) -> bytes:
        self._fail()
        if offset + length > self.fails_from:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read(offset, length)

    def write(self, offset: int, data: object) -> None:
        self._fail()
        super().write(offset, data)  # type: ignore[arg-type]

    def flush(self) -> None:
        self._fail()
        self.flushes += 1


class Raw:
    """Sends hand-made requests to a block device."""

    def __init__(self, device: BlkDevice, kind: RingKind = RingKind.SPLIT) -> None:
        self.device = device
        change = Change(kind.change.add | device.features, kind.change.remove)
        self.driver = Driver(LoopbackTransport(device), offer=change)
        self.buffer = self.driver.arena.alloc(4 << 20)

    def send(
        self, readable: bytes, writable: int, cuts: tuple[list[int], list[int]] = ([], [])
    ) -> tuple[bytes, int]:
        """The device-writable part afterwards (0xaa where untouched) and the used length."""
        out_at, in_at = 0, 2 << 20
        self.buffer.write(readable)
        self.buffer.write(UNTOUCHED * max(1, writable), in_at)
        queue = self.driver.queues[0]

        def pieces(at: int, length: int, marks: list[int]) -> list[tuple[int, int]]:
            ends = sorted({m for m in marks if 0 < m < length} | {length})
            starts = [0, *ends[:-1]]
            return [
                (self.buffer.addr + at + a, b - a)
                for a, b in zip(starts, ends, strict=True)
                if b > a
            ]

        queue.core.add(pieces(out_at, len(readable), cuts[0]), pieces(in_at, writable, cuts[1]), 1)
        queue.kick()
        assert queue.wait(10)
        [(_cookie, written)] = queue.core.reap()
        return self.buffer.read(writable, in_at), written

    def status(self, kind: int, sector: int = 0, data: bytes = b"", room: int = 0) -> bytes:
        """The status of one request."""
        return self.send(Header(kind, sector).pack() + data, room + 1)[0][-1:]
