"""Faults in words: what is to go wrong, how often, and how.

    WHAT:WHEN:FAULT

WHAT is a kind of request of the device (for a disk read, write, flush, get-id, discard,
write-zeroes), or the name of a queue; `*` in it stands for anything.

WHEN is one of

    1%      each time with this probability      7       the seventh time
    always  every time                           7-9     the seventh to the ninth time
    /10     every tenth time                     7+      from the seventh time on

FAULT is one of

    EIO                  an error: the device does not see the request, which ends as the device
                         type says that something failed; any name of errno
    delay=10ms           what the device has done is told this much later
    hang                 the request is never finished
    reorder              what the device has done is told after the next request, or 10 ms later
    drop-call            the notification that tells of it is lost
    late-call=10ms       the notification that tells of it comes this much later
    corrupt-used=id      the used entry names a buffer that does not exist
    corrupt-used=length  the used entry tells of more bytes than there is room for
    corrupt-used=order   the used entry names the neighbour of the buffer

Times are given in us, ms or s. Under IN_ORDER buffers that are delayed, reordered or hang hold up
those behind them, and leave in order; only corrupt-used breaks the order.
"""

from __future__ import annotations

import difflib
import errno
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from virtq.errors import VirtqError

REORDER_S = 0.010
"""How long a completion that waits for the next one waits at most."""

Action = Literal["error", "delay", "hang", "reorder", "drop-call", "late-call", "corrupt-used"]
CORRUPTIONS = ("id", "length", "order")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_TAKES_TIME: tuple[Action, ...] = ("delay", "late-call")
_PLAIN: tuple[Action, ...] = ("hang", "reorder", "drop-call")


class FaultError(VirtqError):
    """A fault that cannot be understood, or that the device cannot have."""


@dataclass(frozen=True)
class When:
    """Which of the requests in question: those from `first` to `last` (None: no end), counted from
    1, of those one in `step`, with this probability."""

    probability: float = 1.0
    first: int = 1
    last: int | None = None
    step: int = 1

    @classmethod
    def parse(cls, text: str) -> When:
        """Raises ValueError."""
        if text == "always":
            return cls()
        if match := re.fullmatch(r"(\d+(?:\.\d+)?)%", text):
            if not 0 < (percent := float(match[1])) <= 100:
                raise ValueError(f"{text} is not more than 0% and at most 100%")
            return cls(probability=percent / 100)
        if match := re.fullmatch(r"/(\d+)", text):
            step = _positive(match[1])
            return cls(first=step, step=step)
        if match := re.fullmatch(r"(\d+)(\+|-(\d+))?", text):
            first = _positive(match[1])
            last = None if match[2] == "+" else int(match[3] or first)
            if last is not None and last < first:
                raise ValueError(f"{text} ends before it begins")
            return cls(first=first, last=last)
        raise ValueError(f"{text!r} is none of 1%, always, 7, 7+, 7-9, /10")

    def __contains__(self, number: int) -> bool:
        """Whether the request of this number may be one of them."""
        in_range = self.first <= number and (self.last is None or number <= self.last)
        return in_range and (number - self.first) % self.step == 0


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError("counting begins at 1")
    return number


@dataclass(frozen=True)
class Fault:
    """One fault; see the head of this file."""

    text: str
    what: str
    when: When
    action: Action
    code: int = 0
    """The errno of an error."""
    time_s: float = 0.0
    corruption: str = ""

    @classmethod
    def parse(cls, text: str) -> Fault:
        """From `WHAT:WHEN:FAULT`. Raises FaultError that names the part which is wrong."""
        parts = text.strip().split(":")
        if len(parts) != 3 or not all(parts):
            raise FaultError(f"fault {text.strip()!r}: it has the form WHAT:WHEN:FAULT")
        what, when, how = parts
        try:
            return cls(text.strip(), what, When.parse(when), **_parse_action(how))
        except ValueError as error:
            raise FaultError(f"fault {text.strip()!r}: {error}") from None

    def fits(self, kind: str, queue: str) -> bool:
        """Whether it may befall a request of this kind on this queue."""
        return fnmatchcase(queue, self.what) or (bool(kind) and fnmatchcase(kind, self.what))

    def check(self, kinds: Sequence[str], queues: Sequence[str], filled: Sequence[str]) -> None:
        """Raises FaultError if nothing on a device with these kinds of requests and these queues
        is meant, or if an error is for the buffers of queues that the device fills by itself."""
        names = [*kinds, *queues]
        fitting = [name for name in names if fnmatchcase(name, self.what)]
        if not fitting:
            nearest = difflib.get_close_matches(self.what, names, 1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"there are: {', '.join(names)}"
            raise FaultError(
                f"fault {self.text!r}: no request and no queue is called {self.what!r}; {hint}"
            )
        if self.action == "error" and all(name in filled for name in fitting):
            raise FaultError(
                f"fault {self.text!r}: {fitting[0]} is for the device to fill, there is no request "
                "that could fail"
            )


def _parse_action(text: str) -> dict[str, Any]:
    name, equals, value = text.partition("=")
    for action in _TAKES_TIME:
        if name == action:
            return {"action": action, "time_s": _parse_time(name, value)}
    for action in _PLAIN:
        if name == action and not equals:
            return {"action": action}
    if name == "corrupt-used":
        if value not in CORRUPTIONS:
            raise ValueError(f"corrupt-used= is followed by one of {', '.join(CORRUPTIONS)}")
        return {"action": name, "corruption": value}
    if code := getattr(errno, text.upper(), None) if re.fullmatch(r"E\w+", text.upper()) else None:
        return {"action": "error", "code": code}
    known = [*_TAKES_TIME, *_PLAIN, "corrupt-used"]
    nearest = difflib.get_close_matches(name, [*known, *errno.errorcode.values()], 1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known)}, and EIO"
    raise ValueError(f"{text!r} is no fault; {hint}")


def _parse_time(name: str, text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s)", text)
    if match is None:
        raise ValueError(f"{name}= is followed by a time such as 10ms, not {text!r}")
    return float(match[1]) * _UNITS[match[2]]


def parse_all(texts: Iterable[str]) -> list[Fault]:
    """Faults, of which those that begin with `@` name a script: a file with one fault on each line,
    where `#` begins a comment. Raises FaultError, which for a script names the line."""
    faults: list[Fault] = []
    for text in texts:
        if not text.startswith("@"):
            faults.append(Fault.parse(text))
            continue
        try:
            lines = Path(text[1:]).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise FaultError(f"fault script {text[1:]}: {reason}") from None
        for number, line in enumerate(lines, 1):
            if plain := line.partition("#")[0].strip():
                try:
                    faults.append(Fault.parse(plain))
                except FaultError as error:
                    raise FaultError(f"{text[1:]}:{number}: {error}") from None
    return faults


@dataclass
class Plan:
    """What is to happen to one request."""

    error: int = 0
    hang: bool = False
    delay_s: float = 0.0
    reorder: bool = False
    drop_call: bool = False
    late_call_s: float = 0.0
    corruption: str = ""

    def add(self, fault: Fault) -> None:
        match fault.action:
            case "error":
                self.error = self.error or fault.code
            case "hang":
                self.hang = True
            case "delay":
                self.delay_s += fault.time_s
            case "reorder":
                self.reorder = True
            case "drop-call":
                self.drop_call = True
            case "late-call":
                self.late_call_s = max(self.late_call_s, fault.time_s)
            case "corrupt-used":
                self.corruption = self.corruption or fault.corruption


@dataclass
class Dice:
    """Decides what befalls each request. The same seed and the same requests give the same faults,
    and one fault more or less does not change when the others happen."""

    faults: Sequence[Fault]
    seed: int
    happened: dict[str, int] = field(default_factory=dict)
    """How often each fault happened, by its text."""

    def __post_init__(self) -> None:
        self._counts = [0] * len(self.faults)
        self._chances = [random.Random(f"{self.seed} {fault.text}") for fault in self.faults]

    def throw(self, kind: str, queue: str) -> Plan | None:
        """What is to happen to the next request; None for nothing."""
        plan: Plan | None = None
        for index, fault in enumerate(self.faults):
            if not fault.fits(kind, queue):
                continue
            self._counts[index] += 1
            when = fault.when
            if self._counts[index] not in when:
                continue
            if when.probability < 1 and self._chances[index].random() >= when.probability:
                continue
            plan = plan or Plan()
            plan.add(fault)
            self.happened[fault.text] = self.happened.get(fault.text, 0) + 1
        return plan
