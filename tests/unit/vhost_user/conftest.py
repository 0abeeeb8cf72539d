"""A device, and a back-end that serves it; whatever a test opens is closed in the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.vhost_user.support import FakeDevice, Served, no_leaks


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


@pytest.fixture
def served(device: FakeDevice, tmp_path: Path) -> Iterator[Served]:
    with no_leaks(), Served(device, str(tmp_path / "s")) as served:
        yield served
