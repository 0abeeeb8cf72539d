#!/usr/bin/env python3
"""Measure everything and put the tables into docs/performance.md: no number there is typed.

    .venv/bin/python scripts/performance.py                     # all benches: about 20 minutes
    .venv/bin/python scripts/performance.py --quick             # under 90 seconds each
    .venv/bin/python scripts/performance.py --only net,blk      # some of them, the rest as it was
    .venv/bin/python scripts/performance.py --fill              # nothing measured: the last results

All benches are measured in pieces of less than a minute, some cases at a time, over twenty rounds.
A piece that is there already, with this build of virtq, is not measured again: what was interrupted
goes on where it was, and --anew begins from the beginning. With --through COMMAND each piece is run
through a command of yours, such as one that waits until the machine does nothing else.

Results are kept as JSON under target/performance, one file for each bench; the page
target/performance/report.html shows them all.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import virtq._core
from virtq.bench.case import BenchError
from virtq.bench.comparison import Comparison
from virtq.bench.report import save
from virtq.bench.result import Result
from virtq.bench.table import goals, markdown

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "target" / "performance"
PIECES = RESULTS / "pieces"
ATTEMPTS = 3
"""At a piece of which a case had no time left, or a peer did not come up."""
PIECE_S = 50.0
"""What the cases of a piece may take."""


@dataclass(frozen=True)
class Bench:
    """One bench, and what a case of it takes: its windows, and what it has to start."""

    words: tuple[str, ...]
    case_s: float
    crowded: str = ""
    """Cases with this in their title have so many contenders that each is a piece by itself."""

    def pieces(self, titles: Sequence[str]) -> Iterator[tuple[list[str], float]]:
        """What is measured together, and how long that may take in seconds."""
        alone = [title for title in titles if self.crowded and self.crowded in title]
        short = [title for title in titles if title not in alone]
        most = max(int(PIECE_S / self.case_s), 1)
        for at in range(0, len(short), most):
            piece = short[at : at + most]
            yield piece, len(piece) * self.case_s
        for title in alone:
            yield [title], PIECE_S


# Where both ends are threads of one process, whatever else wants a processor for a moment may leave
# them on one for a while.
BENCHES = {
    "rings": Bench(("--pin", "0,1"), 10),
    "net": Bench(("--against", "dpdk"), 25, "best in order"),
    "blk": Bench(("--against", "qemu-storage-daemon"), 12.5),
    "python": Bench((), 10),
    "scale": Bench(("--pin", "0,1"), 10),
}


def run(words: Sequence[str], through: Sequence[str] = ()) -> str:
    """What a bench prints; what it has to say otherwise goes to the terminal."""
    command = [*through, sys.executable, "-m", "virtq", "bench", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if not done.stdout:
        sys.exit(f"virtq bench {shlex.join(words)} ended with status {done.returncode}")
    return done.stdout


def measure_quickly(name: str, through: Sequence[str]) -> None:
    """Run one bench as it is, and keep its result."""
    printed = run([name, *BENCHES[name].words, "--quick", "--json"], through)
    Result.from_json(json.loads(printed))
    (RESULTS / f"{name}.json").write_text(printed)


def measure(name: str, through: Sequence[str]) -> None:
    """Run one bench piece by piece, and keep the whole."""
    bench = BENCHES[name]
    titles = run([name, *bench.words, "--list"]).splitlines()
    pieces = list(bench.pieces(titles))
    results = []
    for number, (piece, limit_s) in enumerate(pieces):
        path = PIECES / f"{name}-{number:02}.json"
        result = kept(path, piece)
        for _ in range(ATTEMPTS):
            if result is not None:
                break
            begun = time.monotonic()
            only = [word for title in piece for word in ("--only", title)]
            limit = f"{limit_s:g}"
            path.write_text(run([name, *bench.words, *only, "--seconds", limit, "--json"], through))
            result = kept(path, piece)
            took = f"{time.monotonic() - begun:.0f} s"
            print(f"{name}: {number + 1} of {len(pieces)}, {took}", file=sys.stderr, flush=True)
        if result is None:
            sys.exit(f"{path} does not hold what was asked for: {', '.join(piece)}")
        results.append(result)
    notes = dict.fromkeys(note for result in results for note in result.notes)
    whole = replace(
        results[0],
        command=shlex.join(["virtq", "bench", name, *bench.words]),
        seconds=sum(result.seconds for result in results),
        comparisons=tuple(one for result in results for one in result.comparisons),
        notes=(*notes, f"measured in {len(pieces)} pieces of less than a minute each"),
    )
    (RESULTS / f"{name}.json").write_text(json.dumps(whole.as_json(), indent=1))


def kept(path: Path, titles: Sequence[str]) -> Result | None:
    """A piece that was measured with this build, and has all it should have."""
    build = Path(str(virtq._core.__file__))
    if not path.exists() or path.stat().st_mtime < build.stat().st_mtime:
        return None
    try:
        result = Result.from_json(json.loads(path.read_text()))
    except (json.JSONDecodeError, BenchError):
        return None
    return result if [one.title for one in result.comparisons] == list(titles) else None


def stored(name: str) -> Result | None:
    path = RESULTS / f"{name}.json"
    return Result.from_json(json.loads(path.read_text())) if path.exists() else None


def section(result: Result) -> str:
    """What stands between the marks of a bench."""
    when = f"{datetime.fromisoformat(result.started):%-d %B %Y}"
    peers = [f"{name} {version}" for name, version in sorted(result.machine.versions.items())]
    lines = [
        f"Measured on {when} with `{result.command}`: {result.machine.title}; {', '.join(peers)}.",
        "",
        *(f"{note[0].upper()}{note[1:]}." for note in result.notes),
        "",
        *targets(result),
    ]
    tables = [
        f"{c.work}\n\n{markdown(c)}" if changed else markdown(c) for c, changed in told(result)
    ]
    return "\n".join(lines) + "\n" + "\n".join(tables)


def told(result: Result) -> list[tuple[Comparison, bool]]:
    """The comparisons, and whether the work that each is about has to be told."""
    made, last = [], ""
    for comparison in result.comparisons:
        made.append((comparison, comparison.work not in ("", last)))
        last = comparison.work
    return made


def targets(result: Result) -> list[str]:
    """A table of what was hoped for."""
    lines = ["| comparison | of | target | medians | bests | |", "|---|---|---|---:|---:|---|"]
    for comparison in result.comparisons:
        for aim in goals(comparison):
            verdict = aim.verdict if aim.met else f"**{aim.verdict}**"
            cells = (comparison.title, aim.of, aim.target, aim.medians, aim.bests, verdict)
            lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""] if len(lines) > 2 else []


def fill(results: dict[str, Result]) -> None:
    """Put the tables between their marks."""
    text = PAGE.read_text(encoding="utf-8")
    for name, result in results.items():
        marks = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text, count = marks.subn(lambda m, r=result: f"{m[1]}{section(r)}\n{m[2]}", text)
        if count != 1:
            sys.exit(f"{PAGE} has no place for {name}")
    PAGE.write_text(re.sub(r"\n{3,}", "\n\n", text), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 90 seconds each")
    parser.add_argument("--only", default=",".join(BENCHES), metavar="NAME[,NAME]")
    parser.add_argument("--fill", action="store_true", help="measure nothing")
    parser.add_argument("--anew", action="store_true", help="measure pieces that are there again")
    parser.add_argument("--through", default="", metavar="COMMAND", help="runs each piece")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    for name in names:
        if name not in BENCHES:
            parser.error(f"no bench is called {name!r}: there are {', '.join(BENCHES)}")
    PIECES.mkdir(parents=True, exist_ok=True)
    through = shlex.split(arguments.through)
    for name in [] if arguments.fill else names:
        if arguments.quick:
            measure_quickly(name, through)
            continue
        if arguments.anew:
            for path in PIECES.glob(f"{name}-*.json"):
                path.unlink()
        measure(name, through)
    found = {name: result for name in BENCHES if (result := stored(name)) is not None}
    fill({name: result for name, result in found.items() if name in names})
    if found:
        save(list(found.values()), RESULTS / "report.html")


if __name__ == "__main__":
    main()
