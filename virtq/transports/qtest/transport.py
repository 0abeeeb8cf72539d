"""A device that QEMU has, as a driver's transport."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence

from virtq._core import Memory, Position
from virtq.errors import ConfigError, TransportError
from virtq.features import F
from virtq.memory import PAGE_BYTES, Arena
from virtq.status import Status
from virtq.transports.base import QueueEnd
from virtq.transports.qtest import virtio_mmio, virtio_pci
from virtq.transports.qtest.machine import QEMU, RAM_BYTES, Machine
from virtq.transports.qtest.notifier import Notifier
from virtq.transports.qtest.registers import Registers

log = logging.getLogger("virtq.qtest")

FEATURE_WORDS = 4
"""128 feature bits; a device that has fewer reads as zero beyond them."""
_RAM_START = 1 << 20
"""Below it, PC machines have holes in their RAM."""
_MODEL = re.compile(r"[a-z][a-z0-9-]*(-pci|-device)[a-z-]*(,.*)?")
_DISK_BYTES = 64 << 20


class QtestTransport:
    """Implements `virtq.transports.base.DriverTransport` on a device of a QEMU that it starts."""

    def __init__(
        self,
        device: str,
        *,
        disk: str | None = None,
        disk_bytes: int = _DISK_BYTES,
        arguments: Sequence[str] = (),
        machine: str | None = None,
        ram_bytes: int = RAM_BYTES,
        qemu: str = QEMU,
    ) -> None:
        """`device`: what QEMU's `-device` takes, such as `virtio-blk-pci,packed=on,in_order=on`; a
        model that ends in `-device` is one with memory-mapped registers. `arguments`: further
        options for QEMU.

        A block device that names no `drive` gets the raw image `disk`, or `disk_bytes` of zeroes
        that vanish with it; a network device that names no `netdev` gets one that leads nowhere.

        Raises TransportError, with QEMU's words where it has any, if there is no such device."""
        if not _MODEL.fullmatch(device):
            raise TransportError(f"{device!r} is not a device such as virtio-blk-pci,packed=on")
        model = device.partition(",")[0]
        self._mmio = model.endswith("-device")
        name = f"qtest:{model}"
        with contextlib.ExitStack() as stack:
            given = list(arguments)
            if "blk" in model and ",drive=" not in device:
                given += ["-blockdev", _blockdev(stack.enter_context(_disk(disk, disk_bytes)))]
                device += ",drive=virtq-disk"
            if "-net-" in model and ",netdev=" not in device:
                given += ["-netdev", "user,id=virtq-net,restrict=on"]
                device += ",netdev=virtq-net"
            if self._mmio:
                given += ["-global", "virtio-mmio.force-legacy=false"]
            self._machine = Machine(
                machine or ("microvm,ioapic2=off" if self._mmio else "pc"),
                [*given, "-device", device],
                qemu=qemu,
                ram_bytes=ram_bytes,
                name=name,
            )
            stack.callback(self._machine.close)
            self._memory, self._registers = self._map()
            self._notifier = Notifier(self._machine.client, self._registers)
            stack.callback(self._notifier.close)
            self._queue_sizes = [
                self._registers.queue_size_max(i) for i in range(self._registers.queue_count)
            ]
            self._resources = stack.pop_all()

    def _map(self) -> tuple[Memory, Registers]:
        """The RAM that a driver may use, and the registers; interrupt words have a page before."""
        machine = self._machine
        words = Memory()
        words.add_region(machine.ram_fd, _RAM_START, PAGE_BYTES, _RAM_START)
        memory, start = Memory(), _RAM_START + PAGE_BYTES
        memory.add_region(machine.ram_fd, start, machine.ram_bytes - start, start)
        if self._mmio:
            machine.client.intercept(_io_apic(machine))
            return memory, virtio_mmio.find(machine.client)
        return memory, virtio_pci.find(machine.client, Arena(words))

    @property
    def machine(self) -> Machine:
        """The QEMU behind it: its monitor, its qtest client, its process."""
        return self._machine

    # What the device is

    @property
    def memory(self) -> Memory:
        return self._memory

    @property
    def device_id(self) -> int | None:
        return self._registers.device_id

    @property
    def queue_count(self) -> int:
        return self._registers.queue_count

    def queue_size_max(self, index: int) -> int:
        return self._queue_sizes[index]

    # Negotiation

    def read_features(self) -> int:
        words = (self._registers.read_feature_word(index) for index in range(FEATURE_WORDS))
        return sum(word << 32 * index for index, word in enumerate(words))

    def write_features(self, features: int) -> None:
        for index in range(FEATURE_WORDS):
            word = features >> 32 * index & 0xFFFF_FFFF
            if word or index < 2:
                self._registers.write_feature_word(index, word)
        self._notifier.notification_data = bool(features & F.NOTIFICATION_DATA)

    def read_status(self) -> int:
        return self._registers.read_status()

    def write_status(self, status: int) -> None:
        if status == 0:
            self._notifier.remove()
        self._registers.write_status(status)
        if status & Status.FEATURES_OK and not status & Status.DRIVER_OK:
            # QEMU's network device has its further queues from here on (MQ, RSS).
            self._registers.count_queues()
            known = len(self._queue_sizes)
            more = range(known, self._registers.queue_count)
            self._queue_sizes += [self._registers.queue_size_max(index) for index in more]

    # Configuration space

    @property
    def config_size(self) -> int:
        """What the bus has room for; the device's own configuration may be shorter."""
        return self._registers.config_size

    def read_config(self, offset: int, length: int) -> bytes:
        """Raises ConfigError beyond the end."""
        return self._registers.read_config(offset, length)

    def write_config(self, offset: int, data: bytes) -> None:
        """Raises ConfigError beyond the end. A device has no way to refuse a value here."""
        self._registers.write_config(offset, data)

    def on_config_change(self, callback: Callable[[], None] | None) -> None:
        """`callback` is called in a thread of the transport's."""
        self._notifier.config_changed = callback

    # Virtqueues

    def enable_queue(self, queue: QueueEnd, desc: int, driver: int, device: int) -> None:
        self._registers.enable_queue(queue.index, queue.size, desc, driver, device)
        self._notifier.add(queue)

    def reset_queue(self, index: int) -> Position:
        """Registers do not tell where the device stood: as a new queue begins."""
        if not 0 <= index < self.queue_count:
            raise ConfigError(f"queue {index} of a device that has {self.queue_count}")
        self._notifier.remove(index)
        self._registers.reset_queue(index)
        return Position(0, 1, 0, 1, 0)

    # The end

    def check(self) -> None:
        self._machine.check()

    def close(self) -> None:
        """Ends QEMU. Harmless when done twice."""
        self._resources.close()


@contextlib.contextmanager
def _disk(path: str | None, size_bytes: int) -> Iterator[str]:
    """A file for QEMU to open while it starts."""
    if path is not None:
        if not os.path.exists(path):
            raise TransportError(f"{path}: No such file or directory")
        yield path
        return
    fd = os.memfd_create("virtq-disk", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size_bytes)
        yield f"/proc/{os.getpid()}/fd/{fd}"
    finally:
        os.close(fd)


def _blockdev(path: str) -> str:
    name = path.replace(",", ",,")
    return f"driver=file,node-name=virtq-disk,locking=off,filename={name}"


def _io_apic(machine: Machine) -> str:
    """Where QEMU's object tree has the I/O APIC."""
    for folder in ("/machine", "/machine/unattached"):
        for child in machine.monitor.execute("qom-list", {"path": folder}):
            if child["type"] == "child<ioapic>":
                return f"{folder}/{child['name']}"
    raise TransportError(f"{machine.name}: this machine has no I/O APIC")
