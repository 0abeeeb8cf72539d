"""The block device (VIRTIO 1.4, section 5.2).

    virtq.serve(BlkDevice(Disk.file("disk.img"), queues=2), "vhost-user:/run/disk.sock")

Whatever the file or the driver does wrong ends as the status of that request: IOERR for what
failed or makes no sense, UNSUPP for what this device does not know. A request without room for a
status is used with nothing written.

The used length counts bytes from the start of the device-writable part (2.7.8.2). The status byte
is the last of them, so it is counted only when all before it were written: a read that failed
reports what it had read, which under IN_ORDER also keeps the request from being skipped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from virtq._core import BlkPump, DeviceQueue, Request
from virtq.device import Device, QueueSpec
from virtq.devices.disk import CHUNK_BYTES, Disk
from virtq.errors import ConfigError
from virtq.features import Change
from virtq.pump import PumpRunner
from virtq.runner import Runner
from virtq.wire.blk import (
    DEVICE_ID,
    HEADER_BYTES,
    ID_BYTES,
    SECTOR_BYTES,
    SEGMENT_BYTES,
    SEGMENT_UNMAP,
    BlkConfig,
    BlkFeature,
    Header,
    Segment,
    Status,
    Topology,
    Type,
)

log = logging.getLogger("virtq.device")

DISCARD_SECTORS_MAX = 1 << 22
DISCARD_SEGMENTS_MAX = 32


class BlkDevice(Device):
    """A disk behind one or more request queues."""

    device_id = DEVICE_ID
    request_kinds = ("read", "write", "flush", "get-id", "discard", "write-zeroes")

    def __init__(
        self,
        disk: Disk,
        *,
        queues: int = 1,
        queue_size: int = 256,
        read_only: bool = False,
        block_size: int = SECTOR_BYTES,
        physical_block_size: int | None = None,
        segment_bytes_max: int = 0,
        segments_max: int | None = None,
        serial: str = "virtq",
        one_used_entry_per_buffer: bool = False,
        offer: Change | str = "",
        wait: str = "event",
    ) -> None:
        """`block_size`, `physical_block_size`: bytes, powers of two from 512, as advice for the
        driver. `segment_bytes_max` (0: no limit) and `segments_max` (default: the queue size less
        two): what one request may hold. `serial`: what GET_ID answers, up to 20 ASCII characters.
        `wait`: how the data path of a native disk waits for requests: poll, adaptive or event.

        Raises ValueError for values that make no sense together.
        """
        physical = block_size if physical_block_size is None else physical_block_size
        _check_block_sizes(block_size, physical)
        if not 1 <= queues <= 0xFFFF:
            raise ValueError(f"a block device has 1 to 65535 request queues, not {queues}")
        if not serial.isascii() or len(serial) > ID_BYTES:
            raise ValueError(f"the serial {serial!r} is not up to {ID_BYTES} ASCII characters")
        self.disk = disk
        self.read_only = read_only or disk.read_only
        self.serial = serial
        self.offer = offer
        self.wait = wait
        self.one_used_entry_per_buffer = one_used_entry_per_buffer
        self.queues = [QueueSpec(f"requestq{i + 1}", queue_size) for i in range(queues)]
        self.write_through = False
        self._logged: set[int] = set()
        self.features = self._features(queues, segment_bytes_max)
        changes = 0 if self.read_only else 1
        self.config = BlkConfig(
            capacity=disk.capacity,
            size_max=segment_bytes_max,
            seg_max=max(1, queue_size - 2) if segments_max is None else segments_max,
            blk_size=block_size,
            topology=Topology(
                physical_block_exp=(physical // block_size).bit_length() - 1,
                min_io_size=max(1, physical // block_size),
            ),
            writeback=1,
            num_queues=queues,
            max_discard_sectors=DISCARD_SECTORS_MAX * changes,
            max_discard_seg=DISCARD_SEGMENTS_MAX * changes,
            discard_sector_alignment=physical // SECTOR_BYTES * changes,
            max_write_zeroes_sectors=DISCARD_SECTORS_MAX * changes,
            max_write_zeroes_seg=DISCARD_SEGMENTS_MAX * changes,
            write_zeroes_may_unmap=changes,
        )

    def _features(self, queues: int, segment_bytes_max: int) -> int:
        f = BlkFeature
        features = f.FLUSH | f.CONFIG_WCE | f.BLK_SIZE | f.TOPOLOGY | f.SEG_MAX
        features |= f.RO if self.read_only else f.DISCARD | f.WRITE_ZEROES
        features |= f.MQ if queues > 1 else f(0)
        return features | (f.SIZE_MAX if segment_bytes_max else f(0))

    # Life

    def negotiated(self, features: int) -> None:
        if features & BlkFeature.CONFIG_WCE:
            self.config.writeback = 1 if features & BlkFeature.FLUSH else 0  # 5.2.5.2
            self._set_write_through(self.config.writeback == 0)
        else:
            flush_declined = self.offered_features & ~features & BlkFeature.FLUSH
            self._set_write_through(bool(flush_declined))  # 5.2.6.2, first case of a stable write

    def config_written(self, field: str, value: Any) -> None:
        """`writeback`, the only writable field, switches the write cache (5.2.5)."""
        if not self.driver_features & BlkFeature.CONFIG_WCE:
            raise ConfigError("writeback cannot be written: CONFIG_WCE was not negotiated")
        if value not in (0, 1):
            raise ConfigError(f"writeback is 0 or 1, not {value}")
        self._set_write_through(value == 0)

    def _set_write_through(self, on: bool) -> None:
        self.write_through = on
        if self.disk.is_native:
            self.disk.native.writeback = not on

    def request_kind(self, request: Request) -> str:
        head = request.peek(HEADER_BYTES)
        return _KINDS.get(Header.parse(head).type, "") if len(head) == HEADER_BYTES else ""

    def runner(self, queue: DeviceQueue) -> Runner:
        """The core's data path for the core's disks; `handle` for one's own disks and devices, and
        within a wrapper."""
        own = type(self).handle is not BlkDevice.handle or not isinstance(queue, DeviceQueue)
        if own or not self.disk.is_native:
            return super().runner(queue)
        native, config = self.disk.native, self.config
        discard = bool(self.driver_features & BlkFeature.DISCARD)
        zeroes = bool(self.driver_features & BlkFeature.WRITE_ZEROES)
        native.serial = self.serial.encode()
        native.set_limits(
            max_discard_sectors=config.max_discard_sectors * discard,
            max_discard_seg=config.max_discard_seg * discard,
            max_write_zeroes_sectors=config.max_write_zeroes_sectors * zeroes,
            max_write_zeroes_seg=config.max_write_zeroes_seg * zeroes,
        )
        return PumpRunner(
            queue,
            partial(BlkPump, native, queue, wait=self.wait, enabled=False),
            name=self.queue_name(queue.index),
            missed=self._resolve_miss,
            ended=self._log_failure,
        )

    def _log_failure(self) -> None:
        if self.disk.is_native and (error := self.disk.native.failure()) is not None:
            self._log_once(error)

    def was_reset(self) -> None:
        self.config.writeback = 1
        self._set_write_through(False)
        self._log_failure()

    def close(self) -> None:
        """Close the disk."""
        self.disk.close()

    def refresh_capacity(self) -> bool:
        """Look at the disk's size again, and tell the driver if it changed (5.2.6.2). True if
        so."""
        capacity = self.disk.capacity
        if capacity == self.config.capacity:
            return False
        self.config.capacity = capacity
        self.config_changed()
        return True

    # Requests

    def handle(self, request: Request) -> int:
        """Serve one request of any framing (2.6.4); returns the bytes written to it."""
        if request.writable == 0:
            return 0
        try:
            status = self._serve(request)
        except OSError as error:
            status = Status.IOERR
            self._log_once(error)
        return self._end(request, status)

    def fail(self, request: Request, error: Exception) -> int:
        """IOERR for what a disk or a subclass of one's own raised beside OSError."""
        return self._end(request, Status.IOERR) if request.writable else 0

    def _end(self, request: Request, status: Status) -> int:
        data_written, status_at = request.written, request.writable - 1
        request.write_at(status_at, bytes([status]))
        return request.writable if data_written == status_at else data_written

    def _serve(self, request: Request) -> Status:
        if request.readable < HEADER_BYTES:
            return Status.IOERR
        header = Header.parse(request.read(HEADER_BYTES))
        serve = _SERVE.get(header.type)
        return serve(self, request, header) if serve else Status.UNSUPP

    def _read(self, request: Request, header: Header) -> Status:
        length = request.writable - 1
        if not self._in_range(header.sector, length):
            return Status.IOERR
        start = header.sector * SECTOR_BYTES
        for at in range(0, length, CHUNK_BYTES):
            request.write(self.disk.read(start + at, min(CHUNK_BYTES, length - at)))
        return Status.OK

    def _write(self, request: Request, header: Header) -> Status:
        length = request.readable - HEADER_BYTES
        if self.read_only or not self._in_range(header.sector, length):
            return Status.IOERR
        start = header.sector * SECTOR_BYTES
        for at in range(0, length, CHUNK_BYTES):
            self.disk.write(start + at, request.read(CHUNK_BYTES))
        return self._stable()

    def _flush(self, request: Request, header: Header) -> Status:
        self.disk.flush()
        return Status.OK

    def _get_id(self, request: Request, header: Header) -> Status:
        if request.writable - 1 < ID_BYTES:
            return Status.IOERR
        request.write(self.serial.encode().ljust(ID_BYTES, b"\0"))
        return Status.OK

    def _discard(self, request: Request, header: Header) -> Status:
        limits = self.config.max_discard_seg, self.config.max_discard_sectors
        segments = self._segments(request, BlkFeature.DISCARD, limits, flags=0)
        if isinstance(segments, Status):
            return segments
        for segment in segments:
            self.disk.discard(*_byte_range(segment))
        return Status.OK

    def _write_zeroes(self, request: Request, header: Header) -> Status:
        limits = self.config.max_write_zeroes_seg, self.config.max_write_zeroes_sectors
        segments = self._segments(request, BlkFeature.WRITE_ZEROES, limits, flags=SEGMENT_UNMAP)
        if isinstance(segments, Status):
            return segments
        for segment in segments:
            unmap = bool(segment.flags & SEGMENT_UNMAP)
            self.disk.write_zeroes(*_byte_range(segment), unmap=unmap)
        return self._stable()

    def _segments(
        self, request: Request, feature: BlkFeature, limits: tuple[int, int], flags: int
    ) -> Sequence[Segment] | Status:
        """The segments that make up the rest of the request if all of them are acceptable, else
        what is wrong with one: UNSUPP for a flag outside `flags`, IOERR for what exceeds a limit
        (5.2.6.2)."""
        if self.read_only:
            return Status.IOERR
        if not self.driver_features & feature:
            return Status.UNSUPP
        segments_max, sectors_max = limits
        length = request.readable - HEADER_BYTES
        if not 0 < length <= segments_max * SEGMENT_BYTES or length % SEGMENT_BYTES:
            return Status.IOERR
        segments = Segment.parse_all(request.read())
        if any(segment.flags & ~flags for segment in segments):
            return Status.UNSUPP
        for sector, num_sectors, _flags in segments:
            if num_sectors > sectors_max or not self._in_range(sector, num_sectors * SECTOR_BYTES):
                return Status.IOERR
        return [segment for segment in segments if segment.num_sectors]

    def _in_range(self, sector: int, length: int) -> bool:
        sectors, rest = divmod(length, SECTOR_BYTES)
        capacity: int = self.config.capacity
        return rest == 0 and sector + sectors <= capacity

    def _stable(self) -> Status:
        """A write is about to be reported: with the write cache off it has to be on storage
        first."""
        if self.write_through:
            self.disk.flush()
        return Status.OK

    def _log_once(self, error: OSError) -> None:
        code = error.errno or 0
        if code not in self._logged:
            self._logged.add(code)
            log.warning("disk %s: %s; requests end with IOERR (logged once)", self.disk.name, error)


_SERVE: Mapping[int, Callable[[BlkDevice, Request, Header], Status]] = {
    Type.IN: BlkDevice._read,
    Type.OUT: BlkDevice._write,
    Type.FLUSH: BlkDevice._flush,
    Type.GET_ID: BlkDevice._get_id,
    Type.DISCARD: BlkDevice._discard,
    Type.WRITE_ZEROES: BlkDevice._write_zeroes,
}


_KINDS: Mapping[int, str] = {
    Type.IN: "read",
    Type.OUT: "write",
    Type.FLUSH: "flush",
    Type.GET_ID: "get-id",
    Type.DISCARD: "discard",
    Type.WRITE_ZEROES: "write-zeroes",
}


def _byte_range(segment: Segment) -> tuple[int, int]:
    return segment.sector * SECTOR_BYTES, segment.num_sectors * SECTOR_BYTES


def _check_block_sizes(logical: int, physical: int) -> None:
    for size in (logical, physical):
        if size < SECTOR_BYTES or size & (size - 1):
            raise ValueError(f"a block size is a power of two from {SECTOR_BYTES}, not {size}")
    if physical < logical:
        raise ValueError(f"physical blocks of {physical} bytes below logical ones of {logical}")
