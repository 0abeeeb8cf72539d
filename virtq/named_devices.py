"""The devices that `loopback:NAME` can name, made from the options of the URI."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from virtq.device import Device
from virtq.errors import UriError
from virtq.uri import Uri, parse_flag, parse_number, parse_size

if TYPE_CHECKING:
    from virtq.devices.net_ports import Port


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
"""What makes each, by name. Raises UriError."""
