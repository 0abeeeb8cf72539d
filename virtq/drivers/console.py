"""Driving a console device (VIRTIO 1.4, section 5.3).

    with virtq.connect("vhost-user:/run/console.sock", driver=ConsoleDriver) as console:
        with console.open("agent") as port:
            port.write(b"hello\\n")
            print(port.read(100))

Ports come, go, open and close when the device says so; a thread of the driver's own listens (see
`virtq.drivers.background`). Ports may be used from any thread, and from asyncio by the methods that
end in `_async`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, TypeVar

from virtq.device import QueueSpec
from virtq.driver import Driver
from virtq.drivers.background import Background, Waiting
from virtq.drivers.console_port import ConsolePort
from virtq.drivers.slab import Slab
from virtq.errors import FeatureError, PeerGone, RingFault, VirtqError
from virtq.queue import DriverQueue, Used
from virtq.transports.base import DriverTransport
from virtq.wire.console import (
    CONTROL_RECEIVE,
    CONTROL_TRANSMIT,
    DEVICE_ID,
    FIELD_FEATURE,
    PORTS_MAX,
    ConsoleConfig,
    ConsoleFeature,
    Control,
    Event,
    Size,
    queue_names,
    receive_queue,
    transmit_queue,
)

T = TypeVar("T")

OPEN_TIMEOUT_S = 5.0
RECEIVE_BUFFERS = 16
RECEIVE_BUFFER_BYTES = 4096
CONTROL_BUFFERS = 16
CONTROL_BUFFER_BYTES = 512
NO_PORT = 0xFFFFFFFF
"""The port number of a message that is about none."""


class ConsoleDriver(Driver):
    """Drives a console device: its ports, by number or name."""

    device_id = DEVICE_ID
    features = ConsoleFeature.SIZE | ConsoleFeature.MULTIPORT | ConsoleFeature.EMERG_WRITE
    config_layout = ConsoleConfig
    config_fields: Mapping[str, int] = FIELD_FEATURE
    config: ConsoleConfig | None
    queue_size = 64

    def __init__(self, transport: DriverTransport, **settings: Any) -> None:
        """See `Driver`."""
        self._slabs: dict[int, Slab] = {}
        self._ports: dict[int, ConsolePort] = {}
        self._waiting = Waiting()
        self._controls: list[bytes] = []
        self.background = Background("virtq-console", self._failed)
        super().__init__(transport, **settings)

    # Initialization (5.3.5)

    def choose(self, acceptable: int) -> int:
        if self.config is None:  # vhost-user without CONFIG: how many ports, or how large?
            acceptable &= ~sum(FIELD_FEATURE.values())
        return acceptable

    def plan(self) -> Mapping[int, QueueSpec]:
        ports = 0
        if self.has(ConsoleFeature.MULTIPORT) and self.config is not None:
            ports = max(1, min(self.config.max_nr_ports, PORTS_MAX))
            # One port has two queues, and the device four; each more has two.
            ports = min(ports, max(1, self.transport.queue_count // 2 - 1))
        self.ports_max = ports or 1
        names = queue_names(ports)
        return {index: QueueSpec(name, self.queue_size) for index, name in enumerate(names)}

    def populate(self, queue: DriverQueue) -> None:
        if queue.index == CONTROL_RECEIVE:
            self._slabs[queue.index] = Slab(queue, CONTROL_BUFFERS, CONTROL_BUFFER_BYTES)
        elif queue.index % 2 == 0:
            self._slabs[queue.index] = Slab(queue, RECEIVE_BUFFERS, RECEIVE_BUFFER_BYTES)

    def went_live(self) -> None:
        self.background.start()
        for id in range(self.ports_max):
            self._watch(receive_queue(id), partial(self._received, id))
            self._watch(transmit_queue(id), partial(self._sent, id))
        if self.has(ConsoleFeature.MULTIPORT):
            self._watch(CONTROL_RECEIVE, self._controlled)
            self._watch(CONTROL_TRANSMIT, lambda _: self._send_controls())
            self.call(self._say(Control(NO_PORT, Event.DEVICE_READY, 1)))
        else:
            self.call(self._only_port())

    def _watch(self, index: int, used: Callable[[list[Used]], None]) -> None:
        self.background.watch(self.queues[index], used)
        if index in self._slabs:
            self.queues[index].kick()

    async def _only_port(self) -> None:
        port = self._new_port(0)
        port.is_console = port.host_open = True

    def _tear_down(self) -> None:
        self._stop()
        super()._tear_down()

    def close(self) -> None:
        self._stop()
        super().close()

    def _stop(self) -> None:
        if self.background.running:
            with contextlib.suppress(VirtqError):
                self.background.call(self._forget_all())
            self.background.stop()

    async def _forget_all(self) -> None:
        self.background.unwatch()
        for port in list(self._ports.values()):
            self._drop(port, None)

    def was_reset(self) -> None:
        for slab in self._slabs.values():
            slab.release()
        self._slabs.clear()
        self._controls.clear()

    # What there is

    @property
    def ports(self) -> dict[int, ConsolePort]:
        """The ports that the device has announced so far, by number."""
        return dict(self._ports)

    @property
    def size(self) -> Size | None:
        """The size of the console on port 0, if the device tells."""
        port = self._ports.get(0)
        if port is not None and port.size is not None:
            return port.size
        if self.config is None or not self.has(ConsoleFeature.SIZE):
            return None
        return Size(self.config.cols, self.config.rows)

    def port(self, which: int | str, *, timeout_s: float | None = OPEN_TIMEOUT_S) -> ConsolePort:
        """The port of that number or name, as soon as the device has announced it. Raises
        TimeoutError, PeerGone."""
        return self.call(self._port(which, timeout_s))

    async def port_async(self, which: int | str) -> ConsolePort:
        """`port` for asyncio."""
        return await self.call_async(self._port(which, None))

    def open(self, which: int | str, *, timeout_s: float | None = OPEN_TIMEOUT_S) -> ConsolePort:
        """The same, opened: the device is told that somebody is there."""
        port = self.port(which, timeout_s=timeout_s)
        port.open()
        return port

    async def open_async(self, which: int | str) -> ConsolePort:
        """`open` for asyncio."""
        port = await self.port_async(which)
        await port.open_async()
        return port

    def emergency_write(self, text: bytes) -> None:
        """Have the device show characters by way of its configuration space (5.3.5). Raises
        FeatureError without EMERG_WRITE, which has to be offered only."""
        if not self.offered_features & ConsoleFeature.EMERG_WRITE:
            raise FeatureError("EMERG_WRITE is not offered")
        for character in text:
            self.write_config("emerg_wr", character)

    # What ports need

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Have the driver's thread do something, and wait for it."""
        return self.background.call(work)

    async def call_async(self, work: Coroutine[Any, Any, T]) -> T:
        """The same from asyncio."""
        return await self.background.call_async(work)

    def tell_open(self, port: ConsolePort, is_open: bool) -> None:
        """In the driver's thread: the program opens or closes a port."""
        if self.has(ConsoleFeature.MULTIPORT):
            self._send(Control(port.id, Event.PORT_OPEN, int(is_open)))

    def receive_from(self, port: ConsolePort) -> None:
        """In the driver's thread: take what has come for a port."""
        queue = self.queues[receive_queue(port.id)]
        if buffers := queue.reap():
            self._received(port.id, buffers)

    # What the thread does

    async def _port(self, which: int | str, timeout_s: float | None) -> ConsolePort:
        found: list[ConsolePort] = []

        def look() -> bool:
            found[:] = [p for p in self._ports.values() if which in (p.id, p.name or None)]
            return bool(found) or self.background.failure is not None

        await self._waiting.until(look, timeout_s, f"no port {which!r} came")
        if not found:
            raise self.background.failure or PeerGone("the device is gone")
        return found[0]

    async def _say(self, message: Control) -> None:
        self._send(message)

    def _send(self, message: Control) -> None:
        self._controls.append(message.pack())
        self._send_controls()

    def _send_controls(self) -> None:
        queue, added = self.queues[CONTROL_TRANSMIT], 0
        while self._controls and queue.free:
            queue.add(self._controls.pop(0))
            added += 1
        if added:
            queue.kick()

    def _received(self, id: int, buffers: list[Used]) -> None:
        slab, port = self._slabs[receive_queue(id)], self._ports.get(id)
        for used in buffers:
            if port is not None and port.is_open:
                port.came(slab.read(used), used.cookie)
            else:
                slab.supply(used.cookie)
        slab.queue.kick()

    def give_back(self, port: ConsolePort, numbers: list[int]) -> None:
        """In the driver's thread: the program has read what was in these receive buffers."""
        slab = self._slabs.get(receive_queue(port.id))
        if slab is not None and numbers:
            for number in numbers:
                slab.supply(number)
            slab.queue.kick()

    def _sent(self, id: int, buffers: list[Used]) -> None:
        if (port := self._ports.get(id)) is not None:
            port.sent(len(buffers))

    def _controlled(self, buffers: list[Used]) -> None:
        slab = self._slabs[CONTROL_RECEIVE]
        messages = [slab.take(used) for used in buffers]
        slab.queue.kick()
        for message in messages:
            try:
                self._obey(Control.parse(message))
            except ValueError as error:
                raise RingFault(f"queue {slab.queue.name}: {error}", "") from None
        self._waiting.changed()

    def _obey(self, message: Control) -> None:
        if message.event == Event.DEVICE_ADD:
            self._add(message.id)
            return
        port = self._ports.get(message.id)
        if port is None:
            text = f"the device says {message}, which was not added"
            raise RingFault(text, "console.multi.dev.remove-known")
        if message.event == Event.DEVICE_REMOVE:
            self._drop(port, ConnectionResetError(f"port {port.id} was removed"))
        elif message.event == Event.CONSOLE_PORT:
            port.is_console = True
            port.is_open = True
            self._send(Control(port.id, Event.PORT_OPEN, 1))  # 5.3.6.2.2
        elif message.event == Event.RESIZE:
            port.size = Size.parse(message.rest)
        elif message.event == Event.PORT_OPEN:
            self.receive_from(port)
            port.host_is(bool(message.value))
        elif message.event == Event.PORT_NAME:
            port.name = message.rest.rstrip(b"\0").decode(errors="replace")

    def _add(self, id: int) -> None:
        if id in self._ports:
            raise RingFault(f"the device adds port {id} again", "console.multi.dev.add-existing")
        if id >= self.ports_max:
            text = f"the device adds port {id} of {self.ports_max}"
            raise RingFault(text, "console.multi.dev.add-out-of-range")
        self._new_port(id)
        self._send(Control(id, Event.PORT_READY, 1))

    def _new_port(self, id: int) -> ConsolePort:
        port = self._ports[id] = ConsolePort(self, id, self.queues[transmit_queue(id)])
        self._waiting.changed()
        return port

    def _drop(self, port: ConsolePort, error: Exception | None) -> None:
        self._ports.pop(port.id, None)
        port.end(error)

    def _failed(self, error: Exception) -> None:
        """The other end is gone, or broke a queue."""
        for port in list(self._ports.values()):
            self._drop(port, error)
        self._waiting.changed()
