"""What busybox has no applet for: programs of these tests in C, freshly compiled."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

import pytest

SOURCES: Final = Path(__file__).parents[1]
FLAGS: Final = ("-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror", "-static", "-s")


@functools.cache
def guest_tool(name: str) -> bytes:
    """A static executable made of that source; skips without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to make the guest's tool with")
    with tempfile.TemporaryDirectory(prefix="virtq-tool-") as folder:
        target = Path(folder) / "tool"
        subprocess.run([compiler, *FLAGS, "-o", target, SOURCES / name], check=True, timeout=60)
        return target.read_bytes()
