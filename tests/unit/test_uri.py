"""URIs, sizes, and what connect and serve make of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from virtq import Device, Driver, connect, drivers, serve
from virtq.drivers.blk import BlkDriver
from virtq.drivers.net import NetDriver
from virtq.errors import FeatureError, TransportError, UriError
from virtq.features import F
from virtq.uri import Uri, parse_flag, parse_number, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("512", 512), ("64K", 65536), ("64KiB", 65536), ("1.5g", 3 << 29), ("2T", 2 << 40), ("7B", 7)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "12X", "-1", "0.3", "1e3", "1 2"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UriError, match="is not a size"):
        parse_size(text)


def test_flags_and_numbers() -> None:
    assert [parse_flag(t) for t in ("", "on", "YES", "1")] == [True] * 4
    assert [parse_flag(t) for t in ("off", "No", "0", "false")] == [False] * 4
    assert (parse_number("12"), parse_number("0x10")) == (12, 16)
    for wrong in ("maybe",):
        with pytest.raises(UriError):
            parse_flag(wrong)
    for wrong in ("-1", "x", ""):
        with pytest.raises(UriError):
            parse_number(wrong)


def test_the_parts() -> None:
    uri = Uri.parse("vhost-user:/run/a b.sock?queues=2&flag")
    assert (uri.scheme, uri.target) == ("vhost-user", "/run/a b.sock")
    assert uri.options == {"queues": "2", "flag": ""}
    assert uri.take("queues", parse_number, 1) == 2
    assert uri.take("missing", parse_number, 7) == 7
    with pytest.raises(UriError, match="no option is called flag; there are: missing, queues"):
        uri.done()


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("/run/x.sock", "did you mean vhost-user:/run/x.sock"),
        ("nothing", "has no scheme"),
        ("carrier-pigeon:x", "no transport is called carrier-pigeon"),
        ("loopback:toaster", "no device is called 'toaster'"),
        ("loopback:blk?size=much", "size: 'much' is not a size"),
        ("loopback:blk?colour=red", "no option is called colour"),
        ("loopback:blk?size=1M&size=2M", "option size is there twice"),
        ("loopback:blk?queues=0", "1 to 65535 request queues"),
        ("loopback:blk?path=/nonexistent/disk", "No such file"),
        ("loopback:net?port=spoon", "not 'spoon'"),
        ("loopback:net?mac=1:2:3", "is not a MAC address"),
        ("vhost-user:", "names no socket"),
        ("vhost-user:/run/x.sock?queues=many", "queues: 'many' is not a number"),
        ("vhost-user:/run/x.sock?timeout=0", "timeout: '0' is no number of seconds"),
        ("vhost-user:/run/x.sock?timeout=soon", "timeout: 'soon' is no number of seconds"),
    ],
)
def test_errors_are_one_line_with_the_uri(uri: str, said: str) -> None:
    with pytest.raises(UriError) as caught:
        connect(uri)
    text = str(caught.value)
    assert said in text
    assert "\n" not in text


def test_no_such_socket(tmp_path: Path) -> None:
    with pytest.raises(TransportError):
        connect(f"vhost-user:{tmp_path}/none.sock")


@pytest.mark.parametrize(
    ("uri", "said"),
    [("loopback:blk", "vhost-user:PATH only"), ("vhost-user:", "names no socket")],
)
def test_what_cannot_be_served(uri: str, said: str) -> None:
    with pytest.raises(UriError, match=said):
        serve(Device(), uri)


def test_connect_finds_the_driver() -> None:
    with connect("loopback:blk?size=1M") as driver:
        assert isinstance(driver, BlkDriver)
        assert driver.capacity == 1 << 20
    with connect("loopback:net?pairs=2", pairs=2) as net:
        assert isinstance(net, NetDriver)
        assert net.pairs == 2
    with connect("loopback:blk?size=1M", driver=Driver) as plain:
        assert type(plain) is Driver


def test_drivers_by_name_and_id() -> None:
    assert drivers.find("blk") is drivers.find(2) is BlkDriver
    assert drivers.find(None) is drivers.find(63) is Driver
    with pytest.raises(UriError, match="no driver is called 'toaster'"):
        drivers.find("toaster")


def test_want_and_offer_are_passed_on() -> None:
    with connect("loopback:blk?size=1M", want="IN_ORDER", offer="-RING_PACKED") as driver:
        assert driver.has(F.IN_ORDER)
        assert not driver.has(F.RING_PACKED)
    with pytest.raises(FeatureError, match="MQ"):
        connect("loopback:blk?size=1M", want="MQ")
    with connect("loopback:blk?size=1M&offer=-IN_ORDER") as driver:
        assert not driver.has(F.IN_ORDER)
