"""What a driver accepts of what is offered (2.2, 6)."""

from __future__ import annotations

from virtq.check.case import NotObservable, case, expect
from virtq.check.driver.cases.init import check_passed_on, is_made_up
from virtq.check.driver.context import DriverContext, Stalled
from virtq.check.driver.peer import Peer
from virtq.features import F, describe, known, unmet
from virtq.wire.net import NetFeature

RESERVED = sum(1 << bit for bit in (44, 45, 46, 47, 48, 49))
"""Bits of chapter 6 that nothing has."""
ALONE = {
    1: int(
        NetFeature.HOST_TSO4
        | NetFeature.HOST_TSO6
        | NetFeature.GUEST_TSO4
        | NetFeature.MQ
        | NetFeature.CTRL_RX
        | NetFeature.GUEST_ANNOUNCE
    ),
}
"""Device-specific features that need others, by device id."""


def chosen_from(driver: DriverContext, features: int) -> tuple[Peer, int]:
    """A fresh driver, and what it accepts of these features. Raises Stalled if it accepts nothing
    at all, since it gave up."""
    peer = driver.fresh(driver.offer.with_(features=features))
    for _ in peer.turns_or_gone(driver.wait_s):
        if peer.features is not None:
            return peer, peer.features
    raise Stalled("the driver did not write its features")


@case("feat.drv.only-offered", party="driver")
def only_what_is_offered(driver: DriverContext) -> None:
    """The driver accepts nothing that is not offered."""
    record = driver.plain().record
    surplus = (record.features or 0) & ~record.offered
    expect(not surplus, "nothing but what is offered", describe(surplus, driver.device_id))


@case(
    "feat.drv.ignore-invalid-bits",
    "feat.drv.not-accept-invalid-bits",
    "feat.drv.unknown-offer-not-fatal",
    party="driver",
    rings=False,
    alone=True,
)
def bits_that_mean_nothing(driver: DriverContext) -> None:
    """The device offers reserved bits, and bits that its type does not have. The driver accepts
    none of them, and works all the same."""
    named = sum(known(driver.device_id).values())
    own = sum(1 << bit for bit in range(24)) & ~named
    strange = RESERVED | own
    driver.works_otherwise()
    peer, features = chosen_from(driver, driver.offer.features | strange)
    accepted = features & strange
    expect(not accepted, "none of the bits that mean nothing", describe(accepted))
    live = driver.going(peer)
    live.serve(1)


@case("feat.drv.dependency-closed", party="driver", rings=False, alone=True)
def nothing_without_what_it_needs(driver: DriverContext) -> None:
    """The device offers features without those that they need. The driver accepts none of them."""
    if driver.device_id not in ALONE:
        raise NotObservable("no feature of this device type needs another")
    offered = int(F.VERSION_1) | ALONE[driver.device_id]
    peer, features = chosen_from(driver, offered)
    lacking = unmet(features, driver.device_id)
    if lacking and is_made_up(driver.after_a_while(peer)):
        # What a front-end between us and the driver adds itself is not seen here.
        added = int(NetFeature.CTRL_VQ) if driver.device_id == 1 else 0
        lacking = {bit: needs for bit, needs in lacking.items() if needs & ~added}
    missing = sum(lacking)
    expect(not missing, "no feature without those it needs", describe(missing, driver.device_id))


@case("feat.drv.compat-mode", party="driver", rings=False, alone=True)
def works_with_version_1_alone(driver: DriverContext) -> None:
    """SHOULD: with nothing offered but VERSION_1 the driver goes back to a mode that works."""
    driver.works_otherwise()
    peer, features = chosen_from(driver, int(F.VERSION_1))
    expect(features == F.VERSION_1, "VERSION_1 alone to be accepted", hex(features))
    driver.going(peer).serve(4)


@case("resv.drv.sriov-only-with-cap", party="driver", rings=False, alone=True)
def no_sr_iov_without_the_capability(driver: DriverContext) -> None:
    """SR_IOV is not accepted of a device that has no SR-IOV capability."""
    _, features = chosen_from(driver, driver.offer.features | F.SR_IOV)
    expect(not features & F.SR_IOV, "SR_IOV not to be accepted", hex(features))


@case("resv.drv.order-platform-accept", party="driver", rings=False, alone=True)
def order_platform_is_accepted(driver: DriverContext) -> None:
    """SHOULD: ORDER_PLATFORM is accepted where it is offered."""
    peer, features = chosen_from(driver, driver.offer.features | F.ORDER_PLATFORM)
    if not features & F.ORDER_PLATFORM:
        check_passed_on(driver.after_a_while(peer))
    expect(features & F.ORDER_PLATFORM, "ORDER_PLATFORM to be accepted", hex(features))


@case("resv.drv.access-platform-accept", party="driver", rings=False, alone=True)
def access_platform_is_accepted(driver: DriverContext) -> None:
    """SHOULD: ACCESS_PLATFORM is accepted where it is offered."""
    peer, features = chosen_from(driver, driver.offer.features | F.ACCESS_PLATFORM)
    if not features & F.ACCESS_PLATFORM:
        check_passed_on(driver.after_a_while(peer))
    expect(features & F.ACCESS_PLATFORM, "ACCESS_PLATFORM to be accepted", hex(features))


@case("cfg.drv.no-size-limit", party="driver", rings=False, alone=True)
def a_larger_configuration_space(driver: DriverContext) -> None:
    """The configuration space is longer than this version of the specification has it; the driver
    works all the same."""
    config = bytes(driver.role().config())
    if not config:
        raise NotObservable("this device type has no configuration space")
    peer = driver.fresh(driver.offer.with_(config=config.ljust(200, b"\0")))
    driver.going(peer).serve(1)
