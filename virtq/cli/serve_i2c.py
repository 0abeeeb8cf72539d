"""`virtq serve i2c`: a bus with simulated targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from virtq.cli.capabilities import capabilities_option
from virtq.cli.failures import beginning
from virtq.cli.serving import Endpoint, Terms, serve_all, serving_command

if TYPE_CHECKING:
    from virtq.devices.i2c_targets import I2cTarget


@click.command(short_help="An I2C bus with simulated targets.")
@click.option(
    "--target",
    "targets",
    metavar="ADDRESS:KIND",
    multiple=True,
    help="A target: registers, registers=FILE, eeprom=FILE or eeprom-ro=FILE. May be repeated.",
)
@serving_command
@capabilities_option(type="i2c")
def i2c(targets: tuple[str, ...], terms: Terms) -> None:
    """Serve an I2C adapter with simulated targets on its bus.

    `registers` is a chip with 256 registers of a byte, or as many as FILE has bytes to begin with.
    `eeprom` is a 24Cxx with the content of FILE, where writes go as well (not with `eeprom-ro`).
    Addresses up to 0x7f have 7 bits, those above have 10.

    \b
    Examples:
      virtq serve i2c --target 0x50:eeprom=at24.bin --socket-path /run/i2c.sock
      virtq serve i2c --target 0x48:registers --target 0x1a0:registers --socket-path /run/i2c.sock

    \b
    QEMU, for which the guest's memory must be shared:
      qemu-system-x86_64 -m 1G -machine memory-backend=m
        -object memory-backend-memfd,id=m,size=1G,share=on
        -chardev socket,id=c,path=/run/i2c.sock
        -device vhost-user-i2c-pci,chardev=c
    """
    from virtq.devices.i2c import I2cAdapter

    if not targets:
        raise click.UsageError("the bus is empty: say --target ADDRESS:KIND")
    place = terms.place
    with beginning():
        device = I2cAdapter(make_targets(targets), offer=terms.offer)
    try:
        serve_all([Endpoint(device, f"i2c, {', '.join(targets)}", place)], terms)
    finally:
        device.close()


def make_targets(texts: Sequence[str]) -> dict[int, I2cTarget]:
    """Targets by address, from `0x50:eeprom=FILE` and the like. Raises ValueError that names what
    it could not make sense of, OSError for a file."""
    made: dict[int, I2cTarget] = {}
    for text in texts:
        address_text, _colon, what = text.partition(":")
        kind, _, path = what.partition("=")
        try:
            address = int(address_text, 0)
        except ValueError:
            raise ValueError(f"{text!r} does not begin with an address such as 0x50:") from None
        if address in made:
            raise ValueError(f"{text!r}: something else is at {address:#x} already")
        made[address] = _make_target(text, kind, path)
    return made


def _make_target(text: str, kind: str, path: str) -> I2cTarget:
    from virtq.devices.i2c_targets import Eeprom, Registers

    if kind == "registers" and not path:
        return Registers()
    if kind == "registers":
        with open(path, "rb") as file:
            return Registers(file.read(257))
    if kind in ("eeprom", "eeprom-ro") and path:
        return Eeprom(path, read_only=kind == "eeprom-ro")
    raise ValueError(
        f"{text!r}: a target is registers, registers=FILE, eeprom=FILE or eeprom-ro=FILE"
    )
