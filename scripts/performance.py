#!/usr/bin/env python3
"""Measure everything and put the tables into docs/performance.md: no number there is typed.

    .venv/bin/python scripts/performance.py                     # all benches; takes a while
    .venv/bin/python scripts/performance.py --quick             # under 90 seconds each
    .venv/bin/python scripts/performance.py --only net,blk      # some of them, the rest as it was
    .venv/bin/python scripts/performance.py --fill              # nothing measured: the last results

Results are kept as JSON under target/performance, one file for each bench; the page
target/performance/report.html shows them all.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

from virtq.bench.measure import Comparison
from virtq.bench.report import save
from virtq.bench.result import Result
from virtq.bench.table import factor, goal, markdown, rate

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "target" / "performance"
BENCHES = {
    "rings": [],
    "net": ["--against", "dpdk"],
    "blk": ["--against", "qemu-storage-daemon"],
    "python": [],
    "scale": [],
}


def measure(name: str, *, quick: bool) -> None:
    """Run one bench and keep its result; what it has to say goes to the terminal."""
    words = [sys.executable, "-m", "virtq", "bench", name, *BENCHES[name], "--json"]
    done = subprocess.run(words + ["--quick"] * quick, stdout=subprocess.PIPE, text=True)
    if not done.stdout:
        sys.exit(f"virtq bench {name} ended with status {done.returncode}")
    Result.from_json(json.loads(done.stdout))
    (RESULTS / f"{name}.json").write_text(done.stdout)


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
    rows = []
    for c in result.comparisons:
        for one in c.contenders:
            if one.floor_per_s is not None:
                aim = f"≥ {rate(one.floor_per_s)} {c.unit}/s"
                rows.append((c.title, one.name, aim, rate(one.median), rate(one.best), one.met))
        for ratio in c.ratios:
            if ratio.target is not None:
                seen = (factor(ratio.medians), factor(ratio.bests))
                rows.append((c.title, ratio.of, goal(ratio), *seen, ratio.met))
    if not rows:
        return []
    lines = ["| comparison | of | target | medians | bests | |", "|---|---|---|---:|---:|---|"]
    for *cells, met in rows:
        lines.append(f"| {' | '.join(cells)} | {'met' if met else '**missed**'} |")
    return [*lines, ""]


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
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    for name in names:
        if name not in BENCHES:
            parser.error(f"no bench is called {name!r}: there are {', '.join(BENCHES)}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    if not arguments.fill:
        for name in names:
            measure(name, quick=arguments.quick)
    found = {name: result for name in BENCHES if (result := stored(name)) is not None}
    fill({name: result for name, result in found.items() if name in names})
    if found:
        save(list(found.values()), RESULTS / "report.html")


if __name__ == "__main__":
    main()
