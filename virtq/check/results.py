"""What came out of a run, for programs: JSON, JUnit XML, SARIF, and one HTML page."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from importlib.resources import files
from typing import Any
from xml.etree import ElementTree

import jinja2

from virtq.check.case import Verdict
from virtq.check.cases import all_cases
from virtq.check.catalogue import Requirement, known, requirements, statements
from virtq.check.register_log import RULES
from virtq.check.run import Result

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


def as_html(uri: str, results: Sequence[Result]) -> str:
    """One page with nothing outside of it: by section what holds and what does not, and for each
    failure the ring as it stood."""
    template = files(__package__).joinpath("report.html.jinja").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(template).render(
        uri=uri,
        party=results[0].case.party if results else "device",
        version=version("virtq"),
        results=results,
        bad=[result for result in results if result.verdict in BAD],
        counts=counts(results),
        verdicts=list(Verdict),
        sections=_sections(results),
        requirement=known(),
        what=_what,
    )


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
    uri: str, results: Sequence[Result], *, junit: str | None, sarif: str | None, html: str | None
) -> None:
    """Each where a path is given. Raises OSError."""
    for path, form in ((junit, as_junit), (sarif, as_sarif), (html, as_html)):
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
