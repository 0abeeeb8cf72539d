"""The guest's root file system: busybox, the wanted modules and an init, as a cpio archive.

The part that only changes with busybox, the kernel, the module list or the init is cached by the
hash of what goes in; the script and the files of one run are a second archive
behind it (the kernel unpacks archives that follow one another into one tree).
"""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from virtq.testing.parts import GuestParts

# What init and the host say to each other on the control line (see guest.py): the word after
# MARK is made up anew for every run, so nothing a script prints can be taken for it.
MARK: Final = b"\x1e"

# Init: mounts what a script expects, tells the host that the kernel has come so far, loads the
# modules, tells the host that it is there, reads which boot this is, runs the script with the
# control line as its standard input and output, and tells its status. Standard error goes to the
# console.
INIT_HEAD: Final = r"""#!/bin/sh
export PATH=/bin HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
ip link set lo up
read -r word </run/word
exec 3<>/dev/ttyS1
stty raw -echo <&3
printf '\036%s began\n' "$word" >&3
"""
INIT_TAIL: Final = r"""
printf '\036%s hello\n' "$word" >&3
read -r BOOT <&3
export BOOT
cd /tmp
sh /run/script <&3 >&3
printf '\036%s exit %d\n' "$word" $? >&3
poweroff -f
"""


_PROGRAMS: Final = (b"#!", b"\x7fELF")


class Archive:
    """A cpio archive in the "newc" format, built in memory."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._inode = 0

    def folder(self, name: str) -> None:
        """Adds a folder."""
        self._entry(name, stat.S_IFDIR | 0o755)

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        """Adds a regular file."""
        self._entry(name, stat.S_IFREG | mode, content)

    def link(self, name: str, target: str) -> None:
        """Adds a symbolic link."""
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, name: str, major: int, minor: int) -> None:
        """Adds a character device node."""
        self._entry(name, stat.S_IFCHR | 0o600, device=(major, minor))

    def finish(self) -> bytes:
        """The archive with its trailer, a whole number of 512-byte blocks."""
        self._entry("TRAILER!!!", 0)
        self._pad(512)
        return bytes(self._bytes)

    def _entry(
        self, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        self._inode += 1
        path = name.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device it is on (2), device it is (2),
        # length of the name, checksum (unused).
        fields = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(path), 0)
        self._bytes += b"070701" + b"".join(b"%08x" % field for field in fields) + path
        self._pad(4)
        self._bytes += content
        self._pad(4)

    def _pad(self, block: int) -> None:
        self._bytes += bytes(-len(self._bytes) % block)


def base(modules: Sequence[str], parts: GuestParts) -> Path:
    """The cached archive with busybox and the given modules, built if it is not there yet."""
    busybox = parts.busybox.read_bytes()
    chain = parts.kernel.chain(*modules)
    objects = {name: parts.kernel.module(name) for name in chain}
    init = INIT_HEAD + "".join(f"insmod /modules/{name}.ko\n" for name in chain) + INIT_TAIL

    digest = hashlib.sha256(busybox)
    for part in (init.encode(), *objects.values()):
        digest.update(hashlib.sha256(part).digest())
    cached = parts.cache_dir / f"{digest.hexdigest()[:24]}.cpio"
    if not cached.exists():
        parts.cache_dir.mkdir(parents=True, exist_ok=True)
        partial = cached.with_suffix(f".{os.getpid()}-{id(objects):x}")
        partial.write_bytes(_build(parts.busybox, objects, init))
        # Two runs may build the same archive: each writes its own, the last rename stays.
        partial.replace(cached)
    return cached


def overlay(script: str, files: Mapping[str, bytes], word: str) -> bytes:
    """The archive of one run: the script, the mark's word, and `files` under /data."""
    archive = Archive()
    archive.file("run/script", script.encode())
    archive.file("run/word", word.encode() + b"\n")
    for name, content in files.items():
        archive.file(f"data/{name}", content, 0o755 if content.startswith(_PROGRAMS) else 0o644)
    return archive.finish()


def _build(program: Path, objects: Mapping[str, bytes], init: str) -> bytes:
    archive = Archive()
    for name in ("bin", "data", "dev", "mnt", "modules", "proc", "run", "sys", "tmp"):
        archive.folder(name)
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", program.read_bytes(), 0o755)
    listing = subprocess.run([program, "--list"], check=True, capture_output=True, text=True)
    for applet in listing.stdout.split():
        if applet != "busybox":
            archive.link(f"bin/{applet}", "busybox")
    for name, content in objects.items():
        archive.file(f"modules/{name}.ko", content)
    archive.file("init", init.encode(), 0o755)
    return archive.finish()
