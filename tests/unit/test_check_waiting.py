"""Waits of `virtq check` count the time in which somebody looked."""

from __future__ import annotations

import time

import pytest

from virtq.check import waiting


class Clock:
    """Stands still but for what is slept, and what is added."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, late_s: float) -> None:
        self.now, self.late_s = 100.0, late_s
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds + self.late_s


def test_a_quick_machine_waits_as_long_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, 0.0)
    # Ten in a millisecond for the first twenty, one after that.
    assert sum(1 for _ in waiting.turns(0.1)) == pytest.approx(280, abs=3)
    assert clock.now == pytest.approx(100.1, abs=0.001)


def test_a_busy_machine_looks_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each turn comes 10 ms late: it counts 2 ms."""
    clock = Clock(monkeypatch, 0.01)
    assert sum(1 for _ in waiting.turns(0.1)) == 51
    assert clock.now == pytest.approx(100.55, abs=0.005)


def test_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """However late turns come."""
    clock = Clock(monkeypatch, 1.0)
    assert sum(1 for _ in waiting.turns(0.5)) == 6
    assert clock.now < 106


def test_there_is_a_look_without_time() -> None:
    assert sum(1 for _ in waiting.turns(0.0)) == 1
