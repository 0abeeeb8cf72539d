"""The cases for devices, a file for each area. Importing this registers them."""

from virtq.check.device import (
    blk,
    blk_config,
    blk_in_order,
    blk_ranges,
    blk_zones,
    features,
    framing,
    in_order,
    in_order_resets,
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
    "blk_in_order",
    "blk_ranges",
    "blk_zones",
    "features",
    "framing",
    "in_order",
    "in_order_resets",
    "indirect",
    "malformed",
    "notifications",
    "packed",
    "queue_reset",
    "split",
    "status",
]
