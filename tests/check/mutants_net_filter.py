"""Network devices that get one thing wrong about which frames reach the driver."""

from __future__ import annotations

from tests.check.mutants import REFERENCES, catches
from tests.check.mutants_net_control import Late
from tests.check.reference_net import NetReference
from tests.check.reference_net_control import Settings, check
from virtq.check.net.frames import VLAN
from virtq.wire.net import BROADCAST, Ctrl, CtrlRx

REFERENCES["net_filter"] = (NetReference,)


@catches("net_filter.basic_modes")
class WithoutAllMulticast(NetReference):
    def rx_mode(self, command: int, data: bytes) -> None:
        check(command != CtrlRx.ALLMULTI)
        super().rx_mode(command, data)


@catches("net_filter.further_modes")
class WithoutNoBroadcast(NetReference):
    def rx_mode(self, command: int, data: bytes) -> None:
        check(command != CtrlRx.NOBCAST)
        super().rx_mode(command, data)


class Modes(NetReference):
    """Its receive modes are as `changed` has them."""

    def changed(self, modes: set[int], to: bytes) -> set[int]:
        return modes

    def wants_address(self, to: bytes) -> bool:
        before = self.settings.modes
        try:
            self.settings.modes = self.changed(set(before), to)
            return super().wants_address(to)
        finally:
            self.settings.modes = before


@catches("net_filter.promiscuous")
class PromiscuousForUnicastOnly(Modes):
    def changed(self, modes: set[int], to: bytes) -> set[int]:
        return modes - {CtrlRx.PROMISC} if to[0] & 1 and to != BROADCAST else modes


@catches("net_filter.promiscuous_whatever_else")
class SuppressesBeforePromiscuous(Modes):
    def changed(self, modes: set[int], to: bytes) -> set[int]:
        return modes - {CtrlRx.PROMISC} if modes & {CtrlRx.NOUNI} else modes


@catches("net_filter.all_multicast")
class IgnoresAllMulticast(Modes):
    def changed(self, modes: set[int], to: bytes) -> set[int]:
        return modes - {CtrlRx.ALLMULTI}


@catches("net_filter.all_unicast")
class IgnoresAllUnicast(Modes):
    def changed(self, modes: set[int], to: bytes) -> set[int]:
        return modes - {CtrlRx.ALLUNI}


@catches("net_filter.no_multicast")
class IgnoresNoMulticast(Modes):
    def changed(self, modes: set[int], to: bytes) -> set[int]:
        return modes - {CtrlRx.NOMULTI}


@catches("net_filter.no_multicast_though_all")
class AllMulticastPrevails(Modes):
    def changed(self, modes: set[int], to: bytes) -> set[int]:
        return modes - {CtrlRx.NOMULTI} if CtrlRx.ALLMULTI in modes else modes


@catches("net_filter.broadcast_is_not_multicast")
class NoMulticastIsNoBroadcast(Modes):
    def changed(self, modes: set[int], to: bytes) -> set[int]:
        return modes | {int(CtrlRx.NOBCAST)} if CtrlRx.NOMULTI in modes else modes


@catches("net_filter.no_unicast")
class OwnAddressAlways(Modes):
    def changed(self, modes: set[int], to: bytes) -> set[int]:
        return modes - {CtrlRx.NOUNI} if to == self.settings.mac else modes


@catches("net_filter.no_unicast_though_all")
class AllUnicastPrevails(Modes):
    def changed(self, modes: set[int], to: bytes) -> set[int]:
        return modes - {CtrlRx.NOUNI} if CtrlRx.ALLUNI in modes else modes


@catches("net_filter.no_broadcast")
class IgnoresNoBroadcast(Modes):
    def changed(self, modes: set[int], to: bytes) -> set[int]:
        return modes - {CtrlRx.NOBCAST}


@catches("net_filter.no_broadcast_though_all_multicast")
class BroadcastIsMulticast(Modes):
    def changed(self, modes: set[int], to: bytes) -> set[int]:
        return modes - {CtrlRx.NOBCAST} if CtrlRx.ALLMULTI in modes else modes


@catches("net_filter.frames_for_others")
class TakesEveryAddress(NetReference):
    def wants_address(self, to: bytes) -> bool:
        return True


@catches("net_filter.the_table_at_once", "net_filter.the_address_at_once")
class LateAddresses(Late):
    kind = Ctrl.MAC


@catches("net_filter.no_table_after_a_reset")
class KeepsTheTable(NetReference):
    def fresh(self) -> Settings:
        old = self.settings
        return Settings(unicast=old.unicast, multicast=old.multicast)


@catches("net_filter.every_vlan")
class WantsVlansListed(NetReference):
    def wants_vlan(self, frame: bytes) -> bool:
        tag = int.from_bytes(frame[14:16]) & 0xFFF
        return frame[12:14] != VLAN or tag in self.settings.vlans


@catches("net_filter.vlans_that_are_listed")
class KnowsOneVlan(NetReference):
    def vlan(self, command: int, data: bytes) -> None:
        self.settings.vlans.clear()
        super().vlan(command, data)


@catches("net_filter.vlans_that_are_not")
class TakesEveryVlan(NetReference):
    def wants_vlan(self, frame: bytes) -> bool:
        return True


@catches("net_filter.vlans_that_are_not")
class NeverForgetsAVlan(NetReference):
    def vlan(self, command: int, data: bytes) -> None:
        super().vlan(0, data)
