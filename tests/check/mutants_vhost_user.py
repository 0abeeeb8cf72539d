"""What mutants of vhost-user back-ends have in common; the files beside this one have them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import cast

from tests.check.mutants import CATCHES
from tests.check.reference_vhost_user import BackEnd
from tests.check.reference_vhost_user_channel import NEED_REPLY, NUMBER, Bad
from virtq.transports.vhost_user.messages import Front


def catches(area: str, *cases: str) -> Callable[[type[BackEnd]], type[BackEnd]]:
    """As `mutants.catches`, for cases that are all of one area."""

    def register(mutant: type[BackEnd]) -> type[BackEnd]:
        CATCHES[mutant] = tuple(f"{area}.{case}" for case in cases)
        return mutant

    return register


class DiesOfRefusals(BackEnd):
    def answer(
        self, sock: socket.socket, request: Front, flags: int, body: bytes, fds: list[int]
    ) -> None:
        try:
            super().answer(sock, request, flags & ~NEED_REPLY, body, fds)
        except Bad:
            self.die()
        if flags & NEED_REPLY and request not in _REPLIED:
            self.acknowledge(sock, request)


_REPLIED = (
    Front.GET_FEATURES,
    Front.GET_PROTOCOL_FEATURES,
    Front.GET_QUEUE_NUM,
    Front.GET_VRING_BASE,
    Front.GET_CONFIG,
    Front.GET_MAX_MEM_SLOTS,
    Front.SET_LOG_BASE,
)


class TellsSuccess(BackEnd):
    """Whatever it made of a request."""

    def check(self, request: int, flags: int, size: int) -> None:
        """Anything will do."""

    def check_fds(self, request: int, body: bytes, fds: Sequence[int]) -> None:
        """Any number will do."""

    def one(self, sock: socket.socket) -> None:
        try:
            super().one(sock)
        except (ValueError, AttributeError, IndexError):
            self.send(sock, cast(Front, self.last), NUMBER.pack(0))

    last = 0

    def read(self, sock: socket.socket, size: int, fds: list[int]) -> bytes:
        data = super().read(sock, size, fds)
        if size == 12:
            self.last = int.from_bytes(data[:4], "little")
        return data

    def failure(self, request: Front) -> int:
        return 0
