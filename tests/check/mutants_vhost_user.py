"""vhost-user back-ends that get one thing wrong, and the cases that must notice."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, cast

from tests.check.mutants import CATCHES, REFERENCES
from tests.check.reference import Reference, Served
from tests.check.reference_vhost_user import (
    CONFIG,
    NEED_REPLY,
    NUMBER,
    STATE,
    BackEnd,
    Bad,
    Disk,
    Network,
    Wire,
)
from virtq._core import Memory
from virtq.features import F
from virtq.transports.vhost_user.messages import Front, P

for area in ("vhost_user_memory", "vhost_user_messages", "vhost_user_rings"):
    REFERENCES[area] = cast(tuple[type[Reference], ...], (BackEnd, Network))

MESSAGES, RINGS, MEMORY = "vhost_user_messages", "vhost_user_rings", "vhost_user_memory"


def catches(area: str, *cases: str) -> Callable[[type[BackEnd]], type[BackEnd]]:
    def register(mutant: type[BackEnd]) -> type[BackEnd]:
        CATCHES[cast(type[Reference], mutant)] = tuple(f"{area}.{case}" for case in cases)
        return mutant

    return register


# What kills it


class DiesOfWhatIsBad(BackEnd):
    def bad(self) -> None:
        self.die()


@catches(
    MESSAGES,
    "a_header_that_ends",
    "a_payload_that_ends",
    "a_size_beyond_any",
    "a_payload_of_another_size",
    "an_unknown_request",
    "another_version",
    "a_reply_that_nobody_asked_for",
    "missing_descriptors",
    "surplus_descriptors",
)
class DiesOfMessages(DiesOfWhatIsBad):
    pass


class DiesOfRefusals(BackEnd):
    def answer(
        self, sock: socket.socket, request: Front, flags: int, body: bytes, fds: list[int]
    ) -> None:
        try:
            super().answer(sock, request, flags & ~NEED_REPLY, body, fds)
        except Bad:
            self.die()
        if flags & NEED_REPLY and request not in _REPLIED:
            self.acknowledge(sock, request)


_REPLIED = (
    Front.GET_FEATURES,
    Front.GET_PROTOCOL_FEATURES,
    Front.GET_QUEUE_NUM,
    Front.GET_VRING_BASE,
    Front.GET_CONFIG,
    Front.GET_MAX_MEM_SLOTS,
    Front.SET_LOG_BASE,
)


@catches(MESSAGES, "out_of_order", "no_such_ring", "a_ring_size_that_cannot_be")
class DiesOfOrder(DiesOfRefusals):
    pass


@catches(
    MEMORY,
    "regions_that_overlap",
    "regions_of_no_size",
    "too_many_regions",
    "a_file_that_is_short",
    "an_inflight_buffer_that_cannot_be",
    "as_many_slots_as_there_are",
)
class DiesOfMemory(DiesOfRefusals):
    pass


@catches(RINGS, "a_ring_nowhere")
class DiesOfARingNowhere(DiesOfRefusals):
    pass


@catches(MEMORY, "a_file_that_is_truncated")
class DiesOfTruncation(BackEnd):
    class disk_type(Disk):
        truncated = False

        def serve(self, served: Served) -> None:
            try:
                super().serve(served)
            except Exception:
                self.truncated = True
                raise

    def on_get_features(self, body: bytes, fds: list[int]) -> bytes:
        if getattr(self.disk, "truncated", False):
            self.die()
        return super().on_get_features(body, fds)


@catches(MESSAGES, "a_payload_that_ends", "surplus_descriptors", "missing_descriptors")
class HangsWhenSomethingIsBad(BackEnd):
    """It takes no other connection."""

    def bad(self) -> None:
        self.listener.close()


@catches(MESSAGES, "a_payload_that_ends", "surplus_descriptors")
class KeepsDescriptors(BackEnd):
    def let_go(self, fds: list[int]) -> None:
        self.kept_fds += fds


@catches(MEMORY, "a_slot_is_removed")
class KeepsTheDescriptorOfASlot(BackEnd):
    def on_rem_mem_reg(self, body: bytes, fds: list[int]) -> None:
        super().on_rem_mem_reg(body, fds)
        self.kept_fds += fds
        fds.clear()


# Form and replies


@catches(MESSAGES, "replies")
class NoReplyFlag(BackEnd):
    def send(self, sock: socket.socket, request: Front, body: bytes, *fds: int) -> None:
        if request == Front.GET_VRING_BASE:
            sock.send(bytes([request, 0, 0, 0, 1, 0, 0, 0, len(body), 0, 0, 0]) + body)
        else:
            super().send(sock, request, body, *fds)


@catches(MESSAGES, "replies")
class KeepsTheBaseToItself(BackEnd):
    def on_get_vring_base(self, body: bytes, fds: list[int]) -> bytes | None:
        super().on_get_vring_base(body, fds)
        return None


@catches(MESSAGES, "protocol_features_come_first")
class ProtocolFeaturesOnlyFirst(BackEnd):
    def on_get_protocol_features(self, body: bytes, fds: list[int]) -> bytes:
        return NUMBER.pack(0) if self.features else super().on_get_protocol_features(body, fds)


@catches(MESSAGES, "protocol_features_come_first")
class ProtocolFeaturesLater(BackEnd):
    def on_get_protocol_features(self, body: bytes, fds: list[int]) -> bytes:
        if not self.features:
            raise Bad("features first")
        return super().on_get_protocol_features(body, fds)


@catches(MESSAGES, "mq_is_offered")
class NoMq(BackEnd):
    protocol = BackEnd.protocol & ~P.MQ


@catches(MESSAGES, "the_number_of_queues")
class CountsOneMore(BackEnd):
    def on_get_queue_num(self, body: bytes, fds: list[int]) -> bytes:
        return NUMBER.pack(len(self.rings) + 1)


@catches(MESSAGES, "no_extensions")
class WantsProtocolFeatures(BackEnd):
    def on_set_features(self, body: bytes, fds: list[int]) -> None:
        super().on_set_features(body, fds)
        if self.without_protocol:
            raise Bad("no protocol features")


@catches(MESSAGES, "no_extensions")
class WaitsToBeEnabled(BackEnd):
    def on_set_features(self, body: bytes, fds: list[int]) -> None:
        super().on_set_features(body, fds)
        self.disk.enabled.clear()


@catches(MESSAGES, "reset_owner")
class ForgetsWithItsOwner(BackEnd):
    def on_reset_owner(self, body: bytes, fds: list[int]) -> None:
        self.reset()


@catches(MESSAGES, "success_is_acknowledged")
class AcknowledgesMost(BackEnd):
    def acknowledge(self, sock: socket.socket, request: Front) -> None:
        if request != Front.SET_VRING_ERR:
            super().acknowledge(sock, request)


@catches(MESSAGES, "success_is_acknowledged")
class FailsToEnable(BackEnd):
    def acknowledge(self, sock: socket.socket, request: Front) -> None:
        value = int(request == Front.SET_VRING_ENABLE)
        self.send(sock, request, NUMBER.pack(value))


@catches(MESSAGES, "a_reply_is_enough")
class AcknowledgesReplies(BackEnd):
    def answer(
        self, sock: socket.socket, request: Front, flags: int, body: bytes, fds: list[int]
    ) -> None:
        super().answer(sock, request, flags, body, fds)
        if request == Front.GET_PROTOCOL_FEATURES and flags & NEED_REPLY:
            self.acknowledge(sock, request)


@catches(MESSAGES, "nothing_unasked")
class AcknowledgesUnasked(BackEnd):
    def answer(
        self, sock: socket.socket, request: Front, flags: int, body: bytes, fds: list[int]
    ) -> None:
        super().answer(sock, request, flags | NEED_REPLY, body, fds)


@catches(MESSAGES, "need_reply_without_reply_ack")
class AcknowledgesWithoutTheFeature(BackEnd):
    def acks(self) -> bool:
        return True


@catches(MESSAGES, "need_reply_without_reply_ack")
class AlwaysAcknowledges(AcknowledgesUnasked):
    def acks(self) -> bool:
        return True


class TellsSuccess(BackEnd):
    """Whatever it made of a request."""

    def check(self, request: int, flags: int, size: int) -> None:
        """Anything will do."""

    def check_fds(self, request: int, body: bytes, fds: Sequence[int]) -> None:
        """Any number will do."""

    def one(self, sock: socket.socket) -> None:
        try:
            super().one(sock)
        except (ValueError, AttributeError, IndexError):
            self.send(sock, cast(Front, self.last), NUMBER.pack(0))

    last = 0

    def read(self, sock: socket.socket, size: int, fds: list[int]) -> bytes:
        data = super().read(sock, size, fds)
        if size == 12:
            self.last = int.from_bytes(data[:4], "little")
        return data

    def failure(self, request: Front) -> int:
        return 0


@catches(MESSAGES, "an_unknown_request", "missing_descriptors", "no_such_ring", "the_other_channel")
class TellsSuccessOfMessages(TellsSuccess):
    pass


@catches(MEMORY, "a_read_only_field", "a_slot_is_removed")
class TellsSuccessOfMemory(TellsSuccess):
    pass


@catches(MESSAGES, "the_other_channel")
class RefusesTheChannel(BackEnd):
    def on_set_backend_req_fd(self, body: bytes, fds: list[int]) -> None:
        raise Bad("no channel")


# Rings


@catches(RINGS, "a_kick_starts_a_ring")
class StartsWhenEnabled(BackEnd):
    def on_set_vring_enable(self, body: bytes, fds: list[int]) -> None:
        super().on_set_vring_enable(body, fds)
        index, _ = STATE.unpack(body)
        if index not in self.disk.queues:
            self.start(index, os.eventfd(0, os.EFD_NONBLOCK))


@catches(RINGS, "a_kick_starts_a_ring")
class MissesAnEarlyKick(BackEnd):
    def start(self, index: int, kick: int) -> None:
        try:
            os.eventfd_read(kick)
        except BlockingIOError:
            super().start(index, kick)
        else:
            os.close(kick)


@catches(RINGS, "base_stops_a_ring")
class GoesOnAfterTheBase(BackEnd):
    def stop(self, index: int) -> int:
        at = self.disk.queues[index].half.position
        if not self.features & F.RING_PACKED:
            return at.available
        return at.available | at.available_wrap << 15 | at.used << 16 | at.used_wrap << 31


@catches(RINGS, "base_stops_a_ring")
class TellsTheBaseBefore(BackEnd):
    def stop(self, index: int) -> int:
        return max(super().stop(index) - 1, 0)


@catches(RINGS, "a_ring_begins_at_its_base")
class BeginsAtZero(BackEnd):
    def on_set_vring_base(self, body: bytes, fds: list[int]) -> None:
        index, _ = STATE.unpack(body)
        self.ring(index).base = 0x8000_8000 if self.features & F.RING_PACKED else 0


@catches(RINGS, "a_ring_begins_at_its_base")
class GoesOnWhereItStood(BackEnd):
    def on_set_vring_base(self, body: bytes, fds: list[int]) -> None:
        index, base = STATE.unpack(body)
        self.ring(index).base = self.ring(index).base or base


@catches(RINGS, "a_small_ring")
class HasOneSize(BackEnd):
    def on_set_vring_num(self, body: bytes, fds: list[int]) -> None:
        super().on_set_vring_num(body, fds)
        self.ring(STATE.unpack(body)[0]).num = 16


@catches(RINGS, "enabled_and_disabled")
class StaysDisabled(BackEnd):
    ever = False

    def enable(self, index: int, on: bool) -> None:
        self.ever = self.ever or not on
        super().enable(index, on and not self.ever)


@catches(RINGS, "a_disabled_disk_is_not_written")
class ServesDisabledRings(BackEnd):
    class disk_type(Disk):
        serves_disabled = True


@catches(RINGS, "disabled_packets_are_discarded")
class KeepsPackets(Network):
    class disk_type(Wire):
        serves_disabled = False


@catches(RINGS, "descriptors_are_exchanged")
class FirstCallOnly(BackEnd):
    def on_set_vring_call(self, body: bytes, fds: list[int]) -> None:
        index, fd = self.take_fd(body, fds)
        ring = self.ring(index)
        if ring.call is None:
            self.exchange(ring, "call", fd)
        elif fd is not None:
            os.close(fd)


@catches(RINGS, "a_ring_that_is_polled")
class WantsADescriptor(BackEnd):
    def on_set_vring_kick(self, body: bytes, fds: list[int]) -> None:
        if fds:
            super().on_set_vring_kick(body, fds)


@catches(RINGS, "calls", "descriptors_are_exchanged")
class NeverCalls(BackEnd):
    def call_of(self, index: int) -> int:
        return os.eventfd(0, os.EFD_NONBLOCK)


@catches(RINGS, "calls")
class CallsTheOldOne(BackEnd):
    def on_set_vring_call(self, body: bytes, fds: list[int]) -> None:
        if fds:
            super().on_set_vring_call(body, fds)


@catches(RINGS, "calls")
class NoServiceWithoutCalls(BackEnd):
    def on_set_vring_call(self, body: bytes, fds: list[int]) -> None:
        super().on_set_vring_call(body, fds)
        index = NUMBER.unpack(body)[0] & 0xFF
        if self.ring(index).call is None and index in self.disk.queues:
            self.stop(index)


@catches(RINGS, "errors")
class KeepsErrors(BackEnd):
    class disk_type(Disk):
        def failed(self, index: int) -> None:
            """Nobody needs to know."""


@catches(RINGS, "reset_device")
class IgnoresAReset(BackEnd):
    def on_reset_device(self, body: bytes, fds: list[int]) -> None:
        """Later."""


@catches(RINGS, "reset_device")
class IsLostAfterAReset(BackEnd):
    def on_reset_device(self, body: bytes, fds: list[int]) -> None:
        super().on_reset_device(body, fds)
        self.memory = self.disk.memory = Memory()


@catches(RINGS, "status")
class KeepsNoStatus(BackEnd):
    def on_get_status(self, body: bytes, fds: list[int]) -> bytes:
        return NUMBER.pack(self.status & 1)


@catches(RINGS, "iotlb_messages_are_answered")
class TakesAnyTranslation(BackEnd):
    def on_iotlb_msg(self, body: bytes, fds: list[int]) -> bytes:
        super().on_iotlb_msg(body, fds)
        return NUMBER.pack(0)


@catches(RINGS, "iotlb_messages_are_answered")
class RefusesInvalidations(BackEnd):
    def on_iotlb_msg(self, body: bytes, fds: list[int]) -> bytes:
        return NUMBER.pack(1) if body[25] == 3 else super().on_iotlb_msg(body, fds)


@catches(RINGS, "inband_needs_its_channel")
class InbandAlone(BackEnd):
    def on_set_protocol_features(self, body: bytes, fds: list[int]) -> None:
        self.chosen = P(NUMBER.unpack(body)[0])


@catches(RINGS, "inband_kicks")
class HearsNoMessage(BackEnd):
    def on_vring_kick(self, body: bytes, fds: list[int]) -> None:
        """It waits for a descriptor."""


# Memory


@catches(MEMORY, "regions")
class TakesUserAddressesForGuestAddresses(BackEnd):
    def guest(self, user: int) -> int:
        return super().guest(user) if user in (r[2] for r in self.table) else user


@catches(MEMORY, "regions", "a_slot")
class MapsByUserAddress(BackEnd):
    def map(self, memory: Memory, region: tuple[int, ...], fd: int) -> None:
        _, size, user, offset = region
        memory.add_region(fd, user, size, offset, user)


@catches(MEMORY, "regions")
class MixesFiles(BackEnd):
    def in_order(self, fds: list[int]) -> list[int]:
        return fds[::-1]


@catches(MEMORY, "regions")
class BeginsAtTheFile(BackEnd):
    def map(self, memory: Memory, region: tuple[int, ...], fd: int) -> None:
        super().map(memory, (*region[:3], 0), fd)


@catches(MEMORY, "another_table")
class StopsAtANewTable(BackEnd):
    def use(self, memory: Memory) -> None:
        super().use(memory)
        with self.disk.lock:
            self.disk.forget_queues()


@catches(MEMORY, "another_table")
class OneTableOnly(BackEnd):
    def on_set_mem_table(self, body: bytes, fds: list[int]) -> None:
        if self.table:
            raise Bad("there is a table")
        super().on_set_mem_table(body, fds)


@catches(MEMORY, "a_slot")
class ForgetsSlots(BackEnd):
    def on_add_mem_reg(self, body: bytes, fds: list[int]) -> None:
        """Some other time."""


@catches(MEMORY, "as_many_slots_as_there_are")
class PromisesSlots(BackEnd):
    def on_get_max_mem_slots(self, body: bytes, fds: list[int]) -> bytes:
        return NUMBER.pack(self.slots + 1)


@catches(MEMORY, "a_slot_is_removed")
class LooksAtTheOffset(BackEnd):
    def find(self, wanted: tuple[int, ...]) -> tuple[int, ...]:
        if wanted not in self.table:
            raise Bad("there is no such region")
        return wanted


@catches(MEMORY, "a_slot_is_removed")
class RemovesNothing(BackEnd):
    def on_rem_mem_reg(self, body: bytes, fds: list[int]) -> None:
        """It may be needed."""


@catches(MEMORY, "the_dirty_log")
class LogsNothing(BackEnd):
    def on_set_log_base(self, body: bytes, fds: list[int]) -> bytes | None:
        return NUMBER.pack(0)


@catches(MEMORY, "logging_begins")
class LogsFromTheBeginningOnly(BackEnd):
    def use_log(self) -> None:
        if not self.disk.queues:
            super().use_log()


@catches(MEMORY, "logging_begins")
class TakesNoLogFlagLater(BackEnd):
    def on_set_vring_addr(self, body: bytes, fds: list[int]) -> None:
        if not self.disk.queues:
            super().on_set_vring_addr(body, fds)


@catches(MEMORY, "the_dirty_log")
class LogsNoUsedRing(BackEnd):
    class disk_type(Disk):
        def log_used(self, addr: int) -> None:
            """The buffers are enough."""


@catches(MEMORY, "the_dirty_log")
class LogsInSilence(BackEnd):
    def on_set_log_base(self, body: bytes, fds: list[int]) -> bytes | None:
        super().on_set_log_base(body, fds)
        return None


@catches(MEMORY, "the_inflight_buffer")
class ShortBuffer(BackEnd):
    def buffer_bytes(self, told: int) -> int:
        return told // 2


@catches(MEMORY, "the_inflight_buffer")
class WantsNoBuffer(BackEnd):
    def on_set_inflight_fd(self, body: bytes, fds: list[int]) -> None:
        raise Bad("not here")


@catches(MEMORY, "configuration_in_pieces")
class WholeConfiguration(BackEnd):
    def on_get_config(self, body: bytes, fds: list[int]) -> bytes:
        offset, size, flags = CONFIG.unpack(body[:12])
        return super().on_get_config(CONFIG.pack(offset, max(size, 4), flags), fds)


@catches(MEMORY, "configuration_at_an_offset")
class IgnoresTheOffset(BackEnd):
    def on_get_config(self, body: bytes, fds: list[int]) -> bytes:
        offset, size, flags = CONFIG.unpack(body[:12])
        reply = super().on_get_config(CONFIG.pack(0, size, flags), fds)
        return CONFIG.pack(offset, size, flags) + reply[12:] if reply else reply


@catches(MEMORY, "configuration_that_is_not_there")
class AnswersWithZeroes(BackEnd):
    def on_get_config(self, body: bytes, fds: list[int]) -> bytes:
        reply = super().on_get_config(body, fds)
        return reply or body[:12] + bytes(CONFIG.unpack(body[:12])[1])


@catches(MEMORY, "a_writable_field")
class WritesNoConfiguration(BackEnd):
    def on_set_config(self, body: bytes, fds: list[int]) -> None:
        """It has been read before."""


class Resizable(BackEnd):
    class disk_type(Disk):
        other = b""

        def read_config(self, offset: int, length: int) -> bytes:
            config = self.other + self.config[len(self.other) :]
            return config[offset : offset + length]

    def resize(self, data: bytes) -> None:
        cast(Any, self.disk).other = data


@catches(MEMORY, "a_read_only_field")
class WritesAnyField(Resizable):
    def may_write(self, offset: int, size: int, flags: int) -> bool:
        return flags in (0, 1)


@catches(MEMORY, "a_read_only_field")
class AnyFlagIsAMigration(Resizable):
    def may_write(self, offset: int, size: int, flags: int) -> bool:
        return flags != 0 or super().may_write(offset, size, flags)
