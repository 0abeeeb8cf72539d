"""Feature sets: names, parsing, prerequisites, ring kinds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtq.errors import FeatureError
from virtq.features import (
    Change,
    F,
    RingKind,
    bits,
    closed,
    describe,
    known,
    name,
    names,
    parse,
    parse_name,
    unmet,
)
from virtq.wire.blk import BlkFeature
from virtq.wire.net import NetFeature

NET, BLK = 1, 2


def test_names_are_in_bit_order_and_depend_on_the_device_type() -> None:
    features = F.IN_ORDER | F.VERSION_1 | 1 << 12
    assert names(features, BLK) == ["MQ", "VERSION_1", "IN_ORDER"]
    assert names(features, NET) == ["HOST_TSO6", "VERSION_1", "IN_ORDER"]
    assert names(features) == ["bit 12", "VERSION_1", "IN_ORDER"]
    assert describe(0) == "none"


@pytest.mark.parametrize(
    "text", ["IN_ORDER", "in-order", " In_Order ", "VIRTIO_F_IN_ORDER", "bit 35", "35", "BIT_35"]
)
def test_one_bit_has_many_spellings(text: str) -> None:
    assert parse_name(text) == F.IN_ORDER


def test_device_names_are_found_with_their_prefix() -> None:
    assert parse_name("VIRTIO_BLK_F_MQ", BLK) == BlkFeature.MQ
    assert parse_name("VIRTIO_NET_F_MQ", NET) == NetFeature.MQ
    assert parse("MQ,IN_ORDER", NET) == NetFeature.MQ | F.IN_ORDER


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("IN_ORDR", "did you mean IN_ORDER?"),
        ("128", "bits are 0 to 127"),
        ("MQ", "no feature is called 'MQ'"),
    ],
)
def test_unknown_names_say_so(text: str, said: str) -> None:
    with pytest.raises(FeatureError, match=said.replace("?", r"\?")):
        parse_name(text)


def test_a_change_is_relative() -> None:
    change = Change.parse("+IN_ORDER, -EVENT_IDX")
    assert change == Change(F.IN_ORDER, F.EVENT_IDX)
    assert change.apply(F.EVENT_IDX | F.VERSION_1) == F.IN_ORDER | F.VERSION_1
    assert Change.of(None) == Change.of("") == Change()
    assert Change.of(change) is change


@pytest.mark.parametrize("text", ["IN_ORDER", "+IN_ORDER,-IN_ORDER", "+NO_SUCH"])
def test_changes_that_make_no_sense(text: str) -> None:
    with pytest.raises(FeatureError):
        Change.parse(text)


@given(st.integers(0, 2**128 - 1))
def test_a_set_is_the_sum_of_its_named_bits(features: int) -> None:
    assert sum(bits(features)) == features
    for device_id in (None, NET, BLK):
        assert sum(parse_name(text, device_id) for text in names(features, device_id)) == features


def test_prerequisites_any_of_and_all_of() -> None:
    n = NetFeature
    assert unmet(n.GUEST_TSO4, NET) == {n.GUEST_TSO4: n.GUEST_CSUM}
    assert not unmet(n.GUEST_ECN | n.GUEST_TSO6 | n.GUEST_CSUM, NET)
    assert unmet(n.RSS_CONTEXT | n.CTRL_VQ, NET) == {n.RSS_CONTEXT: n.RSS}
    assert unmet(BlkFeature.CONFIG_WCE, BLK) == {BlkFeature.CONFIG_WCE: BlkFeature.FLUSH}
    assert not unmet(n.GUEST_TSO4, None)


def test_what_lost_its_prerequisite_goes_to_any_depth() -> None:
    n = NetFeature
    offload = n.GUEST_ECN | n.GUEST_TSO4 | n.GUEST_CSUM
    assert closed(offload, NET) == offload
    assert closed(offload & ~n.GUEST_CSUM, NET) == 0


@given(st.integers(0, 2**71 - 1))
def test_a_closed_set_lacks_nothing(features: int) -> None:
    for device_id in (NET, BLK):
        result = closed(features, device_id)
        assert not unmet(result, device_id)
        assert result & features == result


@pytest.mark.parametrize("kind", RingKind)
def test_ring_kinds(kind: RingKind) -> None:
    assert RingKind.of(kind.features | F.VERSION_1) is kind
    assert RingKind.of(kind.change.apply(F.RING_PACKED | F.IN_ORDER)) is kind
    assert RingKind.of(kind.change.apply(0)) is kind
    assert RingKind.parse(str(kind)) is kind
    assert kind.packed == ("packed" in kind.title)
    assert kind.in_order == ("in order" in kind.title)


def test_no_such_ring() -> None:
    with pytest.raises(FeatureError, match="split, split-in-order, packed, packed-in-order"):
        RingKind.parse("round")


def test_every_known_name_is_its_own_bit() -> None:
    for device_id in (None, NET, BLK):
        table = known(device_id)
        assert len(set(table.values())) == len(table)
        assert all(name(bit, device_id) == text for text, bit in table.items())


def test_a_complement_drops_nothing_else() -> None:
    every = (1 << 128) - 1
    for bit in (F.IN_ORDER, BlkFeature.MQ, NetFeature.MQ):
        assert every & ~bit == every - bit
