"""All cases against one driver, and what became of each.

A driver is at work for many cases after one another, which is how they are ordered: by kind of
ring, those that go on with the same driver before those that want one of their own, and those in
which the device does what no device should last. After a case that fails the driver is ended, so
that no case pays for another.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

from virtq.check.case import KINDS, OUR_FAULT, Broken, Case, Hung, NotObservable, Result, Verdict
from virtq.check.driver.bench import Bench
from virtq.check.driver.context import DriverContext, Stalled
from virtq.check.driver.roles import RING_FEATURES, ROLES
from virtq.check.driver.start import NoDriver
from virtq.errors import PeerGone, VirtqError
from virtq.features import F, RingKind

log = logging.getLogger("virtq.check")


def run(bench: Bench, cases: Sequence[Case], *, seed: int = 0) -> Iterator[Result]:
    """Run the cases that are about drivers of this device type, each in each of its kinds of
    ring; one result at a time. Always ends."""
    bench.forget()
    about = [case for case in cases if case.concerns(bench.device_id, None)]
    turns = [(case, kind) for case in about for kind in case.kinds or (None,)]
    for case, kind in sorted(turns, key=_order):
        yield _run_one(bench, case, kind, seed)
    bench.drop()


def _run_one(bench: Bench, case: Case, kind: RingKind | None, seed: int) -> Result:
    role = ROLES[bench.device_id]()
    extra = RING_FEATURES if case.offers is None else case.offers
    features = F.VERSION_1 | extra | role.features | (kind.features if kind else 0)
    context = DriverContext(
        bench,
        kind=kind,
        features=int(features),
        patience_s=bench.patience_s,
        moment_s=bench.moment_s,
        seed=seed,
    )
    began = time.monotonic()
    verdict, fields = Verdict.PASS, dict[str, str]()
    rings: list[dict[str, Any]] = []
    try:
        case.run(context)
    except Exception as error:
        rings = bench.pictures()
        verdict, fields = _verdict(bench, case, error)
    if verdict not in (Verdict.PASS, Verdict.SKIPPED) or case.alone:
        bench.drop()
    else:
        bench.settle()
    if verdict in (Verdict.PASS, Verdict.SKIPPED):
        rings = []
    return Result(case, kind, verdict, time.monotonic() - began, rings=rings, **fields)


def _verdict(bench: Bench, case: Case, error: Exception) -> tuple[Verdict, dict[str, str]]:
    match error:
        case Broken():
            return Verdict.FAIL, {"expected": error.expected, "came": error.came}
        case NotObservable() | NoDriver():
            return Verdict.SKIPPED, {"reason": str(error)}
        case Stalled() if not bench.flows:
            reason = f"{error}; served plainly, it makes no end of buffers available either"
            return Verdict.SKIPPED, {"reason": reason}
        case Hung():
            return Verdict.HUNG, {"reason": str(error)}
        case PeerGone():
            ending = bench.wait_for_end()
            if ending is not None and not ending.failed:
                return Verdict.SKIPPED, {"reason": ending.text}
            text = str(error) if ending is None else f"{error}: {ending.text}"
            return Verdict.CRASHED, {"reason": text}
        case VirtqError():
            came = str(error.args[0]) if error.args else str(error)
            return Verdict.FAIL, {"expected": "memory that is there", "came": came}
    log.error("the case %s itself failed", case.name, exc_info=error)
    return Verdict.SKIPPED, {"reason": f"{OUR_FAULT}: {error!r}"}


def _order(turn: tuple[Case, RingKind | None]) -> tuple[Any, ...]:
    case, kind = turn
    place = KINDS.index(kind) if kind is not None else len(KINDS)
    return case.hostile, place, case.alone, -1 if case.offers is None else case.offers
