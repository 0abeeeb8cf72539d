"""Network devices that get one thing wrong about their configuration, and which queue is which."""

from __future__ import annotations

from tests.check.mutants import REFERENCES, catches
from tests.check.reference import Served
from tests.check.reference_net import NetReference
from virtq.features import closed
from virtq.wire.net import DEVICE_ID
from virtq.wire.net import NetFeature as N


class WithoutControlQueue(NetReference):
    offered = closed(NetReference.offered & ~int(N.CTRL_VQ), DEVICE_ID)
    queue_count = 2


REFERENCES["net_config"] = (NetReference, WithoutControlQueue)


class Patched(NetReference):
    """Its configuration differs at one place."""

    at = 0
    value = b""

    @property
    def config(self) -> bytes:
        config = super().config
        return config[: self.at] + self.value + config[self.at + len(self.value) :]


@catches("net_config.the_number_of_pairs")
class NoPairs(Patched):
    at, value = 8, b"\0\0"


@catches("net_config.the_number_of_pairs")
class TooManyPairs(Patched):
    at, value = 8, b"\1\x80"


@catches("net_config.room_for_a_key")
class ShortKey(NetReference):
    def key_bytes_max(self) -> int:
        return 39


@catches("net_config.room_for_a_table")
class ShortTable(NetReference):
    def table_length_max(self) -> int:
        return 127


@catches("net_config.hash_report_with_a_control_queue")
class HashReportAlone(NetReference):
    offered = WithoutControlQueue.offered | int(N.HASH_REPORT)


@catches("net_config.more_modes_with_a_control_queue")
class MoreModesAlone(NetReference):
    offered = WithoutControlQueue.offered | int(N.CTRL_RX_EXTRA)


@catches("net_config.no_control_queue")
class ControlQueueAnyway(WithoutControlQueue):
    queue_count = 3


@catches("net_config.which_queue_is_which")
class ControlQueueIsThird(NetReference):
    @property
    def control_index(self) -> int | None:
        return 2 if self.has(N.CTRL_VQ) else None


@catches("net_config.which_queue_is_which")
class SwapsDirections(NetReference):
    def serve(self, served: Served) -> None:
        index = next(i for i, other in self.queues.items() if other is served)
        if index == self.control_index:
            super().serve(served)
        elif index % 2 == 0:
            # What it would transmit is not in the receive queue.
            self.outbox.clear()
