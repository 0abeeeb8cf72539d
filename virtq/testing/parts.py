"""What a guest is made of: QEMU, a Linux kernel with its modules, and a static busybox.

`find_parts` looks for them where they usually are; the environment says otherwise:

    VIRTQ_QEMU      the program                          qemu-system-x86_64 on PATH
    VIRTQ_BUSYBOX   the program, statically linked       busybox on PATH
    VIRTQ_KERNEL    the kernel image                     /boot/vmlinuz of the newest kernel here
    VIRTQ_MODULES   the folder of its modules            /lib/modules/RELEASE of that kernel
"""

from __future__ import annotations

import gzip
import lzma
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from virtq.testing.process import PeerError

BOOT = Path("/boot")
MODULES = Path("/lib/modules")
ALWAYS = ("virtio_pci",)
"""Modules that every guest needs, where the kernel does not have them built in."""


class MissingPart(PeerError):
    """Something that a guest is made of is not on this machine; the text says what and how to name
    it."""


@dataclass(frozen=True)
class LinuxKernel:
    """The guest kernel: its release, its image, and its modules (by name, all of them in one folder
    unless `files` says where) in the order to load them."""

    version: str
    image: Path
    modules_dir: Path
    load_order: Mapping[str, tuple[str, ...]]
    files: Mapping[str, Path] | None = None

    @classmethod
    def installed(cls, image: Path, modules_dir: Path) -> Self:
        """From a kernel image and a folder as `depmod` has left it. Raises MissingPart."""
        try:
            lines = (modules_dir / "modules.dep").read_text().splitlines()
            built_in = (modules_dir / "modules.builtin").read_text().splitlines()
        except OSError as error:
            raise MissingPart(f"kernel modules: {error.filename}: {error.strerror}") from None
        order: dict[str, tuple[str, ...]] = {_name(Path(line)): () for line in built_in}
        files: dict[str, Path] = {}
        for line in lines:
            path, _, needs = line.partition(":")
            files[_name(Path(path))] = modules_dir / path
            # modules.dep has what a module needs with the deepest last.
            order[_name(Path(path))] = tuple(
                _name(Path(word)) for word in [*reversed(needs.split()), path]
            )
        always = [name for module in ALWAYS for name in order.get(module, ())]
        order = {name: (*always, *chain) if chain else () for name, chain in order.items()}
        return cls(modules_dir.name, image, modules_dir, order, files)

    def chain(self, *modules: str) -> list[str]:
        """The given modules and all they depend on, dependencies first, without those built in.
        Raises MissingPart for one that the kernel does not have."""
        names: dict[str, None] = {}
        for module in modules:
            found = self.load_order.get(module, self.load_order.get(_name(Path(module))))
            if found is None:
                raise MissingPart(f"kernel {self.version} has no module {module}")
            names.update(dict.fromkeys(found))
        return list(names)

    def module(self, name: str) -> bytes:
        """A module's object file. Raises MissingPart if it is not there or cannot be unpacked."""
        path = self.modules_dir / f"{name}.ko" if self.files is None else self.files[name]
        try:
            data = path.read_bytes()
            match path.suffix:
                case ".xz":
                    return lzma.decompress(data)
                case ".gz":
                    return gzip.decompress(data)
                case ".zst":
                    zstd = _program("VIRTQ_ZSTD", "zstd", "to unpack kernel modules")
                    unpack = [str(zstd), "-dcq"]
                    done = subprocess.run(unpack, input=data, capture_output=True, check=True)
                    return done.stdout
        except (OSError, lzma.LZMAError, subprocess.CalledProcessError) as error:
            raise MissingPart(f"kernel module {path}: {error}") from None
        return data


@dataclass(frozen=True)
class GuestParts:
    """What a guest is made of, and a folder for what is made of that and can be used again."""

    qemu: Path
    busybox: Path
    kernel: LinuxKernel
    cache_dir: Path
    other: Callable[[str], Path] = field(default=lambda name: _program("", name, "to run a guest"))
    """Finds another QEMU by what it is called."""

    def qemu_called(self, name: str) -> Path:
        """The program: `qemu` itself, or what `other` finds. Raises MissingPart."""
        return self.qemu if name == "qemu" else self.other(name)


def _name(path: Path) -> str:
    """A module's name, as the kernel spells it."""
    return re.sub(r"\.ko(\.\w+)?$", "", path.name).replace("-", "_")


def _on_this_machine() -> GuestParts:
    cache = os.environ.get("XDG_CACHE_HOME") or tempfile.gettempdir()
    return GuestParts(
        _program("VIRTQ_QEMU", "qemu-system-x86_64", "to run a guest"),
        _program("VIRTQ_BUSYBOX", "busybox", "for the guest's commands"),
        _kernel(),
        Path(cache) / f"virtq-guests-{os.getuid()}",
    )


def _program(variable: str, name: str, what_for: str) -> Path:
    wanted = os.environ.get(variable) or name
    if (found := shutil.which(wanted)) is None:
        instead = f", or set {variable}" if variable else ""
        raise MissingPart(f"there is no {wanted} {what_for}: install it{instead}")
    return Path(found)


def _kernel() -> LinuxKernel:
    image = os.environ.get("VIRTQ_KERNEL")
    modules = os.environ.get("VIRTQ_MODULES")
    if image and modules:
        return LinuxKernel.installed(Path(image), Path(modules))
    if image or modules:
        raise MissingPart("VIRTQ_KERNEL and VIRTQ_MODULES go together")
    for folder in sorted(MODULES.glob("*/"), key=_by_version, reverse=True):
        for candidate in (BOOT / f"vmlinuz-{folder.name}", folder / "vmlinuz"):
            if os.access(candidate, os.R_OK) and (folder / "modules.dep").exists():
                return LinuxKernel.installed(candidate, folder)
    raise MissingPart(
        f"no kernel image and modules that can be read in {BOOT} and {MODULES}: install a kernel, "
        "or set VIRTQ_KERNEL and VIRTQ_MODULES"
    )


def _by_version(folder: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", folder.name)]


_find: Callable[[], GuestParts] = _on_this_machine


def find_parts() -> GuestParts:
    """What guests are made of here. Raises MissingPart."""
    return _find()


def use(find: Callable[[], GuestParts] | None) -> None:
    """Let `find_parts` look elsewhere; None: as at first."""
    global _find
    _find = find or _on_this_machine
