"""Our own block device, judged: in this process, and behind a vhost-user socket in another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from virtq._core import Request
from virtq.check.case import OUR_FAULT, Result, Verdict
from virtq.check.results import BAD
from virtq.check.run import Subject, chosen, run
from virtq.connecting import open_transport
from virtq.devices.blk import BlkDevice
from virtq.devices.disk import Disk
from virtq.testing.serving import Serving
from virtq.transports.loopback import LoopbackTransport

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
    assert {"status.reset_while_live", "status.nothing_before_driver_ok"} <= passed


def skipped_in_every_kind(results: list[Result]) -> set[str]:
    passed = {r.case.name for r in results if r.verdict == "pass"}
    return {r.case.name for r in results} - passed


def test_in_this_process() -> None:
    results = judged("loopback:blk?size=1M&queues=2")
    must_hold(results)
    rings = ("in_order", "packed.", "split.", "queue_reset", "indirect", "framing", "notifications")
    assert not {name for name in skipped_in_every_kind(results) if name.startswith(rings)}


ORDER = ("in_order.[b-z]*", "in_order_resets", "blk_in_order", "queue_reset")


@pytest.mark.parametrize(
    ("options", "areas"),
    [
        ((), ("blk", "blk_[cr]*", "status", "features")),
        (("--read-only",), ("blk", "blk_[cr]*", "status")),
        (("--fault", "read:/3:delay=5ms", "--fault", "get-id:/4:delay=2ms"), (*ORDER, "status")),
    ],
    ids=["writable", "read-only", "slow"],
)
def test_behind_a_socket(tmp_path: Path, options: tuple[str, ...], areas: tuple[str, ...]) -> None:
    """`slow`: every third read takes its time, so that what comes after it has to wait."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    with Serving("blk", image, "--queues", 2, *options, socket_path=tmp_path / "s") as serving:
        results = judged(f"{serving.uri}?device=blk", *areas)
    must_hold(results)


class Growing(BlkDevice):
    """Its image grows with the third request."""

    served = 0

    def __init__(self, image: Path) -> None:
        super().__init__(Disk.file(image))
        self.image = image

    def handle(self, request: Request) -> int:
        self.served += 1
        if self.served == 3:
            os.truncate(self.image, self.image.stat().st_size + (1 << 16))
            self.refresh_capacity()
        return super().handle(request)


def test_a_capacity_that_changes(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))

    def open_growing() -> LoopbackTransport:
        return LoopbackTransport(Growing(image))

    subject = Subject.find("loopback:growing", open_growing, 2, None)
    results = list(run(subject, chosen(["blk_config.a_capacity_that_changes"])))
    assert {result.verdict for result in results} == {Verdict.PASS}
