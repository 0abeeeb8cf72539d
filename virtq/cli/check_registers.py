"""`virtq check registers:FILE`: a driver, by a log of what it did to a device's registers."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from fnmatch import fnmatchcase

from rich.markup import escape

from virtq.check import results as out
from virtq.check.case import Case, Result, Verdict
from virtq.check.register_log import RULES, judge, read
from virtq.cli.failures import EXIT_FAILED, Unusable, beginning
from virtq.cli.output import print_json, show, table
from virtq.errors import UriError

SCHEME = "registers:"


def check_registers(
    uri: str,
    only: Sequence[str],
    junit: str | None,
    sarif: str | None,
    report: str | None,
    as_json: bool,
) -> int:
    """Returns the exit status. Raises Unusable for a log that cannot be read or tells nothing."""
    with beginning():
        rules = _chosen(only)
        path = uri.removeprefix(SCHEME)
        if not path:
            raise UriError(f"{uri!r} names no file")
        logs = read(path)
    done = list(judge(logs, rules))
    if all(result.verdict is Verdict.SKIPPED for result in done):
        raise Unusable(f"{uri}: it gives no occasion to judge a driver")
    with beginning():
        command = shlex.join(
            ["virtq", "check", uri, *(word for one in only for word in ("--only", one))]
        )
        out.write_reports(uri, done, junit=junit, sarif=sarif, html=report, command=command)
    if as_json:
        print_json(out.as_json(uri, done))
    else:
        _show(uri, done)
    return EXIT_FAILED if out.is_broken(done) else 0


def _chosen(patterns: Sequence[str]) -> list[Case]:
    """The rules that the patterns name; all without any. Raises UriError for one that names
    none."""
    found: dict[str, Case] = {} if patterns else dict(RULES)
    for pattern in patterns:
        named = {
            name: rule
            for name, rule in RULES.items()
            if fnmatchcase(name, pattern) or rule.area == pattern
        }
        if not named:
            areas = ", ".join(sorted({rule.area for rule in RULES.values()}))
            raise UriError(f"no case is called {pattern!r}: for registers there are {areas}")
        found |= named
    return list(found.values())


def _show(uri: str, done: Sequence[Result]) -> None:
    bad = [result for result in done if result.verdict in out.BAD]
    if bad:
        rows = table("case", "what was expected, and what came")
        for result in bad:
            ids = " ".join(result.case.requirements[:3])
            text = f"{result.case.title}\n→ expected {result.expected}; came {result.came}"
            rows.add_row(escape(result.title), escape(f"{text}\n[{ids}]"))
        show(rows)
    number = out.counts(done)
    parts = [f"{number[verdict]} {verdict}" for verdict in Verdict if number[verdict]]
    show(f"{escape(uri)}: {', '.join(parts)}")
