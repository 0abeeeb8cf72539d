"""The driver role: the initialization sequence, negotiation, queues, failure."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from virtq import Device, Driver, QueueSpec, Request
from virtq.errors import ConfigError, FeatureError, PeerGone, StatusError
from virtq.features import RING_FEATURES, Change, F, RingKind
from virtq.status import Status
from virtq.transports.loopback import LoopbackTransport
from virtq.wire.layout import WRITABLE, u8, u32


@dataclass
class Config:
    size: u32 = 7
    extra: u8 = field(default=3, metadata=WRITABLE)


class Echo(Device):
    device_id = 63
    features = 0b11
    queues = (QueueSpec("one", 100), QueueSpec("two", 8))
    config = Config()

    def handle(self, request: Request) -> int:
        return request.write(request.read())


class Watched(LoopbackTransport):
    """A transport that keeps a log of what the driver does."""

    def __init__(self, device: Device) -> None:
        self.log: list[str] = []
        super().__init__(device)

    def write_status(self, status: int) -> None:
        self.log.append(f"status {status:#x}")
        super().write_status(status)

    def read_features(self) -> int:
        self.log.append("read features")
        return super().read_features()

    def write_features(self, features: int) -> None:
        self.log.append("write features")
        super().write_features(features)

    def read_config(self, offset: int, length: int) -> bytes:
        self.log.append(f"config {offset}+{length}")
        return super().read_config(offset, length)

    def enable_queue(self, queue, desc, driver, device) -> None:  # type: ignore[no-untyped-def]
        self.log.append(f"queue {queue.index} of {queue.size}")
        super().enable_queue(queue, desc, driver, device)


class EchoDriver(Driver):
    device_id = 63
    features = 0b01
    optional_features = 0b10
    config_layout = Config
    config_fields = {"extra": 0b10}  # noqa: RUF012


def test_the_sequence_of_section_3_1_1() -> None:
    transport = Watched(Echo())
    with Driver(transport, offer=RingKind.SPLIT.change) as driver:
        assert transport.log == [
            "status 0x0",
            "status 0x1",
            "status 0x3",
            "read features",
            "write features",
            "status 0xb",
            "queue 0 of 64",  # a power of two below what the device has
            "queue 1 of 8",
            "status 0xf",
        ]
        assert driver.kind is RingKind.SPLIT
        transport.log.clear()
    assert transport.log == ["status 0x0"]


def test_packed_queues_have_any_size() -> None:
    with Driver(LoopbackTransport(Echo()), want=F.RING_PACKED) as driver:
        assert driver.queues[0].size == 100


def test_everything_understood_is_accepted_and_nothing_else() -> None:
    with Driver(LoopbackTransport(Echo())) as driver:
        assert driver.driver_features == RING_FEATURES | F.VERSION_1
        assert driver.offered_features == driver.driver_features | 0b11
    with EchoDriver(LoopbackTransport(Echo())) as driver:
        assert driver.driver_features & 0b11 == 0b01
        assert "bit 0" in driver.feature_names
    with EchoDriver(LoopbackTransport(Echo()), offer="+1,-IN_ORDER") as driver:
        assert driver.driver_features & 0b11 == 0b11
        assert not driver.has(F.IN_ORDER)
    with Driver(LoopbackTransport(Echo()), want=0b10) as driver:
        assert driver.driver_features & 0b11 == 0b10


def test_how_a_device_gets_at_memory_is_accepted_where_it_is_offered() -> None:
    """SHOULD (6.1)."""
    device = Echo()
    device.offer = "+ACCESS_PLATFORM,+ORDER_PLATFORM"
    with Driver(LoopbackTransport(device)) as driver:
        assert driver.has(F.ACCESS_PLATFORM | F.ORDER_PLATFORM)
        assert driver.queues[0].call(b"x", reply=1) == b"x"
    with Driver(LoopbackTransport(device), offer="-ORDER_PLATFORM") as driver:
        assert driver.has(F.ACCESS_PLATFORM)
        assert not driver.has(F.ORDER_PLATFORM)


def test_what_is_wanted_has_to_be_offered() -> None:
    device = Echo()
    device.offer = "-IN_ORDER"
    transport = LoopbackTransport(device)
    with pytest.raises(FeatureError, match="the device does not offer: IN_ORDER"):
        Driver(transport, want="IN_ORDER,RING_PACKED")
    assert transport.read_status() == Status.ACKNOWLEDGE | Status.DRIVER | Status.FAILED
    with Driver(transport, want="RING_PACKED") as driver:  # a reset, and all is well again
        assert driver.queues[0].call(b"x", reply=1) == b"x"


def test_a_driver_accepts_no_more_than_it_knows() -> None:
    with pytest.raises(FeatureError, match="this driver does not have bit 5"):
        EchoDriver(LoopbackTransport(Echo()), offer="+5")
    with Driver(LoopbackTransport(Echo()), offer=Change(add=F.SR_IOV)) as driver:
        assert not driver.has(F.SR_IOV)


def test_legacy_devices_are_not_driven() -> None:
    class Legacy(Echo):
        @property
        def offered_features(self) -> int:
            return 0b1

    with pytest.raises(FeatureError, match="VERSION_1"):
        Driver(LoopbackTransport(Legacy()))


def test_a_device_that_refuses_is_given_up() -> None:
    class Refuses(Echo):
        def negotiated(self, features: int) -> None:
            raise FeatureError("never")

    transport = LoopbackTransport(Refuses())
    with pytest.raises(StatusError, match="FEATURES_OK stayed off"):
        Driver(transport)
    assert transport.read_status() & Status.FAILED


def test_configuration_is_read_as_far_as_it_exists() -> None:
    transport = Watched(Echo())
    with EchoDriver(transport) as driver:
        assert driver.config == Config(7, 3)
        assert "config 0+5" in transport.log
    device = Echo()
    device.offer = "-1"
    transport = Watched(device)
    with EchoDriver(transport) as driver:
        assert driver.config == Config(7, 0)
        assert "config 0+4" in transport.log


def test_configuration_is_read_again_after_a_change() -> None:
    device = Echo()
    with EchoDriver(LoopbackTransport(device)) as driver:
        assert driver.config.size == 7
        device.config.size = 8
        assert driver.config.size == 7
        device.config_changed()
        driver.transport.read_config(0, 1)  # passes through the device's thread, behind the news
        assert driver.config.size == 8


def test_writing_configuration() -> None:
    device = Echo()
    with EchoDriver(LoopbackTransport(device)) as driver:
        driver.write_config("extra", 9)
        assert device.config.extra == driver.config.extra == 9
        for name in ("size", "nothing"):
            with pytest.raises(ConfigError, match=f"no configuration field {name}"):
                driver.write_config(name, 1)
    with Driver(LoopbackTransport(Echo())) as driver:
        assert driver.config is None


def test_a_queue_can_be_reset_alone() -> None:
    class Lazy(Echo):
        def handle(self, request: Request) -> int:
            raise AssertionError("never called")

        def enable_queue(self, index: int, enabled: bool) -> None: ...

    with Driver(LoopbackTransport(Echo())) as driver:
        queue = driver.queues[0]
        queue.add(b"never kicked", cookie="mine")
        queue.core.publish()
        assert driver.reset_queue(0) == ["mine"]
        assert driver.queues[0] is not queue
        assert driver.queues[0].call(b"x", reply=1, timeout_s=5) == b"x"
        assert driver.queues[1].call(b"y", reply=1, timeout_s=5) == b"y"
    with (
        Driver(LoopbackTransport(Echo()), offer="-RING_RESET") as driver,
        pytest.raises(FeatureError, match="RING_RESET"),
    ):
        driver.reset_queue(0)


def test_a_reset_begins_anew_and_loses_no_memory() -> None:
    with Driver(LoopbackTransport(Echo()), queue_size=16) as driver:
        held = driver.arena.held_bytes
        driver.queues[0].add(b"outstanding", reply=100)
        for _ in range(3):
            driver.reset()
            assert driver.arena.held_bytes == held
        assert driver.queues[0].call(b"x", reply=1, timeout_s=5) == b"x"
        assert driver.queues[0].size == 16


def test_a_device_that_never_finishes_its_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtq.driver.RESET_TIMEOUT_S", 0.02)
    transport = LoopbackTransport(Echo())
    monkeypatch.setattr(transport, "read_status", lambda: 4)
    with pytest.raises(StatusError, match="not 0"):
        Driver(transport)


def test_closing_is_harmless_when_the_other_end_is_gone() -> None:
    transport = LoopbackTransport(Echo())
    driver = Driver(transport)
    transport.close()
    with pytest.raises(PeerGone):
        driver.queues[0].call(b"x", reply=1)
    driver.close()
    driver.close()


def test_statistics_and_names() -> None:
    with Driver(LoopbackTransport(Echo())) as driver:
        driver.queues[0].call(b"abc", reply=3)
        assert driver.stats()["queue0"]["buffers"] == 1
        assert set(driver.stats()) == {"queue0", "queue1"}
        assert "queue0" in repr(driver)
