"""PCI functions that get a common configuration field wrong, and the cases that must notice."""

from __future__ import annotations

from tests.check.mutants import catches
from tests.check.reference_buses import WithAdministration, WithASlowQueueReset, write_later
from tests.check.reference_pci import PciFunction, PciReference
from tests.check.reference_registers import WORD, Disk, QueueRegisters
from virtq.features import F
from virtq.status import Status


@catches("pci_common.halves")
class LowHalfClearsTheHighOne(PciReference):
    class function(PciFunction):
        def put_half(self, name: str, high: bool, value: int) -> None:
            if not high:
                super().put_half(name, True, 0)
            super().put_half(name, high, value)


@catches("pci_common.halves")
class TakesWholeAddressesOnly(PciReference):
    class function(PciFunction):
        held = 0

        def put_half(self, name: str, high: bool, value: int) -> None:
            if not high:
                self.held = value
                return
            super().put_half(name, False, self.held)
            super().put_half(name, True, value)


@catches("pci_common.device_feature")
class OneBitOfFeatureSelect(PciReference):
    class function(PciFunction):
        def feature_word(self, select: int) -> int:
            return super().feature_word(select & 1)


@catches("pci_common.device_feature")
class FeaturesBehindTheLast(PciReference):
    class function(PciFunction):
        def feature_word(self, select: int) -> int:
            return super().feature_word(select) if select < 4 else WORD


@catches("pci_common.driver_feature")
class OneWordForAll(PciReference):
    class function(PciFunction):
        def get(self, name: str) -> int:
            if name == "driver_feature":
                return list(self.words_written.values())[-1] if self.words_written else 0
            return super().get(name)


@catches("pci_common.driver_feature")
class FeaturesAddUp(PciReference):
    class function(PciFunction):
        def put_features(self, value: int) -> None:
            super().put_features(value | self.words_written.get(self.driver_select, 0))


@catches("pci_common.driver_feature_that_is_not_offered")
class ShowsWhatNobodyWrote(PciReference):
    class function(PciFunction):
        def get(self, name: str) -> int:
            return super().get(name) | (1 << 27 if name == "driver_feature" else 0)


@catches("pci_common.driver_feature_that_is_not_offered")
class ForgetsAllForOne(PciReference):
    class function(PciFunction):
        def put_features(self, value: int) -> None:
            offered = self.feature_word(self.driver_select)
            super().put_features(0 if value & ~offered else value)


@catches("pci_common.generation_while_live", "pci_common.generation_before_driver_ok")
class OneGeneration(PciReference):
    class function(PciFunction):
        def config_changed(self) -> None:
            super().config_changed()
            self.stale = False


@catches("pci_common.generation_before_driver_ok")
class GenerationsWhenLive(PciReference):
    class function(PciFunction):
        def config_changed(self) -> None:
            super().config_changed()
            self.stale = bool(self.device.status & Status.DRIVER_OK)


@catches("pci_common.generation_while_live")
class CountsEverySecondGeneration(PciReference):
    class function(PciFunction):
        changes = 0

        def config_changed(self) -> None:
            super().config_changed()
            self.changes += 1
            self.stale = bool(self.changes % 2)


@catches("pci_common.status_zero")
class GoesOnAfterStatusZero(PciReference):
    class disk(Disk):
        look_again_s = 0.001

        def reset(self) -> None:
            self.status = self.features = 0

        def may_serve(self) -> bool:
            return True


@catches("pci_common.status_zero")
class StatusIsNeverZeroAgain(PciReference):
    class disk(Disk):
        def reset(self) -> None:
            kept = self.status & Status.DRIVER_OK
            super().reset()
            self.status = kept


@catches("pci_common.queue_enable_after_a_reset")
class QueuesStayEnabled(PciReference):
    class function(PciFunction):
        def reset(self) -> None:
            enabled = [queue.enable for queue in getattr(self, "queues", ())]
            super().reset()
            for queue, enable in zip(self.queues, enabled, strict=False):
                queue.enable = enable


@catches("pci_common.queues_that_are_not_there")
class MirrorsItsQueues(PciReference):
    class function(PciFunction):
        @property
        def queue(self) -> QueueRegisters:
            return self.queues[self.select % 2] if self.select < 16 else QueueRegisters(0)


@catches("pci_common.queues_that_are_nowhere_near")
class SelectsWithTenBits(PciReference):
    class function(PciFunction):
        @property
        def queue(self) -> QueueRegisters:
            select = self.select & 0x3FF
            return self.queues[select] if select < 2 else QueueRegisters(0)


@catches("pci_common.queues_that_are_nowhere_near")
class KeepsTheSelectionOfAQueue(PciReference):
    class function(PciFunction):
        def put(self, name: str, value: int) -> None:
            if name != "queue_select" or value < 1024:
                super().put(name, value)


@catches("pci_common.queue_sizes")
class ThreeHundredSlots(PciReference):
    class disk(Disk):
        size_max = 300


@catches("pci_common.queue_size_after_a_reset")
class KeepsItsSmallQueues(PciReference):
    class function(PciFunction):
        def reset(self) -> None:
            sizes = [queue.size for queue in getattr(self, "queues", ())]
            super().reset()
            for queue, size in zip(self.queues, sizes, strict=False):
                queue.size = size


@catches("pci_common.queue_size_after_a_reset")
class OneSizeForAllQueues(PciReference):
    class function(PciFunction):
        def put(self, name: str, value: int) -> None:
            if name != "queue_size":
                super().put(name, value)


@catches("pci_common.no_virtual_functions")
class VirtualFunctionsWithoutExpress(PciReference):
    class disk(Disk):
        offered = Disk.offered | int(F.SR_IOV)


@catches("pci_common.the_first_administration_queue")
class AdministrationAmongTheOthers(WithAdministration):
    class function(WithAdministration.function):
        admin = (1, 1)


@catches("pci_common.the_last_administration_queue")
class AdministrationBehindTheEnd(WithAdministration):
    class function(WithAdministration.function):
        admin = (0xFFFF, 2)


@catches("pci_common.queue_reset_after_a_reset")
class QueuesAreBeingResetWithTheDevice(PciReference):
    class function(PciFunction):
        def reset(self) -> None:
            super().reset()
            for queue in self.queues:
                queue.reset = 1

        def enable(self) -> None:
            super().enable()
            self.queue.reset = 0


@catches("pci_common.queue_reset_of_a_queue_in_use")
class EnabledQueuesAreBeingReset(PciReference):
    class function(PciFunction):
        def enable(self) -> None:
            super().enable()
            self.queue.reset = 1


@catches("pci_common.queue_reset_resets")
class ResetsTheFieldsOnly(PciReference):
    class function(PciFunction):
        def reset_queue(self) -> None:
            self.queues[self.select] = self.new_queue(self.select)


@catches("pci_common.queue_reset_is_done")
class EnabledAfterItsReset(PciReference):
    class function(PciFunction):
        def reset_queue(self) -> None:
            super().reset_queue()
            self.queue.enable = 1


@catches("pci_common.queue_reset_is_on_its_way")
class DoneBeforeItIs(PciReference):
    class function(PciFunction):
        def reset_queue(self) -> None:
            write_later(self.device.memory, self.queue.device)
            super().reset_queue()


@catches("pci_common.queue_reset_is_on_its_way")
class ShowsAnotherNumberMeanwhile(WithASlowQueueReset):
    class function(WithASlowQueueReset.function):
        def reset_queue(self) -> None:
            self.queue.reset = 2
