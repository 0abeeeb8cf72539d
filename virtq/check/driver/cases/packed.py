"""Packed virtqueues as a driver sets them up and fills them (2.8)."""

from __future__ import annotations

from collections.abc import Iterator

from virtq.check.case import NotObservable, case, expect
from virtq.check.driver.cases.reading import no_fault, writable_last
from virtq.check.driver.context import DriverContext
from virtq.check.driver.record import Chain, Record
from virtq.features import F

NO_EVENT_IDX = int(F.INDIRECT_DESC)
_EVENT_FLAGS = 3


def packed_chains(record: Record) -> Iterator[tuple[int, Chain]]:
    """The buffers, each with the size of its queue."""
    for queue in record.queues:
        for chain in queue.chains:
            yield queue.size, chain


def lists(record: Record) -> list[tuple[int, Chain]]:
    """Those of more than one descriptor. Raises NotObservable if there are none."""
    found = [(size, chain) for size, chain in packed_chains(record) if len(chain.descriptors) > 1]
    if not found:
        raise NotObservable("no buffer has more than one descriptor in the ring")
    return found


@case("packed.drv.align-desc-ring", party="driver", packed=True)
def the_descriptor_ring_is_aligned(driver: DriverContext) -> None:
    """The descriptor ring of each virtqueue begins at a multiple of 16 bytes."""
    for queue in driver.seen(chains=False).queues:
        expect(queue.desc % 16 == 0, "an address that is a multiple of 16", hex(queue.desc))


@case("packed.drv.align-driver-event", party="driver", packed=True)
def the_driver_event_structure_is_aligned(driver: DriverContext) -> None:
    """The driver's event suppression structure is at a multiple of 4 bytes."""
    for queue in driver.seen(chains=False).queues:
        expect(queue.driver % 4 == 0, "an address that is a multiple of 4", hex(queue.driver))


@case("packed.drv.align-device-event", party="driver", packed=True)
def the_device_event_structure_is_aligned(driver: DriverContext) -> None:
    """The device's event suppression structure is at a multiple of 4 bytes."""
    for queue in driver.seen(chains=False).queues:
        expect(queue.device % 4 == 0, "an address that is a multiple of 4", hex(queue.device))


@case("packed.size.any-up-to-32768", party="driver", packed=True)
def sizes_are_32768_at_most(driver: DriverContext) -> None:
    """Each virtqueue has 32768 slots at most."""
    for queue in driver.seen(chains=False).queues:
        expect(queue.size <= 32768, "32768 slots at most", queue.size)


@case("packed.ring.zero-init", party="driver", packed=True)
def the_ring_begins_as_zero(driver: DriverContext) -> None:
    """The descriptor ring is all zero in the beginning, but for what is available already."""
    for queue in driver.seen(chains=False).queues:
        stale = queue.stale_at_start
        expect(not stale, "slots that are zero in the beginning", f"slots {stale[:8]} are not")


@case(
    "packed.wrap.init-one",
    "packed.wrap.driver-toggle",
    "packed.flags.avail-encoding",
    party="driver",
    packed=True,
)
def available_as_the_wrap_counter_says(driver: DriverContext) -> None:
    """The driver's wrap counter is 1 in the beginning and changes whenever the ring's last slot was
    made available; AVAIL is what it is, USED the opposite."""
    record = driver.seen(chains=False)
    what = "AVAIL as the wrap counter, USED its opposite, in the slot that is next"
    no_fault(record, "wrap", what)
    no_fault(record, "encoding", what)


@case(
    "packed.list.all-flags-valid",
    "packed.list.drv.room-first",
    "packed.list.drv.head-last",
    party="driver",
    packed=True,
)
def every_descriptor_of_a_list_is_available(driver: DriverContext) -> None:
    """When the first descriptor of a list is available, so are all the others: AVAIL and USED are
    set in each of them before, and the ring had room for all."""
    for _, chain in packed_chains(driver.seen()):
        expect("not available" not in chain.fault, f"{chain} available to its end", chain.fault)


@case("packed.list.drv.queue-size-limit", "packed.list.drv.no-loop", party="driver", packed=True)
def no_list_is_longer_than_the_queue(driver: DriverContext) -> None:
    """A list ends before it comes back to its own beginning."""
    for size, chain in packed_chains(driver.seen()):
        too_long = chain.fault == "a list longer than the ring"
        expect(not too_long, f"{chain} to have {size} descriptors at most", chain.fault)


@case(
    "framing.drv.writable-after-readable",
    "packed.list.drv.writable-after-readable",
    party="driver",
    packed=True,
)
def writable_elements_come_last(driver: DriverContext) -> None:
    """In each buffer all device-writable elements come after all device-readable ones."""
    for _, chain in packed_chains(driver.seen()):
        writable_last(chain)


@case("packed.list.buffer-id-in-last", party="driver", packed=True)
def the_last_descriptor_has_the_buffer_id(driver: DriverContext) -> None:
    """The last descriptor of a list has the Buffer ID, which no other buffer has that is not used
    yet."""
    record = driver.seen()
    lists(record)
    no_fault(record, "same id", "a Buffer ID of its own in each buffer's last descriptor")


@case(
    "packed.desc.drv.change-only-after-used",
    "packed.desc.drv.no-change-after-avail",
    "cleanup.drv.no-alter-exposed",
    party="driver",
    packed=True,
)
def what_is_available_stays(driver: DriverContext) -> None:
    """A descriptor that was made available is not changed before it is used, however long the
    device takes."""
    driver.hold()
    no_fault(driver.record, "altered", "descriptors that stay as they are until they are used")


@case("packed.list.drv.no-dependence-on-progress", party="driver", packed=True)
def lists_are_whole_though_nothing_is_used(driver: DriverContext) -> None:
    """A list is written to its end though the device uses nothing meanwhile: with the ring as full
    as the driver makes it, nothing in it is unfinished."""
    live = driver.hold()
    for chain in live.ring.seen.chains:
        expect(not chain.fault, f"{chain} to be whole", chain.fault)


@case("packed.event.flags-desc-needs-event-idx", party="driver", packed=True, offers=NO_EVENT_IDX)
def descriptor_events_need_event_idx(driver: DriverContext) -> None:
    """Without EVENT_IDX the driver's event flags are 0 (enable) or 1 (disable)."""
    for queue in driver.seen(chains=False).queues:
        flags = {word & _EVENT_FLAGS for word in queue.words.second}
        expect(2 not in flags, "event flags 0 or 1", flags)


@case("packed.event.flags-3-reserved", "packed.event.reserved-zero", party="driver", packed=True)
def event_words_have_no_reserved_bits(driver: DriverContext) -> None:
    """The driver's event flags are 0, 1 or 2, and the 14 bits above them zero."""
    for queue in driver.seen(chains=False).queues:
        strange = {word for word in queue.words.second if word > 2}
        expect(not strange, "event flags 0, 1 or 2, and nothing above", strange)


@case("packed.event.desc-offset", party="driver", packed=True)
def event_offsets_are_in_the_ring(driver: DriverContext) -> None:
    """When the driver asks for the event of a descriptor, it is one that the ring has."""
    record = driver.accepted(F.EVENT_IDX)
    for queue in record.queues:
        if 2 in queue.words.second:
            offset = max(word & 0x7FFF for word in queue.words.first)
            expect(offset < queue.size, f"an offset below {queue.size}", offset)


@case("packed.event.device-area-controls-avail", party="driver", packed=True)
def only_the_device_writes_its_event_structure(driver: DriverContext) -> None:
    """The driver only reads the device's event suppression structure."""
    no_fault(driver.seen(), "device area", "an event structure that only the device writes")
