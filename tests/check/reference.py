"""A small block device in plain Python, to be judged by `virtq check`: right as it stands, and made
of small parts, so that a mutant can get one of them wrong.

It is the device's side of a transport in one process: registers, a thread that serves one queue by
the model's device half, and a disk of a few sectors.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable, Sequence
from typing import Any

from virtq._core import Memory, Position
from virtq.errors import ConfigError, PeerGone, TransportError
from virtq.features import F
from virtq.model.memory import DeviceHalf, Taken, Violation
from virtq.model.packed import PackedDevice
from virtq.model.split import SplitDevice
from virtq.status import Status
from virtq.transports.base import QueueEnd
from virtq.wire.blk import HEADER_BYTES, BlkConfig, BlkFeature, Geometry, Header, Segment, Type
from virtq.wire.blk import Status as BlkStatus
from virtq.wire.layout import pack

RAM_BYTES = 8 << 20
SECTORS = 64


class Split(SplitDevice):
    """The split device half; mutants derive from it."""


class Packed(PackedDevice):
    """The packed device half; mutants derive from it."""


class Served:
    """One queue that is set up."""

    def __init__(self, half: DeviceHalf, kick: int, call: int) -> None:
        self.half, self.kick, self.call = half, kick, call
        self.broken = False


class Reference:
    """Implements `virtq.transports.base.DriverTransport`."""

    split: type[SplitDevice] = Split
    packed: type[PackedDevice] = Packed
    offered = int(
        F.VERSION_1
        | F.RING_PACKED
        | F.IN_ORDER
        | F.INDIRECT_DESC
        | F.EVENT_IDX
        | F.RING_RESET
        | BlkFeature.SIZE_MAX
        | BlkFeature.SEG_MAX
        | BlkFeature.GEOMETRY
        | BlkFeature.FLUSH
        | BlkFeature.CONFIG_WCE
        | BlkFeature.DISCARD
        | BlkFeature.WRITE_ZEROES
        | BlkFeature.MQ
    )
    size_max = 256
    device_id: int | None = 2
    queue_count = 2
    sectors = SECTORS
    look_again_s = 0.05

    def __init__(self) -> None:
        self.memory = Memory.allocate(RAM_BYTES, 1 << 20)
        self.status: int = 0
        self.features = 0
        self.queues: dict[int, Served] = {}
        self.lock = threading.RLock()
        self.gone = False
        self.content = bytearray(os.urandom(self.sectors * 512))
        self.config_changed: Callable[[], None] | None = None
        self.written_writeback: int | None = None
        self._wake, self._end = os.eventfd(0, os.EFD_NONBLOCK), False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    # What it is

    def queue_size_max(self, index: int) -> int:
        return self.size_max

    @property
    def config(self) -> bytes:
        return pack(self.blk_config())

    def blk_config(self) -> BlkConfig:
        return BlkConfig(
            capacity=self.sectors,
            size_max=4096,
            seg_max=30,
            geometry=Geometry(2, 4, 8),
            writeback=self.writeback(),
            num_queues=self.queue_count,
            max_discard_sectors=32,
            max_discard_seg=4,
            discard_sector_alignment=1,
            max_write_zeroes_sectors=32,
            max_write_zeroes_seg=4,
        )

    def writeback(self) -> int:
        if self.written_writeback is not None:
            return self.written_writeback
        return int(not self.features or bool(self.features & BlkFeature.FLUSH))

    @property
    def config_size(self) -> int:
        return len(self.config)

    def read_config(self, offset: int, length: int) -> bytes:
        return self.config[offset : offset + length]

    def write_config(self, offset: int, data: bytes) -> None:
        """Nothing but writeback can be written."""
        if offset != 32 or len(data) != 1 or not self.features & BlkFeature.CONFIG_WCE:
            raise ConfigError(f"configuration byte {offset} cannot be written")
        self.written_writeback = data[0]

    def on_config_change(self, callback: Callable[[], None] | None) -> None:
        self.config_changed = callback

    def tell_of_change(self) -> None:
        """Send a configuration change notification."""
        if self.config_changed is not None and self.status & Status.DRIVER_OK:
            self.config_changed()

    # Initialization

    def read_features(self) -> int:
        return self.offered

    def write_features(self, features: int) -> None:
        self.features = features

    def accepts(self, features: int) -> bool:
        return not features & ~self.offered and bool(features & F.VERSION_1)

    def read_status(self) -> int:
        self.check()
        return self.status

    def write_status(self, status: int) -> None:
        with self.lock:
            if status == 0:
                self.reset()
                return
            if status & Status.FEATURES_OK and not self.accepts(self.features):
                status &= ~Status.FEATURES_OK
            self.status = status
        self._look()

    def reset(self) -> None:
        self.status = self.features = 0
        self.written_writeback = None
        self.forget_queues()

    def forget_queues(self) -> None:
        for index in list(self.queues):
            self.drop(index)

    def drop(self, index: int) -> None:
        served = self.queues.pop(index)
        os.close(served.kick)
        os.close(served.call)

    # Queues

    def enable_queue(self, queue: QueueEnd, desc: int, driver: int, device: int) -> None:
        self.check_size(queue.size)
        kick, call = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
        queue.set_kick(kick)
        queue.set_call(call)
        with self.lock:
            if queue.index in self.queues:
                self.drop(queue.index)
            half = self.make_half(queue.size, desc, driver, device)
            self.queues[queue.index] = Served(half, kick, call)
        self._look()

    def check_size(self, size: int) -> None:
        whole = self.features & F.RING_PACKED or not size & (size - 1)
        if size > self.size_max or not whole:
            raise TransportError(f"reference: a queue of {size} slots is refused")

    def make_half(self, size: int, desc: int, driver: int, device: int) -> DeviceHalf:
        layout: Any = self.packed if self.features & F.RING_PACKED else self.split
        half: DeviceHalf = layout(self.memory, self.features, size, desc, driver, device)
        return half

    def reset_queue(self, index: int) -> Position:
        with self.lock:
            self.drop(index)
        return Position(0, 1, 0, 1, 0)

    def may_serve(self) -> bool:
        return bool(self.status & Status.DRIVER_OK)

    def _look(self) -> None:
        os.eventfd_write(self._wake, 1)

    def _fds(self) -> list[int]:
        return [self._wake, *(served.kick for served in self.queues.values())]

    def _run(self) -> None:
        while not self._end:
            with self.lock:
                fds = self._fds()
            try:
                select.select(fds, [], [], self.look_again_s)
            except (OSError, ValueError):
                continue
            with self.lock:
                # One that was closed meanwhile may be another file's number by now.
                with contextlib.suppress(OSError, ValueError):
                    for fd in select.select(self._fds(), [], [], 0)[0]:
                        os.eventfd_read(fd)
                for served in self.queues.values():
                    if self.may_serve() and not served.broken:
                        try:
                            self.serve(served)
                        except (Violation, ValueError, OverflowError, TypeError, IndexError):
                            self.give_up(served)
                        except Exception as error:  # memory that is not there
                            if "mapped" in str(error) or "64 bits" in str(error):
                                self.give_up(served)

    def give_up(self, served: Served) -> None:
        """A queue is broken: nothing but a reset helps."""
        served.broken = True
        self.status = self.status | Status.DEVICE_NEEDS_RESET
        self.tell_of_change()

    def serve(self, served: Served) -> None:
        half = served.half
        for _ in range(2):  # a mutant may not want to take what is there
            while taken := self.take(half):
                self.use(half, taken)
                self.notify(served)
            if not half.enable_kicks():
                return

    def take(self, half: DeviceHalf) -> Sequence[Taken]:
        return half.take(64)

    def use(self, half: DeviceHalf, taken: Sequence[Taken]) -> None:
        for buffer in taken:
            half.complete(buffer, self.handle(buffer))
        half.flush()

    def notify(self, served: Served) -> None:
        if served.half.call_wanted():
            os.eventfd_write(served.call, 1)

    # The disk

    def handle(self, buffer: Taken) -> int:
        """Serve a request; returns the bytes written."""
        data, room = buffer.read(), buffer.writable - 1
        if room < 0:
            return 0
        status: int = BlkStatus.IOERR
        reply = b""
        if len(data) >= HEADER_BYTES:
            header = Header.parse(data[:HEADER_BYTES])
            status, reply = self.request(header, data[HEADER_BYTES:], room)
        if len(reply) < room:
            # The status is the last byte; what lies between is not written.
            self.write(buffer, reply)
            self.put_last(buffer, status)
            return len(reply) if room else 1
        self.write(buffer, reply[:room] + bytes([status]))
        return room + 1

    def write(self, buffer: Taken, data: bytes) -> None:
        buffer.write(data)

    def put_last(self, buffer: Taken, status: int) -> None:
        piece = [piece for piece in buffer.pieces if piece.writable and piece.length][-1]
        self.memory.write(piece.address + piece.length - 1, bytes([status]))

    def request(self, header: Header, data: bytes, room: int) -> tuple[int, bytes]:
        """The status, and what is written before it."""
        at = header.sector * 512
        match header.type:
            case Type.GET_ID:
                return BlkStatus.OK, b"reference".ljust(20, b"\0")
            case Type.IN:
                if header.sector + room // 512 > self.sectors:
                    return BlkStatus.IOERR, b""
                return BlkStatus.OK, bytes(self.content[at : at + room])
            case Type.OUT:
                if self.offered & BlkFeature.RO or header.sector + len(data) // 512 > self.sectors:
                    return BlkStatus.IOERR, b""
                self.content[at : at + len(data)] = data
                return BlkStatus.OK, b""
            case Type.FLUSH:
                return BlkStatus.OK, b""
            case Type.DISCARD | Type.WRITE_ZEROES:
                return self.ranges(header.type, Segment.parse_all(data)), b""
        return BlkStatus.UNSUPP, b""

    def ranges(self, kind: int, segments: Sequence[Segment]) -> int:
        known = 1 if kind == Type.WRITE_ZEROES else 0
        for segment in segments:
            if segment.flags & ~known:
                return BlkStatus.UNSUPP
        if self.offered & BlkFeature.RO:
            return BlkStatus.IOERR
        for segment in segments:
            if segment.sector + segment.num_sectors > self.sectors:
                return BlkStatus.IOERR
            if kind == Type.WRITE_ZEROES:
                at = segment.sector * 512
                self.content[at : at + 512 * segment.num_sectors] = bytes(512 * segment.num_sectors)
        return BlkStatus.OK

    # The end

    def check(self) -> None:
        if self.gone:
            raise PeerGone("reference: it is gone")

    def close(self) -> None:
        self._end = True
        self._look()
        self._thread.join()
        with self.lock:
            self.forget_queues()
        os.close(self._wake)
