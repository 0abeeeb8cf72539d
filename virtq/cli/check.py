"""`virtq check`: a device or a driver, requirement by requirement."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain

import click
from rich.console import Console, Group
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from virtq.check import results as out
from virtq.check.case import Case, Party, Result, Verdict
from virtq.check.driver.bench import WAIT_S, Bench
from virtq.check.driver.peer import OFFERED
from virtq.check.driver.run import run as judge_driver
from virtq.check.driver.start import Command
from virtq.check.keep import Lasting, Started
from virtq.check.net.far_end import reached
from virtq.check.queue_size import bearable_size
from virtq.check.register_log import RULES
from virtq.check.run import Subject, chosen, run
from virtq.check.unseen import UNSEEN
from virtq.check.waiting import PATIENCE_S
from virtq.cli.check_registers import SCHEME, check_registers
from virtq.cli.failures import EXIT_FAILED, Unusable, beginning
from virtq.cli.options import DEVICE_TYPE, Seconds, command_line
from virtq.cli.output import facts, json_option, print_json, show, table
from virtq.cli.probe import guess_device
from virtq.connecting import open_transport
from virtq.errors import UriError
from virtq.features import DEVICE_NAMES
from virtq.transports.base import DriverTransport
from virtq.transports.vhost_user import channel
from virtq.transports.vhost_user.frontend import QUEUE_SIZE, TIMEOUT_S
from virtq.transports.vhost_user.offer import ProtocolChange
from virtq.uri import Uri

OUTPUT_OPTIONS = {"as_json", "junit", "sarif", "report"}
"""Options that do not change what is judged."""
_ANSWER_SHARE = TIMEOUT_S / PATIENCE_S
"""How long an answer to a message may take, of the patience with the device."""
_SURE_ENOUGH = 5
"""Points for a guess of the device type: three typical features, with nothing against it. A device
that is judged as another type fails for nothing."""


@click.command(short_help="Judge a device or a driver, requirement by requirement.")
@click.argument("uri", required=False)
@click.option(
    "--driver",
    "is_driver",
    is_flag=True,
    help="Be the device, at a vhost-user socket, and judge the driver that comes.",
)
@click.option(
    "--start",
    metavar="COMMAND",
    help="What starts it: {socket} is replaced; for a driver {features}, {packed}, {in_order} too.",
)
@click.option(
    "--wait",
    "wait_s",
    metavar="SECONDS",
    type=Seconds(0.1, 3600),
    default=WAIT_S,
    show_default=True,
    help="How long to wait for a driver, and for it to be ready.",
)
@click.option(
    "--only",
    metavar="PATTERN",
    multiple=True,
    help="These cases: an area such as in_order, or a name such as 'split.a*'.",
)
@click.option("--list", "as_list", is_flag=True, help="Show the cases and what they check.")
@click.option("--coverage", is_flag=True, help="Show how much of the catalogue has a case.")
@click.option(
    "--port",
    metavar="PLACE",
    help="Where the other end of a network device's wire is: unix:PATH or packet:INTERFACE.",
)
@click.option("--type", "device_type", type=DEVICE_TYPE, help="The device type, if it is not told.")
@click.option(
    "--seed", metavar="N", type=int, default=0, show_default=True, help="For what varies."
)
@click.option(
    "--repeat",
    metavar="N",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="Run everything so often, each time with another seed.",
)
@click.option(
    "--patience",
    "patience_s",
    metavar="SECONDS",
    type=Seconds(0.05, 60),
    default=PATIENCE_S,
    show_default=True,
    help="How long to wait for what must come.",
)
@click.option("--junit", metavar="FILE", help="Write JUnit XML.")
@click.option("--sarif", metavar="FILE", help="Write SARIF.")
@click.option("--report", metavar="FILE", help="Write a page for people, with the rings drawn.")
@json_option
@click.pass_context
def check(
    ctx: click.Context,
    uri: str | None,
    is_driver: bool,
    start: str | None,
    wait_s: float,
    only: Sequence[str],
    as_list: bool,
    coverage: bool,
    port: str | None,
    device_type: int | None,
    seed: int,
    repeat: int,
    patience_s: float,
    junit: str | None,
    sarif: str | None,
    report: str | None,
    as_json: bool,
) -> None:
    """Drive a device in every kind of ring that it offers, do what drivers do and what they should
    not, and tell which requirements of VIRTIO 1.4 hold. With --driver it is the reverse: be the
    device, and judge the driver.

    A device is reset many times, and a disk's first sectors are written and put back. A driver has
    to keep the device busy; with --start it is started and ended many times, otherwise it may be
    started, reset or connected again by whoever has it.

    With registers:FILE a driver is judged by what it did to a device's registers: FILE has a JSON
    object for each access (docs/howto/registers.md), or is a trace of QEMU's.

    Frames are sent to a network device, and those that it transmits are looked at. QEMU's own and
    one on a hub in this process are reached by themselves; for others, --port names the other end
    of the wire: unix:PATH, a stream socket that listens, with the framing of QEMU's netdev stream,
    or packet:NAME, a network interface of this host, such as the tap that a back-end has.

    \b
    Examples:
      virtq check vhost-user:/run/disk.sock
      virtq check qtest:virtio-blk-pci,packed=on,in_order=on --report report.html
      virtq check qtest:virtio-rng-pci --only in_order --only 'packed.*' --repeat 20
      virtq check vhost-user:/run/d.sock --start 'my-back-end --socket {socket}'
      virtq check --driver vhost-user:/run/d.sock --type blk --start 'my-driver {socket}'
      virtq check registers:accesses.jsonl
      virtq check vhost-user:/run/net.sock --port packet:tap0
      virtq check --list
      virtq check --coverage

    Exit status: 0 if everything holds, 1 if a requirement does not (or what is judged hung or
    crashed), 2 if it could not be judged.
    """
    party: Party | None = "driver" if is_driver else None if as_list else "device"
    if uri is not None and uri.startswith(SCHEME):
        ctx.exit(check_registers(uri, only, junit, sarif, report, as_json))
    with beginning():
        cases = chosen(only, party)
    if as_list:
        _list([*cases, *(() if only else RULES.values())], as_json)
        return
    if coverage:
        _coverage(as_json)
        return
    if uri is None:
        raise click.UsageError("missing URI: what to judge, such as vhost-user:/run/disk.sock")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_ends_what_it_started())
        with beginning():
            # That one cannot be written should be known before, not after.
            stack.enter_context(out.kept(filter(None, (junit, sarif, report))))
        with beginning(uri):
            if is_driver:
                judge = stack.enter_context(_bench(uri, device_type, start, wait_s, patience_s))
                turns = (judge_driver(judge, cases, seed=seed + turn) for turn in range(repeat))
                device_id: int | None = judge.device_id
                bus = None
            else:
                where, far_end = stack.enter_context(reached(uri, port))
                subject = replace(
                    _subject(where, device_type, start, stack, patience_s), uri=uri, far_end=far_end
                )
                device_id, bus = subject.device_id, subject.bus
                turns = (
                    run(subject, cases, seed=seed + turn, patience_s=patience_s)
                    for turn in range(repeat)
                )
        about = [case for case in cases if case.concerns(device_id, bus)]
        if not about:
            raise Unusable(f"{uri}: none of these cases is about it ({_name(device_id)})")
        total = sum(len(case.kinds) or 1 for case in about) * repeat
        stack.enter_context(_quiet())
        done = _collect(turns, total)
        with beginning():
            out.write_reports(
                uri,
                done,
                junit=junit,
                sarif=sarif,
                html=report,
                command=command_line(OUTPUT_OPTIONS),
            )
    if as_json:
        print_json(out.as_json(uri, done))
    else:
        _show(uri, device_id, done, len(cases) - len(about))
    if is_driver and not judge.came:
        reason = done[-1].reason if done else "nothing was run"
        raise Unusable(f"{uri}: {reason}")
    if out.is_broken(done):
        ctx.exit(EXIT_FAILED)
    if not is_driver and subject.undrivable is not None:
        raise Unusable(f"{uri}: {subject.undrivable}")


def _collect(turns: Iterable[Iterable[Result]], total: int) -> list[Result]:
    """All results of all turns; `total`: how many there will be. On a terminal, standard error
    tells how far it is."""
    done: list[Result] = []
    console = Console(stderr=True)
    columns = (TimeElapsedColumn(), BarColumn(bar_width=30), TextColumn("{task.description}"))
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("", total=total)
        for result in chain.from_iterable(turns):
            done.append(result)
            progress.update(task, advance=1, description=result.case.name)
    return done


@contextlib.contextmanager
def _ends_what_it_started() -> Iterator[None]:
    """SIGTERM ends this process in order: what it has started does not outlive it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What a device in this process has to say of what is done to it is not news here."""
    log = logging.getLogger("virtq")
    before = log.level
    if not log.isEnabledFor(logging.INFO):
        log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def _bench(
    uri: str, device_type: int | None, start: str | None, wait_s: float, patience_s: float
) -> Bench:
    parts = Uri.parse(uri)
    if parts.scheme != "vhost-user" or not parts.target:
        raise UriError("a driver comes to vhost-user:PATH")
    if device_type is None:
        device_type = _type_of(parts)
    if device_type is None:
        raise UriError("which device is it for? --type blk, net, rng or console")
    return Bench(
        parts.target,
        device_type,
        starter=None if start is None else Command(start, device_type),
        wait_s=wait_s,
        patience_s=patience_s,
        protocol=ProtocolChange.parse(parts.options.get("protocol", "")).apply(OFFERED),
    )


def _type_of(parts: Uri) -> int | None:
    """The device type that a URI's option names."""
    named = parts.options.get("device")
    return next((i for i, text in DEVICE_NAMES.items() if text == named), None)


def _subject(
    uri: str,
    device_type: int | None,
    start: str | None,
    stack: contextlib.ExitStack,
    patience_s: float,
) -> Subject:
    parts = Uri.parse(uri)
    answer_s = _ANSWER_SHARE * patience_s
    if parts.scheme == "vhost-user" and "timeout" not in parts.options:
        uri = _with_option(uri, f"timeout={answer_s:.3f}")
    if device_type is None:
        device_type = _type_of(parts)
    bus = None
    if parts.scheme == "qtest":
        bus = "mmio" if parts.target.partition(",")[0].endswith("-device") else "pci"
    opening: Callable[[], DriverTransport] = partial(open_transport, uri)
    started = None
    if start is not None:
        if parts.scheme != "vhost-user":
            raise UriError("--start is for a device at vhost-user:PATH")
        command = partial(Command(start).start, parts.target, None, 0)
        started = stack.enter_context(Started(command))
    dial = None
    if parts.scheme == "vhost-user":
        bus, dial = "vhost-user", partial(channel.connect, parts.target, answer_s)
    subject = Subject.find(uri, opening, device_type, bus, dial, started)
    if dial is not None and "queue_size" not in parts.options:
        device = started or Lasting()
        size = bearable_size(
            partial(device.reach, dial), partial(device.failed, gone=True), patience_s
        )
        if size < QUEUE_SIZE:
            sized = _with_option(uri, f"queue_size={size}")
            subject = replace(subject, open=partial(open_transport, sized))
    if subject.device_id is None and subject.undrivable is None:
        subject = replace(subject, device_id=_guess(subject))
    return subject


def _with_option(uri: str, option: str) -> str:
    return f"{uri}{'&' if '?' in uri else '?'}{option}"


def _guess(subject: Subject) -> int | None:
    """The type that a vhost-user back-end has without a doubt, or None."""
    transport = (subject.started or Lasting()).reach(subject.open)
    try:
        return guess_device(subject.offered, transport.config_size, _SURE_ENOUGH)
    finally:
        transport.close()


def _name(device_id: int | None) -> str:
    if device_id is None:
        return "of a type that is not told: --type does"
    return DEVICE_NAMES.get(device_id, f"device type {device_id}")


def _show(uri: str, device_id: int | None, done: Sequence[Result], elsewhere: int) -> None:
    """`elsewhere`: how many cases were left out, since they are about something else."""
    groups: dict[tuple[str, Verdict], list[Result]] = {}
    for result in done:
        if result.verdict in out.BAD:
            groups.setdefault((result.case.name, result.verdict), []).append(result)
    for (name, verdict), results in groups.items():
        first = results[0]
        kinds = Counter(str(result.kind) for result in results if result.kind)
        rings = ", ".join(f"{kind} {n} times" if n > 1 else kind for kind, n in kinds.items())
        lines: list[tuple[str, str | Text]] = []
        if verdict is Verdict.FAIL:
            lines += [("expected", escape(first.expected)), ("came", escape(first.came))]
        else:
            lines.append(("because", escape(first.reason)))
        if rings:
            lines.append(("rings", rings))
        lines.append(("requires", Text(" ".join(first.case.requirements), style="dim")))
        heading = Text.assemble((f"{verdict} ", "bold red"), (name, "bold"))
        title = Padding(Text(first.case.title), (0, 0, 0, 2))
        show(Group(heading, title, Padding(facts(None, lines), (0, 0, 1, 2))))
    number = out.counts(done)
    parts = [f"{number[verdict]} {verdict}" for verdict in Verdict if number[verdict]]
    name = _name(device_id)
    rest = f" ({elsewhere} cases are about other devices)" if elsewhere else ""
    show(f"{escape(uri)} ({name}): {', '.join(parts) or 'nothing run'}{rest}")


def _list(cases: Sequence[Case], as_json: bool) -> None:
    if as_json:
        print_json(
            [
                {
                    "case": case.name,
                    "title": case.title,
                    "requirements": list(case.requirements),
                    "rings": [str(kind) for kind in case.kinds],
                }
                for case in cases
            ]
        )
        return
    indent = (0, 0, 0, 2)
    show(
        Group(
            *(
                part
                for case in cases
                for part in (
                    Text(case.name, "bold"),
                    Padding(Text(case.title), indent),
                    Padding(Text(" ".join(case.requirements), "dim"), indent),
                )
            )
        ),
        f"{len(cases)} cases",
    )


def _coverage(as_json: bool) -> None:
    areas = out.coverage()
    messages = out.protocol_coverage()
    have = sum(checked for checked, _ in areas.values())
    of = sum(total for _, total in areas.values())
    if as_json:
        print_json(
            {
                "areas": {area: list(pair) for area, pair in areas.items()},
                "vhost-user": list(messages),
            }
        )
        return
    rows = table("area", "checked", "of", numbers=(1, 2))
    for area, (checked, total) in areas.items():
        if checked:
            rows.add_row(area, str(checked), str(total))
    unchecked = [area for area, (checked, _) in areas.items() if not checked]
    show(
        rows,
        f"{have} of {of} requirements that can be observed have a case",
        *([f"areas without one: {', '.join(unchecked)}"] if unchecked else []),
        f"vhost-user: {messages[0]} of {messages[1]} statements of the protocol have a case",
    )
    reasons = table("what cannot be seen", "why")
    for id, reason in UNSEEN.items():
        reasons.add_row(id, reason)
    show(reasons)
