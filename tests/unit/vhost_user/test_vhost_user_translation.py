"""Questions to the front-end's IOMMU: each asked once, and again when it may help."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.unit.vhost_user.right_front import DATA, GUEST, PLAIN, SIZE, USER, RightFront
from tests.unit.vhost_user.support import FakeDevice, Served, eventually
from virtq._core import DriverQueue
from virtq.errors import TranslationMiss
from virtq.features import F
from virtq.transports.vhost_user.messages import Back, Front
from virtq.transports.vhost_user.translation import MAX_QUESTIONS, Translations
from virtq.transports.vhost_user.wire import (
    IOTLB_READ,
    IOTLB_WRITE,
    NEED_REPLY,
    REPLY,
    Iotlb,
    IotlbType,
    ProtocolError,
    VringState,
    pack_message,
)

PAGE = 4096
AT = GUEST + DATA
"""A buffer's address that the front-end has not told."""


def update(iova: int, size: int, user: int, permissions: int = 3) -> Iotlb:
    return Iotlb(iova, size, user, permissions, IotlbType.UPDATE)


def invalidate(iova: int, size: int) -> Iotlb:
    return Iotlb(iova, size, 0, 0, IotlbType.INVALIDATE)


# ---------------------------------------------------------------- alone


class Asked(list[Iotlb]):
    """What was asked, of somebody who may be there."""

    there = True

    def __call__(self, question: Iotlb) -> bool:
        self.append(question)
        return self.there


def miss(address: int, length: int = 16, writable: bool = False) -> TranslationMiss:
    return TranslationMiss("missing", address, length, writable)


def test_a_question_is_put_once_until_it_is_answered() -> None:
    asked = Asked()
    translations = Translations(asked, "test")
    for index in (3, 1, 3):
        translations.miss(miss(0x5000), index)
    assert asked == [Iotlb(0x5000, 16, 0, IOTLB_READ, IotlbType.MISS)]
    assert translations.take_waiting() == [1, 3]
    assert translations.take_waiting() == []
    translations.updated(update(0x6000, PAGE, 0))
    translations.updated(update(0x5000, PAGE, 0, IOTLB_WRITE))
    translations.miss(miss(0x5000))
    assert len(asked) == 1
    translations.updated(update(0x5000, PAGE, 0, IOTLB_READ))
    assert translations.open_questions == 0
    translations.miss(miss(0x5000))
    assert len(asked) == 2


def test_reading_and_writing_are_two_questions() -> None:
    asked = Asked()
    translations = Translations(asked, "test")
    translations.miss(miss(0x5000))
    translations.miss(miss(0x5000, writable=True))
    assert [question.permissions for question in asked] == [IOTLB_READ, IOTLB_WRITE]


def test_what_has_no_translation_is_said_and_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    asked = Asked()
    translations = Translations(asked, "test")
    translations.miss(miss(0x5000, writable=True))
    translations.acknowledged(asked[0], False)
    assert "no translation of 0x5000 for writing" in caplog.text
    translations.miss(miss(0x5000, writable=True))
    assert len(asked) == 2


def test_an_acknowledgement_of_what_is_settled_says_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = Asked()
    translations = Translations(asked, "test")
    translations.miss(miss(0x5000))
    translations.forget()
    translations.acknowledged(asked[0], False)
    assert caplog.text == ""


def test_with_nobody_to_ask_it_is_asked_at_the_next_occasion() -> None:
    asked = Asked()
    translations = Translations(asked, "test")
    asked.there = False
    translations.miss(miss(0x5000), 0)
    asked.there = True
    translations.miss(miss(0x5000), 0)
    assert len(asked) == 2


def test_questions_without_answers_have_a_limit() -> None:
    translations = Translations(Asked(), "test")
    for page in range(MAX_QUESTIONS):
        translations.miss(miss(page * PAGE))
    with pytest.raises(ProtocolError, match="unanswered"):
        translations.miss(miss(MAX_QUESTIONS * PAGE))


# ---------------------------------------------------------------- over a socket


@pytest.fixture
def front(served: Served) -> Iterator[RightFront]:
    """A ring that runs behind an IOMMU; all but the first pages have yet to be asked for."""
    with RightFront(served, PLAIN | F.ACCESS_PLATFORM) as front:
        front.open_other()
        front.share()
        front.raw.ask(Front.IOTLB_MSG, update(GUEST, DATA, USER))
        front.raw.send(Front.SET_VRING_NUM, VringState(0, 16))
        front.raw.send(Front.SET_VRING_ADDR, front.address(origin=GUEST))
        front.events_on()
        front.enable()
        front.sync()
        yield front


def acknowledge(front: RightFront, value: int) -> None:
    assert front.other is not None
    body = value.to_bytes(8, "little")
    front.other.sendall(pack_message(Back.IOTLB_MSG, REPLY, body))
    front.sync()


def quiet(front: RightFront) -> bool:
    """Whether nothing more has been asked."""
    front.sync()
    assert front.other is not None
    front.other.setblocking(False)
    try:
        return not front.other.recv(1)
    except BlockingIOError:
        return True
    finally:
        front.other.settimeout(5.0)


def one_buffer(front: RightFront) -> DriverQueue:
    queue = front.queue()
    queue.add([], [(AT, 4)], 7)
    queue.kick()
    assert front.told() == (Back.IOTLB_MSG, Iotlb(AT, 4, 0, IOTLB_WRITE, IotlbType.MISS))
    return queue


def test_invalidations_while_an_answer_is_on_its_way_ask_nothing_again(front: RightFront) -> None:
    queue = one_buffer(front)
    for page in range(10):
        front.raw.ask(Front.IOTLB_MSG, invalidate(0x9000_0000 + page * PAGE, PAGE))
        front.raw.ask(Front.IOTLB_MSG, update(0x9000_0000 + page * PAGE, PAGE, USER))
    assert quiet(front)
    front.raw.ask(Front.IOTLB_MSG, update(AT, PAGE, USER + DATA))
    acknowledge(front, 0)
    assert queue.wait(5.0)
    assert queue.reap() == [(7, 0)]


def test_a_question_wants_an_acknowledgement(front: RightFront) -> None:
    queue = front.queue()
    queue.add([], [(AT, 4)], 7)
    queue.kick()
    assert front.other is not None
    flags = int.from_bytes(front.other.recv(12)[4:8], "little")
    assert flags & NEED_REPLY


def test_a_failed_acknowledgement_lets_the_question_be_put_again(
    front: RightFront, caplog: pytest.LogCaptureFixture
) -> None:
    queue = one_buffer(front)
    acknowledge(front, 1)
    assert eventually(lambda: "no translation of" in caplog.text)
    front.raw.ask(Front.IOTLB_MSG, update(0x9000_0000, PAGE, USER))
    assert front.told()[1].iova == AT
    front.raw.ask(Front.IOTLB_MSG, update(AT, PAGE, USER + DATA))
    assert queue.wait(5.0)


def test_a_new_channel_is_asked_what_the_old_one_was(front: RightFront) -> None:
    queue = one_buffer(front)
    old = front.other
    front.open_other()
    assert front.told()[1].iova == AT
    front.raw.ask(Front.IOTLB_MSG, update(AT, PAGE, USER + DATA))
    assert queue.wait(5.0)
    assert old is not None
    old.close()


def test_an_acknowledgement_of_nothing_closes_the_channel_alone(
    front: RightFront, device: FakeDevice, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        acknowledge(front, 0)
        assert eventually(lambda: "no request waits for it" in caplog.text)
    front.raw.ask(Front.IOTLB_MSG, update(GUEST, SIZE, USER))
    assert front.shout(front.queue(), b"still here") == b"STILL HERE"


def test_a_front_end_that_never_acknowledges_is_not_asked_for_ever(
    front: RightFront, caplog: pytest.LogCaptureFixture
) -> None:
    """Each answer lets the ring go on to the next gap; acknowledgements do not come."""
    queue = front.queue()
    queue.add([], [(AT, 4)], 7)
    queue.kick()
    for _ in range(2 * MAX_QUESTIONS):
        front.raw.ask(Front.IOTLB_MSG, update(AT, 4, USER + DATA))
        front.raw.ask(Front.IOTLB_MSG, invalidate(AT, 4))
        if "unacknowledged" in caplog.text:
            break
        queue.reap()
        queue.add([], [(AT, 4)], 7)
        queue.kick()
    assert eventually(lambda: "unacknowledged" in caplog.text)
    front.sync()
