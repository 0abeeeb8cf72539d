"""The command `virtq`.

One file for each subcommand, on virtq's public interface only. Whatever goes wrong ends as one line
on standard error and an exit code:

    0  done
    1  what was asked for did not succeed
    2  it could not begin: a wrong command line, or an endpoint that cannot be used
    128 + n  ended by signal n: 130 for Ctrl-C
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import NoReturn

import click

from virtq.cli.failures import EXIT_FAILED, EXIT_INTERRUPTED, one_line, reason
from virtq.cli.output import printing, say
from virtq.errors import VirtqError

__all__ = ["main", "run"]


COMMANDS = ("bench", "blk", "check", "demo", "features", "probe", "serve")
"""Each is what its name is in the file of the same name."""


class _Commands(click.Group):
    """Commands that are loaded when they are asked for: one does not wait for the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = getattr(import_module(f"virtq.cli.{cmd_name}"), cmd_name)
        return found


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Each command has a --help with examples, and --json for programs.",
)
@click.option(
    "-v", "--verbose", count=True, help="Log more; twice: all, and where errors came from."
)
@click.version_option(version("virtq"), prog_name="virtq")
def cli(verbose: int) -> None:
    """VIRTIO, both halves of it: serve devices, drive devices, see what they are.

    \b
    Examples:
      virtq demo
      virtq serve blk disk.img --socket-path /run/disk.sock
      virtq probe vhost-user:/run/disk.sock
      virtq blk vhost-user:/run/disk.sock copy --out disk.img
      virtq check vhost-user:/run/disk.sock
      virtq features 0xc00000000
    """
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, format="virtq: %(message)s", stream=sys.stderr, force=True)


def run(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line (None: that of this process); returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = cli.main(words, prog_name="virtq", standalone_mode=False)
        with printing():
            sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
            error.show()  # the help itself, of more than one line
        else:
            say(one_line(error))
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Nobody reads any more. What is still buffered must not be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:
        if logging.getLogger().isEnabledFor(logging.DEBUG):
            logging.getLogger("virtq").debug("the error came from here", exc_info=error)
        expected = isinstance(error, VirtqError | OSError)
        text = " ".join((reason(error) if expected else str(error)).split())
        hint = "" if expected else " (unexpected: virtq -vv shows where it came from)"
        say(f"virtq: {text if expected else f'{type(error).__name__}: {text}'}{hint}")
        return EXIT_FAILED


def main() -> NoReturn:
    """The command's entry point."""
    _have_streams()
    sys.exit(run())


def _have_streams() -> None:
    """Standard streams that were closed for this process are there again; otherwise the next files
    and sockets would take their place."""
    for name, flags in (
        ("stdin", os.O_RDONLY),
        ("stdout", os.O_RDONLY),  # what is asked for and cannot be printed is an error
        ("stderr", os.O_WRONLY),
    ):
        if getattr(sys, name) is None:
            # The lowest descriptor that is free is the one that is missing.
            fd = os.open(os.devnull, flags)
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, os.fdopen(fd, mode, encoding="utf-8"))
