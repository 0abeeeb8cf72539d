"""Where a driver is judged: who is at the socket, and what is known of the driver so far."""

from __future__ import annotations

import contextlib
import time
from copy import copy
from dataclasses import dataclass
from typing import Any, Self

from virtq.check.case import Broken, Hung
from virtq.check.driver.peer import OFFERED, Offer, Peer, serve_plainly
from virtq.check.driver.record import Record, Words
from virtq.check.driver.roles import ROLES, Role
from virtq.check.driver.start import Door, Ending, NoDriver, Running, Starter, uninterrupted
from virtq.check.waiting import MOMENT_S, PATIENCE_S
from virtq.errors import PeerGone, UriError, VirtqError
from virtq.features import DEVICE_NAMES, RingKind
from virtq.transports.vhost_user.messages import P

WAIT_S = 30.0
"""How long to wait for a driver."""
BASELINE_BUFFERS = 600
"""Buffers of a plain run; a driver that makes so many available keeps on doing so."""
_MISSES = 3
"""After so many drivers that did not come, one after the other, no more is waited for; after so
many that came and did not begin to work, only as long as for anything else."""

_BEGIN = 5
"""The first buffer is waited for so many times as long as any other."""

Key = tuple[RingKind | None, int]


@dataclass
class Baseline:
    """A plain run: what was seen, and what went wrong in it."""

    record: Record
    flows: bool = False
    per_s: float = 0.0
    """Buffers in a second."""
    trouble: Exception | None = None


class Bench:
    """Where a driver is judged. Close it."""

    def __init__(
        self,
        path: str,
        device_id: int,
        *,
        starter: Starter | None = None,
        wait_s: float = WAIT_S,
        patience_s: float = PATIENCE_S,
        moment_s: float = MOMENT_S,
        baseline_buffers: int = BASELINE_BUFFERS,
        protocol: P = OFFERED,
    ) -> None:
        """`starter`: what starts a driver whenever one is needed; without it drivers come by
        themselves. `baseline_buffers`: how many are looked at in a plain run. Raises
        TransportError if the path cannot be had, UriError for a device type that the judge cannot
        be."""
        if device_id not in ROLES:
            known = ", ".join(DEVICE_NAMES[id] for id in ROLES)
            name = DEVICE_NAMES.get(device_id, f"type {device_id}")
            raise UriError(f"the judge cannot be a {name} device, only {known}")
        self.device_id = device_id
        self.wait_s, self.patience_s, self.moment_s = wait_s, patience_s, moment_s
        self.protocol = protocol
        self._baseline_buffers = baseline_buffers
        self._door = Door(path)
        self._starter = starter
        self._running: Running | None = None
        self._peer: Peer | None = None
        self._key: Key | None = None
        """Of the peer that is at work; None: it is a case's own."""
        self._baselines: dict[Key, Baseline] = {}
        self._misses = self._idle = 0
        self.came = False
        """Whether there was a driver at all."""
        self.flows = False
        """Whether the driver, served plainly, makes buffers available without an end."""
        self.longest_s = 0.0
        """The longest that it let itself be waited for between two buffers then."""
        self.ends_willingly: bool | None = None
        """Whether a started driver ends when it is asked to; None: not tried yet."""
        self.ending: Ending | None = None
        self._absent = ""

    @property
    def path(self) -> str:
        return self._door.path

    @property
    def running(self) -> Running | None:
        return self._running

    @property
    def peer(self) -> Peer | None:
        """The driver that is there."""
        return self._peer

    # Drivers

    def fresh(self, kind: RingKind | None, offer: Offer, role: Role | None = None) -> Peer:
        """A driver that has just connected, seeing this offer. Raises NoDriver."""
        self.drop()
        if self._absent:
            raise NoDriver(self._absent)
        if self._starter is not None:
            with uninterrupted():
                self._running = self._starter.start(self.path, kind, offer.features)
        try:
            sock = self._door.accept(self._running, self.wait_s)
        except NoDriver as reason:
            self._misses += 1
            if self._starter is None or self._misses >= _MISSES:
                self._absent = str(reason)
            self.drop()
            raise
        self._misses, self.came, self.ending = 0, True, None
        peer = Peer(sock, kind or RingKind.SPLIT, role or ROLES[self.device_id](), offer)
        self._peer = peer
        return peer

    def live(self, kind: RingKind | None, offer: Offer) -> Peer:
        """A driver at work in this kind of ring; the one that is, if there is one."""
        key = kind, offer.features
        if self._peer is None or self._key != key or self._peer.gone:
            if key not in self._baselines:
                self.baseline(kind, offer)
            if self._peer is None or self._key != key or self._peer.gone:
                self._bring_up(self.fresh(kind, offer), key)
        assert self._peer is not None
        return self._peer

    def _bring_up(self, peer: Peer, key: Key) -> None:
        peer.service = serve_plainly(peer)
        self.await_live(peer)
        self._key = key

    @property
    def ready_s(self) -> float:
        """How long a driver that has come may take until it is at work."""
        return self.wait_s if self._idle < _MISSES else min(self.wait_s, self.patience_s)

    def await_live(self, peer: Peer) -> None:
        """Wait until the driver's work queue may be served. Raises Hung, PeerGone."""
        work = peer.role.work
        try:
            peer.until(lambda: peer.is_live(work), self.ready_s, f"queue {work} to be live")
        except Hung:
            self._idle += 1
            raise
        self._idle = 0

    def await_first(self, peer: Peer) -> None:
        """Wait until the driver has made a buffer available; harmless if it does not. Raises
        PeerGone."""
        for _ in peer.turns(self._begin_s if self.flows else 0):
            ring = peer.rings.get(peer.role.work)
            if ring is None or ring.count:
                return

    def forget(self) -> None:
        """What plain runs have shown is looked at anew."""
        self._baselines.clear()

    @property
    def _begin_s(self) -> float:
        """How long the first buffer may take: what is to keep the driver busy has to begin."""
        return min(self.ready_s, _BEGIN * self.patience_s)

    def baseline(self, kind: RingKind | None, offer: Offer) -> Baseline:
        """The plain run in this kind of ring; made once."""
        key = kind, offer.features
        if key not in self._baselines:
            self._baselines[key] = self._plain_run(kind, offer, key)
        return self._baselines[key]

    def _plain_run(self, kind: RingKind | None, offer: Offer, key: Key) -> Baseline:
        peer = self.fresh(kind, offer)
        found = Baseline(peer.record)
        work = peer.role.work
        try:
            self._bring_up(peer, key)
            began = last = time.monotonic()
            count = -1
            patience_s = max(self.patience_s, self._begin_s)
            while count < self._baseline_buffers:
                peer.turn()
                ring = peer.rings.get(work)
                if ring is not None and ring.count != count:
                    now = time.monotonic()
                    if ring.count > 1:
                        self.longest_s = max(self.longest_s, now - last)
                    if ring.count:
                        patience_s = self.patience_s
                    last, count = now, ring.count
                if time.monotonic() - last > patience_s:
                    break
            found.per_s = count / max(time.monotonic() - began, 1e-6)
            found.flows = count >= self._baseline_buffers
            self.flows = self.flows or found.flows
        except (Broken, Hung, PeerGone) as error:
            found.trouble = error
        with contextlib.suppress(VirtqError):
            for ring in peer.rings.values():
                ring.audit()
        found.record = frozen(peer)
        return found

    def drop(self, *, serve: bool = True) -> bool:
        """End the driver that is there, and serve it plainly until it has ended, or not at all.
        Whether a started one ended when it was asked."""
        with uninterrupted():
            return self._drop(serve)

    def _drop(self, serve: bool) -> bool:
        peer, self._peer, self._key = self._peer, None, None
        running, self._running = self._running, None
        willing = True
        if running is not None:
            self.ending = running.ended()

            def meanwhile() -> None:
                try:
                    if peer is not None and not peer.gone:
                        peer.service = serve_plainly(peer) if serve else None
                        peer.turn()
                        return
                except (Broken, VirtqError):
                    pass
                time.sleep(0.005)

            willing = running.end(meanwhile)
            if self.ends_willingly is None:
                self.ends_willingly = willing
        if peer is not None:
            peer.close()
        return willing

    def close(self) -> None:
        self.drop()
        self._door.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def pictures(self) -> list[dict[str, Any]]:
        """The rings of the driver that is there, as they stand."""
        return [] if self._peer is None else self._peer.pictures()

    def wait_for_end(self) -> Ending | None:
        """How the started driver ended, which closed its connection a moment ago."""
        deadline = time.monotonic() + 1.0
        while self._running is not None and time.monotonic() < deadline:
            if ending := self._running.ended():
                return ending
            time.sleep(0.005)
        return None

    def settle(self) -> None:
        """Leave the driver for the next case as if it had been served plainly all the time."""
        peer = self._peer
        if peer is None or self._key is None:
            return
        try:
            peer.service = serve_plainly(peer)
            for ring in peer.rings.values():
                ring.enable_kicks()
            peer.turn(0)
            peer.turn(0)
        except (Broken, Hung, VirtqError):
            self.drop()


def frozen(peer: Peer) -> Record:
    """What was seen so far; what comes later does not change it."""
    record = copy(peer.record)
    record.events = list(record.events)
    record.queues = [copy(queue) for queue in record.queues]
    for queue in record.queues:
        queue.chains = list(queue.chains)
        queue.indices = list(queue.indices)
        queue.words = Words(set(queue.words.first), set(queue.words.second))
        queue.faults = {about: list(texts) for about, texts in queue.faults.items()}
    record.pictures = peer.pictures()
    return record
