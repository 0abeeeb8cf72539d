"""A network device that is live: its queue pairs, its control queue, and the wire.

Frames that the judge makes carry a token of the run, and what arrives without it is not looked at:
a wire may have others on it. A frame that comes last tells that those before it are through.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from virtq.check.case import Hung, NotObservable, expect
from virtq.check.context import Context
from virtq.check.net.far_end import FarEnd
from virtq.check.net.frames import Packet, ethernet, whole
from virtq.check.net.header import Header, header_bytes
from virtq.check.session import UNTOUCHED, Job, Ring, Sent, Session
from virtq.features import F, describe
from virtq.wire.net import (
    BIG_PACKET_BYTES,
    DEVICE_ID,
    GUEST_SEGMENTATION,
    PREREQUISITES,
    Ack,
    receive_queue,
    transmit_queue,
)
from virtq.wire.net import NetFeature as N

SOMEBODY = b"\x02\x00\x00\x00\x00\x99"
_TOKEN_BYTES = 8
_FRAME_BYTES_MAX = 1514
_RING_SIZE = 128
_SEND_AGAIN_S = 0.25
"""A device may drop a frame that comes close behind others: so long after it the next one is sent
of those that only tell that the others are through."""


@dataclass(frozen=True)
class Received:
    """A packet that the device passed on: the queue pair, the header, the frame; and the used
    buffers that it came in."""

    pair: int
    header: Header
    frame: bytes
    buffers: tuple[Sent, ...]

    @property
    def packet(self) -> Packet:
        return Packet(self.frame, self.header)


class Nic:
    """Initialized with exactly these features (and MAC where it is offered)."""

    def __init__(
        self,
        ctx: Context,
        features: int = 0,
        *,
        pairs: int = 1,
        wire: bool = True,
        buffers: int = 32,
        session: Session | None = None,
    ) -> None:
        """`pairs`: queue pairs to set up. `wire`: whether frames are exchanged with the far end.
        `buffers`: receive buffers of each pair, of the size that is asked for (5.1.6.3.1), which go
        back once they are used; 0 for none, `post` then.

        Raises NotObservable if the device does not offer it all, has fewer pairs, or has a wire
        that cannot be reached."""
        self.session = session or ctx.session()
        self._asked = features, pairs, buffers
        kind = ctx.kind.features if ctx.kind else F(0)
        wanted = int(F.VERSION_1 | kind) | features
        if lacking := wanted & ~self.session.offered:
            raise NotObservable(f"not offered: {describe(lacking, DEVICE_ID)}")
        self.features = wanted | self.session.offered & N.MAC
        self._far: FarEnd | None = ctx.far_end() if wire else None
        if not self.session.negotiate(self.features):
            raise NotObservable(f"the device does not take the features {self.features:#x}")
        self.most_pairs = 1
        if self.features & (N.MQ | N.RSS):
            self.most_pairs = int.from_bytes(self.config(8, 2), "little")
        if pairs > self.most_pairs:
            raise NotObservable(f"the device has {self.most_pairs} queue pairs")
        if self.features & N.CTRL_VQ and not self.session.has_queue(self.control_index):
            raise NotObservable(
                f"the control queue, {self.control_index}, is the front-end's: the back-end has"
                f" {self.session.transport.queue_count} virtqueues"
            )
        self.mergeable = bool(self.features & N.MRG_RXBUF)
        self.header_bytes = header_bytes(self.features)
        self.token = os.urandom(_TOKEN_BYTES)
        self._last = os.urandom(_TOKEN_BYTES)
        self._again = buffers > 0
        self._parts: dict[int, list[Sent]] = {pair: [] for pair in range(pairs)}
        for pair in range(pairs):
            self._ring(receive_queue(pair))
            self._ring(transmit_queue(pair))
        if self.features & N.CTRL_VQ:
            self._ring(self.control_index)
        self.session.go_live()
        self._buffers = buffers
        for pair in range(pairs):
            self._fill(pair)

    def anew(self, ctx: Context) -> Nic:
        """The same after a reset of the device."""
        features, pairs, buffers = self._asked
        self.session.reset()
        nic = Nic(ctx, features, pairs=pairs, wire=False, buffers=buffers, session=self.session)
        nic._far = self._far
        return nic

    def reset_queue(self, index: int) -> None:
        """Take a virtqueue from the device (2.6.1)."""
        self.session.transport.reset_queue(index)
        self.session.rings.pop(index).close()

    def begin_again(self, pair: int) -> None:
        """Enable a receive queue that was reset, with buffers as before."""
        self._parts[pair].clear()
        self._ring(receive_queue(pair))
        self._fill(pair)

    def _fill(self, pair: int) -> None:
        segments = bool(self.features & GUEST_SEGMENTATION) and not self.mergeable
        largest = BIG_PACKET_BYTES if segments else _FRAME_BYTES_MAX
        count = min(self._buffers, 8) if segments else self._buffers
        if count:
            self.post(self.header_bytes + largest, count, pair)

    def _ring(self, index: int) -> None:
        self.session.ring(index, min(self.session.transport.queue_size_max(index), _RING_SIZE))

    # Configuration and control

    def config(self, offset: int, length: int) -> bytes:
        return self.session.transport.read_config(offset, length)

    @property
    def mac(self) -> bytes:
        return self.config(0, 6) if self.features & N.MAC else SOMEBODY

    @property
    def control_index(self) -> int:
        return 2 * self.most_pairs

    def command(
        self, kind: int, command: int, data: bytes = b"", result_bytes: int = 0
    ) -> tuple[int, bytes]:
        """The ack byte and the result. Raises Broken for an ack that was not written."""
        ring = self.session.rings[self.control_index]
        sent = ring.serve(Job(bytes([kind, command]) + data, 1 + result_bytes))[0]
        expect(sent.reply[0] != UNTOUCHED, "an ack byte for a command", "none was written")
        return sent.reply[0], sent.reply[1:]

    def order(self, kind: int, command: int, data: bytes = b"", result_bytes: int = 0) -> bytes:
        """A command that the device has to carry out; its result."""
        ack, result = self.command(kind, command, data, result_bytes)
        what = f"ack OK (0) for command {command} of class {kind}"
        expect(ack == Ack.OK, what, f"{ack} for the data {data.hex(' ')}")
        return result

    # Frames

    @property
    def far(self) -> FarEnd:
        assert self._far is not None
        return self._far

    def payload(self, length: int) -> bytes:
        """Bytes that have the token wherever there are 23 of them in one piece."""
        parts = (self.token + i.to_bytes(4) for i in range(length // 12 + 1))
        return b"".join(parts)[:length]

    def frame(self, to: bytes | None = None, length: int = 60, vlan: int | None = None) -> bytes:
        """A frame of this length, by default to the device's own address."""
        head = 14 + (0 if vlan is None else 4)
        return ethernet(self.payload(length - head), to or self.mac, vlan=vlan)

    def _last_frame(self, to: bytes) -> bytes:
        self._last = os.urandom(_TOKEN_BYTES)
        return ethernet(self._last, to)

    # Receiving

    def receive_ring(self, pair: int = 0) -> Ring:
        return self.session.rings[receive_queue(pair)]

    def post(self, buffer_bytes: int, count: int = 1, pair: int = 0) -> None:
        """Receive buffers."""
        ring = self.receive_ring(pair)
        for _ in range(count):
            ring.add(Job(b"", buffer_bytes))
        ring.kick()

    def put(self, packet: Packet) -> None:
        """Send a packet to the device: as it is, or as the frames that it stands for where the wire
        knows nothing else."""
        tunnel = bool(packet.header.outer_th_offset)
        if self.far.offloads and (self.far.tunnels or not tunnel):
            self.far.send(packet)
        else:
            for frame in whole(packet):
                self.far.send(Packet(frame))

    def deliver(self, *packets: Packet | bytes, last_to: bytes | None = None) -> list[Received]:
        """Send packets to the device, and after them a frame that it has to pass on, to `last_to`
        or its own address; what it passed on of the others."""
        for packet in packets:
            self.put(packet if isinstance(packet, Packet) else Packet(packet))
        last = Packet(self._last_frame(last_to or self.mac))
        self.far.send(last)
        sent_at = time.monotonic()
        came: list[Received] = []
        for _ in self.session.patience("a frame that was sent to the device to be received"):
            came += self.collect()
            if any(self._last in received.frame for received in came):
                break
            if time.monotonic() - sent_at > _SEND_AGAIN_S:
                self.far.send(last)
                sent_at = time.monotonic()
        return [received for received in came if self.token in received.frame]

    def arrivals(self, *frames: bytes) -> list[Received]:
        """Send frames that the device has to pass on, to whichever queue."""
        for frame in frames:
            self.far.send(Packet(frame))
        came: list[Received] = []
        for _ in self.session.patience(f"{len(frames)} frames to be received"):
            came += [received for received in self.collect() if self.token in received.frame]
            if len(came) >= len(frames):
                break
        return came

    def until(self, frame: bytes) -> list[Received]:
        """Send a frame that the device has to pass on; what comes until then, with it."""
        self.far.send(Packet(frame))
        came: list[Received] = []
        for _ in self.session.patience("a frame that was sent to the device to be received"):
            came += self.collect()
            if any(received.frame == frame for received in came):
                break
        return came

    def collect(self) -> list[Received]:
        """The packets that have come since the last time."""
        return [received for pair in self._parts for received in self._collect(pair)]

    def _collect(self, pair: int) -> list[Received]:
        ring = self.session.rings.get(receive_queue(pair))
        if ring is None:
            return []
        waiting = self._parts[pair]
        for sent in ring.collect():
            sent.check()
            waiting.append(sent)
        packets = []
        while waiting:
            written = waiting[0].written or 0
            expect(
                written >= self.header_bytes or 0 < len(waiting[0].reply) < self.header_bytes,
                f"a header of {self.header_bytes} bytes before a packet",
                f"a used buffer with {written} bytes",
            )
            header = Header.parse(waiting[0].reply[: self.header_bytes])
            count = header.num_buffers if self.mergeable else 1
            expect(count > 0, "num_buffers of 1 or more", count)
            expect(
                len(waiting) >= count,
                f"{count} used buffers, as num_buffers says",
                f"{len(waiting)} at the time when the first is used",
            )
            packets.append(self._packet(pair, header, waiting[:count]))
            del waiting[:count]
            if self._again:
                self._give_back(ring, packets[-1].buffers)
        return packets

    def _packet(self, pair: int, header: Header, buffers: Sequence[Sent]) -> Received:
        data = b"".join(sent.reply[: sent.written] for sent in buffers)
        return Received(pair, header, data[self.header_bytes :], tuple(buffers))

    def _give_back(self, ring: Ring, buffers: Sequence[Sent]) -> None:
        for sent in buffers:
            for piece in sent.writable:
                self.session.arena.free(piece)
            ring.add(Job(b"", len(sent.reply)))
        ring.kick()

    # Transmitting

    def transmit(self, *packets: Packet | bytes, pair: int = 0) -> list[Packet]:
        """Transmit packets, and a plain frame after them; those that arrive at the far end before
        it, each as the frames that it stands for."""
        last = self._last_frame(SOMEBODY)
        self.hand_over(*packets, last, pair=pair)
        came: list[Packet] = []
        for _ in self.session.patience("a frame that was transmitted to arrive at the far end"):
            came += self.far.receive()
            if any(self._last in packet.frame for packet in came):
                break
        return [packet for packet in came if self.token in packet.frame]

    def hand_over(self, *packets: Packet | bytes, pair: int = 0) -> None:
        """Transmit, and wait until the device has used the buffers."""
        ring = self.session.rings[transmit_queue(pair)]
        for item in packets:
            packet = item if isinstance(item, Packet) else Packet(item)
            ring.add(Job(packet.header.pack(self.features) + packet.frame, 0))
        ring.kick()
        ring.wait(len(packets))

    def refused(self, packet: Packet) -> bool:
        """Whether a packet that must not be accepted does not arrive. A device may give its queue
        up for it."""
        try:
            return not self.transmit(packet)
        except Hung:
            return True


def with_needs(features: int) -> int:
    """With what these features need where there is no choice (5.1.3.1), to any depth; of two that
    would do, the first."""
    while True:
        more = features
        for feature, needs in PREREQUISITES.items():
            if features & feature:
                for need in needs:
                    if not need & features:
                        more |= need & -need
        if more == features:
            return features
        features = more
