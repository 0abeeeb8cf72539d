"""Block devices that get one thing wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tests.check.mutants import REFERENCES, catches
from tests.check.reference import Reference, Served
from tests.check.reference_blk import Erasing, ReadOnly, Restless, Volatile
from virtq.model.memory import DeviceHalf, Taken
from virtq.wire.blk import BlkConfig, BlkFeature, Geometry, Header, Segment, Type
from virtq.wire.blk import Status as BlkStatus

REFERENCES["blk"] = (Reference, ReadOnly, Erasing)
REFERENCES["blk_config"] = (Reference, Volatile, Restless)
REFERENCES["blk_ranges"] = (Reference, ReadOnly, Erasing)

# Requests


@catches("blk.read_and_write", "blk.zeroes_read_as_zeroes")
class ForgetsWrites(Reference):
    def request(self, header: Header, data: bytes, room: int) -> tuple[int, bytes]:
        if header.type == Type.OUT:
            return BlkStatus.OK, b""
        if header.type == Type.WRITE_ZEROES:
            return BlkStatus.OK, b""
        return super().request(header, data, room)


@catches("blk.an_unknown_request", "blk.zone_requests_without_zoned")
class KnowsEverything(Reference):
    def request(self, header: Header, data: bytes, room: int) -> tuple[int, bytes]:
        status, reply = super().request(header, data, room)
        return (BlkStatus.OK if status == BlkStatus.UNSUPP else status), reply


@catches("blk.beyond_the_end")
class HasNoEnd(Reference):
    def request(self, header: Header, data: bytes, room: int) -> tuple[int, bytes]:
        if header.type == Type.IN:
            return BlkStatus.OK, bytes(room)
        return super().request(header, data, room)


@catches("blk.read_only")
class WritesReadOnly(Reference):
    offered = Reference.offered | int(BlkFeature.RO)

    def request(self, header: Header, data: bytes, room: int) -> tuple[int, bytes]:
        return (
            (BlkStatus.OK, b"") if header.type == Type.OUT else super().request(header, data, room)
        )


@catches("blk.padding")
class NoisyPadding(Reference):
    @property
    def config(self) -> bytes:
        config = bytearray(super().config)
        config[33] = 1
        return bytes(config)


@catches("blk.writeback_without_flush")
class WritebackAlways(Reference):
    def writeback(self) -> int:
        return 1


@catches("blk.discard_with_flags", "blk.zeroes_with_flags")
class IgnoresFlags(Reference):
    def ranges(self, kind: int, segments: Sequence[Segment]) -> int:
        return super().ranges(kind, [segment._replace(flags=0) for segment in segments])


@catches("blk.zeroes_with_flags", "blk_ranges.an_unknown_flag_among_many")
class LooksAtTheFirstRange(Reference):
    def ranges(self, kind: int, segments: Sequence[Segment]) -> int:
        if segments[0].flags & ~1:
            return BlkStatus.IOERR
        return super().ranges(kind, [segment._replace(flags=0) for segment in segments])


@catches("blk.every_status_is_known", "blk.odd_lengths")
class StatusesOfItsOwn(Reference):
    def request(self, header: Header, data: bytes, room: int) -> tuple[int, bytes]:
        status, reply = super().request(header, data, room)
        odd = header.type == Type.IN and room % 512
        return (77 if status == BlkStatus.UNSUPP or odd else status), reply


@catches("blk.every_status_is_known")
class StatusBehindTheData(Reference):
    """It writes the status where the data ends."""

    def handle(self, buffer: Taken) -> int:
        data = buffer.read()
        status, reply = self.request(Header.parse(data[:16]), data[16:], buffer.writable - 1)
        self.write(buffer, reply + bytes([status]))
        return len(reply) + 1


@catches("blk.the_device_id")
class NoisyId(Reference):
    def request(self, header: Header, data: bytes, room: int) -> tuple[int, bytes]:
        status, reply = super().request(header, data, room)
        if header.type == Type.GET_ID:
            reply = b"disk\0leftover".ljust(20, b"\0")
        return status, reply


@catches("blk.the_device_id")
class ClaimsThePadding(Reference):
    """It writes the ID without its padding, and reports all 20 bytes."""

    def handle(self, buffer: Taken) -> int:
        written = super().handle(buffer)
        if buffer.writable == 21:
            piece = buffer.pieces[-1]
            self.memory.write(piece.address + 10, b"\xa5" * 10)
        return written


@catches("blk.the_device_id")
class AnotherIdEachTime(Reference):
    asked = 0

    def request(self, header: Header, data: bytes, room: int) -> tuple[int, bytes]:
        status, reply = super().request(header, data, room)
        if header.type == Type.GET_ID:
            self.asked += 1
            reply = f"disk {self.asked}".encode().ljust(20, b"\0")
        return status, reply


@catches("blk.a_header_in_many_pieces")
class StatusAlone(Reference):
    """It wants the status in a descriptor of its own."""

    def handle(self, buffer: Taken) -> int:
        if buffer.pieces[-1].length != 1:
            raise ValueError("no descriptor for the status")
        return super().handle(buffer)


@catches("blk.data_beside_the_header", "blk.a_header_in_many_pieces")
class DataFromTheSecondOn(Reference):
    """It takes the header from the first descriptor and the data from those behind it."""

    def handle(self, buffer: Taken) -> int:
        first = buffer.pieces[0]
        head = self.memory.read(first.address, first.length)[:16].ljust(16, b"\0")
        rest = buffer.read()[first.length :]
        status, reply = self.request(Header.parse(head), rest, buffer.writable - 1)
        return self.put(buffer, status, reply)

    def put(self, buffer: Taken, status: int, reply: bytes) -> int:
        self.write(buffer, reply)
        self.put_last(buffer, status)
        return len(reply) or 1


@catches("blk.a_failed_read_does_not_claim_data")
class ClaimsEverything(Reference):
    def use(self, half: DeviceHalf, taken: Sequence[Taken]) -> None:
        for buffer in taken:
            self.handle(buffer)
            half.complete(buffer, buffer.writable)
        half.flush()


@catches(
    "blk.nothing_is_read_from_writable_memory",
    "blk.nothing_is_read_from_writable_memory_packed",
)
class ReadsEverything(Reference):
    """It looks for the header in whatever comes first."""

    def handle(self, buffer: Taken) -> int:
        first = buffer.pieces[0]
        if first.writable:
            head = self.memory.read(first.address, 16)
            answer = self.request(Header.parse(head), b"", buffer.writable - 1)
            self.put_last(buffer, answer[0])
            return 1
        return super().handle(buffer)


@catches("blk.odd_lengths")
class DiesOfAShortHeader(Reference):
    def handle(self, buffer: Taken) -> int:
        self.gone = self.gone or buffer.readable < 16
        return super().handle(buffer)


# Lifetime


@catches("blk.the_lifetime")
class ReservedLifetime(Erasing):
    lifetime = (4, 1, 1)


@catches("blk.the_lifetime")
class ReservedEstimate(Erasing):
    lifetime = (1, 1, 12)


@catches("blk.the_lifetime")
class LifetimeWithoutMetrics(Erasing):
    lifetime = (0, 0, 0)


@catches("blk.a_lifetime_that_is_not_offered")
class HidesItsLifetime(Erasing):
    offered = Erasing.offered & ~int(BlkFeature.LIFETIME)


# Ranges


class Sloppy(Reference):
    """Zeroes one sector more, or less, than it is asked to."""

    more = 0

    def ranges(self, kind: int, segments: Sequence[Segment]) -> int:
        return super().ranges(
            kind, [s._replace(num_sectors=s.num_sectors + self.more) for s in segments]
        )


@catches("blk_ranges.zeroes_with_unmap", "blk_ranges.as_many_ranges_as_it_says")
class ZeroesTooMuch(Sloppy):
    more = 1


@catches("blk_ranges.zeroes_with_unmap", "blk_ranges.as_many_ranges_as_it_says")
class ZeroesTooLittle(Sloppy):
    more = -1


@catches("blk_ranges.zeroes_with_unmap")
class UnmapsToNoise(Reference):
    """What was deallocated reads as something else."""

    def ranges(self, kind: int, segments: Sequence[Segment]) -> int:
        status = super().ranges(kind, segments)
        for segment in segments:
            if segment.flags & 1:
                self.content[512 * segment.sector] = 0xEE
        return status


@catches("blk_ranges.as_many_ranges_as_it_says")
class OneRange(Reference):
    def ranges(self, kind: int, segments: Sequence[Segment]) -> int:
        return super().ranges(kind, segments[:1])


@catches("blk_ranges.a_discard")
class DiscardsNothingAtAll(Reference):
    def ranges(self, kind: int, segments: Sequence[Segment]) -> int:
        return BlkStatus.UNSUPP if kind == Type.DISCARD else super().ranges(kind, segments)


@catches("blk_ranges.a_discard")
class DiscardsWhatIsBeside(Reference):
    def ranges(self, kind: int, segments: Sequence[Segment]) -> int:
        if kind == Type.DISCARD:
            self.content[: 512 * 8] = bytes(512 * 8)
        return super().ranges(kind, segments)


@catches("blk_ranges.a_secure_erase")
class ErasesNothing(Erasing):
    def erase(self, segments: Sequence[Segment]) -> int:
        return BlkStatus.OK


@catches("blk_ranges.an_erase_with_flags")
class ErasesWithFlags(Erasing):
    def erase(self, segments: Sequence[Segment]) -> int:
        return super().erase([segment._replace(flags=0) for segment in segments])


@catches("blk_ranges.zeroes_on_a_read_only_disk")
class ZeroesReadOnly(ReadOnly):
    def ranges(self, kind: int, segments: Sequence[Segment]) -> int:
        for segment in segments:
            self.content[512 * segment.sector] = 0
            self.content[512 * segment.sector + 1] = 0
        return BlkStatus.OK


# The configuration space


@catches("blk_config.the_fields_of_each_feature")
class ShortConfiguration(Reference):
    @property
    def config(self) -> bytes:
        return super().config[:50]


@catches("blk_config.the_fields_of_each_feature")
class GeometryAppearsLater(Reference):
    def blk_config(self) -> BlkConfig:
        settings = super().blk_config()
        return settings if self.features else dataclasses.replace(settings, geometry=Geometry())


@catches("blk_config.padding_after_write_zeroes")
class NoisyPaddingBehindMayUnmap(Reference):
    def blk_config(self) -> BlkConfig:
        return dataclasses.replace(super().blk_config(), unused1=b"\0\0\1")


@catches("blk_config.the_whole_capacity")
class LessThanItSays(Reference):
    def blk_config(self) -> BlkConfig:
        return dataclasses.replace(super().blk_config(), capacity=self.sectors + 1)


@catches("blk_config.as_many_segments_as_it_says")
class FewSegments(Reference):
    def handle(self, buffer: Taken) -> int:
        if len(buffer.pieces) > 20:
            raise ValueError("too many pieces")
        return super().handle(buffer)


@catches("blk_config.segments_as_large_as_it_says")
class SmallSegments(Reference):
    def handle(self, buffer: Taken) -> int:
        if max(piece.length for piece in buffer.pieces) > 2048:
            raise ValueError("a piece that is too large")
        return super().handle(buffer)


@catches("blk_config.every_queue")
class OneQueue(Reference):
    def serve(self, served: Served) -> None:
        if served is self.queues.get(0):
            super().serve(served)


@catches("blk_config.the_cache_mode_is_switched")
class ForgetsWriteback(Reference):
    def write_config(self, offset: int, data: bytes) -> None:
        """It takes it, and goes on as before."""


@catches("blk_config.the_cache_mode_is_switched")
class WritebackOfItsOwn(Reference):
    def writeback(self) -> int:
        return 2 if self.written_writeback is None else self.written_writeback


@catches("blk_config.a_flush")
class NoFlush(Reference):
    def request(self, header: Header, data: bytes, room: int) -> tuple[int, bytes]:
        if header.type == Type.FLUSH:
            return BlkStatus.UNSUPP, b""
        return super().request(header, data, room)


@catches("blk_config.what_was_flushed_stays")
class FlushesNothing(Volatile):
    def request(self, header: Header, data: bytes, room: int) -> tuple[int, bytes]:
        if header.type == Type.FLUSH:
            return BlkStatus.OK, b""
        return super().request(header, data, room)


@catches("blk_config.what_was_written_through_stays")
class WritebackAllTheTime(Volatile):
    def is_written_through(self) -> bool:
        return not self.features & (BlkFeature.FLUSH | BlkFeature.CONFIG_WCE)


@catches("blk_config.what_was_written_without_a_cache_stays")
class CachesWithoutFlush(Volatile):
    def is_written_through(self) -> bool:
        return bool(self.features & BlkFeature.CONFIG_WCE) and not self.writeback()


@catches("blk_config.a_capacity_that_changes", "blk_config.may_unmap_that_changes")
class ChangesSilently(Restless):
    def tell_of_change(self) -> None:
        """Nobody is told."""


@catches("blk_config.a_capacity_that_changes")
class SaysThatItGrew(Restless):
    """It announces another capacity than it has."""

    def blk_config(self) -> BlkConfig:
        grew = self.sectors != Reference.sectors
        return dataclasses.replace(super().blk_config(), capacity=self.sectors + 8 * grew)


@catches("blk_config.may_unmap_that_changes")
class StopsZeroes(Restless):
    def ranges(self, kind: int, segments: Sequence[Segment]) -> int:
        changed = self.sectors != Reference.sectors
        return BlkStatus.IOERR if changed else super().ranges(kind, segments)
