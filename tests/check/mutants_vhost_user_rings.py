"""vhost-user back-ends that get a ring's life (start, base, enable, notifications) wrong."""

from __future__ import annotations

import os

from tests.check.mutants import REFERENCES
from tests.check.mutants_vhost_user import DiesOfRefusals, catches
from tests.check.reference_vhost_user import BackEnd, Network
from tests.check.reference_vhost_user_channel import NUMBER, STATE
from tests.check.reference_vhost_user_disk import Disk, Wire
from virtq._core import Memory
from virtq.features import F
from virtq.transports.vhost_user.messages import P

AREA = "vhost_user_rings"
REFERENCES[AREA] = (BackEnd, Network)


@catches(AREA, "a_ring_nowhere")
class DiesOfARingNowhere(DiesOfRefusals):
    pass


@catches(AREA, "a_kick_starts_a_ring")
class StartsWhenEnabled(BackEnd):
    def on_set_vring_enable(self, body: bytes, fds: list[int]) -> None:
        super().on_set_vring_enable(body, fds)
        index, _ = STATE.unpack(body)
        if index not in self.disk.queues:
            self.start(index, os.eventfd(0, os.EFD_NONBLOCK))


@catches(AREA, "a_kick_starts_a_ring")
class MissesAnEarlyKick(BackEnd):
    def start(self, index: int, kick: int) -> None:
        try:
            os.eventfd_read(kick)
        except BlockingIOError:
            super().start(index, kick)
        else:
            os.close(kick)


@catches(AREA, "base_stops_a_ring")
class GoesOnAfterTheBase(BackEnd):
    def stop(self, index: int) -> int:
        at = self.disk.queues[index].half.position
        if not self.features & F.RING_PACKED:
            return at.available
        return at.available | at.available_wrap << 15 | at.used << 16 | at.used_wrap << 31


@catches(AREA, "base_stops_a_ring")
class TellsTheBaseBefore(BackEnd):
    def stop(self, index: int) -> int:
        return max(super().stop(index) - 1, 0)


@catches(AREA, "a_ring_begins_at_its_base")
class BeginsAtZero(BackEnd):
    def on_set_vring_base(self, body: bytes, fds: list[int]) -> None:
        index, _ = STATE.unpack(body)
        self.ring(index).base = 0x8000_8000 if self.features & F.RING_PACKED else 0


@catches(AREA, "a_ring_begins_at_its_base")
class GoesOnWhereItStood(BackEnd):
    def on_set_vring_base(self, body: bytes, fds: list[int]) -> None:
        index, base = STATE.unpack(body)
        self.ring(index).base = self.ring(index).base or base


@catches(AREA, "a_small_ring")
class HasOneSize(BackEnd):
    def on_set_vring_num(self, body: bytes, fds: list[int]) -> None:
        super().on_set_vring_num(body, fds)
        self.ring(STATE.unpack(body)[0]).num = 16


@catches(AREA, "enabled_and_disabled")
class StaysDisabled(BackEnd):
    ever = False

    def enable(self, index: int, on: bool) -> None:
        self.ever = self.ever or not on
        super().enable(index, on and not self.ever)


@catches(AREA, "a_disabled_disk_is_not_written")
class ServesDisabledRings(BackEnd):
    class disk_type(Disk):
        serves_disabled = True


@catches(AREA, "disabled_packets_are_discarded")
class KeepsPackets(Network):
    class disk_type(Wire):
        serves_disabled = False


@catches(AREA, "descriptors_are_exchanged")
class FirstCallOnly(BackEnd):
    def on_set_vring_call(self, body: bytes, fds: list[int]) -> None:
        index, fd = self.take_fd(body, fds)
        ring = self.ring(index)
        if ring.call is None:
            self.exchange(ring, "call", fd)
        elif fd is not None:
            os.close(fd)


@catches(AREA, "a_ring_that_is_polled")
class WantsADescriptor(BackEnd):
    def on_set_vring_kick(self, body: bytes, fds: list[int]) -> None:
        if fds:
            super().on_set_vring_kick(body, fds)


@catches(AREA, "calls", "descriptors_are_exchanged")
class NeverCalls(BackEnd):
    def call_of(self, index: int) -> int:
        return os.eventfd(0, os.EFD_NONBLOCK)


@catches(AREA, "calls")
class CallsTheOldOne(BackEnd):
    def on_set_vring_call(self, body: bytes, fds: list[int]) -> None:
        if fds:
            super().on_set_vring_call(body, fds)


@catches(AREA, "calls")
class NoServiceWithoutCalls(BackEnd):
    def on_set_vring_call(self, body: bytes, fds: list[int]) -> None:
        super().on_set_vring_call(body, fds)
        index = NUMBER.unpack(body)[0] & 0xFF
        if self.ring(index).call is None and index in self.disk.queues:
            self.stop(index)


@catches(AREA, "errors")
class KeepsErrors(BackEnd):
    class disk_type(Disk):
        def failed(self, index: int) -> None:
            """Nobody needs to know."""


@catches(AREA, "reset_device")
class IgnoresAReset(BackEnd):
    def on_reset_device(self, body: bytes, fds: list[int]) -> None:
        """Later."""


@catches(AREA, "reset_device")
class IsLostAfterAReset(BackEnd):
    def on_reset_device(self, body: bytes, fds: list[int]) -> None:
        super().on_reset_device(body, fds)
        self.memory = self.disk.memory = Memory()


@catches(AREA, "status")
class KeepsNoStatus(BackEnd):
    def on_get_status(self, body: bytes, fds: list[int]) -> bytes:
        return NUMBER.pack(self.status & 1)


@catches(AREA, "iotlb_messages_are_answered")
class TakesAnyTranslation(BackEnd):
    def on_iotlb_msg(self, body: bytes, fds: list[int]) -> bytes:
        super().on_iotlb_msg(body, fds)
        return NUMBER.pack(0)


@catches(AREA, "iotlb_messages_are_answered")
class RefusesInvalidations(BackEnd):
    def on_iotlb_msg(self, body: bytes, fds: list[int]) -> bytes:
        return NUMBER.pack(1) if body[25] == 3 else super().on_iotlb_msg(body, fds)


@catches(AREA, "inband_needs_its_channel")
class InbandAlone(BackEnd):
    def on_set_protocol_features(self, body: bytes, fds: list[int]) -> None:
        self.chosen = P(NUMBER.unpack(body)[0])


@catches(AREA, "inband_kicks")
class HearsNoMessage(BackEnd):
    def on_vring_kick(self, body: bytes, fds: list[int]) -> None:
        """It waits for a descriptor."""
