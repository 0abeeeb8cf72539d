"""`virtq features`: between bits and names."""

from __future__ import annotations

import pytest

from tests.unit.cli.support import loaded, printed


def test_features_lists_what_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    listed = loaded(capsys, "features")
    assert {"bit": 35, "name": "IN_ORDER", "type": None} in listed
    assert {"bit": 5, "name": "RO", "type": "blk"} in listed
    assert {"bit": 5, "name": "MAC", "type": "net"} in listed
    of_blk = loaded(capsys, "features", "--type", "blk")
    assert {row["type"] for row in of_blk} == {None, "blk"}
    assert "IN_ORDER" in printed(capsys, "features")


@pytest.mark.parametrize(
    "words",
    [
        ["IN_ORDER,RING_PACKED"],
        ["in-order", "VIRTIO_F_RING_PACKED"],
        ["35", "34"],
        ["0xc00000000"],
        ["51539607552"],
        [34 * "0" + "11" + 28 * "0"],
        ["+IN_ORDER,+bit34"],
    ],
)
def test_features_reads_any_way_of_writing(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    answer = loaded(capsys, "features", *words)
    assert answer["hex"] == "0xc00000000"
    assert answer["sysfs"] == 34 * "0" + "11" + 28 * "0"
    assert [bit["names"] for bit in answer["bits"]] == [
        {"every": "RING_PACKED"},
        {"every": "IN_ORDER"},
    ]
    text = printed(capsys, "features", *words)
    assert "0xc00000000" in text
    assert "RING_PACKED" in text


def test_features_knows_device_types(capsys: pytest.CaptureFixture[str]) -> None:
    both = loaded(capsys, "features", "0x20")
    assert both["bits"][0]["names"] == {"net": "MAC", "blk": "RO"}
    assert loaded(capsys, "features", "FLUSH")["hex"] == "0x200"
    one = loaded(capsys, "features", "0x400820", "--type", "net")
    assert one["bits"][0]["names"] == {"net": "MAC"}
    assert one["unmet"] == {"HOST_TSO4": "CSUM", "MQ": "CTRL_VQ"}
    assert "needs CTRL_VQ" in printed(capsys, "features", "0x400800", "--type", "net")
    wide = loaded(capsys, "features", "69", "--type", "net")
    assert wide["bits"] == [{"bit": 69, "names": {"net": "OUT_NET_HEADER"}}]
    assert len(wide["sysfs"]) == 128
