"""The cases for devices, a file for each area. Importing this registers them."""

from virtq.check.device import (
    blk,
    blk_config,
    blk_ranges,
    blk_zones,
    features,
    framing,
    in_order,
    indirect,
    malformed,
    notifications,
    packed,
    queue_reset,
    split,
    status,
)

__all__ = [
    "blk",
    "blk_config",
    "blk_ranges",
    "blk_zones",
    "features",
    "framing",
    "in_order",
    "indirect",
    "malformed",
    "notifications",
    "packed",
    "queue_reset",
    "split",
    "status",
]
