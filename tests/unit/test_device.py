"""The device role: handlers and their failures, features, configuration space, life."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import pytest

from virtq import Batch, Device, DeviceQueue, Driver, Position, QueueSpec, Request, Used
from virtq.errors import ConfigError, FeatureError, RingFault, TranslationMiss
from virtq.features import RING_FEATURES, Change, F, RingKind
from virtq.transports.loopback import LoopbackTransport
from virtq.wire.blk import BlkFeature
from virtq.wire.layout import WRITABLE, bytes6, u8, u16, u32


class Shout(Device):
    """Each request's bytes come back in capitals."""

    device_id = 63
    queues: Sequence[QueueSpec] = (QueueSpec("requests", 64),)

    def handle(self, request: Request) -> int:
        return request.write(request.read().upper())


def drive(device: Device, kind: RingKind = RingKind.SPLIT) -> Driver:
    return Driver(LoopbackTransport(device), want=kind.features, offer=kind.change)


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_the_example_of_the_documentation(kind: RingKind) -> None:
    with drive(Shout(), kind) as driver:
        assert driver.queues["requests"].call(b"hello", reply=5) == b"HELLO"


class Sleepy(Shout):
    """Answers after as many hundredths of a second as the request says."""

    def __init__(self) -> None:
        self.finished: list[bytes] = []

    async def handle(self, request: Request) -> int:  # type: ignore[override]
        word = request.read()
        await asyncio.sleep(int(word) / 100)
        self.finished.append(word)
        return request.write(word)


@pytest.mark.parametrize("kind", RingKind, ids=str)
def test_handlers_may_wait_and_completion_order_is_the_rings(kind: RingKind) -> None:
    device = Sleepy()
    with drive(device, kind) as driver:
        queue = driver.queues[0]
        queue.add_batch([b"9", b"1", b"5"], reply=1)
        queue.kick()
        used: list[Used] = []
        while len(used) < 3:
            assert queue.wait(5)
            used += queue.reap()
    assert device.finished == [b"1", b"5", b"9"]
    replies = [u.reply for u in used]
    assert replies == ([b"9", b"1", b"5"] if kind.in_order else [b"1", b"5", b"9"])


class InBatches(Shout):
    """Counts how it is called."""

    def __init__(self, result: Callable[[Batch], int | list[int] | None]) -> None:
        self.result = result
        self.sizes: list[int] = []

    def handle_batch(self, batch: Batch) -> int | list[int] | None:
        self.sizes.append(len(batch))
        for request in batch:
            request.write(request.read().upper())
        return self.result(batch)

    def fail(self, request: Request, error: Exception) -> int:
        return 0


def complete_all(batch: Batch) -> None:
    for length, request in enumerate(batch, 1):
        request.complete(length)


def complete_first_and_fail(batch: Batch) -> None:
    batch[0].complete(1)
    raise RuntimeError("half done")


@pytest.mark.parametrize(
    ("result", "replies"),
    [
        (lambda batch: 1, [b"A", b"B", b"C"]),
        (lambda batch: [1, 0, 3], [b"A", b"", b"CCC"]),
        (complete_all, [b"A", b"BB", b"CCC"]),
        (complete_first_and_fail, [b"A", b"", b""]),
    ],
)
def test_batches(result: Callable[[Batch], int | list[int] | None], replies: list[bytes]) -> None:
    device = InBatches(result)
    with drive(device) as driver:
        queue = driver.queues[0]
        queue.add_batch([b"a", b"bb", b"ccc"], reply=4)
        queue.kick()
        used: list[Used] = []
        while len(used) < 3:
            assert queue.wait(5)
            used += queue.reap()
    assert device.sizes == [3]
    assert [u.reply for u in used] == replies


class Awaited(Shout):
    """A batch handler that waits."""

    async def handle_batch(self, batch: Batch) -> int:
        await asyncio.sleep(0.01)
        return batch[0].write(batch.read_all()[0].upper())


def test_a_batch_handler_may_wait_too() -> None:
    with drive(Awaited()) as driver:
        assert driver.queues[0].call(b"x", reply=1, timeout_s=5) == b"X"


class Clumsy(Shout):
    """Fails on what is not text, before or after the first wait."""

    queues: Sequence[QueueSpec] = (QueueSpec("requests", 64), QueueSpec("others", 64))

    def handle(self, request: Request) -> int | Awaitable[int]:  # type: ignore[override]
        word = request.read()
        if word == b"later":
            return self._fail()
        return request.write(word.decode().upper().encode())

    async def _fail(self) -> int:
        await asyncio.sleep(0)
        raise RuntimeError("too late")


class Careful(Clumsy):
    """Its requests have a status, which is their first byte."""

    def fail(self, request: Request, error: Exception) -> int:
        return request.write(b"!")


def test_a_handler_that_fails_costs_its_request_only(caplog: pytest.LogCaptureFixture) -> None:
    device = Careful()
    with caplog.at_level(logging.ERROR), drive(device) as driver:
        queue = driver.queues[0]
        for _ in range(3):
            assert queue.call(b"\xff", reply=4, timeout_s=5) == b"!"
            assert queue.call(b"later", reply=4, timeout_s=5) == b"!"
            assert queue.call(b"good", reply=4, timeout_s=5) == b"GOOD"
    messages = [r for r in caplog.records if "handler failed" in r.message]
    assert len(messages) == 2  # once for each place
    assert all(r.exc_info for r in messages)
    assert device.stats()["requests"]["handler_errors"] == 6


@pytest.mark.parametrize("kind", RingKind, ids=str)
@pytest.mark.parametrize("word", [b"\xff", b"later"])
def test_a_failure_without_a_status_breaks_its_queue_alone(
    word: bytes, kind: RingKind, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), drive(Clumsy(), kind) as driver:
        queue = driver.queues[0]
        queue.add_batch([b"good", word], reply=4)
        queue.kick()
        assert queue.wait(5)
        assert [used.reply for used in queue.reap()] == [b"GOOD"]
        with pytest.raises(RingFault, match="queue0: the device has given it up"):
            queue.wait(5)
        assert driver.queues[1].call(b"x", reply=1, timeout_s=5) == b"X"
        name = "UnicodeDecodeError" if word == b"\xff" else "RuntimeError: too late"
        broken = [r.message for r in caplog.records if "is broken" in r.message]
        assert len(broken) == 1
        assert broken[0].startswith(f"queue requests is broken: the handler failed: {name}")
        driver.reset()
        assert driver.queues[0].call(b"x", reply=1, timeout_s=5) == b"X"


def test_a_failure_to_fail_breaks_the_queue(caplog: pytest.LogCaptureFixture) -> None:
    class Worse(Careful):
        def fail(self, request: Request, error: Exception) -> int:
            raise KeyError("status")

    with (
        caplog.at_level(logging.ERROR),
        drive(Worse()) as driver,
        pytest.raises(RingFault, match="given it up"),
    ):
        driver.queues[0].call(b"later", reply=4, timeout_s=5)
    assert "queue requests is broken: the handler failed: KeyError: 'status'" in caplog.text


@pytest.mark.parametrize("result", [1000, -1, "text", 1 << 70])
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("batches", [False, True])
def test_a_result_that_makes_no_sense_is_a_failure(
    result: int, later: bool, batches: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def wait() -> int:
        return result

    class Wrong(Device):
        queues = (QueueSpec("q"),)

        def handle(self, request: Request) -> int | Awaitable[int]:
            return wait() if later else result

        def fail(self, request: Request, error: Exception) -> int:
            return request.write(b"!")

    class WrongBatches(Wrong):
        def handle_batch(self, batch: Batch) -> int | Awaitable[int]:
            return wait() if later else result

    with caplog.at_level(logging.ERROR), drive((WrongBatches if batches else Wrong)()) as driver:
        for _ in range(2):
            assert driver.queues[0].call(b"x", reply=4, timeout_s=5) == b"!"
    assert caplog.text.count("handler failed") == 1


def test_a_handler_may_complete_its_request_itself() -> None:
    class Early(Shout):
        def handle(self, request: Request) -> None:  # type: ignore[override]
            request.write(b"done")
            request.complete()
            assert not request.outstanding

    with drive(Early()) as driver:
        for _ in range(2):
            assert driver.queues[0].call(b"x", reply=4, timeout_s=5) == b"done"


def test_a_broken_ring_stops_that_queue_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Two(Shout):
        queues = (QueueSpec("good", 8), QueueSpec("bad", 8))

    with caplog.at_level(logging.ERROR), drive(Two()) as driver:
        bad = driver.queues[1]
        driver.arena.memory.write(bad.memory.driver + 2, (500).to_bytes(2, "little"))
        assert bad.core.kick_fd is not None
        os.eventfd_write(bad.core.kick_fd, 1)
        with pytest.raises(RingFault, match="given it up"):
            bad.wait(5)
        assert driver.queues[0].call(b"x", reply=1, timeout_s=5) == b"X"
        assert "queue bad is broken" in caplog.text
        driver.reset()
        assert driver.queues[1].call(b"x", reply=1, timeout_s=5) == b"X"


def test_statistics_outlive_the_driver() -> None:
    device = Shout()
    for _ in range(2):
        with drive(device) as driver:
            driver.queues[0].call(b"abc", reply=3)
    stats = device.stats()["requests"]
    assert (stats["buffers"], stats["bytes_read"], stats["bytes_written"]) == (2, 6, 6)


# Features


def test_what_a_device_offers() -> None:
    device = Shout()
    assert device.offered_features == RING_FEATURES | F.VERSION_1
    device.offer = "-IN_ORDER,+ACCESS_PLATFORM"
    expected = RING_FEATURES & ~F.IN_ORDER | F.VERSION_1 | F.ACCESS_PLATFORM
    assert device.offered_features == expected
    device.offer = Change(remove=F.RING_PACKED)
    assert not device.offered_features & F.RING_PACKED


@pytest.mark.parametrize(
    ("offer", "said"),
    [("+SR_IOV", "does not have SR_IOV"), ("+5", "does not have bit 5"), ("-VERSION_1", "6.2")],
)
def test_what_a_device_cannot_offer(offer: str, said: str) -> None:
    device = Shout()
    device.offer = offer
    with pytest.raises(FeatureError, match=said):
        _ = device.offered_features


def test_prerequisites_go_together() -> None:
    class Disk(Shout):
        device_id = 2
        features = BlkFeature.FLUSH | BlkFeature.CONFIG_WCE

    device = Disk()
    device.offer = "-FLUSH"
    assert not device.offered_features & (BlkFeature.FLUSH | BlkFeature.CONFIG_WCE)


def test_what_a_device_accepts() -> None:
    device = Shout()
    device.accept_features(F.VERSION_1 | F.IN_ORDER)
    assert device.driver_features == F.VERSION_1 | F.IN_ORDER
    with pytest.raises(FeatureError, match="not offered, yet accepted: SUSPEND"):
        device.accept_features(F.VERSION_1 | F.SUSPEND)
    with pytest.raises(FeatureError, match="VERSION_1"):
        device.accept_features(F.IN_ORDER)
    device.reset()
    assert device.driver_features == 0


def test_a_device_may_refuse_a_subset() -> None:
    class Picky(Shout):
        def negotiated(self, features: int) -> None:
            if not features & F.IN_ORDER:
                raise FeatureError("only in order")

    with pytest.raises(Exception, match="FEATURES_OK stayed off"):
        drive(Picky(), RingKind.SPLIT)
    with drive(Picky(), RingKind.SPLIT_IN_ORDER) as driver:
        assert driver.queues[0].call(b"x", reply=1) == b"X"


# Configuration space


@dataclass
class Colours:
    red: u8 = 1
    green: u16 = field(default=2, metadata=WRITABLE)


@dataclass
class Settings:
    size: u32 = 7
    mac: bytes6 = b"\1\2\3\4\5\6"
    colours: Colours = field(default_factory=Colours)
    volume: u8 = field(default=5, metadata=WRITABLE)


class Configured(Shout):
    config = Settings()

    def config_written(self, field: str, value: int) -> None:
        if field == "volume" and value > 10:
            raise ConfigError("too loud")


def test_the_configuration_space_is_the_dataclass() -> None:
    device = Configured()
    assert device.config_size == 14
    assert device.read_config(0, 14) == bytes.fromhex("07000000 010203040506 01 0200 05")
    assert device.read_config(4, 6) == device.config.mac
    assert device.read_config(14, 0) == b""
    assert device.config is not Configured().config


def test_fields_are_written_whole_or_in_part() -> None:
    device = Configured()
    device.write_config(13, b"\x09")
    assert device.config.volume == 9
    device.write_config(12, b"\x01")  # the upper half of a 16-bit field
    assert device.config.colours.green == 0x0102
    device.write_config(11, b"\x34\x12\x08")
    assert (device.config.colours.green, device.config.volume) == (0x1234, 8)
    device.write_config(0, b"")


@pytest.mark.parametrize(
    ("offset", "data", "said"),
    [
        (0, b"\0", "size is not writable"),
        (10, b"\0\0\0\0", "colours.red is not writable"),
        (13, b"\xff", "too loud"),
        (11, b"\1\1\xff", "too loud"),
        (13, b"\0\0", "bytes 13 to 15"),
        (14, b"\0", "bytes 14 to 15"),
    ],
)
def test_what_cannot_be_written_changes_nothing(offset: int, data: bytes, said: str) -> None:
    device = Configured()
    before = device.read_config(0, 14)
    with pytest.raises(ConfigError, match=said):
        device.write_config(offset, data)
    assert device.read_config(0, 14) == before


@pytest.mark.parametrize(("offset", "length"), [(0, 15), (14, 1), (-1, 2), (3, -1)])
def test_reads_beyond_the_end(offset: int, length: int) -> None:
    with pytest.raises(ConfigError):
        Configured().read_config(offset, length)


def test_no_configuration_space() -> None:
    assert Shout().config_size == 0
    with pytest.raises(ConfigError, match="configuration space of 0"):
        Shout().read_config(0, 1)


def test_a_change_can_be_told_from_any_thread() -> None:
    device, told = Configured(), threading.Event()
    with drive(device) as driver:
        driver.transport.on_config_change(told.set)
        device.config_changed()
        assert told.wait(5)
        told.clear()
        loop = driver.transport._loop  # type: ignore[attr-defined]
        loop.call_soon_threadsafe(device.config_changed)
        assert told.wait(5)
    device.config_changed()  # nobody there: nothing happens


# Guest memory that is not mapped, and queues without a kick descriptor


class Stub:
    """A queue that behaves as told: each take is an exception to raise or a number of buffers."""

    index = 4
    kick_fd = None
    has_available = False
    stats: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, *takes: Exception | None) -> None:
        self.takes = list(takes)
        self.taken = 0

    def serve(self, handler: object, finish: object, failed: object, max: int) -> int:
        self.taken += 1
        if self.takes and (error := self.takes.pop(0)):
            raise error
        return 0

    def linger(self, microseconds: int) -> bool:
        return False

    def enable_kicks(self) -> bool:
        return False

    def disable_kicks(self) -> None:
        pass

    def notify(self) -> bool:
        return False

    def stop(self) -> Position:
        return Position(0, 0, 0, 0, 0)


def test_a_missing_mapping_is_the_transports_to_resolve() -> None:
    misses: list[tuple[int, int]] = []
    device = Shout()
    stub = Stub(TranslationMiss("nothing at 0x5000", 0x5000, 16, False))

    async def scene() -> None:
        device.on_translation_miss(lambda index, miss: misses.append((index, miss.args[1])))
        device.start_queue(cast(DeviceQueue, stub), True)
        await asyncio.sleep(0.01)
        assert (misses, stub.taken) == ([(4, 0x5000)], 1)
        device.retry_queue(4)
        device.retry_queue(17)
        await asyncio.sleep(0.01)
        assert (misses, stub.taken) == ([(4, 0x5000)], 2)
        device.stop_queue(4)

    asyncio.run(scene())


def test_without_a_kick_descriptor_the_queue_is_polled() -> None:
    device, stub = Shout(), Stub()

    async def scene() -> None:
        device.start_queue(cast(DeviceQueue, stub), True)
        await asyncio.sleep(0.02)
        assert stub.taken == 1
        stub.has_available = True
        await asyncio.sleep(0.05)
        assert stub.taken > 2
        device.enable_queue(4, False)
        before = stub.taken
        await asyncio.sleep(0.02)
        assert stub.taken == before
        device.enable_queue(4, True)
        await asyncio.sleep(0.02)
        assert stub.taken > before
        device.reset()

    asyncio.run(scene())


def test_a_queue_that_was_not_started_cannot_be_stopped() -> None:
    with pytest.raises(KeyError):
        Shout().stop_queue(0)
