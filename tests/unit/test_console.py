"""The console device with its twin driver, and with drivers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from tests.unit.vhost_user.support import Served, eventually, no_leaks
from virtq import Driver, Used, connect
from virtq.devices.console import ConsoleDevice, PortSpec
from virtq.devices.console_ends import (
    DescriptorEnd,
    End,
    FileEnd,
    NullEnd,
    PtyEnd,
    SocketEnd,
)
from virtq.drivers.console import ConsoleDriver
from virtq.errors import ConfigError, PeerGone, RingFault, VirtqError
from virtq.features import Change, RingKind
from virtq.transports.loopback import LoopbackTransport
from virtq.transports.vhost_user import Frontend
from virtq.wire import layout
from virtq.wire.console import (
    ConsoleConfig,
    ConsoleFeature,
    Control,
    Event,
    Size,
    queue_names,
    receive_queue,
    transmit_queue,
)

PATIENCE_S = 10.0
MIB = 1 << 20
T = TypeVar("T")


class Pair(DescriptorEnd):
    """A port's host side in the test's hands."""

    def __init__(self) -> None:
        self.outside, inside = socket.socketpair()
        self.outside.settimeout(PATIENCE_S)
        inside.setblocking(False)
        fd = inside.detach()
        super().__init__(fd, fd, "pair")

    def close(self) -> None:
        super().close()
        self.outside.close()


def drive(device: ConsoleDevice, kind: RingKind = RingKind.SPLIT, offer: str = "") -> ConsoleDriver:
    change = Change.parse(offer, 3)
    both = Change(kind.change.add | change.add, kind.change.remove | change.remove)
    transport = LoopbackTransport(device, when_closed=device.close)
    return ConsoleDriver(transport, want=kind.features, offer=both)


def ask(driver: Driver, call: Callable[[], T]) -> T:
    """Make a call in the device's thread."""
    answer: T = driver.transport._ask(call)  # type: ignore[attr-defined]
    return answer


def exactly(outside: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count and (part := outside.recv(count - len(got))):
        got += part
    return got


def has_size(console: ConsoleDriver, size: Size) -> bool:
    return console.size == size


# Formats


def test_layouts_of_section_5_3() -> None:
    offsets = {leaf.name: leaf.offset for leaf in layout.fields_of(ConsoleConfig)}
    assert offsets == {"cols": 0, "rows": 2, "max_nr_ports": 4, "emerg_wr": 8}
    assert layout.size_of(ConsoleConfig) == 12
    message = Control(0x01020304, Event.PORT_NAME, 1, b"name")
    assert message.pack() == b"\4\3\2\1\7\0\1\0name"
    assert Control.parse(message.pack()) == message
    assert str(message) == "PORT_NAME of port 16909060, value 1"
    assert str(Control(0, 99)) == "event 99 of port 0, value 0"
    assert Size(80, 25).pack() == b"\x50\0\x19\0"
    assert Size.parse(b"\x50\0\x19\0more") == (80, 25)
    with pytest.raises(ValueError, match="of 7 bytes"):
        Control.parse(bytes(7))
    with pytest.raises(ValueError, match="of 3 bytes"):
        Size.parse(bytes(3))


def test_virtqueues_of_section_5_3_2() -> None:
    assert queue_names(0) == ["port0_receiveq", "port0_transmitq"]
    names = queue_names(3)
    assert names[2:4] == ["control_receiveq", "control_transmitq"]
    assert [receive_queue(port) for port in range(3)] == [0, 4, 6]
    for port in range(3):
        assert names[receive_queue(port)] == f"port{port}_receiveq"
        assert names[transmit_queue(port)] == f"port{port}_transmitq"


# Data


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_bytes_both_ways_at_once(kind: RingKind) -> None:
    up, down = (random.Random(seed).randbytes(300_001) for seed in (1, 2))
    end = Pair()
    with drive(ConsoleDevice([PortSpec(end, name="data")]), kind) as console:
        assert console.kind is kind
        with console.open("data") as port, ThreadPoolExecutor(3) as threads:
            writing = threads.submit(port.write, up)
            sending = threads.submit(end.outside.sendall, down)
            reading = threads.submit(port.read_exactly, len(down))
            assert exactly(end.outside, len(up)) == up
            assert reading.result(PATIENCE_S) == down
            writing.result(PATIENCE_S)
            sending.result(PATIENCE_S)


@pytest.mark.parametrize("kind", RingKind, ids=str)
@pytest.mark.parametrize("multiport", [True, False])
def test_one_console(kind: RingKind, multiport: bool) -> None:
    end = Pair()
    device = ConsoleDevice([PortSpec(end, console=True)], multiport=multiport, size=(80, 25))
    with drive(device, kind) as console:
        assert console.has(ConsoleFeature.MULTIPORT) == multiport
        assert len(console.queues) == (4 if multiport else 2)
        port = console.open(0)
        assert eventually(lambda: port.is_console)
        assert console.size == (80, 25)
        end.outside.sendall(b"typed")
        assert port.read_exactly(5) == b"typed"
        port.write(b"shown")
        assert end.outside.recv(100) == b"shown"
        ask(console, lambda: device.resize(132, 50))
        assert eventually(lambda: console.size == (132, 50))


def test_without_multiport_where_the_device_has_it() -> None:
    ends = Pair(), Pair()
    device = ConsoleDevice([PortSpec(ends[0], console=True), PortSpec(ends[1], name="other")])
    with drive(device, offer="-MULTIPORT") as console:
        assert set(console.ports) == {0}
        port = console.open(0)
        ends[0].outside.sendall(b"in")
        assert port.read(10) == b"in"
        port.write(b"out")
        assert ends[0].outside.recv(10) == b"out"


def test_small_buffers_share_used_entries_only_when_full() -> None:
    end = Pair()
    device = ConsoleDevice([PortSpec(end, console=True)], multiport=False)
    kind = RingKind.PACKED_IN_ORDER
    transport = LoopbackTransport(device, when_closed=device.close)
    with Driver(transport, want=kind.features) as driver:
        queue = driver.queues[0]
        for number in range(8):
            queue.add(reply=10, cookie=number)
        queue.kick()
        end.outside.sendall(bytes(range(75)))
        used: list[Used] = []
        while sum(u.written for u in used) < 75:
            assert queue.wait(PATIENCE_S)
            used += queue.reap()
        assert b"".join(u.reply for u in used) == bytes(range(75))
        assert [u.written for u in used] == [10] * 7 + [5]
        assert device.stats()["port0_receiveq"]["used_entries"] == 1


def test_what_is_sent_waits_until_the_port_is_open() -> None:
    end = Pair()
    with drive(ConsoleDevice([PortSpec(end, name="late")])) as console:
        port = console.port("late")
        with pytest.raises(ValueError, match="port 0 is not open"):
            port.read(1)
        end.outside.sendall(b"early")
        port.open()
        assert port.read(10) == b"early"
        port.close()
        port.close()
        end.outside.sendall(b"again")
        port.open()
        assert port.read(10) == b"again"


def test_a_reader_that_does_not_read_holds_the_host_back() -> None:
    end = Pair()
    data = random.Random(4).randbytes(MIB)
    with (
        drive(ConsoleDevice([PortSpec(end, name="slow")])) as console,
        ThreadPoolExecutor(1) as threads,
    ):
        port = console.open("slow")
        sending = threads.submit(end.outside.sendall, data)
        assert eventually(lambda: len(port._received) == 16)
        assert not sending.done()
        assert port.read_exactly(len(data)) == data
        sending.result(PATIENCE_S)


def test_a_host_that_does_not_read_holds_the_writer_back() -> None:
    end = Pair()
    device = ConsoleDevice([PortSpec(end, name="slow")])
    data = random.Random(5).randbytes(2 * MIB)
    with drive(device) as console, ThreadPoolExecutor(1) as threads:
        port = console.open("slow")
        port.timeout_s = 0.2
        with pytest.raises(TimeoutError, match="nobody took what is written"):
            port.write(data)
        taken = ask(console, lambda: device.stats()["port0_transmitq"]["bytes_read"])
        assert 0 < taken < len(data)
        reading = threads.submit(end.outside.recv, MIB)
        assert data.startswith(reading.result(PATIENCE_S))


# Ports that come and go


def test_a_socket_of_the_host(tmp_path: Path) -> None:
    path = tmp_path / "agent"
    device = ConsoleDevice([PortSpec(SocketEnd(path), name="agent")])
    with drive(device) as console:
        port = console.open("agent")
        assert not port.host_open
        port.timeout_s = 0.05
        with pytest.raises(TimeoutError):
            port.write(b"nobody there")
        port.timeout_s = PATIENCE_S
        for number in range(3):
            outside = socket.socket(socket.AF_UNIX)
            outside.settimeout(PATIENCE_S)
            outside.connect(str(path))
            port.wait_host(timeout_s=PATIENCE_S)
            outside.sendall(b"program %d" % number)
            assert port.read_exactly(9) == b"program %d" % number
            port.write(b"answer %d" % number)
            assert exactly(outside, 8) == b"answer %d" % number
            outside.sendall(b"last")
            outside.close()
            assert port.read_exactly(4) == b"last"
            assert port.read(1) == b""
            port.wait_host(False, timeout_s=PATIENCE_S)
    assert not path.exists()


def test_a_program_that_leaves_while_it_is_written_to(tmp_path: Path) -> None:
    path = tmp_path / "agent"
    device = ConsoleDevice([PortSpec(SocketEnd(path), name="agent")])
    with drive(device) as console, ThreadPoolExecutor(1) as threads:
        port = console.open("agent")
        port.timeout_s = PATIENCE_S
        first = socket.socket(socket.AF_UNIX)
        first.connect(str(path))
        port.wait_host(timeout_s=PATIENCE_S)
        writing = threads.submit(port.write, bytes(200_000 + 4096 * 40))
        assert first.recv(1) == b"\0"
        first.shutdown(socket.SHUT_WR)
        port.wait_host(False, timeout_s=PATIENCE_S)
        second = socket.socket(socket.AF_UNIX)
        second.settimeout(PATIENCE_S)
        second.connect(str(path))
        while not writing.done():
            with contextlib.suppress(TimeoutError):
                second.settimeout(0.05)
                second.recv(MIB)
        writing.result()
        first.close()
        second.close()


def test_a_program_stays_while_drivers_come_and_go(tmp_path: Path) -> None:
    path = tmp_path / "agent"
    device = ConsoleDevice([PortSpec(SocketEnd(path), name="agent")])
    outside = socket.socket(socket.AF_UNIX)
    outside.settimeout(PATIENCE_S)
    outside.connect(str(path))
    with drive(device) as console:
        for number in range(3):
            port = console.open("agent")
            port.timeout_s = PATIENCE_S
            outside.sendall(b"%d" % number)
            assert port.read(10) == b"%d" % number
            port.write(b"ok")
            assert outside.recv(10) == b"ok"
            console.reset()
    assert outside.recv(1) == b""
    outside.close()


def test_a_terminal_and_a_file_of_the_host(tmp_path: Path) -> None:
    link, log = tmp_path / "console", tmp_path / "log"
    ports = [PortSpec(PtyEnd(link), console=True), PortSpec(FileEnd(log), name="log")]
    with drive(ConsoleDevice(ports)) as console:
        port = console.open(0)
        terminal = os.open(link, os.O_RDWR | os.O_NOCTTY)
        os.write(terminal, b"date\r")
        assert port.read_exactly(5) == b"date\r"
        port.write(b"\x1b[1mtoday\n")
        assert os.read(terminal, 100) == b"\x1b[1mtoday\n"
        os.close(terminal)
        port.write(b"nobody looks, and nothing breaks")
        console.open("log").write(b"line\n" * 5000)
        assert log.read_bytes() == b"line\n" * 5000
    assert not link.exists()
    with pytest.raises(FileExistsError):
        PtyEnd(log)


def test_ports_are_plugged_in_and_out() -> None:
    device = ConsoleDevice([PortSpec(Pair(), name="first", id=3)], ports_max=4)
    with drive(device) as console:
        assert console.port("first").id == 3
        end = Pair()
        added = ask(console, lambda: device.add_port(PortSpec(end, name="second")))
        assert added.id == 1
        port = console.open("second")
        end.outside.sendall(b"plugged in")
        assert port.read_exactly(10) == b"plugged in"
        ask(console, lambda: device.remove_port(1))
        with pytest.raises(ConnectionResetError, match="port 1 was removed"):
            port.read(1)
        with pytest.raises(ConnectionResetError):
            port.write(b"x")
        assert set(console.ports) == {3}
        for name in ("a", "b", "c"):
            ask(console, partial(device.add_port, PortSpec(NullEnd(), name=name)))
        with pytest.raises(ValueError, match="4 ports already"):
            ask(console, lambda: device.add_port(PortSpec(NullEnd())))
        assert console.port("c").id == 0
        assert device.port("b").id == 2
        with pytest.raises(KeyError):
            device.port("d")
        with pytest.raises(TimeoutError, match="no port 'd' came within"):
            console.open("d", timeout_s=0.05)


def test_what_ports_cannot_be() -> None:
    null = NullEnd()
    for ports, text in (
        ([PortSpec(null, id=1), PortSpec(null, id=1)], "port 1 is there already"),
        ([PortSpec(null, name="a"), PortSpec(null, name="a")], "another port is called 'a'"),
        ([PortSpec(null, name="x" * 256)], "a name of more than 255 bytes"),
        ([PortSpec(null, id=128)], "1 to 128 ports, not 129"),
    ):
        with pytest.raises(ValueError, match=text):
            ConsoleDevice(ports)
    with pytest.raises(ValueError, match="port 5: there are 2 ports at most"):
        ConsoleDevice([PortSpec(null, id=5)], ports_max=2)
    with pytest.raises(ValueError, match="its number is 0"):
        ConsoleDevice([PortSpec(null, name="a", id=1)], multiport=False)
    device = ConsoleDevice([PortSpec(null, console=True)])
    with pytest.raises(ValueError, match="are not a console's"):
        device.resize(70_000, 1)
    with pytest.raises(KeyError):
        device.resize(1, 1, id=1)


def test_a_size_of_another_port() -> None:
    device = ConsoleDevice([PortSpec(NullEnd(), console=True) for _ in range(2)])
    device.resize(40, 10, id=1)
    with drive(device) as console:
        port = console.port(1)
        assert eventually(lambda: port.size == (40, 10))
        assert console.size is None
        ask(console, lambda: device.resize(41, 11, id=1))
        assert eventually(lambda: port.size == (41, 11))


# Emergency writes


def test_an_emergency_write_before_anything_else(tmp_path: Path) -> None:
    end = Pair()
    device = ConsoleDevice([PortSpec(end, console=True)])
    path = str(tmp_path / "console")
    with Served(device, path):
        frontend = Frontend(path)
        frontend.write_config(8, b"!\0\0\0")
        assert end.outside.recv(1) == b"!"
        frontend.close()
    device.close()


def test_an_emergency_write_comes_out_at_port_0(caplog: pytest.LogCaptureFixture) -> None:
    end = Pair()
    device = ConsoleDevice([PortSpec(end, console=True)])
    device.write_config(8, b"!\xff\xff\xff")  # on a device that nobody has set up
    assert end.outside.recv(1) == b"!"
    with drive(device) as console:
        console.emergency_write(b"Oops")
        assert exactly(end.outside, 4) == b"Oops"
    nobody = ConsoleDevice([PortSpec(NullEnd(), name="x", id=1)])
    nobody.write_config(8, b"?\0\0\0")
    assert "emergency write of b'?', and nobody there" in caplog.text
    for field in range(8):
        with pytest.raises(ConfigError, match="not writable"):
            nobody.write_config(field, b"\0")


# Other ways to use it


def test_as_a_file() -> None:
    end = Pair()
    with (
        drive(ConsoleDevice([PortSpec(end, name="file")])) as console,
        console.open("file").makefile() as file,
    ):
        file.write(b"one\n")
        file.flush()
        assert end.outside.recv(100) == b"one\n"
        end.outside.sendall(b"two\nthree")
        assert file.readline() == b"two\n"
        assert file.read(5) == b"three"


def test_from_asyncio() -> None:
    end = Pair()

    async def talk(console: ConsoleDriver) -> bytes:
        port = await console.open_async("aio")
        await port.write_async(b"hello")
        end.outside.sendall(b"there")
        heard = await port.read_exactly_async(4)
        heard += await port.read_async(10)
        await port.close_async()
        return heard

    with drive(ConsoleDevice([PortSpec(end, name="aio")])) as console:
        assert asyncio.run(talk(console)) == b"there"
        assert end.outside.recv(10) == b"hello"


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_over_vhost_user(kind: RingKind, tmp_path: Path) -> None:
    path = str(tmp_path / "console")
    ends = Pair(), Pair()
    device = ConsoleDevice(
        [PortSpec(ends[0], console=True), PortSpec(ends[1], name="data")], ports_max=8, size=(9, 8)
    )
    with Served(device, path) as served:
        uri = f"vhost-user:{path}"
        for _ in range(2):
            with connect(
                uri, want=kind.features, offer=kind.change, driver=ConsoleDriver
            ) as console:
                assert console.kind is kind
                assert len(console.queues) == 18
                assert console.size == (9, 8)
                for end, port in zip(ends, (console.open(0), console.open("data")), strict=True):
                    port.write(b"up" * 10_000)
                    assert exactly(end.outside, 20_000) == b"up" * 10_000
                    end.outside.sendall(b"down")
                    assert port.read_exactly(4) == b"down"
                served.ask(lambda: device.resize(7, 6))
                assert eventually(partial(has_size, console, Size(7, 6)))
                served.ask(lambda: device.resize(9, 8))
                console.emergency_write(b"!")
                assert ends[0].outside.recv(1) == b"!"
    device.close()


def test_the_device_process_ends(tmp_path: Path) -> None:
    path = str(tmp_path / "console")
    device = ConsoleDevice([PortSpec(NullEnd(), name="x")])
    served = Served(device, path)
    with connect(f"vhost-user:{path}", driver=ConsoleDriver) as console:
        port = console.open("x")
        served.close()
        with pytest.raises(PeerGone):
            port.read(1)
        with pytest.raises(PeerGone):
            console.port("other")


def test_who_waits_when_the_driver_is_closed() -> None:
    async def wait(console: ConsoleDriver) -> str:
        waiting = asyncio.ensure_future(console.port_async("never"))
        await asyncio.sleep(0)
        await asyncio.to_thread(console.close)
        with pytest.raises(VirtqError, match="closed"):
            await waiting
        return "done"

    with ThreadPoolExecutor(1) as threads:
        console = drive(ConsoleDevice([PortSpec(NullEnd(), name="x")]))
        waiting = threads.submit(console.port, "never", timeout_s=None)
        assert eventually(lambda: bool(console._waiting._futures))
        console.close()
        with pytest.raises(VirtqError, match="closed meanwhile"):
            waiting.result(PATIENCE_S)
    assert asyncio.run(wait(drive(ConsoleDevice([PortSpec(NullEnd())])))) == "done"


def test_waiting_can_be_cancelled() -> None:
    async def wait(console: ConsoleDriver) -> None:
        waiting = asyncio.ensure_future(console.port_async("never"))
        while not console._waiting._futures:
            await asyncio.sleep(0.001)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        while console._waiting._futures:
            await asyncio.sleep(0.001)

    with drive(ConsoleDevice([PortSpec(NullEnd(), name="x")])) as console:
        asyncio.run(wait(console))
        assert console.open("x").name == "x"


def test_nothing_is_left_open(tmp_path: Path) -> None:
    with no_leaks():
        ports = [
            PortSpec(PtyEnd(tmp_path / "pty"), console=True),
            PortSpec(SocketEnd(tmp_path / "socket"), name="socket"),
            PortSpec(FileEnd(tmp_path / "file"), name="file"),
        ]
        with drive(ConsoleDevice(ports)) as console:
            console.open("file").write(b"x")
            outside = socket.socket(socket.AF_UNIX)
            outside.connect(str(tmp_path / "socket"))
            console.open("socket").wait_host(timeout_s=PATIENCE_S)
            outside.close()
    assert os.listdir(tmp_path) == ["file"]


def test_by_uri(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with connect(f"loopback:console?socket={path}&name=x&ports_max=3") as console:
        assert isinstance(console, ConsoleDriver)
        port = console.open("x")
        with socket.socket(socket.AF_UNIX) as outside:
            outside.connect(str(path))
            port.write(b"hi")
            assert outside.recv(2) == b"hi"


# Drivers that misbehave


class Hostile:
    """Sends hand-made control messages."""

    def __init__(self, device: ConsoleDevice, buffers: int = 8, room: int = 64) -> None:
        transport = LoopbackTransport(device, when_closed=device.close)
        self.driver = Driver(transport, offer=Change(add=device.features))
        for _ in range(buffers):
            self.supply(room)

    def supply(self, room: int) -> None:
        self.driver.queues[2].add(reply=room)
        self.driver.queues[2].kick()

    def tell(self, id: int, event: int, value: int) -> None:
        self.raw(Control(id, event, value).pack())

    def raw(self, data: bytes) -> None:
        assert self.driver.queues[3].call(data, timeout_s=PATIENCE_S) == b""

    def hear(self, count: int) -> list[Control]:
        heard: list[Control] = []
        while len(heard) < count:
            assert self.driver.queues[2].wait(PATIENCE_S)
            heard += [Control.parse(used.reply) for used in self.driver.queues[2].reap()]
        return heard


@pytest.fixture
def end() -> Iterator[Pair]:
    end = Pair()
    yield end
    end.close()


@pytest.fixture
def device(end: End) -> ConsoleDevice:
    return ConsoleDevice([PortSpec(end, name="port", console=True)], ports_max=2)


def test_control_messages_of_section_5_3_6_2(device: ConsoleDevice) -> None:
    hostile = Hostile(device)
    hostile.tell(0, Event.DEVICE_READY, 1)
    assert hostile.hear(1) == [Control(0, Event.DEVICE_ADD)]
    hostile.tell(0, Event.PORT_READY, 1)
    assert hostile.hear(3) == [
        Control(0, Event.CONSOLE_PORT, 1),
        Control(0, Event.PORT_NAME, 1, b"port"),
        Control(0, Event.PORT_OPEN, 1),
    ]
    hostile.driver.close()


def test_control_messages_that_make_no_sense(
    device: ConsoleDevice, end: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    hostile = Hostile(device)
    for message in (b"", b"1234567"):
        if message:
            hostile.raw(message)
    hostile.raw(b"\0" * 5000)
    hostile.tell(0, Event.PORT_OPEN, 1)  # not announced yet
    hostile.tell(0, Event.DEVICE_READY, 0)
    for _ in range(3):
        hostile.tell(7, Event.DEVICE_READY, 1)
    assert hostile.hear(1) == [Control(0, Event.DEVICE_ADD)]
    for id, event in ((1, 6), (99, 6), (0xFFFFFFFF, 3), (0, 1), (0, 2), (0, 4), (0, 5), (0, 7)):
        hostile.tell(id, event, 1)
    hostile.tell(0, 8, 1)
    hostile.tell(0, 0xFFFF, 1)
    hostile.tell(0, Event.PORT_READY, 0)
    for _ in range(3):
        hostile.tell(0, Event.PORT_READY, 1)
    assert len(hostile.hear(3)) == 3
    hostile.tell(0, Event.PORT_OPEN, 1)
    end.outside.sendall(b"still works")
    assert hostile.driver.queues[0].call(reply=100, timeout_s=PATIENCE_S) == b"still works"
    assert "PORT_OPEN of port 99, value 1, which means nothing here" in caplog.text
    assert "a control message of 7 bytes" in caplog.text
    assert not device._controls
    hostile.driver.close()


def test_control_buffers_without_room_break_their_queue_only(
    device: ConsoleDevice, end: Pair
) -> None:
    hostile = Hostile(device, buffers=1, room=7)
    hostile.tell(0, Event.DEVICE_READY, 1)
    with pytest.raises(RingFault, match="given it up"):
        hostile.hear(1)
    hostile.tell(0, Event.PORT_READY, 1)
    hostile.tell(0, Event.PORT_OPEN, 1)
    end.outside.sendall(b"data")
    assert hostile.driver.queues[0].call(reply=100, timeout_s=PATIENCE_S) == b"data"
    hostile.driver.close()


def test_a_name_that_does_not_fit_its_buffer_is_cut(device: ConsoleDevice) -> None:
    hostile = Hostile(device, room=10)
    hostile.tell(0, Event.DEVICE_READY, 1)
    hostile.tell(0, Event.PORT_READY, 1)
    assert hostile.hear(4)[2] == Control(0, Event.PORT_NAME, 1, b"po")
    hostile.driver.close()


def test_messages_that_nobody_fetches_are_bounded(device: ConsoleDevice) -> None:
    hostile = Hostile(device, buffers=0)
    for _ in range(300):
        hostile.tell(0, Event.DEVICE_READY, 1)
        hostile.tell(0, Event.PORT_READY, 1)
    assert len(device._controls) == 4
    hostile.driver.close()


def test_output_to_a_port_that_is_not_there_is_lost(device: ConsoleDevice, end: Pair) -> None:
    hostile = Hostile(device)
    assert hostile.driver.queues[5].call(b"nobody", timeout_s=PATIENCE_S) == b""
    assert hostile.driver.queues[1].call(b"x" * 10_000, timeout_s=PATIENCE_S) == b""
    assert exactly(end.outside, 10_000) == b"x" * 10_000
    assert hostile.driver.queues[1].call(b"", reply=9, timeout_s=PATIENCE_S) == b""
    hostile.driver.close()


def test_a_receive_buffer_that_is_for_reading_breaks_its_queue(
    device: ConsoleDevice, end: Pair
) -> None:
    hostile = Hostile(device)
    hostile.tell(0, Event.DEVICE_READY, 1)
    hostile.tell(0, Event.PORT_READY, 1)
    hostile.tell(0, Event.PORT_OPEN, 1)
    hostile.driver.queues[0].add(b"readable")
    hostile.driver.queues[0].kick()
    end.outside.sendall(b"data")
    with pytest.raises(RingFault, match="given it up"):
        hostile.driver.queues[0].wait(PATIENCE_S)
    hostile.tell(0, Event.PORT_OPEN, 0)
    hostile.driver.close()


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (Control(0, Event.DEVICE_ADD), "adds port 0 again"),
        (Control(2, Event.DEVICE_ADD), "adds port 2 of 2"),
        (Control(1, Event.DEVICE_REMOVE), "DEVICE_REMOVE of port 1, value 0, which was not added"),
        (Control(0, Event.RESIZE), "a console size of 0 bytes"),
    ],
)
def test_a_device_that_breaks_the_rules(device: ConsoleDevice, message: Control, text: str) -> None:
    with drive(device) as console:
        port = console.open("port")
        done = threading.Event()

        async def say() -> None:
            await device.supplies["control_receiveq"].put(message.pack())
            done.set()

        ask(console, lambda: device.spawn(say()))
        assert done.wait(PATIENCE_S)
        with pytest.raises(RingFault, match=text):
            port.read(1)
