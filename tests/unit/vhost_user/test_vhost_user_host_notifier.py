"""Host notifiers (HOST_NOTIFIER): a page of a device that stands for a kick, to be mapped into a
guest. A device in software has none to give, and a driver that is no guest has nowhere to map it:
neither of our ends takes the feature. A back-end that sends one all the same is told no."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator

import pytest

from tests.unit.vhost_user.support import PATIENCE_S, eventually, memfd, no_leaks
from virtq.transports.vhost_user import channel
from virtq.transports.vhost_user.messages import BACK_MESSAGES, Back, P
from virtq.transports.vhost_user.offer import OFFERED, WANTED
from virtq.transports.vhost_user.other_channel import OtherChannel
from virtq.transports.vhost_user.protocol import FrontendProtocol
from virtq.transports.vhost_user.wire import (
    HEADER_BYTES,
    NEED_REPLY,
    REPLY,
    VringArea,
    pack_message,
    unpack_header,
)

PAGE = 4096


def test_neither_end_takes_it() -> None:
    assert not OFFERED & P.HOST_NOTIFIER
    assert not WANTED & P.HOST_NOTIFIER


@pytest.fixture
def back_end() -> Iterator[socket.socket]:
    """A back-end's end of the channel on which it asks."""
    with no_leaks():
        ours, theirs = socket.socketpair()
        protocol = FrontendProtocol()
        protocol.negotiation.protocol = P.BACKEND_REQ | P.REPLY_ACK
        front = OtherChannel(ours, protocol.other, "test", lambda code, payload: True)
        theirs.settimeout(PATIENCE_S)
        with theirs:
            yield theirs
        front.close()


def notifier(flags: int, area: VringArea) -> bytes:
    body = BACK_MESSAGES[Back.VRING_HOST_NOTIFIER].payload.build("", area)
    return pack_message(Back.VRING_HOST_NOTIFIER, flags, body)


@pytest.mark.parametrize(
    "area", [VringArea(0, PAGE, 0), VringArea(2**64 - 1, 2**64 - 1, 2**64 - 1), VringArea(0, 0, 1)]
)
@pytest.mark.parametrize("with_fd", [True, False])
def test_it_is_refused(back_end: socket.socket, area: VringArea, with_fd: bool) -> None:
    page = memfd(PAGE)
    channel.send(back_end, notifier(NEED_REPLY, area), [page] if with_fd else [])
    os.close(page)
    header = unpack_header(back_end.recv(HEADER_BYTES))
    assert (header.request, header.flags) == (Back.VRING_HOST_NOTIFIER, 1 | REPLY)
    assert int.from_bytes(back_end.recv(8), "little") == 1
    # The channel is as it was.
    back_end.sendall(pack_message(Back.IOTLB_MSG, NEED_REPLY, bytes(32)))
    assert unpack_header(back_end.recv(HEADER_BYTES)).request == Back.IOTLB_MSG


def test_without_a_way_to_say_no_the_channel_is_closed(
    back_end: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    page = memfd(PAGE)
    with caplog.at_level(logging.WARNING):
        channel.send(back_end, notifier(0, VringArea(0, PAGE, 0)), [page])
        os.close(page)
        assert back_end.recv(1) == b""
        assert eventually(lambda: "HOST_NOTIFIER: was not negotiated" in caplog.text)
