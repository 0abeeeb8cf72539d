#!/usr/bin/env python3
"""Judge what others wrote, and put the table into docs/findings.md: no verdict there is typed.

    .venv/bin/python scripts/judge.py                              # everything, 20 times: long
    .venv/bin/python scripts/judge.py --repeat 1 --only 'qemu-*'   # some of it, once
    .venv/bin/python scripts/judge.py --for 170                    # begin nothing after 170 s
    .venv/bin/python scripts/judge.py --fill docs/findings.md      # and write the table
    .venv/bin/python scripts/judge.py --repeat 0 --fill docs/findings.md    # from what is there

What each run came to is kept as JSON, target/judge/SUBJECT/SEED.json; what is there is not run
again (`--again` throws it away), so it can be ended at any time and goes on where it was. Every
fourth run has a busy process for each processor beside it: a verdict must not depend on that.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import click

from virtq.bench.peers import storage_daemon
from virtq.bench.peers.hugepages import reserve

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "findings.md"
RESULTS = ROOT / "target" / "judge"
QEMU, TESTPMD = "qemu-system-x86_64", "dpdk-testpmd"
NEWEST = ".peers/newest/qemu-system-x86_64"
RUN_TIMEOUT_S = 900.0
"""A run ends by itself; this is for one that does not, which is told as such."""
VERDICTS = ("pass", "fail", "hung", "crashed", "skipped")
BAD = VERDICTS[1:4]
LOADED_EVERY = 4
DISK_BYTES = 64 << 20
PACKET_MEMORY_MIB = 256
_SIOCETHTOOL, _ETHTOOL_STXCSUM = 0x8946, 0x17

Peer = Callable[[Path], contextlib.AbstractContextManager[list[str]]]
"""Starts a peer with files in a folder; gives the words for `virtq check`."""


class NotJudged(Exception):
    """A run that came to nothing; the text says why."""


@dataclass(frozen=True)
class Subject:
    """What is judged: its name here and in the table, and how it comes to the judge. `needs`: a
    program, on the path or below the repository."""

    name: str
    peer: str
    bus: str
    start: Peer
    needs: str
    alone: bool = False
    """Whether it polls: no other run beside it."""


@contextlib.contextmanager
def qtest(device: str, query: str, folder: Path) -> Iterator[list[str]]:
    """QEMU's own device; the judge starts QEMU."""
    yield [f"qtest:{device},packed=on,in_order=on{query}"]


@contextlib.contextmanager
def export(folder: Path) -> Iterator[list[str]]:
    """The daemon with a disk of zeroes, in an image that vanishes with the folder."""
    image, path = folder / "disk.img", folder / "disk.sock"
    with open(image, "wb") as file:
        file.truncate(DISK_BYTES)
    command = shlex.join(storage_daemon.command(path, image=image))
    yield [f"vhost-user:{path}?device=blk", "--start", f"exec {command}"]


@contextlib.contextmanager
def vhost_port(folder: Path) -> Iterator[list[str]]:
    """testpmd with a vhost port that throws away what it is sent."""
    path = folder / "net.sock"
    command = _testpmd(folder, f"--vdev net_vhost0,iface={path}", "rxonly")
    yield [f"vhost-user:{path}?device=net&queues=2", "--start", f"rm -f {path}; {command}"]


@contextlib.contextmanager
def vhost_port_on_a_wire(folder: Path) -> Iterator[list[str]]:
    """testpmd between a vhost port and a network interface: what can only be seen of frames. It
    passes them on as they are, so no driver may leave their segmentation to it (`tso=0`)."""
    path = folder / "net.sock"
    with wire() as (here, there):
        devices = f"--vdev net_vhost0,iface={path},tso=0 --vdev net_af_packet0,iface={there}"
        command = _testpmd(folder, devices, "io")
        words = [f"vhost-user:{path}?device=net&queues=2", "--start", f"rm -f {path}; {command}"]
        yield [*words, "--only", "net_*", "--port", f"packet:{here}"]


def _testpmd(folder: Path, devices: str, mode: str, memory: str = "--no-huge --no-shconf") -> str:
    """In memory of the usual kind, unless told otherwise: a vhost port shares none of its own. Its
    input, which it ends with, is the judge's, and no shell stands between: how it ends is seen at
    once. Its threads may go to any processor: on one that is busy they would not run for seconds,
    and be taken for hung."""
    last = (os.cpu_count() or 1) - 1
    return (
        f"exec env RUNTIME_DIRECTORY={folder} dpdk-testpmd --lcores '(0,1)@(0-{last})'"
        f" -m {PACKET_MEMORY_MIB} {memory} --no-pci --no-telemetry"
        f" --file-prefix=virtq-judge {devices} --"
        f" --total-num-mbufs=8192 --forward-mode={mode} --auto-start"
    )


@contextlib.contextmanager
def wire() -> Iterator[tuple[str, str]]:
    """The two ends of a pair of network interfaces. What is sent at one is a whole frame at the
    other: no checksum is left to whoever receives it."""
    here, there = (f"vq{os.getpid()}{end}" for end in "ab")
    ip("link", "add", here, "type", "veth", "peer", "name", there)
    try:
        for name in (here, there):
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
            without_checksum_offload(name)
            ip("link", "set", name, "up")
        yield here, there
    finally:
        ip("link", "del", here)


def ip(*words: str) -> None:
    """Raises NotJudged, without the right to do it too."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise NotJudged(f"ip {' '.join(words)}: {done.stderr.strip()}")


def without_checksum_offload(interface: str) -> None:
    """Its kernel finishes checksums before a frame leaves."""
    value = ctypes.create_string_buffer(struct.pack("II", _ETHTOOL_STXCSUM, 0))
    request = struct.pack("16sP", interface.encode(), ctypes.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCETHTOOL, request)


@contextlib.contextmanager
def guest(device: str, folder: Path) -> Iterator[list[str]]:
    """A Linux guest that keeps its driver at work; QEMU is the front-end."""
    words = [sys.executable, "-m", "tests.interop.peers.loaded_guest", device]
    start = f"exec {shlex.join(words)} {{socket}}"
    yield ["--driver", f"vhost-user:{folder / 'd.sock'}", "--type", device, "--start", start]


@contextlib.contextmanager
def virtio_user(options: str, folder: Path) -> Iterator[list[str]]:
    """testpmd with a virtio-user port that sends all the time, and takes what comes."""
    port = (
        "--vdev net_virtio_user0,path={socket},queues=1,queue_size=256,packed_vq={packed},"
        f"in_order={{in_order}}{options}"
    )
    memory = "--in-memory --single-file-segments --force-max-simd-bitwidth=512"
    start = _testpmd(folder, port, "flowgen", memory)
    with reserve(PACKET_MEMORY_MIB):
        yield ["--driver", f"vhost-user:{folder / 'd.sock'}", "--type", "net", "--start", start]


def _qemu(qemu: str, title: str, needs: str) -> Iterator[Subject]:
    option = "" if needs == QEMU else f"qemu={needs}"
    for device in ("blk", "net", "rng", "console"):
        for bus, suffix in (("pci", "pci"), ("mmio", "device")):
            model = f"virtio-{'serial' if device == 'console' else device}-{suffix}"
            start = partial(qtest, model, f"?{option}" if option else "")
            yield Subject(f"{qemu}-{device}-{bus}", title.format(device), bus, start, needs)


def _small() -> Iterator[Subject]:
    """In order, QEMU 10.0 writes beyond what it has for queues as large as its memory-mapped
    registers say they may be: what is left to see of it with smaller ones."""
    for device, model, size in (("rng", "rng", 8), ("console", "serial", 32)):
        yield Subject(
            f"qemu-{device}-mmio-small",
            f"QEMU 10.0, {device}, `queue_size={size}`",
            "mmio",
            partial(qtest, f"virtio-{model}-device", f"?queue_size={size}"),
            QEMU,
        )


SUBJECTS = (
    *_qemu("qemu", "QEMU 10.0, {}", QEMU),
    *_small(),
    *_qemu("newest", "QEMU 11.1, {}", NEWEST),
    Subject("qsd", "qemu-storage-daemon 10.0, blk", "vhost-user", export, "qemu-storage-daemon"),
    Subject("dpdk", "DPDK 22.11 vhost, net", "vhost-user", vhost_port, TESTPMD, alone=True),
    Subject(
        "dpdk-wire",
        "DPDK 22.11 vhost, net, `--port`",
        "vhost-user",
        vhost_port_on_a_wire,
        TESTPMD,
        alone=True,
    ),
    *(
        Subject(f"linux-{device}", f"Linux 7.3 driver, {device}", "vhost-user", start, needs)
        for device, needs in (("blk", QEMU), ("net", QEMU), ("rng", QEMU), ("console", NEWEST))
        for start in (partial(guest, device),)
    ),
    *(
        Subject(
            f"virtio-user{name}",
            f"DPDK 22.11 virtio-user driver, net{options.replace(',', ', ')}",
            "vhost-user",
            partial(virtio_user, options),
            TESTPMD,
            alone=True,
        )
        for name, options in (
            ("", ""),
            ("-small", ",mrg_rxbuf=0"),
            ("-vectorized", ",mrg_rxbuf=0,vectorized=1"),
        )
    ),
)


def missing(subject: Subject) -> bool:
    return shutil.which(ROOT / subject.needs if "/" in subject.needs else subject.needs) is None


# Running


def stored(subject: Subject, seed: int) -> Path:
    return RESULTS / subject.name / f"{seed}.json"


def judge(subject: Subject, seed: int, *, loaded: bool) -> str:
    """One run, kept; what it came to in a few words. Raises NotJudged."""
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="virtq-judge-")))
        words = stack.enter_context(subject.start(folder))
        if loaded:
            stack.enter_context(LOAD)
        command = [sys.executable, "-m", "virtq", "check", *words]
        command += ["--json", "--seed", str(seed)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
            try:
                shown, said = process.communicate(timeout=RUN_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.terminate()  # and it ends the peer that it has started
                raise NotJudged(f"no end within {RUN_TIMEOUT_S:g} s") from None
    if not shown:
        raise NotJudged(said.strip() or f"status {process.returncode}")
    found = json.loads(shown)
    found["loaded"], found["seconds"] = loaded, round(time.monotonic() - began, 1)
    path = stored(subject, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    partly = path.with_suffix(".part")
    partly.write_text(json.dumps(found))
    partly.rename(path)
    counts = found["counts"]
    return ", ".join(f"{counts[word]} {word}" for word in VERDICTS if counts.get(word))


class Load:
    """A process for each processor that does nothing but that, while any run wants it so: runs that
    go on side by side have the same ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted = 0
        self._spinning: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> None:
        with self._lock:
            self._wanted += 1
            if self._wanted == 1:
                loop = f"import time\nwhile time.monotonic() < {limit()}: pass"
                words = [sys.executable, "-c", loop]
                self._spinning = [subprocess.Popen(words) for _ in range(os.cpu_count() or 1)]

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._wanted -= 1
            if not self._wanted:
                for process in self._spinning:
                    process.kill()
                    process.wait()


LOAD = Load()


def limit() -> float:
    """When a busy process ends even if nobody ends it: the same clock in every process."""
    return time.monotonic() + RUN_TIMEOUT_S


# The table


@dataclass(frozen=True)
class Row:
    """A case in a kind of ring, and how often it came to what."""

    case: str
    ring: str
    verdicts: Counter[str]

    @property
    def verdict(self) -> str:
        """What it always came to; `varies` if that was not always the same."""
        return next(iter(self.verdicts)) if len(self.verdicts) == 1 else "varies"


def rows(runs: Sequence[Any]) -> list[Row]:
    found: dict[tuple[str, str], Counter[str]] = {}
    for run in runs:
        for result in run["results"]:
            key = result["case"], result["ring"] or "-"
            found.setdefault(key, Counter())[result["verdict"]] += 1
    return [Row(*key, verdicts) for key, verdicts in found.items()]


def runs_of(subject: Subject) -> list[Any]:
    paths = sorted((RESULTS / subject.name).glob("*.json"), key=lambda path: int(path.stem))
    return [json.loads(path.read_text()) for path in paths]


def markdown() -> str:
    """Counts for each peer and kind of ring, then every case that did not always pass."""
    columns = (*VERDICTS, "varies")
    counted = [
        f"| peer | bus | ring | runs | {' | '.join(columns)} |",
        f"|---|---|---|---:|{'---:|' * len(columns)}",
    ]
    broken = ["| peer | bus | case | ring | came to |", "|---|---|---|---|---|"]
    for subject in SUBJECTS:
        runs = runs_of(subject)
        if not runs:
            continue
        kinds: dict[str, Counter[str]] = {}
        cases: dict[tuple[str, str], list[str]] = {}
        for row in rows(runs):
            kinds.setdefault(row.ring, Counter())[row.verdict] += 1
            if row.verdicts.keys() & set(BAD):
                told = ", ".join(
                    f"{word} {row.verdicts[word]}"
                    for word in (*BAD, "pass", "skipped")
                    if row.verdicts[word]
                )
                cases.setdefault((row.case, told), []).append(row.ring)
        for ring, counts in kinds.items():
            if ring == "-" or counts["skipped"] < sum(counts.values()):
                cells = " | ".join(str(counts[word] or "") for word in columns)
                counted.append(
                    f"| {subject.peer} | {subject.bus} | {ring} | {len(runs)} | {cells} |"
                )
        for (case, told), rings in sorted(cases.items()):
            broken.append(
                f"| {subject.peer} | {subject.bus} | `{case}` | {', '.join(rings)} "
                f"| {told} of {len(runs)} |"
            )
    return "\n".join([*counted, "", *broken]) + "\n"


def fill(page: Path) -> None:
    begin, end = "<!-- judged -->\n", "<!-- /judged -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, also, after = rest.partition(end)
    if not found or not also:
        raise click.ClickException(f"{page} has no place for the table")
    page.write_text(before + begin + markdown() + end + after, encoding="utf-8")


@click.command()
@click.option("--repeat", metavar="N", type=click.IntRange(0, 1000), default=20, show_default=True)
@click.option("--only", metavar="PATTERN", multiple=True, help="These subjects, such as 'qemu-*'.")
@click.option("--for", "for_s", metavar="SECONDS", type=float, help="Begin nothing after that.")
@click.option("--jobs", metavar="N", type=click.IntRange(1, 16), default=1, show_default=True)
@click.option("--again", is_flag=True, help="Throw away what is there of these subjects.")
@click.option("--list", "as_list", is_flag=True, help="Show the subjects, and the runs there are.")
@click.option("--fill", "page", metavar="FILE", type=click.Path(exists=True, path_type=Path))
def main(
    repeat: int,
    only: Sequence[str],
    for_s: float | None,
    jobs: int,
    again: bool,
    as_list: bool,
    page: Path | None,
) -> None:
    """Judge the peers with `virtq check`, again and again, and fill in the table of verdicts."""
    subjects = [s for s in SUBJECTS if not only or any(fnmatchcase(s.name, p) for p in only)]
    if not subjects:
        raise click.UsageError(f"there are {', '.join(s.name for s in SUBJECTS)}")
    if as_list:
        for subject in subjects:
            click.echo(f"{subject.name:24} {len(runs_of(subject)):3} runs  {subject.peer}")
        return
    for subject in subjects:
        if again:
            shutil.rmtree(RESULTS / subject.name, ignore_errors=True)
        if missing(subject):
            click.echo(f"{subject.name}: left out, there is no {subject.needs}", err=True)
    there = [subject for subject in subjects if not missing(subject)]
    deadline = None if for_s is None else time.monotonic() + for_s
    # Each peer once before any is judged again: what there is after a while is of all of them.
    due = [(s, seed) for seed in range(repeat) for s in there if not stored(s, seed).exists()]

    def one(turn: tuple[Subject, int]) -> bool:
        subject, seed = turn
        if deadline is not None and time.monotonic() > deadline:
            return True
        loaded = seed % LOADED_EVERY == LOADED_EVERY - 1
        try:
            told = judge(subject, seed, loaded=loaded)
        except NotJudged as error:
            click.echo(f"{subject.name} {seed}: {error}", err=True)
            return False
        click.echo(f"{subject.name} {seed}{' (loaded)' if loaded else ''}: {told}")
        return True

    with ThreadPoolExecutor(jobs) as threads:
        good = list(threads.map(one, [turn for turn in due if not turn[0].alone]))
    good += map(one, [turn for turn in due if turn[0].alone])
    if page is not None:
        fill(page)
    if not all(good):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
