"""All cases against one device."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from virtq.check.case import OUR_FAULT, Broken, Case, Hung, NotObservable, Party, Result, Verdict
from virtq.check.cases import all_cases
from virtq.check.context import Context
from virtq.check.keep import Gone, Keeper, Lasting, Started
from virtq.check.net.far_end import Finder, by_itself
from virtq.check.waiting import MOMENT_S, PATIENCE_S
from virtq.errors import (
    ConfigError,
    PeerGone,
    TransportError,
    UndrivableDevice,
    UriError,
    VirtqError,
)
from virtq.features import F, RingKind, describe
from virtq.transports.base import DriverTransport
from virtq.transports.vhost_user.exchange import Refused
from virtq.transports.vhost_user.wire import ProtocolError

_ABOUT_LENGTHS = {
    "vq.used-length-reported",
    "split.used.dev.len-before-idx",
    "packed.used.len-meaning",
    "resv.dev.in-order-use",
}
"""Where a used length beyond its buffer is a fault. To other cases it is none: a device that does
it at all does it with every buffer, and nothing else would come to light."""

log = logging.getLogger("virtq.check")


@dataclass(frozen=True)
class Subject:
    """What is judged: how to open it, and what it was found to be."""

    uri: str
    open: Callable[[], DriverTransport]
    device_id: int | None
    offered: int
    bus: str | None
    far_end: Finder = by_itself
    dial: Callable[[], socket.socket] | None = None
    """A vhost-user connection on which nothing was said yet."""
    started: Started | None = None
    """What starts it, if the judge does and not its transport."""
    undrivable: UndrivableDevice | None = None
    """Why no driver can do anything with it: then that is all that can be judged."""

    @classmethod
    def find(
        cls,
        uri: str,
        open: Callable[[], DriverTransport],
        device_id: int | None,
        bus: str | None,
        dial: Callable[[], socket.socket] | None = None,
        started: Started | None = None,
    ) -> Subject:
        """Ask the device what it is. Raises TransportError if there is none, or if it is gone once
        it was asked."""
        try:
            transport = open() if started is None else started.reach(open)
        except UndrivableDevice as error:
            return cls(uri, open, device_id, 0, bus, undrivable=error)
        try:
            transport.write_status(0)
            offered = transport.read_features()
            known = transport.device_id if device_id is None else device_id
        finally:
            transport.close()
        if dial is not None:
            if started is not None:
                started.look_whether_it_ends()
            try:
                (started or Lasting()).reach(dial).close()
            except PeerGone as error:
                text = str(error)
                if started is None:
                    text += "; one that serves a single connection has to be started (--start)"
                raise TransportError(text) from None
        return cls(uri, open, known, offered, bus, dial=dial, started=started)


def chosen(patterns: Sequence[str], party: Party | None = "device") -> list[Case]:
    """The cases that a pattern such as `in_order.*` or `blk` (an area) names; all without one.
    `party`: only those about devices or drivers; for a driver's the `driver.` of the name can be
    left out. Raises UriError for a pattern that names none."""
    known = {name: case for name, case in all_cases().items() if party in (None, case.party)}
    if not patterns:
        return list(known.values())
    found: dict[str, Case] = {}
    for pattern in patterns:
        wanted = {pattern, f"driver.{pattern}"} if party == "driver" else {pattern}
        named = {
            name: case
            for name, case in known.items()
            if case.area in wanted or any(fnmatchcase(name, each) for each in wanted)
        }
        if not named:
            raise UriError(f"no case is called {pattern!r}: --list shows them all")
        found |= named
    return list(found.values())


def run(
    subject: Subject,
    cases: Sequence[Case],
    *,
    seed: int = 0,
    patience_s: float = PATIENCE_S,
    moment_s: float = MOMENT_S,
) -> Iterator[Result]:
    """Run the cases that are about the subject, each in each of its kinds of ring; one result at a
    time. Always ends."""
    with contextlib.closing(Keeper(subject.started or Lasting(), subject.open)) as keeper:
        for case in cases:
            if not case.concerns(subject.device_id, subject.bus):
                continue
            for kind in case.kinds or (None,):
                if subject.undrivable is not None:
                    yield _lacking(subject.undrivable, case, kind)
                elif reason := _not_for(subject, case, kind):
                    yield Result(case, kind, Verdict.SKIPPED, 0.0, reason=reason)
                else:
                    yield _run_one(keeper, subject, case, kind, seed, patience_s, moment_s)


def _lacking(error: UndrivableDevice, case: Case, kind: RingKind | None) -> Result:
    """What a case comes to on a device that no driver can do anything with."""
    if error.requirement in case.requirements:
        expected = "a device that a driver can reach"
        return Result(case, kind, Verdict.FAIL, 0.0, expected=expected, came=str(error))
    return Result(case, kind, Verdict.SKIPPED, 0.0, reason=f"no driver reaches it: {error}")


def _not_for(subject: Subject, case: Case, kind: RingKind | None) -> str:
    """Why the case does not apply; empty if it does."""
    needed = case.needs | (kind.features if kind else F(0))
    if lacking := needed & ~subject.offered:
        return f"not offered: {describe(int(lacking), subject.device_id)}"
    return ""


def _run_one(
    keeper: Keeper,
    subject: Subject,
    case: Case,
    kind: RingKind | None,
    seed: int,
    patience_s: float,
    moment_s: float,
) -> Result:
    context = Context(
        keeper,
        kind=kind,
        device_id=subject.device_id,
        patience_s=patience_s,
        moment_s=moment_s,
        seed=seed,
        far_end=subject.far_end,
        bears_long_lengths=not _ABOUT_LENGTHS & set(case.requirements),
        dial=None if subject.dial is None else partial(keeper.reach, subject.dial),
    )
    keeper.case_begins()
    began = time.monotonic()
    verdict, fields = Verdict.PASS, {}
    rings: list[dict[str, Any]] = []
    try:
        try:
            case.run(context)
        except (Broken, Hung):
            # Drawn while the session is open: its memory goes with it.
            live = context.last.rings if context.last else {}
            rings = [{"queue": index, **ring.picture()} for index, ring in live.items()]
            raise
    except Broken as broken:
        verdict, fields = Verdict.FAIL, {"expected": broken.expected, "came": broken.came}
    except NotObservable as reason:
        verdict, fields = Verdict.SKIPPED, {"reason": str(reason)}
    except Hung as hung:
        verdict, fields = Verdict.HUNG, {"reason": str(hung)}
    except PeerGone as gone:
        # A back-end may give up the whole session for a malformed ring, if it takes the next one.
        if not (case.area.startswith("malformed") and context.comes_back()):
            told, ending = str(gone), keeper.ending()
            verdict = Verdict.CRASHED
            fields = {"reason": told if ending in told else f"{told}: {ending}"}
    except Gone as gone:
        verdict, fields = Verdict.SKIPPED, {"reason": f"the device is gone: {gone}"}
    except (Refused, ProtocolError) as error:
        verdict = Verdict.FAIL
        fields = {"expected": "the transport's protocol to be kept", "came": str(error)}
    except TransportError as error:
        verdict, fields = Verdict.HUNG, {"reason": str(error)}
    except VirtqError as error:
        verdict = Verdict.FAIL
        fields = {"expected": "the transport to do its work", "came": str(error)}
        if isinstance(error, ConfigError) and context.last and not context.last.shows_config:
            verdict = Verdict.SKIPPED
            fields = {"reason": f"its configuration space is the front-end's: {error}"}
    except Exception as error:  # ours, not the device's; the others are still judged
        log.exception("the case %s itself failed", case.name)
        verdict, fields = Verdict.SKIPPED, {"reason": f"{OUR_FAULT}: {error!r}"}
    finally:
        well = verdict in (Verdict.PASS, Verdict.SKIPPED) and case.bus is None
        context.close(well=well)
    if verdict in (Verdict.PASS, Verdict.SKIPPED) and (ended := keeper.has_ended()):
        verdict, fields = Verdict.CRASHED, {"reason": f"the device is gone: {ended.text}"}
    if verdict not in (Verdict.PASS, Verdict.SKIPPED):
        keeper.failed(gone=verdict is Verdict.CRASHED)
    return Result(case, kind, verdict, time.monotonic() - began, rings=rings, **fields)
