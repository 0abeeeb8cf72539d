"""`virtq serve vsock`: sockets between a guest and the host."""

from __future__ import annotations

import click

from virtq.cli.capabilities import capabilities_option
from virtq.cli.failures import beginning
from virtq.cli.options import SIZE
from virtq.cli.serving import Endpoint, Terms, serve_all, serving_command


@click.command(short_help="Sockets between a guest and Unix sockets of the host.")
@click.option("--uds-path", metavar="PATH", required=True, help="The host's end: a Unix socket.")
@click.option(
    "--guest-cid",
    metavar="N",
    type=int,
    default=3,
    show_default=True,
    help="The guest's context ID, from 3.",
)
@serving_command
@click.option(
    "--buffer",
    type=SIZE,
    help="How much each connection holds until the host has taken it.  [default: 256K]",
)
@click.option("--connections", metavar="N", type=int, help="At most so many.  [default: 1024]")
@capabilities_option(type="vsock")
def vsock(
    uds_path: str, guest_cid: int, terms: Terms, buffer: int | None, connections: int | None
) -> None:
    """Serve a socket device, whose host side is Unix sockets.

    A program of the host connects to PATH, sends `CONNECT <port>` and a line feed, and reads
    `OK <port>` once the guest has accepted. When the guest connects to port N of the host (CID 2),
    it is connected to the Unix socket PATH_N.

    \b
    Examples:
      virtq serve vsock --uds-path /run/guest.vsock --socket-path /run/vsock.sock
      virtq serve vsock --uds-path /run/guest.vsock --guest-cid 42 --socket-path /run/vsock.sock

    \b
    QEMU, for which the guest's memory must be shared:
      qemu-system-x86_64 -m 1G -machine memory-backend=m
        -object memory-backend-memfd,id=m,size=1G,share=on
        -chardev socket,id=c,path=/run/vsock.sock
        -device vhost-user-vsock-pci,chardev=c,packed=on,in_order=on
    """
    from virtq.devices.vsock import CONNECTIONS_MAX, VsockDevice
    from virtq.wire.vsock_flow import BUFFER_BYTES

    place = terms.place
    with beginning():
        device = VsockDevice(
            uds_path,
            guest_cid=guest_cid,
            buffer_bytes=BUFFER_BYTES if buffer is None else buffer,
            connections_max=CONNECTIONS_MAX if connections is None else connections,
            offer=terms.offer,
        )
    try:
        serve_all([Endpoint(device, f"vsock {uds_path}, CID {guest_cid}", place)], terms)
    finally:
        device.close()
