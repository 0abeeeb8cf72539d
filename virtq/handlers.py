"""Which method of a device serves which of its virtqueues.

`handle` and `handle_batch` serve every queue that no method names. A method names its own with a
decorator:

    @virtq.handles("transmitq")
    def transmit(self, request): ...

    @virtq.handles_batch("port*_transmitq")
    async def transmit_many(self, batch): ...

A name may hold the wildcards `*` and `?`, for families of queues. An exact name goes before a
pattern, and a subclass's method before its base's. A subclass that overrides a decorated method
need not decorate it again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeVar

M = TypeVar("M", bound=Callable[..., Any])

_MARK = "_virtq_handles"


class Handles(NamedTuple):
    """One name or pattern, the method that serves the queues it fits, and whether that method takes
    whole batches."""

    pattern: str
    method: str
    batches: bool

    @property
    def exact(self) -> bool:
        return not {"*", "?", "["} & set(self.pattern)

    def fits(self, queue: str) -> bool:
        return fnmatchcase(queue, self.pattern)


def handles(*queues: str) -> Callable[[M], M]:
    """Method decorator: serves the queues of these names, request by request, as `Device.handle`
    does."""
    return _marker(queues, batches=False)


def handles_batch(*queues: str) -> Callable[[M], M]:
    """Method decorator: serves the queues of these names by whole batches, as
    `Device.handle_batch` does."""
    return _marker(queues, batches=True)


def _marker(queues: Sequence[str], *, batches: bool) -> Callable[[M], M]:
    if not queues or not all(isinstance(queue, str) and queue for queue in queues):
        raise TypeError("say which queues are handled: @virtq.handles('transmitq')")

    def mark(method: M) -> M:
        setattr(method, _MARK, (queues, batches))
        return method

    return mark


def collect(device: type) -> tuple[Handles, ...]:
    """What the methods of a device class say that they handle, the most derived class first.

    Raises TypeError for a name that two methods of one class want, and for a method that does not
    take what it is going to be given."""
    found: list[Handles] = []
    for owner in device.__mro__:
        wanted: dict[str, str] = {}
        for method, value in vars(owner).items():
            patterns, batches = getattr(value, _MARK, ((), False))
            if patterns:
                _check_signature(f"{owner.__name__}.{method}", value, batches)
            for pattern in patterns:
                if wanted.setdefault(pattern, method) != method:
                    raise TypeError(
                        f"{owner.__name__}: queue {pattern} is handled by both "
                        f"{wanted[pattern]} and {method}"
                    )
                found.append(Handles(pattern, method, batches))
    return tuple(found)


def _check_signature(name: str, method: Callable[..., Any], batches: bool) -> None:
    what = "batch" if batches else "request"
    try:
        inspect.signature(method).bind(None, None)
    except TypeError:
        raise TypeError(f"{name} handles a {what}: it takes (self, {what})") from None


def check_names(device: type, handled: Sequence[Handles], queues: Sequence[str]) -> None:
    """Raises TypeError for an exact name that no queue has."""
    for one in handled:
        if one.exact and one.pattern not in queues:
            raise TypeError(
                f"{device.__name__}.{one.method} handles {one.pattern!r}, but the queues are: "
                f"{', '.join(queues)}"
            )


def find(handled: Sequence[Handles], queue: str) -> Handles | None:
    """What serves a queue."""
    fitting = [one for one in handled if one.fits(queue)]
    return next((one for one in fitting if one.exact), fitting[0] if fitting else None)
