"""The cases for devices, a file for each area. Importing this registers them."""

from virtq.check.device import (
    blk,
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
    vhost_user_memory,
    vhost_user_messages,
    vhost_user_rings,
)

__all__ = [
    "blk",
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
    "vhost_user_memory",
    "vhost_user_messages",
    "vhost_user_rings",
]
