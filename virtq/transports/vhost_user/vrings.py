"""The virtqueues of one front-end: when each is handed to the device, and when it is taken back.

A ring is served from SET_VRING_KICK on: by then size and addresses are known (the protocol has
seen to it), and a kick that came before waits in its descriptor. Specifications say "on receiving
a kick"; serving a little earlier is what DPDK and QEMU's own back-ends do, and it finds an empty
ring at worst. GET_VRING_BASE takes the ring back.

Two things interrupt a ring without stopping it: its addresses lose their translation (the device
gets the queue again once the front-end has answered), or its kick descriptor is exchanged.
A ring whose memory is gone or was never there concerns that ring alone: it is taken back, its
error descriptor is signalled, the log says why, and the others go on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from virtq._core import DeviceQueue, Position
from virtq.errors import TranslationMiss, VirtqError
from virtq.features import F
from virtq.transports.base import DeviceSide
from virtq.transports.vhost_user import channel
from virtq.transports.vhost_user.fds import close_fd
from virtq.transports.vhost_user.guest import Guest
from virtq.transports.vhost_user.inflight import HeldRegion
from virtq.transports.vhost_user.messages import TRANSPORT_FEATURES
from virtq.transports.vhost_user.negotiation import Negotiation
from virtq.transports.vhost_user.rings import Ring, area_bytes, pack_base, unpack_base
from virtq.transports.vhost_user.wire import VRING_LOG

log = logging.getLogger("virtq.vhost_user")

Miss = Callable[[TranslationMiss], None]


class RingError(VirtqError):
    """One ring cannot be served; the rest of the connection is not concerned."""


@dataclass(slots=True)
class _Served:
    """What the back-end holds for one ring. Descriptors are owned here."""

    ring: Ring
    queue: DeviceQueue | None = None
    areas: tuple[int, int, int] | None = None
    resume: Position | None = None
    """Where an interrupted ring goes on."""
    waiting: bool = False
    """Its addresses have no translation yet."""
    kick: int | None = None
    call: int | None = None
    err: int | None = None


class Vrings:
    """The rings of one front-end, and the device that serves them."""

    def __init__(
        self,
        device: DeviceSide,
        guest: Guest,
        negotiation: Negotiation,
        miss: Miss,
        name: str,
        inflight: HeldRegion,
    ) -> None:
        self._device = device
        self._guest = guest
        self._negotiation = negotiation
        self._miss = miss
        self._name = name
        self._inflight = inflight
        self._served = [_Served(ring) for ring in negotiation.rings]

    @property
    def any_live(self) -> bool:
        return any(served.queue is not None for served in self._served)

    def start(self, index: int, kick: int | None) -> None:
        """Serve a ring, with this kick descriptor (None: the device polls), owned from now on.

        A ring that is served already goes on with the new descriptor. Raises RingError.
        """
        served = self._served[index]
        if served.queue is not None:
            self._interrupt(served)
        _exchange(served, "kick", kick)
        try:
            self._start(served)
        except RingError:
            self._fail(served)
            raise

    def stop(self, index: int) -> int:
        """Take a ring back; returns its base as GET_VRING_BASE tells it."""
        served = self._served[index]
        if (queue := served.queue) is not None:
            self._interrupt(served)
            # The front-end is told where the ring stands, so a region need not; unless something
            # was overtaken, which only the region knows.
            queue.release_inflight()
        if served.resume is not None:
            served.ring.base = pack_base(served.resume, self._negotiation.packed)
        self._forget(served)
        return served.ring.base

    def kick(self, index: int) -> None:
        """Have the device look at a ring, as its kick descriptor would."""
        if (kick := self._served[index].kick) is not None:
            channel.signal(kick)

    def set_call(self, index: int, fd: int | None) -> None:
        """`fd` is owned here from now on."""
        served = self._served[index]
        _exchange(served, "call", fd)
        if served.queue is not None:
            served.queue.set_call(fd)

    def set_err(self, index: int, fd: int | None) -> None:
        """`fd` is owned here from now on."""
        served = self._served[index]
        _exchange(served, "err", fd)
        if served.queue is not None:
            served.queue.set_err(fd)

    def log_used(self, index: int) -> None:
        """Follow the log flag and address of SET_VRING_ADDR, which may change while it is live."""
        if (queue := self._served[index].queue) is not None:
            queue.set_used_log(self._used_log(self._served[index].ring))

    def _used_log(self, ring: Ring) -> int | None:
        """Where the log has the used ring, if the front-end says so. Behind an IOMMU it tells an
        IOVA there (QEMU), so the ring's own addresses are what is translated and marked."""
        address = ring.address
        if address is None or not address.flags & VRING_LOG or self._guest.translated:
            return None
        return address.log

    def enable(self, index: int, enabled: bool) -> None:
        if self._served[index].queue is not None:
            self._device.enable_queue(index, enabled)

    def enable_all(self, enabled: bool) -> None:
        for served in self._served:
            if served.ring.enabled != enabled:
                self.enable(served.ring.index, enabled)

    def memory_changed(self) -> None:
        """Have every ring use the guest's memory as it is now; one that is broken stays so."""
        for served in self._served:
            if served.queue is not None and served.queue.broken is None:
                self._follow(served, served.queue)

    def translations_lost(self) -> None:
        """Interrupt the rings whose own addresses are no longer translated."""
        if self._guest.translated:
            self.memory_changed()

    def retry(self) -> None:
        """Start the rings that waited for a translation."""
        for served in self._served:
            if served.waiting:
                self._restart(served)

    def stop_all(self) -> None:
        for served in self._served:
            if served.ring.started or served.queue is not None:
                self.stop(served.ring.index)

    def close(self) -> None:
        """Take every ring back and close every descriptor."""
        for served in self._served:
            if served.queue is not None:
                self._interrupt(served)
            self._forget(served)
            _exchange(served, "call", None)
            _exchange(served, "err", None)

    # ------------------------------------------------------------ one ring

    def _start(self, served: _Served) -> None:
        ring, guest = served.ring, self._guest
        served.waiting = False
        features = (self._negotiation.features or 0) & ~TRANSPORT_FEATURES
        try:
            assert ring.address is not None
            areas = guest.areas(ring.address)
            position = served.resume or self._position(ring, areas[2])
            queue = DeviceQueue(
                guest.memory,
                features,
                ring.num,
                *areas,
                index=ring.index,
                position=position,
                one_used_entry_per_buffer=self._device.one_used_entry_per_buffer,
                inflight=self._inflight.region,
            )
            queue.set_kick(served.kick)
            queue.set_call(served.call)
            queue.set_err(served.err)
            queue.set_used_log(self._used_log(ring))
        except TranslationMiss as miss:
            self._wait(served, miss)
            return
        except (VirtqError, ValueError, OverflowError, OSError) as error:
            raise RingError(f"ring {ring.index}: {reason(error)}") from None
        served.areas, served.resume, served.queue = areas, None, queue
        try:
            self._device.start_queue(queue, ring.enabled)
        except Exception as error:
            log.exception("%s: ring %d: the device cannot serve it", self._name, ring.index)
            served.queue = None
            queue.stop()
            raise RingError(f"ring {ring.index}: {error}") from None

    def _position(self, ring: Ring, device_area: int) -> Position:
        """Where a ring begins: at its base, or under IN_ORDER at the used index.

        In order, everything before the used index is done and nothing behind it is, whatever a
        back-end that is gone had taken before: beginning there loses no buffer.
        """
        negotiation = self._negotiation
        base = unpack_base(ring.base, negotiation.packed)
        in_order = bool((negotiation.features or 0) & F.IN_ORDER)
        if negotiation.packed:
            if in_order:
                return base._replace(available=base.used, available_wrap=base.used_wrap)
            return base
        used = int.from_bytes(self._guest.memory.read(device_area + 2, 2), "little")
        return base._replace(used=used, available=used if in_order else base.available)

    def _follow(self, served: _Served, queue: DeviceQueue) -> None:
        """Go on with the memory as it is now: as before, or from the start if the ring moved or is
        not there at the moment. It is taken back first, while what it holds can be published."""
        address = served.ring.address
        assert address is not None
        try:
            areas = self._guest.areas(address)
            if areas == served.areas and self._is_mapped(areas, served.ring.num):
                queue.set_memory(self._guest.memory)
                return
        except VirtqError as error:
            self._lose(served, error)
            return
        self._interrupt(served)
        self._restart(served)

    def _is_mapped(self, areas: tuple[int, int, int], num: int) -> bool:
        try:
            for area, size in zip(areas, area_bytes(num, self._negotiation.packed), strict=True):
                self._guest.memory.view(area, size).release()
        except VirtqError:
            return False
        return True

    def _restart(self, served: _Served) -> None:
        try:
            self._start(served)
        except RingError as error:
            self._lose(served, error)

    def _wait(self, served: _Served, miss: TranslationMiss) -> None:
        served.waiting = True
        self._miss(miss)

    def _interrupt(self, served: _Served) -> None:
        """Take the queue from the device and remember where it stood."""
        index, queue = served.ring.index, served.queue
        assert queue is not None
        served.queue = None
        try:
            served.resume = self._device.stop_queue(index)
        except Exception:
            log.exception("%s: ring %d: the device cannot stop it", self._name, index)
            served.resume = queue.stop()

    def _lose(self, served: _Served, error: Exception) -> None:
        log.warning("%s: ring %d is lost: %s", self._name, served.ring.index, reason(error))
        if served.queue is not None:
            self._interrupt(served)
        if served.resume is not None:
            served.ring.base = pack_base(served.resume, self._negotiation.packed)
        self._fail(served)

    def _fail(self, served: _Served) -> None:
        served.ring.started = False
        self._forget(served)
        if served.err is not None:
            channel.signal(served.err)

    def _forget(self, served: _Served) -> None:
        served.waiting = False
        served.resume = None
        _exchange(served, "kick", None)


def reason(error: Exception) -> object:
    """An error in words; the core's carry more than their text."""
    return error.args[0] if isinstance(error, VirtqError) and error.args else error


def _exchange(served: _Served, which: str, fd: int | None) -> None:
    old: int | None = getattr(served, which)
    setattr(served, which, fd)
    if old is not None:
        close_fd(old)
