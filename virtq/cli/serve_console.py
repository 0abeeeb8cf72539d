"""`virtq serve console`: a console, and ports between a guest and the host."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from virtq.cli.capabilities import capabilities_option
from virtq.cli.failures import beginning
from virtq.cli.output import say
from virtq.cli.serving import Endpoint, Terms, serve_all, serving_command
from virtq.errors import UriError

if TYPE_CHECKING:
    from virtq.devices.console import PortSpec
    from virtq.devices.console_ends import End

KINDS = "stdio, pty[=LINK], socket=PATH, file=PATH and null"


@click.command(short_help="A console, and ports between a guest and the host.")
@click.option(
    "--port",
    "ports",
    metavar="PORT:KIND",
    multiple=True,
    help=f"A port, and what is at the host's side: {KINDS}. May be repeated.",
)
@serving_command
@click.option("--ports-max", metavar="N", type=int, help="Room for so many ports.")
@click.option("--size", metavar="COLSxROWS", help="The size of the console on port 0.")
@click.option("--no-multiport", is_flag=True, help="One port, without control messages.")
@capabilities_option(type="console")
def console(
    ports: tuple[str, ...],
    terms: Terms,
    ports_max: int | None,
    size: str | None,
    no_multiport: bool,
) -> None:
    """Serve a console device with one port or many.

    PORT is a number for a console, or the name of a port that programs open in the guest
    (/dev/virtio-ports/NAME). KIND is what is at the host's side: standard input and output, a new
    pseudo-terminal (with a symbolic link to it), a Unix socket that listens, a file that grows, or
    nothing. Without --port there is a console on standard input and output.

    \b
    Examples:
      virtq serve console --port 0:pty=/tmp/console --socket-path /run/console.sock
      virtq serve console --port agent:socket=/run/agent.sock --port log:file=guest.log
        --port 0:stdio --socket-path /run/console.sock

    \b
    QEMU has a front-end for it from 10.2 on:
      -device vhost-user-test-device-pci,virtio-id=3,chardev=c
    """
    from virtq.devices.console import ConsoleDevice
    from virtq.devices.console_ends import PtyEnd

    place = terms.place
    specs: list[PortSpec] = []
    try:
        with beginning():
            for text in ports or ("0:stdio",):
                specs.append(make_port(text))
            device = ConsoleDevice(
                specs,
                ports_max=ports_max,
                multiport=not no_multiport,
                size=None if size is None else parse_console_size(size),
                offer=terms.offer,
            )
        for spec in specs:
            if isinstance(spec.end, PtyEnd):
                say(f"virtq: port {spec.name or spec.id} is the terminal {spec.end.path}")
        title = f"console with {len(specs)} port{'s' if len(specs) > 1 else ''}"
        serve_all([Endpoint(device, title, place)], terms)
    finally:
        for spec in specs:
            spec.end.close()


def make_port(text: str) -> PortSpec:
    """The port that `PORT:KIND` or `PORT:KIND=VALUE` asks for. Raises UriError, OSError."""
    from virtq.devices.console import PortSpec

    who, colon, what = text.partition(":")
    if not colon or not who:
        raise UriError(f"port {text!r} is not PORT:KIND; kinds are {KINDS}")
    end = _end(text, *what.partition("=")[::2])
    if who.isdecimal():
        return PortSpec(end, console=True, id=int(who))
    return PortSpec(end, name=who)


def _end(text: str, kind: str, value: str) -> End:
    from virtq.devices import console_ends as ends

    if kind == "pty":
        return ends.PtyEnd(value or None)
    if kind in ("socket", "file"):
        if not value:
            raise UriError(f"port {text!r}: {kind}=PATH")
        return ends.SocketEnd(value) if kind == "socket" else ends.FileEnd(value)
    if kind in ("stdio", "null") and not value:
        return ends.StdioEnd() if kind == "stdio" else ends.NullEnd()
    raise UriError(f"port {text!r}: there are {KINDS}")


def parse_console_size(text: str) -> tuple[int, int]:
    """Columns and rows, from `80x25`. Raises UriError."""
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text.strip().lower())
    if match is None:
        raise UriError(f"{text!r} is not a size such as 80x25")
    return int(match[1]), int(match[2])
