"""A guest's barrier is one for whoever shares its memory: without that no notification is safe.

As QEMU emulates a processor that is alone it is none (docs/findings.md, 58). What the guests of
these tests do about it is tested; this shows both:

    python -m tests.interop.test_barrier
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Final

import pytest

from .peers.availability import require
from .peers.guest import GuestConfig, LinuxGuest
from .peers.guest_tool import guest_tool

pytestmark = [pytest.mark.interop, pytest.mark.alone]

ROUNDS: Final = 1_000_000
"""Where there is no barrier 3 to 3000 of them show it; they take some seconds."""
LIMIT_S: Final = 20


def rounds_that_neither_saw(folder: Path, *args: str, qemu: str = "qemu") -> tuple[int, int]:
    """How many rounds neither side saw the other's word in, and of how many."""
    program = folder / "barrier"
    program.write_bytes(guest_tool("barrier_tool.c"))
    program.chmod(0o755)
    script, files = "/data/barrier driver\n", {"barrier": program.read_bytes()}
    with LinuxGuest(GuestConfig(script, args, [], files, qemu=qemu)) as guest:
        address = guest.wait_for(r"at ([0-9a-f]+)\n")[1].decode()
        descriptors = Path(f"/proc/{guest.pid}/fd").iterdir()
        (memory,) = (fd for fd in descriptors if "memfd:memory-backend" in str(fd.readlink()))
        device = [program, "device", memory, address, str(ROUNDS), str(LIMIT_S)]
        played = subprocess.run(device, check=True, capture_output=True, timeout=2 * LIMIT_S)
        guest.result().check()
    neither, rounds = map(int, played.stdout.split())
    return neither, rounds


@pytest.mark.parametrize("cpus", [1, 2])
def test_of_two_that_write_and_then_look_one_sees_the_other(tmp_path: Path, cpus: int) -> None:
    require("qemu")
    args = [] if cpus == 1 else ["-smp", "2"]
    neither, rounds = rounds_that_neither_saw(tmp_path, *args)
    assert rounds > 0
    assert neither == 0


def main() -> None:
    for qemu in ("qemu", "qemu-newest"):
        for smp in ("1,maxcpus=1", "1,maxcpus=2"):
            with tempfile.TemporaryDirectory() as folder:
                neither, rounds = rounds_that_neither_saw(Path(folder), "-smp", smp, qemu=qemu)
            print(f"{qemu:12} -smp {smp}: neither saw the other in {neither} of {rounds} rounds")


if __name__ == "__main__":
    main()
