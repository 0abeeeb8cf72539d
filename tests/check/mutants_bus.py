"""Devices on a bus that get one register wrong, and the cases that must notice."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator

from tests.check.mutants import BUSES, REFERENCES, catches
from tests.check.reference_mmio import MmioReference, MmioWindow
from tests.check.reference_pci import (
    DEVICE,
    ISR,
    NOTIFY,
    WORD,
    Disk,
    PciFunction,
    PciReference,
    QueueRegisters,
)
from virtq.features import F
from virtq.status import Status
from virtq.transports.qtest.msix import NO_VECTOR

Structures = Iterator[tuple[int, int, int, int, bytes]]


# Functions that are right, and have what not every one has


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


BUSES[PciReference] = "pci"
BUSES[MmioReference] = "mmio"
REFERENCES["pci_capabilities"] = (PciReference, WithTwoOfEach, WithNotificationData)
REFERENCES["pci_common"] = (PciReference, WithAdministration, WithASlowQueueReset)
REFERENCES["pci_interrupts"] = (PciReference,)
REFERENCES["mmio"] = (MmioReference, MmioWithASlowQueueReset)


# The capability list


@catches("pci_capabilities.cap_len")
class CapLenWithoutTheMultiplier(PciReference):
    class function(PciFunction):
        def capability(self, kind: int, bar: int, offset: int, length: int, extra: bytes) -> bytes:
            data = super().capability(kind, bar, offset, length, extra)
            return data[:2] + b"\x10" + data[3:]


@catches("pci_capabilities.what_is_appended")
class AppendsTheNextCapability(PciReference):
    class function(PciFunction):
        def capability(self, kind: int, bar: int, offset: int, length: int, extra: bytes) -> bytes:
            data = super().capability(kind, bar, offset, length, extra)
            return data[:2] + b"\x20" + data[3:] if kind == 1 else data


@catches("pci_capabilities.what_is_appended")
class AppendsWhatIsNotThere(PciReference):
    class function(PciFunction):
        def capability(self, kind: int, bar: int, offset: int, length: int, extra: bytes) -> bytes:
            data = super().capability(kind, bar, offset, length, extra)
            return data[:2] + b"\xf0" + data[3:] if kind == 2 else data


@catches("pci_capabilities.several_structures")
class SecondCommonOfNothing(PciReference):
    class function(PciFunction):
        def structures(self) -> Structures:
            yield from super().structures()
            yield 1, 4, NOTIFY + 0x800, 64, b""


@catches("pci_capabilities.several_structures")
class SecondConfigurationOfNothing(PciReference):
    class function(PciFunction):
        def structures(self) -> Structures:
            yield from super().structures()
            yield 4, 4, NOTIFY + 0x800, 64, b""


@catches("pci_capabilities.a_common_structure")
class HidesItsStructureOnceMsixIsOn(PciReference):
    class function(PciFunction):
        def config_read(self, offset: int, size: int) -> int:
            value = super().config_read(offset, size)
            return 0x20 if offset == 0x43 and self.msix_on else value


class Moved(PciFunction):
    """One structure begins a little later."""

    kind, by = 1, 2

    def structures(self) -> Structures:
        for kind, bar, offset, length, extra in super().structures():
            yield kind, bar, offset + self.by * (kind == self.kind), length, extra

    def _back(self, offset: int) -> int:
        last = {1: ISR, 4: NOTIFY, 2: 0x4000}[self.kind]
        first = {1: 0, 4: DEVICE, 2: NOTIFY}[self.kind]
        return offset - self.by if first <= offset < last else offset

    def load(self, bar: int, offset: int, size: int) -> int:
        return super().load(bar, self._back(offset) if bar == 4 else offset, size)

    def store(self, bar: int, offset: int, size: int, value: int) -> None:
        super().store(bar, self._back(offset) if bar == 4 else offset, size, value)


@catches("pci_capabilities.the_common_structure_is_aligned")
class CommonAtTwo(PciReference):
    function = Moved


@catches("pci_capabilities.the_device_structure_is_aligned")
class ConfigurationAtTwo(PciReference):
    class function(Moved):
        kind = 4


@catches("pci_capabilities.aligned_for_16_bits")
class NotifiedAtOne(PciReference):
    class function(Moved):
        kind, by, notify_length = 2, 1, 0x800


@catches("pci_capabilities.aligned_for_32_bits")
class NotifiedAtTwo(WithNotificationData):
    class function(Moved):
        kind, notify_length = 2, 0x800


class Lacking(PciFunction):
    kind = 0

    def structures(self) -> Structures:
        return (one for one in super().structures() if one[0] != self.kind)


@catches("pci_capabilities.a_notification_structure")
class NoNotificationStructure(PciReference):
    class function(Lacking):
        kind = 2


@catches("pci_capabilities.an_isr_structure")
class NoIsr(PciReference):
    class function(Lacking):
        kind = 3


@catches("pci_capabilities.a_device_structure")
class NoConfiguration(PciReference):
    class function(Lacking):
        kind = 4


@catches("pci_capabilities.the_multiplier_for_16_bits")
class MultiplierOfSix(PciReference):
    class function(PciFunction):
        multiplier = 6


@catches("pci_capabilities.the_multiplier_for_32_bits")
class MultiplierOfTwo(WithNotificationData):
    class function(PciFunction):
        multiplier = 2


@catches("pci_capabilities.room_for_16_bits")
class OneByteForNotifications(PciReference):
    class function(PciFunction):
        multiplier, notify_length = 0, 1


@catches("pci_capabilities.room_for_32_bits")
class TwoBytesForNotificationData(WithNotificationData):
    class function(PciFunction):
        multiplier, notify_length = 0, 2


class FarQueues(PciFunction):
    multiplier = 0x1000


@catches("pci_capabilities.room_for_every_queue_16")
class NotifiesBehindTheEnd(PciReference):
    function = FarQueues


@catches("pci_capabilities.room_for_every_queue_32")
class NotifiesDataBehindTheEnd(WithNotificationData):
    class function(PciFunction):
        multiplier, notify_length = 4, 6


class FarWhenPacked(PciFunction):
    def notify_off(self, index: int) -> int:
        return index * 0x400 if self.device.features & F.RING_PACKED else index


@catches("pci_capabilities.room_in_every_configuration_16")
class NotifiesPackedRingsBehindTheEnd(PciReference):
    function = FarWhenPacked


@catches("pci_capabilities.room_in_every_configuration_32")
class NotifiesPackedRingsWithDataBehindTheEnd(WithNotificationData):
    function = FarWhenPacked


# The common configuration


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


def _write_later(memory: object, address: int) -> None:
    def write() -> None:
        memory.write(address, b"\xff\xff\xff\xff")  # type: ignore[attr-defined]

    threading.Timer(0.004, write).start()


@catches("pci_common.queue_reset_is_on_its_way")
class DoneBeforeItIs(PciReference):
    class function(PciFunction):
        def reset_queue(self) -> None:
            _write_later(self.device.memory, self.queue.device)
            super().reset_queue()


@catches("pci_common.queue_reset_is_on_its_way")
class ShowsAnotherNumberMeanwhile(WithASlowQueueReset):
    class function(WithASlowQueueReset.function):
        def reset_queue(self) -> None:
            self.queue.reset = 2


# Interrupts


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


class SilentDisk(Disk):
    def ask_for_a_reset(self) -> None:
        self.status |= Status.DEVICE_NEEDS_RESET


@catches("pci_interrupts.asking_for_a_reset")
class AsksSilently(PciReference):
    disk = SilentDisk


# Memory-mapped registers


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
            _write_later(self.device.memory, self.queue.device)
            super().reset_queue()


@catches("mmio.queue_reset_is_on_its_way")
class MmioShowsAnotherNumberMeanwhile(MmioWithASlowQueueReset):
    class window(MmioWithASlowQueueReset.window):
        def reset_queue(self) -> None:
            self.queue.reset = 2
