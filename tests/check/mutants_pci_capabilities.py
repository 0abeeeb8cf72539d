"""PCI functions whose capability list is wrong, and the cases that must notice."""

from __future__ import annotations

from tests.check.mutants import catches
from tests.check.reference_buses import Structures, WithNotificationData
from tests.check.reference_pci import DEVICE, ISR, NOTIFY, PciFunction, PciReference
from virtq.features import F


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


@catches("pci_capabilities.a_common_structure")
class CommonInNoBar(PciReference):
    class function(PciFunction):
        def structures(self) -> Structures:
            for kind, bar, offset, length, extra in super().structures():
                yield kind, 7 if kind == 1 else bar, offset, length, extra


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


@catches("pci_capabilities.a_common_structure")
class NoCommonStructure(PciReference):
    class function(Lacking):
        kind = 1


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
