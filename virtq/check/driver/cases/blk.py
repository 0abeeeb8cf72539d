"""What a driver asks of a disk (5.2.6)."""

from __future__ import annotations

from collections.abc import Iterator

from virtq.check.case import NotObservable, case, expect
from virtq.check.driver.cases.init import check_passed_on
from virtq.check.driver.context import DriverContext
from virtq.check.driver.record import Chain, Record
from virtq.check.driver.roles import RING_FEATURES, Disk
from virtq.features import F
from virtq.wire import blk
from virtq.wire.blk import BlkFeature, Header, Segment, Type

DATA_TYPES = (Type.IN, Type.OUT)
SEGMENT_TYPES = (Type.DISCARD, Type.WRITE_ZEROES, Type.SECURE_ERASE)


def requests(record: Record, *types: int) -> Iterator[tuple[Chain, Header, int]]:
    """Requests of these types (all without one): the buffer, its header, the bytes of its data.
    Raises NotObservable if there is none."""
    found = False
    for chain in record.chains():
        if chain.readable_bytes < blk.HEADER_BYTES or not chain.writable_bytes:
            continue
        header = Header.parse(chain.readable[: blk.HEADER_BYTES])
        if types and header.type not in types:
            continue
        found = True
        reads = header.type in (Type.IN, Type.GET_ID)
        extra = chain.writable_bytes - 1 if reads else chain.readable_bytes - blk.HEADER_BYTES
        yield chain, header, extra
    if not found:
        names = ", ".join(blk.type_name(kind) for kind in types)
        raise NotObservable(f"the driver made no request of type {names}")


def _segments(record: Record, kind: Type) -> Iterator[tuple[Chain, list[Segment]]]:
    for chain, _, length in requests(record, kind):
        data = chain.readable[blk.HEADER_BYTES : blk.HEADER_BYTES + length]
        whole = len(data) // blk.SEGMENT_BYTES * blk.SEGMENT_BYTES
        yield chain, Segment.parse_all(data[:whole])


@case("blk.req.layout", party="driver", device_id=2)
def requests_have_header_and_status(driver: DriverContext) -> None:
    """Each request begins with a header of 16 bytes for the device to read, and ends with a byte
    for it to write."""
    for chain in driver.seen().chains():
        expect(chain.readable_bytes >= 16, f"{chain}: a header of 16 bytes", chain.readable_bytes)
        expect(chain.writable_bytes >= 1, f"{chain}: a status byte", chain.writable_bytes)


@case("blk.op.drv.within-capacity", party="driver", device_id=2)
def nothing_beyond_the_capacity(driver: DriverContext) -> None:
    """No request reaches past the disk's capacity."""
    capacity = Disk.capacity_sectors
    record = driver.seen()
    for chain, header, length in requests(record, *DATA_TYPES):
        end = header.sector + length // blk.SECTOR_BYTES
        expect(end <= capacity, f"{chain} to end at sector {capacity} at most", end)


@case("blk.op.drv.data-512", party="driver", device_id=2)
def data_are_whole_sectors(driver: DriverContext) -> None:
    """The data of reads and writes are a multiple of 512 bytes."""
    for chain, _, length in requests(driver.seen(), *DATA_TYPES):
        expect(length % 512 == 0, f"{chain}: a multiple of 512 bytes", length)


@case("blk.op.drv.flush-sector-zero", party="driver", device_id=2)
def flushes_have_sector_0(driver: DriverContext) -> None:
    """A flush has sector 0."""
    for chain, header, _ in requests(driver.seen(), Type.FLUSH):
        expect(header.sector == 0, f"{chain}: sector 0", header.sector)


@case("blk.op.drv.flush-no-data", party="driver", device_id=2)
def flushes_have_no_data(driver: DriverContext) -> None:
    """SHOULD NOT: a flush has data."""
    for chain, _, length in requests(driver.seen(), Type.FLUSH):
        extra = length + chain.writable_bytes - 1
        expect(extra == 0, f"{chain}: no data", f"{extra} bytes")


@case("blk.op.drv.get-id-20", party="driver", device_id=2)
def names_have_20_bytes(driver: DriverContext) -> None:
    """The data of GET_ID are 20 bytes."""
    for chain, _, length in requests(driver.seen(), Type.GET_ID):
        expect(length == blk.ID_BYTES, f"{chain}: 20 bytes", length)


@case("blk.op.drv.segment-multiple", party="driver", device_id=2)
def segments_are_whole(driver: DriverContext) -> None:
    """The data of discard and write zeroes requests are whole segments of 16 bytes."""
    for chain, _, length in requests(driver.seen(), *SEGMENT_TYPES):
        whole = length and length % blk.SEGMENT_BYTES == 0
        expect(whole, f"{chain}: a multiple of 16 bytes", length)


@case("blk.op.drv.discard-max-seg", party="driver", device_id=2)
def no_more_discards_than_allowed(driver: DriverContext) -> None:
    """A discard has no more segments than max_discard_seg."""
    for chain, segments in _segments(driver.seen(), Type.DISCARD):
        most = Disk.segments_to_discard
        expect(len(segments) <= most, f"{chain}: {most} segments at most", len(segments))


@case("blk.op.drv.zeroes-max-seg", party="driver", device_id=2)
def no_more_zeroes_than_allowed(driver: DriverContext) -> None:
    """A write zeroes has no more segments than max_write_zeroes_seg."""
    for chain, segments in _segments(driver.seen(), Type.WRITE_ZEROES):
        most = Disk.segments_to_zero
        expect(len(segments) <= most, f"{chain}: {most} segments at most", len(segments))


@case("blk.op.drv.discard-unmap-zero", party="driver", device_id=2)
def discards_do_not_unmap(driver: DriverContext) -> None:
    """The unmap flag is 0 in a discard."""
    for chain, segments in _segments(driver.seen(), Type.DISCARD):
        for segment in segments:
            expect(not segment.flags & 1, f"{chain}: unmap 0", segment)


@case("blk.op.drv.accept-ro", party="driver", device_id=2, rings=False, alone=True)
def read_only_is_accepted(driver: DriverContext) -> None:
    """SHOULD: RO is accepted where it is offered."""
    peer = driver.fresh(driver.offer.with_(features=driver.offer.features | BlkFeature.RO))
    peer.until(lambda: peer.features is not None, driver.wait_s, "the driver's features")
    features = peer.features or 0
    if not features & BlkFeature.RO:
        check_passed_on(driver.after_a_while(peer))
    expect(features & BlkFeature.RO, "RO to be accepted", hex(features))


def _within_seg_max(driver: DriverContext) -> None:
    most = 2
    role = Disk()
    role.segments_max = most
    peer = driver.fresh(role=role)
    live = driver.going(peer)
    if not (peer.features or 0) & BlkFeature.SEG_MAX:
        raise NotObservable("SEG_MAX was not accepted")
    live.serve(64)
    for chain, _, _ in requests(peer.record, *DATA_TYPES):
        count = chain.length - 2
        expect(count <= most, f"{chain}: {most} segments of data at most", count)


@case(
    "packed.list.drv.device-limit", party="driver", device_id=2, packed=True, alone=True, offers=0
)
def lists_within_seg_max(driver: DriverContext) -> None:
    """A list of descriptors has no more segments of data than the device takes (seg_max)."""
    _within_seg_max(driver)


@case("packed.indirect.drv.device-limit", party="driver", device_id=2, packed=True, alone=True)
def tables_within_seg_max(driver: DriverContext) -> None:
    """A buffer with an indirect table has no more segments of data than the device takes
    (seg_max)."""
    _within_seg_max(driver)


@case(
    "blk.op.drv.recheck-capacity",
    party="driver",
    device_id=2,
    packed=False,
    in_order=False,
    alone=True,
    offers=RING_FEATURES,
)
def the_capacity_is_read_again(driver: DriverContext) -> None:
    """SHOULD: after a configuration change notification the driver reads the capacity again."""
    live = driver.live(needs=int(F.VERSION_1))
    peer = live.peer
    before = len(peer.record.messages("GET_CONFIG"))
    if not peer.tell_config_change():
        raise NotObservable("the front-end takes no configuration change notifications")
    for _ in peer.turns(driver.patience_s):
        if live.ring.held:
            live.use(list(live.ring.held))
            live.ring.enable_kicks()
        if len(peer.record.messages("GET_CONFIG")) > before:
            return
    expect(False, "the configuration space to be read again", "it was not")
