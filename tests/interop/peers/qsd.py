"""qemu-storage-daemon with one vhost-user-blk export: a block back-end to compare with.

Its rings are split, with EVENT_IDX and indirect descriptors; it offers neither the packed layout
nor IN_ORDER.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from .availability import program
from .process import Process
from .qmp import Monitor


@dataclass(frozen=True)
class BlockExport:
    """What to export, and how. `image` None is a disk of zeroes, `size_bytes` long."""

    socket_path: Path
    image: Path | None = None
    size_bytes: int = 0
    writable: bool = True
    queues: int = 1
    logical_block_size_bytes: int = 512
    aio: Literal["threads", "native", "io_uring"] = "threads"

    def blockdev(self) -> str:
        """The value of --blockdev."""
        if self.image is None:
            return f"driver=null-co,node-name=disk,size={self.size_bytes},read-zeroes=on"
        # aio=native wants O_DIRECT; the page cache serves the other two.
        direct = "on" if self.aio == "native" else "off"
        read_only = "off" if self.writable else "on"
        return (
            f"driver=file,node-name=disk,filename={self.image},aio={self.aio},"
            f"cache.direct={direct},read-only={read_only},discard=unmap"
        )

    def export(self) -> str:
        """The value of --export."""
        return (
            "type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,"
            f"addr.path={self.socket_path},writable={'on' if self.writable else 'off'},"
            f"num-queues={self.queues},logical-block-size={self.logical_block_size_bytes}"
        )


class StorageDaemon:
    """The running daemon; once it is entered, the socket accepts connections."""

    def __init__(self, export: BlockExport) -> None:
        self.export = export

    def __enter__(self) -> Self:
        ours, theirs = socket.socketpair()
        argv: list[str | Path] = [
            program("qemu-storage-daemon"),
            *("--blockdev", self.export.blockdev()),
            *("--export", self.export.export()),
            *("--chardev", f"socket,id=qmp,fd={theirs.fileno()}"),
            # Options are carried out in order: a greeting says that the export is up.
            *("--monitor", "chardev=qmp"),
        ]
        with theirs:
            self.process = Process(argv, pass_fds=[theirs.fileno()])
        try:
            self.monitor = Monitor(ours)
        except Exception as error:
            ours.close()
            self.process.stop()
            raise self.process.failure("did not greet") from error
        return self

    def __exit__(self, *error: object) -> None:
        self.process.stop()
        self.monitor.close()
        self.export.socket_path.unlink(missing_ok=True)

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        return self.process.pid

    def kill(self) -> None:
        """SIGKILL: the daemon dies with requests in flight, its socket file stays."""
        self.process.kill()
