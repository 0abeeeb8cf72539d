"""`virtq serve rng`: random bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from virtq.cli.capabilities import capabilities_option
from virtq.cli.failures import beginning
from virtq.cli.options import SIZE
from virtq.cli.serving import Endpoint, Terms, serve_all, serving_command

if TYPE_CHECKING:
    from virtq.devices.rng import Source


@click.command(short_help="Random bytes.")
@serving_command
@click.option(
    "--source",
    "--filename",
    metavar="FILE",
    help="A file or a character device, instead of the operating system's generator.",
)
@click.option("--seed", metavar="TEXT", help="A stream that follows from TEXT: for tests only.")
@click.option("--max-bytes", type=SIZE, help="At most so many bytes per buffer.")
@click.option("--rate", type=SIZE, metavar="BYTES", help="At most so many bytes per second.")
@capabilities_option(type="rng", features=["filename"])
def rng(
    terms: Terms, source: str | None, seed: str | None, max_bytes: int | None, rate: int | None
) -> None:
    """Serve an entropy device: the guest's /dev/hwrng.

    \b
    Examples:
      virtq serve rng --socket-path /run/rng.sock
      virtq serve rng --source /dev/hwrng --rate 4K --socket-path /run/rng.sock
      virtq serve rng --seed 'test 7' --max-bytes 16 --socket-path /run/rng.sock

    \b
    QEMU, for which the guest's memory must be shared:
      qemu-system-x86_64 -m 1G -machine memory-backend=m
        -object memory-backend-memfd,id=m,size=1G,share=on
        -chardev socket,id=c,path=/run/rng.sock
        -device vhost-user-rng-pci,chardev=c
    """
    from virtq.devices.rng import BUFFER_BYTES_MAX, RngDevice

    place = terms.place
    with beginning():
        device = RngDevice(
            _source(source, seed),
            buffer_bytes_max=BUFFER_BYTES_MAX if max_bytes is None else max_bytes,
            bytes_per_s=rate,
            offer=terms.offer,
        )
    title = f"rng from {source or ('a seed' if seed is not None else 'the system')}"
    try:
        serve_all([Endpoint(device, title, place)], terms)
    finally:
        device.close()


def _source(path: str | None, seed: str | None) -> Source | None:
    from virtq.devices.rng import FileSource, SeededSource

    if path is not None and seed is not None:
        raise click.UsageError("--source and --seed exclude each other")
    if path is not None:
        return FileSource(path)
    return SeededSource(seed) if seed is not None else None
