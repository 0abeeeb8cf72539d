"""What a case about drivers is given: a driver at work, one that has just connected, or what was
seen of one that was served plainly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from virtq.check.case import Broken, Hung, NotObservable
from virtq.check.driver.bench import Baseline, Bench
from virtq.check.driver.peer import Offer, Peer, serve_plainly
from virtq.check.driver.record import Chain, Record
from virtq.check.driver.ring import JudgedRing
from virtq.check.driver.roles import ROLES, Role
from virtq.errors import PeerGone
from virtq.features import F, RingKind, describe

_SETTLE_TURNS = 200
_HOLD_MOMENTS = 5
_STRIDE_BUFFERS = 16
"""After so many, what a driver has at once is what it has in the long run."""
_HOSTILE_MOMENTS = 15
_GAPS = 10
_MOST_PATIENT = 5
"""A driver is waited for `_GAPS` times as long as it took between two buffers at most when it was
served plainly, if that is more than the patience, and `_MOST_PATIENT` times the patience at most: a
guest on a busy machine is slow, not hung."""
_LONG_S = 60.0
"""What a long case may take."""


class Stalled(Hung):
    """The driver makes no more buffers available, though it could."""


@dataclass
class Live:
    """A driver at work. `ring` is its work queue: what becomes available there stays until the case
    uses it. Other virtqueues are served plainly meanwhile, but for those that the device fills."""

    peer: Peer
    ring: JudgedRing
    role: Role
    patience_s: float
    moment_s: float

    @property
    def features(self) -> int:
        return self.peer.features or 0

    def take(self, count: int) -> list[Chain]:
        """Wait until `count` buffers are there; the oldest ones, or fewer if the driver does not
        have so many at once. Raises Stalled if none comes."""
        ring = self.ring
        before = -1
        for _ in self.peer.turns(self.patience_s):
            self.check()
            if len(ring.held) >= count:
                return ring.held[:count]
            if ring.held and len(ring.held) == before and self._settled():
                break
            before = len(ring.held)
        if not ring.held:
            raise Stalled(
                f"waited {self.patience_s:g} s for a buffer on queue {ring.index}; "
                f"{ring.count} came before"
            )
        return ring.held[:count]

    def _settled(self) -> bool:
        """Whether nothing more comes for a moment."""
        before = self.ring.count
        return all(self.ring.count == before for _ in self.peer.turns(self.moment_s))

    def use(self, chains: Sequence[Chain], *, notify: bool = True) -> None:
        """Serve these buffers and make them used; a notification if one is due."""
        self.ring.use(chains)
        if notify:
            self.ring.notify()

    def serve(self, count: int) -> None:
        """Use so many buffers plainly, as they come: the driver still works."""
        left = count
        while left > 0:
            chains = self.take(1)[:left]
            self.use(chains)
            self.ring.enable_kicks()
            self.ring.look()
            left -= len(chains)

    def settle(self) -> list[Chain]:
        """Wait until the driver makes no more available, since nothing is used; what is there.
        Raises Stalled if that is nothing."""
        self.take(1)
        for _ in range(_SETTLE_TURNS):
            self.check()
            if self._settled():
                break
        return list(self.ring.held)

    def more(self, count: int, what: str) -> None:
        """Wait until so many buffers more have come than when this was called. Raises Stalled."""
        wanted = self.ring.count + count
        for _ in self.peer.turns(self.patience_s):
            self.check()
            if self.ring.count >= wanted:
                return
        raise Stalled(f"waited {self.patience_s:g} s for {what}")

    def turns(self, seconds: float) -> None:
        """Let so much time pass, and take in what comes."""
        for _ in self.peer.turns(seconds):
            self.check()

    def check(self) -> None:
        """Raises Broken if the ring makes no sense any more, Stalled if the driver has stopped
        it."""
        if self.ring.broken:
            raise Broken("a ring as sections 2.7 and 2.8 describe it", self.ring.broken)
        if self.peer.rings.get(self.ring.index) is not self.ring:
            raise Stalled(f"the driver has stopped queue {self.ring.index}")


class DriverContext:
    """One run of one case."""

    def __init__(
        self,
        bench: Bench,
        *,
        kind: RingKind | None,
        features: int,
        patience_s: float,
        moment_s: float,
        seed: int = 0,
    ) -> None:
        self._bench = bench
        self.kind = kind
        self.patience_s, self.moment_s = patience_s, moment_s
        self.seed = seed
        self._features = features

    @property
    def device_id(self) -> int:
        return self._bench.device_id

    @property
    def wait_s(self) -> float:
        """How long a driver may take until it is ready."""
        return self._bench.wait_s

    def role(self) -> Role:
        """A new device of the type that is judged."""
        return ROLES[self.device_id]()

    @property
    def offer(self) -> Offer:
        """What is offered in this run unless the case changes it."""
        return Offer(self._features, protocol=self._bench.protocol)

    def seen(self, *, chains: bool = True) -> Record:
        """What was written down of a driver that was served plainly. Raises NotObservable if it did
        not accept the kind of ring, set up no virtqueue, or (with `chains`) made no buffer
        available; Stalled if it does otherwise."""
        found = self._bench.baseline(self.kind, self.offer)
        self._check_kind(found.record.features)
        missing = "set up no virtqueue" if not found.record.queues else ""
        if chains and not missing and not any(found.record.chains()):
            missing = "made no buffer available"
        if missing:
            if found.trouble is not None:
                raise found.trouble
            if self._bench.flows:
                raise Stalled(f"the driver {missing}")
            raise NotObservable(f"the driver {missing}")
        return found.record

    def accepted(self, features: int) -> Record:
        """As `seen`, without buffers being needed. Raises NotObservable unless the driver accepted
        these features."""
        record = self.seen(chains=False)
        if lacking := features & ~(record.features or 0):
            raise NotObservable(f"not accepted: {describe(lacking, self.device_id)}")
        return record

    @property
    def record(self) -> Record:
        """What was seen of the driver that is there."""
        assert self._bench.peer is not None
        return self._bench.peer.record

    def hold(self) -> Live:
        """The driver at work, once it has made as many buffers available as it does while nothing
        is used, and some time after that."""
        live = self.live()
        live.settle()
        live.turns(_HOLD_MOMENTS * self.moment_s)
        live.ring.audit()
        return live

    def works_otherwise(self) -> None:
        """Raises NotObservable for a driver that does not work with the usual offer either."""
        if self.plain().record.features is None:
            raise NotObservable("the driver does not work with the usual offer either")

    def after_a_while(self, peer: Peer) -> Record:
        """What was seen of a driver that may have more to say."""
        for _ in peer.turns_or_gone(self.patience_s / 4):
            pass
        return peer.record

    def check_time_for(self, buffers: int) -> None:
        """Raises NotObservable if, at the pace of the plain run, the driver would not make so many
        available in the time that a case may take."""
        needed_s = buffers / max(self.plain().per_s, 1)
        if needed_s > _LONG_S:
            raise NotObservable(f"{buffers} buffers would take {needed_s:.0f} s with this driver")

    def plain(self) -> Baseline:
        """The plain run itself, with what went wrong in it."""
        return self._bench.baseline(self.kind, self.offer)

    def live(self, *, needs: int = 0) -> Live:
        """The driver at work. Raises NotObservable if it did not accept the kind of ring, or not
        `needs`; Broken if it broke its rings already when it was served plainly."""
        trouble = self.plain().trouble
        if isinstance(trouble, Broken):
            raise trouble
        peer = self._bench.live(self.kind, self.offer)
        self._check_kind(peer.features)
        if lacking := needs & ~(peer.features or 0):
            raise NotObservable(f"not accepted: {describe(lacking, self.device_id)}")
        return self._hand_over(peer, "is not set up")

    def _hand_over(self, peer: Peer, missing: str) -> Live:
        """The driver's work queue is the case's from here on, all others are served plainly. Raises
        Stalled with `missing` if there is none."""
        ring = peer.rings.get(peer.role.work)
        if ring is None:
            raise Stalled(f"queue {peer.role.work} {missing}")
        plain = serve_plainly(peer)
        ring.half.one_used_entry_per_buffer = False
        peer.service = lambda other: None if other is ring else plain(other)
        return Live(peer, ring, peer.role, self._patience_s(), self.moment_s)

    def _patience_s(self) -> float:
        wanted_s = _GAPS * self._bench.longest_s
        return max(self.patience_s, min(wanted_s, _MOST_PATIENT * self.patience_s))

    def fresh(self, offer: Offer | None = None, role: Role | None = None) -> Peer:
        """A driver that has just connected, and sees this offer; nothing is served."""
        return self._bench.fresh(self.kind, offer or self.offer, role)

    def going(self, peer: Peer) -> Live:
        """A fresh driver's work queue, once it is live. Raises Hung."""
        self._bench.await_live(peer)
        self._check_kind(peer.features)
        return self._hand_over(peer, "is not set up any more")

    def hostile(self) -> Live:
        """A driver at work with some buffers available, which the device is about to do what no
        device should; see `outlives`."""
        flows = self.plain().flows  # what it is like otherwise has to be known
        live = self.going(self.fresh())
        self._bench.await_first(live.peer)
        if flows:
            live.serve(_STRIDE_BUFFERS)
        live.settle()
        return live

    def outlives_anyhow(self, live: Live) -> None:
        """As `outlives`, where the driver cannot know better than to take buffers for used."""
        self.outlives(live, strictly=False)

    def outlives(self, live: Live, strictly: bool = True) -> None:
        """The device has done what no device should. The driver may ignore it, refuse to go on, or
        end with an error: it must not take what is not used for used, crash, or hang so that it
        cannot be ended. Raises Broken, PeerGone, Hung."""
        live.ring.signal()
        try:
            for _ in live.peer.turns(_HOSTILE_MOMENTS * self.moment_s):
                pass
            live.ring.audit()
        except PeerGone:
            ending = self._bench.wait_for_end()
            if ending is not None and ending.crashed:
                raise
            return
        faults = [text for texts in live.ring.seen.faults.values() for text in texts]
        said = live.ring.broken or "; ".join(faults)
        if said and strictly:
            raise Broken("the driver to ignore it or to refuse it", said)
        self.ends_when_asked()

    def ends_when_asked(self, *, serve: bool = True) -> None:
        """End the driver. Raises Hung if it does not do that any more when it is asked to; `serve`:
        whether it is served meanwhile."""
        willing = self._bench.drop(serve=serve)
        if not willing and self._bench.ends_willingly:
            raise Hung("the driver does not end any more when it is asked to")

    def _check_kind(self, features: int | None) -> None:
        wanted = self.kind.features if self.kind else F(0)
        if lacking := wanted & ~(features or 0):
            raise NotObservable(f"not accepted: {describe(int(lacking))}")
