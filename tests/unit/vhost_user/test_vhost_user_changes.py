"""One back-end, many front-ends: each connection negotiates its own features, in any sequence, and
nothing of one is left for the next."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.unit.vhost_user.support import Served, eventually, no_leaks
from virtq.devices.blk import BlkDevice
from virtq.devices.disk import Disk
from virtq.drivers.blk import BlkDriver
from virtq.errors import ConfigError
from virtq.features import Change, F, RingKind
from virtq.transports.vhost_user import Frontend
from virtq.wire.blk import SECTOR_BYTES, BlkFeature

CONNECTIONS = 40
SECTORS = 64
OPTIONAL = (
    F.EVENT_IDX,
    F.INDIRECT_DESC,
    F.RING_RESET,
    F.ACCESS_PLATFORM,
    BlkFeature.MQ,
    BlkFeature.FLUSH,
    BlkFeature.CONFIG_WCE,
    BlkFeature.DISCARD,
)
PROTOCOL = ("", "-CONFIGURE_MEM_SLOTS", "-STATUS", "-REPLY_ACK")


def test_feature_sets_change_from_one_connection_to_the_next(tmp_path: Path) -> None:
    chance = random.Random(9)
    disk = Disk.memory(SECTORS * SECTOR_BYTES)
    device = BlkDevice(disk, queues=2, offer="+ACCESS_PLATFORM")
    wanted = bytearray(SECTORS * SECTOR_BYTES)
    seen = set()
    with no_leaks(), Served(device, str(tmp_path / "s")) as served:
        for _ in range(CONNECTIONS):
            kind = chance.choice(list(RingKind))
            declined = 0
            for bit in OPTIONAL:
                declined |= bit if chance.random() < 0.5 else 0
            protocol = chance.choice(PROTOCOL)
            change = Change(add=kind.change.add, remove=kind.change.remove | declined)
            front = Frontend(served.path, protocol=protocol)
            with BlkDriver(front, want=kind.features, offer=change) as driver:
                assert driver.kind is kind
                assert not driver.driver_features & declined
                # A back-end asks for translations, and needs the acknowledgement for that.
                translated = not declined & F.ACCESS_PLATFORM and protocol != "-REPLY_ACK"
                assert driver.has(F.ACCESS_PLATFORM) is translated
                assert device.driver_features == driver.driver_features
                seen.add(driver.driver_features)
                sector = chance.randrange(SECTORS)
                content = chance.randbytes(SECTOR_BYTES)
                driver.write(sector * SECTOR_BYTES, content)
                wanted[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES] = content
                assert driver.read(0, len(wanted)) == wanted
        del driver, front
    assert len(seen) > CONNECTIONS // 2
    device.close()


def test_the_configuration_changes_while_it_is_read(tmp_path: Path) -> None:
    """A driver that is notified sees the new capacity, and one that comes later the newest."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(SECTOR_BYTES))
    device = BlkDevice(Disk.file(str(path)))
    with Served(device, str(tmp_path / "s")) as served, BlkDriver(Frontend(served.path)) as driver:
        for round_ in range(1, 33):
            sectors = (1 << round_ % 20) + 1
            with path.open("r+b") as file:
                file.truncate(sectors * SECTOR_BYTES)
            served.ask(device.refresh_capacity)
            assert eventually(lambda: driver.config.capacity == sectors)  # noqa: B023
    path.write_bytes(bytes(7 * SECTOR_BYTES))
    device.refresh_capacity()
    with Served(device, str(tmp_path / "t")) as served, BlkDriver(Frontend(served.path)) as driver:
        assert driver.config.capacity == 7
    device.close()


def test_a_disk_without_a_configuration_space_is_named(tmp_path: Path) -> None:
    device = BlkDevice(Disk.memory(SECTORS * SECTOR_BYTES))
    with no_leaks(), Served(device, str(tmp_path / "s")) as served:
        front = Frontend(served.path, protocol="-CONFIG")
        with pytest.raises(ConfigError, match="no configuration space, and BlkDriver needs it"):
            BlkDriver(front)
        front.close()
        with BlkDriver(Frontend(served.path)) as driver:
            assert driver.capacity == SECTORS * SECTOR_BYTES
        del driver, front
