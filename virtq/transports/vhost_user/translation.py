"""What a back-end has asked the front-end's IOMMU for, and which virtqueues wait for the answers.

Each miss is asked for once: a front-end that is asked again while its answer is on the way looks a
second time for what the driver may have unmapped by then. Where REPLY_ACK holds, the question asks
for an acknowledgement. By then the update has been sent, or there is no such mapping: either way
the question may be put again when the virtqueue meets the same gap.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from virtq.errors import TranslationMiss
from virtq.transports.vhost_user.wire import (
    IOTLB_READ,
    IOTLB_WRITE,
    Iotlb,
    IotlbType,
    ProtocolError,
)

log = logging.getLogger("virtq.vhost_user")

MAX_QUESTIONS = 1024
"""Questions that a front-end may leave unanswered."""

Ask = Callable[[Iotlb], bool]
"""Sends a question; False if there is nobody to ask."""


class Translations:
    """The open questions of one connection."""

    def __init__(self, ask: Ask, name: str) -> None:
        self._ask = ask
        self._name = name
        self._open: set[tuple[int, bool]] = set()
        self._waiting: set[int] = set()

    @property
    def open_questions(self) -> int:
        return len(self._open)

    def miss(self, miss: TranslationMiss, index: int | None = None) -> None:
        """Ask for what is missing; the virtqueue, if one is given, waits for it.

        Raises ProtocolError if the front-end has left too many questions unanswered.
        """
        if index is not None:
            self._waiting.add(index)
        _, address, length, writable = miss.args
        question = address, writable
        if question in self._open:
            return
        if len(self._open) >= MAX_QUESTIONS:
            raise ProtocolError("IOTLB_MSG", "unanswered", MAX_QUESTIONS, "nothing more is asked")
        self._open.add(question)
        permissions = IOTLB_WRITE if writable else IOTLB_READ
        if not self._ask(Iotlb(address, length, 0, permissions, IotlbType.MISS)):
            self.forget()
            log.warning("%s: nobody to ask for the translation of %#x", self._name, address)

    def updated(self, update: Iotlb) -> None:
        """The front-end has told a translation: what it covers is answered."""
        allowed = update.permissions
        for address, writable in list(self._open):
            wanted = IOTLB_WRITE if writable else IOTLB_READ
            if allowed & wanted and update.iova <= address < update.iova + update.size:
                self._open.discard((address, writable))

    def acknowledged(self, question: Iotlb, success: bool) -> None:
        """The front-end is done with a question; without success it had nothing to tell."""
        writable = bool(question.permissions & IOTLB_WRITE)
        if (question.iova, writable) not in self._open:
            return
        self._open.discard((question.iova, writable))
        if not success:
            access = "writing" if writable else "reading"
            log.warning("%s: no translation of %#x for %s", self._name, question.iova, access)

    def take_waiting(self) -> list[int]:
        """The virtqueues to look at again, which wait no longer."""
        waiting, self._waiting = self._waiting, set()
        return sorted(waiting)

    def forget(self) -> None:
        """No answer is awaited to anything that was asked: the channel is another, or gone, or all
        rings are stopped."""
        self._open.clear()
