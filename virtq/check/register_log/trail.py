"""A log with what each access means: the field, and how things stood when it came.

Both buses have the same fields by other names; here they have those of the common configuration
structure (4.1.4.3) on either. A rule looks at steps, and need not know which bus it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from virtq.check.register_log.log import Access, Log
from virtq.transports.qtest.virtio_mmio import REGISTERS
from virtq.transports.qtest.virtio_pci import FIELDS

_MMIO: Mapping[str, tuple[str, int]] = {
    "Status": ("device_status", 0),
    "DeviceFeatures": ("device_feature", 0),
    "DeviceFeaturesSel": ("device_feature_select", 0),
    "DriverFeatures": ("driver_feature", 0),
    "DriverFeaturesSel": ("driver_feature_select", 0),
    "QueueSel": ("queue_select", 0),
    "QueueSizeMax": ("queue_size", 0),
    "QueueSize": ("queue_size", 0),
    "QueueReady": ("queue_enable", 0),
    "QueueDescLow": ("queue_desc", 0),
    "QueueDescHigh": ("queue_desc", 4),
    "QueueDriverLow": ("queue_driver", 0),
    "QueueDriverHigh": ("queue_driver", 4),
    "QueueDeviceLow": ("queue_device", 0),
    "QueueDeviceHigh": ("queue_device", 4),
    "QueueReset": ("queue_reset", 0),
    "QueueNotify": ("notify", 0),
    "ConfigGeneration": ("config_generation", 0),
}
"""Register to (field, byte of it)."""
_CONFIG = 0x100
_NAMES = {offset: name for name, offset in REGISTERS.items()}
ADDRESSES = ("queue_desc", "queue_driver", "queue_device")


@dataclass(frozen=True)
class Step:
    """An access, and how things stood before it.

    `field`: its name, "notify", "config" for the device's own configuration, or "" where the log's
    place has no such thing. `byte`: which byte of the field it begins at. `register`: the name on a
    register block. `life` counts the resets before it. `status`: what was written last. `offered`,
    `accepted`: the features as the driver read and wrote them in this life. `queue`: queue_select.
    `enabled`: the virtqueues that are. `msix`: whether MSI-X is enabled."""

    access: Access
    field: str
    byte: int
    register: str
    life: int
    status: int
    offered: int
    offered_words: frozenset[int]
    accepted: int
    queue: int
    select: int | None
    enabled: frozenset[int]
    msix: bool

    @property
    def reads(self) -> bool:
        return self.access.do == "read"

    @property
    def writes(self) -> bool:
        return self.access.do == "write"

    @property
    def value(self) -> int:
        return self.access.value

    def puts(self, *fields: str) -> bool:
        """Whether it writes one of these fields."""
        return self.access.do == "write" and self.field in fields

    def gets(self, *fields: str) -> bool:
        """Whether it reads one of these fields."""
        return self.access.do == "read" and self.field in fields

    def __str__(self) -> str:
        name = self.register or self.field
        return f"{self.access}" + (f" ({name})" if name else "")


@dataclass
class Trail:
    """All steps of a log, but for reads that are repeated more than once."""

    log: Log
    steps: list[Step] = field(default_factory=list)

    @property
    def bus(self) -> str:
        return self.log.bus

    def lives(self) -> Iterator[list[Step]]:
        """The steps between two resets, each with the reset that it begins with, if it does."""
        life: list[Step] = []
        for step in self.steps:
            if life and step.life != life[-1].life:
                yield life
                life = []
            life.append(step)
        if life:
            yield life


@dataclass
class _State:
    life: int = 0
    status: int = 0
    offered: int = 0
    offered_words: frozenset[int] = frozenset()
    accepted: dict[int, int] = field(default_factory=dict)
    queue: int = 0
    device_select: int | None = None
    driver_select: int | None = None
    enabled: set[int] = field(default_factory=set)
    msix: bool = False


def _without_polling(accesses: list[Access]) -> Iterator[Access]:
    """Of reads that are the same again and again, the first two."""
    last, again = None, 0
    for access in accesses:
        what = (access.at, access.offset, access.width, access.value)
        again = again + 1 if access.do == "read" and what == last else 0
        last = what if access.do == "read" else None
        if again < 2:
            yield access


class _Reader:
    def __init__(self, log: Log) -> None:
        self.log = log
        self.config = dict(log.config)
        self.state = _State()

    def steps(self) -> Iterator[Step]:
        for access in _without_polling(self.log.accesses):
            name, byte, register = self._name(access)
            if access.do == "write" and name == "device_status" and access.value == 0:
                # What comes from here on is another life, and this is its first step.
                self.state = _State(life=self.state.life + 1, msix=self.state.msix)
            yield self._step(access, name, byte, register)
            self._follow(access, name)

    def _step(self, access: Access, name: str, byte: int, register: str) -> Step:
        state = self.state
        select = {
            "device_feature": state.device_select,
            "driver_feature": state.driver_select,
        }.get(name)
        return Step(
            access,
            name,
            byte,
            register,
            state.life,
            state.status,
            state.offered,
            state.offered_words,
            sum(word << 32 * index for index, word in state.accepted.items() if index < 4),
            state.queue,
            select,
            frozenset(state.enabled),
            state.msix,
        )

    def _name(self, access: Access) -> tuple[str, int, str]:
        if access.at == "mmio":
            if access.offset >= _CONFIG:
                return "config", access.offset - _CONFIG, ""
            register = _NAMES.get(access.offset & ~3, "")
            name, byte = _MMIO.get(register, ("", 0))
            return name, byte + access.offset % 4, register
        if access.at == "common":
            for name, (offset, size) in FIELDS.items():
                if offset <= access.offset < offset + size:
                    return name, access.offset - offset, ""
        if access.at == "device":
            return "config", access.offset, ""
        return ("notify" if access.at == "notify" else ""), access.offset, ""

    def _follow(self, access: Access, name: str) -> None:
        state, value = self.state, access.value
        if access.at == "config":
            self._follow_config(access)
        elif access.do == "read" and name == "device_feature" and state.device_select is not None:
            if state.device_select < 4:
                state.offered |= value << 32 * state.device_select
                state.offered_words |= {state.device_select}
        elif access.do == "write":
            match name:
                case "device_status":
                    state.status = value
                case "device_feature_select":
                    state.device_select = value
                case "driver_feature_select":
                    state.driver_select = value
                case "driver_feature" if state.driver_select is not None:
                    state.accepted[state.driver_select] = value
                case "queue_select":
                    state.queue = value
                case "queue_enable" if value:
                    state.enabled.add(state.queue)
                case "queue_enable":
                    state.enabled.discard(state.queue)
                case "queue_reset" if value:
                    state.enabled.discard(state.queue)

    def _follow_config(self, access: Access) -> None:
        for i in range(access.width):
            self.config[access.offset + i] = access.value >> 8 * i & 0xFF
        for at, kind in capabilities(self.config):
            if kind == 0x11:
                self.state.msix = bool(self.config.get(at + 3, 0) & 0x80)


def capabilities(config: Mapping[int, int]) -> Iterator[tuple[int, int]]:
    """(offset, id) of each capability, as far as it is known."""
    at, seen = config.get(0x34, 0) & ~3, set[int]()
    while at >= 0x40 and at not in seen and at in config:
        seen.add(at)
        yield at, config[at]
        at = config.get(at + 1, 0) & ~3


def known_config(trail: Trail) -> dict[int, int]:
    """Configuration space as the log tells it and the driver read it; not what it wrote."""
    config = dict(trail.log.config)
    for step in trail.steps:
        if step.access.at == "config" and step.reads:
            for i in range(step.access.width):
                config[step.access.offset + i] = step.value >> 8 * i & 0xFF
    return config


def follow(log: Log) -> Trail:
    """What each access of the log means."""
    return Trail(log, list(_Reader(log).steps()))


def replaced(log: Log, accesses: list[Access]) -> Log:
    """The same device with other accesses."""
    return dataclasses.replace(log, accesses=accesses)
