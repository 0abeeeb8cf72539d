"""Socket devices that get one thing wrong."""

from __future__ import annotations

from tests.check.mutants import REFERENCES, catches
from tests.check.reference_vsock import (
    ASK,
    HEADER,
    NO_IMPLIED_STREAM,
    REQUEST,
    RESPONSE,
    SEQPACKET,
    STREAM,
    Flow,
    Packet,
    Vsock,
)

REFERENCES["vsock"] = (Vsock,)


@catches("vsock.the_context_id")
class TheHostsCid(Vsock):
    cid = 2


@catches("vsock.the_context_id")
class WideCid(Vsock):
    cid = 1 << 32 | 5


@catches("vsock.no_implied_stream")
class Implies(Vsock):
    offered = Vsock.offered & ~NO_IMPLIED_STREAM


@catches("vsock.an_unknown_type")
class DropsUnknownTypes(Vsock):
    def unknown(self, packet: Packet) -> None:
        """Nobody asked."""


@catches("vsock.an_unknown_type")
class TakesUnknownTypes(Vsock):
    def unknown(self, packet: Packet) -> None:
        self.answer(packet, RESPONSE)


@catches("vsock.no_receive_buffers")
class WaitsForBuffers(Vsock):
    def may_take(self) -> bool:
        return not self.pending


@catches("vsock.no_receive_buffers")
class DropsAnswers(Vsock):
    def answer(self, packet: Packet, op: int, data: bytes = b"") -> None:
        if not self.pending:
            super().answer(packet, op, data)


@catches("vsock.streams_without_features")
class StreamsWhenAsked(Vsock):
    def knows(self, kind: int) -> bool:
        return (kind == 1 and bool(self.features & (STREAM | SEQPACKET))) or kind == 2

    def unknown(self, packet: Packet) -> None:
        """It has no such sockets, and is rude."""


@catches("vsock.streams_beside_seqpacket")
class SilentBesideSeqpacket(Vsock):
    def heard(self, packet: Packet, data: bytes) -> None:
        if not (packet.op == REQUEST and self.features & SEQPACKET):
            super().heard(packet, data)


@catches("vsock.credit_is_told")
class TellsNoBuffer(Vsock):
    def answer(self, packet: Packet, op: int, data: bytes = b"") -> None:
        super().answer(packet, op, data)
        header = Packet(*HEADER.unpack_from(self.pending[-1]))
        self.pending[-1] = HEADER.pack(*header._replace(buf_alloc=0)) + data


@catches("vsock.credit_is_told")
class ForwardsTwice(Vsock):
    def forwarded(self, flow: Flow) -> int:
        return 2 * flow.received


@catches("vsock.credit_is_told")
class KeepsItsCredit(Vsock):
    def heard(self, packet: Packet, data: bytes) -> None:
        if packet.op != ASK:
            super().heard(packet, data)


@catches("vsock.no_more_than_there_is_room_for")
class Floods(Vsock):
    def room(self, flow: Flow) -> int:
        return 4096


@catches("vsock.no_more_than_there_is_room_for")
class FloodsLater(Vsock):
    def room(self, flow: Flow) -> int:
        return 4096 if flow.sent else super().room(flow)
