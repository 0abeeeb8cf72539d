"""`virtq check` as a command: what it prints about its cases, and what becomes of its reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.cli.support import printed
from virtq.check.cases import all_cases
from virtq.check.register_log import RULES
from virtq.cli import run

REPORTS = ("report", "junit", "sarif")


def test_the_list_fits_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = printed(capsys, "check", "--list").splitlines()
    assert max(map(len, lines)) <= 80
    names = [line.strip() for line in lines if line and not line.startswith(" ")]
    assert names[:-1] == [*all_cases(), *RULES]
    assert names[-1] == f"{len(names) - 1} cases"
    shown = {word for line in lines for word in line.split()}
    cases = [*all_cases().values(), *RULES.values()]
    assert {id for case in cases for id in case.requirements} <= shown


def test_reports_that_are_there_outlive_a_run_that_cannot_begin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = []
    for name in REPORTS:
        (tmp_path / name).write_text("of yesterday")
        words += [f"--{name}", str(tmp_path / name)]
    assert run(["check", f"vhost-user:{tmp_path}/nobody.sock", *words]) == 2
    assert [(tmp_path / name).read_text() for name in REPORTS] == ["of yesterday"] * 3


def test_no_empty_report_is_left_by_a_run_that_cannot_begin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for name in REPORTS for word in (f"--{name}", str(tmp_path / name))]
    assert run(["check", f"vhost-user:{tmp_path}/nobody.sock", *words]) == 2
    assert not list(tmp_path.iterdir())
    assert run(["check", "loopback:blk", "--only", "blk.read_and_write", *words]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(REPORTS)
    assert all(path.stat().st_size for path in tmp_path.iterdir())
