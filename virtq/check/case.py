"""What a case is: a function that drives a device, or is one for a driver, and raises when a
requirement does not hold.

A case says which requirements it checks, what the device has to offer for it, and which kinds of
ring it is about. Those about drivers (`party="driver"`) have names that begin with `driver.`.
A case ends in one of these ways:

    it returns          pass
    Broken              fail: a requirement does not hold; expected, and what came
    NotObservable       skipped: the device gives no occasion to see it; the reason
    Hung                the device did not answer within the patience
    PeerGone            crashed: the device's process is gone
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, TypeVar

from virtq.check.catalogue import known
from virtq.features import F, RingKind

T = TypeVar("T")

OUR_FAULT = "the case itself failed"
"""How the reason of a case begins that has a fault of its own, which is nobody else's."""


class Verdict(StrEnum):
    """How a case ended."""

    PASS = "pass"
    FAIL = "fail"
    SKIPPED = "skipped"
    HUNG = "hung"
    CRASHED = "crashed"


class Broken(Exception):
    """A requirement does not hold."""

    def __init__(self, expected: str, came: str) -> None:
        super().__init__(f"expected {expected}; came {came}")
        self.expected = expected
        self.came = came


class NotObservable(Exception):
    """What is judged gives no occasion, here, to see it; the text says why."""


class Hung(Exception):
    """The device did not do what it was waited for; the text says what."""


def expect(condition: object, expected: str, came: object) -> None:
    """Raises Broken unless the condition holds."""
    if not condition:
        raise Broken(expected, str(came))


KINDS = (
    RingKind.of(0),
    RingKind.of(F.IN_ORDER),
    RingKind.of(F.RING_PACKED),
    RingKind.of(F.RING_PACKED | F.IN_ORDER),
)


Party = Literal["device", "driver"]
"""Who is judged."""


@dataclass(frozen=True)
class Case:
    """A case: its name is its area and its function. `needs`: features that the device has to
    offer. `kinds`: those it runs in, each on its own; empty for one that has no ring in it.

    About drivers: `offers` is what the judge offers beside VERSION_1 and the kind of ring (None:
    what it usually does), `alone` says that the driver is ended after it, `hostile` that the device
    does what no device should."""

    name: str
    title: str
    requirements: tuple[str, ...]
    needs: int
    device_id: int | None
    bus: str | None
    kinds: tuple[RingKind, ...]
    run: Callable[[Any], None]
    party: Party = "device"
    offers: int | None = None
    alone: bool = False
    hostile: bool = False

    def concerns(self, device_id: int | None, bus: str | None) -> bool:
        """Whether it is about such a device, or about every device."""
        return self.device_id in (None, device_id) and self.bus in (None, bus)

    @property
    def area(self) -> str:
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Result:
    """How one case ended in one kind of ring. `expected` and `came` for a failure; `reason` for
    everything else that is not a pass; `rings` as they stood then."""

    case: Case
    kind: RingKind | None
    verdict: Verdict
    seconds: float
    expected: str = ""
    came: str = ""
    reason: str = ""
    rings: list[dict[str, Any]] = field(default_factory=list)

    @property
    def title(self) -> str:
        return f"{self.case.name}[{self.kind}]" if self.kind else self.case.name


CASES: dict[str, Case] = {}
"""Those that were registered so far, by name; `cases.all_cases` has all of them."""


def case(
    *ids: str,
    needs: int = 0,
    device_id: int | None = None,
    bus: str | None = None,
    packed: bool | None = None,
    in_order: bool | None = None,
    rings: bool = True,
    party: Party = "device",
    offers: int | None = None,
    alone: bool = False,
    hostile: bool = False,
) -> Callable[[Callable[[T], None]], Callable[[T], None]]:
    """Registers a function as a case. `ids`: the requirements that it checks. `device_id`, `bus`
    ("pci", "mmio" or "vhost-user"): what it is about, if not every device. `packed`, `in_order`:
    the kinds of ring, None for both; with `rings=False` it runs once. `party`: who is judged; for
    drivers see `Case`. Raises KeyError for an unknown id."""
    for id in ids:
        known()[id]

    def register(function: Callable[[T], None]) -> Callable[[T], None]:
        area = function.__module__.rpartition(".")[2]
        chosen = [
            kind
            for kind in KINDS
            if rings and packed in (None, kind.packed) and in_order in (None, kind.in_order)
        ]
        name = f"{'driver.' if party == 'driver' else ''}{area}.{function.__name__}"
        assert name not in CASES, name
        CASES[name] = Case(
            name=name,
            title=" ".join((inspect.getdoc(function) or "").split()),
            requirements=ids,
            needs=needs,
            device_id=device_id,
            bus=bus,
            kinds=tuple(chosen),
            run=function,
            party=party,
            offers=offers,
            alone=alone or hostile,
            hostile=hostile,
        )
        return function

    return register
