"""A small socket device with one service on the host, which returns what it gets; to be judged."""

from __future__ import annotations

import struct
from collections import deque
from typing import NamedTuple

from tests.check.reference import Reference, Served
from tests.check.reference_entropy import RING_FEATURES
from virtq.model.memory import Taken

STREAM, SEQPACKET, NO_IMPLIED_STREAM = 1, 2, 4
REQUEST, RESPONSE, RST, SHUTDOWN, RW, UPDATE, ASK = range(1, 8)
HEADER = struct.Struct("<QQIIIHHIII")
BUFFER_BYTES = 4096


class Packet(NamedTuple):
    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    len: int
    type: int
    op: int
    flags: int
    buf_alloc: int
    fwd_cnt: int


class Flow:
    def __init__(self) -> None:
        self.unsent = bytearray()
        self.received = self.sent = self.room_end = 0


class Vsock(Reference):
    offered = RING_FEATURES | STREAM | SEQPACKET | NO_IMPLIED_STREAM
    device_id = 19
    queue_count = 3
    cid = 5
    port = 1024

    def __init__(self) -> None:
        self.pending: deque[bytes] = deque()
        self.flows: dict[int, Flow] = {}
        super().__init__()

    @property
    def config(self) -> bytes:
        return struct.pack("<Q", self.cid)

    def reset(self) -> None:
        super().reset()
        self.pending.clear()
        self.flows.clear()

    def serve(self, served: Served) -> None:
        if served is self.queues.get(1) and self.may_take():
            super().serve(served)
        if 0 in self.queues:
            self.fill(self.queues[0])

    def may_take(self) -> bool:
        return True

    def fill(self, served: Served) -> None:
        while self.pending and (taken := served.half.take(1)):
            data = self.pending.popleft()
            taken[0].write(data)
            served.half.complete(taken[0], len(data))
            served.half.flush()
            self.notify(served)

    def handle(self, buffer: Taken) -> int:
        data = buffer.read()
        self.heard(Packet(*HEADER.unpack_from(data)), data[HEADER.size :])
        return 0

    def heard(self, packet: Packet, data: bytes) -> None:
        flow = self.flows.get(packet.src_port)
        if packet.op == RST:
            self.flows.pop(packet.src_port, None)
            return
        if not self.knows(packet.type):
            self.unknown(packet)
            return
        if packet.op == REQUEST and packet.dst_port == self.port:
            flow = self.flows[packet.src_port] = Flow()
            self.credit(flow, packet)
            self.answer(packet, RESPONSE)
        elif flow is None:
            self.answer(packet, RST)
        else:
            self.credit(flow, packet)
            flow.received += len(data)
            flow.unsent += data
            if packet.op == ASK:
                self.answer(packet, UPDATE)
            self.send(flow, packet)

    def knows(self, kind: int) -> bool:
        return kind == 1 or (kind == 2 and bool(self.features & SEQPACKET))

    def unknown(self, packet: Packet) -> None:
        self.answer(packet, RST)

    def credit(self, flow: Flow, packet: Packet) -> None:
        flow.room_end = packet.fwd_cnt + packet.buf_alloc

    def send(self, flow: Flow, packet: Packet) -> None:
        room = self.room(flow)
        if data := bytes(flow.unsent[:room]):
            del flow.unsent[: len(data)]
            flow.sent += len(data)
            self.answer(packet, RW, data)

    def room(self, flow: Flow) -> int:
        return max(flow.room_end - flow.sent, 0)

    def answer(self, packet: Packet, op: int, data: bytes = b"") -> None:
        flow = self.flows.get(packet.src_port)
        reply = Packet(
            packet.dst_cid,
            packet.src_cid,
            packet.dst_port,
            packet.src_port,
            len(data),
            packet.type,
            op,
            0,
            BUFFER_BYTES if flow else 0,
            self.forwarded(flow) if flow else 0,
        )
        self.pending.append(HEADER.pack(*reply) + data)

    def forwarded(self, flow: Flow) -> int:
        return flow.received
