"""A virtio device behind memory-mapped registers (VIRTIO 1.4, section 4.2), version 2.

The machine is QEMU's microvm, which has a row of such register blocks, most of them without a
device. Their interrupts are lines into the I/O APIC, which QEMU reports over the qtest socket.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import takewhile
from types import MappingProxyType

from virtq.errors import ConfigError, TransportError, UndrivableDevice
from virtq.transports.qtest.access import Accesses
from virtq.transports.qtest.registers import (
    at_one_generation,
    load_bytes,
    store_bytes,
)

BASE, BLOCK_BYTES, BLOCKS = 0xFEB0_0000, 0x200, 24
MAGIC_VALUE = int.from_bytes(b"virt", "little")
_VERSION_VALUE, _VERSION_LEGACY = 2, 1
_QUEUES_MAX = 1024
_NO_DEVICE_ID = 0xFFFF_FFFF
"""What a bus reads as where nothing answers."""

REGISTERS: Mapping[str, int] = MappingProxyType(
    {
        "MagicValue": 0x000,
        "Version": 0x004,
        "DeviceID": 0x008,
        "VendorID": 0x00C,
        "DeviceFeatures": 0x010,
        "DeviceFeaturesSel": 0x014,
        "DriverFeatures": 0x020,
        "DriverFeaturesSel": 0x024,
        "QueueSel": 0x030,
        "QueueSizeMax": 0x034,
        "QueueSize": 0x038,
        "QueueReady": 0x044,
        "QueueNotify": 0x050,
        "InterruptStatus": 0x060,
        "InterruptACK": 0x064,
        "Status": 0x070,
        "QueueDescLow": 0x080,
        "QueueDescHigh": 0x084,
        "QueueDriverLow": 0x090,
        "QueueDriverHigh": 0x094,
        "QueueDeviceLow": 0x0A0,
        "QueueDeviceHigh": 0x0A4,
        "SHMSel": 0x0AC,
        "SHMLenLow": 0x0B0,
        "SHMLenHigh": 0x0B4,
        "SHMBaseLow": 0x0B8,
        "SHMBaseHigh": 0x0BC,
        "QueueReset": 0x0C0,
        "ConfigGeneration": 0x0FC,
    }
)
"""The control registers (4.2.2), 32 bits each: the offset of each one in bytes."""
_CONFIG = 0x100
_EVENTS = 3
"""The bits of InterruptStatus that have a meaning."""
_RESET_TIMEOUT_S = 1.0
"""The device answers each look meanwhile."""


class MmioRegisters:
    """Implements `Registers` for one register block, and gives its registers by name (`get`,
    `put`)."""

    QUEUE_RESET = ("QueueSel", "QueueReset")
    """The registers that select a virtqueue, and reset it."""
    GENERATION = "ConfigGeneration"

    poll_s = None
    config_size = BLOCK_BYTES - _CONFIG

    def __init__(self, client: Accesses, base: int) -> None:
        self._client = client
        self._base = base
        self.device_id = self.get("DeviceID")
        self.count_queues()

    def get(self, register: str) -> int:
        """Read a control register."""
        return self._client.load(self._base + REGISTERS[register], 4)

    def put(self, register: str, value: int) -> None:
        """Write a control register."""
        self._client.store(self._base + REGISTERS[register], 4, value)

    def load_config(self, offset: int, size: int) -> int:
        """One access to the configuration space. Raises ConfigError beyond the end."""
        self._check_config(offset, size)
        return self._client.load(self._base + _CONFIG + offset, size)

    def count_queues(self) -> None:
        """The registers do not tell; a queue that is not available has size 0 (4.2.2)."""
        sizes = map(self.queue_size_max, range(_QUEUES_MAX))
        self.queue_count = sum(1 for _ in takewhile(bool, sizes))

    def read_status(self) -> int:
        return self.get("Status")

    def write_status(self, status: int) -> None:
        self.put("Status", status)

    def read_feature_word(self, index: int) -> int:
        self.put("DeviceFeaturesSel", index)
        return self.get("DeviceFeatures")

    def write_feature_word(self, index: int, word: int) -> None:
        self.put("DriverFeaturesSel", index)
        self.put("DriverFeatures", word)

    def queue_size_max(self, index: int) -> int:
        self.put("QueueSel", index)
        return self.get("QueueSizeMax")

    def enable_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> None:
        self.configure_queue(index, size, desc, driver, device)
        self.put("QueueReady", 1)

    def configure_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> None:
        """All that comes before a queue is ready (4.2.3.2). Raises TransportError for one that
        is."""
        self.put("QueueSel", index)
        if self.get("QueueReady"):
            raise TransportError(f"queue {index} is in use already (4.2.3.2)")
        self.put("QueueSize", size)
        for area, address in (("Desc", desc), ("Driver", driver), ("Device", device)):
            self.put(f"Queue{area}Low", address)
            self.put(f"Queue{area}High", address >> 32)

    def reset_queue(self, index: int) -> None:
        self.put("QueueSel", index)
        self.put("QueueReset", 1)
        deadline = time.monotonic() + _RESET_TIMEOUT_S
        while self.get("QueueReset") or self.get("QueueReady"):
            if time.monotonic() > deadline:
                raise TransportError(f"queue {index} is not reset within {_RESET_TIMEOUT_S} s")

    def notify(self, index: int, data: int | None) -> None:
        self.put("QueueNotify", index if data is None else data)

    def read_config(self, offset: int, length: int) -> bytes:
        self._check_config(offset, length)
        return at_one_generation(
            lambda: self.get("ConfigGeneration"),
            lambda: load_bytes(self._client, self._base + _CONFIG + offset, length),
        )

    def read_config_by(self, accesses: Sequence[tuple[int, int]]) -> list[bytes]:
        self._check_config(0, max((at + width for at, width in accesses), default=1))
        base = self._base + _CONFIG
        return at_one_generation(
            lambda: self.get("ConfigGeneration"),
            lambda: [load_bytes(self._client, base + at, width) for at, width in accesses],
        )

    def write_config(self, offset: int, data: bytes) -> None:
        self._check_config(offset, len(data))
        store_bytes(self._client, self._base + _CONFIG + offset, data)

    def _check_config(self, offset: int, length: int) -> None:
        if offset < 0 or length < 1 or offset + length > self.config_size:
            raise ConfigError(
                f"bytes {offset} to {offset + length} of a configuration space of "
                f"{self.config_size}"
            )

    def interrupts(self) -> tuple[set[int], bool]:
        self._client.take_interrupts()
        status = self.get("InterruptStatus") & _EVENTS
        if status:
            self.put("InterruptACK", status)
        return set(range(self.queue_count)) if status & 1 else set(), bool(status & 2)


def find(client: Accesses) -> MmioRegisters:
    """The first register block with a device behind it. Raises TransportError if there is none, or
    one with registers of version 1; UndrivableDevice for one whose MagicValue or Version is no
    device's."""
    legacy = False
    wrong: list[UndrivableDevice] = []
    for block in range(BLOCKS):
        base = BASE + block * BLOCK_BYTES
        magic, version, device_id = (
            client.load(base + REGISTERS[name], 4) for name in ("MagicValue", "Version", "DeviceID")
        )
        if not 0 < device_id < _NO_DEVICE_ID:
            continue
        if magic == MAGIC_VALUE and version == _VERSION_VALUE:
            return MmioRegisters(client, base)
        if magic != MAGIC_VALUE:
            text = f"MagicValue {magic:#x} of device {device_id}, not {MAGIC_VALUE:#x} (4.2.2)"
            wrong.append(UndrivableDevice(text, "mmio.reg.dev.magic"))
        elif version == _VERSION_LEGACY:
            legacy = True
        else:
            text = f"Version {version:#x} of device {device_id}, not {_VERSION_VALUE} (4.2.2)"
            wrong.append(UndrivableDevice(text, "mmio.reg.dev.version"))
    if wrong:
        raise wrong[0]
    if legacy:
        raise TransportError(
            f"registers of version {_VERSION_LEGACY}, not {_VERSION_VALUE} (4.2.2)"
        )
    raise TransportError("there is no virtio device behind memory-mapped registers")
