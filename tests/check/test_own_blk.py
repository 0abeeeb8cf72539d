"""Our own block device, judged: in this process, and behind a vhost-user socket in another."""

from __future__ import annotations

from pathlib import Path

import pytest

from virtq.check.results import BAD
from virtq.check.run import OUR_FAULT, Result, Subject, chosen, run
from virtq.testing.serving import Serving
from virtq.uri import open_transport

SLOW = ("split.past_65536",)
"""A case of many seconds that says nothing about what is between the ring and the device."""


def judged(uri: str, *areas: str) -> list[Result]:
    subject = Subject.find(uri, lambda: open_transport(uri), 2, None)
    cases = [case for case in chosen(areas) if case.name not in SLOW]
    return list(run(subject, cases))


def must_hold(results: list[Result]) -> None:
    wrong = [r for r in results if r.verdict in BAD or OUR_FAULT in r.reason]
    assert not wrong, [(r.title, r.expected, r.came, r.reason) for r in wrong]
    passed = {r.case.name for r in results if r.verdict == "pass"}
    assert {"in_order.batches", "blk.an_unknown_request", "status.reset_while_live"} <= passed


def skipped_in_every_kind(results: list[Result]) -> set[str]:
    passed = {r.case.name for r in results if r.verdict == "pass"}
    return {r.case.name for r in results} - passed


def test_in_this_process() -> None:
    results = judged("loopback:blk?size=1M&queues=2")
    must_hold(results)
    rings = ("in_order", "packed.", "split.", "queue_reset", "indirect", "framing", "notifications")
    assert not {name for name in skipped_in_every_kind(results) if name.startswith(rings)}


@pytest.mark.parametrize("options", [(), ("--read-only",)], ids=["writable", "read-only"])
def test_behind_a_socket(tmp_path: Path, options: tuple[str, ...]) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    areas = ("blk*", "in_order*", "status", "features", "queue_reset")
    with Serving("blk", image, "--queues", 2, *options, socket_path=tmp_path / "s") as serving:
        results = judged(f"{serving.uri}?device=blk", *areas)
    must_hold(results)
