"""A small console with two ports, to be judged."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable

from tests.check.reference import Reference, Served
from tests.check.reference_entropy import RING_FEATURES
from virtq.model.memory import Taken

SIZE, MULTIPORT, EMERG_WRITE = 1, 2, 4
READY, ADD, REMOVE, PORT_READY, CONSOLE, RESIZE, OPEN, NAME = range(8)
MESSAGE = struct.Struct("<IHH")


class Console(Reference):
    offered = RING_FEATURES | MULTIPORT | EMERG_WRITE
    device_id = 3
    queue_count = 6
    ports = 2

    def __init__(self) -> None:
        self.output = bytearray()
        self.control: deque[bytes] = deque()
        self.added: set[int] = set()
        super().__init__()

    @property
    def config(self) -> bytes:
        return struct.pack("<HHII", 0, 0, self.ports, 0)

    def write_config(self, offset: int, data: bytes) -> None:
        if offset == 8:
            self.emergency(data[0])

    def emergency(self, character: int) -> None:
        self.output.append(character)

    def reset(self) -> None:
        super().reset()
        self.control.clear()
        self.added.clear()

    def serve(self, served: Served) -> None:
        index = next(i for i, other in self.queues.items() if other is served)
        if index in (1, 3, 5):
            super().serve(served)
        if 2 in self.queues:
            self.tell(self.queues[2])

    def handle(self, buffer: Taken) -> int:
        data = buffer.read()
        if 3 in self.queues and any(taken is buffer for taken in self.queues[3].half.taken):
            self.heard(*MESSAGE.unpack_from(data))
        else:
            self.output += data
        return 0

    def heard(self, port: int, event: int, value: int) -> None:
        if event == READY and value:
            self.say(ADD, self.to_add())
        elif event == PORT_READY and port == 0:
            self.say(CONSOLE, [0], 1)
            self.say(OPEN, [0], 1)
        elif event == OPEN and port == 1:
            self.unplug(1)

    def unplug(self, port: int) -> None:
        self.added.discard(port)
        self.say(REMOVE, [port])

    def to_add(self) -> Iterable[int]:
        new = set(range(self.ports)) - self.added
        self.added |= new
        return sorted(new)

    def say(self, event: int, ports: Iterable[int], value: int = 0) -> None:
        self.control += [MESSAGE.pack(port, event, value) for port in ports]

    def tell(self, served: Served) -> None:
        while self.control and (taken := served.half.take(1)):
            data = self.control.popleft()
            taken[0].write(data)
            served.half.complete(taken[0], len(data))
            served.half.flush()
            self.notify(served)


class Plain(Console):
    """Without ports but the first."""

    offered = RING_FEATURES
    queue_count = 2
