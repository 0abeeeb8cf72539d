"""Devices on a bus that are right, and have what not every one has."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from tests.check.mutants import BUSES, REFERENCES
from tests.check.reference_mmio import MmioReference, MmioWindow
from tests.check.reference_pci import PciFunction, PciReference
from tests.check.reference_registers import Disk
from virtq._core import Memory
from virtq.features import F
from virtq.status import Status

Structures = Iterator[tuple[int, int, int, int, bytes]]


class DataDisk(Disk):
    offered = Disk.offered | int(F.NOTIFICATION_DATA)


class WithNotificationData(PciReference):
    disk = DataDisk


class WithTwoOfEach(PciReference):
    """Each structure twice, and padding behind one capability."""

    class function(PciFunction):
        def structures(self) -> Structures:
            for kind, bar, offset, length, extra in super().structures():
                yield kind, bar, offset, length, extra
                if kind in (1, 4):
                    yield kind, bar, offset, length, bytes(4)


class AdminDisk(Disk):
    offered = Disk.offered | int(F.ADMIN_VQ)


class WithAdministration(PciReference):
    disk = AdminDisk

    class function(PciFunction):
        admin = (2, 1)

        def get(self, name: str) -> int:
            if name.startswith("admin_queue_"):
                return self.admin[name == "admin_queue_num"]
            return super().get(name)


class WithASlowQueueReset(PciReference):
    class function(PciFunction):
        looks = 0

        def get(self, name: str) -> int:
            if name == "queue_reset" and self.queue.reset:
                self.looks += 1
                if self.looks % 4 == 0:
                    super().reset_queue()
            return super().get(name)

        def reset_queue(self) -> None:
            self.queue.reset = 1


class MmioWithASlowQueueReset(MmioReference):
    class window(MmioWindow):
        looks = 0

        def get(self, name: str) -> int:
            if name == "QueueReset" and self.queue.reset:
                self.looks += 1
                if self.looks % 4 == 0:
                    super().reset_queue()
            return super().get(name)

        def reset_queue(self) -> None:
            self.queue.reset = 1


class SilentDisk(Disk):
    def ask_for_a_reset(self) -> None:
        self.status |= Status.DEVICE_NEEDS_RESET


def write_later(memory: Memory, address: int) -> None:
    def write() -> None:
        memory.write(address, b"\xff\xff\xff\xff")

    threading.Timer(0.004, write).start()


BUSES[PciReference] = "pci"
BUSES[MmioReference] = "mmio"
REFERENCES["pci_capabilities"] = (PciReference, WithTwoOfEach, WithNotificationData)
REFERENCES["pci_common"] = (PciReference, WithAdministration, WithASlowQueueReset)
REFERENCES["pci_interrupts"] = (PciReference,)
REFERENCES["mmio"] = (MmioReference, MmioWithASlowQueueReset)
