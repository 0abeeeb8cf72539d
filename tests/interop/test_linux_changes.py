"""One disk, guests of every kind one after another, and our own driver in between: what one
front-end negotiated is nothing to the next."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from virtq.drivers.blk import BlkDriver
from virtq.features import F, RingKind
from virtq.transports.vhost_user import Frontend

from .peers.availability import require
from .peers.guest import GUEST_TIMEOUT_S, GuestConfig, run_guest, vhost_user
from .serving import Serving
from .test_linux_blk import digest, parse_features

pytestmark = pytest.mark.interop

MIB = 1 << 20
KIND_BITS = F.RING_PACKED | F.IN_ORDER

# Each guest reads what the one before has left in a place, and moves it on to the next.
SCRIPT = """
set -e
cat /sys/bus/virtio/devices/virtio0/features
dd if=/dev/vda bs=1M skip={place} count=1 2>/dev/null | sha256sum | cut -d' ' -f1
dd if=/dev/vda of=/dev/vda bs=64k skip={from_} seek={to} count=16 iflag=direct oflag=direct \
    2>/dev/null
"""


def test_guests_of_every_kind_share_a_disk(tmp_path: Path) -> None:
    require("qemu")
    image, socket_path = tmp_path / "disk", tmp_path / "disk.sock"
    data = np.random.Generator(np.random.SFC64(8)).bytes(MIB)
    kinds = [RingKind.SPLIT, RingKind.PACKED_IN_ORDER, RingKind.SPLIT_IN_ORDER]
    image.write_bytes(data + bytes(2 * len(kinds) * MIB))
    with Serving("blk", image, socket_path=socket_path) as disk:
        for place, kind in enumerate(kinds):
            wanted = {"packed": kind.packed, "in_order": kind.in_order}
            shown, seen = run_guest(
                GuestConfig(
                    SCRIPT.format(place=2 * place, from_=32 * place, to=32 * place + 16),
                    vhost_user("vhost-user-blk-pci", socket_path, properties=wanted),
                    ["virtio_blk"],
                    timeout_s=GUEST_TIMEOUT_S,
                )
            ).text.split()
            assert parse_features(shown.encode()) & KIND_BITS == kind.features
            assert seen == digest(data)
            other = RingKind(~kind.value & KIND_BITS)
            front = Frontend(str(socket_path))
            with BlkDriver(front, want=other.features, offer=other.change) as driver:
                copied = driver.read((2 * place + 1) * MIB, MIB)
                assert copied == data
                driver.write((2 * place + 2) * MIB, copied)
        report = disk.end()

    assert report.front_ends == 2 * len(kinds)
    assert report.remarks == ()
    assert image.read_bytes() == data * (2 * len(kinds) + 1)
