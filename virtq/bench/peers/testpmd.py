"""DPDK's testpmd as the packet peer, on either side of a vhost-user socket.

`VhostPort` makes it the device (the back-end, DPDK's vhost library), `VirtioUserPort` the driver
(the front-end, DPDK's virtio driver without a virtual machine). It is driven by its own command
prompt over a pseudo-terminal: through a pipe its output would be buffered and come behind the
prompt.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pty
import re
import shutil
import tempfile
import time
import tty
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

from virtq.bench.peers.hugepages import reserve
from virtq.testing.process import PeerError, Process
from virtq.testing.stream import Stream

ForwardMode = Literal[
    "io", "mac", "macswap", "rxonly", "txonly", "csum", "flowgen", "icmpecho", "5tswap"
]

PROGRAM: Final = "dpdk-testpmd"
# The prompt is written byte by byte, and an event, which another thread tells, may come in between:
# first the end of whatever line there is, then a line of its own.
_EVENTS: Final = rb"(?:\n|Port \d+: [a-z ]+ event\n)*"
PROMPT: Final = re.compile(_EVENTS.join(re.escape(bytes([byte])) for byte in b"testpmd> "))
# What the prompt's own line editor ends an echoed line with; printed lines end in \n alone.
_ECHO_END: Final = b"\r\n"
_REFUSALS: Final = (
    *("Bad arguments", "Command not found", "Ambiguous command"),
    *("Invalid", "Please stop", "already started"),
)
# VHOST_USER_F_PROTOCOL_FEATURES says what the channel can do, and is no feature of the device.
_VHOST_USER_PROTOCOL: Final = 1 << 30
# Counters change without any event to wait for.
_POLL_S: Final = 0.02
START_TIMEOUT_S: Final = 30.0
LINK_TIMEOUT_S: Final = 10.0
_instances = itertools.count()


def program() -> str:
    """Where testpmd is. Raises PeerError if it is not installed."""
    found = shutil.which(PROGRAM)
    if found is None:
        raise PeerError(f"{PROGRAM} is not on PATH")
    return found


class TestpmdError(PeerError):
    """testpmd refused a command, ended, or did not answer in time."""

    __test__ = False


@dataclass(frozen=True)
class VhostPort:
    """The device side: the vhost library, listening on the socket (`client`: connecting to it).

    It offers the packed layout and IN_ORDER; the driver chooses. With `client` it also connects
    again after the peer has gone.
    """

    socket_path: Path
    queues: int = 1
    client: bool = False

    def vdev(self) -> str:
        """The value of --vdev."""
        return f"net_vhost0,iface={self.socket_path},queues={self.queues},client={self.client:d}"


@dataclass(frozen=True)
class VirtioUserPort:
    """The driver side, connecting to the socket (`server`: listening, the device connects).

    `vectorized` takes no `mrg_rxbuf`; with `packed` it needs `in_order` and a CPU with AVX-512,
    with the split layout no `in_order`. When it cannot be had, DPDK falls back without an error:
    `Testpmd.data_paths` tells.
    """

    socket_path: Path
    queues: int = 1
    queue_size: int = 256
    packed: bool = False
    in_order: bool = False
    mrg_rxbuf: bool = True
    vectorized: bool = False
    server: bool = False
    mac: str | None = None

    def vdev(self) -> str:
        """The value of --vdev."""
        words = [
            f"net_virtio_user0,path={self.socket_path}",
            f"queues={self.queues}",
            f"queue_size={self.queue_size}",
            f"packed_vq={self.packed:d}",
            f"in_order={self.in_order:d}",
            f"mrg_rxbuf={self.mrg_rxbuf:d}",
            f"vectorized={self.vectorized:d}",
            f"server={self.server:d}",
            # More than one pair needs the control queue, which DPDK serves by itself.
            f"cq={self.queues > 1:d}",
        ]
        if self.mac is not None:
            words.append(f"mac={self.mac}")
        return ",".join(words)


@dataclass(frozen=True)
class TestpmdConfig:
    """One testpmd with one port. `cpus` are those of the forwarding threads, one each."""

    __test__ = False

    port: VhostPort | VirtioUserPort
    cpus: Sequence[int] = (0,)
    burst: int = 32
    mbufs: int = 16384
    mbuf_size_bytes: int = 2176
    memory_mib: int = 256
    eal_args: Sequence[str] = ()
    args: Sequence[str] = ()


@dataclass(frozen=True)
class PortStats:
    """What `show port stats` says; rates are per second, since the last time it was asked."""

    rx_packets: int
    rx_missed: int
    rx_bytes: int
    rx_errors: int
    rx_nombuf: int
    tx_packets: int
    tx_errors: int
    tx_bytes: int
    rx_packets_per_s: int
    rx_bits_per_s: int
    tx_packets_per_s: int
    tx_bits_per_s: int


@dataclass(frozen=True)
class ForwardStats:
    """What `stop` says of the forwarding since `start`, all ports together."""

    rx_packets: int
    rx_dropped: int
    tx_packets: int
    tx_dropped: int


class Testpmd:
    """The running testpmd: once it is entered, the prompt is there and the port configured.

    As a driver it is then connected and its queues run; as a device it listens. A driver with
    `server` is entered as soon as it listens, for it goes no further until a device connects:
    `wait_ready` awaits its prompt.
    """

    __test__ = False

    def __init__(self, config: TestpmdConfig) -> None:
        self.config = config
        self._is_ready = False
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._start(stack)
            port = self.config.port
            if isinstance(port, VirtioUserPort) and port.server:
                self.process.wait_log("waiting for client connection", START_TIMEOUT_S)
            else:
                self.wait_ready()
            self._resources = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._resources.close()

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    @property
    def log(self) -> str:
        """What DPDK has logged so far, a device's vhost-user messages among it."""
        return self.process.log

    @property
    def transcript(self) -> str:
        """All that was said at the prompt so far."""
        return self._prompt.text

    def wait_ready(self) -> None:
        """Awaits the first prompt."""
        self._find(PROMPT, 0, "start", START_TIMEOUT_S)
        self._is_ready = True

    def command(self, text: str, timeout_s: float = 10.0) -> str:
        """Gives a command and returns what it printed, awaited by the next prompt."""
        start = self._prompt.length
        try:
            os.write(self._terminal, text.encode() + b"\n")
        except OSError as error:
            raise self._failure(f"cannot take the command {text!r}") from error
        _, echoed = self._find(_ECHO_END, start, text, timeout_s)
        end, _ = self._find(PROMPT, echoed, text, timeout_s)
        answer = self._prompt.slice(echoed, end).decode(errors="replace")
        if any(refusal in answer for refusal in _REFUSALS):
            raise self._failure(f"refused {text!r}: {answer.strip()}")
        return answer

    def start(self, mode: ForwardMode | None = None, *, tx_first_bursts: int = 0) -> None:
        """Starts forwarding; with `tx_first_bursts`, so many bursts are sent first, to loop."""
        if mode is not None:
            self.command(f"set fwd {mode}")
        self.command(f"start tx_first {tx_first_bursts}" if tx_first_bursts else "start")

    def stop(self) -> ForwardStats:
        """Stops forwarding; the totals since `start`."""
        answer = self.command("stop")
        totals = answer.partition("Accumulated forward statistics")[2]
        values = _numbers(totals)
        if "TX-total" not in values:
            raise self._failure(f"did not tell its totals: {answer.strip()}")
        return ForwardStats(
            rx_packets=values["RX-packets"],
            rx_dropped=values["RX-dropped"],
            tx_packets=values["TX-packets"],
            tx_dropped=values["TX-dropped"],
        )

    def set_packet(self, *segment_bytes: int) -> None:
        """The packets that txonly sends: one segment or several, of these lengths."""
        self.command("set txpkts " + ",".join(map(str, segment_bytes)))

    def port_stats(self) -> PortStats:
        """The port's counters, and its rates since the last call."""
        values = _numbers(self.command("show port stats all"))
        return PortStats(
            rx_packets=values["RX-packets"],
            rx_missed=values["RX-missed"],
            rx_bytes=values["RX-bytes"],
            rx_errors=values["RX-errors"],
            rx_nombuf=values["RX-nombuf"],
            tx_packets=values["TX-packets"],
            tx_errors=values["TX-errors"],
            tx_bytes=values["TX-bytes"],
            rx_packets_per_s=values["Rx-pps"],
            rx_bits_per_s=values["Rx-bps"],
            tx_packets_per_s=values["Tx-pps"],
            tx_bits_per_s=values["Tx-bps"],
        )

    def extended_stats(self) -> Mapping[str, int]:
        """The driver's own counters by name, those of each queue among them."""
        return _numbers(self.command("show port xstats all"))

    def clear_stats(self) -> None:
        """Sets the port's counters to zero."""
        self.command("clear port stats all")

    def wait_stats(self, holds: Callable[[PortStats], bool], timeout_s: float = 10.0) -> PortStats:
        """The first counters for which `holds`; raises TestpmdError when the time is up."""
        deadline = time.monotonic() + timeout_s
        while True:
            stats = self.port_stats()
            if holds(stats):
                return stats
            if time.monotonic() > deadline:
                raise self._failure(f"counted something else for {timeout_s} s: {stats}")
            time.sleep(_POLL_S)

    def wait_link(self, up: bool = True) -> None:
        """Awaits the link: of a device, up once a driver's queues run, down when it has gone."""
        deadline = time.monotonic() + LINK_TIMEOUT_S
        wanted = "Link status: up" if up else "Link status: down"
        while True:
            start = self._prompt.length
            if wanted in self.command("show port info 0"):
                return
            # The change may have been told while the command ran: look behind its start.
            left_s = deadline - time.monotonic()
            self._find(b"link state change event", start, "link change", left_s)

    def negotiated_features(self) -> int:
        """The virtio features agreed upon last, without vhost-user's bit 30; 0 before any."""
        found = re.findall(
            r"(?:negotiated Virtio features|set features): 0x([0-9a-f]+)", self.process.log
        )
        return int(found[-1], 16) & ~_VHOST_USER_PROTOCOL if found else 0

    def data_paths(self) -> list[str]:
        """A driver's code paths, such as "packed ring vectorized Rx", in the order of use."""
        return re.findall(r"virtio: using (.+) path on port", self.process.log)

    def kill(self) -> None:
        """SIGKILL: the peer vanishes with whatever it had in flight."""
        self.process.kill()

    def _start(self, stack: contextlib.ExitStack) -> None:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="virtq-testpmd-"))
        stack.enter_context(reserve(self.config.memory_mib))
        port = self.config.port
        listens = port.server if isinstance(port, VirtioUserPort) else not port.client
        if listens:
            # DPDK cannot listen where the socket of one that was killed still lies.
            port.socket_path.unlink(missing_ok=True)
            stack.callback(port.socket_path.unlink, missing_ok=True)
        self._terminal, peer = pty.openpty()
        tty.setraw(peer)
        try:
            self._prompt = Stream(self._terminal)
            self.process = Process(
                self._argv(), stdin=peer, stdout=peer, environment={"RUNTIME_DIRECTORY": folder}
            )
        finally:
            os.close(peer)
            stack.callback(self._prompt.join)
        stack.callback(self._quit)

    def _argv(self) -> list[str | Path]:
        config = self.config
        # Thread 0 takes the commands and sleeps otherwise: it can share a CPU with thread 1.
        cpus = [config.cpus[0], *config.cpus]
        lcores = ",".join(f"{thread}@{cpu}" for thread, cpu in enumerate(cpus))
        return [
            program(),
            *("--lcores", lcores, "-m", str(config.memory_mib), "--no-pci", "--no-telemetry"),
            # Memory is anonymous: no hugetlbfs to mount, no files to leave behind. In one file,
            # for a vhost-user front-end shares at most 8 regions.
            *("--in-memory", "--single-file-segments"),
            f"--file-prefix=virtq-{os.getpid()}-{next(_instances)}",
            # Without it the vectorized paths are given up in silence.
            "--force-max-simd-bitwidth=512",
            *("--log-level", "pmd.net.virtio.*:debug", "--vdev", config.port.vdev()),
            *config.eal_args,
            "--",
            *("-i", "--disable-link-check", f"--nb-cores={len(config.cpus)}"),
            *(f"--rxq={config.port.queues}", f"--txq={config.port.queues}"),
            *(f"--burst={config.burst}", f"--total-num-mbufs={config.mbufs}"),
            f"--mbuf-size={config.mbuf_size_bytes}",
            *config.args,
        ]

    def _quit(self) -> None:
        """Ends testpmd by its own command; by signals before its prompt, or if it does not obey."""
        if self._is_ready:
            with contextlib.suppress(OSError, PeerError):
                os.write(self._terminal, b"quit\n")
                self.process.wait(10.0)
        self.process.stop()
        self._terminal = -1

    def _find(
        self, wanted: bytes | re.Pattern[bytes], start: int, doing: str, timeout_s: float
    ) -> tuple[int, int]:
        """Where the first `wanted` from `start` on begins and ends, awaited."""
        found = self._prompt.find(wanted, start, timeout_s)
        if found is None:
            what = f"did not do in {timeout_s} s"
            if self._prompt.ended:
                what = f"ended with {self.process.wait(5.0)}"
            raise self._failure(f"{what}: {doing}")
        return found

    def _failure(self, what: str) -> TestpmdError:
        return TestpmdError(
            f"{self.process.failure(what)}\nat the prompt:\n{self.transcript[-2000:]}"
        )


def _numbers(text: str) -> dict[str, int]:
    """Every "name: number" in the text; of names that recur, the last."""
    return {name: int(value) for name, value in re.findall(r"([\w-]+):\s+(\d+)", text)}
