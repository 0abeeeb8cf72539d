"""A driver that writes to a disk and keeps a journal of it, in memory that outlives it.

Every sector holds one number, over and over, and the journal has two for it: the last that was
written, and the last whose write was acknowledged. At any time, whoever has died meanwhile, what is
on the disk must lie between the two; never below the second, that is: an acknowledged write is
there, and no older one comes after it.
"""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

import virtq
from virtq.drivers.blk import BlkDriver
from virtq.wire.blk import SECTOR_BYTES

SECTORS: Final = 96
ROUND_SECTORS: Final = 24


class Journal:
    """The numbers of all sectors, in a file."""

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it."""
        with path.open("a+b") as file:
            if not os.fstat(file.fileno()).st_size:
                file.truncate(8 * (2 * SECTORS + 2))
            self._memory = mmap.mmap(file.fileno(), 0)
        words = np.frombuffer(self._memory, dtype=np.uint64)
        self.written, self.acknowledged = words[:SECTORS], words[SECTORS : 2 * SECTORS]
        self._next, self._lives = words[2 * SECTORS : 2 * SECTORS + 1], words[2 * SECTORS + 1 :]

    @property
    def lives(self) -> int:
        """How many writers have found everything as it should be, and gone on."""
        return int(self._lives[0])

    def next_number(self) -> int:
        """One that was never written."""
        self._next[0] += 1
        return int(self._next[0])

    def check(self, contents: Sequence[bytes]) -> None:
        """Raises AssertionError for a sector that holds what it cannot; what it does hold counts as
        acknowledged from now on, since it was seen."""
        for sector, content in enumerate(contents):
            number = content[:8]
            assert content == number * (SECTOR_BYTES // 8), f"sector {sector} is torn"
            seen = int.from_bytes(number, "little")
            low, high = int(self.acknowledged[sector]), int(self.written[sector])
            assert low <= seen <= high, f"sector {sector} holds {seen}, not {low} to {high}"
            self.acknowledged[sector] = seen

    def survived(self) -> None:
        self._lives[0] += 1


def read_all(disk: BlkDriver) -> list[bytes]:
    """What every sector holds."""
    return disk.read_many([(sector * SECTOR_BYTES, SECTOR_BYTES) for sector in range(SECTORS)])


def write_round(disk: BlkDriver, journal: Journal, dice: random.Random) -> None:
    """Writes some sectors, several requests at a time, and notes it before and after."""
    chosen = dice.sample(range(SECTORS), dice.randint(1, ROUND_SECTORS))
    numbers = [journal.next_number() for _ in chosen]
    journal.written[chosen] = numbers
    writes = [
        (sector * SECTOR_BYTES, number.to_bytes(8, "little") * (SECTOR_BYTES // 8))
        for sector, number in zip(chosen, numbers, strict=True)
    ]
    disk.write_many(writes, depth=dice.choice((1, 4, 16, 32)))
    journal.acknowledged[chosen] = numbers


def write(uri: str, offer: str, journal_path: str, seed: str) -> None:
    """A life: sees that everything is as it should be, then writes until it is killed."""
    journal, dice = Journal(Path(journal_path)), random.Random(seed)
    with virtq.connect(uri, driver=BlkDriver, offer=offer) as disk:
        journal.check(read_all(disk))
        journal.survived()
        while True:
            write_round(disk, journal, dice)
