"""A virtio device on the PCI bus (VIRTIO 1.4, section 4.1), by its modern interface.

Interrupts are MSI-X messages. There is no processor to receive them, so each vector is pointed at a
word of guest RAM instead: the device writes the message there, and we see the word change.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from virtq.errors import ConfigError, TransportError
from virtq.memory import Arena
from virtq.transports.qtest.client import Client
from virtq.transports.qtest.pci import Function, Window, functions
from virtq.transports.qtest.registers import (
    CONFIG_READ_ATTEMPTS,
    POLL_MAX_S,
    POLL_MIN_S,
    load_bytes,
    store_bytes,
)

VENDOR = 0x1AF4
_DEVICE_MODERN, _DEVICE_FIRST, _DEVICE_LAST = 0x1040, 0x1000, 0x107F

_CAP_VENDOR, _CAP_MSIX = 0x09, 0x11
_COMMON, _NOTIFY, _ISR, _DEVICE = 1, 2, 3, 4

# The common configuration structure (4.1.4.3): offset and size of each field.
_DEVICE_FEATURE_SELECT, _DEVICE_FEATURE = (0, 4), (4, 4)
_DRIVER_FEATURE_SELECT, _DRIVER_FEATURE = (8, 4), (12, 4)
_CONFIG_VECTOR, _NUM_QUEUES, _STATUS, _GENERATION = (16, 2), (18, 2), (20, 1), (21, 1)
_QUEUE_SELECT, _QUEUE_SIZE, _QUEUE_VECTOR, _QUEUE_ENABLE = (22, 2), (24, 2), (26, 2), (28, 2)
_QUEUE_NOTIFY_OFF, _QUEUE_DESC, _QUEUE_DRIVER, _QUEUE_DEVICE = (30, 2), (32, 8), (40, 8), (48, 8)
_QUEUE_NOTIF_CONFIG_DATA, _QUEUE_RESET = (56, 2), (58, 2)

_NO_VECTOR = 0xFFFF
_MSIX_CONTROL, _MSIX_TABLE, _MSIX_ENTRY_BYTES = 2, 4, 16
_MSIX_ENABLE, _MSIX_SIZE_MASK = 1 << 15, 0x7FF
_RESET_TIMEOUT_S = 5.0
_NOTIF_CONFIG_DATA_BIT = 39


@dataclass(frozen=True)
class Structure:
    """Where a virtio structure is: a guest-physical address, its length in bytes."""

    address: int
    length: int


class PciRegisters:
    """Implements `Registers` for one PCI function. `words` is where interrupt words are allocated:
    guest RAM."""

    poll_s = (POLL_MIN_S, POLL_MAX_S)

    def __init__(self, client: Client, function: Function, words: Arena) -> None:
        self._client = client
        self._function = function
        self._notify_offsets: dict[int, tuple[int, int]] = {}
        self._structures, self._multiplier = _structures(function)
        for kind, name in ((_COMMON, "common"), (_NOTIFY, "notification"), (_ISR, "ISR")):
            if kind not in self._structures:
                raise TransportError(f"the PCI function has no {name} configuration (4.1.4)")
        self._common = self._structures[_COMMON]
        self.count_queues()
        self._vectors = _vectors(function)
        self._words = words.alloc(4 * max(1, self._vectors))
        self._point_vectors()
        self._driver_features = 0

    def count_queues(self) -> None:
        self.queue_count = self._get(_NUM_QUEUES)

    @property
    def device_id(self) -> int:
        device = self._function.device
        return device - _DEVICE_MODERN if device >= _DEVICE_MODERN else self._function.subsystem

    # The common configuration

    def _get(self, field: tuple[int, int]) -> int:
        offset, size = field
        return self._client.load(self._common.address + offset, size)

    def _put(self, field: tuple[int, int], value: int) -> None:
        offset, size = field
        at = self._common.address + offset
        if size == 8:  # as two words: a device need not take a larger access (4.1.3.1)
            self._client.store(at, 4, value)
            self._client.store(at + 4, 4, value >> 32)
        else:
            self._client.store(at, size, value)

    def read_status(self) -> int:
        return self._get(_STATUS)

    def write_status(self, status: int) -> None:
        self._put(_STATUS, status)
        if status == 0:
            self._driver_features = 0
            self._notify_offsets.clear()
        elif self._vectors:
            self._route(_CONFIG_VECTOR, 0)

    def read_feature_word(self, index: int) -> int:
        self._put(_DEVICE_FEATURE_SELECT, index)
        return self._get(_DEVICE_FEATURE)

    def write_feature_word(self, index: int, word: int) -> None:
        self._put(_DRIVER_FEATURE_SELECT, index)
        self._put(_DRIVER_FEATURE, word)
        self._driver_features |= word << 32 * index

    # Queues

    def _select(self, index: int) -> None:
        if not 0 <= index < self.queue_count:
            raise ConfigError(f"queue {index} of a device that has {self.queue_count}")
        self._put(_QUEUE_SELECT, index)

    def queue_size_max(self, index: int) -> int:
        self._select(index)
        return self._get(_QUEUE_SIZE)

    def enable_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> None:
        self._select(index)
        self._put(_QUEUE_SIZE, size)
        self._put(_QUEUE_DESC, desc)
        self._put(_QUEUE_DRIVER, driver)
        self._put(_QUEUE_DEVICE, device)
        if self._vectors:
            self._route(_QUEUE_VECTOR, self._vector_of(index))
        area = self._structures[_NOTIFY]
        offset = self._get(_QUEUE_NOTIFY_OFF) * self._multiplier
        if offset + 2 > area.length:
            raise TransportError(f"queue {index} is notified beyond the notification area")
        told = index
        if self._driver_features >> _NOTIF_CONFIG_DATA_BIT & 1:
            told = self._get(_QUEUE_NOTIF_CONFIG_DATA)
        self._notify_offsets[index] = area.address + offset, told
        self._put(_QUEUE_ENABLE, 1)

    def _route(self, field: tuple[int, int], vector: int) -> None:
        self._put(field, vector)
        if self._get(field) != vector:
            raise TransportError(f"the device has no resources for MSI-X vector {vector} (4.1.5.1)")

    def _vector_of(self, queue: int) -> int:
        """One for each queue behind that of the configuration, or one for all."""
        if self._vectors > self.queue_count:
            return queue + 1
        return min(1, self._vectors - 1)

    def reset_queue(self, index: int) -> None:
        self._select(index)
        self._put(_QUEUE_RESET, 1)
        deadline = time.monotonic() + _RESET_TIMEOUT_S
        while self._get(_QUEUE_RESET):
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
        area = self._structures.get(_DEVICE)
        return area.length if area else 0

    def read_config(self, offset: int, length: int) -> bytes:
        area = self._config_area(offset, length)
        for _ in range(CONFIG_READ_ATTEMPTS):
            before = self._get(_GENERATION)
            data = load_bytes(self._client, area.address + offset, length)
            if self._get(_GENERATION) == before:
                return data
        raise TransportError("the configuration changes all the time (2.5.1)")

    def write_config(self, offset: int, data: bytes) -> None:
        area = self._config_area(offset, len(data))
        store_bytes(self._client, area.address + offset, data)

    def _config_area(self, offset: int, length: int) -> Structure:
        area = self._structures.get(_DEVICE, Structure(0, 0))
        if offset < 0 or length < 1 or offset + length > area.length:
            raise ConfigError(
                f"bytes {offset} to {offset + length} of a configuration space of {area.length}"
            )
        return area

    # Interrupts

    def _point_vectors(self) -> None:
        """Each MSI-X vector at a word of its own; the message is the vector's number plus one."""
        if not self._vectors:
            return
        at = _msix(self._function)
        table = self._function.read(at + _MSIX_TABLE, 4)
        if table & 7 not in self._function.bars:
            raise TransportError(f"the MSI-X table is in BAR {table & 7}, which does not exist")
        base = self._function.bars[table & 7] + (table & ~7)
        for vector in range(self._vectors):
            entry, word = base + vector * _MSIX_ENTRY_BYTES, self._words.addr + 4 * vector
            for offset, value in ((0, word), (4, word >> 32), (8, vector + 1), (12, 0)):
                self._client.store(entry + offset, 4, value)
        control = self._function.read(at + _MSIX_CONTROL, 2)
        self._function.write(at + _MSIX_CONTROL, 2, control | _MSIX_ENABLE)

    def interrupts(self) -> tuple[set[int], bool]:
        if not self._vectors:
            return self._from_isr()
        # Cleared before the rings are looked at: a message that arrives between the two, and is
        # lost, was for what is about to be seen there.
        words = self._words.view.cast("I")
        raised = {vector for vector in range(self._vectors) if words[vector]}
        for vector in raised:
            words[vector] = 0
        queues = {index for index in range(self.queue_count) if self._vector_of(index) in raised}
        return queues, 0 in raised

    def _from_isr(self) -> tuple[set[int], bool]:
        """Reading the ISR status acknowledges it (4.1.4.5)."""
        status = self._client.load(self._structures[_ISR].address, 1)
        return set(range(self.queue_count)) if status & 1 else set(), bool(status & 2)


def find(client: Client, words: Arena) -> PciRegisters:
    """The first virtio function on bus 0, ready to be driven. Raises TransportError if there is
    none, or one that has only the legacy interface."""
    window = Window()
    for function in functions(client):
        device = function.device
        if function.vendor == VENDOR and _DEVICE_FIRST <= device <= _DEVICE_LAST:
            function.place_bars(window)
            return PciRegisters(client, function, words)
    raise TransportError("there is no virtio device on the PCI bus")


def _structures(function: Function) -> tuple[Mapping[int, Structure], int]:
    """The virtio structures by type, the first of each that is in a BAR that exists (4.1.4.1), and
    the notification multiplier."""
    found: dict[int, Structure] = {}
    multiplier = 0
    for capability in function.capabilities():
        if capability.id != _CAP_VENDOR:
            continue
        at = capability.offset
        kind, bar = function.read(at + 3, 1), function.read(at + 4, 1)
        offset, length = function.read(at + 8, 4), function.read(at + 12, 4)
        if kind in found or bar not in function.bars:
            continue
        found[kind] = Structure(function.bars[bar] + offset, length)
        if kind == _NOTIFY:
            multiplier = function.read(at + 16, 4)
    return found, multiplier


def _msix(function: Function) -> int:
    """Offset of the MSI-X capability; 0 where there is none."""
    return next((c.offset for c in function.capabilities() if c.id == _CAP_MSIX), 0)


def _vectors(function: Function) -> int:
    """How many MSI-X vectors the function has."""
    at = _msix(function)
    return (function.read(at + _MSIX_CONTROL, 2) & _MSIX_SIZE_MASK) + 1 if at else 0
