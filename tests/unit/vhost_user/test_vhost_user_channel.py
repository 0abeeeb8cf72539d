"""Sockets: descriptors in ancillary data, stale paths, sockets that a process was started with."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from tests.unit.vhost_user.support import FakeDevice, RawFront, eventfd, no_leaks
from virtq.errors import PeerGone, TransportError
from virtq.transports.vhost_user import Backend, channel, serve
from virtq.transports.vhost_user.messages import Front
from virtq.transports.vhost_user.protocol import MAX_HELD_FDS
from virtq.transports.vhost_user.wire import ProtocolError


def test_descriptors_arrive_open_and_close_on_exec() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, no_leaks():
        fds = [eventfd(), eventfd()]
        channel.send(ours, b"hello", fds)
        data, received = channel.receive(theirs, 100)
        assert data == b"hello"
        assert len(received) == 2
        os.write(received[1], (5).to_bytes(8, "little"))
        assert int.from_bytes(os.read(fds[1], 8), "little") == 5
        assert not any(os.get_inheritable(fd) for fd in received)
        for fd in fds + received:
            os.close(fd)


def test_too_many_descriptors_are_all_closed() -> None:
    ours, theirs = socket.socketpair()
    fd = eventfd()
    with ours, theirs, no_leaks():
        channel.send(ours, b"x", [fd] * (MAX_HELD_FDS + 1))
        with pytest.raises(ProtocolError):
            channel.receive(theirs, 100)
    os.close(fd)


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    channel.listen(path).close()
    assert os.path.exists(path)
    with channel.listen(path) as listener, channel.connect(path, 1.0):
        assert channel.is_listening(listener)


def test_a_socket_that_somebody_serves_is_left_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with no_leaks(), channel.listen(path):
        with pytest.raises(TransportError, match="another process serves it"):
            channel.listen(path)
        assert os.path.exists(path)


def test_a_socket_with_a_full_backlog_is_left_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(path)
            with pytest.raises(TransportError, match="another process serves it"):
                channel.listen(path)


def test_a_path_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("precious")
    with no_leaks(), pytest.raises(TransportError, match="not a socket"):
        channel.listen(str(path))
    assert path.read_text() == "precious"


@pytest.mark.parametrize("path", ["/nowhere/at/all", "x" * 200], ids=["missing", "too long"])
def test_a_path_that_cannot_be(path: str) -> None:
    with no_leaks():
        with pytest.raises(TransportError, match="cannot listen"):
            channel.listen(path)
        with pytest.raises(TransportError, match="cannot connect"):
            channel.connect(path, 1.0)


def test_adopting_what_is_no_stream_socket() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams, no_leaks():
        fds = [eventfd(), datagrams.fileno()]
        for fd in fds:
            with pytest.raises(TransportError, match=f"descriptor {fd}"):
                channel.adopt(fd)
            os.fstat(fd)
        with pytest.raises(TransportError):
            channel.adopt(12345)
        os.close(fds[0])


def test_alive_until_the_other_end_closes() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        channel.check_alive(ours, "x")
        theirs.send(b"unread")
        channel.check_alive(ours, "x")
        theirs.close()
        with pytest.raises(PeerGone, match="x: "):
            channel.check_alive(ours, "x")


# ---------------------------------------------------------------- serve


async def _ask_features(sock: socket.socket) -> bool:
    raw = RawFront(sock)
    return await asyncio.to_thread(raw.ask, Front.GET_FEATURES) is not None


def test_serve_a_path_and_remove_it(tmp_path: Path) -> None:
    path = str(tmp_path / "s")

    async def run() -> None:
        started: asyncio.Future[Backend] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(serve(FakeDevice(), path, ready=started.set_result))
        backend = await started
        for _ in range(2):
            with channel.connect(path, 1.0) as sock:
                assert await _ask_features(sock)
        backend.close()
        await task

    with no_leaks():
        asyncio.run(run())
    assert not os.path.exists(path)


def test_serve_leaves_a_path_that_is_no_longer_its_own(tmp_path: Path) -> None:
    path = str(tmp_path / "s")

    async def run() -> None:
        started: asyncio.Future[Backend] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(serve(FakeDevice(), path, ready=started.set_result))
        backend = await started
        os.unlink(path)
        channel.listen(path).close()
        backend.close()
        await task

    asyncio.run(run())
    assert os.path.exists(path)


def test_serve_a_listening_descriptor(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    fd = channel.listen(path).detach()

    async def run() -> None:
        started: asyncio.Future[Backend] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(serve(FakeDevice(), fd, ready=started.set_result))
        backend = await started
        with channel.connect(path, 1.0) as sock:
            assert await _ask_features(sock)
        backend.close()
        await task

    asyncio.run(run())
    assert os.path.exists(path)


def test_serve_a_connected_descriptor() -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        task = asyncio.create_task(serve(FakeDevice(), theirs.detach()))
        assert await _ask_features(ours)
        ours.close()
        await task

    with no_leaks():
        asyncio.run(run())


def test_serve_connection_raises_what_the_front_end_did_wrong() -> None:
    ours, theirs = socket.socketpair()

    async def run() -> None:
        with ours:
            ours.send(b"\xff" * 12)
            await Backend(FakeDevice()).serve_connection(theirs)

    with pytest.raises(ProtocolError):
        asyncio.run(run())


def test_one_front_end_at_a_time() -> None:
    async def run() -> None:
        backend = Backend(FakeDevice())
        ours, theirs = socket.socketpair()
        task = asyncio.create_task(backend.serve_connection(theirs))
        await asyncio.sleep(0)
        _, other = socket.socketpair()
        with pytest.raises(RuntimeError, match="busy"):
            await backend.serve_connection(other)
        backend.close()
        await task
        assert ours.recv(1) == b""
        ours.close()
        _.close()
        with pytest.raises(RuntimeError, match="closed"):
            await backend.serve_connection(socket.socketpair()[0])

    asyncio.run(run())


def test_a_cancelled_back_end_is_cancelled() -> None:
    async def run() -> None:
        backend = Backend(FakeDevice())
        ours, theirs = socket.socketpair()
        task = asyncio.create_task(backend.serve_connection(theirs))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ours.recv(1) == b""
        ours.close()

    asyncio.run(run())
