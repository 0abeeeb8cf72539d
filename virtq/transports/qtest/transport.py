"""A device that QEMU has, as a driver's transport."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence

from virtq._core import Memory
from virtq.errors import TransportError
from virtq.memory import PAGE_BYTES, Arena
from virtq.transports.qtest import virtio_mmio, virtio_pci
from virtq.transports.qtest.by_registers import RegisterTransport
from virtq.transports.qtest.machine import QEMU, RAM_BYTES, Machine
from virtq.transports.qtest.registers import Registers

log = logging.getLogger("virtq.qtest")

_RAM_START = 1 << 20
"""Below it, PC machines have holes in their RAM."""
_MODEL = re.compile(r"[a-z][a-z0-9-]*(-pci|-device)[a-z-]*(,.*)?")
_DISK, _NETDEV, _PORT = "virtq-disk", "virtq-net", "virtq-port"
_DISK_BYTES, _DISK_STEP_BYTES = 64 << 20, 1 << 20


class QtestTransport(RegisterTransport):
    """A device of a QEMU that it starts."""

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
        queue_size_max: int | None = None,
    ) -> None:
        """`device`: what QEMU's `-device` takes, such as `virtio-blk-pci,packed=on,in_order=on`; a
        model that ends in `-device` is one with memory-mapped registers. `arguments`: further
        options for QEMU; devices among them may be plugged into this one, as a console's ports are.

        A block device that names no `drive` gets the raw image `disk`, or `disk_bytes` of zeroes
        that vanish with it; a network device that names no `netdev` gets one that leads nowhere;
        a console without `arguments` has one port, which leads nowhere. `queue_size_max`: no queue
        is said to be larger, whatever the device says.

        Raises TransportError, with QEMU's words where it has any, if there is no such device."""
        if not _MODEL.fullmatch(device):
            raise TransportError(f"{device!r} is not a device such as virtio-blk-pci,packed=on")
        model = device.partition(",")[0]
        self._mmio = model.endswith("-device")
        name = f"qtest:{model}"
        with contextlib.ExitStack() as stack:
            given = list(arguments)
            self._change: Callable[[], object] | None = None
            self._changed = False
            if "blk" in model and ",drive=" not in device:
                if disk is None:
                    sizes = itertools.count(disk_bytes + _DISK_STEP_BYTES, _DISK_STEP_BYTES)
                    self._change = lambda: self._resize(next(sizes))
                given += ["-blockdev", _blockdev(stack.enter_context(_disk(disk, disk_bytes)))]
                device += f",drive={_DISK}"
            if "-net-" in model and ",netdev=" not in device:
                given += ["-netdev", f"user,id={_NETDEV},restrict=on"]
                device += f",netdev={_NETDEV}"
                states = itertools.cycle((False, True))
                self._change = lambda: self._set_link(next(states))
            if "-serial-" in model and not arguments:
                given += ["-chardev", f"null,id={_PORT}", "-device", f"virtconsole,chardev={_PORT}"]
            if self._mmio:
                given += ["-global", "virtio-mmio.force-legacy=false"]
            self._machine = Machine(
                machine or ("microvm,ioapic2=off" if self._mmio else "pc"),
                ["-device", device, *given],
                qemu=qemu,
                ram_bytes=ram_bytes,
                name=name,
            )
            stack.callback(self._machine.close)
            super().__init__(self._machine.client, *self._map(), queue_size_max=queue_size_max)
            stack.callback(super().close)
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

    # What its owner may change

    def change_config(self) -> bool:
        """A disk of zeroes grows by 1 MiB; a network device that leads nowhere loses its link, or
        has it again."""
        if self._change is None:
            return False
        self._changed = True
        self._change()
        return True

    def _resize(self, size_bytes: int) -> None:
        arguments = {"node-name": _DISK, "size": size_bytes}
        self._machine.monitor.execute("block_resize", arguments)

    def _set_link(self, up: bool) -> None:
        self._machine.monitor.execute("set_link", {"name": _NETDEV, "up": up})

    # The end

    def renew(self) -> None:
        """As a new QEMU would be: the device is reset, its interrupts are taken back, RAM is zero.
        Raises TransportError, also for one that its owner has changed; PeerGone."""
        if self._changed:
            raise TransportError(f"{self._machine.name}: the device is not as it was")
        self._notifier.config_changed = None
        self.write_status(0)
        self._machine.clear_ram(_RAM_START)
        self.check()

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
    return f"driver=file,node-name={_DISK},locking=off,filename={name}"


def _io_apic(machine: Machine) -> str:
    """Where QEMU's object tree has the I/O APIC."""
    for folder in ("/machine", "/machine/unattached"):
        for child in machine.monitor.execute("qom-list", {"path": folder}):
            if child["type"] == "child<ioapic>":
                return f"{folder}/{child['name']}"
    raise TransportError(f"{machine.name}: this machine has no I/O APIC")
