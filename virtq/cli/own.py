"""`virtq serve FILE.py:CLASS`: a device of one's own."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from types import ModuleType

import click

from virtq.cli.failures import beginning, reason
from virtq.cli.serving import Endpoint, Terms, serve_all, serving_command
from virtq.device import Device
from virtq.errors import UriError
from virtq.wrap import Wrapper


def own_device(name: str) -> click.Command:
    """The command that serves what `name` names."""

    @click.command(name, short_help="A device of your own.")
    @serving_command
    def own(terms: Terms) -> None:
        """Serve a device of your own.

        FILE.py:CLASS or MODULE:CLASS names a virtq.Device that can be made without arguments, or a
        function that makes one.

        \b
        Example:
          virtq serve shout.py:Shout --socket-path /run/shout.sock
        """
        place = terms.place
        with beginning(name):
            device = make_device(name)
        innermost = device.innermost if isinstance(device, Wrapper) else device
        if terms.offer:
            innermost.offer = terms.offer
        title = f"{type(innermost).__name__} (device type {device.device_id})"
        serve_all([Endpoint(device, title, place)], terms)

    return own


def make_device(name: str) -> Device | Wrapper:
    """The device, or wrapper around one, that `FILE.py:CLASS` or `MODULE:CLASS` names. Raises
    UriError if what is named is not there, fails, or makes no device."""
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise UriError(f"{name!r} is neither FILE.py:CLASS nor MODULE:CLASS")
    try:
        made = getattr(_load(place), attribute)
        device = made if isinstance(made, Device | Wrapper) else made()
    except FileNotFoundError as error:
        raise UriError(f"{name}: {reason(error)}") from error
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        at = f" ({last.filename}:{last.lineno})" if last.filename.endswith(place) else ""
        raise UriError(f"{name}: {type(error).__name__}: {error}{at}") from error
    if not isinstance(device, Device | Wrapper):
        raise UriError(f"{name} is no virtq.Device but {type(device).__name__}")
    return device


def _load(place: str) -> ModuleType:
    if not place.endswith(".py"):
        sys.path.insert(0, os.getcwd())
        return importlib.import_module(place)
    name = os.path.basename(place).removesuffix(".py")
    spec = importlib.util.spec_from_file_location(name, place)
    if spec is None or spec.loader is None:
        raise ImportError(f"{place} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
