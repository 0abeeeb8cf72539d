"""The front-end's memory as the back-end holds it: regions, dirty log, IOMMU."""

from __future__ import annotations

import os

import pytest

from tests.unit.vhost_user.right_front import (
    DATA,
    DESC,
    DEVICE,
    DRIVER,
    GUEST,
    PLAIN,
    SIZE,
    USER,
    RightFront,
)
from tests.unit.vhost_user.support import (
    FakeDevice,
    Served,
    eventfd,
    eventually,
    memfd,
    open_fds,
)
from virtq.features import F
from virtq.transports.vhost_user.guest import Guest
from virtq.transports.vhost_user.messages import LOG_ALL, Back, Front
from virtq.transports.vhost_user.wire import (
    U64,
    Iotlb,
    IotlbType,
    LogBase,
    Region,
    RegionTable,
    VringState,
)

# ---------------------------------------------------------------- memory


def test_a_new_table_that_still_holds_the_ring(served: Served) -> None:
    with RightFront(served) as front:
        queue = front.queue()
        front.start()
        more = memfd(SIZE)
        table = RegionTable((front.region, Region(0x8000000, SIZE, USER + 4 * SIZE, 0)))
        front.raw.send(Front.SET_MEM_TABLE, table, [front.fd, more])
        front.sync()
        os.close(more)
        assert front.shout(queue, b"still") == b"STILL"


def test_a_new_table_that_moves_the_ring_to_another_guest_address(served: Served) -> None:
    with RightFront(served) as front:
        queue = front.queue()
        front.start()
        front.shout(queue, b"before")
        front.raw.send(
            Front.SET_MEM_TABLE, RegionTable((Region(GUEST, SIZE, USER, 0),)), [front.fd]
        )
        front.raw.send(
            Front.SET_MEM_TABLE, RegionTable((Region(2 * GUEST, SIZE, USER, 0),)), [front.fd]
        )
        assert front.raw.ask(Front.GET_VRING_BASE, VringState(0, 0)).num == 1


@pytest.mark.parametrize("how", ["empty table", "REM_MEM_REG"])
def test_row_13_a_ring_whose_memory_is_taken_away(
    served: Served, device: FakeDevice, how: str
) -> None:
    with RightFront(served) as front:
        front.start()
        if how == "empty table":
            front.raw.send(Front.SET_MEM_TABLE, RegionTable(()))
        else:
            front.raw.send(Front.REM_MEM_REG, front.region, [front.fd])
        front.sync()
        assert device.calls[-1] == ("stop", 0)
        assert os.read(front.events["err"], 8)
        assert front.raw.ask(Front.GET_VRING_BASE, VringState(0, 0)).num == 0


def test_regions_added_one_by_one(served: Served) -> None:
    with RightFront(served) as front:
        queue = front.queue()
        answer = front.raw.ask(Front.ADD_MEM_REG, front.region, [front.fd], need_reply=True)
        assert answer.value == 0
        front.set_up()
        front.events_on()
        front.enable()
        assert front.shout(queue, b"slot") == b"SLOT"


def test_no_more_slots_than_promised(served: Served) -> None:
    with RightFront(served) as front:
        for n in range(509):
            front.raw.send(Front.ADD_MEM_REG, Region(n << 20, 4096, n << 20, 0), [front.fd])
        one_more = Region(510 << 20, 4096, 510 << 20, 0)
        answer = front.raw.ask(Front.ADD_MEM_REG, one_more, [front.fd], need_reply=True)
        assert answer.value == 1


BAD_REGIONS = {
    "size 0": Region(0, 0, USER, 0),
    "past the end of the file": Region(0, SIZE, USER, 4096),
    "offset + size overflows": Region(0, SIZE, USER, 2**64 - 4096),
    "guest address overflows": Region(2**64 - 4096, SIZE, USER, 0),
    "user address overflows": Region(0, SIZE, 2**64 - 4096, 0),
}


@pytest.mark.parametrize("region", BAD_REGIONS.values(), ids=BAD_REGIONS)
def test_row_24_a_bad_region_changes_nothing(served: Served, region: Region) -> None:
    with RightFront(served) as front:
        queue = front.queue()
        front.start()
        answers = [
            front.raw.ask(Front.ADD_MEM_REG, region, [front.fd], need_reply=True),
            front.raw.ask(Front.SET_MEM_TABLE, RegionTable((region,)), [front.fd], need_reply=True),
        ]
        assert [answer.value for answer in answers] == [1, 1]
        assert front.shout(queue, b"as before") == b"AS BEFORE"


def test_row_24_overlapping_regions_change_nothing(served: Served) -> None:
    with RightFront(served) as front:
        queue = front.queue()
        front.start()
        table = RegionTable((front.region, Region(GUEST + 4096, 4096, 4096, 0)))
        fds = [front.fd, front.fd]
        assert front.raw.ask(Front.SET_MEM_TABLE, table, fds, need_reply=True).value == 1
        assert front.shout(queue, b"as before") == b"AS BEFORE"


def test_row_24_without_an_acknowledgement_a_bad_table_ends_the_connection(
    served: Served,
) -> None:
    with RightFront(served) as front:
        front.raw.send(Front.SET_MEM_TABLE, RegionTable((Region(0, 0, USER, 0),)), [front.fd])
        assert front.raw.ended()


def test_removing_a_region_that_is_not_there(served: Served) -> None:
    with RightFront(served) as front:
        front.share()
        other = front.region._replace(size=4096)
        assert front.raw.ask(Front.REM_MEM_REG, other, need_reply=True).value == 1


def test_the_dirty_log(served: Served) -> None:
    with RightFront(served) as front:
        queue = front.queue()
        front.start()
        log = memfd(4096)
        assert front.raw.ask(Front.SET_LOG_BASE, LogBase(4096, 0), [log]) == U64(0)
        event = eventfd()
        front.raw.send(Front.SET_LOG_FD, fds=[event])
        front.shout(queue, b"not logged")
        assert os.pread(log, 4096, 0) == bytes(4096)
        front.raw.send(Front.SET_FEATURES, U64(PLAIN | LOG_ALL))
        elsewhere = GUEST + DATA + 0x4000
        front.raw.send(Front.SET_VRING_ADDR, front.address()._replace(flags=1, log=elsewhere))
        front.sync()
        front.shout(queue, b"logged")
        bits = int.from_bytes(os.pread(log, 4096, 0), "little")
        pages = [page for page in range(4096 * 8) if bits >> page & 1]
        assert (GUEST + DATA + 0x1000) >> 12 in pages
        assert elsewhere >> 12 in pages, "the used ring, where the front-end has its log"
        assert (GUEST + DEVICE) >> 12 not in pages
        front.raw.send(Front.SET_FEATURES, U64(PLAIN))
        front.sync()
        os.pwrite(log, bytes(4096), 0)
        front.shout(queue, b"not logged")
        assert os.pread(log, 4096, 0) == bytes(4096)
        os.close(log)
        os.close(event)


def test_the_dirty_log_goes_with_the_front_end() -> None:
    before = open_fds()
    guest = Guest()
    guest.use_features(int(LOG_ALL))
    guest.set_log(LogBase(4096, 0), memfd(4096))
    guest.close()
    assert open_fds() == before, "at once, not when the garbage is collected"


# ---------------------------------------------------------------- IOMMU

TRANSLATED = PLAIN | F.ACCESS_PLATFORM
IOVA = 0x5000_0000


def update(iova: int, size: int, user: int, permissions: int = 3) -> Iotlb:
    return Iotlb(iova, size, user, permissions, IotlbType.UPDATE)


def test_a_translated_ring_asks_for_everything_that_it_misses(
    served: Served, device: FakeDevice
) -> None:
    with RightFront(served, TRANSLATED) as front:
        queue = front.queue()
        front.open_other()
        front.share()
        front.raw.send(Front.SET_VRING_NUM, VringState(0, 16))
        front.raw.send(Front.SET_VRING_ADDR, front.address(origin=IOVA))
        front.events_on()
        front.enable()
        seen: list[int] = []
        while not device.queues:
            code, miss = front.told()
            assert code is Back.IOTLB_MSG
            assert miss.type == IotlbType.MISS
            page = miss.iova & ~0xFFF
            seen.append(page)
            answer = front.raw.ask(Front.IOTLB_MSG, update(page, 4096, page - IOVA + USER))
            assert answer == U64(0)
            front.sync()
        assert sorted(seen) == [IOVA + DESC, IOVA + DRIVER, IOVA + DEVICE]
        # The buffer's own address misses next; the update lets the queue go on.
        queue.add([], [(IOVA + DATA, 4)], 9)
        queue.kick()
        code, miss = front.told()
        assert (code, miss.iova, miss.permissions) == (Back.IOTLB_MSG, IOVA + DATA, 2)
        front.raw.ask(Front.IOTLB_MSG, update(IOVA + DATA, 4096, USER + DATA))
        assert queue.wait(5.0)
        assert queue.reap() == [(9, 0)]


def test_a_ring_whose_translation_is_invalidated_waits_for_a_new_one(
    served: Served, device: FakeDevice
) -> None:
    with RightFront(served, TRANSLATED) as front:
        queue = front.queue()
        front.open_other()
        front.share()
        front.raw.ask(Front.IOTLB_MSG, update(GUEST, SIZE, USER))
        front.raw.send(Front.SET_VRING_NUM, VringState(0, 16))
        front.raw.send(Front.SET_VRING_ADDR, front.address(origin=GUEST))
        front.events_on()
        front.enable()
        assert front.shout(queue, b"before") == b"BEFORE"
        gone = Iotlb(GUEST, SIZE, 0, 0, IotlbType.INVALIDATE)
        assert front.raw.ask(Front.IOTLB_MSG, gone) == U64(0)
        code, miss = front.told()
        assert (code, miss.iova) == (Back.IOTLB_MSG, GUEST)
        assert device.queues == {}
        front.raw.ask(Front.IOTLB_MSG, update(GUEST, SIZE, USER))
        assert front.shout(queue, b"after") == b"AFTER"
        assert front.raw.ask(Front.GET_VRING_BASE, VringState(0, 0)).num == 2


@pytest.mark.parametrize("how", ["stop", "reset"])
def test_translations_do_not_outlive_the_rings(
    served: Served, device: FakeDevice, how: str
) -> None:
    """A guest that boots again uses the same addresses for other pages; QEMU says nothing."""
    with RightFront(served, TRANSLATED) as front:
        front.open_other()
        front.share()
        front.raw.ask(Front.IOTLB_MSG, update(GUEST, SIZE, USER))
        front.raw.send(Front.SET_VRING_NUM, VringState(0, 16))
        front.raw.send(Front.SET_VRING_ADDR, front.address(origin=GUEST))
        front.events_on()
        front.sync()
        assert 0 in device.queues
        if how == "stop":
            front.raw.ask(Front.GET_VRING_BASE, VringState(0, 0))
        else:
            front.raw.send(Front.SET_STATUS, U64(0))
            front.raw.send(Front.SET_FEATURES, U64(TRANSLATED))
        front.raw.send(Front.SET_VRING_KICK, U64(0), [front.events["kick"]])
        code, miss = front.told()
        assert (code, miss.type) == (Back.IOTLB_MSG, IotlbType.MISS)


def test_a_broken_ring_is_not_revived_by_an_invalidation(
    served: Served, device: FakeDevice
) -> None:
    with RightFront(served, TRANSLATED) as front:
        front.share()
        front.raw.ask(Front.IOTLB_MSG, update(GUEST, SIZE, USER))
        front.raw.send(Front.SET_VRING_NUM, VringState(0, 16))
        front.raw.send(Front.SET_VRING_ADDR, front.address(origin=GUEST))
        front.events_on()
        front.memory.write(GUEST + DRIVER + 2, (1000).to_bytes(2, "little"))
        front.enable()
        front.sync()
        assert eventually(lambda: device.queues[0].broken is not None)
        front.raw.ask(Front.IOTLB_MSG, Iotlb(GUEST, SIZE, 0, 0, IotlbType.INVALIDATE))
        front.raw.ask(Front.IOTLB_MSG, update(GUEST, SIZE, USER))
        assert device.calls.count(("start", 0, False)) == 1
        assert ("stop", 0) not in device.calls


def test_nobody_to_ask_for_a_translation(served: Served, device: FakeDevice) -> None:
    with RightFront(served, TRANSLATED) as front:
        front.share()
        front.set_up()
        front.events_on()
        front.sync()
        assert device.queues == {}
        assert front.raw.ask(Front.GET_VRING_BASE, VringState(0, 0)).num == 0


@pytest.mark.parametrize(
    "message",
    [
        update(0, 0, USER),
        update(2**64 - 1, 4096, USER),
        Iotlb(0, 4096, USER, 3, IotlbType.MISS),
        Iotlb(0, 4096, USER, 3, 9),
    ],
    ids=["size 0", "overflow", "miss", "type 9"],
)
def test_a_bad_iotlb_message_is_answered_with_a_failure(served: Served, message: Iotlb) -> None:
    with RightFront(served, TRANSLATED) as front:
        assert front.raw.ask(Front.IOTLB_MSG, message) == U64(1)
