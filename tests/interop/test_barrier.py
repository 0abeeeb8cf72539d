"""A guest's barrier is one for whoever shares its memory: without that no notification is safe.

As QEMU emulates a processor that is alone it is none (docs/findings.md, 58). What the guests of
these tests do about it is tested; this shows both:

    python -m tests.interop.test_barrier
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from .peers.availability import require
from .peers.guest import GuestConfig, LinuxGuest
from .peers.guest_tool import guest_tool

pytestmark = [pytest.mark.interop, pytest.mark.alone]

ROUNDS: Final = 1_000_000
"""Where there is no barrier some hundred of them or more show it; they take two seconds."""
LIMIT_S: Final = 20
SCRIPT: Final = "/data/barrier driver\n"


def rounds_that_neither_saw(folder: Path, config: GuestConfig) -> tuple[int, int]:
    """How many rounds neither side saw the other's word in, and of how many."""
    tool = guest_tool("barrier_tool.c")
    program = folder / "barrier"
    program.write_bytes(tool)
    program.chmod(0o755)
    with LinuxGuest(replace(config, modules=[], files={"barrier": tool})) as guest:
        address = guest.wait_for(r"at ([0-9a-f]+)\n")[1].decode()
        device = [program, "device", memory_of(guest), address, str(ROUNDS), str(LIMIT_S)]
        played = subprocess.run(device, check=True, capture_output=True, timeout=2 * LIMIT_S)
        guest.result().check()
    neither, rounds = map(int, played.stdout.split())
    return neither, rounds


def memory_of(guest: LinuxGuest) -> Path:
    """The file that the guest's memory is."""
    for descriptor in Path(f"/proc/{guest.pid}/fd").iterdir():
        # One that is closed meanwhile is another.
        with contextlib.suppress(FileNotFoundError):
            if "memfd:memory-backend" in str(descriptor.readlink()):
                return descriptor
    raise AssertionError(f"QEMU has no memory to share\n{guest.qemu_log}")


@pytest.mark.parametrize("cpus", [1, 2])
def test_of_two_that_write_and_then_look_one_sees_the_other(tmp_path: Path, cpus: int) -> None:
    require("qemu")
    neither, rounds = rounds_that_neither_saw(tmp_path, GuestConfig(SCRIPT, cpus=cpus))
    assert rounds > 0
    assert neither == 0


def main() -> None:
    for qemu in ("qemu", "qemu-newest"):
        for smp in ("1,maxcpus=1", "1,maxcpus=2"):
            config = GuestConfig(SCRIPT, ["-smp", smp], qemu=qemu)
            with tempfile.TemporaryDirectory() as folder:
                neither, rounds = rounds_that_neither_saw(Path(folder), config)
            print(f"{qemu:12} -smp {smp}: neither saw the other in {neither} of {rounds} rounds")


if __name__ == "__main__":
    main()
