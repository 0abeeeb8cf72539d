"""All cases, for devices and for drivers: a file in one of their folders need not be listed."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module

from virtq.check.case import CASES, Case

FOLDERS = ("virtq.check.device", "virtq.check.driver.cases")


@cache
def all_cases() -> Mapping[str, Case]:
    """Every case by its name, in the order in which they are run: folder by folder, in each file by
    file. Importing a file registers the cases that it has."""
    for folder in FOLDERS:
        for file in pkgutil.iter_modules(import_module(folder).__path__):
            import_module(f"{folder}.{file.name}")
    return CASES
