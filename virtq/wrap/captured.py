"""A device around a network or socket device that writes its packets into a capture file.

    Captured(NetDevice(HubPort()), "packets.pcapng")

The file is pcapng, which Wireshark and its kin read: Ethernet frames of a network device, without
the virtio header; packets of a socket device as Linux's vsockmon gives them. Directions are those
of the driver: what it sends is outbound. A device whose data path runs in the core is served by
its Python path within this.
"""

from __future__ import annotations

import logging
import struct
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from virtq._core import DeviceQueue, Request
from virtq.device import Device
from virtq.features import DEVICE_NAMES
from virtq.wire import net
from virtq.wrap.around import QueueAround, RequestAround, Wrapper
from virtq.wrap.pcapng import LINKTYPE_ETHERNET, LINKTYPE_VSOCK, PcapngWriter

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, StrPath

log = logging.getLogger("virtq.device")

Direction = Literal["in", "out"]
Keep = Callable[[bytes, Direction], None]

VSOCK_DEVICE_ID = 19
VSOCK_HEADER_BYTES = 44


class Captured(Wrapper):
    """A device whose packets are kept."""

    def __init__(self, device: Device | Wrapper, path: StrPath) -> None:
        """Raises ValueError for a device that has no packets, OSError if the file cannot be
        written."""
        if device.device_id not in _LINKS:
            what = DEVICE_NAMES.get(device.device_id, f"type {device.device_id}")
            raise ValueError(f"packets are what network and socket devices have, not {what}")
        super().__init__(device)
        self._link_type, self._assembler = _LINKS[device.device_id]
        self._writer = PcapngWriter(path, self._link_type, type(self.innermost).__name__)
        self._failed = False
        weakref.finalize(self, self._writer.close)

    def around_queue(self, queue: DeviceQueue) -> DeviceQueue:
        name = self.queue_name(queue.index)
        direction = _direction(self.device_id, queue.index, name)
        if direction is None:
            return queue
        return CapturedQueue.of(queue, self._assembler(self._keep), direction)

    def _keep(self, packet: bytes, direction: Direction) -> None:
        self._carefully(lambda: self._writer.write(packet, direction))

    def _carefully(self, call: Callable[[], None]) -> None:
        """When the file cannot be written any more, the capture ends, and the device goes on."""
        if self._failed:
            return
        try:
            call()
        except OSError as error:
            self._failed = True
            log.error("the capture ends: %s", error)

    def reset(self) -> None:
        super().reset()
        self._carefully(self._writer.flush)

    def release(self) -> None:
        super().release()
        self._carefully(self._writer.flush)
        self._writer.close()


def _direction(device_id: int, index: int, name: str) -> Direction | None:
    """Which way the packets of a queue go; None for a queue without packets."""
    if device_id == VSOCK_DEVICE_ID:
        return ("in", "out", None)[min(index, 2)]
    if name == "controlq":
        return None
    return "out" if index % 2 else "in"


class CapturedQueue(QueueAround):
    """A queue that shows what the device read from each request, or wrote into it."""

    def __init__(self, queue: DeviceQueue, assembler: Assembler, direction: Direction) -> None:
        super().__init__(queue)
        self._assembler = assembler
        self._direction = direction

    def around_request(self, request: Request) -> CapturedRequest:
        return CapturedRequest(request, self)

    def completed(self, read: bytes, written: bytes) -> None:
        self._assembler.add(written if self._direction == "in" else read, self._direction)


class CapturedRequest(RequestAround):
    """A request that remembers what passes."""

    __slots__ = ("queue", "read_bytes", "written_bytes")

    def __init__(self, request: Request, queue: CapturedQueue) -> None:
        super().__init__(request)
        self.queue = queue
        self.read_bytes = bytearray()
        self.written_bytes = bytearray()

    def read(self, length: int = -1) -> bytes:
        data = self.request.read(length)
        self.read_bytes += data
        return data

    def write(self, data: ReadableBuffer) -> int:
        at = self.request.written
        end = self.request.write(data)
        self._note(at, bytes(data))
        return end

    def write_at(self, offset: int, data: ReadableBuffer) -> None:
        self.request.write_at(offset, data)
        self._note(offset, bytes(data))

    def _note(self, at: int, data: bytes) -> None:
        if len(self.written_bytes) < at:
            self.written_bytes += bytes(at - len(self.written_bytes))
        self.written_bytes[at : at + len(data)] = data

    def complete(self, written: int | None = None) -> None:
        written = self.request.written if written is None else written
        self.request.complete(written)
        self.queue.completed(bytes(self.read_bytes), bytes(self.written_bytes[:written]))


class Assembler(Protocol):
    """Makes packets of buffers."""

    def __init__(self, keep: Keep) -> None: ...
    def add(self, data: bytes, direction: Direction) -> None:
        """The next buffer's content."""
        ...


class NetAssembler:
    """Network packets (5.1.6): a header, of which the last word says over how many buffers a
    received packet is spread."""

    def __init__(self, keep: Keep) -> None:
        self._keep = keep
        self._parts = bytearray()
        self._missing = 0

    def add(self, data: bytes, direction: Direction) -> None:
        if not self._missing:
            if len(data) <= net.HEADER_BYTES:
                return
            at = net.NUM_BUFFERS_OFFSET
            buffers = int.from_bytes(data[at : at + 2], "little") if direction == "in" else 1
            self._missing = max(1, buffers)
        self._parts += data
        self._missing -= 1
        if not self._missing:
            packet, self._parts = bytes(self._parts), bytearray()
            self._keep(packet[net.HEADER_BYTES :], direction)


class VsockAssembler:
    """Socket packets (5.10.6), with the header that Linux's vsockmon devices put before them: the
    addresses, what it is about, and that a virtio header follows."""

    HEADER = struct.Struct("<QQIIHHHxx")
    VIRTIO = struct.Struct("<QQIIIHHIII")
    OVER_VIRTIO = 2
    MEANING: ClassVar[dict[int, int]] = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 3, 7: 3}
    """By operation: connect (1), disconnect (2), control (3), payload (4)."""

    def __init__(self, keep: Keep) -> None:
        self._keep = keep

    def add(self, data: bytes, direction: Direction) -> None:
        if len(data) < VSOCK_HEADER_BYTES:
            return
        fields = self.VIRTIO.unpack_from(data)
        source, target, source_port, target_port, _length, _type, operation = fields[:7]
        head = self.HEADER.pack(
            source,
            target,
            source_port,
            target_port,
            self.MEANING.get(operation, 0),
            self.OVER_VIRTIO,
            VSOCK_HEADER_BYTES,
        )
        self._keep(head + data, direction)


_LINKS: dict[int, tuple[int, type[NetAssembler] | type[VsockAssembler]]] = {
    net.DEVICE_ID: (LINKTYPE_ETHERNET, NetAssembler),
    VSOCK_DEVICE_ID: (LINKTYPE_VSOCK, VsockAssembler),
}
