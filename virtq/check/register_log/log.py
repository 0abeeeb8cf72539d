"""A log of register accesses: what a driver did to a device's registers, in the order it did it.

It has a JSON object on each line. The first one tells about the device, as far as it is known:

    {"bus": "pci", "device": 2, "config": "f41a421000001000..."}

`bus` is "pci" or "mmio"; `device` is the device type; `config`, on PCI, is the configuration space
as it was before the driver came, in hexadecimal. Every other line is an access or an interrupt:

    {"do": "write", "at": "common", "offset": 20, "width": 1, "value": 0}
    {"do": "read", "at": "common", "offset": 20, "width": 1, "value": 0}
    {"do": "interrupt", "vector": 1}

`at` says where: on PCI "config" (configuration space), "common", "notify", "isr" and "device" (the
structures, 4.1.4), "msix" (the table); else "mmio", the register block (4.2.2). `offset` (from
there) and `width` are bytes. `value` is what was read or written; it may be a string such as
"0xfe00".
`vector` is the MSI-X vector of an interrupt, and left out for INTx and an interrupt line.

A log of several devices has `"window": N` on every line, a number for each of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from virtq.errors import VirtqError

Do = Literal["read", "write", "interrupt"]
PCI_PLACES = frozenset({"config", "common", "notify", "isr", "device", "msix"})
WIDTHS = (1, 2, 4, 8)
_OFFSET_MAX = 1 << 20


class LogError(VirtqError):
    """A log that cannot be read; the text names the line."""


@dataclass(frozen=True)
class Access:
    """A read, a write, or an interrupt. `line` is its number in the file."""

    line: int
    do: Do
    at: str = ""
    offset: int = 0
    width: int = 0
    value: int = 0
    vector: int | None = None

    def __str__(self) -> str:
        if self.do == "interrupt":
            return f"line {self.line}: an interrupt"
        return (
            f"line {self.line}: a {self.do} of {self.width} bytes at {self.at} {self.offset:#x},"
            f" value {self.value:#x}"
        )


@dataclass
class Log:
    """What was done to one device. `config`: what is known of its configuration space, by byte."""

    bus: Literal["pci", "mmio"]
    device_id: int | None = None
    config: dict[int, int] = field(default_factory=dict)
    accesses: list[Access] = field(default_factory=list)


def parse(name: str, lines: Iterable[str]) -> list[Log]:
    """The logs of a file with JSON lines, one for each device. Raises LogError that names the
    file and the line."""
    logs: dict[int, Log] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict):
                raise ValueError("not an object")
            window = _number(entry, "window", 1 << 64, 0)
            if "bus" in entry:
                if window in logs:
                    raise ValueError("what it is about was said before")
                logs[window] = _about(entry)
            elif window not in logs:
                raise ValueError('the first line has to say which bus it is: {"bus": "pci"}')
            else:
                logs[window].accesses.append(_access(entry, number, logs[window].bus))
        except json.JSONDecodeError as error:
            raise LogError(f"{name}:{number}: not JSON: {error.msg}") from None
        except ValueError as error:
            raise LogError(f"{name}:{number}: {error}") from None
    if not logs:
        raise LogError(f"{name}: there is nothing in it")
    return list(logs.values())


def _about(entry: dict[str, Any]) -> Log:
    _known(entry, {"bus", "device", "config", "window"})
    if entry["bus"] not in ("pci", "mmio"):
        raise ValueError(f"bus: there are pci and mmio, not {entry['bus']!r}")
    device = _number(entry, "device", 1 << 16, -1)
    text = entry.get("config", "")
    if not isinstance(text, str):
        raise ValueError("config: not a string of hexadecimal digits")
    config = dict(enumerate(bytes.fromhex(text)))
    return Log(entry["bus"], None if device < 0 else device, config)


def _access(entry: dict[str, Any], line: int, bus: str) -> Access:
    do = entry.get("do")
    if do == "interrupt":
        _known(entry, {"do", "vector", "window"})
        vector = _number(entry, "vector", 0x800, -1)
        return Access(line, do, vector=None if vector < 0 else vector)
    if do not in ("read", "write"):
        raise ValueError(f"do: there are read, write and interrupt, not {do!r}")
    _known(entry, {"do", "at", "offset", "width", "value", "window"})
    places = PCI_PLACES if bus == "pci" else frozenset({"mmio"})
    at = entry.get("at")
    if at not in places:
        raise ValueError(f"at: there are {', '.join(sorted(places))}, not {at!r}")
    width = _number(entry, "width", 16)
    if width not in WIDTHS:
        raise ValueError(f"width: 1, 2, 4 or 8 bytes, not {width}")
    offset = _number(entry, "offset", _OFFSET_MAX)
    return Access(line, do, at, offset, width, _number(entry, "value", 1 << 8 * width))


def _known(entry: dict[str, Any], names: set[str]) -> None:
    if strange := sorted(set(entry) - names):
        raise ValueError(f"nothing is called {strange[0]!r} here")


def _number(entry: dict[str, Any], name: str, end: int, default: int | None = None) -> int:
    """A number below `end`."""
    if name not in entry and default is not None:
        return default
    value = entry.get(name)
    try:
        number = int(value, 0) if isinstance(value, str) else value
    except ValueError:
        number = None
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < end:
        raise ValueError(f"{name}: a number from 0 to {end - 1:#x}, not {value!r}")
    return number


def lines(log: Log, window: int | None = None) -> Iterator[str]:
    """The log as a file has it."""
    more = {} if window is None else {"window": window}
    about: dict[str, Any] = {"bus": log.bus, **more}
    if log.device_id is not None:
        about["device"] = log.device_id
    if log.config:
        about["config"] = bytes(log.config.get(i, 0) for i in range(max(log.config) + 1)).hex()
    yield json.dumps(about)
    for access in log.accesses:
        if access.do == "interrupt":
            vector = {} if access.vector is None else {"vector": access.vector}
            yield json.dumps({"do": access.do, **vector, **more})
        else:
            yield json.dumps(
                {
                    "do": access.do,
                    "at": access.at,
                    "offset": access.offset,
                    "width": access.width,
                    "value": access.value,
                    **more,
                }
            )
