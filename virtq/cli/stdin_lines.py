"""Standard input, line by line, beside a device that is being served."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

from virtq.cli.output import say

_CHUNK_BYTES = 65536
_LINE_BYTES_MAX = 4096
_STDIN_FD = 0


def follow_lines(take: Callable[[str], None]) -> None:
    """Call `take` with each line of standard input, from a thread of its own, until it ends.

    Empty lines and those that begin with `#` are passed over. A ValueError that `take` raises is
    printed, and the next line is taken."""
    if sys.stdin is None:
        return  # closed from the start: the number may be anybody's by now
    # By the descriptor: a thread that sits in sys.stdin would keep the interpreter from ending.
    threading.Thread(target=_follow, args=(take,), name="virtq-stdin", daemon=True).start()


def _follow(take: Callable[[str], None]) -> None:
    rest = b""
    while chunk := _read():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            _give(take, line)
        if len(rest) > _LINE_BYTES_MAX:
            say(f"virtq: a line of standard input has more than {_LINE_BYTES_MAX} bytes: ignored")
            rest = b""
    _give(take, rest)


def _read() -> bytes:
    try:
        return os.read(_STDIN_FD, _CHUNK_BYTES)
    except OSError:  # there is no standard input
        return b""


def _give(take: Callable[[str], None], line: bytes) -> None:
    text = line.decode(errors="replace").strip()
    if not text or text.startswith("#"):
        return
    try:
        take(text)
    except ValueError as error:
        say(f"virtq: {text!r}: {error}")
