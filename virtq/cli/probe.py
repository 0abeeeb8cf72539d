"""`virtq probe`: what a device is, without driving it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import click
from rich.columns import Columns
from rich.console import RenderableType
from rich.table import Table

from virtq.cli.backend_facts import BackendFacts, backend_facts
from virtq.cli.failures import beginning
from virtq.cli.options import DEVICE_TYPE
from virtq.cli.output import facts, feature_set, json_option, print_json, show, size_text, table
from virtq.connecting import open_transport
from virtq.features import DEVICE_NAMES, F, bits, describe, name, names, unmet
from virtq.transports.vhost_user.messages import protocol_names
from virtq.uri import Uri
from virtq.wire import blk, console, gpio, input, layout, net, vsock
from virtq.wire.blk import BlkFeature as B
from virtq.wire.net import NetFeature as N


@dataclass(frozen=True)
class ConfigSpace:
    """How the configuration space of a device type is to be read."""

    structure: type[Any]
    feature_of: dict[str, Any]


CONFIG_SPACES = {
    net.DEVICE_ID: ConfigSpace(net.NetConfig, dict(net.FIELD_FEATURE)),
    blk.DEVICE_ID: ConfigSpace(blk.BlkConfig, dict(blk.FIELD_FEATURE)),
    console.DEVICE_ID: ConfigSpace(console.ConsoleConfig, dict(console.FIELD_FEATURE)),
    vsock.DEVICE_ID: ConfigSpace(vsock.VsockConfig, {}),
    gpio.DEVICE_ID: ConfigSpace(gpio.GpioConfig, {}),
    input.DEVICE_ID: ConfigSpace(input.InputConfig, {}),
}

CAPACITY_BYTES = 8
"""The least configuration space that a block device can do with."""

_TYPE_BITS = (1 << 128) - (1 << 50) | (1 << 24) - 1
# Bits that hardly any device of the type is without, or that no other type would have.
_TYPICAL = {
    net.DEVICE_ID: N.MAC | N.MRG_RXBUF | N.STATUS | N.CTRL_VQ | N.GUEST_CSUM | N.CSUM,
    blk.DEVICE_ID: B.SEG_MAX | B.BLK_SIZE | B.FLUSH | B.TOPOLOGY | B.CONFIG_WCE,
}


@dataclass(frozen=True)
class Found:
    """What a probe found."""

    uri: str
    device_id: int | None
    guessed: bool
    features: int
    queue_count: int
    queue_sizes: list[int] | None
    config: bytes
    backend: BackendFacts | None


def guess_device(features: int, config_size: int, least: int = 1) -> int | None:
    """The device type that a set of offered features looks like, for transports that do not tell.

    Bits that are typical of a type speak for it; bits that have no name there, or lack what they
    need, speak against it, but exclude nothing: DPDK's network device has both. None if no type is
    the best one, or the best one has less than `least` points, of which each typical bit is worth
    two.
    """
    own = features & _TYPE_BITS
    scores: dict[int, int] = {}
    for candidate, typical in _TYPICAL.items():
        strange = sum(name(bit, candidate).startswith("bit ") for bit in bits(own))
        against = strange + len(unmet(features, candidate))
        scores[candidate] = 2 * (features & typical).bit_count() - against
    if config_size < CAPACITY_BYTES:
        scores.pop(blk.DEVICE_ID)
    best = max(scores.values())
    likely = [candidate for candidate, score in scores.items() if score == best]
    return likely[0] if best >= least and len(likely) == 1 else None


def look(uri: str, device_id: int | None = None) -> Found:
    """Open the device that a URI names, and ask it what can be asked. Raises VirtqError."""
    parts = Uri.parse(uri)
    named = parts.options.get("device")
    if device_id is None and named:
        device_id = next((i for i, text in DEVICE_NAMES.items() if text == named), None)
    transport = open_transport(uri)
    try:
        features = transport.read_features()
        config = transport.read_config(0, transport.config_size) if transport.config_size else b""
        known = transport.device_id if device_id is None else device_id
        count = transport.queue_count
        sizes: list[int] | None = [transport.queue_size_max(index) for index in range(count)]
    finally:
        transport.close()
    backend = None
    if parts.scheme == "vhost-user":
        backend = backend_facts(parts.target)
        sizes = backend.queue_sizes
    return Found(
        uri=uri,
        device_id=guess_device(features, len(config)) if known is None else known,
        guessed=known is None,
        features=features,
        queue_count=count,
        queue_sizes=sizes,
        config=config,
        backend=backend,
    )


# Configuration space

_UNUSED = ("unused", "padding", "reserved")


def config_fields(device_id: int, config: bytes, features: int) -> Iterator[tuple[str, Any]]:
    """The fields that exist, by dotted name, with their values."""
    space = CONFIG_SPACES[device_id]
    values = layout.unpack(space.structure, config)
    for leaf in layout.fields_of(space.structure):
        top = leaf.name.partition(".")[0]
        needed = space.feature_of.get(top)
        exists = needed is None or features & needed
        if exists and leaf.offset + leaf.size <= len(config) and not top.startswith(_UNUSED):
            yield leaf.name, layout.get(values, leaf.name)


def _sectors(value: int) -> str:
    return f"{value} sectors, {size_text(value * blk.SECTOR_BYTES)}"


def _link_status(value: int) -> str:
    link = "link up" if value & net.LinkStatus.LINK_UP else "link down"
    return f"{link}, asks for announcements" if value & net.LinkStatus.ANNOUNCE else link


def _unknown_at(missing: int, text: Callable[[int], str]) -> Callable[[int], str]:
    return lambda value: "unknown" if value == missing else text(value)


_FIELD_TEXT: dict[str, Callable[[Any], str]] = {
    "capacity": _sectors,
    "max_discard_sectors": _sectors,
    "max_write_zeroes_sectors": _sectors,
    "max_secure_erase_sectors": _sectors,
    "size_max": lambda value: f"{value} bytes",
    "blk_size": lambda value: f"{value} bytes",
    "writeback": lambda value: "1, write cache on" if value else "0, write through",
    "mac": net.mac_text,
    "status": _link_status,
    "mtu": lambda value: f"{value} bytes",
    "speed": _unknown_at(0xFFFFFFFF, lambda value: f"{value} Mbit/s"),
    "gpio_names_size": lambda value: f"{value} bytes",
    "answer": lambda value: value.rstrip(b"\0").hex(" ") or "none",
    "duplex": _unknown_at(0xFF, lambda value: "full" if value else "half"),
}


def _field_text(field: str, value: Any) -> str:
    if field in _FIELD_TEXT:
        return _FIELD_TEXT[field](value)
    return value.hex(" ") if isinstance(value, bytes) else str(value)


# The command


@click.command(short_help="Show a device's features, queues and configuration.")
@click.argument("uri")
@click.option("--type", "device_id", type=DEVICE_TYPE, help="The device type, such as blk or net.")
@json_option
def probe(uri: str, device_id: int | None, as_json: bool) -> None:
    """Show what the device at URI is: its features by name, queues, memory slots, configuration.

    The device is asked, not driven. vhost-user does not tell the type of a device: it is guessed
    from the features, unless --type or ?device= in the URI says it.

    \b
    Examples:
      virtq probe vhost-user:/run/disk.sock
      virtq probe vhost-user:/run/net.sock --type net --json
      virtq probe 'loopback:blk?size=64M&queues=2'
    """
    with beginning():
        found = look(uri, device_id)
    if as_json:
        print_json(_as_json(found))
    else:
        show(*_as_tables(found))


def _as_json(found: Found) -> dict[str, Any]:
    fields = None
    if found.device_id in CONFIG_SPACES:
        fields = {
            field: value.hex() if isinstance(value, bytes) else value
            for field, value in config_fields(found.device_id, found.config, found.features)
        }
    protocol = found.backend.protocol_features if found.backend else None
    return {
        "uri": found.uri,
        "device": {
            "id": found.device_id,
            "name": DEVICE_NAMES.get(found.device_id or 0),
            "guessed": found.guessed,
        },
        "features": feature_set(found.features, names(found.features, found.device_id)),
        "protocol_features": None
        if protocol is None
        else feature_set(protocol, [protocol_names(bit) for bit in bits(int(protocol))]),
        "queues": {"count": found.queue_count, "sizes": found.queue_sizes},
        "memory_slots": found.backend.memory_slots if found.backend else None,
        "config": {"size": len(found.config), "hex": found.config.hex(), "fields": fields},
    }


def _as_tables(found: Found) -> Iterator[RenderableType]:
    yield facts(found.uri, _overview(found))
    parts = [_feature_table(found)]
    if found.config:
        parts.append(facts(f"configuration ({len(found.config)} bytes)", _config_rows(found)))
    yield Columns(parts, padding=(0, 4))


def _overview(found: Found) -> Iterator[tuple[str, str]]:
    device = DEVICE_NAMES.get(found.device_id or 0, f"type {found.device_id}")
    if found.device_id is None:
        device = "unknown: vhost-user does not tell, --type can"
    elif found.guessed:
        device += " (a guess from its features; --type tells)"
    yield "device", device
    yield "rings", "; ".join(_ring_kinds(found.features))
    yield "queues", _queue_text(found)
    if found.backend is not None:
        yield "protocol", protocol_names(int(found.backend.protocol_features)) or "none"
        slots = found.backend.memory_slots
        yield "memory", "8 regions, as a table" if slots is None else f"{slots} slots"


def _ring_kinds(features: int) -> Iterator[str]:
    for packed in (False, True):
        if not packed or features & F.RING_PACKED:
            orders = "any order or in order" if features & F.IN_ORDER else "any order"
            yield f"{'packed' if packed else 'split'}, {orders}"


def _queue_text(found: Found) -> str:
    sizes = found.queue_sizes
    if not sizes:
        return f"{found.queue_count}; the size is not told"
    alike = set(sizes)
    most = f"{sizes[0]}" if len(alike) == 1 else ", ".join(map(str, sizes))
    return f"{found.queue_count}, of up to {most} slots"


def _feature_table(found: Found) -> Table:
    missing = unmet(found.features, found.device_id)
    made = table("bit", "feature", numbers=(0,))
    for bit in bits(found.features):
        text = name(bit, found.device_id)
        if bit in missing:
            text += f", without {describe(missing[bit], found.device_id)}"
        made.add_row(str(bit.bit_length() - 1), text)
    return made


def _config_rows(found: Found) -> Iterator[tuple[str, str]]:
    if found.device_id in CONFIG_SPACES:
        for field, value in config_fields(found.device_id, found.config, found.features):
            yield field, _field_text(field, value)
        return
    for at in range(0, len(found.config), 16):
        yield f"{at:#05x}", found.config[at : at + 16].hex(" ")
