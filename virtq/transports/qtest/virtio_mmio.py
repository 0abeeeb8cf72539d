"""A virtio device behind memory-mapped registers (VIRTIO 1.4, section 4.2), version 2.

The machine is QEMU's microvm, which has a row of such register blocks, most of them without a
device. Their interrupts are lines into the I/O APIC, which QEMU reports over the qtest socket.
"""

from __future__ import annotations

import time
from itertools import takewhile

from virtq.errors import ConfigError, TransportError
from virtq.transports.qtest.client import Client
from virtq.transports.qtest.registers import CONFIG_READ_ATTEMPTS, load_bytes, store_bytes

BASE, BLOCK_BYTES, BLOCKS = 0xFEB0_0000, 0x200, 24
_MAGIC_VALUE = int.from_bytes(b"virt", "little")
_VERSION_VALUE = 2
_QUEUES_MAX = 1024

_MAGIC, _VERSION, _DEVICE_ID = 0x000, 0x004, 0x008
_DEVICE_FEATURES, _DEVICE_FEATURES_SEL = 0x010, 0x014
_DRIVER_FEATURES, _DRIVER_FEATURES_SEL = 0x020, 0x024
_QUEUE_SEL, _QUEUE_SIZE_MAX, _QUEUE_SIZE, _QUEUE_READY = 0x030, 0x034, 0x038, 0x044
_QUEUE_NOTIFY, _INTERRUPT_STATUS, _INTERRUPT_ACK, _STATUS = 0x050, 0x060, 0x064, 0x070
_QUEUE_DESC, _QUEUE_DRIVER, _QUEUE_DEVICE = 0x080, 0x090, 0x0A0
_QUEUE_RESET, _CONFIG_GENERATION, _CONFIG = 0x0C0, 0x0FC, 0x100
_RESET_TIMEOUT_S = 5.0


class MmioRegisters:
    """Implements `Registers` for one register block."""

    poll_s = None
    config_size = BLOCK_BYTES - _CONFIG

    def __init__(self, client: Client, base: int) -> None:
        self._client = client
        self._base = base
        self.device_id = self._get(_DEVICE_ID)
        self.count_queues()

    def _get(self, register: int) -> int:
        return self._client.load(self._base + register, 4)

    def _put(self, register: int, value: int) -> None:
        self._client.store(self._base + register, 4, value)

    def count_queues(self) -> None:
        """The registers do not tell; a queue that is not available has size 0 (4.2.2)."""
        sizes = map(self.queue_size_max, range(_QUEUES_MAX))
        self.queue_count = sum(1 for _ in takewhile(bool, sizes))

    def read_status(self) -> int:
        return self._get(_STATUS)

    def write_status(self, status: int) -> None:
        self._put(_STATUS, status)

    def read_feature_word(self, index: int) -> int:
        self._put(_DEVICE_FEATURES_SEL, index)
        return self._get(_DEVICE_FEATURES)

    def write_feature_word(self, index: int, word: int) -> None:
        self._put(_DRIVER_FEATURES_SEL, index)
        self._put(_DRIVER_FEATURES, word)

    def queue_size_max(self, index: int) -> int:
        self._put(_QUEUE_SEL, index)
        return self._get(_QUEUE_SIZE_MAX)

    def enable_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> None:
        self._put(_QUEUE_SEL, index)
        if self._get(_QUEUE_READY):
            raise TransportError(f"queue {index} is in use already (4.2.3.2)")
        self._put(_QUEUE_SIZE, size)
        for register, address in (
            (_QUEUE_DESC, desc),
            (_QUEUE_DRIVER, driver),
            (_QUEUE_DEVICE, device),
        ):
            self._put(register, address)
            self._put(register + 4, address >> 32)
        self._put(_QUEUE_READY, 1)

    def reset_queue(self, index: int) -> None:
        self._put(_QUEUE_SEL, index)
        self._put(_QUEUE_RESET, 1)
        deadline = time.monotonic() + _RESET_TIMEOUT_S
        while self._get(_QUEUE_RESET) or self._get(_QUEUE_READY):
            if time.monotonic() > deadline:
                raise TransportError(f"queue {index} is not reset within {_RESET_TIMEOUT_S} s")

    def notify(self, index: int, data: int | None) -> None:
        self._put(_QUEUE_NOTIFY, index if data is None else data)

    def read_config(self, offset: int, length: int) -> bytes:
        self._check_config(offset, length)
        for _ in range(CONFIG_READ_ATTEMPTS):
            before = self._get(_CONFIG_GENERATION)
            data = load_bytes(self._client, self._base + _CONFIG + offset, length)
            if self._get(_CONFIG_GENERATION) == before:
                return data
        raise TransportError("the configuration changes all the time (2.5.1)")

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
        status = self._get(_INTERRUPT_STATUS)
        if status:
            self._put(_INTERRUPT_ACK, status)
        return set(range(self.queue_count)) if status & 1 else set(), bool(status & 2)


def find(client: Client) -> MmioRegisters:
    """The first register block with a device behind it. Raises TransportError if there is none, or
    one with registers of version 1."""
    for block in range(BLOCKS):
        base = BASE + block * BLOCK_BYTES
        if client.load(base + _MAGIC, 4) != _MAGIC_VALUE or not client.load(base + _DEVICE_ID, 4):
            continue
        version = client.load(base + _VERSION, 4)
        if version != _VERSION_VALUE:
            raise TransportError(f"registers of version {version}, not {_VERSION_VALUE} (4.2.2)")
        return MmioRegisters(client, base)
    raise TransportError("there is no virtio device behind memory-mapped registers")
