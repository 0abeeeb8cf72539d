"""PCI functions that interrupt wrongly, and the cases that must notice."""

from __future__ import annotations

from tests.check.mutants import catches
from tests.check.reference_buses import SilentDisk
from tests.check.reference_pci import PciFunction, PciReference
from virtq.transports.qtest.msix import NO_VECTOR


@catches("pci_interrupts.the_queue_bit")
class QueuesSetTheOtherBit(PciReference):
    class function(PciFunction):
        def used(self, index: int) -> None:
            super().used(index)
            if self.isr:
                self.isr = 2


@catches("pci_interrupts.the_configuration_bit")
class ChangesSetTheOtherBit(PciReference):
    class function(PciFunction):
        def config_changed(self) -> None:
            super().config_changed()
            if self.isr:
                self.isr = 1


@catches("pci_interrupts.the_interrupt_status")
class InterruptStatusStays(PciReference):
    class function(PciFunction):
        stays = False

        def interrupt_status(self) -> bool:
            self.stays = self.stays or super().interrupt_status()
            return self.stays


@catches("pci_interrupts.the_interrupt_status")
class InterruptStatusOfQueuesAlone(PciReference):
    class function(PciFunction):
        def interrupt_status(self) -> bool:
            return bool(self.isr & 1)


@catches("pci_interrupts.reading_clears")
class ReadingClearsNothing(PciReference):
    class function(PciFunction):
        def read_isr(self) -> int:
            return self.isr


@catches("pci_interrupts.the_table_size")
class OneVector(PciReference):
    class function(PciFunction):
        vectors = table_entries = 1


@catches("pci_interrupts.the_table_is_there")
class TableOfTwo(PciReference):
    class function(PciFunction):
        table_entries = 2


class ChangesAtVectorZero(PciFunction):
    def put(self, name: str, value: int) -> None:
        if name == "config_msix_vector" and value != NO_VECTOR:
            value = 0
        super().put(name, value)


@catches("pci_interrupts.any_event_to_any_vector")
class ChangesAtVectorZeroOnly(PciReference):
    function = ChangesAtVectorZero


@catches("pci_interrupts.any_event_to_any_vector")
class QueuesHaveVectorsOfTheirOwn(PciReference):
    class function(PciFunction):
        def put(self, name: str, value: int) -> None:
            if name == "queue_msix_vector" and value != NO_VECTOR and value != self.select + 1:
                value = NO_VECTOR
            super().put(name, value)


@catches("pci_interrupts.messages_of_the_mapped_vector")
class SendsItsOwnMessage(PciReference):
    class function(PciFunction):
        def used(self, index: int) -> None:
            self.message(index + 1)


@catches("pci_interrupts.unmap")
class OnceMappedAlwaysMapped(PciReference):
    class function(PciFunction):
        def put(self, name: str, value: int) -> None:
            if not name.endswith("msix_vector") or value != NO_VECTOR:
                super().put(name, value)


@catches("pci_interrupts.each_event_has_its_vector")
class OneVectorForAllQueues(PciReference):
    class function(PciFunction):
        def put(self, name: str, value: int) -> None:
            super().put(name, value)
            if name == "queue_msix_vector":
                for queue in self.queues:
                    queue.vector = self.mapped(value)


@catches("pci_interrupts.reset_unmaps")
class ChangesStayMapped(PciReference):
    class function(PciFunction):
        def reset(self) -> None:
            kept = getattr(self, "config_vector", NO_VECTOR)
            super().reset()
            self.config_vector = kept


@catches("pci_interrupts.reset_unmaps")
class QueuesStayMapped(PciReference):
    class function(PciFunction):
        def reset(self) -> None:
            kept = [queue.vector for queue in getattr(self, "queues", ())]
            super().reset()
            for queue, vector in zip(self.queues, kept, strict=False):
                queue.vector = vector


@catches("pci_interrupts.map_again_and_again")
class RunsOutOfVectors(PciReference):
    class function(PciFunction):
        left = 100

        def mapped(self, vector: int) -> int:
            if vector == NO_VECTOR:
                return vector
            self.left -= 1
            return super().mapped(vector) if self.left > 0 else NO_VECTOR


@catches("pci_interrupts.a_vector_that_is_not_there")
class TakesAnyVector(PciReference):
    class function(PciFunction):
        def mapped(self, vector: int) -> int:
            return vector


@catches("pci_interrupts.a_vector_that_is_not_there")
class KeepsTheVectorItHad(PciReference):
    class function(PciFunction):
        def put(self, name: str, value: int) -> None:
            is_vector = name.endswith("msix_vector")
            if not is_vector or value < self.vectors or value == NO_VECTOR:
                super().put(name, value)


class DefaultsToVectorZero(PciFunction):
    def message(self, vector: int) -> None:
        super().message(0 if vector == NO_VECTOR else vector)


@catches(
    "pci_interrupts.a_queue_without_a_vector", "pci_interrupts.a_configuration_without_a_vector"
)
class SendsToVectorZero(PciReference):
    function = DefaultsToVectorZero


@catches(
    "pci_interrupts.a_queue_without_a_vector", "pci_interrupts.a_configuration_without_a_vector"
)
class FallsBackToIntx(PciReference):
    class function(PciFunction):
        def message(self, vector: int) -> None:
            super().message(vector)
            if vector == NO_VECTOR:
                self.isr |= 1

        def config_read(self, offset: int, size: int) -> int:
            value = super().config_read(offset, size)
            return value | 8 if (offset, size) == (6, 2) and self.isr else value


@catches("pci_interrupts.one_vector_for_all")
class ChangesNeedAVectorOfTheirOwn(PciReference):
    class function(PciFunction):
        def config_changed(self) -> None:
            taken = {queue.vector for queue in self.queues if queue.enable}
            if self.config_vector not in taken:
                super().config_changed()


@catches("pci_interrupts.one_vector_for_all")
class QueuesNeedAVectorOfTheirOwn(PciReference):
    class function(PciFunction):
        def used(self, index: int) -> None:
            if self.queues[index].vector != self.config_vector:
                super().used(index)


@catches("pci_interrupts.asking_for_a_reset")
class AsksSilently(PciReference):
    disk = SilentDisk
