"""The pairs of `virtq bench net`: our driver and device, and DPDK's in their places.

Our device is `virtq serve net`, our driver the core's `NetLoad`; DPDK is testpmd, as a vhost
back-end or with its virtio-user driver. Pairs whose turn it is not are stopped.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from virtq._core import NetLoad
from virtq.bench.case import Contender, Window
from virtq.bench.net_traffic import Traffic
from virtq.bench.peers.testpmd import Testpmd, TestpmdConfig, VhostPort, VirtioUserPort
from virtq.connecting import connect
from virtq.drivers.net import NetDriver
from virtq.queue import DriverQueue
from virtq.testing.process import PeerError, Process
from virtq.wire.net import HEADER_BYTES, NetFeature

QUEUE_SIZE: Final = 256
BATCH: Final = 32
START_TIMEOUT_S: Final = 30.0
OURS: Final = "virtq on virtq"
OURS_UNDER_DPDK: Final = "DPDK on virtq"
DPDK_UNDER_OURS: Final = "virtq on DPDK"
DPDK: Final = "DPDK on DPDK"
DPDK_LOOKS: Final = "DPDK on DPDK, frames looked at"
"""Its driver looks for a VLAN tag in each received frame; both ways, it exchanges the addresses."""
LOOPED_BURSTS: Final = 4
"""Bursts that two DPDKs pass to and fro when both send."""
# DPDK keeps 128 bytes of each packet buffer for itself.
_MBUF_BYTES: Final = 2176

# The ends


class _Served:
    """Our device: a process that polls, stopped while it is not its turn."""

    def __init__(self, traffic: Traffic, socket_path: Path) -> None:
        port = ["--sink"] if not traffic.receives else ["--source", str(traffic.length)]
        words = ["-m", "virtq", "serve", "net", *port, "--wait", "poll"]
        words += ["--queue-size", str(QUEUE_SIZE), "--socket-path", str(socket_path), "--json"]
        if traffic.in_pieces:
            # DPDK's driver marks the header in an indirect table of a packed ring as one that the
            # device writes, which ours takes for the malformed buffer that it is.
            words += ["--mtu", "9216", "--offer", "-INDIRECT_DESC"]
        cpu = str(traffic.pin[1])
        self._process = Process(["taskset", "-c", cpu, sys.executable, *words])
        self._running = True
        try:
            self._process.wait_log("virtq: serving ", START_TIMEOUT_S)
        except BaseException:
            self._process.stop()
            raise

    def run(self, on: bool) -> None:
        """Let it go on, or stop it where it is."""
        if on != self._running:
            os.kill(self._process.pid, signal.SIGCONT if on else signal.SIGSTOP)
            self._running = on

    def check(self) -> None:
        """Raises PeerError if it has ended."""
        if self._process.returncode is not None:
            raise self._process.failure("ended")

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.run(True)
        self._process.stop()


class _LoadDriver(NetDriver):
    """Our driver with queues that are left empty for a load."""

    def populate(self, queue: DriverQueue) -> None:
        pass

    def went_live(self) -> None:
        pass


class _Load:
    """Our driver, in this process."""

    def __init__(self, traffic: Traffic, socket_path: Path) -> None:
        options, length = traffic.options, traffic.length
        self._driver = connect(
            f"vhost-user:{socket_path}",
            want=options.features | (NetFeature.MRG_RXBUF if options.mergeable else 0),
            offer=options.change,
            driver=_LoadDriver,
            queue_size=QUEUE_SIZE,
        )
        try:
            buffer_bytes = HEADER_BYTES + (2048 if options.mergeable else max(length, 1518))
            arena = self._driver.arena
            receive, transmit = (self._driver.queues[index] for index in (0, 1))

            def memory(wanted: bool, each: int) -> int:
                size = NetLoad.memory_bytes(QUEUE_SIZE, each)
                return arena.alloc(size, 64).addr if wanted else 0

            self._load = NetLoad(
                transmit.core if traffic.sends else None,
                receive.core if traffic.receives else None,
                transmit_memory=memory(traffic.sends, HEADER_BYTES + length),
                receive_memory=memory(traffic.receives, buffer_bytes),
                length=length,
                batch=BATCH,
                mergeable=options.mergeable,
                buffer_bytes=buffer_bytes,
                pin=traffic.pin[0],
            )
        except BaseException:
            self._driver.close()
            raise

    def window(self, seconds: float) -> Window:
        did = self._load.run(seconds)
        names = {"kicks_sent": "kicks", "used_entries": "used_entries", "verified": "verified"}
        counts = {to: did[name] for name, to in names.items()}
        return Window(int(did["buffers"]), did["seconds"], counts)

    def close(self) -> None:
        self._driver.close()


def _driver_testpmd(traffic: Traffic, socket_path: Path, *, looks: bool = False) -> Testpmd:
    options = traffic.options
    port = VirtioUserPort(
        socket_path,
        queue_size=QUEUE_SIZE,
        packed=options.kind.packed,
        in_order=options.kind.in_order,
        mrg_rxbuf=options.mergeable,
        vectorized=options.vectorized,
    )
    config = _config(port, traffic, traffic.pin[0])
    return Testpmd(replace(config, args=[*config.args, *(_LOOK if looks else ())]))


# There is no hardware: the driver does it, and reads the type of every frame.
_LOOK: Final = ("--enable-hw-vlan-strip",)


def _device_testpmd(traffic: Traffic, socket_path: Path) -> Testpmd:
    return Testpmd(_config(VhostPort(socket_path), traffic, traffic.pin[1]))


def _config(port: VhostPort | VirtioUserPort, traffic: Traffic, cpu: int) -> TestpmdConfig:
    # The vhost library takes and gives frames in pieces by itself, and its port cannot be asked to.
    asked = traffic.in_pieces and isinstance(port, VirtioUserPort)
    big = ["--max-pkt-len=9216", "--enable-scatter"] if asked else []
    config = TestpmdConfig(port, cpus=[cpu], burst=BATCH, args=big)
    return replace(config, mbuf_size_bytes=_MBUF_BYTES)


def _set_length(testpmd: Testpmd, length: int) -> None:
    """What txonly sends: in pieces where a packet buffer is too small for it."""
    room = _MBUF_BYTES - 128
    whole, rest = divmod(length, room)
    testpmd.set_packet(*itertools.repeat(room, whole), *([rest] if rest else []))


Mode = Literal["io", "macswap", "rxonly", "txonly"]


def _mode(traffic: Traffic, *, is_driver: bool, looks: bool = False) -> Mode:
    if traffic.direction == "both":
        return "macswap" if looks else "io"
    return "txonly" if traffic.sends == is_driver else "rxonly"


class _Forwarding:
    """A testpmd that works from here on, and is counted: packets that it sent or received."""

    def __init__(
        self, testpmd: Testpmd, traffic: Traffic, *, is_driver: bool, looks: bool = False
    ) -> None:
        self._testpmd = testpmd
        self._mode = _mode(traffic, is_driver=is_driver, looks=looks)
        # What it sends, or sends first.
        if self._mode != "rxonly":
            _set_length(testpmd, traffic.length)

    def start(self, first_bursts: int = 0) -> None:
        self._testpmd.start(self._mode, tx_first_bursts=first_bursts)

    def stop(self) -> None:
        self._testpmd.stop()

    def count(self) -> int:
        stats = self._testpmd.port_stats()
        received = stats.rx_packets if self._mode != "txonly" else 0
        return received + (stats.tx_packets if self._mode != "rxonly" else 0)

    def measure(self, seconds: float) -> Window:
        """Raises PeerError if nothing moves."""
        before, start = self.count(), time.monotonic()
        time.sleep(seconds)
        work, took = self.count() - before, time.monotonic() - start
        if work <= 0:
            raise PeerError(f"testpmd ({self._mode}) moved no packet in {took:.1f} s")
        return Window(work, took)


# The pairs


class _Pair:
    """One of the four: what it is made of goes in turn."""

    def __init__(self, name: str, traffic: Traffic) -> None:
        self.name = name
        self.traffic = traffic
        self._resources = contextlib.ExitStack()
        folder = self._resources.enter_context(tempfile.TemporaryDirectory(prefix="virtq-net-"))
        self._path = Path(folder) / "net.sock"
        try:
            self._make()
        except BaseException:
            self._resources.close()
            raise

    def _make(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._resources.close()

    def _serve(self) -> _Served:
        served = _Served(self.traffic, self._path)
        self._resources.callback(served.close)
        return served

    def _load(self) -> _Load:
        load = _Load(self.traffic, self._path)
        self._resources.callback(load.close)
        return load

    def _enter(self, testpmd: Testpmd, *, is_driver: bool, looks: bool = False) -> _Forwarding:
        self._resources.enter_context(testpmd)
        return _Forwarding(testpmd, self.traffic, is_driver=is_driver, looks=looks)


class _OnOurs(_Pair):
    """A driver on our device, which rests between windows."""

    _device: _Served

    def _drive(self, seconds: float) -> Window:
        raise NotImplementedError

    def window(self, seconds: float) -> Window:
        self._device.run(True)
        try:
            window = self._drive(seconds)
        finally:
            self._device.run(False)
        self._device.check()
        return window

    def close(self) -> None:
        self._device.run(True)
        super().close()


class OursOnOurs(_OnOurs):
    """Our driver on our device."""

    def _make(self) -> None:
        self._device = self._serve()
        self._driver = self._load()
        self._device.run(False)

    def _drive(self, seconds: float) -> Window:
        return self._driver.window(seconds)


class DpdkOnOurs(_OnOurs):
    """DPDK's driver on our device."""

    def _make(self) -> None:
        self._device = self._serve()
        testpmd = _driver_testpmd(self.traffic, self._path)
        self._driver = self._enter(testpmd, is_driver=True)
        self._device.run(False)

    def _drive(self, seconds: float) -> Window:
        self._driver.start()
        window = self._driver.measure(seconds)
        self._driver.stop()
        return window


class OursOnDpdk(_Pair):
    """Our driver on DPDK's vhost device."""

    def _make(self) -> None:
        testpmd = _device_testpmd(self.traffic, self._path)
        self._device = self._enter(testpmd, is_driver=False)
        self._driver = self._load()
        testpmd.wait_link()

    def window(self, seconds: float) -> Window:
        self._device.start()
        try:
            return self._driver.window(seconds)
        finally:
            self._device.stop()


class DpdkOnDpdk(_Pair):
    """DPDK's driver on DPDK's vhost device."""

    looks = False
    """Whether the driver has to look at what it receives."""

    def _make(self) -> None:
        device = _device_testpmd(self.traffic, self._path)
        self._device = self._enter(device, is_driver=False)
        driver = _driver_testpmd(self.traffic, self._path, looks=self.looks)
        self._driver = self._enter(driver, is_driver=True, looks=self.looks)
        device.wait_link()

    def window(self, seconds: float) -> Window:
        self._device.start()
        try:
            # What went round in the last window may have been lost since.
            self._driver.start(LOOPED_BURSTS if self.traffic.direction == "both" else 0)
            window = self._driver.measure(seconds)
            self._driver.stop()
        finally:
            self._device.stop()
        return window


class DpdkLooksOnDpdk(DpdkOnDpdk):
    """The same, with a driver that looks at what it receives."""

    looks = True


PAIRS: Final[dict[str, Callable[[str, Traffic], Contender]]] = {
    DPDK: DpdkOnDpdk,
    DPDK_LOOKS: DpdkLooksOnDpdk,
    OURS_UNDER_DPDK: DpdkOnOurs,
    DPDK_UNDER_OURS: OursOnDpdk,
    OURS: OursOnOurs,
}


def contenders(traffic: Traffic, names: Sequence[str]) -> list[Contender]:
    """The pairs of these names, ready. Raises VirtqError or OSError; then none is left."""
    return make((name, name, traffic) for name in names)


def make(wanted: Iterable[tuple[str, str, Traffic]]) -> list[Contender]:
    """Pairs, each with what it is called here and what goes through it, ready. Raises as
    `contenders` does."""
    made: list[Contender] = []
    try:
        for pair, name, traffic in wanted:
            made.append(PAIRS[pair](name, traffic))
    except BaseException:
        for contender in made:
            contender.close()
        raise
    return made
