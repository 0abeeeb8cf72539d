"""A back-end in a process of its own: `python -m tests.unit.vhost_user.elsewhere PATH shout|disk`.

Where a test makes the back-end wait within one call of its loop, the test's own interpreter must
not wait with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Self

import virtq
from tests.unit.vhost_user.support import PATIENCE_S, RawFront, eventually
from virtq.devices.blk import BlkDevice
from virtq.devices.disk import Disk
from virtq.transports.vhost_user import channel

DISK_BYTES = 1 << 20
DISK_BYTE = b"\x5a"


class Shout(virtq.Device):
    device_id = 63
    queues = (virtq.QueueSpec("one"), virtq.QueueSpec("two"))

    def handle(self, request: virtq.Request) -> int:
        return request.write(request.read().upper()[: request.writable])


class Elsewhere:
    """The running process; stands in for `Served` where only connections are wanted."""

    def __init__(self, path: Path, device: str) -> None:
        self.path = str(path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.unit.vhost_user.elsewhere", self.path, device],
            cwd=Path(__file__).resolve().parents[3],
        )
        assert eventually(self._listens), "the back-end does not start"

    def _listens(self) -> bool:
        """Whether it does: its socket is there a moment before."""
        try:
            self.connect().close()
        except channel.NobodyListens:
            return False
        return True

    def connect(self) -> RawFront:
        return RawFront(channel.connect(self.path, PATIENCE_S))

    @property
    def open_fds(self) -> int:
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._process.terminate()
        try:
            status = self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        assert status == 0 or error is not None


def main(path: str, device: str) -> None:
    if device == "shout":
        virtq.serve(Shout(), f"vhost-user:{path}")
        return
    disk = Disk.memory(DISK_BYTES)
    disk.write(0, DISK_BYTE * DISK_BYTES)
    virtq.serve(BlkDevice(disk), f"vhost-user:{path}")


if __name__ == "__main__":
    main(*sys.argv[1:])
