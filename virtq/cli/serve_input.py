"""`virtq serve input`: a keyboard, mouse or tablet that standard input moves."""

from __future__ import annotations

import click

from virtq.cli.capabilities import capabilities_option
from virtq.cli.failures import beginning
from virtq.cli.output import say
from virtq.cli.serving import Endpoint, Terms, serve_all, serving_command
from virtq.cli.stdin_lines import follow_lines


@click.command(short_help="A keyboard, mouse or tablet.")
@click.option("--keyboard", "kind", flag_value="keyboard", help="Keys, and LEDs.")
@click.option("--mouse", "kind", flag_value="mouse", help="Buttons, relative motion, a wheel.")
@click.option("--tablet", "kind", flag_value="tablet", help="Buttons, and absolute places.")
@click.option(
    "--evdev",
    "--evdev-path",
    "evdev",
    metavar="PATH",
    help="Or this device of the host: /dev/input/eventN.",
)
@click.option(
    "--grab/--no-grab",
    default=True,
    show_default=True,
    help="With --evdev: whether to keep its events from the host meanwhile.",
)
@click.option("--name", metavar="TEXT", help="What the device calls itself.")
@click.option("--serial", metavar="TEXT", default="", help="Its serial number.")
@serving_command
@capabilities_option(type="input", features=["evdev-path", "no-grab"])
def input(
    kind: str | None,
    evdev: str | None,
    grab: bool,
    name: str | None,
    serial: str,
    terms: Terms,
) -> None:
    """Serve an input device: one that standard input moves, or (--evdev) one of the host's.

    Each line of standard input is an update of the device: events, CODE VALUE, with commas between.
    A lone key is pressed and released. What the guest sends, such as LEDs, is printed on standard
    error.

    \b
    Examples:
      echo KEY_A | virtq serve input --keyboard --socket-path /run/keyboard.sock
      echo ABS_X 100, ABS_Y 200 | virtq serve input --tablet --socket-path /run/tablet.sock
      virtq serve input --evdev /dev/input/event3 --socket-path /run/input.sock

    \b
    QEMU, for which the guest's memory must be shared:
      qemu-system-x86_64 -m 1G -machine memory-backend=m
        -object memory-backend-memfd,id=m,size=1G,share=on
        -chardev socket,id=c,path=/run/keyboard.sock
        -device vhost-user-input-pci,chardev=c
    """
    from virtq.devices.evdev import EvdevDevice
    from virtq.devices.input import InputDevice
    from virtq.wire.input import Event, InputDescription

    class Shown(InputDevice):
        """Says what the driver sends."""

        def status(self, event: Event) -> None:
            say(f"virtq: {event}")

    if (kind is None) == (evdev is None):
        raise click.UsageError("say one of --keyboard, --mouse, --tablet and --evdev PATH")
    if evdev is not None and (name is not None or serial):
        raise click.UsageError("--name and --serial are not for --evdev: the device has its own")
    place = terms.place
    device: InputDevice
    with beginning(evdev or ""):
        if evdev is not None:
            device = EvdevDevice(evdev, grab=grab, offer=terms.offer)
        else:
            make = getattr(InputDescription, str(kind))
            device = Shown(make(name or f"virtq {kind}", serial), offer=terms.offer)
            follow_lines(lambda text: take_update(device, text))
    try:
        title = f"input {device.description.name!r}"
        serve_all([Endpoint(device, title, place)], terms)
    finally:
        device.close()


def take_update(device: object, text: str) -> None:
    """Send what one line of text says. Raises ValueError for what the device does not send."""
    from virtq.devices.input import InputDevice

    assert isinstance(device, InputDevice)
    if " " not in text and "," not in text:
        device.tap(text)
        return
    events = []
    for part in text.split(","):
        code, _, value = part.strip().partition(" ")
        try:
            events.append(device.checked(code, int(value)))
        except ValueError as error:
            hint = "say CODE VALUE" if not value.strip().lstrip("+-").isdecimal() else error
            raise ValueError(f"{part.strip()!r}: {hint}") from None
    device.update(*events)
