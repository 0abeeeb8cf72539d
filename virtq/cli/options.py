"""Types of options that several commands have."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection
from typing import Any

import click
from click.core import ParameterSource

from virtq.errors import VirtqError
from virtq.features import DEVICE_NAMES
from virtq.uri import parse_size


class Size(click.ParamType[int]):
    """Bytes, with a unit or without."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except VirtqError as error:
            self.fail(str(error), param, ctx)


class Seconds(click.FloatRange):
    """A time; what is no number is none."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        seconds: float = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value!r} is no time", param, ctx)
        return seconds


class DeviceType(click.ParamType[int]):
    """A device type by its short name or id."""

    name = "type"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        for device_id, name in DEVICE_NAMES.items():
            if value in (device_id, name, str(device_id)):
                return device_id
        if isinstance(value, int) or (str(value).isdecimal() and int(value) < 1 << 32):
            return int(value)
        self.fail(f"{value!r} is none of {', '.join(DEVICE_NAMES.values())}", param, ctx)


FD = click.IntRange(0, (1 << 31) - 1)
"""A file descriptor."""
SIZE = Size()
DEVICE_TYPE = DeviceType()


def command_line(leave_out: Collection[str]) -> str:
    """The command that is being carried out, without the options of these names, such as those
    that only say where its results go."""
    context = click.get_current_context()
    words = context.command_path.split()
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if not given or option.name in leave_out:
            continue
        value = context.params.get(option.name or "")
        if isinstance(option, click.Argument):
            words += map(str, value if isinstance(value, tuple) else [value])
        elif value is False:
            words.append(option.secondary_opts[0])
        elif value is True:
            words.append(option.opts[0])
        elif getattr(option, "multiple", False):
            for one in value or ():
                words += [option.opts[0], str(one)]
        else:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [option.opts[0], text]
    return shlex.join(words)
