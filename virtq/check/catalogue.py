"""The requirements of VIRTIO 1.4, each with an id (`requirements.toml`, which tells its origin)."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Requirement:
    """One sentence of the specification, in our words.

    `level`: MUST, SHOULD, MAY and so on, or DESCRIPTIVE for a statement without such a word.
    `party`: driver, device or both. `observable`: yes, partly or no, for a peer that sees ring
    memory, registers and notifications."""

    id: str
    section: str
    level: str
    party: str
    observable: str
    text: str

    @property
    def area(self) -> str:
        return self.id.partition(".")[0]


@cache
def requirements() -> Mapping[str, Requirement]:
    """All of them by id."""
    data = tomllib.loads(files(__package__).joinpath("requirements.toml").read_text())
    words = {"observable": "yes", "partly": "partly", "no": "no"}
    entries = [*data["requirement"], *data["descriptive"]]
    return {
        entry["id"]: Requirement(
            entry["id"],
            entry["section"],
            entry["level"],
            entry["party"],
            words[entry["blackbox"]],
            entry["text"],
        )
        for entry in entries
    }
