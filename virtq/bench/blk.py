"""What a block device's requests cost: virtq's device and qemu-storage-daemon, under one driver.

Each device is a process of its own, served over vhost-user. The load is a driver half that keeps
requests in flight without the interpreter (`virtq._core.BlkLoad`). A device that polls is stopped
between its windows, so that it does not take a processor from the others.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import virtq
from virtq._core import BlkLoad
from virtq.bench.case import BenchError, Case, Contender, Target, Window
from virtq.bench.peers import storage_daemon
from virtq.drivers.blk import CHUNK_BYTES, BlkDriver
from virtq.errors import PeerGone, RequestError, TransportError
from virtq.testing.process import Process
from virtq.wire.blk import SECTOR_BYTES

DISK_BYTES = 64 << 20
"""Of a disk in memory or in a file: more than the caches near a processor hold."""
QUEUE_SIZE = 256
DEPTHS = (1, 32, 128)
BLOCKS_BYTES = (4096, 128 << 10)
MIXES = {"read": 0, "write": 100, "mixed": 30}
"""Of 100 requests, how many write."""
FILL_BYTES, FILL_DEPTH = 128 << 10, 8
"""Requests that a disk is filled with before it is measured."""
START_S = 10.0
WARM_UP_S = 0.02
"""At the beginning of each window: the device may have to wake up."""
NULL_RATIO = 1.5
FILE_RATIO = 1.2

PEER = "qemu-storage-daemon"
DEEP = 32
"""Requests in flight from which throughput is what matters."""
SMALL_BYTES = 4096

Place = Literal["null", "memory", "file"]
Wait = Literal["poll", "adaptive", "event"]


@dataclass(frozen=True)
class Shape:
    """The requests that the load keeps in flight."""

    block_bytes: int
    depth: int
    write_percent: int
    driver_wait: Literal["poll", "event"] = "poll"


@dataclass(frozen=True)
class Kind:
    """A device: who serves what, and how it waits for requests."""

    name: str
    place: Place
    wait: Wait = "poll"
    peer: bool = False
    offer: str = ""

    def command(self, socket_path: Path, image: Path) -> list[str]:
        """The command line that serves it."""
        if self.peer:
            return storage_daemon.command(
                socket_path,
                image=image if self.place == "file" else None,
                size_bytes=DISK_BYTES,
                polls=self.wait != "event",
            )
        disk = str(image) if self.place == "file" else f"{self.place}:{DISK_BYTES}"
        return [
            *(sys.executable, "-m", "virtq", "serve", "blk", disk),
            *("--socket-path", str(socket_path), "--wait", self.wait),
            *("--queue-size", str(QUEUE_SIZE)),
        ]


class Served:
    """A device in a process of its own under load, as a contender. Its units are requests."""

    def __init__(self, kind: Kind, shape: Shape, pin: tuple[int, int] | None = None) -> None:
        """Starts the process, connects, and fills the disk. `pin`: processors of the driver and of
        the device. Raises TransportError if the device does not come up, and what connecting
        raises."""
        self.name = kind.name
        self._pin = pin
        with ExitStack() as stack:
            folder = Path(tempfile.mkdtemp(prefix="virtq-bench-"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            image, socket_path = folder / "disk.img", folder / "blk.sock"
            if kind.place == "file":
                with image.open("wb") as file:
                    file.truncate(DISK_BYTES)
            self._process = Process(kind.command(socket_path, image))
            stack.callback(self._process.stop)
            self._driver = _connect(self._process, socket_path, kind)
            stack.callback(self._driver.close)
            self._polls = kind.wait == "poll" and not kind.peer
            if pin is not None:
                _bind(self._process.pid, pin[1])
            if kind.place != "null":
                with self._driver.load(block_bytes=FILL_BYTES, depth=FILL_DEPTH) as fill:
                    _check(fill.fill())
                self._driver.flush()
            self._load = stack.enter_context(_load(self._driver, kind, shape))
            if self._polls:
                self._rest()
                stack.callback(self._signal, signal.SIGCONT)
            self._stack = stack.pop_all()

    def window(self, seconds: float) -> Window:
        """Raises PeerGone if the device is, RequestError for a request that failed or was read
        wrong, TimeoutError if nothing comes back."""
        if self._process.returncode is not None:
            raise PeerGone(f"{self.name} ended with status {self._process.returncode}")
        before = os.sched_getaffinity(0)
        if self._pin is not None:
            os.sched_setaffinity(0, {self._pin[0]})
        try:
            if self._polls:
                self._signal(signal.SIGCONT)
            _check(self._load.run(min(WARM_UP_S, seconds)))
            cpu_s = self._cpu_s()
            did = self._load.run(seconds)
            cpu_s = self._cpu_s() - cpu_s
        finally:
            if self._polls:
                self._rest()
            os.sched_setaffinity(0, before)
        _check(did)
        counts = ("kicks", "calls", "used_entries", "batches", "verified")
        percentiles = ("p50_ns", "p99_ns", "p999_ns")
        return Window(
            did["requests"],
            did["seconds"],
            {
                **{name: did[name] for name in (*counts, *percentiles)},
                "cpu_seconds": cpu_s,
                "driver_cpu_seconds": did["cpu_seconds"],
            },
        )

    def close(self) -> None:
        self._stack.close()

    def _rest(self) -> None:
        """Stop the device's process, and see it stopped or ended."""
        self._signal(signal.SIGSTOP)
        seen = os.WSTOPPED | os.WEXITED | os.WNOWAIT
        if self._process.returncode is None:
            os.waitid(os.P_PID, self._process.pid, seen)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            os.kill(self._process.pid, number)

    def _cpu_s(self) -> float:
        """Processor time of the device's process so far, all threads together."""
        # The clock of another process, as the kernel numbers them (its CPUCLOCK_SCHED).
        return time.clock_gettime((~self._process.pid << 3) | 2)


def _load(driver: BlkDriver, kind: Kind, shape: Shape) -> AbstractContextManager[BlkLoad]:
    return driver.load(
        block_bytes=shape.block_bytes,
        depth=shape.depth,
        write_percent=shape.write_percent,
        wait=shape.driver_wait,
        verify="zeroes" if kind.place == "null" else "pattern",
    )


def _check(did: dict[str, object]) -> None:
    """Raises RequestError for the first thing that went wrong."""
    if did["first_failure"] is not None:
        raise RequestError(f"{did['first_failure']} ({did['errors']} failed in all)")


# Processes


def _connect(process: Process, socket_path: Path, kind: Kind) -> BlkDriver:
    """The driver, once the device listens."""
    deadline = time.monotonic() + START_S
    uri = f"vhost-user:{socket_path}"
    while True:
        try:
            return virtq.connect(uri, driver=BlkDriver, queue_size=QUEUE_SIZE, offer=kind.offer)
        except TransportError:
            if process.returncode is None and time.monotonic() < deadline:
                time.sleep(0.01)
                continue
            process.stop()
            said = process.log.strip().splitlines()
            raise TransportError(f"{kind.name} does not come up: {' '.join(said[-1:])}") from None


def _bind(pid: int, processor: int) -> None:
    """All threads of a process; those that come later inherit it."""
    for task in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(task), {processor})


# What is compared


def cases(
    *,
    against: bool = True,
    depths: Sequence[int] = DEPTHS,
    blocks_bytes: Sequence[int] = BLOCKS_BYTES,
    mixes: Sequence[str] = tuple(MIXES),
    pin: tuple[int, int] | None = None,
    quick: bool = False,
) -> list[Case]:
    """What `virtq bench blk` compares. `against`: beside qemu-storage-daemon. `mixes`: of `MIXES`.
    Raises BenchError for what cannot be measured."""
    if against and not storage_daemon.is_installed():
        raise BenchError(f"{PEER} is not installed")
    for mix in mixes:
        if mix not in MIXES:
            raise BenchError(f"{mix!r} is not one of {', '.join(MIXES)}")
    for size in blocks_bytes:
        if not 0 < size <= CHUNK_BYTES or size % SECTOR_BYTES:
            whole = f"whole sectors of {SECTOR_BYTES}, up to {CHUNK_BYTES} bytes"
            raise BenchError(f"a request of {size} bytes is not made of {whole}")
    for depth in depths:
        if not 0 < depth <= QUEUE_SIZE:
            raise BenchError(f"{depth} requests in flight are not 1 to {QUEUE_SIZE}")
    if quick:
        depths = [depth for depth in depths if depth in (1, DEEP)] or depths[:1]
        blocks_bytes, mixes = blocks_bytes[:1], mixes[:2]
    made = []
    for block_bytes in blocks_bytes:
        for depth in depths:
            for mix in mixes:
                shape = Shape(block_bytes, depth, MIXES[mix])
                made += [_case(places, mix, shape, against, pin) for places in _PLACES]
    if 1 in depths:
        asleep = Shape(blocks_bytes[0], 1, 0, "event")
        made.append(_case(_ASLEEP, "read", asleep, against, pin))
    return made


@dataclass(frozen=True)
class _Places:
    """Contenders of a comparison, and what is hoped for."""

    title: str
    kinds: tuple[Kind, ...]
    ratio: float | None
    work: str


_SPLIT = "-RING_PACKED,-IN_ORDER"
_PLACES = (
    _Places(
        "null and memory",
        (
            Kind(f"{PEER} null-co", "null", peer=True),
            Kind("virtq null", "null"),
            Kind("virtq null, split in any order", "null", offer=_SPLIT),
            Kind("virtq memory", "memory"),
        ),
        NULL_RATIO,
        "null devices fill what is read with zeroes and forget what is written; memory is copied.",
    ),
    _Places(
        "file in the page cache",
        (
            Kind(f"{PEER} io_uring", "file", peer=True),
            Kind("virtq file", "file"),
            Kind("virtq file, split in any order", "file", offer=_SPLIT),
        ),
        FILE_RATIO,
        "all of the file is in the page cache.",
    ),
)
_ASLEEP = _Places(
    "file in the page cache, both sides sleep until notified",
    (
        Kind(f"{PEER} io_uring", "file", "event", peer=True),
        Kind(f"{PEER} io_uring, polls 32 us", "file", "adaptive", peer=True),
        Kind("virtq file", "file", "event"),
        Kind("virtq file, polls 50 us", "file", "adaptive"),
    ),
    None,
    "all of the file is in the page cache.",
)


def _case(
    places: _Places, mix: str, shape: Shape, against: bool, pin: tuple[int, int] | None
) -> Case:
    kinds = [kind for kind in places.kinds if against or not kind.peer]
    targets = []
    if against and shape.block_bytes == SMALL_BYTES:
        ours = [kind for kind in kinds if not kind.peer and not kind.offer]
        for kind in ours if shape.depth >= DEEP else ours[:1]:
            targets += _targets(places, kind, shape.depth)
    size = f"{shape.block_bytes >> 10} KiB"
    return Case(
        f"{places.title}: {mix} {size}, depth {shape.depth}",
        _maker(kinds, shape, pin),
        unit="requests",
        parameters={
            "block bytes": shape.block_bytes,
            "depth": shape.depth,
            "writes %": shape.write_percent,
            "driver": "polls" if shape.driver_wait == "poll" else "sleeps",
        },
        targets=targets,
        work=f"Random blocks of {DISK_BYTES >> 20} MiB; {places.work} The driver writes the "
        "payload of every write, and compares what one read in 16 brought.",
    )


def _targets(places: _Places, kind: Kind, depth: int) -> list[Target]:
    """What is hoped for of one of ours beside the first, which is the peer's."""
    peer = places.kinds[0].name
    if depth >= DEEP and places.ratio is not None:
        # A disk in a file leaves the work to the kernel, which is the same on both sides.
        cpu = [Target(kind.name, peer, 1.0, "cpu_seconds")] if kind.place != "file" else []
        return [Target(kind.name, peer, places.ratio), *cpu]
    if depth == 1 and kind.place == "file":
        return [Target(kind.name, peer, 1.0, "p50_ns")]
    return []


def _maker(
    kinds: Sequence[Kind], shape: Shape, pin: tuple[int, int] | None
) -> Callable[[], Sequence[Contender]]:
    def make() -> Sequence[Contender]:
        with ExitStack() as stack:
            contenders = []
            for kind in kinds:
                contenders.append(Served(kind, shape, pin))
                stack.callback(contenders[-1].close)
            stack.pop_all()
            return contenders

    return make
