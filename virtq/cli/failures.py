"""How commands fail: exit codes, and errors as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from virtq.errors import VirtqError

EXIT_FAILED = 1
EXIT_UNUSABLE = 2
EXIT_INTERRUPTED = 130


class Failed(click.ClickException):
    """What was asked for did not succeed."""

    exit_code = EXIT_FAILED


class Unusable(click.ClickException):
    """What was asked for cannot even begin."""

    exit_code = EXIT_UNUSABLE


@contextmanager
def beginning(what: str = "") -> Iterator[None]:
    """Errors in here mean that the command cannot begin; `what` is put before their text."""
    try:
        yield
    except (VirtqError, OSError, ValueError) as error:
        text = reason(error)
        raise Unusable(text if not what or what in text else f"{what}: {text}") from error


def reason(error: BaseException) -> str:
    """What an error says, without the number that an OSError begins with."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def one_line(error: click.ClickException) -> str:
    """An error on one line, with the command it belongs to and where help is."""
    text = " ".join(error.format_message().split())
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is None:
        return f"virtq: {text}"
    text = text[:1].lower() + text[1:].rstrip(".")
    return f"{context.command_path}: {text} (see {context.command_path} --help)"
