"""The implementations that virtq is measured beside: what has to be installed, and its version."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

from virtq.bench.case import BenchError

VERSION_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Peer:
    """A program that takes part in a bench."""

    name: str
    program: str
    package: str
    """What it comes with on Debian."""
    arguments: tuple[str, ...]
    """That make it say its version."""
    pattern: str
    """Where the version is in what it says."""

    def require(self) -> dict[str, str]:
        """Its version, by its name. Raises BenchError if it is not installed, with what to
        install."""
        path = shutil.which(self.program)
        if path is None:
            raise BenchError(
                f"{self.name} is not installed: there is no {self.program} "
                f"(on Debian it is in the package {self.package})"
            )
        return {self.name: self._version(path)}

    def _version(self, path: str) -> str:
        try:
            said = subprocess.run(
                [path, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=VERSION_TIMEOUT_S,
            ).stdout
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BenchError(f"{self.program} does not run: {error}") from error
        found = re.search(self.pattern, said)
        return found[1] if found else "unknown"


PEERS = {
    "dpdk": Peer(
        "dpdk", "dpdk-testpmd", "dpdk-dev", ("-v", "--help"), r"RTE Version: 'DPDK ([^']+)'"
    ),
    "qemu-storage-daemon": Peer(
        "qemu-storage-daemon",
        "qemu-storage-daemon",
        "qemu-utils",
        ("--version",),
        r"version (\S+)",
    ),
}
"""By the name that `--against` takes."""
