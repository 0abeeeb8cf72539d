"""Judging a driver by what it does to a device's registers: `virtq check registers:FILE`.

Its parts, from the file to the verdict:

    log       the file: a JSON object for each access, which any VMM or bus analyzer can write
    qemu      the same from a trace of QEMU's
    trail     what each access means, and how things stood when it came
    rules     what a rule is
    initialization, general   those for any bus
    pci, mmio                 those for one
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from virtq.check.case import Broken, Case, NotObservable, Result, Verdict
from virtq.check.register_log import general, initialization, mmio, pci, qemu
from virtq.check.register_log.log import Log, LogError, parse
from virtq.check.register_log.rules import RULES
from virtq.check.register_log.trail import Trail, follow

_KINDS = (initialization, general, mmio, pci)
"""Importing these registers their rules."""

__all__ = ["RULES", "Log", "LogError", "judge", "read"]


def read(path: str) -> list[Log]:
    """The logs of a file, one for each device: JSON lines, or a trace of QEMU's. Raises LogError
    that names the line, OSError."""
    with Path(path).open(encoding="utf-8", errors="replace") as file:
        head = list(islice(file, 100))
        if any(qemu.is_trace(line) for line in head):
            found = qemu.parse(chain(head, file))
            if not found:
                raise LogError(f"{path}: a trace without an access to a virtio device")
            return found
        return parse(path, chain(head, file))


def judge(logs: Sequence[Log], rules: Sequence[Case]) -> Iterator[Result]:
    """The rules' verdicts, one for each: it fails if it does for one of the logs."""
    trails = [follow(log) for log in logs]
    for rule in rules:
        yield _judge_one(trails, rule)


def _judge_one(trails: Sequence[Trail], rule: Case) -> Result:
    began = time.monotonic()
    reason, passed = "another bus", False
    for trail in trails:
        if rule.bus not in (None, trail.bus):
            continue
        try:
            rule.run(trail)
            passed = True
        except NotObservable as nothing:
            reason = str(nothing)
        except Broken as broken:
            seconds = time.monotonic() - began
            return Result(
                rule,
                None,
                Verdict.FAIL,
                seconds,
                expected=broken.expected,
                came=broken.came,
            )
    seconds = time.monotonic() - began
    if passed:
        return Result(rule, None, Verdict.PASS, seconds)
    return Result(rule, None, Verdict.SKIPPED, seconds, reason=reason)
