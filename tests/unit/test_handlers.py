"""Which method serves which queue, life-cycle hooks, an author's own features and configuration."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntFlag

import pytest

import virtq
from virtq import Batch, Device, Driver, QueueSpec, Request, RingKind
from virtq.errors import ConfigError, FeatureError
from virtq.features import Change, describe, parse
from virtq.transports.loopback import LoopbackTransport
from virtq.wire.layout import u8, u16, u32


def drive(device: Device, kind: RingKind = RingKind.PACKED_IN_ORDER) -> Driver:
    return Driver(LoopbackTransport(device), want=kind.features, offer=kind.change)


class Ports(Device):
    """A queue for commands, and one for each port."""

    device_id = 63

    def __init__(self, ports: int = 2) -> None:
        names = ["commands", "other", *(f"port{port}_tx" for port in range(ports))]
        self.queues = [QueueSpec(name, 16) for name in names]

    @virtq.handles("commands")
    def command(self, request: Request) -> int:
        return request.write(b"command " + request.read())

    @virtq.handles_batch("port*_tx")
    def transmit(self, batch: Batch) -> None:
        for request in batch:
            name = self.queue_name(request.queue_index).encode()
            request.complete(request.write(name + b" " + request.read()))

    @virtq.handles("port1_tx")
    async def first(self, request: Request) -> int:
        await asyncio.sleep(0)
        return request.write(b"the first " + request.read())

    def handle(self, request: Request) -> int:
        return request.write(b"any " + request.read())


class Louder(Ports):
    def command(self, request: Request) -> int:
        return request.write(b"COMMAND " + request.read())


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_each_queue_has_its_method(kind: RingKind) -> None:
    with drive(Ports(3), kind) as driver:
        answers = [driver.queues[index].call(b"x", reply=32, timeout_s=5) for index in range(5)]
    assert answers == [b"command x", b"any x", b"port0_tx x", b"the first x", b"port2_tx x"]


def test_a_subclass_overrides_by_the_methods_name() -> None:
    with drive(Louder()) as driver:
        assert driver.queues[0].call(b"x", reply=32, timeout_s=5) == b"COMMAND x"


def test_a_queue_with_nobody_to_serve_it_is_an_error_when_the_device_is_made() -> None:
    class Mute(Device):
        queues = (QueueSpec("good"), QueueSpec("bad"), QueueSpec("events", fills=True))

        @virtq.handles("good")
        def serve(self, request: Request) -> int:
            return 0

    with pytest.raises(TypeError, match="Mute has nobody to serve queue bad: neither handle nor"):
        Mute()


def test_a_handler_for_a_queue_that_is_not_there() -> None:
    with pytest.raises(TypeError, match=r"Typo.serve handles 'transmit', but the queues are: tran"):

        class Typo(Device):
            queues = (QueueSpec("transmitq"),)

            @virtq.handles("transmit")
            def serve(self, request: Request) -> int:
                return 0


def test_two_handlers_for_one_queue() -> None:
    with pytest.raises(TypeError, match="queue a is handled by both one and two"):

        class Twice(Device):
            @virtq.handles("a")
            def one(self, request: Request) -> int:
                return 0

            @virtq.handles("a", "b")
            def two(self, request: Request) -> int:
                return 0


def test_a_handler_that_cannot_be_called() -> None:
    with pytest.raises(TypeError, match=r"Short.serve handles a batch: it takes \(self, batch\)"):

        class Short(Device):
            @virtq.handles_batch("a")
            def serve(self) -> int:
                return 0

    with pytest.raises(TypeError, match="say which queues"):
        virtq.handles()
    with pytest.raises(TypeError, match="say which queues"):
        virtq.handles(len)  # type: ignore[arg-type]


# Life


class Living(Device):
    device_id = 63
    queues: Sequence[QueueSpec] = (QueueSpec("a", 8), QueueSpec("b", 8))

    def __init__(self) -> None:
        self.told: list[str] = []
        self.ended = threading.Event()

    def handle(self, request: Request) -> int:
        return 0

    def negotiated(self, features: int) -> None:
        self.told.append("negotiated")

    async def started(self) -> None:
        self.told.append("started")
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()

    def queue_started(self, name: str) -> None:
        self.told.append(f"+{name}")

    def queue_stopped(self, name: str) -> None:
        self.told.append(f"-{name}")

    def was_reset(self) -> None:
        self.told.append("reset")


def test_an_author_is_told_what_happens() -> None:
    device = Living()
    with drive(device) as driver:
        driver.queues[0].call(b"x", timeout_s=5)
        driver.reset_queue(1)
        driver.queues[1].call(b"x", timeout_s=5)
    assert device.ended.wait(5)
    device.told.remove("started")  # as a task of its own it begins a little later
    assert device.told == [
        *("reset", "negotiated", "+a", "+b", "-b", "+b"),
        *("-a", "-b", "reset", "reset"),  # by the driver, and when it left
    ]


def test_a_queue_that_is_disabled_is_not_live() -> None:
    device = Living()

    async def scene() -> None:
        from tests.unit.test_device import Stub

        device.start_queue(Stub(), False)  # type: ignore[arg-type]
        assert device.told == []
        device.enable_queue(4, True)
        device.enable_queue(4, True)
        device.enable_queue(4, False)
        device.stop_queue(4)
        assert device.told == ["+queue4", "-queue4"]

    asyncio.run(scene())


def test_what_a_hook_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Bad(Living):
        def started(self) -> Awaitable[None]:  # type: ignore[override]
            raise RuntimeError("first")

        def queue_started(self, name: str) -> None:
            self.spawn(self._later())

        async def _later(self) -> None:
            raise RuntimeError("second")

    with caplog.at_level(logging.ERROR), drive(Bad()) as driver:
        driver.queues[0].call(b"x", timeout_s=5)
        driver.queues[1].call(b"x", timeout_s=5)
    assert caplog.text.count("RuntimeError: first") == 1
    assert caplog.text.count("RuntimeError: second") == 2


# Features of one's own


class Feature(IntFlag):
    SHINY = 1 << 0
    LOUD = 1 << 5


class Featured(Living):
    device_id = 62
    features = Feature.SHINY
    optional_features = Feature.LOUD
    feature_bits = Feature


def test_features_of_ones_own_have_names() -> None:
    device = Featured()
    assert device.offered_features & 0xFFFFFF == Feature.SHINY
    device.offer = "+LOUD,-SHINY"
    assert device.offered_features & 0xFFFFFF == Feature.LOUD
    assert describe(0x21, 62) == "SHINY, LOUD"
    assert describe(0x21, 60) == "bit 0, bit 5"
    assert parse("loud", 62) == Feature.LOUD
    device.offer = "+LOWD"
    with pytest.raises(FeatureError, match="did you mean LOUD"):
        _ = device.offered_features
    device.offer = "+LOUD"
    driver = Driver(LoopbackTransport(device), want="LOUD", offer=Change(Feature.LOUD))
    with driver:
        assert driver.has(Feature.LOUD)
        assert "LOUD" in driver.feature_names


@pytest.mark.parametrize(
    ("flag", "said"), [({"WRONG": 1 << 28}, "bit 28 is not"), ({"IN_ORDER": 1}, "independent")]
)
def test_features_that_a_device_cannot_have(flag: dict[str, int], said: str) -> None:
    with pytest.raises(FeatureError, match=said):
        type("Bad", (Living,), {"feature_bits": IntFlag("Bits", flag)})


# Configuration


@dataclass
class Screen:
    width: u16 = 640
    height: u16 = 480
    depth: u8 = 8


class Display(Living):
    config: Screen = Screen()


@pytest.fixture
def display() -> Iterator[tuple[Display, list[int], Driver]]:
    device, told = Display(), [0]
    with drive(device) as driver:

        def notified() -> None:
            told[0] += 1

        driver.transport.on_config_change(notified)
        yield device, told, driver


def settle(driver: Driver) -> None:
    """Everything that the device's thread was asked to do is done."""
    driver.transport.read_features()


def test_a_change_of_several_fields_is_told_once(
    display: tuple[Display, list[int], Driver],
) -> None:
    device, told, driver = display
    with device.changing_config() as config:
        config.width = 800
        assert driver.transport.read_config(0, 5) == bytes.fromhex("8002 e001 08")
        config.height = 600
    settle(driver)
    assert told == [1]
    assert driver.transport.read_config(0, 5) == bytes.fromhex("2003 5802 08")
    device.update_config(depth=24, width=1024)
    settle(driver)
    assert (told, device.config.depth, device.config_generation) == ([2], 24, 2)
    device.update_config(depth=24)
    settle(driver)
    assert (told, device.config_generation) == ([2], 2)


def change_and_fail(device: Device) -> None:
    with device.changing_config() as config:
        config.width = 1
        config.depth //= 0


def test_a_change_that_fails_changes_nothing(display: tuple[Display, list[int], Driver]) -> None:
    device, told, driver = display
    before = device.read_config(0, 5)
    with pytest.raises(ConfigError, match="does not fit"):
        device.update_config(width=1, depth=300)
    with pytest.raises(ConfigError, match="no configuration field colour; there are: depth, hei"):
        device.update_config(width=1, colour=3)
    with pytest.raises(ZeroDivisionError):
        change_and_fail(device)
    with pytest.raises(ConfigError, match="has no configuration"):
        Living().update_config(width=1)
    settle(driver)
    assert (device.read_config(0, 5), told) == (before, [0])


def test_many_threads_change_it_and_no_change_is_lost() -> None:
    @dataclass
    class Counter:
        low: u32 = 0
        high: u32 = 0

    class Counting(Living):
        config = Counter()

    device = Counting()

    def count() -> None:
        for _ in range(200):
            with device.changing_config() as config:
                config.low += 1
                config.high += 1

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        image = device.read_config(0, 8)
        assert image[:4] == image[4:]
    for thread in threads:
        thread.join()
    assert device.config.low == 800
