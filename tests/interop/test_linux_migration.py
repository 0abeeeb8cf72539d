"""A guest that is migrated while it writes to its disk and reads from it: to another QEMU with
another back-end process on the same image, and back.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from virtq.features import RingKind

from .peers.availability import require
from .peers.guest import GUEST_TIMEOUT_S, GuestConfig, LinuxGuest, vhost_user
from .serving import Serving

pytestmark = pytest.mark.interop

MIB: Final = 1 << 20
WRITERS: Final = 2
KNOWN_MIB: Final = 4
"""Where the part of the disk begins that is only read."""

# A writer fills its mebibyte with its name and the number of the round, and tells when that is
# done. Besides, the script has the back-end fill the guest's page cache with a part of the disk
# when it is told to, and looks at that later: if that happens between the copying of the memory
# and the move, then what the back-end wrote comes along only by the dirty log.
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
    "sum": rb"""#!/bin/sh
        dd if=/dev/vda bs=1M skip=$1 count=2 2>/dev/null | md5sum | cut -d' ' -f1
    """,
}
LIFE: Final = """
exec 4</dev/vda # the page cache of a device that nobody has open is dropped
/data/writer 0 oflag=direct &
/data/writer 1 conv=fsync &
while read -r what part; do
    case $what in
    fill)
        echo 1 >/proc/sys/vm/drop_caches
        dd if=/dev/vda bs=1M skip=$part count=2 of=/dev/null 2>/dev/null
        echo filled
        ;;
    sum) echo "sum $(/data/sum $part)" ;;
    stop) break ;;
    esac
done
touch /tmp/stop
wait
"""


class Following:
    """What the guest says, wherever it runs."""

    def __init__(self) -> None:
        self.rounds = dict.fromkeys(range(WRITERS), 0)
        self.ended: dict[int, int] = {}

    def await_rounds(self, guest: LinuxGuest, rounds: int) -> None:
        """Until both writers have come through so many more rounds."""
        goals = {who: done + rounds for who, done in self.rounds.items()}
        while any(self.rounds[who] < goal for who, goal in goals.items()):
            self._next(guest)

    def await_end(self, guest: LinuxGuest) -> None:
        while len(self.ended) < WRITERS:
            self._next(guest)

    def ask(self, guest: LinuxGuest, question: str, answer: str) -> re.Match[str]:
        """What the script answers in the end."""
        guest.send(question + "\n")
        while True:
            if found := re.fullmatch(answer, self._next(guest)):
                return found

    def _next(self, guest: LinuxGuest) -> str:
        line = guest.wait_for(r"([^\n]*)\n")[1].decode()
        # The line during which it was moved is cut, its first half is gone with the other QEMU.
        if said := re.fullmatch(r"wrote (\d) (\d+)", line):
            self.rounds[int(said[1])] = int(said[2])
        elif said := re.fullmatch(r"ended (\d) (\d+)", line):
            self.ended[int(said[1])] = int(said[2])
        assert not line.startswith("failed"), line
        return line


KINDS = (
    list(RingKind)
    if os.environ.get("VIRTQ_ALL_KINDS")
    else [RingKind.SPLIT, RingKind.PACKED_IN_ORDER]
)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_guest_is_migrated_there_and_back_while_it_writes(kind: RingKind, tmp_path: Path) -> None:
    require("qemu")
    image = tmp_path / "disk"
    known = random.Random(9).randbytes(4 * MIB)
    image.write_bytes(bytes(KNOWN_MIB * MIB) + known)
    sockets = [tmp_path / "here", tmp_path / "there"]
    properties = {"packed": kind.packed, "in_order": kind.in_order}
    here, there = (
        GuestConfig(
            LIFE,
            vhost_user("vhost-user-blk-pci", socket_path, properties=properties),
            ["virtio_blk"],
            TOOLS,
            timeout_s=GUEST_TIMEOUT_S,
            # A page that the guest zeroes before the back-end fills it comes along for that alone.
            kernel_parameters="init_on_alloc=0",
        )
        for socket_path in sockets
    )
    following = Following()

    def move(guest: LinuxGuest, heir: LinuxGuest, part: int) -> None:
        """Migrate it, and have memory filled when that was copied already."""
        first = KNOWN_MIB + 2 * part
        following.ask(guest, f"fill {KNOWN_MIB + 2 - 2 * part}", "filled")

        def fill() -> None:
            following.ask(guest, f"fill {first}", "filled")

        guest.migrate(heir, tmp_path / f"move{part}", fill)
        content = known[2 * part * MIB : 2 * (part + 1) * MIB]
        seen = following.ask(heir, f"sum {first}", r"sum ([0-9a-f]{32})")[1]
        assert seen == hashlib.md5(content).hexdigest()
        following.await_rounds(heir, 1)

    with (
        Serving("blk", image, socket_path=sockets[0]) as at_home,
        Serving("blk", image, socket_path=sockets[1]) as abroad,
        ExitStack() as outward,
        ExitStack() as homeward,
    ):
        guest = outward.enter_context(LinuxGuest(here))
        following.await_rounds(guest, 1)
        traveller = homeward.enter_context(LinuxGuest(there, heir_of=guest))
        move(guest, traveller, 0)
        outward.close()  # and its back-end takes the next front-end
        returned = outward.enter_context(LinuxGuest(here, heir_of=traveller))
        move(traveller, returned, 1)
        homeward.close()
        returned.send("stop\n")
        following.await_end(returned)
        returned.result().check()
        reports = [at_home.end(), abroad.end()]

    assert [report.front_ends for report in reports] == [2, 1]
    for report in reports:
        assert report.remarks == ()
        assert report.queues["requestq1"]["errors"] == 0
        assert report.queues["requestq1"]["writes"] > 50
    content = image.read_bytes()
    for writer, last in following.ended.items():
        line = b"%d %013d\n" % (writer, last)
        region = content[writer * MIB : (writer + 1) * MIB]
        assert region == line * (len(region) // len(line)), writer
    assert content[KNOWN_MIB * MIB :] == known
