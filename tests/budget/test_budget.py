"""What each kind of ring costs, counted: instructions per buffer of each half, used entries and
notifications. None of it depends on the machine's speed, so a budget that is exceeded is a
regression.

Instructions are counted by valgrind's callgrind, both halves taking turns on one thread. The
budgets are a seventh or so above what was counted when they were set; `pytest -s` prints what is
counted now.
"""

from __future__ import annotations

import json
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from virtq.features import RingKind

ROOT = Path(__file__).resolve().parents[2]
BUFFERS = 16384
TIMEOUT_S = 120


class Counts(NamedTuple):
    buffers: int
    used_entries: int
    kicks: int
    calls: int


@cache
def program() -> str:
    """The benches' `counts`, built as they are."""
    build = ["cargo", "bench", "--quiet", "--package", "virtq-core", "--bench", "counts"]
    messages = subprocess.run(
        [*build, "--no-run", "--message-format", "json"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=280,
    ).stdout
    made = [json.loads(line) for line in messages.splitlines()]
    found = [
        one["executable"]
        for one in made
        if one.get("executable") and one["target"]["name"] == "counts"
    ]
    return str(found[-1])


def arguments(kind: RingKind, direction: str, batch: int, *wait: str) -> list[str]:
    return [program(), f"{int(kind.features):x}", direction, str(batch), str(BUFFERS), *wait]


def run(*words: str) -> Counts:
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
    return Counts(*map(int, done.stdout.split()))


def instructions(tmp_path: Path, words: list[str]) -> dict[str, float]:
    """Per buffer, of the driver's half and of the device's."""
    out = tmp_path / "callgrind.out"
    counted = run("valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", *words)
    shown = subprocess.run(
        ["callgrind_annotate", "--inclusive=yes", "--auto=no", "--threshold=100", str(out)],
        check=True,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    ).stdout
    found = {}
    for half in ("driver", "device"):
        line = rf"^\s*([\d,]+) .*loopback::{half}::\w+End::turn"
        match = re.search(line, shown, re.MULTILINE)
        assert match is not None, f"no turn of the {half} in:\n{shown[:2000]}"
        found[half] = int(match[1].replace(",", "")) / counted.buffers
    return found


# Instructions per buffer: (kind, direction, batch) -> (driver, device).
BUDGET: dict[tuple[RingKind, str, int], tuple[float, float]] = {
    (RingKind.SPLIT, "send", 1): (415, 435),
    (RingKind.SPLIT, "send", 32): (210, 160),
    (RingKind.SPLIT, "receive", 1): (600, 430),
    (RingKind.SPLIT, "receive", 32): (245, 160),
    (RingKind.SPLIT_IN_ORDER, "send", 1): (375, 415),
    (RingKind.SPLIT_IN_ORDER, "send", 32): (120, 118),
    (RingKind.SPLIT_IN_ORDER, "receive", 1): (570, 415),
    (RingKind.SPLIT_IN_ORDER, "receive", 32): (155, 130),
    (RingKind.PACKED, "send", 1): (465, 470),
    (RingKind.PACKED, "send", 32): (255, 190),
    (RingKind.PACKED, "receive", 1): (625, 465),
    (RingKind.PACKED, "receive", 32): (290, 190),
    (RingKind.PACKED_IN_ORDER, "send", 1): (430, 440),
    (RingKind.PACKED_IN_ORDER, "send", 32): (136, 134),
    (RingKind.PACKED_IN_ORDER, "receive", 1): (600, 455),
    (RingKind.PACKED_IN_ORDER, "receive", 32): (170, 143),
}


@pytest.mark.parametrize(("kind", "direction", "batch"), BUDGET, ids=str)
def test_instructions_per_buffer(
    tmp_path: Path, kind: RingKind, direction: str, batch: int
) -> None:
    spent = instructions(tmp_path, arguments(kind, direction, batch))
    print(f"\n    (RingKind.{kind.name}, {direction!r}, {batch}): {spent}")
    driver, device = BUDGET[kind, direction, batch]
    assert spent["driver"] <= driver
    assert spent["device"] <= device


@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("direction", ["send", "receive"])
@pytest.mark.parametrize(
    ("ordered", "any_order"),
    [
        (RingKind.SPLIT_IN_ORDER, RingKind.SPLIT),
        (RingKind.PACKED_IN_ORDER, RingKind.PACKED),
    ],
    ids=str,
)
def test_order_costs_neither_half_anything(
    tmp_path: Path, ordered: RingKind, any_order: RingKind, direction: str, batch: int
) -> None:
    in_order = instructions(tmp_path, arguments(ordered, direction, batch))
    without = instructions(tmp_path, arguments(any_order, direction, batch))
    assert in_order["driver"] < without["driver"]
    assert in_order["device"] < without["device"]


@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_used_entries_per_1000_buffers(kind: RingKind, batch: int) -> None:
    counted = run(*arguments(kind, "send", batch))
    per_buffer = counted.used_entries / counted.buffers
    # The last ones of a ring may be used and not yet seen by the driver.
    expected = 1 / batch if kind.in_order else 1
    assert expected <= per_buffer <= expected * (1 + 256 / counted.buffers)
    assert (counted.kicks, counted.calls) == (0, 0)


@pytest.mark.parametrize("wait", ["event", "index"])
@pytest.mark.parametrize("direction", ["send", "receive"])
@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_notifications_per_1000_buffers(kind: RingKind, direction: str, wait: str) -> None:
    """One for a batch of 32 at the most, and with an index fewer: those in between were saved."""
    counted = run(*arguments(kind, direction, 32, wait))
    per_1000 = [1000 * count / counted.buffers for count in (counted.kicks, counted.calls)]
    assert all(0 < each <= 32 for each in per_1000)
    if wait == "index":
        saved = run(*arguments(kind, direction, 32, "event"))
        assert counted.calls < saved.calls
