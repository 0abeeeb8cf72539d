"""`virtq check`: a device, requirement by requirement."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

import click
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from virtq.check import results as out
from virtq.check.case import Case, Verdict
from virtq.check.net.far_end import reached
from virtq.check.run import PATIENCE_S, Result, Subject, chosen, run
from virtq.cli.failures import EXIT_FAILED, beginning
from virtq.cli.options import DEVICE_TYPE
from virtq.cli.output import json_option, print_json, show, table
from virtq.features import DEVICE_NAMES
from virtq.uri import Uri, open_transport


@click.command(short_help="Judge a device, requirement by requirement.")
@click.argument("uri", required=False)
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
    type=click.FloatRange(0.05, 60),
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
    not, and tell which requirements of VIRTIO 1.4 hold.

    The device is reset many times, and a disk's first sectors are written and put back.

    Frames are sent to a network device, and those that it transmits are looked at. QEMU's own and
    one on a hub in this process are reached by themselves; for others, --port names the other end
    of the wire: unix:PATH, a stream socket that listens, with the framing of QEMU's netdev stream,
    or packet:NAME, a network interface of this host, such as the tap that a back-end has.

    \b
    Examples:
      virtq check vhost-user:/run/disk.sock
      virtq check qtest:virtio-blk-pci,packed=on,in_order=on --report report.html
      virtq check qtest:virtio-rng-pci --only in_order --only 'packed.*' --repeat 20
      virtq check vhost-user:/run/net.sock --port packet:tap0
      virtq check --list
      virtq check --coverage

    Exit status: 0 if everything holds, 1 if a requirement does not (or the device hung or crashed),
    2 if the device could not be judged.
    """
    with beginning():
        cases = chosen(only)
    if as_list:
        _list(cases, as_json)
        return
    if coverage:
        _coverage(as_json)
        return
    if uri is None:
        raise click.UsageError("missing URI: what to judge, such as vhost-user:/run/disk.sock")
    with beginning():
        for file in filter(None, (junit, sarif, report)):
            out.write(file, "")  # that it cannot be written should be known before, not after
    with beginning(uri):
        where, far_end = ctx.with_resource(reached(uri, port))
        subject = replace(_subject(where, device_type), uri=uri, far_end=far_end)
    done: list[Result] = []
    total = sum(len(case.kinds) or 1 for case in cases) * repeat
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with _quiet(), Progress(*columns, transient=True, disable=as_json) as progress:
        task = progress.add_task("", total=total)
        for turn in range(repeat):
            for result in run(subject, cases, seed=seed + turn, patience_s=patience_s):
                done.append(result)
                progress.update(task, advance=1, description=result.case.name)
    with beginning():
        for path, text in (
            (junit, out.as_junit),
            (sarif, out.as_sarif),
            (report, out.as_html),
        ):
            if path is not None:
                out.write(path, text(uri, done))
    if as_json:
        print_json(out.as_json(uri, done))
    else:
        _show(subject, done)
    ctx.exit(EXIT_FAILED if out.is_broken(done) else 0)


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


def _subject(uri: str, device_type: int | None) -> Subject:
    parts = Uri.parse(uri)
    named = parts.options.get("device")
    if device_type is None and named:
        device_type = next((i for i, text in DEVICE_NAMES.items() if text == named), None)
    bus = None
    if parts.scheme == "qtest":
        bus = "mmio" if parts.target.partition(",")[0].endswith("-device") else "pci"
    subject = Subject.find(uri, lambda: open_transport(uri), device_type, bus)
    if subject.device_id is None:
        from virtq.cli.probe import look

        found = look(uri)
        subject = Subject(uri, subject.open, found.device_id, subject.offered, bus)
    return subject


def _show(subject: Subject, done: Sequence[Result]) -> None:
    bad = [result for result in done if result.verdict in out.BAD]
    if bad:
        rows = table("case", "", "what was expected, and what came")
        seen: dict[tuple[str, str], int] = {}
        for result in bad:
            text = (
                f"{result.case.title}\n→ expected {result.expected}; came {result.came}"
                if result.verdict is Verdict.FAIL
                else f"{result.case.title}\n→ {result.reason}"
            )
            if (key := (result.title, text)) in seen:
                seen[key] += 1
                continue
            seen[key] = 1
            ids = " ".join(result.case.requirements[:3])
            rows.add_row(escape(result.title), str(result.verdict), escape(f"{text}\n[{ids}]"))
        show(rows)
    number = out.counts(done)
    parts = [f"{number[verdict]} {verdict}" for verdict in Verdict if number[verdict]]
    name = DEVICE_NAMES.get(subject.device_id or 0, f"device type {subject.device_id}")
    show(f"{subject.uri} ({name}): {', '.join(parts) or 'nothing run'}")


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
    rows = table("case", "what it does, and which requirements it checks")
    for case in cases:
        rows.add_row(case.name, escape(f"{case.title}\n[{' '.join(case.requirements)}]"))
    show(rows, f"{len(cases)} cases")


def _coverage(as_json: bool) -> None:
    areas = out.coverage()
    have = sum(checked for checked, _ in areas.values())
    of = sum(total for _, total in areas.values())
    if as_json:
        print_json({"areas": {area: list(pair) for area, pair in areas.items()}})
        return
    rows = table("area", "checked", "of", numbers=(1, 2))
    for area, (checked, total) in areas.items():
        if checked:
            rows.add_row(area, str(checked), str(total))
    unchecked = [area for area, (checked, _) in areas.items() if not checked]
    show(
        rows,
        f"{have} of {of} requirements that can be observed have a case",
        f"areas without one: {', '.join(unchecked)}",
    )
