"""Bytes and meaning: every message both ways, and every size that is not right."""

from __future__ import annotations

import struct

import pytest

from tests.unit.vhost_user.samples import BACK, FRONT, NUMBERS, Sample
from virtq.transports.vhost_user import wire
from virtq.transports.vhost_user.messages import BACK_MESSAGES, FRONT_MESSAGES, Back, Front, Message
from virtq.transports.vhost_user.wire import (
    Config,
    Header,
    Layout,
    ProtocolError,
    Region,
    RegionTable,
)

MESSAGES = [*FRONT_MESSAGES.values(), *BACK_MESSAGES.values()]


def sample_of(message: Message) -> Sample:
    return FRONT[message.code] if isinstance(message.code, Front) else BACK[message.code]


def name_of(message: Message) -> str:
    return f"{type(message.code).__name__}.{message.name}"


def test_every_message_has_its_row_and_its_sample() -> None:
    for codes, table in ((Front, FRONT_MESSAGES), (Back, BACK_MESSAGES)):
        assert sorted(table) == list(NUMBERS[codes])
        assert {message.code for message in table.values()} == set(codes)
    assert set(FRONT) == set(Front)
    assert set(BACK) == set(Back)


@pytest.mark.parametrize("message", MESSAGES, ids=name_of)
def test_request_both_ways(message: Message) -> None:
    sample = sample_of(message)
    assert message.payload.build(message.name, sample.payload) == sample.body
    assert message.payload.parse(message.name, sample.body) == sample.payload
    message.check_fds(sample.payload, sample.fds)


@pytest.mark.parametrize("message", MESSAGES, ids=name_of)
def test_reply_both_ways(message: Message) -> None:
    sample = sample_of(message)
    if sample.reply_body is None:
        assert message.reply is None
        return
    assert message.reply is not None
    assert message.reply.build(message.name, sample.reply) == sample.reply_body
    assert message.reply.parse(message.name, sample.reply_body) == sample.reply
    message.check_reply_fds(sample.reply, sample.reply_fds)


@pytest.mark.parametrize("message", MESSAGES, ids=name_of)
def test_every_size_around_the_right_ones(message: Message) -> None:
    """Whatever the size, there is a value or an error that names message and field."""
    body, layout = sample_of(message).body, message.payload
    for size in range(700):
        data = body[:size].ljust(size, b"\0")
        if error := complaint(message, data):
            assert error.message == message.name
            assert error.field in ("size", "regions")
        else:
            assert layout.smallest <= size <= layout.largest


def complaint(message: Message, data: bytes) -> ProtocolError | None:
    try:
        message.payload.parse(message.name, data)
    except ProtocolError as error:
        return error
    return None


def test_header_is_three_words_in_machine_order() -> None:
    data = wire.pack_message(5, wire.NEED_REPLY, b"payload")
    assert data == struct.pack("=III", 5, 0x9, 7) + b"payload"
    assert wire.unpack_header(data) == Header(5, 0x9, 7)
    assert wire.unpack_header(data).need_reply
    assert not wire.unpack_header(data).is_reply


@pytest.mark.parametrize("flags", [0, 2, 3, 0x11, 0x80000001])
def test_version_and_reserved_flags(flags: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        Header(1, flags, 0).check_flags("X")
    assert caught.value.field in ("version", "flags")


def test_an_error_names_message_field_and_value() -> None:
    error = ProtocolError("SET_VRING_NUM", "num", 40000, "at most 256")
    assert str(error) == "SET_VRING_NUM: num = 40000: at most 256"
    assert (error.message, error.field, error.value) == ("SET_VRING_NUM", "num", 40000)


@pytest.mark.parametrize("count", [9, 255, 2**32 - 1])
def test_more_regions_than_a_table_holds(count: int) -> None:
    data = struct.pack("=II", count, 0) + bytes(256)
    with pytest.raises(ProtocolError) as caught:
        wire.REGIONS.parse("SET_MEM_TABLE", data)
    assert (caught.value.field, caught.value.value) == ("regions", count)


@pytest.mark.parametrize(("count", "rows"), [(1, 0), (0, 1), (2, 1), (7, 8)])
def test_a_region_count_that_is_not_the_number_of_rows(count: int, rows: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        wire.REGIONS.parse("SET_MEM_TABLE", struct.pack("=II", count, 0) + bytes(32 * rows))
    assert caught.value.field == "size"


def test_tables_of_0_and_8_regions() -> None:
    for count in (0, 8):
        table = RegionTable(tuple(Region(n, 1, n, 0) for n in range(count)))
        assert wire.REGIONS.parse("X", wire.REGIONS.build("X", table)) == table


def test_a_config_query_may_leave_out_the_bytes_it_asks_for() -> None:
    short = struct.pack("=III", 0, 60, 0)
    assert wire.CONFIG_QUERY.parse("GET_CONFIG", short) == Config(0, 60, 0, b"")
    with pytest.raises(ProtocolError):
        wire.CONFIG.parse("SET_CONFIG", short)


@pytest.mark.parametrize("layout", [wire.CONFIG, wire.CONFIG_QUERY])
@pytest.mark.parametrize("size", [0, 1, 5, 257, 2**32 - 1])
def test_a_config_size_that_is_not_that_of_its_bytes(layout: Layout, size: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        layout.parse("X", struct.pack("=III", 0, size, 0) + b"abc")
    assert (caught.value.field, caught.value.value) == ("size", size)


@pytest.mark.parametrize(("layout", "size"), [(wire.IOTLB, 26), (wire.INFLIGHT, 20)])
def test_padding_at_the_end_may_be_left_out(layout: Layout, size: int) -> None:
    data = bytes(range(1, size + 1))
    assert layout.parse("X", data) == layout.parse("X", data.ljust(layout.largest, b"\0"))


def test_a_reply_that_may_be_empty() -> None:
    layout = wire.or_empty(wire.NUMBER)
    assert layout.parse("X", b"") is None
    assert layout.build("X", None) == b""
    for size in range(1, 8):
        with pytest.raises(ProtocolError):
            layout.parse("X", bytes(size))


@pytest.mark.parametrize(
    ("layout", "payload"),
    [
        (wire.NUMBER, wire.U64(2**64)),
        (wire.NUMBER, wire.U64(-1)),
        (wire.NUMBER, None),
        (wire.VRING_STATE, wire.VringState(2**32, 0)),
        (wire.IOTLB, wire.Iotlb(0, 0, 0, 256, 1)),
        (wire.EMPTY, wire.U64(0)),
        (wire.CONFIG, wire.Config(0, 300, 0, bytes(300))),
        (wire.REGIONS, wire.RegionTable((wire.Region(0, 1, 0, 0),) * 9)),
    ],
)
def test_what_does_not_fit_is_not_built(layout: Layout, payload: wire.Payload | None) -> None:
    with pytest.raises(ProtocolError):
        layout.build("X", payload)
