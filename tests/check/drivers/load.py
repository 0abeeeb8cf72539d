"""Keeps one of virtq's own drivers busy until it is ended: what `virtq check --driver --start` runs
for them. `python -m tests.check.drivers.load TYPE SOCKET`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import virtq
from virtq.driver import Driver
from virtq.drivers import blk
from virtq.drivers.blk import BlkDriver
from virtq.drivers.console import ConsoleDriver
from virtq.drivers.net import NetDriver
from virtq.drivers.rng import RngDriver
from virtq.features import F
from virtq.wire.blk import BlkFeature

BLOCK = 4096
BLOCKS = 64
FRAME = bytes(12) + b"\x88\xb5" + bytes(46)
PLATFORM = "+ACCESS_PLATFORM,+ORDER_PLATFORM"
"""Accepted by these drivers only when they are asked to."""


def disk(driver: Any) -> None:
    """Different bytes to every block, and back, many at once; and all the other requests."""
    turn = 0
    driver.get_id()
    while True:
        turn += 1
        data = b"".join(bytes([(i + turn) % 256]) * BLOCK for i in range(BLOCKS))
        if not driver.read_only:
            driver.write(0, data)
            assert driver.read(0, len(data)) == data, "other data than were written"
        else:
            driver.read(0, len(data))
        if driver.has(BlkFeature.FLUSH):
            driver.flush()
        if driver.has(BlkFeature.DISCARD | BlkFeature.WRITE_ZEROES):
            driver.discard(1 << 20, 1 << 16)
            driver.write_zeroes(1 << 20, 1 << 16)


def network(driver: Any) -> None:
    while True:
        driver.send([FRAME] * 64)
        driver.receive(64, timeout_s=0)


def entropy(driver: Any) -> None:
    while True:
        assert len(driver.read(16 * BLOCK)) == 16 * BLOCK


def terminal(driver: Any) -> None:
    with driver.open(0) as port:
        while True:
            port.write(b"a line of text\n" * 1000)


LOADS: dict[str, tuple[type[Driver], Callable[[Any], None]]] = {
    "blk": (BlkDriver, disk),
    "net": (NetDriver, network),
    "rng": (RngDriver, entropy),
    "console": (ConsoleDriver, terminal),
}
blk.CHUNK_BYTES = BLOCK  # small requests, so that there are many


def main(kind: str, path: str) -> None:
    driver, load = LOADS[kind]
    uri = f"vhost-user:{path}"
    with virtq.connect(uri, driver=driver, want=F.VERSION_1, offer=PLATFORM) as live:
        load(live)


if __name__ == "__main__":
    main(*sys.argv[1:])
