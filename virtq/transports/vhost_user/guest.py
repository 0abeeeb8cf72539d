"""The memory that one front-end shares, as the back-end holds it: regions, dirty log, IOTLB.

`memory` is what queues are made from. Every change that queues must follow (they hold a snapshot)
returns from here first; the caller then hands `memory` to the queues again.
"""

from __future__ import annotations

from virtq._core import Memory
from virtq.errors import GuestMemoryError
from virtq.features import F
from virtq.transports.vhost_user.fds import Fds, close_fd
from virtq.transports.vhost_user.messages import LOG_ALL
from virtq.transports.vhost_user.wire import (
    IOTLB_READ,
    IOTLB_WRITE,
    Iotlb,
    IotlbType,
    LogBase,
    Region,
    VringAddress,
)

MAX_SLOTS = 509
"""Regions that ADD_MEM_REG may add up to; what QEMU can use at most."""

_EVERYTHING = 2**64 - 1


class Guest:
    """The memory of one front-end."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.translated = False
        """Whether addresses are IOVAs that go through the IOTLB."""
        self._logging = False
        self._log: tuple[int, LogBase] | None = None
        self._log_event: int | None = None

    def set_table(self, regions: tuple[Region, ...], fds: Fds) -> None:
        """Replace all regions; `fds` stay the caller's.

        Raises GuestMemoryError, and then nothing has changed.
        """
        memory = Memory()
        try:
            for region, fd in zip(regions, fds, strict=True):
                _add(memory, region, fd)
        except GuestMemoryError:
            memory.clear()
            raise
        self.memory = memory
        memory.iotlb_enable(self.translated)
        self._apply_log()

    def add(self, region: Region, fd: int) -> None:
        """Add one region; `fd` stays the caller's. Raises GuestMemoryError."""
        if len(self.memory.regions) >= MAX_SLOTS:
            raise GuestMemoryError(
                f"region {region.guest_addr:#x}+{region.size:#x} is one more than {MAX_SLOTS}"
            )
        _add(self.memory, region, fd)

    def remove(self, region: Region) -> None:
        """Remove one region. Raises GuestMemoryError if there is no such region."""
        self.memory.remove_region(region.guest_addr, region.size, region.user_addr)

    def set_log(self, base: LogBase, fd: int) -> None:
        """Use this log whenever logging is on; `fd` is owned here from now on."""
        self._drop_log()
        self._log = (fd, base)
        self._apply_log()

    def set_log_event(self, fd: int) -> None:
        """Kept for the front-end that set it; the dirty log itself says everything."""
        if self._log_event is not None:
            close_fd(self._log_event)
        self._log_event = fd

    def use_features(self, features: int) -> None:
        """Follow the features that decide how memory is accessed."""
        translated = bool(features & F.ACCESS_PLATFORM)
        if translated != self.translated:
            self.translated = translated
            self.memory.iotlb_enable(translated)
        self._logging = bool(features & LOG_ALL)
        self._apply_log()

    def translate(self, message: Iotlb) -> None:
        """Carry out an IOTLB update or invalidation. Raises GuestMemoryError."""
        if message.type == IotlbType.INVALIDATE:
            self.memory.iotlb_invalidate(message.iova, message.size)
            return
        self.memory.iotlb_update(
            message.iova,
            message.size,
            message.user_addr,
            bool(message.permissions & IOTLB_READ),
            bool(message.permissions & IOTLB_WRITE),
        )

    def forget_translations(self) -> None:
        """Empty the IOTLB. A front-end does not say what changes while all rings are stopped."""
        if self.translated:
            self.memory.iotlb_invalidate(0, _EVERYTHING)

    def areas(self, address: VringAddress) -> tuple[int, int, int]:
        """Guest addresses of a ring's descriptor, driver and device area. Raises GuestMemoryError
        if they are in no region."""
        users = (address.descriptor, address.available, address.used)
        if self.translated:
            return users
        desc, driver, device = map(self.memory.guest_from_user, users)
        return desc, driver, device

    def close(self) -> None:
        """Let go of the front-end's memory and descriptors."""
        self.memory.clear()
        self._drop_log()
        self._apply_log()  # the log's mapping has the file open as well
        if self._log_event is not None:
            close_fd(self._log_event)
            self._log_event = None

    def _apply_log(self) -> None:
        if self._log is not None and self._logging:
            fd, base = self._log
            self.memory.set_log(fd, base.size, base.offset)
        else:
            self.memory.set_log(None)

    def _drop_log(self) -> None:
        if self._log is not None:
            close_fd(self._log[0])
            self._log = None


def _add(memory: Memory, region: Region, fd: int) -> None:
    memory.add_region(fd, region.guest_addr, region.size, region.offset, region.user_addr)
