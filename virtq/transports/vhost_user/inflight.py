"""The in-flight region (INFLIGHT_SHMFD), at both ends of a connection.

A back-end writes down there which buffers it has taken and not yet used, and a front-end keeps the
region while back-ends come and go. `HeldRegion` is the back-end's: made when the front-end asks for
one, in use from SET_INFLIGHT_FD on. `KeptRegion` is the front-end's, which never looks into it, but
empties the part of a ring that begins anew. What is in it is the core's affair.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from virtq._core import Inflight as CoreInflight
from virtq.transports.vhost_user import wire
from virtq.transports.vhost_user.fds import close_fd
from virtq.transports.vhost_user.wire import Inflight, ProtocolError

MAX_ENTRIES = 32768
_ZEROES = bytes(1 << 16)


class Answer(NamedTuple):
    """What a request is answered with when descriptors belong to it; they stay the sender's."""

    payload: wire.Inflight | None
    fds: tuple[int, ...]


class HeldRegion:
    """What a back-end holds of its front-end's region."""

    def __init__(self) -> None:
        self._made: int | None = None
        self.region: CoreInflight | None = None
        """Where queues write, once the front-end has said so."""

    def make(self, asked: Inflight, packed: bool) -> Answer:
        """A new region as GET_INFLIGHT_FD asks for it, all zeroes."""
        size = CoreInflight.bytes(asked.num_queues, asked.queue_size, packed)
        fd = os.memfd_create("virtq-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._drop_made()
        self._made = fd
        os.ftruncate(fd, size)
        return Answer(Inflight(size, 0, asked.num_queues, asked.queue_size), (fd,))

    def use(self, given: Inflight, fd: int, packed: bool) -> None:
        """Let queues write into this one, which may be that of a back-end before us; `fd` stays the
        caller's. Raises ProtocolError if it is too small, GuestMemoryError if it cannot be
        mapped."""
        needed = CoreInflight.bytes(given.num_queues, given.queue_size, packed)
        if given.mmap_size < needed:
            why = f"{given.num_queues} queues of {given.queue_size} need {needed}"
            raise ProtocolError("SET_INFLIGHT_FD", "mmap_size", given.mmap_size, why)
        self.region = CoreInflight(
            fd, given.mmap_size, given.mmap_offset, given.num_queues, given.queue_size
        )
        self._drop_made()

    def forget(self) -> None:
        """Let go of the region; what is in it stays the front-end's."""
        self.region = None
        self._drop_made()

    def _drop_made(self) -> None:
        if self._made is not None:
            close_fd(self._made)
            self._made = None


def check_numbers(name: str, payload: Inflight, queues: int) -> None:
    """Raises ProtocolError unless a region is for queues that there are, of a size that can be."""
    if not 1 <= payload.num_queues <= queues:
        raise ProtocolError(name, "num_queues", payload.num_queues, f"there are {queues} rings")
    if not 1 <= payload.queue_size <= MAX_ENTRIES:
        raise ProtocolError(name, "queue_size", payload.queue_size, f"not 1 to {MAX_ENTRIES}")


class KeptRegion:
    """A region as the front-end keeps it for the back-ends to come; `fd` is owned here."""

    def __init__(self, description: Inflight, fd: int) -> None:
        self.description = description
        self.fd = fd

    def clear(self, index: int) -> None:
        """A ring begins anew: nothing of it is in flight."""
        part, kept = self.description.mmap_size // self.description.num_queues, self.description
        start = kept.mmap_offset + index * part
        end = min(start + part, os.fstat(self.fd).st_size)
        for at in range(start, end, len(_ZEROES)):
            os.pwrite(self.fd, _ZEROES[: end - at], at)

    def close(self) -> None:
        close_fd(self.fd)
