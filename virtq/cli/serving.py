"""Serving devices until a signal says that it is enough, and telling how it was."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import inspect
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click
from rich.table import Table

from virtq.cli.failures import Failed, Unusable, beginning, reason
from virtq.cli.options import FD, Seconds
from virtq.cli.output import (
    count_text,
    facts,
    json_option,
    print_json_line,
    rate_text,
    say,
    show,
    size_text,
    table,
)
from virtq.cli.recorder import Recorder
from virtq.cli.wrapping import FAULTS_HELP, Wrapping, faults, wrapper_options
from virtq.device import Device
from virtq.errors import TransportError
from virtq.features import RingKind, describe
from virtq.transports.vhost_user import Backend
from virtq.transports.vhost_user import serve as serve_socket
from virtq.wrap import Wrapper

COLUMNS = {
    "buffers": "buffers",
    "batches": "batches",
    "bytes_read": "from\ndriver",
    "bytes_written": "to\ndriver",
    "kicks_received": "kicks\nreceived",
    "calls_sent": "calls\nsent",
    "calls_saved": "calls\nsaved",
    "used_entries": "used\nentries",
}
"""The counters of every queue, by the heading of their column."""


@dataclass
class Endpoint:
    """A device, what to call it, and where to serve it: a socket path, or a descriptor."""

    device: Device | Wrapper
    title: str
    where: str | int
    recorder: Recorder = field(init=False)

    def __post_init__(self) -> None:
        self.recorder = Recorder(self.device)

    def wrap(self, wrapping: Wrapping, number: int) -> None:
        """Put the wrappers that were asked for around the device, the `number`th of several."""
        self.device = wrapping.around(self.device, number)
        self.recorder = Recorder(self.device)

    @property
    def address(self) -> str:
        return f"descriptor {self.where}" if isinstance(self.where, int) else self.where


@dataclass(frozen=True)
class Terms:
    """Where and how to serve: what the options say that every device has."""

    socket_paths: tuple[str, ...]
    fd: int | None
    offer: str
    protocol: str
    one_used_entry_per_buffer: bool
    stats_s: float | None
    as_json: bool
    faults: tuple[str, ...]
    fault_seed: int | None
    trace: str | None
    capture: str | None

    @property
    def wrapping(self) -> Wrapping:
        """The wrappers that are asked for. Raises click.UsageError for options that do not go
        together."""
        if self.fault_seed is not None and not self.faults:
            raise click.UsageError("--seed goes with --fault")
        return Wrapping(self.faults, self.fault_seed, self.trace, self.capture)

    @property
    def places(self) -> list[str | int]:
        """Where to serve. Raises click.UsageError unless there is one kind of it."""
        if self.socket_paths and self.fd is not None:
            raise click.UsageError("--socket-path and --fd exclude each other")
        if not self.socket_paths and self.fd is None:
            raise click.UsageError("say where to serve: --socket-path PATH")
        if "" in self.socket_paths:
            raise click.UsageError("--socket-path is empty")
        if len(set(self.socket_paths)) < len(self.socket_paths):
            raise click.UsageError("the same --socket-path twice")
        return list(self.socket_paths) if self.fd is None else [self.fd]

    @property
    def place(self) -> str | int:
        """The same for a device that is served at one place."""
        if len(self.places) > 1:
            raise click.UsageError("this device is served at one --socket-path only")
        return self.places[0]


def serving_command(function: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of everything that is served; it gets them as `terms`."""

    @functools.wraps(function)
    def command(**given: Any) -> None:
        terms = Terms(**{name.name: given.pop(name.name) for name in dataclasses.fields(Terms)})
        function(terms=terms, **given)

    command.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\n{FAULTS_HELP}"
    for option in reversed(
        (
            click.option(
                "--socket-path",
                "socket_paths",
                metavar="PATH",
                multiple=True,
                help="Listen at this path.",
            ),
            click.option("--fd", metavar="N", type=FD, help="Or serve this open socket."),
            click.option(
                "--offer",
                metavar="CHANGE",
                default="",
                help="Features to offer or not, such as +IN_ORDER,-EVENT_IDX.",
            ),
            click.option(
                "--protocol",
                metavar="CHANGE",
                default="",
                help="vhost-user protocol features to offer or not, such as -CONFIGURE_MEM_SLOTS.",
            ),
            click.option(
                "--one-used-entry-per-buffer",
                is_flag=True,
                help="Under IN_ORDER, write a used entry for every buffer, not one for a batch.",
            ),
            click.option(
                "--stats",
                "stats_s",
                metavar="SECONDS",
                type=Seconds(0.01),
                help="Print rates this often.",
            ),
            json_option,
            *wrapper_options(function),
        )
    ):
        command = option(command)
    return command


def serve_all(endpoints: Sequence[Endpoint], terms: Terms) -> None:
    """Serve until SIGTERM or SIGINT, then print the statistics.

    Raises Unusable if a socket cannot be had, Failed if the front-end on a descriptor broke the
    protocol.
    """
    wrapping = terms.wrapping
    for number, endpoint in enumerate(endpoints, 1):
        endpoint.device.one_used_entry_per_buffer |= terms.one_used_entry_per_buffer
        with beginning(endpoint.title):
            endpoint.wrap(wrapping, number)
            endpoint.recorder.offered_features  # noqa: B018 - raises for an offer that cannot be
            Backend(endpoint.recorder, protocol=terms.protocol)
    started = time.monotonic()
    if terms.faults:
        say(f"virtq: faults happen as with --fault-seed {wrapping.seed}")
    try:
        failure = asyncio.run(_serve_all(endpoints, terms))
    finally:
        for endpoint in endpoints:
            if isinstance(endpoint.device, Wrapper):
                endpoint.device.release()
    seconds = time.monotonic() - started
    if failure is not None and not any(e.recorder.front_ends for e in endpoints):
        raise Unusable(reason(failure))
    if terms.as_json:
        print_json_line(_report(endpoints, seconds))
    else:
        show(*(part for endpoint in endpoints for part in _summary(endpoint, seconds)))
    if failure is not None:
        raise Failed(reason(failure))


async def _serve_all(endpoints: Sequence[Endpoint], terms: Terms) -> Exception | None:
    """Returns what ended the service, if it was no signal."""
    stop = asyncio.Event()
    backends: list[Backend] = []

    def ready(endpoint: Endpoint, backend: Backend) -> None:
        backends.append(backend)
        say(f"virtq: serving {endpoint.title} on {endpoint.address}")

    with _signals(stop.set):
        tasks = [
            asyncio.ensure_future(
                serve_socket(
                    endpoint.recorder,
                    endpoint.where,
                    name=endpoint.address,
                    protocol=terms.protocol,
                    ready=lambda backend, endpoint=endpoint: ready(endpoint, backend),  # type: ignore[misc]
                )
            )
            for endpoint in endpoints
        ]
        stopped = asyncio.ensure_future(stop.wait())
        reporter = asyncio.ensure_future(_report_often(endpoints, terms))
        await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
        for backend in backends:
            backend.close()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for task in (stopped, reporter):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
    for outcome in outcomes:
        if isinstance(outcome, TransportError | OSError):
            return outcome
        if isinstance(outcome, BaseException):
            raise outcome
    return None


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    caught = (signal.SIGTERM, signal.SIGINT)
    for number in caught:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in caught:
            loop.remove_signal_handler(number)


# Statistics


def _report(endpoints: Sequence[Endpoint], seconds: float) -> dict[str, Any]:
    return {
        "seconds": round(seconds, 3),
        "devices": [
            {"device": e.title, "where": e.where, **e.recorder.report(), **faults(e.device)}
            for e in endpoints
        ],
    }


async def _report_often(endpoints: Sequence[Endpoint], terms: Terms) -> None:
    if not terms.stats_s:
        return
    started = last = time.monotonic()
    before = [_totals(endpoint) for endpoint in endpoints]
    while True:
        await asyncio.sleep(terms.stats_s)
        now = time.monotonic()
        if terms.as_json:
            print_json_line(_report(endpoints, now - started))
            continue
        after = [_totals(endpoint) for endpoint in endpoints]
        for endpoint, old, new in zip(endpoints, before, after, strict=True):
            where = f"{endpoint.address}  " if len(endpoints) > 1 else ""
            click.echo(f"{where}{now - started:7.1f} s {_rates(old, new, now - last)}")
        before, last = after, now


def _totals(endpoint: Endpoint) -> dict[str, int]:
    totals: dict[str, int] = {}
    for counters in endpoint.device.stats().values():
        for key, value in counters.items():
            totals[key] = totals.get(key, 0) + value
    return totals


def _rates(old: Mapping[str, int], new: Mapping[str, int], seconds: float) -> str:
    rate = {key: (value - old.get(key, 0)) / seconds for key, value in new.items()}
    moved = rate.get("bytes_read", 0) + rate.get("bytes_written", 0)
    words = [f"{rate_text(rate.get('buffers', 0)):>5} buffers/s", f"{size_text(moved):>10}/s"]
    for key, text in (
        ("kicks_received", "kicks"),
        ("calls_sent", "calls"),
        ("used_entries", "used"),
    ):
        words.append(f"{rate_text(rate.get(key, 0)):>5} {text}/s")
    return " ".join(words)


def _summary(endpoint: Endpoint, seconds: float) -> list[Table]:
    recorder, device = endpoint.recorder, endpoint.device
    front_ends = f"{recorder.front_ends} front-end{'s' if recorder.front_ends != 1 else ''}"
    rows = [("served", f"{front_ends} in {seconds:.1f} s on {endpoint.address}")]
    if recorder.negotiated is not None:
        declined = device.offered_features & ~recorder.negotiated
        sizes = Counter(recorder.queue_sizes_used.values())
        rows += [
            ("ring", RingKind.of(recorder.negotiated).title),
            ("queues", ", ".join(f"{count} of {size} slots" for size, count in sizes.items())),
            ("negotiated", describe(recorder.negotiated, device.device_id)),
            ("declined", describe(declined, device.device_id)),
        ]
    for text, count in faults(device).get("faults", {}).items():
        rows.append(("fault", f"{text}, {count} time{'s' if count != 1 else ''}"))
    parts = [facts(endpoint.title, rows)]
    queues = {name: c for name, c in device.stats().items() if any(c.values())}
    if queues:
        parts.append(_counters(queues, COLUMNS))
    others = {key for c in queues.values() for key, value in c.items() if value} - set(COLUMNS)
    if others:
        having = {name: c for name, c in queues.items() if any(c.get(key) for key in others)}
        parts.append(_counters(having, {key: key.replace("_", " ") for key in sorted(others)}))
    return parts


def _counters(queues: Mapping[str, Mapping[str, int]], columns: Mapping[str, str]) -> Table:
    """Counters by queue, and their sums; `columns` are the headings by counter."""
    made = table("queue", *columns.values(), numbers=range(1, len(columns) + 1))
    for name, counters in queues.items():
        made.add_row(name, *(_cell(key, counters) for key in columns))
    if len(queues) > 1:
        total = {key: sum(c.get(key, 0) for c in queues.values()) for key in columns}
        made.add_section()
        made.add_row("all", *(_cell(key, total) for key in columns))
    return made


def _cell(key: str, counters: Mapping[str, int]) -> str:
    value = counters.get(key, 0)
    return size_text(value) if key.startswith("bytes") else count_text(value)
