"""`virtq check` on QEMU's network device: frames go over a wire that is made for it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import virtq
from tests.interop.peers.availability import program
from virtq.check.case import OUR_FAULT
from virtq.cli import run
from virtq.drivers.net import NetDriver

pytestmark = pytest.mark.interop

NUMBER_IS_NOT_WRITTEN = "net_receive.one_buffer"
MTU_IS_NOT_LOOKED_AT = "net_receive.a_frame_above_the_mtu"


def bad_and_good(
    capsys: pytest.CaptureFixture[str], code: int, *words: str
) -> tuple[set[str], set[str], list[dict[str, Any]]]:
    """The cases that did not hold in some kind of ring, those that passed in some, and all."""
    assert run(["check", *words, "--json", "--patience", "20"]) == code
    results = json.loads(capsys.readouterr().out)["results"]
    assert not [result for result in results if OUR_FAULT in result["reason"]]
    bad = {r["case"] for r in results if r["verdict"] in ("fail", "hung", "crashed")}
    return bad, {r["case"] for r in results if r["verdict"] == "pass"}, results


def test_qemu(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/findings.md: without MRG_RXBUF num_buffers is left as it was, and frames above the MTU
    are passed on; everything else about receiving and transmitting holds in every kind of ring."""
    program("qemu")
    uri = "qtest:virtio-net-pci,packed=on,in_order=on,host_mtu=1500"
    only = [word for area in ("net_receive", "net_transmit") for word in ("--only", area)]
    bad, _, results = bad_and_good(capsys, 1, uri, *only)
    assert bad == {NUMBER_IS_NOT_WRITTEN, MTU_IS_NOT_LOOKED_AT}
    came = {r["came"] for r in results if r["case"] == NUMBER_IS_NOT_WRITTEN}
    assert came == {str(0xA5A5)}, "the bytes that were there before"
    spread = [r for r in results if r["case"] == "net_receive.all_used_together"]
    assert [r["verdict"] for r in spread] == ["pass"] * 4


def test_a_wire_between_qemu_and_us(tmp_path: Path) -> None:
    """QEMU's `-netdev stream` and our stream port are the two ends of one wire."""
    program("qemu")
    path = tmp_path / "wire.sock"
    netdev = f"stream,id=n0,server=off,addr.type=unix,addr.path={path}"
    frames = [b"\xff" * 6 + bytes(range(6)) + b"\x88\xb5" + os.urandom(60 + i) for i in range(50)]
    with (
        virtq.connect(f"loopback:net?port=stream&path={path}", driver=NetDriver) as ours,
        virtq.connect(
            f"qtest:virtio-net-pci,netdev=n0?args=-netdev {netdev}", driver=NetDriver
        ) as qemus,
    ):
        for here, there in ((ours, qemus), (qemus, ours)):
            here.send(frames)
            got: list[bytes] = []
            while len(got) < len(frames):
                more = there.receive(len(frames), timeout_s=5.0)
                assert more, f"{len(got)} of {len(frames)} frames arrived"
                got += more
            assert got == frames


@pytest.fixture
def tap() -> Iterator[str]:
    """A tap for two queues."""
    name = f"vqi{os.getpid() % 100000}"
    make = ["ip", "tuntap", "add", "dev", name, "mode", "tap", "vnet_hdr", "multi_queue"]
    try:
        subprocess.run(make, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no tap interface can be made here: {error}")
    subprocess.run(["ip", "link", "set", name, "up"], check=True)
    yield name
    subprocess.run(["ip", "link", "del", name], check=True)


def test_qemu_with_two_pairs(capsys: pytest.CaptureFixture[str], tap: str) -> None:
    """Its further queues are there once MQ or RSS is negotiated. docs/findings.md: what comes while
    a queue is reset waits in the tap."""
    program("qemu")
    netdev = f"tap,id=n0,ifname={tap},script=no,downscript=no,queues=2,vnet_hdr=on"
    uri = f"qtest:virtio-net-pci,mq=on,rss=on,hash=on,netdev=n0?args=-netdev {netdev}"
    right = {
        "net_config.which_queue_is_which",
        "net_control.where_it_was_transmitted",
        "net_control.no_queue_beyond",
        "net_rss.the_queue_of_a_hash",
        "net_rss.hash_with_automatic_steering",
    }
    wrong = "net_rss.dropped_while_its_queue_is_reset"
    only = [word for name in (*sorted(right), wrong) for word in ("--only", name)]
    bad, good, _ = bad_and_good(capsys, 1, uri, "--port", f"packet:{tap}", *only)
    assert bad == {wrong}
    assert good == right
