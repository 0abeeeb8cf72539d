"""A Linux guest on a disk in which things go wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from virtq.features import RingKind

from .peers.availability import require
from .peers.guest import GuestConfig, run_guest, vhost_user
from .serving import Serving

pytestmark = pytest.mark.interop

# Boot reads the disk a few times (partition tables), far fewer than 30.
READ_AND_WRITE = """
for n in $(seq 40); do
    dd if=/dev/vda of=/dev/null bs=4k skip=$n count=1 iflag=direct 2>/tmp/said && echo r || {
        grep -qE 'I/O error|Input/output error' /tmp/said && echo R
    }
done | tr -d '\\n'
echo
for n in $(seq 6); do
    dd if=/dev/zero of=/dev/vda bs=4k seek=$n count=1 oflag=direct 2>/dev/null && echo w || echo W
done | tr -d '\\n'
echo
"""


@pytest.mark.parametrize("kind", [RingKind.SPLIT, RingKind.PACKED_IN_ORDER], ids=str)
def test_one_read_fails_and_the_next_succeeds(kind: RingKind, tmp_path: Path) -> None:
    require("qemu")
    socket_path, trace = tmp_path / "disk.sock", tmp_path / "trace.json"
    card = vhost_user(
        "vhost-user-blk-pci",
        socket_path,
        properties={"packed": kind.packed, "in_order": kind.in_order},
    )
    words = ["--fault", "read:30:EIO", "--fault", "write:2:ENOSPC", "--fault", "read:/7:delay=2ms"]
    with Serving(
        "blk", "memory:16M", *words, "--seed", 1, "--trace", trace, socket_path=socket_path
    ) as disk:
        result = run_guest(GuestConfig(READ_AND_WRITE, card, modules=["virtio_blk"]))
        disk.end()
    reads, writes = result.text.split()
    assert reads.count("R") == 1
    assert reads.count("r") == 39
    assert not reads.endswith("R")
    assert writes == "wWwwww"
    spans = [record["name"] for record in json.loads(trace.read_text()) if record["ph"] == "b"]
    assert spans.count("write") == 6
    assert spans.count("read") >= 40
