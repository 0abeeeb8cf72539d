"""The tool that a guest asks its I2C buses, GPIO chips and input devices with, freshly compiled."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

import pytest

SOURCE: Final = Path(__file__).parents[1] / "guest_tool.c"
FLAGS: Final = ("-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror", "-static", "-s")


@functools.cache
def guest_tool() -> bytes:
    """A static executable made of `guest_tool.c`; skips without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to make the guest's tool with")
    with tempfile.TemporaryDirectory(prefix="virtq-tool-") as folder:
        target = Path(folder) / "tool"
        subprocess.run([compiler, *FLAGS, "-o", target, SOURCE], check=True, timeout=60)
        return target.read_bytes()
