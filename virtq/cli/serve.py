"""`virtq serve`: devices for virtual machines and other front-ends."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from virtq.cli import serve_console, serve_gpio, serve_i2c, serve_input, serve_rng, serve_vsock
from virtq.cli.capabilities import capabilities_option
from virtq.cli.failures import beginning
from virtq.cli.options import SIZE
from virtq.cli.output import say, size_text
from virtq.cli.own import own_device
from virtq.cli.serving import Endpoint, Terms, serve_all, serving_command
from virtq.uri import parse_number, parse_size

if TYPE_CHECKING:
    from virtq.devices.disk import Disk
    from virtq.devices.net_ports import Port

SOURCE_FRAME_BYTES = 64

_queue_size_option = click.option(
    "--queue-size",
    metavar="N",
    type=int,
    default=256,
    show_default=True,
    help="Slots in each queue.",
)


class _Devices(click.Group):
    """The device types that have a command, and besides them any class that `FILE:CLASS` names."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or (
            own_device(cmd_name) if ":" in cmd_name else None
        )


@click.group(cls=_Devices, short_help="Serve a device to a virtual machine or another front-end.")
def serve() -> None:
    """Serve a device over a vhost-user socket, to one front-end after another.

    SIGTERM and Ctrl-C end it: what is held is finished, and statistics are printed.

    \b
    Examples:
      virtq serve blk disk.img --socket-path /run/disk.sock
      virtq serve net --tap tap0 --socket-path /run/net.sock
      virtq serve shout.py:Shout --socket-path /run/shout.sock

    What comes with a colon is a device of your own: FILE.py:CLASS or MODULE:CLASS, a virtq.Device
    that can be made without arguments.
    """


_wait_option = click.option(
    "--wait",
    type=click.Choice(["poll", "adaptive", "event"]),
    help="How the data path waits: never sleep, spin a little first, or sleep until notified.",
)


def _given(**settings: Any) -> dict[str, Any]:
    """The settings that were asked for; the others are the device's to choose."""
    return {name: value for name, value in settings.items() if value is not None}


for command in (
    serve_console.console,
    serve_gpio.gpio,
    serve_i2c.i2c,
    serve_input.input,
    serve_rng.rng,
    serve_vsock.vsock,
):
    serve.add_command(command)


# Block


@serve.command(short_help="A disk.")
@click.argument("image", required=False)
@click.option("--blk-file", metavar="IMAGE", hidden=True)
@serving_command
@click.option("--read-only", is_flag=True, help="Refuse writes.")
@click.option(
    "--queues", metavar="N", type=int, default=1, show_default=True, help="Request queues."
)
@_queue_size_option
@click.option("--serial", metavar="TEXT", default="virtq", help="What the disk calls itself.")
@click.option("--block-size", type=SIZE, default=512, show_default=True, help="Bytes in a block.")
@click.option("--direct", is_flag=True, help="Bypass the host's page cache.")
@_wait_option
@capabilities_option(type="block", features=["read-only", "blk-file"])
def blk(
    image: str | None,
    blk_file: str | None,
    terms: Terms,
    read_only: bool,
    queues: int,
    queue_size: int,
    serial: str,
    block_size: int,
    direct: bool,
    wait: str | None,
) -> None:
    """Serve a disk: a raw image or block device, memory:SIZE, or null:SIZE (zeroes; writes vanish).

    \b
    Examples:
      virtq serve blk disk.img --socket-path /run/disk.sock --queues 2
      virtq serve blk memory:64M --socket-path /run/disk.sock --offer -RING_PACKED

    \b
    QEMU, for which the guest's memory must be shared:
      qemu-system-x86_64 -m 1G -machine memory-backend=m
        -object memory-backend-memfd,id=m,size=1G,share=on
        -chardev socket,id=c,path=/run/disk.sock
        -device vhost-user-blk-pci,chardev=c,packed=on,in_order=on
    """
    image = image or blk_file
    if image is None:
        raise click.UsageError("missing IMAGE: a file, memory:SIZE or null:SIZE")
    place = terms.place
    from virtq.devices.blk import BlkDevice

    with beginning(image):
        disk = _open_disk(image, read_only=read_only, direct=direct)
        device = BlkDevice(
            disk,
            queues=queues,
            queue_size=queue_size,
            read_only=read_only,
            block_size=block_size,
            serial=serial,
            offer=terms.offer,
            **_given(wait=wait),
        )
    title = f"blk {image} ({size_text(disk.size)}{', read-only' if device.read_only else ''})"
    try:
        serve_all([Endpoint(device, title, place)], terms)
    finally:
        disk.close()


def _open_disk(image: str, *, read_only: bool, direct: bool) -> Disk:
    from virtq.devices.disk import Disk

    kind, colon, asked = image.partition(":")
    if colon and kind in ("memory", "null"):
        size = parse_size(asked)
        disk = Disk.memory(size) if kind == "memory" else Disk.null(size)
    else:
        disk = Disk.file(image, read_only=read_only, direct=direct)
        size = os.path.getsize(image)
    # Of a device file that is 0.
    if size > disk.size:
        say(f"virtq: {image}: {size} bytes are no whole sectors: {disk.size} of them are served")
    return disk


# Network


@serve.command(short_help="A network interface.")
@click.option("--tap", metavar="NAME", help="Packets to and from this tap interface of the host.")
@click.option("--hub", is_flag=True, help="What one socket's guest sends, the others receive.")
@click.option(
    "--stream",
    metavar="PATH",
    help="A wire: a socket there, for QEMU's -netdev stream or for virtq check --port.",
)
@click.option("--sink", is_flag=True, help="Swallow what the guest sends.")
@click.option(
    "--source",
    metavar="[SIZE[:COUNT]]",
    is_flag=False,
    flag_value=str(SOURCE_FRAME_BYTES),
    help="Send the guest frames of SIZE bytes (64), COUNT of them (no end).",
)
@click.option("--pcap", metavar="FILE", help="Write what the guest sends to this capture file.")
@click.option("--pcap-in", metavar="FILE", help="Send the guest the packets of this capture file.")
@serving_command
@click.option("--mac", metavar="ADDRESS", help="By default a random local one.")
@click.option("--mtu", metavar="BYTES", type=int, help="The largest packet, to tell the guest.")
@click.option(
    "--queues", metavar="PAIRS", type=int, default=1, show_default=True, help="Queue pairs."
)
@_queue_size_option
@click.option(
    "--mergeable/--no-mergeable",
    default=True,
    show_default=True,
    help="Whether a packet may be spread over several receive buffers.",
)
@_wait_option
@capabilities_option(type="net")
def net(
    tap: str | None,
    hub: bool,
    stream: str | None,
    sink: bool,
    source: str | None,
    pcap: str | None,
    pcap_in: str | None,
    terms: Terms,
    mac: str | None,
    mtu: int | None,
    queues: int,
    queue_size: int,
    mergeable: bool,
    wait: str | None,
) -> None:
    """Serve a network interface on a tap, a hub, a capture file, a source or a sink of packets.

    With --hub, repeat --socket-path for each guest on the hub; a guest alone on it hears itself.

    \b
    Examples:
      virtq serve net --tap tap0 --socket-path /run/net.sock
      virtq serve net --hub --socket-path /run/a.sock --socket-path /run/b.sock
      virtq serve net --pcap sent.pcap --pcap-in play.pcap --socket-path /run/net.sock
      virtq serve net --source 1500:100000 --socket-path /run/net.sock --stats 1

    \b
    QEMU, for which the guest's memory must be shared:
      qemu-system-x86_64 -m 1G -machine memory-backend=m
        -object memory-backend-memfd,id=m,size=1G,share=on
        -chardev socket,id=c,path=/run/net.sock
        -netdev vhost-user,id=n,chardev=c
        -device virtio-net-pci,netdev=n,packed=on,in_order=on
    """
    from virtq.devices.net import NetDevice
    from virtq.wire.net import parse_mac

    places = terms.places
    if len(places) > 1 and (mac is not None or not hub):
        raise click.UsageError("several --socket-path go with --hub, and each with its own address")
    changes = ",".join(filter(None, (terms.offer, "" if mergeable else "-MRG_RXBUF")))
    with beginning():
        port, title = _port(tap, hub, stream, sink, source, pcap, pcap_in)
        settings = _given(mac=None if mac is None else parse_mac(mac), mtu=mtu, wait=wait)
        endpoints = [
            Endpoint(
                NetDevice(port, pairs=queues, queue_size=queue_size, offer=changes, **settings),
                f"net {title}",
                place,
            )
            for place in places
        ]
    try:
        serve_all(endpoints, terms)
    finally:
        for endpoint in endpoints:
            endpoint.device.close()


def _port(
    tap: str | None,
    hub: bool,
    stream: str | None,
    sink: bool,
    source: str | None,
    pcap: str | None,
    pcap_in: str | None,
) -> tuple[Port, str]:
    """The port that the options ask for, and what to call it."""
    from virtq.devices.net_native import NativePort
    from virtq.devices.net_stream import StreamPort

    asked = [tap is not None, hub, stream is not None, sink, source is not None]
    if sum([*asked, (pcap or pcap_in) is not None]) != 1:
        ports = "--tap, --hub, --stream, --sink, --source, --pcap (or --pcap-in)"
        raise click.UsageError(f"say one of {ports}")
    if tap is not None:
        return NativePort.tap(tap), f"tap {tap}"
    if hub:
        return NativePort.hub(), "hub"
    if stream is not None:
        return StreamPort(stream), f"wire {stream}"
    if sink:
        return NativePort.sink(), "sink"
    if source is not None:
        frame, _, frames = source.partition(":")
        size = parse_size(frame) if frame else SOURCE_FRAME_BYTES
        count = parse_number(frames) if frames else None
        return NativePort.source(size, count), f"source of {size}-byte frames"
    files = [f"from {pcap_in}"] * bool(pcap_in) + [f"to {pcap}"] * bool(pcap)
    return NativePort.pcap(pcap_in, pcap), f"pcap {' '.join(files)}"
