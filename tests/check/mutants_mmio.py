"""Devices that get a memory-mapped register wrong, and the cases that must notice."""

from __future__ import annotations

import struct

from tests.check.mutants import catches
from tests.check.reference_buses import AdminDisk, MmioWithASlowQueueReset, SilentDisk, write_later
from tests.check.reference_mmio import MmioReference, MmioWindow
from tests.check.reference_registers import Disk
from virtq.features import F
from virtq.status import Status


@catches("mmio.asking_for_a_reset")
class MmioAsksSilently(MmioReference):
    disk = SilentDisk


class VirtualDisk(Disk):
    offered = Disk.offered | int(F.SR_IOV)


@catches("mmio.no_virtual_functions")
class MmioVirtualFunctions(MmioReference):
    disk = VirtualDisk


@catches("mmio.no_administration_queues")
class MmioAdministration(MmioReference):
    disk = AdminDisk


@catches("mmio.magic_value")
class OtherMagicWhenLive(MmioReference):
    class window(MmioWindow):
        def get(self, name: str) -> int:
            live = self.device.status & Status.DRIVER_OK
            swapped = struct.unpack(">I", b"virt")[0]
            return swapped if name == "MagicValue" and live else super().get(name)


@catches("mmio.magic_value")
class NoMagic(MmioReference):
    class window(MmioWindow):
        def get(self, name: str) -> int:
            return 0 if name == "MagicValue" else super().get(name)


@catches("mmio.version")
class OfTheNextVersion(MmioReference):
    class window(MmioWindow):
        def get(self, name: str) -> int:
            return 3 if name == "Version" else super().get(name)


@catches("mmio.version")
class LegacyOnceItIsSeen(MmioReference):
    class window(MmioWindow):
        def get(self, name: str) -> int:
            return 1 if name == "Version" and self.device.status else super().get(name)


@catches("mmio.a_used_buffer_is_held", "mmio.a_configuration_change_is_held")
class ReadingAcknowledges(MmioReference):
    class window(MmioWindow):
        def get(self, name: str) -> int:
            value = super().get(name)
            if name == "InterruptStatus":
                self.status = 0
            return value


@catches("mmio.a_used_buffer_is_held", "mmio.a_configuration_change_is_held")
class AnyAcknowledgmentDoes(MmioReference):
    class window(MmioWindow):
        def acknowledge(self, value: int) -> None:
            self.status = 0


@catches("mmio.a_used_buffer_is_held", "mmio.a_configuration_change_is_held")
class NoAcknowledgmentDoes(MmioReference):
    class window(MmioWindow):
        def acknowledge(self, value: int) -> None:
            """It stays."""


@catches("mmio.no_event_but_used_buffers")
class UsedBuffersChangeTheConfiguration(MmioReference):
    class window(MmioWindow):
        def used(self, index: int) -> None:
            self.status |= 3


@catches("mmio.no_event_but_used_buffers")
class BeginsWithAnEvent(MmioReference):
    class window(MmioWindow):
        def put_status(self, value: int) -> None:
            super().put_status(value)
            if value & Status.DRIVER_OK:
                self.status |= 1


@catches("mmio.no_event_but_a_configuration_change")
class ChangesUseBuffers(MmioReference):
    class window(MmioWindow):
        def config_changed(self) -> None:
            super().config_changed()
            self.status = 3 if self.status else 0


@catches("mmio.reset_clears")
class EventsOutliveAReset(MmioReference):
    class window(MmioWindow):
        def reset(self) -> None:
            kept = getattr(self, "status", 0)
            super().reset()
            self.status = kept


@catches("mmio.reset_clears")
class QueuesStayReady(MmioReference):
    class window(MmioWindow):
        def reset(self) -> None:
            ready = [queue.enable for queue in getattr(self, "queues", ())]
            super().reset()
            for queue, enable in zip(self.queues, ready, strict=False):
                queue.enable = enable


@catches("mmio.generation_while_live", "mmio.generation_before_driver_ok")
class MmioOneGeneration(MmioReference):
    class window(MmioWindow):
        def config_changed(self) -> None:
            super().config_changed()
            self.stale = False


@catches("mmio.generation_before_driver_ok")
class MmioGenerationsWhenLive(MmioReference):
    class window(MmioWindow):
        def config_changed(self) -> None:
            super().config_changed()
            self.stale = bool(self.device.status & Status.DRIVER_OK)


@catches("mmio.a_queue_that_is_not_ready")
class ReadyWithItsAddresses(MmioReference):
    class window(MmioWindow):
        def put(self, name: str, value: int) -> None:
            super().put(name, value)
            if name == "QueueDeviceHigh":
                self.enable()


@catches("mmio.a_queue_that_is_stopped")
class StopsInNameOnly(MmioReference):
    class window(MmioWindow):
        def stop(self) -> None:
            """It goes on."""


@catches("mmio.queue_reset_after_a_reset")
class MmioQueuesAreBeingResetWithTheDevice(MmioReference):
    class window(MmioWindow):
        def reset(self) -> None:
            super().reset()
            for queue in self.queues:
                queue.reset = 1

        def enable(self) -> None:
            super().enable()
            self.queue.reset = 0


@catches("mmio.queue_reset_of_a_queue_in_use")
class ReadyQueuesAreBeingReset(MmioReference):
    class window(MmioWindow):
        def enable(self) -> None:
            super().enable()
            self.queue.reset = 1


@catches("mmio.queue_reset_resets")
class MmioResetsTheRegistersOnly(MmioReference):
    class window(MmioWindow):
        def reset_queue(self) -> None:
            self.queues[self.select] = self.new_queue(self.select)


@catches("mmio.queue_reset_is_done")
class ReadyAfterItsReset(MmioReference):
    class window(MmioWindow):
        def reset_queue(self) -> None:
            super().reset_queue()
            self.queue.enable = 1


@catches("mmio.queue_reset_is_on_its_way")
class MmioDoneBeforeItIs(MmioReference):
    class window(MmioWindow):
        def reset_queue(self) -> None:
            write_later(self.device.memory, self.queue.device)
            super().reset_queue()


@catches("mmio.queue_reset_is_on_its_way")
class MmioShowsAnotherNumberMeanwhile(MmioWithASlowQueueReset):
    class window(MmioWithASlowQueueReset.window):
        def reset_queue(self) -> None:
            self.queue.reset = 2
