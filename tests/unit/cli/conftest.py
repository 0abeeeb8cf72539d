"""Disks for the tests of the commands."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.cli.support import MIB, served


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """16 MiB: random bytes in the second one and the last half, else zeroes."""
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.seek(MIB)
        file.write(os.urandom(MIB))
        file.seek(8 * MIB)
        file.write(os.urandom(8 * MIB))
    return path


@pytest.fixture
def disk(tmp_path: Path, image: Path) -> Iterator[str]:
    """The URI of a served disk: what is in `image`."""
    path = tmp_path / "disk.sock"
    with served("blk", image, "--socket-path", path, "--queues", "2", "--serial", "serial 7"):
        yield f"vhost-user:{path}"
