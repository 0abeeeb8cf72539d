"""What a device costs whose buffers are served in Python.

The device is a `virtq.Device` on the loopback transport, in a thread of this process. The load is a
driver half on another thread that does not need the interpreter (`virtq._core.Load`), so that what
is measured is the device's side: taking buffers, calling the handler, completing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from virtq._core import Batch, Load, Request
from virtq.bench.case import Case, Contender, Window
from virtq.device import Device, QueueSpec
from virtq.driver import Driver
from virtq.features import Change, F, RingKind
from virtq.transports.loopback import LoopbackTransport

QUEUE_SIZE = 1024
BUFFER_BYTES = 64
HANDLE_FLOOR_PER_S = 500_000
BATCH_FLOOR_PER_S = 20_000_000


class _Served(Device):
    """A device of one queue, whose thread may be bound to a processor."""

    device_id = 63
    queues = (QueueSpec("buffers", QUEUE_SIZE),)
    processor: int | None = None

    def negotiated(self, features: int) -> None:
        if self.processor is not None:
            os.sched_setaffinity(0, {self.processor})


class Echo(_Served):
    """`handle`: a request's bytes are its reply."""

    def handle(self, request: Request) -> int:
        return request.write(request.read())


class EchoLater(_Served):
    """`async def handle`."""

    async def handle(self, request: Request) -> int:
        return request.write(request.read())


class EchoEach(_Served):
    """`handle_batch`, one request after the other."""

    def handle_batch(self, batch: Batch) -> list[int]:
        return [request.write(request.read()) for request in batch]


class EchoArray(_Served):
    """`handle_batch` on arrays: all requests are one array, and so are the replies."""

    def handle_batch(self, batch: Batch) -> int:
        return batch.write_array(batch.read_array())


class ReadArray(_Served):
    """`handle_batch` on arrays: what the buffers hold is copied into one array, and nothing is
    written."""

    def handle_batch(self, batch: Batch) -> int:
        batch.read_array()
        return 0


Make = Callable[[], Sequence[Contender]]


@dataclass(frozen=True)
class Shape:
    """The buffers that the load keeps in flight."""

    depth: int
    batch: int
    readable: int = BUFFER_BYTES
    writable: int = BUFFER_BYTES
    wait: str = "poll"


class Served:
    """A device under load, as a contender. Its units are buffers."""

    def __init__(
        self,
        name: str,
        device: _Served,
        kind: RingKind,
        shape: Shape,
        pin: tuple[int, int] | None = None,
    ) -> None:
        """`pin`: processors of the driver and of the device."""
        self.name = name
        self._pin = pin
        device.processor = pin[1] if pin else None
        direct = Change(kind.change.add, kind.change.remove | F.INDIRECT_DESC)
        self._driver = Driver(
            LoopbackTransport(device), want=kind.features, offer=direct, queue_size=QUEUE_SIZE
        )
        try:
            sizes = {"readable": shape.readable, "writable": shape.writable, "depth": shape.depth}
            memory = self._driver.arena.alloc(Load.bytes(**sizes), 64)
            self._load = Load(
                self._driver.queues[0].core,
                self._driver.transport.memory,
                memory.addr,
                batch=shape.batch,
                wait=shape.wait,
                echo=shape.readable > 0 and shape.writable > 0,
                **sizes,
            )
        except BaseException:
            self._driver.close()
            raise

    def window(self, seconds: float) -> Window:
        """Raises VirtqError for a reply that is not right, TimeoutError if the device holds on to
        buffers."""
        before = os.sched_getaffinity(0)
        if self._pin:
            os.sched_setaffinity(0, {self._pin[0]})
        try:
            did = self._load.run(seconds)
        finally:
            os.sched_setaffinity(0, before)
        counts = {
            "kicks": did["kicks_sent"],
            "calls": did["calls_received"],
            "used_entries": did["used_entries"],
            "verified": did["verified"],
        }
        return Window(did["buffers"], did["seconds"], counts)

    def close(self) -> None:
        self._driver.close()


def cases(
    *,
    batch: int = 256,
    size: int = BUFFER_BYTES,
    pin: tuple[int, int] | None = None,
    quick: bool = False,
) -> list[Case]:
    """What `virtq bench python` compares. `batch`: buffers made available at a time, where many
    are in flight; `size`: bytes of each."""
    best = RingKind.PACKED_IN_ORDER
    echo = Shape(QUEUE_SIZE // 2, min(batch, QUEUE_SIZE // 4), size, size)
    read = Shape(QUEUE_SIZE, min(batch, QUEUE_SIZE // 2), size, 0)
    alone = Shape(1, 1, size, size)
    asleep = Shape(1, 1, size, size, "event")

    def several(
        *made: tuple[str, type[_Served], RingKind, Shape],
    ) -> Callable[[], Sequence[Contender]]:
        return lambda: _make(made, pin)

    echoed = f"The device reads {size} bytes of each buffer and writes them back as the reply. "
    driver = (
        f"The driver writes {size} bytes into each buffer before it is made available, "
        "copies the reply out, and compares one in 61."
    )
    made = [
        Case(
            "handle: one request at a time",
            several(
                ("handle", Echo, best, echo),
                ("async handle", EchoLater, best, echo),
                ("handle_batch, each request", EchoEach, best, echo),
                ("handle_batch, arrays", EchoArray, best, echo),
            ),
            unit="requests",
            parameters={"in flight": echo.depth, "batch": echo.batch, "ring": best.title},
            floors={"handle": HANDLE_FLOOR_PER_S},
            work=echoed + driver,
        ),
        Case(
            "handle_batch: arrays",
            several(*((kind.title, ReadArray, kind, read) for kind in RingKind)),
            parameters={"in flight": read.depth, "batch": read.batch},
            floors={best.title: BATCH_FLOOR_PER_S},
            work=f"The driver writes {size} bytes into each buffer; the device copies those of "
            "all buffers of a batch into one array.",
        ),
        Case(
            "handle: one request in flight",
            several(
                ("driver polls", Echo, best, alone),
                ("driver sleeps", Echo, best, asleep),
            ),
            unit="requests",
            parameters={"in flight": 1, "ring": best.title},
            work=echoed + driver,
        ),
    ]
    if not quick:
        kinds = [(kind.title, Echo, kind, echo) for kind in RingKind]
        made.append(
            Case(
                "handle: kinds of ring",
                several(*kinds),
                unit="requests",
                parameters={"in flight": echo.depth, "batch": echo.batch},
                work=echoed + driver,
            )
        )
    return made


def _make(
    made: Sequence[tuple[str, type[_Served], RingKind, Shape]], pin: tuple[int, int] | None
) -> list[Served]:
    contenders: list[Served] = []
    try:
        for name, device, kind, shape in made:
            contenders.append(Served(name, device(), kind, shape, pin))
    except BaseException:
        for contender in contenders:
            contender.close()
        raise
    return contenders
