"""A virtio device on the PCI bus (VIRTIO 1.4, section 4.1), by its modern interface."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from virtq.errors import ConfigError, TransportError, UndrivableDevice
from virtq.features import F
from virtq.memory import Arena
from virtq.transports.qtest import msix
from virtq.transports.qtest.access import Accesses
from virtq.transports.qtest.capabilities import Cfg, Structure, structures
from virtq.transports.qtest.pci import Function, Window, functions
from virtq.transports.qtest.registers import (
    POLL_MAX_S,
    POLL_MIN_S,
    at_one_generation,
    load_bytes,
    store_bytes,
)

VENDOR = 0x1AF4
_DEVICE_MODERN, _DEVICE_FIRST, _DEVICE_LAST = 0x1040, 0x1000, 0x107F

FIELDS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "device_feature_select": (0, 4),
        "device_feature": (4, 4),
        "driver_feature_select": (8, 4),
        "driver_feature": (12, 4),
        "config_msix_vector": (16, 2),
        "num_queues": (18, 2),
        "device_status": (20, 1),
        "config_generation": (21, 1),
        "queue_select": (22, 2),
        "queue_size": (24, 2),
        "queue_msix_vector": (26, 2),
        "queue_enable": (28, 2),
        "queue_notify_off": (30, 2),
        "queue_desc": (32, 8),
        "queue_driver": (40, 8),
        "queue_device": (48, 8),
        "queue_notif_config_data": (56, 2),
        "queue_reset": (58, 2),
        "admin_queue_index": (60, 2),
        "admin_queue_num": (62, 2),
    }
)
"""The common configuration structure (4.1.4.3): offset and size in bytes of each field."""

_PRESENT: Mapping[int, str] = MappingProxyType(
    {
        Cfg.COMMON: "pci.common.dev.present",
        Cfg.NOTIFY: "pci.notifycap.dev.present",
        Cfg.ISR: "pci.isr.dev.present",
    }
)
"""Structures that every function has, and the requirement that says so."""
_RESET_TIMEOUT_S = 5.0


class PciRegisters:
    """Implements `Registers` for one PCI function, and gives its fields by name (`get`, `put`).
    `words` is where interrupt words are allocated: guest RAM."""

    QUEUE_RESET = ("queue_select", "queue_reset")
    """The registers that select a virtqueue, and reset it."""
    GENERATION = "config_generation"

    poll_s = (POLL_MIN_S, POLL_MAX_S)

    def __init__(self, client: Accesses, function: Function, words: Arena) -> None:
        self._client = client
        self.function = function
        self._notify_offsets: dict[int, tuple[int, int]] = {}
        self._structures = structures(function)
        self._common = self.structure(Cfg.COMMON)
        self.count_queues()
        self.msix = msix.find(client, function, words)
        if self.msix:
            self.msix.point()
            self.msix.enable(True)
        self.config_vector = 0
        self.queue_vectors: dict[int, int] = {}
        """Where a queue is to have another vector than the usual, or NO_VECTOR."""
        self._driver_features = 0

    def count_queues(self) -> None:
        self.queue_count = self.get("num_queues")

    def structure(self, kind: int) -> Structure:
        """One that every function has. Raises UndrivableDevice if this one does not."""
        if kind not in self._structures:
            text = f"the PCI function has no {Cfg(kind).name} structure (4.1.4)"
            raise UndrivableDevice(text, _PRESENT[kind])
        return self._structures[kind]

    @property
    def device_id(self) -> int:
        device = self.function.device
        return device - _DEVICE_MODERN if device >= _DEVICE_MODERN else self.function.subsystem

    # Single accesses

    def get(self, field: str) -> int:
        """Read a field of the common configuration; 64 bits as two words (4.1.3.1)."""
        offset, size = FIELDS[field]
        at = self._common.address + offset
        if size == 8:
            return self._client.load(at, 4) | self._client.load(at + 4, 4) << 32
        return self._client.load(at, size)

    def put(self, field: str, value: int) -> None:
        """Write a field of the common configuration; 64 bits as two words."""
        offset, size = FIELDS[field]
        at = self._common.address + offset
        if size == 8:
            self._client.store(at, 4, value)
            self._client.store(at + 4, 4, value >> 32)
        else:
            self._client.store(at, size, value)

    def get_half(self, field: str, high: bool) -> int:
        """Read one 32-bit half of a 64-bit field."""
        return self._client.load(self._common.address + FIELDS[field][0] + 4 * high, 4)

    def put_half(self, field: str, high: bool, value: int) -> None:
        """Write one 32-bit half of a 64-bit field."""
        self._client.store(self._common.address + FIELDS[field][0] + 4 * high, 4, value)

    def load(self, structure: Structure, offset: int, size: int) -> int:
        """One access to a structure. Raises ConfigError beyond its end."""
        _check_range(structure, offset, size)
        return self._client.load(structure.address + offset, size)

    def isr(self) -> int:
        """Read the ISR status, which acknowledges it (4.1.4.5)."""
        return self._client.load(self.structure(Cfg.ISR).address, 1)

    # Status and features

    def read_status(self) -> int:
        return self.get("device_status")

    def write_status(self, status: int) -> None:
        self.put("device_status", status)
        if status == 0:
            self._driver_features = 0
            self._notify_offsets.clear()
        elif self._vectors:
            self._route("config_msix_vector", self.config_vector)

    def read_feature_word(self, index: int) -> int:
        self.put("device_feature_select", index)
        return self.get("device_feature")

    def write_feature_word(self, index: int, word: int) -> None:
        self.put("driver_feature_select", index)
        self.put("driver_feature", word)
        self._driver_features |= word << 32 * index

    # Queues

    def _select(self, index: int) -> None:
        if not 0 <= index < self.queue_count:
            raise ConfigError(f"queue {index} of a device that has {self.queue_count}")
        self.put("queue_select", index)

    def queue_size_max(self, index: int) -> int:
        self._select(index)
        return self.get("queue_size")

    def enable_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> None:
        self.configure_queue(index, size, desc, driver, device)
        self.put("queue_enable", 1)

    def configure_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> None:
        """All that comes before a queue is enabled (4.1.5.1.3). Raises TransportError if the queue
        cannot be notified or cannot interrupt."""
        self._select(index)
        self.put("queue_size", size)
        self.put("queue_desc", desc)
        self.put("queue_driver", driver)
        self.put("queue_device", device)
        if self._vectors:
            self._route("queue_msix_vector", self.vector_of(index))
        area = self.structure(Cfg.NOTIFY)
        offset = self.get("queue_notify_off") * area.multiplier
        width = 4 if self._driver_features & F.NOTIFICATION_DATA else 2
        if offset + width > area.length:
            raise TransportError(f"queue {index} is notified beyond the notification area")
        told = index
        if self._driver_features & F.NOTIF_CONFIG_DATA:
            told = self.get("queue_notif_config_data")
        self._notify_offsets[index] = area.address + offset, told

    def reset_queue(self, index: int) -> None:
        self._select(index)
        self.put("queue_reset", 1)
        deadline = time.monotonic() + _RESET_TIMEOUT_S
        while self.get("queue_reset"):
            if time.monotonic() > deadline:
                raise TransportError(f"queue {index} is not reset within {_RESET_TIMEOUT_S} s")
            self._select(index)
        self._notify_offsets.pop(index, None)

    def notify(self, index: int, data: int | None) -> None:
        if (found := self._notify_offsets.get(index)) is not None:
            address, told = found
            if data is None:
                self._client.store(address, 2, told)
            else:
                self._client.store(address, 4, data & ~0xFFFF | told)

    # The device's own configuration

    @property
    def config_size(self) -> int:
        area = self._structures.get(Cfg.DEVICE)
        return area.length if area else 0

    def read_config(self, offset: int, length: int) -> bytes:
        area = self._config_area(offset, length)
        return at_one_generation(
            lambda: self.get("config_generation"),
            lambda: load_bytes(self._client, area.address + offset, length),
        )

    def read_config_by(self, accesses: Sequence[tuple[int, int]]) -> list[bytes]:
        area = self._config_area(0, max((at + width for at, width in accesses), default=1))
        return at_one_generation(
            lambda: self.get("config_generation"),
            lambda: [load_bytes(self._client, area.address + at, width) for at, width in accesses],
        )

    def load_config(self, offset: int, size: int) -> int:
        """One access to the configuration space. Raises ConfigError beyond the end."""
        return self._client.load(self._config_area(offset, size).address + offset, size)

    def write_config(self, offset: int, data: bytes) -> None:
        area = self._config_area(offset, len(data))
        store_bytes(self._client, area.address + offset, data)

    def _config_area(self, offset: int, length: int) -> Structure:
        area = self._structures.get(Cfg.DEVICE, Structure(0, 0))
        _check_range(area, offset, length)
        return area

    # Interrupts

    def without_msix(self) -> None:
        """Use INTx from now on; before the device is initialized."""
        if self.msix:
            self.msix.enable(False)
            self.msix = None

    @property
    def _vectors(self) -> int:
        return self.msix.size if self.msix else 0

    def _route(self, field: str, vector: int) -> None:
        self.put(field, vector)
        if self.get(field) != vector:
            raise TransportError(f"the device has no resources for MSI-X vector {vector} (4.1.5.1)")

    def vector_of(self, queue: int) -> int:
        """One for each queue behind that of the configuration, or one for all."""
        if queue in self.queue_vectors:
            return self.queue_vectors[queue]
        if self._vectors > self.queue_count:
            return queue + 1
        return min(1, self._vectors - 1)

    def interrupts(self) -> tuple[set[int], bool]:
        if not self.msix:
            return self._from_isr()
        # Cleared before the rings are looked at: a message that arrives between the two, and is
        # lost, was for what is about to be seen there.
        raised = self.msix.take()
        queues = {index for index in range(self.queue_count) if self.vector_of(index) in raised}
        return queues, self.config_vector in raised

    def _from_isr(self) -> tuple[set[int], bool]:
        status = self.isr()
        return set(range(self.queue_count)) if status & 1 else set(), bool(status & 2)


def _check_range(area: Structure, offset: int, length: int) -> None:
    if offset < 0 or length < 1 or offset + length > area.length:
        raise ConfigError(
            f"bytes {offset} to {offset + length} of a configuration space of {area.length}"
        )


def find(client: Accesses, words: Arena) -> PciRegisters:
    """The first virtio function on bus 0, ready to be driven. Raises TransportError if there is
    none, or one that has only the legacy interface; UndrivableDevice for one that has no common
    configuration and is no device of that interface either."""
    window = Window()
    for function in functions(client):
        device = function.device
        if function.vendor == VENDOR and _DEVICE_FIRST <= device <= _DEVICE_LAST:
            function.place_bars(window)
            if device < _DEVICE_MODERN and Cfg.COMMON not in structures(function):
                raise TransportError("the PCI function has only the legacy interface (4.1.2)")
            return PciRegisters(client, function, words)
    raise TransportError("there is no virtio device on the PCI bus")
