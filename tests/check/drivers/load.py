"""Keeps one of virtq's own drivers busy until it is ended: what `virtq check --driver --start` runs
for them. `python -m tests.check.drivers.load TYPE SOCKET FEATURES`."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import virtq
from virtq.drivers import blk
from virtq.drivers.blk import BlkDriver
from virtq.drivers.console import ConsoleDriver
from virtq.drivers.net import NetDriver
from virtq.drivers.rng import RngDriver
from virtq.features import parse

BLOCK = 4096


def disk(driver: Any) -> None:
    """Different bytes to every block, and back, many at once."""
    blocks = 64
    assert driver.identify() is not None
    turn = 0
    while True:
        turn += 1
        data = b"".join(bytes([(i + turn) % 256]) * BLOCK for i in range(blocks))
        driver.write(0, data)
        for start in range(0, len(data), len(data) // 4):
            piece = data[start : start + len(data) // 4]
            assert driver.read(start, len(piece)) == piece, "other data than were written"
        driver.flush()


def network(driver: Any) -> None:
    frame = bytes(12) + b"\x88\xb5" + bytes(46)
    while True:
        driver.send([frame] * 64)
        driver.receive(64, timeout_s=0)


def entropy(driver: Any) -> None:
    while True:
        assert len(driver.read(256)) == 256


def terminal(driver: Any) -> None:
    while True:
        driver.write(b"a line of text\n")


LOADS = {
    "blk": (BlkDriver, disk),
    "net": (NetDriver, network),
    "rng": (RngDriver, entropy),
    "console": (ConsoleDriver, terminal),
}


blk.CHUNK_BYTES = BLOCK  # small requests, so that there are many


def main(kind: str, path: str, features: str) -> None:
    driver, load = LOADS[kind]
    with (
        contextlib.suppress(KeyboardInterrupt),
        virtq.connect(
            f"vhost-user:{path}", driver=driver, want=parse(features, driver.device_id)
        ) as live,
    ):
        load(live)


if __name__ == "__main__":
    main(*sys.argv[1:])
