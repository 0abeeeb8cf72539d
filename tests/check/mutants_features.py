"""Devices that offer, or take, the wrong features; and those that are right and differ in what
they offer."""

from __future__ import annotations

from tests.check.mutants import BUSES, REFERENCES, catches
from tests.check.reference import RAM_BYTES, Reference, Served, Split
from virtq.features import F
from virtq.model.memory import DeviceHalf, Taken
from virtq.wire.blk import BlkFeature


class SplitOnly(Reference):
    offered = Reference.offered & ~int(F.RING_PACKED)


REFERENCES["features"] = (Reference, SplitOnly)


@catches("features.version_1_is_offered")
class Legacy(Reference):
    offered = Reference.offered & ~int(F.VERSION_1)


@catches("features.prerequisites_are_offered", "blk.flush_is_offered")
class CacheWithoutFlush(Reference):
    offered = Reference.offered & ~int(BlkFeature.FLUSH)


@catches("features.every_kind_is_accepted")
class RefusesPacked(Reference):
    def accepts(self, features: int) -> bool:
        return super().accepts(features) and not features & F.RING_PACKED


@catches("features.each_ring_feature_alone")
class WantsEventsWithTables(Reference):
    def accepts(self, features: int) -> bool:
        both = F.INDIRECT_DESC | F.EVENT_IDX
        return super().accepts(features) and features & both in (0, both)


@catches("features.what_was_not_offered")
class TakesWhatItDoesNotHave(Reference):
    offered = Reference.offered & ~int(F.RING_PACKED)
    stuck = False

    def accepts(self, features: int) -> bool:
        self.stuck = self.stuck or bool(features & F.RING_PACKED)
        return True

    def may_serve(self) -> bool:
        return super().may_serve() and not self.stuck


@catches("features.no_reserved_bits")
class OffersTheFuture(Reference):
    offered = Reference.offered | 1 << 45


@catches("features.version_1_declined")
class HangsAsLegacy(Reference):
    """It may end for that, but it has to come back."""

    stuck = False

    def write_features(self, features: int) -> None:
        super().write_features(features)
        self.stuck = self.stuck or not features

    def reset(self) -> None:
        if not self.stuck:
            super().reset()


@catches("features.the_kind_takes_effect")
class AlwaysSplit(Reference):
    def make_half(self, size: int, desc: int, driver: int, device: int) -> DeviceHalf:
        return Split(self.memory, self.features, size, desc, driver, device)


@catches("features.a_layout_that_works")
class NoLayout(Reference):
    def serve(self, served: Served) -> None:
        """It serves nobody."""


@catches("features.addresses_are_what_they_are")
class ReachesHalfTheMemory(Reference):
    def handle(self, buffer: Taken) -> int:
        middle = self.memory.regions[0].guest_addr + RAM_BYTES // 2
        if any(piece.address >= middle for piece in buffer.pieces):
            raise ValueError("beyond what it reaches")
        return super().handle(buffer)


class Platform(Reference):
    offered = Reference.offered | int(F.ACCESS_PLATFORM | F.ORDER_PLATFORM)


REFERENCES["features"] = (*REFERENCES["features"], Platform)


@catches("features.access_platform_declined", "features.order_platform_declined")
class NeverAgain(Platform):
    """Once something was declined, it takes nothing any more."""

    declined = False

    def accepts(self, features: int) -> bool:
        both = F.ACCESS_PLATFORM | F.ORDER_PLATFORM
        self.declined = self.declined or not features & both
        return not self.declined and super().accepts(features)


class OnMmio(Reference):
    """Behind virtio-mmio, as far as feature bits go."""


BUSES[OnMmio] = "mmio"
REFERENCES["features"] = (*REFERENCES["features"], OnMmio)


@catches("features.what_belongs_to_pci")
class VirtualFunctionsOnMmio(OnMmio):
    offered = Reference.offered | int(F.SR_IOV)


@catches("features.what_belongs_to_pci")
class AdministrationOnMmio(OnMmio):
    offered = Reference.offered | int(F.ADMIN_VQ)
