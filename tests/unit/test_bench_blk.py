"""What `virtq bench blk` compares, and the contenders themselves in windows of no length to speak
of: that they do the work and count it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from virtq.bench import blk
from virtq.bench.blk import DEPTHS, MIXES, PEER, Kind, Served, Shape
from virtq.bench.case import BenchError
from virtq.bench.measure import run_case
from virtq.bench.peers import storage_daemon
from virtq.errors import PeerGone, TransportError
from virtq.testing.process import Process


@contextmanager
def served(kind: Kind, shape: Shape) -> Iterator[Served]:
    one = Served(kind, shape)
    try:
        yield one
    finally:
        one.close()


def process(one: Served) -> Process:
    return one._process


def state(pid: int) -> str:
    """`R`, `S`, `T`..., as in /proc/PID/stat."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


def test_everything_is_compared_once() -> None:
    made = blk.cases(against=False)
    assert len({case.title for case in made}) == len(made)
    shapes = len(DEPTHS) * len(blk.BLOCKS_BYTES) * len(MIXES)
    assert len(made) == 2 * shapes + 1
    assert not any(case.targets for case in made)
    assert len(blk.cases(against=False, quick=True)) == 2 * 2 * 2 + 1
    few = blk.cases(against=False, depths=[7], blocks_bytes=[512], mixes=["mixed"])
    assert [dict(case.parameters) for case in few] == [
        {"block bytes": 512, "depth": 7, "writes %": 30, "driver": "polls"}
    ] * 2


def test_targets_are_for_small_requests_and_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_daemon, "is_installed", lambda: True)

    def aims(depth: int) -> list[set[tuple[str, str, float, str]]]:
        made = blk.cases(depths=[depth], blocks_bytes=[4096], mixes=["read"])
        return [{(t.of, t.to, t.ratio, t.quantity) for t in case.targets} for case in made]

    null, file = f"{PEER} null-co", f"{PEER} io_uring"
    for depth in (32, 128):
        assert aims(depth) == [
            {
                ("virtq null", null, 1.5, "rate"),
                ("virtq null", null, 1.0, "cpu_seconds"),
                ("virtq memory", null, 1.5, "rate"),
                ("virtq memory", null, 1.0, "cpu_seconds"),
            },
            {("virtq file", file, 1.2, "rate")},
        ]
    # One at a time: polled, and with both sides asleep until they are notified.
    soon = {("virtq file", file, 1.0, "p50_ns")}
    assert aims(1) == [set(), soon, soon]
    assert not any(case.targets for case in blk.cases(blocks_bytes=[128 << 10]))


def test_what_cannot_be_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BenchError, match="'swap' is not one of read, write, mixed"):
        blk.cases(against=False, mixes=["swap"])
    for size in (0, 1000, 256 << 10):
        with pytest.raises(BenchError, match=f"a request of {size} bytes"):
            blk.cases(against=False, blocks_bytes=[4096, size])
    with pytest.raises(BenchError, match="257 requests in flight are not 1 to 256"):
        blk.cases(against=False, depths=[257])
    monkeypatch.setattr(storage_daemon, "is_installed", lambda: False)
    with pytest.raises(BenchError, match="qemu-storage-daemon is not installed"):
        blk.cases()
    assert storage_daemon.version() is None


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (Kind("null", "null"), Shape(4096, 32, 0)),
        (Kind("memory", "memory", "event"), Shape(4096, 8, 30, "event")),
        (Kind("file", "file", "adaptive"), Shape(128 << 10, 4, 30)),
    ],
    ids=lambda it: it.name if isinstance(it, Kind) else "",
)
def test_a_window_counts_what_was_done(kind: Kind, shape: Shape) -> None:
    with served(kind, shape) as one:
        pid = process(one).pid
        for _ in range(2):
            length_s = 0.05
            # On a busy machine not one request of those that are looked at may fall into it.
            while not (window := one.window(length_s)).counts["verified"] and length_s < 5:
                length_s *= 2
            assert window.work > 0
            assert window.counts["verified"] > 0
            assert 0 < window.counts["p50_ns"] <= window.counts["p999_ns"]
            assert window.counts["cpu_seconds"] > 0
            asks = shape.driver_wait == "event"
            assert (window.counts["calls"] > 0) == asks
            # A device that would keep a processor busy rests between windows.
            assert (state(pid) == "T") == (kind.wait == "poll")
    assert process(one).returncode == 0
    assert not os.path.exists(f"/proc/{pid}")


def test_a_device_that_ends_is_gone() -> None:
    with served(Kind("short", "null", "event"), Shape(4096, 1, 0)) as one:
        process(one).kill()
        with pytest.raises(PeerGone, match="short ended with status -9"):
            one.window(0.05)


def test_a_device_that_does_not_come_up_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kind, "command", lambda *_: ["sh", "-c", "echo no such thing; exit 3"])
    with pytest.raises(TransportError, match="broken does not come up: no such thing"):
        Served(Kind("broken", "null"), Shape(4096, 1, 0))


@pytest.mark.skipif(not storage_daemon.is_installed(), reason="no qemu-storage-daemon")
def test_beside_the_storage_daemon() -> None:
    version = storage_daemon.version()
    assert version is not None
    assert version[0].isdigit()
    cases = blk.cases(depths=[1], blocks_bytes=[4096], mixes=["mixed"])
    assert len(cases) == 3
    for case in cases:
        made = run_case(case, pairs=2, window_s=0.02)
        assert made.errors == {}
        assert made.rounds == 2
        by_name = {one.name: one for one in made.contenders}
        assert all(one.work > 0 for one in by_name.values())
        # Without IN_ORDER a used element is written for each request.
        theirs = next(one for name, one in by_name.items() if name.startswith(PEER))
        assert theirs.counts["used_entries"] == theirs.work
