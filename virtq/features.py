"""Feature bits by name (VIRTIO 1.4, chapter 6 and the device sections), and sets of them as people
write them.

A feature set is a plain `int`: bits are what both sides exchange, and device types keep adding
bits that this package has no name for. `F` names the device-independent bits; the bits of a device
type live with its wire format (`virtq.wire.blk.BlkFeature`, `virtq.wire.net.NetFeature`), and the
functions here bring the two together by device id.

A *change* such as `+IN_ORDER,-EVENT_IDX` is how a user asks for a set: relative to what a device
would offer, or to what a driver would accept, by itself.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, IntFlag

from virtq.errors import FeatureError
from virtq.wire import blk, console, gpio, i2c, net, vsock
from virtq.wire.bits import unbounded_complement


@unbounded_complement
class F(IntFlag):
    """The device-independent feature bits. Device-specific ones (0-23, 50-127) live with their
    device."""

    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    VERSION_1 = 1 << 32
    ACCESS_PLATFORM = 1 << 33
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35
    ORDER_PLATFORM = 1 << 36
    SR_IOV = 1 << 37
    NOTIFICATION_DATA = 1 << 38
    NOTIF_CONFIG_DATA = 1 << 39
    RING_RESET = 1 << 40
    ADMIN_VQ = 1 << 41
    SUSPEND = 1 << 43


DEVICE_NAMES: Mapping[int, str] = {
    1: "net", 2: "blk", 3: "console", 4: "rng", 5: "balloon", 8: "scsi", 9: "9p", 16: "gpu",
    18: "input", 19: "vsock", 20: "crypto", 22: "pstore", 23: "iommu", 24: "mem", 25: "sound",
    26: "fs", 27: "pmem", 28: "rpmb", 32: "scmi", 34: "i2c", 36: "can", 40: "bt", 41: "gpio",
}  # fmt: skip
"""Short names of device types by device id (chapter 5)."""

_BITS_OF: Mapping[int, type[IntFlag]] = {
    net.DEVICE_ID: net.NetFeature,
    blk.DEVICE_ID: blk.BlkFeature,
    console.DEVICE_ID: console.ConsoleFeature,
    vsock.DEVICE_ID: vsock.VsockFeature,
    gpio.DEVICE_ID: gpio.GpioFeature,
    i2c.DEVICE_ID: i2c.I2cFeature,
}
_NEEDS_OF: Mapping[int, Mapping[int, tuple[int, ...]]] = {
    net.DEVICE_ID: dict(net.PREREQUISITES.items()),
    blk.DEVICE_ID: dict(blk.PREREQUISITES.items()),
}

_OWN_BITS: dict[int, list[type[IntFlag]]] = {}

# What a driver and a device in software, on any transport, can live up to.
RING_FEATURES = F.INDIRECT_DESC | F.EVENT_IDX | F.RING_PACKED | F.IN_ORDER | F.RING_RESET

# How a device gets at memory. A driver should accept both where they are offered (6.1); a device
# offers them when its memory asks for it. What the rings' fences order, a device in hardware sees
# in the same order on x86-64.
PLATFORM_FEATURES = F.ACCESS_PLATFORM | F.ORDER_PLATFORM


def bits(features: int) -> Iterator[int]:
    """Each bit of a set as a set of its own, lowest first."""
    while features:
        lowest = features & -features
        yield lowest
        features ^= lowest


def register(device_id: int, bits: type[IntFlag]) -> None:
    """Make the names of a device type's own feature bits known, beside those known already; of two
    bits of the same name the newer one counts. `virtq.Device.feature_bits` calls this.

    Raises FeatureError for a name that is a device-independent feature's, and for a bit that a
    device type does not own: theirs are 0 to 23 and 50 to 127 (2.2)."""
    for flag in bits:
        if flag.name in F.__members__:
            raise FeatureError(f"{bits.__name__}.{flag.name}: that is a device-independent feature")
        number = int(flag).bit_length() - 1
        if not (number <= 23 or 50 <= number <= 127):
            raise FeatureError(
                f"{bits.__name__}.{flag.name}: bit {number} is not a device type's, which are 0 to "
                "23 and 50 to 127 (2.2)"
            )
    own = _OWN_BITS.setdefault(device_id, [])
    if bits in own:
        own.remove(bits)
    own.append(bits)


def known(device_id: int | None = None) -> dict[str, int]:
    """Every name that has a bit, for one device type (None: only the device-independent ones)."""
    table = {flag.name: int(flag) for flag in _BITS_OF.get(device_id or 0, ()) if flag.name}
    for own in _OWN_BITS.get(-1 if device_id is None else device_id, ()):
        table |= {flag.name: int(flag) for flag in own if flag.name}
    return table | {flag.name: int(flag) for flag in F if flag.name}


def name(bit: int, device_id: int | None = None) -> str:
    """The name of one bit, or `bit 17` where it has none."""
    for text, value in known(device_id).items():
        if value == bit:
            return text
    return f"bit {bit.bit_length() - 1}"


def names(features: int, device_id: int | None = None) -> list[str]:
    """The names of all bits of a set, lowest bit first."""
    return [name(bit, device_id) for bit in bits(features)]


def describe(features: int, device_id: int | None = None) -> str:
    """A set for people, on one line."""
    return ", ".join(names(features, device_id)) or "none"


def unmet(features: int, device_id: int | None = None) -> dict[int, int]:
    """Bits of the set that need another bit that is not in it (sections 5.1.3.1, 5.2.5.2): each
    such bit with the bits of which it needs one."""
    missing: dict[int, int] = {}
    for bit, needs in _NEEDS_OF.get(device_id or 0, {}).items():
        if features & bit:
            for alternatives in needs:
                if not features & alternatives:
                    missing[int(bit)] = int(alternatives)
    return missing


def closed(features: int, device_id: int | None = None) -> int:
    """The set without the bits whose prerequisites are not in it, to any depth (section 2.2.1)."""
    while missing := unmet(features, device_id):
        for bit in missing:
            features &= ~bit
    return features


def parse_name(text: str, device_id: int | None = None) -> int:
    """One bit from `IN_ORDER`, `in-order`, `VIRTIO_F_IN_ORDER`, `VIRTIO_BLK_F_MQ`, `bit 35` or
    `35`.

    Raises FeatureError for a name that nothing has, with the nearest one there is.
    """
    plain = text.strip().upper().replace("-", "_")
    number = plain.removeprefix("BIT").strip(" _")
    if number.isdecimal():
        if int(number) > 127:
            raise FeatureError(f"feature bit {number} does not exist: bits are 0 to 127")
        return 1 << int(number)
    if plain.startswith("VIRTIO_"):
        plain = plain.partition("_F_")[2]
    table = known(device_id)
    if plain in table:
        return table[plain]
    nearest = difflib.get_close_matches(plain, table, 1)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    kind = f" for device type {DEVICE_NAMES.get(device_id, device_id)}" if device_id else ""
    raise FeatureError(f"no feature is called {text.strip()!r}{kind}{hint}")


def parse(text: str, device_id: int | None = None) -> int:
    """A set from names with commas between: `IN_ORDER,RING_PACKED`. Raises FeatureError."""
    features = 0
    for part in filter(None, (p.strip() for p in text.split(","))):
        features |= parse_name(part, device_id)
    return features


@dataclass(frozen=True)
class Change:
    """Bits to add to a set and bits to take from it."""

    add: int = 0
    remove: int = 0

    @classmethod
    def parse(cls, text: str, device_id: int | None = None) -> Change:
        """From `+IN_ORDER,-EVENT_IDX`. Raises FeatureError for an item without a sign, for an
        unknown name, and for a bit that is both added and removed."""
        add = remove = 0
        for part in filter(None, (p.strip() for p in text.split(","))):
            if part[0] not in "+-":
                raise FeatureError(
                    f"{part!r} needs a sign: +{part} to add it, -{part} to remove it"
                )
            bit = parse_name(part[1:], device_id)
            if part[0] == "+":
                add |= bit
            else:
                remove |= bit
        if both := add & remove:
            raise FeatureError(f"{describe(both, device_id)} is both added and removed")
        return cls(add, remove)

    @classmethod
    def of(cls, change: Change | str | None, device_id: int | None = None) -> Change:
        """A change as it is, from its text, or (None) the one that changes nothing."""
        return change if isinstance(change, Change) else cls.parse(change or "", device_id)

    def apply(self, features: int) -> int:
        """The changed set."""
        return (features | self.add) & ~self.remove


_KIND_BITS = F.RING_PACKED | F.IN_ORDER


class RingKind(Enum):
    """The four kinds of virtqueue: two layouts, each with and without IN_ORDER. A member's value is
    its bits."""

    SPLIT = F(0)
    SPLIT_IN_ORDER = F.IN_ORDER
    PACKED = F.RING_PACKED
    PACKED_IN_ORDER = F.RING_PACKED | F.IN_ORDER

    @classmethod
    def of(cls, features: int) -> RingKind:
        """The kind that a negotiated set makes."""
        return cls(F(features & _KIND_BITS))

    @classmethod
    def parse(cls, text: str) -> RingKind:
        """From `split`, `packed`, `split-in-order`, `packed-in-order`. Raises FeatureError."""
        try:
            return cls[text.strip().upper().replace("-", "_").replace(" ", "_")]
        except KeyError:
            kinds = ", ".join(str(kind) for kind in cls)
            raise FeatureError(
                f"no kind of ring is called {text.strip()!r}: there are {kinds}"
            ) from None

    @property
    def features(self) -> F:
        """The bits to negotiate for this kind."""
        return self.value

    @property
    def change(self) -> Change:
        """The change that makes a set have this kind and no other."""
        return Change(add=self.value, remove=_KIND_BITS & ~self.value)

    @property
    def packed(self) -> bool:
        return bool(self.value & F.RING_PACKED)

    @property
    def in_order(self) -> bool:
        return bool(self.value & F.IN_ORDER)

    @property
    def title(self) -> str:
        """For people: `packed, in order`."""
        layout = "packed" if self.packed else "split"
        return f"{layout}, {'in order' if self.in_order else 'any order'}"

    def __str__(self) -> str:
        return self.name.lower().replace("_", "-")
