"""Waiting that a busy machine does not shorten.

What is waited for is done by another process. If this one is not given a processor for a while, the
other one was hardly better off; so time counts only as far as somebody was there to look.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

PATIENCE_S = 2.0
"""How long what is judged may take, unless told otherwise."""
MOMENT_S = 0.02
"""How long it is looked at whether anything comes that must not."""
POLL_S = 0.0001
"""Between two looks, at first."""
_SLOW_S = 0.001
"""Between two looks when it has taken long already: what is long in coming need not be seen at
once, and whoever does it may need the processor."""
_AT_FIRST_S = 0.02
LONGEST_S = 0.002
"""What one turn counts at most, however long it took."""
_STRETCH = 10
"""In real time no wait is longer than so many times what was asked for."""


def turns(seconds: float) -> Iterator[None]:
    """A turn for each look, for so many seconds; there is always a last look in the end."""
    began = time.monotonic()
    for _ in counted(seconds):
        yield
        time.sleep(POLL_S if time.monotonic() - began < _AT_FIRST_S else _SLOW_S)
    yield


def counted(seconds: float, longest_s: float = LONGEST_S) -> Iterator[None]:
    """Turns for so many seconds, of which each counts `longest_s` at most: whoever takes them waits
    in each for a moment."""
    last = time.monotonic()
    end, spent = last + _STRETCH * seconds, 0.0
    while spent < seconds and last < end:
        yield
        now = time.monotonic()
        spent += min(now - last, longest_s)
        last = now
