"""For what there is no event for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

LIMIT_S: Final = 30.0
POLL_S: Final = 0.01


def wait_until(holds: Callable[[], bool]) -> None:
    """Looks again and again; fails when it took too long."""
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(POLL_S)
