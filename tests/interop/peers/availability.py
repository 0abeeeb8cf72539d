"""What `scripts/peers.sh` has put on this machine, read from `.peers/manifest.json`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from virtq.testing.parts import GuestParts, LinuxKernel

__all__ = ["LinuxKernel", "guest_parts", "linux", "missing", "program", "require", "version"]

ROOT: Final = Path(__file__).resolve().parents[3]
PEERS_DIR: Final = ROOT / ".peers"


@cache
def _manifest() -> Mapping[str, Mapping[str, Any]]:
    path = PEERS_DIR / "manifest.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _which(name: str) -> str | None:
    """A program by its name, or by its path below the repository."""
    return shutil.which(ROOT / name if "/" in name else name)


def missing(peer: str) -> str | None:
    """Why the peer cannot be used, or None if it can."""
    entry = _manifest().get(peer)
    if entry is None:
        return f"{peer} is not in .peers/manifest.json: run scripts/peers.sh"
    if peer == "linux":
        image = ROOT / entry["kernel"]
        return None if image.exists() else f"guest kernel {entry['kernel']} is missing"
    found = _which(entry["program"])
    return None if found else f"{entry['program']} is not on PATH: run scripts/peers.sh"


def require(peer: str) -> None:
    """Skips the calling test, with the reason, when the peer is missing.

    Peers: "qemu", "qemu-newest", "qemu-storage-daemon", "dpdk", "busybox", "linux".
    """
    reason = missing(peer)
    if reason is not None:
        pytest.skip(reason, allow_module_level=True)


def program(peer: str) -> Path:
    """The peer's program; skips when the peer is missing."""
    require(peer)
    found = _which(_manifest()[peer]["program"])
    assert found is not None
    return Path(found)


def version(peer: str) -> str:
    """The peer's version, as its package gives it; skips when the peer is missing."""
    require(peer)
    return str(_manifest()[peer]["version"])


def linux() -> LinuxKernel:
    """The guest kernel; skips when it is missing."""
    require("linux")
    entry = _manifest()["linux"]
    return LinuxKernel(
        version=entry["version"],
        image=ROOT / entry["kernel"],
        modules_dir=ROOT / entry["modules"],
        load_order={name: tuple(chain) for name, chain in entry["load_order"].items()},
    )


def guest_parts() -> GuestParts:
    """What a guest is made of; skips when a part is missing."""
    cache = PEERS_DIR / "initramfs"
    return GuestParts(program("qemu"), program("busybox"), linux(), cache, other=program)
