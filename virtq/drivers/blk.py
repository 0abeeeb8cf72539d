"""Driving a block device (VIRTIO 1.4, section 5.2).

    with virtq.connect("vhost-user:/run/disk.sock", driver=BlkDriver) as disk:
        boot_sector = disk.read(0, 512)
        with disk.open() as file:
            file.seek(1 << 20)
            file.write(b"anything, anywhere")

Offsets and lengths are bytes. Longer transfers are cut into requests that the device takes, and up
to `depth` of those are kept going at once over all queues.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from virtq._core import BlkLoad
from virtq.device import QueueSpec
from virtq.driver import Driver
from virtq.drivers.blkfile import BlkFile
from virtq.errors import FeatureError, QueueFull, RequestError
from virtq.memory import PAGE_BYTES, Buffer
from virtq.queue import DriverQueue
from virtq.transports.base import DriverTransport
from virtq.wire.blk import (
    DEVICE_ID,
    FIELD_FEATURE,
    HEADER_BYTES,
    ID_BYTES,
    SECTOR_BYTES,
    SEGMENT_UNMAP,
    UNWRITTEN_STATUS,
    BlkConfig,
    BlkFeature,
    Header,
    Segment,
    Status,
    Type,
    status_name,
    type_name,
)

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

CHUNK_BYTES = 128 << 10
"""The most that one request carries, however much the device would take."""
DEPTH = 32
"""Requests in flight at once unless the caller says otherwise."""
_DATA_OFFSET = 32  # in a slot: 16 bytes header, the status byte at 16, the data from here


class BlkRequestError(RequestError):
    """The device ended a request with another status than OK."""

    def __init__(self, type: int, sector: int, length: int, status: int) -> None:
        super().__init__(
            f"{type_name(type)} of {length} bytes at sector {sector}: {status_name(status)}"
        )
        self.type = type
        self.sector = sector
        self.length = length
        self.status = status


@dataclass(frozen=True)
class BlkInfo:
    """What a block device tells about itself. Sizes in bytes; None or 0 where it does not tell."""

    capacity: int
    read_only: bool
    block_size: int
    physical_block_size: int
    optimal_io_size: int
    queues: int
    write_cache: bool
    segment_bytes_max: int
    segments_max: int
    discard_bytes_max: int
    write_zeroes_bytes_max: int
    write_zeroes_may_unmap: bool
    features: tuple[str, ...]


@dataclass(slots=True)
class _Job:
    """One request to make: `source` goes to the device, `target` takes what it answers."""

    type: Type
    sector: int
    source: memoryview | bytes = b""
    target: memoryview | None = None

    @property
    def length(self) -> int:
        return len(self.source) if self.target is None else len(self.target)


class BlkDriver(Driver):
    """Drives a block device."""

    device_id = DEVICE_ID
    features = (
        BlkFeature.SIZE_MAX
        | BlkFeature.SEG_MAX
        | BlkFeature.GEOMETRY
        | BlkFeature.RO
        | BlkFeature.BLK_SIZE
        | BlkFeature.FLUSH
        | BlkFeature.TOPOLOGY
        | BlkFeature.CONFIG_WCE
        | BlkFeature.MQ
        | BlkFeature.DISCARD
        | BlkFeature.WRITE_ZEROES
    )
    config_layout = BlkConfig
    needs_config = True
    config_fields: Mapping[str, int] = FIELD_FEATURE
    config: BlkConfig

    def __init__(self, transport: DriverTransport, **settings: Any) -> None:
        """See `Driver`."""
        self._slots: list[Buffer] = []
        self._free: list[int] = []
        self._in_flight: dict[int, _Job] = {}
        self._left: list[Buffer] = []
        super().__init__(transport, **settings)

    def was_reset(self) -> None:
        while self._slots:
            self.arena.free(self._slots.pop())
        while self._left:
            self.arena.free(self._left.pop())
        self._free.clear()
        self._in_flight.clear()

    def reset_queue(self, key: str | int) -> list[Any]:
        slots = super().reset_queue(key)
        for slot in slots:
            del self._in_flight[slot]
        self._free += slots
        return slots

    def plan(self) -> Mapping[int, QueueSpec]:
        count = self.config.num_queues if self.has(BlkFeature.MQ) else 1
        count = max(1, min(count, self.transport.queue_count))
        self._segment_bytes = self._limit("size_max", BlkFeature.SIZE_MAX, CHUNK_BYTES)
        segments_max = self._limit("seg_max", BlkFeature.SEG_MAX, CHUNK_BYTES // SECTOR_BYTES)
        # A chain is never longer than its queue (2.7.5.3.1), header and status included.
        slots = min(self.ring_size(index, self.queue_size) for index in range(count))
        segments_max = max(1, min(segments_max, slots - 2))
        segments = min(segments_max, -(-CHUNK_BYTES // self._segment_bytes))
        whole = min(CHUNK_BYTES, segments * self._segment_bytes)
        self._chunk_bytes = max(SECTOR_BYTES, whole // SECTOR_BYTES * SECTOR_BYTES)
        self.indirect_length = segments + 2
        return {i: QueueSpec(f"requestq{i + 1}", self.queue_size) for i in range(count)}

    def _limit(self, field: str, feature: BlkFeature, default: int) -> int:
        value: int = getattr(self.config, field) if self.has(feature) else 0
        return min(value, default) if value else default

    # What the disk is

    @property
    def capacity(self) -> int:
        """In bytes."""
        return self.config.capacity * SECTOR_BYTES

    @property
    def read_only(self) -> bool:
        return self.has(BlkFeature.RO)

    def info(self) -> BlkInfo:
        """What the device tells about itself."""
        c, has = self.config, self.has
        block = c.blk_size if has(BlkFeature.BLK_SIZE) else SECTOR_BYTES
        topology = has(BlkFeature.TOPOLOGY)
        zeroes = has(BlkFeature.WRITE_ZEROES)
        return BlkInfo(
            capacity=self.capacity,
            read_only=self.read_only,
            block_size=block,
            physical_block_size=block << c.topology.physical_block_exp if topology else block,
            optimal_io_size=c.topology.opt_io_size * block if topology else 0,
            queues=len(self.queues),
            write_cache=self.write_cache,
            segment_bytes_max=c.size_max if has(BlkFeature.SIZE_MAX) else 0,
            segments_max=c.seg_max if has(BlkFeature.SEG_MAX) else 0,
            discard_bytes_max=c.max_discard_sectors * SECTOR_BYTES
            if has(BlkFeature.DISCARD)
            else 0,
            write_zeroes_bytes_max=c.max_write_zeroes_sectors * SECTOR_BYTES if zeroes else 0,
            write_zeroes_may_unmap=bool(c.write_zeroes_may_unmap) if zeroes else False,
            features=tuple(self.feature_names),
        )

    @property
    def write_cache(self) -> bool:
        """Whether a completed write may still be volatile, so that `flush` is needed (5.2.5.1)."""
        if self.has(BlkFeature.CONFIG_WCE):
            return bool(self.config.writeback)
        return self.has(BlkFeature.FLUSH)

    @write_cache.setter
    def write_cache(self, on: bool) -> None:
        """Raises FeatureError unless CONFIG_WCE was negotiated."""
        if not self.has(BlkFeature.CONFIG_WCE):
            raise FeatureError("the write cache cannot be switched: CONFIG_WCE was not negotiated")
        self.write_config("writeback", int(on))

    # Requests. All raise BlkRequestError, PeerGone and RingFault, and ValueError for a range that
    # is not made of whole sectors within the disk.

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`."""
        return self.read_many([(offset, length)])[0]

    def read_into(self, offset: int, target: WriteableBuffer) -> None:
        """Fill `target` from `offset`."""
        view = memoryview(target).cast("B")
        self._run(self._transfers(Type.IN, offset, target=view), DEPTH)

    def write(self, offset: int, data: ReadableBuffer) -> None:
        """Store `data` at `offset`."""
        self.write_many([(offset, data)])

    def read_many(self, ranges: Sequence[tuple[int, int]], *, depth: int = DEPTH) -> list[bytes]:
        """Several (offset, length) at once, with up to `depth` requests in flight."""
        results = [bytearray(length) for _, length in ranges]
        jobs: list[_Job] = []
        for (offset, _), result in zip(ranges, results, strict=True):
            jobs += self._transfers(Type.IN, offset, target=memoryview(result))
        self._run(jobs, depth)
        return [bytes(result) for result in results]

    def write_many(
        self, writes: Iterable[tuple[int, ReadableBuffer]], *, depth: int = DEPTH
    ) -> None:
        """Several (offset, data) at once, with up to `depth` requests in flight, in no certain
        order. Raises RequestError without asking the device if it is read-only."""
        if self.read_only:
            raise RequestError("the disk is read-only")
        jobs: list[_Job] = []
        for offset, data in writes:
            jobs += self._transfers(Type.OUT, offset, source=memoryview(data).cast("B"))
        self._run(jobs, depth)

    def flush(self) -> None:
        """Commit completed writes to storage. Without FLUSH they already are (5.2.6.2)."""
        if self.has(BlkFeature.FLUSH):
            self._run([_Job(Type.FLUSH, 0)], 1)

    def discard(self, offset: int, length: int) -> None:
        """The range is not needed any more; what it reads as afterwards is undefined. Raises
        FeatureError unless DISCARD was negotiated."""
        self._need(BlkFeature.DISCARD)
        limit = self.config.max_discard_sectors
        self._run(self._ranges(Type.DISCARD, offset, length, limit, 0), DEPTH)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = False) -> None:
        """Make the range read as zeroes; with `unmap` the device may deallocate it. Raises
        FeatureError unless WRITE_ZEROES was negotiated."""
        self._need(BlkFeature.WRITE_ZEROES)
        limit, flags = self.config.max_write_zeroes_sectors, SEGMENT_UNMAP if unmap else 0
        self._run(self._ranges(Type.WRITE_ZEROES, offset, length, limit, flags), DEPTH)

    def get_id(self) -> str:
        """The device's serial, up to 20 characters."""
        answer = bytearray(ID_BYTES)
        self._run([_Job(Type.GET_ID, 0, target=memoryview(answer))], 1)
        return bytes(answer).partition(b"\0")[0].decode("ascii", "replace")

    def open(self) -> BlkFile:
        """The disk as a raw binary file; wrap it in `io.BufferedRandom` for small accesses."""
        return BlkFile(self)

    @contextmanager
    def load(
        self, *, block_bytes: int = 4096, depth: int = 32, **options: Any
    ) -> Iterator[BlkLoad]:
        """A load on all queues that runs without the interpreter; `options` are those of
        `virtq._core.BlkLoad`. Raises ValueError for what the device or the queues do not take,
        ArenaFull."""
        if not 0 < block_bytes <= self._segment_bytes:
            raise ValueError(
                f"block_bytes is {block_bytes}, the device takes 1 to {self._segment_bytes} at once"
            )
        options.setdefault("capacity_sectors", self.config.capacity)
        queues = [self.queues[index].core for index in range(len(self.queues))]
        size = BlkLoad.memory_bytes(block_bytes=block_bytes, depth=depth, queues=len(queues))
        memory = self.arena.alloc(size, PAGE_BYTES)
        outstanding = False
        try:
            load = BlkLoad(
                self.arena.memory,
                memory.addr,
                queues,
                block_bytes=block_bytes,
                depth=depth,
                **options,
            )
            try:
                yield load
            finally:
                outstanding = load.outstanding > 0
        finally:
            # What the device may still write to stays away from others until it is reset.
            self._left.append(memory) if outstanding else self.arena.free(memory)

    # How requests are made

    def _need(self, feature: BlkFeature) -> None:
        if not self.has(feature):
            raise FeatureError(f"{feature.name} was not negotiated")

    def _check_range(self, offset: int, length: int) -> None:
        if offset % SECTOR_BYTES or length % SECTOR_BYTES:
            what = f"{length} bytes at {offset}"
            raise ValueError(f"{what} are not whole sectors of {SECTOR_BYTES} bytes")
        if offset < 0 or length < 0 or offset + length > self.capacity:
            end = offset + length
            raise ValueError(f"bytes {offset} to {end} of a disk of {self.capacity}")

    def _transfers(
        self,
        kind: Type,
        offset: int,
        *,
        source: memoryview | None = None,
        target: memoryview | None = None,
    ) -> Iterator[_Job]:
        data = source if source is not None else target
        assert data is not None
        self._check_range(offset, len(data))
        for at in range(0, len(data), self._chunk_bytes):
            part, sector = data[at : at + self._chunk_bytes], (offset + at) // SECTOR_BYTES
            if source is not None:
                yield _Job(kind, sector, source=part)
            else:
                yield _Job(kind, sector, target=part)

    def _ranges(
        self, kind: Type, offset: int, length: int, limit: int, flags: int
    ) -> Iterator[_Job]:
        self._check_range(offset, length)
        first, count = offset // SECTOR_BYTES, length // SECTOR_BYTES
        step = limit or count or 1
        for at in range(0, count, step):
            segment = Segment(first + at, min(step, count - at), flags)
            yield _Job(kind, 0, source=segment.pack())

    def _run(self, jobs: Iterable[_Job], depth: int) -> None:
        """Make all requests. The first failure is raised once nothing is in flight any more."""
        waiting = deque(jobs)
        queues = [self.queues[index] for index in range(len(self.queues))]
        failure: BlkRequestError | None = None
        while waiting or self._in_flight:
            while waiting and len(self._in_flight) < depth and self._submit(queues, waiting[0]):
                waiting.popleft()
            if not self._in_flight:
                raise QueueFull(f"{self.queues[0]!r} has no room for one request")
            for queue in queues:
                queue.kick()
            self._wait(queues)
            for queue in queues:
                for slot, _written in queue.core.reap():
                    failure = self._finish(slot) or failure
            if failure is not None:
                waiting.clear()
        if failure is not None:
            raise failure

    def _wait(self, queues: Sequence[DriverQueue]) -> None:
        """Until one queue that has something to do has done something of it."""
        busy = [queue for queue in queues if queue.outstanding]
        if not any(queue.core.has_used for queue in busy):
            busy[0].wait()

    def _submit(self, queues: Sequence[DriverQueue], job: _Job) -> bool:
        """False if there is no room now."""
        slot = self._free[-1] if self._free else self._new_slot()
        queue, buffer = queues[slot % len(queues)], self._slots[slot]
        buffer.write(Header(job.type, job.sector).pack())
        buffer.write(bytes([UNWRITTEN_STATUS]), HEADER_BYTES)
        if len(job.source):
            buffer.write(job.source, _DATA_OFFSET)
        data = self._pieces(buffer.addr + _DATA_OFFSET, job.length)
        to_device = [(buffer.addr, HEADER_BYTES)]
        from_device = [(buffer.addr + HEADER_BYTES, 1)]
        if job.target is None:
            to_device += data
        else:
            from_device = data + from_device
        try:
            queue.core.add(to_device, from_device, slot)
        except QueueFull:
            return False
        self._free.pop()
        self._in_flight[slot] = job
        return True

    def _pieces(self, addr: int, length: int) -> list[tuple[int, int]]:
        step = self._segment_bytes
        return [(addr + at, min(step, length - at)) for at in range(0, length, step)]

    def _new_slot(self) -> int:
        self._slots.append(self.arena.alloc(_DATA_OFFSET + self._chunk_bytes))
        self._free.append(len(self._slots) - 1)
        return self._free[-1]

    def _finish(self, slot: int) -> BlkRequestError | None:
        job, buffer = self._in_flight.pop(slot), self._slots[slot]
        self._free.append(slot)
        status = buffer.view[HEADER_BYTES]
        if status != Status.OK:
            return BlkRequestError(job.type, job.sector, job.length, status)
        if job.target is not None:
            job.target[:] = buffer.view[_DATA_OFFSET : _DATA_OFFSET + len(job.target)]
        return None
