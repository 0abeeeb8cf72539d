"""`virtq features`: between bits and names."""

from __future__ import annotations

import re
from typing import Any

import click

from virtq.cli.failures import beginning
from virtq.cli.options import DEVICE_TYPE
from virtq.cli.output import facts, json_option, print_json, show, table
from virtq.errors import FeatureError
from virtq.features import DEVICE_NAMES, F, bits, known, name, parse_name, unmet

SYSFS_BITS = 64
BITS_MAX = 128


def typed_devices() -> list[int]:
    """The device types of which features have names."""
    return [device_id for device_id in DEVICE_NAMES if len(known(device_id)) > len(F)]


def parse_set(text: str, device_id: int | None = None) -> int:
    """A feature set from any way of writing one.

    `0x300000000` and decimal numbers above 127 are sets; numbers up to 127 are one bit; 32 or more
    digits 0 and 1 are the file `features` of sysfs, bit 0 first; all else is names with commas.
    Without a device type a name may be that of any. Raises FeatureError.
    """
    if re.fullmatch(r"[01]{32,128}", text):
        return sum(1 << bit for bit, digit in enumerate(text) if digit == "1")
    if text[:2].lower() == "0x":
        return _number(text, 16)
    if re.fullmatch(r"[0-9]{3,}", text) and int(text) >= BITS_MAX:
        return _number(text, 10)
    features = 0
    for part in filter(None, (p.strip() for p in text.split(","))):
        features |= _bit(part.removeprefix("+"), device_id)
    return features


def _number(text: str, base: int) -> int:
    try:
        features = int(text, base)
    except ValueError:
        raise FeatureError(f"{text!r} is not a number") from None
    if features >> BITS_MAX:
        raise FeatureError(f"{text} has bits beyond {BITS_MAX - 1}")
    return features


def _bit(text: str, device_id: int | None) -> int:
    """The bit of a name, of whichever device type has it."""
    found: dict[int, str] = {}
    failures: list[FeatureError] = []
    for candidate in (None, *typed_devices()) if device_id is None else (device_id,):
        try:
            found.setdefault(parse_name(text, candidate), DEVICE_NAMES.get(candidate or 0, ""))
        except FeatureError as error:
            failures.append(error)
        if "" in found.values():
            break
    if not found:
        raise max(failures, key=lambda failure: "did you mean" in str(failure))
    if len(found) > 1:
        which = " or ".join(found.values())
        raise FeatureError(f"{text} is another bit for each device type: say --type {which}")
    return next(iter(found))


def meanings(bit: int, device_id: int | None = None) -> dict[str, str]:
    """What one bit is called, by device type (`""`: for every type); empty if it has no name."""
    general = name(bit)
    if not general.startswith("bit "):
        return {"": general}
    candidates = typed_devices() if device_id is None else [device_id]
    texts = {DEVICE_NAMES.get(c, str(c)): name(bit, c) for c in candidates}
    return {device: text for device, text in texts.items() if not text.startswith("bit ")}


def _meaning_text(bit: int, device_id: int | None) -> str:
    found = meanings(bit, device_id)
    if not found:
        return "(no name)"
    several = device_id is None
    return ", ".join(
        f"{text} ({device})" if device and several else text for device, text in found.items()
    )


@click.command(short_help="List feature bits, or go between bits and names.")
@click.argument("sets", metavar="[NAMES|BITS]...", nargs=-1)
@click.option("--type", "device_id", type=DEVICE_TYPE, help="The device type, such as blk or net.")
@json_option
def features(sets: tuple[str, ...], device_id: int | None, as_json: bool) -> None:
    """List the feature bits that virtq knows, or go between bits and names.

    A set may be written as names with commas between, a bit number (up to 127), a larger number,
    hexadecimal, or the digits 0 and 1 as in sysfs. Several together make one set.

    \b
    Examples:
      virtq features
      virtq features --type blk
      virtq features IN_ORDER,RING_PACKED
      virtq features 0x130006e54 --type blk
      virtq features $(cat /sys/bus/virtio/devices/virtio0/features)
    """
    if not sets:
        _list(device_id, as_json)
        return
    total = 0
    with beginning():
        for text in sets:
            total |= parse_set(text, device_id)
    _explain(total, device_id, as_json)


def _list(device_id: int | None, as_json: bool) -> None:
    rows = _known_rows(device_id)
    if as_json:
        print_json(
            [{"bit": bit, "name": text, "type": device or None} for bit, text, device in rows]
        )
        return
    listed = table("bit", "name", "device type", "in hexadecimal", numbers=(0, 3))
    for bit, text, device in rows:
        listed.add_row(str(bit), text, device or "every", f"{1 << bit:#x}")
    show(listed)


def _known_rows(device_id: int | None) -> list[tuple[int, str, str]]:
    rows = {(bit.bit_length() - 1, text, "") for text, bit in known().items()}
    for candidate in typed_devices() if device_id is None else [device_id]:
        device = DEVICE_NAMES.get(candidate, str(candidate))
        own = known(candidate).items() - known().items()
        rows |= {(bit.bit_length() - 1, text, device) for text, bit in own}
    return sorted(rows)


def _explain(total: int, device_id: int | None, as_json: bool) -> None:
    missing = unmet(total, device_id)
    width = SYSFS_BITS if total >> SYSFS_BITS == 0 else BITS_MAX
    sysfs = f"{total:0{width}b}"[::-1]
    if as_json:
        print_json(
            {
                "hex": f"{total:#x}",
                "sysfs": sysfs,
                "bits": [_bit_json(bit, device_id) for bit in bits(total)],
                "unmet": {
                    name(bit, device_id): name(need, device_id) for bit, need in missing.items()
                },
            }
        )
        return
    listed = table("bit", "name", numbers=(0,))
    for bit in bits(total):
        text = _meaning_text(bit, device_id)
        if bit in missing:
            text += f", needs {' or '.join(name(b, device_id) for b in bits(missing[bit]))}"
        listed.add_row(str(bit.bit_length() - 1), text)
    show(listed, facts(None, [("hexadecimal", f"{total:#x}"), ("sysfs", sysfs)]))


def _bit_json(bit: int, device_id: int | None) -> dict[str, Any]:
    found = meanings(bit, device_id)
    return {"bit": bit.bit_length() - 1, "names": {d or "every": text for d, text in found.items()}}
