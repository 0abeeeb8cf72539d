"""The cases for devices, a file for each area. Importing this registers them."""

from virtq.check.device import (
    blk,
    features,
    framing,
    in_order,
    indirect,
    malformed,
    mmio,
    notifications,
    packed,
    pci_capabilities,
    pci_common,
    pci_interrupts,
    queue_reset,
    split,
    status,
)

__all__ = [
    "blk",
    "features",
    "framing",
    "in_order",
    "indirect",
    "malformed",
    "mmio",
    "notifications",
    "packed",
    "pci_capabilities",
    "pci_common",
    "pci_interrupts",
    "queue_reset",
    "split",
    "status",
]
