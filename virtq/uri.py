"""URIs name both ends everywhere, and `connect` and `serve` take one.

    vhost-user:/run/disk.sock                a socket; `?device=blk` tells which driver to use
    vhost-user:/run/s?protocol=-STATUS       one whose protocol features are not the usual ones
    vhost-user:/run/disk.sock?reconnect=on   and outlive its back-ends
    vhost-user:/run/disk.sock?timeout=1.5    and wait so many seconds for each answer
    loopback:blk?size=64M&queues=2           a device in this process
    loopback:net?pairs=2&mtu=1500
    qtest:virtio-blk-pci,packed=on?disk=a.img a device of a QEMU that is started for it
    vhost-user:/run/sim.sock?protocol=+INBAND_NOTIFICATIONS

What comes after `?` are options, `name=value` with `&` between. Sizes are bytes, or have one of the
units K, M, G, T (powers of 1024).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from virtq.errors import UriError, VirtqError

V = TypeVar("V")
W = TypeVar("W")

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def parse_size(text: str) -> int:
    """Bytes from `512`, `64K`, `64KiB`, `1.5G`. Raises UriError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:I?B)?", text.strip().upper())
    size = float(match[1]) * (1 << _UNITS[match[2]]) if match else 0.5
    if size != int(size):
        raise UriError(f"{text!r} is not a size such as 512, 64K or 1.5G")
    return int(size)


def parse_flag(text: str) -> bool:
    """True from on, yes, true, 1 and nothing; False from off, no, false, 0. Raises UriError."""
    word = text.strip().lower()
    if word in ("on", "yes", "true", "1", ""):
        return True
    if word in ("off", "no", "false", "0"):
        return False
    raise UriError(f"{text!r} is neither on nor off")


def parse_number(text: str) -> int:
    """A non-negative integer, decimal or with 0x. Raises UriError."""
    try:
        return int(text, 0) if not text.startswith("-") else int("")
    except ValueError:
        raise UriError(f"{text!r} is not a number") from None


def parse_seconds(text: str) -> float:
    """A number of seconds above 0. Raises UriError."""
    if not re.fullmatch(r"\d+(\.\d+)?", text.strip()) or not float(text):
        raise UriError(f"{text!r} is no number of seconds")
    return float(text)


@dataclass
class Uri:
    """A URI in its parts."""

    text: str
    scheme: str
    target: str
    options: Mapping[str, str]
    _read: set[str] = field(default_factory=set)

    @classmethod
    def parse(cls, text: str) -> Uri:
        """Raises UriError for one without a scheme or with options of another form."""
        scheme, colon, rest = text.partition(":")
        if not colon or not re.fullmatch(r"[a-z][a-z0-9-]*", scheme):
            hint = f"; did you mean vhost-user:{text}?" if "/" in text else ""
            raise UriError(f"{text!r} has no scheme such as vhost-user: or loopback:{hint}")
        target, _, query = rest.partition("?")
        options: dict[str, str] = {}
        for item in filter(None, query.split("&")):
            name, equals, value = item.partition("=")
            if not name or name in options:
                raise UriError(
                    f"{text!r}: {'option ' + name + ' is there twice' if name else item}"
                )
            options[name] = value if equals else ""
        return cls(text, scheme, target, options)

    def take(self, name: str, parse: Callable[[str], V], default: W) -> V | W:
        """An option's value, or `default`. Raises UriError that names the option."""
        self._read.add(name)
        if name not in self.options:
            return default
        try:
            return parse(self.options[name])
        except (VirtqError, ValueError) as error:
            raise UriError(f"{self.text!r}: {name}: {error}") from None

    def done(self) -> None:
        """All options that are known were taken. Raises UriError for others."""
        if strange := [name for name in self.options if name not in self._read]:
            known = ", ".join(sorted(self._read)) or "none"
            raise UriError(f"{self.text!r}: no option is called {strange[0]}; there are: {known}")


@contextlib.contextmanager
def opening(text: str) -> Iterator[None]:
    """What goes wrong while what a URI names is opened is a UriError with the URI in it."""
    try:
        yield
    except UriError:
        raise
    except OSError as error:
        raise UriError(f"{text!r}: {error.strerror or error}") from error
    except ValueError as error:
        raise UriError(f"{text!r}: {error}") from error
