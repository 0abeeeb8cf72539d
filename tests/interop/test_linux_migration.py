"""A guest that is migrated while it writes to its disk and reads from it: to another QEMU with
another back-end process on the same image, and back.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from virtq.features import RingKind

from .peers.availability import require
from .peers.guest import GuestConfig, LinuxGuest, vhost_user
from .serving import Serving

pytestmark = pytest.mark.interop

MIB: Final = 1 << 20
WRITERS: Final = 2
WRITER_MIB: Final = 1
READ_MIB: Final = 4
GUEST_TIMEOUT_S: Final = 120.0

# A writer fills its mebibyte with its name and the number of the round, and tells when that is
# done. A reader has the back-end fill the guest's page cache, and looks at that later: what the
# back-end wrote to memory that was migrated before is there only by the dirty log.
TOOLS: Final = {
    "writer": rb"""#!/bin/sh
        n=0
        while [ ! -e /tmp/stop ]; do
            n=$((n + 1))
            yes "$(printf '%s %013d' $1 $n)" |
                dd of=/dev/vda bs=16k count=64 seek=$(($1 * 64)) iflag=fullblock $2 2>/dev/null ||
                { echo "failed $1 $n"; exit 1; }
            echo "wrote $1 $n"
        done
        echo "ended $1 $n"
    """,
    "reader": rb"""#!/bin/sh
        n=0
        while [ ! -e /tmp/stop ]; do
            n=$((n + 1))
            echo 1 >/proc/sys/vm/drop_caches
            dd if=/dev/vda bs=1M skip=4 count=4 of=/dev/null 2>/dev/null
            for pass in 1 2; do
                sum=$(dd if=/dev/vda bs=1M skip=4 count=4 2>/dev/null | md5sum)
                [ "$sum" = "$(cat /data/sum)" ] || { echo "strange $n $pass $sum"; exit 1; }
            done
            echo "read $n"
        done
        echo "ended reader $n"
    """,
}
LIFE: Final = """
/data/writer 0 oflag=direct &
/data/writer 1 conv=fsync &
/data/reader &
read -r stop
touch /tmp/stop
wait
"""


class Following:
    """What the guest says, wherever it runs."""

    def __init__(self) -> None:
        self.rounds = {"0": 0, "1": 0, "reader": 0}
        self.ended: dict[str, int] = {}

    def await_progress(self, guest: LinuxGuest, rounds: int) -> None:
        """Until everybody has come through so many more rounds."""
        goals = {who: done + rounds for who, done in self.rounds.items()}
        while any(self.rounds[who] < goal for who, goal in goals.items()):
            self._follow(guest)

    def await_end(self, guest: LinuxGuest) -> None:
        while len(self.ended) < len(self.rounds):
            self._follow(guest)

    def _follow(self, guest: LinuxGuest) -> None:
        line = guest.wait_for(r"([^\n]*)\n")[1].decode()
        # The line during which it was moved is cut, its first half is gone with the other QEMU.
        if said := re.fullmatch(r"wrote (\d) (\d+)", line):
            self.rounds[said[1]] = int(said[2])
        elif said := re.fullmatch(r"read (\d+)", line):
            self.rounds["reader"] = int(said[1])
        elif said := re.fullmatch(r"ended (\w+) (\d+)", line):
            self.ended[said[1]] = int(said[2])
        assert not line.startswith(("failed", "strange")), line


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_a_guest_is_migrated_there_and_back_while_it_writes(kind: RingKind, tmp_path: Path) -> None:
    require("qemu")
    import hashlib
    import random

    image = tmp_path / "disk"
    known = random.Random(9).randbytes(READ_MIB * MIB)
    image.write_bytes(bytes(4 * MIB) + known)
    digest = hashlib.md5(known).hexdigest().encode() + b"  -\n"
    sockets = [tmp_path / "here", tmp_path / "there"]
    configs = [
        GuestConfig(
            LIFE,
            vhost_user(
                "vhost-user-blk-pci",
                socket_path,
                properties={"packed": kind.packed, "in_order": kind.in_order},
            ),
            ["virtio_blk"],
            TOOLS | {"sum": digest},
            timeout_s=GUEST_TIMEOUT_S,
        )
        for socket_path in sockets
    ]
    following = Following()
    with (
        Serving("blk", image, socket_path=sockets[0]) as here,
        Serving("blk", image, socket_path=sockets[1]) as there,
        ExitStack() as at_home,
        ExitStack() as abroad,
    ):
        guest = at_home.enter_context(LinuxGuest(configs[0]))
        following.await_progress(guest, 2)
        traveller = abroad.enter_context(LinuxGuest(configs[1], heir_of=guest))
        guest.migrate(traveller, tmp_path / "away")
        at_home.close()
        following.await_progress(traveller, 2)
        returned = at_home.enter_context(LinuxGuest(configs[0], heir_of=traveller))
        traveller.migrate(returned, tmp_path / "home")
        abroad.close()
        following.await_progress(returned, 2)
        returned.send("stop\n")
        following.await_end(returned)
        returned.result().check()
        reports = [here.end(), there.end()]

    assert [report.front_ends for report in reports] == [2, 1]
    for report in reports:
        assert report.remarks == ()
        assert report.queues["requestq1"]["errors"] == 0
        assert report.queues["requestq1"]["writes"] > 50
    content = image.read_bytes()
    for writer in range(WRITERS):
        line = b"%d %013d\n" % (writer, following.ended[str(writer)])
        region = content[writer * MIB : (writer + WRITER_MIB) * MIB]
        assert region == line * (len(region) // len(line)), writer
    assert content[4 * MIB :] == known
