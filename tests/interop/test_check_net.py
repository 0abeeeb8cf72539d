"""`virtq check` on QEMU's network device: frames go over a wire that is made for it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.interop.peers.availability import program
from virtq.check.run import OUR_FAULT
from virtq.cli import run

pytestmark = pytest.mark.interop

NUMBER_IS_NOT_WRITTEN = "net_receive.one_buffer"
MTU_IS_NOT_LOOKED_AT = "net_receive.a_frame_above_the_mtu"


def test_qemu(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/findings.md: without MRG_RXBUF num_buffers is left as it was, and frames above the MTU
    are passed on; everything else about receiving and transmitting holds in every kind of ring."""
    program("qemu")
    uri = "qtest:virtio-net-pci,packed=on,in_order=on,host_mtu=1500"
    only = [word for area in ("net_receive", "net_transmit") for word in ("--only", area)]
    assert run(["check", uri, "--json", *only]) == 1
    shown: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert shown["subject"] == uri
    results = shown["results"]
    assert not [result for result in results if OUR_FAULT in result["reason"]]
    bad = {r["case"] for r in results if r["verdict"] in ("fail", "hung", "crashed")}
    assert bad == {NUMBER_IS_NOT_WRITTEN, MTU_IS_NOT_LOOKED_AT}
    came = {r["came"] for r in results if r["case"] == NUMBER_IS_NOT_WRITTEN}
    assert came == {str(0xA5A5)}, "the bytes that were there before"
    spread = [r for r in results if r["case"] == "net_receive.all_used_together"]
    assert [r["verdict"] for r in spread] == ["pass"] * 4
