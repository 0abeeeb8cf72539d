"""How the registers of a machine's devices are reached.

`Client` reaches those of a QEMU over its qtest socket. Everything above, the bus, the registers of
a virtio device and the transport, works on whatever has these accesses: another VMM, a device
model in a test.
"""

from __future__ import annotations

from typing import Protocol


class Accesses(Protocol):
    """Accesses to a machine, each one as wide as it says; usable from several threads."""

    def port_read(self, port: int, size: int) -> int:
        """Read an I/O port; `size` is 1, 2 or 4 bytes."""
        ...

    def port_write(self, port: int, size: int, value: int) -> None: ...
    def load(self, address: int, size: int) -> int:
        """One access of 1, 2, 4 or 8 bytes to a guest-physical address."""
        ...

    def store(self, address: int, size: int, value: int) -> None: ...
    def take_interrupts(self) -> list[tuple[int, bool]]:
        """(line, whether it was raised) of what was reported since the last time, oldest first."""
        ...

    @property
    def interrupt_fds(self) -> tuple[int, ...]:
        """One of them is readable when interrupts may wait to be taken."""
        ...
