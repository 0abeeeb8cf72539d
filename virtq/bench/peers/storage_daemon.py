"""qemu-storage-daemon with a vhost-user-blk export.

Its rings are split, with EVENT_IDX and indirect descriptors; it offers neither the packed layout
nor IN_ORDER. The export runs in an I/O thread, which polls for up to 32 microseconds before it
sleeps (QEMU's default); without one, in the main loop, which sleeps at once.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

PROGRAM = "qemu-storage-daemon"


def is_installed() -> bool:
    """Whether there is a daemon to measure."""
    return shutil.which(PROGRAM) is not None


def version() -> str | None:
    """What it says it is, such as `10.0.2`; None if there is none."""
    if not is_installed():
        return None
    said = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, timeout=10)
    words = said.stdout.split()
    return words[words.index("version") + 1] if "version" in words[:-1] else None


def command(
    socket_path: Path, *, image: Path | None = None, size_bytes: int = 0, polls: bool = True
) -> list[str]:
    """The command line that exports `image` (through io_uring and the page cache), or else so many
    bytes of zeroes, at `socket_path`. `polls`: look for work for a while before sleeping."""
    node = (
        f"driver=null-co,node-name=disk,size={size_bytes},read-zeroes=on"
        if image is None
        else f"driver=file,node-name=disk,filename={image},aio=io_uring,discard=unmap"
    )
    export = f"vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={socket_path}"
    return [
        PROGRAM,
        *(("--object", "iothread,id=thread") if polls else ()),
        *("--blockdev", node),
        *("--export", f"{export},writable=on{',iothread=thread' if polls else ''}"),
    ]
