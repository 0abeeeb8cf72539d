"""Back-ends and front-ends that are killed in the middle of it, again and again, and what becomes
of the writes: all that were acknowledged are there, none comes back from the dead, none is lost.

Each kind of killing is done `VIRTQ_KILLS` times, 200 by default, shared by the kinds of rings.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import pytest

import virtq
from virtq.drivers.blk import BlkDriver
from virtq.features import RingKind
from virtq.transports.vhost_user import Frontend, NotResumable

from .nursery import Nursery, is_connected, is_listening
from .peers.availability import require
from .peers.guest import GUEST_TIMEOUT_S, GuestConfig, LinuxGuest, vhost_user
from .peers.qsd import BlockExport, StorageDaemon
from .serving import Serving
from .writer import Journal, read_all, write_round

pytestmark = pytest.mark.interop

KILLS: Final = int(os.environ.get("VIRTQ_KILLS", "200"))
IMAGE_BYTES: Final = 8 << 20

# Four writers, each with a mebibyte of its own, that it fills with its name and the number of the
# round, acknowledged by the guest in the end of each: three past the page cache, request by
# request; one through it, many requests at a time. Then it reads that back.
WRITER: Final = rb"""#!/bin/sh
    n=0
    while [ ! -e /tmp/stop ]; do
        n=$((n + 1))
        line=$(printf '%s %013d' $1 $n)
        how="bs=4k count=24 oflag=direct"
        [ $1 = 3 ] && how="bs=4k count=256 conv=fsync"
        yes "$line" | dd of=/dev/vda seek=$(($1 * 256)) iflag=fullblock $how 2>/dev/null ||
            { echo "failed $1 $n"; exit 1; }
        echo "wrote $1 $n"
        how=${how% *}
        strange=$(dd if=/dev/vda skip=$(($1 * 256)) iflag=direct $how 2>/dev/null |
            grep -vc "^$line\$")
        [ "$strange" = 0 ] || { echo "strange $1 $n $strange"; exit 1; }
    done
    echo "ended $1 $n"
"""
LIFE: Final = """
for writer in 0 1 2 3; do /data/writer $writer & done
read -r stop
touch /tmp/stop
wait
"""
WRITER_BYTES: Final = (24 * 4096, 24 * 4096, 24 * 4096, 1 << 20)


@dataclass
class GuestJournal:
    """What the guest says of its writers, by writer."""

    acknowledged: dict[int, int] = field(default_factory=dict)
    ended: dict[int, int] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)

    def note(self, line: str) -> None:
        what, writer, number, *_ = [*line.split(), "", ""]
        if what == "wrote":
            self.acknowledged[int(writer)] = int(number)
        elif what == "ended":
            self.ended[int(writer)] = int(number)
        elif what:
            self.complaints.append(line)


def read_journal(guest: LinuxGuest, journal: GuestJournal, until: str) -> None:
    """Follows the guest's output up to a line that matches."""
    while True:
        line = guest.wait_for(r"([^\n]*)\n")[1].decode()
        journal.note(line)
        if re.match(until, line):
            return


@contextmanager
def writing_guest(socket_path: Path, kind: RingKind) -> Iterator[LinuxGuest]:
    properties = {"packed": kind.packed, "in_order": kind.in_order}
    card = vhost_user("vhost-user-blk-pci", socket_path, reconnect_ms=10, properties=properties)
    config = GuestConfig(
        LIFE, card, ["virtio_blk"], {"writer": WRITER}, cpus=2, timeout_s=GUEST_TIMEOUT_S
    )
    with LinuxGuest(config) as guest:
        yield guest


TRACKED = [pytest.param(kind, True, id=f"{kind}, tracked") for kind in RingKind]
# QEMU takes the index of a split ring from shared memory; of a packed ring it knows nothing better
# than where that began, so that there the region must tell.
BY_USED_INDEX = [
    pytest.param(kind, False, id=f"{kind}, by the used index")
    for kind in RingKind
    if kind.in_order and not kind.packed
]


@pytest.mark.parametrize(("kind", "tracked"), TRACKED + BY_USED_INDEX)
def test_a_guest_does_not_notice_that_its_back_end_is_killed(
    kind: RingKind, tracked: bool, tmp_path: Path
) -> None:
    require("qemu")
    image, socket_path = tmp_path / "disk", tmp_path / "disk.sock"
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    kills = -(-KILLS // len(TRACKED + BY_USED_INDEX))
    dice = random.Random(f"{kind} {tracked}")
    protocol = "" if tracked else "-INFLIGHT_SHMFD"
    journal = GuestJournal()
    serve = ["serve", "blk", image, "--queues", 2, "--protocol", protocol]
    with Nursery(*serve, "--socket-path", socket_path) as nursery, ExitStack() as stack:
        nursery.await_that(lambda: is_listening(socket_path), "virtq serves")
        guest = stack.enter_context(writing_guest(socket_path, kind))
        read_journal(guest, journal, "wrote")
        for _ in range(kills):
            nursery.await_that(lambda: is_connected(socket_path), "QEMU reconnects")
            time.sleep(dice.uniform(0.0, 0.12))
            nursery.kill()
            nursery.start()
        # It has taken over, and everybody has come through another round.
        goals = {writer: journal.acknowledged.get(writer, 0) + 2 for writer in range(4)}
        while any(journal.acknowledged.get(writer, 0) < goal for writer, goal in goals.items()):
            read_journal(guest, journal, "wrote|failed|strange")
            assert not journal.complaints
        guest.send("stop\n")
        while len(journal.ended) < 4:
            read_journal(guest, journal, "ended|failed|strange")
            assert not journal.complaints
        guest.result().check()
        content = image.read_bytes()
    for writer, last in journal.ended.items():
        expected = b"%d %013d\n" % (writer, last)
        start = writer << 20
        region = content[start : start + WRITER_BYTES[writer]]
        assert region == expected * (len(region) // 16), (writer, last)


def offer_of(kind: RingKind) -> str:
    """What a driver is ready to accept, so that it comes to this kind."""
    sign = {True: "+", False: "-"}
    return f"{sign[kind.packed]}RING_PACKED,{sign[kind.in_order]}IN_ORDER"


def has_come_to(front: Frontend, reconnects: int) -> bool:
    return front.reconnects >= reconnects


def has_lives(journal: Journal, lives: int) -> bool:
    return journal.lives >= lives


def make_image(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 20)


@pytest.mark.parametrize(
    ("kind", "tracked"),
    TRACKED
    + [pytest.param(k, False, id=f"{k}, by the used index") for k in RingKind if k.in_order],
)
def test_our_driver_goes_on_with_the_next_back_end(
    kind: RingKind, tracked: bool, tmp_path: Path
) -> None:
    image, socket_path = tmp_path / "disk", tmp_path / "disk.sock"
    make_image(image)
    kills = -(-KILLS // 6)
    dice, chance = random.Random(f"{kind} {tracked}"), random.Random(f"{tracked} {kind}")
    journal = Journal(tmp_path / "journal")
    uri = f"vhost-user:{socket_path}?reconnect=on&track={'on' if tracked else 'off'}"
    with Nursery("serve", "blk", image, "--socket-path", socket_path) as nursery:
        nursery.await_that(lambda: is_listening(socket_path), "virtq serves")
        with virtq.connect(uri, driver=BlkDriver, offer=offer_of(kind)) as disk:
            assert disk.kind is kind
            front = disk.transport
            assert isinstance(front, Frontend)

            def kill_often() -> None:
                for count in range(kills):
                    # Some are killed while they are told everything, most afterwards.
                    nursery.await_that(partial(has_come_to, front, count), "it goes on")
                    time.sleep(chance.uniform(0.0, 0.03))
                    nursery.kill()
                    nursery.start()

            killer = threading.Thread(target=kill_often)
            killer.start()
            while killer.is_alive():
                write_round(disk, journal, dice)
                if dice.random() < 0.2:
                    journal.check(read_all(disk))
            killer.join()
            write_round(disk, journal, dice)
            journal.check(read_all(disk))
            assert front.reconnects >= kills - 1
            content = image.read_bytes()
    journal.check([content[at : at + 512] for at in range(0, 512 * len(journal.written), 512)])
    assert (journal.acknowledged == journal.written).all()


def test_without_order_and_tracking_only_an_idle_disk_goes_on(tmp_path: Path) -> None:
    require("qemu-storage-daemon")  # which has neither
    image, socket_path = tmp_path / "disk", tmp_path / "disk.sock"
    make_image(image)
    dice, journal = random.Random(4), Journal(tmp_path / "journal")
    export = BlockExport(socket_path, image)
    with ExitStack() as stack:
        daemon = stack.enter_context(StorageDaemon(export))
        uri = f"vhost-user:{socket_path}?reconnect=on"
        with virtq.connect(uri, driver=BlkDriver) as disk:
            front = disk.transport
            assert isinstance(front, Frontend)
            for count in range(1, 4):
                write_round(disk, journal, dice)
                daemon.kill()
                stack.close()
                daemon = stack.enter_context(StorageDaemon(export))
                front.check()  # before there is anything outstanding
                assert front.reconnects == count
                journal.check(read_all(disk))
            assert (journal.acknowledged == journal.written).all()

            def write_for_ever() -> None:
                while True:
                    write_round(disk, journal, dice)

            killer = threading.Timer(0.01, daemon.kill)
            killer.start()
            with pytest.raises(NotResumable, match=r"queue 0 .* \d+ buffers are outstanding"):
                write_for_ever()
            killer.join()


def test_front_ends_that_are_killed_leave_the_next_one_a_disk(tmp_path: Path) -> None:
    image, socket_path = tmp_path / "disk", tmp_path / "disk.sock"
    make_image(image)
    path = tmp_path / "journal"
    journal, dice = Journal(path), random.Random(3)
    kills = KILLS
    uri = f"vhost-user:{socket_path}"

    def life(number: int) -> list[object]:
        return ["write", uri, offer_of(dice.choice(list(RingKind))), path, number]

    with (
        Serving("blk", image, socket_path=socket_path) as served,
        Nursery(*life(0)) as nursery,
    ):
        for number in range(1, kills + 1):
            nursery.await_that(partial(has_lives, journal, number), "a driver comes")
            time.sleep(dice.uniform(0.0, 0.02))
            nursery.kill()
            nursery.start(*life(number))
        nursery.await_that(partial(has_lives, journal, kills + 1), "the last driver comes")
        nursery.kill()
        report = served.end()
    content = image.read_bytes()
    journal.check([content[at : at + 512] for at in range(0, 512 * len(journal.written), 512)])
    assert report.front_ends == kills + 1
    assert report.queues["requestq1"]["errors"] == 0
