"""Requirements of devices that no case can see in virtqueues, registers and notifications, with
the reason; `virtq check --coverage` shows them beside those that have a case."""

from __future__ import annotations

from collections.abc import Mapping

_PERMISSION = "a permission: whatever the device does about it is right"

UNSEEN: Mapping[str, str] = {
    "blk.op.dev.may-unmap-field": (
        "whether write zeroes deallocates shows in the storage below only, not to a driver"
    ),
    "vq.order-free-by-default": _PERMISSION,
    "packed.list.dev.limit": _PERMISSION,
    "packed.multibuf.dev.first-marked-last": (
        "a block, entropy or console request is one buffer; network devices have cases of their own"
    ),
    "resv.dev.addin-card-bits": "that a PCI function is an add-in card does not show",
    "resv.dev.sriov-offer": "the SR-IOV capability is in PCI's extended configuration space",
}
