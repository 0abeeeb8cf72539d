"""What a run leaves behind, and its form as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from virtq.bench.case import BenchError
from virtq.bench.comparison import Comparison
from virtq.bench.machine import Machine

SCHEMA = 1
"""Of the JSON; counts up when a field changes its meaning or goes away."""


@dataclass(frozen=True)
class Result:
    """One run of `virtq bench`."""

    bench: str
    """Which: rings, net, blk, python or scale."""
    command: str
    """How to repeat it."""
    started: str
    """Date and time in UTC."""
    seconds: float
    machine: Machine
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...] = ()
    """What a reader has to know, such as what was not available."""

    @property
    def errors(self) -> list[str]:
        """Of contenders that did not finish."""
        return [
            f"{comparison.title}: {name}: {error}"
            for comparison in self.comparisons
            for name, error in comparison.errors.items()
        ]

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "bench": self.bench,
            "command": self.command,
            "started": self.started,
            "seconds": round(self.seconds, 2),
            "machine": self.machine.as_json(),
            "notes": list(self.notes),
            "comparisons": [comparison.as_json() for comparison in self.comparisons],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Raises BenchError for what is not a result, or one of another schema."""
        try:
            if value["schema"] != SCHEMA:
                raise BenchError(f"a result of schema {value['schema']}, not {SCHEMA}")
            return cls(
                str(value["bench"]),
                str(value["command"]),
                str(value["started"]),
                float(value["seconds"]),
                Machine.from_json(value["machine"]),
                tuple(Comparison.from_json(one) for one in value["comparisons"]),
                tuple(str(note) for note in value["notes"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BenchError(f"not a result of virtq bench: {error!r}") from error
