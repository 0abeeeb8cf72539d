"""vhost-user back-ends that get the form of a message, or its reply, wrong."""

from __future__ import annotations

import socket

from tests.check.mutants import REFERENCES
from tests.check.mutants_vhost_user import DiesOfRefusals, TellsSuccess, catches
from tests.check.reference_vhost_user import BackEnd, Network
from tests.check.reference_vhost_user_channel import NEED_REPLY, NUMBER, Bad
from virtq.transports.vhost_user.messages import Front, P

AREA = "vhost_user_messages"
REFERENCES[AREA] = (BackEnd, Network)


class DiesOfWhatIsBad(BackEnd):
    def bad(self) -> None:
        self.die()


@catches(
    AREA,
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


@catches(AREA, "out_of_order", "no_such_ring", "a_ring_size_that_cannot_be")
class DiesOfOrder(DiesOfRefusals):
    pass


@catches(AREA, "a_payload_that_ends", "surplus_descriptors", "missing_descriptors")
class HangsWhenSomethingIsBad(BackEnd):
    """It takes no other connection."""

    def bad(self) -> None:
        self.listener.close()


@catches(AREA, "a_payload_that_ends", "surplus_descriptors")
class KeepsDescriptors(BackEnd):
    def let_go(self, fds: list[int]) -> None:
        self.kept_fds += fds


@catches(AREA, "replies")
class NoReplyFlag(BackEnd):
    def send(self, sock: socket.socket, request: Front, body: bytes, *fds: int) -> None:
        if request == Front.GET_VRING_BASE:
            sock.send(bytes([request, 0, 0, 0, 1, 0, 0, 0, len(body), 0, 0, 0]) + body)
        else:
            super().send(sock, request, body, *fds)


@catches(AREA, "replies")
class KeepsTheBaseToItself(BackEnd):
    def on_get_vring_base(self, body: bytes, fds: list[int]) -> bytes | None:
        super().on_get_vring_base(body, fds)
        return None


@catches(AREA, "protocol_features_come_first")
class ProtocolFeaturesOnlyFirst(BackEnd):
    def on_get_protocol_features(self, body: bytes, fds: list[int]) -> bytes:
        return NUMBER.pack(0) if self.features else super().on_get_protocol_features(body, fds)


@catches(AREA, "protocol_features_come_first")
class ProtocolFeaturesLater(BackEnd):
    def on_get_protocol_features(self, body: bytes, fds: list[int]) -> bytes:
        if not self.features:
            raise Bad("features first")
        return super().on_get_protocol_features(body, fds)


@catches(AREA, "mq_is_offered")
class NoMq(BackEnd):
    protocol = BackEnd.protocol & ~P.MQ


@catches(AREA, "the_number_of_queues")
class CountsOneMore(BackEnd):
    def on_get_queue_num(self, body: bytes, fds: list[int]) -> bytes:
        return NUMBER.pack(len(self.rings) + 1)


@catches(AREA, "no_extensions")
class WantsProtocolFeatures(BackEnd):
    def on_set_features(self, body: bytes, fds: list[int]) -> None:
        super().on_set_features(body, fds)
        if self.without_protocol:
            raise Bad("no protocol features")


@catches(AREA, "no_extensions")
class WaitsToBeEnabled(BackEnd):
    def on_set_features(self, body: bytes, fds: list[int]) -> None:
        super().on_set_features(body, fds)
        self.disk.enabled.clear()


@catches(AREA, "reset_owner")
class ForgetsWithItsOwner(BackEnd):
    def on_reset_owner(self, body: bytes, fds: list[int]) -> None:
        self.reset()


@catches(AREA, "success_is_acknowledged")
class AcknowledgesMost(BackEnd):
    def acknowledge(self, sock: socket.socket, request: Front) -> None:
        if request != Front.SET_VRING_ERR:
            super().acknowledge(sock, request)


@catches(AREA, "success_is_acknowledged")
class FailsToEnable(BackEnd):
    def acknowledge(self, sock: socket.socket, request: Front) -> None:
        value = int(request == Front.SET_VRING_ENABLE)
        self.send(sock, request, NUMBER.pack(value))


@catches(AREA, "a_reply_is_enough")
class AcknowledgesReplies(BackEnd):
    def answer(
        self, sock: socket.socket, request: Front, flags: int, body: bytes, fds: list[int]
    ) -> None:
        super().answer(sock, request, flags, body, fds)
        if request == Front.GET_PROTOCOL_FEATURES and flags & NEED_REPLY:
            self.acknowledge(sock, request)


@catches(AREA, "nothing_unasked")
class AcknowledgesUnasked(BackEnd):
    def answer(
        self, sock: socket.socket, request: Front, flags: int, body: bytes, fds: list[int]
    ) -> None:
        super().answer(sock, request, flags | NEED_REPLY, body, fds)


@catches(AREA, "need_reply_without_reply_ack")
class AcknowledgesWithoutTheFeature(BackEnd):
    def acks(self) -> bool:
        return True


@catches(AREA, "need_reply_without_reply_ack")
class AlwaysAcknowledges(AcknowledgesUnasked):
    def acks(self) -> bool:
        return True


@catches(AREA, "an_unknown_request", "missing_descriptors", "no_such_ring", "the_other_channel")
class TellsSuccessOfMessages(TellsSuccess):
    pass


@catches(AREA, "the_other_channel")
class RefusesTheChannel(BackEnd):
    def on_set_backend_req_fd(self, body: bytes, fds: list[int]) -> None:
        raise Bad("no channel")
