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
from importlib.metadata import version
from typing import NoReturn

import click

from virtq.cli import bench, blk, demo, features, probe, serve
from virtq.cli.failures import EXIT_FAILED, EXIT_INTERRUPTED, one_line
from virtq.cli.output import say
from virtq.errors import VirtqError

__all__ = ["main", "run"]


@click.group(
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
      virtq features 0xc00000000
    """
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, format="virtq: %(message)s", stream=sys.stderr, force=True)


for command in (
    demo.demo,
    serve.serve,
    probe.probe,
    blk.blk,
    features.features,
    bench.bench,
):
    cli.add_command(command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line (None: that of this process); returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = cli.main(words, prog_name="virtq", standalone_mode=False)
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
        text = " ".join(str(error).split())
        hint = "" if expected else " (unexpected: virtq -vv shows where it came from)"
        say(f"virtq: {text if expected else f'{type(error).__name__}: {text}'}{hint}")
        return EXIT_FAILED


def main() -> NoReturn:
    """The command's entry point."""
    sys.exit(run())
