"""Waiting that a busy machine does not shorten.

What is waited for is done by another process. If this one is not given a processor for a while, the
other one was hardly better off; so time counts only as far as somebody was there to look.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

POLL_S = 0.0001
"""Between two looks."""
_LONGEST_S = 0.002
"""What one turn counts at most, however long it took."""
_STRETCH = 10
"""In real time no wait is longer than so many times what was asked for."""


def turns(seconds: float, poll_s: float = POLL_S) -> Iterator[None]:
    """A turn for each look, for so many seconds; there is always a last look in the end."""
    longest = max(_LONGEST_S, 2 * poll_s)
    last = time.monotonic()
    end, counted = last + _STRETCH * seconds, 0.0
    while counted < seconds and last < end:
        yield
        time.sleep(poll_s)
        now = time.monotonic()
        counted += min(now - last, longest)
        last = now
    yield
