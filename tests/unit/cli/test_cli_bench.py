"""`virtq bench`: what it measures, prints and refuses."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.unit.cli.support import VIRTQ, loaded, printed
from virtq.cli import run

SHORT = ["--pairs", "2", "--window", "0.01"]


def test_python(capsys: pytest.CaptureFixture[str]) -> None:
    stored = loaded(capsys, "bench", "python", "--quick", *SHORT)
    assert stored["bench"] == "python"
    assert stored["command"] == "virtq bench python --pairs 2 --window 0.01 --quick"
    assert len(stored["comparisons"]) == 3
    for comparison in stored["comparisons"]:
        assert comparison["rounds"] == 2
        for contender in comparison["contenders"]:
            assert contender["error"] is None
            assert len(contender["rates_per_s"]) == 2
            assert contender["work"] > 0
    first, arrays, _ = stored["comparisons"]
    assert all(contender["counts"]["verified"] > 0 for contender in first["contenders"])
    used = {one["name"]: one["per_1000"]["used_entries"] for one in arrays["contenders"]}
    assert used["split, any order"] == used["packed, any order"] == 1000
    assert used["split, in order"] < 100
    assert used["packed, in order"] < 100


def test_scale(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--ring", "packed-in-order", "--ring", "split"]
    stored = loaded(capsys, "bench", "scale", "--quick", *SHORT, *words, "--batch", "16")
    titles = [comparison["title"] for comparison in stored["comparisons"]]
    assert len(titles) == 12
    regions = next(c for c in stored["comparisons"] if c["title"] == "regions: packed, in order")
    assert [one["name"] for one in regions["contenders"]] == [
        "1 region", "8 regions", "64 regions", "509 regions"
    ]  # fmt: skip
    assert any(ratio["target"] for ratio in regions["ratios"])
    for one in regions["contenders"]:
        # A device that was held up finds several batches at once, and uses them as one.
        assert 0 < one["per_1000"]["used_entries"] <= 1000 / 16 * 1.2
    assert not any(one["error"] for c in stored["comparisons"] for one in c["contenders"])


def test_tables_and_a_report(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = tmp_path / "page.html"
    stored = tmp_path / "stored.json"
    stored.write_text(printed(capsys, "bench", "python", "--quick", *SHORT, "--json"))
    text = printed(capsys, "bench", "show", str(stored), "--report", str(report))
    assert "handle_batch: arrays" in text
    assert "The report is in" in text
    assert report.read_text().count("<svg") == 3
    table = printed(capsys, "bench", "show", str(stored), "--markdown")
    assert table.count("\n|---|") == 3
    twice = loaded(capsys, "bench", "show", str(stored), str(stored))
    assert twice == [json.loads(stored.read_text())] * 2


def test_some_cases_in_some_time(capsys: pytest.CaptureFixture[str]) -> None:
    titles = printed(capsys, "bench", "scale", "--list").splitlines()
    assert len(titles) == len(set(titles)) == 12
    words = ("bench", "scale", "--only", titles[1], "--only", "pieces: packed")
    assert printed(capsys, *words, "--list").splitlines() == [
        titles[1],
        "pieces: packed, in order",
    ]
    stored = loaded(capsys, *words, *SHORT, "--seconds", "2")
    assert [one["title"] for one in stored["comparisons"]] == [titles[1], titles[-3]]
    assert stored["seconds"] < 10
    assert stored["command"] == (
        f"virtq bench scale --pairs 2 --window 0.01 --seconds 2.0 --only '{titles[1]}' "
        "--only 'pieces: packed'"
    )


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["python", "--only", "nothing"], "no case has 'nothing' in its title"),
        (["python", "--window", "2"], "2.0 is not in the range 0.01<=x<=1.0"),
        (["python", "--pairs", "0"], "0 is not in the range"),
        (["python", "--seconds", "nan"], "'nan' is no time"),
        (["python", "--pin", "1"], "not two processors"),
        (["python", "--pin", "0,4095"], "no processor 4095"),
        (["python", "--pin", "0,x"], "not made of numbers"),
        (["python", "--report", "page.txt"], "a report is an .html file"),
        (["python", "--report", "/nowhere/page.html"], "cannot be written to"),
        (["python", "--json", "--markdown"], "one of --json and --markdown"),
        (["scale", "--ring", "round"], "no kind of ring is called 'round'"),
        (["net", "--size", "10"], "10 is not within 64 to 9000"),
        (["blk", "--size", "5K,1000"], "1000 is not a multiple of 512"),
        (["blk", "--against", "qemu"], "'qemu' is not"),
        (["show"], "missing argument"),
        (["show", "/nowhere.json"], "No such file"),
    ],
)
def test_what_cannot_begin(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert text in said


@pytest.mark.parametrize(
    ("content", "text"),
    [("", "not JSON"), ("{}", "not a result"), ('{"schema": 99}', "schema 99"), ("[7]", "not a")],
)
def test_what_is_no_result(
    content: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "stored.json"
    path.write_text(content)
    assert run(["bench", "show", str(path)]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("bench", "peer", "package"),
    [("net", "dpdk", "dpdk-dev"), ("blk", "qemu-storage-daemon", "qemu-utils")],
)
def test_a_peer_that_is_not_there(bench: str, peer: str, package: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [*VIRTQ, "bench", bench, "--against", peer],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{peer} is not installed" in done.stderr
    assert package in done.stderr
    assert done.stderr.count("\n") == 1
