"""Split virtqueues as a driver sets them up and fills them (2.7)."""

from __future__ import annotations

from collections.abc import Iterator

from virtq.check.case import case, expect
from virtq.check.driver.cases.reading import no_fault, writable_last
from virtq.check.driver.context import DriverContext
from virtq.check.driver.record import Chain, Record
from virtq.features import F

MAX_CHAIN_BYTES = 1 << 32
NO_EVENT_IDX = int(F.INDIRECT_DESC)


def split_chains(record: Record) -> Iterator[tuple[int, Chain]]:
    """The buffers, each with the size of its queue."""
    for queue in record.queues:
        for chain in queue.chains:
            yield queue.size, chain


@case("split.drv.align-desc-table", party="driver", packed=False)
def the_descriptor_table_is_aligned(driver: DriverContext) -> None:
    """The descriptor table of each virtqueue begins at a multiple of 16 bytes."""
    for queue in driver.seen(chains=False).queues:
        expect(queue.desc % 16 == 0, "an address that is a multiple of 16", hex(queue.desc))


@case("split.drv.align-avail-ring", party="driver", packed=False)
def the_available_ring_is_aligned(driver: DriverContext) -> None:
    """The available ring of each virtqueue begins at a multiple of 2 bytes."""
    for queue in driver.seen(chains=False).queues:
        expect(queue.driver % 2 == 0, "an address that is a multiple of 2", hex(queue.driver))


@case("split.drv.align-used-ring", party="driver", packed=False)
def the_used_ring_is_aligned(driver: DriverContext) -> None:
    """The used ring of each virtqueue begins at a multiple of 4 bytes."""
    for queue in driver.seen(chains=False).queues:
        expect(queue.device % 4 == 0, "an address that is a multiple of 4", hex(queue.device))


@case("split.size.power-of-two", "split.size.max-32768", party="driver", packed=False)
def sizes_are_powers_of_two(driver: DriverContext) -> None:
    """Each virtqueue has a power of two slots, 32768 at most."""
    for queue in driver.seen(chains=False).queues:
        size = queue.size
        expect(not size & (size - 1) and size <= 32768, "a power of two, at most 32768", size)


@case("split.availnotify.drv.init-used-flags", party="driver", packed=False)
def used_flags_begin_as_zero(driver: DriverContext) -> None:
    """The flags of the used ring are 0 when the driver hands the virtqueue over."""
    for queue in driver.seen(chains=False).queues:
        flags = queue.device_words_at_start[0]
        expect(flags == 0, f"used flags 0 in the beginning of queue {queue.index}", flags)


@case("split.parts.single-writer", party="driver", packed=False)
def only_the_device_writes_the_used_ring(driver: DriverContext) -> None:
    """The driver leaves the used ring alone once the device has it: flags, index, entries and
    avail_event are as the device wrote them."""
    no_fault(driver.seen(), "device area", "a used ring that only the device writes")


@case("split.desc.drv.chain-4gib", party="driver", packed=False)
def no_chain_of_more_than_4_gib(driver: DriverContext) -> None:
    """The elements of a buffer have 2^32 bytes in all at most."""
    for _, chain in split_chains(driver.seen()):
        total = sum(piece.length for piece in chain.pieces)
        expect(total <= MAX_CHAIN_BYTES, f"{chain} to have 2^32 bytes at most", total)


@case("split.desc.drv.no-loop", party="driver", packed=False)
def no_chain_is_a_loop(driver: DriverContext) -> None:
    """Following `next` from a buffer's head never leads back to one of its descriptors."""
    for _, chain in split_chains(driver.seen()):
        slots = [descriptor.slot for descriptor in chain.descriptors]
        expect(len(slots) == len(set(slots)), f"{chain} without a loop", slots[:8])


@case("split.desc.max-chain", party="driver", packed=False)
def no_chain_is_longer_than_the_queue(driver: DriverContext) -> None:
    """A buffer has no more descriptors than the virtqueue has slots."""
    for size, chain in split_chains(driver.seen()):
        count = len(chain.descriptors)
        expect(count <= size, f"{chain} to have {size} descriptors at most", f"{count} or more")


@case("split.avail.entry-is-head", party="driver", packed=False)
def entries_name_heads(driver: DriverContext) -> None:
    """Each entry of the available ring names the first descriptor of a buffer: one that exists, and
    that is no part of another buffer that is not used yet."""
    record = driver.seen()
    for size, chain in split_chains(record):
        expect(chain.id < size, f"an entry below {size}", f"{chain.id} in slot {chain.slot}")
    no_fault(record, "overlap", "buffers that have their own descriptors each")


@case("split.avail.idx-start-zero", "split.avail.idx-advance", party="driver", packed=False)
def the_index_counts_buffers_from_zero(driver: DriverContext) -> None:
    """The available index begins at 0 and grows by the number of buffers: each entry that it
    counts was written, and names a buffer that is not available already."""
    record = driver.seen()
    for queue in record.queues:
        begin = queue.indices[0]
        expect(begin <= queue.size, "an index that begins at 0", begin)
    for _, chain in split_chains(record):
        empty = not chain.descriptors or not any(chain.descriptors[0][1:4])
        expect(not empty, f"entry {chain.slot} to be written before it is counted", str(chain))
    no_fault(record, "same id", "each buffer to be counted once")


@case("split.avail.drv.no-decrement", party="driver", packed=False)
def the_index_never_goes_back(driver: DriverContext) -> None:
    """The available index only grows, modulo 65536, and never by more than the queue's size: what
    was made available cannot be recalled."""
    for queue in driver.seen().queues:
        for before, after in zip(queue.indices, queue.indices[1:], strict=False):
            step = (after - before) % 65536
            expect(step <= queue.size, f"an index that grows from {before}", after)


@case("split.avail.idx-wraps-65536", party="driver", packed=False, alone=True)
def the_index_wraps_at_65536(driver: DriverContext) -> None:
    """After 65535 comes 0, whatever the queue's size: the ring goes on without a gap. Only for
    drivers that make so many buffers available in time."""
    live = driver.live()
    left = 65536 - live.ring.half.position.available + 2 * live.ring.size
    driver.check_time_for(left)
    live.serve(left)


@case("split.usednotify.drv.flags-0-or-1", party="driver", packed=False, offers=NO_EVENT_IDX)
def available_flags_are_0_or_1(driver: DriverContext) -> None:
    """Without EVENT_IDX the flags of the available ring are 0 or 1, and nothing else."""
    for queue in driver.seen(chains=False).queues:
        strange = queue.words.first - {0, 1}
        expect(not strange, "available flags 0 or 1", strange)


@case("split.usednotify.drv.flags-0-with-event-idx", party="driver", packed=False)
def available_flags_are_0_with_event_idx(driver: DriverContext) -> None:
    """With EVENT_IDX the flags of the available ring stay 0."""
    record = driver.accepted(F.EVENT_IDX)
    for queue in record.queues:
        expect(queue.words.first == {0}, "available flags 0", queue.words.first)


# In order


@case("split.desc.in-order-ring-use", party="driver", packed=False, in_order=True)
def in_order_slots_follow_one_another(driver: DriverContext) -> None:
    """In order, the descriptor table is used as a ring: the first buffer begins in slot 0, and each
    later one right after the slots of the one before, around the table's end."""
    for queue in driver.seen().queues:
        at = 0
        for chain in queue.chains:
            expect(chain.id == at, f"{chain} to begin in slot {at}", f"slot {chain.id}")
            at = (at + len(chain.descriptors)) % queue.size


@case("split.desc.drv.in-order-next", party="driver", packed=False, in_order=True)
def in_order_next_is_the_next_slot(driver: DriverContext) -> None:
    """In order, a descriptor in slot x that has NEXT goes on in slot x + 1, and the one in the last
    slot in slot 0."""
    for size, chain in split_chains(driver.seen()):
        for descriptor in chain.descriptors:
            following = (descriptor.slot + 1) % size
            if descriptor.has_next and not descriptor.indirect:
                came = descriptor.next
                expect(came == following, f"{descriptor} to go on at {following}", came)


# Framing


@case(
    "framing.drv.writable-after-readable", "split.place.element-order", party="driver", packed=False
)
def writable_elements_come_last(driver: DriverContext) -> None:
    """In each buffer all device-writable elements come after all device-readable ones."""
    for _, chain in split_chains(driver.seen()):
        writable_last(chain)


@case("cleanup.drv.no-alter-exposed", party="driver", packed=False)
def what_is_exposed_stays(driver: DriverContext) -> None:
    """What was made available is not changed while the device has it: neither the entries of the
    available ring nor the descriptors, however long the device takes."""
    driver.hold()
    no_fault(driver.record, "altered", "descriptors that stay as they are until they are used")
