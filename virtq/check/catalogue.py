"""The requirements of VIRTIO 1.4, each with an id (`requirements.toml`, which tells its origin)."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


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
    data = _load("requirements.toml")
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


@cache
def statements() -> Mapping[str, Requirement]:
    """What the vhost-user protocol asks of a back-end, by id; no part of VIRTIO, and counted apart
    (`vhost-user.toml`)."""
    return {
        entry["id"]: Requirement(
            entry["id"], entry["section"], entry["level"], "device", "yes", entry["text"]
        )
        for entry in _load("vhost-user.toml")["statement"]
    }


@cache
def known() -> Mapping[str, Requirement]:
    """All that a case can check, by id."""
    return {**requirements(), **statements()}


def _load(name: str) -> dict[str, Any]:
    return tomllib.loads(files(__package__).joinpath(name).read_text())
