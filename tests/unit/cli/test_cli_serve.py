"""`virtq serve net`, and devices of one's own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.unit.cli.support import served
from virtq import F, connect
from virtq.cli import run
from virtq.drivers.net import NetDriver
from virtq.wire.net import NetFeature


def frames(count: int) -> list[bytes]:
    head = b"\xff" * 6 + b"\x02" * 6 + b"\x88\xb5"
    return [head + os.urandom(46 + i) for i in range(count)]


def net(path: Path) -> NetDriver:
    return connect(f"vhost-user:{path}", driver=NetDriver)


def received(driver: NetDriver, count: int) -> list[bytes]:
    got: list[bytes] = []
    while len(got) < count and (more := driver.receive(count - len(got), timeout_s=5.0)):
        got += more
    return got


def test_serve_net_hub(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    words: list[str | Path] = ["--socket-path", a, "--socket-path", b, "--json", "--mtu", "2000"]
    words += ["--wait", "adaptive"]
    with served("net", "--hub", *words, sockets=2) as service:
        with net(a) as left, net(b) as right:
            assert left.mtu == 2000
            assert left.mac != right.mac
            sent = frames(50)
            for sender, receiver in ((left, right), (right, left)):
                sender.send(sent)
                assert received(receiver, 50) == sent
        reports = json.loads(service.end())["devices"]
    for report in reports:
        assert report["queues"]["transmitq1"]["buffers"] == 50
        assert report["queues"]["receiveq1"]["buffers"] == 50


def test_serve_net_source_and_sink(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with served("net", "--source", "100:300", "--socket-path", path) as service:
        with net(path) as driver:
            assert [len(frame) for frame in received(driver, 300)] == 300 * [100]
            assert driver.receive(1, timeout_s=0.1) == []
        assert "source of 100-byte frames" in service.end()
    words = ["--no-mergeable", "--mac", "52:54:00:00:00:07", "--json", "--queues", "2"]
    with served("net", "--sink", "--socket-path", path, *words) as service:
        with net(path) as driver:
            assert driver.mac == bytes.fromhex("525400000007")
            assert not driver.has(NetFeature.MRG_RXBUF)
            driver.send(frames(20))
            assert driver.drain(timeout_s=5.0)
        report = service.report()
    assert report["total"]["buffers"] == 20
    assert "MQ" in report["offered"]["names"]


def test_serve_net_pcap(tmp_path: Path) -> None:
    path, capture = tmp_path / "s", tmp_path / "sent.pcap"
    sent = frames(10)
    with served("net", "--pcap", capture, "--socket-path", path) as service:
        with net(path) as driver:
            driver.send(sent)
            assert driver.drain(timeout_s=5.0)
        service.end()
    with served("net", "--pcap-in", capture, "--socket-path", path) as service:
        with net(path) as driver:
            assert received(driver, 10) == sent
        service.end()


SHOUT = """
import virtq

class Shout(virtq.Device):
    device_id = 63
    queues = (virtq.QueueSpec("requests", size=64),)

    def handle(self, request):
        return request.write(request.read().upper())
"""


@pytest.mark.parametrize("form", ["shout.py:Shout", "shout:Shout"])
def test_serve_a_device_of_ones_own(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shout.py").write_text(SHOUT)
    words = [form, "--socket-path", "s", "--json", "--offer", "-RING_PACKED"]
    with served(*words) as service:
        with connect("vhost-user:s?queue_size=64", want=F.IN_ORDER) as driver:
            assert driver.queues["requests"].call(b"hello", reply=5) == b"HELLO"
        report = service.report()
    assert report["device"] == "Shout (device type 63)"
    assert "RING_PACKED" not in report["offered"]["names"]
    assert report["total"]["buffers"] == 1


FEATURED = """
from enum import IntFlag
import virtq

class Feature(IntFlag):
    LYRICS = 1
    KARAOKE = 2

class Player(virtq.Device):
    device_id = 61
    queues = (virtq.QueueSpec("commands"),)
    feature_bits, features, optional_features = Feature, Feature.LYRICS, Feature.KARAOKE

    def handle(self, request):
        return 0
"""


def test_features_of_ones_own_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, player = tmp_path / "s", f"{tmp_path}/player.py:Player"
    (tmp_path / "player.py").write_text(FEATURED)
    words = [player, "--socket-path", str(path), "--json", "--offer", "+KARAOKE,-LYRICS"]
    with served(*words) as service:
        names = service.report()["offered"]["names"]
    assert "KARAOKE" in names
    assert "LYRICS" not in names
    assert run(["serve", player, "--socket-path", str(path), "--offer", "+KARAOK"]) == 2
    assert "did you mean KARAOKE?" in capsys.readouterr().err


def test_a_device_of_ones_own_that_fails_to_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.py"
    path.write_text("import virtq\n\nx = 1 / 0\n")
    assert run(["serve", f"{path}:X", "--socket-path", "x"]) == 2
    err = capsys.readouterr().err
    assert err == f"virtq: {path}:X: ZeroDivisionError: division by zero ({path}:3)\n"
