"""Statistics of the network device (5.1.6.5.10)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from virtq.check.case import NotObservable, case, expect
from virtq.check.context import Context
from virtq.check.net.nic import Nic
from virtq.check.session import UNTOUCHED
from virtq.wire.net import DEVICE_ID, Ack
from virtq.wire.net import NetFeature as N

_CLASS, _QUERY, _GET = 8, 0, 1
_RX_BASIC, _RX_CSUM, _RX_GSO, _RX_SPEED = range(4)
_TX_BASIC, _TX_CSUM, _TX_GSO, _TX_SPEED = range(16, 20)
_CVQ = 32
_UNKNOWN = 60
"""A type that there is none of."""
_HEADER_BYTES = 8
"""Of each entry, before its counters."""
_NUMBERS = {
    _CVQ: 2,
    _RX_BASIC: 6,
    _RX_CSUM: 4,
    _RX_GSO: 4,
    _RX_SPEED: 2,
    _TX_BASIC: 6,
    _TX_CSUM: 2,
    _TX_GSO: 6,
    _TX_SPEED: 2,
}
"""How many counters of 8 bytes each type has."""
_RECEIVE, _TRANSMIT = 0, 1
_ROOM_BYTES = 512


def _nic(ctx: Context) -> Nic:
    return Nic(ctx, int(N.CTRL_VQ | N.DEVICE_STATS), wire=False)


def _supported(nic: Nic) -> set[int]:
    """The types that the device says it has."""
    result = nic.order(_CLASS, _QUERY, b"", 8)
    bits = int.from_bytes(result, "little")
    return {kind for kind in range(64) if bits >> kind & 1}


def _wanted(*items: tuple[int, int]) -> bytes:
    """The data of GET: for each a virtqueue and a type."""
    return b"".join(struct.pack("<H6xQ", index, 1 << kind) for index, kind in items)


def _queue_of(nic: Nic, kind: int) -> int:
    return nic.control_index if kind == _CVQ else _RECEIVE if kind < 16 else _TRANSMIT


def _basic(nic: Nic) -> list[int]:
    """The types that need no further feature, of those that there are."""
    kinds = [kind for kind in (_RX_BASIC, _TX_BASIC, _CVQ) if kind in _supported(nic)]
    if not kinds:
        raise NotObservable("no statistics are supported")
    return kinds


def _replies(nic: Nic, kinds: Sequence[int]) -> list[tuple[int, int, int]]:
    """Of the answer for these types: type, vq_index and size of each entry."""
    items = [(_queue_of(nic, kind), kind) for kind in kinds]
    result = nic.order(_CLASS, _GET, _wanted(*items), _ROOM_BYTES)
    found, at = [], 0
    for _ in kinds:
        kind, _, index, _, size = struct.unpack_from("<BBHHH", result, at)
        found.append((kind, index, size))
        if size < _HEADER_BYTES or at + size + _HEADER_BYTES > len(result):
            break
        at += size
    return found


@case("net.ctrl.stats.dev.query-reply", device_id=DEVICE_ID, needs=N.DEVICE_STATS, rings=False)
def which_statistics(ctx: Context) -> None:
    """STATS_QUERY is answered with the types that there are, and each of them can be had."""
    nic = _nic(ctx)
    result = nic.order(_CLASS, _QUERY, b"", 8)
    expect(result != bytes([UNTOUCHED]) * 8, "eight bytes of types", "nothing was written")
    kinds = _supported(nic)
    expect({_RX_BASIC, _TX_BASIC} <= kinds, "the basic types, 0 and 16", sorted(kinds))
    for kind in (_RX_BASIC, _TX_BASIC):
        nic.order(_CLASS, _GET, _wanted((_queue_of(nic, kind), kind)), _ROOM_BYTES)


@case("net.ctrl.stats.dev.err-on-bad", device_id=DEVICE_ID, needs=N.DEVICE_STATS, rings=False)
def statistics_that_are_none(ctx: Context) -> None:
    """A virtqueue that does not exist, a type that does not exist, one that is not for the
    virtqueue, and one whose feature was not negotiated are answered with an error."""
    nic = _nic(ctx)
    _basic(nic)
    wrong = {
        "a virtqueue out of range": (0xFFF0, _RX_BASIC),
        "a type that is unknown": (_RECEIVE, _UNKNOWN),
        "a type of the other direction": (_RECEIVE, _TX_BASIC),
        "a type of the control queue": (_TRANSMIT, _CVQ),
        "checksums without GUEST_CSUM": (_RECEIVE, _RX_CSUM),
    }
    for what, item in wrong.items():
        ack, _ = nic.command(_CLASS, _GET, _wanted(item), _ROOM_BYTES)
        expect(ack == Ack.ERR, f"ERR (1) for {what}", ack)


@case("net.ctrl.stats.dev.fail-whole", device_id=DEVICE_ID, needs=N.DEVICE_STATS, rings=False)
def one_of_many_is_wrong(ctx: Context) -> None:
    """One request that is wrong fails the whole command."""
    nic = _nic(ctx)
    right = [(_queue_of(nic, kind), kind) for kind in _basic(nic)]
    for at in range(len(right) + 1):
        items = [*right[:at], (_RECEIVE, _UNKNOWN), *right[at:]]
        ack, _ = nic.command(_CLASS, _GET, _wanted(*items), _ROOM_BYTES)
        expect(ack == Ack.ERR, f"ERR (1), as request {at} is wrong", ack)


@case("net.ctrl.stats.dev.reply-size", device_id=DEVICE_ID, needs=N.DEVICE_STATS, rings=False)
def the_size_of_each(ctx: Context) -> None:
    """size of each entry is that of the entry with its header."""
    nic = _nic(ctx)
    kinds = _basic(nic)
    sizes = [size for _, _, size in _replies(nic, kinds)]
    right = [_HEADER_BYTES + 8 * _NUMBERS[kind] for kind in kinds]
    expect(sizes == right, f"entries of {right} bytes", sizes)


@case("net.ctrl.stats.dev.reply-type", device_id=DEVICE_ID, needs=N.DEVICE_STATS, rings=False)
def the_type_of_each(ctx: Context) -> None:
    """Each entry tells its type and its virtqueue."""
    nic = _nic(ctx)
    for kind in _basic(nic):
        found = [(kind, index) for kind, index, _ in _replies(nic, [kind])]
        right = [(kind, _queue_of(nic, kind))]
        expect(found == right, f"type and virtqueue {right}", found)


@case("net.ctrl.stats.dev.within-buffer", device_id=DEVICE_ID, needs=N.DEVICE_STATS, rings=False)
def no_more_than_there_is(ctx: Context) -> None:
    """A result with more room than the entries take is not written beyond them."""
    nic = _nic(ctx)
    for kind in _basic(nic):
        data = _wanted((_queue_of(nic, kind), kind))
        result = nic.order(_CLASS, _GET, data, _ROOM_BYTES)
        beyond = result[_HEADER_BYTES + 8 * _NUMBERS[kind] :]
        untouched = beyond == bytes([UNTOUCHED]) * len(beyond)
        expect(untouched, "what lies beyond the entry untouched", beyond[:64].hex())
