"""The console device (5.3)."""

from __future__ import annotations

from collections.abc import Iterator

from virtq.check.case import Hung, NotObservable, case, expect
from virtq.check.context import Context
from virtq.check.session import Job, Ring, Session
from virtq.wire import console
from virtq.wire.console import ConsoleFeature, Control, Event

_ID = console.DEVICE_ID
_EMERGENCY_AT = 8
_CONTROL_BYTES = 256
_CONTROL_BUFFERS = 16


@case("console.init.dev.emerg-write", device_id=_ID, needs=ConsoleFeature.EMERG_WRITE, rings=False)
def an_emergency(ctx: Context) -> None:
    """emerg_wr can be written at any time: on a device that is reset, with bits above the lowest
    byte, and on a live one. It works as ever afterwards."""
    session = ctx.session()
    for character in (ord("\n"), 0xFFFF_FF00 | ord("\n")):
        session.transport.write_config(_EMERGENCY_AT, character.to_bytes(4, "little"))
    session.reset()
    live = ctx.live(session=session)
    session.transport.write_config(_EMERGENCY_AT, ord("\n").to_bytes(4, "little"))
    live.ring.serve(*live.jobs(2))


@case("console.queues.port0-always", device_id=_ID)
def port_0(ctx: Context) -> None:
    """The queues of port 0 are there without MULTIPORT, and carry characters; where MULTIPORT is
    not offered there are no others."""
    live = ctx.live()
    live.ring.serve(*live.jobs(3))
    if not live.session.offered & ConsoleFeature.MULTIPORT:
        count = live.session.transport.queue_count
        expect(count <= 2, "2 queues without MULTIPORT", count)


@case("console.multi.dev.add-out-of-range", device_id=_ID, needs=ConsoleFeature.MULTIPORT)
def ports_are_in_range(ctx: Context) -> None:
    """DEVICE_ADD names ports below max_nr_ports only."""
    ports = _Ports(ctx)
    for message in ports.messages():
        if message.event == Event.DEVICE_ADD:
            ports.ready(message.id)
            expect(message.id < ports.maximum, f"a port below {ports.maximum}", message.id)


@case("console.multi.dev.add-existing", device_id=_ID, needs=ConsoleFeature.MULTIPORT)
def ports_are_added_once(ctx: Context) -> None:
    """DEVICE_ADD names no port that is there, also if the driver says twice that it is ready."""
    ports = _Ports(ctx)
    there: set[int] = set()
    for turn in range(2):
        if turn:
            ports.tell(Control(0, Event.DEVICE_READY, 1))
        for message in ports.messages():
            if message.event == Event.DEVICE_ADD:
                expect(message.id not in there, "a port that is not there", message.id)
                there.add(message.id)
                ports.ready(message.id)
            elif message.event == Event.DEVICE_REMOVE:
                there.discard(message.id)


@case("console.multi.dev.remove-known", device_id=_ID, needs=ConsoleFeature.MULTIPORT)
def ports_are_there_to_be_removed(ctx: Context) -> None:
    """DEVICE_REMOVE names ports only that were added."""
    ports = _Ports(ctx)
    there: set[int] = set()
    for message in ports.messages():
        if message.event == Event.DEVICE_ADD:
            there.add(message.id)
            ports.ready(message.id)
            ports.tell(Control(message.id, Event.PORT_OPEN, 1))
        elif message.event == Event.DEVICE_REMOVE:
            expect(message.id in there, "a port that was added", message.id)
            there.discard(message.id)


class _Ports:
    """A device with MULTIPORT, and a driver that has said that it is ready."""

    def __init__(self, ctx: Context) -> None:
        self.session: Session = ctx.session()
        features = ctx.features(self.session, int(ConsoleFeature.MULTIPORT))
        if not self.session.negotiate(features):
            raise NotObservable("the device does not take MULTIPORT")
        config = self.session.transport.read_config(4, 4)
        self.maximum = int.from_bytes(config, "little")
        for index in (0, 1):
            self.session.ring(index)
        self.receive = self.session.ring(console.CONTROL_RECEIVE)
        self.transmit: Ring = self.session.ring(console.CONTROL_TRANSMIT)
        self.session.go_live()
        for _ in range(min(_CONTROL_BUFFERS, self.receive.size)):
            self.receive.add(Job(b"", _CONTROL_BYTES))
        self.receive.kick()
        self.tell(Control(0, Event.DEVICE_READY, 1))

    def tell(self, message: Control) -> None:
        self.transmit.serve(Job(message.pack(), 0))

    def ready(self, port: int) -> None:
        self.tell(Control(port, Event.PORT_READY, 1))

    def messages(self) -> Iterator[Control]:
        """What the device says until it is silent for a moment. Raises NotObservable if the first
        time it says nothing at all."""
        said = False
        try:
            for _ in self.session.patience("a control message"):
                for message in self._collect():
                    said = True
                    yield message
                if said or self.receive.entries:
                    break
        except Hung:
            raise NotObservable("the device announces no port") from None
        heard = True
        while heard:
            heard = False
            for _ in self.session.moment():
                for message in self._collect():
                    heard = True
                    yield message

    def _collect(self) -> list[Control]:
        found = []
        for sent in self.receive.collect():
            sent.check()
            found.append(Control.parse(sent.reply[: sent.written]))
            self.receive.add(Job(b"", _CONTROL_BYTES))
        self.receive.kick()
        return found
