"""One door to the executable specification (`virtq.model`) and to the core.

A half of the model can face a half of the core on the same memory, and every disagreement is a
fault in one of them.

`Driver` and `Device` say what a half can do; `make_driver` and `make_device` build one of either
implementation. The core's halves get eventfds, so that a notification counts only once it was sent.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Literal, Protocol, cast

from virtq.model.memory import (
    EVENT_IDX,
    IN_ORDER,
    INDIRECT_DESC,
    RING_PACKED,
    Areas,
    Bytes,
    Full,
    GuestMemory,
    Piece,
    Position,
    Violation,
)
from virtq.model.packed import PackedDevice, PackedDriver, PackedRing
from virtq.model.split import SplitDevice, SplitDriver, SplitRing

if TYPE_CHECKING:
    from virtq import _core

__all__ = [
    "EVENT_IDX",
    "INDIRECT_DESC",
    "IN_ORDER",
    "RING_PACKED",
    "Areas",
    "Buffer",
    "Bytes",
    "Device",
    "Driver",
    "Full",
    "GuestMemory",
    "Impl",
    "Place",
    "Position",
    "Violation",
    "make_device",
    "make_driver",
    "make_memory",
]

Impl = Literal["model", "core"]


class Buffer(Protocol):
    """A buffer as the device sees it."""

    @property
    def readable(self) -> int: ...
    @property
    def writable(self) -> int: ...
    @property
    def pieces(self) -> list[Piece]: ...
    def read(self) -> bytes: ...
    def write(self, data: bytes) -> object: ...


class Driver(Protocol):
    @property
    def free(self) -> int: ...
    @property
    def outstanding(self) -> int: ...
    @property
    def position(self) -> Position: ...
    @property
    def has_used(self) -> bool: ...
    def add(
        self,
        readable: Sequence[tuple[int, int]],
        writable: Sequence[tuple[int, int]],
        cookie: int = 0,
    ) -> None: ...
    def add_batch(
        self, addresses: Sequence[int], lengths: Sequence[int], writable: bool, first_cookie: int
    ) -> int: ...
    def publish(self) -> int: ...
    def kick_wanted(self) -> bool: ...
    def reap(self, maximum: int = 65535) -> list[tuple[int, int]]: ...
    def enable_calls(self) -> bool: ...
    def disable_calls(self) -> None: ...
    def take_back(self) -> list[int]: ...
    def close(self) -> None: ...


class Device(Protocol):
    @property
    def outstanding(self) -> int: ...
    @property
    def position(self) -> Position: ...
    @property
    def has_available(self) -> bool: ...
    @property
    def used_entries(self) -> int: ...
    def take(self, maximum: int = 65535) -> Sequence[Buffer]: ...
    def put_back(self, buffers: Sequence[Buffer]) -> int: ...
    def complete(self, buffer: Buffer, written: int) -> None: ...
    def flush(self) -> int: ...
    def call_wanted(self) -> bool: ...
    def enable_kicks(self) -> bool: ...
    def disable_kicks(self) -> None: ...
    def stop(self) -> tuple[Position, bool]: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Place:
    """A virtqueue in memory: layout, size, where its areas and its indirect tables are."""

    features: int
    size: int
    areas: Areas
    indirect_table: int = 0
    indirect_length: int = 0

    @classmethod
    def at(cls, addr: int, features: int, size: int, indirect_length: int = 0) -> Place:
        """The areas from `addr` on, behind them the indirect tables if there are to be any."""
        ring = PackedRing if features & RING_PACKED else SplitRing
        areas = ring.areas(size, addr)
        table = (areas.end + 15) // 16 * 16 if indirect_length else 0
        return cls(features, size, areas, table, indirect_length)

    @property
    def end(self) -> int:
        if not self.indirect_table:
            return self.areas.end
        return self.indirect_table + 16 * self.size * self.indirect_length

    def split(self, memory: GuestMemory) -> SplitRing:
        return SplitRing(memory, self.size, *self.areas[:3])

    def packed(self, memory: GuestMemory) -> PackedRing:
        return PackedRing(memory, self.size, *self.areas[:3])


def make_memory(size: int, shared_with_core: bool) -> GuestMemory:
    if not shared_with_core:
        return Bytes(size)
    from virtq import _core

    return _core.Memory.allocate(size)


def make_driver(
    impl: Impl, memory: GuestMemory, place: Place, position: Position | None = None
) -> Driver:
    if impl == "core":
        return CoreDriver(memory, place, position)
    half = PackedDriver if place.features & RING_PACKED else SplitDriver
    return half(
        memory,
        place.features,
        place.size,
        *place.areas[:3],
        indirect_table=place.indirect_table,
        indirect_length=place.indirect_length,
        position=position,
    )


def make_device(
    impl: Impl,
    memory: GuestMemory,
    place: Place,
    position: Position | None = None,
    one_used_entry_per_buffer: bool = False,
) -> Device:
    if impl == "core":
        return CoreDevice(memory, place, position, one_used_entry_per_buffer)
    half = PackedDevice if place.features & RING_PACKED else SplitDevice
    # A model device takes the very objects back that it handed out.
    return cast(
        Device,
        half(
            memory,
            place.features,
            place.size,
            *place.areas[:3],
            position=position,
            one_used_entry_per_buffer=one_used_entry_per_buffer,
        ),
    )


class Notifications:
    """An eventfd, and whether what was said to be sent was sent."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def sent(self) -> bool:
        """Since the last time it was asked."""
        try:
            return os.eventfd_read(self.fd) > 0
        except BlockingIOError:
            return False

    def check(self, said_to_be_sent: bool) -> bool:
        assert self.sent() == said_to_be_sent
        return said_to_be_sent

    def close(self) -> None:
        os.close(self.fd)


class CoreDriver:
    """`_core.DriverQueue` behind the model's interface."""

    def __init__(self, memory: GuestMemory, place: Place, position: Position | None) -> None:
        from virtq import _core

        self.queue = _core.DriverQueue(
            cast("_core.Memory", memory),
            place.features,
            place.size,
            *place.areas[:3],
            indirect_table=place.indirect_table,
            indirect_length=place.indirect_length,
            position=None if position is None else _core.Position(*position),
        )
        self.kicks = Notifications()
        self.queue.set_kick(self.kicks.fd)
        self.ways_to_reap = cycle((self._reap_list, self._reap_arrays))

    @property
    def free(self) -> int:
        return self.queue.free

    @property
    def outstanding(self) -> int:
        return self.queue.outstanding

    @property
    def position(self) -> Position:
        return _position(self.queue.position)

    @property
    def has_used(self) -> bool:
        return self.queue.has_used

    def add(
        self,
        readable: Sequence[tuple[int, int]],
        writable: Sequence[tuple[int, int]],
        cookie: int = 0,
    ) -> None:
        from virtq import _core

        try:
            self.queue.add(readable, writable, cookie)
        except _core.QueueFull as full:
            raise Full(str(full)) from full

    def add_batch(
        self, addresses: Sequence[int], lengths: Sequence[int], writable: bool, first_cookie: int
    ) -> int:
        return self.queue.add_batch(
            array("Q", addresses), array("I", lengths), writable, first_cookie
        )

    def publish(self) -> int:
        return self.queue.publish()

    def kick_wanted(self) -> bool:
        return self.kicks.check(self.queue.kick())

    def reap(self, maximum: int = 65535) -> list[tuple[int, int]]:
        """Both ways that the core has, in turn."""
        return next(self.ways_to_reap)(maximum)

    def _reap_list(self, maximum: int) -> list[tuple[int, int]]:
        return self.queue.reap(maximum)

    def _reap_arrays(self, maximum: int) -> list[tuple[int, int]]:
        room = max(1, min(maximum, self.queue.outstanding))
        cookies, written = array("Q", bytes(8 * room)), array("I", bytes(4 * room))
        count = self.queue.reap_into(cookies, written)
        return list(zip(cookies[:count], written[:count], strict=True))

    def enable_calls(self) -> bool:
        return self.queue.enable_calls()

    def disable_calls(self) -> None:
        self.queue.disable_calls()

    def take_back(self) -> list[int]:
        return self.queue.take_back()

    def close(self) -> None:
        self.kicks.close()


@dataclass(eq=False)
class CoreBuffer:
    """`_core.Request` behind the model's interface, with its place in the batch for `put_back`."""

    request: _core.Request
    batch: _core.Batch
    index: int

    @property
    def readable(self) -> int:
        return self.request.readable

    @property
    def writable(self) -> int:
        return self.request.writable

    @property
    def pieces(self) -> list[Piece]:
        return [Piece(*segment) for segment in self.request.segments()]

    def read(self) -> bytes:
        return self.request.read()

    def write(self, data: bytes) -> int:
        return self.request.write(data)


class CoreDevice:
    """`_core.DeviceQueue` behind the model's interface."""

    def __init__(
        self,
        memory: GuestMemory,
        place: Place,
        position: Position | None,
        one_used_entry_per_buffer: bool,
    ) -> None:
        from virtq import _core

        self.queue = _core.DeviceQueue(
            cast("_core.Memory", memory),
            place.features,
            place.size,
            *place.areas[:3],
            position=None if position is None else _core.Position(*position),
            one_used_entry_per_buffer=one_used_entry_per_buffer,
        )
        self.calls = Notifications()
        self.queue.set_call(self.calls.fd)

    @property
    def outstanding(self) -> int:
        return self.queue.outstanding

    @property
    def position(self) -> Position:
        return _position(self.queue.position)

    @property
    def has_available(self) -> bool:
        return self.queue.has_available

    @property
    def used_entries(self) -> int:
        return self.queue.stats["used_entries"]

    def take(self, maximum: int = 65535) -> list[CoreBuffer]:
        batch = self.queue.take(maximum)
        taken = [CoreBuffer(request, batch, index) for index, request in enumerate(batch)]
        assert len(batch) == len(taken)
        assert batch.readable().tolist() == [buffer.readable for buffer in taken]
        assert batch.writable().tolist() == [buffer.writable for buffer in taken]
        return taken

    def put_back(self, buffers: Sequence[Buffer]) -> int:
        """A batch at a time, the newest first."""
        count = 0
        rest = cast(Sequence[CoreBuffer], buffers)
        while rest:
            batch = rest[-1].batch
            start = min(buffer.index for buffer in rest if buffer.batch is batch)
            count += self.queue.put_back(batch, start)
            rest = [buffer for buffer in rest if buffer.batch is not batch]
        return count

    def complete(self, buffer: Buffer, written: int) -> None:
        cast(CoreBuffer, buffer).request.complete(written)

    def flush(self) -> int:
        return self.queue.flush()

    def call_wanted(self) -> bool:
        return self.calls.check(self.queue.notify())

    def enable_kicks(self) -> bool:
        return self.queue.enable_kicks()

    def disable_kicks(self) -> None:
        self.queue.disable_kicks()

    def stop(self) -> tuple[Position, bool]:
        position = _position(self.queue.stop())
        return position, self.calls.sent()

    def close(self) -> None:
        self.calls.close()


def _position(core: _core.Position) -> Position:
    return Position(core.available, core.available_wrap, core.used, core.used_wrap, core.descriptor)
