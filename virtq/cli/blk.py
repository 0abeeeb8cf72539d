"""`virtq blk`: driving a block device from the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, TypeVar

import click

from virtq.cli.failures import Failed, Unusable, beginning
from virtq.cli.options import SIZE
from virtq.cli.output import facts, json_option, print_json, printing, say, show, size_text
from virtq.cli.probe import guess_device
from virtq.cli.transfer import (
    Blocks,
    Moved,
    Output,
    Pace,
    copy_in,
    copy_out,
    disk_sha256,
    file_sha256,
    file_size,
    open_input,
)
from virtq.connecting import open_transport
from virtq.drivers.blk import BlkDriver
from virtq.features import DEVICE_NAMES, Change
from virtq.wire.blk import DEVICE_ID

C = TypeVar("C", bound=Callable[..., Any])


class _UriFirst(click.Group):
    """`virtq blk URI COMMAND`, and yet `virtq blk COMMAND --help` works."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] in self.commands:
            if not {"--help", "-h"} & set(args):
                raise click.UsageError(f"the URI comes first: virtq blk URI {args[0]}", ctx)
            args = ["URI", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_UriFirst, short_help="Read, write and copy any block device.")
@click.argument("uri")
@click.pass_context
def blk(ctx: click.Context, uri: str) -> None:
    """Drive the block device at URI. The URI comes before the command.

    \b
    Examples:
      virtq blk vhost-user:/run/disk.sock info
      virtq blk vhost-user:/run/disk.sock copy --out disk.img
      virtq blk vhost-user:/run/disk.sock copy --in disk.img --verify
      virtq blk vhost-user:/run/disk.sock read --length 512 --hex
      echo hello | virtq blk vhost-user:/run/disk.sock write --offset 1M -
    """
    ctx.obj = uri


def _driver_options(command: C) -> C:
    for option in reversed(
        (
            click.option(
                "--want",
                metavar="FEATURES",
                default="",
                help="Features to insist on or do without, such as +IN_ORDER,-EVENT_IDX.",
            ),
            click.option(
                "--queue-depth",
                "depth",
                metavar="N",
                type=click.IntRange(1, 256),
                default=32,
                show_default=True,
                help="Requests in flight.",
            ),
            click.option(
                "--chunk",
                type=SIZE,
                default="4M",
                show_default=True,
                help="Bytes held at once.",
            ),
            json_option,
        )
    ):
        command = option(command)
    return command


@contextmanager
def _drive(uri: str, want: str) -> Iterator[BlkDriver]:
    """A driver for the device, reset when done. Raises Unusable unless it is a block device."""
    with beginning():
        signed = (p if p[:1] in "+-" else f"+{p}" for p in want.replace(" ", "").split(",") if p)
        change = Change.parse(",".join(signed), DEVICE_ID)
        transport = open_transport(uri)
        try:
            features, config_size = transport.read_features(), transport.config_size
            _check_type(uri, transport.device_id or guess_device(features, config_size))
            if not config_size:
                raise Unusable(f"{uri} has no configuration space, so no size")
            driver = BlkDriver(transport, want=change.add, offer=Change(remove=change.remove))
        except BaseException:
            transport.close()
            raise
    with driver:
        yield driver


def _check_type(uri: str, device_id: int | None) -> None:
    if device_id not in (None, DEVICE_ID):
        what = DEVICE_NAMES.get(device_id or 0, f"type {device_id}")
        raise Unusable(f"{uri} is no block device but {what}")


def _pace(chunk: int, depth: int) -> Pace:
    if chunk < 1 << 16 or chunk % (1 << 16):
        raise click.UsageError(f"--chunk is a multiple of 64K, not {chunk} bytes")
    return Pace(chunk, depth)


def _tell(moved: Moved, done: str, disk: BlkDriver, as_json: bool) -> None:
    if as_json:
        print_json(moved.as_json() | {"ring": str(disk.kind)})
        return
    checked = f", SHA-256 {moved.sha256} on both sides" if moved.sha256 else ""
    say(f"{done} {moved}, {disk.kind.title}{checked}")


# Commands


@blk.command(short_help="What the disk tells about itself.")
@click.option("--want", metavar="FEATURES", default="", help="Features, such as +IN_ORDER.")
@json_option
@click.pass_obj
def info(uri: str, want: str, as_json: bool) -> None:
    """Show capacity, limits, serial and what was negotiated.

    \b
    Example:
      virtq blk vhost-user:/run/disk.sock info
    """
    with _drive(uri, want) as disk:
        found, serial = disk.info(), disk.get_id()
        kind = disk.kind
    if as_json:
        print_json({"uri": uri, "serial": serial, "ring": str(kind), **asdict(found)})
        return
    discard, zeroes = found.discard_bytes_max, found.write_zeroes_bytes_max
    optimal = found.optimal_io_size
    rows = [
        ("capacity", f"{found.capacity} bytes, {size_text(found.capacity)}"),
        ("serial", serial or "none"),
        ("access", "read-only" if found.read_only else "read and write"),
        ("blocks", f"{found.block_size} bytes, {found.physical_block_size} physical"),
        ("best size", f"{optimal} bytes" if optimal else "not told"),
        ("write cache", "on" if found.write_cache else "off"),
        ("queues", f"{found.queues}, {kind.title}"),
        ("segments", f"{found.segments_max or 'any number'} in a request"),
        ("discard", f"up to {size_text(discard)} at once" if discard else "no"),
        ("write zeroes", f"up to {size_text(zeroes)} at once" if zeroes else "no"),
        ("negotiated", ", ".join(found.features)),
    ]
    show(facts(uri, rows))


@blk.command(short_help="Read bytes to a file or standard output.")
@click.option("--offset", type=SIZE, default="0", show_default=True, help="Where to begin.")
@click.option("--length", type=SIZE, default="512", show_default=True, help="How many bytes.")
@click.option("-o", "--output", metavar="FILE", default="-", help="Instead of standard output.")
@click.option("--hex", "as_hex", is_flag=True, help="Print in hexadecimal, for reading.")
@_driver_options
@click.pass_obj
def read(
    uri: str,
    offset: int,
    length: int,
    output: str,
    as_hex: bool,
    want: str,
    depth: int,
    chunk: int,
    as_json: bool,
) -> None:
    """Read any range of bytes, to standard output unless -o names a file.

    \b
    Examples:
      virtq blk vhost-user:/run/disk.sock read --length 64 --hex
      virtq blk vhost-user:/run/disk.sock read --offset 1M --length 4K -o part.bin
    """
    if as_hex and output != "-":
        raise click.UsageError("--hex is for standard output, not for -o FILE")
    pace = _pace(chunk, depth)
    with _drive(uri, want) as disk:
        blocks = Blocks(disk, depth)
        blocks.check(offset, length)
        if output != "-" and not as_hex:
            with beginning():
                target = Output(output, sparse=False)
            _tell(copy_out(blocks, offset, length, target, pace), "read", disk, as_json)
            return
        for at in range(0, 1 if as_json else length, chunk):
            data = blocks.read(offset + at, length if as_json else min(chunk, length - at))
            if as_json:
                print_json({"offset": offset, "length": length, "hex": data.hex()})
            elif as_hex:
                _dump(offset + at, data)
            else:
                with printing():
                    sys.stdout.buffer.write(data)


def _dump(offset: int, data: bytes) -> None:
    for at in range(0, len(data), 16):
        part = data[at : at + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        click.echo(f"{offset + at:010x}  {part.hex(' '):47}  {text}")


@blk.command(short_help="Write bytes from a file or standard input.")
@click.argument("file")
@click.option("--offset", type=SIZE, default="0", show_default=True, help="Where to begin.")
@_driver_options
@click.pass_obj
def write(
    uri: str, file: str, offset: int, want: str, depth: int, chunk: int, as_json: bool
) -> None:
    """Write FILE (- for standard input) to any place of the disk, and flush.

    Where it begins or ends within a block, the rest of that block is kept.

    \b
    Examples:
      virtq blk vhost-user:/run/disk.sock write boot.bin
      echo hello | virtq blk vhost-user:/run/disk.sock write --offset 1M -
    """
    pace = _pace(chunk, depth)
    with beginning():
        source = open_input(file)
    with source as stream, _drive(uri, want) as disk:
        _check_writable(uri, disk)
        blocks = Blocks(disk, depth)
        blocks.check(offset, file_size(stream) or 0)
        _tell(copy_in(stream, blocks, offset, pace), "wrote", disk, as_json)


def _check_writable(uri: str, disk: BlkDriver) -> None:
    if disk.read_only:
        raise Unusable(f"{uri} is read-only")


@blk.command(short_help="Copy a whole disk out of or into the device.")
@click.option("--out", "out_path", metavar="FILE", help="Copy the disk into FILE (- for stdout).")
@click.option("--in", "in_path", metavar="FILE", help="Copy FILE (- for stdin) onto the disk.")
@click.option("--verify", is_flag=True, help="Read the copy again and compare the SHA-256.")
@click.option(
    "--sparse/--no-sparse",
    default=True,
    show_default=True,
    help="Leave zeroes out: holes in a file, write-zeroes requests to a disk.",
)
@_driver_options
@click.pass_obj
def copy(
    uri: str,
    out_path: str | None,
    in_path: str | None,
    verify: bool,
    sparse: bool,
    want: str,
    depth: int,
    chunk: int,
    as_json: bool,
) -> None:
    """Copy the whole disk into a file, or a file onto the disk from its beginning, and flush.

    An image must not be larger than the disk; if it is smaller, the rest of the disk is kept.

    \b
    Examples:
      virtq blk vhost-user:/run/disk.sock copy --out disk.img
      virtq blk vhost-user:/run/disk.sock copy --in disk.img --verify
      virtq blk vhost-user:/run/a.sock copy --out - | virtq blk vhost-user:/run/b.sock copy --in -
    """
    if (out_path is None) == (in_path is None):
        raise click.UsageError("say either --out FILE or --in FILE")
    if out_path == "-" and (as_json or verify):
        raise click.UsageError("--json and --verify do not go with --out -")
    pace = _pace(chunk, depth)
    if out_path is not None:
        with _drive(uri, want) as disk:
            _tell(_out(disk, out_path, pace, verify, sparse), "copied", disk, as_json)
        return
    assert in_path is not None
    with beginning():
        source = open_input(in_path)
    with source as stream, _drive(uri, want) as disk:
        _check_writable(uri, disk)
        blocks, size = Blocks(disk, depth), file_size(stream)
        if size is not None and size > blocks.size:
            raise Unusable(f"{in_path} has {size} bytes, the disk {blocks.size}")
        moved = copy_in(stream, blocks, 0, pace, sparse=sparse, hashed=verify)
        if verify:
            _compare(moved, disk_sha256(blocks, 0, moved.bytes, pace), in_path, uri)
        if moved.bytes < blocks.size:
            say(f"the last {size_text(blocks.size - moved.bytes)} of the disk stay as they were")
        _tell(moved, "copied", disk, as_json)


def _out(disk: BlkDriver, path: str, pace: Pace, verify: bool, sparse: bool) -> Moved:
    blocks = Blocks(disk, pace.depth)
    with beginning():
        output = Output(path, sparse=sparse)
    if output.room is not None and output.room < blocks.size:
        raise Unusable(f"{path} has room for {output.room} bytes, the disk has {blocks.size}")
    moved = copy_out(blocks, 0, blocks.size, output, pace, hashed=verify)
    if verify:
        _compare(moved, file_sha256(path, moved.bytes), "the disk", path)
    return moved


def _compare(moved: Moved, second: str, source: str, target: str) -> None:
    if moved.sha256 != second:
        raise Failed(f"{target} differs from {source}: SHA-256 {second}, not {moved.sha256}")
