"""The options of `virtq serve` that put wrappers around a device: faults, traces, captures."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import click

from virtq.device import Device
from virtq.wrap import Captured, Faulty, Traced, Wrapper

FAULTS_HELP = """\
\b
Faults (--fault WHAT:WHEN:FAULT) are for testing drivers:
  WHAT   read, write, flush or another kind of request; the name of a queue; * for any
  WHEN   1%      each time with this probability    7    the seventh time
         always  every time                         7-9  the seventh to the ninth time
         /10     every tenth time                   7+   from the seventh time on
  FAULT  EIO (any name of errno)   the request fails without reaching the device
         delay=10ms                it is finished that much later
         hang                      it is never finished
         reorder                   it is finished after the next one
         drop-call, late-call=5ms  the driver's notification is lost, or late
         corrupt-used=id, =length or =order    the used entry is wrong
  @FILE  a script: one fault on each line, # begins a comment
"""


def wrapper_options(command: Callable[..., None]) -> Iterator[Callable[[Any], Any]]:
    """The options, for a command that may have a `--seed` of its own."""
    params: list[click.Parameter] = getattr(command, "__click_params__", [])
    taken = any("--seed" in param.opts for param in params)
    seed = ["--fault-seed"] if taken else ["--seed", "--fault-seed"]
    yield from _OPTIONS[:1]
    yield click.option(
        *seed,
        "fault_seed",
        metavar="N",
        type=int,
        help="What chance depends on, to repeat the same faults.",
    )
    yield from _OPTIONS[1:]


_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--fault",
        "faults",
        metavar="FAULT",
        multiple=True,
        help="Let things go wrong, such as read:1%:EIO (see above). May be repeated.",
    ),
    click.option(
        "--trace",
        metavar="FILE",
        help="Write down what happens: for ui.perfetto.dev, or with .jsonl as lines of JSON.",
    ),
    click.option("--capture", metavar="FILE", help="Write packets (of net and vsock) as pcapng."),
)


class Wrapping:
    """The wrappers that a command line asks for."""

    def __init__(
        self, faults: tuple[str, ...], seed: int | None, trace: str | None, capture: str | None
    ) -> None:
        self.faults = faults
        self.seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
        self.trace = trace
        self.capture = capture

    def around(self, device: Device | Wrapper, number: int) -> Device | Wrapper:
        """The device within them. Of several devices, those from the second on write to files of
        their own, with the number in the name. Raises FaultError, ValueError, OSError."""
        if self.faults:
            device = Faulty(device, *self.faults, seed=self.seed)
        if self.capture is not None:
            device = Captured(device, _numbered(self.capture, number))
        if self.trace is not None:
            device = Traced(device, _numbered(self.trace, number))
        return device


def _numbered(path: str, number: int) -> str:
    stem, suffix = os.path.splitext(path)
    return path if number == 1 else f"{stem}-{number}{suffix}"


def faults(device: Device | Wrapper) -> dict[str, dict[str, int]]:
    """How often each fault has happened, for a report; nothing without any."""
    while isinstance(device, Wrapper):
        if isinstance(device, Faulty):
            return {"faults": device.happened}
        device = device.device
    return {}
