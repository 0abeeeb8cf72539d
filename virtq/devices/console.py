"""The console device (VIRTIO 1.4, section 5.3), with one port or many.

    ports = [PortSpec(PtyEnd(), console=True), PortSpec(SocketEnd("/run/agent.sock"), name="agent")]
    virtq.serve(ConsoleDevice(ports), "vhost-user:/run/console.sock")

A port connects a driver with an `End` at the host's side (`console_ends`). With MULTIPORT both
sides tell each other by control messages when they are open: the host's side is while somebody is
there, and what it has to say waits until the driver has opened the port. What the driver writes
while nobody is there is lost. Without MULTIPORT there is port 0, always open.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from virtq._core import DeviceQueue, Position, Request
from virtq.device import Device, QueueSpec
from virtq.devices.anew import Starts
from virtq.devices.console_ends import CHUNK_BYTES, End
from virtq.errors import ConfigError
from virtq.features import Change
from virtq.handlers import handles
from virtq.wire.console import (
    CONTROL_BYTES,
    CONTROL_RECEIVE,
    CONTROL_TRANSMIT,
    DEVICE_ID,
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

log = logging.getLogger("virtq.device")

NAME_BYTES_MAX = 255
CONTROL_QUEUE_SIZE = 64


@dataclass(frozen=True)
class PortSpec:
    """A port to have: its host's side, its name for the driver, whether it is for a console, and
    its number (None: the next free one)."""

    end: End
    name: str = ""
    console: bool = False
    id: int | None = None


class ConsolePort:
    """A port of the device."""

    def __init__(self, id: int, spec: PortSpec) -> None:
        self.id = id
        self.end = spec.end
        self.name = spec.name
        self.console = spec.console
        self.size: Size | None = None
        self.host_open = False
        """Somebody is at the host's side."""
        self.driver_open = False
        """The driver has opened the port."""
        self.lost_bytes = 0
        """What the driver wrote while nobody was there."""
        self.begin()

    def begin(self) -> None:
        """A new driver."""
        self.announced = False
        self.ready = False
        self.driver_open = False
        self.host_open = False
        self.turn = asyncio.Lock()
        self.opened = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    held = b""
    """What came from the host, and waits until the driver opens the port."""

    def __repr__(self) -> str:
        sides = f"host {self.host_open}, driver {self.driver_open}"
        return f"<ConsolePort {self.id} {self.name!r}, {self.end.title}, open: {sides}>"


class ConsoleDevice(Device):
    """A console, or many ports."""

    device_id = DEVICE_ID
    config: ConsoleConfig
    config_writable_early = True
    """For emergency writes (5.3.4); nothing else of it is writable at all."""

    def __init__(
        self,
        ports: Sequence[PortSpec],
        *,
        ports_max: int | None = None,
        multiport: bool = True,
        size: tuple[int, int] | None = None,
        queue_size: int = 64,
        offer: Change | str = "",
    ) -> None:
        """`ports_max`: how many ports there may be (`add_port`), by default as many as are given.
        `multiport`: offer MULTIPORT; without it there is one port, of number 0. `size`: columns and
        rows of the console on port 0, offered to the driver if given.

        Raises ValueError for numbers or names that cannot be, and without MULTIPORT for other ports
        than number 0."""
        if ports_max is None:
            ports_max = max([len(ports), 1, *(p.id + 1 for p in ports if p.id is not None)])
        if not 1 <= ports_max <= PORTS_MAX:
            raise ValueError(f"a console has 1 to {PORTS_MAX} ports, not {ports_max}")
        self.ports: dict[int, ConsolePort] = {}
        self.offer = offer
        self.features = ConsoleFeature.EMERG_WRITE
        self.features |= ConsoleFeature.MULTIPORT if multiport else ConsoleFeature(0)
        self.features |= ConsoleFeature.SIZE if size is not None else ConsoleFeature(0)
        self.queues = _queues(ports_max if multiport else 0, queue_size)
        self.config = ConsoleConfig(max_nr_ports=ports_max)
        self._controls: deque[Control] = deque()
        self._sender: asyncio.Task[None] | None = None
        self._asked = False
        self._starts = Starts(CONTROL_RECEIVE, CONTROL_TRANSMIT)
        for spec in sorted(ports, key=lambda spec: spec.id is None):
            self._new_port(spec)
        if not multiport and list(self.ports) != [0]:
            raise ValueError("without MULTIPORT there is one port, and its number is 0")
        if size is not None:
            self.resize(*size)

    # Ports, from the device's thread or before it is served

    def add_port(self, spec: PortSpec) -> ConsolePort:
        """Plug a port in. Raises ValueError as the constructor does, or if there are `ports_max`
        already."""
        port = self._new_port(spec)
        if self._serving:
            self._begin(port)
        if self._asked:
            self._announce(port)
        return port

    def remove_port(self, id: int) -> None:
        """Unplug a port, and close its host's side. Raises KeyError."""
        port = self.ports.pop(id)
        if port.task is not None:
            port.task.cancel()
        if port.announced:
            self._send(Control(id, Event.DEVICE_REMOVE))
        port.end.close()

    def resize(self, cols: int, rows: int, *, id: int = 0) -> None:
        """The console on a port has another size. Raises KeyError for a port that is not there,
        ValueError for sizes beyond 16 bits."""
        size, port = Size(cols, rows), self.ports[id]
        if not (0 <= cols <= 0xFFFF and 0 <= rows <= 0xFFFF):
            raise ValueError(f"{cols} columns and {rows} rows are not a console's")
        port.size = size
        if id == 0 and self.features & ConsoleFeature.SIZE:
            self.update_config(cols=cols, rows=rows)
        if port.ready:
            self._send(Control(id, Event.RESIZE, 0, size.pack()))

    def port(self, name: str) -> ConsolePort:
        """The port of that name. Raises KeyError."""
        for port in self.ports.values():
            if port.name == name:
                return port
        raise KeyError(f"no port is called {name!r}")

    def _new_port(self, spec: PortSpec) -> ConsolePort:
        id = spec.id if spec.id is not None else self._free_id(spec)
        if not 0 <= id < self.config.max_nr_ports:
            raise ValueError(f"port {id}: there are {self.config.max_nr_ports} ports at most")
        if id in self.ports:
            raise ValueError(f"port {id} is there already")
        if len(spec.name.encode()) > NAME_BYTES_MAX:
            raise ValueError(f"port {id}: a name of more than {NAME_BYTES_MAX} bytes")
        if spec.name and any(port.name == spec.name for port in self.ports.values()):
            raise ValueError(f"port {id}: another port is called {spec.name!r}")
        port = self.ports[id] = ConsolePort(id, spec)
        return port

    def _free_id(self, spec: PortSpec) -> int:
        """Drivers take port 0 for a console, so others get it last."""
        ids = range(self.config.max_nr_ports)
        order = ids if spec.console else [*ids[1:], 0]
        free = next((id for id in order if id not in self.ports), None)
        if free is None:
            raise ValueError(f"there are {self.config.max_nr_ports} ports already")
        return free

    # Life

    _serving = False

    def start_queue(self, queue: DeviceQueue, enabled: bool) -> None:
        if self._starts.started(queue) and self._asked:
            self._begin_again()
        super().start_queue(queue, enabled)

    def stop_queue(self, index: int) -> Position:
        self._starts.stopped(index)
        return super().stop_queue(index)

    def _begin_again(self) -> None:
        """There is another driver, and nobody has said so."""
        self._asked = False
        self._controls.clear()
        for port in self.ports.values():
            if port.task is not None:
                port.task.cancel()
            self._begin(port)

    def started(self) -> None:
        self._serving = True
        for port in self.ports.values():
            self._begin(port)

    def was_reset(self) -> None:
        self._serving = False
        self._asked = False
        self._controls.clear()
        self._sender = None
        for port in self.ports.values():
            port.begin()

    def close(self) -> None:
        """Close the host's side of every port."""
        for port in self.ports.values():
            port.end.close()

    @property
    def _multiport(self) -> bool:
        return bool(self.driver_features & ConsoleFeature.MULTIPORT)

    def _begin(self, port: ConsolePort) -> None:
        port.begin()
        if not self._multiport:
            if port.id:
                return  # it has no queues
            self._driver_opens(port, True)
        port.task = self.spawn(self._carry(port))

    # The host's side to the driver

    async def _carry(self, port: ConsolePort) -> None:
        supply = self.supplies[self.queue_name(receive_queue(port.id))]
        while await port.end.arrived():
            self._host_opens(port, True)
            while data := port.held or await port.end.read():
                port.held = data
                await port.opened.wait()
                port.held = b""
                await supply.write_all(data)
            self._host_opens(port, False)

    def _host_opens(self, port: ConsolePort, is_open: bool) -> None:
        if port.host_open != is_open:
            port.host_open = is_open
            if port.ready:
                self._send(Control(port.id, Event.PORT_OPEN, int(is_open)))

    def _driver_opens(self, port: ConsolePort, is_open: bool) -> None:
        port.driver_open = is_open
        if is_open:
            port.opened.set()
        else:
            port.opened.clear()

    # The driver to the host's side

    @handles("port*_transmitq")
    async def transmit(self, request: Request) -> int:
        """Serve one buffer of output (5.3.6); it is held until the host's side has taken it."""
        index = request.queue_index
        id = 0 if index == transmit_queue(0) else index // 2 - 1
        port = self.ports.get(id)
        if port is None:
            return 0
        async with port.turn:
            while data := request.read(CHUNK_BYTES):
                if port.host_open:
                    await port.end.write(data)
                else:
                    port.lost_bytes += len(data)
        return 0

    def config_written(self, field: str, value: Any) -> None:
        """An emergency write (5.3.5.1): a character for port 0, at any time."""
        if field != "emerg_wr":
            raise ConfigError(f"configuration field {field} is not writable")
        character = bytes([value & 0xFF])
        if 0 not in self.ports or not self.ports[0].end.write_now(character):
            log.warning("console: emergency write of %r, and nobody there", character)

    # Control messages (5.3.6.2)

    @handles("control_transmitq")
    def control(self, request: Request) -> int:
        """Serve one control message of the driver."""
        try:
            message = Control.parse(request.read(CONTROL_BYTES))
        except ValueError as error:
            log.warning("console: %s", error)
            return 0
        serve = _CONTROLS.get(message.event)
        port = self.ports.get(message.id)
        if message.event == Event.DEVICE_READY:
            self._device_ready(message)
        elif serve is not None and port is not None and port.announced:
            serve(self, port, message)
        else:
            log.warning("console: the driver says %s, which means nothing here", message)
        return 0

    def _device_ready(self, message: Control) -> None:
        if not message.value:
            log.warning("console: the driver says that it cannot use the device")
        elif not self._asked:
            self._asked = True
            for port in self.ports.values():
                self._announce(port)

    def _announce(self, port: ConsolePort) -> None:
        port.announced = True
        self._send(Control(port.id, Event.DEVICE_ADD))

    def _port_ready(self, port: ConsolePort, message: Control) -> None:
        if not message.value:
            log.warning("console: the driver says that it cannot use port %d", port.id)
        if port.ready or not message.value:
            return
        port.ready = True
        if port.console:
            self._send(Control(port.id, Event.CONSOLE_PORT, 1))
        if port.size is not None:
            self._send(Control(port.id, Event.RESIZE, 0, port.size.pack()))
        if port.name:
            self._send(Control(port.id, Event.PORT_NAME, 1, port.name.encode()))
        if port.host_open:
            self._send(Control(port.id, Event.PORT_OPEN, 1))

    def _port_open(self, port: ConsolePort, message: Control) -> None:
        self._driver_opens(port, bool(message.value))

    def _send(self, message: Control) -> None:
        """Send a control message, after those that wait already."""
        self._controls.append(message)
        if self._sender is None:
            self._sender = self.spawn(self._send_controls())

    async def _send_controls(self) -> None:
        supply = self.supplies[self.queue_name(CONTROL_RECEIVE)]
        try:
            while self._controls:
                await supply.wait_free()
                [room] = supply.rooms(1)
                if room < CONTROL_BYTES:
                    supply.give_up(f"a control buffer of {room} bytes, less than a message")
                    return
                data = self._controls.popleft().pack()
                if len(data) > room:
                    log.warning("console: a control buffer of %d bytes for %d", room, len(data))
                supply.put_nowait(data[:room])
        finally:
            self._sender = None


_CONTROLS: Mapping[int, Callable[[ConsoleDevice, ConsolePort, Control], None]] = {
    Event.PORT_READY: ConsoleDevice._port_ready,
    Event.PORT_OPEN: ConsoleDevice._port_open,
}


def _queues(ports: int, size: int) -> list[QueueSpec]:
    """`ports`: 0 without MULTIPORT."""
    specs = []
    for index, name in enumerate(queue_names(ports)):
        control = index in (CONTROL_RECEIVE, CONTROL_TRANSMIT)
        slots = CONTROL_QUEUE_SIZE if control else size
        specs.append(QueueSpec(name, slots, fills=name.endswith("receiveq")))
    return specs
