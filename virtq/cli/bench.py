"""`virtq bench`: what a layout, a feature or a batch size is worth, side by side in one run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from virtq.bench import perf
from virtq.bench.against import PEERS
from virtq.bench.case import BenchError
from virtq.bench.result import Result
from virtq.cli.failures import beginning
from virtq.cli.measuring import (
    Kind,
    Numbers,
    Sizes,
    Terms,
    bench_command,
    measure,
    output_options,
    publish,
    report_path,
)
from virtq.features import RingKind

C = TypeVar("C", bound=Callable[..., Any])


@click.group(short_help="Measure what a layout, a feature or a batch size is worth.")
def bench() -> None:
    """Measure side by side: contenders take turns in short windows, and medians, bests, spread
    and counts are compared.

    \b
    Examples:
      virtq bench rings --quick
      virtq bench net --against dpdk --report net.html
      virtq bench blk --against qemu-storage-daemon
      virtq bench python --json > python.json
      virtq bench show python.json --report python.html

    A rate on a shared machine says little by itself: look at the ratios, and at the counts. The
    exit code is 1 if a contender could not do its work.
    """


def _against_option(peer: str) -> Callable[[C], C]:
    return click.option(
        "--against", type=click.Choice([peer]), help=f"Beside {peer}, which must be installed."
    )


_bytes_option = click.option(
    "--size",
    type=click.IntRange(1, 65536),
    default=64,
    show_default=True,
    help="Bytes of each buffer.",
)


def _rings_option(unless_told: str) -> Callable[[C], C]:
    return click.option(
        "--ring",
        "kinds",
        type=Kind(),
        multiple=True,
        help=f"split, split-in-order, packed or packed-in-order; may be repeated. [{unless_told}]",
    )


@bench.command(short_help="Rings alone: layouts, order, batches, chains, queue sizes.")
@click.option("--batch", type=Numbers(1, 32768), default="1,32", show_default=True)
@click.option("--chain", type=Numbers(1, 32768), default="1", show_default=True)
@click.option("--indirect", is_flag=True, help="Chains in indirect tables as well.")
@click.option("--size", type=Numbers(1, 1 << 20), default="64", show_default=True)
@click.option("--queue-size", type=Numbers(1, 32768), default="256", show_default=True)
@click.option(
    "--direction",
    "directions",
    type=click.Choice(["send", "receive", "both"]),
    multiple=True,
    default=["send"],
    show_default=True,
    help="From the driver, to it, or a queue each; may be repeated.",
)
@click.option(
    "--wait",
    "waits",
    type=click.Choice(["poll", "event", "event-index"]),
    multiple=True,
    default=["poll", "event-index"],
    show_default=True,
    help="How the halves wait: notified by flags or by index; may be repeated.",
)
@click.option("--sweep", is_flag=True, help="Each of these over its whole range, one at a time.")
@_rings_option("all")
@bench_command
def rings(
    terms: Terms,
    batch: tuple[int, ...],
    chain: tuple[int, ...],
    indirect: bool,
    size: tuple[int, ...],
    queue_size: tuple[int, ...],
    directions: tuple[str, ...],
    waits: tuple[str, ...],
    sweep: bool,
    kinds: tuple[RingKind, ...],
) -> int:
    """Measure both halves of a virtqueue against each other, with nothing around them.

    Where several values are given (with commas), all combinations are measured.

    \b
    Examples:
      virtq bench rings --quick
      virtq bench rings --batch 1,4,32,256 --chain 1,4 --indirect
      virtq bench rings --sweep --report rings.html
    """
    from virtq.bench.rings import cases
    from virtq.bench.sweep import sweep_cases

    ways = {"poll": None, "event": "flags", "event-index": "index"}
    chosen = kinds or tuple(RingKind)
    with beginning():
        if sweep:
            made = sweep_cases(kinds=chosen, pin=terms.pin)
        else:
            made = cases(
                directions=directions,
                sizes=queue_size,
                batches=batch,
                chains=chain,
                lengths=size,
                indirect=(False, True) if indirect else (False,),
                events=[ways[wait] for wait in waits],
                kinds=chosen,
                pin=terms.pin,
                quick=terms.quick,
            )
    notes: list[str] = []
    if why := perf.why_not():
        notes.append(f"cycles, instructions and cache misses: not available here ({why})")
    else:
        made = [perf.counted(case) for case in made]
    return measure("rings", made, terms, notes=notes)


@bench.command(short_help="Network devices: packets to and from them.")
@_against_option("dpdk")
@click.option(
    "--size",
    type=Numbers(64, 9000),
    help="Bytes of each frame, several with commas between. [64, and in order 1500]",
)
@click.option(
    "--direction",
    "directions",
    type=click.Choice(["send", "receive", "both"]),
    multiple=True,
    default=["send", "receive", "both"],
    show_default=True,
    help="As the driver sees it; may be repeated.",
)
@_rings_option("all")
@bench_command
def net(
    terms: Terms,
    against: str | None,
    size: tuple[int, ...] | None,
    directions: tuple[str, ...],
    kinds: tuple[RingKind, ...],
) -> int:
    """Measure network devices: virtq's driver on its device, and either beside DPDK's.

    \b
    Examples:
      virtq bench net
      virtq bench net --against dpdk --quick
      virtq bench net --against dpdk --size 64,1500 --direction send --report net.html
    """
    from virtq.bench.net import OPTION_SETS, cases

    with beginning():
        peers = PEERS[against].require() if against else {}
        made = cases(
            against_dpdk=against is not None,
            directions=cast("Any", directions),
            lengths=size or (),
            options=[one for one in OPTION_SETS if not kinds or one.kind in kinds],
            pin=terms.pin,
            quick=terms.quick,
        )
    return measure("net", made, terms, peers=peers)


@bench.command(short_help="Block devices: requests, latency, processor time.")
@_against_option("qemu-storage-daemon")
@click.option(
    "--size",
    type=Sizes(512, 1 << 20),
    default="4K,128K",
    show_default=True,
    help="Bytes of each request, several with commas between.",
)
@click.option(
    "--depth",
    type=Numbers(1, 128),
    default="1,32,128",
    show_default=True,
    help="Requests in flight, several with commas between.",
)
@click.option(
    "--mix",
    "mixes",
    type=click.Choice(["read", "write", "mixed"]),
    multiple=True,
    default=["read", "write", "mixed"],
    show_default=True,
    help="May be repeated.",
)
@bench_command
def blk(
    terms: Terms,
    against: str | None,
    size: tuple[int, ...],
    depth: tuple[int, ...],
    mixes: tuple[str, ...],
) -> int:
    """Measure block devices on memory, on nothing and on a file, all under virtq's driver.

    \b
    Examples:
      virtq bench blk
      virtq bench blk --against qemu-storage-daemon --quick
      virtq bench blk --against qemu-storage-daemon --size 4K --depth 32 --mix read
    """
    from virtq.bench.blk import cases

    with beginning():
        peers = PEERS[against].require() if against else {}
        made = cases(
            against=against is not None,
            depths=depth,
            blocks_bytes=size,
            mixes=mixes,
            pin=terms.pin,
            quick=terms.quick,
        )
    return measure("blk", made, terms, peers=peers)


@bench.command(short_help="Devices in Python: handle, handle_batch, async handle.")
@click.option(
    "--batch",
    type=click.IntRange(1, 512),
    default=256,
    show_default=True,
    help="Buffers made available at a time.",
)
@_bytes_option
@bench_command
def python(terms: Terms, batch: int, size: int) -> int:
    """Measure devices whose buffers are served in Python, one by one and as arrays.

    The load is a driver half that needs no interpreter, so that what is measured is the device.

    \b
    Examples:
      virtq bench python
      virtq bench python --batch 32 --size 1024 --pin 0,1
      virtq bench python --quick --report python.html
    """
    from virtq.bench.python import cases

    with beginning():
        made = cases(batch=batch, size=size, pin=terms.pin, quick=terms.quick)
    return measure("python", made, terms)


@bench.command(short_help="How cost grows: regions, queue size, chains, batches, queues.")
@_rings_option("those in order")
@click.option(
    "--batch",
    type=click.IntRange(1, 32768),
    default=32,
    show_default=True,
    help="Buffers made available at a time.",
)
@_bytes_option
@click.option(
    "--queue-size",
    type=click.IntRange(1, 32768),
    default=256,
    show_default=True,
    help="Slots in each queue.",
)
@bench_command
def scale(terms: Terms, kinds: tuple[RingKind, ...], batch: int, size: int, queue_size: int) -> int:
    """Measure how the cost of a buffer grows, one thing at a time: with regions of memory (1 to
    509), queue size, pieces of a buffer, batch and queues.

    \b
    Examples:
      virtq bench scale
      virtq bench scale --ring packed-in-order --ring packed --batch 64
      virtq bench scale --quick --report scale.html
    """
    from virtq.bench.scale import KINDS, Settings, cases

    with beginning():
        settings = Settings(queue_size, batch, size, pin=terms.pin)
        made = cases(settings, kinds=kinds or KINDS, quick=terms.quick and not kinds)
    return measure("scale", made, terms)


@bench.command("show", short_help="Print stored results again, or make a page of them.")
@click.argument("files", metavar="RESULT.json...", nargs=-1, required=True)
@click.pass_context
def show_results(
    ctx: click.Context, files: tuple[str, ...], as_json: bool, as_markdown: bool, report: str | None
) -> int:
    """Print results that --json has stored, several together if there are more.

    \b
    Examples:
      virtq bench show rings.json net.json --report all.html
      virtq bench show blk.json --markdown
    """
    if as_json and as_markdown:
        raise click.UsageError("say one of --json and --markdown", ctx)
    path = report_path(report)
    results = []
    for file in files:
        with beginning(file):
            try:
                stored = json.loads(Path(file).read_text(encoding="utf-8"))
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise BenchError(f"not JSON: {error}") from error
            results += [Result.from_json(one) for one in _each(stored)]
    publish(results, as_json, as_markdown, path)
    return 0


def _each(stored: Any) -> list[Any]:
    return stored if isinstance(stored, list) else [stored]


for _option in reversed(output_options):
    show_results = _option(show_results)
