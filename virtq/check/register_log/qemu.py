"""What QEMU traces of register accesses, as a log.

    qemu-system-x86_64 ... -device virtio-blk-pci,ioeventfd=off,... \\
        -trace 'memory_region_ops_*' -trace 'pci_cfg_*' -D trace.log

`ioeventfd=off` has notifications pass where they are traced. QEMU does not tell how wide an access
to configuration space was, so it is taken for as wide as its value. Interrupts are not traced on
PCI.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from virtq.check.register_log.log import Access, Do, Log

_MEMORY = re.compile(
    r"memory_region_ops_(read|write) cpu -?\d+ mr \S+ addr (0x[0-9a-f]+) value (0x[0-9a-f]+)"
    r" size (\d+) name '([^']+)'"
)
_CONFIG = re.compile(
    r"pci_cfg_(read|write) (virtio-\S+) (\S+) @(0x[0-9a-f]+) (?:->|<-) (0x[0-9a-f]+)"
)
_LINE = re.compile(r"virtio_mmio_setting_irq .* IRQ (\d)")
_STRUCTURE = re.compile(r"virtio-pci-(common|isr|device|notify)-(.+)")
_DEVICES = {"net": 1, "blk": 2, "console": 3, "rng": 4, "serial": 3, "balloon": 5, "scsi": 8}
_PAGE = 0xFFF
_BLOCK = 0x1FF


def is_trace(line: str) -> bool:
    """Whether a line could be of QEMU's."""
    return bool(re.search(r"\b(memory_region_ops_|pci_cfg_|virtio_mmio_)", line))


def parse(lines: Iterable[str]) -> list[Log]:
    """The logs of a trace, one for each device; lines about other things are passed over. Devices
    on PCI are told apart by type: of two of one type there is one log for both."""
    pci: dict[str, Log] = {}
    mmio: dict[int, Log] = {}
    last = None
    for number, line in enumerate(lines, 1):
        if found := _MEMORY.search(line):
            do, address, value = _do(found[1]), int(found[2], 16), int(found[3], 16)
            width = int(found[4])
            if structure := _STRUCTURE.fullmatch(found[5]):
                access = Access(number, do, structure[1], address & _PAGE, width, value)
                _pci(pci, structure[2]).accesses.append(access)
            elif found[5] == "virtio-mmio":
                last = mmio.setdefault(address & ~_BLOCK, Log("mmio"))
                last.accesses.append(Access(number, do, "mmio", address & _BLOCK, width, value))
                if do == "read" and address & _BLOCK == 8 and last.device_id is None:
                    last.device_id = value or None
        elif found := _CONFIG.search(line):
            do, value = _do(found[1]), int(found[5], 16)
            width = 1 if value < 0x100 else 2 if value < 0x10000 else 4
            access = Access(number, do, "config", int(found[4], 16), width, value)
            _pci(pci, found[2].removesuffix("-pci")).accesses.append(access)
        elif (found := _LINE.search(line)) and found[1] == "1" and last:
            last.accesses.append(Access(number, "interrupt"))
    return [*(log for log in pci.values() if log.accesses), *mmio.values()]


def _do(text: str) -> Do:
    return "read" if text == "read" else "write"


def _pci(logs: dict[str, Log], name: str) -> Log:
    kind = name.removeprefix("virtio-").removesuffix("-device")
    return logs.setdefault(kind, Log("pci", _DEVICES.get(kind)))
