"""Every example of `examples/`, driven."""

from __future__ import annotations

import importlib.util
import os
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.unit.net_support import frame
from virtq import Driver, RingKind
from virtq.drivers.blk import BlkDriver
from virtq.drivers.net import NetDriver
from virtq.errors import RequestError
from virtq.testing.plugin import Loopback
from virtq.testing.serving import Serving

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_each_is_short_and_run_by_a_test(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 40
    assert f'load("{path.stem}")' in Path(__file__).read_text()


def test_echo(virtq_loopback: Loopback) -> None:
    driver = virtq_loopback(load("echo").Echo())
    assert driver.queues["requests"].call(b"hello", reply=5) == b"hello"
    assert driver.queues["requests"].call(b"hello", reply=3) == b"hel"


def test_echo_from_another_process(tmp_path: Path) -> None:
    import virtq

    with Serving(f"{EXAMPLES}/echo.py:Echo", socket_path=tmp_path / "s") as service:
        with virtq.connect(service.uri, want="IN_ORDER,RING_PACKED") as driver:
            assert driver.queues["requests"].call(b"hello", reply=5) == b"hello"
        assert service.end().queues["requests"]["buffers"] == 1


def test_keyvalue(virtq_loopback: Loopback) -> None:
    module = load("keyvalue")

    class KeyValueDriver(Driver):
        config_layout = module.Config

    store = virtq_loopback(module.KeyValue(), KeyValueDriver)
    commands, news = store.queues[0], store.queues[1]

    def say(words: bytes) -> bytes:
        return commands.call(words, reply=64, timeout_s=5)

    assert say(b"get motto") == b"+in order"
    assert say(b"get colour") == b"-"
    assert say(b"set colour dark blue") == b"+"
    assert say(b"get colour") == b"+dark blue"
    news.add_batch([b""] * 2, reply=16)
    news.kick()
    assert say(b"del motto") == b"+"
    assert say(b"get motto") == b"-"
    assert say(b"del motto") == say(b"shout") == say(b"set motto") == b"-"
    assert news.wait(5)
    assert [used.reply for used in news.reap()] == [b"motto"]
    assert store.config.keys == 1


def test_a_keyvalue_store_that_is_read_only(virtq_loopback: Loopback) -> None:
    module = load("keyvalue")
    device = module.KeyValue()
    device.offer = "+READ_ONLY"
    driver = virtq_loopback(device, want=module.Feature.READ_ONLY, offer="+READ_ONLY")
    commands = driver.queues[0]
    assert commands.call(b"set motto none", reply=8, timeout_s=5) == b"-"
    assert commands.call(b"get motto", reply=16, timeout_s=5) == b"+in order"


def test_dict_disk(virtq_loopback: Loopback) -> None:
    device = load("dict_disk").disk()
    disk = virtq_loopback(device, BlkDriver)
    data = os.urandom(8192)
    disk.write(1 << 20, data)
    disk.flush()
    assert disk.read((1 << 20) - 512, 9216) == bytes(512) + data + bytes(512)
    assert len(device.disk.sectors) == 16
    disk.discard(1 << 20, 4096)
    assert disk.read(1 << 20, 8192) == bytes(4096) + data[4096:]
    disk.write_zeroes(1 << 20, 8192)
    assert device.disk.sectors == {}
    assert (disk.get_id(), disk.info().capacity) == ("a dict", 16 << 20)


def test_flaky_disk(virtq_loopback: Loopback) -> None:
    device = load("flaky_disk").disk()
    disk = virtq_loopback(device, BlkDriver)
    failed = 0
    for number in range(400):
        disk.write(number * 512, bytes([number % 256]) * 512)
        try:
            assert disk.read(number * 512, 512) == bytes([number % 256]) * 512
        except RequestError:
            failed += 1
    assert failed == device.happened["read:1%:EIO"] > 0
    assert device.happened["write:/100:delay=20ms"] == 4


def udp(port: int, number: int) -> bytes:
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 46, number, 0, 64, 17, 0, bytes(4), bytes(4))
    return frame(number, 14)[:12] + b"\x08\x00" + ip + struct.pack(">HH", 4000, port) + bytes(22)


def test_packet_filter(virtq_loopback: Loopback) -> None:
    device = load("packet_filter").PacketFilter()
    net = virtq_loopback(device, NetDriver)
    sent = [
        udp((23, 80, 445, 5000)[n % 4], n) if n % 5 else frame(n, 64 + n % 100) for n in range(200)
    ]
    closed = [n for n in range(200) if n % 5 and n % 4 in (0, 2)]
    got: list[bytes] = []
    for start in range(0, 200, 50):
        net.send(sent[start : start + 50])
        assert net.drain(timeout_s=5)
        while more := net.receive(64, 0.05):
            got += more
    assert got == [packet for number, packet in enumerate(sent) if number not in closed]
    assert (device.passed, device.dropped) == (200 - len(closed), len(closed))


@pytest.mark.parametrize("ring_kind", [RingKind.PACKED_IN_ORDER])
def test_sensor(virtq_loopback: Loopback) -> None:
    i2c = pytest.importorskip("virtq.drivers.i2c")
    bus: Any = virtq_loopback(load("sensor").bus(), i2c.I2cDriver)
    assert bus.write_read(0x48, b"\0", 2) == bytes([21, 128])
    assert bus.write_read(0x48, b"\1", 1) == b"\0"
    assert bus.scan() == [0x48]
