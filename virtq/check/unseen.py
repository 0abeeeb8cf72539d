"""Requirements that no case can see in virtqueues, registers and notifications, with
the reason; `virtq check --coverage` shows them beside those that have a case."""

from __future__ import annotations

from collections.abc import Mapping

_PERMISSION = "a permission: whatever is done about it is right"
_INSIDE = "the order of two writes in memory does not show from another process, but by chance"
_BARRIER = (
    "a read that overtakes a write by nanoseconds loses a notification once in a great while; the"
    " cases no_notification_is_lost see a driver that has the two the wrong way round"
)
_WITH_DATA = (
    "notifications with data show on a bus only, whose log does not have the ring beside them"
)

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
    "feat.drv.validate-offer": "what a driver looks at does not show",
    "resv.drv.version-1-absent": _PERMISSION,
    "resv.drv.physical-addresses": "a device sees addresses, not what kind they are",
    "resv.drv.sriov-negotiate-first": "virtual functions are enabled on a bus that is not seen",
    "resv.indirect-desc.meaning": _PERMISSION,
    "resv.ring-reset.meaning": _PERMISSION,
    "framing.drv.no-excessive-count": "the specification does not say how many are too many",
    "split.avail.drv.barrier-before-idx": _INSIDE,
    "packed.place.drv.barrier-before-flags": _INSIDE,
    "split.avail.drv.barrier-before-flag-read": _BARRIER,
    "packed.place.drv.barrier-before-event-read": _BARRIER,
    "split.used.drv.no-assume-beyond-len": "what a driver makes of bytes does not show",
    "split.used.drv.ignore-beyond-len": "what a driver makes of bytes does not show",
    "packed.notify.drv.repeat": _PERMISSION,
    "notify.data.split-next-off": _WITH_DATA,
    "notify.data.repeat-identical": _WITH_DATA,
    "packed.id.range-in-example": "an example's own expectation",
    "cfg.drv.only-check-large-enough": "what a driver compares does not show",
    "suspend.drv.no-new-buffers": "a log of registers has no ring, and a socket no suspend",
}
