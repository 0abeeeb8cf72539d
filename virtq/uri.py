"""URIs name both ends everywhere, and `connect` and `serve` take one.

    vhost-user:/run/disk.sock                a socket; `?device=blk` tells which driver to use
    vhost-user:/run/s?protocol=-STATUS       one whose protocol features are not the usual ones
    vhost-user:/run/disk.sock?reconnect=on   and outlive its back-ends
    vhost-user:/run/disk.sock?timeout=1.5    and wait so many seconds for each answer
    loopback:blk?size=64M&queues=2           a device in this process
    loopback:net?pairs=2&mtu=1500
    qtest:virtio-blk-pci,packed=on?disk=a.img a device of a QEMU that is started for it
    vhost-user:/run/sim.sock?protocol=+INBAND_NOTIFICATIONS

What comes after `?` are options, `name=value` with `&` between. Sizes are bytes, or have one of the
units K, M, G, T (powers of 1024).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, overload

from virtq.device import Device
from virtq.driver import Driver
from virtq.errors import UriError, VirtqError
from virtq.features import Change
from virtq.transports.base import DeviceSide, DriverTransport

if TYPE_CHECKING:
    from virtq.devices.net_ports import Port

D = TypeVar("D", bound=Driver)
V = TypeVar("V")
W = TypeVar("W")

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def parse_size(text: str) -> int:
    """Bytes from `512`, `64K`, `64KiB`, `1.5G`. Raises UriError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:I?B)?", text.strip().upper())
    size = float(match[1]) * (1 << _UNITS[match[2]]) if match else 0.5
    if size != int(size):
        raise UriError(f"{text!r} is not a size such as 512, 64K or 1.5G")
    return int(size)


def parse_flag(text: str) -> bool:
    """True from on, yes, true, 1 and nothing; False from off, no, false, 0. Raises UriError."""
    word = text.strip().lower()
    if word in ("on", "yes", "true", "1", ""):
        return True
    if word in ("off", "no", "false", "0"):
        return False
    raise UriError(f"{text!r} is neither on nor off")


def parse_number(text: str) -> int:
    """A non-negative integer, decimal or with 0x. Raises UriError."""
    try:
        return int(text, 0) if not text.startswith("-") else int("")
    except ValueError:
        raise UriError(f"{text!r} is not a number") from None


def parse_seconds(text: str) -> float:
    """A number of seconds above 0. Raises UriError."""
    if not re.fullmatch(r"\d+(\.\d+)?", text.strip()) or not float(text):
        raise UriError(f"{text!r} is no number of seconds")
    return float(text)


def parse_patience(text: str) -> float | None:
    """Seconds to wait for a back-end that is gone: a number such as 2.5, on for the usual time, off
    for none (None). Raises UriError."""
    from virtq.transports.vhost_user.reconnect import RECONNECT_S

    if re.fullmatch(r"\d+(\.\d+)?", text.strip()):
        return float(text)
    return RECONNECT_S if parse_flag(text) else None


@dataclass
class Uri:
    """A URI in its parts."""

    text: str
    scheme: str
    target: str
    options: Mapping[str, str]
    _read: set[str] = field(default_factory=set)

    @classmethod
    def parse(cls, text: str) -> Uri:
        """Raises UriError for one without a scheme or with options of another form."""
        scheme, colon, rest = text.partition(":")
        if not colon or not re.fullmatch(r"[a-z][a-z0-9-]*", scheme):
            hint = f"; did you mean vhost-user:{text}?" if "/" in text else ""
            raise UriError(f"{text!r} has no scheme such as vhost-user: or loopback:{hint}")
        target, _, query = rest.partition("?")
        options: dict[str, str] = {}
        for item in filter(None, query.split("&")):
            name, equals, value = item.partition("=")
            if not name or name in options:
                raise UriError(
                    f"{text!r}: {'option ' + name + ' is there twice' if name else item}"
                )
            options[name] = value if equals else ""
        return cls(text, scheme, target, options)

    def take(self, name: str, parse: Callable[[str], V], default: W) -> V | W:
        """An option's value, or `default`. Raises UriError that names the option."""
        self._read.add(name)
        if name not in self.options:
            return default
        try:
            return parse(self.options[name])
        except (VirtqError, ValueError) as error:
            raise UriError(f"{self.text!r}: {name}: {error}") from None

    def done(self) -> None:
        """All options that are known were taken. Raises UriError for others."""
        if strange := [name for name in self.options if name not in self._read]:
            known = ", ".join(sorted(self._read)) or "none"
            raise UriError(f"{self.text!r}: no option is called {strange[0]}; there are: {known}")


@contextlib.contextmanager
def _one_line(text: str) -> Iterator[None]:
    """What goes wrong while opening is a UriError with the URI in it."""
    try:
        yield
    except UriError:
        raise
    except OSError as error:
        raise UriError(f"{text!r}: {error.strerror or error}") from error
    except ValueError as error:
        raise UriError(f"{text!r}: {error}") from error


# Devices that a URI can name


def _blk(uri: Uri) -> Device:
    from virtq.devices.blk import BlkDevice
    from virtq.devices.disk import Disk

    path = uri.take("path", str, "")
    size = uri.take("size", parse_size, 64 << 20)
    read_only = uri.take("read_only", parse_flag, False)
    settings = {
        "queues": uri.take("queues", parse_number, 1),
        "queue_size": uri.take("queue_size", parse_number, 256),
        "block_size": uri.take("block_size", parse_size, 512),
        "serial": uri.take("serial", str, "virtq"),
        "offer": uri.take("offer", str, ""),
    }
    uri.done()
    disk = Disk.file(path, read_only=read_only) if path else Disk.memory(size)
    return BlkDevice(disk, read_only=read_only, **settings)  # type: ignore[arg-type]


def _net(uri: Uri) -> Device:
    from virtq.devices.net import NetDevice
    from virtq.wire.net import parse_mac

    settings = {
        "pairs": uri.take("pairs", parse_number, 1),
        "queue_size": uri.take("queue_size", parse_number, 256),
        "mac": uri.take("mac", parse_mac, None),
        "mtu": uri.take("mtu", parse_number, None),
        "offer": uri.take("offer", str, ""),
    }
    port = _port(uri, uri.take("port", str, "hub"))
    uri.done()
    return NetDevice(port, **settings)  # type: ignore[arg-type]


def _port(uri: Uri, kind: str) -> Port:
    from virtq.devices import net_ports, net_stream, net_tap

    if kind == "hub":
        return net_ports.HubPort()
    if kind == "sink":
        return net_ports.SinkPort()
    if kind == "source":
        count, size = uri.take("count", parse_number, 1000), uri.take("packet", parse_size, 64)
        return net_ports.SourcePort(count, size)
    if kind == "pcap":
        return net_ports.PcapPort(uri.take("read", str, None), uri.take("write", str, None))
    if kind == "tap":
        return net_tap.TapPort(uri.take("name", str, ""))
    if kind == "stream":
        return net_stream.StreamPort(uri.take("path", str, ""))
    ports = "hub, sink, source, pcap, stream and tap"
    raise UriError(f"{uri.text!r}: port: there are {ports}, not {kind!r}")


def _rng(uri: Uri) -> Device:
    from virtq.devices.rng import BUFFER_BYTES_MAX, RngDevice, SeededSource

    seed = uri.take("seed", str, None)
    settings = {
        "buffer_bytes_max": uri.take("max_bytes", parse_size, BUFFER_BYTES_MAX),
        "bytes_per_s": uri.take("rate", parse_size, None),
        "offer": uri.take("offer", str, ""),
    }
    uri.done()
    return RngDevice(None if seed is None else SeededSource(seed), **settings)  # type: ignore[arg-type]


def _console(uri: Uri) -> Device:
    from virtq.devices.console import ConsoleDevice, PortSpec
    from virtq.devices.console_ends import NullEnd, SocketEnd

    path = uri.take("socket", str, "")
    name = uri.take("name", str, "")
    ports_max = uri.take("ports_max", parse_number, 1)
    offer = uri.take("offer", str, "")
    uri.done()
    end = SocketEnd(path) if path else NullEnd()
    return ConsoleDevice(
        [PortSpec(end, name, console=not name, id=0)], ports_max=ports_max, offer=offer
    )


def _vsock(uri: Uri) -> Device:
    from virtq.devices.vsock import VsockDevice

    path = uri.take("uds_path", str, "")
    cid = uri.take("guest_cid", parse_number, 3)
    offer = uri.take("offer", str, "")
    uri.done()
    if not path:
        raise UriError(f"{uri.text!r}: uds_path: a path for the host's Unix socket is needed")
    return VsockDevice(path, guest_cid=cid, offer=offer)


def _gpio(uri: Uri) -> Device:
    from virtq.devices.gpio import GpioDevice

    names = uri.take("names", lambda text: text.split(","), [])
    lines = uri.take("lines", parse_number, len(names) or 8)
    offer = uri.take("offer", str, "")
    uri.done()
    return GpioDevice(lines, names, offer=offer)


def _i2c(uri: Uri) -> Device:
    from virtq.devices.i2c import Eeprom, I2cAdapter, Registers

    registers = uri.take("registers", parse_number, 0x48)
    eeprom, size = uri.take("eeprom", parse_number, 0x50), uri.take("size", parse_size, 256)
    offer = uri.take("offer", str, "")
    uri.done()
    return I2cAdapter({registers: Registers(), eeprom: Eeprom(b"\xff" * size)}, offer=offer)


def _input(uri: Uri) -> Device:
    from virtq.devices.input import InputDevice
    from virtq.wire.input import InputDescription

    kinds = {
        "keyboard": InputDescription.keyboard,
        "mouse": InputDescription.mouse,
        "tablet": InputDescription.tablet,
    }
    kind, offer = uri.take("kind", str, "keyboard"), uri.take("offer", str, "")
    uri.done()
    if kind not in kinds:
        raise UriError(f"{uri.text!r}: kind: there are {', '.join(kinds)}, not {kind!r}")
    return InputDevice(kinds[kind](), offer=offer)


DEVICES: dict[str, Callable[[Uri], Device]] = {
    "blk": _blk,
    "net": _net,
    "console": _console,
    "rng": _rng,
    "vsock": _vsock,
    "gpio": _gpio,
    "i2c": _i2c,
    "input": _input,
}
"""Makers of the devices that `loopback:NAME` can name."""


# Drivers by name and by device id


def driver_class(device: str | int | None) -> type[Driver]:
    """The driver for a device type by name or id; the plain `Driver` where none is known."""
    from virtq import drivers

    return drivers.find(device)


# Transports


def _open_loopback(uri: Uri) -> DriverTransport:
    from virtq.transports.loopback import MEMORY_BYTES, LoopbackTransport

    if uri.target not in DEVICES:
        known = ", ".join(f"loopback:{name}" for name in DEVICES)
        raise UriError(f"{uri.text!r}: no device is called {uri.target!r}; there are: {known}")
    memory = uri.take("memory", parse_size, MEMORY_BYTES)
    device = DEVICES[uri.target](uri)
    return LoopbackTransport(device, memory_bytes=memory, when_closed=device.close)


def _open_vhost_user(uri: Uri) -> DriverTransport:
    from virtq.transports.vhost_user import frontend

    if not uri.target:
        raise UriError(f"{uri.text!r} names no socket")
    queues = uri.take("queues", parse_number, None)
    queue_size = uri.take("queue_size", parse_number, frontend.QUEUE_SIZE)
    memory = uri.take("memory", parse_size, frontend.MEMORY_BYTES)
    timeout_s = uri.take("timeout", parse_seconds, frontend.TIMEOUT_S)
    reconnect_s = uri.take("reconnect", parse_patience, None)
    track = uri.take("track", parse_flag, None)
    protocol = uri.take("protocol", str, "")
    uri.done()
    return frontend.Frontend(
        uri.target,
        timeout_s=timeout_s,
        queues=queues,
        queue_size_max=queue_size,
        memory_size=memory,
        reconnect_s=reconnect_s,
        track=track,
        protocol=protocol,
    )


def _open_qtest(uri: Uri) -> DriverTransport:
    from virtq.transports import qtest
    from virtq.transports.qtest import machine

    settings = {
        "disk": uri.take("disk", str, None),
        "disk_bytes": uri.take("size", parse_size, 64 << 20),
        "arguments": uri.take("args", shlex.split, []),
        "machine": uri.take("machine", str, None),
        "ram_bytes": uri.take("memory", parse_size, machine.RAM_BYTES),
        "qemu": uri.take("qemu", str, machine.QEMU),
        "queue_size_max": uri.take("queue_size", parse_number, None),
    }
    uri.done()
    return qtest.QtestTransport(uri.target, **settings)  # type: ignore[arg-type]


TRANSPORTS: dict[str, Callable[[Uri], DriverTransport]] = {
    "loopback": _open_loopback,
    "qtest": _open_qtest,
    "vhost-user": _open_vhost_user,
}
"""What opens a driver's transport, by scheme."""


def open_transport(uri: str) -> DriverTransport:
    """The driver's end of what a URI names. Raises UriError, TransportError."""
    parts = Uri.parse(uri)
    parts.take("device", str, "")
    return _open(parts)


def _open(uri: Uri) -> DriverTransport:
    if uri.scheme not in TRANSPORTS:
        known = ", ".join(f"{scheme}:" for scheme in TRANSPORTS)
        raise UriError(f"{uri.text!r}: no transport is called {uri.scheme}; there are: {known}")
    with _one_line(uri.text):
        return TRANSPORTS[uri.scheme](uri)


@overload
def connect(
    uri: str,
    *,
    want: int | str = 0,
    offer: Change | str | None = None,
    driver: type[D],
    **settings: Any,
) -> D: ...
@overload
def connect(
    uri: str,
    *,
    want: int | str = 0,
    offer: Change | str | None = None,
    driver: None = None,
    **settings: Any,
) -> Driver: ...
def connect(
    uri: str,
    *,
    want: int | str = 0,
    offer: Change | str | None = None,
    driver: type[Driver] | None = None,
    **settings: Any,
) -> Driver:
    """Drive the device that a URI names; use the result with `with`.

    `want`: features without which to give up. `offer`: what the driver is ready to accept, as a
    change such as `-RING_PACKED`. `driver`: the class to drive with; by default the one for the
    device type where the transport or the option `device=` tells it, else the plain `Driver`.
    `settings` go to the driver.

    Raises UriError, TransportError, and what the driver raises.
    """
    parts = Uri.parse(uri)
    named = parts.take("device", str, "")
    transport = _open(parts)
    try:
        kind = driver or driver_class(named or transport.device_id)
        return kind(transport, want=want, offer=offer, **settings)
    except BaseException:
        transport.close()
        raise


@contextlib.asynccontextmanager
async def connect_async(
    uri: str,
    *,
    want: int | str = 0,
    offer: Change | str | None = None,
    driver: type[Driver] | None = None,
    **settings: Any,
) -> AsyncIterator[Any]:
    """`connect` for asyncio, with `async with`: setting up and closing do not hold up the loop. The
    driver's queues have `acall`."""
    made = await asyncio.to_thread(
        connect,  # type: ignore[arg-type]
        uri,
        want=want,
        offer=offer,
        driver=driver,
        **settings,
    )
    try:
        yield made
    finally:
        await asyncio.to_thread(made.close)


def serve(device: DeviceSide, uri: str) -> None:
    """Serve a device at a URI, to one driver after another, until the process is told to stop
    (SIGTERM, SIGINT).

    Raises UriError, TransportError, and FeatureError if what the device is to offer makes no sense.
    """
    serve_all((device, uri))


def serve_all(*devices: tuple[DeviceSide, str]) -> None:
    """`serve` several devices in one process, each at its URI: `serve_all((a, "vhost-user:/a"),
    (b, "vhost-user:/b"))`. If one cannot be served any more, all end, and that is raised."""
    places = [(device, *_socket(uri), uri) for device, uri in devices]
    asyncio.run(_serve_until_told(places))


async def serve_async(
    device: DeviceSide, uri: str, *, ready: Callable[[], None] = lambda: None
) -> None:
    """Serve a device from a running asyncio loop, until the task is cancelled. `ready` is called
    when drivers can connect. Raises what `serve` raises."""
    from virtq.transports import vhost_user

    path, protocol = _socket(uri)
    with _one_line(uri):
        await vhost_user.serve(device, path, protocol=protocol, ready=lambda _: ready())


def _socket(uri: str) -> tuple[str, str]:
    """The path of the socket, and how the protocol features differ from the usual ones."""
    parts = Uri.parse(uri)
    if parts.scheme != "vhost-user":
        raise UriError(f"{uri!r}: a device can be served at vhost-user:PATH only")
    if not parts.target:
        raise UriError(f"{uri!r} names no socket")
    protocol = parts.take("protocol", str, "")
    parts.done()
    return parts.target, protocol


async def _serve_until_told(places: Sequence[tuple[DeviceSide, str, str, str]]) -> None:
    from virtq.transports import vhost_user

    loop, signals = asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGINT)
    backends: list[vhost_user.Backend] = []
    told = False

    def close_all() -> None:
        nonlocal told
        told = True
        for backend in backends:
            backend.close()

    def ready(backend: vhost_user.Backend) -> None:
        backends.append(backend)
        if told:
            backend.close()

    async def serve_one(device: DeviceSide, path: str, protocol: str, uri: str) -> None:
        with _one_line(uri):
            await vhost_user.serve(device, path, protocol=protocol, ready=ready)

    # Signals are the main thread's; who serves in another one ends that in another way.
    with contextlib.suppress(RuntimeError, ValueError):
        for number in signals:
            loop.add_signal_handler(number, close_all)
    tasks = [asyncio.ensure_future(serve_one(*place)) for place in places]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(RuntimeError, ValueError):
            for number in signals:
                loop.remove_signal_handler(number)
