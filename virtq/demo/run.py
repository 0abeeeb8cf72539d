"""The demo as a whole: starts the second process, drives every kind of ring, cleans up."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtq.demo.drive import Work, drive_disk, drive_net
from virtq.demo.server import disk_name, port_names
from virtq.errors import VirtqError
from virtq.features import RingKind

STOP_TIMEOUT_S = 5.0
TURNS = 6
"""How often everything is driven. The fastest turn counts: what else goes on slows some down."""

DEVICES: dict[str, Callable[[Path, RingKind, float, Work], None]] = {
    "disk": drive_disk,
    "net": drive_net,
}
"""What drives each of the demo's devices, by name."""


class DemoError(VirtqError):
    """The second process did not start, or has died."""


@dataclass(frozen=True)
class Outcome:
    """How one device did with one kind of ring."""

    device: str
    kind: RingKind
    work: Work
    buffers: int
    """As the device counted them."""
    kicks: int
    """Notifications that the driver sent."""
    calls: int
    """Notifications that the device sent."""
    used_entries: int
    """Used entries that the device wrote."""
    error: str | None = None

    @property
    def buffers_per_second(self) -> float:
        """Of the fastest turn."""
        return self.work.best_rate

    def per_1000(self, count: int) -> float:
        """A count for every 1000 buffers."""
        return 1000 * count / self.buffers if self.buffers else 0.0

    def as_json(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "ring": str(self.kind),
            "verified": self.error is None,
            "error": self.error,
            "bytes": self.work.bytes,
            "buffers": self.buffers,
            "seconds": round(self.work.seconds, 4),
            "buffers_per_second": round(self.buffers_per_second),
            "kicks_per_1000": round(self.per_1000(self.kicks), 2),
            "calls_per_1000": round(self.per_1000(self.calls), 2),
            "used_entries_per_1000": round(self.per_1000(self.used_entries), 2),
        }


def run_demo(
    seconds: float, progress: Callable[[int, int, str], None], *, turns: int = TURNS
) -> list[Outcome]:
    """Drive every device with every kind of ring, for about `seconds` in all. `progress` is told
    how many of how many steps are done, and what comes. Raises DemoError.

    The second process and its files are gone when this ends, also if it is interrupted.
    """
    cases = [(device, kind) for kind in RingKind for device in DEVICES]
    steps = [case for _ in range(turns) for case in cases]
    works = {case: Work() for case in cases}
    errors: dict[tuple[str, RingKind], str] = {}
    with tempfile.TemporaryDirectory(prefix="virtq-demo-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with _server(folder) as counters:
            for done, (device, kind) in enumerate(steps):
                progress(done, len(steps), f"{device}, {kind.title}")
                if (device, kind) in errors:
                    continue
                turn = Work()
                try:
                    DEVICES[device](folder, kind, seconds / len(steps), turn)
                except (VirtqError, OSError) as error:
                    errors[device, kind] = str(error) or type(error).__name__
                works[device, kind].add(turn)
            totals = counters()
    return [
        _outcome(device, kind, works[device, kind], totals, errors.get((device, kind)))
        for device, kind in cases
    ]


def _outcome(device: str, kind: RingKind, work: Work, totals: Any, error: str | None) -> Outcome:
    names = (disk_name(kind),) if device == "disk" else port_names(kind)
    queues = [c for name in names for q, c in totals[name].items() if q != "controlq"]
    buffers, calls, used_entries = (
        sum(queue[key] for queue in queues) for key in ("buffers", "calls_sent", "used_entries")
    )
    if error is None and used_entries != work.used_entries:
        error = f"the device wrote {used_entries} used entries, the driver read {work.used_entries}"
    return Outcome(device, kind, work, buffers, work.kicks, calls, used_entries, error)


@contextmanager
def _server(folder: Path) -> Iterator[Callable[[], Any]]:
    """The second process while it runs; gives a function that asks it for its counters."""
    log = folder / "log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "virtq.demo.server", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )

    def line() -> str:
        assert process.stdout is not None
        answer = process.stdout.readline()
        if not answer:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise DemoError(f"the second process has ended{': ' if last else ''}{''.join(last)}")
        return answer

    def counters() -> Any:
        assert process.stdin is not None
        try:
            print("counters", file=process.stdin, flush=True)
        except BrokenPipeError:
            line()
        return json.loads(line())

    try:
        line()
        yield counters
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.close()
        process.wait(STOP_TIMEOUT_S)
    except (BrokenPipeError, subprocess.TimeoutExpired):
        process.kill()
        process.wait()
    finally:
        process.stdout.close()
