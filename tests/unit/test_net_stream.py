"""The wire of a network device as a stream socket."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest

from tests.unit.net_support import collect, drive, frame
from tests.unit.vhost_user.support import eventually
from virtq.devices.net import NetDevice
from virtq.devices.net_stream import StreamPort


class Peer:
    """What is at the other end."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(5.0)
        self.socket.connect(path)

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(len(one).to_bytes(4) + one for one in frames))

    def receive(self) -> bytes:
        return self._exactly(int.from_bytes(self._exactly(4)))

    def _exactly(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = self.socket.recv(length - len(data))
            assert more, "the wire is closed"
            data += more
        return data

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "wire.sock")


def test_frames_go_both_ways(path: str) -> None:
    device = NetDevice(StreamPort(path))
    with contextlib.closing(device), drive(device) as net, Peer(path) as peer:
        sent = [frame(i, 60 + i) for i in range(40)]
        peer.send(*sent)
        assert collect(net, 40) == sent
        assert net.send(sent, timeout_s=5.0) == 40
        assert [peer.receive() for _ in sent] == sent
        # In pieces that have nothing to do with frames.
        whole = b"".join(len(one).to_bytes(4) + one for one in sent[:3])
        for at in range(0, len(whole), 7):
            peer.socket.sendall(whole[at : at + 7])
        assert collect(net, 3) == sent[:3]
    assert not Path(path).exists()


def test_one_peer_after_another(path: str) -> None:
    device = NetDevice(StreamPort(path))
    with contextlib.closing(device), drive(device) as net:
        for number in range(3):
            with Peer(path) as peer:
                peer.send(frame(number))
                assert collect(net, 1) == [frame(number)]


@pytest.mark.parametrize(
    "nonsense", [(0).to_bytes(4), (13).to_bytes(4) + bytes(13), b"\xff" * 8], ids=bytes.hex
)
def test_a_peer_that_makes_no_sense_is_hung_up(path: str, nonsense: bytes) -> None:
    device = NetDevice(StreamPort(path))
    with contextlib.closing(device), drive(device) as net:
        with Peer(path) as peer:
            peer.socket.sendall(nonsense)
            assert peer.socket.recv(1) == b""
        with Peer(path) as peer:
            peer.send(frame(1))
            assert collect(net, 1) == [frame(1)]


def test_without_a_peer_frames_are_lost(path: str) -> None:
    device = NetDevice(StreamPort(path))
    with contextlib.closing(device), drive(device) as net:
        assert net.send([frame(i) for i in range(5)], timeout_s=5.0) == 5
        assert net.drain(timeout_s=5.0)
        port = device.port
        assert isinstance(port, StreamPort)
        assert eventually(lambda: sum(link.dropped for link in port.links) == 5)
        with Peer(path) as peer:
            peer.send(frame(9))
            assert collect(net, 1) == [frame(9)]


def test_where_it_listens(path: str, tmp_path: Path) -> None:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as other:
        other.bind(path)
        other.listen()
        with pytest.raises(OSError, match=r"Address already in use: .*wire.sock"):
            StreamPort(path).open(1)
    port = StreamPort(path)  # the file is left over
    link = port.open(1)
    with pytest.raises(ValueError, match="one device is on this wire already"):
        port.open(1)
    link.close()
    port.open(1).close()
    with pytest.raises(OSError, match=r"No such file or directory: .*no/such/wire"):
        StreamPort(str(tmp_path / "no/such/wire")).open(1)
    letter = tmp_path / "letter"
    letter.write_text("of a user who mistook one path for another")
    with pytest.raises(OSError, match=r"the file is not a socket: .*letter"):
        StreamPort(str(letter)).open(1)
    assert letter.read_text().startswith("of a user")
