"""Who owns a descriptor.

A descriptor that arrives over a socket is open from that moment; somebody must close it. `Fds` is
that somebody: it travels with the message, its holder takes out what it wants to keep, and the
rest is closed when the holder is done (`with request.fds:`). Taken descriptors belong to the taker.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator


def close_fd(fd: int) -> None:
    """Close; a descriptor that is closed already is no news."""
    with contextlib.suppress(OSError):
        os.close(fd)


class Fds:
    """Descriptors that came with one message, in order."""

    __slots__ = ("_numbers",)

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self._numbers = list(numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def __repr__(self) -> str:
        return f"Fds({self._numbers})"

    def __iter__(self) -> Iterator[int]:
        """The descriptors, which stay owned here."""
        return iter(self._numbers)

    def peek(self) -> int:
        """The first descriptor, which stays owned here."""
        return self._numbers[0]

    def take(self) -> int:
        """The first descriptor that is left; the caller owns it now."""
        return self._numbers.pop(0)

    def take_all(self) -> list[int]:
        taken, self._numbers = self._numbers, []
        return taken

    def extend(self, other: Fds) -> None:
        self._numbers.extend(other.take_all())

    def close(self) -> None:
        for fd in self.take_all():
            close_fd(fd)

    def __enter__(self) -> Fds:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
