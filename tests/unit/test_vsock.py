"""The socket device with its twin driver, and with drivers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.unit.vhost_user.support import Served, eventually, no_leaks
from virtq import Driver, F, connect
from virtq._core import Position
from virtq.devices import vsock_host
from virtq.devices.vsock import BACKLOG_MAX, FIRST_HOST_PORT, VsockDevice
from virtq.drivers.vsock import VsockDriver
from virtq.errors import PeerGone, RingFault, VirtqError
from virtq.features import RingKind
from virtq.transports.loopback import LoopbackTransport
from virtq.wire.vsock import (
    HEADER_BYTES,
    RECEIVE,
    TRANSMIT,
    Header,
    Op,
    Shutdown,
    SocketType,
    VsockFeature,
)
from virtq.wire.vsock_flow import BUFFER_BYTES, State

CID = 42
PATIENCE_S = 10.0
MIB = 1 << 20


class Host:
    """The host's programs beside one device."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._resources = contextlib.ExitStack()

    def close(self) -> None:
        self._resources.close()

    def listen(self, port: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
        listener = self._resources.enter_context(socket.socket(socket.AF_UNIX, kind))
        listener.settimeout(PATIENCE_S)
        listener.bind(f"{self.path}_{port}")
        listener.listen(100)
        return listener

    def accept(self, listener: socket.socket) -> socket.socket:
        connection = self._resources.enter_context(listener.accept()[0])
        connection.settimeout(PATIENCE_S)
        return connection

    def open(self, line: bytes) -> socket.socket:
        connection = self._resources.enter_context(socket.socket(socket.AF_UNIX))
        connection.settimeout(PATIENCE_S)
        connection.connect(self.path)
        connection.sendall(line)
        return connection


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path / "vsock")
    yield host
    host.close()


@pytest.fixture
def device(host: Host) -> Iterator[VsockDevice]:
    device = VsockDevice(host.path, guest_cid=CID)
    yield device
    device.close()


Drive = Callable[..., VsockDriver]


@pytest.fixture
def drive(device: VsockDevice) -> Iterator[Drive]:
    with contextlib.ExitStack() as stack:

        def make(kind: RingKind = RingKind.SPLIT, **settings: object) -> VsockDriver:
            transport = LoopbackTransport(device)
            driver = VsockDriver(
                transport,
                want=kind.features,
                offer=kind.change,
                **settings,  # type: ignore[arg-type]
            )
            return stack.enter_context(driver)

        yield make


@pytest.fixture
def guest(drive: Drive) -> VsockDriver:
    return drive()


def read_all(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(MIB):
        parts.append(part)
    return b"".join(parts)


# Connections


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_data_flows_both_ways_at_once(kind: RingKind, drive: Drive, host: Host) -> None:
    up, down = (random.Random(seed).randbytes(MIB + 7) for seed in (1, 2))
    guest = drive(kind, receive_buffer_bytes=3000)
    assert guest.kind is kind
    listener = host.listen(1234)
    with guest.connect((2, 1234)) as inside, ThreadPoolExecutor(3) as threads:
        outside = host.accept(listener)
        sent = [threads.submit(inside.sendall, up), threads.submit(outside.sendall, down)]
        heard = threads.submit(inside.recv_exactly, len(down))
        got = b""
        while len(got) < len(up):
            got += outside.recv(MIB)
        assert got == up
        assert heard.result(PATIENCE_S) == down
        for future in sent:
            future.result(PATIENCE_S)
    assert outside.recv(1) == b""


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_the_host_connects(kind: RingKind, drive: Drive, host: Host) -> None:
    guest = drive(kind)
    with guest.listen(80) as listener:
        listener.timeout_s = PATIENCE_S
        outside = host.open(b"CONNECT 80\nearly ")
        inside, (cid, port) = listener.accept()
        inside.timeout_s = PATIENCE_S
        assert cid == 2
        assert outside.recv(100) == b"OK %d\n" % port
        outside.sendall(b"bird")
        outside.shutdown(socket.SHUT_WR)
        said = b""
        while part := inside.recv(100):
            said += part
        assert said == b"early bird"
        inside.sendall(b"worm")
        inside.close()
        assert read_all(outside) == b"worm"


def test_nobody_listens(guest: VsockDriver, host: Host) -> None:
    with pytest.raises(ConnectionRefusedError, match="nobody listens at 2:9"):
        guest.connect((2, 9))
    with pytest.raises(ConnectionRefusedError):
        guest.connect((77, 9))
    assert host.open(b"CONNECT 9\n").recv(1) == b""
    with guest.listen(9, backlog=1):
        assert host.open(b"CONNECT 9\n").recv(2) == b"OK"
        assert host.open(b"CONNECT 9\n").recv(2) == b""
    assert host.open(b"CONNECT 9\n").recv(1) == b""
    assert not guest.mux.flows


@pytest.mark.parametrize(
    "line",
    [b"CONNECT\n", b"CONNECT -1\n", b"CONNECT 4294967295\n", b"connect 5\n", b"GET / HTTP/1.0\r\n",
     b"CONNECT 5", b"x" * 100, b"\n", b"CONNECT 5 5\n"],
)  # fmt: skip
def test_a_host_that_says_something_else(guest: VsockDriver, host: Host, line: bytes) -> None:
    with guest.listen(5):
        outside = host.open(line)
        outside.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            assert outside.recv(1) == b""
        assert not guest.mux.flows


def test_half_closed_from_within(guest: VsockDriver, host: Host) -> None:
    listener = host.listen(1)
    with guest.connect((2, 1)) as inside:
        outside = host.accept(listener)
        inside.sendall(b"question")
        inside.shutdown()
        assert read_all(outside) == b"question"
        with pytest.raises(BrokenPipeError):
            inside.sendall(b"more")
        outside.sendall(b"answer")
        outside.close()
        assert inside.recv_exactly(6) == b"answer"
        assert inside.recv(1) == b""
        with pytest.raises(EOFError, match="0 of 3 bytes"):
            inside.recv_exactly(3)
    assert eventually(lambda: not guest.mux.flows)


def test_a_host_that_reads_no_more(guest: VsockDriver, device: VsockDevice, host: Host) -> None:
    listener = host.listen(1)
    with guest.connect((2, 1)) as inside:
        outside = host.accept(listener)
        outside.shutdown(socket.SHUT_RD)

        def write_on() -> None:
            while True:
                inside.sendall(b"x" * 10_000)

        with pytest.raises(BrokenPipeError):
            write_on()
        outside.sendall(b"but talks")
        assert inside.recv_exactly(9) == b"but talks"
    assert eventually(lambda: not device.mux.flows)


def test_a_reset_within_is_an_end_outside(guest: VsockDriver, host: Host) -> None:
    listener = host.listen(1)
    inside = guest.connect((2, 1))
    outside = host.accept(listener)
    inside.sendall(b"last words")

    async def reset() -> None:
        inside.flow.reset()

    assert outside.recv(10) == b"last words"
    guest.call(reset())
    assert outside.recv(1) == b""
    with pytest.raises(ConnectionResetError):
        inside.recv(1)
    with pytest.raises(ConnectionResetError):
        inside.sendall(b"x")
    inside.close()


def test_the_guest_is_held_back_by_a_host_that_does_not_read(
    guest: VsockDriver, device: VsockDevice, host: Host
) -> None:
    listener = host.listen(1)
    with guest.connect((2, 1)) as inside:
        outside = host.accept(listener)
        inside.timeout_s = 0.2
        sent = 0

        def send_on() -> None:
            nonlocal sent
            while sent < 8 * MIB:
                inside.sendall(bytes(10_000))
                sent += 10_000

        with pytest.raises(TimeoutError, match="no room came"):
            send_on()
        [flow] = device.mux.flows.values()
        assert flow._received - flow._consumed == BUFFER_BYTES
        got = 0
        while got < sent:
            got += len(outside.recv(MIB))
        inside.sendall(b"again")


def test_the_host_is_held_back_by_a_guest_that_does_not_read(
    drive: Drive, device: VsockDevice, host: Host
) -> None:
    guest = drive(buffer_bytes=20_000)
    listener = host.listen(1)
    data = random.Random(3).randbytes(MIB)
    with guest.connect((2, 1)) as inside, ThreadPoolExecutor(1) as threads:
        outside = host.accept(listener)
        sending = threads.submit(outside.sendall, data)
        [flow] = guest.mux.flows.values()
        assert eventually(lambda: flow._received == 20_000)
        [other] = device.mux.flows.values()
        assert other.credit == 0
        assert not sending.done()
        assert inside.recv_exactly(len(data)) == data
        sending.result(PATIENCE_S)


def test_many_at_once(guest: VsockDriver, device: VsockDevice, host: Host) -> None:
    listener = host.listen(1)
    count, size = 64, 20_000

    def echo(outside: socket.socket) -> None:
        while data := outside.recv(MIB):
            outside.sendall(data)

    def talk(number: int) -> None:
        data = random.Random(number).randbytes(size)
        with guest.connect((2, 1)) as inside, ThreadPoolExecutor(1) as one:
            sending = one.submit(inside.sendall, data)
            assert inside.recv_exactly(size) == data
            sending.result(PATIENCE_S)

    with ThreadPoolExecutor(2 * count) as threads:
        talks = [threads.submit(talk, number) for number in range(count)]
        echoes = [threads.submit(echo, host.accept(listener)) for _ in range(count)]
        for future in talks + echoes:
            future.result(30)
    assert eventually(lambda: not device.mux.flows and not guest.mux.flows)


def test_more_than_there_may_be(host: Host, tmp_path: Path) -> None:
    device = VsockDevice(str(tmp_path / "few"), connections_max=2)
    few = Host(tmp_path / "few")
    listener = few.listen(1)
    with VsockDriver(LoopbackTransport(device, when_closed=device.close)) as guest:
        kept = [guest.connect((2, 1)) for _ in range(2)]
        with pytest.raises(ConnectionRefusedError):
            guest.connect((2, 1))
        with guest.listen(5):
            assert few.open(b"CONNECT 5\n").recv(1) == b""
        kept[0].close()
        few.accept(listener).close()
        assert eventually(lambda: len(device.mux.flows) < 2)
        guest.connect((2, 1)).close()
    few.close()


def test_messages(guest: VsockDriver, host: Host) -> None:
    listener = host.listen(1, socket.SOCK_SEQPACKET)
    with guest.connect((2, 1), type=SocketType.SEQPACKET) as inside:
        outside = host.accept(listener)
        for size in (1, 70_000, 200_000, 3):
            message = random.Random(size).randbytes(size)
            inside.sendall(message)
            assert outside.recv(MIB) == message
            outside.send(message)
            assert inside.recv(MIB) == message
        outside.send(b"longer")
        assert inside.recv(4) == b"long"
        with pytest.raises(OSError, match="the most are 262144"):
            inside.sendall(bytes(BUFFER_BYTES + 1))
        outside.close()
        assert inside.recv(5) == b""
    with pytest.raises(ConnectionRefusedError):
        guest.connect((2, 1))


def test_as_a_file(guest: VsockDriver, host: Host) -> None:
    listener = host.listen(1)
    with guest.connect((2, 1)) as inside, inside.makefile() as file:
        outside = host.accept(listener)
        file.write(b"one\ntwo\n")
        file.flush()
        assert outside.recv(100) == b"one\ntwo\n"
        outside.sendall(b"three\nfour")
        assert file.readline() == b"three\n"
        assert file.read(4) == b"four"


def test_from_asyncio(guest: VsockDriver, host: Host) -> None:
    async def serve(count: int) -> list[bytes]:
        with guest.listen(7) as listener:
            heard = []
            for _ in range(count):
                inside, _ = await listener.accept_async()
                async with inside:
                    heard.append(await inside.recv_exactly_async(5))
                    await inside.sendall_async(heard[-1].upper())
                    await inside.shutdown_async()
                    assert await inside.recv_async(1) == b""
            return heard

    async def call(number: int) -> bytes:
        reader, writer = await asyncio.open_unix_connection(host.path)
        writer.write(b"CONNECT 7\n")
        assert (await reader.readline()).startswith(b"OK ")
        writer.write(b"call%d" % number)
        answer = await reader.read()
        writer.close()
        return answer

    async def both() -> tuple[list[bytes], list[bytes]]:
        serving = asyncio.ensure_future(serve(3))
        while not guest._listeners:
            await asyncio.sleep(0.001)
        answers = [await call(number) for number in range(3)]
        with host.listen(8) as outside:
            inside = await guest.connect_async((2, 8))
            outside.accept()[0].close()
            assert await inside.recv_async(1) == b""
        return await serving, answers

    heard, answers = asyncio.run(both())
    assert heard == [b"call0", b"call1", b"call2"]
    assert answers == [b"CALL0", b"CALL1", b"CALL2"]


def test_ports_and_addresses(guest: VsockDriver, host: Host) -> None:
    listener = host.listen(1)
    with guest.connect((2, 1), port=600) as inside:
        assert inside.local_address == (CID, 600)
        assert inside.peer_address == (2, 1)
        assert repr(inside) == "<VsockSocket 600 to 2:1, open>"
        with pytest.raises(OSError, match="connected to 2:1 already"):
            guest.connect((2, 1), port=600)
        with host.accept(listener):
            pass
    with guest.listen(5), pytest.raises(OSError, match="port 5 has a listener"):
        guest.listen(5)
    for address in ((-1, 1), (1 << 32, 1), (2, -1), (2, 0xFFFFFFFF)):
        with pytest.raises(ValueError, match="no address"):
            guest.connect(address)
    with pytest.raises(ValueError, match="is no port"):
        guest.listen(-1)


def test_what_was_not_negotiated(drive: Drive, host: Host) -> None:
    guest = drive(queue_size=16)
    host.listen(1)
    guest.close()
    with pytest.raises(VirtqError, match="virtq-vsock is closed"):
        guest.connect((2, 1))


def test_socket_types_follow_the_features(device: VsockDevice, host: Host) -> None:
    stream, messages, alone = VsockFeature
    sets = {
        0: {SocketType.STREAM},
        stream: {SocketType.STREAM},
        messages: {SocketType.STREAM, SocketType.SEQPACKET},
        messages | alone: {SocketType.SEQPACKET},
        stream | messages | alone: {SocketType.STREAM, SocketType.SEQPACKET},
        alone: {SocketType.STREAM},
    }
    for features, types in sets.items():
        device.accept_features(F.VERSION_1 | features)
        assert device.mux.types == types, features
    offer = "-STREAM"
    with VsockDriver(LoopbackTransport(device), offer=offer) as guest:
        with pytest.raises(ValueError, match="not negotiated"):
            guest.connect((2, 1))
        with pytest.raises(ValueError, match="STREAM was not negotiated"):
            guest.listen(1)
        assert host.open(b"CONNECT 1\n").recv(1) == b""


# Ends


def test_a_transport_reset_ends_connections_and_keeps_listeners(
    guest: VsockDriver, device: VsockDevice, host: Host
) -> None:
    outside_listener = host.listen(1)
    ask = guest.transport._ask  # type: ignore[attr-defined]
    with guest.listen(5) as listener:
        inside = guest.connect((2, 1))
        outside = host.accept(outside_listener)
        ask(lambda: device.transport_reset(guest_cid=77))
        assert outside.recv(1) == b""
        with pytest.raises(ConnectionResetError):
            inside.recv(1)
        assert eventually(lambda: guest.cid == 77)
        assert guest.config.guest_cid == 77
        listener.timeout_s = PATIENCE_S
        assert host.open(b"CONNECT 5\n").recv(2) == b"OK"
        accepted, _ = listener.accept()
        assert accepted.local_address == (77, 5)
        guest.connect((2, 1)).close()
    with pytest.raises(ValueError, match="cannot be a guest's CID"):
        ask(lambda: device.transport_reset(guest_cid=2))


def test_a_driver_that_was_here_before_is_told(host: Host, device: VsockDevice) -> None:
    """Without a reset in between: as when a front-end connects again, or a guest was moved here."""
    transport = LoopbackTransport(device)
    with VsockDriver(transport) as guest:
        listener = host.listen(1)
        inside = guest.connect((2, 1))
        host.accept(listener)
        old = {index: transport._queues[index] for index in range(3)}

        def stop_and_start() -> None:
            for index in range(3):
                device.stop_queue(index)
            device.reset()
            device.accept_features(guest.driver_features)
            for index in range(3):
                memory = guest.queues[index].memory
                queue = type(old[index])(
                    transport.memory,
                    guest.driver_features,
                    old[index].size,
                    memory.desc,
                    memory.driver,
                    memory.device,
                    index=index,
                    position=old[index].position,
                )
                core = guest.queues[index].core
                queue.set_kick(core.kick_fd)
                queue.set_call(core.call_fd)
                transport._queues[index] = queue
                device.start_queue(queue, True)

        transport._ask(stop_and_start)
        with pytest.raises(ConnectionResetError):
            inside.recv(1)
        with guest.connect((2, 1)) as again:
            host.accept(listener).sendall(b"new")
            assert again.recv(3) == b"new"


def test_a_reset_closes_everything(guest: VsockDriver, device: VsockDevice, host: Host) -> None:
    listener = host.listen(1)
    inside = guest.connect((2, 1))
    outside = host.accept(listener)
    bound = guest.listen(5)
    guest.reset()
    assert outside.recv(1) == b""
    with pytest.raises((ConnectionResetError, OSError)):
        inside.recv(1)
    with pytest.raises(OSError, match="reset"):
        bound.accept()
    with guest.connect((2, 1)) as again:
        again.sendall(b"alive")
        assert host.accept(listener).recv(5) == b"alive"


def test_a_reset_meets_a_wait_for_buffers_that_has_not_begun(
    guest: VsockDriver, device: VsockDevice, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that is cancelled before its first step never gets to say that it is over."""
    stop_queue = device.stop_queue

    def stop(index: int) -> Position:
        position = stop_queue(index)
        if index == RECEIVE:
            device.mux.connect(FIRST_HOST_PORT, (CID, 5), SocketType.STREAM)
            device._send()
            assert device._waiting is not None
        return position

    monkeypatch.setattr(device, "stop_queue", stop)
    guest.reset()
    monkeypatch.undo()
    listener = host.listen(1)
    with guest.connect((2, 1)) as again:
        host.accept(listener).sendall(b"new")
        assert again.recv(3) == b"new"


def test_closing_the_driver_sends_what_waits(device: VsockDevice, host: Host) -> None:
    data = os.urandom(3 * MIB)
    listener = host.listen(1)
    with ThreadPoolExecutor(1) as threads:
        with VsockDriver(LoopbackTransport(device)) as guest:
            inside = guest.connect((2, 1))
            reading = threads.submit(read_all, host.accept(listener))
            inside.sendall(data)
            inside.close()
        assert reading.result(PATIENCE_S) == data


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_over_vhost_user(kind: RingKind, device: VsockDevice, host: Host, tmp_path: Path) -> None:
    path = str(tmp_path / "vhost-user")
    listener = host.listen(1)
    with Served(device, path):
        for _ in range(2):
            uri = f"vhost-user:{path}"
            with connect(uri, want=kind.features, offer=kind.change, driver=VsockDriver) as guest:
                assert guest.kind is kind
                assert guest.cid == CID
                with guest.connect((2, 1)) as inside:
                    outside = host.accept(listener)
                    inside.sendall(b"u" * 300_000)
                    got = b""
                    while len(got) < 300_000:
                        got += outside.recv(MIB)
                    outside.sendall(b"d" * 300_000)
                    assert inside.recv_exactly(300_000) == b"d" * 300_000


def test_the_device_process_ends(device: VsockDevice, host: Host, tmp_path: Path) -> None:
    path = str(tmp_path / "vhost-user")
    listener = host.listen(1)
    served = Served(device, path)
    with connect(f"vhost-user:{path}", driver=VsockDriver) as guest:
        inside = guest.connect((2, 1))
        host.accept(listener)
        bound = guest.listen(5)
        served.close()
        with pytest.raises(PeerGone):
            inside.recv(1)
        with pytest.raises(PeerGone):
            bound.accept()
        with pytest.raises(PeerGone):
            guest.connect((2, 1))


def test_nothing_is_left_open(host: Host) -> None:
    listener = host.listen(1)
    with no_leaks():
        device = VsockDevice(host.path)
        with VsockDriver(LoopbackTransport(device, when_closed=device.close)) as guest:
            for _ in range(3):
                inside = guest.connect((2, 1))
                listener.accept()[0].close()
                assert inside.recv(1) == b""
            guest.listen(6)
            outside = socket.socket(socket.AF_UNIX)
            outside.connect(host.path)
            outside.sendall(b"CONNECT 6\n")
            assert outside.recv(2) == b"OK"
            outside.close()
    assert not os.path.exists(host.path)


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(OSError, match="the file is not a socket"):
        VsockDevice(str(path))
    first = VsockDevice(str(tmp_path / "v"))
    with pytest.raises(OSError, match="Address already in use"):
        VsockDevice(str(tmp_path / "v"))
    first._listener._sock.close()  # as a process that was killed
    VsockDevice(str(tmp_path / "v")).close()
    with pytest.raises(ValueError, match="cannot be a guest's CID"):
        VsockDevice(str(tmp_path / "v"), guest_cid=2)
    with pytest.raises(ValueError, match="are none"):
        VsockDevice(str(tmp_path / "v"), connections_max=0)


def test_by_uri(host: Host) -> None:
    with connect(f"loopback:vsock?uds_path={host.path}&guest_cid=9") as guest:
        assert isinstance(guest, VsockDriver)
        assert guest.cid == 9


# Time that is up


def test_a_host_that_says_nothing_is_sent_away(
    guest: VsockDriver, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vsock_host, "HANDSHAKE_TIMEOUT_S", 0.02)
    silent = [host.open(line) for line in (b"", b"CONN")] * 2
    for outside in silent:
        assert outside.recv(1) == b""
    monkeypatch.undo()
    with guest.listen(5):
        assert host.open(b"CONNECT 5\n").recv(2) == b"OK"


def test_no_more_than_so_many_may_say_nothing(
    guest: VsockDriver, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vsock_host, "HANDSHAKES_MAX", 3)
    silent = [host.open(b"") for _ in range(3)]
    with guest.listen(5):
        patient = host.open(b"CONNECT 5\n")
        patient.settimeout(0.1)
        with pytest.raises(TimeoutError):
            patient.recv(1)
        silent[0].close()
        patient.settimeout(PATIENCE_S)
        assert patient.recv(2) == b"OK"


def test_a_device_that_does_not_answer(
    guest: VsockDriver, device: VsockDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device.mux, "receive", lambda packet: None)
    with pytest.raises(TimeoutError, match="no answer from 2:1 within"):
        guest.connect((2, 1), timeout_s=0.05)
    assert not guest.mux.flows


# Drivers that misbehave


class Hostile:
    """Sends hand-made packets, and reads what comes back."""

    def __init__(self, transport: LoopbackTransport, buffers: int = 16, room: int = 4096) -> None:
        self.driver = Driver(transport)
        self.room = room
        for _ in range(buffers):
            self.supply()

    def supply(self) -> None:
        self.driver.queues[RECEIVE].add(reply=self.room)
        self.driver.queues[RECEIVE].kick()

    def send(self, data: bytes) -> None:
        assert self.driver.queues[TRANSMIT].call(data, timeout_s=PATIENCE_S) == b""

    def packet(self, op: int, data: bytes = b"", **fields: int) -> None:
        known = {"src_cid": CID, "dst_cid": 2, "src_port": 5, "dst_port": 1, "len": len(data)}
        self.send(Header(**{**known, "op": op, "buf_alloc": 4096, **fields}).pack() + data)

    def receive(self, count: int = 1) -> list[Header]:
        headers: list[Header] = []
        while len(headers) < count:
            assert self.driver.queues[RECEIVE].wait(PATIENCE_S)
            for used in self.driver.queues[RECEIVE].reap():
                assert used.written >= HEADER_BYTES
                headers.append(Header.parse(used.reply[:HEADER_BYTES]))
        return headers


@pytest.fixture
def hostile(device: VsockDevice) -> Iterator[Hostile]:
    hostile = Hostile(LoopbackTransport(device))
    yield hostile
    hostile.driver.close()


def test_packets_that_are_none(hostile: Hostile, host: Host, device: VsockDevice) -> None:
    host.listen(1)
    for data in (b"x", bytes(43), bytes(44), os.urandom(500), bytes(100_000)):
        hostile.send(data)
    hostile.packet(Op.RW, b"x" * 100_000)
    hostile.packet(99)
    hostile.packet(Op.REQUEST, type=9)
    hostile.packet(Op.REQUEST)
    headers = hostile.receive(4)
    assert [header.op for header in headers] == [Op.RST, Op.RST, Op.RST, Op.RESPONSE]
    assert [flow.state for flow in device.mux.flows.values()] == [State.OPEN]


def test_a_connection_that_is_overrun(hostile: Hostile, host: Host) -> None:
    listener = host.listen(1)
    hostile.packet(Op.REQUEST)
    [header] = hostile.receive()
    assert (header.op, header.buf_alloc) == (Op.RESPONSE, BUFFER_BYTES)
    outside = host.accept(listener)
    piece = bytes(60_000)
    for _ in range(20):  # far more than its socket and its buffer hold
        hostile.packet(Op.RW, piece)
    ops = [header.op for header in hostile.receive(1)]
    while Op.RST not in ops:
        ops += [header.op for header in hostile.receive(1)]
    assert 0 < len(read_all(outside)) < 20 * len(piece)


def test_replies_that_nobody_fetches_hold_the_driver_back(device: VsockDevice, host: Host) -> None:
    hostile = Hostile(LoopbackTransport(device), buffers=0)
    queue = hostile.driver.queues[TRANSMIT]
    header = Header(CID, 2, 5, 1, 0, 1, Op.RW).pack()
    sent = 0
    while sent < 4 * BACKLOG_MAX:
        added = queue.add_batch([header] * queue.free)
        queue.kick()
        sent += added
        if not queue.wait(0.3):
            break
        queue.reap()
    assert sent < 2 * BACKLOG_MAX
    assert device.mux.backlog < BACKLOG_MAX + queue.size + 1
    got = 0
    while queue.outstanding:
        for _ in range(hostile.driver.queues[RECEIVE].free):
            hostile.supply()
        got += len(hostile.receive(1))
        queue.reap()
    assert got > sent - BACKLOG_MAX
    hostile.driver.close()


@pytest.mark.parametrize("room", [1, 43])
def test_receive_buffers_without_room_for_a_header(device: VsockDevice, room: int) -> None:
    hostile = Hostile(LoopbackTransport(device), buffers=1, room=room)
    hostile.packet(Op.RW)
    with pytest.raises(RingFault, match="given it up"):
        hostile.receive()
    hostile.packet(Op.RW)  # the other queue goes on
    hostile.driver.close()


def test_a_driver_that_does_not_answer_a_request(
    hostile: Hostile, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vsock_host, "HANDSHAKE_TIMEOUT_S", 0.05)
    outside = host.open(b"CONNECT 7\n")
    assert outside.recv(1) == b""
    assert [header.op for header in hostile.receive(2)] == [Op.REQUEST, Op.RST]


def test_a_driver_that_does_not_answer_a_shutdown(
    hostile: Hostile, host: Host, device: VsockDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vsock_host, "CLOSE_TIMEOUT_S", 0.05)
    listener = host.listen(1)
    hostile.packet(Op.REQUEST, buf_alloc=4)
    outside = host.accept(listener)
    outside.sendall(b"four and more")
    outside.close()
    ops = [header.op for header in hostile.receive(3)]
    assert ops == [Op.RESPONSE, Op.RW, Op.CREDIT_REQUEST]
    assert not hostile.driver.queues[RECEIVE].wait(0.2)  # the end waits behind the data
    hostile.packet(Op.CREDIT_UPDATE, buf_alloc=4096, fwd_cnt=4)
    ops = [header.op for header in hostile.receive(3)]
    assert ops == [Op.RW, Op.SHUTDOWN, Op.RST]
    assert not device.mux.flows


def test_receive_buffers_with_room_for_a_header_only(device: VsockDevice, host: Host) -> None:
    listener = host.listen(1)
    hostile = Hostile(LoopbackTransport(device), buffers=8, room=HEADER_BYTES)
    hostile.packet(Op.REQUEST)
    assert [header.op for header in hostile.receive()] == [Op.RESPONSE]
    outside = host.accept(listener)
    outside.sendall(b"no room for this")
    hostile.packet(Op.CREDIT_REQUEST)
    assert [header.op for header in hostile.receive()] == [Op.CREDIT_UPDATE]
    hostile.packet(Op.SHUTDOWN, flags=Shutdown.SEND | Shutdown.RECEIVE)
    assert [header.op for header in hostile.receive()] == [Op.RST]
    hostile.driver.close()


def test_a_receive_buffer_that_is_for_reading_breaks_its_queue(device: VsockDevice) -> None:
    hostile = Hostile(LoopbackTransport(device), buffers=0)
    hostile.driver.queues[RECEIVE].add(b"readable")
    hostile.driver.queues[RECEIVE].kick()
    hostile.packet(Op.RW)
    with pytest.raises(RingFault, match="given it up"):
        hostile.receive()
    hostile.driver.close()


def test_a_device_that_lies_about_lengths(guest: VsockDriver, device: VsockDevice) -> None:
    """The driver's side of the same."""
    ask = guest.transport._ask  # type: ignore[attr-defined]
    for data in (b"x", os.urandom(44), Header(2, CID, 1, 2, 99, 1, Op.RW).pack()):
        ask(lambda data=data: device.supplies["rx"].put_nowait(data))
    assert eventually(lambda: guest.mux.stats["packets"] == 3)
    assert guest.mux.stats["malformed"] == 3
    assert eventually(lambda: device.mux.stats["packets"] == 1)  # an RST for the last


def test_events_that_are_none(guest: VsockDriver, device: VsockDevice) -> None:
    ask = guest.transport._ask  # type: ignore[attr-defined]
    supply = device.supplies["event"]
    before = guest.mux
    for _ in range(20):
        for event in (b"\1\0\0\0", b"\0", b"\xff\xff\xff\xff"):
            done = threading.Event()

            async def put(event: bytes = event, done: threading.Event = done) -> None:
                await supply.put(event)
                done.set()

            ask(lambda: device.spawn(put()))
            assert done.wait(PATIENCE_S)
    assert guest.mux is before
    assert guest.cid == CID
