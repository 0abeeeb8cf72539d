"""The page of `virtq check --report`, from results that were made up."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from virtq.check.case import Result, Verdict
from virtq.check.cases import all_cases
from virtq.check.results import as_html, failures
from virtq.features import RingKind

CASE = all_cases()["in_order.one_by_one"]
SLOT = {"slot": 0, "avail": 0, "used": [0, 0], "addr": 0, "len": 0}
RING: dict[str, Any] = {
    "queue": 0,
    "layout": "split",
    "size": 8,
    "available": {"flags": 0, "idx": 2},
    "slots": [SLOT | {"used": [0, 64], "addr": 0x1000}, *(SLOT | {"slot": n} for n in range(1, 8))],
    "used entries": [{"slot": 0, "id": 0, "flags": None}],
}


def ended(kind: RingKind, verdict: Verdict, **how: Any) -> Result:
    return replace(Result(CASE, kind, verdict, 0.1), **how)


RESULTS = [
    ended(RingKind.SPLIT, Verdict.FAIL, expected="two", came="<three>", rings=[RING]),
    ended(RingKind.SPLIT, Verdict.FAIL, expected="two", came="<three>"),
    ended(RingKind.PACKED, Verdict.FAIL, expected="two", came="four"),
    ended(RingKind.PACKED_IN_ORDER, Verdict.HUNG, reason="waited 2 s"),
    ended(RingKind.SPLIT_IN_ORDER, Verdict.SKIPPED, reason="it offers no such thing"),
]


def test_a_case_is_told_once_for_all_its_rings() -> None:
    failed, hung = failures(RESULTS)
    assert (failed.verdict, hung.verdict) == (Verdict.FAIL, Verdict.HUNG)
    assert list(failed.ways) == [("two", "<three>", ""), ("two", "four", "")]
    assert failed.kinds == {"split": 2, "packed": 1}
    assert failed.rings == [("split", RING)]


def test_what_the_page_tells() -> None:
    page = as_html("vhost-user:a&b", RESULTS, "virtq check 'vhost-user:a&b' --seed 7")
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.partition("</style>")[2]))
    assert text.count("in_order.one_by_one") == 2 + 2 + 1  # contents, cards, what was skipped
    assert "split 2 times, packed" in text
    assert "&lt;three&gt;" in text
    assert "it offers no such thing" in text
    assert "virtq check &#39;vhost-user:a&amp;b&#39; --seed 7" in text
    assert "http" not in page, "nothing is fetched"


def test_a_ring_is_drawn_without_its_zeroes() -> None:
    page = as_html("x", RESULTS)
    assert "queue 0 as it stood" in page
    drawn = page.partition('<div class="ring">')[2].partition("</details>")[0]
    assert "flags 0, idx 2" in drawn
    assert "0x1000" in drawn
    assert drawn.count("0x") == 1
    assert "The other 7 are zeroes." in drawn
    assert "None" not in drawn


def test_nothing_wrong_and_nothing_skipped() -> None:
    page = as_html("x", [ended(RingKind.SPLIT, Verdict.PASS)])
    assert "What does not hold" not in page
    assert "What was skipped" not in page
    assert "virtq check x" in page
