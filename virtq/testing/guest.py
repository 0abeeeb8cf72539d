"""A Linux guest in QEMU that runs one shell script and tells how it went.

The guest has two serial ports and no virtio device but those it is given. The console (ttyS0)
goes to a log. The control line (ttyS1) is a socket pair: at every boot init says "began" on it, and
"hello" once the modules are there; the host answers with the number of the boot, then the line is
the script's standard input and output, and in the end init tells the script's exit status and
powers off. The host thus counts the boots: a script sees `$BOOT` = 1, and after its `reboot -f` it
is run again with `$BOOT` = 2.

It starts through QEMU's small firmware (qboot), which touches no device: what a back-end sees is
Linux's driver alone. `firmware="bios-256k.bin"` gives SeaBIOS, which probes every virtio disk.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from virtq.testing.initramfs import MARK, base, overlay
from virtq.testing.parts import GuestParts, find_parts
from virtq.testing.process import PeerError, Process

if TYPE_CHECKING:
    from virtq.testing.qmp import Monitor

# What a TCG guest can go without: each is worth 0.1 to 0.6 s of its boot.
KERNEL_PARAMETERS: Final = (
    "console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check mitigations=off rodata=off "
    "audit=0 apparmor=0 selinux=0 lsm= cryptomgr.notests "
    "initcall_blacklist=load_system_certificate_list"
)

# Once in a while, on a busy machine, the timer of a second processor that sleeps does not wake it,
# and nothing does after that. One that ticks is woken by the next tick, if it still ticks.
SMP_PARAMETERS: Final = "nohz=off highres=off"

# QEMU takes an emulated processor that is alone, and will be, for one that no other can see: a
# locked instruction is neither atomic nor a barrier then, and a locked addition is what Linux's
# virtqueues have for one. A back-end in another process sees the driver's store after the driver's
# next load: each can miss the other's notification, and then both wait. So there is room for a
# second one (docs/findings.md, 58).
_ALONE: Final = "1,maxcpus=2"
_ALONE_PARAMETERS: Final = "nr_cpus=1"

# What the kernel says, once 21 s have passed, when a processor does not: all that waits for a timer
# there waits for ever.
_STALL: Final = "kthread timer wakeup didn't happen"
_STALLED: Final = "stalled, its timer interrupts stay away,"
_CONSOLE_LOOK_S: Final = 5.0

_CHUNK = 65536
_LONGEST_MARK = 64


class GuestError(PeerError):
    """The guest ended without an exit status, rebooted once too often, or ran out of time."""


class GuestStalled(GuestError):
    """One of the guest's processors gets no timer interrupts any more: its kernel says so. Or, with
    several of them, the kernel does not even come to its init. That is the emulator's doing, less
    than once in a thousand boots of two processors, and no device's."""


@dataclass(frozen=True)
class GuestConfig:
    """What to run in the guest, and on what machine.

    `script` is run by busybox's sh, standard error on the console. `args` are further QEMU
    options (see `vhost_user` and `vhost_user_net`). `modules` of the kernel are loaded before, with
    all they need. `files` are put under /data. `reboots` is how often the guest may reboot.
    `timeout_s` bounds the guest's whole life. `parts`: what it is made of, by default what
    `virtq.testing.parts` finds. `qemu`: "qemu", or another program to run instead of theirs.
    """

    script: str
    args: Sequence[str] = ()
    modules: Sequence[str] = ("virtio_blk", "virtio_net")
    files: Mapping[str, bytes] = field(default_factory=dict)
    cpus: int = 1
    memory_mib: int = 256
    reboots: int = 0
    timeout_s: float = 120.0
    machine: str = "pc"
    cpu: str = "qemu64"
    firmware: str = "qboot.rom"
    kernel_parameters: str = ""
    qemu: str = "qemu"
    parts: GuestParts | None = None


@dataclass(frozen=True)
class GuestResult:
    """How the script went: its exit status, and its standard output, one entry per boot."""

    status: int
    boots: tuple[bytes, ...]
    console: str
    boot_s: float
    total_s: float

    @property
    def stdout(self) -> bytes:
        """What the script printed in the last boot."""
        return self.boots[-1]

    @property
    def text(self) -> str:
        """`stdout`, decoded."""
        return self.stdout.decode(errors="replace")

    def check(self) -> Self:
        """Itself; raises GuestError with output and console when the script failed."""
        if self.status != 0:
            raise GuestError(
                f"the script exited {self.status}\n{self.text}\nconsole:\n{self.console}"
            )
        return self


@dataclass(frozen=True)
class SavedGuest:
    """A guest as it stood in the middle of its script: any number of heirs go on from there, on a
    machine that may have further devices."""

    path: Path
    word: str


class LinuxGuest:
    """The running guest, from `with LinuxGuest(config) as guest` on.

    Leaving the context while the script runs ends QEMU by SIGTERM: it stops its devices in order.
    An error that leaves it says what the guest said last, and becomes GuestStalled if it stalled.
    """

    def __init__(
        self, config: GuestConfig, *, heir_of: LinuxGuest | SavedGuest | None = None
    ) -> None:
        """`heir_of`: the guest that will be migrated here (QEMU waits for `migrate-incoming`), or
        one that was saved, which goes on at once; what its script prints from then on arrives
        here."""
        self.config = config
        self._word: str
        self._incoming: list[str] = []
        match heir_of:
            case None:
                self._word = secrets.token_hex(8)
            case SavedGuest():
                self._word = heir_of.word
                self._incoming = ["-incoming", f"file:{heir_of.path}"]
            case LinuxGuest():
                self._word = heir_of._word
                self._incoming = ["-incoming", "defer"]
        self._marks = re.compile(
            MARK
            + self._word.encode()
            + rb" (?:(?P<began>began)|(?P<hello>hello)|exit (?P<status>\d+))\n"
        )
        # Guards what follows; notified at every change of it.
        self._changed = threading.Condition()
        self._output = bytearray()
        self._boot_offsets: list[int] = [0] if heir_of else []
        # Whether a kernel has come to its init, which it does without a device.
        self._began = heir_of is not None
        self._read_offset = 0
        self._status: int | None = None
        self._ended = False
        self._fault: str | None = None
        self._error: type[GuestError] = GuestError
        self._boot_s = 0.0

        self._monitor: Monitor | None = None
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._start(stack)
            self._resources = stack.pop_all()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with self._resources:
            if isinstance(error, Exception) and not isinstance(error, GuestError):
                self._explain(error)

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._process.pid

    @property
    def console(self) -> str:
        """The kernel's console and the script's standard error so far."""
        return self._console_path.read_text(errors="replace")

    @property
    def qemu_log(self) -> str:
        """What QEMU itself complained about."""
        return self._process.log

    @property
    def boots(self) -> int:
        """How many times the script has been started."""
        with self._changed:
            return len(self._boot_offsets)

    @property
    def qmp(self) -> Monitor:
        """QEMU's monitor, connected at first use; needs the package qemu.qmp."""
        from virtq.testing.qmp import Monitor

        if self._monitor is None:
            self._monitor = Monitor(self._qmp_socket)
            self._resources.callback(self._monitor.close)
        return self._monitor

    def send(self, text: str) -> None:
        """Gives the script standard input, once it has started; less than 4 KiB at a time."""
        self._await(lambda: bool(self._boot_offsets), "before the script started", None)
        self._control.sendall(text.encode())

    def wait_for(self, pattern: str, timeout_s: float | None = None) -> re.Match[bytes]:
        """The first match in the script's output, behind the one that was last waited for."""
        wanted = re.compile(pattern.encode())
        found: re.Match[bytes] | None = None

        def is_found() -> bool:
            nonlocal found
            found = wanted.search(bytes(self._output[self._read_offset :]))
            return found is not None

        self._await(is_found, f"before it printed {pattern!r}", timeout_s)
        assert found is not None
        with self._changed:
            self._read_offset += found.end()
        return found

    def migrate(
        self,
        heir: LinuxGuest,
        socket_path: Path,
        meanwhile: Callable[[], None] = lambda: None,
        timeout_s: float = 120.0,
    ) -> None:
        """Moves the running guest to `heir`'s QEMU, by way of a socket at that path; returns once
        it runs there. Then this one is to be left. Raises GuestError if it does not succeed.

        `meanwhile` is called when all memory was sent once, while the guest still runs here: what
        is written from then on is there only if it is noticed that it was."""
        deadline = time.monotonic() + timeout_s
        uri = {"uri": f"unix:{socket_path}"}
        heir.qmp.execute("migrate-incoming", uri)
        self._migration(**{"max-bandwidth": 32 << 20, "downtime-limit": 1})
        self.qmp.execute("migrate", uri)
        self._await_migration(heir, deadline, lambda info: info["ram"]["dirty-sync-count"] > 1)
        # What was written during the first pass is left; at a page every tenth of a second that
        # lasts for minutes. At a usual rate a guest that gets no processor for a while has
        # nothing left, and moves before `meanwhile` had its answer.
        self._migration(**{"max-bandwidth": 1000})
        meanwhile()
        self._migration(**{"max-bandwidth": 1 << 32, "downtime-limit": 2000})
        self._await_migration(heir, deadline, lambda info: info["status"] == "completed")
        while heir.qmp.execute("query-status")["status"] != "running":
            if time.monotonic() > deadline:
                raise GuestError(f"the guest does not run after its migration\n{heir.qemu_log}")
            time.sleep(0.01)

    def save(self, path: Path, timeout_s: float = 120.0) -> SavedGuest:
        """Writes the guest down as it runs, in a file at that path; then this one is to be left.
        Raises GuestError if it does not succeed."""
        deadline = time.monotonic() + timeout_s
        self._migration(**{"max-bandwidth": 1 << 40})
        self.qmp.execute("migrate", {"uri": f"file:{path}"})
        self._await_migration(self, deadline, lambda info: info["status"] == "completed")
        return SavedGuest(path, self._word)

    def _migration(self, **parameters: object) -> None:
        self.qmp.execute("migrate-set-parameters", parameters)

    def _await_migration(
        self, heir: LinuxGuest, deadline: float, holds: Callable[[Mapping[str, Any]], bool]
    ) -> None:
        while True:
            info = self.qmp.execute("query-migrate")
            if "ram" in info and holds(info):
                return
            ended = info["status"] in ("failed", "cancelled", "completed")
            if ended or time.monotonic() > deadline:
                raise GuestError(f"migration: {info}\n{self.qemu_log}\n{heir.qemu_log}")
            time.sleep(0.01)

    def result(self) -> GuestResult:
        """Awaits the end of the script and the orderly end of QEMU."""
        self._await(lambda: self._status is not None, "without an exit status", None)
        self._process.wait(max(self._deadline - time.monotonic(), 0.0))
        self._reader.join()
        with self._changed:
            assert self._status is not None
            ends = [*self._boot_offsets[1:], len(self._output)]
            boots = tuple(
                bytes(self._output[start:end])
                for start, end in zip(self._boot_offsets, ends, strict=True)
            )
            total_s = time.monotonic() - self._started
            return GuestResult(self._status, boots, self.console, self._boot_s, total_s)

    def kill(self) -> None:
        """SIGKILL to QEMU: the front-end vanishes with whatever it had in flight."""
        self._process.kill()

    def _start(self, stack: contextlib.ExitStack) -> None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="virtq-guest-")))
        self._console_path = folder / "console"
        self._console_path.touch()
        initrd = folder / "initrd"
        own = overlay(self.config.script, self.config.files, self._word)
        parts = self.config.parts or find_parts()
        initrd.write_bytes(base(self.config.modules, parts).read_bytes() + own)

        self._control, control_peer = socket.socketpair()
        self._qmp_socket, qmp_peer = socket.socketpair()
        for end in (self._control, self._qmp_socket):
            stack.enter_context(end)
        with control_peer, qmp_peer:
            fds = (control_peer.fileno(), qmp_peer.fileno())
            self._started = time.monotonic()
            self._deadline = self._started + self.config.timeout_s
            argv = self._argv(parts, initrd, *fds)
            self._process = Process(argv, pass_fds=fds)
        self._reader = threading.Thread(target=self._read_control, daemon=True)
        self._reader.start()
        stack.callback(self._reader.join)
        stack.callback(self._process.stop)

    def _argv(
        self, parts: GuestParts, initrd: Path, control_fd: int, qmp_fd: int
    ) -> list[str | Path]:
        config = self.config
        memory = f"memory-backend-memfd,id=ram,size={config.memory_mib}M,share=on"
        alone = config.cpus == 1
        of_cpus = _ALONE_PARAMETERS if alone else SMP_PARAMETERS
        parameters = f"{KERNEL_PARAMETERS} {of_cpus} {config.kernel_parameters}"
        return [
            parts.qemu_called(config.qemu),
            *("-nodefaults", "-no-user-config", "-display", "none"),
            *("-accel", "tcg,thread=multi", "-cpu", config.cpu),
            *("-smp", _ALONE if alone else str(config.cpus)),
            *("-machine", f"{config.machine},memory-backend=ram", "-m", f"{config.memory_mib}M"),
            *("-object", memory),
            *("-bios", config.firmware, "-kernel", parts.kernel.image, "-initrd", initrd),
            *("-append", parameters),
            *("-chardev", f"file,id=console,path={self._console_path}"),
            *("-chardev", f"socket,id=control,fd={control_fd}"),
            *("-serial", "chardev:console", "-serial", "chardev:control"),
            *("-chardev", f"socket,id=monitor,fd={qmp_fd}", "-mon", "chardev=monitor,mode=control"),
            # A panic is a reboot too: with none allowed, it ends QEMU at once.
            *([] if config.reboots else ["-no-reboot"]),
            *self._incoming,
            *config.args,
        ]

    def _read_control(self) -> None:
        """The reader thread: follows the control line to its end."""
        pending = b""
        while chunk := self._receive():
            with self._changed:
                pending = self._digest(pending + chunk)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _receive(self) -> bytes:
        """What comes next on the control line; nothing once QEMU has closed it, or the guest was
        given up: it ran out of time, or stalled."""
        while True:
            left_s = self._deadline - time.monotonic()
            try:
                self._control.settimeout(min(max(left_s, 0.001), _CONSOLE_LOOK_S))
                return self._control.recv(_CHUNK)
            except TimeoutError:
                if left_s <= 0:
                    asleep = self.config.cpus > 1 and not self._began
                    error = GuestStalled if asleep else GuestError
                    self._give_up(f"ran out of its {self.config.timeout_s} s", error)
                    return b""
                if _STALL in self.console:
                    self._give_up(_STALLED, GuestStalled)
                    return b""
            except OSError:
                return b""

    def _explain(self, error: Exception) -> None:
        """What failed beside the guest says what the guest said, or that it is its doing."""
        if _STALL in self.console:
            what = f"the guest {_STALLED} beside what failed\n{self._said()}"
            raise GuestStalled(what) from error
        error.add_note(f"beside a guest\n{self._said()}")

    def _said(self) -> str:
        console = "\n".join(self.console.splitlines()[-60:])
        return f"console:\n{console}\nQEMU:\n{self.qemu_log[-2000:]}"

    def _digest(self, data: bytes) -> bytes:
        """Takes marks and output from `data`; returns what may yet become a mark."""
        while mark := self._marks.search(data):
            self._emit(data[: mark.start()])
            data = data[mark.end() :]
            if mark["began"]:
                self._began = True
            elif mark["hello"]:
                self._count_boot()
            else:
                self._status = int(mark["status"])
        start = data.rfind(MARK)
        if start < 0 or len(data) - start > _LONGEST_MARK:
            start = len(data)
        self._emit(data[:start])
        return data[start:]

    def _emit(self, data: bytes) -> None:
        if self._boot_offsets and self._status is None:
            self._output += data

    def _count_boot(self) -> None:
        if not self._boot_offsets:
            self._boot_s = time.monotonic() - self._started
        self._boot_offsets.append(len(self._output))
        if len(self._boot_offsets) > self.config.reboots + 1:
            self._give_up(f"rebooted more than {self.config.reboots} times")
            return
        with contextlib.suppress(OSError):
            self._control.sendall(b"%d\n" % len(self._boot_offsets))

    def _give_up(self, why: str, error: type[GuestError] = GuestError) -> None:
        self._fault, self._error = why, error
        self._process.kill()

    def _await(self, holds: Callable[[], bool], otherwise: str, timeout_s: float | None) -> None:
        """Blocks until `holds`; raises GuestError if the guest ends first, or time is up."""
        with self._changed:
            self._changed.wait_for(lambda: holds() or self._ended, timeout_s)
            if holds():
                return
            reason = self._fault or ("ended" if self._ended else f"took over {timeout_s} s")
            output = bytes(self._output).decode(errors="replace")
        raise self._error(
            f"the guest {reason} {otherwise}\noutput:\n{output[-2000:]}\n{self._said()}"
        )


def run_guest(config: GuestConfig) -> GuestResult:
    """Runs a guest from start to end; raises GuestError unless the script exits 0."""
    with LinuxGuest(config) as guest:
        return guest.result().check()


def vhost_user(
    device: str,
    socket_path: Path,
    *,
    name: str = "dev0",
    reconnect_ms: int | None = None,
    properties: Mapping[str, object] | None = None,
) -> list[str]:
    """QEMU options for a vhost-user device with its own chardev, such as vhost-user-blk-pci.

    `properties` are the device's, by QEMU's own names ("packed", "in_order", "num-queues").
    """
    return [
        *("-chardev", _socket_chardev(name, socket_path, reconnect_ms)),
        *("-device", _join(f"{device},chardev={name}-chardev,id={name}", properties)),
    ]


def vhost_user_net(
    socket_path: Path,
    *,
    name: str = "net0",
    queues: int = 1,
    reconnect_ms: int | None = None,
    properties: Mapping[str, object] | None = None,
) -> list[str]:
    """QEMU options for a virtio-net-pci whose back-end listens on the socket; `queues` pairs."""
    net: dict[str, object] = {"romfile": ""}
    if queues > 1:
        # A vector for each queue, one for config changes, one for the control queue.
        net |= {"mq": True, "vectors": 2 * queues + 2}
    device = f"virtio-net-pci,netdev={name}-netdev,id={name}"
    return [
        *("-chardev", _socket_chardev(name, socket_path, reconnect_ms)),
        *("-netdev", f"vhost-user,id={name}-netdev,chardev={name}-chardev,queues={queues}"),
        *("-device", _join(device, net | dict(properties or {}))),
    ]


def _socket_chardev(name: str, socket_path: Path, reconnect_ms: int | None) -> str:
    again = "" if reconnect_ms is None else f",reconnect-ms={reconnect_ms}"
    return f"socket,id={name}-chardev,path={socket_path}{again}"


def _join(head: str, properties: Mapping[str, object] | None) -> str:
    words = [head]
    for key, value in (properties or {}).items():
        shown = ("on" if value else "off") if isinstance(value, bool) else str(value)
        words.append(f"{key}={shown}")
    return ",".join(words)
