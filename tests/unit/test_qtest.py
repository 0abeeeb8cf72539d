"""The qtest transport without QEMU: lines, and devices that a bus may have to offer."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from virtq.errors import PeerGone, TransportError
from virtq.transports.qtest.client import ACCESS_BYTES_MAX, Client
from virtq.transports.qtest.pci import Function, Window
from virtq.transports.qtest.transport import QtestTransport

Answer = Callable[[str], str]


class FakeQemu:
    """Answers each line, in a thread of its own."""

    def __init__(self, answer: Answer) -> None:
        self.client_end, self._end = socket.socketpair()
        self.lines: list[str] = []
        self._answer = answer
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with self._end, self._end.makefile("rw") as stream:
            for line in stream:
                self.lines.append(line.strip())
                answer = self._answer(line.strip())
                if not answer:
                    return
                stream.write(answer)
                stream.flush()

    def send(self, text: str) -> None:
        self._end.sendall(text.encode())


@pytest.fixture
def connect() -> Iterator[Callable[[Answer], tuple[FakeQemu, Client]]]:
    clients: list[Client] = []

    def connect(answer: Answer) -> tuple[FakeQemu, Client]:
        qemu = FakeQemu(answer)
        clients.append(Client(qemu.client_end, name="fake", timeout_s=2.0))
        return qemu, clients[-1]

    yield connect
    for client in clients:
        client.close()


Connect = Callable[[Answer], tuple[FakeQemu, Client]]


def test_commands_and_numbers(connect: Connect) -> None:
    qemu, client = connect(lambda line: "OK 0x2a\n" if line.startswith(("in", "read")) else "OK\n")
    assert client.port_read(0xCFC, 4) == 42
    client.port_write(0xCF8, 2, 0x12345)
    assert client.load(1 << 40, 8) == 42
    client.store(0xFEB00000, 1, -1)
    assert qemu.lines == [
        "inl 0xcfc",
        "outw 0xcf8 0x2345",
        "readq 0x10000000000",
        "writeb 0xfeb00000 0xff",
    ]


def test_interrupt_lines_before_a_reply_and_alone(connect: Connect) -> None:
    qemu, client = connect(lambda line: "IRQ raise 5\nIRQ lower 5\nOK 0x1\n")
    assert client.load(0, 4) == 1
    assert select.select(client.interrupt_fds, [], [], 2.0)[0], "told though the line was read"
    assert client.take_interrupts() == [(5, True), (5, False)]
    assert not select.select(client.interrupt_fds, [], [], 0)[0]
    qemu.send("IRQ raise 7\n")
    assert select.select(client.interrupt_fds, [], [], 2.0)[0]
    assert client.take_interrupts() == [(7, True)]
    assert client.take_interrupts() == []


@pytest.mark.parametrize("answer", ["FAIL Unknown command\n", "OK zork\n", "IRQ raise x\n"])
def test_answers_that_make_no_sense(connect: Connect, answer: str) -> None:
    _, client = connect(lambda line: answer)
    with pytest.raises(TransportError, match="fake: "):
        client.load(0, 4)


def test_a_qemu_that_goes(connect: Connect) -> None:
    _, client = connect(lambda line: "")
    with pytest.raises(PeerGone, match="fake: QEMU"):
        client.load(0, 4)
    with pytest.raises(PeerGone, match="fake: QEMU"):
        client.store(0, 4, 0)


def test_a_qemu_that_does_not_answer() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        client = Client(ours, name="fake", timeout_s=0.05)
        with pytest.raises(TransportError, match="does not answer"):
            client.load(0, 4)
        client.close()


def test_what_would_end_qemu_is_not_sent(connect: Connect) -> None:
    qemu, client = connect(lambda line: "OK 0x0\n")
    wrong: list[Callable[[], object]] = [
        lambda: client.port_read(0x10000, 1),
        lambda: client.port_read(0, 8),
        lambda: client.port_write(-1, 1, 0),
        lambda: client.load(0, 3),
        lambda: client.store(1 << 64, 1, 0),
        lambda: client.read(0, 0),
        lambda: client.read(0, ACCESS_BYTES_MAX + 1),
        lambda: client.read((1 << 64) - 1, 2),
        lambda: client.intercept("ioapic"),
        lambda: client.intercept("/machine/a b"),
        lambda: Function(client, 0).read(2, 4),
        lambda: Function(client, 0).write(256, 1, 0),
    ]
    for call in wrong:
        with pytest.raises(ValueError, match=r"."):
            call()
    assert qemu.lines == []


def test_reads_of_bytes(connect: Connect) -> None:
    _, client = connect(lambda line: "OK 0x0102ff\n")
    assert client.read(0, 3) == b"\x01\x02\xff"
    with pytest.raises(TransportError, match="4 bytes"):
        client.read(0, 4)


def test_a_capability_list_without_an_end(connect: Connect) -> None:
    space = bytearray(256)
    space[0x06] = 0x10
    space[0x34] = 0x40
    space[0x40:0x42] = bytes([9, 0x44])
    space[0x44:0x46] = bytes([9, 0x40])
    selected = 0

    def answer(line: str) -> str:
        nonlocal selected
        words = line.split()
        if words[0] == "outl":
            selected = int(words[2], 0) & 0xFC
            return "OK\n"
        size = {"inb": 1, "inw": 2, "inl": 4}[words[0]]
        at = selected + int(words[1], 0) - 0xCFC
        return f"OK {int.from_bytes(space[at : at + size], 'little'):#x}\n"

    _, client = connect(answer)
    capabilities = Function(client, 3).capabilities()
    assert [next(capabilities).offset, next(capabilities).offset] == [0x40, 0x44]
    with pytest.raises(TransportError, match="slot 3"):
        next(capabilities)


def test_bars_do_not_overlap_and_run_out() -> None:
    window = Window()
    first, second = window.take(0x1000), window.take(0x4000)
    assert first + 0x1000 <= second
    assert second % 0x4000 == 0
    with pytest.raises(TransportError, match="no room"):
        window.take(1 << 30)
    with pytest.raises(TransportError, match="no room"):
        window.take_io(1 << 16)


@pytest.mark.parametrize("device", ["", "blk", "virtio-blk-pci -help", "e1000", "-pci", "virtio"])
def test_what_is_no_virtio_device(device: str) -> None:
    with pytest.raises(TransportError, match="is not a device"):
        QtestTransport(device)


# The monitor

INTERRUPTED = """
import json, os, signal, socket, threading
from virtq.transports.qtest.monitor import Monitor

signal.signal(signal.SIGINT, signal.default_int_handler)  # it may have been ignored from the start
ours, theirs = socket.socketpair()

def greet_and_interrupt():
    version = {"qemu": {"major": 10, "minor": 0, "micro": 0}, "package": ""}
    greeting = {"QMP": {"version": version, "capabilities": []}}
    theirs.sendall(json.dumps(greeting).encode() + b"\\n")
    theirs.recv(100)  # it negotiates, and waits for an answer
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=greet_and_interrupt).start()
try:
    Monitor(ours, name="fake")
except KeyboardInterrupt:
    print("interrupted", threading.active_count())
"""


def test_an_interruption_while_the_monitor_greets() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("interrupted 1\n", "")
