"""`virtq serve gpio`: lines that standard input moves."""

from __future__ import annotations

import click

from virtq.cli.capabilities import capabilities_option
from virtq.cli.failures import beginning
from virtq.cli.output import say
from virtq.cli.serving import Endpoint, Terms, serve_all, serving_command
from virtq.cli.stdin_lines import follow_lines


@click.command(short_help="Lines with levels and interrupts.")
@click.option("--lines", metavar="N", type=int, help="How many lines; by default one a name.")
@click.option("--names", metavar="A,B,...", default="", help="What they are called, in order.")
@serving_command
@capabilities_option(type="gpio")
def gpio(lines: int | None, names: str, terms: Terms) -> None:
    """Serve a GPIO controller.

    Each line of standard input, `NAME 0` or `NAME 1`, changes the level on a line from outside; a
    number will do instead of the name. What the guest drives is printed on standard error.

    \b
    Examples:
      virtq serve gpio --lines 8 --socket-path /run/gpio.sock
      echo button 1 | virtq serve gpio --names button,led --socket-path /run/gpio.sock

    \b
    QEMU, for which the guest's memory must be shared:
      qemu-system-x86_64 -m 1G -machine memory-backend=m
        -object memory-backend-memfd,id=m,size=1G,share=on
        -chardev socket,id=c,path=/run/gpio.sock
        -device vhost-user-gpio-pci,chardev=c
    """
    from virtq.devices.gpio import GpioDevice

    class Shown(GpioDevice):
        """Says what the driver does to its outputs."""

        def line_driven(self, line: int, value: int | None) -> None:
            level = "released" if value is None else value
            say(f"virtq: {self.names[line] or line} {level}")

    if lines is None and not names:
        raise click.UsageError("say how many lines there are: --lines N or --names A,B")
    place = terms.place
    called = [name.strip() for name in names.split(",")] if names else []
    with beginning():
        device = Shown(lines, called, offer=terms.offer)

    def take(text: str) -> None:
        name, _, level = text.rpartition(" ")
        if level not in ("0", "1") or not name:
            raise ValueError("say NAME 0 or NAME 1")
        name = name.strip()
        number = name.isdecimal() and name not in device.names
        device.set_line(int(name) if number else name, int(level))

    follow_lines(take)
    serve_all([Endpoint(device, f"gpio, {len(device.lines)} lines", place)], terms)
