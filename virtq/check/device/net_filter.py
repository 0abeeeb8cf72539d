"""Which frames reach the driver: receive modes, MAC addresses, VLANs (5.1.6.5.1 to 5.1.6.5.3)."""

from __future__ import annotations

from virtq.check.case import case, expect
from virtq.check.context import Context
from virtq.check.net.nic import SOMEBODY, Nic
from virtq.wire.net import BROADCAST, DEVICE_ID, Ctrl, CtrlMac, CtrlRx, CtrlVlan, mac_table
from virtq.wire.net import NetFeature as N

_GROUP, _OTHER_GROUP = bytes.fromhex("33330000aa01"), bytes.fromhex("01005e00aa02")
_EXTRA = CtrlRx.ALLUNI, CtrlRx.NOMULTI, CtrlRx.NOUNI, CtrlRx.NOBCAST
_VLAN, _OTHER_VLAN = 77, 78


def _nic(ctx: Context, *on: CtrlRx, extra: bool = False, add: int = 0) -> Nic:
    """With these receive modes on and all others off, and no further addresses."""
    features = N.CTRL_VQ | N.CTRL_RX | (N.CTRL_RX_EXTRA if extra else N(0))
    nic = Nic(ctx, int(features | add))
    _modes(nic, *on, extra=extra)
    nic.order(Ctrl.MAC, CtrlMac.TABLE_SET, mac_table([], []))
    return nic


def _modes(nic: Nic, *on: CtrlRx, extra: bool = False) -> None:
    for mode in (CtrlRx.PROMISC, CtrlRx.ALLMULTI, *(_EXTRA if extra else ())):
        nic.order(Ctrl.RX, mode, bytes([mode in on]))


def _passed(nic: Nic, *to: bytes, last_to: bytes | None = None) -> list[bytes]:
    """The addresses of those frames that arrive."""
    frames = [nic.frame(address) for address in to]
    return [received.frame[:6] for received in nic.deliver(*frames, last_to=last_to)]


def _expect(passed: list[bytes], *to: bytes) -> None:
    names = ", ".join(address.hex(":") for address in to) or "none"
    came = ", ".join(address.hex(":") for address in passed) or "none"
    expect(passed == list(to), f"frames for {names}", f"for {came}")


@case("net.ctrl.rx.dev.support", device_id=DEVICE_ID, needs=N.CTRL_RX, rings=False)
def basic_modes(ctx: Context) -> None:
    """With CTRL_RX, PROMISC and ALLMULTI can be turned on and off."""
    nic = Nic(ctx, int(N.CTRL_VQ | N.CTRL_RX), wire=False)
    for mode in (CtrlRx.PROMISC, CtrlRx.ALLMULTI):
        for on in (b"\1", b"\0"):
            nic.order(Ctrl.RX, mode, on)


@case("net.ctrl.rx.dev.support-extra", device_id=DEVICE_ID, needs=N.CTRL_RX_EXTRA, rings=False)
def further_modes(ctx: Context) -> None:
    """With CTRL_RX_EXTRA, ALLUNI, NOMULTI, NOUNI and NOBCAST can be turned on and off."""
    nic = Nic(ctx, int(N.CTRL_VQ | N.CTRL_RX | N.CTRL_RX_EXTRA), wire=False)
    for mode in _EXTRA:
        for on in (b"\1", b"\0"):
            nic.order(Ctrl.RX, mode, on)


@case("net.ctrl.rx.dev.promisc", device_id=DEVICE_ID, needs=N.CTRL_RX, rings=False)
def promiscuous(ctx: Context) -> None:
    """In promiscuous mode every frame should be received."""
    nic = _nic(ctx, CtrlRx.PROMISC)
    _expect(_passed(nic, SOMEBODY, _GROUP, BROADCAST), SOMEBODY, _GROUP, BROADCAST)


@case("net.ctrl.rx.dev.promisc-priority", device_id=DEVICE_ID, needs=N.CTRL_RX_EXTRA, rings=False)
def promiscuous_whatever_else(ctx: Context) -> None:
    """Promiscuous mode should prevail over modes that suppress frames."""
    suppressed = CtrlRx.NOMULTI, CtrlRx.NOUNI, CtrlRx.NOBCAST
    nic = _nic(ctx, CtrlRx.PROMISC, *suppressed, extra=True)
    _expect(_passed(nic, SOMEBODY, _GROUP, BROADCAST), SOMEBODY, _GROUP, BROADCAST)


@case("net.ctrl.rx.dev.allmulti", device_id=DEVICE_ID, needs=N.CTRL_RX, rings=False)
def all_multicast(ctx: Context) -> None:
    """With ALLMULTI, every multicast frame should be received."""
    nic = _nic(ctx, CtrlRx.ALLMULTI)
    _expect(_passed(nic, _GROUP, _OTHER_GROUP), _GROUP, _OTHER_GROUP)


@case("net.ctrl.rx.dev.alluni", device_id=DEVICE_ID, needs=N.CTRL_RX_EXTRA, rings=False)
def all_unicast(ctx: Context) -> None:
    """With ALLUNI, every unicast frame should be received."""
    nic = _nic(ctx, CtrlRx.ALLUNI, extra=True)
    _expect(_passed(nic, SOMEBODY), SOMEBODY)


@case("net.ctrl.rx.dev.nomulti", device_id=DEVICE_ID, needs=N.CTRL_RX_EXTRA, rings=False)
def no_multicast(ctx: Context) -> None:
    """With NOMULTI, no multicast frame should be received, not even for a listed address."""
    nic = _nic(ctx, CtrlRx.NOMULTI, extra=True)
    nic.order(Ctrl.MAC, CtrlMac.TABLE_SET, mac_table([], [_GROUP]))
    _expect(_passed(nic, _GROUP))


@case("net.ctrl.rx.dev.nomulti-priority", device_id=DEVICE_ID, needs=N.CTRL_RX_EXTRA, rings=False)
def no_multicast_though_all(ctx: Context) -> None:
    """NOMULTI should prevail over ALLMULTI."""
    nic = _nic(ctx, CtrlRx.NOMULTI, CtrlRx.ALLMULTI, extra=True)
    _expect(_passed(nic, _GROUP))


@case(
    "net.ctrl.rx.dev.nomulti-not-broadcast",
    device_id=DEVICE_ID,
    needs=N.CTRL_RX_EXTRA,
    rings=False,
)
def broadcast_is_not_multicast(ctx: Context) -> None:
    """NOMULTI should leave broadcast frames alone."""
    nic = _nic(ctx, CtrlRx.NOMULTI, extra=True)
    _expect(_passed(nic, BROADCAST), BROADCAST)


@case("net.ctrl.rx.dev.nouni", device_id=DEVICE_ID, needs=N.CTRL_RX_EXTRA, rings=False)
def no_unicast(ctx: Context) -> None:
    """With NOUNI, no unicast frame should be received, not even for the device's own address."""
    nic = _nic(ctx, CtrlRx.NOUNI, extra=True)
    _expect(_passed(nic, nic.mac, last_to=BROADCAST))


@case("net.ctrl.rx.dev.nouni-priority", device_id=DEVICE_ID, needs=N.CTRL_RX_EXTRA, rings=False)
def no_unicast_though_all(ctx: Context) -> None:
    """NOUNI should prevail over ALLUNI."""
    nic = _nic(ctx, CtrlRx.NOUNI, CtrlRx.ALLUNI, extra=True)
    _expect(_passed(nic, SOMEBODY, last_to=BROADCAST))


@case("net.ctrl.rx.dev.nobcast", device_id=DEVICE_ID, needs=N.CTRL_RX_EXTRA, rings=False)
def no_broadcast(ctx: Context) -> None:
    """With NOBCAST, no broadcast frame should be received."""
    nic = _nic(ctx, CtrlRx.NOBCAST, extra=True)
    _expect(_passed(nic, BROADCAST))


@case("net.ctrl.rx.dev.nobcast-priority", device_id=DEVICE_ID, needs=N.CTRL_RX_EXTRA, rings=False)
def no_broadcast_though_all_multicast(ctx: Context) -> None:
    """NOBCAST should prevail over ALLMULTI, which goes on for other groups."""
    nic = _nic(ctx, CtrlRx.NOBCAST, CtrlRx.ALLMULTI, extra=True)
    _expect(_passed(nic, BROADCAST, _GROUP), _GROUP)


# Addresses


@case("net.ctrl.mac.dev.drop-others", device_id=DEVICE_ID, needs=N.CTRL_RX | N.MAC, rings=False)
def frames_for_others(ctx: Context) -> None:
    """Frames for an address that is neither the device's nor in the table should be dropped."""
    nic = _nic(ctx)
    _expect(_passed(nic, SOMEBODY, _GROUP, nic.mac), nic.mac)


@case("net.ctrl.mac.dev.table-before-used", device_id=DEVICE_ID, needs=N.CTRL_RX, rings=False)
def the_table_at_once(ctx: Context) -> None:
    """Once TABLE_SET is used, frames for the addresses in it are received, and those for addresses
    that were in the one before are not."""
    nic = _nic(ctx)
    nic.order(Ctrl.MAC, CtrlMac.TABLE_SET, mac_table([SOMEBODY], [_GROUP]))
    _expect(_passed(nic, SOMEBODY, _GROUP, _OTHER_GROUP), SOMEBODY, _GROUP)
    nic.order(Ctrl.MAC, CtrlMac.TABLE_SET, mac_table([], [_OTHER_GROUP]))
    _expect(_passed(nic, SOMEBODY, _GROUP, _OTHER_GROUP), _OTHER_GROUP)


@case("net.ctrl.mac.dev.empty-on-reset", device_id=DEVICE_ID, needs=N.CTRL_RX, rings=False)
def no_table_after_a_reset(ctx: Context) -> None:
    """After a reset the table is empty."""
    features = int(N.CTRL_VQ | N.CTRL_RX)
    nic = Nic(ctx, features)
    _modes(nic)
    nic.order(Ctrl.MAC, CtrlMac.TABLE_SET, mac_table([SOMEBODY], [_GROUP]))
    _expect(_passed(nic, SOMEBODY, _GROUP), SOMEBODY, _GROUP)
    nic = nic.anew(ctx)
    _modes(nic)
    _expect(_passed(nic, SOMEBODY, _GROUP))


@case(
    "net.ctrl.mac.dev.addr-before-used",
    device_id=DEVICE_ID,
    needs=N.CTRL_MAC_ADDR | N.MAC,
    rings=False,
)
def the_address_at_once(ctx: Context) -> None:
    """Once ADDR_SET is used, mac in the configuration space is the new address."""
    nic = Nic(ctx, int(N.CTRL_VQ | N.CTRL_MAC_ADDR), wire=False)
    for address in (SOMEBODY, bytes.fromhex("020000000042")):
        nic.order(Ctrl.MAC, CtrlMac.ADDR_SET, address)
        expect(nic.mac == address, f"mac {address.hex(':')}", nic.mac.hex(":"))


# VLANs


def _vlans(nic: Nic, *vlans: int) -> list[int]:
    """The tags of those frames that arrive."""
    frames = [nic.frame(vlan=vlan) for vlan in vlans]
    return [int.from_bytes(one.frame[14:16]) & 0xFFF for one in nic.deliver(*frames)]


@case("net.ctrl.vlan.dev.accept-all", device_id=DEVICE_ID)
def every_vlan(ctx: Context) -> None:
    """Without CTRL_VLAN every tagged frame is received."""
    nic = Nic(ctx)
    came = _vlans(nic, 1, _VLAN, 4094)
    expect(came == [1, _VLAN, 4094], f"frames with the tags 1, {_VLAN}, 4094", came)


@case("net.ctrl.vlan.dev.accept-listed", device_id=DEVICE_ID, needs=N.CTRL_VLAN, rings=False)
def vlans_that_are_listed(ctx: Context) -> None:
    """With CTRL_VLAN, frames with a tag in the table are received."""
    nic = Nic(ctx, int(N.CTRL_VQ | N.CTRL_VLAN))
    for vlan in (_VLAN, 1, 4094):
        nic.order(Ctrl.VLAN, CtrlVlan.ADD, vlan.to_bytes(2, "little"))
    came = _vlans(nic, 1, _VLAN, 4094)
    expect(came == [1, _VLAN, 4094], f"frames with the tags 1, {_VLAN}, 4094", came)


@case("net.ctrl.vlan.dev.drop-unlisted", device_id=DEVICE_ID, needs=N.CTRL_VLAN, rings=False)
def vlans_that_are_not(ctx: Context) -> None:
    """With CTRL_VLAN, frames with a tag that is not in the table, or no longer, should be
    dropped. (In promiscuous mode every frame should be received, so that mode is off.)"""
    session = ctx.session()
    modes = int(session.offered & N.CTRL_RX)
    nic = Nic(ctx, int(N.CTRL_VQ | N.CTRL_VLAN) | modes, session=session)
    if modes:
        _modes(nic)
    expect(_vlans(nic, _VLAN) == [], "no tagged frame", "one")
    nic.order(Ctrl.VLAN, CtrlVlan.ADD, _VLAN.to_bytes(2, "little"))
    came = _vlans(nic, _OTHER_VLAN, _VLAN)
    expect(came == [_VLAN], f"the tag {_VLAN} alone", came)
    nic.order(Ctrl.VLAN, CtrlVlan.DEL, _VLAN.to_bytes(2, "little"))
    expect(_vlans(nic, _VLAN) == [], "no tagged frame after DEL", "one")
