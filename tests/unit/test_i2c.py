"""The I2C adapter and its twin: transactions, targets, what fails and how."""

from __future__ import annotations

import asyncio
import gc
import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.twins_support import PLACES, UNTOUCHED, send_raw, twins
from virtq.devices.i2c import Eeprom, I2cAdapter, I2cTarget, Nak, Registers
from virtq.drivers.i2c import I2cDriver, I2cError, Message
from virtq.errors import FeatureError, StatusError
from virtq.features import Change, RingKind
from virtq.transports.loopback import LoopbackTransport
from virtq.wire.i2c import Flags, Header, I2cFeature, decode_address, encode_address

OK, ERR = 0, 1


def adapter() -> I2cAdapter:
    return I2cAdapter({0x50: Eeprom(bytes(range(256))), 0x48: Registers(), 0x150: Registers(b"ab")})


# Both twins


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_transactions(kind: RingKind, place: str, tmp_path: Path) -> None:
    device = adapter()
    with twins(device, I2cDriver, kind, place, tmp_path) as bus:
        assert bus.kind is kind
        bus.write(0x50, b"\x10hello")
        assert bus.write_read(0x50, b"\x0f", 7) == b"\x0fhello\x15"
        assert bus.transfer(0x48, [b"\x05abc", b"\x06", 1, b"", 0, 1]) == [b"b", b"", b"c"]
        assert bus.read(0x150, 3) == b"aba"
        assert bus.scan() == [0x48, 0x50]
        assert bus.is_there(0x150)
        assert not bus.is_there(0x151)
    assert device.stats()["requestq"]["handler_errors"] == 0


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_more_transactions_than_the_queue_holds(kind: RingKind) -> None:
    device = adapter()
    with twins(device, I2cDriver, kind) as bus:
        wanted: list[tuple[int, list[Message]]] = [
            (0x48, [bytes([n, n + 1]), bytes([n]), 1]) for n in range(200)
        ]
        assert bus.transfer_many(wanted) == [[bytes([n + 1])] for n in range(200)]
    assert device.stats()["requestq"]["buffers"] == 600


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_what_follows_a_failed_message_is_not_tried(kind: RingKind) -> None:
    with twins(adapter(), I2cDriver, kind) as bus:
        bus.write(0x150, b"\x01")  # its pointer
        with pytest.raises(I2cError, match="0x150, message 1: a write of 2 bytes: status 1") as e:
            bus.transfer(0x150, [1, b"\x02z", b"\x00", 2])
        assert (e.value.address, e.value.position, e.value.status) == (0x150, 1, ERR)
        # Neither the pointer was set nor was it read past: after b there is a again.
        assert bus.read(0x150, 1) == b"a"
        with pytest.raises(I2cError, match="message 0: a read of 4 bytes"):
            bus.transfer_many([(0x33, [4, b"x"]), (0x48, [b"\x00after"])])
        assert bus.write_read(0x48, b"\x00", 5) == b"after"


class Slow(I2cTarget):
    """Takes its time, the more the earlier it is asked; remembers in which order it was."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.left = 5

    async def write(self, data: bytes) -> None:
        self.log.append(f"write {data.decode()}")
        self.left -= 1
        await asyncio.sleep(0.002 * self.left)
        self.log.append(f"written {data.decode()}")
        if data == b"no":
            raise Nak

    async def read(self, length: int) -> bytes:
        self.log.append("read")
        await asyncio.sleep(0)
        return b"." * length

    async def stop(self) -> None:
        self.log.append("stop")


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_slow_targets_are_asked_one_request_after_the_other(kind: RingKind) -> None:
    target = Slow()
    with twins(I2cAdapter({1: target}), I2cDriver, kind) as bus:
        result = bus.transfer_many([(1, [b"a", 2, b"b"]), (1, [b"c"]), (1, [3])])
        assert result == [[b".."], [], [b"..."]]
        with pytest.raises(I2cError):
            bus.transfer(1, [b"no", 1])
    assert target.log == [
        *("write a", "written a", "read", "write b", "written b", "stop"),
        *("write c", "written c", "stop", "read", "stop", "write no", "written no", "stop"),
    ]


class Broken(I2cTarget):
    """Fails in ways that a target should not."""

    def write(self, data: bytes) -> None:
        raise RuntimeError("burnt")

    def read(self, length: int) -> bytes:
        return b"too long"

    def stop(self) -> None:
        raise RuntimeError("burnt out")


def test_a_target_that_breaks_costs_its_transaction_only(caplog: pytest.LogCaptureFixture) -> None:
    device = I2cAdapter({1: Broken(), 2: Registers(b"fine")})
    with caplog.at_level(logging.ERROR), twins(device, I2cDriver) as bus:
        with pytest.raises(I2cError, match="message 0: a write of 1 bytes: status 1"):
            bus.transfer(1, [b"x", b"y", 1])
        with pytest.raises(I2cError, match="message 0: a read of 1 bytes: status 1"):
            bus.read(1, 1)
        assert bus.read(2, 4) == b"fine"
    assert device.stats()["requestq"]["handler_errors"] == 2
    assert "burnt" in caplog.text
    assert "read 8 bytes instead of 1" in caplog.text
    assert "at the end of a transaction" in caplog.text


def test_targets_come_and_go() -> None:
    device = I2cAdapter()
    with twins(device, I2cDriver) as bus:
        assert bus.scan() == []
        target = Registers(b"x")
        device.attach(0x20, target)
        assert bus.scan() == [0x20]
        assert device.detach(0x20) is target
        assert bus.scan() == []
    with pytest.raises(ValueError, match="0 to 0x3ff, not 0x400"):
        device.attach(0x400, target)


@pytest.mark.parametrize(
    ("address", "messages", "text"),
    [
        (0x400, [b""], "address is 0 to 0x3ff"),
        (-1, [b""], "address is 0 to 0x3ff"),
        (1, [], "at least one message"),
        (1, [65536], "0 to 65535 bytes, not 65536"),
        (1, [-1], "0 to 65535 bytes, not -1"),
    ],
)
def test_the_driver_refuses_what_is_no_transaction(
    address: int, messages: list[bytes | int], text: str
) -> None:
    with twins(adapter(), I2cDriver) as bus:
        with pytest.raises(ValueError, match=text):
            bus.transfer(address, messages)
        assert bus.queues["requestq"].outstanding == 0


# Negotiation


def test_neither_twin_does_without_zero_length_requests() -> None:
    with pytest.raises(FeatureError, match="has to offer ZERO_LENGTH_REQUEST"):
        I2cDriver(LoopbackTransport(I2cAdapter(offer="-ZERO_LENGTH_REQUEST")))

    class Careless(I2cDriver):
        def choose(self, acceptable: int) -> int:
            return acceptable & ~I2cFeature.ZERO_LENGTH_REQUEST

    with pytest.raises(StatusError):
        Careless(LoopbackTransport(adapter()))


def test_a_device_without_its_feature_is_not_driven() -> None:
    with pytest.raises(FeatureError):
        I2cDriver(LoopbackTransport(adapter()), offer=Change(remove=int(I2cFeature(1))))


# Drivers that do as they like


def header(address: int, flags: int = 0, *, padding: int = 0) -> bytes:
    return Header(encode_address(address), flags, padding).pack()


@pytest.mark.parametrize(
    ("readable", "writable", "used"),
    [
        (b"", 1, 1),  # no header at all
        (header(0x48)[:7], 1, 1),
        (header(0x48)[:7], 5, 0),
        (header(0x48), 3, 0),  # a write with room to be written to
        (header(0x48, Flags.M_RD) + b"x", 1, 1),  # a read with something to write
        (header(0x48, Flags.M_RD) + b"x", 3, 0),
        (header(0x48, 4), 1, 1),  # a flag that does not exist
        (header(0x48, 1 << 31), 1, 1),
        (b"\x91\0\0\0\0\0\0\0", 1, 1),  # addresses of no known form
        (b"\x90\1\0\0\0\0\0\0", 1, 1),
        (header(0x49), 1, 1),  # nobody is there
        (header(0x48, Flags.M_RD), 65537, 0),  # more than a message has
    ],
)
@pytest.mark.parametrize("kind", [RingKind.SPLIT, RingKind.PACKED_IN_ORDER], ids=str)
def test_senseless_requests_fail_alone(
    kind: RingKind, readable: bytes, writable: int, used: int
) -> None:
    device = adapter()
    with twins(device, I2cDriver, kind) as bus:
        written, room = send_raw(bus, "requestq", readable, writable)
        assert (written, room[-1]) == (used, ERR)
        assert set(room[:-1]) <= {UNTOUCHED}
        assert bus.write_read(0x50, b"\x03", 2) == b"\3\4"
    assert device.stats()["requestq"]["handler_errors"] == 0


def test_a_request_without_room_for_a_status_fails_what_is_tied_to_it() -> None:
    device = adapter()
    with twins(device, I2cDriver) as bus:
        assert send_raw(bus, "requestq", header(0x48, Flags.FAIL_NEXT) + b"\0ab", 0) == (0, b"")
        assert send_raw(bus, "requestq", header(0x48) + b"\0cd", 1) == (1, bytes([ERR]))
        assert bus.write_read(0x48, b"\0", 2) == b"\0\0"  # neither was carried out
        # Without the flag the next one stands for itself.
        assert send_raw(bus, "requestq", header(0x48) + b"\0ab", 0) == (0, b"")
        assert send_raw(bus, "requestq", header(0x48) + b"\0cd", 1) == (1, bytes([OK]))


def test_a_transaction_does_not_outlive_its_driver() -> None:
    device = adapter()
    with twins(device, I2cDriver) as bus:
        assert send_raw(bus, "requestq", header(0x49, Flags.FAIL_NEXT), 1) == (1, bytes([ERR]))
        bus.reset()
        assert bus.is_there(0x48)


def test_a_request_that_is_under_way_when_its_driver_leaves_is_forgotten(
    recwarn: pytest.WarningsRecorder,
) -> None:
    for _ in range(20):
        with twins(adapter(), I2cDriver) as bus:
            bus.queues["requestq"].add(header(0x48), 1)
            bus.queues["requestq"].kick()
    gc.collect()
    assert [str(warning.message) for warning in recwarn] == []


# Targets


def test_an_eeprom_of_two_address_bytes(tmp_path: Path) -> None:
    path = tmp_path / "eeprom"
    path.write_bytes(bytes(4096))
    eeprom = Eeprom(path, page_bytes=16)
    eeprom.write(b"\x01\x0cABCDEFGH")  # wraps within its page
    assert path.read_bytes()[0x100:0x110] == b"EFGH" + bytes(8) + b"ABCD"
    eeprom.write(b"\x0f\xff")
    assert eeprom.read(2) == b"\0\0"  # from the last byte on to the first
    with pytest.raises(Nak, match="1 bytes of an address of 2"):
        eeprom.write(b"\x01")
    eeprom.close()
    eeprom.close()
    protected = Eeprom(path, read_only=True)
    with pytest.raises(Nak, match="write protected"):
        protected.write(b"\0\0x")
    protected.write(b"\x01\x00")
    assert protected.read(4) == b"EFGH"
    assert protected.content == path.read_bytes()


@pytest.mark.parametrize("size", [0, (1 << 16) + 1])
def test_an_eeprom_has_a_size(size: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 to 65536 bytes"):
        Eeprom(bytes(size))
    path = tmp_path / "eeprom"
    path.write_bytes(bytes(size))
    with pytest.raises(ValueError, match="1 to 65536 bytes"):
        Eeprom(path)
    with pytest.raises(ValueError, match="power of two, not 3"):
        Eeprom(b"x", page_bytes=3)
    with pytest.raises(ValueError, match="1 to 256 registers"):
        Registers(b"")


@given(
    size=st.integers(1, 600),
    page=st.sampled_from([1, 8, 32]),
    writes=st.lists(st.tuples(st.integers(0, 700), st.binary(max_size=40)), max_size=8),
)
@settings(deadline=None, max_examples=60)
def test_an_eeprom_holds_what_was_written_to_each_page(
    size: int, page: int, writes: list[tuple[int, bytes]]
) -> None:
    eeprom, wanted = Eeprom(bytes(size), page_bytes=page), bytearray(size)
    for address, data in writes:
        address %= 1 << 8 * eeprom.address_bytes
        eeprom.write(address.to_bytes(eeprom.address_bytes) + data)
        start = address % size
        first = start - start % eeprom.page_bytes
        length = min(eeprom.page_bytes, size - first)
        for at, value in enumerate(data):
            wanted[first + (start - first + at) % length] = value
    assert eeprom.content == wanted


# Addresses


@pytest.mark.parametrize("address", [0, 0x48, 0x77, 0x80, 0xFF, 0x100, 0x2A5, 0x3FF])
def test_addresses_survive_the_wire(address: int) -> None:
    assert decode_address(encode_address(address)) == address


def test_the_example_of_a_ten_bit_address() -> None:
    # A9 to A0 are 10 1010 0101: the high byte is A7 to A0, the low one 11110, A9, A8, 0.
    assert encode_address(0b10_1010_0101) == 0b1010_0101_1111_0100
    assert decode_address(0b0101_0101_1111_0000) is None  # 0x55 in the form of 10 bits
    assert decode_address(0x0091) is None
