"""Indirect tables (2.7.5.3, 2.8.7, 2.8.19)."""

from __future__ import annotations

from virtq.check.case import case, expect
from virtq.check.driver.cases.reading import tables
from virtq.check.driver.context import DriverContext
from virtq.features import F
from virtq.model.memory import DESCRIPTOR_BYTES, WRITE

NO_TABLES = int(F.EVENT_IDX)


def _none_without_the_feature(driver: DriverContext) -> None:
    for chain in driver.seen().chains():
        for descriptor in chain.descriptors:
            expect(not descriptor.indirect, "no INDIRECT without INDIRECT_DESC", descriptor)


@case("split.indirect.drv.negotiated-only", party="driver", packed=False, offers=NO_TABLES)
def no_table_without_the_feature(driver: DriverContext) -> None:
    """Without INDIRECT_DESC no descriptor is INDIRECT."""
    _none_without_the_feature(driver)


@case("packed.indirect.drv.negotiated-only", party="driver", packed=True, offers=NO_TABLES)
def no_packed_table_without_the_feature(driver: DriverContext) -> None:
    """Without INDIRECT_DESC no descriptor is INDIRECT."""
    _none_without_the_feature(driver)


@case("split.indirect.drv.no-nesting", party="driver", packed=False)
def no_table_in_a_table(driver: DriverContext) -> None:
    """No entry of an indirect table is INDIRECT itself."""
    for _, chain in tables(driver.seen()):
        for entry in chain.table or ():
            expect(not entry.indirect, f"{chain} without a table in its table", entry)


@case("split.indirect.drv.chain-within-queue-size", party="driver", packed=False)
def a_table_is_no_longer_than_the_queue(driver: DriverContext) -> None:
    """A buffer has no more elements than the virtqueue has slots, its table included."""
    for size, chain in tables(driver.seen()):
        expect(chain.length <= size, f"{chain} to have {size} elements at most", chain.length)


@case("split.indirect.drv.not-with-next", party="driver", packed=False)
def nothing_after_a_table(driver: DriverContext) -> None:
    """A descriptor that is INDIRECT has no NEXT."""
    for _, chain in tables(driver.seen()):
        for descriptor in chain.descriptors:
            both = descriptor.indirect and descriptor.has_next
            expect(not both, "INDIRECT without NEXT", f"{chain}: {descriptor}")


@case("split.indirect.first-entry-zero", party="driver", packed=False)
def a_table_is_followed_from_entry_0(driver: DriverContext) -> None:
    """The chain in a table begins at entry 0, goes on by `next`, and ends in the table, with an
    entry that was written."""
    for _, chain in tables(driver.seen()):
        expect("table goes on" not in chain.fault, f"{chain} to end in its table", chain.fault)
        entry = chain.table[0] if chain.table else None
        written = entry is not None and any(entry[1:4])
        expect(written, f"{chain} to have an entry 0 in its table", entry)


@case(
    "split.indirect.drv.in-order-sequential",
    "split.indirect.in-order-indices",
    party="driver",
    packed=False,
    in_order=True,
)
def in_order_entries_follow_one_another(driver: DriverContext) -> None:
    """In order, entry 0 of a table goes on at entry 1, that at 2, and so on."""
    for _, chain in tables(driver.seen()):
        for entry in chain.table or ():
            if entry.has_next:
                expect(entry.next == entry.slot + 1, f"{chain}: entries in order", entry)


@case("packed.indirect.drv.only-write-flag", party="driver", packed=True)
def only_write_in_a_packed_table(driver: DriverContext) -> None:
    """WRITE is the only flag in an indirect table."""
    for _, chain in tables(driver.seen()):
        for entry in chain.table or ():
            expect(not entry.flags & ~WRITE, "no flag but WRITE in a table", f"{chain}: {entry}")


@case("packed.indirect.drv.not-in-next-list", "packed.list.no-mixing", party="driver", packed=True)
def a_packed_table_stands_alone(driver: DriverContext) -> None:
    """A descriptor that is INDIRECT is no part of a list."""
    for _, chain in tables(driver.seen()):
        count = len(chain.descriptors)
        alone = count == 1 and not chain.descriptors[0].has_next
        expect(alone, f"{chain}: INDIRECT in a descriptor of its own", f"a list of {count}")


@case("packed.indirect.contiguous", party="driver", packed=True)
def a_packed_table_is_all_entries(driver: DriverContext) -> None:
    """A table is a whole number of entries from its start on, at least one, each of which was
    written."""
    for _, chain in tables(driver.seen()):
        length = chain.table_bytes
        whole = length > 0 and length % DESCRIPTOR_BYTES == 0
        expect(whole, f"{chain}: a table of n times 16 bytes", length)
        for entry in chain.table or ():
            expect(any(entry[1:3]), f"{chain}: every entry of its table written", entry)
