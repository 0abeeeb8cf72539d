"""Feature bits and their negotiation (2.2, 6)."""

from __future__ import annotations

from virtq.check.case import Broken, Hung, NotObservable, case, expect
from virtq.check.context import Context
from virtq.errors import PeerGone
from virtq.features import F, RingKind, describe, unmet
from virtq.transports.vhost_user.frontend import Frontend

_TYPE_BITS = (1 << 24) - 1 | ((1 << 78) - 1) ^ ((1 << 50) - 1)
_RESERVED = sum(1 << bit for bit in range(42, 50))
"""Reserved feature bits with no meaning in 1.4 (6): those above SUSPEND."""


@case("resv.dev.version-1-offer", rings=False)
def version_1_is_offered(ctx: Context) -> None:
    """VERSION_1 is always offered."""
    session = ctx.session()
    expect(session.offered & F.VERSION_1, "VERSION_1 offered", f"{session.offered:#x}")


@case("feat.dev.dependency-closed", rings=False)
def prerequisites_are_offered(ctx: Context) -> None:
    """No feature is offered without what it requires."""
    session = ctx.session()
    device = session.transport.device_id
    lacking = unmet(session.offered, device)
    expect(not lacking, "every prerequisite offered", f"without theirs: {lacking}")


@case("feat.dev.accept-valid-subset")
def every_kind_is_accepted(ctx: Context) -> None:
    """A device that offers a kind of ring accepts it alone: VERSION_1 and the kind's own bits."""
    session = ctx.session()
    features = ctx.features(session)
    expect(session.negotiate(features), f"{describe(features)} accepted", "FEATURES_OK off")


@case("feat.dev.accept-valid-subset", "feat.dev.renegotiate-same-set", rings=False)
def each_ring_feature_alone(ctx: Context) -> None:
    """Each of the ring's features can be taken or left."""
    session = ctx.session()
    own = F(ctx.own_features & session.offered)  # what a driver of this type has to take
    for bit in (F.INDIRECT_DESC, F.EVENT_IDX, F.RING_PACKED, F.IN_ORDER, F.RING_RESET):
        if session.offered & bit:
            for features in (F.VERSION_1 | own | bit, F.VERSION_1 | own):
                session.reset()
                expect(
                    session.negotiate(int(features)),
                    f"{describe(int(features))} accepted",
                    "FEATURES_OK off",
                )


@case("feat.dev.withhold-features-ok", rings=False)
def what_was_not_offered(ctx: Context) -> None:
    """A feature that was not offered is either ignored or makes the device leave FEATURES_OK off;
    it never takes effect."""
    session = ctx.session()
    missing = next((b for b in (F.RING_PACKED, F.IN_ORDER) if not session.offered & b), None)
    if missing is None:
        raise NotObservable("the device offers both RING_PACKED and IN_ORDER")
    if isinstance(session.transport, Frontend):
        raise NotObservable("a vhost-user front-end passes on nothing that was not offered")
    accepted = session.negotiate(int(F.VERSION_1 | missing))
    if not accepted:
        return
    # Accepted means: dropped. The device must then serve a plain split ring.
    session.reset()
    live = ctx.live(session=session)
    live.ring.serve(*live.jobs(2))


@case("feat.dev.no-unsupported-offer", rings=False)
def no_reserved_bits(ctx: Context) -> None:
    """Reserved bits are not offered, and neither are those that belong to another transport."""
    session = ctx.session()
    reserved = session.offered & _RESERVED
    expect(not reserved, "no reserved bit offered", f"{reserved:#x}")


@case("resv.dev.version-1-declined", rings=False)
def version_1_declined(ctx: Context) -> None:
    """Without VERSION_1 the device may refuse, go on as a legacy one, or fail to go on; it does not
    crash, nor hang."""
    session = ctx.session()
    try:
        session.negotiate(0)
        session.transport.read_status()
        session.reset()
    except PeerGone as gone:
        ctx.may_end(gone)


@case("resv.ring-packed.meaning", "resv.in-order.meaning")
def the_kind_takes_effect(ctx: Context) -> None:
    """The negotiated layout and order are those that the device works with."""
    live = ctx.live()
    live.ring.serve(*live.jobs(8))
    expect(len(live.ring.entries) >= 1, "used entries in the negotiated layout", "none")


@case("vq.format-support", rings=False)
def a_layout_that_works(ctx: Context) -> None:
    """The device serves split virtqueues, or packed ones, or both."""
    session = ctx.session()
    failed: list[str] = []
    for kind in (RingKind.SPLIT, RingKind.PACKED):
        if kind.features & ~session.offered:
            failed.append(f"{kind}: not offered")
            continue
        ctx.kind = kind
        try:
            live = ctx.live(session=session)
            live.ring.serve(*live.jobs(2))
            return
        except NotObservable:
            raise
        except (Broken, Hung) as error:
            failed.append(f"{kind}: {error}")
            session.reset()
    expect(False, "a layout in which the device serves", "; ".join(failed))


@case("resv.dev.access-platform-offer")
def addresses_are_what_they_are(ctx: Context) -> None:
    """SHOULD: a device whose memory accesses are translated or restricted offers ACCESS_PLATFORM.
    One that does not reaches buffers anywhere in memory by their addresses."""
    session = ctx.session()
    if session.offered & F.ACCESS_PLATFORM:
        raise NotObservable("the device offers ACCESS_PLATFORM")
    live = ctx.live(session=session)
    arena = session.arena
    live.ring.serve(*live.jobs(4))
    arena.alloc(arena.free_bytes // 8 * 5)  # the next ones are beyond it
    live.ring.serve(*live.jobs(4))


def _declined(ctx: Context, feature: F) -> None:
    """Decline a feature: the device may refuse, or stop, or work; it answers, and takes the feature
    after a reset."""
    session = ctx.session()
    for _ in range(2):
        session.negotiate(int(F.VERSION_1))
        session.transport.read_status()
        session.reset()
    accepted = session.negotiate(int(F.VERSION_1 | feature))
    expect(accepted, f"{describe(int(feature))} accepted after a reset", "FEATURES_OK off")


@case("resv.dev.access-platform-declined", rings=False, needs=F.ACCESS_PLATFORM)
def access_platform_declined(ctx: Context) -> None:
    """Without ACCESS_PLATFORM the device may refuse, or stop; either way it answers, and takes it
    after a reset."""
    _declined(ctx, F.ACCESS_PLATFORM)


@case("resv.dev.order-platform-declined", rings=False, needs=F.ORDER_PLATFORM)
def order_platform_declined(ctx: Context) -> None:
    """Without ORDER_PLATFORM the device may refuse, or stop; either way it answers, and takes it
    after a reset."""
    _declined(ctx, F.ORDER_PLATFORM)


@case("resv.dev.sriov-otherwise-not", "resv.mmio-no-admin-vq", bus="mmio", rings=False)
def what_belongs_to_pci(ctx: Context) -> None:
    """A device that is not on PCI offers neither SR_IOV nor ADMIN_VQ."""
    offered = ctx.session().offered & (F.SR_IOV | F.ADMIN_VQ)
    expect(not offered, "neither SR_IOV nor ADMIN_VQ offered", describe(int(offered)))
