"""What came out of a run, for programs: JSON, JUnit XML, SARIF, and one HTML page."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from typing import Any
from xml.etree import ElementTree

import jinja2

from virtq.check.case import Case, Result, Verdict
from virtq.check.cases import all_cases
from virtq.check.catalogue import Requirement, known, requirements, statements
from virtq.check.register_log import RULES

SCHEMA = 1
"""Version of the JSON's form."""
_SARIF = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json"
BAD = (Verdict.FAIL, Verdict.HUNG, Verdict.CRASHED)


def counts(results: Sequence[Result]) -> Counter[Verdict]:
    return Counter(result.verdict for result in results)


def is_broken(results: Sequence[Result]) -> bool:
    """Whether a requirement does not hold."""
    return any(result.verdict in BAD for result in results)


def coverage() -> dict[str, tuple[int, int]]:
    """For each area of the catalogue: the requirements of them that a case checks, and those that
    can be observed."""
    cases = (*all_cases().values(), *RULES.values())
    checked = {id for case in cases for id in case.requirements}
    areas: dict[str, tuple[int, int]] = {}
    for requirement in requirements().values():
        if requirement.observable != "no":
            have, of = areas.get(requirement.area, (0, 0))
            areas[requirement.area] = have + (requirement.id in checked), of + 1
    return dict(sorted(areas.items()))


def protocol_coverage() -> tuple[int, int]:
    """Of what the vhost-user protocol asks of a back-end: how much a case checks, and all of it."""
    checked = {id for case in all_cases().values() for id in case.requirements}
    return len(checked & statements().keys()), len(statements())


def as_json(uri: str, results: Sequence[Result]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "subject": uri,
        "virtq": version("virtq"),
        "counts": {str(verdict): number for verdict, number in counts(results).items()},
        "results": [
            {
                "case": result.case.name,
                "title": result.case.title,
                "ring": str(result.kind) if result.kind else None,
                "verdict": str(result.verdict),
                "requirements": list(result.case.requirements),
                "seconds": round(result.seconds, 3),
                "expected": result.expected,
                "came": result.came,
                "reason": result.reason,
                "rings": result.rings,
            }
            for result in results
        ],
    }


def as_junit(uri: str, results: Sequence[Result]) -> str:
    """JUnit XML, a test case for each result."""
    number = counts(results)
    suite = ElementTree.Element(
        "testsuite",
        name=f"virtq check {uri}",
        tests=str(len(results)),
        failures=str(number[Verdict.FAIL]),
        errors=str(number[Verdict.HUNG] + number[Verdict.CRASHED]),
        skipped=str(number[Verdict.SKIPPED]),
        time=f"{sum(result.seconds for result in results):.3f}",
    )
    for result in results:
        element = ElementTree.SubElement(
            suite,
            "testcase",
            classname=result.case.area,
            name=result.title,
            time=f"{result.seconds:.3f}",
        )
        match result.verdict:
            case Verdict.PASS:
                continue
            case Verdict.SKIPPED:
                ElementTree.SubElement(element, "skipped", message=result.reason)
            case Verdict.FAIL:
                child = ElementTree.SubElement(element, "failure", message=_what(result))
                child.text = "\n".join(result.case.requirements)
            case _:
                child = ElementTree.SubElement(element, "error", message=_what(result))
                child.text = "\n".join(result.case.requirements)
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def as_sarif(uri: str, results: Sequence[Result]) -> dict[str, Any]:
    """SARIF 2.1.0: a rule for each case, a result for each that does not hold."""
    used = {result.case.name: result.case for result in results}
    return {
        "$schema": _SARIF,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "virtq check",
                        "version": version("virtq"),
                        "rules": [
                            {
                                "id": case.name,
                                "shortDescription": {"text": case.title},
                                "properties": {"requirements": list(case.requirements)},
                            }
                            for case in used.values()
                        ],
                    }
                },
                "results": [
                    {
                        "ruleId": result.case.name,
                        "level": "error",
                        "message": {"text": f"{result.title}: {_what(result)}"},
                        "locations": [{"logicalLocations": [{"fullyQualifiedName": uri}]}],
                    }
                    for result in results
                    if result.verdict in BAD
                ],
            }
        ],
    }


@dataclass
class Failure:
    """A case that does not hold: what came, with the kinds of ring in which it did, and the rings
    as they stood."""

    case: Case
    verdict: Verdict
    ways: dict[tuple[str, str, str], Counter[str]] = field(default_factory=dict)
    rings: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def kinds(self) -> Counter[str]:
        return sum(self.ways.values(), Counter())


def failures(results: Sequence[Result]) -> list[Failure]:
    """What does not hold, one for each case and verdict, in order."""
    found: dict[tuple[str, Verdict], Failure] = {}
    for result in results:
        if result.verdict in BAD:
            case, kind = result.case, str(result.kind or "")
            one = found.setdefault((case.name, result.verdict), Failure(case, result.verdict))
            way = (result.expected, result.came, result.reason)
            one.ways.setdefault(way, Counter())[kind] += 1
            one.rings += [(kind, ring) for ring in result.rings]
    return list(found.values())


def as_html(uri: str, results: Sequence[Result], command: str = "") -> str:
    """One page with nothing outside of it: what does not hold, with the rings as they stood, what
    was skipped, and what came of each requirement by section. `command` repeats it."""
    skipped: dict[str, list[str]] = {}
    for result in results:
        if result.verdict is Verdict.SKIPPED:
            skipped.setdefault(result.reason, []).append(result.title)
    template = files(__package__).joinpath("report.html.jinja").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"told": _told, "used_slots": _used_slots}
    return environment.from_string(template).render(
        uri=uri,
        party=results[0].case.party if results else "device",
        version=version("virtq"),
        command=command or f"virtq check {shlex.quote(uri)}",
        failures=failures(results),
        skipped=skipped,
        counts=counts(results),
        verdicts=list(Verdict),
        sections=_sections(results),
        requirement=known(),
    )


def _told(value: object) -> str:
    """A value of a ring, for people."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_told(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_told, value))
    return "" if value is None else str(value)


def _used_slots(slots: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that something was written to."""
    return [
        slot
        for slot in slots
        if any(_told(value).strip("0, ") for name, value in slot.items() if name != "slot")
    ]


def _sections(results: Sequence[Result]) -> Mapping[str, list[tuple[Requirement, list[Result]]]]:
    """The requirements that were looked at, by section, each with its results."""
    found: dict[str, dict[str, list[Result]]] = {}
    for result in results:
        for id in result.case.requirements:
            section = known()[id].section
            found.setdefault(section, {}).setdefault(id, []).append(result)
    return {
        section: [(known()[id], of) for id, of in sorted(entries.items())]
        for section, entries in sorted(found.items())
    }


def _what(result: Result) -> str:
    if result.verdict is Verdict.FAIL:
        return f"expected {result.expected}; came {result.came}"
    return f"{result.verdict}: {result.reason}" if result.reason else str(result.verdict)


def write_reports(
    uri: str,
    results: Sequence[Result],
    *,
    junit: str | None,
    sarif: str | None,
    html: str | None,
    command: str,
) -> None:
    """Each where a path is given; `command` is the command line that repeats it. Raises OSError."""
    page = partial(as_html, command=command)
    for path, form in ((junit, as_junit), (sarif, as_sarif), (html, page)):
        if path is not None:
            write(path, form(uri, results))


@contextmanager
def kept(paths: Iterable[str]) -> Iterator[None]:
    """For the time before there is a result to write: raises OSError for a path that cannot be
    written to, leaves the files that are there as they are, and takes those that are still empty in
    the end away again."""
    made: list[str] = []
    try:
        for path in paths:
            was_there = os.path.lexists(path)
            with open(path, "a", encoding="utf-8"):
                made += [] if was_there else [path]
        yield
    finally:
        for path in made:
            with suppress(OSError):
                if not os.path.getsize(path):
                    os.unlink(path)


def write(path: str, text: str | dict[str, Any]) -> None:
    """Raises OSError."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text if isinstance(text, str) else json.dumps(text, indent=2) + "\n")
