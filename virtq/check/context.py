"""What a case is given: a device to open, as often as it likes, and the ring it is to run in."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from virtq.check.case import Broken, Hung, NotObservable
from virtq.check.front import USUAL, Front
from virtq.check.keep import Gone, Keeper
from virtq.check.net.far_end import FarEnd, Finder, by_itself
from virtq.check.session import Job, Ring, Session
from virtq.check.work import WORK, Work
from virtq.errors import PeerGone, VirtqError
from virtq.features import F, RingKind, closed, describe
from virtq.transports.base import DriverTransport, Renewable
from virtq.transports.vhost_user.messages import NO_FEATURE, P


@dataclass(frozen=True)
class Live:
    """An initialized device, and the ring that its work goes to."""

    session: Session
    ring: Ring
    work: Work

    def jobs(self, count: int, first: int = 0) -> list[Job]:
        return [self.work.job(first + i) for i in range(count)]

    @property
    def slots(self) -> int:
        """Descriptors of the longest of its jobs, where each part is in one piece."""
        return max(bool(job.readable) + bool(job.writable) for job in self.jobs(2))

    def ring_bytes(self) -> bytes:
        """All of the virtqueue as it stands in memory."""
        areas = self.ring.areas
        return self.session.arena.memory.read(areas.desc, areas.end - areas.desc)


class Context:
    """One run of one case. Close it: everything that the case opened goes."""

    def __init__(
        self,
        keeper: Keeper,
        *,
        kind: RingKind | None,
        device_id: int | None,
        patience_s: float,
        moment_s: float,
        seed: int = 0,
        far_end: Finder = by_itself,
        dial: Callable[[], socket.socket] | None = None,
        bears_long_lengths: bool = False,
    ) -> None:
        self._keeper = keeper
        self._well = False
        self._find_far_end = far_end
        self._dial = dial
        self._bears_long_lengths = bears_long_lengths
        self.device_id = device_id
        self._patience_s, self._moment_s = patience_s, moment_s
        self._sessions = contextlib.ExitStack()
        self.kind = kind
        self.seed = seed
        self.last: Session | None = None

    def session(self) -> Session:
        """A device that is reset and not initialized. A session that was open before is closed."""
        self._sessions.close()
        transport = self._keeper.open()
        let_go = partial(self._let_go, transport)
        try:
            session = Session(
                transport,
                patience_s=self._patience_s,
                moment_s=self._moment_s,
                let_go=let_go,
                bears_long_lengths=self._bears_long_lengths,
            )
        except BaseException:
            transport.close()
            raise
        self._sessions.callback(session.close)
        self.last = session
        return session

    def _let_go(self, transport: DriverTransport) -> None:
        self._keeper.give_back(transport, well=self._well)

    def far_end(self) -> FarEnd:
        """The other end of the wire of the network device that was opened last. Raises
        NotObservable if it cannot be reached."""
        assert self.last is not None
        end = self._find_far_end(self.last.transport)
        if end is None:
            raise NotObservable("there is no way to the other end of the device's wire (--port)")
        self._sessions.callback(end.close)
        return end

    def front(self, need: P = NO_FEATURE, take: P = USUAL) -> Front:
        """A vhost-user connection with `need` of the protocol features, and of `take` what is
        offered. What was open before is closed. Raises NotObservable if `need` is not offered."""
        self._sessions.close()
        assert self._dial is not None
        front = Front.begin(self._dial, need, take, self._patience_s, self._moment_s)
        self._sessions.callback(front.close)
        return front

    def front_session(self, front: Front) -> Session:
        """What drives a device over such a connection; it is closed with it."""
        self.last = Session(
            front,
            patience_s=self._patience_s,
            moment_s=self._moment_s,
            bears_long_lengths=self._bears_long_lengths,
        )
        self._sessions.callback(self.last.close)
        return self.last

    @property
    def work(self) -> Work:
        """Raises NotObservable for a device type whose requests are not known."""
        if self.device_id not in WORK:
            if self.device_id is None:
                raise NotObservable("the device type is not told (--type)")
            raise NotObservable(f"no requests are known for device type {self.device_id}")
        return WORK[self.device_id]()

    @property
    def own_features(self) -> int:
        """What a driver of the device's type has to take where it is offered; nothing for a type
        whose requests are not known."""
        return WORK[self.device_id].features if self.device_id in WORK else 0

    @property
    def own_queue(self) -> int:
        """The virtqueue that its work goes to, the first one where that is not known."""
        return WORK[self.device_id].queue if self.device_id in WORK else 0

    def features(self, session: Session, add: int = 0, without: int = 0) -> int:
        """What to negotiate for the kind of ring: VERSION_1, the work's own features, `add`, but
        not `without`. Raises NotObservable if the device does not offer something of it."""
        wanted = F.VERSION_1 | add | (self.kind.features if self.kind else 0)
        if lacking := wanted & ~session.offered:
            raise NotObservable(f"not offered: {describe(int(lacking), self.device_id)}")
        return closed(int((wanted | self.own_features & session.offered) & ~without), None)

    def live(
        self,
        *,
        add: int = 0,
        without: int = 0,
        size: int | None = None,
        indirect_length: int = 0,
        session: Session | None = None,
    ) -> Live:
        """An initialized device with its work's queue set up in the kind of ring of this run."""
        session = session or self.session()
        work = self.work
        features = self.features(session, add, without)
        if not session.negotiate(features):
            raise NotObservable(f"the device does not take the features {features:#x}")
        work.prepare(session)
        largest = session.transport.queue_size_max(work.queue)
        if size is not None and size > largest:
            raise NotObservable(f"the queue has {largest} slots at most, {size} are needed")
        ring = session.ring(work.queue, size, indirect_length)
        session.go_live()
        return Live(session, ring, work)

    def comes_back(self) -> bool:
        """Whether a device that has closed the connection serves in another one: it has reset
        itself, so to speak. One that the judge started has died with its transport."""
        if self.last is None or isinstance(self.last.transport, Renewable):
            return False
        if self._keeper.ending():
            return False
        try:
            live = self.live()
            live.ring.serve(*live.jobs(4))
        except (Broken, Hung, NotObservable, VirtqError, Gone):
            return False
        return True

    def may_end(self, gone: PeerGone) -> None:
        """A back-end has closed the connection, which it may for what the case did, unless it
        crashed: a new one is begun with. Raises PeerGone if it did, or if it is no back-end."""
        self._keeper.ending()  # it has its time
        ended = self._keeper.has_ended()
        if self._dial is None:
            raise gone
        if ended is not None and ended.crashed:
            raise gone
        self._sessions.close()
        self._keeper.failed(gone=True)

    def close(self, *, well: bool = False) -> None:
        """`well`: the case has found nothing that speaks against using the device again."""
        self._well = well
        self._sessions.close()
