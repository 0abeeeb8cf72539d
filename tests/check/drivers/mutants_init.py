"""Drivers that initialize a device wrongly, or accept the wrong features."""

from __future__ import annotations

import os
import time

from tests.check.drivers.mutants import REFERENCES, catches
from tests.check.drivers.reference import Reference
from tests.check.drivers.reference_types import NetReference
from virtq.errors import VirtqError
from virtq.features import F
from virtq.status import Status
from virtq.transports.vhost_user.messages import PROTOCOL_FEATURES, Front
from virtq.transports.vhost_user.wire import U64


class TriesAgain(Reference):
    """Resets the device after a failure, and tries once more."""

    def fail(self) -> None:
        super().fail()
        self.reset()
        self.acknowledge()


REFERENCES["driver.init.resets_after_failed"] = (TriesAgain,)
REFERENCES["driver.features.nothing_without_what_it_needs"] = (NetReference,)


@catches("init.begins_with_a_reset")
class DoesNotReset(Reference):
    def reset(self) -> None:
        self.status = 0


@catches("init.the_reset_is_waited_for")
class DoesNotLook(Reference):
    def reset(self) -> None:
        self.transport.write_status(0)
        self.status = 0


@catches("init.steps_are_taken_in_order")
class DoesNotAcknowledge(Reference):
    def acknowledge(self) -> None:
        self.status = 0


@catches("init.steps_are_taken_in_order")
class KnowsBeforeItSees(Reference):
    def acknowledge(self) -> None:
        super().know()

    def know(self) -> None:
        super().acknowledge()


@catches("init.steps_are_taken_in_order", "init.no_notification_before_driver_ok")
class LiveAtOnce(Reference):
    def features_ok(self) -> bool:
        return True

    def driver_ok(self) -> None:
        for ring in self.rings.values():
            self.fill(ring)
            ring.half.publish()
            os.eventfd_write(ring.kick_fd, 1)
        self.transport.read_status()
        super().driver_ok()


@catches("init.bits_are_not_cleared")
class ForgetsBits(Reference):
    def know(self) -> None:
        self.status = 0
        super().know()


@catches("init.features_are_written_before_features_ok")
class WritesFeaturesFirst(Reference):
    def reset(self) -> None:
        super().reset()
        super().negotiate()

    def negotiate(self) -> None:
        """Done."""


@catches("init.the_status_is_read_after_features_ok", "init.stops_if_features_ok_does_not_stay")
class Trusts(Reference):
    def is_features_ok(self) -> bool:
        return True


@catches("init.queues_are_set_up_before_driver_ok")
class SetsUpLate(Reference):
    def set_up(self) -> None:
        """Later."""

    def driver_ok(self) -> None:
        super().driver_ok()
        super().set_up()


@catches("init.configuration_is_not_written_too_early")
class WritesItsConfiguration(Reference):
    def know(self) -> None:
        super().know()
        self.transport.write_config(32, b"\1")


@catches("init.no_feature_is_accepted_late")
class ChangesItsMindLate(Reference):
    def read_config(self) -> None:
        super().read_config()
        self.transport.write_features(self.features & ~int(F.INDIRECT_DESC))


@catches("init.sets_failed_if_features_ok_does_not_stay", "init.fails_openly_without_version_1")
class FailsSilently(Reference):
    def fail(self) -> None:
        """Says nothing."""


@catches("init.resets_after_failed")
class TriesAgainAtOnce(Reference):
    def fail(self) -> None:
        super().fail()
        self.status = 0
        self.acknowledge()


@catches("init.does_not_count_on_a_device_that_needs_a_reset")
class WaitsForWhatIsOutstanding(Reference):
    def leave(self) -> None:
        while any(ring.out for ring in self.rings.values()) and not self.killed:
            for ring in self.rings.values():
                ring.reap()
            time.sleep(0.001)
        super().leave()


@catches("init.version_1_is_accepted")
class IsOld(Reference):
    def features_ok(self) -> bool:
        self.tell(Status.FEATURES_OK)
        return self.is_features_ok()

    def choose(self) -> int:
        return super().choose() & ~int(F.VERSION_1)


@catches("init.packed_rings_are_accepted")
class SplitOnly(Reference):
    accepted = Reference.accepted & ~int(F.RING_PACKED)


@catches("features.only_what_is_offered")
class AcceptsMore(Reference):
    def choose(self) -> int:
        return super().choose() | F.NOTIFICATION_DATA

    def negotiate(self) -> None:
        self.offered = self.transport.read_features()
        self.features = self.choose()
        exchange = self.transport._exchange
        self.transport._negotiation.offered |= self.features
        exchange.tell(Front.SET_FEATURES, U64(self.features | PROTOCOL_FEATURES))


@catches(
    "features.bits_that_mean_nothing",
    "features.no_sr_iov_without_the_capability",
)
class AcceptsEverything(Reference):
    def choose(self) -> int:
        return self.offered


@catches("features.nothing_without_what_it_needs")
class AcceptsHalf(NetReference):
    def choose(self) -> int:
        return self.offered


@catches("features.bits_that_mean_nothing")
class FearsTheUnknown(Reference):
    def choose(self) -> int:
        if self.offered >> 44 & 0x3F:
            raise VirtqError("what is that?")
        return super().choose()


@catches("features.works_with_version_1_alone")
class NeedsTables(Reference):
    def features_ok(self) -> bool:
        return bool(self.features & F.INDIRECT_DESC) and super().features_ok()


@catches("features.order_platform_is_accepted", "features.access_platform_is_accepted")
class IgnoresThePlatform(Reference):
    accepted = Reference.accepted & ~int(F.ORDER_PLATFORM | F.ACCESS_PLATFORM)


@catches("features.a_larger_configuration_space")
class WantsItsSize(Reference):
    def read_config(self) -> None:
        assert self.transport.config_size <= 96
        super().read_config()
