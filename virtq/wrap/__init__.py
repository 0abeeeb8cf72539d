"""Devices around a device: fault injection, tracing and packet capture.

    disk = virtq.wrap.Faulty(BlkDevice(Disk.file("disk.img")), "read:1%:EIO", seed=7)
    virtq.serve(virtq.wrap.Traced(disk, "out.json"), "vhost-user:/run/disk.sock")

Each goes around any device and around each other. A wrapper stands between the device's handlers
and their queues, in Python; a device whose data path runs in the core is served by its Python path
while it is wrapped, which is slower. A device that is not wrapped does not know of any of this.
"""

from virtq.wrap.around import Wrapper
from virtq.wrap.captured import Captured
from virtq.wrap.fault import Fault, FaultError
from virtq.wrap.faulty import Faulty
from virtq.wrap.traced import Traced

__all__ = ["Captured", "Fault", "FaultError", "Faulty", "Traced", "Wrapper"]
