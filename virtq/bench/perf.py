"""Cycles, instructions and cache misses, where the kernel lets a program count its own.

`perf_event_open` counts for the calling thread and the threads that it starts from then on. In
many virtual machines there are no such counters; nothing is made up then.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Mapping
from dataclasses import replace

from virtq.bench.case import Case, Contender, Window

SYSCALLS = {"x86_64": 298, "aarch64": 241, "riscv64": 241}
"""The number of perf_event_open by machine."""
HARDWARE = 0
EVENTS = {"cycles": 0, "instructions": 1, "cache_misses": 3}
ATTRIBUTES_BYTES = 64
"""The first version of the structure is enough."""
INHERIT = 1 << 1
EXCLUDE_KERNEL = 1 << 5
EXCLUDE_HYPERVISOR = 1 << 6
CLOSE_ON_EXEC = 1 << 3


def why_not() -> str | None:
    """Why nothing can be counted here; None if it can."""
    try:
        Counters().close()
    except OSError as error:
        return error.strerror or str(error)
    return None


class Counters:
    """Counts from when it is made, for this thread and those that it starts. Raises OSError where
    that is not possible."""

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}
        try:
            for name, event in EVENTS.items():
                self._fds[name] = _open(event)
        except OSError:
            self.close()
            raise

    def read(self) -> dict[str, int]:
        """The counts so far, by name."""
        return {name: int.from_bytes(os.read(fd, 8), "little") for name, fd in self._fds.items()}

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])


def _open(event: int) -> int:
    number = SYSCALLS.get(platform.machine())
    if number is None:
        raise OSError(f"the kernel's counters are not known on {platform.machine()}")
    flags = INHERIT | EXCLUDE_KERNEL | EXCLUDE_HYPERVISOR
    # type, size, config, period, sample type, read format, flags: the rest is zero.
    attributes = struct.pack("=IIQQQQQ", HARDWARE, ATTRIBUTES_BYTES, event, 0, 0, 0, flags)
    raw = ctypes.create_string_buffer(attributes.ljust(ATTRIBUTES_BYTES, b"\0"), ATTRIBUTES_BYTES)
    call = ctypes.CDLL(None, use_errno=True).syscall
    fd = int(call(number, raw, 0, -1, -1, ctypes.c_ulong(CLOSE_ON_EXEC)))
    if fd < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return fd


class Counted:
    """A contender whose windows also count cycles, instructions and cache misses, of the threads
    that it starts in them."""

    def __init__(self, inner: Contender) -> None:
        self._inner = inner

    @property
    def name(self) -> str:
        return self._inner.name

    def window(self, seconds: float) -> Window:
        counters = Counters()
        try:
            window = self._inner.window(seconds)
            counted: Mapping[str, float] = counters.read()
        finally:
            counters.close()
        return Window(window.work, window.seconds, {**window.counts, **counted})

    def close(self) -> None:
        self._inner.close()


def counted(case: Case) -> Case:
    """The case with contenders that count as well."""
    return replace(case, make=lambda: [Counted(contender) for contender in case.make()])
