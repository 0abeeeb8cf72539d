"""Network devices that get one thing wrong about the control virtqueue, and about queue pairs."""

from __future__ import annotations

import copy

from tests.check.mutants import REFERENCES, catches
from tests.check.reference_net import NetReference
from tests.check.reference_net_control import Settings
from virtq._core import Position
from virtq.wire.net import Ack, Ctrl

REFERENCES["net_control"] = (NetReference,)


# Acknowledgements


@catches("net_control.acknowledgements")
class KnowsEverything(NetReference):
    def command(self, data: bytes, room: int) -> tuple[int, bytes]:
        return Ack.OK, super().command(data, room)[1]


@catches("net_control.acknowledgements")
class ErrorsAreTwo(NetReference):
    def command(self, data: bytes, room: int) -> tuple[int, bytes]:
        ack, result = super().command(data, room)
        return 2 * ack, result


@catches("net_control.acknowledgements")
class SuccessIsOne(NetReference):
    def command(self, data: bytes, room: int) -> tuple[int, bytes]:
        ack, result = super().command(data, room)
        return 1 - ack, result


@catches("net_control.acknowledgements")
class TakesHalfAnAddress(NetReference):
    def mac_address(self, command: int, data: bytes) -> None:
        self.set_mac(data[:6].ljust(6, b"\0"))


@catches("net_control.an_announcement")
class GoesOnAnnouncing(NetReference):
    def announce(self, command: int, data: bytes) -> None:
        """It is only taken note of."""


# Queue pairs


@catches("net_control.one_queue_at_first")
class SpreadsAtOnce(NetReference):
    def steer_by_flow(self, frame: bytes) -> int | None:
        live = [pair for pair in range(self.pairs) if 2 * pair in self.queues]
        return live[sum(frame[26:38]) % len(live)] if live else None


@catches("net_control.one_queue_at_first")
class KeepsPairsOverAReset(NetReference):
    def fresh(self) -> Settings:
        return Settings(pairs=self.settings.pairs)

    def reset(self) -> None:
        flows = dict(self.flows)
        super().reset()
        self.flows.update(flows)


@catches("net_control.no_queue_beyond")
class NeverGivesUpPairs(NetReference):
    def mq_pairs(self, command: int, data: bytes) -> None:
        before = self.settings.pairs
        super().mq_pairs(command, data)
        self.settings.pairs = max(before, self.settings.pairs)


@catches("net_control.by_flow")
class RoundRobin(NetReference):
    turn = 0

    def steer_by_flow(self, frame: bytes) -> int | None:
        self.turn += 1
        return self.turn % self.settings.pairs


@catches("net_control.where_it_was_transmitted")
class SteersElsewhere(NetReference):
    def steer_by_flow(self, frame: bytes) -> int | None:
        pair = super().steer_by_flow(frame)
        return None if pair is None else self.settings.pairs - 1 - pair


class Stays(NetReference):
    """A queue that was reset is where packets go nevertheless."""

    taken_away: frozenset[int] = frozenset()

    def steer_by_flow(self, frame: bytes) -> int | None:
        before = self.queues
        try:
            self.queues = {**before, **dict.fromkeys(self.taken_away, before[1])}
            return super().steer_by_flow(frame)
        finally:
            self.queues = before

    def reset_queue(self, index: int) -> Position:
        self.taken_away = self.taken_away | {index}
        return super().reset_queue(index)


@catches("net_control.another_queue_while_one_is_reset", "net_control.dropped_while_all_are_reset")
class HoldsWhatComesForAResetQueue(Stays):
    """It waits there for buffers."""


@catches("net_control.another_queue_while_one_is_reset")
class DropsWhatComesForAResetQueue(NetReference):
    def steer_by_flow(self, frame: bytes) -> int | None:
        pair = self.flows.get(self.flow(frame), 0)
        pair = min(pair, self.settings.pairs - 1)
        return pair if 2 * pair in self.queues else None


# Commands that hold from the next one on


class Late(NetReference):
    """What a command sets holds from the next command on."""

    kind = 0
    later: Settings | None = None

    def command(self, data: bytes, room: int) -> tuple[int, bytes]:
        if self.later is not None:
            self.settings, self.later = self.later, None
        before = copy.deepcopy(self.settings)
        answer = super().command(data, room)
        if data[0] == self.kind:
            self.later, self.settings = self.settings, before
        return answer

    def reset(self) -> None:
        self.later = None
        super().reset()


@catches("net_control.an_announcement")
class LateAnnouncement(Late):
    kind = Ctrl.ANNOUNCE
