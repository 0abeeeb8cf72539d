"""What `--print-capabilities` prints, as management tools expect of every back-end program."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click


def _capabilities(answer: dict[str, Any]) -> Callable[[click.Context, click.Parameter, bool], None]:
    def print_and_exit(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            click.echo(json.dumps(answer, indent=2))
            ctx.exit(0)

    return print_and_exit


def capabilities_option(**answer: Any) -> Callable[[Any], Any]:
    """The option, for a back-end that can do what `answer` says: its `type` above all."""
    return click.option(
        "--print-capabilities",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_capabilities(answer),
        help="Print what this back-end can do, in JSON, and exit.",
    )
