"""What a measurement ran on: without it, no number means anything."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import numpy as np

CPU_INFO = Path("/proc/cpuinfo")
MEMORY_INFO = Path("/proc/meminfo")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
PRODUCT = Path("/sys/class/dmi/id/product_name")


@dataclass(frozen=True)
class Machine:
    """Processor, kernel, versions."""

    cpu: str
    cores: int
    """Those that this process may use."""
    memory_bytes: int
    kernel: str
    virtual: bool
    """Whether it is a virtual machine, whose host moves its cores about."""
    governor: str | None
    """Of the clock frequency; None where nothing tells."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of virtq, Python and numpy, and of the peers that took part."""

    @property
    def title(self) -> str:
        """On one line."""
        kind = " (virtual machine)" if self.virtual else ""
        governor = f", governor {self.governor}" if self.governor else ""
        return f"{self.cpu}, {self.cores} cores{kind}{governor}, Linux {self.kernel}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(**value)


def describe(peers: Mapping[str, str] | None = None) -> Machine:
    """This machine. `peers`: versions of other programs that take part."""
    cpu = _cpu_info()
    return Machine(
        cpu=_cpu_name(cpu),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=_memory_bytes(),
        kernel=platform.release(),
        virtual="hypervisor" in cpu.get("flags", "").split() or _is_virtual_product(),
        governor=_text(GOVERNOR),
        versions={
            "virtq": _package_version("virtq"),
            "python": platform.python_version(),
            "numpy": np.__version__,
            **(peers or {}),
        },
    )


def now() -> str:
    """The date and time, to the second, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip() or None
    except OSError:
        return None


def _cpu_info() -> dict[str, str]:
    """The first processor's lines."""
    first = (_text(CPU_INFO) or "").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _cpu_name(info: Mapping[str, str]) -> str:
    """The model's name; on machines that have numbers instead, those."""
    if name := info.get("model name"):
        return name
    numbers = [info[key] for key in ("cpu implementer", "cpu part") if key in info]
    return " ".join([platform.machine(), *numbers])


def _memory_bytes() -> int:
    for line in (_text(MEMORY_INFO) or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def _is_virtual_product() -> bool:
    product = (_text(PRODUCT) or "").lower()
    return any(word in product for word in ("kvm", "virtual", "qemu", "bochs"))


def _package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
