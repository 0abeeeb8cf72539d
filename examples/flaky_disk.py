"""A disk on which things go wrong, for testing those who use it.

    virtq serve examples/flaky_disk.py:disk --socket-path /tmp/disk.sock

The same without a line of Python:

    virtq serve blk memory:16M --socket-path /tmp/disk.sock --fault read:1%:EIO \\
        --fault write:/100:delay=20ms --fault '*:1%:reorder' --seed 7
"""

from virtq.devices.blk import BlkDevice
from virtq.devices.disk import Disk
from virtq.wrap import Faulty


def disk():
    good = BlkDevice(Disk.memory(16 << 20), serial="flaky")
    return Faulty(good, "read:1%:EIO", "write:/100:delay=20ms", "*:1%:reorder", seed=7)
