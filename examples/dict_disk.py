"""A disk of 16 MiB whose sectors live in a Python dict: zeroes take no room.

virtq serve examples/dict_disk.py:disk --socket-path /tmp/disk.sock
"""

from virtq.devices.blk import BlkDevice
from virtq.devices.disk import Disk

SECTOR = 512


class DictDisk(Disk):
    capacity = 16 << 11  # in sectors

    def __init__(self):
        self.sectors, self.name, self.read_only = {}, "dict", False

    def read(self, offset, length):
        first = offset // SECTOR
        wanted = range(first, first + length // SECTOR)
        return b"".join(self.sectors.get(number, bytes(SECTOR)) for number in wanted)

    def write(self, offset, data):
        for at in range(0, len(data), SECTOR):
            self.sectors[(offset + at) // SECTOR] = bytes(data[at : at + SECTOR])

    def flush(self):
        """There is nothing below."""

    def discard(self, offset, length):
        for number in range(offset // SECTOR, (offset + length) // SECTOR):
            self.sectors.pop(number, None)

    def write_zeroes(self, offset, length, *, unmap):
        self.discard(offset, length)


def disk():
    return BlkDevice(DictDisk(), serial="a dict")
