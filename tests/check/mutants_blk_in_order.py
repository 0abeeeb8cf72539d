"""Block devices whose order of use, or whose batches, are wrong for some requests."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tests.check.mutants import REFERENCES, catches
from tests.check.reference import Packed, Reference, Split
from virtq.model.memory import DeviceHalf, Taken
from virtq.wire.blk import Header, Type
from virtq.wire.blk import Status as BlkStatus

REFERENCES["blk_in_order"] = (Reference,)


class OutOfOrder(Reference):
    """What is quick is used first."""

    def is_quick(self, buffer: Taken) -> bool:
        return buffer.writable < 512

    def use(self, half: DeviceHalf, taken: Sequence[Taken]) -> None:
        had, half.in_order = half.in_order, False
        for buffer in filter(self.is_quick, taken):
            half.complete(buffer, self.handle(buffer))
        half.flush()
        time.sleep(0.002)
        for buffer in taken:
            if not self.is_quick(buffer):
                half.complete(buffer, self.handle(buffer))
        half.flush()
        half.in_order = had


@catches("blk_in_order.slow_ones_and_quick_ones", "blk_in_order.requests_of_every_sort")
class QuickOnesFirst(OutOfOrder):
    """Small reads and requests without data before large reads."""


@catches("blk_in_order.writes_and_flushes")
class FlushesLast(OutOfOrder):
    """Writes before flushes."""

    def is_quick(self, buffer: Taken) -> bool:
        return buffer.readable > 16


@catches("blk_in_order.writes_and_flushes")
class LosesWritesBehindAFlush(Reference):
    flushed = False

    def request(self, header: Header, data: bytes, room: int) -> tuple[int, bytes]:
        lost = header.type == Type.OUT and self.flushed
        self.flushed = header.type == Type.FLUSH
        return (BlkStatus.OK, b"") if lost else super().request(header, data, room)


class CallsItFull(Reference):
    """A read that failed counts as written to the end, and is skipped."""

    class split(Split):
        def complete(self, buffer: Taken, written: int) -> None:
            super().complete(buffer, buffer.writable if self.in_order else written)

    class packed(Packed):
        def complete(self, buffer: Taken, written: int) -> None:
            super().complete(buffer, buffer.writable if self.in_order else written)


@catches("blk_in_order.what_fails_is_not_skipped")
class SkipsFailures(CallsItFull):
    """In both layouts."""


@catches("blk_in_order.what_fails_is_not_skipped")
class FailsWhatIsBeside(Reference):
    failed = False

    def request(self, header: Header, data: bytes, room: int) -> tuple[int, bytes]:
        status, reply = super().request(header, data, room)
        before, self.failed = self.failed, status == BlkStatus.IOERR
        return (BlkStatus.IOERR, b"") if before else (status, reply)


@catches("blk_in_order.requests_of_every_sort")
class StopsAtTheUnknown(Reference):
    def request(self, header: Header, data: bytes, room: int) -> tuple[int, bytes]:
        status, reply = super().request(header, data, room)
        if status == BlkStatus.UNSUPP:
            raise ValueError("a request that it does not know")
        return status, reply
